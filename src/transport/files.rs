//! Open files: how many this process may have, and what is kept back of them. Every connection is
//! one, and a process that has none left can do nothing at all: neither ask a server whether it
//! lives, nor keep its store.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::{
    io::Errno,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

/// What the limit is called in the log and in metrics.
pub const OPEN_FILES: &str = "open_files";

/// Kept back at least from clients' connections and from those made for them, for control
/// connections, health and the store.
const RESERVED: u64 = 32;

/// Of a backend: its control connection, and the one that health makes when that is broken.
const PER_BACKEND: u64 = 2;

/// For all that does not grow with the pool: operators, the store, files that are read again, output
/// of what was started, the processes of an upgrade.
const BESIDES: u64 = 24;

/// Kept back from clients' connections besides, for those to servers.
const FOR_UPSTREAM: u64 = 32;

/// So many of these may be given to clients in advance, against connections that are about to close.
pub const IN_ADVANCE: usize = 16;

/// More than this some systems refuse to a process that may have any number by its hard limit.
const MOST: u64 = 10_240;

/// What is kept back at present, for as many backends as there are.
static KEPT_BACK: AtomicU64 = AtomicU64::new(RESERVED);

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
    for wanted in wishes(current, maximum) {
        let raised = Rlimit {
            current: wanted,
            maximum,
        };
        if setrlimit(Resource::Nofile, raised).is_ok() {
            let _first = BEFORE.set(current);
            return wanted;
        }
    }
    current
}

/// What is asked for, one after the other: all that is allowed, and what is granted where that is not
/// true. macOS tells of no hard limit, and refuses that.
fn wishes(current: Option<u64>, maximum: Option<u64>) -> impl Iterator<Item = Option<u64>> {
    let is_more = move |wanted: Option<u64>| match (current, wanted) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(current), Some(wanted)) => wanted > current,
    };
    let within = maximum.is_none_or(|maximum| maximum > MOST);
    let second = within.then_some(Some(MOST));
    std::iter::once(maximum)
        .chain(second)
        .filter(move |wanted| is_more(*wanted))
}

/// How many files this process could have open at most; none = any number.
pub fn most() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    match (current, maximum) {
        (Some(current), None) if cfg!(target_os = "macos") => Some(current.max(MOST)),
        _ => maximum,
    }
}

/// From now on files are kept back for a pool of so many backends.
pub fn keep_back_for(backends: usize) {
    KEPT_BACK.store(kept_back_for(backends), Ordering::Relaxed);
}

fn kept_back_for(backends: usize) -> u64 {
    RESERVED.max(PER_BACKEND * backends as u64 + BESIDES)
}

/// Whether something failed because this process or the system has no files left, or no memory for
/// sockets: nobody else's fault.
pub fn is_exhaustion(error: &io::Error) -> bool {
    let wants = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|errno| wants.contains(&errno))
}

/// Whether a connection could not be made for a want of this process or system. Not every failed
/// look-up of a name says why.
pub fn is_own_want(error: &io::Error) -> bool {
    is_exhaustion(error) || error.raw_os_error().is_none() && are_out()
}

/// How many files have to be closed for a client's connection, accepted just now, to take none of
/// those that are kept back. The system gives the lowest number that is free, so the number says how
/// many are in use.
pub fn beyond(accepted: &impl AsFd) -> usize {
    beyond_by(accepted, FOR_UPSTREAM)
}

/// Whether a connection that was made for a client takes one that is kept back, as the error of
/// connecting.
pub(super) fn spare(connected: &impl AsFd) -> io::Result<()> {
    match beyond_by(connected, 0) {
        0 => Ok(()),
        _ => Err(Errno::MFILE.into()),
    }
}

/// Whether connections cannot be made for clients now.
fn are_out() -> bool {
    // Whatever is open can be asked for one more number.
    match rustix::io::dup(io::stderr()) {
        Ok(file) => beyond_by(&file, 0) > 0,
        Err(error) => is_exhaustion(&error.into()),
    }
}

fn kept_back() -> u64 {
    KEPT_BACK.load(Ordering::Relaxed)
}

/// How far the number of a file lies within the last `besides` before those that are kept back, or
/// within these; 0 = before all of them.
fn beyond_by(file: &impl AsFd, besides: u64) -> usize {
    let Some(limit) = getrlimit(Resource::Nofile).current else {
        return 0;
    };
    let number = u64::try_from(file.as_fd().as_raw_fd()).unwrap_or(0);
    let in_use = number + 1 + besides;
    let beyond = in_use.saturating_sub(free_for_clients(limit, kept_back()));
    usize::try_from(beyond).unwrap_or(usize::MAX)
}

/// Those of clients have half of all numbers, however large the pool is.
fn free_for_clients(limit: u64, kept_back: u64) -> u64 {
    limit - kept_back.min(limit / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_back_grows_with_the_pool() {
        for (backends, files) in [(0, 32), (4, 32), (5, 34), (100, 224)] {
            assert_eq!(kept_back_for(backends), files, "{backends}");
        }
    }

    #[test]
    fn a_large_pool_leaves_clients_half_of_all_files() {
        for (limit, kept_back, free) in [(1024, 32, 992), (1024, 600, 512), (40, 32, 20)] {
            assert_eq!(
                free_for_clients(limit, kept_back),
                free,
                "{limit} {kept_back}"
            );
        }
    }

    #[test]
    fn as_much_is_asked_for_as_may_be_granted() {
        type Row = (Option<u64>, Option<u64>, &'static [Option<u64>]);
        let rows: [Row; 6] = [
            (Some(1024), Some(20_000), &[Some(20_000), Some(10_240)]),
            (Some(1024), Some(4096), &[Some(4096)]),
            (Some(4096), Some(4096), &[]),
            // As on macOS.
            (Some(256), None, &[None, Some(10_240)]),
            (Some(20_000), None, &[None]),
            (None, None, &[]),
        ];
        for (current, maximum, expected) in rows {
            let wished: Vec<_> = wishes(current, maximum).collect();
            assert_eq!(wished, expected, "{current:?} of {maximum:?}");
        }
    }

    #[test]
    fn a_failure_is_ours_by_what_it_says() {
        assert!(is_own_want(&Errno::MFILE.into()));
        assert!(is_own_want(&Errno::NOBUFS.into()));
        assert!(!is_own_want(&Errno::CONNREFUSED.into()));
        assert!(!is_own_want(&io::ErrorKind::TimedOut.into()));
    }
}
