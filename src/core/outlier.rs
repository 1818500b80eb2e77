//! Thresholds, ejection, probation and slow start of one backend, and how much of a pool may be
//! ejected; never probes, connects or looks at a clock.
//!
//! ```text
//!             answer                    late answer, or late while frames flow
//!  Unknown ───────────► Up ─────────────────────────────────────────► Slow
//!     │                 │ ▲ ◄───────────────────────────────────────── │
//!     │                 │ │ ramp over       timely answers             │
//!     │  failures       ▼ │                                            │
//!     └──────────────► Down ◄──────────────────────────────────────────┘
//!                       │ ▲
//!        timely answers │ │ one failure
//!                       ▼ │
//!                     Probation
//! ```
//!
//! A failure is a probe without an answer and without any other frame meanwhile, a connection that
//! could not be made, or one that ended. `unhealthy_after` of them in a row eject. After a silent
//! probe the next is sent at once, so a stopped process is out within `interval + timeout ×
//! unhealthy_after`; after a refused connection the next is tried after [`RECONNECT`], so a closed
//! port is out within tens of milliseconds although one lost SYN ejects nobody. Violations of the
//! protocol eject at once. A TCP accept proves nothing and counts as nothing.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::snapshot::Health;

/// Between attempts to connect while a backend is not yet judged to be down.
pub const RECONNECT: Duration = Duration::from_millis(10);
/// Share of its weight that a slow backend keeps, in per mille.
const SLOW_PERMILLE: u32 = 250;
/// First share of a ramp, and the size of its steps, in per mille.
const RAMP_START: u32 = 100;
const RAMP_STEP: u32 = 50;
/// A second violation within this time doubles the ejection.
const VIOLATION_MEMORY: Duration = Duration::from_secs(300);
/// Longest ejection for violations.
const LONGEST_HOLD: Duration = Duration::from_secs(60);

/// The thresholds of `[health]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Between two probes of a healthy backend.
    pub interval: Duration,
    /// Until a probe counts as failed.
    pub timeout: Duration,
    /// Consecutive failures until ejection.
    pub unhealthy_after: u32,
    /// Consecutive timely answers until a return.
    pub healthy_after: u32,
    /// Ramp of the weight after a return; zero = at once.
    pub slow_start: Duration,
}

/// Why a backend is down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Connected, but answers nothing: perhaps stopped, perhaps only stuck.
    Silent,
    /// Connections are refused or time out.
    Unreachable,
    /// It closed its connections.
    Gone,
    /// It broke the protocol.
    Violation(Arc<str>),
    /// It answers, but cannot be used: wrong token, other protocol version.
    Rejected(Arc<str>),
}

impl Cause {
    /// For people and logs.
    pub fn describe(&self) -> Arc<str> {
        match self {
            Self::Silent => Arc::from("does not answer"),
            Self::Unreachable => Arc::from("cannot be connected to"),
            Self::Gone => Arc::from("closed its connections"),
            Self::Violation(what) | Self::Rejected(what) => what.clone(),
        }
    }

    /// For metrics: the label `reason` of `taxiway_backend_ejections_total`.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Unreachable => "unreachable",
            Self::Gone => "closed",
            Self::Violation(_) => "violation",
            Self::Rejected(_) => "rejected",
        }
    }
}

/// What its session list said about the disk (shared storage only).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// Has to be compared before the first placement.
    Unread,
    /// Nothing is missing, or disks are separate.
    Fits,
    /// Sessions known to be on the common disk are not listed.
    Mismatch,
}

#[derive(Clone, Debug)]
enum Phase {
    Unknown,
    Up,
    Slow {
        /// Consecutive timely answers.
        timely: u32,
    },
    Down {
        cause: Cause,
        /// Answers before this moment do not count towards a return.
        hold: Instant,
        /// Consecutive timely answers.
        timely: u32,
    },
    Probation {
        since: Instant,
    },
}

