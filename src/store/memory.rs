//! The directory in memory: one lock around `core::directory`, taken per placement, attach and
//! turn, never per frame.

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use crate::core::{
    balance::{self, Policy},
    directory::{Claim, Directory, Known},
    event::PlacementReason,
    id::{BackendName, ConnectionId, SessionId},
    locate,
    snapshot::{Mode, Snapshot},
};

/// A handle; clones share one directory.
#[derive(Clone, Debug)]
pub struct Store {
    directory: Arc<Mutex<Directory>>,
    placements: Arc<AtomicU64>,
}

impl Store {
    /// An empty directory that remembers at most `limit` closed sessions.
    pub fn new(mode: Mode, limit: usize) -> Self {
        Self {
            directory: Arc::new(Mutex::new(Directory::new(mode, limit))),
            placements: Arc::new(AtomicU64::new(0)),
        }
    }

    /// The directory. Hold it only for a few steps, never across an await.
    pub fn lock(&self) -> MutexGuard<'_, Directory> {
        // A panic under the lock is a bug of ours; the table itself is whole between two calls.
        self.directory
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// What is known of `session` now.
    pub fn known(&self, session: &str) -> Known {
        self.lock().known(Instant::now(), session)
    }

    /// Claims `session` for `holder` on `want`, or where it is owned already.
    pub fn claim(&self, session: &SessionId, want: &BackendName, holder: ConnectionId) -> Claim {
        self.lock().claim(Instant::now(), session, want, holder)
    }

    /// Chooses the backend of a new session by the loads known here.
    pub fn place(
        &self,
        policy: Policy,
        key: &str,
        snapshot: &Snapshot,
    ) -> Option<(BackendName, PlacementReason)> {
        let ticket = self.placements.fetch_add(1, Ordering::Relaxed);
        let loads = {
            let directory = self.lock();
            locate::loads(snapshot, |name| directory.load(name))
        };
        let (index, reason) = balance::place(policy, key, snapshot, &loads, ticket)?;
        Some((snapshot.backends[index].name.clone(), reason))
    }
}
