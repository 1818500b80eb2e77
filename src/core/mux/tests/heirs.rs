//! A turn that goes on when the connection that had its lock hears it no more.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    super::Output,
    locks::{OTHER, OURS},
    reopening::{self, grant, own_call},
    rig::{Rig, event, failure, framed, request, result},
};
use crate::core::{
    id::SessionId,
    turnlock::{Parting, Verdict},
};

impl Rig {
    /// A session that is in a turn of another connection.
    fn joined() -> Self {
        let mut rig = Self::new();
        rig.open("s1", "a");
        assert_eq!(rig.other_asks("s1"), Verdict::Taken);
        rig
    }

    /// The other connection has left in its turn, which waits for these.
    fn inherit(&mut self, asked: &[&str]) {
        assert!(self.turns.borrow_mut().pass("s1", OTHER, OURS));
        self.told_to_inherit(asked);
    }

    fn told_to_inherit(&mut self, asked: &[&str]) {
        let asked: Vec<String> = asked.iter().map(ToString::to_string).collect();
        let session = SessionId::from("s1");
        self.step(&[], |mux, cx, out| {
            mux.handle_turn_inherited(cx, &session, &asked, out);
            0
        });
    }

    /// The one call that the backend has heard.
    fn one_call(&mut self, method: &str) -> Value {
        let heard = self.heard("a");
        assert_eq!(heard.len(), 1, "{heard:?}");
        assert_eq!(heard[0]["method"], method);
        heard[0]["id"].clone()
    }

    fn is_asked(&mut self) -> Value {
        self.one_call("session.metadata.isProcessing")
    }

    fn processes(&mut self, id: Value, processing: bool) {
        self.backend("a", &result(id, json!({ "processing": processing })));
    }

    fn tells(&mut self, kind: &str, data: Value) {
        self.backend("a", &event("s1", kind, data));
    }

    pub(super) fn partings(&self) -> Vec<Parting> {
        let parting = |output: &Output| match output {
            Output::TurnOver { parting, .. } => Some(parting.clone()),
            _ => None,
        };
        self.log.iter().filter_map(parting).collect()
    }
}

fn request_of(id: &str) -> Value {
    json!({ "requestId": id })
}

#[test]
fn an_inherited_turn_is_asked_for_and_waited_for() {
    for runs in [true, false] {
        let mut rig = Rig::joined();
        rig.send(1, "s1");
        rig.inherit(&[]);
        let id = rig.is_asked();
        assert_eq!((rig.holder("s1"), rig.waiters()), (Some(OURS), 1));
        rig.processes(id, runs);
        if runs {
            assert!(rig.granted.is_empty(), "it is not over");
            rig.tells("session.idle", json!({}));
        }
        assert_eq!(rig.granted, [OURS]);
        rig.granted("s1");
        assert_eq!(rig.heard_ids("a"), [json!(1)]);
    }
}

/// What is heard before the answer may be of another turn, or later than the answer.
#[test]
fn an_end_before_the_answer_is_asked_for_again() {
    for (heard_begin, runs) in [(false, true), (false, false), (true, true), (true, false)] {
        let mut rig = Rig::joined();
        rig.send(1, "s1");
        if heard_begin {
            rig.tells("user.message", json!({"messageId": "before"}));
            rig.heard("a");
        }
        rig.inherit(&[]);
        let first = rig.is_asked();
        rig.tells("session.idle", json!({}));
        let second = rig.is_asked();
        rig.processes(first, true);
        assert!(rig.granted.is_empty(), "{heard_begin} {runs}");
        rig.processes(second, runs);
        assert_eq!(rig.granted.is_empty(), runs, "{heard_begin}");
        if runs {
            rig.tells("session.idle", json!({}));
            assert_eq!(rig.granted, [OURS], "{heard_begin}");
        }
    }
}