/// The judgement on one backend.
#[derive(Clone, Debug)]
pub struct Outlier {
    rules: Rules,
    phase: Phase,
    disk: Disk,
    /// Consecutive failures.
    failures: u32,
    /// When the probe in flight was sent.
    in_flight: Option<Instant>,
    /// A frame came since then.
    active: bool,
    /// When the next probe is due, if none is in flight.
    next: Instant,
    /// Last sign of life.
    heard: Option<Instant>,
    /// Moving average of the answers' delays.
    ping: Option<Duration>,
    /// When the present connection was made.
    connected: Option<Instant>,
    /// Connections in a row that ended within one interval.
    short_lived: u32,
    /// Violations in a row, and when the last was.
    violations: (u32, Option<Instant>),
}

impl Outlier {
    /// A backend of which nothing is known; its first probe is due at once.
    pub fn new(rules: Rules, disk: Disk, now: Instant) -> Self {
        Self {
            rules,
            phase: Phase::Unknown,
            disk,
            failures: 0,
            in_flight: None,
            active: false,
            next: now,
            heard: None,
            ping: None,
            connected: None,
            short_lived: 0,
            violations: (0, None),
        }
    }

    /// The verdict.
    pub fn health(&self) -> Health {
        match (&self.phase, self.disk) {
            (Phase::Unknown, _) => Health::Unknown,
            (Phase::Down { .. }, _) => Health::Down,
            (_, Disk::Unread) => Health::Unknown,
            (_, Disk::Mismatch) => Health::StorageMismatch,
            (Phase::Up, Disk::Fits) => Health::Up,
            (Phase::Slow { .. }, Disk::Fits) => Health::Slow,
            (Phase::Probation { .. }, Disk::Fits) => Health::Probation,
        }
    }

    /// Why it is down; `None` unless it is.
    pub fn cause(&self) -> Option<&Cause> {
        match &self.phase {
            Phase::Down { cause, .. } => Some(cause),
            Phase::Unknown | Phase::Up | Phase::Slow { .. } | Phase::Probation { .. } => None,
        }
    }

    /// Share of the configured weight in force, 1 to 1000.
    pub fn weight_permille(&self, now: Instant) -> u32 {
        match self.phase {
            Phase::Slow { .. } => SLOW_PERMILLE,
            Phase::Probation { since } => {
                let share = now.saturating_duration_since(since).as_millis() * 1000
                    / self.rules.slow_start.as_millis().max(1);
                let share = u32::try_from(share).unwrap_or(1000).clamp(RAMP_START, 1000);
                share / RAMP_STEP * RAMP_STEP
            }
            Phase::Unknown | Phase::Up | Phase::Down { .. } => 1000,
        }
    }

    /// Moving average of the delay of its answers.
    pub fn ping(&self) -> Option<Duration> {
        self.ping
    }

    /// Last sign of life.
    pub fn heard(&self) -> Option<Instant> {
        self.heard
    }

    /// Whether its disk is known to be the right one, as far as that matters.
    pub fn fits(&self) -> bool {
        self.disk == Disk::Fits
    }

    /// A probe, or the connection attempt that it begins with, was started.
    pub fn handle_probe_sent(&mut self, now: Instant) {
        self.in_flight = Some(now);
        self.active = false;
    }

    /// A TCP connection was made. Proves nothing.
    pub fn handle_connected(&mut self, now: Instant) {
        self.connected = Some(now);
    }

