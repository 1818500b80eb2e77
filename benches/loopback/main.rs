//! What a proxy costs: the same work over loopback directly, through Taxiway, HAProxy and nginx, in
//! interleaved rounds, with the CPU time that the kernel charged to each proxy.
//!
//! `cargo bench --bench loopback` measures; without `--bench` (so under `cargo test --benches`), or
//! with `--quick`, one short round checks that everything works. Only ratios within one run mean
//! anything: the machine may be busy with other things.

mod load;
mod server;
mod subject;
mod table;
mod wire;

use std::{
    io::{IsTerminal, stderr},
    path::PathBuf,
    time::Duration,
};

use clap::Parser;

use self::{
    load::Work,
    subject::{Kind, Process, Running, Subject},
    table::{Idle, Measured, Row},
};

/// Long turns: what matters is the cost of a byte.
const STREAMING: Work = Work {
    name: "streaming",
    connections: 16,
    sessions: 4,
    events: 200,
};

/// Shortest turns: what matters is the cost of a wake-up.
const PING_PONG: Work = Work {
    name: "ping-pong",
    connections: 32,
    sessions: 1,
    events: 1,
};

/// Arguments; cargo adds `--bench`.
#[derive(Parser, Debug)]
struct Args {
    /// One short round of everything, to see that it works.
    #[arg(long, alias = "test")]
    quick: bool,
    /// Interleaved rounds.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds that each measurement takes.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Simulated servers behind each proxy.
    #[arg(long, default_value_t = 3)]
    backends: usize,
    /// Connections of the idle measurement; 0 leaves it out.
    #[arg(long, default_value_t = 2000)]
    idle: usize,
    /// Only these rows.
    #[arg(long)]
    only: Vec<String>,
    /// Only this work: streaming or ping-pong.
    #[arg(long)]
    work: Option<String>,
    /// Another build of Taxiway to compare with, as NAME=PROGRAM.
    #[arg(long, value_name = "NAME=PROGRAM")]
    also: Vec<String>,
    #[arg(long, hide = true)]
    serve: Option<usize>,
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let known = ["--bench", "--quick", "--test", "--serve", "--help"];
    let args = if arguments.iter().any(|a| known.contains(&a.as_str())) {
        Args::parse()
    } else {
        // Run as a test, with arguments that are meant for other tests.
        Args::parse_from(["loopback", "--quick"])
    };
    if let Some(count) = args.serve {
        return server::serve(count);
    }
    wire::check_places();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(compare(args.within_limits()))
}

impl Args {
    fn within_limits(mut self) -> Self {
        if self.quick {
            self.rounds = 1;
            self.seconds = 0.1;
            self.idle = self.idle.min(50);
        }
        // A proxy holds two sockets for each connection, Taxiway and the others alike.
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let files = files.current.map_or(usize::MAX, |n| n as usize);
        self.idle = self.idle.min(files.saturating_sub(200) / 2);
        self
    }

    fn subjects(&self) -> Vec<Subject> {
        let taxiway = |name: &str, granularity, threads, logs| Subject {
            name: name.to_owned(),
            kind: Kind::Taxiway {
                program: PathBuf::from(env!("CARGO_BIN_EXE_taxiway")),
                granularity,
                threads,
                logs,
            },
        };
        let plain = |name: &str, kind| Subject {
            name: name.to_owned(),
            kind,
        };
        let mut all = vec![
            plain("direct", Kind::Direct),
            plain(table::YARDSTICK, Kind::Haproxy),
            plain("nginx", Kind::Nginx),
            taxiway("taxiway", "session", Some(1), false),
            taxiway("taxiway threads", "session", None, false),
            taxiway("taxiway logs", "session", Some(1), true),
            taxiway("taxiway connection", "connection", Some(1), false),
        ];
        for also in &self.also {
            let (name, program) = also.split_once('=').unwrap_or(("also", also));
            let mut subject = taxiway(name, "session", Some(1), false);
            if let Kind::Taxiway { program: path, .. } = &mut subject.kind {
                *path = PathBuf::from(program);
            }
            all.push(subject);
        }
        all.retain(|s| self.only.is_empty() || self.only.contains(&s.name));
        all
    }
}

async fn compare(args: Args) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let (_servers, backends) = subject::servers(args.backends)?;
    let mut run = 0;
    let mut rows = Vec::new();
    let mut running = Vec::new();
    for subject in args.subjects() {
        run += 1;
        let started = subject.start(folder.path(), &backends, run).await?;
        rows.push(Row::new(&subject, started.is_some()));
        running.extend(started.map(|it| (rows.len() - 1, subject, it)));
    }
    let works = [STREAMING, PING_PONG];
    for round in 1..=args.rounds {
        for work in &works {
            if args.work.as_ref().is_some_and(|only| only != work.name) {
                continue;
            }
            for (row, subject, it) in &running {
                run += 1;
                progress(&format!("round {round}: {}, {}", work.name, subject.name));
                let measured = measure(it, run, work, args.seconds).await?;
                rows[*row].add(work, measured);
            }
        }
    }
    if args.idle > 0 {
        for (row, subject, _) in &running {
            run += 1;
            progress(&format!("idle: {}", subject.name));
            // Started anew: memory that earlier work has left behind would hide the need.
            let Some(fresh) = subject.start(folder.path(), &backends, run).await? else {
                continue;
            };
            let rest = Duration::from_secs_f64(args.seconds);
            rows[*row].idle = idle(&fresh, run, args.idle, rest).await?;
        }
    }
    progress("");
    table::print(&rows, &works, &args);
    Ok(())
}

/// Tells whoever watches where it stands.
fn progress(what: &str) {
    if stderr().is_terminal() {
        eprint!("\r\x1b[K{what}");
    }
}

/// One measurement: open, work, close.
async fn measure(
    running: &Running,
    run: u32,
    work: &Work,
    seconds: f64,
) -> anyhow::Result<Measured> {
    let clients = load::open_all(&running.ports, run, work).await?;
    let cpu = || running.process.as_ref().map(Process::cpu).transpose();
    let before = cpu()?;
    let (done, took) = load::run(clients, work, Duration::from_secs_f64(seconds)).await?;
    let used = before.zip(cpu()?).map(|(before, after)| after - before);
    Ok(Measured { done, took, used })
}

/// What connections cost that do nothing, each with an open session.
async fn idle(
    running: &Running,
    run: u32,
    connections: usize,
    rest: Duration,
) -> anyhow::Result<Option<Idle>> {
    let Some(process) = &running.process else {
        return Ok(None);
    };
    let work = Work {
        name: "idle",
        connections,
        sessions: 1,
        events: 1,
    };
    let before = process.resident()?;
    let clients = load::open_all(&running.ports, run, &work).await?;
    let after = process.resident()?;
    let cpu = process.cpu()?;
    tokio::time::sleep(rest).await;
    let busy = (process.cpu()? - cpu) / rest.as_secs_f64();
    drop(clients);
    Ok(Some(Idle {
        connections,
        bytes: after.saturating_sub(before) as f64 / connections as f64,
        busy,
    }))
}
