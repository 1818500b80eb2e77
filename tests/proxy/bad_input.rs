//! What is no frame, no JSON, or no message: the table of PROTOCOL §1, row by row, over the real
//! socket. Other connections never notice, and no backend ever sees it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::rig::{Disks, Raw, Rig, bounded, frame, until};

/// What the client gets.
enum Told {
    /// An error with this code under this id.
    Error(i64, Value),
    /// Nothing at all.
    Nothing,
    /// The result of a `ping` that was understood.
    Pong(Value),
}

/// What becomes of the connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Open,
    Closed,
}

use Told::{Error, Nothing, Pong};

fn rows() -> Vec<(&'static str, Vec<u8>, Told, Then)> {
    let null = Value::Null;
    let deep = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"ping","params":{{"x":{}1{}}}}}"#,
        "[".repeat(130),
        "]".repeat(130)
    );
    let text = |text: &str| text.as_bytes().to_vec();
    vec![
        // No header that says how long the body is.
        (
            "no length",
            text("Content-Type: x\r\n\r\n{}"),
            Error(-32700, null.clone()),
            Then::Closed,
        ),
        (
            "no number",
            text("Content-Length: x\r\n\r\n"),
            Error(-32700, null.clone()),
            Then::Closed,
        ),
        (
            "negative",
            text("Content-Length: -1\r\n\r\n"),
            Error(-32700, null.clone()),
            Then::Closed,
        ),
        (
            "http",
            text("GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
            Error(-32700, null.clone()),
            Then::Closed,
        ),
        (
            "no colon",
            text("Content-Length 2\r\n\r\n{}"),
            Error(-32700, null.clone()),
            Then::Closed,
        ),
        // No JSON.
        (
            "malformed",
            frame("{\"jsonrpc\":"),
            Error(-32700, null.clone()),
            Then::Open,
        ),
        (
            "length 0",
            frame(""),
            Error(-32700, null.clone()),
            Then::Open,
        ),
        (
            "utf-8",
            frame(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\xff\"}"),
            Error(-32700, json!(1)),
            Then::Open,
        ),
        (
            "surrogate",
            frame(r#"{"jsonrpc":"2.0","method":"ping","params":{"message":"\ud83d"},"x":1}"#),
            Error(-32700, null.clone()),
            Then::Open,
        ),
        ("depth", frame(deep), Error(-32700, json!(1)), Then::Open),
        // JSON that is no message.
        (
            "batch",
            frame(r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#),
            Error(-32600, null.clone()),
            Then::Open,
        ),
        (
            "empty batch",
            frame("[]"),
            Error(-32600, null.clone()),
            Then::Open,
        ),
        (
            "scalar",
            frame("17"),
            Error(-32600, null.clone()),
            Then::Open,
        ),
        (
            "no method",
            frame(r#"{"jsonrpc":"2.0","id":4,"params":{}}"#),
            Error(-32600, json!(4)),
            Then::Open,
        ),
        (
            "id null",
            frame(r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#),
            Error(-32600, null.clone()),
            Then::Open,
        ),
        (
            "id object",
            frame(r#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#),
            Error(-32600, null.clone()),
            Then::Open,
        ),
        (
            "id bool",
            frame(r#"{"jsonrpc":"2.0","id":true,"method":"ping"}"#),
            Error(-32600, null.clone()),
            Then::Open,
        ),
        (
            "id float",
            frame(r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#),
            Error(-32600, null.clone()),
            Then::Open,
        ),
        (
            "id 2^63",
            frame(r#"{"jsonrpc":"2.0","id":9223372036854775808,"method":"ping"}"#),
            Error(-32600, null.clone()),
            Then::Open,
        ),
        (
            "no version",
            frame(r#"{"id":5,"method":"ping"}"#),
            Error(-32600, json!(5)),
            Then::Open,
        ),
        (
            "version 1",
            frame(r#"{"jsonrpc":"1.0","id":"six","method":"ping"}"#),
            Error(-32600, json!("six")),
            Then::Open,
        ),
        // Ignored.
        (
            "unknown notification",
            frame(r#"{"jsonrpc":"2.0","method":"no.such"}"#),
            Nothing,
            Then::Open,
        ),
        (
            "request as notification",
            frame(r#"{"jsonrpc":"2.0","method":"session.create","params":{"sessionId":"never"}}"#),
            Nothing,
            Then::Open,
        ),
        (
            "unknown cancel",
            frame(r#"{"jsonrpc":"2.0","method":"$/cancelRequest","params":{"id":99}}"#),
            Nothing,
            Then::Open,
        ),
        (
            "unknown answer",
            frame(r#"{"jsonrpc":"2.0","id":99,"result":{}}"#),
            Nothing,
            Then::Open,
        ),
        (
            "unknown error",
            frame(r#"{"jsonrpc":"2.0","id":"x","error":{"code":1,"message":"m"}}"#),
            Nothing,
            Then::Open,
        ),
        // Odd but right.
        (
            "positional",
            frame(r#"{"jsonrpc":"2.0","id":7,"method":"ping","params":[{"message":"m"}]}"#),
            Pong(json!("pong")),
            Then::Open,
        ),
        (
            "any order",
            frame(r#"{"params":{"message":"m"},"method":"ping","id":7,"jsonrpc":"2.0"}"#),
            Pong(json!("pong: m")),
            Then::Open,
        ),
        (
            "last wins",
            frame(
                r#"{"jsonrpc":"2.0","id":1,"id":7,"method":"x","method":"ping","params":{"message":"a","message":"b"}}"#,
            ),
            Pong(json!("pong: b")),
            Then::Open,
        ),
        (
            "headers",
            text(
                "content-type: x\r\ncontent-length: 1\r\nCONTENT-LENGTH:40\r\n\r\n{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"ping\"}",
            ),
            Pong(json!("pong")),
            Then::Open,
        ),
    ]
}

#[tokio::test]
async fn every_row_is_answered_as_the_cli_does_and_reaches_no_backend() {
    bounded(60, async {
        let rig = Rig::sticky(2).await;
        let bystander = rig.client().await;
        bystander.create("bystander").await;
        bystander
            .send("bystander", "[[len 100000]] [[slow 20]]")
            .await;

        for (name, bytes, told, then) in rows() {
            let before = rig.admin().scrape().await;
            let mut raw = Raw::connect(rig.taxiway.address()).await;
            raw.write(&bytes).await;
            match &told {
                Error(code, id) => {
                    let answer = raw
                        .next()
                        .await
                        .unwrap_or_else(|| panic!("{name}: no answer"));
                    assert_eq!(&answer["error"]["code"], code, "{name}: {answer}");
                    assert_eq!(&answer["id"], id, "{name}: {answer}");
                    assert_eq!(
                        answer["error"]["data"]["source"], "taxiway",
                        "{name}: {answer}"
                    );
                    for series in [
                        format!("taxiway_errors_total{{code=\"{code}\"}}"),
                        r#"taxiway_frames_total{direction="client_to_backend",kind="invalid"}"#
                            .to_owned(),
                    ] {
                        let wanted = before.value(&series) + 1.0;
                        rig.admin().metric_is(&series, wanted).await;
                    }
                }
                Nothing => {}
                Pong(message) => {
                    let answer = raw
                        .next()
                        .await
                        .unwrap_or_else(|| panic!("{name}: no answer"));
                    assert_eq!(&answer["result"]["message"], message, "{name}: {answer}");
                    assert_eq!(answer["id"], 7, "{name}: {answer}");
                }
            }
            match then {
                // The next answer is that of the next call, so nothing else was said before.
                Then::Open => {
                    let ping = r#"{"jsonrpc":"2.0","id":"next","method":"ping"}"#;
                    raw.write(&frame(ping)).await;
                    let answer = raw.next().await.unwrap_or_else(|| panic!("{name}: closed"));
                    assert_eq!(answer["id"], "next", "{name}: {answer}");
                }
                Then::Closed => assert_eq!(raw.next().await, None, "{name}: not closed"),
            }
            assert!(bystander.is_open(), "{name}");
        }
        bystander.mode("bystander").await.unwrap();
        let deltas = bystander.mark();
        bystander
            .heard_since(deltas, &|m| m["method"] == "session.event")
            .await;

        for name in rig.sims.names() {
            for seen in rig.sims.get(&name).seen() {
                let expected = [
                    "connect",
                    "ping",
                    "session.list",
                    "session.create",
                    "session.send",
                    "session.mode.get",
                    "auth.getStatus",
                    "session.getMetadata",
                ];
                assert!(
                    expected.contains(&seen.method.as_str()),
                    "{name} saw {seen:?}"
                );
                assert_ne!(seen.session.as_deref(), Some("never"), "{seen:?}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn unknown_methods_and_application_errors_come_back_unchanged() {
    bounded(60, async {
        let rig = Rig::sticky(2).await;
        let client = rig.client().await;
        let unknown = client.call("foo.bar", json!({})).await.unwrap_err();
        assert_eq!(
            (unknown.code, &*unknown.message),
            (-32601, "Unhandled method foo.bar")
        );
        assert_eq!(unknown.data, Value::Null);
        client.create("s").await;
        let params = json!({ "sessionId": "s" });
        let unknown = client
            .call("session.sendAndWait", params)
            .await
            .unwrap_err();
        assert_eq!(unknown.code, -32601, "{unknown:?}");
        let params = json!({ "sessionId": "not/valid" });
        let refused = client.call("session.create", params).await.unwrap_err();
        assert_eq!(refused.code, -32603);
        assert_eq!(
            refused.message,
            "Request session.create failed with message: Rejected session.create request with \
             invalid sessionId: not/valid"
        );
    })
    .await;
}

/// What waits for bytes that never come: the CLI waits for ever, Taxiway does not.
#[tokio::test]
async fn what_never_becomes_a_frame_is_given_up_in_time() {
    bounded(60, async {
        let rig = Rig::with(1, Disks::Separate, |conf| {
            conf.text("listener.handshake_timeout", "400ms")
                .text("limits.frame_timeout", "300ms")
        })
        .await;
        let bystander = rig.client().await;
        bystander.create("bystander").await;
        let hello = frame(r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#);
        let rows: [(&str, &[u8], bool); 5] = [
            ("nothing at all", b"", false),
            ("line feeds only", b"Content-Length: 2\n\n{}", false),
            ("half a header", b"Content-Le", true),
            (
                "half a body",
                b"Content-Length: 100\r\n\r\n{\"jsonrpc\"",
                true,
            ),
            (
                "10^15 bytes to come",
                b"Content-Length: 1000000000000000\r\n\r\n",
                true,
            ),
        ];
        for (name, bytes, greeted) in rows {
            let mut raw = Raw::connect(rig.taxiway.address()).await;
            if greeted {
                raw.write(&hello).await;
                assert_eq!(raw.answer().await.unwrap()["id"], 1, "{name}");
            }
            raw.write(bytes).await;
            let began = std::time::Instant::now();
            // News of the bystander's session may come late.
            let answer = raw
                .answer()
                .await
                .unwrap_or_else(|| panic!("{name}: no word"));
            assert!(began.elapsed() < Duration::from_secs(5), "{name}");
            assert_eq!(answer["id"], Value::Null, "{name}");
            assert_eq!(answer["error"]["code"], -32013, "{name}: {answer}");
            let limit = match (name, greeted) {
                ("10^15 bytes to come", _) => "limits.frame",
                (_, true) => "limits.frame_timeout",
                (_, false) => "listener.handshake_timeout",
            };
            assert_eq!(answer["error"]["data"]["limit"], limit, "{name}: {answer}");
            assert_eq!(raw.next().await, None, "{name}: not closed");
            let hits = format!("taxiway_limit_hits_total{{limit=\"{limit}\"}}");
            until(&hits, async || {
                let seen = rig.admin().scrape().await.value(&hits);
                if seen >= 1.0 { Ok(()) } else { Err(seen) }
            })
            .await;
        }
        // A client that has said something may be silent for as long as it likes.
        assert!(bystander.is_open());
        bystander.mode("bystander").await.unwrap();
    })
    .await;
}
