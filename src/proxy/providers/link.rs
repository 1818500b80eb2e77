//! The connection to one backend over which Taxiway is its provider. Decides nothing: what a request
//! is and who is asked is `core::provider`'s.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ahash::RandomState;
use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};

use super::Inner;
use crate::{
    core::{
        connect,
        event::{Direction, FrameKind},
        frame::{Cut, Cutter, FrameLimits},
        id::BackendName,
        mux::BACKEND_FRAME,
        provider::{self, Exchange, Failure, Unasked},
        proxy_header::Source,
        reply::{self, ProxyError},
        route::{BackendClass, Provider, classify_backend},
        scan::{self, Head, Kind},
    },
    proxy::port::{Alive, Answer},
    transport::{Stream, files},
};

/// Bytes that may wait for a backend that does not read.
pub(super) const MAX_QUEUED: usize = 64 * 1024 * 1024;

/// What a command weighs besides its text.
const COMMAND: usize = 128;

/// Connect and handshake with a backend that is up take about a millisecond (PROTOCOL §9).
const HANDSHAKE: Duration = Duration::from_secs(5);

/// After a backend has refused a registration that is due, it is asked again.
const RETRY: Duration = Duration::from_secs(1);

/// Room for reading.
const READ_ROOM: usize = 16 * 1024;

/// Largest header block of a backend.
const MAX_HEADER: usize = 64 * 1024;

/// The id of the `connect` call; the others count on from here.
const CONNECT_ID: u64 = 0;

/// What is to be done over a link.
pub(super) enum Command {
    /// Register what is due.
    Prepare,
    /// Register a place for a claim.
    Register {
        kind: Provider,
        params: Arc<str>,
        reply: oneshot::Sender<Answer>,
    },
    /// A call of the client that holds a place.
    Call {
        method: String,
        params: String,
        /// The exchange that it is about, unless it is its last part.
        exchange: Option<Box<str>>,
        reply: oneshot::Sender<Answer>,
    },
    /// A frame: the answer to a request.
    Write(Vec<u8>),
    /// Nobody will answer.
    Fail(Failure, Unasked),
}

impl Command {
    fn weight(&self) -> usize {
        COMMAND
            + match self {
                Self::Prepare => 0,
                Self::Register { params, .. } => params.len(),
                Self::Call { method, params, .. } => method.len() + params.len(),
                Self::Write(frame) => frame.len(),
                Self::Fail(failure, _) => failure.id.as_ref().map_or(0, |id| id.len()),
            }
    }

    /// Whether it is meant for whatever process the backend is now; the others answer or continue
    /// what one process has begun.
    fn is_for_any_process(&self) -> bool {
        match self {
            Self::Prepare | Self::Register { .. } => true,
            Self::Call { .. } | Self::Write(_) | Self::Fail(..) => false,
        }
    }
}

/// A handle; the link ends with the last one.
#[derive(Clone)]
pub(super) struct Link {
    commands: mpsc::UnboundedSender<Command>,
    /// Weight of the commands that wait.
    queued: Arc<AtomicUsize>,
}

/// The other end of a [`Link`].
pub(super) struct Commands {
    commands: mpsc::UnboundedReceiver<Command>,
    queued: Arc<AtomicUsize>,
}

impl Link {
    pub(super) fn new() -> (Self, Commands) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let link = Self {
            commands: sender,
            queued: queued.clone(),
        };
        (
            link,
            Commands {
                commands: receiver,
                queued,
            },
        )
    }

    /// Queues a command; false, and nothing queued, if too much waits. What tells a backend that
    /// nobody will answer is always queued: there is one for each of a bounded number of requests.
    pub(super) fn send(&self, command: Command) -> bool {
        let weight = command.weight();
        let before = self.queued.fetch_add(weight, Ordering::AcqRel);
        let fits = before + weight <= MAX_QUEUED || matches!(command, Command::Fail(..));
        if !fits {
            self.queued.fetch_sub(weight, Ordering::AcqRel);
            return false;
        }
        self.commands.send(command).is_ok()
    }
}

impl Commands {
    async fn next(&mut self) -> Option<Command> {
        let command = self.commands.recv().await?;
        self.queued.fetch_sub(command.weight(), Ordering::AcqRel);
        Some(command)
    }

    fn next_now(&mut self) -> Option<Command> {
        let command = self.commands.try_recv().ok()?;
        self.queued.fetch_sub(command.weight(), Ordering::AcqRel);
        Some(command)
    }

