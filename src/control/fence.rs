//! The operator's command that makes sure of a silent backend. Decides nothing: `core::release`
//! says when, and what its outcome means.

use std::{
    io,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader},
    process::Command,
    task::JoinHandle,
    time::timeout,
};

use crate::{core::id::BackendName, transport::files};

/// Longest line of its output that is looked at, in bytes.
const MAX_LINE: u64 = 1 << 10;
/// After its end, what it started may hold its output open for so long.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// What it wrote last, if anything.
pub(super) type LastLine = Option<Arc<str>>;

/// Why it did not succeed.
#[derive(Debug, thiserror::Error)]
pub(super) enum FenceError {
    #[error("cannot be started: {0}")]
    NotStarted(io::Error),
    #[error("ended ({status}){}", after(.last))]
    Failed {
        status: std::process::ExitStatus,
        last: LastLine,
    },
    #[error("killed after {timeout:?}{}", after(.last))]
    TimedOut { timeout: Duration, last: LastLine },
    #[error("was lost: {0}")]
    Lost(io::Error),
}

fn after(last: &LastLine) -> String {
    last.as_ref().map(|l| format!(": {l}")).unwrap_or_default()
}

/// Kills what is left of a process group when it goes out of scope.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _empty = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Runs `command` (not empty) for the backend to its end, or kills it and all it started after
/// `limit` or when the future is dropped.
pub(super) async fn run(
    command: Vec<String>,
    backend: BackendName,
    address: Arc<str>,
    limit: Duration,
) -> Result<LastLine, FenceError> {
    let words = command.iter().map(|word| {
        word.replace("{name}", backend.as_str())
            .replace("{address}", &address)
    });
    let words: Vec<String> = words.collect();
    let spawn = |open_files| {
        start(words.clone(), open_files)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    };
    let spawned = spawn(files::before());
    // Without a shell, better with too many files than not at all.
    let spawned = match spawned {
        Err(error) if error.kind() == io::ErrorKind::NotFound => spawn(None),
        spawned => spawned,
    };
    let mut child = spawned.map_err(FenceError::NotStarted)?;
    let pid = child.id().and_then(|id| i32::try_from(id).ok());
    let mut group = Group(pid.and_then(Pid::from_raw));
    let last = Arc::new(Mutex::new(None));
    let readers = [
        child.stdout.take().map(|out| read(out, last.clone())),
        child.stderr.take().map(|err| read(err, last.clone())),
    ];
    let ended = timeout(limit, child.wait()).await;
    if ended.is_err() {
        drop(group);
        // Killed: this takes no time.
        let _reaped = child.wait().await;
    } else {
        // What it left running on purpose is its own affair.
        group.0 = None;
    }
    for mut reader in readers.into_iter().flatten() {
        if timeout(LAST_WORDS, &mut reader).await.is_err() {
            reader.abort();
        }
    }
    let last = last.lock().unwrap_or_else(PoisonError::into_inner).take();
    match ended {
        Ok(Ok(status)) if status.success() => Ok(last),
        Ok(Ok(status)) => Err(FenceError::Failed { status, last }),
        Ok(Err(error)) => Err(FenceError::Lost(error)),
        Err(_) => Err(FenceError::TimedOut {
            timeout: limit,
            last,
        }),
    }
}

/// The command, with the limit of open files that Taxiway was started with, if it has another one now:
/// some programs go through all numbers up to theirs. A shell sets it, and becomes the command.
fn start(words: Vec<String>, open_files: Option<u64>) -> Command {
    let mut words = words.into_iter();
    let mut command;
    match open_files {
        Some(open_files) => {
            command = Command::new("/bin/sh");
            command.args(["-c", r#"ulimit -Sn "$0" && exec "$@""#]);
            command.arg(open_files.to_string());
        }
        None => command = Command::new(words.next().unwrap_or_default()),
    }
    command.args(words);
    command
}

/// Reads to the end and keeps the last line that says something; longer ones come in pieces.
fn read(
    from: impl AsyncRead + Unpin + Send + 'static,
    last: Arc<Mutex<LastLine>>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
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
                Ok(_) => {}
            }
            let text = String::from_utf8_lossy(&line);
            let text = text.trim();
            if !text.is_empty() {
                *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::from(text));
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shell(script: &str, limit: Duration) -> Result<LastLine, FenceError> {
        let command = ["/bin/sh", "-c", script, "fence", "{name}", "at {address}"];
        let command = command.map(str::to_owned).to_vec();
        run(command, "cli-1".into(), Arc::from("h:1"), limit).await
    }

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn the_backend_is_named_and_the_last_line_is_kept() {
        let said = shell("echo first; echo \"$1 $2\"; echo", LONG)
            .await
            .unwrap();
        assert_eq!(said.as_deref(), Some("cli-1 at h:1"));
        assert_eq!(shell("exit 0", LONG).await.unwrap(), None);
        // Whoever is left behind holds the output open, and is left alone.
        let said = shell("echo done; sleep 30 & exit 0", LONG).await.unwrap();
        assert_eq!(said.as_deref(), Some("done"));
    }

    #[tokio::test]
    async fn failures_say_why() {
        let failed = shell("echo no such host >&2; exit 3", LONG).await;
        let failed = failed.unwrap_err().to_string();
        assert!(failed.contains("exit status: 3): no such host"), "{failed}");
        let command = vec!["/nonexistent/fence".to_owned()];
        let failed = run(command, "a".into(), Arc::from("h:1"), LONG).await;
        assert!(
            matches!(failed, Err(FenceError::NotStarted(_))),
            "{failed:?}"
        );
    }

    #[tokio::test]
    async fn it_has_the_limit_of_open_files_that_taxiway_was_started_with() {
        let script = r#"echo "$(ulimit -Sn) $0 $1""#;
        let words = ["/bin/sh", "-c", script, "an argument", "$HOME"];
        let words = words.map(str::to_owned).to_vec();
        let said = start(words, Some(77)).output().await.unwrap();
        assert!(said.status.success(), "{said:?}");
        assert_eq!(said.stdout, b"77 an argument $HOME\n");
    }

    #[tokio::test]
    async fn one_that_hangs_is_killed_with_all_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("alive");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        // The reader sees the end only when every writer is gone.
        let script = format!("exec 3<>'{0}'; sleep 60 & echo busy; wait", pipe.display());
        let hung = shell(&script, Duration::from_millis(300)).await;
        let hung = hung.unwrap_err().to_string();
        assert_eq!(hung, "killed after 300ms: busy");
        let writers = tokio::task::spawn_blocking(move || {
            // Opens for writing without waiting only while somebody has it open for reading.
            std::os::unix::fs::OpenOptionsExt::custom_flags(
                std::fs::OpenOptions::new().write(true),
                rustix::fs::OFlags::NONBLOCK.bits() as i32,
            )
            .open(pipe)
        });
        let error = writers.await.unwrap().unwrap_err();
        assert_eq!(
            error.raw_os_error(),
            Some(rustix::io::Errno::NXIO.raw_os_error())
        );
    }
}
