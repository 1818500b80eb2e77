//! Upstream connections that end: a backend lost, unreachable or broken.

use std::time::Duration;

use serde_json::{Value, json};

use super::rig::{Rig, event, framed, not_found, notification, request, result};
use crate::core::{
    event::{ClosedBy, Event, TurnOutcome},
    mux::Output,
};

fn codes(rig: &mut Rig) -> Vec<(Value, Value)> {
    rig.said()
        .iter()
        .map(|f| (f["id"].clone(), f["error"]["code"].clone()))
        .collect()
}

pub(super) fn turn_ends(rig: &mut Rig) -> Vec<(TurnOutcome, ClosedBy)> {
    rig.logged(|output| match output {
        Output::TurnEnded(turn, _) => Some((turn.outcome, turn.closed_by)),
        _ => None,
    })
}

#[test]
fn calls_in_flight_are_answered_at_once_and_other_backends_never_notice() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.open("s2", "a");
    rig.open("s3", "b");
    rig.client(&request(
        1,
        "session.getMessages",
        json!({"sessionId": "s1"}),
    ));
    rig.client(&request("two", "session.abort", json!({"sessionId": "s2"})));
    rig.client(&request(
        3,
        "session.getMessages",
        json!({"sessionId": "s3"}),
    ));
    rig.backend("b", &request(1, "hooks.invoke", json!({"sessionId": "s3"})));
    let hook = rig.said_one()["id"].clone();
    rig.lose("a");
    assert_eq!(
        codes(&mut rig),
        [(json!(1), json!(-32011)), (json!("two"), json!(-32011))]
    );
    assert_eq!(rig.claims.keys().collect::<Vec<_>>(), ["s3"]);
    let lost = rig.logged(|output| match output {
        Output::Event(Event::UpstreamLost {
            backend,
            calls,
            turns,
            ..
        }) => Some((backend.to_string(), *calls, *turns)),
        _ => None,
    });
    assert_eq!(lost, [("a".to_owned(), 2, 0)]);
    rig.client(&result(hook, json!({})));
    assert_eq!(
        rig.heard_ids("b"),
        [json!("open-s3"), json!(3), json!(1)][1..]
    );
    rig.backend("b", &result(3, json!({})));
    assert_eq!(rig.said_one()["id"], json!(3));
    // A late word of the old connection is nobody's.
    assert!(rig.try_slot("a").is_none());
    // The session is looked for again.
    rig.homes.insert("s1".into(), "c".into());
    rig.client(&request(4, "session.resume", json!({"sessionId": "s1"})));
    assert_eq!(rig.heard_ids("c"), [json!(4)]);
}

#[test]
fn a_lost_turn_is_ended_in_the_events_that_the_client_waits_for() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.open("s2", "a");
    rig.open("s3", "b");
    for (session, backend) in [("s1", "a"), ("s3", "b")] {
        rig.backend(
            backend,
            &event(session, "user.message", json!({"messageId": "m0"})),
        );
    }
    // Long enough for it to be on disk.
    rig.pass(Duration::from_secs(1));
    rig.send(1, "s1");
    rig.backend("a", &result(1, json!({"messageId": "m1"})));
    rig.send_and_wait(2, "s1");
    rig.said();
    rig.lose("a");
    let said = rig.said();
    let events: Vec<_> = said[..2].iter().map(|f| &f["params"]["event"]).collect();
    assert!(
        said[..2]
            .iter()
            .all(|f| f["params"]["sessionId"] == json!("s1"))
    );
    assert_eq!(events[0]["type"], json!("session.error"));
    let message = events[0]["data"]["message"].as_str().unwrap();
    assert!(
        message.contains("Backend a") && message.contains("m1"),
        "{message}"
    );
    assert!(!message.contains("m0"), "m0 was seen: {message}");
    assert_eq!(events[1]["type"], json!("session.idle"));
    assert_eq!(events[1]["data"], json!({"aborted": true}));
    assert_ne!(events[0]["id"], events[1]["id"]);
    assert_eq!(
        (&said[2]["id"], &said[2]["error"]["code"]),
        (&json!(2), &json!(-32011))
    );
    assert_eq!(
        said.len(),
        3,
        "nothing for s2, which was idle, nor for s3: {said:#?}"
    );
    assert_eq!(
        turn_ends(&mut rig),
        [(TurnOutcome::Lost, ClosedBy::Backend)]
    );
    assert_eq!(rig.mux.open_turns(), 1);
}

