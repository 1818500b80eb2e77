//! Detach grace: a client that leaves in a turn, and one that takes its session over. The machines
//! of both are played against one backend, `a`, and hear each other's notes.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    loss::turn_ends,
    rig::{Rig, Shell, event, failure, not_found, request, result, settings},
};
use crate::core::{
    event::{ClosedBy, Event, TakeOverResult, TurnOutcome},
    id::ConnectionId,
    mux::{Mux, Output, Settings},
};

const GRACE: Duration = Duration::from_secs(30);
const LEFT: ConnectionId = ConnectionId(7);

fn rig(id: u64, grace: Option<Duration>) -> Rig {
    let settings = Settings {
        session_params: 64 * 1024,
        detach_grace: grace,
        ..settings()
    };
    let mut rig = Rig::with(Shell::Auto, settings);
    let peer = "127.0.0.1:50000".parse().unwrap();
    rig.mux = Mux::new(ConnectionId(id), peer, rig.now, &rig.settings);
    rig
}

/// The session `s1`, in a turn.
fn in_turn(id: u64, grace: Option<Duration>, params: Value) -> Rig {
    let mut rig = rig(id, grace);
    rig.homes.insert("s1".to_owned(), "a".to_owned());
    let mut all = json!({"sessionId": "s1"});
    all.as_object_mut()
        .unwrap()
        .extend(params.as_object().unwrap().clone());
    rig.client(&request("open", "session.create", all));
    rig.backend("a", &result("open", json!({"sessionId": "s1"})));
    rig.send(1, "s1");
    rig.backend("a", &result(1, json!({"messageId": "m1"})));
    rig.backend(
        "a",
        &event("s1", "user.message", json!({"messageId": "m1"})),
    );
    rig.heard("a");
    rig.said();
    rig.log.clear();
    rig
}

fn tool(id: &str) -> String {
    let data = json!({"requestId": id, "toolName": "t"});
    event("s1", "external_tool.requested", data)
}

fn hook(id: i64) -> String {
    let params = json!({"sessionId": "s1", "hookType": "preToolUse"});
    request(id, "hooks.invoke", params)
}

fn methods(rig: &mut Rig, backend: &str) -> Vec<String> {
    let heard = rig.heard(backend);
    let method = |frame: &Value| frame["method"].as_str().map(str::to_owned);
    heard.iter().filter_map(method).collect()
}

fn results(rig: &Rig) -> Vec<TakeOverResult> {
    rig.log
        .iter()
        .filter_map(|output| match output {
            Output::Event(Event::ParkedEnded { result, .. }) => Some(*result),
            _ => None,
        })
        .collect()
}

fn parked(rig: &Rig) -> bool {
    rig.log
        .iter()
        .any(|output| matches!(output, Output::Park { .. }))
}

#[track_caller]
fn is_over(rig: &Rig) {
    assert!(rig.closed.is_some(), "{:?}", rig.log);
    assert!(rig.claims.is_empty() && rig.sockets.is_empty());
}

/// Answers the only call of ours that `backend` has received.
#[track_caller]
fn grant(rig: &mut Rig, method: &str, answer: Value) -> Value {
    let heard = rig.heard("a");
    let calls: Vec<_> = heard.iter().filter(|f| f["method"].is_string()).collect();
    assert_eq!(calls.len(), 1, "{heard:#?}");
    assert_eq!(calls[0]["method"], json!(method), "{heard:#?}");
    assert!(calls[0]["id"].as_str().unwrap().starts_with("taxiway-"));
    rig.backend("a", &result(calls[0]["id"].clone(), answer));
    calls[0]["params"].clone()
}

/// A new client that is about to take over what `left` has parked.
fn successor(id: u64, left: &Rig) -> Rig {
    let mut rig = rig(id, left.settings.detach_grace);
    rig.homes.insert("s1".to_owned(), "a".to_owned());
    rig.open_there.insert("s1".to_owned());
    rig.parked.insert("s1".to_owned(), LEFT);
    rig.now = left.now;
    rig
}

fn resume(rig: &mut Rig) {
    let params = json!({"sessionId": "s1", "tools": [{"name": "t"}], "hooks": true, "model": "m"});
    rig.client(&request("r", "session.resume", params));
}

