//! The numbers of one Taxiway: a registry of its own, series resolved before the hot path.
//!
//! Must not have globals, and no label that a client can make up: the values of every label are
//! bounded here.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder, core::Collector,
};

use self::{
    backend::Families,
    series::Series,
    table::{Kind, Metric},
};
use super::Label;
use crate::core::{
    event::{CallOutcome, Direction, FrameKind, NotAdmitted, UpgradePhase},
    id::BackendName,
};

mod backend;
mod series;
pub mod table;
#[cfg(test)]
mod tests;

pub use backend::BackendMetrics;

/// Turns last from a blink to an hour.
const TURN_BUCKETS: &[f64] = &[
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0,
];

/// Calls are answered from tens of microseconds on; those that wait for a turn last as long as it.
const CALL_BUCKETS: &[f64] = &[
    0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 60.0, 600.0, 3600.0,
];

/// Every metric of this process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    downstream_connections: IntGauge,
    not_admitted: Series<&'static str, IntCounter>,
    tls_not_after: GaugeVec,
    /// By position of the direction, then of the kind.
    frames: Vec<Vec<IntCounter>>,
    /// By position of the direction.
    bytes: Vec<IntCounter>,
    calls: Series<&'static str, CallSeries>,
    families: Families,
    backends: Mutex<BTreeMap<BackendName, Arc<BackendMetrics>>>,
    pool_panic: IntGauge,
    failovers: Series<&'static str, IntCounter>,
    sessions_parked: IntGauge,
    takeovers: Series<&'static str, IntCounter>,
    session_not_found: Series<&'static str, IntCounter>,
    frames_withheld: Series<&'static str, IntCounter>,
    frames_cut: IntCounter,
    buffered: IntGauge,
    session_create_existing: Series<&'static str, IntCounter>,
    sessions_stranded: IntGauge,
    turn_lock_wait: Histogram,
    queue_length: Series<&'static str, Gauge>,
    limit: Series<&'static str, Gauge>,
    limit_usage: Series<&'static str, Gauge>,
    limit_hits: Series<&'static str, IntCounter>,
    errors: Series<i32, IntCounter>,
    auth_failures: Series<&'static str, IntCounter>,
    access_denied: Series<&'static str, IntCounter>,
    store_up: IntGauge,
    store_errors: Series<&'static str, IntCounter>,
    store_unwritten: IntGauge,
    reload_success: IntCounter,
    reload_failure: IntCounter,
    reload_successful: IntGauge,
    reload_timestamp: Gauge,
    /// By position of the phase.
    upgrades: Vec<Option<IntCounter>>,
    upgrade_peers: IntGauge,
}

/// What one routing class has.
#[derive(Clone, Debug)]
struct CallSeries {
    /// By position of the outcome.
    outcomes: Arc<[IntCounter]>,
    duration: Histogram,
}