    /// An answer came, `rtt` after its probe was sent; perhaps after that probe was given up.
    pub fn handle_probe_ok(&mut self, now: Instant, rtt: Duration) {
        self.in_flight = None;
        self.heard = Some(now);
        self.failures = 0;
        self.next = now + self.rules.interval;
        // One part in four: a few answers forget one late one. What it was like before it went down
        // says nothing about its return, nor does what it answers when it wakes.
        let down = self.cause().is_some();
        if !down || rtt <= self.rules.timeout {
            let before = self.ping.filter(|_| !down);
            self.ping = Some(before.map_or(rtt, |ping| (ping * 3 + rtt) / 4));
        }
        if self
            .connected
            .is_some_and(|c| now.saturating_duration_since(c) >= self.rules.interval)
        {
            self.short_lived = 0;
        }

        let late = rtt > self.rules.timeout || self.ping > Some(self.rules.timeout / 2);
        match &mut self.phase {
            Phase::Unknown | Phase::Up if late => self.phase = Phase::Slow { timely: 0 },
            Phase::Unknown => self.phase = Phase::Up,
            Phase::Up | Phase::Probation { .. } => {}
            Phase::Slow { timely } if late => *timely = 0,
            Phase::Slow { timely } => {
                *timely += 1;
                if *timely >= self.rules.healthy_after {
                    self.phase = Phase::Up;
                }
            }
            // What a stopped process answers when it wakes does not count.
            Phase::Down { .. } if rtt > self.rules.timeout => {}
            Phase::Down { hold, .. } if now < *hold => {}
            Phase::Down { timely, .. } => {
                *timely += 1;
                if *timely >= self.rules.healthy_after {
                    self.phase = if self.rules.slow_start.is_zero() {
                        Phase::Up
                    } else {
                        Phase::Probation { since: now }
                    };
                }
            }
        }
    }

    /// The probe in flight is past [`Self::poll_deadline`] without an answer.
    pub fn handle_probe_timeout(&mut self, now: Instant) {
        if self.poll_deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        self.in_flight = None;
        self.next = now;
        if !self.active {
            self.fail(now, Cause::Silent);
            return;
        }
        // Busy is not dead.
        self.failures = 0;
        match &mut self.phase {
            Phase::Unknown | Phase::Up => self.phase = Phase::Slow { timely: 0 },
            Phase::Slow { timely } => *timely = 0,
            Phase::Probation { .. } => {}
            Phase::Down { timely, .. } => {
                *timely = 0;
                self.next = now + self.rules.interval;
            }
        }
    }

    /// The attempt to connect that was announced by [`Self::handle_probe_sent`] failed.
    pub fn handle_connect_failed(&mut self, now: Instant) {
        self.in_flight = None;
        self.next = now + RECONNECT;
        self.fail(now, Cause::Unreachable);
    }

    /// Somebody else failed to connect to it: counted, and looked into at once.
    pub fn handle_reported_failure(&mut self, now: Instant) {
        if let Phase::Down { timely, .. } = &mut self.phase {
            *timely = 0;
            return;
        }
        self.next = self.next.min(now);
        self.fail(now, Cause::Unreachable);
    }

    /// The connection ended.
    pub fn handle_connection_lost(&mut self, now: Instant) {
        self.in_flight = None;
        self.next = now + RECONNECT;
        // One that takes connections only to end them is down, though each begins well.
        match self.connected.take() {
            Some(c) if now.saturating_duration_since(c) < self.rules.interval => {
                self.short_lived += 1;
            }
            Some(_) | None => self.short_lived = 0,
        }
        self.failures = self.failures.max(self.short_lived.saturating_sub(1));
        self.fail(now, Cause::Gone);
    }

    /// A frame came from it, on whatever connection.
    pub fn handle_activity(&mut self, now: Instant) {
        self.heard = self.heard.max(Some(now));
        self.active |= self.in_flight.is_some_and(|sent| now >= sent);
    }

    /// It broke the protocol: ejected at once, for longer if it does so again.
    pub fn handle_violation(&mut self, now: Instant, what: Arc<str>) {
        let again = self
            .violations
            .1
            .is_some_and(|t| now.saturating_duration_since(t) < VIOLATION_MEMORY);
        let count = if again {
            self.violations.0.saturating_add(1)
        } else {
            1
        };
        self.violations = (count, Some(now));
        let hold = self.rules.interval * (1 << (count - 1).min(8));
        self.eject(now, Cause::Violation(what), now + hold.min(LONGEST_HOLD));
    }

    /// It answered, and cannot be used.
    pub fn handle_rejected(&mut self, now: Instant, what: Arc<str>) {
        self.heard = Some(now);
        self.eject(now, Cause::Rejected(what), now);
    }

    /// Its session list was compared with the common disk.
    pub fn handle_disk_read(&mut self, disk: Disk) {
        self.disk = disk;
    }

