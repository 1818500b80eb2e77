//! Ends of the whole connection: drain, shutdown, a client that left.

use std::time::Duration;

use serde_json::json;

use super::{
    loss::turn_ends,
    rig::{Rig, event, framed, request, result},
};
use crate::core::{
    event::{CallOutcome, ClosedBy, TurnOutcome},
    mux::{Output, Served},
};

#[test]
fn drain_refuses_new_work_and_closes_when_nothing_runs() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.backend("a", &event("s1", "user.message", json!({"messageId": "m"})));
    rig.client(&request(1, "session.list", json!({})));
    let ticket = rig.serves[0].ticket;
    rig.said();
    rig.drain_client();
    for (id, method) in [
        (2, "session.send"),
        (3, "session.create"),
        (4, "session.resume"),
        (5, "sessions.fork"),
        (6, "sessions.open"),
    ] {
        rig.client(&request(id, method, json!({"sessionId": "s1"})));
        assert_eq!(rig.error(), (json!(id), -32015));
    }
    // What belongs to the running turn passes.
    rig.client(&request(
        7,
        "session.tools.handlePendingToolCall",
        json!({"sessionId": "s1"}),
    ));
    rig.backend("a", &result(7, json!({"success": true})));
    rig.backend("a", &event("s1", "session.idle", json!({})));
    assert_eq!(rig.said().len(), 2);
    assert_eq!(rig.closed, None, "a call is still served");
    rig.served(ticket, &Served::Result("{}".into()));
    assert_eq!(rig.said_one()["id"], json!(1));
    assert_eq!(rig.closed, Some("drained"));
    assert!(rig.claims.is_empty() && rig.sockets.is_empty());
}

#[test]
fn drain_waits_for_calls_that_are_not_even_placed() {
    for answer in [true, false] {
        let mut rig = Rig::manual();
        rig.client(&request(1, "status.get", json!({})));
        rig.drain_client();
        assert_eq!(rig.closed, None);
        let question = rig.asked();
        if answer {
            rig.locate(&question, "a");
            let (slot, _) = rig.connecting();
            rig.accept(slot, "a");
            rig.greet("a");
            rig.backend("a", &result(1, json!({})));
        } else {
            rig.refuse_locate(&question);
        }
        assert_eq!(rig.said_one()["id"], json!(1));
        assert_eq!(rig.closed, Some("drained"));
    }
    let mut rig = Rig::new();
    rig.drain_client();
    assert_eq!(rig.closed, Some("drained"), "nothing runs");
}

#[test]
fn shutdown_ends_all_that_runs_honestly() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.send(1, "s1");
    rig.backend("a", &result(1, json!({"messageId": "m1"})));
    rig.said();
    // With a backend, served, behind the gate, unplaced, held, waiting for a handshake.
    rig.send(2, "s1");
    rig.client(&request(3, "session.list", json!({})));
    rig.send(4, "s1");
    rig.shell = super::rig::Shell::Manual;
    rig.client(&request(5, "session.create", json!({})));
    rig.client(&request(6, "session.create", json!({"sessionId": "s6"})));
    rig.client(&request(
        7,
        "session.getMessages",
        json!({"sessionId": "s7"}),
    ));
    let question = rig.locates.remove(2);
    rig.locate(&question, "b");
    rig.heard("a");
    rig.shut_down();
    let said = rig.said();
    assert_eq!(said[0]["params"]["event"]["type"], json!("session.error"));
    assert_eq!(said[1]["params"]["event"]["data"], json!({"aborted": true}));
    let answers: Vec<_> = said[2..]
        .iter()
        .map(|f| (f["id"].clone(), f["error"]["code"].clone()))
        .collect();
    // 2 may have been executed; nothing else has.
    let expected = [
        (2, -32011),
        (3, -32015),
        (4, -32015),
        (5, -32015),
        (6, -32015),
        (7, -32015),
    ];
    assert_eq!(answers, expected.map(|(id, code)| (json!(id), json!(code))));
    assert!(rig.closed.is_some());
    assert!(rig.claims.is_empty());
    assert_eq!(
        turn_ends(&mut rig),
        [(TurnOutcome::Lost, ClosedBy::Operator)]
    );
}

