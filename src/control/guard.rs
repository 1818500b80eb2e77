//! The small process between Taxiway and a CLI that it started: ends the CLI's process group when
//! Taxiway is gone, however it went, and when the CLI itself has gone and left children behind.
//! Runs on plain threads: no runtime, no configuration, no log.

use std::{
    ffi::OsString,
    io::{self, Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::transport::files;

/// First line that the guard writes to its standard output, followed by the group's number.
pub(super) const GROUP_LINE: &str = "taxiway guard: process group ";
/// Between SIGTERM and SIGKILL. The CLI needs 0.15 s.
pub(super) const GRACE: Duration = Duration::from_secs(3);
/// How long the last output may take to be forwarded after the child's end.
pub(super) const LAST_WORDS: Duration = Duration::from_millis(500);
/// Exit code if the program cannot be started, as shells use it.
const CANNOT_START: u8 = 127;

/// Before the program: the limit of open files that it is to have.
pub(super) const OPEN_FILES: &str = "--open-files=";

/// Runs the program that `args` name (after an optional `--`) in a process group of its own and
/// returns its exit code, 128 + n if signal n ended it. The group ends when standard input does.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args = args.into_iter().peekable();
    let limit = args
        .peek()
        .and_then(|arg| arg.to_str()?.strip_prefix(OPEN_FILES));
    if let Some(limit) = limit.map(str::parse) {
        args.next();
        // Without it the program has more than it needs, no less.
        let _more = limit.map(files::set);
    }
    let mut args = args.skip_while(|arg| arg == "--");
    let Some(program) = args.next() else {
        eprintln!("taxiway guard: no program is given");
        return ExitCode::from(CANNOT_START);
    };
    let spawned = Command::new(&program)
        .args(args)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    match spawned {
        Ok(child) => watch(child),
        Err(error) => {
            eprintln!("taxiway guard: cannot start {}: {error}", program.display());
            ExitCode::from(CANNOT_START)
        }
    }
}

fn watch(mut child: Child) -> ExitCode {
    let group = Pid::from_child(&child);
    // Forwarded instead of inherited, so that this line comes first and whole.
    let mut stdout = io::stdout();
    let _deaf = writeln!(stdout, "{GROUP_LINE}{}", group.as_raw_nonzero());
    let _deaf = stdout.flush();

    let (done, forwarded) = mpsc::channel();
    if let Some(from) = child.stdout.take() {
        let done = done.clone();
        thread::spawn(move || forward(from, io::stdout(), &done));
    }
    if let Some(from) = child.stderr.take() {
        thread::spawn(move || forward(from, io::stderr(), &done));
    }

    // While this holds a group, its leader has not been reaped and its number cannot be reused.
    let alive = Arc::new(Mutex::new(Some(group)));
    let orphaned = alive.clone();
    thread::spawn(move || {
        wait_for_end_of_input();
        signal(&orphaned, Signal::TERM);
        thread::sleep(GRACE);
        signal(&orphaned, Signal::KILL);
    });

    // Not reaped by this wait: what the child left in its group is killed under its number first.
    while let Err(error) = waitid(
        WaitId::Pid(group),
        WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
    ) {
        if error != rustix::io::Errno::INTR {
            break;
        }
    }
    signal(&alive, Signal::KILL);
    alive.lock().unwrap_or_else(PoisonError::into_inner).take();
    let status = child.wait();
    // Both forwarders hang up at the end of their pipe; whoever escaped the group may hold it open.
    while forwarded.recv_timeout(LAST_WORDS).is_ok() {}
    status.map_or(ExitCode::FAILURE, exit_code)
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

fn signal(group: &Mutex<Option<Pid>>, signal: Signal) {
    if let Some(group) = *group.lock().unwrap_or_else(PoisonError::into_inner) {
        // Fails only if nobody is left in it.
        let _empty = kill_process_group(group, signal);
    }
}

fn wait_for_end_of_input() {
    let mut ignored = [0; 256];
    let mut input = io::stdin();
    loop {
        match input.read(&mut ignored) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Copies until the end; goes on reading when nobody listens, so that the child never blocks.
fn forward(mut from: impl Read, mut to: impl Write, done: &mpsc::Sender<()>) {
    let mut chunk = [0; 8 << 10];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => {
                let _deaf = to.write_all(&chunk[..n]).and_then(|()| to.flush());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    // Gone if the child's end was not waited for.
    let _nobody = done.send(());
}
