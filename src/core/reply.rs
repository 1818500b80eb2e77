//! Every JSON text that Taxiway itself writes: answers, errors, injected events, its own requests.
//! Must not look into frames of peers, nor decide when something is said; relayed bodies never
//! pass through here.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::Serialize;

use super::{
    event::NotFound,
    id::{BackendName, SessionId},
    locate::Refusal,
    sharing,
};

pub use lost::{LostBy, sends_lost, turn_lost};

/// The id of an answer to a frame that carried none that could be read. Use it only for what
/// Taxiway refuses itself: a backend's `id:null` error is never relayed.
pub const NULL_ID: &[u8] = b"null";

/// `protocolVersion` of the protocol that Taxiway speaks.
pub const PROTOCOL_VERSION: u32 = 3;

/// Longest part of a peer's text (method, session id) quoted in one of our messages, in bytes.
const QUOTE_LIMIT: usize = 120;

/// An error that Taxiway makes. Display is the `message` of the JSON-RPC error.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProxyError {
    /// No usable backend for this call. Nothing was executed; the client may try again.
    #[error("{}", unavailable(.session.as_ref(), .backend.as_ref()))]
    BackendUnavailable {
        /// The session the call names, if it names one.
        session: Option<SessionId>,
        /// The backend that would be needed, if it must be that one.
        backend: Option<BackendName>,
    },
    /// Where the session is cannot be said, or where it is cannot be reached. Nothing was executed;
    /// the client may try again.
    #[error("{}", .why.explain(.session.as_ref().map(|s| Quote(s.as_str()))))]
    NotLocated {
        /// The session the call names, if it names one.
        session: Option<SessionId>,
        /// What stands in the way.
        why: Refusal,
    },
    /// There is no such session, or none that the client may see. Never said in these words, but in
    /// those of the method for a session that it does not know.
    #[error("Session not found for sessionId: {}", Quote(.session.as_str()))]
    Unseen {
        /// The session.
        session: SessionId,
        /// For operators.
        why: NotFound,
    },
    /// A client that shares a session wants to change it for the others.
    #[error(
        "{} is not allowed through this proxy: the session is shared with you, and {}",
        Quote(.method), sharing::refusal(.fields)
    )]
    NotForMembers {
        /// The method.
        method: String,
        /// The params that change something; none if the method as such does.
        fields: Vec<String>,
    },
    /// The backend went away with this call in flight.
    #[error(
        "Backend {backend} was lost while it worked on {}; the call may have been executed, so it \
         was not repeated: look at the session before you send it again", Quote(.method)
    )]
    BackendLost {
        /// The backend that was lost.
        backend: BackendName,
        /// Method of the call.
        method: String,
    },
    /// Somebody else's turn is running in the session.
    #[error(
        "Session is in use by another user: {}; try again when its turn has ended",
        Quote(.session.as_str())
    )]
    SessionBusy {
        /// The session.
        session: SessionId,
    },
    /// The turn that would be aborted is somebody else's.
    #[error(
        "The turn that runs in session {} is another user's: only that user may abort it",
        Quote(.session.as_str())
    )]
    TurnOfAnother {
        /// The session.
        session: SessionId,
    },
    /// A configured limit was reached.
    #[error(
        "Limit reached: {limit} is {value}; wait, use less at a time, or raise {limit} in the \
         configuration"
    )]
    LimitExceeded {
        /// Configuration key of the limit, such as `limits.frame`.
        limit: &'static str,
        /// Value in force, in the unit of the key (bytes, a count, milliseconds).
        value: u64,
    },
    /// A user has as much of something as he may, or wants it too fast.
    #[error(
        "Limit reached: {limit} is {value} for each user; use less at a time, or ask the operator for \
         more"
    )]
    OverCap {
        /// Configuration key of the limit, such as `limits.calls_per_second`.
        limit: &'static str,
        /// Value in force.
        value: u64,
        /// When it is worth to try again.
        retry_after: Duration,
    },
    /// Requests that wait inside Taxiway keep as many bytes as they may.
    #[error(
        "Too many bytes of requests wait for their turn on this connection: {value} may (limits.frame \
         and 1 MiB); wait for answers before you send more"
    )]
    TooMuchHeld {
        /// Bytes that may be kept.
        value: u64,
    },
    /// The method is not allowed through Taxiway.
    #[error("Method {} is not allowed through this proxy: {reason}", Quote(.method))]
    MethodDenied {
        /// The method.
        method: String,
        /// Why, and what to do instead.
        reason: &'static str,
    },
    /// A parameter is not allowed through Taxiway.
    #[error(
        "Method {} is not allowed through this proxy with the parameter {param}: the operator of \
         this proxy has denied it (access.deny_params)", Quote(.method)
    )]
    ParamDenied {
        /// The method.
        method: String,
        /// The parameter, as the configuration names it.
        param: Arc<str>,
    },
    /// The method is in no table, names no session by a known rule, and only known ones pass here.
    #[error(
        "Unhandled method {}: this proxy lets only methods pass that it knows; an operator may list \
         it under access.allow", Quote(.method)
    )]
    MethodUnlisted {
        /// The method.
        method: String,
    },
    /// Taxiway is shutting down.
    #[error("Taxiway is shutting down and takes no new work; connect again")]
    Draining,
    /// The client cancelled a call before it was forwarded.
    #[error("Request cancelled before it was forwarded")]
    Cancelled,
    /// Not JSON, or no frame at all. The text is the CLI's or the JSON parser's.
    #[error("{0}")]
    Parse(String),
    /// JSON, but no JSON-RPC message, or an id that is still in use.
    #[error("{0}")]
    InvalidRequest(String),
    /// No such method.
    #[error("Unhandled method {}", Quote(.method))]
    MethodNotFound {
        /// The method.
        method: String,
    },
    /// The params of a method that Taxiway answers itself do not fit.
    #[error("{0}")]
    InvalidParams(String),
    /// The call failed for a reason that the CLI gives in the message only.
    #[error("Request {} failed with message: {message}", Quote(.method))]
    Failed {
        /// The method.
        method: String,
        /// The CLI's own words for the reason.
        message: String,
    },
    /// Told to a backend: the client that was the process-wide provider is not there any more.
    #[error("The client that was the {place} has left")]
    ProviderLeft {
        /// Of what it was the provider, in the CLI's words.
        place: &'static str,
    },
    /// A token is needed and none was given yet.
    #[error("AUTHENTICATION_REQUIRED")]
    AuthenticationRequired,
    /// The token is wrong.
    #[error("AUTHENTICATION_FAILED")]
    AuthenticationFailed,
    /// A token was given, but none is configured.
    #[error("AUTHENTICATION_NOT_CONFIGURED")]
    AuthenticationNotConfigured,
}

