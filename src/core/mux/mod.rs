//! The multiplexer: one machine per client connection, which routes each of its sessions to a
//! backend by itself and gives every answer back under the right id.
//!
//! Four kinds of method: getters; `handle_*` for what came from a socket, a timer or the shell;
//! `poll_*` for what the shell is to do; nothing else changes it. Bytes to write go into the
//! [`Outbox`] that each handler is given, everything else comes out of [`Mux::poll_output`]. After
//! every handler the shell writes the outbox, drains `poll_output`, and arms `poll_timeout`.
//!
//! It opens no socket, reads no clock, asks no backend, and knows neither the directory nor the
//! pool's health beyond what its [`Context`] and the answers of the shell say.

mod admission;
mod again;
mod answer;
mod backend;
mod calls;
mod client;
mod commons;
mod end;
mod gate;
mod handover;
mod heir;
mod invariants;
mod kept;
mod lent;
mod lock;
mod moving;
mod note;
mod outbox;
mod output;
mod own;
mod parking;
mod patience;
mod place;
mod register;
mod reopen;
mod reopening;
mod run;
mod session;
mod sight;
mod stall;
mod takeover;
mod tells;
mod through;
mod turn;
mod upstream;
mod vouch;

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use slab::Slab;

use self::{
    admission::{Connecting, Standing},
    calls::Call,
    own::Own,
    place::Question,
    register::Register,
    session::Entry,
    upstream::Upstreams,
};
pub use self::{
    client::is_session_id,
    commons::{Alone, Commons, Over},
    lent::Memory,
    moving::Freeze,
    note::{Handover, HeldRequest, Note},
    outbox::{Dest, Outbox, OutboxMemory},
    output::{Locate, Located, Output, Serve, Served, Service, Tally},
    upstream::SlotId,
};
use super::{
    access::Access,
    connect,
    event::{ClosedBy, Direction, Event, FrameKind},
    frame::{Cutter, FrameLimits},
    id::{BackendName, ConnectionId, SessionId},
    identity::{Caps, Principal},
    idmap::{BackendRequests, Calls},
    rare::Rare,
    reply::{self, ProxyError},
    snapshot::{Published, Snapshot},
    turnlock,
};

/// An upstream connection that nothing needs is closed after this long (DESIGN §3).
const UPSTREAM_IDLE: Duration = Duration::from_secs(30);

/// Connect and handshake with a backend that is up take about a millisecond (PROTOCOL §9).
const UPSTREAM_DEADLINE: Duration = Duration::from_secs(5);

/// How often a call may set out for a backend that turns out to be unreachable.
const MAX_ATTEMPTS: usize = 3;

/// Requests that have to wait here may keep this many bytes besides one frame of the largest size;
/// beyond it they are refused. The client is read all the same: what frees them may be its own
/// answer to a backend.
const HELD_HIGH: usize = 1024 * 1024;

/// Requests of backends that the client has not answered yet; beyond it its connection ends.
const MAX_BACKEND_REQUESTS: usize = 4096;

/// Largest frame taken from a backend, held or passed on as it arrives. The CLI itself has no limit
/// (a 136 MB answer was seen), but its SDKs do: a string of Node's has at most 512 MiB.
pub const BACKEND_FRAME: usize = 512 * 1024 * 1024;

/// What `session.create` does on the id of a closed session that has history.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CreateExisting {
    /// Reopen it with the same params, answer as create.
    Resume,
    /// Pass it on: the CLI starts an empty history over the old one.
    Pass,
    /// Refuse.
    Reject,
}

/// The part of the configuration that the machine obeys.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bounds of a client's frames.
    pub frame: FrameLimits,
    /// A frame of a backend with a longer body is passed on as it arrives, if its first bytes say
    /// that it may.
    pub cut_through_min: usize,
    /// From a frame's first byte to its last.
    pub frame_timeout: Duration,
    /// From accept to the first complete frame.
    pub handshake_timeout: Duration,
    /// Calls that may await an answer.
    pub calls: usize,
    /// Sessions that may be attached.
    pub sessions: usize,
    /// Create on an existing id.
    pub create_existing: CreateExisting,
    /// Bytes of the call by which a session was opened last that are kept to open it again; beyond
    /// it, it is not. Zero keeps nothing.
    pub session_params: usize,
    /// How long a call waits for a session whose backend is away.
    pub home_wait: Duration,
    /// How long a turn goes on after its client's connection has broken.
    pub detach_grace: Option<Duration>,
    /// A turn without an event for so long is stalled; none = no turn is.
    pub turn_stall: Option<Duration>,
    /// A stalled turn is ended.
    pub ends_stalled: bool,
    /// One turn at a time in a session, and for how long.
    pub turns: turnlock::Terms,
    /// Who may do what.
    pub access: Arc<Access>,
    /// How long a client may go on after what proved it has run out.
    pub revoke_grace: Duration,
    /// How long turns may go on whose client is nobody any more.
    pub last_turns: Duration,
    /// What each user may use at a time; a principal may have others.
    pub caps: Caps,
}

