//! Managed CLI servers: started, awaited, restarted with backoff, and none left behind.
//! Judges no health and places nothing: a server that runs is a backend like any other.

use std::{
    collections::{BTreeSet, VecDeque},
    env,
    ffi::{OsStr, OsString},
    fs,
    io::{self, Read},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use thiserror::Error;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader},
    process::{Child, ChildStdin, Command},
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::guard::{GRACE, GROUP_LINE, LAST_WORDS, OPEN_FILES};
use crate::{
    config,
    core::{
        event::Event,
        id::{BackendName, Secret},
        ring::placement_hash,
        snapshot::AdminState,
    },
    transport::files,
};

/// What the CLI prints when it takes connections, before the port's number.
const READY_LINE: &str = "CLI server listening on port ";
/// Longest line of a server's output that is looked at, in bytes.
const MAX_LINE: u64 = 4 << 10;
/// Lines of a failed start that are told.
const LAST_LINES: usize = 5;

/// The file in a server's home whose lock says that the home is in use.
const LOCK: &str = ".taxiway.lock";
/// Taxiway's own variables: the admin token among them opens the whole pool, and by the others a
/// server would speak to the service manager in Taxiway's name.
const OWN_VARIABLES: [&str; 7] = [
    "TAXIWAY_ADMIN",
    "TAXIWAY_ADMIN_TOKEN",
    "TAXIWAY_CONFIG",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
];

/// How servers are started again.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// After the first failure; doubled by each further one.
    pub first: Duration,
    /// At most.
    pub longest: Duration,
    /// A run of this length makes earlier failures forgotten.
    pub stable: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(500),
            longest: Duration::from_secs(30),
            stable: Duration::from_secs(60),
        }
    }
}

/// Supervision that could not begin.
#[derive(Debug, Error)]
pub enum SupervisorError {
    /// The home of a server cannot be made.
    #[error("cannot create {path}: {error}")]
    Home {
        /// `state_dir/NAME`
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Its homes are in use: two servers on one home would spoil each other's sessions.
    #[error(
        "{path} is in use by another Taxiway: give this one its own `managed.state_dir`, or stop \
         the other"
    )]
    HomeInUse {
        /// `state_dir/NAME`
        path: PathBuf,
    },
    /// No program is configured.
    #[error("managed.command is empty")]
    NoCommand,
    /// This system gives no random bytes for the servers' tokens.
    #[error("cannot make a connection token: {0}")]
    Token(io::Error),
}

/// How a server's first start went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstStart {
    /// Of which server.
    pub name: BackendName,
    /// Why it did not become ready; it is tried again.
    pub failure: Option<String>,
}

/// Where events go.
pub type Report = Arc<dyn Fn(Event) + Send + Sync>;

/// Told when nothing is left of a server's process group.
pub type Gone = Arc<dyn Fn(&BackendName) + Send + Sync>;

/// The running servers. They end with [`Supervisor::stop`], or when this process does.
pub struct Supervisor {
    tasks: TaskTracker,
    stop: CancellationToken,
    board: Arc<Board>,
    servers: usize,
}

/// What the servers' tasks publish, and what they are told.
struct Board {
    backends: watch::Sender<Vec<config::Backend>>,
    first_starts: watch::Sender<Vec<FirstStart>>,
    report: Report,
    gone: Gone,
    /// Variables that no server inherits.
    withheld: Mutex<BTreeSet<String>>,
}

/// One server's task.
struct Server {
    name: BackendName,
    home: PathBuf,
    /// Held as long as anything of the server may run.
    _lock: fs::File,
    token: Secret,
    managed: config::Managed,
    guard: Vec<OsString>,
    backoff: Backoff,
    stop: CancellationToken,
    board: Arc<Board>,
}

/// A started server.
struct Running {
    guard: Child,
    /// Its end tells the guard that we are gone.
    stdin: Option<ChildStdin>,
    /// The CLI's process group, as soon as the guard has told it.
    group: Arc<Mutex<Option<Pid>>>,
    port: watch::Receiver<Option<u16>>,
    last_lines: Arc<Mutex<VecDeque<String>>>,
    /// They read its output, and end with it.
    readers: Vec<JoinHandle<()>>,
}

/// Why a server does not run any more.
enum Ended {
    Stopped,
    Failed(String),
}

