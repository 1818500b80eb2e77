//! One look at a server from outside: `connect`, then `ping`. What `taxiway ping` does, and how a
//! taken port is told to be a CLI's. Keeps nothing open.

use std::{
    io,
    time::{Duration, Instant},
};

use serde::Deserialize;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    core::{
        connect::{self, Options},
        frame::{Cut, Cutter, FrameLimits},
        id::Secret,
        proxy_header::Source,
        reply,
    },
    transport::{ConnectError, Fault, Stream, Transport},
};

/// Answers larger than this are not a CLI's.
const LARGEST: usize = 1024 * 1024;

/// A server that answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pong {
    /// CLI version, if its `connect` told one.
    pub version: Option<String>,
    /// Version of its protocol.
    pub protocol_version: Option<u32>,
    /// Whether it wants a token that was not given: it lives all the same.
    pub wants_token: bool,
    /// From the ping's last byte out to its answer's last byte in.
    pub took: Duration,
}

/// Why there was no answer.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// No connection, or it broke.
    #[error("{0}")]
    Unreachable(#[from] io::Error),
    /// TLS with it failed.
    #[error("{0}")]
    Tls(Fault),
    /// Something accepts and does not answer: a stopped process does so.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// Something else lives there.
    #[error("what answers there is no Copilot CLI server")]
    Stranger,
    /// The token is wrong.
    #[error("it refuses the token: {0}")]
    Refused(String),
}

#[derive(Deserialize)]
struct Response {
    id: Option<u64>,
    result: Option<Answered>,
    error: Option<Complaint>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answered {
    protocol_version: Option<u32>,
    version: Option<String>,
}

#[derive(Deserialize)]
struct Complaint {
    code: i64,
    message: String,
}

/// Asks the server at `address` (`host:port`) whether it lives, over that transport.
///
/// # Errors
/// It does not, or not within `timeout`.
pub async fn ping(
    address: &str,
    transport: &Transport,
    token: Option<&Secret>,
    timeout: Duration,
) -> Result<Pong, ProbeError> {
    tokio::time::timeout(timeout, ask(address, transport, token))
        .await
        .map_err(|_| ProbeError::TimedOut(timeout))?
}

async fn ask(
    address: &str,
    transport: &Transport,
    token: Option<&Secret>,
) -> Result<Pong, ProbeError> {
    let connected = transport.connect(address, None, Source::Own).await;
    let mut stream = connected.map_err(|error| match error {
        ConnectError::Tls(fault) => ProbeError::Tls(fault),
        ConnectError::Tcp(error) | ConnectError::Broken(error) => error.into(),
    })?;
    let params = connect::upstream_params(&Options::of_control_connection(), token);
    let greeting = call(&mut stream, 0, "connect", &params).await?;
    if let Some(complaint) = &greeting.error
        && matches!(complaint.code, -32003..=-32001)
        && token.is_some()
    {
        return Err(ProbeError::Refused(complaint.message.clone()));
    }
    let asked = Instant::now();
    let pong = call(&mut stream, 1, "ping", "{}").await?;
    let took = asked.elapsed();
    let wants_token = pong.error.as_ref().is_some_and(|e| e.code == -32001);
    if pong.result.is_none() && !wants_token {
        return Err(ProbeError::Stranger);
    }
    let told = greeting.result;
    Ok(Pong {
        protocol_version: pong
            .result
            .and_then(|r| r.protocol_version)
            .or(told.as_ref().and_then(|t| t.protocol_version)),
        version: told.and_then(|t| t.version),
        wants_token,
        took,
    })
}

/// In TLS 1.3 a refused certificate shows in the first read.
fn told(error: io::Error) -> ProbeError {
    match Fault::of(&error) {
        Some(fault) => ProbeError::Tls(fault),
        None => error.into(),
    }
}

async fn call(
    stream: &mut Stream,
    id: u64,
    method: &str,
    params: &str,
) -> Result<Response, ProbeError> {
    let mut request = Vec::new();
    reply::request(&mut request, id.to_string().as_bytes(), method, params);
    stream.write_all(&request).await?;
    let mut cutter = Cutter::new(FrameLimits {
        header: 4096,
        frame: LARGEST,
    });
    let mut buffer = Vec::new();
    loop {
        match cutter.cut(&buffer) {
            Ok(Cut::Frame { body, .. }) => {
                let response = serde_json::from_slice::<Response>(&buffer[body.clone()]);
                buffer.drain(..body.end);
                // Notifications may come in between.
                if let Ok(response) = response
                    && response.id == Some(id)
                {
                    return Ok(response);
                }
            }
            Ok(Cut::Incomplete { .. }) => {
                let read = stream.read_buf(&mut buffer).await;
                if read.map_err(told)? == 0 {
                    return Err(ProbeError::Stranger);
                }
            }
            Err(_) => return Err(ProbeError::Stranger),
        }
    }
}
