//! One connection of the load: opens its sessions, and works turns on them as it is told. Shares
//! what all clients of a thread share; counts frames and looks only into those that end a turn.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    fmt, io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_util::sync::CancellationToken;

use super::{
    Permit, Work,
    frames::{Frames, Heard, hear},
    plan::{Pace, Rota},
    tally::Tally,
};
use crate::{
    core::{connect, frame::write_header, proxy_header::Source, reply},
    transport::{ConnectError, Fault, Stream},
};

/// How long one step of the opening may take, and all of the closing.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes that may wait for a peer that takes none.
const UNSENT: usize = 1 << 20;

/// The code of a server that is not simulated.
pub(super) const REAL: &str = "real";
const IS_REAL: &str = "this is no simulated server (`taxiway sim`): each turn there calls a model, \
                       which costs money or quota, and sessions are made on its disk. If that is \
                       meant, say --yes";

/// Room for what one read brings, shared by all clients of a thread.
pub(super) const SCRATCH: usize = 256 * 1024;

/// Something did not work: a code to count it under, and what was said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// A JSON-RPC code, or a word of our own.
    pub code: String,
    /// For people.
    pub message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code.parse::<i64>() {
            Ok(code) => write!(f, "{} ({code})", self.message),
            Err(_) => f.write_str(&self.message),
        }
    }
}

impl Refusal {
    pub(super) fn new(code: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            message: message.into(),
        }
    }

    fn broken(error: &io::Error) -> Self {
        match Fault::of(error) {
            Some(fault) => Self::new("tls", fault.to_string()),
            None => Self::new("closed", format!("the connection broke: {error}")),
        }
    }
}

/// A connection that is greeted.
#[derive(Debug)]
pub(super) struct Link {
    stream: Stream,
    frames: Frames,
    next_id: u64,
}

impl Link {
    /// Connects to `target` and greets it.
    pub(super) async fn open(work: &Work, target: &str) -> Result<(Self, Value), Refusal> {
        let connecting = work.transport.connect(target, None, Source::Own);
        let connected = tokio::time::timeout(PATIENCE, connecting).await;
        let stream = match connected {
            Ok(Ok(stream)) => stream,
            Ok(Err(ConnectError::Tcp(error))) => {
                return Err(Refusal::new(
                    "unreachable",
                    format!("cannot be reached: {error}"),
                ));
            }
            Ok(Err(ConnectError::Tls(fault))) => {
                return Err(Refusal::new("tls", fault.to_string()));
            }
            Ok(Err(ConnectError::Broken(error))) => return Err(Refusal::broken(&error)),
            Err(_) => {
                let message = format!("no connection within {PATIENCE:?}");
                return Err(Refusal::new("unreachable", message));
            }
        };
        let mut link = Self {
            stream,
            frames: Frames::new(),
            next_id: 0,
        };
        let params = connect::upstream_params(&connect::Options::default(), work.token.as_ref());
        let greeted = link.ask("connect", &params).await?;
        Ok((link, greeted))
    }

    /// One call and its answer, while no turn is under way.
    pub(super) async fn ask(&mut self, method: &str, params: &str) -> Result<Value, Refusal> {
        tokio::time::timeout(PATIENCE, self.call(method, params))
            .await
            .unwrap_or_else(|_| {
                let message = format!("{method} was not answered within {PATIENCE:?}");
                Err(Refusal::new("timeout", message))
            })
    }

    /// Opens a session, and looks whether turns may be sent to whoever has it: a Taxiway may have
    /// servers of any kind. One that may not be loaded is deleted.
    pub(super) async fn create(&mut self, work: &Work, session: &str) -> Result<(), Refusal> {
        let params = work.create_params(session);
        let opened = self.ask("session.create", &params).await?;
        let place = opened["workspacePath"].as_str().unwrap_or_default();
        match work.permit {
            Permit::Simulated(root) if !place.starts_with(root) => {
                // Whether that succeeds does not change what has to be said.
                let params = reply::session_params(session);
                let _deleted = self.ask("session.delete", &params).await;
                Err(Refusal::new(REAL, IS_REAL))
            }
            Permit::Simulated(_) | Permit::Any => Ok(()),
        }
    }

