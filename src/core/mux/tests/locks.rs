//! The turn lock: who sends, who waits, and that it is given back however a turn ends.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{
    super::{Handover, Note, Output, Settings},
    rig::{Rig, Shell, event, failure, framed, notification, request, result, settings},
};
use crate::core::{
    id::{ConnectionId, SessionId},
    identity::{Caps, Person, Principal, Role},
    turnlock::{Ask, Parting, Rule, Terms, Unit, Verdict},
};

pub(super) const OTHER: ConnectionId = ConnectionId(8);
pub(super) const OURS: ConnectionId = ConnectionId(7);

fn ack(id: i64) -> String {
    result(id, json!({"messageId": format!("m{id}")}))
}

fn rig_with(terms: Terms) -> Rig {
    Rig::with(
        Shell::Auto,
        Settings {
            turns: terms,
            detach_grace: Some(Duration::from_secs(30)),
            ..settings()
        },
    )
}

fn principal(user: &str) -> Arc<Principal> {
    Arc::new(Principal {
        name: user.into(),
        role: Role::User,
        realm: "realm".into(),
        user: user.into(),
        groups: Vec::new(),
        expires: None,
        allow: Vec::new(),
        deny: Vec::new(),
        caps: Caps::default(),
    })
}

impl Rig {
    /// Its client has proved to be this user.
    fn is(&mut self, user: &str) {
        let principal = principal(user);
        self.step(&[], |mux, cx, _| {
            mux.set_principal(cx, principal);
            0
        });
    }

    /// Another connection wants a turn.
    pub(super) fn other_asks(&mut self, session: &str) -> Verdict {
        self.other_asks_as(session, None)
    }

    fn other_asks_as(&mut self, session: &str, user: Option<&str>) -> Verdict {
        let ask = Ask {
            connection: OTHER,
            user: user.map(|user| Person::new("realm", user)),
            rule: Rule::Queue,
            unit: Unit::Connection,
            in_turn: false,
            steers: Some(false),
        };
        let session = SessionId::from(session);
        self.turns.borrow_mut().ask(self.now, &session, &ask)
    }

    /// The turn of the other one is over, and the shell tells who is next.
    fn other_is_done(&mut self, session: &str) {
        let next = self.turns.borrow_mut().release(self.now, session, OTHER);
        if next == Some(OURS) {
            self.granted(session);
        }
    }

    pub(super) fn granted(&mut self, session: &str) {
        let session = SessionId::from(session);
        self.step(&[], |mux, cx, out| {
            mux.handle_turn_granted(cx, &session, out);
            0
        });
    }

    pub(super) fn holder(&self, session: &str) -> Option<ConnectionId> {
        let turns = self.turns.borrow();
        turns.get(session).map(|lock| lock.holder.connection)
    }

    pub(super) fn waiters(&self) -> usize {
        self.turns.borrow().waiting()
    }

    pub(super) fn turn(&mut self, id: i64) {
        self.backend("a", &ack(id));
        self.backend(
            "a",
            &event("s1", "user.message", json!({"messageId": format!("m{id}")})),
        );
        self.backend("a", &event("s1", "assistant.turn_start", json!({})));
    }

    fn idle(&mut self) {
        self.backend("a", &event("s1", "session.idle", json!({})));
    }
}

fn steering(id: i64) -> String {
    let params = json!({"sessionId": "s1", "prompt": "p", "mode": "immediate"});
    request(id, "session.send", params)
}

#[test]
fn a_lock_is_held_from_the_send_to_the_idle() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    assert_eq!(rig.holder("s1"), None);
    rig.send(1, "s1");
    assert_eq!(rig.heard_ids("a"), [json!(1)]);
    assert_eq!(rig.holder("s1"), Some(OURS));
    rig.turn(1);
    // Its own sends belong to the turn.
    rig.send(2, "s1");
    assert_eq!(rig.heard_ids("a"), [json!(2)]);
    rig.backend("a", &ack(2));
    assert_eq!(rig.holder("s1"), Some(OURS));
    rig.idle();
    assert_eq!(rig.holder("s1"), None);
    assert!(rig.turns.borrow().is_empty());
}

#[test]
fn a_send_that_fails_gives_the_lock_back() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.send(1, "s1");
    assert_eq!(rig.holder("s1"), Some(OURS));
    rig.backend("a", &failure(1, "no"));
    assert_eq!(rig.holder("s1"), None);
}