/// What a handler may look at besides its own state.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Monotonic now.
    pub now: Instant,
    /// Wall clock, for time stamps inside answers: [`Context::wall`].
    pub clock: WallClock,
    /// The pool: [`Context::snapshot`].
    pub pool: &'a dyn Published,
    /// The configuration.
    pub settings: &'a Settings,
    /// What all connections share.
    pub commons: &'a dyn Commons,
}

impl Context<'_> {
    /// The pool as it is now. Few steps look at it, so that none is made to take one along.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.pool.snapshot()
    }

    /// What the wall clock says now.
    pub fn wall(&self) -> SystemTime {
        self.clock.at(self.now)
    }
}

/// What the wall clock said at a moment. Few steps ask for it, so nothing is reckoned before.
#[derive(Clone, Copy, Debug)]
pub struct WallClock {
    /// The moment.
    pub read: Instant,
    /// What it said.
    pub said: SystemTime,
}

impl WallClock {
    /// What it says at `now`, if it goes as the monotonic one does.
    fn at(&self, now: Instant) -> SystemTime {
        self.said + now.saturating_duration_since(self.read)
    }
}

/// Who sent a request to the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asker {
    Upstream(SlotId),
    Provider(u64),
    /// A backend, by way of a connection whose client has left, and the request's number there.
    Parked(ConnectionId, u64),
}

/// How far the end has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Life {
    Open,
    /// Taxiway stops: no new work, closes when nothing runs.
    Draining,
    /// The client has left; turns go on.
    Parked,
    Closed,
}

/// The machine of one client connection.
#[derive(Debug)]
pub struct Mux {
    id: ConnectionId,
    peer: SocketAddr,
    life: Life,
    cutter: Cutter,
    /// Since when a frame of the client is incomplete; from the start for the first one.
    partial_since: Option<Instant>,
    greeted: bool,
    /// It counts among its user's connections.
    entered: bool,
    connect: connect::Options,
    principal: Option<Arc<Principal>>,
    connecting: Option<Box<Connecting>>,
    standing: Standing,
    /// Times that it has failed to say who it is.
    failures: u32,
    calls: Calls<Call>,
    requests: BackendRequests<Asker, parking::Request>,
    upstreams: Upstreams,
    /// The upstream connection of which a frame passes to the client in pieces.
    passing: Option<SlotId>,
    entries: Slab<Entry>,
    by_session: Register,
    /// What waits for the shell's answer to a [`Locate`], by ticket.
    questions: Rare<u64, Question>,
    /// Sessions counted in the directory for this connection.
    claimed: usize,
    /// Gates with a time limit: when, and whose. As many as sessions with such a gate.
    gates: Vec<(Instant, usize)>,
    /// Calls of our own that a backend owes an answer.
    own: Vec<Own>,
    /// Memory to be used again; lent, where many machines share it.
    spares: Option<Box<lent::Spares>>,
    /// Sessions whose last step of a take-over was answered just now, and whether by a success.
    opened: Vec<(usize, bool)>,
    /// Sessions that wait for their backend: being opened again, or with calls held because it is
    /// silent. Mostly none, so that nobody looks for their deadlines.
    waiting: usize,
    /// Some session may have a [`Freeze`] that waits for its moment.
    freezing: bool,
    /// When which session's turn is looked at for events: one entry for each turn, if stalls are
    /// watched for.
    watches: Vec<(Instant, usize)>,
    locks: lock::Locks,
    /// Bytes of all bodies kept here: held, waiting for a handshake, or to fall back on.
    held_bytes: usize,
    next_ticket: u64,
    next_serial: u64,
    next_reference: u64,
    outputs: VecDeque<Output>,
    tally: Tally,
}

