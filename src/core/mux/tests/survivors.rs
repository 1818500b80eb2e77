//! Turns that outlive their backend, since they wait for the client alone: what does not.

use serde_json::{Value, json};

use super::{
    reopening::{self, grant},
    rig::{Rig, event, result},
};

/// A turn at `a` that waits for a tool of the client, which has the `requestId` `r1`.
fn waiting_turn() -> Rig {
    let mut rig = reopening::rig();
    rig.open("s1", "a");
    let data = json!({"messageId": "m1"});
    rig.backend("a", &event("s1", "user.message", data));
    let data = json!({"requestId": "r1"});
    rig.backend("a", &event("s1", "external_tool.requested", data));
    rig.heard("a");
    rig.said();
    rig
}

/// It is opened again there, and goes on.
fn outlive(rig: &mut Rig, from: &str, to: &str) {
    rig.homes.insert("s1".into(), to.into());
    rig.lose(from);
    rig.silent();
    grant(rig, to, "session.resume", json!({}));
    let processing = json!({"processing": true});
    grant(rig, to, "session.metadata.isProcessing", processing);
}

fn kinds(said: &[Value]) -> Vec<&Value> {
    said.iter().map(|f| &f["params"]["event"]["type"]).collect()
}

#[test]
fn what_was_queued_behind_a_turn_that_goes_on_is_told_as_lost_at_its_end() {
    let mut rig = waiting_turn();
    for (id, message) in [(2, "m2"), (3, "m3"), (4, "m4")] {
        rig.send(id, "s1");
        rig.backend("a", &result(id, json!({"messageId": message})));
    }
    rig.said();
    outlive(&mut rig, "a", "b");
    rig.silent();
    // It may have been the same process: what begins is not lost. Nor is what came later.
    rig.send(5, "s1");
    rig.backend("b", &result(5, json!({"messageId": "m5"})));
    let data = json!({"messageId": "m3"});
    rig.backend("b", &event("s1", "user.message", data));
    assert_eq!(rig.said().len(), 2);
    rig.backend("b", &event("s1", "session.idle", json!({})));
    let said = rig.said();
    assert_eq!(kinds(&said), ["session.error", "session.idle"]);
    let data = &said[0]["params"]["event"]["data"];
    assert_eq!(data["errorCode"], json!("BACKEND_LOST"));
    let message = data["message"].as_str().unwrap();
    assert!(message.contains("Backend a"), "{message}");
    assert!(message.contains("2 message(s) (m2, m4)"), "{message}");
    // Once.
    let data = json!({"messageId": "m5"});
    rig.backend("b", &event("s1", "user.message", data));
    rig.backend("b", &event("s1", "session.idle", json!({})));
    assert_eq!(kinds(&rig.said()), ["user.message", "session.idle"]);
}

#[test]
fn what_was_queued_behind_a_turn_is_told_as_lost_with_it_too() {
    let mut rig = waiting_turn();
    rig.send(2, "s1");
    rig.backend("a", &result(2, json!({"messageId": "m2"})));
    rig.said();
    outlive(&mut rig, "a", "b");
    rig.send(3, "s1");
    rig.backend("b", &result(3, json!({"messageId": "m3"})));
    let data = json!({"requestId": "r1"});
    rig.backend("b", &event("s1", "external_tool.completed", data));
    rig.said();
    rig.lose("b");
    let said = rig.said();
    assert_eq!(kinds(&said), ["session.error", "session.idle"]);
    let text = said[0].to_string();
    assert!(text.contains("m2") && text.contains("m3"), "{text}");
}
