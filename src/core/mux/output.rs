//! What the multiplexer asks of the shell and what it is told: values only.

use std::{sync::Arc, time::Duration};

use super::{note::Note, upstream::SlotId};
use crate::core::{
    access::Relation,
    event::{CallOutcome, Direction, Event, FrameKind, PlacementReason, TurnRecord},
    id::{BackendName, ConnectionId, Secret, SessionId},
    identity::Principal,
    locate::Purpose,
    reply::ProxyError,
    route::{Aggregate, IdsArray, Provider, Spread},
    turnlock::Parting,
};

/// A question to the shell: which backend?
#[derive(Clone, Debug)]
pub struct Locate {
    /// Names the answer: [`Mux::handle_located`](super::Mux::handle_located).
    pub ticket: u64,
    /// The session; none for calls that any backend may serve and for create without an id.
    pub session: Option<SessionId>,
    /// What for.
    pub purpose: Purpose,
    /// Backends that were just found to be unreachable.
    pub avoid: Vec<BackendName>,
    /// Who asks; none = nobody has to say who he is.
    pub principal: Option<Arc<Principal>>,
    /// Sessions that the call names besides, all of which the principal must be allowed to use.
    pub also: Vec<SessionId>,
}

/// The answer to [`Locate`].
#[derive(Clone, Debug)]
pub struct Located {
    /// Where. If the purpose attaches, the directory counts this connection there already.
    pub backend: BackendName,
    /// How it was chosen.
    pub reason: PlacementReason,
    /// The session has history on disk.
    pub has_history: bool,
    /// The connection whose client has left it in a turn.
    pub parked: Option<ConnectionId>,
    /// How the client stands to it.
    pub relation: Relation,
}

/// A call that the shell executes over control connections: [`Mux::handle_served`](super::Mux::handle_served).
#[derive(Clone, Debug)]
pub struct Serve {
    /// Names the answer.
    pub ticket: u64,
    /// What it is.
    pub service: Service,
    /// The method as the client wrote it.
    pub method: String,
    /// Its params as JSON text, if they were an object.
    pub params: Option<String>,
    /// Who asks.
    pub principal: Option<Arc<Principal>>,
}

/// Kinds of [`Serve`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Service {
    /// One merged answer of all.
    Aggregate(Aggregate),
    /// Split by owner, joined.
    IdsArray(IdsArray),
    /// To all, or to one where the disk is shared.
    ServerWide(Spread),
    /// A process-wide place.
    Provider(Provider),
    /// An answer to a provider's request, by `params.requestId`.
    ByRequestId,
}

/// How a [`Serve`] ended.
#[derive(Clone, Debug)]
pub enum Served {
    /// A JSON value.
    Result(String),
    /// A backend's error object as JSON text.
    Relayed(String),
    /// Our own.
    Failed(ProxyError),
}