impl ProxyError {
    /// A request whose id is still pending on its connection.
    pub fn duplicate_id(id: &[u8]) -> Self {
        Self::InvalidRequest(format!(
            "Request id {} is still in use on this connection; wait for its answer or use another",
            Quote(&String::from_utf8_lossy(id))
        ))
    }

    /// A body that is JSON, but none of the three shapes of JSON-RPC, in the CLI's words.
    pub fn not_a_message() -> Self {
        Self::InvalidRequest(
            "not a recognizable JSON-RPC request, notification, or response".to_owned(),
        )
    }

    /// A method on a session that no backend has, in the CLI's words for that method.
    pub fn session_not_found(method: &str, session: &str) -> Self {
        let message = match method {
            "session.getMessages" => format!("Session not found: {}", Quote(session)),
            "session.resume" => {
                format!(
                    "Failed to load session events: Session not found: {}",
                    Quote(session)
                )
            }
            _ => format!("Session not found for sessionId: {}", Quote(session)),
        };
        Self::Failed {
            method: method.to_owned(),
            message,
        }
    }

    /// The JSON-RPC code.
    pub fn code(&self) -> i32 {
        match self {
            Self::BackendUnavailable { .. } | Self::NotLocated { .. } => -32010,
            Self::BackendLost { .. } => -32011,
            Self::SessionBusy { .. } | Self::TurnOfAnother { .. } => -32012,
            Self::LimitExceeded { .. } | Self::OverCap { .. } | Self::TooMuchHeld { .. } => -32013,
            Self::MethodDenied { .. } | Self::ParamDenied { .. } | Self::NotForMembers { .. } => {
                -32014
            }
            Self::Draining => -32015,
            Self::Cancelled => -32800,
            Self::Parse(_) => -32700,
            Self::InvalidRequest(_) => -32600,
            Self::MethodNotFound { .. } | Self::MethodUnlisted { .. } => -32601,
            Self::InvalidParams(_) => -32602,
            Self::Failed { .. } | Self::ProviderLeft { .. } | Self::Unseen { .. } => -32603,
            Self::AuthenticationRequired => -32001,
            Self::AuthenticationFailed => -32002,
            Self::AuthenticationNotConfigured => -32003,
        }
    }

