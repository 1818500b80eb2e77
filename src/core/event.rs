//! What happened, as values. `observe` turns each into one log line and its counters.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use super::{
    access::Denial,
    id::{BackendName, ConnectionId, SessionId},
    locate::Refusal,
    release::How,
    snapshot::{AdminState, Health},
};

/// How an event's line is written. Said in the configuration, done by `observe`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How an event's line shows users and sessions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Identities {
    /// As they are.
    Plain,
    /// Replaced by a keyed hash.
    Hash,
}

/// Which way a frame or byte went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From a client towards a backend.
    ClientToBackend,
    /// From a backend towards a client.
    BackendToClient,
}

/// The kind of a frame, as counted by `taxiway_frames_total`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameKind {
    /// Wants a response.
    Request,
    /// Wants none.
    Notification,
    /// Result of a call.
    Response,
    /// Error of a call.
    Error,
    /// Neither of these: refused.
    Invalid,
}

/// How a call ended, as counted by `taxiway_calls_total`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CallOutcome {
    /// A result.
    Ok,
    /// An error made by the backend.
    BackendError,
    /// An error made by Taxiway.
    ProxyError,
    /// The client left before the answer came.
    Abandoned,
}

/// How a turn ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TurnOutcome {
    /// `session.idle` without an error before it.
    Ok,
    /// A `session.error` came.
    Error,
    /// `session.idle` with `aborted`.
    Aborted,
    /// Its backend or its client's connection went away.
    Lost,
    /// No event came for `sessions.turn_stall`, and Taxiway ended it.
    Stalled,
}

/// Who ended something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClosedBy {
    /// The downstream peer.
    Client,
    /// The upstream peer.
    Backend,
    /// Taxiway itself: a limit, a time-out, a protocol error.
    Proxy,
    /// A person or a signal: drain, shutdown.
    Operator,
}

/// How the reopening of a session ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReopenResult {
    /// With its history.
    Resumed,
    /// It had left nothing on disk, and was created again.
    Created,
    /// It was moved on purpose, by a drain.
    Moved,
    /// Not at all.
    Failed,
}

/// How it ended that a session's turn went on without its client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TakeOverResult {
    /// Another connection of the client has it now.
    TakenOver,
    /// Nobody came within the grace.
    Expired,
    /// The turn ended first, or its backend was lost.
    Ended,
}

/// Why a client's connection was closed before it could do anything: before its first frame, or before
/// it had proved who it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotAdmitted {
    /// Its address is not in `listener.allow_from`.
    AllowFrom,
    /// It is to come through a balancer, and its address is not one's.
    ProxyFrom,
    /// It does not start with a PROXY header, or with a broken one.
    ProxyHeader,
    /// It does not speak TLS, and the listener does.
    PlainOnTls,
    /// It speaks TLS, and the listener does not.
    TlsOnPlain,
    /// Its certificate is not good, or missing.
    Certificate,
    /// TLS failed for another reason.
    Tls,
    /// None of this came to an end within `listener.handshake_timeout`.
    TimedOut,
    /// It gave its place to another one.
    Evicted,
    /// What it said was no good.
    Refused,
    /// It left before.
    Left,
}

/// Everything the line of one turn says.
#[derive(Clone, Debug)]
pub struct TurnRecord {
    /// Log reference, unique within this process.
    pub reference: u64,
    /// Who the connection has proved to be, if anybody is asked.
    pub principal: Option<Arc<str>>,
    /// User the session belongs to, if one is known.
    pub user: Option<Arc<str>>,
    /// Session of the turn.
    pub session: SessionId,
    /// Backend that ran it.
    pub backend: BackendName,
    /// Peer address of the client that started it.
    pub client: SocketAddr,
    /// How long the send was held here before it was forwarded.
    pub queued: Duration,
    /// From forwarding to the turn's first event; none if no event came.
    pub first_event: Option<Duration>,
    /// From forwarding to the end.
    pub duration: Duration,
    /// How it ended.
    pub outcome: TurnOutcome,
    /// Who ended it.
    pub closed_by: ClosedBy,
    /// Events relayed.
    pub events: u64,
    /// Bytes of these events' bodies.
    pub bytes: u64,
    /// W3C trace id from the send's `traceparent`, if it carried one.
    pub trace_id: Option<String>,
}

/// Why a session was put on a backend (`taxiway_placements_total{reason}`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlacementReason {
    /// First in rank for its key.
    Hash,
    /// A lower rank, because the first ones are above their load bound or unusable.
    Bounded,
    /// By load.
    LeastLoaded,
    /// Already open there.
    Owner,
    /// Its disk has the session.
    Home,
    /// In turn.
    RoundRobin,
    /// The better of two.
    TwoChoices,
}

