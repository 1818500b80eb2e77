//! The handle that everybody has: one lock around `core::directory`, taken per placement, attach and
//! turn, never per frame.
//!
//! What the lock's holder has changed goes to the writer, if there is a file, when the lock is given
//! back. Nobody waits for the disk under the lock.

use std::{
    collections::BTreeMap,
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use tokio::sync::watch;

use super::{
    Kind, Operator, Options, StoreError, Wishes,
    embedded::{self, Writer},
    peers::{Link, Unconfirmed},
    turns::Turns,
};
use crate::core::{
    balance::{self, Policy},
    directory::{Claim, Directory, Known},
    event::PlacementReason,
    id::{BackendName, ConnectionId, SessionId},
    identity::Person,
    locate,
    peer::{Question, Whose},
    snapshot::{Mode, Snapshot},
};

/// A handle; clones share one directory.
#[derive(Clone, Debug)]
pub struct Store {
    pub(super) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    directory: Arc<Mutex<Directory>>,
    /// Mirrors the directory in a file; none for the memory kind.
    writer: ArcSwapOption<Writer>,
    wishes: Wishes,
    placements: AtomicU64,
    /// Counts changes of who has what open; those who wait for one follow it.
    changes: watch::Sender<u64>,
    /// To the process that decides, if another one does.
    pub(super) link: Link,
    turns: Turns,
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

impl Guard<'_> {
    /// Hands over what was changed. Gives what to wait for until what `urgent` is now is on disk.
    fn publish(&mut self, urgent: Option<&SessionId>) -> Option<u64> {
        let dirty = self.directory.take_dirty();
        if dirty.is_empty() && urgent.is_none() {
            return None;
        }
        if !dirty.is_empty() {
            self.shared.changes.send_modify(|n| *n += 1);
        }
        // Under the lock still: whoever is next must see that it is not written yet.
        self.shared.writer.load().as_ref()?.push(dirty, urgent)
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if self.directory.has_news() {
            self.shared.link.wake();
        }
        if self.directory.take_owned_news() {
            self.shared.link.owned();
        }
        if self.directory.is_dirty() {
            self.publish(None);
        }
    }
}

impl Store {
    /// An empty directory in memory that remembers at most `limit` closed sessions.
    pub fn new(mode: Mode, limit: usize) -> Self {
        let directory = Directory::new(mode, limit);
        Self::with(Arc::new(Mutex::new(directory)), Wishes::default(), None)
    }

    /// The directory as it was kept, or an empty one. Reads the whole file: it blocks.
    ///
    /// # Errors
    /// Why the file cannot be used, and what to do about it.
    pub fn open(kind: &Kind, options: &Options) -> Result<Self, StoreError> {
        match kind {
            Kind::Memory => Ok(Self::new(options.mode, options.limit)),
            Kind::Embedded(path) => {
                let opened = embedded::open(path, options)?;
                let writer = Some(opened.writer);
                Ok(Self::with(opened.directory, opened.wishes, writer))
            }
        }
    }

    pub(super) fn with(
        directory: Arc<Mutex<Directory>>,
        wishes: Wishes,
        writer: Option<Writer>,
    ) -> Self {
        let shared = Shared {
            directory,
            writer: ArcSwapOption::new(writer.map(Arc::new)),
            wishes,
            placements: AtomicU64::new(0),
            changes: watch::Sender::new(0),
            link: Link::default(),
            turns: Turns::default(),
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
            .unwrap_or_else(PoisonError::into_inner);
        Guard {
            shared: &self.shared,
            directory,
        }
    }

    /// Whose turn it is in each session: of this process's connections.
    pub fn turns(&self) -> &Turns {
        &self.shared.turns
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

    /// Claims `session` for `holder` on `want`, or where it is owned already.
    ///
    /// Returns once the owner is on disk, whoever has put it there; a crash of Taxiway or of the
    /// machine does not reach it then. While the file cannot be written, it returns as soon as that
    /// is known, at the latest after five seconds: the claim holds in memory, as the log and
    /// `taxiway_store_up` say.
    ///
    /// # Errors
    /// Another process decides, and does not answer.
    pub async fn claim(
        &self,
        session: &SessionId,
        want: &BackendName,
        holder: ConnectionId,
    ) -> Result<Claim, Unconfirmed> {
        self.claim_for(session, want, holder, None).await
    }

    /// The same for `person`, whose the session is from now on, unless it is somebody's already:
    /// then it was claimed all the same, and whoever asks has to look whose it is.
    ///
    /// # Errors
    /// Another process decides, and does not answer.
    pub async fn claim_for(
        &self,
        session: &SessionId,
        want: &BackendName,
        holder: ConnectionId,
        person: Option<&Person>,
    ) -> Result<Claim, Unconfirmed> {
        let decide = |directory: &mut Directory| {
            let now = Instant::now();
            let claim = directory.claim(now, session, want, holder);
            if let Some(person) = person.filter(|_| claim != Claim::Moving) {
                directory.belongs(now, session, person);
            }
            claim
        };
        let question = Question::Claim {
            want: want.to_string(),
            whose: person.map(Whose::from),
        };
        self.decide(session, question, holder, &decide).await
    }

    /// [`Directory::reown`]; returns as [`Store::claim`] does.
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

    /// Decides under this lock; what was decided counts once it is on disk.
    pub(super) fn decide_here<'a>(
        &'a self,
        mut directory: Guard<'_>,
        session: &'a SessionId,
        holder: ConnectionId,
        decide: &(dyn Fn(&mut Directory) -> Claim + Sync),
    ) -> Unanswered<'a> {
        let held = directory.claimed_at(session.as_str(), holder).is_some();
        let claim = decide(&mut directory);
        let claimed = directory.claimed_at(session.as_str(), holder);
        let claimed = claimed.filter(|_| !held);
        Unanswered {
            store: self,
            claim,
            batch: directory.publish(Some(session)),
            claimed: claimed.map(|at| (session, holder, at)),
        }
    }

    async fn written(&self, batch: Option<u64>) {
        let writer = self.shared.writer.load_full();
        if let (Some(writer), Some(batch)) = (writer, batch) {
            writer.written(batch).await;
        }
    }

    /// What operators want of backends, over what the configuration says.
    pub fn operators(&self) -> Vec<Operator> {
        self.wishes().values().cloned().collect()
    }

    /// Keeps what an operator wants of a backend, in place of what was wanted before; a wish for
    /// nothing forgets it. Returns once it is on disk, as [`Store::claim`] does.
    pub async fn keep_operator(&self, operator: Operator) {
        let batch = self.note_operator(operator);
        self.written(batch).await;
    }

    /// The same, for a thread that may block.
    pub fn keep_operator_blocking(&self, operator: Operator) {
        let batch = self.note_operator(operator);
        let writer = self.shared.writer.load_full();
        if let (Some(writer), Some(batch)) = (writer, batch) {
            writer.block_until_written(batch);
        }
    }

    fn note_operator(&self, operator: Operator) -> Option<u64> {
        let backend = operator.backend.clone();
        let mut wishes = self.wishes();
        if operator.state.is_some() || operator.weight.is_some() {
            wishes.insert(backend.clone(), operator);
        } else {
            wishes.remove(&backend);
        }
        drop(wishes);
        Some(self.shared.writer.load().as_ref()?.push_operator(backend))
    }

    fn wishes(&self) -> MutexGuard<'_, BTreeMap<BackendName, Operator>> {
        let wishes = self.shared.wishes.lock();
        wishes.unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether what is claimed outlives the process, as far as it was to.
    pub fn is_up(&self) -> bool {
        let writer = self.shared.writer.load();
        writer.as_ref().is_none_or(|writer| writer.is_up())
    }

    /// How many sessions have changed and are not on disk yet.
    pub fn unwritten(&self) -> usize {
        let writer = self.shared.writer.load();
        writer.as_ref().map_or(0, |writer| writer.waiting())
    }

    /// Writes what waits, and gives the file up; the directory goes on in memory. False if that
    /// took longer than `within`.
    pub async fn close(&self, within: Duration) -> bool {
        let Some(writer) = self.shared.writer.load_full() else {
            return true;
        };
        tokio::time::timeout(within, writer.close()).await.is_ok()
    }

    /// Keeps the directory in this file from now on, whatever the file has now: for a process that
    /// takes over from the one that had the file, or takes it back. What goes wrong is reported, and
    /// tried again.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn attach(&self, kind: &Kind, options: &Options) -> std::io::Result<()> {
        let Kind::Embedded(path) = kind else {
            return Ok(());
        };
        let shared = &self.shared;
        let writer = embedded::attach(path, options, &shared.directory, &shared.wishes)?;
        shared.writer.store(Some(Arc::new(writer)));
        Ok(())
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

/// A claim that is not on disk yet. Dropped before it is, it is given back: nobody would know that
/// there is something to give back.
pub(super) struct Unanswered<'a> {
    store: &'a Store,
    claim: Claim,
    /// What to wait for.
    batch: Option<u64>,
    /// None if it was held before.
    claimed: Option<(&'a SessionId, ConnectionId, Instant)>,
}

impl Unanswered<'_> {
    pub(super) async fn answer(mut self) -> Claim {
        self.store.written(self.batch).await;
        self.claimed = None;
        self.claim.clone()
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if let Some((session, holder, claimed)) = self.claimed {
            let mut directory = self.store.lock();
            directory.unclaim(Instant::now(), session.as_str(), holder, claimed);
        }
    }
}
