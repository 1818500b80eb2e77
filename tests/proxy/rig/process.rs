//! The program under test, as a process of its own.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::{Admin, Conf, PATIENCE, until};

/// Exit code for an address that cannot be bound.
const UNAVAILABLE: i32 = 69;

/// A running `taxiway`. It is killed when this is dropped.
pub(crate) struct Taxiway {
    pub(crate) conf: Conf,
    pub(crate) admin: Admin,
    child: Child,
    folder: TempDir,
}

impl Taxiway {
    /// Starts it with this file, and waits until it says that it is ready.
    pub(crate) async fn start(conf: Conf) -> Self {
        Self::start_with(conf, |_| {}).await
    }

    /// The same; `prepare` may put more files beside the configuration.
    pub(crate) async fn start_with(mut conf: Conf, prepare: impl Fn(&Path)) -> Self {
        for _ in 0..5 {
            if let Some(started) = Self::try_start(conf.clone(), &prepare).await {
                return started;
            }
            conf = conf.fresh_addresses();
        }
        panic!("every free port was taken by somebody else");
    }

    /// `None` if somebody was faster to take a port.
    async fn try_start(conf: Conf, prepare: impl Fn(&Path)) -> Option<Self> {
        let folder = TempDir::new().unwrap();
        prepare(folder.path());
        fs::write(folder.path().join("taxiway.toml"), conf.render()).unwrap();
        let mut taxiway = Self {
            admin: Admin::new(conf.address("admin")),
            conf,
            child: Self::command(folder.path(), &[]).spawn().unwrap(),
            folder,
        };
        taxiway.is_ready().await.then_some(taxiway)
    }

