//! What the backends' tasks and the pool tell each other.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use thiserror::Error;
use tokio::sync::oneshot;

use crate::{
    config,
    control::connection::Answer,
    core::{
        event::Event,
        id::{BackendName, Secret, SessionId},
        outlier::{Cause, Outlier, Rules},
        release::Ejection,
        snapshot::Health,
    },
    transport::Transport,
};

/// Signs of life that the data plane sees; shared with it.
#[derive(Debug, Default)]
pub struct Activity {
    /// A frame came since the control plane looked last.
    seen: AtomicBool,
}

impl Activity {
    /// A frame came from this backend. Costs a load when called often.
    pub fn mark(&self) {
        if !self.seen.load(Ordering::Relaxed) {
            self.seen.store(true, Ordering::Relaxed);
        }
    }

    pub(in crate::control) fn take(&self) -> bool {
        self.seen.swap(false, Ordering::Relaxed)
    }
}

/// A question that got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AskError {
    /// Not in the pool, or not usable now. Says nothing of what it has open.
    #[error("backend is not usable now")]
    Unusable,
    /// No answer within the time given, or no room for the question.
    #[error("backend did not answer in time")]
    TimedOut,
    /// Its process is gone: it ended its connection, or its port is closed. The question may have
    /// been executed; what was open there is open no more.
    #[error("backend is gone")]
    Lost,
}

pub(in crate::control) type Reply = oneshot::Sender<Result<Answer, AskError>>;

/// What the pool wants of the task. Losing one is allowed, except for its `reply`.
pub(in crate::control) enum Command {
    Ask {
        method: String,
        params: String,
        reply: Reply,
    },
    ConnectFailed,
    Violation(Arc<str>),
    /// Its process has ended.
    Gone,
    /// Another backend lists what this one did not: it is to look again.
    ReadDisk,
}

/// What the task works towards; replaced on reload.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::control) struct Target {
    pub(in crate::control) address: Arc<str>,
    pub(in crate::control) transport: Transport,
    pub(in crate::control) token: Option<Secret>,
    pub(in crate::control) rules: Rules,
    /// When it is given up although it is only silent.
    pub(in crate::control) failover: Arc<config::Failover>,
    /// No longer configured, at least not here: the task asks from time to time whether it may go.
    pub(in crate::control) leaving: bool,
}

/// What was seen of a backend, as far as it belongs in a snapshot.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::control) struct Observed {
    pub(in crate::control) health: Health,
    pub(in crate::control) weight_permille: u32,
    /// Why it is down.
    pub(in crate::control) cause: Option<Cause>,
    pub(in crate::control) protocol_version: Option<u32>,
    pub(in crate::control) version: Option<Arc<str>>,
    pub(in crate::control) task_kinds: Arc<[Arc<str>]>,
    pub(in crate::control) disk_read: bool,
    /// Its process was seen to be gone, and no other has answered the handshake since.
    pub(in crate::control) gone: bool,
    /// As in `snapshot::Backend`.
    pub(in crate::control) released: bool,
    /// Since when it cannot be used; none if it can.
    pub(in crate::control) away: Option<Instant>,
    /// If it is silent, it may stay in placement when too many are: its disk is the right one.
    pub(in crate::control) fits: bool,
}

/// How sure it is that what a backend ran is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// It closed or reset its control connection: its process is gone or going.
    Gone,
    /// Ejected for silence; it may wake.
    Silent,
    /// Ejected for breaking the protocol.
    Violation,
}

/// How a session list compares with what others list.
pub(in crate::control) enum Comparison {
    /// Nothing is missing, or there is nothing to compare with.
    Fits,
    /// The reference is newer than the list: read it again.
    ReadAgain,
    /// These are missing; the reference is asked whether they still exist.
    Confirm {
        missing: Vec<SessionId>,
        fresh: oneshot::Receiver<Result<Answer, AskError>>,
    },
    /// Something is missing, but nobody can be asked now.
    Postponed,
}

/// What the task tells the pool.
pub(in crate::control) trait Board: Send + Sync {
    fn observe(&self, backend: &BackendName, observed: Observed, outlier: &Outlier);
    fn lifecycle(&self, backend: &BackendName, kind: &str, session: &SessionId, body: Bytes);
    /// A list was read, having been asked for at `asked`.
    fn disk(&self, backend: &BackendName, sessions: Vec<SessionId>, asked: Instant) -> Comparison;
    fn lost(&self, backend: &BackendName, how: Lost);
    fn violation(&self, backend: &BackendName, what: &Arc<str>);
    /// Whether it is out of placement: one that is silent may be kept there.
    fn ejection(&self, backend: &BackendName) -> Ejection;
    /// It is silent and given up.
    fn given_up(&self, backend: &BackendName);
    /// What it has to close before it is used.
    fn moved_from(&self, backend: &BackendName) -> Vec<SessionId>;
    /// It has closed these.
    fn cleaned(&self, backend: &BackendName, sessions: &[SessionId]);
    fn event(&self, event: Event);
    /// Takes a removed backend out of the pool, or a moving one to its new address, if nothing
    /// uses it any more.
    fn purge(&self, backend: &BackendName);
}

/// Times and versions that are the same for all backends.
#[derive(Clone, Copy, Debug)]
pub(in crate::control) struct Habits {
    pub(in crate::control) keepalive: Option<Duration>,
    pub(in crate::control) protocol_version: u32,
    /// Compare session lists (shared storage).
    pub(in crate::control) compare_disks: bool,
    /// Between comparisons while something is missing.
    pub(in crate::control) disk_recheck: Duration,
    /// Between comparisons otherwise.
    pub(in crate::control) disk_reread: Duration,
}

impl Observed {
    pub(in crate::control) fn nothing() -> Self {
        Self {
            health: Health::Unknown,
            weight_permille: 1000,
            cause: None,
            protocol_version: None,
            version: None,
            task_kinds: Arc::from([]),
            disk_read: false,
            gone: false,
            released: false,
            away: None,
            fits: false,
        }
    }
}