    /// Takes out what waits, and keeps what any process of the backend may be told.
    fn drain(&mut self) -> Vec<Command> {
        std::iter::from_fn(|| self.next_now())
            .filter(Command::is_for_any_process)
            .collect()
    }
}

/// Connects when there is something to register, and stays connected.
pub(super) async fn run(inner: Arc<Inner>, backend: BackendName, mut commands: Commands) {
    while let Some(command) = commands.next().await {
        if !command.is_for_any_process() {
            continue;
        }
        let mut registrar = Registrar::new(&inner, &backend);
        let ended = match timeout(HANDSHAKE, registrar.open()).await {
            Ok(Ok(mut stream)) => {
                registrar.carry_out(command);
                for command in commands.drain() {
                    registrar.carry_out(command);
                }
                let ended = registrar.serve(&mut stream, &mut commands).await;
                inner.board().lost(&backend);
                ended
            }
            Ok(Err(error)) => {
                if files::is_own_want(&error) {
                    inner.limit_hit(files::OPEN_FILES);
                } else {
                    inner.pool.report_unreachable(&backend);
                }
                Err(error)
            }
            Err(_) => {
                inner.pool.report_unreachable(&backend);
                Err(io::ErrorKind::TimedOut.into())
            }
        };
        if let Err(error) = ended {
            tracing::debug!(target: "taxiway", %backend, %error, "provider connection ended");
        }
        // A claim that waited for this connection fails now, not after its patience.
        commands.drain();
    }
}

/// A call of ours that awaits its answer.
enum Pending {
    Register {
        kind: Provider,
        params: Arc<str>,
        reply: Option<oneshot::Sender<Answer>>,
    },
    Call {
        reply: oneshot::Sender<Answer>,
        exchange: Option<Box<str>>,
    },
    /// Nobody wants to know.
    Unwatched,
}

/// One connection to one process.
struct Registrar<'a> {
    inner: &'a Arc<Inner>,
    backend: &'a BackendName,
    activity: Option<Arc<dyn Alive>>,
    cutter: Cutter,
    input: BytesMut,
    out: BytesMut,
    next_id: u64,
    pending: HashMap<u64, Pending, RandomState>,
    /// Registrations that are due and were refused: when to ask again.
    refused: Vec<(Provider, Instant)>,
}

impl<'a> Registrar<'a> {
    fn new(inner: &'a Arc<Inner>, backend: &'a BackendName) -> Self {
        let limits = FrameLimits {
            header: MAX_HEADER,
            frame: BACKEND_FRAME,
        };
        Self {
            inner,
            backend,
            activity: inner.pool.activity(backend),
            cutter: Cutter::new(limits),
            input: BytesMut::new(),
            out: BytesMut::new(),
            next_id: CONNECT_ID + 1,
            pending: HashMap::default(),
            refused: Vec::new(),
        }
    }

    /// Connects and says `connect` with the backend's own token.
    async fn open(&mut self) -> io::Result<Stream> {
        let snapshot = self.inner.pool.snapshot();
        let entry = snapshot
            .get(self.backend)
            .ok_or(io::ErrorKind::AddrNotAvailable)?;
        let keepalive = self.inner.rules.load().tcp_keepalive;
        let transport = self.inner.pool.transport(self.backend);
        // It serves whichever client holds a place.
        let connected = transport.connect(&entry.address, keepalive, Source::Own);
        let mut stream = connected.await?;
        let params = connect::upstream_params(&connect::Options::default(), entry.token.as_ref());
        let mut hello = Vec::new();
        reply::request(
            &mut hello,
            CONNECT_ID.to_string().as_bytes(),
            "connect",
            &params,
        );
        stream.write_all(&hello).await?;
        loop {
            while let Some(body) = self.cut()? {
                let head = scan::scan_backend(&body).map_err(|_| invalid("answered garbage"))?;
                match head.kind {
                    Kind::Result => return Ok(stream),
                    Kind::Error => return Err(invalid("refused to connect")),
                    Kind::Request | Kind::Notification => {}
                }
            }
            self.read(&mut stream).await?;
        }
    }

