//! `taxiway companion` as a process of its own.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::Path,
    process::{ExitStatus, Stdio},
};

use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::{Admin, PATIENCE, conf::free_address, until};

/// A running companion. It is killed when this is dropped.
pub(crate) struct Companion {
    /// Where clients connect.
    pub(crate) address: SocketAddr,
    /// Where its health is.
    pub(crate) health: Admin,
    pub(crate) child: Child,
    log: TempDir,
}

impl Companion {
    /// In front of `to`, with these arguments besides.
    pub(crate) async fn start(folder: &Path, to: &str, more: &[&str]) -> Self {
        for _ in 0..5 {
            if let Some(started) = Self::try_start(folder, to, more).await {
                return started;
            }
        }
        panic!("every free port was taken by somebody else");
    }

    async fn try_start(folder: &Path, to: &str, more: &[&str]) -> Option<Self> {
        let (address, health) = (free_address(), free_address());
        let (listen, at) = (address.to_string(), health.to_string());
        let mut arguments = vec!["--listen", &listen, "--to", to, "--health", &at];
        arguments.extend(more);
        let log = TempDir::new().unwrap();
        let child = command(folder, &arguments, log.path()).spawn().unwrap();
        let mut companion = Self {
            address,
            health: Admin::new(health),
            child,
            log,
        };
        let ready = until("the companion's line", async || {
            if companion.child.try_wait().unwrap().is_some() {
                let log = companion.log();
                assert!(log.contains("cannot"), "{log}");
                return Ok(false);
            }
            match companion.log() {
                log if log.contains("companion listens on") => Ok(true),
                log => Err(log),
            }
        });
        ready.await.then_some(companion)
    }

    /// With arguments with which it must not come up: its exit code, and what it said.
    pub(crate) async fn refused(folder: &Path, arguments: &[&str]) -> (Option<i32>, String) {
        let log = TempDir::new().unwrap();
        let mut child = command(folder, arguments, log.path()).spawn().unwrap();
        let ended = tokio::time::timeout(PATIENCE, child.wait()).await;
        let code = ended.expect("it does not end").unwrap().code();
        (code, fs::read_to_string(log.path().join("log")).unwrap())
    }

    /// Everything that it has printed.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log.path().join("log")).unwrap_or_default()
    }

    /// Waits until its log says this.
    pub(crate) async fn says(&self, what: &str) {
        until(what, async || match self.log() {
            log if log.contains(what) => Ok(()),
            log => Err(log),
        })
        .await;
    }

    /// Status and text of `/readyz`.
    pub(crate) async fn ready(&self) -> (u16, String) {
        let asked = self.health.try_request("GET", "/readyz", None).await;
        asked.unwrap()
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        ended.expect("it does not end").unwrap()
    }
}

fn command(folder: &Path, arguments: &[&str], log: &Path) -> Command {
    let log = File::create(log.join("log")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_taxiway"));
    command
        .current_dir(folder)
        .arg("companion")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .kill_on_drop(true);
    command
}
