//! Scripts about one connection: handshake, frames, methods that need no session, providers.

use std::{net::SocketAddr, time::Duration};

use serde_json::{Value, json};

use super::{
    super::{
        opened,
        subject::Subject,
        wire::{Wire, masked},
    },
    Lines, calls, open,
};

pub(crate) async fn handshake(subject: &Subject, _: SocketAddr) -> Lines {
    let mut wire = Wire::to(subject.address()).await;
    let mut lines = Vec::new();
    let params = [
        json!({}),
        Value::Null,
        json!([]),
        json!([{"foo": 1}]),
        json!("text"),
        json!(7),
        json!({"supportedTaskKinds": ["agent"]}),
        json!({"supportedTaskKinds": ["client"]}),
        json!({"supportedTaskKinds": ["client", "agent", "agent"]}),
        json!({"supportedTaskKinds": []}),
        json!({"supportedTaskKinds": null}),
        json!({"supportedTaskKinds": ["bogus"]}),
        json!({"supportedTaskKinds": "agent"}),
        json!({"supportedTaskKinds": [1]}),
        json!({"foo": 1}),
        json!({"entra": {}}),
        json!({"token": 1}),
        json!({"token": null}),
        json!({"token": ""}),
        json!({"token": "x"}),
        json!({"token": "x", "foo": 1}),
        json!({"clientInfo": 1}),
        json!({"clientInfo": {"foo": 1}}),
        json!({"clientInfo": {"editorName": 1}}),
        json!({"clientInfo": {"editorName": "x"}}),
        json!({"enableGitHubTelemetryForwarding": "x"}),
        json!({"enableGitHubTelemetryForwarding": null}),
    ];
    let table: Vec<_> = params
        .into_iter()
        .map(|params| ("connect", params))
        .collect();
    calls(&mut wire, &mut lines, &table).await;
    let params = [
        json!({}),
        Value::Null,
        json!([]),
        json!(["hi"]),
        json!("hi"),
        json!({"message": 1}),
        json!({"message": null}),
        json!({"message": "hi \"there\" ä\u{1f600}"}),
    ];
    let table: Vec<_> = params.into_iter().map(|params| ("ping", params)).collect();
    calls(&mut wire, &mut lines, &table).await;
    let id = wire.request("ping", None).await;
    lines.push(masked(&wire.answer(id).await));
    lines
}

pub(crate) async fn token(subject: &Subject, model: SocketAddr) -> Lines {
    let mut wire = Wire::to(subject.address()).await;
    let mut other = Wire::to(subject.address()).await;
    let mut lines = Vec::new();
    let table = [
        ("ping", json!({})),
        ("foo.bar", json!({})),
        ("connect", json!({})),
        ("connect", json!({"token": "wrong"})),
        ("connect", json!({"token": 5})),
        ("connect", json!({"token": "wrong", "foo": 1})),
        ("connect", json!(["secret"])),
        ("session.create", json!({})),
        ("connect", json!({"token": "secret", "foo": 1})),
        ("ping", json!({})),
        ("connect", json!({"token": "wrong"})),
        ("ping", json!({})),
        ("connect", json!({"token": "secret"})),
    ];
    calls(&mut wire, &mut lines, &table).await;
    open(&mut wire, model, "token-1", json!({})).await;
    lines.push(format!("a stranger hears {:?}", other.since(0)));
    other.frame(b"{bad").await;
    lines.push(other.body(0, &["-32700"]).await);
    lines
}

