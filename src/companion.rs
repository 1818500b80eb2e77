//! `taxiway companion`: beside a client, plain TCP on loopback in, (m)TLS out to a Taxiway, since no
//! SDK speaks TLS. One connection out for each that comes in; bytes are passed as they are.
//!
//! A composition root of its own, without pool, store or configuration file. Must not read what it
//! passes on.

mod files;
mod health;

use std::{
    io,
    net::SocketAddr,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::files::TlsFiles;
use crate::{
    control::{
        reload::{FileWatch, Pace},
        signal::{Signal, Signals},
    },
    core::{event::LogFormat, proxy_header::Source},
    observe,
    proxy::listener::bind,
    transport::{ConnectError, Connector, Fault, Halt, Leg, Stream, Transport, prepare, splice},
};

/// Exit code: an address cannot be bound (sysexits EX_UNAVAILABLE).
const UNAVAILABLE: u8 = 69;

/// Exit code: certificates or keys cannot be used (sysexits EX_CONFIG).
const CONFIG: u8 = 78;

/// Connections at a time: more come from no client that somebody meant.
const MOST: usize = 10_000;

/// Keep-alive probes on both sides: cloud balancers drop silent connections after four minutes.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// A side that takes nothing for so long is given up. Longer than Taxiway's own patience with a
/// client, so that it is Taxiway that says so.
const STALL: Duration = Duration::from_secs(120);

/// After `accept` has failed for want of files or memory, others get time to give some back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// The Taxiway, `host:port`.
    pub to: String,
    /// What TLS with it takes.
    pub tls: TlsFiles,
    /// Where `/healthz` and `/readyz` are served.
    pub health: Option<SocketAddr>,
    /// Until a connection to the Taxiway is given up.
    pub timeout: Duration,
    /// After SIGTERM connections that are open get this long.
    pub grace: Duration,
}

/// What all its tasks share.
struct Companion {
    options: Options,
    connector: ArcSwap<Connector>,
    draining: AtomicBool,
}

/// Runs until it is told to stop; returns the program's exit code.
pub fn run(options: Options) -> ExitCode {
    let log = match observe::log::init(tracing::Level::INFO, LogFormat::Text) {
        Ok(log) => log,
        Err(error) => return fail(&error, 1),
    };
    let connector = match options.tls.connector() {
        Ok(connector) => connector,
        Err(error) => return fail(&error, CONFIG),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start the runtime: {error}"), 1),
    };
    let companion = Arc::new(Companion {
        options,
        connector: ArcSwap::from_pointee(connector),
        draining: AtomicBool::new(false),
    });
    let code = runtime.block_on(serve(companion));
    runtime.shutdown_timeout(Duration::from_millis(200));
    log.flush(Duration::from_secs(1));
    code
}

fn fail(error: &dyn std::fmt::Display, code: u8) -> ExitCode {
    eprintln!("taxiway companion: {error}");
    ExitCode::from(code)
}

async fn serve(companion: Arc<Companion>) -> ExitCode {
    let options = &companion.options;
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => return fail(&format!("cannot catch signals: {error}"), 1),
    };
    let cannot = |what: &str, address: SocketAddr, error: &io::Error| {
        fail(&format!("cannot {what} {address}: {error}"), UNAVAILABLE)
    };
    let listener = match bind(options.listen) {
        Ok(listener) => listener,
        Err(error) => return cannot("listen on", options.listen, &error),
    };
    let mut health = String::new();
    if let Some(address) = options.health {
        match bind(address).and_then(|listener| Ok((listener.local_addr()?, listener))) {
            Ok((address, listener)) => {
                health = format!(", health at http://{address}/readyz");
                tokio::spawn(health::serve(listener, companion.clone()));
            }
            Err(error) => return cannot("serve health on", address, &error),
        }
    }
    let mut watch = FileWatch::start(options.tls.paths(), Pace::default())
        .inspect_err(|error| {
            let what = "cannot watch the certificates: a SIGHUP makes it read them again";
            tracing::warn!(target: "taxiway", %error, "{what}");
        })
        .ok();
    let address = listener.local_addr().unwrap_or(options.listen);
    crate::app::say(&format!(
        "Taxiway companion listens on {address}, and speaks TLS to {}{health}\n",
        options.to
    ));
    // Not waited for: the Taxiway may come later.
    tokio::spawn({
        let companion = companion.clone();
        async move {
            if let Err(why) = companion.check().await {
                tracing::warn!(target: "taxiway", to = companion.options.to, "not ready: {why}");
            }
        }
    });
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    tokio::spawn(accept(
        listener,
        companion.clone(),
        tasks.clone(),
        stop.clone(),
    ));
    loop {
        let changed = async {
            match &mut watch {
                Some(watch) => watch.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            signal = signals.next() => match signal {
                Signal::Terminate | Signal::Interrupt => break,
                Signal::Hangup => companion.reload().await,
                Signal::Upgrade => {}
            },
            () = changed => companion.reload().await,
        }
    }
    companion.draining.store(true, Ordering::Release);
    stop.cancel();
    tasks.close();
    tokio::select! {
        () = tasks.wait() => {}
        () = tokio::time::sleep(companion.options.grace) => {}
        _ = signals.next_end() => {}
    }
    ExitCode::SUCCESS
}

