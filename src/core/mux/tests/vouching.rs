//! Answers to requests of a session: only what that session has asked.

use serde_json::{Value, json};

use super::{
    rig::{Rig, Shell, event, failure, not_found, request, result},
    sight::{denials, rig},
};
use crate::core::{access::Denial, event::Event, mux::Output};

const ANSWER: &str = "session.tools.handlePendingToolCall";
const LOG: &str = "session.eventLog.read";

fn answer(id: i64, session: &str, asked: &str) -> String {
    let params = json!({"sessionId": session, "requestId": asked, "result": "x"});
    request(id, ANSWER, params)
}

fn asks(kind: &str, asked: &str) -> String {
    event("s1", kind, json!({"requestId": asked}))
}

/// A session that is open at `a`.
fn open() -> Rig {
    let mut rig = rig(Shell::Auto);
    rig.open("s1", "a");
    rig
}

fn methods(heard: &[Value]) -> Vec<&str> {
    heard
        .iter()
        .map(|m| m["method"].as_str().unwrap())
        .collect()
}

/// The one question about the log that has come to a backend: its id and params.
fn question(rig: &mut Rig, backend: &str) -> (Value, Value) {
    let mut heard = rig.heard(backend);
    assert_eq!(methods(&heard), [LOG], "and the answer waits");
    let question = heard.remove(0);
    (question["id"].clone(), question["params"].clone())
}

/// The log says what the session has asked.
fn log(rig: &mut Rig, backend: &str, id: Value, asked: &[&str]) {
    let event = |asked: &&str| json!({"type": "external_tool.requested", "data": {"requestId": asked, "arguments": {}}});
    let events: Vec<Value> = asked.iter().map(event).collect();
    rig.backend(
        backend,
        &result(id, json!({"events": events, "hasMore": false})),
    );
}

fn refused(rig: &mut Rig, id: i64) {
    let said = rig.said_one();
    assert_eq!(
        said,
        json!({"jsonrpc": "2.0", "id": id, "result": {"success": false}})
    );
}

#[test]
fn what_the_session_was_heard_to_ask_is_answered_at_once() {
    let mut rig = open();
    rig.backend("a", &asks("external_tool.requested", "r1"));
    rig.heard("a");
    rig.client(&answer(1, "s1", "r1"));
    assert_eq!(rig.heard_ids("a"), [1]);
    assert!(denials(&mut rig).is_empty());
}

#[test]
fn what_it_was_not_heard_to_ask_is_answered_if_its_log_has_it() {
    let mut rig = open();
    rig.client(&answer(1, "s1", "r1"));
    rig.client(&request(2, "session.mode.get", json!({"sessionId": "s1"})));
    let mut heard = rig.heard("a");
    assert_eq!(
        methods(&heard),
        [LOG, "session.mode.get"],
        "nothing else waits"
    );
    let question = heard.remove(0);
    let wanted = json!({"sessionId": "s1", "types": ["external_tool.requested"],
        "agentScope": "all", "direction": "backward", "max": 100});
    assert_eq!(question["params"], wanted);
    log(&mut rig, "a", question["id"].clone(), &["r0", "r1"]);
    let heard = rig.heard("a");
    assert_eq!(
        heard[0],
        serde_json::from_str::<Value>(&answer(1, "s1", "r1")).unwrap()
    );
    rig.said();
    rig.backend("a", &result(1, json!({"success": true})));
    assert_eq!(rig.said_one()["result"]["success"], true);
    assert!(denials(&mut rig).is_empty());
}

#[test]
fn what_another_session_has_asked_is_unknown() {
    // Each: what the log says.
    let table: [fn(&mut Rig, Value); 3] = [
        |rig, id| log(rig, "a", id, &[]),
        |rig, id| log(rig, "a", id, &["r", "r11"]),
        // Of another kind, or in the wrong place.
        |rig, id| {
            let events = json!([
                {"type": "permission.requested", "data": {"requestId": "r1"}},
                {"type": "external_tool.requested", "requestId": "r1",
                    "data": {"requestId": "r2", "arguments": {"requestId": "r1"}}},
            ]);
            rig.backend("a", &result(id, json!({ "events": events })));
        },
    ];
    for said in table {
        let mut rig = open();
        rig.client(&answer(1, "s1", "r1"));
        let (id, _) = question(&mut rig, "a");
        rig.silent();
        said(&mut rig, id);
        refused(&mut rig, 1);
        assert!(rig.heard("a").is_empty(), "the answer never leaves");
        assert_eq!(denials(&mut rig), [(ANSWER.to_owned(), "s1".to_owned())]);
        let reasons = rig.logged(|output| match output {
            Output::Event(Event::Denied { reason, .. }) => Some(*reason),
            _ => None,
        });
        assert!(reasons.iter().all(|r| *r == Denial::RequestOfOther));
        // The next one under that id is another call.
        rig.backend("a", &asks("external_tool.requested", "r1"));
        rig.said();
        rig.heard("a");
        rig.client(&answer(1, "s1", "r1"));
        assert_eq!(rig.heard_ids("a"), [1]);
    }
}

