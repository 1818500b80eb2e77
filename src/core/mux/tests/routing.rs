//! From request to backend and back: location, one upstream connection per backend, ids, cancel.

use std::time::Duration;

use serde_json::{Value, json};

use super::rig::{Rig, event, failure, framed, notification, request, result};
use crate::core::{
    locate::Purpose,
    mux::{Output, Served},
    reply::ProxyError,
};

#[test]
fn a_request_is_located_connected_greeted_and_forwarded_unchanged() {
    let mut rig = Rig::manual();
    // Odd spelling: it must arrive byte for byte, under the one header that all readers take.
    let body = r#"{ "params":{"x":1.50,"sessionId":"s1"},"method":"session.getMessages","id":"q","jsonrpc":"2.0" }"#;
    let header = format!("content-length:{}\r\nX: y\r\n\r\n", body.len());
    rig.client_bytes(&[header.as_bytes(), body.as_bytes()].concat());
    let question = rig.asked();
    assert_eq!(question.session.as_ref().map(|s| s.as_str()), Some("s1"));
    assert_eq!((question.purpose, question.avoid.len()), (Purpose::Use, 0));
    rig.locate(&question, "b");
    let (slot, backend) = rig.connecting();
    assert_eq!(backend, "b");
    rig.accept(slot, "b");
    assert_eq!(
        rig.heard_raw("b"),
        [""; 0],
        "nothing before the handshake is answered"
    );
    rig.greet("b");
    assert_eq!(rig.heard_raw("b"), [body]);
    assert_eq!(rig.mux.held_bytes, 0);
    rig.silent();

    let answer = r#"{"jsonrpc":"2.0","id":"q","result":{"events":[ ]}}"#;
    rig.backend("b", answer);
    assert_eq!(rig.said_raw(), [answer]);
    assert_eq!(rig.mux.open_calls(), 0);
    assert!(
        rig.mux.entries.is_empty(),
        "a session that is only asked about leaves nothing"
    );
}

#[test]
fn the_handshake_carries_the_clients_options_and_the_backends_token() {
    let mut rig = Rig::manual();
    let token = crate::core::id::Secret::new("t0ken");
    rig.snapshot
        .backends
        .change(|all| all[0].token = Some(token));
    let params = json!({"supportedTaskKinds": ["client"], "clientInfo": {"editorName": "x"}});
    rig.client(&request(0, "connect", params));
    assert_eq!(rig.said_one()["result"]["protocolVersion"], json!(3));
    rig.client(&request(0, "status.get", json!({})));
    let question = rig.asked();
    assert_eq!(
        (question.session.clone(), question.purpose),
        (None, Purpose::Use)
    );
    rig.locate(&question, "a");
    let (slot, _) = rig.connecting();
    rig.accept(slot, "a");
    let greeting = rig.sockets[&slot.index()].1.greeting.clone().unwrap();
    let body: Value = serde_json::from_str(&greeting).unwrap();
    assert_eq!(
        body["params"],
        json!({"token": "t0ken", "supportedTaskKinds": ["client"],
               "clientInfo": {"editorName": "x"}})
    );
}

#[test]
fn each_backend_has_one_upstream_connection_however_many_sessions() {
    let mut rig = Rig::new();
    for (session, backend) in [
        ("s1", "a"),
        ("s2", "b"),
        ("s3", "a"),
        ("s4", "b"),
        ("s5", "c"),
    ] {
        rig.open(session, backend);
    }
    assert_eq!(rig.sockets.len(), 3);
    for (n, (session, backend)) in [("s1", "a"), ("s2", "b"), ("s5", "c")].iter().enumerate() {
        let body = request(n, "session.getMessages", json!({"sessionId": session}));
        rig.client(&body);
        assert_eq!(rig.heard_raw(backend), [body]);
        rig.backend(backend, &result(n, json!({})));
        assert_eq!(rig.said_one()["id"], json!(n));
    }
    // A call that any backend may serve uses what is there, if the pool still wants it.
    rig.client(&request(9, "status.get", json!({})));
    assert_eq!(rig.heard_ids("a"), [json!(9)]);
    let down = crate::core::snapshot::Health::Down;
    rig.snapshot.backends.change(|all| all[0].health = down);
    rig.client(&request(10, "status.get", json!({})));
    assert_eq!(rig.heard_ids("a"), [Value::Null; 0]);
    assert_eq!(rig.heard_ids("b"), [json!(10)]);
}

