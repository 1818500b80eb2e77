//! One control connection to a backend: calls out, answers and lifecycle events in.
//! Keeps no judgement (see `health`) and attaches to no session, so what it reads is small talk:
//! everything that is neither an answer nor `session.lifecycle` is swallowed.

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes, BytesMut};
use serde::Deserialize;
use serde_json::value::RawValue;
use socket2::{SockRef, TcpKeepalive};
use thiserror::Error;
use tokio::{io::AsyncWrite, net::TcpStream};
use tokio_util::io::poll_read_buf;

use crate::{
    core::{id::SessionId, proxy_header::Source},
    transport::{ConnectError, Stream, Transport},
};

/// Largest header block that is taken from a backend, in bytes.
const MAX_HEADER: usize = 8 << 10;
/// Largest body: the session list of a disk with some 100,000 sessions.
const MAX_BODY: usize = 64 << 20;
/// Beyond this, what a header announces is no length.
const ABSURD_BODY: usize = 1 << 40;
/// Bytes of an over-long body that are looked at for the `id`, which CLIs write in front.
const ID_WITHIN: usize = 256;
/// Calls that may await their answers.
const MAX_PENDING: usize = 1024;
/// Bytes that may await a backend that does not read.
const MAX_OUTBOX: usize = 4 << 20;
/// Room that is kept for reading while nothing big comes.
const READ_ROOM: usize = 16 << 10;

/// Why a connection came to its end.
#[derive(Debug, Error)]
pub(super) enum LinkError {
    /// The backend closed it.
    #[error("closed by the backend")]
    Closed,
    /// The backend closed it inside a frame.
    #[error("closed by the backend in the middle of a frame")]
    Cut,
    /// The network did.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The backend does not speak the protocol.
    #[error("{0}")]
    Violation(&'static str),
}

/// A call that could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("too much is waiting for this backend already")]
pub(super) struct LinkFull;

/// What a backend answered.
#[derive(Clone, Debug)]
pub enum Answer {
    /// `result`, as written by the backend.
    Result(Box<RawValue>),
    /// `error`.
    Error {
        /// `error.code`
        code: i64,
        /// `error.message`
        message: String,
        /// The whole error object, as written by the backend.
        raw: Box<RawValue>,
    },
}

/// What came in. `P` is what the owner of the connection attached to its call.
#[derive(Debug)]
pub(super) enum Incoming<P> {
    /// The answer to a call.
    Answer {
        /// As given to [`Link::call`].
        purpose: P,
        answer: Answer,
        /// Since the call.
        took: Duration,
    },
    /// A session appeared, changed, or went.
    Lifecycle {
        /// `session.created`, `session.updated`, `session.deleted`.
        kind: String,
        session: SessionId,
        /// The whole body.
        body: Bytes,
    },
    /// Some other frame: a sign of life.
    Other,
}

struct Pending<P> {
    purpose: P,
    sent: Instant,
}

/// An open connection and the calls on it.
pub(super) struct Link<P> {
    stream: Stream,
    inbox: BytesMut,
    outbox: BytesMut,
    /// Length of the body that is being read, once its header is complete.
    body: Option<usize>,
    /// Bytes that are still to come of a body that is too long to be kept.
    skip: usize,
    next_id: u64,
    pending: HashMap<u64, Pending<P>>,
    /// Whether an entry of `pending` is still of interest to anybody.
    is_wanted: fn(&P) -> bool,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(default)]
    method: Option<String>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct LifecycleParams {
    #[serde(rename = "type")]
    kind: String,
    #[serde(rename = "sessionId")]
    session: String,
}

#[derive(Deserialize)]
struct ErrorObject {
    code: i64,
    #[serde(default)]
    message: String,
}

/// Connects; `keepalive` is the time before the first probe of an idle connection.
/// Waits as long as the system does: the caller sets the limit.
pub(super) async fn connect(
    address: &str,
    keepalive: Option<Duration>,
    transport: &Transport,
) -> Result<Stream, ConnectError> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(ConnectError::Tcp)?;
    prepare(&stream, keepalive).map_err(ConnectError::Tcp)?;
    // It is Taxiway's own, no client's.
    transport.secure(stream, address, Source::Own).await
}

