//! One measurement of one subject: load on it, and what the kernel charged to its process meanwhile.
//! Knows no other subject.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Serialize;
use serde_json::Map;
use taxiway::{
    core::id::Secret,
    load::{self, Fleet, Pace, Period, Permit, Share, Tally, Times},
    transport::Transport,
};
use tokio_util::sync::CancellationToken;

use crate::{
    subject::{Process, Running},
    table::median,
    wire,
};

/// A turn that runs longer than it does even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Connections that are opened together when connections are what is measured.
const BATCH: usize = 64;

/// Turns of one slice at a rate: ten of them are beyond the 99th percentile. A shared machine stands
/// still for milliseconds some times a second, whatever runs on it. That is more than one turn of a
/// hundred, so a whole round would tell of the machine; most slices are spared.
const SLICE: f64 = 1000.0;

/// What every connection does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    pub(crate) name: &'static str,
    pub(crate) connections: usize,
    /// Sessions of one connection.
    pub(crate) sessions: usize,
    /// Events of one turn.
    pub(crate) events: usize,
}

/// As much as the subject takes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Closed {
    pub(crate) turns: u64,
    pub(crate) frames: u64,
    /// Bytes that the clients received.
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
    /// CPU seconds of the proxy, if there is one.
    pub(crate) cpu: Option<f64>,
    /// CPU seconds of the load.
    pub(crate) own_cpu: f64,
}

/// So many turns per second, timed from the plan; in microseconds. Percentiles are medians of those of
/// [`SLICE`]s, but for the last one, for which a slice is too short.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Open {
    pub(crate) rate: f64,
    pub(crate) turns: u64,
    pub(crate) frames: u64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p99_9: f64,
    /// How much later than possible the load has sent one turn of a hundred.
    pub(crate) lag_p99: f64,
    pub(crate) cpu: Option<f64>,
}

/// Connections that are opened, get a session, and end.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Connects {
    pub(crate) connections: u64,
    pub(crate) seconds: f64,
    pub(crate) cpu: Option<f64>,
}

/// Connections that do nothing.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Idle {
    pub(crate) connections: usize,
    /// Resident bytes for each.
    pub(crate) bytes: f64,
    /// CPU seconds per second.
    pub(crate) busy: f64,
}

/// Opens all connections of `work`; `run` has not been used before.
pub(crate) async fn open(running: &Running, run: u32, work: &Work) -> anyhow::Result<Fleet> {
    let load = load::Work {
        targets: running
            .ports
            .iter()
            .map(|port| format!("127.0.0.1:{port}"))
            .collect(),
        transport: Transport::default(),
        token: running.token.map(|token| Secret::from(token.to_owned())),
        connections: work.connections,
        sessions: work.sessions,
        prefix: format!("bench-{run}-"),
        create: Map::from_iter([("model".to_owned(), "m".into())]),
        prompt: wire::prompt(work.events),
        turn_timeout: PATIENCE,
        permit: Permit::Any,
    };
    let fleet = Fleet::open(load, Share::ALL, &CancellationToken::new()).await;
    fine(fleet.tally())?;
    Ok(fleet)
}

/// Every turn has ended, as it should.
fn fine(tally: &Tally) -> anyhow::Result<()> {
    ensure!(!tally.has_failed(), "turns failed: {:?}", tally.failures);
    ensure!(tally.foreign == 0, "events of somebody else's session came");
    Ok(())
}

/// Works for `seconds` and waits for the last turn's end.
async fn work(fleet: &mut Fleet, work: &Work, pace: Pace, seconds: f64) -> anyhow::Result<Tally> {
    let period = Period::from_now(Duration::from_secs_f64(seconds));
    let tally = fleet.run(pace, period, &CancellationToken::new()).await?;
    fine(&tally)?;
    // Each turn brought its answer and its events: no more, no less.
    let expected = tally.turns * (work.events as u64 + 1);
    ensure!(
        tally.frames == expected,
        "{} frames came instead of {expected}",
        tally.frames
    );
    Ok(tally)
}