/// Why a call found no session (`taxiway_session_not_found_total{reason}`): the answer to a client
/// does not always tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotFound {
    /// No backend knows it.
    Unknown,
    /// Its client may not see it.
    Denied(Denial),
    /// It was deleted lately.
    Deleted,
    /// Its backend has closed it in silence.
    ClosedByBackend,
    /// The backend that has it open is away.
    OwnerAway,
    /// The backend whose disk has it is away.
    HomeAway,
    /// Not every backend said whether it has it.
    NoAnswer,
    /// A disk that may have it was never read.
    DiskUnread,
    /// Its backend cannot be reached, or does not take it yet.
    Unreachable,
    /// The process that keeps the owner table does not answer.
    Unconfirmed,
    /// No backend is usable.
    NoBackend,
}

impl NotFound {
    /// The word for metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Denied(_) => "denied",
            Self::Deleted => "deleted",
            Self::ClosedByBackend => "closed_by_backend",
            Self::OwnerAway => "owner_away",
            Self::HomeAway => "home_away",
            Self::NoAnswer => "no_answer",
            Self::DiskUnread => "disk_unread",
            Self::Unreachable => "unreachable",
            Self::Unconfirmed => "unconfirmed",
            Self::NoBackend => "no_backend",
        }
    }
}

impl From<&Refusal> for NotFound {
    fn from(why: &Refusal) -> Self {
        match why {
            Refusal::OwnerAway(_) => Self::OwnerAway,
            Refusal::HomeAway(_) => Self::HomeAway,
            Refusal::Silent(_) => Self::NoAnswer,
            Refusal::DiskUnread(_) => Self::DiskUnread,
            Refusal::Unreachable(_) | Refusal::Unprepared(_) => Self::Unreachable,
            Refusal::Unconfirmed => Self::Unconfirmed,
            Refusal::NoBackend => Self::NoBackend,
        }
    }
}

/// A step of an upgrade: one process takes over from another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UpgradePhase {
    /// A successor has been given the sockets, and gets ready.
    Offered,
    /// The successor did not come; everything goes on as before.
    Failed,
    /// This process has taken over.
    TakenOver,
    /// Another process has taken over; this one serves the clients that it has.
    Retired,
    /// An older process shares the owner table.
    Attached,
    /// An older process has ended.
    Gone,
    /// An older process has lost or found its way to the newest one.
    Link,
    /// Two processes have a session open on different backends.
    Conflict,
}