    /// The name of the code: `data.code`, and the label of `taxiway_errors_total`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::BackendUnavailable { .. } | Self::NotLocated { .. } => "BACKEND_UNAVAILABLE",
            Self::BackendLost { .. } => "BACKEND_LOST",
            Self::SessionBusy { .. } | Self::TurnOfAnother { .. } => "SESSION_BUSY",
            Self::LimitExceeded { .. } | Self::OverCap { .. } | Self::TooMuchHeld { .. } => {
                "LIMIT_EXCEEDED"
            }
            Self::MethodDenied { .. } | Self::ParamDenied { .. } | Self::NotForMembers { .. } => {
                "METHOD_DENIED"
            }
            Self::Draining => "DRAINING",
            Self::Cancelled => "CANCELLED",
            Self::Parse(_) => "PARSE_ERROR",
            Self::InvalidRequest(_) => "INVALID_REQUEST",
            Self::MethodNotFound { .. } | Self::MethodUnlisted { .. } => "METHOD_NOT_FOUND",
            Self::InvalidParams(_) => "INVALID_PARAMS",
            Self::Failed { .. } | Self::ProviderLeft { .. } | Self::Unseen { .. } => {
                "INTERNAL_ERROR"
            }
            Self::AuthenticationRequired => "AUTHENTICATION_REQUIRED",
            Self::AuthenticationFailed => "AUTHENTICATION_FAILED",
            Self::AuthenticationNotConfigured => "AUTHENTICATION_NOT_CONFIGURED",
        }
    }

    /// May the same call simply be sent again, unchanged, on the same or a new connection?
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::BackendUnavailable { .. }
            | Self::NotLocated { .. }
            | Self::SessionBusy { .. }
            | Self::TurnOfAnother { .. }
            | Self::LimitExceeded { .. }
            | Self::OverCap { .. }
            | Self::TooMuchHeld { .. }
            | Self::Draining => true,
            Self::BackendLost { .. }
            | Self::MethodDenied { .. }
            | Self::ParamDenied { .. }
            | Self::NotForMembers { .. }
            | Self::Unseen { .. }
            | Self::Cancelled
            | Self::Parse(_)
            | Self::InvalidRequest(_)
            | Self::MethodNotFound { .. }
            | Self::MethodUnlisted { .. }
            | Self::InvalidParams(_)
            | Self::Failed { .. }
            | Self::ProviderLeft { .. }
            | Self::AuthenticationRequired
            | Self::AuthenticationFailed
            | Self::AuthenticationNotConfigured => false,
        }
    }

    /// When it is worth to try again, in milliseconds, if that is known: `data.retry_after_ms`.
    fn retry_after(&self) -> Option<u64> {
        if let Self::OverCap { retry_after, .. } = self {
            let whole = retry_after.as_nanos().div_ceil(1_000_000);
            Some(u64::try_from(whole).unwrap_or(u64::MAX))
        } else {
            None
        }
    }

    /// Configuration key of the limit that was reached: `data.limit`.
    pub fn limit(&self) -> Option<&'static str> {
        if let Self::LimitExceeded { limit, .. } | Self::OverCap { limit, .. } = self {
            Some(limit)
        } else if let Self::TooMuchHeld { .. } = self {
            Some("limits.frame")
        } else {
            None
        }
    }
}

