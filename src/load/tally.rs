//! What was measured: counts, the distribution of latencies, failures by code with some of their
//! messages. Bounded, however long it runs; parts of several threads add up.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;

/// Kinds of failures that are told apart.
const CODES: usize = 32;
/// Different messages of a code that are kept.
const MESSAGES: usize = 3;
/// Characters of a message that are kept.
const MESSAGE: usize = 200;

/// The range of a distribution in nanoseconds; what is beyond counts as its end.
const RANGE: (u64, u64) = (1_000, 3_600_000_000_000);

/// Times and how often they were seen, to three digits.
#[derive(Clone, Debug)]
pub struct Times(Histogram<u64>);

impl Times {
    /// None seen.
    pub fn new() -> Self {
        let (low, high) = RANGE;
        Self(Histogram::new_with_bounds(low, high, 3).expect("the bounds are fair"))
    }

    /// Another one was seen.
    pub fn record(&mut self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0.saturating_record(nanos);
    }

    /// Those of both.
    pub fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all have the same bounds");
    }

    /// How many were seen.
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Whether none was seen.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The time that `percent` of those seen did not exceed; 0 if none was seen.
    pub fn percentile(&self, percent: f64) -> Duration {
        Duration::from_nanos(self.0.value_at_percentile(percent))
    }

    /// The longest, as exact as all others.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.0.max())
    }

    /// Their mean.
    pub fn mean(&self) -> Duration {
        Duration::from_nanos(self.0.mean() as u64)
    }
}

impl Default for Times {
    fn default() -> Self {
        Self::new()
    }
}

/// Failures of one kind.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Failures {
    /// How many.
    pub count: u64,
    /// The first few that differ.
    pub messages: Vec<String>,
}

/// Everything that was measured.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Connections on which sessions were opened.
    pub connections: u64,
    /// Sessions that were opened.
    pub sessions: u64,
    /// Turns that ended well.
    pub turns: u64,
    /// Turns that did not, among them those that could not be sent because their connection or
    /// session was gone.
    pub failed: u64,
    /// Turns that the plan had and that were not sent in time: their sessions were still busy.
    pub unsent: u64,
    /// Turns that were cut short by whoever stopped the measurement.
    pub cut_short: u64,
    /// Frames that came, events among them.
    pub frames: u64,
    /// Events that came.
    pub events: u64,
    /// Bytes that came.
    pub received: u64,
    /// Bytes that were sent.
    pub sent: u64,
    /// Events of sessions that are not ours: never, where clients are kept apart.
    pub foreign: u64,
    /// From a turn's planned time (in a closed loop: from its send) to its `session.idle`, of turns
    /// that ended well.
    pub latency: Times,
    /// How much later than possible turns left: our own delay.
    pub lag: Times,
    /// What went wrong, by code.
    pub failures: BTreeMap<String, Failures>,
    /// From the start of the measurement to the last turn's end.
    pub took: Duration,
}

impl Tally {
    /// Something failed `count` times.
    pub fn fail(&mut self, code: &str, message: &str, count: u64) {
        let code = if self.failures.len() < CODES || self.failures.contains_key(code) {
            code
        } else {
            "other"
        };
        let failures = self.failures.entry(code.to_owned()).or_default();
        failures.count += count;
        let message: String = message.chars().take(MESSAGE).collect();
        if failures.messages.len() < MESSAGES
            && !message.is_empty()
            && !failures.messages.contains(&message)
        {
            failures.messages.push(message);
        }
    }

    /// Adds what another part has measured in the same time.
    pub fn add(&mut self, other: &Self) {
        self.connections += other.connections;
        self.sessions += other.sessions;
        self.turns += other.turns;
        self.failed += other.failed;
        self.unsent += other.unsent;
        self.cut_short += other.cut_short;
        self.frames += other.frames;
        self.events += other.events;
        self.received += other.received;
        self.sent += other.sent;
        self.foreign += other.foreign;
        self.latency.add(&other.latency);
        self.lag.add(&other.lag);
        for (code, failures) in &other.failures {
            let mut messages = failures.messages.iter();
            let first = messages.next().map_or("", String::as_str);
            self.fail(code, first, failures.count);
            for message in messages {
                self.fail(code, message, 0);
            }
        }
        self.took = self.took.max(other.took);
    }

    /// Whether anything went wrong.
    pub fn has_failed(&self) -> bool {
        self.failed > 0 || !self.failures.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up() {
        let mut one = Tally::default();
        let mut two = Tally::default();
        for (tally, turns) in [(&mut one, 99), (&mut two, 1)] {
            tally.turns = turns;
            tally.took = Duration::from_secs(turns);
            tally.fail("-32013", &format!("limit {turns}"), 2);
            for _ in 0..turns {
                tally.latency.record(Duration::from_millis(turns));
            }
        }
        one.add(&two);
        assert_eq!((one.turns, one.took), (100, Duration::from_secs(99)));
        let failures = &one.failures["-32013"];
        assert_eq!(failures.count, 4);
        assert_eq!(failures.messages, ["limit 99", "limit 1"]);
        assert_eq!(one.latency.len(), 100);
        assert_eq!(one.latency.percentile(1.0).as_millis(), 1);
        assert_eq!(one.latency.percentile(50.0).as_millis(), 99);
    }

    #[test]
    fn failures_are_bounded() {
        let mut tally = Tally::default();
        for code in 0..1000 {
            tally.fail(&code.to_string(), &"x".repeat(10_000), 1);
            tally.fail("0", &format!("message {code}"), 1);
        }
        assert!(tally.failures.len() <= CODES + 1);
        assert_eq!(tally.failures["other"].count, 1000 - CODES as u64);
        let kept = tally.failures.values().flat_map(|f| &f.messages);
        assert!(kept.map(String::len).sum::<usize>() <= (CODES + 1) * MESSAGES * MESSAGE);
    }

    #[test]
    fn times_beyond_the_range_count_as_its_end() {
        let mut times = Times::new();
        times.record(Duration::from_secs(1_000_000));
        times.record(Duration::ZERO);
        assert_eq!(times.len(), 2);
        assert!(times.max() >= Duration::from_secs(3600));
    }
}
