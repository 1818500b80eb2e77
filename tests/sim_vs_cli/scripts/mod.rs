//! The calls that both servers must answer alike. Each script returns its transcript.

mod connection;
mod sessions;
mod tools;
mod turns;

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::{
    opened,
    wire::{Wire, masked},
};

pub(crate) use self::{connection::*, sessions::*, tools::*, turns::*};

/// A transcript.
pub(crate) type Lines = Vec<String>;

/// Calls in turn; the transcript names each.
async fn calls(wire: &mut Wire, lines: &mut Lines, table: &[(&str, Value)]) {
    for (method, params) in table {
        let answer = wire.call(method, params.clone()).await;
        lines.push(format!(
            "{method} {} → {}",
            masked(&params.to_string()),
            masked(&answer)
        ));
    }
}

/// Opens a session and waits until everything about it has been said.
async fn open(wire: &mut Wire, model: SocketAddr, id: &str, more: Value) {
    wire.call("session.create", opened(model, id, more)).await;
    wire.quiet().await;
}

/// Sends a prompt and waits for the end of the turn; returns what came.
async fn turn(wire: &mut Wire, id: &str, prompt: &str) -> Lines {
    let mark = wire.mark();
    wire.call("session.send", json!({"sessionId": id, "prompt": prompt}))
        .await;
    wire.event(mark, "session.idle").await;
    wire.quiet().await;
    wire.since(mark)
}

const WEATHER: &str = r#"[{"name":"NAME","description":"w","parameters":{"type":"object","properties":{"city":{"type":"string"}}},"skipPermission":SKIP}]"#;

fn tools(name: &str, skip_permission: bool) -> Value {
    let text = WEATHER
        .replace("NAME", name)
        .replace("SKIP", &skip_permission.to_string());
    json!({"tools": serde_json::from_str::<Value>(&text).expect("JSON")})
}

/// Answers a request of the server.
async fn respond(wire: &mut Wire, body: &str, result: Value) {
    let request: Value = serde_json::from_str(body).expect("JSON");
    let answer = json!({"jsonrpc": "2.0", "id": request["id"], "result": result});
    wire.frame(answer.to_string().as_bytes()).await;
}
