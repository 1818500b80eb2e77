//! What crosses an abort of ours: questions, answers, and servers that do not say what came of it.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use super::{
    doubtful::half_forgotten,
    reopening::{grant, own_call},
    rig::{Rig, event, failure, request, result},
    survivors::{answer, kinds, silences, waiting_turn},
};
use crate::core::id::SessionId;

const ANSWER: &str = "session.tools.handlePendingToolCall";

fn tool_answer(id: i64, session: &str, asked: &str) -> String {
    let params = json!({"sessionId": session, "requestId": asked, "result": "x"});
    request(id, ANSWER, params)
}

/// A turn that goes on in name only, and of which nobody owes anything.
fn forgotten(session: &str) -> Rig {
    let mut rig = half_forgotten(session);
    rig.client(&tool_answer(3, session, "r2"));
    rig.backend("b", &result(3, json!({"success": true})));
    rig.heard("b");
    rig.said();
    rig
}

fn works(rig: &mut Rig, events: &[(&str, Value)]) {
    for (kind, data) in events {
        rig.backend("b", &event("alone-1", kind, data.clone()));
    }
    rig.said();
}

/// What a server does and ends leaves the doubt as it was.
#[test]
fn a_turn_is_doubted_once_its_server_has_done_what_it_did() {
    let completed = ("external_tool.completed", json!({"requestId": "r2"}));
    let ended = ("tool.execution_complete", json!({"toolCallId": "t2"}));
    let hook = json!({"hookType": "postToolUse"});
    let permitted = ("permission.completed", json!({"requestId": "p3"}));
    let other = ("tool.execution_complete", json!({"toolCallId": "t3"}));
    let hooks = [
        completed.clone(),
        ("hook.start", hook.clone()),
        ("hook.end", hook),
        ended.clone(),
    ];
    let permission = [completed.clone(), permitted.clone(), other, ended.clone()];
    for events in [hooks, permission] {
        let mut rig = forgotten("alone-1");
        works(&mut rig, &events[..3]);
        rig.pass(Duration::from_secs(600));
        rig.silent();
        works(&mut rig, &events[3..]);
        rig.pass(Duration::from_secs(31));
        assert_eq!(kinds(&rig.said()), ["session.error", "session.idle"]);
    }
    // Of several at a time the last one counts.
    let mut rig = forgotten("alone-1");
    works(&mut rig, &[completed, permitted, ended]);
    rig.pass(Duration::from_secs(600));
    rig.silent();
}

/// The question was written before the abort was read there.
#[test]
fn a_question_that_crosses_an_abort_is_not_answered() {
    for session in ["alone-1", "s1"] {
        let mut rig = forgotten(session);
        rig.pass(Duration::from_secs(31));
        assert_eq!(own_call(&mut rig, "b")["method"], "session.abort");
        rig.said();
        let data = json!({"requestId": "r4"});
        rig.backend("b", &event(session, "external_tool.requested", data));
        rig.client(&tool_answer(4, session, "r4"));
        let heard = rig.heard_ids("b");
        assert!(!heard.contains(&json!(4)), "{session}: {heard:?}");
    }
}

#[test]
fn what_is_asked_anew_may_be_answered() {
    let mut rig = waiting_turn();
    rig.backend("a", &event("s1", "abort", json!({})));
    let aborted = json!({"aborted": true});
    rig.backend("a", &event("s1", "session.idle", aborted));
    rig.backend("a", &event("s1", "assistant.turn_start", json!({})));
    let data = json!({"requestId": "r1"});
    rig.backend("a", &event("s1", "external_tool.requested", data));
    rig.heard("a");
    rig.client(&answer(3, "r1"));
    assert_eq!(rig.heard_ids("a"), [json!(3)]);
}

/// Whose tool it waits for as well makes no difference, nor that another client is known to have
/// answered: that may not be on the disk which the server has read.
#[test]
fn a_turn_that_is_orphaned_takes_no_answer_behind_its_abort() {
    for is_answered in [false, true] {
        let mut rig = waiting_turn();
        if is_answered {
            let completed = json!({"requestId": "r1"});
            rig.backend("a", &event("s1", "external_tool.completed", completed));
        }
        let session = SessionId::from("s1");
        rig.step(&[], |mux, cx, out| {
            mux.handle_turn_orphaned(cx, &session, out);
            0
        });
        assert_eq!(own_call(&mut rig, "a")["method"], "session.abort");
        rig.client(&answer(2, "r1"));
        assert!(rig.heard("a").is_empty());
    }
}