    /// Time passed: ends a ramp.
    pub fn handle_time(&mut self, now: Instant) {
        if let Phase::Probation { since } = self.phase
            && now.saturating_duration_since(since) >= self.rules.slow_start
        {
            self.phase = Phase::Up;
        }
    }

    /// New thresholds, from now on.
    pub fn set_rules(&mut self, rules: Rules, now: Instant) {
        self.rules = rules;
        self.next = self.next.min(now + rules.interval);
    }

    /// When the next probe is due; `None` while one is in flight.
    pub fn poll_next_probe(&self) -> Option<Instant> {
        self.in_flight.is_none().then_some(self.next)
    }

    /// When the probe in flight counts as failed.
    pub fn poll_deadline(&self) -> Option<Instant> {
        self.in_flight.map(|sent| sent + self.rules.timeout)
    }

    /// When the weight changes next without any event: call [`Self::handle_time`] then.
    pub fn poll_ramp(&self, now: Instant) -> Option<Instant> {
        let Phase::Probation { since } = self.phase else {
            return None;
        };
        let step = (self.rules.slow_start * RAMP_STEP / 1000).max(Duration::from_millis(1));
        let passed = now.saturating_duration_since(since).as_millis() / step.as_millis().max(1);
        let steps = u32::try_from(passed).unwrap_or(u32::MAX - 1) + 1;
        Some(
            (since + step * steps)
                .min(since + self.rules.slow_start)
                .max(now),
        )
    }

    fn fail(&mut self, now: Instant, cause: Cause) {
        self.failures = self.failures.saturating_add(1);
        match &mut self.phase {
            Phase::Down {
                cause: old,
                timely,
                hold,
            } => {
                *timely = 0;
                // The latest evidence counts, unless it is still held for something worse.
                if now >= *hold {
                    *old = cause;
                }
                self.next = now + self.rules.interval;
            }
            Phase::Probation { .. } => self.eject(now, cause, now),
            Phase::Unknown | Phase::Up | Phase::Slow { .. } => {
                if self.failures >= self.rules.unhealthy_after {
                    self.eject(now, cause, now);
                }
            }
        }
    }

    fn eject(&mut self, now: Instant, cause: Cause, hold: Instant) {
        self.phase = Phase::Down {
            cause,
            hold,
            timely: 0,
        };
        self.in_flight = None;
        self.next = now + self.rules.interval;
    }
}

/// One backend as far as the share of ejected ones is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// In placement, or out for a reason that is beyond doubt.
    Settled,
    /// Down because it is silent, which may be our own fault or the network's.
    Silent {
        /// Last sign of life.
        heard: Option<Instant>,
    },
}

/// What [`limit_ejections`] decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ejections {
    /// Indices of silent backends that stay in placement all the same, in order.
    pub kept: Vec<usize>,
    /// Whether there are any: the pool is in panic.
    pub panic: bool,
}

/// At most `max_ejected` (0.0 to 1.0) of the pool is ejected for silence. Beyond it those heard of
/// last stay in placement: when nearly everybody is silent, the judgement is what is in doubt.
/// Refused connections and violations are facts and do not count.
pub fn limit_ejections(pool: &[Standing], max_ejected: f64) -> Ejections {
    let mut silent: Vec<(Option<Instant>, usize)> = pool
        .iter()
        .enumerate()
        .filter_map(|(index, standing)| match standing {
            Standing::Silent { heard } => Some((*heard, index)),
            Standing::Settled => None,
        })
        .collect();
    // The epsilon lets 0.3 of 10 be 3.
    let allowed = (pool.len() as f64 * max_ejected + 1e-9).floor() as usize;
    let excess = silent.len().saturating_sub(allowed);
    // Nothing ever came from it: there is no better judgement to go back to.
    silent.retain(|(heard, _)| heard.is_some());
    silent.sort_unstable();
    let mut kept: Vec<usize> = silent.iter().rev().take(excess).map(|s| s.1).collect();
    kept.sort_unstable();
    Ejections {
        panic: !kept.is_empty(),
        kept,
    }
}

#[cfg(test)]
mod tests;
