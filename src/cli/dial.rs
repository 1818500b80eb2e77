//! Commands about a peer that is dialled: whether a CLI server lives, and the companion.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, ValueEnum};

use super::{exit, runtime, usage};
use crate::{
    app,
    companion::{self, TlsFiles},
    config,
    control::probe,
    core::{id::Secret, proxy_header::Version},
    transport::{self, Transport},
};

#[derive(Debug, Args)]
pub(super) struct PingArgs {
    /// `HOST:PORT`.
    address: String,
    /// Environment variable with its connection token.
    #[arg(long, value_name = "VAR")]
    token_env: Option<String>,
    /// How long it may take.
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Speak TLS; what a file or name is given for implies it.
    #[arg(long)]
    tls: bool,
    #[command(flatten)]
    files: TlsArgs,
    /// Write a PROXY header first, of this version.
    #[arg(long, value_enum, value_name = "VERSION")]
    proxy_protocol: Option<HeaderVersion>,
}

#[derive(Debug, Args)]
pub(super) struct TlsArgs {
    /// Authorities that the server's certificate may be of, PEM [default: the system's].
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Own certificate, PEM.
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// What the server's certificate has to be for [default: the host that is connected to].
    #[arg(long, value_name = "NAME", value_parser = server_name)]
    server_name: Option<String>,
}

impl TlsArgs {
    pub(super) fn is_given(&self) -> bool {
        self.ca.is_some() || self.cert.is_some() || self.server_name.is_some()
    }

    pub(super) fn files(self) -> TlsFiles {
        TlsFiles {
            ca: self.ca,
            identity: self.cert.zip(self.key),
            server_name: self.server_name,
        }
    }
}

fn server_name(text: &str) -> Result<String, String> {
    if transport::is_server_name(text) {
        Ok(text.to_owned())
    } else {
        Err("neither a DNS name nor an IP address".to_owned())
    }
}

#[derive(Debug, Args)]
pub(super) struct CompanionArgs {
    /// Where clients connect.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:4321")]
    listen: SocketAddr,
    /// The Taxiway, which speaks TLS.
    #[arg(long, value_name = "HOST:PORT")]
    to: String,
    #[command(flatten)]
    tls: TlsArgs,
    /// Serve /healthz and /readyz there.
    #[arg(long, value_name = "IP:PORT")]
    health: Option<SocketAddr>,
    /// Until a connection to the Taxiway is given up.
    #[arg(long, value_name = "DURATION", default_value = "10s",
          value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// After SIGTERM open connections get this long.
    #[arg(long, value_name = "DURATION", default_value = "10s",
          value_parser = humantime::parse_duration)]
    grace: Duration,
    /// Allow --listen on another address than loopback: whoever reaches it acts as this client,
    /// and nothing is encrypted up to here.
    #[arg(long)]
    allow_remote: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum HeaderVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// Runs the companion until it is told to stop.
pub(super) fn accompany(args: CompanionArgs) -> ExitCode {
    if !args.listen.ip().is_loopback() && !args.allow_remote {
        return usage(
            "--listen takes a loopback address: what comes in is not encrypted, and whoever reaches \
             it acts with this companion's certificate; --allow-remote allows it all the same",
        );
    }
    if let Some(reason) = config::dial_fault(&args.to) {
        return usage(&format!("--to {}: {reason}", args.to));
    }
    companion::run(companion::Options {
        listen: args.listen,
        to: args.to,
        tls: args.tls.files(),
        health: args.health,
        timeout: args.timeout,
        grace: args.grace,
    })
}

/// The secret in an environment variable, or what is wrong with it.
pub(super) fn secret_in(variable: &str) -> Result<Secret, String> {
    std::env::var(variable)
        .map(|text| Secret::new(&text))
        .map_err(|error| format!("{variable}: {error}"))
}

/// Asks the server, and says what it answered.
pub(super) fn ping(args: PingArgs) -> ExitCode {
    let PingArgs {
        address,
        token_env,
        timeout,
        tls,
        files,
        proxy_protocol,
    } = args;
    let proxy_protocol = proxy_protocol.map(|version| match version {
        HeaderVersion::V1 => Version::V1,
        HeaderVersion::V2 => Version::V2,
    });
    let files = (tls || files.is_given()).then(|| files.files());
    let tls = match files.map(|files| files.connector()).transpose() {
        Ok(tls) => tls,
        Err(error) => {
            eprintln!("taxiway: {error}");
            return ExitCode::from(exit::CONFIG);
        }
    };
    let transport = Transport {
        proxy_protocol,
        tls,
    };
    let token = match token_env.as_deref().map(secret_in).transpose() {
        Ok(token) => token,
        Err(complaint) => return usage(&complaint),
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(code) => return code,
    };
    match runtime.block_on(probe::ping(&address, &transport, token.as_ref(), timeout)) {
        Ok(pong) => {
            let version = pong.version.as_deref().unwrap_or("unknown version");
            let token = if pong.wants_token {
                ", wants a connection token"
            } else {
                ""
            };
            app::say(&format!(
                "{address}: alive, {version}, ping {:?}{token}\n",
                pong.took
            ));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("taxiway: {address}: {error}");
            ExitCode::from(match error {
                probe::ProbeError::TimedOut(_) => exit::TIMED_OUT,
                probe::ProbeError::Unreachable(_)
                | probe::ProbeError::Tls(_)
                | probe::ProbeError::Stranger
                | probe::ProbeError::Refused(_) => exit::UNAVAILABLE,
            })
        }
    }
}