impl Supervisor {
    /// Starts the servers of `managed`, each through `guard`: the program and arguments that run
    /// [`guard::run`](super::guard::run) (see [`own_guard`]). No server inherits
    /// `secret_variables`, or those of Taxiway itself. Must be called in a tokio runtime.
    pub fn start(
        managed: &config::Managed,
        guard: Vec<OsString>,
        backoff: Backoff,
        secret_variables: &[String],
        report: Report,
        gone: Gone,
    ) -> Result<Self, SupervisorError> {
        if managed.command.is_empty() || guard.is_empty() {
            return Err(SupervisorError::NoCommand);
        }
        let board = Arc::new(Board {
            backends: watch::Sender::new(Vec::new()),
            first_starts: watch::Sender::new(Vec::new()),
            report,
            gone,
            withheld: Mutex::new(OWN_VARIABLES.map(str::to_owned).into()),
        });
        withhold(&board, secret_variables);
        let stop = CancellationToken::new();
        let mut servers = Vec::new();
        for name in managed.names() {
            let home = managed.state_dir.join(name.as_str());
            let lock = take_home(&home)?;
            servers.push(Server {
                name,
                home,
                _lock: lock,
                token: random_token().map_err(SupervisorError::Token)?,
                managed: managed.clone(),
                guard: guard.clone(),
                backoff,
                stop: stop.clone(),
                board: board.clone(),
            });
        }
        let count = servers.len();
        let tasks = TaskTracker::new();
        for server in servers {
            tasks.spawn(server.run());
        }
        tasks.close();
        Ok(Self {
            tasks,
            stop,
            board,
            servers: count,
        })
    }

    /// The servers that have been ready at least once, ordered by name: to be given to the pool.
    /// A server keeps its port while it can.
    pub fn backends(&self) -> watch::Receiver<Vec<config::Backend>> {
        self.board.backends.subscribe()
    }

    /// Further variables that servers started from now on do not inherit.
    pub fn withhold(&self, secret_variables: &[String]) {
        withhold(&self.board, secret_variables);
    }

