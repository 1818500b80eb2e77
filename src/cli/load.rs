//! `taxiway load`: its arguments.

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use clap::Args;
use serde_json::{Map, Value};

use super::{
    OutputKind,
    dial::{TlsArgs, secret_in},
    exit, usage,
};
use crate::{
    config,
    control::supervisor::random_token,
    load::{self, Options, Output, Pace, Permit, Work},
    sim,
    transport::Transport,
};

/// Events of a simulated turn that are not streamed pieces of its reply.
const FRAME_OF_A_TURN: usize = 12;

#[derive(Debug, Args)]
pub(super) struct LoadArgs {
    /// The Taxiway, or the CLI server. Repeatable: connections go to them in turn.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:4321")]
    target: Vec<String>,
    /// Connections.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    connections: u32,
    /// Sessions of each connection.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    sessions: u32,
    /// Turns per second on all sessions together, each timed from when it should have been sent
    /// (open loop) [default: each session begins a turn when its last one has ended].
    #[arg(long, value_name = "TURNS/S", value_parser = rate)]
    rate: Option<f64>,
    /// How long to measure.
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Before it is measured.
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    warmup: Duration,
    /// Simulated servers: about so many events in each turn.
    #[arg(long, default_value_t = 50, conflicts_with = "prompt",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    events: u32,
    /// What each turn asks, where a model answers.
    #[arg(long)]
    prompt: Option<String>,
    /// JSON file with more parameters of `session.create`, such as `model` and `provider`.
    #[arg(long, value_name = "FILE")]
    create: Option<PathBuf>,
    /// What session ids begin with, if their users are read from them.
    #[arg(long, default_value = "load-", value_parser = prefix)]
    session_prefix: String,
    /// A turn that runs longer has failed, and so has its session.
    #[arg(long, value_name = "DURATION", default_value = "5m",
          value_parser = humantime::parse_duration)]
    turn_timeout: Duration,
    /// Threads that send.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    threads: u8,
    /// Environment variable with the token that clients need.
    #[arg(long, value_name = "VAR")]
    token_env: Option<String>,
    /// Speak TLS; what a file or name is given for implies it.
    #[arg(long)]
    tls: bool,
    #[command(flatten)]
    files: TlsArgs,
    /// Also load servers that are not simulated. Every turn calls a model there, at your cost.
    #[arg(long)]
    yes: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = OutputKind::Text)]
    output: OutputKind,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.001..=1e6).contains(&rate) => Ok(rate),
        Ok(_) | Err(_) => Err("turns per second, from 0.001 to 1000000".to_owned()),
    }
}

fn prefix(text: &str) -> Result<String, String> {
    let fair = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if text.len() <= 100 && text.bytes().all(fair) {
        Ok(text.to_owned())
    } else {
        Err("at most 100 letters, digits, `-` and `_`".to_owned())
    }
}

/// Runs the load.
pub(super) fn load(args: LoadArgs) -> ExitCode {
    for target in &args.target {
        if let Some(reason) = config::dial_fault(target) {
            return usage(&format!("--target {target}: {reason}"));
        }
    }
    if args.duration.is_zero() {
        return usage("--duration must not be 0");
    }
    let create = match args.create.as_ref().map(create).transpose() {
        Ok(create) => create.unwrap_or_else(simulated_session),
        Err(complaint) => return usage(&complaint),
    };
    let token = match args.token_env.as_deref().map(secret_in).transpose() {
        Ok(token) => token,
        Err(complaint) => return usage(&complaint),
    };
    let files = (args.tls || args.files.is_given()).then(|| args.files.files());
    let tls = match files.map(|files| files.connector()).transpose() {
        Ok(tls) => tls,
        Err(error) => {
            eprintln!("taxiway: {error}");
            return ExitCode::from(exit::CONFIG);
        }
    };
    let run = match random_token() {
        Ok(token) => token.expose()[..8].to_owned(),
        Err(error) => {
            eprintln!("taxiway: no randomness: {error}");
            return ExitCode::FAILURE;
        }
    };
    let events = args.events as usize;
    load::run(&Options {
        work: Work {
            targets: args.target,
            transport: Transport {
                proxy_protocol: None,
                tls,
            },
            token,
            connections: args.connections as usize,
            sessions: args.sessions as usize,
            prefix: format!("{}{run}-", args.session_prefix),
            create,
            prompt: args.prompt.unwrap_or_else(|| simulated_turn(events)),
            turn_timeout: args.turn_timeout,
            permit: if args.yes {
                Permit::Any
            } else {
                Permit::Simulated(sim::ROOT)
            },
        },
        pace: args.rate.map_or(Pace::Closed, |rate| Pace::Open { rate }),
        warmup: args.warmup,
        length: args.duration,
        threads: usize::from(args.threads),
        output: match args.output {
            OutputKind::Text => Output::Text,
            OutputKind::Json => Output::Json,
        },
    })
}

/// The prompt that makes a simulated server answer with about so many events: each piece of its
/// reply is two.
fn simulated_turn(events: usize) -> String {
    format!("[[len {}]]", events.saturating_sub(FRAME_OF_A_TURN) / 2)
}

fn simulated_session() -> Map<String, Value> {
    [
        ("model", Value::from("simulated")),
        ("streaming", Value::from(true)),
        ("availableTools", Value::Array(Vec::new())),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into_iter()
    .collect()
}

fn create(file: &PathBuf) -> Result<Map<String, Value>, String> {
    let name = file.display();
    let text = fs::read_to_string(file).map_err(|error| format!("--create {name}: {error}"))?;
    let params: Map<String, Value> = serde_json::from_str(&text)
        .map_err(|error| format!("--create {name}: not a JSON object: {error}"))?;
    match params.contains_key("sessionId") {
        true => Err(format!(
            "--create {name}: each session gets an id of its own"
        )),
        false => Ok(params),
    }
}