    async fn call(&mut self, method: &str, params: &str) -> Result<Value, Refusal> {
        let id = self.next_id;
        self.next_id += 1;
        let mut out = Vec::new();
        reply::request(&mut out, id.to_string().as_bytes(), method, params);
        self.write(&out).await?;
        loop {
            let mut answer = None;
            self.read(|body| {
                if matches!(hear(body), Heard::Answer { id: of, .. } if of == id) {
                    answer = Some(serde_json::from_slice::<Value>(body));
                }
            })
            .await?;
            match answer {
                None => {}
                Some(Ok(mut answer)) => {
                    let error = &answer["error"];
                    if error.is_null() {
                        return Ok(answer["result"].take());
                    }
                    let code = error["code"].to_string();
                    let message = error["message"].as_str().unwrap_or("no message");
                    return Err(Refusal::new(&code, message));
                }
                Some(Err(_)) => return Err(Refusal::new("answer", "an answer of too many bytes")),
            }
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let written = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        written.await.map_err(|error| Refusal::broken(&error))
    }

    async fn read(&mut self, each: impl FnMut(&[u8])) -> Result<(), Refusal> {
        let mut buffer = [0; 8192];
        let read = self.stream.read(&mut buffer).await;
        match read.map_err(|error| Refusal::broken(&error))? {
            0 => Err(Refusal::new("closed", "the connection was closed")),
            read => self
                .frames
                .feed(&buffer[..read], each)
                .map_err(|error| Refusal::new("protocol", format!("no CLI server: {error}"))),
        }
    }
}

/// Where a session's turns stand.
#[derive(Debug, Default)]
struct Seat {
    session: String,
    /// Turns whose time has come.
    planned: u64,
    /// Turns that were sent.
    begun: u64,
    running: Option<Running>,
    /// Its last turn has not ended in time: what comes from it now cannot be told apart.
    retired: bool,
    /// When its last turn ended.
    free_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    planned: Instant,
    sent: Instant,
    failed: bool,
}

/// What a client's task shares with whoever tells it when to begin turns.
#[derive(Debug, Default)]
pub(super) struct Desk {
    seats: Vec<Seat>,
    /// Sessions that are to begin a turn now, each at most once.
    due: VecDeque<usize>,
    running: usize,
    /// Why no turn can run any more.
    lost: bool,
    waker: Option<Waker>,
}

impl Desk {
    /// Of a connection that was not opened.
    pub(super) fn lost(sessions: usize) -> Self {
        Self {
            seats: std::iter::repeat_with(Seat::default)
                .take(sessions)
                .collect(),
            lost: true,
            ..Self::default()
        }
    }

    /// The time of a session's next turn has come.
    pub(super) fn plan(&mut self, seat: usize, shared: &Shared) {
        let place = &mut self.seats[seat];
        place.planned += 1;
        if self.lost || place.retired {
            // It will never be sent; its users would see that.
            place.begun += 1;
            let mut tally = shared.tally.borrow_mut();
            tally.failed += 1;
            tally.fail("not sent", "its connection or session was gone", 1);
        } else if place.running.is_none() && place.planned == place.begun + 1 {
            self.due.push_back(seat);
            self.wake();
        }
    }

    /// Begins a turn on every session.
    pub(super) fn begin_all(&mut self) {
        for (at, seat) in self.seats.iter_mut().enumerate() {
            seat.planned += 1;
            self.due.push_back(at);
        }
        self.wake();
    }

    pub(super) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Gives up turns that run longer than they may.
    pub(super) fn sweep(&mut self, now: Instant, shared: &Shared) {
        let patience = shared.work.turn_timeout;
        for seat in &mut self.seats {
            if seat
                .running
                .is_some_and(|turn| now.saturating_duration_since(turn.sent) > patience)
            {
                seat.running = None;
                seat.retired = true;
                self.running -= 1;
                let message = format!("no session.idle within {patience:?}");
                let mut tally = shared.tally.borrow_mut();
                tally.failed += 1;
                tally.fail("timeout", &message, 1);
            }
        }
        if self.running == 0 {
            self.wake();
        }
    }