/// Carries what each has said to the other.
fn exchange(rigs: &mut [(ConnectionId, &mut Rig)]) {
    loop {
        let mut said = Vec::new();
        for (from, rig) in rigs.iter_mut() {
            let told = std::mem::take(&mut rig.told);
            said.extend(told.into_iter().map(|(to, note)| (*from, to, note)));
        }
        if said.is_empty() {
            return;
        }
        for (from, to, note) in said {
            let alive = rigs
                .iter_mut()
                .find(|(id, rig)| *id == to && rig.closed.is_none());
            let untold = alive.is_none();
            if let Some((_, rig)) = alive {
                let note = note.clone();
                rig.step(&[], |mux, cx, out| {
                    mux.handle_note(cx, from, note, out);
                    0
                });
            }
            if untold
                && let Some((_, rig)) = rigs
                    .iter_mut()
                    .find(|(id, rig)| *id == from && rig.closed.is_none())
            {
                rig.step(&[], |mux, cx, out| {
                    mux.handle_untold(cx, &note, out);
                    0
                });
            }
        }
    }
}

fn pair(left: &mut Rig, new: &mut Rig) {
    exchange(&mut [(LEFT, left), (ConnectionId(8), new)]);
}

// Parking.

#[test]
fn a_turn_goes_on_without_its_client_and_ends_by_itself() {
    let mut rig = in_turn(7, Some(GRACE), json!({}));
    rig.open("idle", "a");
    rig.client(&request(
        2,
        "session.getMessages",
        json!({"sessionId": "s1"}),
    ));
    rig.heard("a");
    rig.hang_up();
    assert!(parked(&rig) && rig.closed.is_none());
    let params = grant(&mut rig, "session.detach", json!({"success": true}));
    assert_eq!(
        params,
        json!({"sessionId": "idle"}),
        "the grace is for turns"
    );
    assert_eq!(rig.claims.len(), 1);
    rig.backend("a", &result(2, json!({"events": []})));
    rig.backend("a", &event("s1", "assistant.message", json!({})));
    rig.pass(GRACE - Duration::from_secs(1));
    rig.backend("a", &event("s1", "session.idle", json!({})));
    rig.silent();
    is_over(&rig);
    assert_eq!(results(&rig), [TakeOverResult::Ended]);
    assert_eq!(turn_ends(&mut rig), [(TurnOutcome::Ok, ClosedBy::Backend)]);
}

#[test]
fn an_end_without_a_turn_or_without_a_grace_is_the_end() {
    let mut idle = rig(7, Some(GRACE));
    idle.open("s1", "a");
    let mut off = in_turn(7, None, json!({}));
    let mut unconfirmed = rig(7, Some(GRACE));
    unconfirmed.open("s1", "a");
    unconfirmed.send(1, "s1");
    let mut draining = in_turn(7, Some(GRACE), json!({}));
    draining.drain_client();
    for rig in [&mut idle, &mut off, &mut unconfirmed, &mut draining] {
        rig.hang_up();
        assert!(!parked(rig));
        is_over(rig);
    }
}

#[test]
fn a_goodbye_that_was_not_answered_is_one() {
    let mut rig = in_turn(7, Some(GRACE), json!({}));
    rig.client(&request(2, "session.destroy", json!({"sessionId": "s1"})));
    rig.hang_up();
    assert!(parked(&rig));
    rig.backend("a", &result(2, json!({"success": true})));
    is_over(&rig);
    assert_eq!(results(&rig), [TakeOverResult::Ended]);
}

#[test]
fn after_the_grace_everything_is_left() {
    for own_tool in [false, true] {
        let mut rig = in_turn(7, Some(GRACE), json!({"tools": [{"name": "t"}]}));
        if own_tool {
            rig.backend("a", &tool("r1"));
            grant(&mut rig, "sessions.save", json!({}));
        }
        rig.hang_up();
        rig.pass(GRACE - Duration::from_secs(1));
        assert!(rig.closed.is_none());
        rig.pass(Duration::from_secs(1));
        if own_tool {
            // Others may be attached, and none of them can run it.
            let call = rig.heard("a").remove(0);
            assert_eq!(call["method"], json!("session.abort"));
            assert!(rig.closed.is_none());
            rig.backend("a", &event("s1", "abort", json!({})));
        }
        is_over(&rig);
        assert_eq!(results(&rig), [TakeOverResult::Expired]);
        assert_eq!(turn_ends(&mut rig), [(TurnOutcome::Lost, ClosedBy::Client)]);
    }
}

