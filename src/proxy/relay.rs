//! The layer-4 choice (`routing.granularity = "connection"`): frames are read only until the first
//! that gives a key, then bytes are relayed to that backend, whatever they are.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::{Instant, SystemTime},
};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Rules, Shared, front, hub::Message};
use crate::{
    core::{
        connect,
        event::{ClosedBy, Direction, Event, FrameKind, NotAdmitted},
        frame::{Cut, Cutter, FrameError},
        id::{BackendName, ConnectionId, SessionId},
        locate::Refusal,
        proxy_header::Source,
        reply::{self, ProxyError},
        route::{self, Class},
        scan::{self, Kind},
    },
    transport::{Halt, Leg, Stream, Transport, files, splice},
};

/// What the first frames have led to.
enum Greeting {
    /// Relay; the bytes so far go first.
    Route(Route, Vec<u8>),
    /// The connection ends.
    End(ClosedBy, String),
}

/// Where a connection is to be relayed to.
struct Route {
    /// Gives the backend.
    key: String,
    session: Option<SessionId>,
    /// Of the client's `connect`.
    options: Box<connect::Options>,
}

/// How far a connection has come.
#[derive(Debug, Default)]
struct Progress {
    /// Its first frame has come.
    opened: AtomicBool,
    /// Its bytes are relayed.
    routed: AtomicBool,
    /// What it was instead of a frame.
    not_admitted: OnceLock<NotAdmitted>,
}

/// Runs one client connection to its end.
pub(super) async fn run(shared: Arc<Shared>, id: ConnectionId, client: SocketAddr, stream: Stream) {
    let observer = shared.observer.clone();
    let opened = Instant::now();
    observer.metrics().downstream_opened();
    let mailbox = shared.hub.join(id);
    let rules = shared.rules.load_full();
    let mut stream = stream;
    let progress = Progress::default();
    let (closed_by, reason) = tokio::select! {
        ended = serve(&shared, &rules, id, client, &mut stream, &progress) => ended,
        reason = shut_down(&mailbox, &progress.routed) => (ClosedBy::Operator, reason.to_owned()),
    };
    shared.hub.leave(id);
    observer.metrics().downstream_closed();
    if !progress.opened.load(Ordering::Relaxed) {
        let why = progress.not_admitted.get().copied();
        let why = why.unwrap_or_else(|| front::came_to_nothing(closed_by, &reason));
        shared.doorman.book.note(&observer, client, (why, reason));
        return;
    }
    observer.record(&Event::ConnectionClosed {
        connection: id,
        client,
        closed_by,
        reason: reason.into(),
        duration: opened.elapsed(),
    });
}