#[test]
fn requests_of_backends_get_distinct_integers_and_their_answers_the_old_ids() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.open("s2", "b");
    let ask = |id: Value, session: &str| {
        request(
            id,
            "hooks.invoke",
            json!({"sessionId": session, "input": {"id": 5}}),
        )
    };
    rig.backend("a", &ask(json!(1), "s1"));
    rig.backend("b", &ask(json!(1), "s2"));
    rig.backend("a", &ask(json!("x\n1"), "s1"));
    let said = rig.said();
    let ids: Vec<i64> = said
        .iter()
        .map(|frame| frame["id"].as_i64().unwrap())
        .collect();
    assert!(
        ids.iter().all(|id| *id > 0) && ids[0] != ids[1] && ids[1] != ids[2],
        "{ids:?}"
    );
    assert_eq!(
        said[0]["params"]["input"]["id"],
        json!(5),
        "only the id changes"
    );

    rig.client(&format!(
        r#"{{"id":{},"result":{{"id":1}},"jsonrpc":"2.0"}}"#,
        ids[2]
    ));
    assert_eq!(
        rig.heard_raw("a"),
        [r#"{"id":"x\n1","result":{"id":1},"jsonrpc":"2.0"}"#]
    );
    rig.client(&failure(ids[1], "no"));
    assert_eq!(rig.heard("b")[0]["id"], json!(1));
    rig.client(&result(ids[0], json!({})));
    assert_eq!(rig.heard_ids("a"), [json!(1)]);

    // Late, doubled and invented answers go nowhere.
    for id in [
        json!(ids[0]),
        json!(ids[1]),
        json!(999),
        json!("1"),
        json!(-1),
    ] {
        rig.client(&result(id, json!({})));
    }
    assert!(rig.heard_raw("a").is_empty() && rig.heard_raw("b").is_empty());
    rig.silent();
}

#[test]
fn answers_for_a_backend_that_is_gone_are_dropped() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.backend("a", &request(1, "hooks.invoke", json!({"sessionId": "s1"})));
    let id = rig.said_one()["id"].clone();
    rig.lose("a");
    rig.said();
    rig.open("s1", "a");
    rig.client(&result(id, json!({})));
    assert!(
        rig.heard_raw("a").is_empty(),
        "the new connection never asked"
    );
    assert!(rig.mux.requests.is_empty());
}

#[test]
fn too_many_unanswered_requests_of_backends_end_the_connection_and_are_never_answered() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.heard("a");
    let hook = |n| request(n, "hooks.invoke", json!({"sessionId": "s1"}));
    for n in 0..4096 {
        rig.backend("a", &hook(n));
    }
    assert_eq!(rig.said_raw().len(), 4096);
    assert_eq!(rig.closed, None);
    let slot = rig.slot("a");
    let body = framed(&hook(4096));
    rig.step(&body, |mux, cx, out| {
        mux.handle_upstream(cx, slot, &body, out)
    });
    assert_eq!(rig.said_one()["error"]["data"]["limit"], "backend_requests");
    let parked = rig.logged(|output| match output {
        Output::Park { reason, .. } => Some(*reason),
        _ => None,
    });
    assert!(
        parked[0].contains("backend_requests"),
        "the client sees the end"
    );
    // If it saw that of its connection first, the tools that the hooks are about would run.
    assert_eq!(rig.heard("a")[0]["method"], json!("session.abort"));
    rig.backend("a", &event("s1", "abort", json!({})));
    assert!(rig.try_slot("a").is_none(), "the backend sees the end");
    assert!(rig.closed.is_some());
}

#[test]
fn requests_of_a_provider_are_asked_and_answered_like_those_of_a_backend() {
    let mut rig = Rig::new();
    let asked = request(
        "r9",
        "llmInference.httpRequestStart",
        json!({"requestId": "u"}),
    );
    rig.step(&[], |mux, _, out| {
        assert!(mux.handle_provider_request(77, asked.as_bytes(), out));
        assert!(!mux.handle_provider_request(78, b"{}", out));
        0
    });
    let said = rig.said_one();
    assert_eq!(said["method"], json!("llmInference.httpRequestStart"));
    rig.client(&result(said["id"].clone(), json!({"ok": 1})));
    let answers = rig.logged(|o| match o {
        Output::ProviderAnswer { token, body, id } => Some((
            *token,
            String::from_utf8(body[id.clone()].to_vec()).unwrap(),
        )),
        _ => None,
    });
    assert_eq!(answers, [(77, said["id"].to_string())]);
}

