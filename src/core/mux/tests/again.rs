//! Calls that are made once more, since the session that they are about was closed in silence.

use std::time::Duration;

use serde_json::json;

use super::{
    reopening::{act, grant, read, reopenings, rig},
    rig::{not_found, result},
};
use crate::core::mux::Output;

#[test]
fn a_session_that_its_backend_closed_in_silence_is_opened_again_and_the_call_repeated() {
    let mut rig = rig();
    rig.open("s1", "a");
    rig.pass(Duration::from_secs(400));
    rig.send(1, "s1");
    rig.send(2, "s1");
    assert_eq!(rig.heard_ids("a"), [json!(1)]);
    rig.backend("a", &not_found(1, "session.send", "s1"));
    rig.silent();
    grant(&mut rig, "a", "session.resume", json!({}));
    assert_eq!(rig.heard_ids("a"), [json!(1)], "in the order written");
    rig.backend("a", &result(1, json!({"messageId": "m1"})));
    assert_eq!(rig.heard_ids("a"), [json!(2)]);
    assert_eq!(rig.said_one()["id"], json!(1));
    let told = rig.logged(|o| match o {
        Output::ClosedByBackend { session, backend } => {
            Some((session.to_string(), backend.to_string()))
        }
        _ => None,
    });
    assert_eq!(told, [("s1".to_owned(), "a".to_owned())]);
    // Closed again, right after a call: there is no copy of the next one, but a way back.
    rig.client(&act(3, "s1"));
    rig.heard("a");
    rig.backend("a", &not_found(3, "session.plan.delete", "s1"));
    let said = rig.said_raw();
    assert!(
        said.last().unwrap().contains("Session not found"),
        "{said:?}"
    );
    grant(&mut rig, "a", "session.resume", json!({}));
    // The turn was told as lost.
    grant(&mut rig, "a", "session.abort", json!({"success": true}));
    assert_eq!(reopenings(&mut rig).len(), 1);
}

#[test]
fn calls_that_meet_a_closed_session_together_are_all_made_again() {
    let mut rig = rig();
    rig.open("s1", "a");
    rig.pass(Duration::from_secs(60));
    for id in 1..=3 {
        rig.client(&read(id, "s1"));
    }
    rig.heard("a");
    for id in 1..=3 {
        rig.backend("a", &not_found(id, "session.getMessages", "s1"));
    }
    rig.silent();
    grant(&mut rig, "a", "session.resume", json!({}));
    assert_eq!(rig.heard_ids("a"), [json!(1), json!(2), json!(3)]);
}

/// A server may have cleaned it up twice; but one that never knows what it has opened is broken.
#[test]
fn a_call_that_meets_a_closed_session_again_is_made_again_a_few_times() {
    let mut rig = rig();
    rig.open("s1", "a");
    rig.pass(Duration::from_secs(60));
    rig.client(&read(1, "s1"));
    for _ in 0..3 {
        assert_eq!(rig.heard_ids("a"), [json!(1)]);
        rig.backend("a", &not_found(1, "session.getMessages", "s1"));
        rig.silent();
        grant(&mut rig, "a", "session.resume", json!({}));
    }
    assert_eq!(rig.heard_ids("a"), [json!(1)]);
    rig.backend("a", &not_found(1, "session.getMessages", "s1"));
    assert_eq!(rig.error(), (json!(1), -32603));
}