#[test]
fn a_send_to_a_session_that_is_not_heard_holds_it_until_it_is_answered() {
    let mut rig = Rig::new();
    rig.send(1, "s1");
    assert_eq!(rig.heard_ids("a"), [json!(1)]);
    assert_eq!(rig.holder("s1"), Some(OURS));
    rig.backend("a", &ack(1));
    assert_eq!(rig.holder("s1"), None, "nobody here hears its end");
}

#[test]
fn a_send_waits_for_somebody_elses_turn() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.open("s2", "a");
    assert_eq!(rig.other_asks("s1"), Verdict::Taken);
    rig.send(1, "s1");
    rig.send(2, "s1");
    rig.send(3, "s2");
    // Nothing else waits.
    rig.client(&request(4, "session.mode.get", json!({"sessionId": "s1"})));
    assert_eq!(rig.heard_ids("a"), [json!(3), json!(4)]);
    assert_eq!(rig.waiters(), 1, "one place for the connection");
    rig.pass(Duration::from_secs(2));
    rig.other_is_done("s1");
    assert_eq!(rig.heard_ids("a"), [json!(1)]);
    let waited = rig.log.iter().find_map(|output| match output {
        Output::TurnWaited(took) => Some(*took),
        _ => None,
    });
    assert_eq!(waited, Some(Duration::from_secs(2)));
    rig.backend("a", &ack(1));
    assert_eq!(
        rig.heard_ids("a"),
        [json!(2)],
        "its own turn runs, and nobody waits"
    );
    assert_eq!(rig.mux.held_bytes, 0);
}

#[test]
fn who_has_had_a_turn_lets_the_next_one_go_first() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.send(1, "s1");
    rig.turn(1);
    assert_eq!(rig.other_asks("s1"), Verdict::Waits);
    rig.heard("a");
    rig.send(2, "s1");
    assert_eq!(
        rig.heard_ids("a"),
        [] as [Value; 0],
        "the other one is first"
    );
    rig.idle();
    assert_eq!(rig.holder("s1"), Some(OTHER));
    assert_eq!(rig.heard_ids("a"), [] as [Value; 0]);
    rig.other_is_done("s1");
    assert_eq!(rig.heard_ids("a"), [json!(2)]);
}

#[test]
fn a_send_in_the_same_read_as_the_end_of_the_turn_comes_after_those_who_wait() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.send(1, "s1");
    rig.turn(1);
    assert_eq!(rig.other_asks("s1"), Verdict::Waits);
    rig.heard("a");
    rig.send(2, "s1");
    let idle = event("s1", "session.idle", json!({}));
    rig.backend_bytes("a", &[framed(&idle), framed(&idle)].concat());
    assert_eq!(rig.holder("s1"), Some(OTHER));
}

#[test]
fn steering_its_own_turn_waits_for_nobody_and_anothers_is_refused() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.send(1, "s1");
    rig.turn(1);
    assert_eq!(rig.other_asks("s1"), Verdict::Waits);
    rig.send(2, "s1");
    rig.heard("a");
    rig.client(&steering(3));
    assert_eq!(rig.heard_ids("a"), [json!(3)], "past the send that waits");
    rig.backend("a", &ack(3));
    rig.idle();
    assert_eq!(rig.holder("s1"), Some(OTHER));
    rig.said();
    // It hears the other's turn, and may not steer it.
    rig.backend("a", &event("s1", "user.message", json!({"messageId": "x"})));
    rig.said();
    rig.client(&steering(4));
    let refused = rig.said_one();
    assert_eq!(refused["id"], 4);
    assert_eq!(refused["error"]["code"], -32012);
    assert_eq!(refused["error"]["data"]["code"], "SESSION_BUSY");
    assert_eq!(refused["error"]["data"]["retryable"], true);
}

