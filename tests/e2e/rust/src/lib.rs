//! How the Rust SDK's tests reach the real parts that `node pool.mjs run` has started: addresses
//! from its environment, session parameters, and the question which CLI has a session open.
//! It must not start a process or know of Taxiway.

use std::{sync::Arc, time::Duration};

use github_copilot_sdk::{
    Client, Error,
    handler::ApproveAllHandler,
    session::Session,
    types::{MessageOptions, ProviderConfig, ResumeSessionConfig, SessionConfig, SessionId},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

/// No turn of these tests takes longer.
pub const TURN: Duration = Duration::from_secs(20);

fn environment(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: use `node pool.mjs run`"))
}

/// True if the address is Taxiway's, false if it is one CLI's.
pub fn is_taxiway() -> bool {
    environment("TAXIWAY_E2E_MODE") == "taxiway"
}

/// A session id that is unique over runs and readable in logs.
pub fn new_id(word: &str) -> String {
    format!("{word}-{}", uuid::Uuid::new_v4())
}

/// Connects the SDK to the server under test. `Client::start` would do the same, but exists only
/// with a feature whose build script downloads a CLI.
pub async fn connect() -> Result<Client, Error> {
    let address = environment("TAXIWAY_E2E_ADDRESS");
    let stream = TcpStream::connect(address)
        .await
        .expect("the server accepts");
    let (reader, writer) = stream.into_split();
    let client = Client::from_streams(reader, writer, std::env::temp_dir())?;
    client.verify_protocol_version().await?;
    Ok(client)
}

fn provider(session_id: &str) -> ProviderConfig {
    ProviderConfig::new(format!("{}/v1", environment("TAXIWAY_E2E_MODEL")))
        .with_provider_type("openai")
        .with_api_key(session_id)
}

/// Session parameters: a model key of its own per session, every permission approved.
pub fn config(session_id: &str) -> SessionConfig {
    SessionConfig::default()
        .with_session_id(session_id)
        .with_model("scripted")
        .with_streaming(true)
        .with_provider(provider(session_id))
        .with_permission_handler(Arc::new(ApproveAllHandler))
}

/// The same for a resume.
pub fn resume(session_id: &str) -> ResumeSessionConfig {
    ResumeSessionConfig::new(SessionId::from(session_id))
        .with_model("scripted")
        .with_streaming(true)
        .with_provider(provider(session_id))
        .with_permission_handler(Arc::new(ApproveAllHandler))
}

/// The final text of a prompt's turn.
pub async fn ask(session: &Session, prompt: &str) -> Result<String, Error> {
    let options = MessageOptions::new(prompt).with_wait_timeout(TURN);
    let event = session.send_and_wait(options).await?;
    let content = event.as_ref().and_then(|event| event.data.get("content"));
    Ok(content
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned())
}

/// Ports of the CLIs that have the session open: only such a one answers `session.mode.get`.
pub async fn owners(session_id: &str) -> Vec<u16> {
    let mut found = Vec::new();
    for port in environment("TAXIWAY_E2E_BACKENDS").split(',') {
        let port = port.parse().expect("a port");
        if answers(port, session_id).await.expect("the CLI answers") {
            found.push(port);
        }
    }
    found
}

async fn answers(port: u16, session_id: &str) -> std::io::Result<bool> {
    let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await?);
    let params = json!({ "sessionId": session_id });
    let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "session.mode.get", "params": params });
    let body = call.to_string();
    let frame = format!("Content-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(frame.as_bytes()).await?;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let length = line
            .trim()
            .strip_prefix("Content-Length: ")
            .and_then(|n| n.parse().ok());
        let mut body = vec![0; length.expect("a frame's head")];
        stream.read_line(&mut line).await?;
        stream.read_exact(&mut body).await?;
        let message: Value = serde_json::from_slice(&body)?;
        if message.get("method").is_none() {
            return Ok(message.get("result").is_some());
        }
    }
}
