//! Turns that are over, or go on in name only, although the backend or a client speaks as if they ran.

use std::time::Duration;

use serde_json::json;

use super::{
    reopening::{self, grant, own_call},
    rig::{Rig, event, failure, request, result},
    survivors::{answer, kinds, waiting_turn},
};
use crate::core::{access::Denial, event::CallOutcome, mux::Output};

/// A turn of `session` in which `r1` was answered so long before its process died that it counts as on
/// disk, and `r2` is open, goes on at `b`. `r1` may wait there for ever.
pub(super) fn half_forgotten(session: &str) -> Rig {
    let mut rig = reopening::rig();
    rig.open(session, "a");
    rig.send(1, session);
    rig.backend("a", &result(1, json!({"messageId": "m1"})));
    let method = "session.tools.handlePendingToolCall";
    for asks in ["r1", "r2"] {
        let data = json!({"requestId": asks});
        rig.backend("a", &event(session, "external_tool.requested", data));
    }
    let params = json!({"sessionId": session, "requestId": "r1", "result": "x"});
    rig.client(&request(2, method, params));
    rig.backend("a", &result(2, json!({"success": true})));
    let completed = json!({"requestId": "r1"});
    rig.backend("a", &event(session, "external_tool.completed", completed));
    rig.pass(Duration::from_secs(10));
    rig.homes.insert(session.into(), "b".into());
    rig.lose("a");
    grant(&mut rig, "b", "session.resume", json!({}));
    grant(&mut rig, "b", method, json!({"success": false}));
    let processing = json!({"processing": true});
    grant(&mut rig, "b", "session.metadata.isProcessing", processing);
    rig.said();
    rig
}

#[test]
fn a_turn_that_says_nothing_after_a_failover_has_not_outlived_it() {
    // It goes on as this event says, if any.
    let started = Some(("assistant.turn_start", json!({"turnId": "1"})));
    let permitted = Some(("permission.completed", json!({"requestId": "r3"})));
    let hooked = Some(("hook.start", json!({"hookType": "postToolUse"})));
    for (session, goes_on) in [
        ("alone-1", started),
        ("alone-1", permitted),
        ("alone-1", hooked),
        ("alone-1", None),
        ("s1", None),
    ] {
        let mut rig = half_forgotten(session);
        // A person may take any time.
        rig.pass(Duration::from_secs(600));
        rig.silent();
        let params = json!({"sessionId": session, "requestId": "r2", "result": "x"});
        rig.client(&request(3, "session.tools.handlePendingToolCall", params));
        rig.backend("b", &result(3, json!({"success": true})));
        let completed = json!({"requestId": "r2"});
        rig.backend("b", &event(session, "external_tool.completed", completed));
        let ended = json!({"toolCallId": "t2"});
        rig.backend("b", &event(session, "tool.execution_complete", ended));
        rig.pass(Duration::from_secs(14));
        let is_over = goes_on.is_none();
        if let Some((kind, data)) = goes_on {
            rig.backend("b", &event(session, kind, data));
        }
        rig.said();
        rig.heard("b");
        rig.pass(Duration::from_secs(20));
        if !is_over {
            // Models may think for as long as they like, and tools of the server run.
            rig.pass(Duration::from_secs(600));
            rig.silent();
            assert_eq!(rig.mux.open_turns(), 1);
            continue;
        }
        let alone = session == "alone-1";
        let told: &[&str] = &["session.error", "session.idle"];
        let told = if alone { told } else { &[] };
        assert_eq!(kinds(&rig.said()), told, "others hear the server's own end");
        assert_eq!(rig.mux.open_turns(), usize::from(!alone));
        assert_eq!(own_call(&mut rig, "b")["method"], "session.abort");
    }
}