/// Bytes say nothing of turns, so a relayed connection lives through a drain and ends with it. One
/// that is not relayed yet has nothing to lose.
async fn shut_down(mailbox: &super::hub::Mailbox, routed: &AtomicBool) -> &'static str {
    std::future::poll_fn(|task| {
        loop {
            match mailbox.poll_next(task) {
                Poll::Ready(Message::Shutdown) => return Poll::Ready("Taxiway is shutting down"),
                Poll::Ready(Message::Drain) if !routed.load(Ordering::Relaxed) => {
                    return Poll::Ready("drained");
                }
                Poll::Ready(_) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await
}

async fn serve(
    shared: &Shared,
    rules: &Arc<Rules>,
    id: ConnectionId,
    peer: SocketAddr,
    stream: &mut Stream,
    progress: &Progress,
) -> (ClosedBy, String) {
    // On the heap, as long as they take: a connection that is relayed needs no room for how it began.
    let front = Front::new(shared, rules, id, peer, progress);
    let greeting = match Box::pin(front.greet(stream)).await {
        Ok(greeting) => greeting,
        Err(error) => return (ClosedBy::Client, error.to_string()),
    };
    let (route, read) = match greeting {
        Greeting::Route(route, read) => (route, read),
        Greeting::End(closed_by, reason) => return (closed_by, reason),
    };
    let reached = Box::pin(reach(shared, rules, id, (peer, stream.local_addr()), route)).await;
    let Some((backend, mut upstream)) = reached else {
        return (ClosedBy::Proxy, "no usable backend".to_owned());
    };
    progress.routed.store(true, Ordering::Relaxed);
    let metrics = shared.observer.metrics().backend(&backend);
    metrics.upstream_opened();
    let ended = relay(shared, rules, id, &backend, stream, &mut upstream, read).await;
    metrics.upstream_closed();
    ended
}

/// A connection to the backend of this key, or to the next one: what cannot be reached is passed over,
/// since nothing of the client's has left yet. None if there is no other one.
async fn reach(
    shared: &Shared,
    rules: &Arc<Rules>,
    id: ConnectionId,
    (peer, local): (SocketAddr, io::Result<SocketAddr>),
    route: Route,
) -> Option<(BackendName, Stream)> {
    let snapshot = shared.pool.snapshot();
    let mut pool = (*snapshot).clone();
    loop {
        let (backend, reason) = shared.store.place(rules.policy, &route.key, &pool)?;
        let transport = shared.pool.transport(&backend);
        let source = match &local {
            Ok(to) if transport.proxy_protocol.is_some() => Source::Client {
                from: peer,
                to: *to,
            },
            Ok(_) | Err(_) => Source::Own,
        };
        let options = &route.options;
        match open(rules, &snapshot, &backend, &transport, source, options).await {
            Ok(upstream) => {
                if let Some(session) = route.session {
                    shared.observer.record(&Event::Placement {
                        connection: id,
                        session,
                        backend: backend.clone(),
                        reason,
                    });
                }
                return Some((backend, upstream));
            }
            Err(error) => {
                if files::is_own_want(&error) {
                    shared.observer.metrics().limit_hit(files::OPEN_FILES);
                } else {
                    shared.pool.report_unreachable(&backend);
                }
                pool.backends
                    .change(|all| all.retain(|b| b.name != backend));
            }
        }
    }
}

async fn relay(
    shared: &Shared,
    rules: &Rules,
    id: ConnectionId,
    backend: &BackendName,
    client: &mut Stream,
    upstream: &mut Stream,
    first: Vec<u8>,
) -> (ClosedBy, String) {
    let metrics = shared.observer.metrics();
    let activity = shared.pool.activity(backend);
    let stall = rules.write_stall;
    let broken = |error: io::Error| (ClosedBy::Backend, format!("{backend}: {error}"));
    match tokio::time::timeout(stall, upstream.write_all(&first)).await {
        Ok(Ok(())) => metrics.add_bytes(Direction::ClientToBackend, first.len() as u64),
        Ok(Err(error)) => return broken(error),
        Err(_) => return broken(io::ErrorKind::TimedOut.into()),
    }
    drop(first);
    let joined = splice(client, upstream, stall, |leg, n| match leg {
        Leg::Forth => metrics.add_bytes(Direction::ClientToBackend, n),
        Leg::Back => {
            metrics.add_bytes(Direction::BackendToClient, n);
            if let Some(activity) = &activity {
                activity.mark();
            }
        }
    });
    // The end of one side is passed on; what the other still has to say is waited for.
    match joined.await {
        Ok(()) => (ClosedBy::Client, "client closed".to_owned()),
        Err(Halt::Second(error)) => broken(error),
        Err(Halt::SecondStalled) => broken(io::ErrorKind::TimedOut.into()),
        Err(Halt::First(error)) => (ClosedBy::Client, error.to_string()),
        Err(Halt::FirstStalled) => {
            let limit = "listener.write_stall";
            shared.observer.record(&Event::LimitHit {
                connection: Some(id),
                limit,
            });
            let why = "the client read nothing for listener.write_stall";
            (ClosedBy::Proxy, why.to_owned())
        }
    }
}

/// Connects to `backend` and does its handshake in the client's place.
async fn open(
    rules: &Rules,
    snapshot: &crate::core::snapshot::Snapshot,
    backend: &BackendName,
    transport: &Transport,
    source: Source,
    options: &connect::Options,
) -> io::Result<Stream> {
    let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
    let entry = snapshot.get(backend).ok_or_else(refused)?;
    let greet = async {
        let connected = transport.connect(&entry.address, rules.tcp_keepalive, source);
        let mut upstream = connected.await?;
        let params = connect::upstream_params(options, entry.token.as_ref());
        let mut hello = Vec::new();
        reply::request(&mut hello, b"0", "connect", &params);
        upstream.write_all(&hello).await?;
        let mut answers = Answers::new(rules);
        loop {
            let body = answers.next(&mut upstream).await?;
            let Ok(head) = scan::scan_backend(&body) else {
                return Err(refused());
            };
            match head.kind {
                Kind::Result => return Ok(upstream),
                Kind::Error => return Err(refused()),
                Kind::Request | Kind::Notification => {}
            }
        }
    };
    tokio::time::timeout(rules.aggregate_timeout, greet)
        .await
        .map_err(|_| refused())?
}

/// Frames of a backend during its handshake, read one by one so that nothing behind it is eaten.
struct Answers {
    cutter: Cutter,
}

impl Answers {
    fn new(rules: &Rules) -> Self {
        Self {
            cutter: Cutter::new(rules.mux.frame),
        }
    }

    async fn next(&mut self, stream: &mut Stream) -> io::Result<Vec<u8>> {
        let mut buffer = Vec::new();
        loop {
            // Byte by byte up to the header's end, then exactly the body: no byte of the next frame
            // may be taken, since it is the relay's.
            let want = match self.cutter.cut(&buffer) {
                Ok(Cut::Frame { body, .. }) => return Ok(buffer[body].to_vec()),
                Ok(Cut::Incomplete { total: Some(total) }) => total - buffer.len(),
                Ok(Cut::Incomplete { total: None }) => 1,
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            };
            let start = buffer.len();
            buffer.resize(start + want, 0);
            stream.read_exact(&mut buffer[start..]).await?;
        }
    }
}

/// The part that reads frames: up to the first that gives a key. It answers `connect`, `ping` and
/// what is no message.
struct Front<'a> {
    shared: &'a Shared,
    rules: &'a Rules,
    id: ConnectionId,
    peer: SocketAddr,
    progress: &'a Progress,
    options: connect::Options,
    /// To be written.
    answers: Vec<u8>,
    errors: u64,
}

impl<'a> Front<'a> {
    fn new(
        shared: &'a Shared,
        rules: &'a Rules,
        id: ConnectionId,
        peer: SocketAddr,
        progress: &'a Progress,
    ) -> Self {
        Self {
            shared,
            rules,
            id,
            peer,
            progress,
            options: connect::Options::default(),
            answers: Vec::new(),
            errors: 0,
        }
    }

    async fn greet(mut self, stream: &mut Stream) -> io::Result<Greeting> {
        let mut cutter = Cutter::new(self.rules.mux.frame);
        let mut buffer: Vec<u8> = Vec::new();
        let mut greeted = false;
        let mut partial_since = Instant::now();
        loop {
            match cutter.cut(&buffer) {
                Ok(Cut::Frame { body, .. }) => {
                    if !std::mem::replace(&mut greeted, true) {
                        self.open();
                    }
                    partial_since = Instant::now();
                    let end = body.end;
                    if let Some((key, session)) = self.key_of(&buffer[body]) {
                        let route = Route {
                            key,
                            session,
                            options: Box::new(self.options),
                        };
                        return Ok(Greeting::Route(route, buffer));
                    }
                    buffer.drain(..end);
                    stream.write_all(&self.answers).await?;
                    self.answers.clear();
                    continue;
                }
                Ok(Cut::Incomplete { .. }) => {}
                Err(error) => {
                    self.shared.observer.metrics().add_frames(
                        Direction::ClientToBackend,
                        FrameKind::Invalid,
                        1,
                    );
                    let (error, what) = (
                        framing_error(&error),
                        "the client sent something that is not a frame",
                    );
                    return self.end(stream, &error, what).await;
                }
            }
            let (limit, patience, what) = if greeted {
                (
                    "limits.frame_timeout",
                    self.rules.mux.frame_timeout,
                    "a frame did not complete within limits.frame_timeout",
                )
            } else {
                (
                    "listener.handshake_timeout",
                    self.rules.mux.handshake_timeout,
                    "no frame within listener.handshake_timeout",
                )
            };
            // A client that has said something may idle before its first session.
            let idle = greeted && buffer.is_empty();
            let read = stream.read_buf(&mut buffer);
            let n = if idle {
                let n = read.await?;
                partial_since = Instant::now();
                n
            } else {
                let deadline = partial_since + patience;
                match tokio::time::timeout_at(deadline.into(), read).await {
                    Ok(read) => read?,
                    Err(_) => {
                        let value = patience.as_millis() as u64;
                        let error = ProxyError::LimitExceeded { limit, value };
                        return self.end(stream, &error, what).await;
                    }
                }
            };
            if n == 0 {
                return Ok(Greeting::End(ClosedBy::Client, "client closed".to_owned()));
            }
            if !greeted
                && n == buffer.len()
                && let Some((reason, detail)) = front::stranger(&buffer)
            {
                let _first = self.progress.not_admitted.set(reason);
                return Ok(Greeting::End(ClosedBy::Proxy, detail.to_owned()));
            }
        }
    }

    /// Its first frame is here.
    fn open(&self) {
        self.progress.opened.store(true, Ordering::Relaxed);
        self.shared.observer.record(&Event::ConnectionOpened {
            connection: self.id,
            client: self.peer,
        });
    }

    /// Answers under no id, and ends.
    async fn end(
        mut self,
        stream: &mut Stream,
        error: &ProxyError,
        what: &str,
    ) -> io::Result<Greeting> {
        self.refuse(reply::NULL_ID, "", error);
        stream.write_all(&self.answers).await?;
        Ok(Greeting::End(ClosedBy::Proxy, what.to_owned()))
    }

    fn refuse(&mut self, token: &[u8], method: &str, error: &ProxyError) {
        self.errors += 1;
        let reference = (self.id.0 << 20) | (self.errors & 0xf_ffff);
        reply::error(&mut self.answers, token, error, reference);
        let observer = &self.shared.observer;
        if !self.progress.opened.load(Ordering::Relaxed) {
            // Its end says so, in a line that floods do not fill the log with.
            let metrics = observer.metrics();
            metrics.error(error.code());
            if let Some(limit) = error.limit() {
                metrics.limit_hit(limit);
            }
            return;
        }
        if let Some(limit) = error.limit() {
            observer.record(&Event::LimitHit {
                connection: Some(self.id),
                limit,
            });
        }
        observer.record(&Event::ErrorAnswered {
            reference,
            connection: self.id,
            method: method.into(),
            session: None,
            code: error.code(),
            message: error.logged().into(),
        });
    }

    /// The key that a frame gives; none if it was answered here.
    fn key_of(&mut self, body: &[u8]) -> Option<(String, Option<SessionId>)> {
        let head = match scan::scan(body) {
            Ok(head) => head,
            Err(reject) => {
                let token = reject
                    .id
                    .as_ref()
                    .map_or(reply::NULL_ID, |id| id.token().of(body));
                let error = if reject.code == -32700 {
                    ProxyError::Parse(reject.message())
                } else {
                    ProxyError::InvalidRequest(reject.message())
                };
                self.shared.observer.metrics().add_frames(
                    Direction::ClientToBackend,
                    FrameKind::Invalid,
                    1,
                );
                self.refuse(token, "", &error);
                return None;
            }
        };
        if let Some(session) = &head.session {
            let session = session.get(body);
            let key = self.rules.key_of(&session, None).to_owned();
            return Some((key, Some(SessionId::from(&*session))));
        }
        let method = head
            .method
            .map(|m| m.get(body).into_owned())
            .unwrap_or_default();
        let token = head
            .id
            .as_ref()
            .map_or(reply::NULL_ID, |id| id.token().of(body));
        if head.kind != Kind::Request {
            return None;
        }
        let class = route::classify(&method);
        if class == Class::Ping {
            let message = head.params.and_then(|p| ping_message(p.of(body)));
            let now = SystemTime::now();
            reply::pong(&mut self.answers, token, message.as_deref(), now);
            return None;
        }
        if class == Class::Connect {
            self.answer_connect(&head, body, token);
            return None;
        }
        // A connection without any key of its own is spread by its number.
        Some((self.id.to_string(), None))
    }

    fn answer_connect(&mut self, head: &scan::Head, body: &[u8], token: &[u8]) {
        let params = head
            .params
            .and_then(|p| serde_json::from_slice(p.of(body)).ok());
        let snapshot = self.shared.pool.snapshot();
        let facts = connect::Facts::of(&snapshot).ok_or(ProxyError::NotLocated {
            session: None,
            why: Refusal::NoBackend,
        });
        let accepted = connect::parse(params)
            .without_tokens()
            .and_then(|options| facts.map(|facts| (options, facts)));
        match accepted {
            Ok((accepted, facts)) => {
                let answer = connect::answer(&accepted, &facts);
                reply::result(&mut self.answers, token, &answer);
                self.options = accepted;
            }
            Err(error) => self.refuse(token, "connect", &error),
        }
    }
}

/// What the client is told of a header that cannot be taken.
fn framing_error(error: &FrameError) -> ProxyError {
    let (limit, value) = match error {
        FrameError::FrameTooLong { limit, .. } => ("limits.frame", *limit),
        FrameError::HeaderTooLong { limit, .. } => ("limits.header", *limit),
        FrameError::MissingContentLength
        | FrameError::BadContentLength { .. }
        | FrameError::MalformedHeader => return ProxyError::Parse(error.to_string()),
    };
    let value = value as u64;
    ProxyError::LimitExceeded { limit, value }
}

/// `params.message` of a ping, if it is a string.
fn ping_message(params: &[u8]) -> Option<String> {
    let params: serde_json::Value = serde_json::from_slice(params).ok()?;
    params.get("message")?.as_str().map(str::to_owned)
}
