//! Ways to start: from a file, for given backends, or with nothing at all; and what is said then.

use std::{
    fs,
    io::{self, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use serde::Deserialize;
use tokio::sync::watch;

use crate::{
    config::{self, Config},
    control::{
        pool::{Answer, Pool},
        probe::{self, ProbeError},
        supervisor::{Backoff, Supervisor, own_guard},
    },
    core::{id::BackendName, snapshot::Mode},
    observe::Observer,
    sim::{SimOptions, SimServer},
    store::{self, Store, StoreError},
    transport::Transport,
};

/// Simulated servers of a start without a config and without a CLI.
const SIMULATED: usize = 3;

/// How long a taken port may take to say what it is.
const WHO_IS_THERE: Duration = Duration::from_secs(1);

/// How long a server may take to tell its login state.
const LOGIN: Duration = Duration::from_secs(2);

/// Where the servers come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// The configuration file names them.
    File,
    /// The command line names them.
    CommandLine,
    /// No file: managed ones, since the program was found.
    Found,
    /// No file and no program: simulated ones.
    Simulated,
}

/// Whether there is a process to follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Predecessor {
    /// The sockets are this process's to bind, or the service manager's.
    None,
    /// A running process hands them over (`--upgrade`).
    Running,
}

/// Everything that is known before anything is started.
#[derive(Clone, Debug)]
pub struct Start {
    /// The configuration.
    pub config: Config,
    /// Every file it names, to watch.
    pub files: Vec<PathBuf>,
    /// Where the servers come from.
    pub origin: Origin,
    /// Where the sockets come from.
    pub predecessor: Predecessor,
}

/// Exit code: the configuration, or what it names, has to be changed (sysexits EX_CONFIG).
const CONFIG: u8 = 78;

/// Opens the store that the configuration wants; an error has been said. A successor starts in
/// memory: the file is another process's still. See [`Keeping::take`].
pub(super) fn open_store(start: &Start, keeping: &Keeping) -> Result<Store, ExitCode> {
    if let (None, Some(directory)) = (&start.config.source, keeping.directory()) {
        // Nobody has chosen that place, so nobody has made it. What is wrong with it shows below.
        let _unusable = fs::create_dir_all(directory);
    }
    let opened = Store::open(&keeping.kind, &keeping.options);
    let succeeds = start.predecessor == Predecessor::Running;
    match opened {
        Err(StoreError::Locked { .. }) if succeeds => Ok(keeping.in_memory()),
        // It is learnt from the process that is there.
        Ok(_) if succeeds => Ok(keeping.in_memory()),
        Ok(store) => Ok(store),
        Err(error) => {
            eprintln!("taxiway: {error}");
            Err(if error.is_configuration() {
                ExitCode::from(CONFIG)
            } else {
                ExitCode::FAILURE
            })
        }
    }
}

/// Where this process keeps its directory when the file is its own.
pub(super) struct Keeping {
    kind: store::Kind,
    options: store::Options,
}

impl Keeping {
    pub(super) fn new(config: &Config, observer: &Observer) -> Self {
        let observer = observer.clone();
        let path = config.store.path.clone();
        Self {
            kind: path.map_or(store::Kind::Memory, store::Kind::Embedded),
            options: store::Options {
                mode: config.routing.mode,
                limit: config.limits.directory_sessions,
                expire: config.store.expire,
                report: Arc::new(move |event| observer.record(&event)),
            },
        }
    }

    fn directory(&self) -> Option<&Path> {
        match &self.kind {
            store::Kind::Memory => None,
            store::Kind::Embedded(path) => path.parent(),
        }
    }

    fn in_memory(&self) -> Store {
        Store::new(self.options.mode, self.options.limit)
    }

    /// The file is this process's from now on.
    pub(super) fn take(&self, store: &Store) {
        if let Err(error) = store.attach(&self.kind, &self.options) {
            tracing::error!(target: "taxiway", %error, "cannot keep anything: no thread to write");
        }
    }
}

/// Servers that this process runs itself.
pub(super) struct Servers {
    supervisor: Option<Supervisor>,
    managed: Option<watch::Receiver<Vec<config::Backend>>>,
    simulated: Vec<(config::Backend, SimServer)>,
    failures: Vec<String>,
}

