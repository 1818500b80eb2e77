//! What is recorded of a turn: outcome, times, counts.

use std::time::Duration;

use serde_json::json;

use super::rig::{Rig, event, failure, request, result};
use crate::core::{
    event::{ClosedBy, Event, TurnOutcome, TurnRecord},
    mux::Output,
};

fn records(rig: &mut Rig) -> Vec<TurnRecord> {
    rig.logged(|output| match output {
        Output::TurnEnded(record, _) => Some((**record).clone()),
        _ => None,
    })
}

fn began(rig: &mut Rig) -> usize {
    rig.logged(|o| matches!(o, Output::TurnBegan(s) if s.as_str() == "s1").then_some(()))
        .len()
}

const MS: fn(u64) -> Duration = Duration::from_millis;

#[test]
fn a_turn_is_recorded_from_its_send_to_its_idle() {
    let mut rig = Rig::new();
    rig.open("s1", "b");
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let params = json!({"sessionId": "s1", "prompt": "p",
                        "traceparent": format!("00-{trace}-00f067aa0ba902b7-01")});
    rig.client(&request(1, "session.send", params));
    rig.pass(MS(10));
    rig.backend("b", &result(1, json!({"messageId": "m1"})));
    rig.pass(MS(20));
    let events = [
        event("s1", "user.message", json!({"messageId": "m1"})),
        event("s1", "assistant.turn_start", json!({})),
        event(
            "s1",
            "assistant.message_delta",
            json!({"deltaContent": "x"}),
        ),
        event("s1", "assistant.turn_end", json!({})),
        event("s1", "session.idle", json!({})),
    ];
    for body in &events {
        rig.backend("b", body);
        rig.pass(MS(100));
    }
    assert_eq!(rig.mux.open_turns(), 0);
    let records = records(&mut rig);
    let [turn] = &records[..] else {
        panic!("{records:?}")
    };
    assert_eq!(
        (turn.outcome, turn.closed_by),
        (TurnOutcome::Ok, ClosedBy::Backend)
    );
    assert_eq!((turn.session.as_str(), turn.backend.as_str()), ("s1", "b"));
    assert_eq!(turn.client.to_string(), "127.0.0.1:50000");
    assert_eq!(
        (turn.queued, turn.first_event, turn.duration),
        (MS(0), Some(MS(30)), MS(430))
    );
    assert_eq!(turn.events, 5);
    assert_eq!(
        turn.bytes,
        events.iter().map(|e| e.len() as u64).sum::<u64>()
    );
    assert_eq!(turn.trace_id.as_deref(), Some(trace));
    assert_eq!(turn.reference >> 20, 7, "unique, since connections are");
}

#[test]
fn the_time_that_a_send_was_held_is_its_queue_time() {
    let mut rig = Rig::manual();
    rig.client(&request(1, "session.create", json!({"sessionId": "s1"})));
    rig.send(2, "s1");
    let question = rig.asked();
    rig.pass(MS(40));
    rig.locate(&question, "a");
    let (slot, _) = rig.connecting();
    rig.accept(slot, "a");
    rig.greet("a");
    rig.pass(MS(60));
    rig.backend("a", &result(1, json!({"sessionId": "s1"})));
    rig.pass(MS(5));
    rig.backend("a", &result(2, json!({"messageId": "m"})));
    rig.backend("a", &event("s1", "session.idle", json!({})));
    let records = records(&mut rig);
    assert_eq!((records[0].queued, records[0].duration), (MS(100), MS(5)));
}