#[test]
fn sends_that_waited_behind_a_lost_one_are_located_anew_in_order() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    for n in 1..=4 {
        rig.send(n, "s1");
    }
    rig.homes.insert("s1".into(), "b".into());
    rig.lose("a");
    assert_eq!(
        codes(&mut rig),
        [(json!(1), json!(-32011))],
        "only the one that had left"
    );
    for n in 2..=4 {
        assert_eq!(rig.heard_ids("b"), [json!(n)]);
        rig.backend("b", &not_found(n, "session.send", "s1"));
        assert_eq!(rig.said_one()["id"], json!(n));
    }
    assert!(rig.mux.entries.is_empty() && rig.mux.held_bytes == 0);
}

#[test]
fn a_call_that_never_left_sets_out_for_another_backend() {
    let mut rig = Rig::new();
    rig.down.insert("a".into());
    rig.client(&request(1, "session.create", json!({"sessionId": "s1"})));
    rig.client(&request(2, "status.get", json!({})));
    assert_eq!(rig.heard_ids("b"), [json!(1), json!(2)]);
    rig.silent();
    assert_eq!(rig.claims["s1"], "b");
    let unreachable = rig.logged(|o| match o {
        Output::Unreachable { backend } => Some(backend.to_string()),
        _ => None,
    });
    assert_eq!(unreachable[0], "a");
}

#[test]
fn after_three_unreachable_backends_a_call_is_refused() {
    let mut rig = Rig::new();
    rig.down.extend(["a", "b", "c"].map(str::to_owned));
    rig.client(&request(1, "session.create", json!({"sessionId": "s1"})));
    rig.client(&request(2, "status.get", json!({})));
    rig.send(3, "s1");
    let said = codes(&mut rig);
    assert_eq!(said, [1, 2, 3].map(|id| (json!(id), json!(-32010))));
    assert!(rig.claims.is_empty() && rig.mux.entries.is_empty() && rig.mux.held_bytes == 0);
}

#[test]
fn no_backend_is_tried_twice_by_one_call() {
    let mut rig = Rig::manual();
    rig.client(&request(1, "session.create", json!({"sessionId": "s1"})));
    for (n, backend) in ["a", "b", "c"].iter().enumerate() {
        let question = rig.asked();
        assert_eq!(question.avoid.len(), n);
        rig.locate(&question, backend);
        let (slot, _) = rig.connecting();
        rig.step(&[], |mux, cx, out| {
            mux.handle_upstream_closed(cx, slot, "refused", out);
            0
        });
    }
    assert_eq!(codes(&mut rig), [(json!(1), json!(-32010))]);
}

#[test]
fn what_sets_out_again_keeps_its_place_before_what_was_written_later() {
    let mut rig = Rig::manual();
    rig.send(1, "s1");
    rig.send(2, "s1");
    let question = rig.asked();
    rig.locate(&question, "a");
    let (slot, _) = rig.connecting();
    // Held behind a question, while 1 waits for the handshake and 2 for 1.
    rig.client(&request(3, "session.resume", json!({"sessionId": "s1"})));
    rig.send(4, "s1");
    let question = rig.asked();
    rig.step(&[], |mux, cx, out| {
        mux.handle_upstream_closed(cx, slot, "refused", out);
        0
    });
    rig.silent();
    rig.locate(&question, "b");
    let (slot, _) = rig.connecting();
    rig.accept(slot, "b");
    rig.greet("b");
    assert_eq!(rig.heard_ids("b"), [json!(1), json!(3)]);
    rig.backend("b", &result(1, json!({})));
    assert_eq!(
        rig.heard_ids("b"),
        [Value::Null; 0],
        "2 waits for the attach that is under way"
    );
    rig.backend("b", &result(3, json!({})));
    assert_eq!(rig.heard_ids("b"), [json!(2)]);
    rig.backend("b", &result(2, json!({})));
    assert_eq!(rig.heard_ids("b"), [json!(4)]);
}

