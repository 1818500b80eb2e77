//! The directory in memory: one lock around `core::directory`, taken per placement, attach and
//! turn, never per frame.

use std::{
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use tokio::sync::watch;

use super::peers::{Link, Unconfirmed};
use crate::core::{
    balance::{self, Policy},
    directory::{Claim, Directory, Known},
    event::PlacementReason,
    id::{BackendName, ConnectionId, SessionId},
    locate,
    peer::Question,
    snapshot::{Mode, Snapshot},
};

/// A handle; clones share one directory.
#[derive(Clone, Debug)]
pub struct Store {
    pub(super) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    directory: Mutex<Directory>,
    placements: AtomicU64,
    /// Counts changes of who has what open; those who wait for one follow it.
    changes: watch::Sender<u64>,
    /// To the process that decides, if another one does.
    pub(super) link: Link,
}

/// The directory, locked. What was changed under it is published when it is dropped.
#[derive(Debug)]
pub struct Guard<'a> {
    shared: &'a Shared,
    directory: MutexGuard<'a, Directory>,
}

impl Deref for Guard<'_> {
    type Target = Directory;

    fn deref(&self) -> &Directory {
        &self.directory
    }
}

impl DerefMut for Guard<'_> {
    fn deref_mut(&mut self) -> &mut Directory {
        &mut self.directory
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if self.directory.has_news() {
            self.shared.link.wake();
        }
        if self.directory.is_dirty() {
            drop(self.directory.take_dirty());
            self.shared.changes.send_modify(|n| *n += 1);
        }
    }
}

impl Store {
    /// An empty directory that remembers at most `limit` closed sessions.
    pub fn new(mode: Mode, limit: usize) -> Self {
        let shared = Shared {
            directory: Mutex::new(Directory::new(mode, limit)),
            placements: AtomicU64::new(0),
            changes: watch::Sender::new(0),
            link: Link::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// The directory. Hold it only for a few steps, never across an await.
    pub fn lock(&self) -> Guard<'_> {
        // A panic under the lock is a bug of ours; the table itself is whole between two calls.
        let directory = self
            .shared
            .directory
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        Guard {
            shared: &self.shared,
            directory,
        }
    }

    /// What is known of `session` now.
    pub fn known(&self, session: &str) -> Known {
        self.lock().known(Instant::now(), session)
    }

    /// Follows changes of who has what open: a new value is one change or more.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Wakes those who wait for a change that leaves nothing to be kept, such as the standing of a
    /// holder.
    pub fn announce(&self) {
        self.shared.changes.send_modify(|n| *n += 1);
    }

    /// Claims `session` for `holder` on `want`, or where it is owned already. Returns once the
    /// owner is kept where a crash does not reach it.
    ///
    /// # Errors
    /// Another process decides, and does not answer.
    pub async fn claim(
        &self,
        session: &SessionId,
        want: &BackendName,
        holder: ConnectionId,
    ) -> Result<Claim, Unconfirmed> {
        let decide =
            |directory: &mut Directory| directory.claim(Instant::now(), session, want, holder);
        let question = Question::Claim {
            want: want.to_string(),
        };
        self.decide(session, question, holder, &decide).await
    }

    /// [`Directory::reown`]; returns once the new owner is kept where a crash does not reach it.
    ///
    /// # Errors
    /// Another process decides, and does not answer.
    pub async fn reown(
        &self,
        session: &SessionId,
        from: &BackendName,
        to: &BackendName,
        holder: ConnectionId,
    ) -> Result<Claim, Unconfirmed> {
        let decide =
            |directory: &mut Directory| directory.reown(Instant::now(), session, from, to, holder);
        let question = Question::Reown {
            from: from.to_string(),
            to: to.to_string(),
        };
        self.decide(session, question, holder, &decide).await
    }

    /// Chooses the backend of a new session by the loads known here.
    pub fn place(
        &self,
        policy: Policy,
        key: &str,
        snapshot: &Snapshot,
    ) -> Option<(BackendName, PlacementReason)> {
        let ticket = self.shared.placements.fetch_add(1, Ordering::Relaxed);
        let loads = {
            let directory = self.lock();
            locate::loads(snapshot, |name| directory.load(name))
        };
        let (index, reason) = balance::place(policy, key, snapshot, &loads, ticket)?;
        Some((snapshot.backends[index].name.clone(), reason))
    }
}
