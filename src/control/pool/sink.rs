//! What the pool tells, and asks, of the rest of Taxiway. Does nothing itself.

use bytes::Bytes;

use crate::{
    control::health::Lost,
    core::{
        event::Event,
        id::{BackendName, SessionId},
        snapshot::AdminState,
    },
};

/// Where the pool's news go. Called from the backends' tasks and from callers of [`Pool`](super::Pool), one at
/// a time per backend; must not block, and must not call back into [`Pool`](super::Pool) except for snapshots.
pub trait PoolSink: Send + Sync {
    /// A `session.lifecycle` event: `kind` is its `type`, `body` the whole notification.
    fn lifecycle(&self, backend: &BackendName, kind: &str, session: &SessionId, body: Bytes);
    /// A backend's session list was read: all sessions on its disk that have had a turn.
    fn disk(&self, backend: &BackendName, sessions: &[SessionId]);
    /// What the backend had open may be gone; `how` tells how surely.
    fn backend_lost(&self, backend: &BackendName, how: Lost);
    /// Sessions and upstream connections that still use a removed backend; 0 = it may be purged.
    fn in_use(&self, backend: &BackendName) -> usize;
    /// A silent backend is given up: its sessions may be opened elsewhere from now on. The
    /// snapshot says so already.
    fn given_up(&self, backend: &BackendName);
    /// Sessions that were opened elsewhere, and that it has to close before it is used again.
    fn moved_from(&self, backend: &BackendName) -> Vec<SessionId>;
    /// It has closed these.
    fn cleaned(&self, backend: &BackendName, sessions: &[SessionId]);
    /// What operators wish of a backend has changed: their state and weight, each none if the file
    /// is in force. May write it down before it returns: who changed it waits. One call at a time.
    fn operator(&self, backend: &BackendName, state: Option<AdminState>, weight: Option<u32>);
    /// For logs and counters.
    fn event(&self, event: Event);
}
