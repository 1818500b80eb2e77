//! What a machine has to ask in the middle of a step, because the frame at hand goes on or stays by
//! the answer: what all connections share. Answered at once; everything that takes time, or that
//! nobody waits for, is an [`Output`](super::Output).

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use super::Settings;
use crate::core::{
    id::{ConnectionId, SessionId},
    identity::{Person, Principal},
    reply::ProxyError,
    turnlock::{Ask, Verdict},
};

/// A cap is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Over {
    /// Its key in the configuration.
    pub limit: &'static str,
    /// Its value there.
    pub value: u64,
    /// When it is worth to try again.
    pub retry_after: Duration,
}

impl From<Over> for ProxyError {
    fn from(over: Over) -> Self {
        let Over {
            limit,
            value,
            retry_after,
        } = over;
        Self::OverCap {
            limit,
            value,
            retry_after,
        }
    }
}

/// What all connections share. Caps are those of the settings at hand.
pub trait Commons: fmt::Debug {
    /// It is known who the client is, or that nobody asks: from now on it counts as one of that
    /// user's connections. What is counted for it ends with the connection. Said again, it is the same
    /// principal, perhaps with other caps, or nobody asks any more.
    ///
    /// # Errors
    /// The user has as many as may be.
    fn enter(&self, settings: &Settings, principal: Option<&Arc<Principal>>) -> Result<(), Over>;

    /// One more call, of so many bytes.
    ///
    /// # Errors
    /// It comes too soon.
    fn spend(&self, settings: &Settings, bytes: usize) -> Result<(), Over>;

    /// One more session is open here, if it is one more; given back when it is released, closed or
    /// deleted.
    ///
    /// # Errors
    /// As many are open as may.
    fn seat_session(&self, settings: &Settings, session: &SessionId) -> Result<(), Over>;

    /// Whether a session may be opened whose id nobody knows yet.
    ///
    /// # Errors
    /// As many are open as may.
    fn may_open(&self, settings: &Settings) -> Result<(), Over>;

    /// One more turn, if it is one more; given back with the lock.
    ///
    /// # Errors
    /// As many run as may.
    fn seat_turn(&self, settings: &Settings, session: &SessionId) -> Result<(), Over>;

    /// May this send begin a turn, or join the one that runs? What was taken is given back by
    /// [`Output::TurnOver`](super::Output::TurnOver).
    fn ask_turn(&self, now: Instant, session: &SessionId, ask: &Ask) -> Verdict;

    /// Whether the turn that runs in `session`, if one does, is this user's to end.
    fn may_end_turn(&self, session: &str, by: ConnectionId, user: Option<&Person>) -> bool;

    /// Whether other connections than `than` hold `session`, or may.
    fn has_others(&self, session: &str, than: ConnectionId) -> bool;

    /// Whether a turn of `session` is known to any connection, of this process or another.
    fn is_in_turn(&self, now: Instant, session: &str) -> bool;

    /// Whether `session` may be one that this client is just creating under an id that its backend
    /// chooses: it is not known to be somebody's whose sessions the client may not see.
    fn may_be_new(&self, settings: &Settings, session: &str) -> bool;
}

/// Nobody else is there.
#[derive(Clone, Copy, Debug)]
pub struct Alone;

impl Commons for Alone {
    fn enter(&self, _: &Settings, _: Option<&Arc<Principal>>) -> Result<(), Over> {
        Ok(())
    }

    fn spend(&self, _: &Settings, _: usize) -> Result<(), Over> {
        Ok(())
    }

    fn seat_session(&self, _: &Settings, _: &SessionId) -> Result<(), Over> {
        Ok(())
    }

    fn may_open(&self, _: &Settings) -> Result<(), Over> {
        Ok(())
    }

    fn seat_turn(&self, _: &Settings, _: &SessionId) -> Result<(), Over> {
        Ok(())
    }

    fn ask_turn(&self, _: Instant, _: &SessionId, _: &Ask) -> Verdict {
        Verdict::Taken
    }

    fn may_end_turn(&self, _: &str, _: ConnectionId, _: Option<&Person>) -> bool {
        true
    }

    fn has_others(&self, _: &str, _: ConnectionId) -> bool {
        false
    }

    fn is_in_turn(&self, _: Instant, _: &str) -> bool {
        false
    }

    fn may_be_new(&self, _: &Settings, _: &str) -> bool {
        true
    }
}