pub(crate) async fn bad_bodies(subject: &Subject, _: SocketAddr) -> Lines {
    let deep = format!("{}1{}", "[".repeat(129), "]".repeat(129));
    let bodies: &[&[u8]] = &[
        b"",
        b"{bad",
        b"\xff",
        b"\xef\xbb\xbf{}",
        br#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{"message":"\ud83d"}}"#,
        b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\",\"params\":{\"message\":\"a\x01\"}}",
        br#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{"message":1e400}}"#,
        br#"{"jsonrpc":"2.0","id":1,"method":"ping"} x"#,
        br#"{"jsonrpc":"2.0","id":01,"method":"ping"}"#,
        deep.as_bytes(),
        b"[]",
        br#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#,
        b"5",
        b"null",
        b"{}",
        br#"{"jsonrpc":"2.0","id":1}"#,
        br#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#,
        br#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#,
        br#"{"jsonrpc":"2.0","id":true,"method":"ping"}"#,
        br#"{"jsonrpc":"2.0","id":1,"method":5}"#,
        br#"{"jsonrpc":"2.0","result":{}}"#,
        br#"{"id":1,"method":"ping"}"#,
        br#"{"method":"ping"}"#,
        br#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#,
        br#"{"jsonrpc":"1.0","method":"ping"}"#,
        br#"{"jsonrpc":2.0,"id":1,"method":"ping"}"#,
        br#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#,
        br#"{"jsonrpc":"2.0","id":-0,"method":"ping"}"#,
        br#"{"jsonrpc":"2.0","id":1e2,"method":"ping"}"#,
        br#"{"jsonrpc":"2.0","id":9223372036854775808,"method":"ping"}"#,
        br#"{"jsonrpc":"2.0","id":-9223372036854775809,"method":"ping"}"#,
        br#"{"jsonrpc":"2.0","id":9223372036854775807,"method":"ping"}"#,
        br#"{"jsonrpc":"2.0","id":"","method":"ping"}"#,
        br#"{"jsonrpc":"2.0","id":"\u0041\"","method":"ping"}"#,
        br#"{"jsonrpc":"2.0","id":1,"method":""}"#,
        br#"{"jsonrpc":"2.0","id":1,"method":"foo.bar"}"#,
        br#"{"jsonrpc":"2.0","id":1,"method":"$/cancelRequest","params":{"id":5}}"#,
        br#"{"jsonrpc":"2.0","method":"foo.bar"}"#,
        br#"{"jsonrpc":"2.0","method":"ping"}"#,
        br#"{"jsonrpc":"2.0","method":"$/cancelRequest","params":{"id":5}}"#,
        br#"{"jsonrpc":"2.0","id":777,"result":{}}"#,
        br#"{"jsonrpc":"2.0","id":777,"result":{},"method":"ping"}"#,
        br#"{"jsonrpc":"2.0","id":777,"error":{"code":1,"message":"x"}}"#,
        br#"{"jsonrpc":"2.0","id":777,"error":5}"#,
        br#"{"jsonrpc":"2.0","id":null,"result":{}}"#,
        br#"{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}"#,
        br#"{"jsonrpc":"2.0","id":1,"m\u0065thod":"ping"}"#,
        br#" {"params":{},"id":1,"method":"ping","jsonrpc":"2.0","more":[1]} "#,
    ];
    let mut wire = Wire::to(subject.address()).await;
    let mut lines = Vec::new();
    for body in bodies {
        let mark = wire.mark();
        wire.frame(body).await;
        // A body that is not answered is over when a later ping is.
        wire.call("ping", json!({})).await;
        wire.quiet_for(Duration::from_millis(60)).await;
        let told: Vec<_> = wire
            .since(mark)
            .iter()
            .map(|answer| masked(answer))
            .collect();
        let told: Vec<_> = told.iter().filter(|answer| !is_own_ping(answer)).collect();
        lines.push(format!("{} → {told:?}", String::from_utf8_lossy(body)));
    }
    lines
}

/// The answer to the ping that follows each body: ids below 1 000 that no body uses.
fn is_own_ping(answer: &str) -> bool {
    let id = answer
        .strip_prefix("{\"jsonrpc\":\"2.0\",\"id\":")
        .unwrap_or_default();
    let id = id.split(',').next().unwrap_or_default();
    answer.contains("\"message\":\"pong\"")
        && id.parse::<u64>().is_ok_and(|id| (3..500).contains(&id))
}

pub(crate) async fn bad_headers(subject: &Subject, _: SocketAddr) -> Lines {
    let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    let with_ping = [
        "Content-Length: +40",
        "Content-Length: 40.0",
        "Content-Length: 40, 40",
        "Content-Length: 0040",
        "Content-Length: 0x28",
        "content-length:40",
        "CONTENT-LENGTH:   40  ",
        "Content-Length: 3\r\nContent-Length: 40",
        "Content-Type: x\r\nContent-Length: 40\r\nFoo: y",
        "Content-Length : 40",
        " Content-Length: 40",
        ": 5\r\nContent-Length: 40",
        "\r\nContent-Length: 40",
    ];
    let mut inputs: Vec<String> = with_ping
        .iter()
        .map(|header| format!("{header}\r\n\r\n{ping}"))
        .collect();
    let alone = [
        "\r\n\r\n",
        "Foo: 1\r\n\r\n",
        "Content-Length: \r\n\r\n",
        "Content-Length: x\r\n\r\n",
        "Content-Length: -5\r\n\r\n",
        "Content-Length: 99999999999999999999999\r\n\r\n",
        "Content-Length: 1000000000000000\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\n",
    ];
    inputs.extend(alone.map(str::to_owned));
    inputs.push(format!("Content-Length: 40\n\n{ping}"));
    inputs.push(format!(
        "X: {}\r\nContent-Length: 40\r\n\r\n{ping}",
        "a".repeat(65_400)
    ));
    let mut lines = Vec::new();
    for input in &inputs {
        let mut wire = Wire::to(subject.address()).await;
        wire.raw(input.as_bytes()).await;
        wire.quiet().await;
        let told: Vec<_> = wire.since(0).iter().map(|body| masked(body)).collect();
        let end = if wire.ended() { "closed" } else { "open" };
        let input: String = input.chars().take(60).collect();
        lines.push(format!("{input:?} → {told:?} {end}"));
    }
    let mut wire = Wire::to(subject.address()).await;
    wire.raw(format!("X: {}", "a".repeat(200_000)).as_bytes())
        .await;
    wire.end().await;
    lines.push(
        wire.since(0)
            .concat()
            .split("(buffered")
            .next()
            .unwrap_or_default()
            .to_owned(),
    );
    lines
}

