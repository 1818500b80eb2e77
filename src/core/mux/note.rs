//! What the machine of one client connection says to that of another, by way of the shell: all of it
//! is about one session that changes hands.

use std::ops::Range;

use super::{
    kept::Repeat,
    session::{Asked, Turn},
};
use crate::core::id::SessionId;

/// A message of one machine to another.
#[derive(Clone, Debug)]
pub enum Note {
    /// To the parked one: I hear this session, and want it whole.
    TakeOver(SessionId),
    /// From it: this is what its turn waits for.
    Parked {
        #[allow(missing_docs)]
        session: SessionId,
        /// Tools and permissions; the events that told of them.
        asked: Vec<Asked>,
        /// Requests of the backend, with their numbers here.
        requests: Vec<(u64, HeldRequest)>,
    },
    /// From it: one more.
    Request {
        #[allow(missing_docs)]
        session: SessionId,
        #[allow(missing_docs)]
        request: (u64, HeldRequest),
    },
    /// To it: my client's answer to that request.
    Answer {
        /// As numbered by the parked one.
        request: u64,
        /// The whole body.
        body: Box<[u8]>,
        /// Where its id stands.
        id: Range<usize>,
    },
    /// To it: nothing is left to be asked, so leave it.
    LetGo(SessionId),
    /// From it: I have; nothing of it goes over my upstream connection any more.
    Left {
        #[allow(missing_docs)]
        session: SessionId,
        /// For the one that has taken it over.
        handover: Option<Box<Handover>>,
    },
    /// To it: I do not take it over after all.
    GivenUp(SessionId),
}

impl Note {
    /// Which session it is about, where that counts.
    pub(super) fn session(&self) -> Option<&SessionId> {
        match self {
            Self::TakeOver(session)
            | Self::LetGo(session)
            | Self::GivenUp(session)
            | Self::Parked { session, .. }
            | Self::Request { session, .. }
            | Self::Left { session, .. } => Some(session),
            Self::Answer { .. } => None,
        }
    }
}

/// A request of a backend that waits for a client.
#[derive(Clone)]
pub struct HeldRequest {
    pub(super) body: Box<[u8]>,
    /// Where its id stands.
    pub(super) id: Range<usize>,
}

impl std::fmt::Debug for HeldRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HeldRequest").finish_non_exhaustive()
    }
}

/// What one connection knew of a session, for the one that has it now.
#[derive(Clone)]
pub struct Handover {
    pub(super) turn: Option<Box<Turn>>,
    pub(super) asked: Vec<Asked>,
    pub(super) answers: Vec<Repeat>,
}

impl std::fmt::Debug for Handover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handover").finish_non_exhaustive()
    }
}
