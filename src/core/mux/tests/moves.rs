//! Sessions that are moved on purpose: when their machine stands still, and what it tells.

use serde_json::json;

use super::{
    reopening,
    rig::{Rig, request, result},
};
use crate::core::mux::Freeze;

/// The mover wishes to have the session away from there.
fn freeze(rig: &mut Rig, session: &str, backend: &str, force: bool) {
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

#[test]
fn what_waits_for_a_handshake_is_given_up_by_a_forced_move_with_all_its_counts() {
    let mut rig = Rig::manual();
    rig.client(&request(1, "session.create", json!({"sessionId": "s1"})));
    let question = rig.asked();
    rig.locate(&question, "a");
    let (slot, _) = rig.connecting();
    freeze(&mut rig, "s1", "a", true);
    assert_eq!(rig.error(), (json!(1), -32011));
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