impl Metrics {
    /// All series that are known beforehand, at zero; the configuration counts as just loaded.
    pub(super) fn new() -> Self {
        let registry = Registry::new();
        let r = &registry;
        int_gauges(r, &table::BUILD_INFO)
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        let frames = counters(r, &table::FRAMES);
        let bytes = counters(r, &table::BYTES);
        let calls = counters(r, &table::CALLS);
        let call_duration = histograms(r, &table::CALL_DURATION, CALL_BUCKETS);
        let reloads = counters(r, &table::RELOADS);
        let upgrades = counters(r, &table::UPGRADES);
        let metrics = Self {
            downstream_connections: int_gauge(r, &table::DOWNSTREAM_CONNECTIONS),
            not_admitted: counter_series(r, &table::CONNECTIONS_NOT_ADMITTED),
            tls_not_after: gauges(r, &table::TLS_NOT_AFTER),
            frames: Direction::ALL
                .iter()
                .map(|direction| {
                    let of_kind = |kind: &FrameKind| {
                        frames.with_label_values(&[direction.label(), kind.label()])
                    };
                    FrameKind::ALL.iter().map(of_kind).collect()
                })
                .collect(),
            bytes: Direction::ALL
                .iter()
                .map(|d| bytes.with_label_values(&[d.label()]))
                .collect(),
            calls: Series::new(move |class| CallSeries {
                outcomes: CallOutcome::ALL
                    .iter()
                    .map(|outcome| calls.with_label_values(&[class, outcome.label()]))
                    .collect(),
                duration: call_duration.with_label_values(&[class]),
            }),
            families: Families::new(r),
            backends: Mutex::default(),
            pool_panic: int_gauge(r, &table::POOL_PANIC),
            failovers: counter_series(r, &table::FAILOVERS),
            sessions_parked: int_gauge(r, &table::SESSIONS_PARKED),
            takeovers: counter_series(r, &table::TAKEOVERS),
            session_not_found: counter_series(r, &table::SESSION_NOT_FOUND),
            frames_withheld: counter_series(r, &table::FRAMES_WITHHELD),
            frames_cut: counters(r, &table::FRAMES_CUT).with_label_values::<&str>(&[]),
            buffered: int_gauge(r, &table::BUFFERED),
            session_create_existing: counter_series(r, &table::SESSION_CREATE_EXISTING),
            sessions_stranded: int_gauge(r, &table::SESSIONS_STRANDED),
            turn_lock_wait: histogram(r, &table::TURN_LOCK_WAIT, TURN_BUCKETS),
            queue_length: gauge_series(r, &table::QUEUE_LENGTH),
            limit: gauge_series(r, &table::LIMIT),
            limit_usage: gauge_series(r, &table::LIMIT_USAGE),
            limit_hits: counter_series(r, &table::LIMIT_HITS),
            errors: counter_series(r, &table::ERRORS),
            auth_failures: counter_series(r, &table::AUTH_FAILURES),
            access_denied: counter_series(r, &table::ACCESS_DENIED),
            store_up: int_gauge(r, &table::STORE_UP),
            store_errors: counter_series(r, &table::STORE_ERRORS),
            store_unwritten: int_gauge(r, &table::STORE_UNWRITTEN),
            reload_success: reloads.with_label_values(&["success"]),
            reload_failure: reloads.with_label_values(&["failure"]),
            reload_successful: int_gauge(r, &table::RELOAD_SUCCESSFUL),
            reload_timestamp: registered(
                r,
                Gauge::with_opts(options(&table::RELOAD_TIMESTAMP, Kind::Gauge)),
            ),
            upgrades: UpgradePhase::ALL
                .iter()
                .map(|phase| {
                    let counts = matches!(
                        phase,
                        UpgradePhase::Offered
                            | UpgradePhase::Failed
                            | UpgradePhase::TakenOver
                            | UpgradePhase::Retired
                    );
                    counts.then(|| upgrades.with_label_values(&[phase.label()]))
                })
                .collect(),
            upgrade_peers: int_gauge(r, &table::UPGRADE_PEERS),
            registry,
        };
        #[cfg(target_os = "linux")]
        {
            let process = prometheus::process_collector::ProcessCollector::for_self();
            metrics.adopt(Box::new(process));
        }
        metrics.store_up.set(1);
        metrics.reload_successful.set(1);
        metrics.reload_timestamp.set(unix_now());
        metrics
    }

    /// Everything as Prometheus text.
    pub fn render(&self) -> String {
        let families = self.registry.gather();
        TextEncoder::new()
            .encode_to_string(&families)
            .expect("gathered families have a name and metrics, and a String takes all text")
    }

    /// `n` frames of one kind were read.
    pub fn add_frames(&self, direction: Direction, kind: FrameKind, n: u64) {
        self.frames[direction.position()][kind.position()].inc_by(n);
    }

    /// `n` bytes were relayed.
    pub fn add_bytes(&self, direction: Direction, n: u64) {
        self.bytes[direction.position()].inc_by(n);
    }

    /// A client connected.
    pub fn downstream_opened(&self) {
        self.downstream_connections.inc();
    }

    /// A client's connection closed.
    pub fn downstream_closed(&self) {
        self.downstream_connections.dec();
    }

    /// A client was closed before its first frame. Counted by `Event::NotAdmitted`; to be called by
    /// itself where a flood of lines is held back.
    pub fn not_admitted(&self, reason: NotAdmitted) {
        self.not_admitted.with(reason.label(), IntCounter::inc);
        if reason == NotAdmitted::Certificate {
            self.auth_failure("certificate");
        }
    }

    /// When each certificate that is shown to peers expires, in Unix time, by what shows it; the
    /// others vanish.
    pub fn set_certificates(&self, certificates: &[(String, i64)]) {
        self.tls_not_after.reset();
        for (cert, not_after) in certificates {
            self.tls_not_after
                .with_label_values(&[cert.as_str()])
                .set(*not_after as f64);
        }
    }

    /// The series of a backend, made if they are not there. Resolve once per upstream connection.
    pub fn backend(&self, name: &BackendName) -> Arc<BackendMetrics> {
        let mut backends = self.backends();
        if let Some(metrics) = backends.get(name) {
            return Arc::clone(metrics);
        }
        let metrics = Arc::new(BackendMetrics::new(&self.families, name.as_str()));
        backends.insert(name.clone(), Arc::clone(&metrics));
        metrics
    }

