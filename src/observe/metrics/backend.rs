//! The series of one backend, resolved once so that moving them is a plain atomic operation.
//!
//! Must not bring back series of a backend that was forgotten: whoever still holds its
//! [`BackendMetrics`] moves numbers that nobody sees.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus::{Gauge, GaugeVec, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::{counters, gauges, int_gauges, series::OTHER, table};
use crate::{
    core::{
        event::{PlacementReason, TurnOutcome},
        snapshot::{AdminState, Health},
    },
    observe::{Label, clip},
};

/// Most different ejection reasons counted for one backend; the rest is `other`.
const MOST_REASONS: usize = 16;

/// The metrics whose series are per backend, and those that every turn moves.
#[derive(Clone, Debug)]
pub(super) struct Families {
    upstream_connections: IntGaugeVec,
    sessions_open: IntGaugeVec,
    turns_open: IntGaugeVec,
    turns_silent: IntGaugeVec,
    turns: IntCounterVec,
    turn_duration: Histogram,
    turn_first_event: Histogram,
    info: IntGaugeVec,
    up: IntGaugeVec,
    state: IntGaugeVec,
    ping: GaugeVec,
    ejections: IntCounterVec,
    sessions_opened: IntCounterVec,
    placements: IntCounterVec,
}

impl Families {
    pub(super) fn new(registry: &prometheus::Registry) -> Self {
        Self {
            upstream_connections: int_gauges(registry, &table::UPSTREAM_CONNECTIONS),
            sessions_open: int_gauges(registry, &table::SESSIONS_OPEN),
            turns_open: int_gauges(registry, &table::TURNS_OPEN),
            turns_silent: int_gauges(registry, &table::TURNS_SILENT),
            turns: counters(registry, &table::TURNS),
            turn_duration: super::histogram(registry, &table::TURN_DURATION, super::TURN_BUCKETS),
            turn_first_event: super::histogram(
                registry,
                &table::TURN_FIRST_EVENT,
                super::TURN_BUCKETS,
            ),
            info: int_gauges(registry, &table::BACKEND_INFO),
            up: int_gauges(registry, &table::BACKEND_UP),
            state: int_gauges(registry, &table::BACKEND_STATE),
            ping: gauges(registry, &table::BACKEND_PING),
            ejections: counters(registry, &table::BACKEND_EJECTIONS),
            sessions_opened: counters(registry, &table::BACKEND_SESSIONS_OPENED),
            placements: counters(registry, &table::PLACEMENTS),
        }
    }
}

/// The metrics of one backend.
pub struct BackendMetrics {
    name: String,
    families: Families,
    upstream_connections: IntGauge,
    sessions_open: IntGauge,
    turns_open: IntGauge,
    turns_silent: IntGauge,
    /// By [`Label::position`] of the outcome.
    turns: Vec<IntCounter>,
    up: IntGauge,
    /// By position of the operator's state.
    admin: Vec<IntGauge>,
    /// By position of the observed state.
    health: Vec<IntGauge>,
    ping: Gauge,
    sessions_opened: IntCounter,
    /// By position of the reason.
    placements: Vec<IntCounter>,
    /// Series whose labels are not known beforehand.
    varying: Mutex<Varying>,
}

#[derive(Debug, Default)]
struct Varying {
    forgotten: bool,
    /// `version` and `protocol_version` of the info series that is shown.
    info: Option<(String, String)>,
    reasons: Vec<String>,
}

impl BackendMetrics {
    pub(super) fn new(families: &Families, name: &str) -> Self {
        fn by_label<T: Label, S>(name: &str, find: impl Fn(&[&str]) -> S) -> Vec<S> {
            T::ALL
                .iter()
                .map(|value| find(&[name, value.label()]))
                .collect()
        }
        let one = [name];
        Self {
            name: name.to_owned(),
            upstream_connections: families.upstream_connections.with_label_values(&one),
            sessions_open: families.sessions_open.with_label_values(&one),
            turns_open: families.turns_open.with_label_values(&one),
            turns_silent: families.turns_silent.with_label_values(&one),
            turns: by_label::<TurnOutcome, _>(name, |l| families.turns.with_label_values(l)),
            up: families.up.with_label_values(&one),
            admin: by_label::<AdminState, _>(name, |l| families.state.with_label_values(l)),
            health: by_label::<Health, _>(name, |l| families.state.with_label_values(l)),
            ping: families.ping.with_label_values(&one),
            sessions_opened: families.sessions_opened.with_label_values(&one),
            placements: by_label::<PlacementReason, _>(name, |l| {
                families.placements.with_label_values(l)
            }),
            varying: Mutex::default(),
            families: families.clone(),
        }
    }

    /// An upstream connection was opened.
    pub fn upstream_opened(&self) {
        self.upstream_connections.inc();
    }

    /// An upstream connection was closed.
    pub fn upstream_closed(&self) {
        self.upstream_connections.dec();
    }

    /// How many upstream connections are open.
    pub fn upstream_connections(&self) -> i64 {
        self.upstream_connections.get()
    }

