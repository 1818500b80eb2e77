//! What was measured, as people and programs read it, and when not to believe it.

use std::{fmt::Write as _, time::Duration};

use serde::Serialize;

use super::{Options, Pace, Part, Tally, Times};

/// The distribution is told at these percentiles.
const PERCENTILES: [f64; 4] = [50.0, 90.0, 99.0, 99.9];

/// Own delay that matters beside no latency.
const LAG: Duration = Duration::from_micros(500);

/// The result of all threads.
pub(super) struct Report<'a> {
    options: &'a Options,
    pub(super) tally: Tally,
    left_behind: u64,
    why_left: Option<String>,
    opening: Duration,
    /// CPU time of the whole load, opening and closing included.
    pub(super) own_cpu: Duration,
    /// Stopped before its time.
    pub(super) interrupted: bool,
}

#[derive(Serialize)]
struct Json<'a> {
    targets: &'a [String],
    mode: &'static str,
    /// Turns per second, as planned.
    rate: Option<f64>,
    connections: u64,
    sessions: u64,
    seconds: f64,
    interrupted: bool,
    turns: Turns,
    frames: Rate,
    events: Rate,
    received_bytes: Rate,
    sent_bytes: Rate,
    /// In microseconds.
    latency: Distribution,
    errors: Vec<Errors<'a>>,
    foreign_events: u64,
    sessions_left_behind: u64,
    own: Own,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct Turns {
    ended: u64,
    failed: u64,
    unsent: u64,
    cut_short: u64,
    per_second: f64,
}

#[derive(Serialize)]
struct Rate {
    count: u64,
    per_second: f64,
}

#[derive(Serialize)]
struct Distribution {
    count: u64,
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    #[serde(rename = "p99.9")]
    p99_9: f64,
    max: f64,
}

#[derive(Serialize)]
struct Errors<'a> {
    code: &'a str,
    count: u64,
    messages: &'a [String],
}

#[derive(Serialize)]
struct Own {
    threads: usize,
    cpu_seconds: f64,
    /// In microseconds; how much later than possible turns were sent.
    lag: Distribution,
}

impl<'a> Report<'a> {
    pub(super) fn new(options: &'a Options) -> Self {
        Self {
            options,
            tally: Tally::default(),
            left_behind: 0,
            why_left: None,
            opening: Duration::ZERO,
            own_cpu: Duration::ZERO,
            interrupted: false,
        }
    }

    pub(super) fn add(&mut self, part: Part) {
        self.tally.add(&part.tally);
        self.left_behind += part.left_behind;
        self.why_left = self.why_left.take().or(part.why.map(|why| why.to_string()));
        self.opening = self.opening.max(part.opening);
    }

    fn seconds(&self) -> f64 {
        self.tally.took.as_secs_f64()
    }

    fn rate(&self, count: u64) -> Rate {
        let per_second = count as f64 / self.seconds().max(f64::MIN_POSITIVE);
        Rate {
            count,
            per_second: if count == 0 { 0.0 } else { per_second },
        }
    }

    /// Why the numbers may not say what they seem to say.
    fn warnings(&self) -> Vec<String> {
        let Self { tally, options, .. } = self;
        let mut all = Vec::new();
        let late = tally.lag.percentile(99.0);
        let typical = tally.latency.percentile(50.0);
        if late > LAG.max(typical / 10) {
            all.push(format!(
                "this load did not keep its own plan: 1 % of the turns left more than {} late, \
                 which is in their latencies; give it more --threads, or a machine of its own",
                duration(late)
            ));
        }
        let wall = self.opening + options.warmup + tally.took;
        if self.own_cpu.as_secs_f64() > 0.9 * options.threads as f64 * wall.as_secs_f64() {
            all.push(
                "this load used all the CPU that its threads can: the target may take more; give \
                 it more --threads"
                    .to_owned(),
            );
        }
        if tally.unsent > 0 {
            all.push(format!(
                "{} planned turns were not sent, because their sessions were still busy at the \
                 end: latencies are higher than those told here. If they are many, the target \
                 takes less than this rate",
                tally.unsent
            ));
        }
        if tally.foreign > 0 {
            all.push(format!(
                "{} events came that belong to sessions of others",
                tally.foreign
            ));
        }
        if self.left_behind > 0 {
            let why = self
                .why_left
                .as_deref()
                .unwrap_or("its connection was gone");
            all.push(format!(
                "{} sessions are left behind, with ids that begin with {}: {why}",
                self.left_behind, options.work.prefix
            ));
        }
        all
    }

