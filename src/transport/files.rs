//! Open files: how many this process may have, and what is kept back of them. Every connection is
//! one, and a process that has none left can do nothing at all: neither ask a server whether it
//! lives, nor keep its store.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    sync::OnceLock,
};

use rustix::{
    io::Errno,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

/// What the limit is called in the log and in metrics.
pub const OPEN_FILES: &str = "open_files";

/// Kept back from clients' connections and from those made for them, for control connections, health
/// and the store.
const RESERVED: u64 = 32;

/// Kept back from clients' connections besides, for those to servers.
const FOR_UPSTREAM: u64 = 32;

/// The limit before it was raised.
static BEFORE: OnceLock<Option<u64>> = OnceLock::new();

/// The limit that this process was started with, if it was [raised](raise) since: what programs that
/// it starts expect. Some of them go through all numbers up to it.
pub fn before() -> Option<u64> {
    *BEFORE.get()?
}

/// Sets the limit, to what this process was started with for instance.
///
/// # Errors
/// The system's, for one above the hard limit.
pub fn set(current: u64) -> io::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: Some(current),
        maximum,
    };
    Ok(setrlimit(Resource::Nofile, wanted)?)
}

/// Raises the limit as far as the system lets a process raise its own. Gives what is in force then;
/// none = any number.
pub fn raise() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none() || current == maximum {
        return current;
    }
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => {
            let _first = BEFORE.set(current);
            maximum
        }
        // Some systems tell of a maximum that they do not allow.
        Err(_) => current,
    }
}

/// How many files this process could have open at most; none = any number.
pub fn most() -> Option<u64> {
    getrlimit(Resource::Nofile).maximum
}

/// Whether something failed because this process or the system has no files left, or no memory for
/// sockets: nobody else's fault.
pub fn is_exhaustion(error: &io::Error) -> bool {
    let wants = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|errno| wants.contains(&errno))
}

/// Whether a client's connection, accepted just now, takes a file that is kept back. The system gives
/// the lowest number that is free, so the number says how many are in use.
pub fn leaves_none(accepted: &impl AsFd) -> bool {
    is_beyond(accepted, RESERVED + FOR_UPSTREAM)
}

/// The same for a connection that was made for a client, as the error of connecting.
pub(super) fn spare(connected: &impl AsFd) -> io::Result<()> {
    match is_beyond(connected, RESERVED) {
        true => Err(Errno::MFILE.into()),
        false => Ok(()),
    }
}

/// Whether connections cannot be made for clients now, so that a failure tells nothing of a server.
pub fn are_out() -> bool {
    // Whatever is open can be asked for one more number.
    match rustix::io::dup(io::stderr()) {
        Ok(file) => is_beyond(&file, RESERVED),
        Err(error) => is_exhaustion(&error.into()),
    }
}

fn is_beyond(file: &impl AsFd, kept_back: u64) -> bool {
    let limit = getrlimit(Resource::Nofile).current;
    let number = u64::try_from(file.as_fd().as_raw_fd()).unwrap_or(0);
    limit.is_some_and(|limit| number + kept_back >= limit)
}