    /// The series of a backend that has some.
    pub fn known_backend(&self, name: &BackendName) -> Option<Arc<BackendMetrics>> {
        self.backends().get(name).cloned()
    }

    /// Makes the series of a backend vanish. [`BackendMetrics`] still held move nothing visible.
    pub fn forget_backend(&self, name: &BackendName) {
        // Under the lock, so that a backend of that name that comes back is not taken with it.
        let mut backends = self.backends();
        if let Some(metrics) = backends.remove(name) {
            metrics.forget();
        }
    }

    /// Makes the series of all backends vanish that are not to be kept and serve no client: news of
    /// a backend may overtake the news of its removal and leave series behind.
    pub fn retain_backends(&self, keep: impl Fn(&BackendName) -> bool) {
        self.backends().retain(|name, metrics| {
            let stays = metrics.upstream_connections() > 0 || keep(name);
            if !stays {
                metrics.forget();
            }
            stays
        });
    }

    /// A client's call ended.
    pub fn call(&self, class: &'static str, outcome: CallOutcome, took: Duration) {
        self.calls.with(class, |series| {
            series.outcomes[outcome.position()].inc();
            series.duration.observe(took.as_secs_f64());
        });
    }

    /// An error made by Taxiway went to a client. Counted by `Event::ErrorAnswered`.
    pub fn error(&self, code: i32) {
        self.errors.with(code, IntCounter::inc);
    }

    /// Somebody has not proved who it is. Counted by `Event::AuthenticationFailed`, if that is
    /// recorded.
    pub fn auth_failure(&self, reason: &'static str) {
        self.auth_failures.with(reason, IntCounter::inc);
    }

    /// Something was refused by policy. Counted by `Event::ErrorAnswered` and `Event::Denied`.
    pub fn access_denied(&self, reason: &'static str) {
        self.access_denied.with(reason, IntCounter::inc);
    }

    /// A send has waited for somebody else's turn to end.
    pub fn turn_waited(&self, took: Duration) {
        self.turn_lock_wait.observe(took.as_secs_f64());
    }

    /// How much waits in one of the queues.
    pub fn set_queue_length(&self, queue: &'static str, length: usize) {
        self.queue_length
            .with(queue, |gauge| gauge.set(length as f64));
    }

    /// A configured limit, by its key.
    pub fn set_limit(&self, limit: &'static str, value: f64) {
        self.limit.with(limit, |gauge| gauge.set(value));
    }

    /// How much of a limit is in use.
    pub fn set_limit_usage(&self, limit: &'static str, value: f64) {
        self.limit_usage.with(limit, |gauge| gauge.set(value));
    }

    /// Something was refused or closed because of a limit. Counted by `Event::LimitHit`.
    pub fn limit_hit(&self, limit: &'static str) {
        self.limit_hits.with(limit, IntCounter::inc);
    }

    /// A frame was kept from a client. Counted by `Event::Withheld`.
    pub fn frame_withheld(&self, reason: &'static str) {
        self.frames_withheld.with(reason, IntCounter::inc);
    }

    /// A client was left in the middle of a frame. Counted by `Event::FrameCut`.
    pub fn frame_cut(&self) {
        self.frames_cut.inc();
    }

    /// So many bytes more wait in memory, or less.
    pub fn buffered(&self, change: i64) {
        self.buffered.add(change);
    }

    /// A call found no session. Counted by `Event::SessionNotFound`.
    pub fn session_not_found(&self, reason: &'static str) {
        self.session_not_found.with(reason, IntCounter::inc);
    }

    /// Create on an existing id. Counted by `Event::CreateExisting`.
    pub fn session_create_existing(&self, action: &'static str) {
        self.session_create_existing.with(action, IntCounter::inc);
    }

    /// How many sessions live on disks of backends that are no longer in the pool.
    pub fn sessions_stranded(&self, n: i64) {
        self.sessions_stranded.set(n);
    }

    /// Whether more backends are unhealthy than may be ejected.
    pub fn pool_panic(&self, on: bool) {
        self.pool_panic.set(i64::from(on));
    }

    /// A silent backend was given up or was not, or a session was opened again or was not.
    pub fn failover(&self, result: &'static str) {
        self.failovers.with(result, IntCounter::inc);
    }

    /// Whether what is to be kept is kept. Set by the events of the store.
    pub(super) fn store_up(&self, up: bool) {
        self.store_up.set(i64::from(up));
    }

    /// What is to be kept was not. Counted by `Event::StoreFailed`.
    pub(super) fn store_failed(&self, op: &'static str) {
        self.store_errors.with(op, IntCounter::inc);
        self.store_up(false);
    }