impl Mux {
    /// The machine of a connection that was just accepted from `peer`.
    pub fn new(id: ConnectionId, peer: SocketAddr, now: Instant, settings: &Settings) -> Self {
        Self {
            id,
            peer,
            life: Life::Open,
            cutter: Cutter::new(Self::first_limits(
                settings.frame,
                settings.access.authenticates,
            )),
            partial_since: Some(now),
            greeted: false,
            entered: false,
            connect: connect::Options::default(),
            principal: None,
            connecting: None,
            standing: Standing::default(),
            failures: 0,
            calls: Calls::default(),
            requests: BackendRequests::default(),
            upstreams: Upstreams::default(),
            passing: None,
            entries: Slab::new(),
            by_session: Register::default(),
            questions: Rare::default(),
            claimed: 0,
            gates: Vec::new(),
            own: Vec::new(),
            spares: None,
            opened: Vec::new(),
            waiting: 0,
            freezing: false,
            watches: Vec::new(),
            locks: lock::Locks::default(),
            held_bytes: 0,
            next_ticket: 0,
            next_serial: 0,
            next_reference: 0,
            outputs: VecDeque::new(),
            tally: Tally::default(),
        }
    }

    // Getters.

    /// Whose machine this is.
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// Whether `more` bytes of a request may be kept here.
    fn may_hold(&self, more: usize, settings: &Settings) -> bool {
        self.held_bytes + self.calls.id_bytes() + more <= settings.frame.frame + HELD_HIGH
    }

    /// What a request is told that may not.
    fn too_much_held(&mut self, settings: &Settings) -> ProxyError {
        self.limit_hit("limits.frame");
        ProxyError::TooMuchHeld {
            value: (settings.frame.frame + HELD_HIGH) as u64,
        }
    }

    /// Turns that run on this connection.
    pub fn open_turns(&self) -> usize {
        self.entries
            .iter()
            .filter(|(_, e)| e.turn.is_some())
            .count()
    }

    /// Calls that await an answer.
    pub fn open_calls(&self) -> usize {
        self.calls.len()
    }

    /// The backend that a slot is for.
    pub fn backend_of(&self, slot: SlotId) -> Option<&BackendName> {
        self.upstreams.get(slot).map(|u| &u.backend)
    }

    /// Whether the end has come; nothing is handled any more.
    pub fn is_closed(&self) -> bool {
        self.life == Life::Closed
    }

    /// Whether the answer to the question with this ticket is still waited for.
    pub fn awaits(&self, ticket: u64) -> bool {
        self.questions.contains_key(&ticket)
    }

    /// Whether the directory is to count this connection among the holders of `session`.
    pub fn holds(&self, session: &str) -> bool {
        let key = self.by_session.get(session);
        key.is_some_and(|key| self.entries[*key].claimed)
    }

    /// Whether it holds `session` and hears it nowhere, nor is about to.
    pub fn has_lost(&self, session: &str) -> bool {
        let key = self.by_session.get(session);
        key.is_some_and(|key| {
            let entry = &self.entries[*key];
            let reopening = entry.reopening.as_ref();
            entry.claimed && reopening.is_some_and(|r| !r.is_calling())
        })
    }

    /// Whether there is a client.
    fn is_heard(&self) -> bool {
        matches!(self.life, Life::Open | Life::Draining)
    }

