//! Turns that outlive their backend, since they wait for the client alone: what does not.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    reopening::{self, grant, own_call, read},
    rig::{Rig, Shell, event, failure, request, result},
};
use crate::core::{event::TurnOutcome, id::SessionId, mux::Output, turnlock::Parting};

/// A turn at `a` that waits for a tool of the client, which has the `requestId` `r1`.
pub(super) fn waiting_turn() -> Rig {
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

pub(super) fn kinds(said: &[Value]) -> Vec<&Value> {
    said.iter().map(|f| &f["params"]["event"]["type"]).collect()
}

/// What was said to the gauge of silent turns: of which backend, and whether one more.
pub(super) fn silences(rig: &mut Rig) -> Vec<(String, bool)> {
    rig.logged(|output| match output {
        Output::TurnSilent { backend, silent } => Some((backend.to_string(), *silent)),
        _ => None,
    })
}

/// It was found to be silent, asks the client, and survives the loss before it is looked at again.
#[test]
fn a_turn_that_was_silent_is_not_counted_at_a_backend_that_it_has_outlived() {
    let mut rig = reopening::rig();
    rig.settings.turn_stall = Some(Duration::from_secs(60));
    rig.open("s1", "a");
    let data = json!({"messageId": "m1"});
    rig.backend("a", &event("s1", "user.message", data));
    rig.pass(Duration::from_secs(121));
    let data = json!({"requestId": "r1"});
    rig.backend("a", &event("s1", "external_tool.requested", data));
    rig.heard("a");
    rig.said();
    outlive(&mut rig, "a", "b");
    rig.pass(Duration::from_secs(121));
    let a = |silent| ("a".to_owned(), silent);
    assert_eq!(silences(&mut rig), [a(true), a(false)]);
}

/// It was found to be silent where it went, and is lost there as one of the backend that it had outlived.
#[test]
fn a_silent_turn_is_counted_no_more_where_it_was_counted() {
    let mut rig = waiting_turn();
    rig.settings.turn_stall = Some(Duration::from_secs(60));
    let asks = |id: &str| json!({"requestId": id});
    outlive(&mut rig, "a", "b");
    rig.backend("b", &event("s1", "external_tool.completed", asks("r1")));
    rig.backend(
        "b",
        &event("s1", "assistant.turn_start", json!({"turnId": "1"})),
    );
    rig.pass(Duration::from_secs(121));
    rig.backend("b", &event("s1", "external_tool.requested", asks("r2")));
    let params = json!({"sessionId": "s1", "requestId": "r2", "result": "x"});
    rig.client(&request(3, "session.tools.handlePendingToolCall", params));
    rig.backend("b", &result(3, json!({"success": false})));
    assert_eq!(rig.mux.open_turns(), 0);
    let b = |silent| ("b".to_owned(), silent);
    assert_eq!(silences(&mut rig), [b(true), b(false)]);
}

#[test]
fn a_turn_that_nobody_knows_of_is_not_revived() {
    #[derive(Clone, Copy, PartialEq, Debug)]
    enum Known {
        Nowhere,
        Here,
        ToAnother,
        ToTheClient,
    }
    for known in [
        Known::Nowhere,
        Known::Here,
        Known::ToAnother,
        Known::ToTheClient,
    ] {
        let mut rig = match known {
            Known::Here => waiting_turn(),
            Known::Nowhere | Known::ToAnother | Known::ToTheClient => {
                let mut rig = reopening::rig();
                rig.homes.insert("s1".into(), "a".into());
                // What its session waited for is given up with this, unless it says that it is not.
                let mut params = json!({"sessionId": "s1"});
                if known == Known::ToTheClient {
                    params["continuePendingWork"] = json!(true);
                }
                rig.client(&request("o", "session.resume", params));
                rig.heard("a");
                rig.backend("a", &result("o", json!({"sessionId": "s1"})));
                rig.said();
                rig
            }
        };
        if known == Known::ToAnother {
            rig.other_asks("s1");
        }
        rig.homes.insert("s1".into(), "b".into());
        rig.lose("a");
        rig.silent();
        let params = grant(&mut rig, "b", "session.resume", json!({}));
        let goes_on = params.get("continuePendingWork") == Some(&json!(true));
        assert_eq!(goes_on, known != Known::Nowhere, "{known:?}: {params}");
    }
}

/// Or somebody else would look for it, and the next process take it up again for that.
#[test]
fn a_turn_that_the_next_process_does_not_run_is_over_for_all() {
    for inherits in [false, true] {
        let mut rig = reopening::rig();
        rig.open("s1", "a");
        rig.send(1, "s1");
        rig.turn(1);
        let data = json!({"requestId": "r1"});
        rig.backend("a", &event("s1", "external_tool.requested", data));
        let method = "session.permissions.setApproveAll";
        let params = json!({"sessionId": "s1", "value": true});
        rig.client(&request(2, method, params));
        rig.heard("a");
        rig.backend("a", &result(2, json!({"success": true})));
        rig.said();
        rig.homes.insert("s1".into(), "b".into());
        rig.lose("a");
        if inherits {
            // Somebody else leaves it, who has answered lately.
            let session = SessionId::from("s1");
            rig.step(&[], |mux, cx, out| {
                mux.handle_turn_inherited(cx, &session, &["r0".into()], out);
                0
            });
        }
        grant(&mut rig, "b", "session.resume", json!({}));
        let processing = json!({"processing": false});
        grant(&mut rig, "b", "session.metadata.isProcessing", processing);
        assert_eq!(kinds(&rig.said()), ["session.error", "session.idle"]);
        assert_eq!(own_call(&mut rig, "b")["method"], method);
        assert_eq!(rig.partings(), [Parting::Over]);
    }
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

pub(super) fn answer(id: i64, request_id: &str) -> String {
    let params = json!({"sessionId": "s1", "requestId": request_id, "result": "x"});
    request(id, "session.tools.handlePendingToolCall", params)
}

#[test]
fn a_send_that_is_dropped_by_our_abort_is_answered_so() {
    let mut rig = waiting_turn();
    outlive(&mut rig, "a", "b");
    rig.client(&answer(2, "r1"));
    rig.send(3, "s1");
    rig.send(4, "s1");
    assert_eq!(rig.heard_ids("b"), [json!(2), json!(3)]);
    // It was not on disk: the turn does not go on.
    rig.backend("b", &result(2, json!({"success": false})));
    let heard = rig.heard("b");
    assert_eq!(heard[0]["method"], json!("session.abort"));
    assert_eq!(heard.len(), 1, "4 might come to its turn before the abort");
    let said = rig.said();
    assert_eq!(kinds(&said[..2]), ["session.error", "session.idle"]);
    let answered = said[2..].iter().find(|f| f["id"] == json!(3)).unwrap();
    assert_eq!(answered["error"]["code"], json!(-32011));
    // It was queued, and dropped.
    rig.backend("b", &result(3, json!({"messageId": "m3"})));
    rig.backend(
        "b",
        &result(heard[0]["id"].clone(), json!({"success": true})),
    );
    assert_eq!(rig.heard_ids("b"), [json!(4)]);
    rig.backend("b", &event("s1", "session.idle", json!({"aborted": true})));
    rig.silent();
    rig.backend("b", &result(4, json!({"messageId": "m4"})));
    let data = json!({"messageId": "m4"});
    rig.backend("b", &event("s1", "user.message", data));
    rig.backend("b", &event("s1", "session.idle", json!({})));
    assert_eq!(rig.said().len(), 3);
    assert_eq!(rig.mux.open_turns(), 0);
}

#[test]
fn a_turn_goes_on_when_another_client_has_answered_first() {
    let mut rig = waiting_turn();
    outlive(&mut rig, "a", "b");
    let data = json!({"requestId": "r1"});
    rig.backend("b", &event("s1", "external_tool.completed", data));
    rig.client(&answer(2, "r1"));
    rig.backend("b", &result(2, json!({"success": false})));
    assert_eq!(rig.heard("b").len(), 1, "the answer, and no abort");
    let said = rig.said();
    assert_eq!(said.len(), 2, "{said:?}");
    rig.backend("b", &event("s1", "session.idle", json!({})));
    assert_eq!(kinds(&rig.said()), ["session.idle"]);
}

/// An SDK whose answer fails gives up, so nobody would answer any more.
#[test]
fn a_turn_ends_when_the_answer_that_it_waits_for_has_waited_too_long() {
    for silent in [false, true] {
        let mut rig = waiting_turn();
        let question = if silent {
            rig.step(&[], |mux, cx, out| {
                mux.handle_backend_silent(cx, &"a".into(), out);
                0
            });
            None
        } else {
            rig.shell = Shell::Manual;
            rig.lose("a");
            Some(rig.asked())
        };
        rig.client(&answer(2, "another"));
        rig.pass(Duration::from_secs(10));
        rig.client(&answer(3, "r1"));
        rig.client(&read(4, "s1"));
        rig.pass(Duration::from_secs(20));
        assert_eq!(rig.error(), (json!(2), -32010), "nothing waits for that");
        assert_eq!(rig.mux.open_turns(), 1);
        rig.pass(Duration::from_secs(10));
        let said = rig.said();
        let told = ["session.error", "session.idle"];
        assert_eq!(kinds(&said[..2]), told, "before the calls are answered");
        let errors: Vec<_> = said[2..].iter().map(|f| &f["error"]["code"]).collect();
        assert_eq!(errors, [-32010, -32010], "silent: {silent}");
        assert_eq!(rig.mux.open_turns(), 0);
        // Its backend is there again.
        if let Some(question) = question {
            rig.shell = Shell::Auto;
            rig.locate(&question, "a");
            grant(&mut rig, "a", "session.resume", json!({}));
        }
        let abort = own_call(&mut rig, "a");
        assert_eq!(abort["method"], json!("session.abort"));
        rig.backend("a", &result(abort["id"].clone(), json!({"success": true})));
        let aborted = json!({"aborted": true});
        rig.backend("a", &event("s1", "session.idle", aborted));
        rig.silent();
        rig.client(&read(5, "s1"));
        assert_eq!(rig.heard_ids("a"), [json!(5)]);
    }
}

#[test]
fn a_turn_ends_when_the_answer_that_it_waits_for_is_too_large_to_be_held() {
    let mut rig = waiting_turn();
    rig.settings.frame.frame = 0;
    rig.shell = Shell::Manual;
    rig.lose("a");
    let large = "x".repeat(700 * 1024);
    let held = json!({"sessionId": "s1", "more": large});
    rig.client(&request(1, "session.getMessages", held));
    rig.silent();
    let params = json!({"sessionId": "s1", "requestId": "r1", "result": large});
    rig.client(&request(2, "session.tools.handlePendingToolCall", params));
    let said = rig.said();
    assert_eq!(kinds(&said[..2]), ["session.error", "session.idle"]);
    assert_eq!(said[2]["id"], json!(2));
    assert!(said[2]["error"]["code"].is_i64());
    assert_eq!(rig.mux.open_turns(), 0);
}

#[test]
fn a_turn_whose_answer_could_not_be_given_again_does_not_outlive_its_backend() {
    for acknowledged in [false, true] {
        let mut rig = waiting_turn();
        let large = "x".repeat(100 * 1024);
        let params = json!({"sessionId": "s1", "requestId": "r1", "result": large});
        rig.client(&request(2, "session.tools.handlePendingToolCall", params));
        if acknowledged {
            rig.backend("a", &result(2, json!({"success": true})));
            rig.said();
        }
        rig.homes.insert("s1".into(), "b".into());
        rig.lose("a");
        let said = rig.said();
        assert_eq!(kinds(&said[..2]), ["session.error", "session.idle"]);
        assert_eq!(said.len(), if acknowledged { 2 } else { 3 });
        grant(&mut rig, "b", "session.resume", json!({}));
        grant(&mut rig, "b", "session.abort", json!({"success": true}));
    }
}

/// A server that is told to end says of its pending tools that nobody wants their answers; in the
/// next process they are pending again, and the client does not answer twice.
#[test]
fn an_answer_that_a_dying_server_did_not_want_is_given_to_the_next() {
    let mut rig = waiting_turn();
    rig.client(&answer(2, "r1"));
    rig.backend("a", &result(2, json!({"success": false})));
    rig.said();
    rig.homes.insert("s1".into(), "b".into());
    rig.lose("a");
    rig.silent();
    grant(&mut rig, "b", "session.resume", json!({}));
    let method = "session.tools.handlePendingToolCall";
    let again = grant(&mut rig, "b", method, json!({"success": true}));
    assert_eq!(again["result"], json!("x"));
    let processing = json!({"processing": true});
    grant(&mut rig, "b", "session.metadata.isProcessing", processing);
    assert_eq!(rig.mux.open_turns(), 1);
}

/// Told as lost, and perhaps not over: it is aborted, in the next process too.
#[test]
fn a_turn_that_is_told_as_lost_is_aborted_wherever_it_may_go_on() {
    let mut rig = waiting_turn();
    outlive(&mut rig, "a", "b");
    rig.client(&answer(2, "r1"));
    rig.heard("b");
    rig.backend("b", &result(2, json!({"success": false})));
    assert_eq!(own_call(&mut rig, "b")["method"], json!("session.abort"));
    assert_eq!(rig.mux.open_turns(), 0);
    rig.homes.insert("s1".into(), "c".into());
    rig.lose("b");
    grant(&mut rig, "c", "session.resume", json!({}));
    grant(&mut rig, "c", "session.abort", json!({"success": true}));
    rig.client(&read(3, "s1"));
    assert_eq!(rig.heard_ids("c"), [json!(3)]);
}

/// A server that ends was heard to refuse sends like that; SDKs do not answer again.
#[test]
fn an_answer_that_a_dying_server_has_an_error_for_is_given_to_the_next() {
    let mut rig = waiting_turn();
    rig.client(&answer(2, "r1"));
    let why = "session event host disconnected before acknowledging the event";
    rig.backend("a", &failure(2, why));
    assert_eq!(rig.error().0, json!(2));
    rig.homes.insert("s1".into(), "b".into());
    rig.lose("a");
    grant(&mut rig, "b", "session.resume", json!({}));
    let method = "session.tools.handlePendingToolCall";
    let given = grant(&mut rig, "b", method, json!({"success": true}));
    assert_eq!(given["requestId"], "r1");
    let processing = json!({"processing": true});
    grant(&mut rig, "b", "session.metadata.isProcessing", processing);
    rig.silent();
    assert_eq!(rig.mux.open_turns(), 1);
}

/// It is as new there as can be, however old it was where it was given first.
#[test]
fn an_answer_that_was_given_again_may_be_half_on_disk_there_too() {
    let mut rig = waiting_turn();
    let data = json!({"requestId": "r2"});
    rig.backend("a", &event("s1", "external_tool.requested", data));
    rig.client(&answer(2, "r1"));
    rig.backend("a", &result(2, json!({"success": true})));
    rig.said();
    rig.pass(Duration::from_secs(6));
    let processing = json!({"processing": true});
    let method = "session.tools.handlePendingToolCall";
    for (from, to, taken) in [("a", "b", true), ("b", "c", false)] {
        rig.homes.insert("s1".into(), to.into());
        rig.lose(from);
        grant(&mut rig, to, "session.resume", json!({}));
        grant(&mut rig, to, method, json!({ "success": taken }));
        grant(
            &mut rig,
            to,
            "session.metadata.isProcessing",
            processing.clone(),
        );
    }
    assert_eq!(own_call(&mut rig, "c")["method"], "session.abort");
}

#[test]
fn a_turn_whose_session_cannot_be_opened_again_is_told_as_lost() {
    let mut rig = waiting_turn();
    rig.homes.insert("s1".into(), "b".into());
    rig.lose("a");
    for _ in 0..8 {
        rig.silent();
        let call = own_call(&mut rig, "b");
        rig.backend(
            "b",
            &failure(call["id"].clone(), "External tool name clash"),
        );
        rig.pass(Duration::from_secs(8));
    }
    assert_eq!(kinds(&rig.said()), ["session.error", "session.idle"]);
    assert_eq!(rig.mux.open_turns(), 0);
}

/// It was answered by another client, and the turn has taken up the next message: the answer would
/// take it back, if it were given to a process that has not seen that.
#[test]
fn a_late_answer_to_what_is_behind_a_turn_is_not_given_again() {
    let mut rig = waiting_turn();
    let told = |rig: &mut Rig, kind: &str, data: Value| rig.backend("a", &event("s1", kind, data));
    told(
        &mut rig,
        "external_tool.completed",
        json!({"requestId": "r1"}),
    );
    told(&mut rig, "user.message", json!({"messageId": "m2"}));
    rig.client(&answer(2, "r1"));
    rig.backend("a", &result(2, json!({"success": false})));
    rig.said();
    rig.lose("a");
    assert_eq!(kinds(&rig.said()), ["session.error", "session.idle"]);
}

/// Of two tools one was answered, which is on disk, and its end is not: the next process waits for it
/// for ever. Seen in real life under load, up to 1.5 s after the answer.
#[test]
fn a_turn_one_of_whose_tools_is_half_on_disk_does_not_go_on() {
    for (since, survives) in [(0, false), (4, false), (10, true)] {
        let mut rig = reopening::rig();
        rig.open("alone-1", "a");
        let data = json!({"messageId": "m1"});
        rig.backend("a", &event("alone-1", "user.message", data));
        for asks in ["r1", "r2"] {
            let data = json!({"requestId": asks});
            rig.backend("a", &event("alone-1", "external_tool.requested", data));
        }
        let params = json!({"sessionId": "alone-1", "requestId": "r1", "result": "x"});
        let method = "session.tools.handlePendingToolCall";
        rig.client(&request(2, method, params));
        rig.backend("a", &result(2, json!({"success": true})));
        let completed = json!({"requestId": "r1"});
        rig.backend("a", &event("alone-1", "external_tool.completed", completed));
        rig.said();
        rig.pass(Duration::from_secs(since));
        rig.homes.insert("alone-1".into(), "b".into());
        rig.lose("a");
        rig.silent();
        grant(&mut rig, "b", "session.resume", json!({}));
        grant(&mut rig, "b", method, json!({"success": false}));
        let processing = json!({"processing": true});
        grant(&mut rig, "b", "session.metadata.isProcessing", processing);
        if survives {
            rig.silent();
            assert_eq!(rig.mux.open_turns(), 1);
            continue;
        }
        assert_eq!(kinds(&rig.said()), ["session.error", "session.idle"]);
        grant(&mut rig, "b", "session.abort", json!({"success": true}));
        assert_eq!(rig.mux.open_turns(), 0);
        rig.client(&read(3, "alone-1"));
        assert_eq!(rig.heard_ids("b"), [json!(3)]);
    }
}

/// Where others have the session open, they hear the same as the one that knows: the end that the
/// backend tells, once.
#[test]
fn a_turn_that_is_half_on_disk_is_aborted_for_all_who_have_its_session_open() {
    for (since, survives) in [(0, false), (4, false), (10, true)] {
        let mut rig = waiting_turn();
        let data = json!({"requestId": "r2"});
        rig.backend("a", &event("s1", "external_tool.requested", data));
        rig.client(&answer(2, "r1"));
        rig.backend("a", &result(2, json!({"success": true})));
        let completed = json!({"requestId": "r1"});
        rig.backend("a", &event("s1", "external_tool.completed", completed));
        rig.said();
        rig.pass(Duration::from_secs(since));
        rig.homes.insert("s1".into(), "b".into());
        rig.lose("a");
        // A process that ends before it has aborted leaves the same behind.
        for process in ["b", "c"] {
            rig.silent();
            grant(&mut rig, process, "session.resume", json!({}));
            let method = "session.tools.handlePendingToolCall";
            grant(&mut rig, process, method, json!({"success": false}));
            if process == "b" {
                rig.send(3, "s1");
            }
            let processing = json!({"processing": true});
            grant(
                &mut rig,
                process,
                "session.metadata.isProcessing",
                processing,
            );
            if survives {
                break;
            }
            assert_eq!(rig.mux.open_turns(), 1);
            if process == "b" {
                assert_eq!(own_call(&mut rig, "b")["method"], json!("session.abort"));
                rig.homes.insert("s1".into(), "c".into());
                rig.pass(Duration::from_secs(4));
                rig.lose("b");
            }
        }
        if survives {
            assert_eq!(rig.heard_ids("b"), [json!(3)], "it goes on");
            assert_eq!(rig.mux.open_turns(), 1);
            continue;
        }
        let abort = own_call(&mut rig, "c");
        assert_eq!(abort["method"], json!("session.abort"));
        assert!(rig.heard("c").is_empty(), "it would fall under the abort");
        rig.backend("c", &result(abort["id"].clone(), json!({"success": true})));
        assert_eq!(rig.heard_ids("c"), [json!(3)]);
        rig.backend(
            "c",
            &event("s1", "abort", json!({"reason": "user_initiated"})),
        );
        rig.backend("c", &event("s1", "session.idle", json!({"aborted": true})));
        assert_eq!(kinds(&rig.said()), ["abort", "session.idle"]);
        let turns = rig.logged(|output| match output {
            Output::TurnEnded(turn, _) => Some(turn.outcome),
            _ => None,
        });
        assert_eq!(turns, [TurnOutcome::Aborted]);
    }
}

/// Of a server that is stopped in that moment it is known late that it is lost: nothing was written
/// meanwhile.
#[test]
fn the_time_that_a_server_was_silent_makes_no_answer_older() {
    for (since, survives) in [(4, false), (10, true)] {
        let mut rig = waiting_turn();
        let data = json!({"requestId": "r2"});
        rig.backend("a", &event("s1", "external_tool.requested", data));
        rig.client(&answer(2, "r1"));
        rig.backend("a", &result(2, json!({"success": true})));
        let completed = json!({"requestId": "r1"});
        rig.backend("a", &event("s1", "external_tool.completed", completed));
        rig.said();
        rig.pass(Duration::from_secs(since));
        rig.step(&[], |mux, cx, out| {
            mux.handle_backend_silent(cx, &"a".into(), out);
            0
        });
        rig.pass(Duration::from_secs(10));
        rig.homes.insert("s1".into(), "b".into());
        rig.lose("a");
        grant(&mut rig, "b", "session.resume", json!({}));
        let method = "session.tools.handlePendingToolCall";
        grant(&mut rig, "b", method, json!({"success": false}));
        let processing = json!({"processing": true});
        grant(&mut rig, "b", "session.metadata.isProcessing", processing);
        let aborts = rig
            .heard("b")
            .iter()
            .any(|f| f["method"] == json!("session.abort"));
        assert_eq!(aborts, !survives, "{since}");
    }
}

/// Two have answered, and both know. The first has it aborted, and somebody's next turn runs when the
/// second hears that one does.
#[test]
fn a_turn_behind_the_one_that_is_half_on_disk_is_left_alone() {
    let mut rig = waiting_turn();
    rig.client(&answer(2, "r1"));
    rig.backend("a", &result(2, json!({"success": false})));
    let data = json!({"requestId": "r2"});
    rig.backend("a", &event("s1", "external_tool.requested", data));
    rig.homes.insert("s1".into(), "b".into());
    rig.said();
    rig.lose("a");
    grant(&mut rig, "b", "session.resume", json!({}));
    let method = "session.tools.handlePendingToolCall";
    grant(&mut rig, "b", method, json!({"success": false}));
    rig.backend("b", &event("s1", "session.idle", json!({"aborted": true})));
    let data = json!({"messageId": "of another"});
    rig.backend("b", &event("s1", "user.message", data));
    let processing = json!({"processing": true});
    grant(&mut rig, "b", "session.metadata.isProcessing", processing);
    assert!(
        rig.heard("b").is_empty(),
        "neither an abort nor anything else"
    );
    assert_eq!(kinds(&rig.said()), ["session.idle", "user.message"]);
    assert_eq!(rig.mux.open_turns(), 1);
}