    /// Until the connection ends, or the last handle of the link is gone.
    async fn serve(&mut self, stream: &mut Stream, commands: &mut Commands) -> io::Result<()> {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut stalled_at = Instant::now();
        loop {
            while let Some(body) = self.cut()? {
                self.handle(body);
            }
            let stall = self.inner.rules.load().write_stall;
            let idle = self.out.is_empty();
            self.input.reserve(READ_ROOM);
            tokio::select! {
                // What we owe goes out before more comes in.
                biased;
                written = writer.write_buf(&mut self.out), if !idle => {
                    if written? == 0 {
                        return Err(io::ErrorKind::WriteZero.into());
                    }
                    stalled_at = Instant::now();
                    if self.out.is_empty() {
                        self.out = BytesMut::new();
                    }
                }
                command = commands.next(), if self.out.len() < MAX_QUEUED => {
                    let Some(command) = command else { return Ok(()) };
                    self.carry_out(command);
                    if idle {
                        stalled_at = Instant::now();
                    }
                }
                read = reader.read_buf(&mut self.input), if self.out.len() < MAX_QUEUED => {
                    if read? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    self.seen();
                    if idle {
                        stalled_at = Instant::now();
                    }
                }
                () = tokio::time::sleep_until(stalled_at + stall), if !idle => {
                    self.inner.limit_hit("listener.write_stall");
                    return Err(invalid("read nothing for listener.write_stall"));
                }
            }
        }
    }

    async fn read(&mut self, stream: &mut Stream) -> io::Result<()> {
        self.input.reserve(READ_ROOM);
        if stream.read_buf(&mut self.input).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.seen();
        Ok(())
    }

    fn seen(&self) {
        if let Some(activity) = &self.activity {
            activity.mark();
        }
    }

    /// The next whole body.
    fn cut(&mut self) -> io::Result<Option<Bytes>> {
        match self.cutter.cut(&self.input) {
            Ok(Cut::Frame { body, .. }) => {
                Ok(Some(self.input.split_to(body.end).freeze().slice(body)))
            }
            Ok(Cut::Incomplete { .. }) => Ok(None),
            Err(error) => {
                self.inner
                    .pool
                    .report_violation(self.backend, "sent something that is no frame");
                Err(io::Error::new(io::ErrorKind::InvalidData, error))
            }
        }
    }

