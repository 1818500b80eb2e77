//! A turn that was told as over is told once: whatever its backend says of its end later.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    moves::freeze,
    reopening::{self, grant, read},
    rig::{Rig, event, not_found, request, result},
};

const HANDLE: &str = "session.tools.handlePendingToolCall";

/// How the client comes to be told that its turn is over, while its backend knows nothing of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// Lost with its backend; perhaps it had got further than anybody knew.
    Lost,
    /// The next backend does not want what the client has answered: its question was not on disk
    /// any more, while the turn waits for the tool of another client.
    Refused,
    /// The same, when the answer had been acknowledged by the backend that died.
    Unasked,
    /// It said nothing for too long.
    Stalled,
    /// A drain had no more time for it, and did not come about after all.
    Drained,
}

const WAYS: [Way; 5] = [
    Way::Lost,
    Way::Refused,
    Way::Unasked,
    Way::Stalled,
    Way::Drained,
];

/// What comes first after that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Order {
    /// The end of the turn that was aborted, then the next turn.
    End,
    /// The next turn: none of the other was left.
    NoEnd,
    /// The next send, and its acknowledgement.
    Send,
}

const ORDERS: [Order; 3] = [Order::End, Order::NoEnd, Order::Send];

fn types(rig: &mut Rig) -> Vec<Value> {
    let said = rig.said();
    let types = said.iter().map(|f| f["params"]["event"]["type"].clone());
    types.filter(|kind| !kind.is_null()).collect()
}

fn answer(id: i64) -> String {
    let params = json!({"sessionId": "s1", "requestId": "ours", "result": "x"});
    request(id, HANDLE, params)
}

/// A turn that waits for a tool of this client, and one of another, and that has outlived `a` if
/// its `question` was answered or stands.
fn ask_both(rig: &mut Rig, answered: bool) {
    for request in ["ours", "theirs"] {
        let data = json!({"requestId": request});
        rig.backend("a", &event("s1", "external_tool.requested", data));
    }
    if answered {
        let data = json!({"requestId": "theirs"});
        rig.backend("a", &event("s1", "external_tool.completed", data));
        rig.client(&answer(2));
        rig.backend("a", &result(2, json!({"success": true})));
    }
    rig.homes.insert("s1".into(), "b".into());
    rig.said();
    rig.lose("a");
    rig.silent();
    grant(rig, "b", "session.resume", json!({}));
    // An event, so that the next ones may go the short way.
    rig.backend("b", &event("s1", "session.tools_updated", json!({})));
}

/// The client is told that its turn is over; where the session is open then.
fn told(rig: &mut Rig, way: Way) -> &'static str {
    let processing = json!({"processing": true});
    match way {
        Way::Lost => {
            rig.homes.insert("s1".into(), "b".into());
            rig.said();
            rig.lose("a");
            grant(rig, "b", "session.resume", json!({}));
            rig.backend("b", &event("s1", "session.tools_updated", json!({})));
            grant(rig, "b", "session.abort", json!({"success": true}));
        }
        Way::Refused => {
            ask_both(rig, false);
            grant(rig, "b", "session.metadata.isProcessing", processing);
            let data = json!({"requestId": "theirs"});
            rig.backend("b", &event("s1", "external_tool.completed", data));
            rig.client(&answer(2));
            rig.heard("b");
            rig.said();
            rig.backend("b", &result(2, json!({"success": false})));
            grant(rig, "b", "session.abort", json!({"success": true}));
        }
        Way::Unasked => {
            ask_both(rig, true);
            grant(rig, "b", HANDLE, json!({"success": false}));
            grant(rig, "b", "session.metadata.isProcessing", processing);
            grant(rig, "b", "session.abort", json!({"success": true}));
        }
        Way::Stalled => {
            rig.said();
            rig.pass(Duration::from_secs(180));
            grant(rig, "a", "session.abort", json!({"success": true}));
        }
        Way::Drained => {
            rig.said();
            freeze(rig, "s1", "a", true);
            grant(rig, "a", "session.abort", json!({"success": true}));
            rig.step(&[], |mux, cx, out| {
                mux.handle_thaw(cx, "s1", out);
                0
            });
        }
    }
    let kinds = types(rig);
    let ends = kinds.iter().filter(|kind| **kind == "session.idle").count();
    assert_eq!(ends, 1, "{way:?}: {kinds:?}");
    if matches!(way, Way::Stalled | Way::Drained) {
        "a"
    } else {
        "b"
    }
}

