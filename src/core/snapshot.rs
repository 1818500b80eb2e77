//! The immutable picture of the pool that the control plane publishes and the data plane reads.

use std::{fmt, ops::Deref, slice, sync::Arc};

use super::{
    id::{BackendName, Secret},
    ring::Ring,
};

/// Where the disks are, hence how sessions are routed (`routing.mode`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Separate disks: a session lives where it was made.
    Sticky,
    /// One disk for all: any backend can open any closed session.
    SharedStorage,
}

/// What the operator wants of a backend. Wins over observation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AdminState {
    /// Takes placements.
    Ready,
    /// Takes no new sessions, keeps the ones it has.
    Drain,
    /// As if it were not there: neither placements nor questions.
    Maint,
}

/// What was observed of a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    /// Not probed yet.
    Unknown,
    /// Answers.
    Up,
    /// Alive but late: less weight, nothing moves.
    Slow,
    /// Refuses or is silent: no placements.
    Down,
    /// Back, on a share of its weight until it has proved itself.
    Probation,
    /// Shared storage only: does not list sessions known to be on disk.
    StorageMismatch,
}

/// One backend as of this snapshot.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Identity.
    pub name: BackendName,
    /// `host:port` to connect to.
    pub address: Arc<str>,
    /// Token for the backend's own `connect`, if it wants one.
    pub token: Option<Secret>,
    /// Configured weight, ≥ 1; what hashing uses, so that placement does not flap with health.
    pub weight: u32,
    /// Share of `weight` in force now, in per mille (slow start, slow): what load comparison uses.
    pub weight_permille: u32,
    /// Operator's wish.
    pub admin: AdminState,
    /// Observation.
    pub health: Health,
    /// No longer configured; kept only while it still serves sessions.
    pub removed: bool,
    /// Its sessions may be opened elsewhere (shared storage only): its process is gone or fenced,
    /// or was silent for `failover.hang_timeout` (DESIGN §5). It is not usable then, and not
    /// before it has closed what was opened elsewhere.
    pub released: bool,
    /// `protocolVersion` from its `connect` answer, once known.
    pub protocol_version: Option<u32>,
    /// CLI version from its `connect` answer, once known.
    pub version: Option<Arc<str>>,
    /// `taskKinds` from its `connect` answer.
    pub task_kinds: Arc<[Arc<str>]>,
    /// Whether its session list has been read at least once since Taxiway knows it.
    pub disk_read: bool,
}

impl Backend {
    /// May new sessions be put here?
    #[inline]
    pub fn takes_placements(&self) -> bool {
        self.admin == AdminState::Ready
            && !self.removed
            && !self.released
            && matches!(self.health, Health::Up | Health::Slow | Health::Probation)
    }

    /// May it be asked, and serve sessions that it has?
    pub fn is_usable(&self) -> bool {
        self.admin != AdminState::Maint
            && !self.released
            && !matches!(self.health, Health::Down | Health::Unknown)
    }
}

/// Backends in the order of their names, which are unique, and the [`Ring`] that sessions are placed
/// by. The two are made together, so they never tell of different pools.
#[derive(Clone)]
pub struct Backends {
    all: Vec<Backend>,
    ring: Ring,
}

impl Backends {
    /// What placements draw from.
    #[inline]
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Other backends instead, made of these.
    pub fn change(&mut self, change: impl FnOnce(&mut Vec<Backend>)) {
        let mut all = std::mem::take(&mut self.all);
        change(&mut all);
        *self = Self::from(all);
    }
}

impl From<Vec<Backend>> for Backends {
    fn from(mut all: Vec<Backend>) -> Self {
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Self {
            ring: Ring::new(&all),
            all,
        }
    }
}

impl Deref for Backends {
    type Target = [Backend];

    #[inline]
    fn deref(&self) -> &[Backend] {
        &self.all
    }
}

impl<'a> IntoIterator for &'a Backends {
    type Item = &'a Backend;
    type IntoIter = slice::Iter<'a, Backend>;

    fn into_iter(self) -> Self::IntoIter {
        self.all.iter()
    }
}

impl fmt::Debug for Backends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.all.fmt(f)
    }
}

/// Where the newest snapshot is to be had.
pub trait Published: fmt::Debug {
    /// It. Whoever decides something by more than one fact takes it once.
    fn snapshot(&self) -> Arc<Snapshot>;
}

/// One that never changes.
impl Published for Snapshot {
    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::new(self.clone())
    }
}

impl Published for Arc<Snapshot> {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.clone()
    }
}

/// The pool at one moment. Never changed after publication.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Counts publications.
    pub generation: u64,
    /// `routing.mode`.
    pub mode: Mode,
    /// Who is in it.
    pub backends: Backends,
    /// More backends are unhealthy than `health.max_ejected` allows to eject.
    pub panic: bool,
}

impl Snapshot {
    /// The backend of that name, if it is in the pool.
    pub fn get(&self, name: &BackendName) -> Option<&Backend> {
        self.backends
            .binary_search_by(|b| b.name.cmp(name))
            .ok()
            .map(|i| &self.backends[i])
    }
}
