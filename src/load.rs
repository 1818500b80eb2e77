//! `taxiway load`: turns on many sessions, in the plan's time or as fast as the target takes them,
//! and how long they took. For planning capacity, and the load source of `benches/loopback`.
//!
//! A composition root of its own, without pool, store or configuration file. It speaks the SDKs'
//! protocol as a client does, and must know nothing of what is behind its target.

mod client;
mod fleet;
mod frames;
mod plan;
mod report;
mod tally;
mod timer;

use std::{
    process::ExitCode,
    sync::{Arc, Barrier, OnceLock},
    time::{Duration, Instant},
};

use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

pub use self::{
    client::Refusal,
    fleet::{Fleet, Period},
    plan::{Pace, Share},
    tally::{Failures, Tally, Times},
};
use self::{
    client::{Link, REAL},
    report::Report,
};
use crate::{
    control::signal::Signals,
    core::{id::Secret, reply},
    transport::Transport,
};

/// Exit code: nothing was reached, or nobody let us in (sysexits EX_UNAVAILABLE).
const UNAVAILABLE: u8 = 69;

/// Exit code: what was asked for cannot be meant.
const USAGE: u8 = 2;

/// Descriptors that are not connections.
const OTHER_FILES: usize = 64;

/// Connections, sessions, and what a turn is.
#[derive(Clone, Debug)]
pub struct Work {
    /// `host:port`; connections go to them in turn.
    pub targets: Vec<String>,
    /// Plain TCP, or TLS.
    pub transport: Transport,
    /// The token that a client needs.
    pub token: Option<Secret>,
    /// In all.
    pub connections: usize,
    /// Sessions of each.
    pub sessions: usize,
    /// What session ids begin with; a number follows. No two loads at a time may have the same.
    pub prefix: String,
    /// Parameters of `session.create`, besides the id.
    pub create: Map<String, Value>,
    /// What each turn asks.
    pub prompt: String,
    /// A turn that runs longer has failed.
    pub turn_timeout: Duration,
    /// Whom turns may be sent to.
    pub permit: Permit,
}

impl Work {
    fn session_id(&self, number: usize) -> String {
        format!("{}{number}", self.prefix)
    }

    /// The number in one of our ids.
    fn session_number(&self, session: &str) -> Option<usize> {
        session.strip_prefix(self.prefix.as_str())?.parse().ok()
    }

    fn create_params(&self, session: &str) -> String {
        let mut params = self.create.clone();
        params.insert("sessionId".to_owned(), session.into());
        Value::Object(params).to_string()
    }
}

/// Whom turns may be sent to: on a real server each one calls a model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Permit {
    /// Any.
    Any,
    /// Only servers whose sessions live under this path, which is the simulated servers' own.
    Simulated(&'static str),
}

/// How the result is printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// What to do.
    pub work: Work,
    /// When.
    pub pace: Pace,
    /// Before it is measured.
    pub warmup: Duration,
    /// How long it is measured.
    pub length: Duration,
    /// Threads that send; each has its share of the connections.
    pub threads: usize,
    /// How to print.
    pub output: Output,
}