#[test]
fn the_outcome_tells_how_the_turn_ended() {
    let failed = event("s1", "session.error", json!({"message": "m"}));
    let idle = event("s1", "session.idle", json!({}));
    let aborted = event("s1", "session.idle", json!({"aborted": true}));
    let rows = [
        (vec![&idle], TurnOutcome::Ok, ClosedBy::Backend),
        (vec![&failed, &idle], TurnOutcome::Error, ClosedBy::Backend),
        (vec![&aborted], TurnOutcome::Aborted, ClosedBy::Client),
        (
            vec![&failed, &aborted],
            TurnOutcome::Aborted,
            ClosedBy::Client,
        ),
    ];
    for (events, outcome, by) in rows {
        let mut rig = Rig::new();
        rig.open("s1", "a");
        rig.send(1, "s1");
        rig.backend("a", &result(1, json!({"messageId": "m"})));
        for body in &events {
            rig.backend("a", body);
        }
        let records = records(&mut rig);
        assert_eq!(
            (records[0].outcome, records[0].closed_by),
            (outcome, by),
            "{events:?}"
        );
    }
}

#[test]
fn a_turn_that_somebody_else_started_is_noticed() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.backend("a", &event("s1", "assistant.message_delta", json!({})));
    assert_eq!(rig.mux.open_turns(), 0, "no event that starts one");
    rig.backend(
        "a",
        &event("s1", "user.message", json!({"messageId": "theirs"})),
    );
    rig.backend("a", &event("s1", "assistant.turn_start", json!({})));
    rig.backend("a", &event("s1", "assistant.turn_start", json!({})));
    assert_eq!(began(&mut rig), 1);
    rig.backend("a", &event("s1", "session.idle", json!({})));
    rig.backend("a", &event("s1", "session.idle", json!({})));
    assert_eq!(records(&mut rig).len(), 1);
}

#[test]
fn a_refused_send_is_no_turn() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.send(1, "s1");
    assert_eq!(rig.mux.open_turns(), 1);
    rig.send(2, "s1");
    rig.backend("a", &failure(1, "no"));
    rig.pass(MS(70));
    rig.backend("a", &failure(2, "no"));
    assert_eq!(rig.mux.open_turns(), 0);
    assert!(
        rig.log
            .iter()
            .all(|o| !matches!(o, Output::TurnBegan(_) | Output::TurnEnded(_, _)))
    );
}

#[test]
fn a_cancelled_send_behind_another_leaves_that_ones_turn_alone() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.send(1, "s1");
    rig.pass(MS(50));
    rig.send(2, "s1");
    let cancel = json!({"jsonrpc": "2.0", "method": "$/cancelRequest", "params": {"id": 2}});
    rig.client(&cancel.to_string());
    rig.backend("a", &result(1, json!({"messageId": "m1"})));
    rig.backend("a", &event("s1", "session.idle", json!({})));
    assert_eq!(records(&mut rig)[0].duration, MS(50));
}

#[test]
fn a_turn_that_is_over_before_its_send_is_acknowledged_is_over() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.send(1, "s1");
    rig.backend(
        "a",
        &event("s1", "user.message", json!({"messageId": "m1"})),
    );
    rig.backend("a", &event("s1", "session.idle", json!({})));
    rig.backend("a", &result(1, json!({"messageId": "m1"})));
    assert_eq!(rig.mux.open_turns(), 0);
    assert_eq!(records(&mut rig).len(), 1);
    // The same with a send that is answered at its turn's end.
    rig.send_and_wait(2, "s1");
    rig.backend(
        "a",
        &event("s1", "user.message", json!({"messageId": "m2"})),
    );
    rig.backend(
        "a",
        &event("s1", "user.message", json!({"messageId": "m3"})),
    );
    rig.backend("a", &event("s1", "session.idle", json!({})));
    rig.backend("a", &result(2, json!({"messageId": "m2"})));
    assert_eq!(rig.mux.open_turns(), 0);
    assert_eq!(records(&mut rig).len(), 1);
}

#[test]
fn a_send_acknowledged_behind_the_idle_of_the_turn_before_is_a_turn() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.backend(
        "a",
        &event("s1", "user.message", json!({"messageId": "m0"})),
    );
    rig.send(1, "s1");
    rig.backend("a", &event("s1", "session.idle", json!({})));
    rig.backend("a", &result(1, json!({"messageId": "m1"})));
    assert_eq!(
        rig.mux.open_turns(),
        1,
        "m1 was accepted and has not been seen"
    );
    rig.said();
    rig.lose("a");
    let said = rig.said();
    assert_eq!(said[0]["params"]["event"]["type"], json!("session.error"));
    assert!(said[0].to_string().contains("m1"), "{}", said[0]);
}

