//! What the data plane needs of the control plane: a picture of the pool, questions to backends,
//! and a place to report trouble. `app` joins the two.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use crate::{
    core::{id::BackendName, snapshot::Snapshot},
    transport::Transport,
};

/// A boxed future that owns all it needs.
pub type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A backend's answer to a question over its control connection.
#[derive(Clone, Debug)]
pub enum Answer {
    /// `result`, as JSON text.
    Result(String),
    /// `error`, as JSON text.
    Error(String),
    /// None in time: it may be busy, stopped, or cut off. Also if it could not be asked.
    Silent,
    /// Its process is known to be gone: what it had open is open no more.
    Gone,
}

/// Takes note that a backend is alive. Called on every read, hence cheap.
pub trait Alive: Send + Sync {
    /// Something came from it.
    fn mark(&self);
}

/// The control plane.
pub trait Pool: Send + Sync + 'static {
    /// The pool as it is now.
    fn snapshot(&self) -> Arc<Snapshot>;

    /// Asks one backend over its control connection. `params` is JSON text.
    fn ask(
        &self,
        backend: &BackendName,
        method: &str,
        params: String,
        timeout: Duration,
    ) -> Boxed<Answer>;

    /// Returns once the pool is no longer as in the snapshot of that generation.
    fn changed(&self, since: u64) -> Boxed<()>;

    /// A connection to it could not be made, or its handshake was not answered.
    /// For no want of our own, as of files.
    fn report_unreachable(&self, backend: &BackendName);

    /// It broke the protocol.
    fn report_violation(&self, backend: &BackendName, what: &str);

    /// What goes between TCP and the first frame of a connection to it.
    fn transport(&self, backend: &BackendName) -> Transport;

    /// Where upstream connections note that it is alive, so that a busy backend whose pings are
    /// late is not taken for dead. None for a backend that is no longer in the pool.
    fn activity(&self, backend: &BackendName) -> Option<Arc<dyn Alive>>;
}
