//! What operators ask and do over HTTP: health, metrics, the API and the dashboard; and the client
//! that the commands use.
//!
//! Must not know how the answers are found: everything is asked of a [`Backstage`], which `app`
//! implements. Must not show a secret.

use std::{net::SocketAddr, pin::Pin};

mod api;
pub mod client;
mod gate;
mod reply;
mod server;
#[cfg(test)]
mod tests;
mod uri;
mod view;

pub use server::{AdminServer, Bound};
pub use view::{BackendView, Page, Readiness, SessionFilter, SessionView};

/// A future behind a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What an operator can wish of a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StateChange {
    /// No new placements.
    Drain,
    /// As if it were not there.
    Maint,
    /// Takes placements.
    Ready,
    /// Forget the operator's wish: the file's state is in force again.
    Reset,
}

impl StateChange {
    /// Every wish.
    pub const ALL: [Self; 4] = [Self::Drain, Self::Maint, Self::Ready, Self::Reset];

    /// Its word in paths and commands.
    pub fn name(self) -> &'static str {
        match self {
            StateChange::Drain => "drain",
            StateChange::Maint => "maint",
            StateChange::Ready => "ready",
            StateChange::Reset => "reset",
        }
    }
}

/// Why something an operator wished was not done.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ActionError {
    /// No backend of that name.
    #[error("there is no backend named \"{0}\"")]
    UnknownBackend(String),
    /// The value is not allowed; says why.
    #[error("{0}")]
    Invalid(String),
    /// Not possible now; says why.
    #[error("{0}")]
    Conflict(String),
    /// Something broke; says what.
    #[error("{0}")]
    Failed(String),
}

/// What the admin server can ask and do. Calls must return at once: they are made on the thread
/// that also answers the health checks.
pub trait Backstage: Send + Sync + 'static {
    /// Whether clients should be sent here.
    fn readiness(&self) -> Readiness;

    /// Prometheus text.
    fn metrics(&self) -> String;

    /// All backends, ordered by name.
    fn backends(&self) -> Vec<BackendView>;

    /// At most `limit` sessions that match, after the one that a former page's `next` named.
    fn sessions(
        &self,
        filter: &SessionFilter,
        after: Option<&str>,
        limit: usize,
    ) -> Page<SessionView>;

    /// Everything known about a session, known or not: user and why, owner, home, last moves; and
    /// whether the principal of this name may use it.
    fn explain(&self, session: &str, principal: Option<&str>) -> serde_json::Value;

    /// The configuration in force, without secrets.
    fn config(&self) -> serde_json::Value;

    /// Changes what is wished of a backend.
    fn set_state(&self, backend: &str, state: StateChange) -> Result<(), ActionError>;

    /// Changes a backend's weight, ≥ 1, until `taxiway reset`.
    fn set_weight(&self, backend: &str, weight: u32) -> Result<(), ActionError>;

    /// Reads the configuration again: what changed, or what is wrong with it. Must not spawn tasks
    /// on the runtime it is polled on, which ends with the admin server.
    fn reload(&self) -> BoxFuture<'_, Result<String, serde_json::Value>>;

    /// A change was tried.
    fn audit(&self, client: SocketAddr, action: &str, ok: bool);
}