/// What an injected event says of itself. Real events carry a UUID v4, their time, and the id of
/// the event before them.
#[derive(Clone, Copy, Debug)]
pub struct Stamp<'a> {
    /// Random bits of the event's id; version and variant bits are set here.
    pub id: u128,
    /// When it was made.
    pub at: SystemTime,
    /// Id of the last event of this session that the client saw; none if it saw none.
    pub parent: Option<&'a str>,
}

/// Appends an error frame. `id` is the client's id as it stood in its frame ([`NULL_ID`] if there
/// was none); `reference` is the one in the log line.
pub fn error(out: &mut Vec<u8>, id: &[u8], error: &ProxyError, reference: u64) {
    framed(out, |body| {
        open(body, id, b"error");
        json(
            body,
            &ErrorBody {
                code: error.code(),
                message: &error.to_string(),
                data: ErrorDetail {
                    source: "taxiway",
                    code: error.name(),
                    retryable: error.is_retryable(),
                    reference: &reference.to_string(),
                    limit: error.limit(),
                    retry_after_ms: error.retry_after(),
                },
            },
        );
        body.push(b'}');
    });
}

/// Appends an error frame with the code, message and (if there is one) data of another peer's
/// error, as JSON texts.
pub fn relayed_error(out: &mut Vec<u8>, id: &[u8], error: &str) {
    framed(out, |body| {
        open(body, id, b"error");
        body.extend_from_slice(error.as_bytes());
        body.push(b'}');
    });
}

/// Appends a result frame. `result` must be one JSON value.
pub fn result(out: &mut Vec<u8>, id: &[u8], result: &str) {
    framed(out, |body| {
        open(body, id, b"result");
        body.extend_from_slice(result.as_bytes());
        body.push(b'}');
    });
}

/// Appends the answer to `ping`, as a CLI gives it: `pong: TEXT`, or `pong` without a text.
pub fn pong(out: &mut Vec<u8>, id: &[u8], message: Option<&str>, now: SystemTime) {
    let text = match message {
        Some(text) if !text.is_empty() => format!("pong: {text}"),
        Some(_) | None => "pong".to_owned(),
    };
    framed(out, |body| {
        open(body, id, b"result");
        json(
            body,
            &Pong {
                message: &text,
                timestamp: &humantime::format_rfc3339_nanos(now).to_string(),
                protocol_version: PROTOCOL_VERSION,
            },
        );
        body.push(b'}');
    });
}