    /// For programs.
    pub(super) fn json(&self) -> String {
        let tally = &self.tally;
        let (mode, rate) = match self.options.pace {
            Pace::Closed => ("closed", None),
            Pace::Open { rate } => ("open", Some(rate)),
        };
        let errors = tally.failures.iter().map(|(code, failures)| Errors {
            code,
            count: failures.count,
            messages: &failures.messages,
        });
        let json = Json {
            targets: &self.options.work.targets,
            mode,
            rate,
            connections: tally.connections,
            sessions: tally.sessions,
            seconds: self.seconds(),
            interrupted: self.interrupted,
            turns: Turns {
                ended: tally.turns,
                failed: tally.failed,
                unsent: tally.unsent,
                cut_short: tally.cut_short,
                per_second: self.rate(tally.turns).per_second,
            },
            frames: self.rate(tally.frames),
            events: self.rate(tally.events),
            received_bytes: self.rate(tally.received),
            sent_bytes: self.rate(tally.sent),
            latency: distribution(&tally.latency),
            errors: errors.collect(),
            foreign_events: tally.foreign,
            sessions_left_behind: self.left_behind,
            own: Own {
                threads: self.options.threads,
                cpu_seconds: self.own_cpu.as_secs_f64(),
                lag: distribution(&tally.lag),
            },
            warnings: self.warnings(),
        };
        let text = serde_json::to_string_pretty(&json).expect("numbers and texts serialize");
        format!("{text}\n")
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let Self { tally, options, .. } = self;
        let mut out = String::new();
        let pace = match options.pace {
            Pace::Closed => "closed loop: each session begins a turn when its last one has ended",
            Pace::Open { .. } => "open loop: timed from the planned send",
        };
        // Writing to a string does not fail.
        let mut line = |text: String| {
            let _ = writeln!(out, "{text}");
        };
        line(format!(
            "{}: {} connections, {} sessions; {pace}",
            options.work.targets.join(", "),
            tally.connections,
            tally.sessions
        ));
        let planned = match options.pace {
            Pace::Closed => String::new(),
            Pace::Open { rate } => format!(" of {rate} planned"),
        };
        let stopped = if self.interrupted {
            ", interrupted"
        } else {
            ""
        };
        line(format!(
            "turns     {} ended in {:.2} s{stopped}: {:.1}/s{planned}; {} failed, {} not sent, {} \
             cut short",
            tally.turns,
            self.seconds(),
            self.rate(tally.turns).per_second,
            tally.failed,
            tally.unsent,
            tally.cut_short
        ));
        line(format!(
            "received  {} frames ({:.0}/s), {} of them events; {:.2} MB/s in, {:.2} MB/s out",
            tally.frames,
            self.rate(tally.frames).per_second,
            tally.events,
            self.rate(tally.received).per_second / 1e6,
            self.rate(tally.sent).per_second / 1e6
        ));
        line(format!("latency   {}", percentiles(&tally.latency)));
        if !tally.lag.is_empty() {
            line(format!("own lag   {}", percentiles(&tally.lag)));
        }
        line(format!(
            "own cost  {:.2} s of CPU on {} thread(s); opening took {:.2} s",
            self.own_cpu.as_secs_f64(),
            options.threads,
            self.opening.as_secs_f64()
        ));
        for (code, failures) in &tally.failures {
            line(format!("error     {code}: {} times", failures.count));
            for message in &failures.messages {
                line(format!("            {message}"));
            }
        }
        for warning in self.warnings() {
            line(format!("warning   {warning}"));
        }
        out
    }
}

fn micros(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1000.0
}

fn distribution(times: &Times) -> Distribution {
    let [p50, p90, p99, p99_9] = PERCENTILES.map(|percent| micros(times.percentile(percent)));
    Distribution {
        count: times.len(),
        mean: micros(times.mean()),
        p50,
        p90,
        p99,
        p99_9,
        max: micros(times.max()),
    }
}

/// One line with all of them.
fn percentiles(times: &Times) -> String {
    if times.is_empty() {
        return "none".to_owned();
    }
    let told = PERCENTILES
        .iter()
        .map(|percent| format!("p{percent} {}", duration(times.percentile(*percent))));
    let max = format!("max {}", duration(times.max()));
    told.chain([max]).collect::<Vec<_>>().join("  ")
}

/// Three digits are enough, and all that is known.
fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let (value, unit) = match seconds {
        s if s < 1e-3 => (s * 1e6, "µs"),
        s if s < 1.0 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    let digits = match value {
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_three_digits() {
        for (nanos, text) in [
            (0, "0.00 µs"),
            (1_234, "1.23 µs"),
            (45_678, "45.7 µs"),
            (456_789, "457 µs"),
            (1_500_000, "1.50 ms"),
            (2_000_000_000, "2.00 s"),
        ] {
            assert_eq!(duration(Duration::from_nanos(nanos)), text);
        }
    }
}
