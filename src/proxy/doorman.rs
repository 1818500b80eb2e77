//! Lets clients in, or makes who cannot say who it is wait for the answer. What proves something is
//! decided in `core::credential`, how long a wait is in `core::penalty`; here both meet the
//! connections of the process.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use super::{doorbook::Doorbook, error_lines::ErrorLines, lobby::Lobby};
use crate::{
    core::{
        credential::{Fault, Principals, Proved},
        id::Secret,
        penalty::{Penalties, Penalty},
    },
    observe::Observer,
};

/// One for all connections of the process.
#[derive(Clone, Debug, Default)]
pub struct Doorman {
    inside: Arc<Mutex<Inside>>,
    /// What is told of those that came to nothing.
    pub(super) book: Doorbook,
    /// Those that have not proved who they are yet.
    pub(super) lobby: Lobby,
}

#[derive(Debug, Default)]
struct Inside {
    penalties: Penalties,
    /// Strangers of all connections together must not fill the log.
    lines: ErrorLines,
}

/// A failure that waits for its answer. It counts until it is dropped.
#[derive(Debug)]
pub(super) struct Sentence {
    doorman: Doorman,
    address: IpAddr,
    /// How long.
    pub(super) wait: Duration,
}

impl Doorman {
    /// Who a client is that says this; `proved` is who it was before.
    pub(super) fn judge(
        principals: &Principals,
        token: Option<&Secret>,
        proved: Option<&Proved>,
        now: SystemTime,
    ) -> Result<Proved, Fault> {
        if let (None, Some(proved)) = (token, proved)
            && proved.is_by_certificate()
        {
            // The connection itself says so, and still does.
            return principals.still(proved).ok_or(Fault::Certificate);
        }
        let now = principals.by_token(token, now)?;
        match proved {
            Some(before) if !before.principal.is_renewed_by(&now.principal) => {
                Err(Fault::OtherPrincipal)
            }
            Some(_) | None => Ok(now),
        }
    }

    /// What becomes of who has failed; none if too many of its address wait already.
    pub(super) fn sentence(&self, now: Instant, address: IpAddr) -> Option<Sentence> {
        match self.inside().penalties.failed(now, address) {
            Penalty::Leave => None,
            Penalty::Wait(wait) => Some(Sentence {
                doorman: self.clone(),
                address,
                wait,
            }),
        }
    }

    /// Connections that have not proved who they are, where they have to.
    pub fn strangers(&self) -> usize {
        self.lobby.len()
    }

    /// Logs what is still to be said of connections that came to nothing: Taxiway ends.
    pub fn tell_rest(&self, observer: &Observer) {
        self.book.tell_rest(observer);
    }

    /// Whether one more line about strangers may be written.
    pub(super) fn admits_line(&self, now: Instant) -> bool {
        self.inside().lines.admit(now)
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Sentence {
    fn drop(&mut self) {
        self.doorman.inside().penalties.served(self.address);
    }
}