#[test]
fn a_send_that_waits_where_its_session_is_not_any_more_does_not_wait_for_itself() {
    let mut rig = Rig::manual();
    rig.send(1, "s1");
    rig.send(2, "s1");
    let question = rig.asked();
    rig.locate(&question, "a");
    let (at_a, _) = rig.connecting();
    rig.client(&request(3, "session.create", json!({"sessionId": "s1"})));
    let question = rig.asked();
    rig.locate(&question, "b");
    let (at_b, _) = rig.connecting();
    rig.accept(at_b, "b");
    rig.greet("b");
    rig.backend("b", &result(3, json!({"sessionId": "s1"})));
    rig.step(&[], |mux, cx, out| {
        mux.handle_upstream_closed(cx, at_a, "refused", out);
        0
    });
    let question = rig.asked();
    rig.locate(&question, "b");
    assert_eq!(rig.heard_ids("b"), [json!(3), json!(1)]);
    rig.backend("b", &result(1, json!({})));
    assert_eq!(rig.heard_ids("b"), [json!(2)]);
}

#[test]
fn sends_keep_their_order_when_the_first_waits_where_the_session_is_not() {
    let mut rig = Rig::manual();
    rig.send(1, "s1");
    let question = rig.asked();
    rig.locate(&question, "a");
    let (at_a, _) = rig.connecting();
    rig.send(2, "s1");
    let question = rig.asked();
    rig.locate(&question, "b");
    let (at_b, _) = rig.connecting();
    rig.accept(at_b, "b");
    rig.greet("b");
    rig.lose("b");
    assert!(rig.locates.is_empty(), "2 still waits for 1");
    rig.accept(at_a, "a");
    rig.greet("a");
    assert_eq!(rig.heard_ids("a"), [json!(1)]);
    rig.backend("a", &result(1, json!({})));
    let question = rig.asked();
    rig.locate(&question, "a");
    assert_eq!(rig.heard_ids("a"), [json!(2)]);
}

#[test]
fn a_call_that_fails_does_not_cut_the_next_one_from_its_session() {
    let mut rig = Rig::manual();
    rig.client(&request(
        1,
        "session.getMessages",
        json!({"sessionId": "s1"}),
    ));
    for n in 0..3 {
        let question = rig.asked();
        rig.locate(&question, "a");
        let (slot, _) = rig.connecting();
        if n == 2 {
            rig.client(&request(
                2,
                "session.getMessages",
                json!({"sessionId": "s1"}),
            ));
            let question = rig.asked();
            rig.locate(&question, "a");
        }
        rig.step(&[], |mux, cx, out| {
            mux.handle_upstream_closed(cx, slot, "refused", out);
            0
        });
    }
    assert_eq!(codes(&mut rig), [(json!(1), json!(-32010))]);
    let question = rig.asked();
    assert_eq!(question.session.as_ref().map(|s| s.as_str()), Some("s1"));
}

#[test]
fn a_backend_that_does_not_answer_connect_in_time_is_unreachable() {
    let mut rig = Rig::new();
    rig.mute.insert("a".into());
    rig.client(&request(1, "session.create", json!({"sessionId": "s1"})));
    rig.pass(Duration::from_millis(4_999));
    assert!(rig.heard("b").is_empty());
    rig.pass(Duration::from_millis(1));
    assert_eq!(rig.heard_ids("b"), [json!(1)]);
    assert!(rig.try_slot("a").is_none());
}

