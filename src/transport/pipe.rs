//! Pipes of the kernel, by which bytes go from one socket to another without being copied into this
//! process and out of it again (splice(2)). Lent by the thread to whoever moves much; few in all, since
//! each takes two files.

use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::OwnedFd,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice},
};
use tokio::{io::Interest, net::TcpStream};

use super::{files, scratch};

/// What one holds, of what is cut into whole pages: as much as is read where bytes are copied. A system
/// gives every user 64 MiB of it.
pub(super) const SIZE: usize = scratch::SIZE;

/// So many there are at a time, in all threads.
const MOST: usize = 64;

/// So many that are not in use a thread keeps: it moves bytes of one connection at a time.
const SPARE: usize = 1;

/// Where the system gave none, or moved nothing by it, it is not asked again for so long.
const PAUSE: Duration = Duration::from_secs(1);

static COUNT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static SPARES: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
    /// Until when bytes are to be copied.
    static PAUSED: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// A system that refuses, for tests: the next pipe is none.
#[cfg(test)]
pub(super) fn refuse() {
    let none = || std::fs::File::options().write(true).open("/dev/null");
    let pipe = Pipe {
        from: none().unwrap().into(),
        into: none().unwrap().into(),
        held: 0,
        _one: One::of_all().unwrap(),
    };
    SPARES.set(vec![pipe]);
}

#[cfg(test)]
thread_local! {
    /// Bytes that pipes of this thread have taken in.
    pub(super) static FILLED: Cell<usize> = const { Cell::new(0) };
}

/// One pipe, and how much is in it.
#[derive(Debug)]
pub(super) struct Pipe {
    from: OwnedFd,
    into: OwnedFd,
    held: usize,
    _one: One,
}

/// One of [`MOST`].
#[derive(Debug)]
struct One;

impl One {
    fn of_all() -> Option<Self> {
        let more = |count: usize| (count < MOST).then_some(count + 1);
        let taken = COUNT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.is_ok().then_some(Self)
    }
}

impl Drop for One {
    fn drop(&mut self) {
        COUNT.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pipe {
    /// An empty one; none if there are enough, or the system gives none of that size: then bytes are
    /// to be copied.
    pub(super) fn take() -> Option<Self> {
        if let Some(until) = PAUSED.get() {
            if Instant::now() < until {
                return None;
            }
            PAUSED.set(None);
        }
        let pipe = SPARES.with_borrow_mut(Vec::pop).or_else(Self::new);
        if pipe.is_none() {
            pause();
        }
        pipe
    }

    fn new() -> Option<Self> {
        let one = One::of_all()?;
        let (from, into) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).ok()?;
        // It must not take the place of a connection to a server.
        if files::beyond(&into) > 0 {
            return None;
        }
        fcntl_setpipe_size(&into, SIZE).ok()?;
        Some(Self {
            from,
            into,
            held: 0,
            _one: one,
        })
    }

    /// The thread may lend it to somebody else, if it is empty; or else what it holds is gone.
    pub(super) fn give_back(self) {
        SPARES.with_borrow_mut(|spares| {
            if self.held == 0 && spares.len() < SPARE {
                spares.push(self);
            }
        });
    }

    /// How many bytes are in it.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Takes in what has come on a socket, as far as there is room. 0 = it could not, and nobody knows why:
    /// nothing has come, or nothing will, or what comes cannot be moved so (nothing beyond an urgent
    /// byte can). A read tells.
    ///
    /// # Errors
    /// The socket's.
    pub(super) fn fill(&mut self, socket: &TcpStream) -> io::Result<usize> {
        let filled = socket.try_io(Interest::READABLE, || {
            match splice(socket, None, &self.into, None, SIZE, flags()) {
                Ok(count) => Ok(count),
                // Readiness stays as it is: a read will find out.
                Err(Errno::AGAIN) => Ok(0),
                // An emulated system, or a filter of system calls.
                Err(Errno::INVAL | Errno::NOSYS | Errno::PERM) => {
                    pause();
                    Ok(0)
                }
                Err(error) => Err(error.into()),
            }
        });
        let count = match filled {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            filled => filled?,
        };
        self.held += count;
        #[cfg(test)]
        FILLED.set(FILLED.get() + count);
        Ok(count)
    }

    /// Gives a socket what it takes.
    ///
    /// # Errors
    /// The socket's; `WouldBlock` if it takes nothing, and then its readiness tells when it does.
    pub(super) fn drain(&mut self, socket: &TcpStream) -> io::Result<usize> {
        let count = socket.try_io(Interest::WRITABLE, || {
            Ok(splice(&self.from, None, socket, None, self.held, flags())?)
        })?;
        self.held -= count;
        Ok(count)
    }
}

fn pause() {
    PAUSED.set(Some(Instant::now() + PAUSE));
}

fn flags() -> SpliceFlags {
    SpliceFlags::NONBLOCK | SpliceFlags::MOVE
}