#[test]
fn what_owes_the_answer_to_a_hook_is_aborted_before_it_is_left() {
    // With a grace and without one, answered or not.
    for grace in [None, Some(GRACE)] {
        for answers in [true, false] {
            let mut rig = in_turn(7, grace, json!({"hooks": true}));
            rig.backend("a", &hook(1));
            rig.said();
            rig.hang_up();
            assert!(rig.closed.is_none(), "the tool would run");
            rig.pass(grace.unwrap_or_default());
            assert_eq!(methods(&mut rig, "a"), ["session.abort"]);
            if answers {
                rig.backend("a", &event("s1", "abort", json!({})));
            } else {
                rig.pass(Duration::from_secs(5));
            }
            is_over(&rig);
        }
    }
    // One that was answered is none.
    let mut rig = in_turn(7, None, json!({"hooks": true}));
    rig.backend("a", &hook(1));
    let asked = rig.said_one();
    rig.client(&result(asked["id"].clone(), json!({})));
    rig.hang_up();
    is_over(&rig);
}

#[test]
fn a_backend_that_is_lost_takes_what_is_parked_with_it() {
    let mut rig = in_turn(7, Some(GRACE), json!({}));
    rig.hang_up();
    rig.lose("a");
    rig.silent();
    is_over(&rig);
    assert_eq!(results(&rig), [TakeOverResult::Ended]);
    assert_eq!(
        turn_ends(&mut rig),
        [(TurnOutcome::Lost, ClosedBy::Backend)]
    );
}

#[test]
fn shutdown_ends_what_is_parked() {
    let mut rig = in_turn(7, Some(GRACE), json!({}));
    rig.hang_up();
    rig.drain_client();
    assert!(rig.closed.is_none(), "its turn may end");
    rig.shut_down();
    is_over(&rig);
}

// Taking over.

#[test]
fn a_session_is_taken_over_in_three_steps() {
    let mut left = in_turn(7, Some(GRACE), json!({"tools": [{"name": "t"}]}));
    left.backend("a", &tool("r1"));
    left.heard("a");
    left.hang_up();
    let mut new = successor(8, &left);
    resume(&mut new);
    new.client(&request(
        2,
        "session.getMessages",
        json!({"sessionId": "s1"}),
    ));
    new.send(3, "s1");
    let bare = grant(&mut new, "session.resume", json!({"sessionId": "s1"}));
    for key in ["tools", "hooks", "model"] {
        assert_eq!(bare.get(key), None, "{key}");
    }
    assert_eq!(bare["disableResume"], json!(true));
    new.backend(
        "a",
        &event("s1", "assistant.message_delta", json!({"n": 1})),
    );
    new.silent();
    left.heard("a");
    pair(&mut left, &mut new);
    assert!(new.heard("a").is_empty(), "not before the other has left");
    grant(&mut left, "session.detach", json!({"success": true}));
    is_over(&left);
    assert_eq!(results(&left), [TakeOverResult::TakenOver]);
    pair(&mut left, &mut new);
    let full = new.heard("a");
    assert_eq!(full.len(), 1, "{full:#?}");
    assert_eq!(full[0]["id"], json!("r"));
    assert_eq!(full[0]["params"]["tools"], json!([{"name": "t"}]));
    new.backend(
        "a",
        &event("s1", "assistant.message_delta", json!({"n": 2})),
    );
    new.silent();
    new.backend("a", &result("r", json!({"sessionId": "s1"})));
    let said = new.said();
    assert_eq!(said[0]["id"], json!("r"));
    let kinds: Vec<_> = said[1..]
        .iter()
        .map(|f| f["params"]["event"]["type"].as_str().unwrap())
        .collect();
    let delta = "assistant.message_delta";
    assert_eq!(kinds, ["external_tool.requested", delta, delta]);
    assert_eq!(said[2]["params"]["event"]["data"]["n"], json!(1));
    assert_eq!(new.heard_ids("a"), [json!(2), json!(3)]);
    // The turn is this one's now, and the other said nothing of its end.
    new.backend("a", &event("s1", "session.idle", json!({})));
    assert_eq!(turn_ends(&mut left), []);
    assert_eq!(turn_ends(&mut new), [(TurnOutcome::Ok, ClosedBy::Backend)]);
    let turn = new.mux.open_turns();
    assert_eq!(turn, 0);
}