#[test]
fn a_backend_that_refuses_connect_is_unreachable_unless_it_knows_no_connect() {
    for (code, served_by) in [(-32002, "b"), (-32601, "a")] {
        let mut rig = Rig::new();
        rig.mute.insert("a".into());
        rig.client(&request(1, "session.create", json!({"sessionId": "s1"})));
        let error = json!({"code": code, "message": "m"});
        rig.backend(
            "a",
            &format!(r#"{{"jsonrpc":"2.0","id":0,"error":{error}}}"#),
        );
        assert_eq!(rig.heard_ids(served_by), [json!(1)], "{code}");
        rig.silent();
    }
}

#[test]
fn what_comes_before_the_handshake_is_not_for_the_client() {
    let mut rig = Rig::new();
    rig.mute.insert("a".into());
    rig.client(&request(0, "session.create", json!({"sessionId": "s1"})));
    rig.backend(
        "a",
        &notification("session.lifecycle", json!({"sessionId": "x"})),
    );
    rig.backend("a", &event("s1", "session.start", json!({})));
    rig.backend("a", &request(1, "hooks.invoke", json!({"sessionId": "s1"})));
    rig.silent();
    rig.greet("a");
    rig.silent();
    assert_eq!(rig.heard_ids("a"), [json!(0)]);
    rig.backend("a", &result(0, json!({"sessionId": "s1"})));
    assert_eq!(rig.said_one()["id"], json!(0));
}

fn violations(rig: &mut Rig) -> usize {
    rig.logged(|o| {
        matches!(o, Output::Violation { backend, .. } if backend.as_str() == "a").then_some(())
    })
    .len()
}

#[test]
fn a_backend_that_breaks_the_protocol_is_left_at_once() {
    let half = &framed(&event("s1", "x", json!({})))[..40];
    let rows: [&[u8]; 8] = [
        b"garbage\r\n\r\n",
        b"Content-Length: x\r\n\r\n",
        b"Content-Length: 3\r\n\r\n{x}",
        b"Content-Length: 2\r\n\r\n{}",
        b"Content-Length: 99999999999\r\n\r\n",
        &framed(&result(99, json!({}))),
        &framed(&result("1", json!({}))),
        half,
    ];
    for bytes in rows {
        let mut rig = Rig::new();
        rig.open("s1", "a");
        rig.open("s2", "b");
        rig.client(&request(
            1,
            "session.getMessages",
            json!({"sessionId": "s1"}),
        ));
        rig.client(&request(
            2,
            "session.getMessages",
            json!({"sessionId": "s2"}),
        ));
        rig.log.clear();
        rig.backend_bytes("a", bytes);
        if bytes == half {
            assert!(rig.try_slot("a").is_some());
            rig.lose("a");
        }
        assert!(rig.try_slot("a").is_none(), "its socket is closed");
        assert_eq!(codes(&mut rig), [(json!(1), json!(-32011))]);
        assert_eq!(
            violations(&mut rig),
            1,
            "{:?}",
            String::from_utf8_lossy(bytes)
        );
        rig.backend("b", &result(2, json!({})));
        assert_eq!(rig.said_one()["id"], json!(2));
    }
}

#[test]
fn an_end_between_frames_is_no_violation() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    let frame = framed(&event("s1", "x", json!({})));
    rig.backend_bytes("a", &frame[..50]);
    rig.backend_bytes("a", &frame[50..]);
    rig.lose("a");
    assert_eq!(violations(&mut rig), 0);
}

#[test]
fn a_wrong_id_during_the_handshake_is_a_violation() {
    let mut rig = Rig::new();
    rig.mute.insert("a".into());
    rig.client(&request(1, "session.create", json!({"sessionId": "s1"})));
    rig.backend("a", &result(1, json!({"sessionId": "s1"})));
    rig.silent();
    assert_eq!(violations(&mut rig), 1);
    assert_eq!(rig.heard_ids("b"), [json!(1)]);
}

#[test]
fn errors_without_an_id_are_swallowed() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    let error = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"m"}}"#;
    rig.backend("a", error);
    rig.backend("a", r#"{"id":null,"error":{"code":-32700,"message":"m"}}"#);
    rig.silent();
    assert!(rig.try_slot("a").is_some());
}