    /// Turns that were planned and not sent.
    pub(super) fn unsent(&self) -> u64 {
        self.seats
            .iter()
            .map(|seat| seat.planned - seat.begun)
            .sum()
    }

    pub(super) fn running(&self) -> usize {
        self.running
    }
}

/// What all clients of a thread share.
pub(super) struct Shared {
    pub(super) work: Rc<Work>,
    pub(super) pace: Pace,
    pub(super) rota: Rota,
    pub(super) start: Instant,
    /// Turns that were planned before it are not measured.
    pub(super) measure_from: Instant,
    /// No turn begins after it.
    pub(super) end: Instant,
    pub(super) over: Cell<bool>,
    /// Not even the running turns are waited for.
    pub(super) stopped: Cell<bool>,
    pub(super) tally: RefCell<Tally>,
    pub(super) scratch: RefCell<Box<[u8]>>,
    /// The prompt as a JSON string.
    pub(super) prompt: String,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// A connection whose sessions are open.
#[derive(Debug)]
pub(super) struct Client {
    /// Which of its share.
    pub(super) number: usize,
    pub(super) link: Link,
    pub(super) sessions: Vec<String>,
}

/// What a look at the socket brought.
enum Look {
    Read,
    Due,
    Over,
}

impl Client {
    /// Connects the client that has number `connection` among all, and opens its sessions; none if
    /// it was stopped. Where not all can be opened, none is left.
    pub(super) async fn open(
        work: &Work,
        number: usize,
        connection: usize,
        stop: &CancellationToken,
    ) -> Result<Option<Self>, Refusal> {
        if stop.is_cancelled() {
            return Ok(None);
        }
        let target = &work.targets[connection % work.targets.len()];
        let (link, _) = Link::open(work, target).await?;
        let mut client = Self {
            number,
            link,
            sessions: Vec::with_capacity(work.sessions),
        };
        for at in 0..work.sessions {
            let session = work.session_id(connection * work.sessions + at);
            let refused = match stop.is_cancelled() {
                true => None,
                false => match client.link.create(work, &session).await {
                    Ok(()) => {
                        client.sessions.push(session);
                        continue;
                    }
                    Err(refusal) => Some(refusal),
                },
            };
            let (_, _why) = client.delete().await;
            return refused.map_or(Ok(None), Err);
        }
        Ok(Some(client))
    }

    /// Deletes its sessions; returns how many, and why not all.
    pub(super) async fn delete(mut self) -> (u64, Option<Refusal>) {
        let mut deleted = 0;
        for session in &self.sessions {
            let params = reply::session_params(session);
            match self.link.ask("session.delete", &params).await {
                Ok(answer) if answer["success"] == false => {
                    let message = answer["error"].as_str().unwrap_or("not deleted");
                    return (deleted, Some(Refusal::new("delete", message)));
                }
                Ok(_) => deleted += 1,
                Err(refusal) => return (deleted, Some(refusal)),
            }
        }
        (deleted, None)
    }

    pub(super) fn desk(&self) -> Desk {
        let seat = |session: &String| Seat {
            session: session.clone(),
            ..Seat::default()
        };
        Desk {
            seats: self.sessions.iter().map(seat).collect(),
            ..Desk::default()
        }
    }

    /// Works until the time is over and its turns have ended; gives itself back if it can go on.
    pub(super) async fn work(
        mut self,
        desk: Rc<RefCell<Desk>>,
        shared: Rc<Shared>,
    ) -> Option<Self> {
        let worked = self.turns(&desk, &shared).await;
        let Err(refusal) = worked else {
            return Some(self);
        };
        let mut desk = desk.borrow_mut();
        desk.lost = true;
        let lost = std::mem::take(&mut desk.running) as u64;
        for seat in &mut desk.seats {
            seat.running = None;
        }
        let mut tally = shared.tally.borrow_mut();
        tally.failed += lost;
        tally.fail(&refusal.code, &refusal.message, lost.max(1));
        None
    }