impl Servers {
    /// Starts what the configuration wants started.
    pub(super) async fn start(
        start: &Start,
        observer: &Observer,
        pool: &Pool,
    ) -> anyhow::Result<Self> {
        let mut servers = Self {
            supervisor: None,
            managed: None,
            simulated: Vec::new(),
            failures: Vec::new(),
        };
        if start.origin == Origin::Simulated {
            for n in 1..=SIMULATED {
                let server = SimServer::start(SimOptions {
                    seed: n as u64,
                    ..SimOptions::default()
                });
                let server = server.await?;
                let name = BackendName::from(format!("sim-{n}"));
                let backend = config::Backend::new(name, &server.address().to_string());
                servers.simulated.push((backend, server));
            }
        }
        if let Some(managed) = &start.config.managed {
            let (observer, pool) = (observer.clone(), pool.clone());
            let report = Arc::new(move |event| observer.record(&event));
            let supervisor = Supervisor::start(
                managed,
                own_guard()?,
                Backoff::default(),
                &start.config.secret_variables,
                report,
                Arc::new(move |name| pool.report_gone(name)),
            )?;
            say(&format!(
                "Taxiway starts {} Copilot CLI servers …\n",
                managed.servers
            ));
            servers.managed = Some(supervisor.backends());
            servers.supervisor = Some(supervisor);
        }
        Ok(servers)
    }

    /// Waits until each has come up or failed once.
    pub(super) async fn come_up(&mut self) {
        let Some(supervisor) = &self.supervisor else {
            return;
        };
        for first in supervisor.started().await {
            if let Some(failure) = first.failure {
                self.failures.push(format!("{}: {failure}", first.name));
            }
        }
    }

    /// Managed servers started from now on do not inherit what this configuration reads.
    pub(super) fn withhold(&self, config: &Config) {
        if let Some(supervisor) = &self.supervisor {
            supervisor.withhold(&config.secret_variables);
        }
    }

    /// All backends: the configured ones and our own.
    pub(super) fn backends(&self, config: &Config) -> Vec<config::Backend> {
        let mut all = config.backends.clone();
        all.extend(self.simulated.iter().map(|(backend, _)| backend.clone()));
        if let Some(managed) = &self.managed {
            all.extend(managed.borrow().iter().cloned());
        }
        all
    }

    /// Follows the managed ones.
    pub(super) fn watch(&self) -> Follow {
        Follow(self.managed.clone())
    }

    /// Ends them; nothing is left behind.
    pub(super) async fn stop(self) {
        if let Some(supervisor) = &self.supervisor {
            supervisor.stop().await;
        }
        for (_, server) in self.simulated {
            server.stop().await;
        }
    }
}

/// Tells when a managed server has come or changed.
pub(super) struct Follow(Option<watch::Receiver<Vec<config::Backend>>>);

