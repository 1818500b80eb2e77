//! Two connections joined: bytes as they come, counted as they pass, an end passed on, and a bound
//! on how long a side may take none. Knows nothing of frames.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

use super::stream::Stream;

/// Size of each direction's buffer, which is there only while bytes wait.
const BUFFER: usize = 16 * 1024;

/// Rounds of one direction before others get their turn.
const ROUNDS: usize = 16;

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
/// say is waited for. `passed` hears of every read.
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
        let up = forth.poll(first, second, stall, task, |n| passed(Leg::Forth, n));
        let down = back.poll(second, first, stall, task, |n| passed(Leg::Back, n));
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
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Phase {
    /// Bytes may come.
    #[default]
    Open,
    /// None come any more; the other side is being told.
    Ending,
    /// It knows.
    Ended,
}

#[derive(Default)]
struct Direction {
    phase: Phase,
    /// Empty unless bytes wait or are being read.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
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
        passed: impl Fn(u64),
    ) -> Poll<Result<(), End>> {
        for _ in 0..ROUNDS {
            match self.step(from, to, task, &passed) {
                Step::Went => self.stalled = None,
                Step::Failed(end) => return Poll::Ready(Err(end)),
                Step::Done => return Poll::Ready(Ok(())),
                Step::WaitsForBytes => return Poll::Pending,
                Step::WaitsForRoom => {
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

    fn step(
        &mut self,
        from: &mut Stream,
        to: &mut Stream,
        task: &mut Context<'_>,
        passed: &impl Fn(u64),
    ) -> Step {
        if self.start < self.end {
            let rest = &self.buffer[self.start..self.end];
            return match Pin::new(&mut *to).poll_write(task, rest) {
                Poll::Pending => Step::WaitsForRoom,
                Poll::Ready(Ok(0)) => Step::Failed(End::To(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => {
                    self.start += n;
                    Step::Went
                }
                Poll::Ready(Err(error)) => Step::Failed(End::To(error)),
            };
        }
        if to.holds_unsent() {
            match Pin::new(&mut *to).poll_flush(task) {
                Poll::Pending => return Step::WaitsForRoom,
                Poll::Ready(Err(error)) => return Step::Failed(End::To(error)),
                Poll::Ready(Ok(())) => {}
            }
        }
        match self.phase {
            Phase::Ended => return Step::Done,
            Phase::Ending => {
                return match Pin::new(to).poll_shutdown(task) {
                    Poll::Pending => Step::WaitsForRoom,
                    // One that is gone already needs not be told.
                    Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::NotConnected => {
                        self.phase = Phase::Ended;
                        Step::Went
                    }
                    Poll::Ready(Err(error)) => Step::Failed(End::To(error)),
                    Poll::Ready(Ok(())) => {
                        self.phase = Phase::Ended;
                        Step::Went
                    }
                };
            }
            Phase::Open => {}
        }
        if from.poll_read_ready(task).is_pending() {
            self.buffer = Vec::new();
            return Step::WaitsForBytes;
        }
        self.buffer.resize(BUFFER, 0);
        let mut space = ReadBuf::new(&mut self.buffer);
        match Pin::new(from).poll_read(task, &mut space) {
            Poll::Pending => {
                self.buffer = Vec::new();
                Step::WaitsForBytes
            }
            Poll::Ready(Err(error)) => Step::Failed(End::From(error)),
            Poll::Ready(Ok(())) => {
                let n = space.filled().len();
                (self.start, self.end) = (0, n);
                if n == 0 {
                    self.buffer = Vec::new();
                    self.phase = Phase::Ending;
                } else {
                    passed(n as u64);
                }
                Step::Went
            }
        }
    }
}

enum Step {
    Went,
    WaitsForBytes,
    WaitsForRoom,
    Done,
    Failed(End),
}