/// One thing worth a log line.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "field names are the names in the log line")]
pub enum Event {
    /// A connection that is more than a connection: its first frame has come, or it has proved who it
    /// is.
    ConnectionOpened {
        connection: ConnectionId,
        client: SocketAddr,
    },
    /// It was closed before it could do anything. Floods of these are logged in part: see
    /// `Metrics::not_admitted`.
    NotAdmitted {
        client: SocketAddr,
        reason: NotAdmitted,
        /// For people.
        detail: Arc<str>,
    },
    /// So many more were not admitted, or hit `limits.connections`, and counted then.
    NotAdmittedMore {
        count: u64,
        /// The time in which they came.
        over: Duration,
    },
    ConnectionClosed {
        connection: ConnectionId,
        client: SocketAddr,
        closed_by: ClosedBy,
        /// What happened, for people: "client closed", "frame exceeds limits.frame", …
        reason: Arc<str>,
        duration: Duration,
    },
    /// A client has proved who it is.
    Authenticated {
        connection: ConnectionId,
        client: SocketAddr,
        principal: Arc<str>,
        user: Arc<str>,
        /// `token`, `jwt`, `certificate`.
        how: &'static str,
    },
    /// It has not.
    AuthenticationFailed {
        connection: ConnectionId,
        client: SocketAddr,
        /// One of a few words, for metrics.
        reason: &'static str,
        /// How long its answer is held back.
        wait: Option<Duration>,
    },
    /// By the rules of a reload a client is nobody any more, or somebody else.
    Revoked {
        connection: ConnectionId,
        client: SocketAddr,
        principal: Arc<str>,
        user: Arc<str>,
    },
    /// The client's connection was closed in the middle of a frame of a backend, of which it had the
    /// beginning: that one's connection ended there, or Taxiway did.
    FrameCut {
        connection: ConnectionId,
        backend: BackendName,
    },
    UpstreamLost {
        connection: ConnectionId,
        backend: BackendName,
        calls: usize,
        turns: usize,
        reason: Arc<str>,
    },
    Placement {
        connection: ConnectionId,
        session: SessionId,
        backend: BackendName,
        reason: PlacementReason,
    },
    Turn(Box<TurnRecord>),
    /// An error made by Taxiway and sent to a client. `reference` is `data.ref` of that error.
    ErrorAnswered {
        reference: u64,
        connection: ConnectionId,
        method: Arc<str>,
        session: Option<SessionId>,
        code: i32,
        message: Arc<str>,
    },
    /// A turn has had no event for so long.
    TurnStalled {
        connection: ConnectionId,
        session: SessionId,
        backend: BackendName,
        silent_for: Duration,
        /// It was ended because of that.
        ended: bool,
    },
    LimitHit {
        connection: Option<ConnectionId>,
        limit: &'static str,
    },
    CreateExisting {
        session: SessionId,
        action: &'static str,
    },
    /// A session was opened again for a client that had lost it.
    SessionReopened {
        connection: ConnectionId,
        session: SessionId,
        /// The backend that had it.
        from: BackendName,
        /// The one that has it now.
        to: Option<BackendName>,
        result: ReopenResult,
        took: Duration,
    },
    /// The client has left in a turn of this session, which goes on.
    SessionParked {
        connection: ConnectionId,
        session: SessionId,
    },
    /// That is over.
    ParkedEnded {
        connection: ConnectionId,
        session: SessionId,
        result: TakeOverResult,
        took: Duration,
    },
    SessionNotFound {
        session: SessionId,
        reason: NotFound,
    },
    /// A client wanted something of a session that it may not see.
    Denied {
        connection: ConnectionId,
        /// The name of who it has proved to be.
        principal: Option<Arc<str>>,
        method: Arc<str>,
        session: SessionId,
        reason: Denial,
    },
    /// A frame of a backend was kept from a client that may not hear what it is about.
    Withheld {
        connection: ConnectionId,
        /// `not_attached`, `no_session`
        reason: &'static str,
    },
    BackendHealth {
        backend: BackendName,
        from: Health,
        to: Health,
        /// For people.
        reason: Arc<str>,
        /// For metrics, if it is down: one of a few words.
        cause: Option<&'static str>,
    },
    BackendAdmin {
        backend: BackendName,
        from: AdminState,
        to: AdminState,
        by: &'static str,
    },
    BackendAdded {
        backend: BackendName,
        address: Arc<str>,
    },
    BackendRemoved {
        backend: BackendName,
        sessions: usize,
    },
    /// Its sessions may be opened elsewhere from now on.
    BackendReleased {
        backend: BackendName,
        how: How,
        /// Since it was heard of last.
        silent: Duration,
        /// The last line that the fence command wrote.
        fence: Option<Arc<str>>,
    },
    /// The fence command did not succeed: the backend is not released.
    FenceFailed {
        backend: BackendName,
        reason: Arc<str>,
    },
    /// It may be used again. `closed` = sessions that it still had open, or might have had, while
    /// they were open elsewhere.
    BackendReturned {
        backend: BackendName,
        closed: usize,
    },
    /// A backend answered garbage, half a frame, a wrong id.
    BackendViolation {
        backend: BackendName,
        what: Arc<str>,
    },
    Reload {
        ok: bool,
        trigger: &'static str,
        summary: Arc<str>,
    },
    Drain {
        phase: &'static str,
        connections: usize,
        turns: usize,
    },
    Upgrade {
        phase: UpgradePhase,
        /// The other process.
        peer: Option<u32>,
        /// For people; may be empty.
        detail: Arc<str>,
    },
    AdminCall {
        client: SocketAddr,
        action: Arc<str>,
        ok: bool,
    },
    ManagedServer {
        backend: BackendName,
        what: Arc<str>,
        pid: Option<u32>,
    },
    StoreOpened {
        path: Arc<str>,
        /// It was made just now.
        is_new: bool,
        /// Remembered from before.
        sessions: usize,
        /// Too old, too many, or of no use any more.
        forgotten: usize,
        /// The mode that it was written for, if that is not the one in force.
        other_mode: Option<&'static str>,
    },
    /// What was to be kept could not be written; it is tried again.
    StoreFailed {
        /// `open`, `write`, `stall`: one of these words, for metrics.
        op: &'static str,
        reason: Arc<str>,
        /// Sessions that are not on disk as they are.
        waiting: usize,
        /// It worked before, or is not tried again.
        goes_down: bool,
    },
    /// All is on disk again.
    StoreBack,
}