/// Runs the load and prints what was measured; returns the program's exit code.
pub fn run(options: &Options) -> ExitCode {
    if let Err(message) = files_for(options.work.connections) {
        return fail(&message, USAGE);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start the runtime: {error}"), 1),
    };
    if let Err((message, code)) = runtime.block_on(look(&options.work)) {
        return fail(&message, code);
    }
    let stop = CancellationToken::new();
    let mut signals = match runtime.block_on(async { Signals::new() }) {
        Ok(signals) => signals,
        Err(error) => return fail(&format!("cannot catch signals: {error}"), 1),
    };
    let cpu = own_cpu();
    let threads = start(options, &stop);
    let ended = CancellationToken::new();
    let watch = {
        let (stop, ended) = (stop.clone(), ended.clone());
        std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = ended.cancelled() => return,
                    _ = signals.next_end() => stop.cancel(),
                }
                tokio::select! {
                    () = ended.cancelled() => {}
                    // The second one does not even wait for the sessions to be deleted.
                    _ = signals.next_end() => std::process::exit(1),
                }
            });
        })
    };
    let mut report = Report::new(options);
    for thread in threads {
        match thread.join() {
            Ok(Ok(part)) => report.add(part),
            Ok(Err(message)) => return fail(&message, 1),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    report.own_cpu = own_cpu().saturating_sub(cpu);
    report.interrupted = stop.is_cancelled();
    ended.cancel();
    // It only waits for signals.
    let _joined = watch.join();
    crate::app::say(&match options.output {
        Output::Text => report.text(),
        Output::Json => report.json(),
    });
    if report.tally.connections == 0 && !report.interrupted {
        ExitCode::from(UNAVAILABLE)
    } else if report.tally.has_failed() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn fail(message: &str, code: u8) -> ExitCode {
    eprintln!("taxiway load: {message}");
    ExitCode::from(code)
}

/// CPU time of this process so far.
fn own_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// Makes room for so many connections, as far as the system lets us.
fn files_for(connections: usize) -> Result<(), String> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let wanted = (connections + OTHER_FILES) as u64;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|limit| limit >= wanted) {
        return Ok(());
    }
    if maximum.is_none_or(|limit| limit >= wanted) {
        let raised = Rlimit {
            current: Some(wanted),
            maximum,
        };
        return setrlimit(Resource::Nofile, raised)
            .map_err(|error| format!("cannot raise the limit of open files: {error}"));
    }
    let limit = maximum.unwrap_or_default();
    Err(format!(
        "{connections} connections need {wanted} open files, and the system allows {limit}: \
         ulimit -n"
    ))
}

/// Opens one session at each target: whether anybody is there, lets us in, and may be loaded.
async fn look(work: &Work) -> Result<(), (String, u8)> {
    let mut targets: Vec<&String> = work.targets.iter().collect();
    targets.sort_unstable();
    targets.dedup();
    for target in targets {
        let session = format!("{}look", work.prefix);
        let looked = async {
            let (mut link, _) = Link::open(work, target).await?;
            link.create(work, &session).await?;
            let gone = reply::session_params(&session);
            link.ask("session.delete", &gone).await
        };
        looked.await.map_err(|refusal: Refusal| {
            let code = match refusal.code.as_str() {
                REAL => USAGE,
                _ => UNAVAILABLE,
            };
            (format!("{target}: {refusal}"), code)
        })?;
    }
    Ok(())
}

/// What a thread has measured.
struct Part {
    tally: Tally,
    left_behind: u64,
    why: Option<Refusal>,
    opening: Duration,
}

type Thread = std::thread::JoinHandle<Result<Part, String>>;

/// Starts the threads; their plans begin together when all have opened their sessions.
fn start(options: &Options, stop: &CancellationToken) -> Vec<Thread> {
    let threads = options.threads.min(options.work.connections).max(1);
    let all_open = Arc::new((Barrier::new(threads), OnceLock::new()));
    (0..threads)
        .map(|index| {
            let (options, stop) = (options.clone(), stop.clone());
            let all_open = all_open.clone();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .map_err(|error| format!("cannot start a runtime: {error}"));
                let share = Share { index, of: threads };
                let began = Instant::now();
                let fleet = runtime.as_ref().map(|runtime| {
                    runtime.block_on(Fleet::open(options.work.clone(), share, &stop))
                });
                let opening = began.elapsed();
                // All threads come here, whatever has happened to them.
                let (barrier, start) = &*all_open;
                barrier.wait();
                let start = *start.get_or_init(Instant::now);
                let mut fleet = fleet.map_err(Clone::clone)?;
                let runtime = runtime?;
                let period = Period {
                    start,
                    warmup: options.warmup,
                    length: options.length,
                };
                let tally = runtime
                    .block_on(fleet.run(options.pace, period, &stop))
                    .map_err(|error| error.to_string())?;
                let (left_behind, why) = runtime.block_on(fleet.close());
                Ok(Part {
                    tally,
                    left_behind,
                    why,
                    opening,
                })
            })
        })
        .collect()
}