#[test]
fn a_send_that_is_told_to_try_again_is_not_sent_by_the_shutdown() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.send(1, "s1");
    rig.send(2, "s1");
    rig.heard("a");
    // The socket is looked at before it is closed: the outbox of the same step.
    let slot = rig.slot("a");
    let cx = crate::core::mux::Context {
        now: rig.now,
        clock: crate::core::mux::WallClock {
            read: rig.now,
            said: std::time::SystemTime::UNIX_EPOCH,
        },
        pool: &rig.snapshot,
        settings: &rig.settings,
        commons: &crate::core::mux::Alone,
    };
    let mut out = crate::core::mux::Outbox::new();
    rig.mux.handle_shutdown(&cx, &mut out);
    let to_backend = out
        .iter(&[])
        .filter(|(dest, _)| *dest == crate::core::mux::Dest::Upstream(slot));
    assert_eq!(to_backend.count(), 0);
}

#[test]
fn a_client_that_leaves_abandons_its_calls_in_every_phase() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.backend("a", &event("s1", "user.message", json!({"messageId": "m"})));
    rig.send(1, "s1");
    rig.send(2, "s1");
    rig.client(&request(3, "session.list", json!({})));
    rig.shell = super::rig::Shell::Manual;
    rig.client(&request(4, "session.create", json!({"sessionId": "s4"})));
    rig.client(&request(5, "session.create", json!({})));
    rig.client(&request(6, "session.resume", json!({"sessionId": "s6"})));
    let question = rig.locates.pop().unwrap();
    rig.locate(&question, "b");
    assert_eq!(rig.claims.len(), 2);
    rig.said();
    rig.log.clear();
    rig.hang_up();
    rig.silent();
    assert_eq!(rig.closed, Some("client closed"));
    assert!(rig.claims.is_empty() && rig.sockets.is_empty() && rig.connects.is_empty());
    assert_eq!(rig.mux.held_bytes, 0);
    let abandoned = |o: &Output| {
        matches!(
            o,
            Output::CallEnded {
                outcome: CallOutcome::Abandoned,
                ..
            }
        )
    };
    assert_eq!(rig.log.iter().filter(|o| abandoned(o)).count(), 6);
    // In order: a turn is reported while its session is still counted.
    let turn = rig
        .log
        .iter()
        .position(|o| matches!(o, Output::TurnEnded(_, _)))
        .unwrap();
    let release = rig
        .log
        .iter()
        .position(|o| matches!(o, Output::Release(_)))
        .unwrap();
    assert!(turn < release);
    assert_eq!(turn_ends(&mut rig), [(TurnOutcome::Lost, ClosedBy::Client)]);
    // Once.
    rig.hang_up();
    rig.shut_down();
    rig.drain_client();
    rig.pass(Duration::from_secs(100));
    rig.silent();
}

#[test]
fn a_claim_that_is_asked_for_in_the_step_that_releases_one_survives() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.shell = super::rig::Shell::Manual;
    let slot = rig.slot("a");
    let resume = framed(&request(1, "session.resume", json!({"sessionId": "s1"})));
    rig.sockets.clear();
    // The resume is read, and writing to the backend fails in the same step.
    rig.step(&resume.clone(), |mux, cx, out| {
        let used = mux.handle_client(cx, &resume, out);
        mux.handle_upstream_closed(cx, slot, "write failed", out);
        used
    });
    let question = rig.asked();
    rig.locate(&question, "b");
    assert_eq!(rig.claims["s1"], "b");
    let order: Vec<_> = rig
        .log
        .iter()
        .filter(|o| matches!(o, Output::Release(_)))
        .collect();
    assert_eq!(order.len(), 1);
}