#[test]
fn an_unknown_method_goes_by_its_session_or_anywhere() {
    let mut rig = Rig::new();
    rig.open("s2", "b");
    rig.client(&request(1, "future.thing", json!({"sessionId": "s2"})));
    assert_eq!(rig.heard_ids("b"), [json!(1)]);
    rig.client(&request(2, "future.thing", json!({"sessionId": 5})));
    rig.client(&request(3, "future.thing", json!([{"sessionId": "s2"}])));
    rig.client(&request(4, "session.send", json!({"sessionId": "../x"})));
    assert_eq!(rig.heard_ids("b"), [json!(2), json!(3), json!(4)]);
    let unhandled = r#"{"jsonrpc":"2.0","id":2,"error":{"code":-32601,"message":"Unhandled method future.thing"}}"#;
    rig.backend("b", unhandled);
    assert_eq!(rig.said_raw(), [unhandled]);
}

#[test]
fn calls_for_the_shell_are_served_and_answered_once() {
    let mut rig = Rig::new();
    rig.client(&request("l", "session.list", json!({"filter": {}})));
    rig.client(&request(2, "session.getLastId", json!({})));
    rig.client(&request(3, "mcp.config.add", json!({})));
    let serves = std::mem::take(&mut rig.serves);
    assert_eq!(serves.len(), 3);
    assert_eq!(
        (serves[0].method.as_str(), serves[0].params.as_deref()),
        ("session.list", Some(r#"{"filter":{}}"#))
    );
    rig.served(
        serves[1].ticket,
        &Served::Relayed(r#"{"code":-1,"message":"m"}"#.into()),
    );
    rig.served(
        serves[0].ticket,
        &Served::Result(r#"{"sessions":[]}"#.into()),
    );
    rig.served(serves[0].ticket, &Served::Result("{}".into()));
    rig.served(serves[2].ticket, &Served::Failed(ProxyError::Draining));
    let said = rig.said();
    assert_eq!(said.len(), 3);
    assert_eq!(
        said[0],
        json!({"jsonrpc": "2.0", "id": 2, "error": {"code": -1, "message": "m"}})
    );
    assert_eq!(
        said[1],
        json!({"jsonrpc": "2.0", "id": "l", "result": {"sessions": []}})
    );
    assert_eq!(said[2]["error"]["code"], json!(-32015));
}

fn cancel(id: impl Into<Value>) -> String {
    notification("$/cancelRequest", json!({"id": id.into()}))
}

#[test]
fn what_is_still_here_is_cancelled_here() {
    // Held for location.
    let mut rig = Rig::manual();
    rig.client(&request("h", "session.create", json!({"sessionId": "s1"})));
    let question = rig.asked();
    rig.client(&cancel("h"));
    assert_eq!(rig.error(), (json!("h"), -32800));
    assert_eq!(rig.mux.held_bytes, 0);
    rig.locate(&question, "a");
    assert!(
        rig.connects.is_empty() && rig.mux.entries.is_empty(),
        "nothing to connect for"
    );
    assert!(rig.claims.is_empty(), "the claim is given back");

    // Held for any backend.
    rig.client(&request(2, "status.get", json!({})));
    let question = rig.asked();
    rig.client(&cancel(2));
    assert_eq!(rig.error(), (json!(2), -32800));
    rig.locate(&question, "a");
    assert!(rig.connects.is_empty());

    // Waiting for the handshake.
    rig.client(&request(3, "session.resume", json!({"sessionId": "s1"})));
    let question = rig.asked();
    rig.locate(&question, "a");
    let (slot, _) = rig.connecting();
    rig.accept(slot, "a");
    rig.client(&cancel(3));
    assert_eq!(rig.error(), (json!(3), -32800));
    assert!(rig.claims.is_empty());
    rig.greet("a");
    assert!(rig.heard_raw("a").is_empty());

    // Served by the shell.
    rig.client(&request(4, "session.list", json!({})));
    let ticket = rig.serves[0].ticket;
    assert_eq!(rig.mux.held_bytes, 2, "its params");
    rig.client(&cancel(4));
    assert_eq!(rig.error(), (json!(4), -32800));
    assert_eq!(rig.unserved, [ticket], "it may not have begun");
    assert_eq!(rig.mux.held_bytes, 0);
    rig.served(ticket, &Served::Result("{}".into()));
    rig.silent();
}

#[test]
fn what_is_forwarded_is_cancelled_by_its_backend() {
    let mut rig = Rig::new();
    rig.open("s1", "b");
    rig.client(&request(
        "w",
        "session.tasks.waitForPending",
        json!({"sessionId": "s1"}),
    ));
    rig.heard("b");
    rig.client(&cancel("w"));
    assert_eq!(rig.heard_raw("b"), [cancel("w")]);
    rig.silent();
    // The backend may ignore it.
    rig.backend("b", &result("w", json!({})));
    assert_eq!(rig.said_one()["id"], json!("w"));
    // Unknown by now, and never known: ignored.
    for id in [json!("w"), json!(1), json!(null)] {
        rig.client(&cancel(id));
    }
    assert!(rig.heard_raw("b").is_empty());
    rig.silent();
}

#[test]
fn a_backends_cancel_names_the_id_that_the_client_knows() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.open("s2", "b");
    rig.backend("a", &request(1, "hooks.invoke", json!({"sessionId": "s1"})));
    rig.backend("b", &request(1, "hooks.invoke", json!({"sessionId": "s2"})));
    let ids: Vec<Value> = rig.said().iter().map(|frame| frame["id"].clone()).collect();
    rig.backend("b", &cancel(1));
    assert_eq!(rig.said_one()["params"]["id"], ids[1]);
    rig.backend("b", &cancel(2));
    rig.silent();
}

#[test]
fn notifications_of_the_client_go_only_where_it_is_attached() {
    let mut rig = Rig::new();
    rig.open("s1", "b");
    let news = notification("session.thing", json!({"sessionId": "s1"}));
    rig.client(&news);
    assert_eq!(rig.heard_raw("b"), [news]);
    rig.client(&notification("session.thing", json!({"sessionId": "s2"})));
    rig.client(&notification(
        "session.send",
        json!({"sessionId": "s2", "prompt": "p"}),
    ));
    rig.client(&notification("session.thing", json!({})));
    assert!(rig.heard_raw("b").is_empty());
    assert!(rig.locates.is_empty() && rig.connects.is_empty());
    rig.silent();
}

#[test]
fn lifecycle_comes_from_the_shell_only() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    let news = notification(
        "session.lifecycle",
        json!({"type": "session.updated", "sessionId": "s1"}),
    );
    rig.backend("a", &news);
    rig.silent();
    let frame = framed(&news);
    rig.step(&[], |mux, cx, out| {
        mux.handle_lifecycle(cx, &frame, out);
        0
    });
    assert_eq!(rig.said_raw(), [news]);
}

#[test]
fn other_news_of_a_backend_pass_unchanged() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    let all = [
        event(
            "s1",
            "assistant.message_delta",
            json!({"deltaContent": "\u{e9}"}),
        ),
        notification(
            "host.event",
            json!({"scope": {"type": "session", "sessionId": "s1"}}),
        ),
        notification("shell.exit", json!({"processId": "p"})),
        notification("gitHubTelemetry.event", json!({})),
        notification("future.news", json!({"sessionId": "s1"})),
        // Tool output may hold anything.
        event("s1", "tool.execution_complete", json!({})).replace("{}", r#"{"o":"\ud83d"}"#),
    ];
    for body in &all {
        rig.backend("a", body);
    }
    assert_eq!(rig.said_raw(), all);
}

#[test]
fn an_unused_upstream_connection_is_closed_after_thirty_seconds() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.client(&request(
        1,
        "session.getMessages",
        json!({"sessionId": "s1"}),
    ));
    rig.backend("a", &result(1, json!({})));
    rig.pass(Duration::from_secs(3600));
    assert_eq!(rig.sockets.len(), 1, "attached: it stays");
    rig.client(&request(2, "session.detach", json!({"sessionId": "s1"})));
    rig.backend("a", &result(2, json!({"success": true})));
    rig.pass(Duration::from_secs(29));
    // Used again: the clock starts anew.
    rig.client(&request(3, "status.get", json!({})));
    rig.pass(Duration::from_secs(100));
    assert_eq!(rig.sockets.len(), 1, "a call is pending");
    rig.backend("a", &result(3, json!({})));
    rig.pass(Duration::from_millis(29_999));
    assert_eq!(rig.sockets.len(), 1);
    rig.pass(Duration::from_millis(1));
    assert_eq!(rig.sockets.len(), 0);
    assert_eq!(rig.mux.poll_timeout(&rig.settings), None);
    // And comes back on need.
    rig.client(&request(
        4,
        "session.getMessages",
        json!({"sessionId": "s1"}),
    ));
    assert_eq!(rig.heard_ids("a"), [json!(4)]);
}