fn end(rig: &mut Rig, at: &str) {
    rig.backend(at, &event("s1", "abort", json!({})));
    rig.backend(at, &event("s1", "assistant.turn_end", json!({})));
    for kind in ["assistant.idle", "session.idle"] {
        rig.backend(at, &event("s1", kind, json!({"aborted": true})));
    }
    assert_eq!(types(rig), ["assistant.turn_end"], "told already");
}

#[test]
fn the_end_of_a_turn_that_was_told_as_over_is_not_told_again() {
    for (way, order) in WAYS.iter().flat_map(|w| ORDERS.map(|o| (*w, o))) {
        println!("{way:?}, {order:?}");
        let mut rig = reopening::rig();
        if way == Way::Stalled {
            rig.settings.turn_stall = Some(Duration::from_secs(60));
            rig.settings.ends_stalled = true;
        }
        rig.open("s1", "a");
        let data = json!({"messageId": "m1"});
        rig.backend("a", &event("s1", "user.message", data));
        let at = told(&mut rig, way);
        if order == Order::End {
            end(&mut rig, at);
        }
        // The next turn is told from its beginning to its end.
        rig.send(9, "s1");
        assert_eq!(rig.heard_ids(at), [json!(9)]);
        rig.backend(at, &result(9, json!({"messageId": "m9"})));
        rig.said();
        if order == Order::Send {
            end(&mut rig, at);
        }
        assert_eq!(rig.mux.open_turns(), 1);
        rig.backend(at, &event("s1", "user.message", json!({"messageId": "m9"})));
        rig.backend(at, &event("s1", "session.idle", json!({})));
        assert_eq!(types(&mut rig), ["user.message", "session.idle"]);
        assert_eq!(rig.mux.open_turns(), 0);
        // Nothing of it is left: the end of the one after that is its own, aborted or not.
        rig.backend(
            at,
            &event("s1", "user.message", json!({"messageId": "m10"})),
        );
        let aborted = json!({"aborted": true});
        rig.backend(at, &event("s1", "session.idle", aborted));
        assert_eq!(types(&mut rig), ["user.message", "session.idle"]);
    }
}

/// What is heard between the abort and the loss of the backend that was asked for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Heard {
    /// It may have had nothing to abort, so that nothing of it is on disk.
    Nothing,
    End,
    /// The next turn, whole.
    Turn,
    /// It closes the session first, which ends everything on disk.
    Closed,
}

#[test]
fn a_turn_that_was_told_as_over_is_aborted_until_its_end_is_heard() {
    for heard in [Heard::Nothing, Heard::End, Heard::Turn, Heard::Closed] {
        println!("{heard:?}");
        let mut rig = reopening::rig();
        rig.open("s1", "a");
        let data = json!({"messageId": "m1"});
        rig.backend("a", &event("s1", "user.message", data));
        told(&mut rig, Way::Lost);
        match heard {
            Heard::Nothing | Heard::Closed => {}
            Heard::End => end(&mut rig, "b"),
            Heard::Turn => {
                let data = json!({"messageId": "m2"});
                rig.backend("b", &event("s1", "user.message", data));
                rig.backend("b", &event("s1", "session.idle", json!({})));
            }
        }
        rig.said();
        rig.homes.insert("s1".into(), "c".into());
        if heard == Heard::Closed {
            rig.client(&read(2, "s1"));
            rig.backend("b", &not_found(2, "session.getMessages", "s1"));
        } else {
            rig.lose("b");
        }
        // What is pending on disk is to be aborted there, if it was not.
        let params = grant(&mut rig, "c", "session.resume", json!({}));
        let expected = (heard == Heard::Nothing).then_some(json!(true));
        assert_eq!(params.get("continuePendingWork"), expected.as_ref());
        if heard == Heard::Nothing {
            grant(&mut rig, "c", "session.abort", json!({"success": true}));
            end(&mut rig, "c");
        }
        rig.said();
        rig.client(&read(3, "s1"));
        let heard = rig.heard_ids("c");
        assert_eq!(heard.last(), Some(&json!(3)));
        assert!(heard.iter().all(Value::is_number), "{heard:?}");
    }
}
