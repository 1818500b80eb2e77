//! Sessions that are opened again: after their backend is lost, or has closed them in silence.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    loss::turn_ends,
    rig::{Rig, Shell, event, failure, not_found, request, result, settings},
};
use crate::core::{
    event::{ClosedBy, Event, ReopenResult, TurnOutcome},
    mux::{Output, Settings},
};

pub(super) fn rig() -> Rig {
    Rig::with(
        Shell::Auto,
        Settings {
            session_params: 64 * 1024,
            ..settings()
        },
    )
}

pub(super) fn read(id: i64, session: &str) -> String {
    request(id, "session.getMessages", json!({"sessionId": session}))
}

/// A call that cannot be made twice.
pub(super) fn act(id: i64, session: &str) -> String {
    request(id, "session.plan.delete", json!({"sessionId": session}))
}

/// The only frame that a backend has received: a call of our own.
#[track_caller]
pub(super) fn own_call(rig: &mut Rig, backend: &str) -> Value {
    let heard = rig.heard(backend);
    assert_eq!(heard.len(), 1, "{heard:#?}");
    let call = heard.into_iter().next().unwrap();
    let id = call["id"].as_str().unwrap_or_else(|| panic!("{call}"));
    assert!(id.starts_with("taxiway-"), "{call}");
    call
}

/// The backend answers the call of our own that it has received.
#[track_caller]
pub(super) fn grant(rig: &mut Rig, backend: &str, method: &str, answer: Value) -> Value {
    let call = own_call(rig, backend);
    assert_eq!(call["method"], json!(method), "{call}");
    rig.backend(backend, &result(call["id"].clone(), answer));
    call["params"].clone()
}

pub(super) fn reopenings(rig: &mut Rig) -> Vec<(String, String, ReopenResult)> {
    rig.logged(|output| match output {
        Output::Event(Event::SessionReopened {
            from, to, result, ..
        }) => Some((
            from.to_string(),
            to.as_ref().map(ToString::to_string).unwrap_or_default(),
            *result,
        )),
        _ => None,
    })
}

fn open_with(rig: &mut Rig, session: &str, backend: &str, mut params: Value) {
    rig.homes.insert(session.to_owned(), backend.to_owned());
    params["sessionId"] = json!(session);
    rig.client(&request("open", "session.create", params));
    rig.heard(backend);
    rig.backend(backend, &result("open", json!({"sessionId": session})));
    rig.said();
    rig.log.clear();
}

#[test]
fn an_idle_session_is_opened_elsewhere_and_what_came_meanwhile_follows_in_order() {
    let mut rig = rig();
    let params = json!({"model": "m", "tools": [{"name": "t"}], "cloud": {}});
    open_with(&mut rig, "s1", "a", params);
    rig.homes.insert("s1".into(), "b".into());
    rig.lose("a");
    rig.silent();
    assert_eq!(rig.claims.len(), 1, "it is held on to");
    rig.client(&read(1, "s1"));
    rig.send(2, "s1");
    rig.send(3, "s1");
    let params = grant(&mut rig, "b", "session.resume", json!({}));
    assert_eq!(
        params,
        json!({
            "sessionId": "s1", "model": "m", "tools": [{"name": "t"}],
            "disableResume": true,
        })
    );
    assert_eq!(rig.heard_ids("b"), [json!(1), json!(2)]);
    rig.backend("b", &result(2, json!({"messageId": "m"})));
    assert_eq!(rig.heard_ids("b"), [json!(3)]);
    assert_eq!(rig.said_one()["id"], json!(2));
    let expected = ("a".to_owned(), "b".to_owned(), ReopenResult::Resumed);
    assert_eq!(reopenings(&mut rig), [expected]);
}

#[test]
fn a_session_without_a_turn_is_created_again() {
    let mut rig = rig();
    rig.open("s1", "a");
    rig.homes.insert("s1".into(), "b".into());
    rig.lose("a");
    let call = own_call(&mut rig, "b");
    rig.backend("b", &not_found(call["id"].clone(), "session.resume", "s1"));
    let params = grant(&mut rig, "b", "session.create", json!({}));
    assert_eq!(params, json!({"sessionId": "s1"}));
    rig.client(&read(1, "s1"));
    assert_eq!(rig.heard_ids("b"), [json!(1)]);
    assert_eq!(reopenings(&mut rig)[0].2, ReopenResult::Created);
}