    /// Returns when each server has become ready or has failed once.
    pub async fn started(&self) -> Vec<FirstStart> {
        let mut starts = self.board.first_starts.subscribe();
        let all = starts.wait_for(|starts| starts.len() >= self.servers).await;
        // The sender lives in `self`.
        let mut all = all.map(|all| all.clone()).unwrap_or_default();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Ends all servers, without draining them, and returns when nothing is left of them.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

fn withhold(board: &Board, variables: &[String]) {
    let mut withheld = lock(&board.withheld);
    withheld.extend(variables.iter().cloned());
}

/// None of what these locks hold is ever half changed, so a panic elsewhere spoils nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This program's own guard command. What it runs has the limit of open files that this process was
/// started with.
pub fn own_guard() -> io::Result<Vec<OsString>> {
    let mut guard = vec![
        env::current_exe()?.into_os_string(),
        OsString::from("guard"),
    ];
    if let Some(files) = files::before() {
        guard.push(format!("{OPEN_FILES}{files}").into());
    }
    Ok(guard)
}

/// The `copilot` program: `COPILOT_CLI_PATH`, else the first on `PATH`.
pub fn find_cli() -> Option<PathBuf> {
    find_program(
        env::var_os("COPILOT_CLI_PATH").as_deref(),
        env::var_os("PATH").as_deref(),
    )
}

fn find_program(explicit: Option<&OsStr>, path: Option<&OsStr>) -> Option<PathBuf> {
    if let Some(explicit) = explicit.filter(|e| !e.is_empty()) {
        let explicit = PathBuf::from(explicit);
        return is_executable(&explicit).then_some(explicit);
    }
    env::split_paths(path?)
        .map(|dir| dir.join("copilot"))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

impl Server {
    async fn run(self) {
        let mut port = None;
        let mut failures = 0;
        loop {
            let begun = Instant::now();
            let ended = self.run_once(&mut port).await;
            let failure = match ended {
                Ended::Stopped => {
                    self.tell("stopped", None);
                    return;
                }
                Ended::Failed(why) => why,
            };
            self.first_start(Some(&failure));
            failures = if begun.elapsed() >= self.backoff.stable {
                1
            } else {
                failures + 1
            };
            let pause = self.pause(failures);
            self.tell(&format!("{failure}; starting again in {pause:.1?}"), None);
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// From start to end; `port` is the one to use, if any, and then the one in use.
    async fn run_once(&self, port: &mut Option<u16>) -> Ended {
        let wanted = match port.take().map_or_else(free_port, Ok) {
            Ok(port) => port,
            Err(error) => return Ended::Failed(format!("found no free port: {error}")),
        };
        let mut running = match self.spawn(wanted) {
            Ok(running) => running,
            Err(error) => return Ended::Failed(format!("cannot be started: {error}")),
        };
        let pid = running.guard.id();
        let ready = tokio::select! {
            () = self.stop.cancelled() => Err(None),
            status = running.guard.wait() => Err(Some(describe_exit(status))),
            ready = timeout(self.managed.start_timeout, ready(&mut running.port)) => {
                ready.map_err(|_| Some("was not ready in time".into()))
            }
        };
        let ready = match ready {
            Ok(ready) => ready,
            Err(why) => {
                running.end().await;
                let Some(why) = why else {
                    return Ended::Stopped;
                };
                return Ended::Failed(format!("{why}{}", running.last_words().await));
            }
        };
        // Kept for the next start, so that it stays the same backend at the same address.
        *port = Some(ready);
        self.publish(ready);
        self.first_start(None);
        self.tell(&format!("ready on port {ready}"), pid);
        let ended = tokio::select! {
            () = self.stop.cancelled() => Ended::Stopped,
            status = running.guard.wait() => Ended::Failed(describe_exit(status)),
        };
        running.end().await;
        (self.board.gone)(&self.name);
        ended
    }

    fn spawn(&self, port: u16) -> io::Result<Running> {
        let fill = |text: &String| {
            text.replace("{port}", &port.to_string())
                .replace("{name}", self.name.as_str())
        };
        let mut command = Command::new(&self.guard[0]);
        // Whatever an agent runs in there could print them. First, since what follows is meant.
        for variable in lock(&self.board.withheld).iter() {
            command.env_remove(variable);
        }
        let mut guard = command
            .args(&self.guard[1..])
            .arg("--")
            .args(self.managed.command.iter().map(fill))
            .env("COPILOT_HOME", &self.home)
            // Loopback is open to every user of this host.
            .env("COPILOT_CONNECTION_TOKEN", self.token.expose())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A terminal's Ctrl-C is for us; the servers are stopped in our own order.
            .process_group(0)
            .spawn()?;
        let group = Arc::new(Mutex::new(None));
        let last_lines = Arc::new(Mutex::new(VecDeque::new()));
        let (told, port) = watch::channel(None);
        let mut readers = Vec::new();
        if let Some(stdout) = guard.stdout.take() {
            let (group, name, lines) = (group.clone(), self.name.clone(), last_lines.clone());
            readers.push(tokio::spawn(read_lines(stdout, move |line| {
                if let Some(number) = line.strip_prefix(GROUP_LINE) {
                    *lock(&group) = number.parse().ok().and_then(Pid::from_raw);
                } else if let Some(port) = ready_port(line) {
                    told.send_replace(Some(port));
                } else {
                    remember(&lines, &name, line);
                }
            })));
        }
        if let Some(stderr) = guard.stderr.take() {
            let (name, lines) = (self.name.clone(), last_lines.clone());
            tokio::spawn(read_lines(stderr, move |line| {
                remember(&lines, &name, line)
            }));
        }
        Ok(Running {
            stdin: guard.stdin.take(),
            guard,
            group,
            port,
            last_lines,
            readers,
        })
    }

    fn publish(&self, port: u16) {
        let address: Arc<str> = SocketAddr::from((Ipv4Addr::LOCALHOST, port))
            .to_string()
            .into();
        self.board.backends.send_if_modified(|backends| {
            match backends.binary_search_by(|b| b.name.cmp(&self.name)) {
                Ok(i) if backends[i].address == address => return false,
                Ok(i) => backends[i].address = address,
                Err(i) => backends.insert(
                    i,
                    config::Backend {
                        name: self.name.clone(),
                        address,
                        weight: 1,
                        state: AdminState::Ready,
                        connection_token: Some(self.token.clone()),
                        proxy_protocol: None,
                        tls: None,
                    },
                ),
            }
            true
        });
    }

    fn first_start(&self, failure: Option<&str>) {
        self.board.first_starts.send_if_modified(|starts| {
            let first = starts.iter().all(|start| start.name != self.name);
            if first {
                let failure = failure.map(str::to_owned);
                starts.push(FirstStart {
                    name: self.name.clone(),
                    failure,
                });
            }
            first
        });
    }

    fn tell(&self, what: &str, pid: Option<u32>) {
        let backend = self.name.clone();
        (self.board.report)(Event::ManagedServer {
            backend,
            what: Arc::from(what),
            pid,
        });
    }

    /// Doubled by each failure, and spread so that servers that fail together return apart.
    fn pause(&self, failures: u32) -> Duration {
        let doubled = self.backoff.first * (1 << failures.saturating_sub(1).min(16));
        let pause = doubled.min(self.backoff.longest);
        let spread = placement_hash(&format!("{}{failures}", self.name)) % 500;
        pause * (750 + u32::try_from(spread).unwrap_or(0)) / 1000
    }
}

impl Running {
    /// Ends the server if it has not ended, and whatever it left.
    async fn end(&mut self) {
        drop(self.stdin.take());
        let waited = timeout(GRACE + Duration::from_secs(2), self.guard.wait()).await;
        // The guard kills the group, unless it was killed itself, or hangs.
        let by_guard = matches!(&waited, Ok(Ok(status)) if status.code().is_some());
        if !by_guard {
            if let Some(group) = *lock(&self.group) {
                let _empty = kill_process_group(group, Signal::KILL);
            }
            let _dead = self.guard.start_kill();
            let _reaped = self.guard.wait().await;
        }
    }

    /// The last lines of its output, once it has ended.
    async fn last_words(&mut self) -> String {
        for reader in &mut self.readers {
            // Whoever escaped the group may hold the pipe open.
            let _late = timeout(LAST_WORDS, reader).await;
        }
        let lines = lock(&self.last_lines);
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        if lines.is_empty() {
            String::new()
        } else {
            format!(": {}", lines.join(" | "))
        }
    }
}

fn describe_exit(status: io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => format!("ended ({status})"),
        Err(error) => format!("ended ({error})"),
    }
}

/// The port of the readiness line, once it has come.
async fn ready(port: &mut watch::Receiver<Option<u16>>) -> u16 {
    match port
        .wait_for(Option::is_some)
        .await
        .ok()
        .and_then(|port| *port)
    {
        Some(port) => port,
        // Its output has ended without the line; so will the server, or its time.
        None => std::future::pending().await,
    }
}

fn ready_port(line: &str) -> Option<u16> {
    let (_, rest) = line.split_once(READY_LINE)?;
    rest.split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

fn remember(lines: &Mutex<VecDeque<String>>, name: &BackendName, line: &str) {
    tracing::debug!(backend = %name, "{line}");
    let mut lines = lock(lines);
    if lines.len() == LAST_LINES {
        lines.pop_front();
    }
    lines.push_back(line.to_owned());
}

/// Reads to the end, line by line; longer lines come in pieces.
async fn read_lines(from: impl AsyncRead + Unpin, mut take: impl FnMut(&str)) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut from)
            .take(MAX_LINE)
            .read_until(b'\n', &mut line)
            .await
        {
            Ok(0) | Err(_) => return,
            Ok(_) => take(String::from_utf8_lossy(&line).trim_end()),
        }
    }
}

/// A port that was free a moment ago; should it be taken since, the start fails and tries another.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

/// Makes a server's home, for us alone; the file that is returned holds it for this process.
fn take_home(home: &Path) -> Result<fs::File, SupervisorError> {
    let failed = |error| SupervisorError::Home {
        path: home.to_owned(),
        error,
    };
    create_private(home).map_err(failed)?;
    let lock = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(home.join(LOCK))
        .map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => Err(SupervisorError::HomeInUse {
            path: home.to_owned(),
        }),
        Err(fs::TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// Sessions and logins are kept there: one that exists already is closed to others as well.
fn create_private(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)?;
    if fs::metadata(dir)?.permissions().mode() & 0o077 != 0 {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// A token that nobody can guess: 256 bits of the system's randomness, in hexadecimal.
///
/// # Errors
/// The system's.
pub fn random_token() -> io::Result<Secret> {
    let mut bytes = [0; 32];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Secret::from(digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readiness_line_gives_the_port() {
        assert_eq!(ready_port("CLI server listening on port 4321"), Some(4321));
        assert_eq!(
            ready_port("\u{1b}[1mCLI server listening on port 80\u{1b}[0m"),
            Some(80)
        );
        assert_eq!(ready_port("CLI server listening on port 70000"), None);
        assert_eq!(
            ready_port("Warning: No COPILOT_CONNECTION_TOKEN was set"),
            None
        );
    }

    #[test]
    fn the_program_is_found_by_variable_or_path() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("copilot");
        let path = Some(dir.path().as_os_str());
        assert_eq!(find_program(None, path), None);
        fs::write(&file, "").unwrap();
        assert_eq!(find_program(None, path), None, "not executable");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find_program(None, path), Some(file.clone()));
        assert_eq!(find_program(Some(OsStr::new("")), path), Some(file.clone()));
        assert_eq!(find_program(Some(file.as_os_str()), None), Some(file));
        // A wrong variable is an error, not a reason to take another program.
        assert_eq!(find_program(Some(OsStr::new("/nonexistent")), path), None);
    }

    #[test]
    fn tokens_are_long_and_differ() {
        let (a, b) = (random_token().unwrap(), random_token().unwrap());
        assert_eq!(a.expose().len(), 64);
        assert_ne!(a, b);
    }
}
