//! Two connections joined: bytes as they come, counted as they pass, an end passed on, and a bound
//! on how long a side may take none. Where much comes at a time, and neither side is under TLS, the
//! kernel moves it by itself. Knows nothing of frames.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep},
};

use super::{
    pipe::{self, Pipe},
    scratch,
    stream::Stream,
};

/// What a direction reads into memory before it writes, at most; and so what waits there for a side that
/// takes none.
const CHUNK: usize = 64 * 1024;

/// From so many bytes at a time on, more are expected, and moved by the kernel. Fewer are sooner copied
/// than moved page by page.
const MUCH: usize = 16 * 1024;

/// Reads of one direction before others get their turn.
const ROUNDS: usize = 4;

/// Which direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leg {
    /// From the first connection to the second.
    Forth,
    /// From the second to the first.
    Back,
}

/// Why it cannot go on.
#[derive(Debug)]
pub enum Halt {
    /// The first connection broke.
    First(io::Error),
    /// The second.
    Second(io::Error),
    /// The first took nothing for that long.
    FirstStalled,
    /// The second.
    SecondStalled,
}

/// Joins them until both have ended; the end of one is passed on, and what the other still has to
/// say is waited for. `passed` hears of what was read at each wake-up.
///
/// # Errors
/// See [`Halt`].
pub async fn splice(
    first: &mut Stream,
    second: &mut Stream,
    stall: Duration,
    passed: impl Fn(Leg, u64),
) -> Result<(), Halt> {
    let (mut forth, mut back) = (Direction::default(), Direction::default());
    std::future::poll_fn(|task| {
        let up = forth.poll(first, second, stall, task);
        let down = back.poll(second, first, stall, task);
        for (leg, direction) in [(Leg::Forth, &mut forth), (Leg::Back, &mut back)] {
            let n = std::mem::take(&mut direction.passed);
            if n > 0 {
                passed(leg, n);
            }
        }
        match (up, down) {
            (Poll::Ready(Err(end)), _) => Poll::Ready(Err(match end {
                End::From(error) => Halt::First(error),
                End::To(error) => Halt::Second(error),
                End::Stalled => Halt::SecondStalled,
            })),
            (_, Poll::Ready(Err(end))) => Poll::Ready(Err(match end {
                End::From(error) => Halt::Second(error),
                End::To(error) => Halt::First(error),
                End::Stalled => Halt::FirstStalled,
            })),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Ok(())),
            (Poll::Ready(Ok(())) | Poll::Pending, _) => Poll::Pending,
        }
    })
    .await
}

enum End {
    From(io::Error),
    To(io::Error),
    Stalled,
}

/// Where a direction is.
#[derive(Debug, Default)]
enum Phase {
    /// Bytes may come.
    #[default]
    Open,
    /// None come any more; the other side is being told.
    Ending,
    /// It broke; what came before is still to be passed on.
    Broken(io::Error),
    /// The other side knows.
    Ended,
}

/// What the other side has not taken yet.
#[derive(Debug, Default)]
enum Rest {
    #[default]
    Nothing,
    /// The bytes, and how many of them it has taken since.
    Copied(Vec<u8>, usize),
    /// They have never been here.
    Piped(Pipe),
}

#[derive(Default)]
struct Direction {
    phase: Phase,
    rest: Rest,
    /// Bytes read since it was asked last.
    passed: u64,
    /// The last read that brought anything brought [`MUCH`].
    comes_much: bool,
    /// The next read is a copying one: only that can tell whether there is more, or an end.
    looks: bool,
    /// Runs while the other side takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Direction {
    fn poll(
        &mut self,
        from: &mut Stream,
        to: &mut Stream,
        stall: Duration,
        task: &mut Context<'_>,
    ) -> Poll<Result<(), End>> {
        for _ in 0..ROUNDS {
            match self.step(from, to, task) {
                Step::Went => self.stalled = None,
                Step::Failed(end) => return Poll::Ready(Err(end)),
                Step::Done => return Poll::Ready(Ok(())),
                Step::WaitsForBytes => {
                    self.stalled = None;
                    return Poll::Pending;
                }
                Step::WaitsForRoom { took } => {
                    if took {
                        self.stalled = None;
                    }
                    let timer = self.stalled.get_or_insert_with(|| {
                        Box::pin(tokio::time::sleep_until(Instant::now() + stall))
                    });
                    ready!(timer.as_mut().poll(task));
                    return Poll::Ready(Err(End::Stalled));
                }
            }
        }
        task.waker().wake_by_ref();
        Poll::Pending
    }

    /// Passes on what waits, then a chunk of what has come.
    fn step(&mut self, from: &mut Stream, to: &mut Stream, task: &mut Context<'_>) -> Step {
        if let Some(step) = self.pass_rest(to, task) {
            return step;
        }
        if to.holds_unsent() {
            match Pin::new(&mut *to).poll_flush(task) {
                Poll::Pending => return Step::WaitsForRoom { took: false },
                Poll::Ready(Err(error)) => return Step::Failed(End::To(error)),
                Poll::Ready(Ok(())) => {}
            }
        }
        match std::mem::take(&mut self.phase) {
            Phase::Open => self.pass(from, to, task),
            Phase::Broken(error) => Step::Failed(End::From(error)),
            Phase::Ended => {
                self.phase = Phase::Ended;
                Step::Done
            }
            Phase::Ending => {
                self.phase = Phase::Ending;
                match Pin::new(to).poll_shutdown(task) {
                    Poll::Pending => return Step::WaitsForRoom { took: false },
                    // One that is gone already needs not be told.
                    Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::NotConnected => {}
                    Poll::Ready(Err(error)) => return Step::Failed(End::To(error)),
                    Poll::Ready(Ok(())) => {}
                }
                self.phase = Phase::Ended;
                Step::Went
            }
        }
    }