#[test]
fn only_its_user_aborts_a_turn_and_where_nobody_is_known_everybody() {
    for (theirs, ours, may) in [
        (Some("anna"), Some("ben"), false),
        (Some("anna"), Some("anna"), true),
        (None, None, true),
    ] {
        let mut rig = Rig::new();
        if let Some(user) = ours {
            rig.is(user);
        }
        rig.open("s1", "a");
        assert_eq!(rig.other_asks_as("s1", theirs), Verdict::Taken);
        rig.client(&request(1, "session.abort", json!({"sessionId": "s1"})));
        if may {
            assert_eq!(rig.heard_ids("a"), [json!(1)], "{theirs:?} {ours:?}");
        } else {
            let refused = rig.said_one();
            assert_eq!(refused["error"]["code"], -32012);
            let text = refused["error"]["message"].as_str().unwrap();
            assert!(text.contains("another user's"), "{text}");
        }
        // The same user steers it, too.
        rig.client(&steering(2));
        let steers = theirs.is_some() && theirs == ours;
        assert_eq!(
            rig.heard_ids("a").len(),
            usize::from(steers),
            "{theirs:?} {ours:?}"
        );
    }
}

#[test]
fn reject_refuses_at_once() {
    let mut rig = rig_with(Terms {
        rule: Rule::Reject,
        ..Terms::default()
    });
    rig.open("s1", "a");
    assert_eq!(rig.other_asks("s1"), Verdict::Taken);
    rig.send(1, "s1");
    let refused = rig.said_one();
    assert_eq!(refused["error"]["code"], -32012);
    assert_eq!((rig.waiters(), rig.mux.held_bytes), (0, 0));
    rig.other_is_done("s1");
    rig.send(2, "s1");
    assert_eq!(rig.heard_ids("a"), [json!(2)]);
    rig.send(3, "s1");
    rig.backend("a", &ack(2));
    assert_eq!(rig.heard_ids("a"), [json!(3)], "its own turn");
}

#[test]
fn off_lets_everything_pass() {
    let mut rig = rig_with(Terms {
        rule: Rule::Off,
        ..Terms::default()
    });
    rig.is("ben");
    rig.open("s1", "a");
    assert_eq!(rig.other_asks_as("s1", Some("anna")), Verdict::Taken);
    rig.send(1, "s1");
    rig.backend("a", &ack(1));
    rig.client(&steering(2));
    rig.client(&request(3, "session.abort", json!({"sessionId": "s1"})));
    assert_eq!(rig.heard_ids("a"), [json!(1), json!(2), json!(3)]);
}

#[test]
fn where_each_send_is_a_holder_of_its_own_the_next_waits_for_the_end() {
    let mut rig = rig_with(Terms {
        unit: Unit::Send,
        ..Terms::default()
    });
    rig.open("s1", "a");
    rig.send(1, "s1");
    rig.turn(1);
    rig.heard("a");
    rig.send(2, "s1");
    assert_eq!(rig.heard_ids("a"), [] as [Value; 0]);
    rig.client(&steering(3));
    assert_eq!(
        rig.heard_ids("a"),
        [json!(3)],
        "it says itself which turn it is part of"
    );
    rig.backend("a", &ack(3));
    rig.idle();
    assert_eq!(rig.granted, [OURS]);
    rig.granted("s1");
    assert_eq!(rig.heard_ids("a"), [json!(2)]);
}

#[test]
fn who_waits_too_long_is_refused_and_the_next_send_has_his_place() {
    let mut rig = rig_with(Terms {
        timeout: Duration::from_secs(60),
        ..Terms::default()
    });
    rig.open("s1", "a");
    assert_eq!(rig.other_asks("s1"), Verdict::Taken);
    rig.send(1, "s1");
    rig.pass(Duration::from_secs(40));
    rig.send(2, "s1");
    rig.pass(Duration::from_secs(20));
    let refused = rig.said_one();
    assert_eq!(
        (&refused["id"], &refused["error"]["code"]),
        (&json!(1), &json!(-32012))
    );
    assert_eq!(rig.waiters(), 1);
    rig.other_is_done("s1");
    assert_eq!(rig.heard_ids("a"), [json!(2)]);
    assert_eq!(rig.mux.held_bytes, 0);
}

#[test]
fn a_send_that_waits_can_be_cancelled() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    assert_eq!(rig.other_asks("s1"), Verdict::Taken);
    rig.send(1, "s1");
    rig.client(&notification("$/cancelRequest", json!({"id": 1})));
    assert_eq!(rig.said_one()["error"]["code"], -32800);
    assert_eq!((rig.waiters(), rig.mux.held_bytes), (0, 0));
    // A place that comes too late is given back.
    rig.other_is_done("s1");
    rig.granted("s1");
    assert_eq!(rig.holder("s1"), None);
}