    /// How many sessions are open here now.
    pub fn set_sessions_open(&self, n: i64) {
        self.sessions_open.set(n);
    }

    /// One more running turn says nothing, or one less.
    pub fn turn_silent(&self, silent: bool) {
        self.turns_silent.add(if silent { 1 } else { -1 });
    }

    /// How many turns run here now.
    pub fn set_turns_open(&self, n: i64) {
        self.turns_open.set(n);
    }

    /// A turn ended. Counted by `Event::Turn`: not for callers that record that event.
    pub fn turn_ended(
        &self,
        outcome: TurnOutcome,
        duration: Duration,
        first_event: Option<Duration>,
    ) {
        self.turns[outcome.position()].inc();
        self.families.turn_duration.observe(duration.as_secs_f64());
        if let Some(first_event) = first_event {
            self.families
                .turn_first_event
                .observe(first_event.as_secs_f64());
        }
    }

    /// A session was created or resumed here.
    pub fn session_opened(&self) {
        self.sessions_opened.inc();
    }

    /// A session was put here. Counted by `Event::Placement`: not for callers that record it.
    pub fn placement(&self, reason: PlacementReason) {
        self.placements[reason.position()].inc();
    }

    /// Observation took it out of placement. `reason` is one of few words, not a sentence.
    pub fn ejected(&self, reason: &str) {
        let mut varying = self.varying();
        if varying.forgotten {
            return;
        }
        let known = varying.reasons.iter().any(|r| r == reason);
        let reason = if known || varying.reasons.len() < MOST_REASONS {
            reason
        } else {
            OTHER
        };
        self.families
            .ejections
            .with_label_values(&[self.name.as_str(), reason])
            .inc();
        if !varying.reasons.iter().any(|r| r == reason) {
            varying.reasons.push(reason.to_owned());
        }
    }

    /// What is observed of it now.
    pub fn set_health(&self, health: Health) {
        self.up
            .set(i64::from(!matches!(health, Health::Unknown | Health::Down)));
        show_one(&self.health, health.position());
    }

    /// What the operator wants of it now.
    pub fn set_admin(&self, state: AdminState) {
        show_one(&self.admin, state.position());
    }

    /// Moving average of its answer time to ping.
    pub fn set_ping_ewma(&self, average: Duration) {
        self.ping.set(average.as_secs_f64());
    }

    /// What it said of itself; replaces what it said before. What is not known shows as empty.
    pub fn set_version(&self, version: Option<&str>, protocol_version: Option<u32>) {
        let mut varying = self.varying();
        if varying.forgotten {
            return;
        }
        let version = clip(version.unwrap_or_default()).to_owned();
        let protocol_version = protocol_version.map(|v| v.to_string()).unwrap_or_default();
        let labels = (version, protocol_version);
        if varying.info.as_ref() != Some(&labels) {
            self.remove_info(&mut varying);
            self.families
                .info
                .with_label_values(&[self.name.as_str(), &labels.0, &labels.1])
                .set(1);
            varying.info = Some(labels);
        }
    }

    /// Takes every series of this backend out of what is shown, for good.
    pub(super) fn forget(&self) {
        let mut varying = self.varying();
        varying.forgotten = true;
        self.remove_info(&mut varying);
        let name = self.name.as_str();
        // "Not there" is no error here: the series is gone, which is what is wanted.
        for reason in varying.reasons.drain(..) {
            let _ = self
                .families
                .ejections
                .remove_label_values(&[name, &reason]);
        }
        for outcome in TurnOutcome::ALL {
            let _ = self
                .families
                .turns
                .remove_label_values(&[name, outcome.label()]);
        }
        for reason in PlacementReason::ALL {
            let _ = self
                .families
                .placements
                .remove_label_values(&[name, reason.label()]);
        }
        let states = AdminState::ALL.iter().map(|s| s.label());
        for state in states.chain(Health::ALL.iter().map(|s| s.label())) {
            let _ = self.families.state.remove_label_values(&[name, state]);
        }
        let families = &self.families;
        for gauges in [
            &families.upstream_connections,
            &families.sessions_open,
            &families.turns_open,
            &families.turns_silent,
            &families.up,
        ] {
            let _ = gauges.remove_label_values(&[name]);
        }
        let _ = families.ping.remove_label_values(&[name]);
        let _ = families.sessions_opened.remove_label_values(&[name]);
    }

    fn remove_info(&self, varying: &mut Varying) {
        if let Some((version, protocol_version)) = varying.info.take() {
            let labels = [self.name.as_str(), &version, &protocol_version];
            let _ = self.families.info.remove_label_values(&labels);
        }
    }

    fn varying(&self) -> MutexGuard<'_, Varying> {
        // Each of the fields is valid at every moment, so a panic elsewhere spoils nothing.
        self.varying.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of gauges that exclude each other, shows the one.
fn show_one(gauges: &[IntGauge], position: usize) {
    for (i, gauge) in gauges.iter().enumerate() {
        gauge.set(i64::from(i == position));
    }
}

impl fmt::Debug for BackendMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendMetrics")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