pub(crate) async fn closed(
    running: &Running,
    run: u32,
    what: &Work,
    seconds: f64,
) -> anyhow::Result<Closed> {
    let mut fleet = open(running, run, what).await?;
    let meter = Meter::start(running)?;
    let tally = work(&mut fleet, what, Pace::Closed, seconds).await?;
    Ok(Closed {
        turns: tally.turns,
        frames: tally.frames,
        bytes: tally.received,
        seconds: tally.took.as_secs_f64(),
        cpu: meter.proxy(running)?,
        own_cpu: own_cpu() - meter.own,
    })
}

/// Every session has had a turn before it is measured, and has two at least while it is.
pub(crate) async fn planned(
    running: &Running,
    run: u32,
    what: &Work,
    rate: f64,
    seconds: f64,
) -> anyhow::Result<Open> {
    let mut fleet = open(running, run, what).await?;
    let pace = Pace::Open { rate };
    let once = (what.connections * what.sessions) as f64 / rate;
    work(&mut fleet, what, pace, once).await?;
    let length = (SLICE / rate).max(2.0 * once);
    let slices = (seconds / length).max(1.0) as usize;
    let meter = Meter::start(running)?;
    let mut tallies = Vec::with_capacity(slices);
    for _ in 0..slices {
        tallies.push(work(&mut fleet, what, pace, length).await?);
    }
    let cpu = meter.proxy(running)?;
    let micros = |times: &Times, percent| times.percentile(percent).as_secs_f64() * 1e6;
    let mut all = Times::new();
    tallies.iter().for_each(|tally| all.add(&tally.latency));
    let of_slices = |value: &dyn Fn(&Tally) -> f64| {
        median(tallies.iter().map(value).collect()).unwrap_or_default()
    };
    Ok(Open {
        rate,
        turns: tallies.iter().map(|tally| tally.turns).sum(),
        frames: tallies.iter().map(|tally| tally.frames).sum(),
        p50: of_slices(&|tally| micros(&tally.latency, 50.0)),
        p99: of_slices(&|tally| micros(&tally.latency, 99.0)),
        p99_9: micros(&all, 99.9),
        lag_p99: of_slices(&|tally| micros(&tally.lag, 99.0)),
        cpu,
    })
}

/// Opens connections with a session each and drops them, again and again, `most` at most: closed
/// connections keep their ports for a while.
pub(crate) async fn connects(
    running: &Running,
    run: &mut u32,
    seconds: f64,
    most: u64,
) -> anyhow::Result<Connects> {
    let batch = Work {
        name: "connect",
        connections: BATCH,
        sessions: 1,
        events: 1,
    };
    let meter = Meter::start(running)?;
    let began = Instant::now();
    let mut connections = 0;
    while began.elapsed().as_secs_f64() < seconds && connections < most {
        *run += 1;
        drop(open(running, *run, &batch).await?);
        connections += BATCH as u64;
    }
    Ok(Connects {
        connections,
        seconds: began.elapsed().as_secs_f64(),
        cpu: meter.proxy(running)?,
    })
}

/// What connections cost that do nothing, each with an open session.
pub(crate) async fn idle(
    running: &Running,
    run: u32,
    connections: usize,
    rest: Duration,
) -> anyhow::Result<Option<Idle>> {
    let Some(process) = &running.process else {
        return Ok(None);
    };
    let what = Work {
        name: "idle",
        connections,
        sessions: 1,
        events: 1,
    };
    let before = process.resident()?;
    let fleet = open(running, run, &what).await?;
    let after = process.resident()?;
    let cpu = process.cpu()?;
    tokio::time::sleep(rest).await;
    let busy = (process.cpu()? - cpu) / rest.as_secs_f64();
    drop(fleet);
    Ok(Some(Idle {
        connections,
        bytes: after.saturating_sub(before) as f64 / connections as f64,
        busy,
    }))
}

/// CPU times at the start of a measurement.
struct Meter {
    proxy: Option<f64>,
    own: f64,
}

impl Meter {
    fn start(running: &Running) -> anyhow::Result<Self> {
        Ok(Self {
            proxy: cpu(running)?,
            own: own_cpu(),
        })
    }

    /// What the proxy has used since.
    fn proxy(&self, running: &Running) -> anyhow::Result<Option<f64>> {
        let now = cpu(running).context("the proxy has ended")?;
        Ok(self.proxy.zip(now).map(|(before, after)| after - before))
    }
}

fn cpu(running: &Running) -> anyhow::Result<Option<f64>> {
    running.process.as_ref().map(Process::cpu).transpose()
}

fn own_cpu() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