    /// Waits until it says so; false if somebody was faster to take a port.
    async fn is_ready(&mut self) -> bool {
        let admin = self.admin.clone();
        until("readiness", async || {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert_eq!(status.code(), Some(UNAVAILABLE), "{}", self.log());
                return Ok(false);
            }
            match admin.try_request("GET", "/readyz", None).await {
                Ok((200, _)) => Ok(true),
                other => Err(other),
            }
        })
        .await
    }

    /// Ends it as a crash does, and waits for the end.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// Starts it again after its end, in the same folder.
    pub(crate) async fn start_again(&mut self) {
        for _ in 0..5 {
            self.child = Self::command(self.folder.path(), &[]).spawn().unwrap();
            if self.is_ready().await {
                return;
            }
            self.conf = self.conf.clone().fresh_addresses();
            self.admin = Admin::new(self.conf.address("admin"));
            self.write(&self.conf.render());
        }
        panic!("every free port was taken by somebody else");
    }

    /// Starts it in a folder where it must not come up. Gives its exit code and what it said.
    pub(crate) async fn refused_start(folder: &Path) -> (Option<i32>, String) {
        let mut child = Self::command(folder, &[]).spawn().unwrap();
        let ended = tokio::time::timeout(PATIENCE, child.wait()).await;
        let code = ended.expect("it does not end").unwrap().code();
        let log = fs::read_to_string(folder.join("log")).unwrap();
        (code, log)
    }

    /// Starts one with this file that takes over from the one that runs; gives it once it has, or
    /// the exit code and what it said.
    pub(crate) async fn successor(conf: Conf) -> Result<Self, (Option<i32>, String)> {
        let mut taxiway = Self::spawn_successor(conf);
        let done = until("the successor to take over or to end", async || {
            if let Some(status) = taxiway.child.try_wait().unwrap() {
                return Ok(Err((status.code(), taxiway.log())));
            }
            match taxiway.log() {
                log if log.contains("taken_over") => Ok(Ok(())),
                log => Err(log),
            }
        });
        done.await.map(|()| taxiway)
    }

    /// The same, and does not wait for anything.
    pub(crate) fn spawn_successor(conf: Conf) -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("taxiway.toml"), conf.render()).unwrap();
        let child = Self::command(folder.path(), &["--upgrade"])
            .spawn()
            .unwrap();
        Self {
            admin: Admin::new(conf.address("admin")),
            conf,
            child,
            folder,
        }
    }

    /// The program with the configuration of this folder; what it prints is added to the log there.
    fn command(folder: &Path, more: &[&str]) -> Command {
        let log = File::options()
            .create(true)
            .append(true)
            .open(folder.join("log"))
            .unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_taxiway"));
        command
            .arg("run")
            .arg("-c")
            .arg(folder.join("taxiway.toml"))
            .args(more)
            .env_remove("TAXIWAY_CONFIG")
            .env_remove("RUNTIME_DIRECTORY")
            .env_remove("XDG_RUNTIME_DIR")
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true);
        command
    }

    /// Starts it with sockets that somebody else has bound, as a service manager does.
    pub(crate) fn activated(
        conf: Conf,
        names: &str,
        sockets: [std::net::TcpListener; 2],
        notify: &Path,
    ) -> Self {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("taxiway.toml");
        fs::write(&file, conf.render()).unwrap();
        let log = File::create(folder.path().join("log")).unwrap();
        let [first, second] = sockets.map(std::os::fd::OwnedFd::from);
        // The protocol wants the process's own number, and the sockets from descriptor 3 on.
        let script = "exec 3<&0 4<&1 0</dev/null 1>&2; LISTEN_PID=$$ LISTEN_FDS=2 exec \"$@\"";
        let child = Command::new("sh")
            .args([
                "-c",
                script,
                "sh",
                env!("CARGO_BIN_EXE_taxiway"),
                "run",
                "-c",
            ])
            .arg(&file)
            .env_remove("TAXIWAY_CONFIG")
            .env("LISTEN_FDNAMES", names)
            .env("NOTIFY_SOCKET", notify)
            .stdin(Stdio::from(first))
            .stdout(Stdio::from(second))
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self {
            admin: Admin::new(conf.address("admin")),
            conf,
            child,
            folder,
        }
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until its log says this.
    pub(crate) async fn says(&self, what: &str) {
        until(what, async || match self.log() {
            log if log.contains(what) => Ok(()),
            log => Err(log),
        })
        .await;
    }

    /// Where clients connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.conf.address("listener")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("it has not ended")
    }

    /// Where its configuration lies.
    pub(crate) fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// Replaces the file, as careful editors do.
    pub(crate) fn write(&self, text: &str) {
        let new = self.folder.path().join("taxiway.toml.new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.folder.path().join("taxiway.toml")).unwrap();
    }

    /// Replaces the file and has it read; it must be taken over.
    pub(crate) async fn reload(&mut self, conf: Conf) {
        self.write(&conf.render());
        let (status, answer) = self.admin.post("/api/v1/reload", "{}").await;
        assert_eq!(status, 200, "{answer}");
        self.admin = Admin {
            address: conf.address("admin"),
            ..self.admin.clone()
        };
        self.conf = conf;
    }

    /// Replaces the file and has it read; it must be refused. Gives the answer.
    pub(crate) async fn refused_reload(&self, text: &str) -> serde_json::Value {
        self.write(text);
        let (status, answer) = self.admin.post("/api/v1/reload", "{}").await;
        assert_eq!(status, 422, "{answer}");
        serde_json::from_str(&answer).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        ended.expect("it does not end").unwrap()
    }

    /// Everything that it has printed.
    pub(crate) fn log(&self) -> String {
        let bytes = fs::read(self.folder.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Memory of the process that is resident, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// The most that was, from the start or the last [`Taxiway::forget_peak`] on.
    pub(crate) fn peak(&self) -> u64 {
        self.status("VmHWM:")
    }

    /// See [`Taxiway::peak`].
    pub(crate) fn forget_peak(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").unwrap();
    }

    fn status(&self, name: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        let kibibytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kibibytes * 1024
    }
}

impl Drop for Taxiway {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(60)..];
            eprintln!("--- the end of Taxiway's log ---\n{}", last.join("\n"));
        }
    }
}