#[test]
fn a_running_turn_is_lost_and_one_that_waits_for_the_client_is_not() {
    for asks in [false, true] {
        let mut rig = rig();
        rig.open("s1", "a");
        rig.send(1, "s1");
        rig.backend("a", &result(1, json!({"messageId": "m1"})));
        rig.backend(
            "a",
            &event("s1", "user.message", json!({"messageId": "m1"})),
        );
        if asks {
            let data = json!({"requestId": "r1", "toolName": "t"});
            rig.heard("a");
            rig.backend("a", &event("s1", "external_tool.requested", data));
            grant(&mut rig, "a", "sessions.save", json!({}));
        }
        rig.said();
        rig.homes.insert("s1".into(), "b".into());
        rig.lose("a");
        if !asks {
            let said = rig.said();
            assert_eq!(said.len(), 2, "{said:#?}");
            assert_eq!(said[1]["params"]["event"]["type"], json!("session.idle"));
            grant(&mut rig, "b", "session.resume", json!({}));
            // Nothing of what the client was told to be lost may go on.
            grant(&mut rig, "b", "session.abort", json!({"success": true}));
            assert_eq!(
                turn_ends(&mut rig),
                [(TurnOutcome::Lost, ClosedBy::Backend)]
            );
            continue;
        }
        rig.silent();
        assert_eq!(rig.mux.open_turns(), 1);
        grant(&mut rig, "b", "session.resume", json!({}));
        let processing = json!({"processing": true});
        grant(&mut rig, "b", "session.metadata.isProcessing", processing);
        let answer = json!({"sessionId": "s1", "requestId": "r1", "result": "x"});
        rig.client(&request(2, "session.tools.handlePendingToolCall", answer));
        assert_eq!(rig.heard_ids("b"), [json!(2)]);
        rig.backend("b", &result(2, json!({"success": true})));
        assert_eq!(rig.said_one()["id"], json!(2));
        // Acknowledged, but perhaps not on disk: it is given again.
        rig.homes.insert("s1".into(), "c".into());
        rig.lose("b");
        rig.silent();
        grant(&mut rig, "c", "session.resume", json!({}));
        let method = "session.tools.handlePendingToolCall";
        let again = grant(&mut rig, "c", method, json!({"success": true}));
        assert_eq!(again["result"], json!("x"));
        let processing = json!({"processing": true});
        grant(&mut rig, "c", "session.metadata.isProcessing", processing);
        rig.backend("c", &event("s1", "session.idle", json!({})));
        assert_eq!(turn_ends(&mut rig), [(TurnOutcome::Ok, ClosedBy::Backend)]);
    }
}

#[test]
fn a_turn_that_was_not_on_disk_is_told_as_lost_after_all() {
    let mut rig = rig();
    rig.open("s1", "a");
    rig.backend(
        "a",
        &event("s1", "user.message", json!({"messageId": "m1"})),
    );
    let data = json!({"requestId": "r1"});
    rig.backend("a", &event("s1", "permission.requested", data));
    rig.said();
    rig.homes.insert("s1".into(), "b".into());
    rig.lose("a");
    rig.silent();
    grant(&mut rig, "b", "session.resume", json!({}));
    let processing = json!({"processing": false});
    grant(&mut rig, "b", "session.metadata.isProcessing", processing);
    let kinds: Vec<_> = rig
        .said()
        .iter()
        .map(|f| f["params"]["event"]["type"].clone())
        .collect();
    assert_eq!(kinds, [json!("session.error"), json!("session.idle")]);
    assert_eq!(rig.mux.open_turns(), 0);
}