    /// Gives the other side what waits for it. None if all of it went.
    fn pass_rest(&mut self, to: &mut Stream, task: &mut Context<'_>) -> Option<Step> {
        let written = match &mut self.rest {
            Rest::Nothing => return None,
            Rest::Copied(bytes, start) => {
                let written = write(to, &bytes[*start..], task);
                *start += written.count;
                written
            }
            Rest::Piped(pipe) => drain(pipe, to.tcp(), task),
        };
        match written.then {
            Then::Went => {
                if let Rest::Piped(pipe) = std::mem::take(&mut self.rest) {
                    pipe.give_back();
                }
                None
            }
            Then::Waits => Some(Step::WaitsForRoom {
                took: written.count > 0,
            }),
            Then::Failed(error) => Some(Step::Failed(End::To(error))),
        }
    }

    /// Passes on what has come, as much as one read brings.
    fn pass(&mut self, from: &mut Stream, to: &mut Stream, task: &mut Context<'_>) -> Step {
        if from.poll_read_ready(task).is_pending() {
            return Step::WaitsForBytes;
        }
        if self.comes_much
            && !std::mem::take(&mut self.looks)
            && let (Stream::Plain(from), Stream::Plain(_)) = (&*from, &*to)
            && let Some(pipe) = Pipe::take()
        {
            return self.pass_within(pipe, from, to, task);
        }
        let mut buffer = scratch::take();
        let step = self.pass_by(&mut buffer[..CHUNK], from, to, task);
        scratch::give_back(buffer);
        step
    }

    /// By a pipe.
    fn pass_within(
        &mut self,
        mut pipe: Pipe,
        from: &TcpStream,
        to: &mut Stream,
        task: &mut Context<'_>,
    ) -> Step {
        match pipe.fill(from) {
            Ok(count) => {
                self.passed += count as u64;
                // Half full, it has probably taken all that there was.
                self.looks = count < pipe::SIZE / 2;
                self.comes_much = count == 0 || count >= MUCH;
            }
            Err(error) => self.phase = Phase::Broken(error),
        }
        self.rest = Rest::Piped(pipe);
        match self.pass_rest(to, task) {
            None => Step::Went,
            // What waited before has been taken.
            Some(Step::WaitsForRoom { .. }) => Step::WaitsForRoom { took: true },
            Some(step) => step,
        }
    }

    /// By the thread's buffer. Only what is not taken is copied.
    fn pass_by(
        &mut self,
        buffer: &mut [u8],
        from: &mut Stream,
        to: &mut Stream,
        task: &mut Context<'_>,
    ) -> Step {
        let size = buffer.len();
        let mut space = ReadBuf::new(buffer);
        // TLS gives a record at a time. Of a plain connection that had less than there was room
        // for, it is known without a call that it has nothing more.
        let drained = loop {
            let before = space.filled().len();
            if before == size {
                break false;
            }
            match Pin::new(&mut *from).poll_read(task, &mut space) {
                Poll::Pending => break true,
                Poll::Ready(Err(error)) => {
                    self.phase = Phase::Broken(error);
                    break false;
                }
                Poll::Ready(Ok(())) if space.filled().len() == before => {
                    self.phase = Phase::Ending;
                    break false;
                }
                Poll::Ready(Ok(())) => {}
            }
        };
        let bytes = space.filled();
        self.passed += bytes.len() as u64;
        if !bytes.is_empty() {
            self.comes_much = bytes.len() >= MUCH;
            let written = write(to, bytes, task);
            match written.then {
                Then::Went => {}
                Then::Waits => {
                    self.rest = Rest::Copied(bytes[written.count..].to_vec(), 0);
                    return Step::WaitsForRoom { took: true };
                }
                Then::Failed(error) => return Step::Failed(End::To(error)),
            }
            if to.holds_unsent() {
                // The next step gives it to the system, or finds that it waits.
                return Step::Went;
            }
        }
        match drained {
            true => Step::WaitsForBytes,
            false => Step::Went,
        }
    }
}

enum Step {
    Went,
    WaitsForBytes,
    /// Whether the other side has taken something since the last step.
    WaitsForRoom {
        took: bool,
    },
    Done,
    Failed(End),
}

/// How far a write came.
struct Written {
    count: usize,
    then: Then,
}

enum Then {
    /// All of it.
    Went,
    /// The task is woken when there is room for more.
    Waits,
    Failed(io::Error),
}

fn write(to: &mut Stream, bytes: &[u8], task: &mut Context<'_>) -> Written {
    let mut count = 0;
    let then = loop {
        if count == bytes.len() {
            break Then::Went;
        }
        match Pin::new(&mut *to).poll_write(task, &bytes[count..]) {
            Poll::Pending => break Then::Waits,
            Poll::Ready(Ok(0)) => break Then::Failed(io::ErrorKind::WriteZero.into()),
            Poll::Ready(Ok(n)) => count += n,
            Poll::Ready(Err(error)) => break Then::Failed(error),
        }
    };
    Written { count, then }
}

/// The same of what a pipe holds.
fn drain(pipe: &mut Pipe, to: &TcpStream, task: &mut Context<'_>) -> Written {
    let mut count = 0;
    let then = loop {
        if pipe.held() == 0 {
            break Then::Went;
        }
        match pipe.drain(to) {
            Ok(0) => break Then::Failed(io::ErrorKind::WriteZero.into()),
            Ok(n) => count += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                match to.poll_write_ready(task) {
                    Poll::Pending => break Then::Waits,
                    Poll::Ready(Err(error)) => break Then::Failed(error),
                    Poll::Ready(Ok(())) => {}
                }
            }
            Err(error) => break Then::Failed(error),
        }
    };
    Written { count, then }
}
