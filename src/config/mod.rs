//! The configuration as checked values. `raw` mirrors the file, `check` turns it into these.
//!
//! Text in, values out: applies nothing, watches nothing, opens no socket.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

pub use crate::core::event::{Identities, LogFormat};
use crate::{
    core::{
        access::Access,
        credential::Principals,
        id::{BackendName, Secret},
        identity::Caps,
        network::Networks,
        proxy_header::Version,
        snapshot::{AdminState, Mode},
        turnlock,
    },
    transport::{Acceptor, ClientAuth, Connector, Transport},
};

mod check;
pub mod command;
mod diagnostic;
mod diff;
mod load;
mod quantity;
mod raw;
mod reference;
mod view;

#[cfg(test)]
mod tests;

pub use command::few_files;
pub use diagnostic::{Diagnostic, Failure, Severity};
pub use diff::{BackendChange, Changes, Refusal, Setting, Token, diff};
pub use load::{Loaded, PLACES, VARIABLE, find, load, parse};
pub use raw::dial_fault;
pub use reference::markdown;
pub use view::redacted;

/// `[listener]`
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    /// Where SDK clients connect.
    pub address: SocketAddr,
    /// Keep-alive probes on both legs; none = off.
    pub tcp_keepalive: Option<Duration>,
    /// From accept to the first complete frame.
    pub handshake_timeout: Duration,
    /// A client that reads nothing for so long with a full buffer is closed.
    pub write_stall: Duration,
    /// Allows a non-loopback listener without principals.
    pub allow_anonymous: bool,
    /// Where clients may be; none = anywhere.
    pub allow_from: Option<Networks>,
    /// `proxy_protocol = "required"`: where the balancers are that write the header; none = off.
    pub proxy_protocol_from: Option<Networks>,
    /// TLS to clients.
    pub tls: Option<ListenerTls>,
}

/// `[listener.tls]`
#[derive(Clone, Debug, PartialEq)]
pub struct ListenerTls {
    /// The certificate's file.
    pub cert: PathBuf,
    /// Its key's.
    pub key: PathBuf,
    /// That of the authorities of clients.
    pub client_ca: Option<PathBuf>,
    /// What is asked of clients.
    pub client_auth: ClientAuth,
    /// Made of what these files hold.
    pub acceptor: Acceptor,
}

/// `[backends.tls]`
#[derive(Clone, Debug, PartialEq)]
pub struct BackendTls {
    /// The file of its authorities; none = the system's.
    pub ca: Option<PathBuf>,
    /// What its certificate has to be for; none = the host of its address.
    pub server_name: Option<String>,
    /// The file of our certificate for it.
    pub cert: Option<PathBuf>,
    /// Its key's.
    pub key: Option<PathBuf>,
    /// Made of what these files hold.
    pub connector: Connector,
}

/// `[admin]`
#[derive(Clone, Debug, PartialEq)]
pub struct Admin {
    /// Where health, metrics and the API are served.
    pub address: SocketAddr,
    /// Bearer token; without one only `/healthz /readyz /metrics` answer on a non-loopback address.
    pub token: Option<Secret>,
}

/// `routing.key`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// The user if one is known, else the session id.
    User,
    /// The session id.
    Session,
}

/// `routing.placement`: how shared storage chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Fewest open turns, then fewest open sessions, per weight.
    LeastLoaded,
    /// The less loaded of two drawn by the session's hash.
    P2c,
    /// In turn, by weight.
    RoundRobin,
}

/// `routing.granularity`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granularity {
    /// Each session by itself (layer 7).
    Session,
    /// A whole connection by its first key (layer 4).
    Connection,
}

/// `[routing]`
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    /// Where the disks are.
    pub mode: Mode,
    /// What sticky placement hashes.
    pub key: Key,
    /// How shared storage chooses.
    pub placement: Placement,
    /// Bounded load for sticky: no backend above this multiple of its share; none = off.
    pub load_factor: Option<f64>,
    /// Layer 7 or layer 4.
    pub granularity: Granularity,
    /// How long aggregates and look-ups wait for a silent backend.
    pub aggregate_timeout: Duration,
    /// How long calls wait for a session's home or owner that is away; zero = not at all.
    pub home_wait: Duration,
}