    async fn turns(&mut self, desk: &RefCell<Desk>, shared: &Shared) -> Result<(), Refusal> {
        let mut out = Vec::new();
        let mut written = 0;
        loop {
            {
                let mut desk = desk.borrow_mut();
                self.begin(&mut desk, shared, &mut out);
                let over = shared.over.get() && desk.running == 0 && written == out.len();
                if over || shared.stopped.get() {
                    return Ok(());
                }
            }
            let look =
                std::future::poll_fn(|task| self.look(task, desk, shared, &mut out, &mut written));
            match look.await? {
                Look::Read | Look::Due | Look::Over => {}
            }
            if written == out.len() {
                out.clear();
                written = 0;
            } else if out.len() - written > UNSENT {
                return Err(Refusal::new("closed", "the target takes nothing any more"));
            }
        }
    }

    /// Writes what waits and takes what has come.
    fn look(
        &mut self,
        task: &mut Context<'_>,
        desk: &RefCell<Desk>,
        shared: &Shared,
        out: &mut Vec<u8>,
        written: &mut usize,
    ) -> Poll<Result<Look, Refusal>> {
        let mut stream = Pin::new(&mut self.link.stream);
        let before = *written;
        while *written < out.len() {
            match stream.as_mut().poll_write(task, &out[*written..]) {
                Poll::Ready(Ok(bytes)) => *written += bytes,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Refusal::broken(&error))),
                Poll::Pending => break,
            }
        }
        if *written > before {
            shared.tally.borrow_mut().sent += (*written - before) as u64;
        }
        if let Poll::Ready(Err(error)) = stream.as_mut().poll_flush(task) {
            return Poll::Ready(Err(Refusal::broken(&error)));
        }
        let mut scratch = shared.scratch.borrow_mut();
        let mut buffer = ReadBuf::new(&mut scratch);
        match stream.poll_read(task, &mut buffer) {
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                return Poll::Ready(Err(Refusal::new("closed", "the connection was closed")));
            }
            Poll::Ready(Ok(())) => {
                let heard = self.take(buffer.filled(), &mut desk.borrow_mut(), shared, out);
                return Poll::Ready(heard.map(|()| Look::Read));
            }
            Poll::Ready(Err(error)) => return Poll::Ready(Err(Refusal::broken(&error))),
            Poll::Pending => {}
        }
        let mut desk = desk.borrow_mut();
        if !desk.due.is_empty() {
            return Poll::Ready(Ok(Look::Due));
        }
        if shared.stopped.get() || shared.over.get() && desk.running == 0 && *written == out.len() {
            return Poll::Ready(Ok(Look::Over));
        }
        desk.waker = Some(task.waker().clone());
        Poll::Pending
    }

    /// Sends the turns that are due.
    fn begin(&self, desk: &mut Desk, shared: &Shared, out: &mut Vec<u8>) {
        let Desk {
            seats,
            due,
            running,
            ..
        } = desk;
        if due.is_empty() {
            return;
        }
        if shared.over.get() {
            due.clear();
            return;
        }
        let count = seats.len() as u64;
        let now = Instant::now();
        for at in due.drain(..) {
            let seat = &mut seats[at];
            let number = shared.rota.number(seat.begun, self.number, at);
            let planned = match shared.pace.at(number) {
                Some(offset) => shared.start + offset,
                None => now,
            };
            if planned >= shared.measure_from && shared.pace != Pace::Closed {
                let possible = planned.max(seat.free_since.unwrap_or(planned));
                let lag = now.saturating_duration_since(possible);
                shared.tally.borrow_mut().lag.record(lag);
            }
            // Tells the seat again when the answer comes.
            let id = seat.begun * count + at as u64;
            send(out, id, &seat.session, &shared.prompt);
            seat.begun += 1;
            seat.running = Some(Running {
                planned,
                sent: now,
                failed: false,
            });
            *running += 1;
        }
    }

    /// Counts what came, and ends turns.
    fn take(
        &mut self,
        bytes: &[u8],
        desk: &mut Desk,
        shared: &Shared,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let now = Instant::now();
        let mut tally = shared.tally.borrow_mut();
        let measured = now >= shared.measure_from;
        let (mut frames, mut events) = (0, 0);
        let fed = self.link.frames.feed(bytes, |body| {
            frames += 1;
            match hear(body) {
                Heard::Event => events += 1,
                Heard::Idle { session } => {
                    events += 1;
                    match desk.seat_of(session, &shared.work) {
                        Some(at) => desk.end(at, now, &mut tally, shared),
                        None => tally.foreign += 1,
                    }
                }
                Heard::Failed { session, message } => {
                    events += 1;
                    tally.fail("session.error", &message, 1);
                    let at = desk.seat_of(session, &shared.work);
                    if let Some(turn) = at.and_then(|at| desk.seats[at].running.as_mut()) {
                        turn.failed = true;
                    }
                }
                Heard::Answer {
                    id,
                    error: Some((code, message)),
                } => {
                    tally.fail(&code.to_string(), &message, 1);
                    let at = (id % desk.seats.len() as u64) as usize;
                    if let Some(turn) = desk.seats[at].running.as_mut() {
                        turn.failed = true;
                        desk.end(at, now, &mut tally, shared);
                    }
                }
                Heard::Asked { id } => refuse(out, &id),
                Heard::Answer { error: None, .. } | Heard::Other => {}
            }
        });
        if measured {
            tally.frames += frames;
            tally.events += events;
            tally.received += bytes.len() as u64;
        }
        fed.map_err(|error| Refusal::new("protocol", error.to_string()))
    }
}

