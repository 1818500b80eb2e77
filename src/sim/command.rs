//! `taxiway sim`: simulated servers from the command line.

use std::{
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use super::{Home, Order, SimOptions, SimServer};

/// Whether the servers share their disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum HomeKind {
    /// One disk for all, as with a common COPILOT_HOME.
    Shared,
    /// A disk each.
    Separate,
}

/// Run simulated Copilot CLI servers: no account, no model, no disk.
#[derive(Clone, Debug, Args)]
pub struct SimArgs {
    /// Port of the first server; the next ones follow. 0 takes free ports.
    #[arg(long, default_value_t = 4321)]
    pub port: u16,
    /// How many servers to run.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub servers: u16,
    /// Whether the servers share their disk.
    #[arg(long, value_enum, default_value_t = HomeKind::Separate)]
    pub home: HomeKind,
    /// Environment variable with the connection token that clients must present.
    #[arg(long, value_name = "VAR")]
    pub token_env: Option<String>,
    /// Seed of ids and of the order of answers.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Address to listen on.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub host: IpAddr,
    /// Hold each request for a random time up to this one, so that requests overtake each other.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub spread: Option<Duration>,
    /// Bytes of the system message sent in every turn (about 42000 in the real server).
    #[arg(long, default_value_t = 256)]
    pub system_message: usize,
}

/// Runs the servers until SIGINT or SIGTERM; prints the real server's ready line for each.
///
/// # Errors
///
/// The token's variable is not set, an address cannot be bound, or the signals cannot be caught.
pub async fn run_command(args: SimArgs) -> io::Result<()> {
    let token = match &args.token_env {
        Some(variable) => Some(std::env::var(variable).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("{variable}: {error}"))
        })?),
        None => None,
    };
    // Caught before the first ready line, so that whoever waits for it may stop us at once.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shared = Home::new();
    let mut servers = Vec::new();
    for number in 0..args.servers {
        let port = match args.port {
            0 => 0,
            first => first.checked_add(number).ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidInput, "the last port is above 65535")
            })?,
        };
        let home = match args.home {
            HomeKind::Shared => shared.clone(),
            HomeKind::Separate => Home::new(),
        };
        let options = SimOptions {
            address: SocketAddr::new(args.host, port),
            home,
            token: token.clone(),
            seed: args.seed,
            order: args.spread.map_or(Order::Shuffled, Order::Spread),
            system_message: args.system_message,
            ..SimOptions::default()
        };
        let server = SimServer::start(options).await.map_err(|error| {
            io::Error::new(error.kind(), format!("Failed to start server: {error}"))
        })?;
        let mut out = io::stdout().lock();
        writeln!(
            out,
            "CLI server listening on port {}",
            server.address().port()
        )?;
        out.flush()?;
        servers.push(server);
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = all_ended(&servers) => {}
    }
    for server in servers {
        server.stop().await;
    }
    Ok(())
}

/// Every server was ended by a client's `runtime.shutdown`.
async fn all_ended(servers: &[SimServer]) {
    for server in servers {
        server.ended().await;
    }
}
