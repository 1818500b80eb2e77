//! What the API shows, as values: written by the server, read by the commands.
//!
//! Must not hold secrets. Fields may be added; a reader must take values without them.

use serde::{Deserialize, Serialize};

use crate::{core::snapshot::Backend, observe::Label};

/// Whether clients should be sent here.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Readiness {
    /// Configuration applied, listener bound, first probe round done, not draining.
    pub ready: bool,
    /// Why not, for people; empty when ready.
    #[serde(default)]
    pub reasons: Vec<String>,
    /// What some clients have to do without although it is ready, for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Backends that could serve a session now.
    #[serde(default)]
    pub usable_backends: usize,
}

/// One backend.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BackendView {
    /// Identity.
    pub name: String,
    /// `host:port`.
    pub address: String,
    /// The operator's: `ready`, `drain`, `maint`.
    pub state: String,
    /// The observed: `unknown`, `up`, `slow`, `down`, `probation`, `storage_mismatch`.
    pub health: String,
    /// Why `health` is what it is, for people.
    pub health_reason: Option<String>,
    /// Whether new sessions may be put here.
    pub takes_placements: bool,
    /// Whether its sessions may be opened elsewhere.
    pub released: bool,
    /// For how long it has not been usable, in seconds; null if it is.
    pub away_seconds: Option<f64>,
    /// No longer configured; still serves sessions.
    pub removed: bool,
    /// Configured or set weight.
    pub weight: u32,
    /// Share of it in force now, in per mille.
    pub weight_permille: u32,
    /// Sessions open here.
    pub sessions_open: u64,
    /// Turns running here.
    pub turns_open: u64,
    /// Connections that serve clients.
    pub upstream_connections: u64,
    /// Moving average of the answer time to ping, in milliseconds.
    pub ping_ms: Option<f64>,
    /// Version of the CLI.
    pub version: Option<String>,
    /// Version of its protocol.
    pub protocol_version: Option<u32>,
    /// Whether its list of sessions has been read.
    pub disk_read: bool,
}

impl From<&Backend> for BackendView {
    /// What a snapshot tells; load, ping and reasons are for others to add.
    fn from(backend: &Backend) -> Self {
        Self {
            name: backend.name.to_string(),
            address: backend.address.to_string(),
            state: backend.admin.label().to_owned(),
            health: backend.health.label().to_owned(),
            takes_placements: backend.takes_placements(),
            released: backend.released,
            removed: backend.removed,
            weight: backend.weight,
            weight_permille: backend.weight_permille,
            version: backend.version.as_deref().map(str::to_owned),
            protocol_version: backend.protocol_version,
            disk_read: backend.disk_read,
            ..Self::default()
        }
    }
}

/// One session.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionView {
    /// Its id.
    pub id: String,
    /// Whose it is, if known.
    pub user: Option<String>,
    /// The backend that has it open (its owner), else the one whose disk holds it (its home).
    pub backend: Option<String>,
    /// Whether a backend has it open.
    pub open: bool,
    /// Whether a turn runs in it.
    pub turn_open: bool,
    /// The client connection whose turn it is; null if none of this process's.
    pub turn_holder: Option<String>,
    /// Connections that wait for their turn.
    pub turn_waiters: u64,
    /// Client connections attached to it.
    pub connections: u64,
    /// Whether one of them has broken in a turn, which goes on (`sessions.detach_grace`).
    #[serde(default)]
    pub parked: bool,
    /// Since it was last used, in seconds.
    pub idle_seconds: Option<f64>,
}

/// Which sessions to list.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SessionFilter {
    /// Only those of this backend.
    pub backend: Option<String>,
    /// Only those of this user.
    pub user: Option<String>,
}

/// Part of a list.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Where the next page begins, as `after` takes it; null if this is the last.
    pub next: Option<String>,
}