impl Follow {
    pub(super) async fn changed(&mut self) {
        if let Some(managed) = &mut self.0
            && managed.changed().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}

/// Tells a new user what is needed, on standard output; nobody waits for it, since servers are
/// asked, and since whoever reads our output may take his time.
pub(super) fn greet(
    start: &Start,
    servers: &Servers,
    address: SocketAddr,
    admin: SocketAddr,
    pool: &Pool,
) {
    let (start, failures, pool) = (start.clone(), servers.failures.clone(), pool.clone());
    let backends = servers.backends(&start.config);
    tokio::spawn(async move {
        let logins = join_all(backends.iter().map(|b| login(&pool, &b.name))).await;
        let servers: Vec<_> = backends.into_iter().zip(logins).collect();
        let text = greeting(&start, &failures, &servers, address, admin);
        tokio::task::spawn_blocking(move || say(&text));
    });
}

/// The servers come with what is known of their login.
fn greeting(
    start: &Start,
    failures: &[String],
    servers: &[(config::Backend, String)],
    address: SocketAddr,
    admin: SocketAddr,
) -> String {
    let config = &start.config;
    let mode = match config.routing.mode {
        Mode::Sticky => "sticky: separate disks, each session stays with its server",
        Mode::SharedStorage => "shared-storage: one disk, each session on the least loaded server",
    };
    let mut text = String::new();
    let mut line = |words: String| {
        text.push_str(&words);
        text.push('\n');
    };
    line(format!(
        "Taxiway {} listens on {address}",
        env!("CARGO_PKG_VERSION")
    ));
    line(format!("  mode     {mode}"));
    line(format!(
        "  admin    http://{admin}/  (status page; /metrics for Prometheus)"
    ));
    match (&config.source, start.origin) {
        (Some(file), _) => line(format!(
            "  config   {} (edit it: changes apply at once)",
            file.display()
        )),
        (None, Origin::Found) => line("  config   none: three managed Copilot CLI servers".into()),
        (None, _) => line("  config   none".into()),
    }
    line(match &config.store.path {
        Some(file) => format!(
            "  store    {} (a restart forgets no session)",
            file.display()
        ),
        None => "  store    in memory: a restart asks the servers again".to_owned(),
    });
    if start.origin == Origin::Simulated {
        line(String::new());
        line("  !! No `copilot` program was found on PATH or in COPILOT_CLI_PATH.".into());
        line("  !! The three servers behind this address are SIMULATED: they echo, they do not think.".into());
        line(
            "  !! Install the CLI (npm install -g @github/copilot) and start Taxiway again,".into(),
        );
        line("  !! or front servers that you have: taxiway --backend HOST:PORT".into());
        line(String::new());
    }
    for failure in failures {
        line(format!("  !! {failure} (it is tried again)"));
    }
    for (backend, login) in servers {
        let home = config
            .managed
            .as_ref()
            .filter(|managed| managed.names().any(|name| name == backend.name))
            .map(|managed| managed.state_dir.join(backend.name.as_str()));
        let home = home.map_or_else(String::new, |path| format!("  home {}", path.display()));
        line(format!(
            "  server   {} {}  {login}{home}",
            backend.name, backend.address
        ));
    }
    let port = address.port();
    let host = if address.ip().is_unspecified() {
        "127.0.0.1".into()
    } else {
        address.ip().to_string()
    };
    line(String::new());
    line(
        "Connect with the Copilot SDK (Node; the guide's `cliUrl` is ignored by current versions):"
            .into(),
    );
    line(String::new());
    let token = if config.identity.access.authenticates {
        ", { connectionToken }"
    } else {
        ""
    };
    line("  import { CopilotClient, RuntimeConnection } from \"@github/copilot-sdk\";".into());
    line(format!(
        "  const client = new CopilotClient({{ connection: RuntimeConnection.forUri(\"{host}:{port}\"{token}) }});"
    ));
    line("  const session = await client.createSession({ sessionId: \"user-ann--1\", /* model, provider, … */ });".into());
    line(String::new());
    line("Look at it: `taxiway status`. Stop it: Ctrl-C.".into());
    text
}

/// Somebody may have closed our standard output; that is no reason to stop.
pub(crate) fn say(text: &str) {
    let mut out = io::stdout();
    let _closed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

async fn login(pool: &Pool, backend: &BackendName) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Status {
        is_authenticated: bool,
        login: Option<String>,
    }
    let status = match pool.ask(backend, "auth.getStatus", "{}", LOGIN).await {
        Ok(Answer::Result(text)) => serde_json::from_str::<Status>(text.get()).ok(),
        Ok(Answer::Error { .. }) | Err(_) => None,
    };
    match status {
        Some(Status {
            is_authenticated: true,
            login,
        }) => {
            format!(
                "logged in{}",
                login.map(|l| format!(" as {l}")).unwrap_or_default()
            )
        }
        Some(_) => "not logged in (a BYOK `provider` needs no login)".to_owned(),
        None => "does not answer yet".to_owned(),
    }
}

/// What a taken port turns out to be, and what to do about it.
pub(super) async fn who_is_there(address: SocketAddr) -> String {
    match probe::ping(
        &address.to_string(),
        &Transport::default(),
        None,
        WHO_IS_THERE,
    )
    .await
    {
        Ok(pong) => format!(
            "A Copilot CLI server{} (or another Taxiway) answers there. To put Taxiway in front of \
             it:\n  taxiway --listen {}:{} --backend {address}",
            pong.version.map(|v| format!(" {v}")).unwrap_or_default(),
            address.ip(),
            address.port().wrapping_add(1).max(1024),
        ),
        Err(ProbeError::Stranger | ProbeError::Refused(_) | ProbeError::Tls(_)) => {
            "Another program answers there, which is no Copilot CLI server. Choose another address \
             with --listen or listener.address."
                .to_owned()
        }
        Err(ProbeError::Unreachable(_) | ProbeError::TimedOut(_)) => {
            "Something holds that address and does not answer. Choose another with --listen or \
             listener.address."
                .to_owned()
        }
    }
}
