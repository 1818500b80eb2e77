//! What Taxiway writes, against what real servers write and what the contract promises.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;

use super::*;

fn body(frame: &[u8]) -> Value {
    let text = std::str::from_utf8(frame).unwrap();
    let (header, body) = text.split_once("\r\n\r\n").unwrap();
    assert_eq!(header, format!("Content-Length: {}", body.len()));
    serde_json::from_str(body).unwrap()
}

fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out);
    out
}

fn stamp() -> Stamp<'static> {
    Stamp {
        id: 0x6d274b55_69a7_ffff_ffff_570620ad693c,
        at: UNIX_EPOCH + Duration::from_millis(1_795_328_986_956),
        parent: Some("2d08eb1d-4c3e-4ce8-9693-8521f8f6bf7b"),
    }
}

#[test]
fn errors_carry_the_codes_of_the_contract() {
    let session = SessionId::from("s-1");
    let backend = BackendName::from("cli-2");
    let table = [
        (
            ProxyError::BackendUnavailable {
                session: Some(session.clone()),
                backend: Some(backend.clone()),
            },
            (-32010, "BACKEND_UNAVAILABLE", true),
            "cli-2",
        ),
        (
            ProxyError::BackendUnavailable {
                session: Some(session.clone()),
                backend: None,
            },
            (-32010, "BACKEND_UNAVAILABLE", true),
            "s-1",
        ),
        (
            ProxyError::BackendLost {
                backend,
                method: "session.send".into(),
            },
            (-32011, "BACKEND_LOST", false),
            "session.send",
        ),
        (
            ProxyError::SessionBusy { session },
            (-32012, "SESSION_BUSY", true),
            "s-1",
        ),
        (
            ProxyError::LimitExceeded {
                limit: "limits.frame",
                value: 64,
            },
            (-32013, "LIMIT_EXCEEDED", true),
            "limits.frame is 64",
        ),
        (
            ProxyError::MethodDenied {
                method: "runtime.shutdown".into(),
                reason: "it ends",
            },
            (-32014, "METHOD_DENIED", false),
            "it ends",
        ),
        (
            ProxyError::Draining,
            (-32015, "DRAINING", true),
            "shutting down",
        ),
        (
            ProxyError::Cancelled,
            (-32800, "CANCELLED", false),
            "cancelled",
        ),
        (
            ProxyError::AuthenticationRequired,
            (-32001, "AUTHENTICATION_REQUIRED", false),
            "AUTHENTICATION_REQUIRED",
        ),
        (
            ProxyError::duplicate_id(b"7"),
            (-32600, "INVALID_REQUEST", false),
            "id 7",
        ),
        (
            ProxyError::session_not_found("session.send", "s-1"),
            (-32603, "INTERNAL_ERROR", false),
            "Request session.send failed with message: Session not found for sessionId: s-1",
        ),
    ];
    for (cause, (code, name, retryable), says) in table {
        let answer = body(&written(|out| error(out, b"\"a\"", &cause, 42)));
        assert_eq!(answer["jsonrpc"], "2.0");
        assert_eq!(answer["id"], "a");
        assert_eq!(answer["error"]["code"], code);
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(says), "{message}");
        let data = &answer["error"]["data"];
        assert_eq!(data["source"], "taxiway");
        assert_eq!(data["code"], name);
        assert_eq!(data["retryable"], retryable);
        assert_eq!(data["ref"], "42");
        assert_eq!(data.get("limit").and_then(Value::as_str), cause.limit());
    }
}

#[test]
fn quotes_of_peers_are_bounded_and_whole_characters() {
    let cause = ProxyError::MethodNotFound {
        method: "é".repeat(1_000_000),
    };
    let message = cause.to_string();
    assert!(message.len() < 200);
    assert!(message.ends_with("é…"));
}

