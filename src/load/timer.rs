//! Waits until an instant, to some ten microseconds: tokio's timer counts in milliseconds, which is
//! longer than many turns take.

use std::{
    io,
    time::{Duration, Instant},
};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::net::unix::pipe::Receiver;

/// One alarm, in the kernel. To tokio it is a pipe in which eight bytes come when it rings: of what
/// takes any descriptor, nothing else is both safe and not deprecated.
#[derive(Debug)]
pub(super) struct Timer(Receiver);

impl Timer {
    /// Must be called in a tokio runtime.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let alarm = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Receiver::from_owned_fd_unchecked(alarm).map(Self)
    }

    /// Waits until then. Cancel-safe: the next call sets it anew.
    pub(super) async fn until(&self, then: Instant) -> io::Result<()> {
        let left = then.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        let alarm = Itimerspec {
            it_interval: timespec(Duration::ZERO),
            it_value: timespec(left),
        };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &alarm)?;
        loop {
            self.0.readable().await?;
            match self.0.try_read(&mut [0; 8]) {
                Ok(_) => return Ok(()),
                // Of an alarm that was set before.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_waits_as_long_as_told_and_no_longer_than_a_tick() {
        let timer = Timer::new().unwrap();
        // What a cancelled wait has set does not ring later.
        let cancelled = timer.until(Instant::now() + Duration::from_millis(1));
        drop(tokio::time::timeout(Duration::ZERO, cancelled).await);
        let mut shortest = Duration::MAX;
        for micros in [0, 50, 200, 200, 200, 200] {
            let then = Instant::now() + Duration::from_micros(micros);
            timer.until(then).await.unwrap();
            let now = Instant::now();
            assert!(now >= then);
            shortest = shortest.min(now - then);
        }
        // On a busy machine one may be late, not all.
        assert!(shortest < Duration::from_millis(1), "{shortest:?}");
    }
}