fn prepare(stream: &TcpStream, keepalive: Option<Duration>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    if let Some(time) = keepalive {
        let probes = TcpKeepalive::new()
            .with_time(time)
            .with_interval(time / 4 + SECOND);
        socket.set_tcp_keepalive(&probes)?;
    }
    // What was written and is not acknowledged for so long will not be.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(())
}

const SECOND: Duration = Duration::from_secs(1);
/// Unacknowledged data for so long ends the connection.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

impl<P> Link<P> {
    /// Over a fresh connection. `is_wanted` tells which calls may be forgotten when too many are
    /// pending.
    pub(super) fn new(stream: Stream, is_wanted: fn(&P) -> bool) -> Self {
        Self {
            stream,
            inbox: BytesMut::new(),
            outbox: BytesMut::new(),
            body: None,
            skip: 0,
            next_id: 1,
            pending: HashMap::new(),
            is_wanted,
        }
    }

    /// Whether one more call may be queued. Forgets what nobody waits for any more if need be.
    pub(super) fn has_room(&mut self) -> bool {
        if self.pending.len() >= MAX_PENDING {
            let is_wanted = self.is_wanted;
            self.pending.retain(|_, p| is_wanted(&p.purpose));
        }
        self.pending.len() < MAX_PENDING && self.outbox.len() < MAX_OUTBOX
    }

    /// What the calls without an answer were for. They are forgotten.
    pub(super) fn take_pending(&mut self) -> impl Iterator<Item = P> {
        std::mem::take(&mut self.pending)
            .into_values()
            .map(|pending| pending.purpose)
    }

    /// Queues a call; `params` is a JSON text.
    pub(super) fn call(
        &mut self,
        method: &str,
        params: &str,
        purpose: P,
        now: Instant,
    ) -> Result<(), (LinkFull, P)> {
        if !self.has_room() || self.outbox.len() + params.len() > MAX_OUTBOX {
            return Err((LinkFull, purpose));
        }
        let id = self.next_id;
        self.next_id += 1;
        let method = serde_json::Value::from(method);
        self.queue(&format!(
            r#"{{"jsonrpc":"2.0","id":{id},"method":{method},"params":{params}}}"#
        ));
        self.pending.insert(id, Pending { purpose, sent: now });
        Ok(())
    }

    /// What came with the last read and was not taken yet.
    pub(super) fn next_of_read(&mut self, now: Instant) -> Result<Option<Incoming<P>>, LinkError> {
        while let Some(body) = self.cut()? {
            if let Some(incoming) = self.take(body, now)? {
                return Ok(Some(incoming));
            }
        }
        Ok(None)
    }

    /// Reads and writes until something comes in. Cancel-safe.
    pub(super) async fn next(
        &mut self,
        now: impl Fn() -> Instant,
    ) -> Result<Incoming<P>, LinkError> {
        loop {
            if let Some(incoming) = self.next_of_read(now())? {
                return Ok(incoming);
            }
            self.inbox.reserve(READ_ROOM);
            if std::future::poll_fn(|task| self.poll_io(task)).await? == 0 {
                let whole = self.inbox.is_empty() && self.body.is_none() && self.skip == 0;
                return Err(if whole {
                    LinkError::Closed
                } else {
                    LinkError::Cut
                });
            }
        }
    }