    /// How many sessions are not on disk as they are.
    pub fn store_unwritten(&self, n: usize) {
        self.store_unwritten
            .set(i64::try_from(n).unwrap_or(i64::MAX));
    }

    /// A client has left a session in a turn that goes on. Counted by `Event::SessionParked`.
    pub(super) fn session_parked(&self) {
        self.sessions_parked.inc();
    }

    /// That is over. Counted by `Event::ParkedEnded`.
    pub(super) fn parked_ended(&self, result: &'static str) {
        self.sessions_parked.dec();
        self.takeovers.with(result, IntCounter::inc);
    }

    /// A reload ended at that Unix time. Counted by `Event::Reload`.
    pub fn reload(&self, ok: bool, at_unix: f64) {
        if ok {
            self.reload_success.inc();
            self.reload_timestamp.set(at_unix);
        } else {
            self.reload_failure.inc();
        }
        self.reload_successful.set(i64::from(ok));
    }

    /// A step of an upgrade. Counted by `Event::Upgrade`.
    pub fn upgrade(&self, phase: UpgradePhase) {
        if let Some(counter) = &self.upgrades[phase.position()] {
            counter.inc();
        }
    }

    /// How many older processes share the owner table.
    pub fn upgrade_peers(&self, n: usize) {
        self.upgrade_peers.set(i64::try_from(n).unwrap_or(i64::MAX));
    }

    /// Shows a counter that the log keeps.
    pub(super) fn adopt_log_counter(&self, dropped: &IntCounter) {
        self.adopt(Box::new(dropped.clone()));
    }

    /// Shows a collector; one that is shown already stays.
    fn adopt(&self, collector: Box<dyn Collector>) {
        if let Err(error) = self.registry.register(collector) {
            debug_assert!(matches!(error, prometheus::Error::AlreadyReg), "{error}");
        }
    }

    fn backends(&self) -> MutexGuard<'_, BTreeMap<BackendName, Arc<BackendMetrics>>> {
        // The map is whole at every moment, so a panic elsewhere spoils nothing.
        self.backends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Now, in Unix seconds; 0 on a clock before 1970.
pub(super) fn unix_now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

/// A counter without labels that belongs to no registry yet.
pub(super) fn loose_counter(metric: &Metric) -> IntCounter {
    IntCounter::with_opts(options(metric, Kind::Counter)).expect(VALID)
}

/// Why making and registering a metric cannot fail.
const VALID: &str = "table.rs has valid, distinct names and each row is registered once (tested)";

fn options(metric: &Metric, kind: Kind) -> Opts {
    debug_assert_eq!(metric.kind, kind, "{}", metric.name);
    Opts::new(metric.name, metric.help)
}

fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: prometheus::Result<C>,
) -> C {
    let collector = collector.expect(VALID);
    registry.register(Box::new(collector.clone())).expect(VALID);
    collector
}

fn int_gauge(registry: &Registry, metric: &Metric) -> IntGauge {
    registered(registry, IntGauge::with_opts(options(metric, Kind::Gauge)))
}

fn int_gauges(registry: &Registry, metric: &Metric) -> IntGaugeVec {
    registered(
        registry,
        IntGaugeVec::new(options(metric, Kind::Gauge), metric.labels),
    )
}

fn gauges(registry: &Registry, metric: &Metric) -> GaugeVec {
    registered(
        registry,
        GaugeVec::new(options(metric, Kind::Gauge), metric.labels),
    )
}

fn counters(registry: &Registry, metric: &Metric) -> IntCounterVec {
    registered(
        registry,
        IntCounterVec::new(options(metric, Kind::Counter), metric.labels),
    )
}

fn histogram(registry: &Registry, metric: &Metric, buckets: &[f64]) -> Histogram {
    let options = HistogramOpts::from(options(metric, Kind::Histogram)).buckets(buckets.to_vec());
    registered(registry, Histogram::with_opts(options))
}

fn histograms(registry: &Registry, metric: &Metric, buckets: &[f64]) -> HistogramVec {
    let options = HistogramOpts::from(options(metric, Kind::Histogram)).buckets(buckets.to_vec());
    registered(registry, HistogramVec::new(options, metric.labels))
}

fn counter_series<K: Copy + Eq + ToString>(
    registry: &Registry,
    metric: &Metric,
) -> Series<K, IntCounter> {
    let counters = counters(registry, metric);
    Series::new(move |label| counters.with_label_values(&[label]))
}

fn gauge_series(registry: &Registry, metric: &Metric) -> Series<&'static str, Gauge> {
    let gauges = gauges(registry, metric);
    Series::new(move |label| gauges.with_label_values(&[label]))
}
