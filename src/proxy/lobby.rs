//! Where connections are until they have proved who they are, and where some of them are called out
//! to make room. Which ones is decided in `core::strangers`; closing is the connection's own task's
//! business. Who has proved who it is has no seat here, and cannot be called out.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use ahash::RandomState;
use futures_util::task::AtomicWaker;

use crate::{
    core::{
        id::ConnectionId,
        strangers::{Bounds, Exceeded, Strangers},
    },
    observe::Observer,
};

/// Key of the configuration.
pub const TOTAL: &str = "limits.unauthenticated_connections";
/// As above.
pub const PER_ADDRESS: &str = "limits.unauthenticated_per_address";

/// Why a connection was closed that has made room.
pub(super) const EVICTED: &str =
    "it had not proved who it is when there were too many that had not";

/// One for all connections of the process; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Lobby(Arc<Mutex<Inside>>);

#[derive(Debug, Default)]
struct Inside {
    strangers: Strangers,
    bells: HashMap<ConnectionId, Arc<Bell>, RandomState>,
    /// Called out, and still there.
    leaving: HashSet<ConnectionId, RandomState>,
}

/// How a connection's task hears that it has to go.
#[derive(Debug, Default)]
struct Bell {
    is_rung: AtomicBool,
    waker: AtomicWaker,
}

impl Bell {
    fn ring(&self) {
        self.is_rung.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// The place of one connection, until it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    lobby: Lobby,
    id: ConnectionId,
    bell: Arc<Bell>,
    bounds: Bounds,
    observer: Observer,
}

impl Lobby {
    /// A seat for a connection that was just accepted. Another one may have to go for it.
    pub(super) fn sit(
        &self,
        id: ConnectionId,
        address: IpAddr,
        bounds: Bounds,
        observer: &Observer,
    ) -> Seat {
        let bell = Arc::new(Bell::default());
        {
            let mut inside = self.inside();
            inside.bells.insert(id, bell.clone());
            let gone = inside.strangers.arrive(id, address, bounds);
            inside.call_out(gone, observer);
        }
        Seat {
            lobby: self.clone(),
            id,
            bell,
            bounds,
            observer: observer.clone(),
        }
    }

    /// Calls out as many as it takes for `wanted` to be on their way out, or as there are; `wanted` is
    /// given how many are already. No more than `most` may be counted on: if more are wanted, one goes,
    /// and nobody may come in for it. Else somebody may, if enough are on their way or one more is.
    pub(super) fn see_out(&self, wanted: impl FnOnce(usize) -> usize, most: usize) -> bool {
        let mut inside = self.inside();
        let before = inside.leaving.len();
        let wanted = wanted(before);
        let few = wanted <= most;
        let aim = if few { wanted } else { most.min(before + 1) };
        while inside.leaving.len() < aim
            && let Some(gone) = inside.strangers.evict()
        {
            inside.ring(gone);
        }
        few && (inside.leaving.len() > before || before >= wanted)
    }

    /// How many were called out and have not gone yet.
    pub(super) fn leaving(&self) -> usize {
        self.inside().leaving.len()
    }

    /// How many have not proved who they are.
    pub(super) fn len(&self) -> usize {
        self.inside().strangers.len()
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inside {
    fn call_out(&mut self, gone: Option<(ConnectionId, Exceeded)>, observer: &Observer) {
        let Some((id, exceeded)) = gone else { return };
        observer.metrics().limit_hit(match exceeded {
            Exceeded::Total => TOTAL,
            Exceeded::PerAddress => PER_ADDRESS,
        });
        self.ring(id);
    }

    fn ring(&mut self, id: ConnectionId) {
        if let Some(bell) = self.bells.remove(&id) {
            self.leaving.insert(id);
            bell.ring();
        }
    }
}

impl Seat {
    /// The same, with other bounds from now on.
    #[must_use]
    pub(super) fn bound_by(mut self, bounds: Bounds) -> Self {
        self.bounds = bounds;
        self
    }

    /// A PROXY header has told where the client is.
    pub(super) fn comes_from(&self, address: IpAddr) {
        let mut inside = self.lobby.inside();
        let gone = inside.strangers.moved(self.id, address, self.bounds);
        inside.call_out(gone, &self.observer);
    }

    /// Ready when it has to go.
    pub(super) fn poll_called(&self, task: &Context<'_>) -> Poll<()> {
        let is_rung = || self.bell.is_rung.load(Ordering::Acquire);
        if !is_rung() {
            self.bell.waker.register(task.waker());
            if !is_rung() {
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut inside = self.lobby.inside();
        inside.strangers.leave(self.id);
        inside.bells.remove(&self.id);
        inside.leaving.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event::Identities;

    #[test]
    fn nobody_is_called_out_in_vain() {
        let lobby = Lobby::default();
        let observer = Observer::new(Identities::Plain);
        let bounds = Bounds {
            total: 100,
            per_address: None,
        };
        let sit = |id| lobby.sit(ConnectionId(id), [127, 0, 0, 1].into(), bounds, &observer);
        let mut seats: Vec<Seat> = (1..=2).map(sit).collect();
        // More are wanted than there are: who comes gets in for those who go.
        assert!(lobby.see_out(|_| 8, 16));
        assert_eq!((lobby.len(), lobby.leaving()), (0, 2));
        assert!(!lobby.see_out(|_| 8, 16), "nobody is left");
        assert!(
            lobby.see_out(|_| 2, 16),
            "as many as are wanted are leaving"
        );
        seats.clear();
        assert_eq!(lobby.leaving(), 0);

        let _seats: Vec<Seat> = (3..=9).map(sit).collect();
        assert!(lobby.see_out(|leaving| leaving + 1, 3));
        assert_eq!(lobby.leaving(), 1);
        assert!(lobby.see_out(|_| 2, 3));
        assert_eq!(lobby.leaving(), 2);
        assert!(!lobby.see_out(|_| 5, 3), "more than may be counted on");
        assert_eq!(lobby.leaving(), 3, "one, so that it ends");
        assert!(
            !lobby.see_out(|leaving| leaving + 1, 3),
            "as many as may be"
        );
        assert_eq!(lobby.leaving(), 3);
    }
}