/// `[identity]`
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// Who may see and use which session.
    pub access: Arc<Access>,
    /// Who may connect: those of the file itself first, then those of `tokens_file`.
    pub principals: Arc<Principals>,
    /// How many stand in the file itself.
    pub written: usize,
    /// More of them.
    pub tokens_file: Option<PathBuf>,
    /// For each issuer of `principals`, where its keys are.
    pub issuers: Vec<IssuerFiles>,
    /// How long a client may go on whose token has run out.
    pub revoke_grace: Duration,
}

/// Where the keys of an issuer of JSON Web Tokens are, as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerFiles {
    /// Files with a public key each.
    pub keys: Vec<String>,
    /// A file with a set of them.
    pub key_set: Option<String>,
    /// A shared secret is named.
    pub has_secret: bool,
}

/// `sessions.create_existing`: `session.create` on the id of a closed session with history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateExisting {
    /// Reopened with the same params and answered as create.
    Resume,
    /// Passed on: the CLI starts an empty history over the old one.
    Pass,
    /// Refused.
    Reject,
}

/// `sessions.turn_stall_action`: what happens to a turn without events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StallAction {
    /// It is counted and logged.
    Log,
    /// It is ended as well, and its clients are told.
    End,
}

/// `[sessions]`
#[derive(Clone, Debug, PartialEq)]
pub struct Sessions {
    /// What create does on the id of a closed session.
    pub create_existing: CreateExisting,
    /// How long a turn outlives its client's connection; none = off.
    pub detach_grace: Option<Duration>,
    /// Without an event for so long a turn is stalled; none = off.
    pub turn_stall: Option<Duration>,
    /// What happens to a stalled turn.
    pub turn_stall_action: StallAction,
    /// One turn at a time, and for how long.
    pub turns: turnlock::Terms,
}

/// `[health]`
#[derive(Clone, Debug, PartialEq)]
pub struct Health {
    /// Between two probes of a healthy backend.
    pub interval: Duration,
    /// Until a probe counts as failed.
    pub timeout: Duration,
    /// Consecutive failures until ejection.
    pub unhealthy_after: u32,
    /// Consecutive successes until it is taken back on probation.
    pub healthy_after: u32,
    /// Ramp of the weight after a return; zero = at once.
    pub slow_start: Duration,
    /// At most this share of the pool is ejected for silence; 0.0 to 1.0.
    pub max_ejected: f64,
}

/// `[failover]`: when a silent backend's sessions may be opened elsewhere.
#[derive(Clone, Debug, PartialEq)]
pub struct Failover {
    /// How long an ejected backend is silent until it is given up; none = never.
    pub hang_timeout: Option<Duration>,
    /// Program and arguments that cut a silent backend off first; `{name}` and `{address}` are
    /// replaced. Never empty.
    pub fence_command: Option<Vec<String>>,
    /// Until the command is killed, and has failed.
    pub fence_timeout: Duration,
}

/// `[drain]`
#[derive(Clone, Debug, PartialEq)]
pub struct Drain {
    /// How long running turns may go on.
    pub timeout: Duration,
    /// After SIGTERM connections are still accepted for this long.
    pub accept_grace: Duration,
}

/// `upgrade.socket`: where a running Taxiway waits for the one that is to follow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpgradeSocket {
    /// None is given, and the environment names no place for one.
    None,
    /// Not given: in the place that the environment names. It is done without if need be.
    Usual(PathBuf),
    /// As the file says.
    Given(PathBuf),
}

impl UpgradeSocket {
    /// The path, if there is one.
    pub fn path(&self) -> Option<&std::path::Path> {
        match self {
            Self::None => None,
            Self::Usual(path) | Self::Given(path) => Some(path),
        }
    }
}