async fn accept(
    listener: TcpListener,
    companion: Arc<Companion>,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(MOST));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((client, peer)) => {
                let Ok(place) = places.clone().try_acquire_owned() else {
                    tracing::warn!(target: "taxiway", "closed a client: {MOST} are connected");
                    continue;
                };
                let companion = companion.clone();
                tasks.spawn(async move {
                    if let Err(why) = companion.pass(client).await {
                        let to = &companion.options.to;
                        tracing::warn!(target: "taxiway", client_addr = %peer, to, "{why}");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(target: "taxiway", %error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Companion {
    /// Carries one client's connection to its end.
    async fn pass(&self, client: TcpStream) -> Result<(), String> {
        prepare(&client, Some(KEEPALIVE)).map_err(|error| error.to_string())?;
        let mut client = Stream::Plain(client);
        let mut taxiway = self.connect().await?;
        let joined = splice(&mut client, &mut taxiway, STALL, |_: Leg, _| {}).await;
        match joined {
            // A client that has left is nothing to tell of.
            Ok(()) | Err(Halt::First(_)) => Ok(()),
            Err(Halt::FirstStalled) => Err("the client takes nothing; gave it up".to_owned()),
            Err(Halt::SecondStalled) => Err("the Taxiway takes nothing; gave it up".to_owned()),
            Err(Halt::Second(error)) => Err(broken(&error)),
        }
    }

    async fn connect(&self) -> Result<Stream, String> {
        let transport = Transport {
            proxy_protocol: None,
            tls: Some(Connector::clone(&self.connector.load())),
        };
        let (to, timeout) = (&self.options.to, self.options.timeout);
        let connecting = transport.connect(to, Some(KEEPALIVE), Source::Own);
        match tokio::time::timeout(timeout, connecting).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(ConnectError::Tls(fault))) => Err(fault.to_string()),
            Ok(Err(ConnectError::Tcp(error))) => Err(format!("cannot be reached: {error}")),
            Ok(Err(ConnectError::Broken(error))) => Err(broken(&error)),
            Err(_) => Err(format!("no TLS connection within {timeout:?}")),
        }
    }

    /// Whether a client would come through.
    async fn check(&self) -> Result<(), String> {
        let mut taxiway = self.connect().await?;
        health::welcome(&mut taxiway)
            .await
            .map_err(|error| broken(&error))
    }

    /// Takes up new certificates for new connections; those that cannot be used change nothing.
    async fn reload(&self) {
        let files = self.options.tls.clone();
        let Ok(read) = tokio::task::spawn_blocking(move || files.connector()).await else {
            return;
        };
        match read {
            Ok(connector) if connector == **self.connector.load() => {}
            Ok(connector) => {
                self.connector.store(Arc::new(connector));
                tracing::info!(target: "taxiway", "certificates read again: new connections use them");
            }
            Err(error) => {
                tracing::error!(target: "taxiway", "certificates stay as they were: {error}");
            }
        }
    }
}

/// In TLS 1.3 a refused certificate shows only after the handshake.
fn broken(error: &io::Error) -> String {
    match Fault::of(error) {
        Some(fault) => fault.to_string(),
        None => format!("the connection broke: {error}"),
    }
}