/// What the shell is to do, besides writing.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "few are alive at a time")]
pub enum Output {
    /// Connect to a backend for this slot; then [`Mux::handle_upstream_connected`](super::Mux::handle_upstream_connected) or
    /// [`Mux::handle_upstream_closed`](super::Mux::handle_upstream_closed).
    Connect {
        #[allow(missing_docs)]
        slot: SlotId,
        #[allow(missing_docs)]
        backend: BackendName,
    },
    /// Close the socket of this slot, once what was written to it is flushed.
    CloseUpstream {
        #[allow(missing_docs)]
        slot: SlotId,
    },
    /// Find out who the client is: [`Mux::handle_authenticated`](super::Mux::handle_authenticated).
    Authenticate {
        /// Names the answer.
        ticket: u64,
        /// What the client says to prove it; none if it says nothing.
        token: Option<Secret>,
    },
    /// Find out where.
    Locate(Locate),
    /// Execute.
    Serve(Serve),
    /// Nobody waits any more for the answer to the call with this ticket: if its execution has not
    /// begun, it must not.
    Unserve(u64),
    /// The client answered a provider's request: the whole body, with the id as the client sees it.
    ProviderAnswer {
        /// As given to [`Mux::handle_provider_request`](super::Mux::handle_provider_request).
        token: u64,
        /// The answer's body; its `id` is to be replaced.
        body: Vec<u8>,
        /// Where the id's token stands in it.
        id: std::ops::Range<usize>,
    },
    /// This connection is no longer attached to the session.
    Release(SessionId),
    /// This connection hears the session.
    Attached(SessionId),
    /// The upstream connection to the session's owner has ended; the session will be opened again.
    Lost(SessionId),
    /// It was, or will not be.
    Reopened(SessionId),
    /// Nothing of the session is under way here, and nothing will be until
    /// [`Mux::handle_moved`](super::Mux::handle_moved) or
    /// [`Mux::handle_thaw`](super::Mux::handle_thaw).
    Frozen {
        #[allow(missing_docs)]
        session: SessionId,
        /// Of the [`Freeze`](super::Freeze).
        ticket: u64,
    },
    /// The session was created by the backend under an id of its own choice: count this
    /// connection as attached there.
    Adopt {
        #[allow(missing_docs)]
        session: SessionId,
        #[allow(missing_docs)]
        backend: BackendName,
    },
    /// The session is closed for everybody; on this backend only, if one is named.
    Closed {
        #[allow(missing_docs)]
        session: SessionId,
        #[allow(missing_docs)]
        backend: BackendName,
    },
    /// This backend has closed the session, not for a client: it is gone for every connection that
    /// was attached there.
    ClosedByBackend {
        #[allow(missing_docs)]
        session: SessionId,
        #[allow(missing_docs)]
        backend: BackendName,
    },
    /// The session was deleted.
    Deleted(SessionId),
    /// The session has had a turn, so this backend's disk has it.
    History {
        #[allow(missing_docs)]
        session: SessionId,
        #[allow(missing_docs)]
        backend: BackendName,
    },
    /// The session was copied; the copy lies on this backend's disk.
    Forked {
        #[allow(missing_docs)]
        source: SessionId,
        #[allow(missing_docs)]
        copy: SessionId,
        #[allow(missing_docs)]
        backend: BackendName,
    },
    /// A turn began.
    TurnBegan(SessionId),
    /// A turn ended; to be recorded if this connection is the one that reports it. With it what
    /// stands for the event that ended it: the same for every client that hears the session.
    TurnEnded(Box<TurnRecord>, Option<u64>),
    /// This connection's turn of the session is over; or it will not hear of its end, and somebody
    /// else is to.
    TurnOver {
        #[allow(missing_docs)]
        session: SessionId,
        #[allow(missing_docs)]
        parting: Parting,
    },
    /// That connection says from now on when this one's turn of the session is over.
    TurnPassed {
        #[allow(missing_docs)]
        session: SessionId,
        #[allow(missing_docs)]
        to: ConnectionId,
    },
    /// This connection does not wait for a turn of the session any more.
    TurnUnwanted(SessionId),
    /// A send has waited so long for somebody else's turn to end.
    TurnWaited(Duration),
    /// A turn has had no event for `sessions.turn_stall`, or has had one after that, or is over.
    TurnSilent {
        #[allow(missing_docs)]
        backend: BackendName,
        #[allow(missing_docs)]
        silent: bool,
    },
    /// A backend could not be reached, or did not complete the handshake.
    Unreachable {
        #[allow(missing_docs)]
        backend: BackendName,
    },
    /// A backend broke the protocol.
    Violation {
        #[allow(missing_docs)]
        backend: BackendName,
        #[allow(missing_docs)]
        what: &'static str,
    },
    /// One call was answered: class label, outcome, time since it came.
    CallEnded {
        #[allow(missing_docs)]
        class: &'static str,
        #[allow(missing_docs)]
        outcome: CallOutcome,
        #[allow(missing_docs)]
        took: Duration,
    },
    /// Something to log and count.
    Event(Event),
    /// Say this to the machine of another connection: [`Mux::handle_note`](super::Mux::handle_note)
    /// there, or [`Mux::handle_untold`](super::Mux::handle_untold) here if it has ended.
    Tell {
        #[allow(missing_docs)]
        to: ConnectionId,
        #[allow(missing_docs)]
        note: Note,
    },
    /// The client has left; its connection is to be closed as by [`Output::Close`]. This machine
    /// lives on for these sessions.
    Park {
        /// For people and the log.
        reason: &'static str,
        #[allow(missing_docs)]
        sessions: Vec<SessionId>,
    },
    /// Write what is in the outbox, then close the client's connection.
    Close {
        /// For people and the log.
        reason: &'static str,
    },
}

/// Frames and bytes since the shell last asked, as it does after each turn at the processor: there
/// are not that many frames in one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    frames: [[u32; 5]; 2],
    bytes: [u64; 2],
}

impl Tally {
    pub(super) fn add(&mut self, direction: Direction, kind: FrameKind, bytes: usize) {
        self.add_many(direction, kind, 1, bytes);
    }

    pub(super) fn add_many(
        &mut self,
        direction: Direction,
        kind: FrameKind,
        frames: u64,
        bytes: usize,
    ) {
        let d = usize::from(direction == Direction::BackendToClient);
        let counted = &mut self.frames[d][Self::column(kind)];
        *counted = counted.saturating_add(u32::try_from(frames).unwrap_or(u32::MAX));
        self.bytes[d] += bytes as u64;
    }

    fn column(kind: FrameKind) -> usize {
        match kind {
            FrameKind::Request => 0,
            FrameKind::Notification => 1,
            FrameKind::Response => 2,
            FrameKind::Error => 3,
            FrameKind::Invalid => 4,
        }
    }

    /// Frames of this kind that went this way.
    pub fn frames(&self, direction: Direction, kind: FrameKind) -> u64 {
        let d = usize::from(direction == Direction::BackendToClient);
        u64::from(self.frames[d][Self::column(kind)])
    }

    /// Whether nothing went this way, nor was taken for a frame.
    pub fn is_empty(&self, direction: Direction) -> bool {
        let d = usize::from(direction == Direction::BackendToClient);
        self.bytes[d] == 0 && self.frames[d] == [0; 5]
    }

    /// Bytes of whole frames that went this way.
    pub fn bytes(&self, direction: Direction) -> u64 {
        self.bytes[usize::from(direction == Direction::BackendToClient)]
    }
}