    // Towards the backend.

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Prepare => self.prepare(),
            Command::Register {
                kind,
                params,
                reply,
            } => {
                self.register(kind, params, Some(reply));
            }
            Command::Call {
                method,
                params,
                exchange,
                reply,
            } => {
                self.call(&method, &params, Pending::Call { reply, exchange });
            }
            Command::Write(frame) => self.out.extend_from_slice(&frame),
            Command::Fail(failure, why) => self.fail(failure, why),
        }
    }

    /// Registers what is due and not under way.
    fn prepare(&mut self) {
        let now = Instant::now();
        self.refused.retain(|(_, again)| *again > now);
        let due = self.inner.board().due(self.backend);
        for (kind, params) in due {
            let under_way = self
                .pending
                .values()
                .any(|p| matches!(p, Pending::Register { kind: other, .. } if *other == kind));
            if !under_way && !self.refused.iter().any(|(other, _)| *other == kind) {
                self.register(kind, params, None);
            }
        }
    }

    fn register(
        &mut self,
        kind: Provider,
        params: Arc<str>,
        reply: Option<oneshot::Sender<Answer>>,
    ) {
        let call = Pending::Register {
            kind,
            params: params.clone(),
            reply,
        };
        self.call(provider::method(kind), &params, call);
    }

    fn call(&mut self, method: &str, params: &str, pending: Pending) {
        let id = self.next_id;
        self.next_id += 1;
        let mut frame = Vec::with_capacity(params.len() + 128);
        reply::request(&mut frame, id.to_string().as_bytes(), method, params);
        self.out.extend_from_slice(&frame);
        self.pending.insert(id, pending);
    }

    fn fail(&mut self, failure: Failure, why: Unasked) {
        let error = why.error(failure.kind);
        if let Some(id) = &failure.id {
            self.refuse(id, &error);
        }
        if let Some(exchange) = &failure.exchange {
            let params = format!(
                r#"{{"requestId":{},"data":"","end":true,"error":{{"message":{},"code":"{}"}}}}"#,
                reply::quoted(exchange),
                reply::quoted(&error.to_string()),
                error.name(),
            );
            self.call(
                "llmInference.httpResponseChunk",
                &params,
                Pending::Unwatched,
            );
        }
    }

    fn refuse(&mut self, id: &[u8], error: &ProxyError) {
        let mut frame = Vec::new();
        reply::error(&mut frame, id, error, self.inner.observer.reference());
        self.out.extend_from_slice(&frame);
    }

    // From the backend.

    fn handle(&mut self, body: Bytes) {
        let Ok(head) = scan::scan_backend(&body) else {
            self.inner
                .pool
                .report_violation(self.backend, "sent what is no JSON-RPC message");
            return;
        };
        match head.kind {
            Kind::Request => self.handle_request(&head, &body),
            // What concerns sessions comes to those attached, over their own connections.
            Kind::Notification => {}
            Kind::Result => self.handle_answer(&head, &body, head.result, Answer::Result),
            Kind::Error => self.handle_answer(&head, &body, head.error, Answer::Error),
        }
    }

    fn handle_request(&mut self, head: &Head, body: &Bytes) {
        let (Some(id), Some(method)) = (&head.id, &head.method) else {
            return;
        };
        let id = id.token().of(body);
        let method = method.get(body);
        let BackendClass::Provider(kind) = classify_backend(method.as_bytes()) else {
            let method = method.into_owned();
            self.refuse(id, &ProxyError::MethodNotFound { method });
            return;
        };
        let request = head.places.request_id.map(|text| text.get(body));
        let exchange = match (&*method, request.as_deref()) {
            ("llmInference.httpRequestStart", Some(request)) => Exchange::Opens(request),
            ("llmInference.httpRequestChunk", Some(request)) if cancels(body) => {
                Exchange::Cancels(request)
            }
            ("llmInference.httpRequestChunk", Some(request)) => Exchange::Continues(request),
            _ => Exchange::Apart,
        };
        let metrics = self.inner.observer.metrics();
        metrics.add_frames(Direction::BackendToClient, FrameKind::Request, 1);
        metrics.add_bytes(Direction::BackendToClient, body.len() as u64);
        if let Err((why, failure)) = self.inner.relay(self.backend, kind, id, exchange, body) {
            self.fail(failure, why);
        }
    }

    fn handle_answer(
        &mut self,
        head: &Head,
        body: &[u8],
        value: Option<scan::Span>,
        answer: fn(String) -> Answer,
    ) {
        let id = match head.id {
            Some(scan::Id::Int(id, _)) => u64::try_from(id).ok(),
            Some(scan::Id::Str(_)) | None => None,
        };
        let Some(pending) = id.and_then(|id| self.pending.remove(&id)) else {
            self.inner
                .pool
                .report_violation(self.backend, "answered a call that it was not asked");
            return;
        };
        let text = value.map_or_else(
            || "null".to_owned(),
            |span| String::from_utf8_lossy(span.of(body)).into_owned(),
        );
        let answer = answer(text);
        match pending {
            Pending::Register {
                kind,
                params,
                reply,
            } => {
                self.registered(kind, &params, &answer, reply.is_some());
                if let Some(reply) = reply {
                    // Nobody waits if the client has left.
                    let _ = reply.send(answer);
                }
            }
            Pending::Call { reply, exchange } => {
                if let (Some(exchange), Answer::Result(text)) = (exchange, &answer)
                    && text == NOT_ACCEPTED
                {
                    // The CLI has had what it wanted.
                    self.inner.board().finish(&exchange);
                }
                let _ = reply.send(answer);
            }
            Pending::Unwatched => {}
        }
    }

    fn registered(&mut self, kind: Provider, params: &Arc<str>, answer: &Answer, claimed: bool) {
        match answer {
            Answer::Result(_) => self.inner.board().registered(self.backend, kind, params),
            Answer::Error(error) if !claimed => {
                let method = provider::method(kind);
                tracing::warn!(
                    target: "taxiway", backend = %self.backend, method, error,
                    "takes no new sessions: it has refused a registration that is in force",
                );
                self.refused.push((kind, Instant::now() + RETRY));
            }
            Answer::Error(_) | Answer::Silent | Answer::Gone => {}
        }
    }
}

/// The CLI's answer about an exchange that is over, or that it does not know.
pub(super) const NOT_ACCEPTED: &str = r#"{"accepted":false}"#;

/// Whether an `httpRequestChunk` gives the exchange up.
fn cancels(body: &[u8]) -> bool {
    #[derive(Deserialize, Default)]
    struct Params {
        #[serde(default)]
        cancel: bool,
    }
    #[derive(Deserialize)]
    struct Chunk {
        #[serde(default)]
        params: Params,
    }
    serde_json::from_slice::<Chunk>(body).is_ok_and(|chunk| chunk.params.cancel)
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