#[test]
fn a_silent_backend_leaves_nobody_waiting_and_goes_on_when_it_wakes() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.open("s2", "b");
    rig.send(1, "s1");
    rig.backend("a", &result(1, json!({"messageId": "m1"})));
    rig.backend(
        "a",
        &event("s1", "user.message", json!({"messageId": "m1"})),
    );
    rig.said();
    let read = |n: i64, s: &str| request(n, "session.getMessages", json!({"sessionId": s}));
    rig.client(&read(2, "s1"));
    rig.send(3, "s1");
    rig.send(4, "s1");
    rig.client(&read(5, "s2"));
    let silent = |rig: &mut Rig| {
        rig.step(&[], |mux, cx, out| {
            mux.handle_backend_silent(cx, &"a".into(), out);
            0
        });
    };
    silent(&mut rig);
    // What never left is safe to repeat, what left is not.
    assert_eq!(
        codes(&mut rig),
        [(json!(2), json!(-32011)), (json!(3), json!(-32011))]
    );
    rig.heard("a");
    rig.client(&read(6, "s1"));
    rig.silent();
    rig.client(&read(2, "s1"));
    assert_eq!(rig.error(), (json!(2), -32600), "its answer is still owed");
    assert!(rig.heard("a").is_empty());
    assert_eq!((rig.mux.open_turns(), rig.claims.len()), (1, 2));
    // It wakes: late answers are nobody's, its turn goes on, and calls pass.
    rig.backend("a", &result(2, json!({})));
    assert_eq!(
        rig.heard_ids("a"),
        [json!(4), json!(6)],
        "what waited, in order"
    );
    rig.backend("a", &result(3, json!({"messageId": "m3"})));
    rig.silent();
    for id in [4, 6] {
        rig.backend("a", &result(id, json!({})));
        assert_eq!(rig.said_one()["id"], json!(id));
    }
    rig.backend("a", &event("s1", "session.idle", json!({})));
    assert_eq!(rig.said_one()["method"], "session.event");
    assert_eq!(turn_ends(&mut rig), [(TurnOutcome::Ok, ClosedBy::Backend)]);
    rig.client(&read(2, "s1"));
    assert_eq!(rig.heard_ids("a"), [json!(2)]);
    // Found silent once more, and back by the pool's word.
    silent(&mut rig);
    rig.said();
    rig.client(&read(7, "s1"));
    assert!(rig.heard("a").is_empty());
    rig.step(&[], |mux, cx, out| {
        mux.handle_backend_back(cx, &"a".into(), out);
        0
    });
    assert_eq!(rig.heard_ids("a"), [json!(7)]);
    rig.backend("a", &result(7, json!({})));
    // And for too long.
    rig.said();
    silent(&mut rig);
    rig.client(&read(8, "s1"));
    rig.pass(rig.settings.home_wait);
    assert_eq!(rig.error(), (json!(8), -32010));
    assert!(
        rig.logged(|o| matches!(o, Output::Violation { .. }).then_some(()))
            .is_empty()
    );
}

#[test]
fn only_a_backend_that_ends_a_frame_halfway_breaks_the_protocol() {
    for (ours, violations) in [(true, 0), (false, 1)] {
        let mut rig = Rig::new();
        rig.open("s1", "a");
        rig.backend_bytes("a", b"Content-Length: 10\r\n\r\n{");
        let slot = rig.slot("a");
        rig.sockets.remove(&slot.index());
        rig.step(&[], |mux, cx, out| {
            if ours {
                mux.handle_upstream_dropped(cx, slot, "ours", out);
            } else {
                mux.handle_upstream_closed(cx, slot, "theirs", out);
            }
            0
        });
        let found = rig.logged(|o| matches!(o, Output::Violation { .. }).then_some(()));
        assert_eq!(found.len(), violations);
    }
}

/// The answer was to wait for the session to be opened, which is given up.
#[test]
fn an_answer_behind_an_attach_that_is_given_up_with_its_silent_backend_waits_for_no_less() {
    let mut rig = super::reopening::rig();
    rig.open("s1", "a");
    let params = json!({"sessionId": "s1", "requestId": "r1", "result": "x"});
    rig.client(&request(1, "session.tools.handlePendingToolCall", params));
    rig.client(&request(2, "session.detach", json!({"sessionId": "s1"})));
    rig.backend("a", &result(2, json!({"success": true})));
    rig.client(&request(3, "session.resume", json!({"sessionId": "s1"})));
    rig.said();
    rig.homes.insert("s1".into(), "b".into());
    rig.step(&[], |mux, cx, out| {
        mux.handle_backend_silent(cx, &"a".into(), out);
        0
    });
    assert_eq!(rig.error(), (json!(3), -32011));
    assert_eq!(rig.heard_ids("b"), [json!(1)]);
}