pub(crate) async fn methods_without_session(subject: &Subject, _: SocketAddr) -> Lines {
    let mut wire = Wire::to(subject.address()).await;
    let mut lines = Vec::new();
    let table = [
        ("status.get", json!({})),
        ("auth.getStatus", json!({})),
        ("models.list", json!({})),
        ("account.getQuota", json!({})),
        ("account.getCurrentAuth", json!({})),
        ("account.getAllUsers", json!({})),
        ("mcp.config.list", json!({})),
        ("mcp.discover", json!({})),
        ("plugins.list", json!({})),
        ("agents.discover", json!({})),
        ("session.getForeground", json!({})),
        ("session.setForeground", json!({"sessionId": "x"})),
        ("session.sendAndWait", json!({"sessionId": "x"})),
        ("session.compaction.compact", json!({"sessionId": "x"})),
        ("session.factory.run", json!({"sessionId": "x"})),
        ("session.foo.bar", json!({"sessionId": "x"})),
        ("sessions.foo", json!({"sessionId": "x"})),
        ("hooks.invoke", json!({})),
        ("user.settings.reload", json!({})),
        ("agentRegistry.spawn", json!({})),
        (
            "llmInference.httpResponseStart",
            json!({"requestId": "x", "status": 200, "headers": {}}),
        ),
        ("sessions.getRemoteControlStatus", json!({})),
        (
            "sessions.transferRemoteControl",
            json!({"toSessionId": "x"}),
        ),
        (
            "sessions.stopRemoteControl",
            json!({"expectedSessionId": "x"}),
        ),
        ("session.list", json!({})),
        ("sessions.list", json!({})),
        ("session.getLastId", json!({})),
        ("sessions.getSizes", json!({})),
        ("sessions.listNonEmptySessionIds", json!({})),
    ];
    calls(&mut wire, &mut lines, &table).await;
    lines
}

pub(crate) async fn fs_provider(subject: &Subject, model: SocketAddr) -> Lines {
    let mut one = Wire::to(subject.address()).await;
    let mut two = Wire::to(subject.address()).await;
    let mut lines = Vec::new();
    let method = "sessionFs.setProvider";
    let full = json!({"initialCwd": "/w", "sessionStatePath": "/w/s", "conventions": "posix"});
    open(&mut one, model, "fs-0", json!({})).await;
    calls(&mut one, &mut lines, &[(method, full.clone())]).await;
    one.call("session.detach", json!({"sessionId": "fs-0"}))
        .await;
    let table = [
        (method, json!({})),
        (method, json!({"initialCwd": "/w"})),
        (
            method,
            json!({"initialCwd": "/w", "sessionStatePath": "/w/s"}),
        ),
        (method, full.clone()),
        (method, full.clone()),
    ];
    calls(&mut one, &mut lines, &table).await;
    calls(&mut two, &mut lines, &[(method, full.clone())]).await;
    let mark = one.mark();
    two.request("session.create", Some(&opened(model, "fs-1", json!({}))))
        .await;
    lines.push(masked(&one.body(mark, &["sessionFs.readFile"]).await));
    one.finish().await;
    one.end().await;
    let mut three = Wire::to(subject.address()).await;
    calls(&mut three, &mut lines, &[(method, full)]).await;
    lines
}

pub(crate) async fn llm_provider(subject: &Subject, model: SocketAddr) -> Lines {
    let mut one = Wire::to(subject.address()).await;
    let mut two = Wire::to(subject.address()).await;
    let mut lines = Vec::new();
    let method = "llmInference.setProvider";
    calls(
        &mut one,
        &mut lines,
        &[(method, json!({})), (method, json!({"foo": 1}))],
    )
    .await;
    calls(&mut two, &mut lines, &[(method, json!({}))]).await;
    open(&mut two, model, "llm-1", json!({})).await;
    calls(&mut one, &mut lines, &[(method, json!({}))]).await;
    let mark = one.mark();
    two.call(
        "session.send",
        json!({"sessionId": "llm-1", "prompt": "hi"}),
    )
    .await;
    for kind in [
        "llmInference.httpRequestStart",
        "llmInference.httpRequestChunk",
    ] {
        let body = one.body(mark, &[kind]).await;
        let request: Value = serde_json::from_str(&body).expect("JSON");
        lines.push(format!(
            "{} {} {}",
            request["id"], request["method"], request["params"]["sessionId"]
        ));
    }
    lines
}