#[test]
fn frames_are_appended_with_one_exact_header() {
    let mut out = b"before".to_vec();
    result(&mut out, b"0", r#"{"ok":true}"#);
    result(&mut out, NULL_ID, "null");
    assert_eq!(
        out,
        b"beforeContent-Length: 45\r\n\r\n{\"jsonrpc\":\"2.0\",\"id\":0,\"result\":{\"ok\":true}}\
          Content-Length: 41\r\n\r\n{\"jsonrpc\":\"2.0\",\"id\":null,\"result\":null}"
    );
}

#[test]
fn pong_is_the_one_of_a_real_server() {
    let at = UNIX_EPOCH + Duration::from_nanos(1_795_328_985_750_187_449);
    let said = |text| body(&written(|out| pong(out, b"1", text, at)));
    assert_eq!(
        said(Some("hi\"\n")),
        serde_json::json!({"jsonrpc":"2.0","id":1,"result":{
            "message":"pong: hi\"\n","timestamp":"2026-11-22T06:29:45.750187449Z",
            "protocolVersion":3}})
    );
    assert_eq!(said(None)["result"]["message"], "pong");
    assert_eq!(said(Some(""))["result"]["message"], "pong");
}

/// Against an idle event as a real server wrote it: same members, same order.
#[test]
fn lost_turns_end_with_the_events_of_a_real_server() {
    let backend = BackendName::from("cli-1");
    let out = written(|out| {
        turn_lost(
            out,
            "59e32a26",
            &LostBy::Backend(backend.clone()),
            &[],
            &stamp(),
        )
    });
    let text = std::str::from_utf8(&out).unwrap();
    let second = text.rfind("Content-Length").unwrap();
    assert_eq!(
        text[second..].split_once("\r\n\r\n").unwrap().1,
        "{\"jsonrpc\":\"2.0\",\"method\":\"session.event\",\"params\":{\"sessionId\":\"59e32a26\",\
         \"event\":{\"type\":\"session.idle\",\"data\":{\"aborted\":true},\"ephemeral\":true,\
         \"id\":\"6d274b55-69a7-4fff-bfff-570620ad693d\",\
         \"timestamp\":\"2026-11-22T06:29:46.956Z\",\
         \"parentId\":\"2d08eb1d-4c3e-4ce8-9693-8521f8f6bf7b\"}}}"
    );
    let event = &body(&out[..second])["params"]["event"];
    assert_eq!(event["type"], "session.error");
    assert_eq!(event["id"], "6d274b55-69a7-4fff-bfff-570620ad693c");
    assert_eq!(event["data"]["errorType"], "query");
    assert_eq!(event["data"]["errorCode"], "BACKEND_LOST");
}

#[test]
fn lost_turns_name_the_sends_that_may_be_lost_but_not_without_end() {
    let backend = BackendName::from("cli-1");
    let ids: Vec<String> = (0..1000).map(|n| format!("m-{n}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let out = written(|out| {
        turn_lost(
            out,
            "s",
            &LostBy::Backend(backend.clone()),
            &ids,
            &Stamp {
                parent: None,
                ..stamp()
            },
        );
    });
    let text = std::str::from_utf8(&out).unwrap();
    let second = text.rfind("Content-Length").unwrap();
    let event = &body(&out[..second])["params"]["event"];
    let message = event["data"]["message"].as_str().unwrap();
    assert!(message.contains("cli-1"), "{message}");
    assert!(message.contains("1000 message(s) (m-0, m-1,"), "{message}");
    assert!(message.len() < 400, "{message}");
    assert_eq!(event["parentId"], Value::Null);
}

#[test]
fn own_requests_and_cancellations() {
    let asked = body(&written(|out| {
        request(
            out,
            b"\"taxiway-1\"",
            "session.mode.get",
            &session_params("a\"b"),
        );
    }));
    assert_eq!(
        asked,
        serde_json::json!({"jsonrpc":"2.0","id":"taxiway-1","method":"session.mode.get",
            "params":{"sessionId":"a\"b"}})
    );
    assert_eq!(
        body(&written(|out| cancel(out, b"-9223372036854775808"))),
        serde_json::json!({"jsonrpc":"2.0","method":"$/cancelRequest",
            "params":{"id":i64::MIN}})
    );
}
