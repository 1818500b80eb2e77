//! Sessions that are moved on purpose: when their machine stands still, and what it tells.

use serde_json::json;

use super::{
    reopening::{self, grant},
    rig::{Rig, request, result},
};
use crate::core::{
    event::{Event, ReopenResult},
    mux::{Freeze, Output},
};

/// The mover wishes to have the session away from there.
pub(super) fn freeze(rig: &mut Rig, session: &str, backend: &str, force: bool) {
    rig.step(&[], |mux, cx, out| {
        mux.handle_freeze(
            cx,
            session,
            &backend.into(),
            Freeze { ticket: 1, force },
            out,
        );
        0
    });
}

/// How often it was said to stand still since the log was looked at last.
fn frozen(rig: &mut Rig, session: &str) -> usize {
    let said = |output: &Output| matches!(output, Output::Frozen { session: s, .. } if s.as_str() == session);
    rig.logged(|output| said(output).then_some(())).len()
}

#[test]
fn what_waits_for_a_handshake_is_given_up_by_a_forced_move_with_all_its_counts() {
    let mut rig = Rig::manual();
    rig.client(&request(1, "session.create", json!({"sessionId": "s1"})));
    let question = rig.asked();
    rig.locate(&question, "a");
    let (slot, _) = rig.connecting();
    freeze(&mut rig, "s1", "a", true);
    assert_eq!(rig.error(), (json!(1), -32010));
    assert_eq!(rig.mux.held_bytes, 0);
    rig.accept(slot, "a");
    rig.greet("a");
    assert!(rig.heard("a").is_empty(), "it has not left, and does not");
    assert_eq!(rig.mux.upstreams.given_up(), 0, "nobody owes it an answer");
}

#[test]
fn a_call_whose_answer_was_withheld_is_owed_by_nobody_after_a_forced_move() {
    let mut rig = reopening::rig();
    rig.open("s1", "a");
    let params = json!({"sessionId": "s1", "mode": "plan"});
    rig.client(&request(1, "session.mode.set", params));
    rig.backend("a", &result(1, json!({})));
    rig.silent();
    freeze(&mut rig, "s1", "a", true);
    assert_eq!(rig.error(), (json!(1), -32011));
    assert_eq!(rig.mux.upstreams.given_up(), 0, "it was answered");
}

#[test]
fn a_question_about_one_session_does_not_keep_another_from_moving() {
    let mut rig = reopening::rig();
    rig.open("s1", "a");
    rig.open("s2", "a");
    rig.backend("a", &request(1, "hooks.invoke", json!({"sessionId": "s2"})));
    let question = rig.said_one()["id"].clone();
    freeze(&mut rig, "s2", "a", false);
    assert_eq!(frozen(&mut rig, "s2"), 0, "its client owes an answer");
    freeze(&mut rig, "s1", "a", false);
    assert_eq!(frozen(&mut rig, "s1"), 1);
    rig.client(&result(question, json!({})));
    assert_eq!(frozen(&mut rig, "s2"), 1);
    rig.heard("a");
    rig.homes.insert("s1".into(), "b".into());
    rig.step(&[], |mux, cx, out| {
        mux.handle_moved(cx, &"s1".into(), out);
        0
    });
    grant(&mut rig, "b", "session.resume", json!({}));
}

#[test]
fn a_session_that_stands_still_is_moved_though_its_server_ends_first() {
    for (stands, expected) in [(true, ReopenResult::Moved), (false, ReopenResult::Resumed)] {
        let mut rig = reopening::rig();
        rig.open("s1", "a");
        if stands {
            freeze(&mut rig, "s1", "a", false);
        }
        rig.homes.insert("s1".into(), "b".into());
        rig.lose("a");
        grant(&mut rig, "b", "session.resume", json!({}));
        let result = |output: &Output| match output {
            Output::Event(Event::SessionReopened { result, .. }) => Some(*result),
            _ => None,
        };
        assert_eq!(rig.logged(result), [expected]);
    }
}