#[test]
fn what_the_old_client_was_asked_is_put_to_the_new_one_first() {
    let mut left = in_turn(7, Some(GRACE), json!({"hooks": true}));
    left.backend("a", &hook(1));
    left.said();
    left.hang_up();
    let ask = json!({"sessionId": "s1", "question": "Well?"});
    left.backend("a", &request("ask", "userInput.request", ask));
    left.silent();
    let mut new = successor(8, &left);
    resume(&mut new);
    grant(
        &mut new,
        "session.resume",
        json!({"sessionId": "s1", "x": 1}),
    );
    pair(&mut left, &mut new);
    let said = new.said();
    assert_eq!(said[0]["result"]["x"], json!(1), "the answer comes first");
    let asked: Vec<_> = said[1..].iter().map(|f| f["method"].clone()).collect();
    assert_eq!(asked, ["hooks.invoke", "userInput.request"]);
    // Its calls pass: the turn may wait for one of them.
    new.client(&request(
        2,
        "session.getMessages",
        json!({"sessionId": "s1"}),
    ));
    assert_eq!(new.heard_ids("a"), [json!(2)]);
    new.client(&result(said[2]["id"].clone(), json!({"answer": "so"})));
    new.client(&result(
        said[1]["id"].clone(),
        json!({"permissionDecision": "deny"}),
    ));
    pair(&mut left, &mut new);
    let heard = left.heard("a");
    assert_eq!(heard[0]["id"], json!("ask"));
    assert_eq!(heard[1]["id"], json!(1));
    assert_eq!(heard[1]["result"]["permissionDecision"], json!("deny"));
    assert_eq!(heard[2]["method"], json!("session.detach"));
    new.client(&request(
        4,
        "session.getMessages",
        json!({"sessionId": "s1"}),
    ));
    assert!(new.heard("a").is_empty(), "now it waits");
    left.backend(
        "a",
        &result(heard[2]["id"].clone(), json!({"success": true})),
    );
    is_over(&left);
    pair(&mut left, &mut new);
    let full = grant(&mut new, "session.resume", json!({}));
    assert_eq!(full["hooks"], json!(true));
    assert_eq!(new.heard_ids("a"), [json!(4)]);
}

#[test]
fn a_hook_that_comes_while_the_session_changes_hands_is_answered_by_the_new_client() {
    let mut left = in_turn(7, Some(GRACE), json!({"hooks": true}));
    left.hang_up();
    let mut new = successor(8, &left);
    resume(&mut new);
    grant(&mut new, "session.resume", json!({}));
    pair(&mut left, &mut new);
    // The detach is on its way.
    left.backend("a", &hook(5));
    let detach = left.heard("a").remove(0);
    left.backend("a", &result(detach["id"].clone(), json!({"success": true})));
    assert!(left.closed.is_none(), "the answer goes over its connection");
    pair(&mut left, &mut new);
    new.heard("a");
    new.backend("a", &result("r", json!({})));
    let said = new.said();
    let asked = said.iter().find(|f| f["method"] == json!("hooks.invoke"));
    new.client(&result(asked.unwrap()["id"].clone(), json!({})));
    pair(&mut left, &mut new);
    is_over(&left);
}

#[test]
fn two_at_once_are_served_one_after_the_other() {
    let mut left = in_turn(7, Some(GRACE), json!({}));
    left.hang_up();
    let (mut one, mut two) = (successor(8, &left), successor(9, &left));
    for new in [&mut one, &mut two] {
        resume(new);
        grant(new, "session.resume", json!({}));
    }
    let (first, second) = (ConnectionId(8), ConnectionId(9));
    exchange(&mut [(LEFT, &mut left), (first, &mut one), (second, &mut two)]);
    assert!(one.heard("a").is_empty() && two.heard("a").is_empty());
    grant(&mut left, "session.detach", json!({}));
    exchange(&mut [(LEFT, &mut left), (first, &mut one), (second, &mut two)]);
    for new in [&mut one, &mut two] {
        assert_eq!(new.heard_ids("a"), [json!("r")]);
        new.backend("a", &result("r", json!({})));
        assert_eq!(new.said_one()["id"], json!("r"));
    }
    assert_eq!((one.mux.open_turns(), two.mux.open_turns()), (1, 0));
}