#[test]
fn a_turn_that_nobody_is_left_to_answer_is_aborted() {
    // What was heard of r1 until the other left, and what until the answer.
    let (asked, answered) = ("permission.requested", "permission.completed");
    let cases: &[(&[&str], &[&str], bool)] = &[
        (&[], &[], false),
        (&[asked], &[], true),
        (&[asked, answered], &[], true),
        (&[asked], &[answered], true),
        (&[], &[asked], true),
        (&[], &[answered], true),
    ];
    for (before, after, known) in cases {
        let mut rig = Rig::joined();
        for kind in *before {
            rig.tells(kind, request_of("r1"));
        }
        rig.send(1, "s1");
        rig.heard("a");
        rig.inherit(&["r1"]);
        let id = rig.is_asked();
        for kind in *after {
            rig.tells(kind, request_of("r1"));
        }
        rig.heard("a");
        rig.processes(id, true);
        assert!(rig.granted.is_empty(), "it runs");
        if *known {
            assert_eq!(rig.partings(), [], "{before:?} {after:?}");
            assert!(rig.heard("a").is_empty(), "{before:?} {after:?}");
            continue;
        }
        let unasked = Parting::Unasked(vec!["r1".into()]);
        assert_eq!(rig.partings(), [unasked]);
        // Nobody else knows it, either.
        let session = SessionId::from("s1");
        rig.step(&[], |mux, cx, out| {
            mux.handle_turn_orphaned(cx, &session, out);
            0
        });
        let abort = rig.one_call("session.abort");
        rig.backend("a", &result(abort, json!({"success": true})));
        assert!(rig.granted.is_empty(), "its end is still to come");
        rig.said();
        rig.tells("session.idle", json!({"aborted": true}));
        assert_eq!(rig.granted, [OURS]);
        assert!(
            rig.said().is_empty(),
            "it is not that of the send that waits"
        );
    }
}

#[test]
fn a_turn_that_is_over_leaves_nobody_to_be_answered() {
    let mut rig = Rig::joined();
    rig.inherit(&["r1"]);
    let id = rig.is_asked();
    rig.processes(id, false);
    assert_eq!(rig.partings(), [Parting::Over]);
    assert!(rig.heard("a").is_empty());
}

#[test]
fn who_leaves_a_turn_says_what_it_waits_for() {
    // What its client was asked, and what it has inherited and may know nothing of.
    for (heard, inherited, says) in [
        (&["r1"][..], &[][..], &["r1"][..]),
        (&["r1", "r2"], &[], &["r1", "r2"]),
        (&[], &["r0"], &["r0"]),
        (&["r1"], &["r0"], &["r1", "r0"]),
    ] {
        let mut rig = Rig::joined();
        rig.tells("assistant.turn_start", json!({}));
        assert!(rig.turns.borrow_mut().pass("s1", OTHER, OURS));
        rig.told_to_inherit(inherited);
        for id in heard {
            rig.tells("external_tool.requested", request_of(id));
        }
        rig.hang_up();
        let says = says.iter().map(ToString::to_string).collect();
        assert_eq!(rig.partings(), [Parting::Unheard(says)]);
    }
}

/// The answer has left before the news of its leaving, though nothing has come of it yet.
#[test]
fn what_was_answered_just_before_is_not_waited_for() {
    const ANSWER: &str = "session.permissions.handlePendingPermissionRequest";
    for (fails, says) in [(false, &["r2"][..]), (true, &["r1", "r2"])] {
        let mut rig = Rig::new();
        rig.open("s1", "a");
        rig.send(1, "s1");
        rig.turn(1);
        for id in ["r1", "r2"] {
            rig.tells("permission.requested", request_of(id));
        }
        let params = json!({"sessionId": "s1", "requestId": "r1", "result": {}});
        rig.client(&request(2, ANSWER, params));
        if fails {
            rig.backend("a", &failure(2, "no"));
        }
        rig.hang_up();
        let says = says.iter().map(ToString::to_string).collect();
        assert_eq!(rig.partings(), [Parting::Unheard(says)], "{fails}");
    }
}

#[test]
fn what_was_heard_to_be_answered_is_not_passed_on() {
    let mut rig = Rig::joined();
    rig.tells("assistant.turn_start", json!({}));
    rig.inherit(&["r0", "r1"]);
    rig.tells("permission.completed", request_of("r0"));
    rig.hang_up();
    assert_eq!(rig.partings(), [Parting::Unheard(vec!["r1".into()])]);
}

#[test]
fn what_is_answered_in_the_step_in_which_the_next_is_asked_is_not_waited_for() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.send(1, "s1");
    rig.turn(1);
    rig.tells("permission.requested", request_of("r1"));
    let both = [
        event("s1", "permission.completed", request_of("r1")),
        event("s1", "permission.requested", request_of("r2")),
    ];
    rig.backend_bytes("a", &both.map(|body| framed(&body)).concat());
    rig.hang_up();
    assert_eq!(rig.partings(), [Parting::Unheard(vec!["r2".into()])]);
}