impl Desk {
    /// Whose event it is, if it is one of ours.
    fn seat_of(&self, session: &str, work: &Work) -> Option<usize> {
        let number = work.session_number(session)?;
        let at = number % self.seats.len();
        (self.seats[at].session == session).then_some(at)
    }

    /// A turn has ended; the next one may be due.
    fn end(&mut self, at: usize, now: Instant, tally: &mut Tally, shared: &Shared) {
        let seat = &mut self.seats[at];
        let Some(turn) = seat.running.take() else {
            return;
        };
        self.running -= 1;
        seat.free_since = Some(now);
        if turn.failed {
            tally.failed += 1;
        } else if turn.planned >= shared.measure_from {
            tally.turns += 1;
            tally
                .latency
                .record(now.saturating_duration_since(turn.planned));
        }
        if shared.over.get() || now >= shared.end {
            return;
        }
        if shared.pace == Pace::Closed {
            seat.planned += 1;
        }
        if seat.planned > seat.begun {
            self.due.push_back(at);
        }
    }
}

/// Appends the frame that begins a turn; `prompt` is JSON.
fn send(out: &mut Vec<u8>, id: u64, session: &str, prompt: &str) {
    const PARTS: [&[u8]; 4] = [
        br#"{"jsonrpc":"2.0","id":"#,
        br#","method":"session.send","params":{"sessionId":""#,
        br#"","prompt":"#,
        b"}}",
    ];
    let fixed: usize = PARTS.iter().map(|part| part.len()).sum();
    let id = id.to_string();
    write_header(fixed + id.len() + session.len() + prompt.len(), out);
    let values = [id.as_bytes(), session.as_bytes(), prompt.as_bytes(), b""];
    for (part, value) in PARTS.iter().zip(values) {
        out.extend_from_slice(part);
        out.extend_from_slice(value);
    }
}

/// We do nothing for a server; it must not wait for it.
fn refuse(out: &mut Vec<u8>, id: &[u8]) {
    let error = r#"{"code":-32601,"message":"taxiway load answers no requests"}"#;
    reply::relayed_error(out, id, error);
}
