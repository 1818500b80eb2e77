//! What a client may get wrong, row by row of PROTOCOL §1, and every limit: who is answered what,
//! and that nothing of it reaches a backend.

use std::time::Duration;

use serde_json::{Value, json};

use super::rig::{Rig, Shell, framed, notification, request, result, settings};
use crate::core::{
    event::{CallOutcome, Event},
    mux::{Output, Served},
};

/// The machine after some input, and that no backend and no other part has heard of it.
fn after(bytes: &[u8]) -> Rig {
    let mut rig = Rig::manual();
    rig.client_bytes(bytes);
    assert!(rig.locates.is_empty() && rig.connects.is_empty() && rig.serves.is_empty());
    rig
}

fn still_open(rig: &mut Rig) {
    rig.client(&request(99, "ping", json!({"message": "x"})));
    assert_eq!(rig.said_one()["result"]["message"], json!("pong: x"));
    assert_eq!(rig.closed, None);
}

#[test]
fn what_is_no_frame_is_answered_without_id_and_ends_the_connection() {
    let long = format!("Content-Length: 2\r\nX: {}\r\n\r\n{{}}", "x".repeat(9000));
    let rows: [(&str, i64, &str); 9] = [
        (
            "Foo: 1\r\n\r\n{}",
            -32700,
            "Header must provide a Content-Length property.",
        ),
        (
            "Content-Length: \r\n\r\n",
            -32700,
            "Header must provide a Content-Length property.",
        ),
        (
            "Content-Length: x\r\n\r\n",
            -32700,
            "Content-Length value must be a number. Got x",
        ),
        (
            "Content-Length: -1\r\n\r\n",
            -32700,
            "Content-Length value must be a number. Got -1",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a:1\r\n\r\n",
            -32700,
            "Message header must separate key and value using ':'",
        ),
        (
            "Content-Length: 2\r\nnonsense\r\n\r\n{}",
            -32700,
            "Message header must separate key and value using ':'",
        ),
        (&long, -32013, "Limit reached: limits.header is 8192"),
        (
            "Content-Length: 1048577\r\n\r\n",
            -32013,
            "Limit reached: limits.frame is 1048576",
        ),
        (
            "Content-Length: 1000000000000000\r\n\r\n",
            -32013,
            "Limit reached: limits.frame is",
        ),
    ];
    for (bytes, code, words) in rows {
        let mut rig = after(bytes.as_bytes());
        let said = rig.said_one();
        assert_eq!(
            (&said["id"], &said["error"]["code"]),
            (&Value::Null, &json!(code)),
            "{bytes}"
        );
        let message = said["error"]["message"].as_str().unwrap();
        assert!(message.starts_with(words), "{message}");
        assert!(rig.closed.is_some(), "{bytes}");
        assert_eq!(rig.mux.poll_timeout(&rig.settings), None);
        // Whatever comes behind it is not read.
        rig.client(&request(1, "ping", json!({})));
        rig.silent();
    }
}

#[test]
fn what_may_still_become_a_frame_is_waited_for() {
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03abcdefgh";
    for bytes in [
        &b"Content-Length: 2\n\n{}"[..],
        hello,
        b"Content-Length: 2\r\n",
        b"C",
        b"",
    ] {
        let mut rig = after(bytes);
        rig.silent();
        assert_eq!(rig.closed, None);
    }
}

