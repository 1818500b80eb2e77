//! What a proxy costs: the same work over loopback directly, through Taxiway, HAProxy and nginx, in
//! interleaved rounds, with the CPU time that the kernel charged to each proxy.
//!
//! `cargo bench --bench loopback` measures; without `--bench` (so under `cargo test --benches`), or
//! with `--quick`, one short round checks that everything works. The load is that of `taxiway load`.
//! Only ratios within one run mean anything: the machine may be busy with other things.

mod curve;
mod measure;
mod plot;
mod server;
mod subject;
mod table;
mod wire;

use std::{
    fs,
    io::{IsTerminal, stderr},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Parser;

use self::{
    curve::Axis,
    measure::Work,
    subject::{Kind, Running, Subject, With},
    table::{Row, Style},
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

/// Connections that one measurement of connections opens at most: a system has some 28000 ports for
/// them, and gives those of closed ones back after a minute.
const CONNECTS: u64 = 2048;

/// Descriptors of a process that are no connections.
const OTHER_FILES: usize = 200;

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
    /// Threads of Taxiway and of HAProxy; nginx has one worker.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Connections of the idle measurement; 0 leaves it out.
    #[arg(long, default_value_t = 2000)]
    idle: usize,
    /// Latencies are measured at this share of what the slowest subject takes; 0 leaves them out.
    #[arg(long, default_value_t = 0.5)]
    load: f64,
    /// Leave out the measurement of connections per second.
    #[arg(long)]
    no_connects: bool,
    /// Only these rows.
    #[arg(long)]
    only: Vec<String>,
    /// Only this work: streaming or ping-pong.
    #[arg(long)]
    work: Option<String>,
    /// Measure this build of Taxiway instead of the one that cargo has made for the benchmark.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_taxiway"), hide_default_value = true)]
    program: PathBuf,
    /// Another build of Taxiway to compare with, as NAME=PROGRAM.
    #[arg(long, value_name = "NAME=PROGRAM")]
    also: Vec<String>,
    /// Measure what a frame costs over this number instead, as CSV.
    #[arg(long, value_enum)]
    curve: Option<Axis>,
    /// Turns per second of the curve, each of 20 events.
    #[arg(long, default_value_t = 2000.0)]
    rate: f64,
    /// The servers tell all connections of each new session (`session.lifecycle`), as real ones do.
    /// Only connections and idle ones are measured then.
    #[arg(long)]
    news: bool,
    /// Print Markdown, for docs/performance.md.
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
    /// Print every measurement as JSON.
    #[arg(long)]
    json: bool,
    /// Write a plot of it.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
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
        return server::serve(count, args.news);
    }
    wire::check();
    let args = args.within_limits();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let folder = tempfile::tempdir()?;
            let (_servers, backends) = subject::servers(args.backends, args.news)?;
            match args.curve {
                Some(axis) => draw(&args, axis, folder.path(), &backends).await,
                None => compare(&args, folder.path(), &backends).await,
            }
        })
}

impl Args {
    fn within_limits(mut self) -> Self {
        if self.quick {
            self.rounds = 1;
            self.seconds = 0.1;
            self.idle = self.idle.min(50);
            self.rate = self.rate.min(200.0);
        }
        let most = self.most_connections();
        if self.idle > most {
            eprintln!(
                "{} idle connections are cut to {most}: more need more open files (ulimit -n)",
                self.idle
            );
            self.idle = most;
        }
        self
    }

    /// A proxy holds two sockets for each connection, Taxiway and the others alike.
    fn most_connections(&self) -> usize {
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let files = files.current.map_or(usize::MAX, |n| n as usize);
        files.saturating_sub(OTHER_FILES) / 2
    }