/// The send is answered at the end of its turn, which never comes: nobody is left to answer.
#[test]
fn who_detaches_from_a_turn_gives_it_away_though_its_send_is_not_answered() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    let params = json!({"sessionId": "s1", "prompt": "p", "wait": true});
    rig.client(&request(1, "session.send", params));
    rig.tells("user.message", json!({"messageId": "m1"}));
    rig.tells("permission.requested", request_of("r1"));
    assert_eq!(rig.other_asks("s1"), Verdict::Waits);
    rig.client(&request(2, "session.detach", json!({"sessionId": "s1"})));
    rig.backend("a", &result(2, json!({"success": true})));
    assert_eq!(rig.partings(), [Parting::Unheard(vec!["r1".into()])]);
}

/// Only it could say what became of that.
#[test]
fn who_leaves_before_its_session_is_open_again_says_what_it_has_answered_lately() {
    for (since, opens, says) in [
        (4, false, &["r2", "r1"][..]),
        (10, false, &["r2"]),
        (4, true, &["r2"]),
    ] {
        let mut rig = reopening::rig();
        rig.open("s1", "a");
        rig.send(1, "s1");
        rig.turn(1);
        for id in ["r1", "r2"] {
            rig.tells("external_tool.requested", request_of(id));
        }
        let method = "session.tools.handlePendingToolCall";
        let params = json!({"sessionId": "s1", "requestId": "r1", "result": "x"});
        rig.client(&request(2, method, params));
        rig.backend("a", &result(2, json!({"success": true})));
        rig.tells("external_tool.completed", request_of("r1"));
        rig.pass(Duration::from_secs(since));
        rig.homes.insert("s1".into(), "b".into());
        rig.lose("a");
        if opens {
            grant(&mut rig, "b", "session.resume", json!({}));
            grant(&mut rig, "b", method, json!({"success": true}));
            let processing = json!({"processing": true});
            grant(&mut rig, "b", "session.metadata.isProcessing", processing);
        }
        rig.hang_up();
        let says = says.iter().map(ToString::to_string).collect();
        assert_eq!(rig.partings(), [Parting::Unheard(says)], "{since} {opens}");
    }
}

/// A connection that has lost `session` inherits its turn, and has a message for it.
fn inherited_while_lost(session: &str) -> Rig {
    let mut rig = reopening::rig();
    rig.open(session, "a");
    assert_eq!(rig.other_asks(session), Verdict::Taken);
    rig.homes.insert(session.into(), "b".into());
    rig.lose("a");
    rig.silent();
    assert!(rig.turns.borrow_mut().pass(session, OTHER, OURS));
    let name = SessionId::from(session);
    rig.step(&[], |mux, cx, out| {
        mux.handle_turn_inherited(cx, &name, &["r1".into()], out);
        0
    });
    rig.send(1, session);
    assert_eq!(rig.partings(), [], "it looks when the session is open");
    let params = grant(&mut rig, "b", "session.resume", json!({}));
    assert_eq!(params["continuePendingWork"], json!(true));
    rig
}

#[test]
fn a_turn_that_is_inherited_before_the_session_is_open_again_is_looked_after_then() {
    for runs in [true, false] {
        let mut rig = inherited_while_lost("s1");
        let heard = rig.heard("b");
        assert_eq!(heard[0]["method"], "session.metadata.isProcessing");
        assert_eq!(heard[1]["id"], json!(1));
        let processing = json!({ "processing": runs });
        rig.backend("b", &result(heard[0]["id"].clone(), processing));
        let unasked = Parting::Unasked(vec!["r1".into()]);
        assert_eq!(rig.partings(), if runs { vec![unasked] } else { vec![] });
    }
}

/// Before anything that its client has to say: it would fall under the abort.
#[test]
fn who_has_a_session_alone_aborts_what_it_inherited_and_knows_nothing_of() {
    for runs in [true, false] {
        let mut rig = inherited_while_lost("alone-1");
        let processing = json!({ "processing": runs });
        grant(&mut rig, "b", "session.metadata.isProcessing", processing);
        if !runs {
            let heard = rig.heard("b");
            assert_eq!(heard[0]["method"], "session.metadata.isProcessing");
            assert_eq!(heard[1]["id"], json!(1));
            continue;
        }
        let abort = own_call(&mut rig, "b");
        assert_eq!(abort["method"], "session.abort");
        assert!(rig.heard("b").is_empty());
        rig.backend("b", &result(abort["id"].clone(), json!({"success": true})));
        assert_eq!(rig.heard_ids("b"), [json!(1)]);
        let aborted = json!({"aborted": true});
        rig.backend("b", &event("alone-1", "session.idle", aborted));
        assert!(rig.said().is_empty(), "its client never heard of it");
        assert_eq!(rig.partings(), []);
    }
}