#[test]
fn what_is_no_message_is_answered_with_its_own_id_if_it_has_one() {
    let deep = |before: &str| format!("{before}{}{}}}", "[".repeat(130), "]".repeat(130));
    let rows: Vec<(String, i64, Value)> = [
        // Not JSON.
        ("", -32700, json!(null)),
        ("{", -32700, json!(null)),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"ping""#,
            -32700,
            json!(1),
        ),
        (r#"{"jsonrpc":"2.0","id":1"#, -32700, json!(null)),
        (
            r#"{"jsonrpc":"2.0","id":"x","method":"ping"}}"#,
            -32700,
            json!("x"),
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"#,
            -32700,
            json!(null),
        ),
        (
            r#"{"jsonrpc":"2.0","id":4,"method":"ping","params":{"m":"\ud83d"}}"#,
            -32700,
            json!(4),
        ),
        (
            r#"{"jsonrpc":"2.0","method":"ping","params":{"m":"\ud83d"},"id":4}"#,
            -32700,
            json!(null),
        ),
        // JSON, but no message.
        ("[]", -32600, json!(null)),
        (
            r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#,
            -32600,
            json!(null),
        ),
        ("5", -32600, json!(null)),
        ("\"ping\"", -32600, json!(null)),
        ("null", -32600, json!(null)),
        ("{}", -32600, json!(null)),
        (r#"{"jsonrpc":"2.0","id":5}"#, -32600, json!(5)),
        (r#"{"jsonrpc":"2.0","id":5,"method":7}"#, -32600, json!(5)),
        (
            r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#,
            -32600,
            json!(null),
        ),
        (
            r#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#,
            -32600,
            json!(null),
        ),
        (
            r#"{"jsonrpc":"2.0","id":true,"method":"ping"}"#,
            -32600,
            json!(null),
        ),
        (r#"{"id":6,"method":"ping"}"#, -32600, json!(6)),
        (
            r#"{"jsonrpc":"1.0","id":"six","method":"ping"}"#,
            -32600,
            json!("six"),
        ),
        (r#"{"jsonrpc":2,"id":6,"method":"ping"}"#, -32600, json!(6)),
        (
            r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#,
            -32600,
            json!(null),
        ),
        (
            r#"{"jsonrpc":"2.0","id":1e2,"method":"ping"}"#,
            -32600,
            json!(null),
        ),
        (
            r#"{"jsonrpc":"2.0","id":9223372036854775808,"method":"ping"}"#,
            -32600,
            json!(null),
        ),
        (
            r#"{"jsonrpc":"2.0","id":8,"error":{"code":"x","message":"m"}}"#,
            -32600,
            json!(8),
        ),
    ]
    .into_iter()
    .map(|(body, code, id)| (body.to_owned(), code, id))
    .chain([
        (
            deep(r#"{"jsonrpc":"2.0","id":3,"method":"ping","params":"#),
            -32700,
            json!(3),
        ),
        (
            deep(r#"{"jsonrpc":"2.0","method":"ping","params":"#),
            -32700,
            json!(null),
        ),
    ])
    .collect();
    for (body, code, id) in rows {
        let mut rig = after(&framed(&body));
        assert_eq!(rig.error(), (id, code), "{body}");
        still_open(&mut rig);
    }
    let mut rig = after(b"Content-Length: 4\r\n\r\n\"\xff\xfe\"");
    assert_eq!(rig.error(), (Value::Null, -32700), "not UTF-8");
    still_open(&mut rig);
}

#[test]
fn what_the_cli_ignores_is_ignored() {
    for body in [
        notification("foo.bar", json!({})),
        notification("ping", json!({})),
        notification("session.create", json!({"sessionId": "s"})),
        notification("$/cancelRequest", json!({"id": 5})),
        notification("$/cancelRequest", json!({})),
        result(5, json!({})),
        result("x", json!({})),
        r#"{"jsonrpc":"2.0","id":null,"result":{}}"#.to_owned(),
        r#"{"jsonrpc":"2.0","id":3,"error":{"code":1,"message":"m"}}"#.to_owned(),
    ] {
        let mut rig = after(&framed(&body));
        rig.silent();
        still_open(&mut rig);
    }
}

#[test]
fn ping_and_connect_are_answered_here() {
    let mut rig = after(&framed(&request("p", "ping", json!({"message": "hi"}))));
    let said = rig.said_one();
    assert_eq!(said["id"], json!("p"));
    assert_eq!(
        said["result"],
        json!({"message": "pong: hi", "timestamp": "1970-01-01T00:00:00.000000000Z",
               "protocolVersion": 3})
    );
    rig.client(&request(
        0,
        "connect",
        json!({"supportedTaskKinds": ["agent"]}),
    ));
    let said = rig.said_one();
    assert_eq!(
        (&said["id"], &said["result"]["ok"]),
        (&json!(0), &json!(true))
    );
    rig.client(&request(1, "connect", json!({"token": "t"})));
    assert_eq!(rig.error(), (json!(1), -32003));
    rig.client(&request(2, "connect", json!({"unknown": 1})));
    assert_eq!(rig.error(), (json!(2), -32602));
    rig.snapshot.backends.change(Vec::clear);
    rig.client(&request(3, "connect", json!({})));
    assert_eq!(rig.error(), (json!(3), -32010));
    assert!(rig.connects.is_empty() && rig.locates.is_empty());
    let ended = rig.logged(|o| match o {
        Output::CallEnded { class, outcome, .. } => Some((*class, *outcome)),
        _ => None,
    });
    let count = |outcome| ended.iter().filter(|e| **e == ("connect", outcome)).count();
    assert_eq!(
        (count(CallOutcome::Ok), count(CallOutcome::ProxyError)),
        (1, 3),
        "{ended:?}"
    );
}

#[test]
fn denied_methods_are_answered_here() {
    let mut rig = after(&framed(&request(1, "runtime.shutdown", json!({}))));
    assert_eq!(rig.error(), (json!(1), -32014));
    still_open(&mut rig);
}

#[test]
fn a_request_under_an_id_that_is_pending_is_refused() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.client(&request(
        1,
        "session.getMessages",
        json!({"sessionId": "s1"}),
    ));
    for duplicate in [
        "session.abort",
        "ping",
        "connect",
        "session.list",
        "runtime.shutdown",
    ] {
        rig.client(&request(1, duplicate, json!({"sessionId": "s1"})));
        assert_eq!(rig.error(), (json!(1), -32600), "{duplicate}");
    }
    assert_eq!(rig.heard_ids("a"), [json!(1)]);
    // "1" is another id than 1.
    rig.client(&request(
        "1",
        "session.getMessages",
        json!({"sessionId": "s1"}),
    ));
    assert_eq!(rig.heard_ids("a"), [json!("1")]);
    rig.backend("a", &result(1, json!({"first": true})));
    assert_eq!(rig.said_one()["result"], json!({"first": true}));
    rig.client(&request(
        1,
        "session.getMessages",
        json!({"sessionId": "s1"}),
    ));
    assert_eq!(rig.heard_ids("a"), [json!(1)], "answered, so free again");
}

fn limits_hit(rig: &mut Rig) -> Vec<&'static str> {
    rig.logged(|output| match output {
        Output::Event(Event::LimitHit { limit, .. }) => Some(*limit),
        _ => None,
    })
}

#[test]
fn calls_are_limited_and_local_answers_are_not() {
    let mut rig = Rig::with(Shell::Auto, settings());
    rig.settings.calls = 3;
    rig.open("s1", "a");
    for id in 0..3 {
        rig.client(&request(
            id,
            "session.getMessages",
            json!({"sessionId": "s1"}),
        ));
    }
    rig.client(&request(
        3,
        "session.getMessages",
        json!({"sessionId": "s1"}),
    ));
    let said = rig.said_one();
    assert_eq!(
        (&said["id"], &said["error"]["code"]),
        (&json!(3), &json!(-32013))
    );
    assert_eq!(
        said["error"]["data"]["limit"],
        json!("limits.calls_per_connection")
    );
    assert_eq!(limits_hit(&mut rig), ["limits.calls_per_connection"]);
    assert_eq!(rig.heard_ids("a").len(), 3);
    still_open(&mut rig);
    rig.backend("a", &result(1, json!({})));
    rig.said();
    rig.client(&request(
        3,
        "session.getMessages",
        json!({"sessionId": "s1"}),
    ));
    assert_eq!(rig.heard_ids("a"), [json!(3)]);
}

#[test]
fn sessions_are_limited_also_when_all_are_asked_for_at_once() {
    let mut rig = Rig::manual();
    rig.settings.sessions = 2;
    for n in 0..4 {
        let id = format!("s{n}");
        rig.client(&request(n, "session.create", json!({"sessionId": id})));
    }
    // The same session again takes no place, another one and one without an id would.
    rig.client(&request(4, "session.resume", json!({"sessionId": "s1"})));
    rig.client(&request(5, "session.create", json!({})));
    let refused: Vec<Value> = rig.said().iter().map(|frame| frame["id"].clone()).collect();
    assert_eq!(refused, [json!(2), json!(3), json!(5)]);
    assert_eq!(limits_hit(&mut rig), ["limits.sessions_per_connection"; 3]);
    // A place that is given back can be taken.
    rig.refuse_locate(&rig.locates[0].clone());
    assert_eq!(rig.error(), (json!(0), -32010));
    rig.client(&request(5, "session.create", json!({})));
    rig.silent();
    rig.client(&request(6, "session.create", json!({"sessionId": "s6"})));
    assert_eq!(
        rig.error(),
        (json!(6), -32013),
        "a create without an id takes a place too"
    );
}

#[test]
fn the_first_frame_must_come_in_time() {
    let mut rig = Rig::manual();
    rig.client_bytes(b"Content-Length: 40\r\n\r\n{");
    rig.pass(Duration::from_millis(9_999));
    assert_eq!(rig.closed, None);
    rig.pass(Duration::from_millis(1));
    assert_eq!(rig.error(), (Value::Null, -32013));
    assert_eq!(
        rig.closed,
        Some("no frame within listener.handshake_timeout")
    );
    assert_eq!(limits_hit(&mut rig), ["listener.handshake_timeout"]);
    assert_eq!(
        rig.mux.poll_timeout(&settings()),
        None,
        "no timer of a closed connection is due"
    );
}

#[test]
fn a_frame_must_be_complete_in_time_however_slowly_it_drips() {
    let mut rig = Rig::manual();
    let ping = framed(&request(1, "ping", json!({})));
    rig.client_bytes(&ping);
    rig.said();
    assert_eq!(
        rig.mux.poll_timeout(&rig.settings),
        None,
        "idle between frames is no matter"
    );
    rig.pass(Duration::from_secs(3600));

    // A whole frame and the start of another in one read.
    let (start, rest) = ping.split_at(30);
    rig.client_bytes(&[&ping, start].concat());
    rig.said();
    for byte in &rest[..10] {
        rig.pass(Duration::from_millis(2_900));
        rig.client_bytes(&[*byte]);
        rig.silent();
    }
    rig.pass(Duration::from_millis(999));
    // Its last bytes come in time, together with the start of a third: a new clock.
    rig.client_bytes(&[&rest[10..], start].concat());
    assert_eq!(rig.said_one()["id"], json!(1));
    rig.pass(Duration::from_millis(29_999));
    assert_eq!(rig.closed, None);
    rig.pass(Duration::from_millis(1));
    assert_eq!(rig.error(), (Value::Null, -32013));
    assert_eq!(
        rig.closed,
        Some("a frame did not complete within limits.frame_timeout")
    );
}

#[test]
fn time_in_which_the_client_is_not_read_is_not_counted() {
    let mut rig = Rig::manual();
    rig.client(&request(1, "ping", json!({})));
    rig.said();
    rig.client_bytes(b"Content-Length: 40\r\n\r\n{");
    for _ in 0..10 {
        rig.pass(Duration::from_secs(20));
        let now = rig.now;
        rig.step(&[], |mux, _, _| {
            mux.handle_client_unread(now);
            0
        });
    }
    assert_eq!(rig.closed, None);
    rig.pass(Duration::from_secs(30));
    assert!(rig.closed.is_some());
}

#[test]
fn requests_beyond_what_may_be_held_are_refused_and_the_rest_still_passes() {
    let mut rig = Rig::manual();
    // limits.frame and 1 MiB: three of them fit, a fourth does not.
    let text = "x".repeat(600_000);
    let params = |n: u8| json!({"sessionId": format!("s{n}"), "prompt": text});
    for n in 0..3 {
        rig.client(&request(n, "session.send", params(n)));
        rig.silent();
    }
    rig.client(&request(3, "session.send", params(3)));
    let refused = rig.said_one();
    assert_eq!(refused["error"]["code"], -32013);
    assert_eq!(refused["error"]["data"]["limit"], "limits.frame");
    rig.client(&request(4, "ping", json!({})));
    assert_eq!(rig.said_one()["id"], 4);
    for question in rig.locates.clone() {
        rig.refuse_locate(&question);
    }
    assert_eq!(rig.said_raw().len(), 3);
    assert_eq!(rig.mux.held_bytes, 0);
    // Params of what the shell executes, too, until it is answered.
    for n in 5..8 {
        rig.client(&request(n, "session.list", json!({ "filter": text })));
        rig.silent();
    }
    rig.client(&request(8, "session.list", json!({ "filter": text })));
    assert_eq!(rig.said_one()["error"]["code"], -32013);
    let tickets: Vec<u64> = rig.serves.drain(..).map(|call| call.ticket).collect();
    for ticket in tickets {
        rig.served(ticket, &Served::Result("{}".into()));
    }
    assert_eq!(rig.said_raw().len(), 3);
    assert_eq!(rig.mux.held_bytes, 0);
    // Ids that are as long as frames are kept as well.
    let id = "y".repeat(800_000);
    for n in 1..3 {
        rig.client(&request(format!("{n}{id}"), "session.list", json!({})));
        rig.silent();
    }
    rig.client(&request(format!("3{id}"), "session.list", json!({})));
    assert_eq!(rig.error().1, -32013);
}

#[test]
fn a_hook_is_answered_while_sends_wait_for_what_it_holds_up() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    let text = "x".repeat(700_000);
    rig.send(1, "s1");
    for n in 2..6 {
        let params = json!({"sessionId": "s1", "prompt": text});
        rig.client(&request(n, "session.send", params));
    }
    // The first two wait behind the send before them.
    let refused: Vec<_> = rig.said().iter().map(|f| f["id"].clone()).collect();
    assert_eq!(refused, [json!(4), json!(5)]);
    rig.heard("a");
    rig.backend("a", &request(9, "hooks.invoke", json!({"sessionId": "s1"})));
    let hook = rig.said_one()["id"].clone();
    rig.client(&result(hook, json!({"output": text})));
    assert_eq!(rig.heard_ids("a"), [json!(9)]);
    rig.backend("a", &result(1, json!({"messageId": "m1"})));
    assert_eq!(rig.heard_ids("a"), [json!(2)]);
}

#[test]
fn a_deadline_that_ends_the_connection_abandons_its_calls() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.client(&request(
        1,
        "session.getMessages",
        json!({"sessionId": "s1"}),
    ));
    rig.client(&request(2, "session.list", json!({})));
    let ticket = rig.serves[0].ticket;
    rig.client_bytes(b"garbage\r\n\r\n");
    assert_eq!(rig.error(), (Value::Null, -32700));
    let abandoned = rig.logged(|o| match o {
        Output::CallEnded {
            outcome: CallOutcome::Abandoned,
            ..
        } => Some(()),
        _ => None,
    });
    assert_eq!(abandoned.len(), 2);
    assert!(rig.claims.is_empty() && rig.sockets.is_empty());
    // Late answers of the shell find nobody.
    rig.served(ticket, &Served::Result("{}".into()));
    rig.silent();
}

#[test]
fn nothing_is_started_for_a_connection_that_has_just_ended() {
    let mut rig = Rig::manual();
    let create = framed(&request(1, "session.create", json!({"sessionId": "s1"})));
    let list = framed(&request(2, "session.list", json!({})));
    rig.client_bytes(&[&create[..], &list, b"garbage\r\n\r\n"].concat());
    assert!(rig.closed.is_some());
    assert!(
        rig.locates.is_empty() && rig.serves.is_empty(),
        "a claim nobody would give back"
    );
}

#[test]
fn a_call_about_a_session_takes_an_object() {
    for params in [json!([{}]), json!([]), json!("x"), json!(true), json!(5)] {
        let mut rig = Rig::manual();
        for (id, method) in [
            (1, "session.resume"),
            (2, "session.create"),
            (3, "session.send"),
            (4, "session.mode.get"),
            (5, "sessions.bulkDelete"),
        ] {
            rig.client(&request(id, method, params.clone()));
            assert_eq!(rig.error(), (json!(id), -32602), "{method} {params}");
        }
        assert!(rig.locates.is_empty() && rig.connects.is_empty() && rig.serves.is_empty());
        still_open(&mut rig);
    }
    // The last of two counts, as in the CLI.
    let mut rig = Rig::manual();
    rig.client(r#"{"jsonrpc":"2.0","id":1,"method":"session.resume","params":{},"params":[]}"#);
    assert_eq!(rig.error(), (json!(1), -32602));
    rig.client(r#"{"jsonrpc":"2.0","id":2,"method":"session.mode.get","params":[],"params":null}"#);
    assert_eq!(rig.locates.len(), 1);
}