    /// Writes what is queued, and reads: how many bytes came.
    fn poll_io(&mut self, task: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut written = Ok(());
        while !self.outbox.is_empty() && written.is_ok() {
            match Pin::new(&mut self.stream).poll_write(task, &self.outbox) {
                Poll::Ready(Ok(0)) => written = Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(n)) => self.outbox.advance(n),
                Poll::Ready(Err(error)) => written = Err(error),
                Poll::Pending => break,
            }
        }
        // What the backend said before it left counts, though it takes nothing any more.
        let read = poll_read_buf(Pin::new(&mut self.stream), task, &mut self.inbox);
        match (read, written) {
            (Poll::Pending, Err(error)) => Poll::Ready(Err(error)),
            (read, _) => read,
        }
    }

    /// Writes what is queued as far as the socket takes it without waiting.
    pub(super) fn flush(&mut self) {
        while !self.outbox.is_empty() {
            match self.stream.try_write(&self.outbox) {
                Ok(n) if n > 0 => self.outbox.advance(n),
                // Errors show up again in `next`, which then ends the connection.
                Ok(_) | Err(_) => return,
            }
        }
    }

    fn queue(&mut self, body: &str) {
        self.outbox
            .extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
        self.outbox.extend_from_slice(body.as_bytes());
    }

    /// The next complete body.
    fn cut(&mut self) -> Result<Option<Bytes>, LinkError> {
        self.discard();
        if self.skip > 0 {
            return Ok(None);
        }
        if self.body.is_none() {
            let Some((header, length)) = read_header(&self.inbox)? else {
                return Ok(None);
            };
            self.inbox.advance(header);
            self.body = Some(length);
        }
        match self.body {
            Some(length) if length > MAX_BODY => {
                if self.inbox.len() >= ID_WITHIN {
                    // Only this answer is lost: dropping what waits for it tells its asker.
                    let id = leading_id(&self.inbox[..ID_WITHIN]);
                    drop(id.and_then(|id| self.pending.remove(&id)));
                    self.body = None;
                    self.skip = length;
                    self.discard();
                }
                Ok(None)
            }
            Some(length) if self.inbox.len() >= length => {
                self.body = None;
                Ok(Some(self.inbox.split_to(length).freeze()))
            }
            Some(_) | None => Ok(None),
        }
    }

    /// Throws away what has come of an over-long body.
    fn discard(&mut self) {
        let gone = self.skip.min(self.inbox.len());
        self.inbox.advance(gone);
        self.skip -= gone;
    }

    fn take(&mut self, body: Bytes, now: Instant) -> Result<Option<Incoming<P>>, LinkError> {
        let frame: Envelope<'_> = serde_json::from_slice(&body)
            .map_err(|_| LinkError::Violation("sent a body that is not a JSON-RPC message"))?;
        if let Some(method) = &frame.method {
            if let Some(id) = frame.id {
                // Nothing is attached or registered here, so nothing can be asked of us.
                let id = id.get();
                let error = r#"{"code":-32601,"message":"Unhandled method"}"#;
                if self.outbox.len() + id.len() <= MAX_OUTBOX {
                    self.queue(&format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#));
                }
                return Ok(Some(Incoming::Other));
            }
            if method != "session.lifecycle" {
                return Ok(Some(Incoming::Other));
            }
            let params = frame.params.map_or("null", RawValue::get);
            let Ok(LifecycleParams { kind, session }) = serde_json::from_str(params) else {
                return Ok(Some(Incoming::Other));
            };
            return Ok(Some(Incoming::Lifecycle {
                kind,
                session: session.into(),
                body,
            }));
        }
        let id = frame.id.and_then(|id| id.get().parse::<u64>().ok());
        let Some(id) = id.filter(|id| (1..self.next_id).contains(id)) else {
            return Err(LinkError::Violation("answered a call that was never made"));
        };
        let answer = match (frame.result, frame.error) {
            (_, Some(error)) => {
                let Ok(ErrorObject { code, message }) = serde_json::from_str(error.get()) else {
                    return Err(LinkError::Violation("sent an error without a code"));
                };
                Answer::Error {
                    code,
                    message,
                    raw: error.to_owned(),
                }
            }
            (Some(result), None) => Answer::Result(result.to_owned()),
            // `Option` takes `"result":null` for none; the CLI answers some calls with it.
            (None, None) => Answer::Result(RawValue::NULL.to_owned()),
        };
        // An id of the past: given up meanwhile.
        let Some(Pending { purpose, sent }) = self.pending.remove(&id) else {
            return Ok(Some(Incoming::Other));
        };
        let took = now.saturating_duration_since(sent);
        Ok(Some(Incoming::Answer {
            purpose,
            answer,
            took,
        }))
    }
}