#[test]
fn a_send_to_a_session_that_this_connection_does_not_hear_is_no_turn() {
    let mut rig = Rig::new();
    rig.send(1, "s1");
    rig.backend("a", &result(1, json!({"messageId": "m1"})));
    assert_eq!(rig.mux.open_turns(), 0, "no event would ever end it");
    assert!(rig.mux.entries.is_empty());
    rig.drain_client();
    assert_eq!(rig.closed, Some("drained"));
}

#[test]
fn detach_and_close_end_the_turn_here() {
    for (method, answer) in [
        ("session.detach", json!({"success": true})),
        ("sessions.close", json!({})),
    ] {
        let mut rig = Rig::new();
        rig.open("s1", "a");
        rig.backend("a", &event("s1", "user.message", json!({"messageId": "m"})));
        rig.client(&request(1, method, json!({"sessionId": "s1"})));
        rig.backend("a", &result(1, answer));
        let records = records(&mut rig);
        assert_eq!(
            (records[0].outcome, records[0].closed_by),
            (TurnOutcome::Lost, ClosedBy::Client)
        );
        assert_eq!(records[0].backend.as_str(), "a");
    }
}

#[test]
fn a_turn_that_says_nothing_is_noticed_and_ended_where_that_is_wished_for() {
    for ends in [false, true] {
        let mut rig = Rig::with(
            super::rig::Shell::Auto,
            crate::core::mux::Settings {
                turn_stall: Some(Duration::from_secs(60)),
                ends_stalled: ends,
                ..super::rig::settings()
            },
        );
        rig.open("s1", "a");
        rig.send(1, "s1");
        rig.backend("a", &result(1, json!({"messageId": "m1"})));
        rig.heard("a");
        rig.said();
        // It speaks, and then it waits for the client: neither is a stall.
        rig.pass(Duration::from_secs(59));
        let asks = json!({"requestId": "r"});
        rig.backend("a", &event("s1", "external_tool.requested", asks.clone()));
        rig.pass(Duration::from_secs(600));
        rig.backend("a", &event("s1", "external_tool.completed", asks));
        rig.said();
        rig.pass(Duration::from_secs(120));
        let news = rig.logged(|output| match output {
            Output::Event(Event::TurnStalled { ended, .. }) => Some(*ended),
            _ => None,
        });
        assert_eq!(news, [ends], "told once");
        assert_eq!(rig.mux.open_turns(), usize::from(!ends));
        if ends {
            let said = rig.said();
            let kinds: Vec<_> = said.iter().map(|f| &f["params"]["event"]["type"]).collect();
            assert_eq!(kinds, ["session.error", "session.idle"]);
            assert_eq!(rig.heard("a")[0]["method"], json!("session.abort"));
        } else {
            rig.silent();
            rig.backend("a", &event("s1", "session.idle", json!({})));
            let silent = rig.logged(|output| match output {
                Output::TurnSilent { silent, .. } => Some(*silent),
                _ => None,
            });
            assert_eq!(silent, [false], "it is not counted any more");
        }
    }
}

#[test]
fn a_question_about_one_session_does_not_hide_the_silence_of_another() {
    let mut rig = Rig::new();
    rig.settings.turn_stall = Some(Duration::from_secs(60));
    for session in ["s1", "s2"] {
        rig.open(session, "a");
        let data = json!({"messageId": "m"});
        rig.backend("a", &event(session, "user.message", data));
        rig.said();
    }
    rig.backend("a", &request(1, "hooks.invoke", json!({"sessionId": "s2"})));
    rig.pass(Duration::from_secs(180));
    let stalled = rig.logged(|output| match output {
        Output::Event(Event::TurnStalled { session, .. }) => Some(session.to_string()),
        _ => None,
    });
    assert_eq!(stalled, ["s1"]);
}