#[test]
fn the_answer_that_a_turn_waits_for_is_given_again() {
    let mut rig = rig();
    rig.open("s1", "a");
    rig.backend(
        "a",
        &event("s1", "user.message", json!({"messageId": "m1"})),
    );
    let data = json!({"requestId": "r1"});
    rig.backend("a", &event("s1", "external_tool.requested", data));
    let answer = json!({"sessionId": "s1", "requestId": "r1", "result": "x"});
    rig.client(&request(2, "session.tools.handlePendingToolCall", answer));
    rig.client(&act(3, "s1"));
    rig.client(&read(4, "s1"));
    rig.said();
    rig.homes.insert("s1".into(), "b".into());
    rig.lose("a");
    assert_eq!(rig.error(), (json!(3), -32011), "only what may have run");
    grant(&mut rig, "b", "session.resume", json!({}));
    let processing = json!({"processing": true});
    grant(&mut rig, "b", "session.metadata.isProcessing", processing);
    assert_eq!(rig.heard_ids("b"), [json!(2), json!(4)]);
}

#[test]
fn what_was_done_to_a_session_is_done_again() {
    let mut rig = rig();
    open_with(&mut rig, "s1", "a", json!({"model": "old"}));
    let on = |extra: Value| {
        let mut params = json!({"sessionId": "s1"});
        params
            .as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        params
    };
    let calls = [
        ("session.model.switchTo", on(json!({"modelId": "new"}))),
        (
            "session.permissions.setApproveAll",
            on(json!({"enabled": true})),
        ),
        (
            "session.permissions.setApproveAll",
            on(json!({"enabled": false})),
        ),
        ("session.options.update", on(json!({"a": 1}))),
        ("session.options.update", on(json!({"b": 2}))),
        (
            "session.eventLog.registerInterest",
            on(json!({"eventType": "x"})),
        ),
        ("session.mode.get", on(json!({}))),
    ];
    for (id, (method, params)) in (1..).zip(calls) {
        rig.client(&request(id, method, params));
        rig.heard("a");
        rig.backend("a", &result(id, json!({"handle": "interest-2"})));
        if method == "session.model.switchTo" {
            rig.silent();
            grant(&mut rig, "a", "sessions.save", json!({}));
        }
        assert_eq!(rig.said_one()["id"], json!(id), "{method}");
    }
    rig.homes.insert("s1".into(), "b".into());
    rig.lose("a");
    let params = grant(&mut rig, "b", "session.resume", json!({}));
    assert_eq!(params.get("model"), None, "the one chosen later is on disk");
    for expected in [
        on(json!({"enabled": false})),
        on(json!({"a": 1})),
        on(json!({"b": 2})),
        on(json!({"eventType": "x"})),
    ] {
        let call = own_call(&mut rig, "b");
        assert_eq!(call["params"], expected);
        rig.client(&read(99, "s1"));
        rig.client(&crate::core::mux::tests::rig::notification(
            "$/cancelRequest",
            json!({"id": 99}),
        ));
        assert_eq!(rig.error(), (json!(99), -32800), "held until all is done");
        rig.backend(
            "b",
            &result(call["id"].clone(), json!({"handle": "interest-1"})),
        );
    }
    // The handle that the client knows is another one there.
    let release = on(json!({"handle": "interest-2"}));
    rig.client(&request(10, "session.eventLog.releaseInterest", release));
    assert_eq!(
        rig.heard("b")[0]["params"],
        on(json!({"handle": "interest-1"}))
    );
    rig.backend("b", &result(10, json!({"success": true})));
    rig.homes.insert("s1".into(), "c".into());
    rig.lose("b");
    grant(&mut rig, "c", "session.resume", json!({}));
    for _ in 0..3 {
        let call = own_call(&mut rig, "c");
        assert_ne!(call["method"], json!("session.eventLog.registerInterest"));
        rig.backend("c", &result(call["id"].clone(), json!({})));
    }
    rig.client(&read(11, "s1"));
    assert_eq!(rig.heard_ids("c"), [json!(11)]);
}

#[test]
fn news_of_a_close_reopen_it_for_the_others_too() {
    let mut rig = rig();
    rig.open("s1", "a");
    for (backend, reopens) in [("b", false), ("a", true)] {
        rig.step(&[], |mux, cx, out| {
            mux.handle_session_lost(cx, "s1", &backend.into(), out);
            0
        });
        assert_eq!(!rig.heard("a").is_empty(), reopens);
    }
}