#[test]
fn who_leaves_does_not_wait_any_more() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    assert_eq!(rig.other_asks("s1"), Verdict::Taken);
    rig.send(1, "s1");
    assert_eq!(rig.waiters(), 1);
    rig.hang_up();
    assert_eq!((rig.waiters(), rig.holder("s1")), (0, Some(OTHER)));
}

#[test]
fn a_drain_answers_those_who_wait() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    assert_eq!(rig.other_asks("s1"), Verdict::Taken);
    rig.send(1, "s1");
    rig.send(2, "s1");
    rig.drain_client();
    let said = rig.said();
    assert_eq!(said.len(), 2);
    assert!(
        said.iter().all(|m| m["error"]["code"] == -32015),
        "{said:?}"
    );
    assert_eq!(rig.waiters(), 0);
    assert!(rig.closed.is_some(), "nothing else runs");
}

#[test]
fn a_lost_backend_gives_the_lock_back() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.send(1, "s1");
    rig.turn(1);
    assert_eq!(rig.other_asks("s1"), Verdict::Waits);
    rig.lose("a");
    assert_eq!(rig.holder("s1"), Some(OTHER));
    let over = rig.log.iter().any(|output| {
        matches!(
            output,
            Output::TurnOver {
                parting: Parting::Over,
                ..
            }
        )
    });
    assert!(!over, "another may hear it go on");
}

#[test]
fn a_turn_that_is_too_long_is_aborted_and_told() {
    let mut rig = rig_with(Terms {
        max: Some(Duration::from_secs(600)),
        ..Terms::default()
    });
    rig.open("s1", "a");
    rig.send(1, "s1");
    rig.turn(1);
    rig.said();
    rig.heard("a");
    rig.pass(Duration::from_secs(599));
    assert!(rig.said().is_empty());
    assert_eq!(rig.other_asks("s1"), Verdict::Waits);
    rig.pass(Duration::from_secs(1));
    let said = rig.said();
    let kinds: Vec<&str> = said
        .iter()
        .filter_map(|m| m["params"]["event"]["type"].as_str())
        .collect();
    assert_eq!(kinds, ["session.error", "session.idle"]);
    let data = &said[0]["params"]["event"]["data"];
    assert_eq!(data["errorCode"], "TURN_TOO_LONG");
    let aborts = rig.heard("a");
    assert_eq!(aborts[0]["method"], "session.abort");
    assert_eq!(
        rig.holder("s1"),
        Some(OURS),
        "the next one would be aborted with it"
    );
    let abort = &aborts[0];
    rig.backend("a", &result(abort["id"].clone(), json!({"success": true})));
    assert_eq!(rig.holder("s1"), Some(OTHER));
}

#[test]
fn a_turn_that_the_server_began_is_waited_for() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.backend("a", &event("s1", "assistant.turn_start", json!({})));
    let began = rig
        .log
        .iter()
        .any(|output| matches!(output, Output::TurnBegan(_)));
    assert!(began);
    // As the shell does.
    let session = SessionId::from("s1");
    assert!(rig.turns.borrow_mut().begun(rig.now, &session, OURS));
    rig.step(&[], |mux, cx, _| {
        mux.handle_turn_taken(cx.now, &session);
        0
    });
    assert_eq!(rig.other_asks("s1"), Verdict::Waits);
    rig.idle();
    assert_eq!(rig.holder("s1"), Some(OTHER));
}

#[test]
fn a_parked_turn_keeps_the_lock_and_takes_it_along() {
    let mut rig = rig_with(Terms::default());
    rig.open("s1", "a");
    rig.send(1, "s1");
    rig.turn(1);
    rig.heard("a");
    rig.hang_up();
    assert_eq!(rig.holder("s1"), Some(OURS), "its turn goes on");
    let session = SessionId::from("s1");
    for note in [Note::TakeOver(session.clone()), Note::LetGo(session)] {
        rig.step(&[], |mux, cx, out| {
            mux.handle_note(cx, OTHER, note, out);
            0
        });
    }
    let detach = rig.heard("a").remove(0);
    assert_eq!(detach["method"], "session.detach");
    rig.backend("a", &result(detach["id"].clone(), json!({"success": true})));
    let passed = rig
        .log
        .iter()
        .any(|output| matches!(output, Output::TurnPassed { to, .. } if *to == OTHER));
    assert!(passed, "{:?}", rig.log);
    let left = rig.told.iter().any(|(to, note)| {
        let turn = |h: &Handover| h.turn.is_some();
        *to == OTHER && matches!(note, Note::Left { handover: Some(h), .. } if turn(h))
    });
    assert!(left);
    let over = rig
        .log
        .iter()
        .any(|output| matches!(output, Output::TurnOver { .. }));
    assert!(!over);
}