    // Polling.

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front().or_else(|| self.settle_locks())
    }

    /// Frames and bytes since the last call.
    pub fn poll_tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }

    /// When [`Mux::handle_timeout`] is due; never once closed.
    pub fn poll_timeout(&self, settings: &Settings) -> Option<Instant> {
        // Asked on each wake-up, and mostly there is little to look at: a loop over all of it, as an
        // iterator, took several times as long.
        let mut next = self
            .partial_since
            .map(|since| since + self.patience(settings));
        for (at, _) in self.gates.iter().chain(&self.watches) {
            next = earlier(next, Some(*at));
        }
        for (slot, upstream) in self.upstreams.iter() {
            let idle = upstream.idle_since.map(|at| at + UPSTREAM_IDLE);
            let deadline = upstream.deadline.filter(|_| self.is_read(slot));
            next = earlier(earlier(next, deadline), idle);
        }
        next = earlier(next, self.next_patience(settings));
        next = earlier(next, self.next_lock(settings));
        earlier(next, self.next_judgement(settings))
    }

    /// Whether the client has said something: who it is, where it has to.
    pub fn has_greeted(&self) -> bool {
        self.greeted
    }

    fn patience(&self, settings: &Settings) -> Duration {
        if self.greeted {
            settings.frame_timeout
        } else {
            settings.handshake_timeout
        }
    }

    // Events that belong to neither side's frames.

    /// Time has passed.
    pub fn handle_timeout(&mut self, cx: &Context<'_>, out: &mut Outbox) {
        if self
            .partial_since
            .is_some_and(|since| cx.now >= since + self.patience(cx.settings))
        {
            self.refuse_slowness(cx, out);
            return;
        }
        while let Some(key) = self
            .gates
            .iter()
            .find(|(at, _)| *at <= cx.now)
            .map(|(_, key)| *key)
        {
            self.open_gate(cx, key, out);
        }
        self.lose_patience(cx, out);
        self.look_for_stalls(cx, out);
        self.watch_locks(cx, out);
        self.look_at_standing(cx, out);
        self.try_freezes(cx);
        for slot in self.upstreams.ids() {
            let Some(upstream) = self.upstreams.get(slot) else {
                continue;
            };
            let is_late = upstream.deadline.is_some_and(|at| at <= cx.now);
            if is_late && self.is_read(slot) {
                self.outputs.push_back(Output::CloseUpstream { slot });
                self.handle_upstream_dropped(cx, slot, "no answer to connect in time", out);
            } else if upstream
                .idle_since
                .is_some_and(|at| at + UPSTREAM_IDLE <= cx.now)
            {
                self.part_with_hooks(slot, out);
            }
        }
    }

    /// The first frame, or the rest of one, took too long.
    fn refuse_slowness(&mut self, cx: &Context<'_>, out: &mut Outbox) {
        let (limit, reason) = if self.greeted {
            (
                "limits.frame_timeout",
                "a frame did not complete within limits.frame_timeout",
            )
        } else if self.is_stranger(cx) {
            (
                "listener.handshake_timeout",
                "no connect was accepted within listener.handshake_timeout",
            )
        } else {
            (
                "listener.handshake_timeout",
                "no frame within listener.handshake_timeout",
            )
        };
        let value = self.patience(cx.settings).as_millis() as u64;
        self.limit_hit(limit);
        self.refuse(
            reply::NULL_ID,
            "",
            None,
            &ProxyError::LimitExceeded { limit, value },
            out,
        );
        self.depart(cx, ClosedBy::Proxy, reason, true, out);
    }

    /// The shell does not read the client now, because something here or behind is full: the time
    /// that a frame takes is not the client's fault.
    pub fn handle_client_unread(&mut self, now: Instant) {
        if let Some(since) = self.partial_since.as_mut().filter(|_| self.greeted) {
            *since = now;
        }
    }

    /// A `session.lifecycle` notification of some backend, framed: every client hears of every
    /// session that it may see, wherever it lives, once. So those that come over this client's own
    /// upstream connections are swallowed. Who has not said who it is, or is nobody any more, hears
    /// of none.
    pub fn handle_lifecycle(&mut self, cx: &Context<'_>, frame: &[u8], out: &mut Outbox) {
        if self.is_heard() && self.is_trusted(cx) {
            self.tally.add(
                Direction::BackendToClient,
                FrameKind::Notification,
                frame.len(),
            );
            out.write(Dest::Client, |b| b.extend_from_slice(frame));
        }
    }

    fn keys(&self) -> Vec<usize> {
        self.entries.iter().map(|(key, _)| key).collect()
    }

    fn ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    /// What waits for this answer.
    fn take_question(&mut self, ticket: u64) -> Option<Question> {
        self.questions.remove(&ticket)
    }

    /// The next log reference: unique within this process, since connection ids are.
    fn reference(&mut self) -> u64 {
        self.next_reference += 1;
        (self.id.0 << 20) | (self.next_reference & 0xf_ffff)
    }

    fn limit_hit(&mut self, limit: &'static str) {
        let connection = Some(self.id);
        self.outputs
            .push_back(Output::Event(Event::LimitHit { connection, limit }));
    }

    /// Answers a frame with an error of our own; `id` is a JSON token.
    fn refuse(
        &mut self,
        id: &[u8],
        method: &str,
        session: Option<SessionId>,
        error: &ProxyError,
        out: &mut Outbox,
    ) {
        let reference = self.reference();
        let size = out.write(Dest::Client, |b| reply::error(b, id, error, reference));
        self.tally
            .add(Direction::BackendToClient, FrameKind::Error, size);
        self.outputs.push_back(Output::Event(Event::ErrorAnswered {
            reference,
            connection: self.id,
            method: Arc::from(method),
            session,
            code: error.code(),
            message: Arc::from(error.logged()),
        }));
    }
}

/// The earlier of two moments, either of which may never come.
fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