#[test]
fn a_backend_that_is_lost_again_and_again_is_left_again_and_again() {
    let mut rig = rig();
    rig.open("s1", "a");
    rig.client(&act(1, "s1"));
    rig.lose("a");
    assert_eq!(rig.error(), (json!(1), -32011));
    rig.client(&read(2, "s1"));
    for (now, next) in [("a", "b"), ("b", "c"), ("c", "a")] {
        own_call(&mut rig, now);
        rig.homes.insert("s1".into(), next.into());
        rig.lose(now);
        rig.silent();
    }
    grant(&mut rig, "a", "session.resume", json!({}));
    assert_eq!(rig.heard_ids("a"), [json!(2)]);
    assert_eq!(rig.claims.len(), 1);
}

#[test]
fn what_cannot_be_opened_is_given_up_in_the_end() {
    let mut rig = rig();
    rig.open("s1", "a");
    rig.homes.insert("s1".into(), "b".into());
    rig.lose("a");
    rig.client(&read(1, "s1"));
    let mut attempts = 0;
    loop {
        let heard = rig.heard("b");
        let Some(call) = heard.first() else { break };
        attempts += 1;
        rig.backend(
            "b",
            &failure(call["id"].clone(), "External tool name clash"),
        );
        rig.pass(Duration::from_secs(4));
    }
    assert_eq!(attempts, 8);
    assert_eq!(rig.error(), (json!(1), -32010));
    assert!(rig.claims.is_empty());
    assert_eq!(reopenings(&mut rig)[0].2, ReopenResult::Failed);
}

#[test]
fn a_call_waits_for_its_session_only_so_long_and_the_session_goes_on_waiting() {
    let mut rig = rig();
    rig.open("s1", "a");
    rig.shell = Shell::Manual;
    rig.lose("a");
    let question = rig.asked();
    rig.client(&read(1, "s1"));
    rig.pass(Duration::from_secs(10));
    rig.client(&read(2, "s1"));
    rig.pass(Duration::from_secs(20));
    let said = rig.said_one();
    assert_eq!(
        (said["id"].clone(), said["error"]["code"].clone()),
        (json!(1), json!(-32010))
    );
    let message = said["error"]["message"].as_str().unwrap();
    assert!(message.contains("backend a"), "{message}");
    rig.shell = Shell::Auto;
    rig.locate(&question, "a");
    grant(&mut rig, "a", "session.resume", json!({}));
    assert_eq!(rig.heard_ids("a"), [json!(2)]);
}

#[test]
fn a_backend_that_is_given_up_is_heard_no_more() {
    let mut rig = rig();
    rig.open("s1", "a");
    let slot = rig.slot("a");
    rig.step(&[], |mux, cx, out| {
        mux.handle_backend_silent(cx, &"a".into(), out);
        0
    });
    rig.send(1, "s1");
    rig.homes.insert("s1".into(), "b".into());
    rig.step(&[], |mux, cx, out| {
        mux.handle_backend_released(cx, &"a".into(), out);
        0
    });
    assert_eq!(rig.try_slot("a"), None, "{slot:?} is closed");
    grant(&mut rig, "b", "session.resume", json!({}));
    assert_eq!(rig.heard_ids("b"), [json!(1)]);
}

#[test]
fn parameters_that_are_too_large_are_not_kept() {
    let mut rig = rig();
    let large = json!({"systemMessage": "x".repeat(64 * 1024)});
    open_with(&mut rig, "s1", "a", large);
    rig.lose("a");
    assert!(rig.claims.is_empty());
    rig.client(&read(1, "s1"));
    assert_eq!(
        rig.heard_ids("a"),
        [json!(1)],
        "located anew, as a stranger"
    );
}

#[test]
fn the_end_of_a_turn_that_is_told_as_lost_is_told_once() {
    let mut rig = rig();
    rig.open("s1", "a");
    rig.backend("a", &event("s1", "user.message", json!({"messageId": "m"})));
    rig.homes.insert("s1".into(), "b".into());
    rig.said();
    rig.lose("a");
    assert_eq!(rig.said().len(), 2, "its error and its end");
    grant(&mut rig, "b", "session.resume", json!({}));
    // It had got further there than anybody knew.
    rig.backend("b", &event("s1", "abort", json!({})));
    rig.backend("b", &event("s1", "session.idle", json!({"aborted": true})));
    rig.silent();
    grant(&mut rig, "b", "session.abort", json!({"success": true}));
    rig.backend("b", &event("s1", "session.idle", json!({})));
    assert_eq!(rig.said().len(), 1, "what comes later is its own");
}