#[test]
fn who_waits_for_a_turn_hears_of_its_end_only_if_it_gets_none() {
    let kinds = |rig: &mut Rig| -> Vec<String> {
        let said = rig.said();
        let kind = |m: &Value| match m["params"]["event"]["type"].as_str() {
            Some(kind) => kind.to_owned(),
            None => m["id"].to_string(),
        };
        said.iter().map(kind).collect()
    };
    for ends_first in [true, false] {
        for (granted, accepted) in [(true, true), (true, false), (false, false)] {
            let mut rig = Rig::new();
            rig.open("s1", "a");
            assert_eq!(rig.other_asks("s1"), Verdict::Taken);
            rig.backend("a", &event("s1", "user.message", json!({"messageId": "x"})));
            rig.send(1, "s1");
            rig.said();
            let told = (ends_first, granted, accepted);
            if ends_first {
                rig.idle();
                assert_eq!(kinds(&mut rig), [] as [&str; 0], "{told:?}");
            }
            if !granted {
                rig.client(&notification("$/cancelRequest", json!({"id": 1})));
                let expected: &[&str] = if ends_first {
                    &["1", "session.idle"]
                } else {
                    &["1"]
                };
                assert_eq!(kinds(&mut rig), expected, "{told:?}");
                continue;
            }
            rig.other_is_done("s1");
            assert_eq!(rig.heard_ids("a"), [json!(1)]);
            if !ends_first {
                // It came over another connection that its turn was over.
                rig.idle();
                assert_eq!(kinds(&mut rig), [] as [&str; 0], "{told:?}");
            }
            if accepted {
                rig.turn(1);
                rig.idle();
                let own = ["1", "user.message", "assistant.turn_start", "session.idle"];
                assert_eq!(kinds(&mut rig), own, "{told:?}");
            } else {
                rig.backend("a", &failure(1, "no"));
                let mut said = kinds(&mut rig);
                said.sort();
                assert_eq!(said, ["1", "session.idle"], "{told:?}");
            }
            assert_eq!(rig.holder("s1"), None, "{told:?}");
        }
    }
}

/// The lock is given while the turn before is still heard to run. Its end is kept from the client,
/// its own is not, also if that of the turn before never comes.
#[test]
fn the_end_that_comes_first_may_be_that_of_its_own_turn() {
    // Answered at the end of the turn?; what is heard then, and of how many ends the client hears.
    let (idle, abort, own) = ("session.idle", "abort", "user.message");
    let cases: &[(bool, &[&str], usize)] = &[
        (true, &[idle, own, idle], 1),
        (true, &[own, idle, own, idle], 1),
        (true, &[abort, idle, own, idle], 1),
        (true, &[abort, own, idle], 1),
        (false, &[idle], 1),
        (false, &[own, idle], 1),
    ];
    for (wait, events, ends) in cases {
        let mut rig = Rig::new();
        rig.open("s1", "a");
        assert_eq!(rig.other_asks("s1"), Verdict::Taken);
        rig.backend("a", &event("s1", "user.message", json!({"messageId": "x"})));
        let params = json!({"sessionId": "s1", "prompt": "p", "wait": wait});
        rig.client(&request(1, "session.send", params));
        rig.other_is_done("s1");
        assert_eq!(rig.heard_ids("a"), [json!(1)]);
        if !wait {
            rig.backend("a", &ack(1));
        }
        rig.said();
        for kind in *events {
            rig.backend("a", &event("s1", kind, json!({"messageId": "m"})));
        }
        let said = rig.said();
        let told = said.iter().map(|m| &m["params"]["event"]["type"]);
        assert_eq!(
            told.filter(|kind| *kind == idle).count(),
            *ends,
            "{events:?}"
        );
    }
}
