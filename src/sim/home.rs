//! The simulated disk: what `COPILOT_HOME` is to the real server.
//!
//! Servers with one shared home see each other's sessions, and nothing stops two of them from
//! appending to one log, exactly like the real ones. It must not know which sessions are open,
//! only which servers said so.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Most sessions on one disk, and events kept of one session; the oldest events go first.
const SESSIONS_MAX: usize = 100_000;
pub(super) const EVENTS_MAX: usize = 16_384;

/// An in-memory disk. A clone is the same disk, as with a shared `COPILOT_HOME`.
#[derive(Clone, Default)]
pub struct Home(Arc<Mutex<BTreeMap<String, Record>>>);

/// One session's directory.
#[derive(Clone, Default)]
pub(super) struct Record {
    pub(super) start_time: String,
    pub(super) modified: String,
    /// Whether the log exists. Without one the session is on no list and cannot be resumed.
    pub(super) has_turn: bool,
    /// The first prompt.
    pub(super) summary: String,
    pub(super) name: Option<String>,
    pub(super) mode: String,
    pub(super) model: Option<String>,
    pub(super) metadata: BTreeMap<String, String>,
    /// The log: event objects as JSON.
    pub(super) events: VecDeque<String>,
    /// Servers that hold it open: the lock files.
    pub(super) holders: BTreeSet<u64>,
}

impl Record {
    /// Bytes of the log.
    pub(super) fn size(&self) -> usize {
        self.events.iter().map(|event| event.len() + 1).sum()
    }

    /// The name shown in lists.
    pub(super) fn title(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.summary)
    }
}

impl Home {
    /// An empty disk of its own.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ids of the sessions that a server could resume from this disk, sorted.
    pub fn sessions(&self) -> Vec<String> {
        let disk = self.lock();
        disk.iter()
            .filter(|(_, record)| record.has_turn)
            .map(|(id, _)| id.clone())
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Record>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the directory of a session if there is none. `false`: the disk is full.
    pub(super) fn make(&self, id: &str, start_time: &str) -> bool {
        let mut disk = self.lock();
        if disk.len() >= SESSIONS_MAX && !disk.contains_key(id) {
            return false;
        }
        disk.entry(id.to_owned()).or_insert_with(|| Record {
            start_time: start_time.to_owned(),
            modified: start_time.to_owned(),
            ..Record::default()
        });
        true
    }

    /// Works on one directory; `None` if there is none.
    pub(super) fn with<R>(&self, id: &str, work: impl FnOnce(&mut Record) -> R) -> Option<R> {
        self.lock().get_mut(id).map(work)
    }

    /// A copy of a session that has a log.
    pub(super) fn load(&self, id: &str) -> Option<Record> {
        self.lock()
            .get(id)
            .filter(|record| record.has_turn)
            .cloned()
    }

    /// Stores a copy under a new id.
    pub(super) fn store(&self, id: &str, record: Record) {
        let mut disk = self.lock();
        if disk.len() < SESSIONS_MAX {
            disk.insert(id.to_owned(), record);
        }
    }

    /// Appends to the log of a session.
    pub(super) fn append(&self, id: &str, events: impl Iterator<Item = String>) {
        self.with(id, |record| {
            record.has_turn = true;
            record.events.extend(events);
            while record.events.len() > EVENTS_MAX {
                record.events.pop_front();
            }
        });
    }

    /// Removes a directory; says how large its log was. `None` if there was none.
    pub(super) fn remove(&self, id: &str) -> Option<usize> {
        self.lock().remove(id).map(|record| record.size())
    }

    /// What `view` shows of every session with a log, newest first.
    pub(super) fn newest<R>(&self, mut view: impl FnMut(&str, &Record) -> R) -> Vec<R> {
        let disk = self.lock();
        let mut found: Vec<_> = disk.iter().filter(|(_, record)| record.has_turn).collect();
        found.sort_by(|(_, a), (_, b)| b.modified.cmp(&a.modified));
        found
            .into_iter()
            .map(|(id, record)| view(id, record))
            .collect()
    }

    /// Forgets what `server` held: its process is gone.
    pub(super) fn release_all(&self, server: u64) {
        for record in self.lock().values_mut() {
            record.holders.remove(&server);
        }
    }
}
