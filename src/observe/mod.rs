//! What operators see: metrics and log lines.
//!
//! [`Observer`] is the one value the rooms share. Two roads lead to a counter: [`Observer::record`]
//! turns an event into one log line **and** moves the counters of that event; the methods of
//! [`Metrics`] and [`BackendMetrics`] move a number for which no event is made (gauges, hot paths).
//! Take one road for one occurrence; `event` lists what `record` counts.
//!
//! Must not decide anything, and must not show prompts, parameters, tokens, or (in metrics) the
//! name of a user or session.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crate::core::event::Identities;

mod event;
pub mod label;
pub mod log;
pub mod metrics;

pub use label::Label;
pub use metrics::{BackendMetrics, Metrics};

/// The metrics of this process and the settings of its log. Cheap to clone: all clones are one.
#[derive(Clone, Debug)]
pub struct Observer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    metrics: Metrics,
    /// `log.identities = "hash"`.
    hash_identities: AtomicBool,
    /// Keys of this process: equal names look equal within one run, and cannot be looked up.
    keys: RandomState,
    next_reference: AtomicU64,
}

impl Observer {
    /// Fresh metrics in a registry of their own; all counters at zero.
    pub fn new(identities: Identities) -> Self {
        Self {
            shared: Arc::new(Shared {
                metrics: Metrics::new(),
                hash_identities: AtomicBool::new(identities == Identities::Hash),
                keys: RandomState::new(),
                next_reference: AtomicU64::new(1),
            }),
        }
    }

    /// The numbers.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// The next log reference, unique in this process: what `data.ref` of an error and `ref` of a
    /// log line have in common. Written in decimal in both.
    pub fn reference(&self) -> u64 {
        self.shared.next_reference.fetch_add(1, Ordering::Relaxed)
    }

    /// Changes `log.identities` (a reload).
    pub fn set_identities(&self, identities: Identities) {
        let hash = identities == Identities::Hash;
        self.shared.hash_identities.store(hash, Ordering::Relaxed);
    }

    /// Lets `taxiway_log_lines_dropped_total` show what this log had to drop.
    pub fn follow_log(&self, log: &log::LogHandle) {
        self.shared.metrics.adopt_log_counter(log.dropped_counter());
    }

    fn hides_identities(&self) -> bool {
        self.shared.hash_identities.load(Ordering::Relaxed)
    }

    /// A user's or session's name as the log may show it.
    fn identity(&self, name: &str) -> String {
        if self.hides_identities() {
            format!("h:{:016x}", self.shared.keys.hash_one(name))
        } else {
            clip(name).to_owned()
        }
    }
}

/// Longest text of a peer that one field of a log line repeats, in bytes.
const FIELD_LIMIT: usize = 256;

/// The beginning of a text that may come from a peer: a field never outgrows its line.
fn clip(text: &str) -> &str {
    clip_to(text, FIELD_LIMIT)
}

/// At most the first `limit` bytes of a text, whole characters only.
fn clip_to(text: &str, limit: usize) -> &str {
    let mut end = limit.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
