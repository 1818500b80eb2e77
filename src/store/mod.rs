//! What connections share: the directory of sessions, in memory or mirrored in a file. Sees no
//! frames.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::core::{
    event::Event,
    id::BackendName,
    snapshot::{AdminState, Mode},
};

mod embedded;
mod error;
mod handle;
mod peers;
mod turns;

pub use self::{
    error::StoreError,
    handle::{Guard, Store},
    peers::{Estate, Told, Unconfirmed},
    turns::Turns,
};

/// Where the directory is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Nowhere else: it ends with the process, and is asked for again from the servers.
    Memory,
    /// In this file, by this process alone.
    Embedded(PathBuf),
}

/// Told what happens to the store.
pub type Report = Arc<dyn Fn(Event) + Send + Sync>;

/// How a store is opened.
#[derive(Clone)]
pub struct Options {
    /// Where the disks are.
    pub mode: Mode,
    /// How many sessions are remembered; open ones always are.
    pub limit: usize,
    /// A closed session not heard of for so long is forgotten at the start; none = never.
    pub expire: Option<Duration>,
    /// Who is told.
    pub report: Report,
}

/// By backend, shared with whoever writes them.
type Wishes = Arc<Mutex<BTreeMap<BackendName, Operator>>>;

/// What an operator wants of a backend, over what the configuration says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operator {
    /// Which one.
    pub backend: BackendName,
    /// Its state; none = as configured.
    pub state: Option<AdminState>,
    /// Its weight; none = as configured.
    pub weight: Option<u32>,
}