    fn subjects(&self) -> Vec<Subject> {
        let taxiway = |name: &str, granularity, threads, with| Subject {
            name: name.to_owned(),
            kind: Kind::Taxiway {
                program: self.program.clone(),
                granularity,
                threads,
                with,
            },
        };
        let plain = |name: &str, kind| Subject {
            name: name.to_owned(),
            kind,
        };
        let threads = self.threads;
        let mut all = vec![
            plain(table::DIRECT, Kind::Direct),
            plain(table::YARDSTICK, Kind::Haproxy { threads }),
            plain("nginx", Kind::Nginx),
            taxiway("taxiway", "session", Some(threads), With::Nothing),
            taxiway(
                "taxiway connection",
                "connection",
                Some(threads),
                With::Nothing,
            ),
            taxiway("taxiway logs", "session", Some(threads), With::Logs),
            taxiway("taxiway users", "session", Some(threads), With::Principals),
            taxiway("taxiway threads", "session", None, With::Nothing),
        ];
        for also in &self.also {
            let (name, program) = also.split_once('=').unwrap_or(("also", also));
            let mut subject = taxiway(name, "session", Some(threads), With::Nothing);
            if let Kind::Taxiway { program: path, .. } = &mut subject.kind {
                *path = PathBuf::from(program);
            }
            all.push(subject);
        }
        let also = |name: &str| self.also.iter().any(|also| also.starts_with(name));
        all.retain(|subject| match self.curve {
            _ if !self.only.is_empty() => self.only.contains(&subject.name),
            Some(_) => curve::usual(&subject.name) || also(&subject.name),
            None => true,
        });
        all
    }
}

async fn compare(args: &Args, folder: &Path, backends: &[u16]) -> anyhow::Result<()> {
    let mut run = 0;
    let mut rows = Vec::new();
    let mut running = Vec::new();
    for subject in args.subjects() {
        run += 1;
        let started = subject.start(folder, backends, run).await?;
        rows.push(Row::new(&subject, started.is_some()));
        running.extend(started.map(|it| (rows.len() - 1, subject, it)));
    }
    let mut works = vec![STREAMING, PING_PONG];
    works.retain(|_| !args.news);
    works.retain(|work| args.work.as_ref().is_none_or(|only| only == work.name));
    for round in 1..=args.rounds {
        for work in &works {
            for (row, subject, it) in &running {
                run += 1;
                progress(&format!("round {round}: {}, {}", work.name, subject.name));
                let closed = measure::closed(it, run, work, args.seconds).await?;
                rows[*row].closed.push((work.name, closed));
            }
        }
    }
    latencies(args, &works, &running, &mut rows, &mut run).await?;
    if !args.no_connects {
        for round in 1..=args.rounds {
            for (row, subject, it) in &running {
                progress(&format!("round {round}: connections, {}", subject.name));
                let connects = measure::connects(it, &mut run, args.seconds, CONNECTS).await?;
                rows[*row].connects.push(connects);
            }
        }
    }
    if args.idle > 0 {
        for (row, subject, _) in &running {
            run += 1;
            progress(&format!("idle: {}", subject.name));
            // Started anew: memory that earlier work has left behind would hide the need.
            let Some(fresh) = subject.start(folder, backends, run).await? else {
                continue;
            };
            let rest = Duration::from_secs_f64(args.seconds);
            rows[*row].idle = measure::idle(&fresh, run, args.idle, rest).await?;
        }
    }
    progress("");
    if let Some(file) = &args.svg {
        fs::write(file, plot::bars(&rows, &works))?;
    }
    let style = match args.markdown {
        true => Style::Markdown,
        false => Style::Plain,
    };
    match args.json {
        true => println!("{:#}", table::json(&rows, &works, args)),
        false => print!("{}", table::tables(&rows, &works, args, style)),
    }
    Ok(())
}

/// All subjects at the same rate, or they could not be compared.
async fn latencies(
    args: &Args,
    works: &[Work],
    running: &[(usize, Subject, Running)],
    rows: &mut [Row],
    run: &mut u32,
) -> anyhow::Result<()> {
    for round in 1..=args.rounds {
        for work in works {
            let slowest = rows.iter().filter_map(|row| row.most(work));
            let rate = slowest.fold(f64::MAX, f64::min) * args.load;
            if !rate.is_finite() || rate <= 0.0 || running.is_empty() {
                continue;
            }
            for (row, subject, it) in running {
                *run += 1;
                progress(&format!(
                    "round {round}: {} at a rate, {}",
                    work.name, subject.name
                ));
                let open = measure::planned(it, *run, work, rate, args.seconds).await?;
                rows[*row].open.push((work.name, open));
            }
        }
    }
    Ok(())
}

async fn draw(args: &Args, axis: Axis, folder: &Path, backends: &[u16]) -> anyhow::Result<()> {
    let most = args.most_connections();
    let points = curve::measure(args, axis, folder, backends, most).await?;
    if let Some(file) = &args.svg {
        fs::write(file, plot::lines(axis, &points))?;
    }
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&points)?),
        false => print!("{}", curve::csv(axis, &points)),
    }
    Ok(())
}

/// Tells whoever watches where it stands.
fn progress(what: &str) {
    if stderr().is_terminal() {
        eprint!("\r\x1b[K{what}");
    }
}