/// The number behind the first `"id":` in the beginning of a body.
fn leading_id(start: &[u8]) -> Option<u64> {
    let at = memchr::memmem::find(start, br#""id":"#)? + br#""id":"#.len();
    let digits = start[at..]
        .iter()
        .take_while(|b| b.is_ascii_digit())
        .count();
    std::str::from_utf8(&start[at..at + digits])
        .ok()?
        .parse()
        .ok()
}

/// Length of a complete header block and of the body that it announces.
fn read_header(bytes: &[u8]) -> Result<Option<(usize, usize)>, LinkError> {
    let Some(end) = memchr::memmem::find(&bytes[..bytes.len().min(MAX_HEADER)], b"\r\n\r\n") else {
        return if bytes.len() >= MAX_HEADER {
            Err(LinkError::Violation("sent a header without an end"))
        } else {
            Ok(None)
        };
    };
    let mut length = None;
    for line in bytes[..end].split(|&b| b == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let Some(colon) = memchr::memchr(b':', line) else {
            return Err(LinkError::Violation("sent a header line without a colon"));
        };
        if line[..colon].eq_ignore_ascii_case(b"Content-Length") {
            length = std::str::from_utf8(&line[colon + 1..])
                .ok()
                .and_then(|text| text.trim().parse::<usize>().ok());
        }
    }
    match length {
        Some(length) if length > ABSURD_BODY => {
            Err(LinkError::Violation("announced a frame beyond all bounds"))
        }
        Some(length) => Ok(Some((end + 4, length))),
        None => Err(LinkError::Violation("sent a frame without a length")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_backends_write_them() {
        let table: [(&str, Option<(usize, usize)>); 7] = [
            ("", None),
            ("Content-Le", None),
            ("Content-Length: 12\r\n", None),
            ("Content-Length: 12\r\n\r\n", Some((22, 12))),
            ("content-length:0\r\n\r\nrest", Some((20, 0))),
            (
                "Content-Type: x\r\nContent-Length: 7\r\n\r\n",
                Some((38, 7)),
            ),
            // The last one wins, as in the server.
            (
                "Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
                Some((40, 2)),
            ),
        ];
        for (text, expected) in table {
            assert_eq!(read_header(text.as_bytes()).unwrap(), expected, "{text:?}");
        }
    }

    #[test]
    fn an_answer_is_known_by_the_beginning_of_its_body() {
        for (start, id) in [
            (r#"{"jsonrpc":"2.0","id":17,"result":{"#, Some(17)),
            (r#"{"jsonrpc":"2.0","id":"x","result":{"#, None),
            (r#"{"jsonrpc":"2.0","method":"session.event""#, None),
            (r#"{"id":99999999999999999999999"#, None),
        ] {
            assert_eq!(leading_id(start.as_bytes()), id, "{start}");
        }
    }

    #[test]
    fn what_is_no_header_is_a_violation() {
        let endless = "x".repeat(MAX_HEADER);
        for text in [
            "HTTP/1.1 200 OK\r\n\r\n",
            "Content-Length: -1\r\n\r\n",
            "Content-Length: x\r\n\r\n",
            "Content-Length:\r\n\r\n",
            "Content-Type: x\r\n\r\n",
            "\r\n\r\n",
            "Content-Length: 9999999999999\r\n\r\n",
            "Content-Length: 99999999999999999999999999\r\n\r\n",
            &endless,
        ] {
            let read = read_header(text.as_bytes());
            assert!(
                matches!(read, Err(LinkError::Violation(_))),
                "{text:?}: {read:?}"
            );
        }
    }
}