#[test]
fn what_a_silent_backend_does_late_is_undone_where_the_client_was_told_otherwise() {
    let mut rig = rig();
    rig.open("s1", "a");
    rig.client(&request(1, "session.detach", json!({"sessionId": "s1"})));
    rig.client(&request(2, "session.resume", json!({"sessionId": "s2"})));
    rig.heard("a");
    rig.step(&[], |mux, cx, out| {
        mux.handle_backend_silent(cx, &"a".into(), out);
        0
    });
    assert_eq!(rig.said().len(), 2, "both are told to be lost");
    rig.backend("a", &result(2, json!({"sessionId": "s2"})));
    let call = own_call(&mut rig, "a");
    assert_eq!(call["method"], json!("session.detach"));
    assert_eq!(call["params"], json!({"sessionId": "s2"}));
    // Somebody else's, from before: who opens it next must not begin it anew.
    rig.backend("a", &event("s2", "user.message", json!({"messageId": "m"})));
    let is_history = |output: &Output| matches!(output, Output::History { .. }).then_some(());
    assert_eq!(rig.logged(is_history).len(), 1);
    rig.backend("a", &result(1, json!({"success": true})));
    rig.silent();
    grant(&mut rig, "a", "session.resume", json!({}));
    rig.client(&read(3, "s1"));
    assert_eq!(
        rig.heard_ids("a"),
        [json!(3)],
        "attached, as the client believes"
    );
}

#[test]
fn an_answer_outlives_one_backend_after_the_other() {
    let mut rig = rig();
    rig.open("s1", "a");
    rig.backend("a", &event("s1", "user.message", json!({"messageId": "m"})));
    rig.backend(
        "a",
        &event("s1", "external_tool.requested", json!({"requestId": "r"})),
    );
    let answer = json!({"sessionId": "s1", "requestId": "r", "result": "x"});
    rig.client(&request(1, "session.tools.handlePendingToolCall", answer));
    rig.said();
    for (from, to) in [("a", "b"), ("b", "c"), ("c", "a")] {
        rig.homes.insert("s1".into(), to.into());
        rig.lose(from);
        rig.silent();
        grant(&mut rig, to, "session.resume", json!({}));
        let processing = json!({"processing": true});
        grant(&mut rig, to, "session.metadata.isProcessing", processing);
        assert_eq!(rig.heard_ids(to), [json!(1)]);
    }
    rig.backend("a", &result(1, json!({"success": true})));
    assert_eq!(rig.said_one()["id"], json!(1));
}

#[test]
fn who_could_not_open_it_where_it_was_to_be_has_lost_it_again() {
    let mut rig = rig();
    rig.open("s1", "a");
    rig.homes.insert("s1".into(), "b".into());
    rig.down.insert("b".into());
    rig.shell = Shell::Manual;
    rig.lose("a");
    rig.log.clear();
    let question = rig.asked();
    rig.locate(&question, "b");
    let (slot, _) = rig.connecting();
    rig.step(&[], |mux, cx, out| {
        mux.handle_upstream_closed(cx, slot, "refused", out);
        0
    });
    let lost =
        rig.logged(|output| matches!(output, Output::Lost(s) if s.as_str() == "s1").then_some(()));
    assert_eq!(lost.len(), 1, "else it would wait for itself");
}