/// `[upgrade]`
#[derive(Clone, Debug, PartialEq)]
pub struct Upgrade {
    /// Where the next process asks for the sockets.
    pub socket: UpgradeSocket,
    /// How long the old process serves the clients that it has.
    pub timeout: Duration,
}

impl Upgrade {
    /// `upgrade.socket` where the file has none, or there is no file: one for each listener.
    pub fn usual_socket(
        listener: SocketAddr,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> UpgradeSocket {
        check::usual_socket(listener, environment)
    }
}

/// `[limits]`
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Largest body from a client, in bytes.
    pub frame: usize,
    /// Largest header block, in bytes.
    pub header: usize,
    /// A longer body of a backend is passed on as it arrives, in bytes.
    pub cut_through_min: usize,
    /// From a frame's first byte to its last.
    pub frame_timeout: Duration,
    /// Calls awaiting a response on one client connection.
    pub calls_per_connection: usize,
    /// Sessions attached on one client connection.
    pub sessions_per_connection: usize,
    /// Client connections.
    pub connections: usize,
    /// Those of them that have not proved yet who they are, where they have to.
    pub unauthenticated_connections: usize,
    /// The same, from one address; none = as many as in all.
    pub unauthenticated_per_address: Option<usize>,
    /// Sessions remembered in memory; beyond it the longest unused closed ones are forgotten.
    pub directory_sessions: usize,
    /// Parameters of a session's last create or resume that are kept to open it again, in bytes per
    /// session and client; a session with longer ones is not reopened.
    pub session_params: usize,
    /// What each user may use at a time; none = as much as there is.
    pub caps: Caps,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`, `trace`.
    pub level: tracing::Level,
    /// `log.format`
    pub format: LogFormat,
    /// `log.identities`
    pub identities: Identities,
}

/// `[store]`: where what connections share is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// `store.kind` and `store.path`; none = in memory.
    pub path: Option<PathBuf>,
    /// A closed session not heard of for so long is forgotten; none = never.
    pub expire: Option<Duration>,
}

/// One `[[backends]]` entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// Identity for homes and hashing.
    pub name: BackendName,
    /// `host:port`.
    pub address: Arc<str>,
    /// Relative share, ≥ 1.
    pub weight: u32,
    /// Initial operator state.
    pub state: AdminState,
    /// Token for the backend's own `connect`.
    pub connection_token: Option<Secret>,
    /// PROXY header to write first; none = off.
    pub proxy_protocol: Option<Version>,
    /// TLS to it.
    pub tls: Option<BackendTls>,
}

/// `[managed]`: CLI processes that Taxiway starts and supervises.
#[derive(Clone, Debug, PartialEq)]
pub struct Managed {
    /// Program and arguments; `{port}` and `{name}` are replaced.
    pub command: Vec<String>,
    /// How many.
    pub servers: u32,
    /// Parent directory of the servers' homes (`COPILOT_HOME` = `state_dir/NAME`).
    pub state_dir: PathBuf,
    /// How long a server may take to print its readiness line.
    pub start_timeout: Duration,
}

/// A whole configuration that passed every check.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it came from; none for the no-config start.
    pub source: Option<PathBuf>,
    #[allow(missing_docs)]
    pub listener: Listener,
    #[allow(missing_docs)]
    pub admin: Admin,
    #[allow(missing_docs)]
    pub routing: Routing,
    #[allow(missing_docs)]
    pub identity: Identity,
    #[allow(missing_docs)]
    pub sessions: Sessions,
    #[allow(missing_docs)]
    pub health: Health,
    #[allow(missing_docs)]
    pub failover: Failover,
    #[allow(missing_docs)]
    pub drain: Drain,
    #[allow(missing_docs)]
    pub upgrade: Upgrade,
    #[allow(missing_docs)]
    pub limits: Limits,
    #[allow(missing_docs)]
    pub log: Log,
    #[allow(missing_docs)]
    pub store: Store,
    /// In file order; names unique.
    pub backends: Vec<Backend>,
    #[allow(missing_docs)]
    pub managed: Option<Managed>,
    /// The environment variables that its secrets were read from: not for managed servers.
    pub secret_variables: Vec<String>,
}

impl Config {
    /// All defaults with this pool: the start without a file, and `--backend`. Keeps nothing: where
    /// is for the caller to say, with [`state_file`].
    pub fn no_config(backends: Vec<Backend>, managed: Option<Managed>) -> Self {
        let defaults = check::defaults();
        let store = Store {
            path: None,
            ..defaults.store
        };
        Self {
            backends,
            managed,
            store,
            ..defaults
        }
    }

    /// The certificates that it shows to peers, by what shows them (`listener`, `backend NAME`),
    /// and when they expire, in Unix time.
    pub fn certificates(&self) -> Vec<(String, i64)> {
        let listener = self.listener.tls.iter();
        let listener = listener.map(|tls| ("listener".to_owned(), tls.acceptor.facts().not_after));
        let backends = self.backends.iter().filter_map(|backend| {
            let facts = backend.tls.as_ref()?.connector.facts()?;
            Some((format!("backend {}", backend.name), facts.not_after))
        });
        listener.chain(backends).collect()
    }

    /// The key of the own address that a connection to `address` would reach, if it is one.
    pub fn own_address(&self, address: &str) -> Option<&'static str> {
        let own = [
            ("listener.address", self.listener.address),
            ("admin.address", self.admin.address),
        ];
        own.iter()
            .find(|(_, own)| check::reaches(address, *own))
            .map(|(key, _)| *key)
    }
}

/// Where a start without a file keeps a file of this name; none if neither `XDG_STATE_HOME` nor
/// `HOME` is set in `environment`.
pub fn state_file(name: &str, environment: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    Some(check::default_state_dir(environment)?.join(name))
}

/// Whether `text` can be the name of a principal in a file.
pub fn is_principal_name(text: &str) -> bool {
    raw::is_principal(text)
}

/// Why a backend of the command line is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{address:?} is not a backend: {reason}")]
pub struct BadBackend {
    /// What was written.
    pub address: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Backend {
    /// A backend with every default.
    pub fn new(name: BackendName, address: &str) -> Self {
        Self {
            name,
            address: Arc::from(address),
            weight: 1,
            state: AdminState::Ready,
            connection_token: None,
            proxy_protocol: None,
            tls: None,
        }
    }

    /// What goes between TCP and the first frame.
    pub fn transport(&self) -> Transport {
        Transport {
            proxy_protocol: self.proxy_protocol,
            tls: self.tls.as_ref().map(|tls| tls.connector.clone()),
        }
    }

    /// `--backend HOST:PORT…`: each is named by its address, so that the order does not matter to
    /// placement. Refuses bad addresses and repeated ones.
    pub fn from_addresses<'a>(
        addresses: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<Self>, BadBackend> {
        let mut backends: Vec<Self> = Vec::new();
        for address in addresses {
            let again = backends.iter().any(|b| &*b.address == address);
            let again = again.then(|| "it is there twice".to_owned());
            let fault = dial_fault(address)
                .or_else(|| raw::name_fault(address))
                .or(again);
            if let Some(reason) = fault {
                return Err(BadBackend {
                    address: address.to_owned(),
                    reason,
                });
            }
            backends.push(Self::new(BackendName::from(address), address));
        }
        Ok(backends)
    }
}

impl Managed {
    /// Every default of `[managed]`, with `program` in place of `copilot`; none if neither
    /// `XDG_STATE_HOME` nor `HOME` is set in `environment`.
    pub fn with_program(
        program: &str,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Option<Self> {
        let state_dir = check::default_state_dir(environment)?;
        Some(check::managed_defaults(program, state_dir))
    }

    /// The names of the servers, which are those of their backends.
    pub fn names(&self) -> impl Iterator<Item = BackendName> + use<> {
        (1..=self.servers).map(|n| BackendName::from(format!("managed-{n}")))
    }
}