/// Plays a take-over step by step, with what may go wrong after `steps` of them.
fn interrupted(steps: usize, asks: bool, spoil: impl Fn(&mut Rig, &mut Rig)) {
    let mut left = in_turn(
        7,
        Some(GRACE),
        json!({"hooks": true, "tools": [{"name": "t"}]}),
    );
    if asks {
        left.backend("a", &hook(1));
    }
    left.said();
    left.hang_up();
    let mut new = successor(8, &left);
    resume(&mut new);
    let mut step = 0;
    let mut idle = 0;
    let mut answered = 0;
    while idle < 3 {
        if step == steps {
            spoil(&mut left, &mut new);
            // From here on there is nothing parked that a later question would find.
            new.parked.clear();
        }
        step += 1;
        let mut moved = false;
        for rig in [&mut left, &mut new] {
            for frame in rig.heard("a") {
                moved = true;
                let dead = rig.try_slot("a").is_none();
                if frame["method"].is_string() && !dead {
                    rig.backend(
                        "a",
                        &result(frame["id"].clone(), json!({"sessionId": "s1"})),
                    );
                }
            }
        }
        for frame in new.said() {
            moved = true;
            if frame["method"].is_string() && frame["id"].is_number() && new.closed.is_none() {
                new.client(&result(frame["id"].clone(), json!({})));
            } else if frame["id"] == json!("r") {
                answered += 1;
            }
        }
        let told = !left.told.is_empty() || !new.told.is_empty();
        if told && !moved {
            moved = true;
            pair(&mut left, &mut new);
        }
        idle = if moved { 0 } else { idle + 1 };
        if !moved {
            left.pass(Duration::from_secs(6));
            new.pass(Duration::from_secs(6));
        }
    }
    left.pass(GRACE * 3);
    pair(&mut left, &mut new);
    new.pass(GRACE * 3);
    left.pass(GRACE * 3);
    let what = format!("after {steps} steps, asks: {asks}");
    assert!(left.closed.is_some(), "{what}: the parked one stays");
    assert!(left.claims.is_empty(), "{what}");
    if new.closed.is_none() {
        assert_eq!(answered, 1, "{what}: answers to the client's call");
        assert!(new.mux.open_calls() == 0, "{what}");
    } else {
        assert!(new.claims.is_empty(), "{what}");
    }
}

#[test]
fn whatever_goes_wrong_at_whatever_step_nobody_waits_for_ever() {
    for asks in [false, true] {
        for steps in 0..12 {
            interrupted(steps, asks, |_, _| {});
            interrupted(steps, asks, |_, new| new.hang_up());
            interrupted(steps, asks, |_, new| new.shut_down());
            interrupted(steps, asks, |left, _| {
                if left.closed.is_none() {
                    left.shut_down();
                }
            });
            interrupted(steps, asks, |left, _| {
                if left.try_slot("a").is_some() {
                    left.lose("a");
                }
            });
            interrupted(steps, asks, |_, new| {
                if new.try_slot("a").is_some() {
                    new.lose("a");
                }
            });
            interrupted(steps, asks, |left, new| {
                for rig in [left, new] {
                    if rig.try_slot("a").is_some() {
                        rig.lose("a");
                    }
                }
            });
            interrupted(steps, asks, |left, _| {
                if left.try_slot("a").is_some() {
                    left.backend("a", &event("s1", "session.idle", json!({})));
                }
            });
            interrupted(steps, asks, |left, new| {
                for rig in [left, new] {
                    if rig.try_slot("a").is_some() {
                        rig.backend("a", &event("s1", "session.idle", json!({})));
                    }
                }
            });
        }
    }
}