/// Appends a `$/cancelRequest` for the call with this id.
pub fn cancel(out: &mut Vec<u8>, id: &[u8]) {
    framed(out, |body| {
        body.extend_from_slice(br#"{"jsonrpc":"2.0","method":"$/cancelRequest","params":{"id":"#);
        body.extend_from_slice(id);
        body.extend_from_slice(b"}}");
    });
}

/// Appends a request of Taxiway's own. `params` must be one JSON value.
pub fn request(out: &mut Vec<u8>, id: &[u8], method: &str, params: &str) {
    framed(out, |body| write_request(body, id, method, params));
}

/// The body of such a request.
pub fn request_body(id: &[u8], method: &str, params: &str) -> Vec<u8> {
    let mut body = Vec::with_capacity(params.len() + 96);
    write_request(&mut body, id, method, params);
    body
}

fn write_request(body: &mut Vec<u8>, id: &[u8], method: &str, params: &str) {
    body.extend_from_slice(br#"{"jsonrpc":"2.0","id":"#);
    body.extend_from_slice(id);
    body.extend_from_slice(br#","method":"#);
    json(body, &method);
    body.extend_from_slice(br#","params":"#);
    body.extend_from_slice(params.as_bytes());
    body.push(b'}');
}

/// `text` as a JSON string, quotes included.
pub fn quoted(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len() + 2);
    json(&mut out, &text);
    String::from_utf8(out).expect("serde_json writes UTF-8")
}

/// Params of a call that names one session and nothing else.
pub fn session_params(session: &str) -> String {
    format!(r#"{{"sessionId":{}}}"#, quoted(session))
}

/// Params that ask a session for the newest `max` events of a type in its log.
pub fn newest_events_params(session: &str, event: &str, max: usize) -> String {
    let (session, event) = (quoted(session), quoted(event));
    format!(
        r#"{{"sessionId":{session},"types":[{event}],"agentScope":"all","direction":"backward","max":{max}}}"#
    )
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    code: i32,
    message: &'a str,
    data: ErrorDetail<'a>,
}

#[derive(Serialize)]
struct ErrorDetail<'a> {
    source: &'a str,
    code: &'a str,
    retryable: bool,
    #[serde(rename = "ref")]
    reference: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Pong<'a> {
    message: &'a str,
    timestamp: &'a str,
    protocol_version: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EventParams<'a, D> {
    session_id: &'a str,
    event: EventBody<'a, D>,
}

/// In the order of a real event; `ephemeral` because the backend's history will not hold it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EventBody<'a, D> {
    #[serde(rename = "type")]
    kind: &'a str,
    data: &'a D,
    ephemeral: bool,
    id: &'a str,
    timestamp: &'a str,
    parent_id: Option<&'a str>,
}

fn event<D: Serialize>(out: &mut Vec<u8>, session: &str, kind: &str, data: &D, stamp: &Stamp<'_>) {
    framed(out, |body| {
        body.extend_from_slice(br#"{"jsonrpc":"2.0","method":"session.event","params":"#);
        json(
            body,
            &EventParams {
                session_id: session,
                event: EventBody {
                    kind,
                    data,
                    ephemeral: true,
                    id: &uuid(stamp.id),
                    timestamp: &humantime::format_rfc3339_millis(stamp.at).to_string(),
                    parent_id: stamp.parent,
                },
            },
        );
        body.push(b'}');
    });
}

/// 128 random bits as the text of a UUID v4.
fn uuid(bits: u128) -> String {
    let bits = bits & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-")
}

/// Starts an answer: all up to the value of `member`.
fn open(body: &mut Vec<u8>, id: &[u8], member: &[u8]) {
    body.extend_from_slice(br#"{"jsonrpc":"2.0","id":"#);
    body.extend_from_slice(id);
    body.extend_from_slice(b",\"");
    body.extend_from_slice(member);
    body.extend_from_slice(b"\":");
}

/// Lets `write` append a body and puts its header before it.
///
/// The header has exactly one form: the strictest SDKs take this case, this space, no other header.
fn framed(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    write(out);
    let header = format!("Content-Length: {}\r\n\r\n", out.len() - start);
    out.splice(start..start, header.into_bytes());
}

fn json(out: &mut Vec<u8>, value: &impl Serialize) {
    serde_json::to_writer(out, value).expect("plain structs of text and numbers serialize");
}

fn unavailable(session: Option<&SessionId>, backend: Option<&BackendName>) -> String {
    match (session, backend) {
        (Some(session), Some(backend)) => format!(
            "Session {} lives on backend {backend}, which is not available; try again when it is \
             back",
            Quote(session.as_str())
        ),
        (Some(session), None) => format!(
            "No backend is available for session {}; try again, or look at `taxiway status`",
            Quote(session.as_str())
        ),
        (None, Some(backend)) => format!(
            "Backend {backend} is not available and this call needs its answer; try again when it \
             is back"
        ),
        (None, None) => {
            "No backend is available; try again, or look at `taxiway status`".to_owned()
        }
    }
}

/// A peer's text cut to a bounded length at a character boundary.
struct Quote<'a>(&'a str);

impl fmt::Display for Quote<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() <= QUOTE_LIMIT {
            return f.write_str(self.0);
        }
        let end = (0..=QUOTE_LIMIT)
            .rev()
            .find(|&i| self.0.is_char_boundary(i))
            .unwrap_or(0);
        write!(f, "{}…", &self.0[..end])
    }
}

mod logged;
mod lost;

#[cfg(test)]
mod tests;