/// An abort is on disk some time after it is heard; the answer would take the turn up there.
#[test]
fn an_aborted_turn_is_not_given_its_answer_by_the_next_process() {
    let mut rig = waiting_turn();
    rig.client(&answer(2, "r1"));
    let reason = json!({"reason": "user_initiated"});
    rig.backend("a", &event("s1", "abort", reason));
    // It was on its way; the CLI has no use for it.
    rig.backend("a", &result(2, json!({"success": false})));
    rig.said();
    rig.heard("a");
    rig.homes.insert("s1".into(), "b".into());
    rig.lose("a");
    grant(&mut rig, "b", "session.resume", json!({}));
    assert_eq!(own_call(&mut rig, "b")["method"], "session.abort");
    assert_eq!(kinds(&rig.said()), ["session.error", "session.idle"]);
}

/// Until the abort that is under way is heard of, the client cannot know better.
#[test]
fn a_client_that_opens_its_session_behind_our_abort_revives_nothing() {
    let mut rig = waiting_turn();
    let large = "x".repeat(100_000);
    let params = json!({"sessionId": "s1", "requestId": "r0", "result": large});
    rig.client(&request(5, ANSWER, params));
    rig.backend("a", &result(5, json!({"success": true})));
    rig.homes.insert("s1".into(), "b".into());
    rig.lose("a");
    grant(&mut rig, "b", "session.resume", json!({}));
    let abort = own_call(&mut rig, "b");
    assert_eq!(abort["method"], "session.abort");
    rig.said();
    let params = json!({"sessionId": "s1", "continuePendingWork": true});
    rig.client(&request(6, "session.resume", params));
    rig.backend("b", &result(abort["id"].clone(), json!({"success": true})));
    for call in rig.heard("b") {
        rig.backend("b", &result(call["id"].clone(), json!({"sessionId": "s1"})));
    }
    rig.client(&answer(7, "r1"));
    assert!(rig.heard("b").is_empty());
}

/// By experiment an abort is answered with success whether or not anything ran, and a turn that was
/// taken up again has no end.
#[test]
fn a_turn_whose_abort_for_all_ends_nothing_is_told_as_over() {
    #[derive(Clone, Copy, Debug)]
    enum Abort {
        Taken,
        Refused,
        Unanswered,
    }
    for abort in [Abort::Taken, Abort::Refused, Abort::Unanswered] {
        let mut rig = forgotten("s1");
        let mut aborts = 0;
        for _ in 0..40 {
            rig.pass(Duration::from_secs(15));
            for call in rig.heard("b") {
                assert_eq!(call["method"], "session.abort");
                aborts += 1;
                let id = call["id"].clone();
                match abort {
                    Abort::Taken => rig.backend("b", &result(id, json!({"success": true}))),
                    Abort::Refused => rig.backend("b", &failure(id, "not now")),
                    Abort::Unanswered => {}
                }
            }
        }
        let said = rig.said();
        let told: &[&str] = &["session.error", "session.idle"];
        match abort {
            // Who answers nothing is found out otherwise.
            Abort::Unanswered => assert!(aborts == 1 && said.is_empty(), "{aborts} {said:?}"),
            _ => assert!(aborts == 2 && kinds(&said) == told, "{aborts} {said:?}"),
        }
    }
}

#[test]
fn a_server_that_stood_still_has_its_time_again() {
    // From before a look on, or between two of them.
    for (before, stands) in [(0, 59_999), (15_000, 14_900)] {
        let mut rig = forgotten("alone-1");
        rig.pass(Duration::from_millis(before));
        rig.step(&[], |mux, cx, out| {
            mux.handle_backend_silent(cx, &"b".into(), out);
            0
        });
        rig.pass(Duration::from_millis(stands));
        rig.silent();
        rig.step(&[], |mux, cx, out| {
            mux.handle_backend_back(cx, &"b".into(), out);
            0
        });
        rig.pass(Duration::from_secs(14));
        rig.silent();
        rig.pass(Duration::from_secs(17));
        assert_eq!(kinds(&rig.said()), ["session.error", "session.idle"]);
    }
}

/// The gauge of silent turns, of each backend.
#[test]
fn what_is_counted_as_silent_is_so_no_more_when_it_is_over() {
    let mut rig = forgotten("alone-1");
    rig.pass(Duration::from_secs(31));
    assert_eq!(kinds(&rig.said()), ["session.error", "session.idle"]);
    let mut silent = BTreeMap::new();
    for (backend, begins) in silences(&mut rig) {
        *silent.entry(backend).or_insert(0) += if begins { 1 } else { -1 };
    }
    assert_eq!(silent, BTreeMap::from([("b".to_owned(), 0)]));
}