/// By experiment: the CLI takes an answer that comes right behind an abort, and the turn goes on from
/// there, without an end; a message that was acknowledged meanwhile is never begun.
#[test]
fn nothing_that_is_over_is_answered() {
    #[derive(Clone, Copy, PartialEq, Debug)]
    enum Over {
        ToldWhenReopened,
        ToldWhenHalfOnDisk,
        ToldAtOnce,
        Aborted,
        AbortedToItsEnd,
    }
    for over in [
        Over::ToldWhenReopened,
        Over::ToldWhenHalfOnDisk,
        Over::ToldAtOnce,
        Over::Aborted,
        Over::AbortedToItsEnd,
    ] {
        let mut rig = waiting_turn();
        let mut at = "b";
        rig.homes.insert("s1".into(), "b".into());
        match over {
            Over::ToldWhenReopened => {
                rig.lose("a");
                // It comes while the session is opened.
                rig.client(&answer(2, "r1"));
                grant(&mut rig, "b", "session.resume", json!({}));
                let processing = json!({"processing": false});
                grant(&mut rig, "b", "session.metadata.isProcessing", processing);
            }
            Over::ToldWhenHalfOnDisk => {
                // On its way when its server was lost, and heard to have been taken.
                rig.client(&answer(2, "r1"));
                let data = json!({"requestId": "r2"});
                rig.backend("a", &event("s1", "external_tool.requested", data));
                let completed = json!({"requestId": "r1"});
                rig.backend("a", &event("s1", "external_tool.completed", completed));
                rig.lose("a");
                grant(&mut rig, "b", "session.resume", json!({}));
                let processing = json!({"processing": false});
                grant(&mut rig, "b", "session.metadata.isProcessing", processing);
            }
            Over::ToldAtOnce => {
                let large = "x".repeat(100_000);
                let params = json!({"sessionId": "s1", "requestId": "r0", "result": large});
                rig.client(&request(5, "session.tools.handlePendingToolCall", params));
                rig.backend("a", &result(5, json!({"success": true})));
                rig.lose("a");
                grant(&mut rig, "b", "session.resume", json!({}));
                grant(&mut rig, "b", "session.abort", json!({"success": true}));
                rig.client(&answer(2, "r1"));
            }
            Over::Aborted | Over::AbortedToItsEnd => {
                at = "a";
                let reason = json!({"reason": "user_initiated"});
                rig.backend("a", &event("s1", "abort", reason));
                if over == Over::AbortedToItsEnd {
                    let aborted = json!({"aborted": true});
                    rig.backend("a", &event("s1", "session.idle", aborted));
                }
                rig.said();
                rig.client(&answer(2, "r1"));
            }
        }
        assert!(rig.heard(at).is_empty(), "{over:?}");
        let said = rig.said();
        let answer = said.last().expect("an answer");
        assert_eq!(answer["id"], 2, "{over:?}");
        assert_eq!(answer["result"], json!({"success": false}), "{over:?}");
        rig.send(3, "s1");
        assert_eq!(rig.heard_ids(at), [json!(3)], "{over:?}");
    }
}

/// Its client was told of no end, and may be the only one that was asked.
#[test]
fn what_a_turn_of_somebody_else_has_asked_is_answered_after_a_loss() {
    let mut rig = reopening::rig();
    rig.open("s1", "a");
    rig.other_asks("s1");
    let data = json!({"requestId": "r1"});
    rig.backend("a", &event("s1", "external_tool.requested", data));
    rig.said();
    rig.homes.insert("s1".into(), "b".into());
    rig.lose("a");
    grant(&mut rig, "b", "session.resume", json!({}));
    rig.client(&answer(2, "r1"));
    let heard = rig.heard_ids("b");
    assert!(heard.contains(&json!(2)), "{heard:?}");
}

/// Else a person's "no" could become the "yes" that was refused before it.
#[test]
fn of_two_answers_the_one_that_was_taken_is_given_again() {
    let mut rig = waiting_turn();
    let method = "session.tools.handlePendingToolCall";
    for (id, text) in [(2, "first"), (3, "second")] {
        let params = json!({"sessionId": "s1", "requestId": "r1", "result": text});
        rig.client(&request(id, method, params));
    }
    rig.backend("a", &failure(2, "not now"));
    rig.backend("a", &result(3, json!({"success": true})));
    rig.said();
    rig.homes.insert("s1".into(), "b".into());
    rig.lose("a");
    grant(&mut rig, "b", "session.resume", json!({}));
    let given = grant(&mut rig, "b", method, json!({"success": true}));
    assert_eq!(given["result"], "second");
    assert_eq!(
        own_call(&mut rig, "b")["method"],
        "session.metadata.isProcessing",
        "once"
    );
}

#[test]
fn a_turn_whose_server_is_silent_is_not_doubted() {
    let mut rig = half_forgotten("alone-1");
    let params = json!({"sessionId": "alone-1", "requestId": "r2", "result": "x"});
    rig.client(&request(3, "session.tools.handlePendingToolCall", params));
    rig.backend("b", &result(3, json!({"success": true})));
    let completed = json!({"requestId": "r2"});
    rig.backend("b", &event("alone-1", "external_tool.completed", completed));
    let ended = json!({"toolCallId": "t2"});
    rig.backend("b", &event("alone-1", "tool.execution_complete", ended));
    rig.said();
    rig.step(&[], |mux, cx, out| {
        mux.handle_backend_silent(cx, &"b".into(), out);
        0
    });
    for _ in 0..3 {
        rig.pass(Duration::from_secs(16));
    }
    rig.silent();
    assert_eq!(rig.mux.open_turns(), 1);
}

/// The lock may come to this connection later.
#[test]
fn a_turn_that_could_not_be_ended_when_it_was_doubted_is_ended_later() {
    let mut rig = half_forgotten("s1");
    let params = json!({"sessionId": "s1", "requestId": "r2", "result": "x"});
    rig.client(&request(3, "session.tools.handlePendingToolCall", params));
    rig.backend("b", &result(3, json!({"success": true})));
    let completed = json!({"requestId": "r2"});
    rig.backend("b", &event("s1", "external_tool.completed", completed));
    let ended = json!({"toolCallId": "t2"});
    rig.backend("b", &event("s1", "tool.execution_complete", ended));
    rig.heard("b");
    // Another connection has the lock.
    let locks = std::mem::take(&mut rig.mux.locks);
    for _ in 0..3 {
        rig.pass(Duration::from_secs(16));
    }
    assert!(rig.heard("b").is_empty());
    // It has left, and this one has it.
    rig.mux.locks = locks;
    rig.pass(Duration::from_secs(16));
    assert_eq!(own_call(&mut rig, "b")["method"], "session.abort");
}