/// Nothing is known against who answers, so nobody is accused, and the answer may come again.
#[test]
fn an_answer_that_nobody_can_vouch_for_may_come_again() {
    let table: [fn(&mut Rig, Value); 3] = [
        |rig, id| rig.backend("a", &result(id, json!(null))),
        |rig, id| rig.backend("a", &result(id, json!({"events": "none"}))),
        |rig, id| rig.backend("a", &failure(id, "Unhandled method session.eventLog.read")),
    ];
    for said in table {
        let mut rig = open();
        rig.client(&answer(1, "s1", "r1"));
        let (id, _) = question(&mut rig, "a");
        rig.silent();
        said(&mut rig, id);
        assert_eq!(rig.said_one()["error"]["code"], -32010);
        assert!(rig.heard("a").is_empty(), "the answer never leaves");
        assert!(denials(&mut rig).is_empty());
        rig.client(&answer(2, "s1", "r1"));
        let (id, _) = question(&mut rig, "a");
        log(&mut rig, "a", id, &["r1"]);
        assert_eq!(rig.heard_ids("a"), [2]);
    }
}

/// It has not left, so it is taken back here.
#[test]
fn an_answer_that_waits_to_be_vouched_for_can_be_cancelled() {
    let mut rig = open();
    rig.client(&answer(1, "s1", "r1"));
    let (id, _) = question(&mut rig, "a");
    rig.client(r#"{"jsonrpc":"2.0","method":"$/cancelRequest","params":{"id":1}}"#);
    assert_eq!(rig.said_one()["error"]["code"], -32800);
    log(&mut rig, "a", id, &["r1"]);
    assert!(rig.heard("a").is_empty(), "it never leaves");
}

#[test]
fn the_id_counts_as_the_cli_reads_it() {
    let mut rig = open();
    rig.backend("a", &asks("external_tool.requested", "mine"));
    rig.said();
    rig.heard("a");
    let body = |members: &str| {
        format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"{ANSWER}","params":{{"sessionId":"s1",{members},"result":"x"}}}}"#
        )
    };
    for (members, passes) in [
        (r#""requestId":"foreign","requestId":"mine""#, true),
        (r#""requestId":"mine","requestId":"foreign""#, false),
        (r#""requestId":"mine","request\u0049d":"foreign""#, false),
        (r#""requestId":"min\u0065""#, true),
        // These answer nothing, and the CLI says so.
        (r#""requestId":["foreign"]"#, true),
        (r#""requestid":"foreign""#, true),
    ] {
        rig.client(&body(members));
        let heard = rig.heard("a");
        let passed = methods(&heard) == [ANSWER];
        assert_eq!(passed, passes, "{members}");
        if passed {
            rig.backend("a", &result(1, json!({"success": true})));
        } else {
            log(&mut rig, "a", heard[0]["id"].clone(), &["mine"]);
        }
        assert_eq!(rig.said_one()["id"], 1);
    }
}

#[test]
fn methods_that_look_in_their_own_session_only_are_not_held_up() {
    let mut rig = open();
    for method in [
        "session.permissions.handlePendingPermissionRequest",
        "session.ui.handlePendingUserInput",
        "session.ui.handlePendingElicitation",
        "session.commands.respondToQueuedCommand",
    ] {
        let params = json!({"sessionId": "s1", "requestId": "r1"});
        rig.client(&request(1, method, params));
        assert_eq!(methods(&rig.heard("a")), [method]);
        rig.backend("a", &result(1, json!({"success": false})));
    }
}

#[test]
fn without_principals_everything_passes_as_it_is() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.client(&answer(1, "s1", "r1"));
    assert_eq!(rig.heard_ids("a"), [1]);
}

#[test]
fn a_session_that_is_not_open_there_is_told_as_not_found() {
    let mut rig = rig(Shell::Auto);
    rig.client(&answer(1, "s1", "r1"));
    let (id, _) = question(&mut rig, "a");
    rig.backend("a", &not_found(id.as_str().unwrap(), LOG, "s1"));
    let said = rig.said_one();
    let words =
        format!("Request {ANSWER} failed with message: Session not found for sessionId: s1");
    assert_eq!(said["error"]["message"], json!(words));
    assert!(rig.heard("a").is_empty());
    assert!(denials(&mut rig).is_empty());
}

#[test]
fn a_session_that_was_closed_in_silence_is_opened_again_and_asked_then() {
    let mut rig = rig(Shell::Auto);
    rig.settings.session_params = 10_000;
    rig.homes.insert("s1".into(), "a".into());
    rig.open("s1", "a");
    rig.client(&answer(1, "s1", "r1"));
    let (id, _) = question(&mut rig, "a");
    rig.backend("a", &not_found(id.as_str().unwrap(), LOG, "s1"));
    rig.silent();
    let heard = rig.heard("a");
    assert_eq!(methods(&heard), ["session.resume"]);
    rig.backend(
        "a",
        &result(heard[0]["id"].clone(), json!({"sessionId": "s1"})),
    );
    let (id, _) = question(&mut rig, "a");
    log(&mut rig, "a", id, &["r1"]);
    assert_eq!(rig.heard_ids("a"), [1]);
}

#[test]
fn it_is_asked_again_where_the_session_goes_when_its_backend_dies() {
    let mut rig = rig(Shell::Auto);
    rig.settings.session_params = 10_000;
    rig.open("s1", "a");
    rig.client(&answer(1, "s1", "r1"));
    question(&mut rig, "a");
    rig.homes.insert("s1".into(), "b".into());
    rig.lose("a");
    let heard = rig.heard("b");
    assert_eq!(methods(&heard), ["session.resume"]);
    rig.backend(
        "b",
        &result(heard[0]["id"].clone(), json!({"sessionId": "s1"})),
    );
    let (id, _) = question(&mut rig, "b");
    log(&mut rig, "b", id, &[]);
    refused(&mut rig, 1);
}

/// Nothing is kept of it that could be made once more, and it need not be: it has not left.
#[test]
fn it_has_not_left_before_it_is_vouched_for_whatever_becomes_of_its_backend() {
    for stops in [false, true] {
        let mut rig = rig(Shell::Auto);
        rig.settings.session_params = 0;
        rig.open("s1", "a");
        rig.client(&answer(1, "s1", "r1"));
        question(&mut rig, "a");
        if stops {
            rig.shut_down();
            assert_eq!(rig.error(), (json!(1), -32015));
            continue;
        }
        rig.homes.insert("s1".into(), "b".into());
        rig.lose("a");
        rig.silent();
        let (id, _) = question(&mut rig, "b");
        log(&mut rig, "b", id, &["r1"]);
        assert_eq!(rig.heard_ids("b"), [1]);
    }
}

/// Its client does not give it again: it has, and is gone.
#[test]
fn it_is_passed_on_though_its_client_leaves_before_it_is_vouched_for() {
    for asked in [true, false] {
        let mut rig = rig(Shell::Auto);
        rig.settings.detach_grace = Some(std::time::Duration::from_secs(30));
        rig.open("s1", "a");
        rig.backend("a", &event("s1", "user.message", json!({"messageId": "m"})));
        rig.heard("a");
        rig.client(&answer(1, "s1", "r1"));
        let (id, _) = question(&mut rig, "a");
        rig.hang_up();
        assert!(rig.closed.is_none(), "its turn goes on");
        log(&mut rig, "a", id, if asked { &["r1"] } else { &[] });
        let heard = rig.heard("a");
        if !asked {
            assert!(heard.is_empty());
            continue;
        }
        let expected: Value = serde_json::from_str(&answer(1, "s1", "r1")).unwrap();
        assert_eq!(heard, [expected]);
        rig.said();
        rig.backend("a", &result(1, json!({"success": true})));
        rig.silent();
        assert!(rig.closed.is_none());
    }
}

#[test]
fn a_backend_that_cannot_be_reached_is_as_for_any_call() {
    let mut rig = rig(Shell::Auto);
    rig.down.insert("a".into());
    rig.client(&answer(1, "s1", "r1"));
    // Located anew, at the next.
    let (id, _) = question(&mut rig, "b");
    log(&mut rig, "b", id, &["r1"]);
    assert_eq!(rig.heard_ids("b"), [1]);
}

#[test]
fn while_its_backend_is_silent_it_waits_and_is_asked_for_anew() {
    let mut rig = open();
    rig.client(&answer(1, "s1", "r1"));
    let (id, _) = question(&mut rig, "a");
    rig.step(&[], |mux, cx, out| {
        mux.handle_backend_silent(cx, &"a".into(), out);
        0
    });
    rig.silent();
    rig.step(&[], |mux, cx, out| {
        mux.handle_backend_back(cx, &"a".into(), out);
        0
    });
    let (again, _) = question(&mut rig, "a");
    log(&mut rig, "a", id, &["r1"]);
    assert!(rig.heard("a").is_empty(), "of what was asked before");
    log(&mut rig, "a", again, &["r1"]);
    assert_eq!(rig.heard_ids("a"), [1]);
    rig.silent();
    rig.backend("a", &result(1, json!({"success": true})));
    assert_eq!(rig.said_one()["id"], json!(1));
}

/// It is not repeated when its backend stays away: it has not been executed.
#[test]
fn an_answer_that_is_given_up_meanwhile_does_not_leave_later() {
    let mut rig = open();
    rig.client(&answer(1, "s1", "r1"));
    let (id, _) = question(&mut rig, "a");
    rig.step(&[], |mux, cx, out| {
        mux.handle_backend_silent(cx, &"a".into(), out);
        0
    });
    rig.pass(rig.settings.home_wait);
    assert_eq!(rig.error(), (json!(1), -32010));
    log(&mut rig, "a", id, &["r1"]);
    assert!(rig.heard("a").is_empty());
    rig.silent();
}