#[test]
fn a_server_that_is_shutting_down_is_left_at_once_and_what_it_refused_is_asked_again() {
    let mut rig = rig();
    rig.open("s1", "a");
    rig.client(&read(1, "s1"));
    rig.client(&act(2, "s1"));
    rig.heard("a");
    rig.homes.insert("s1".into(), "b".into());
    let error = json!({"code": -32000, "message": "SERVER_SHUTTING_DOWN"});
    let refusal = format!(r#"{{"jsonrpc":"2.0","id":1,"error":{error}}}"#);
    rig.backend("a", &refusal);
    assert_eq!(rig.try_slot("a"), None);
    assert_eq!(rig.error(), (json!(2), -32011));
    grant(&mut rig, "b", "session.resume", json!({}));
    assert_eq!(rig.heard_ids("b"), [json!(1)]);
}

#[test]
fn a_client_that_leaves_a_session_which_is_away_does_not_wait_for_it() {
    for (method, success) in [("session.detach", true), ("session.destroy", true)] {
        let mut rig = rig();
        rig.open("s1", "a");
        rig.shell = Shell::Manual;
        rig.lose("a");
        rig.client(&read(1, "s1"));
        rig.client(&request(2, method, json!({"sessionId": "s1"})));
        let said = rig.said();
        assert_eq!(said[0]["error"]["code"], json!(-32010), "{said:#?}");
        assert_eq!(said[1]["result"], json!({"success": success}));
        assert!(rig.claims.is_empty());
        let question = rig.asked();
        assert!(!rig.mux.awaits(question.ticket), "nobody needs the answer");
        rig.shell = Shell::Auto;
        rig.refuse_locate(&question);
        rig.silent();
        // A second time there is nothing to leave.
        rig.client(&request(3, method, json!({"sessionId": "s1"})));
        let left = json!({"success": method == "session.detach"});
        assert_eq!(rig.said()[0]["result"], left);
    }
}

#[test]
fn a_client_that_leaves_while_opening_it_again_has_failed_does_not_wait_either() {
    let mut rig = rig();
    rig.open("s1", "a");
    rig.lose("a");
    // Opened again at once, and refused.
    let asked = rig.heard("a");
    let id = asked[0]["id"].clone();
    rig.backend("a", &failure(id, "not now"));
    rig.client(&request(1, "session.detach", json!({"sessionId": "s1"})));
    assert_eq!(rig.said()[0]["result"], json!({"success": true}));
    assert!(rig.claims.is_empty());
    rig.pass(Duration::from_secs(60));
    rig.silent();
}

/// The backend closes the session in silence, says "not found" to one call, and then that the client
/// has left.
#[test]
fn a_session_that_its_client_leaves_meanwhile_is_not_opened_again() {
    for (calling, returns) in [(false, false), (false, true), (true, false), (true, true)] {
        println!("calling: {calling}, returns: {returns}");
        let mut rig = rig();
        rig.open("s1", "a");
        rig.shell = Shell::Manual;
        rig.client(&read(1, "s1"));
        rig.client(&request(2, "session.detach", json!({"sessionId": "s1"})));
        if returns {
            rig.client(&request(3, "session.resume", json!({"sessionId": "s1"})));
        }
        assert_eq!(rig.heard_ids("a"), [json!(1), json!(2)]);
        rig.locates.clear();
        rig.backend("a", &not_found(1, "session.getMessages", "s1"));
        let question = rig.asked();
        if calling {
            rig.locate(&question, "a");
        }
        rig.backend("a", &result(2, json!({"success": true})));
        rig.shell = Shell::Auto;
        if calling {
            assert_eq!(rig.said_one()["id"], json!(2));
            grant(&mut rig, "a", "session.resume", json!({}));
        } else {
            assert!(!rig.mux.awaits(question.ticket), "nobody needs the answer");
            rig.refuse_locate(&question);
            let said = rig.said();
            assert_eq!(said[0]["error"]["code"], json!(-32010), "{said:#?}");
            assert_eq!(said[1]["id"], json!(2));
        }
        let heard = rig.heard("a");
        let methods: Vec<_> = heard
            .iter()
            .map(|f| f["method"].as_str().unwrap())
            .collect();
        let expected: &[&str] = match (calling, returns) {
            (false, false) => &[],
            (false, true) => &["session.resume"],
            (true, false) => &["session.detach", "session.getMessages"],
            (true, true) => &["session.getMessages", "session.resume"],
        };
        assert_eq!(methods, expected);
        if calling {
            rig.backend("a", &not_found(1, "session.getMessages", "s1"));
            assert_eq!(rig.error(), (json!(1), -32603));
        }
        if returns {
            rig.backend("a", &result(3, json!({"sessionId": "s1"})));
            assert_eq!(rig.said_one()["id"], json!(3));
            rig.backend("a", &event("s1", "session.tools_updated", json!({})));
            assert_eq!(rig.said().len(), 1);
        }
        assert_eq!(rig.claims.len(), usize::from(returns));
    }
}