/// Whoever aborts a turn for all who have its session open lets no answer pass behind that; but the
/// process may end before it has aborted.
#[test]
fn what_is_aborted_for_all_is_answered_by_nobody_unless_its_process_ends_first() {
    let mut rig = waiting_turn();
    let data = json!({"requestId": "r2"});
    rig.backend("a", &event("s1", "external_tool.requested", data));
    rig.client(&answer(2, "r1"));
    rig.backend("a", &result(2, json!({"success": true})));
    let completed = json!({"requestId": "r1"});
    rig.backend("a", &event("s1", "external_tool.completed", completed));
    rig.said();
    rig.homes.insert("s1".into(), "b".into());
    rig.lose("a");
    let method = "session.tools.handlePendingToolCall";
    let processing = json!({"processing": true});
    let asks = "session.metadata.isProcessing";
    grant(&mut rig, "b", "session.resume", json!({}));
    grant(&mut rig, "b", method, json!({"success": false}));
    rig.client(&answer(3, "r2"));
    grant(&mut rig, "b", asks, processing.clone());
    assert_eq!(own_call(&mut rig, "b")["method"], "session.abort");
    assert_eq!(rig.said_one()["result"], json!({"success": false}));
    // What was answered is on disk by now.
    rig.pass(Duration::from_secs(10));
    rig.homes.insert("s1".into(), "c".into());
    rig.lose("b");
    grant(&mut rig, "c", "session.resume", json!({}));
    grant(&mut rig, "c", method, json!({"success": false}));
    // It may be all that the turn waits for there, and clients do not answer twice.
    let given = grant(&mut rig, "c", method, json!({"success": true}));
    assert_eq!(given["requestId"], "r2");
    grant(&mut rig, "c", asks, processing);
    rig.client(&answer(4, "r2"));
    assert_eq!(rig.heard_ids("c"), [json!(4)]);
}

#[test]
fn a_client_that_opens_its_session_itself_may_answer_what_that_asks() {
    let mut rig = waiting_turn();
    let reason = json!({"reason": "user_initiated"});
    rig.backend("a", &event("s1", "abort", reason));
    let params = json!({"sessionId": "s1", "continuePendingWork": true});
    rig.client(&request(2, "session.resume", params));
    rig.heard("a");
    rig.backend("a", &result(2, json!({"sessionId": "s1"})));
    rig.client(&answer(3, "r1"));
    assert_eq!(rig.heard_ids("a"), [json!(3)]);
}

/// However large it is: the next turn does not have to be lost for it.
#[test]
fn an_answer_in_vain_is_no_mark_of_the_turn_that_follows() {
    let mut rig = waiting_turn();
    rig.backend("a", &event("s1", "abort", json!({})));
    rig.send(2, "s1");
    rig.backend("a", &result(2, json!({"messageId": "m2"})));
    let data = json!({"requestId": "r2"});
    rig.backend("a", &event("s1", "external_tool.requested", data));
    let large = "x".repeat(100_000);
    let params = json!({"sessionId": "s1", "requestId": "r1", "result": large});
    rig.client(&request(3, "session.tools.handlePendingToolCall", params));
    let ended = rig.logged(|output| match output {
        Output::CallEnded { outcome, .. } => Some(*outcome),
        _ => None,
    });
    assert_eq!(
        ended.last(),
        Some(&CallOutcome::Ok),
        "as the server says it"
    );
    rig.said();
    rig.heard("a");
    rig.homes.insert("s1".into(), "b".into());
    rig.lose("a");
    grant(&mut rig, "b", "session.resume", json!({}));
    let processing = json!({"processing": true});
    grant(&mut rig, "b", "session.metadata.isProcessing", processing);
    rig.silent();
    assert_eq!(rig.mux.open_turns(), 1);
}

/// It is lost because its client may not have it, not because of a server.
#[test]
fn a_session_that_is_forbidden_while_it_is_opened_is_told_as_forbidden() {
    let mut rig = waiting_turn();
    rig.homes.insert("s1".into(), "b".into());
    rig.lose("a");
    own_call(&mut rig, "b");
    rig.step(&[], |mux, cx, out| {
        mux.handle_forbidden(cx, "s1", Denial::OtherUser, out);
        0
    });
    let said = rig.said();
    assert_eq!(kinds(&said), ["session.error", "session.idle"]);
    let told = said[0]["params"]["event"]["data"]["message"].to_string();
    assert!(told.contains("not available to this client"), "{told}");
    assert!(!told.contains("goes on"), "{told}");
}