/// Nobody else offers the tool, so those who stay would wait for ever; without a grace as well.
#[test]
fn without_grace_a_turn_that_waits_for_a_tool_of_who_leaves_is_aborted() {
    const ANSWER: &str = "session.tools.handlePendingToolCall";
    let mine = json!({"tools": [{"name": "t"}]});
    let theirs = json!({"tools": [{"name": "other"}]});
    for (params, answered, detaches) in [
        (&mine, false, false),
        (&mine, false, true),
        (&mine, true, false),
        (&mine, true, true),
        (&theirs, false, false),
        (&theirs, false, true),
    ] {
        let what = format!("{params} {answered} {detaches}");
        let mut rig = in_turn(7, None, params.clone());
        rig.backend("a", &tool("r1"));
        grant(&mut rig, "sessions.save", json!({}));
        if answered {
            let params = json!({"sessionId": "s1", "requestId": "r1", "result": "x"});
            rig.client(&request(2, ANSWER, params));
            rig.heard("a");
        }
        if detaches {
            rig.client(&request(3, "session.detach", json!({"sessionId": "s1"})));
            rig.heard("a");
            rig.backend("a", &result(3, json!({"success": true})));
        } else {
            rig.hang_up();
        }
        let aborts = *params == mine && !answered;
        let expected: &[&str] = if aborts { &["session.abort"] } else { &[] };
        if detaches || aborts {
            let heard = rig.heard("a");
            let methods: Vec<_> = heard.iter().filter_map(|f| f["method"].as_str()).collect();
            assert_eq!(methods, expected, "{what}");
            if !detaches {
                let abort = heard[0]["id"].clone();
                rig.backend("a", &result(abort, json!({"success": true})));
            }
        }
        if !detaches {
            is_over(&rig);
        }
    }
}

/// As on the server: what it waits for is on disk, and the client may come back for it.
#[test]
fn without_grace_and_others_a_turn_ends_with_its_connection() {
    let mut rig = rig(7, None);
    let params = json!({"sessionId": "alone-1", "tools": [{"name": "t"}]});
    rig.client(&request("open", "session.create", params));
    rig.backend("a", &result("open", json!({"sessionId": "alone-1"})));
    for (kind, data) in [
        ("user.message", json!({"messageId": "m1"})),
        (
            "external_tool.requested",
            json!({"requestId": "r1", "toolName": "t"}),
        ),
    ] {
        rig.backend("a", &event("alone-1", kind, data));
    }
    rig.hang_up();
    is_over(&rig);
    assert!(!parked(&rig));
}

#[test]
fn a_session_that_is_gone_by_then_is_resumed_by_the_normal_way() {
    let mut left = in_turn(7, Some(GRACE), json!({}));
    left.hang_up();
    let mut new = successor(8, &left);
    resume(&mut new);
    let call = new.heard("a").remove(0);
    new.backend("a", &not_found(call["id"].clone(), "session.resume", "s1"));
    assert_eq!(new.heard_ids("a"), [json!("r")]);
    new.backend("a", &failure("r", "no"));
    assert_eq!(new.said_one()["id"], json!("r"));
    assert!(new.claims.is_empty());
}

#[test]
fn a_call_that_is_cancelled_leaves_the_session_parked() {
    let mut left = in_turn(7, Some(GRACE), json!({}));
    left.hang_up();
    let mut new = successor(8, &left);
    resume(&mut new);
    grant(&mut new, "session.resume", json!({}));
    new.told.clear();
    let cancel = json!({"jsonrpc": "2.0", "method": "$/cancelRequest", "params": {"id": "r"}});
    new.client(&cancel.to_string());
    assert_eq!(new.error(), (json!("r"), -32800));
    assert_eq!(methods(&mut new, "a"), ["session.detach"]);
    assert!(new.claims.is_empty());
    pair(&mut left, &mut new);
    assert!(left.closed.is_none());
}

#[test]
fn a_refused_last_step_is_told_and_undone() {
    let mut left = in_turn(7, Some(GRACE), json!({}));
    left.hang_up();
    let mut new = successor(8, &left);
    resume(&mut new);
    grant(&mut new, "session.resume", json!({}));
    pair(&mut left, &mut new);
    grant(&mut left, "session.detach", json!({}));
    pair(&mut left, &mut new);
    new.heard("a");
    new.backend("a", &failure("r", "External tool name clash"));
    assert_eq!(
        new.said_one()["error"]["message"],
        json!("External tool name clash")
    );
    assert_eq!(methods(&mut new, "a"), ["session.detach"]);
    assert!(new.claims.is_empty());
}
