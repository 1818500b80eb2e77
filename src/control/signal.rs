//! The signals that operators and supervisors send, as one stream. Decides nothing.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// What was asked of this process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// SIGTERM: drain and stop; the second one: stop now.
    Terminate,
    /// SIGINT: the same, from a terminal.
    Interrupt,
    /// SIGHUP: reload.
    Hangup,
    /// SIGUSR2: start a successor that takes over.
    Upgrade,
}

/// Replaces the default reactions of this process from its making on.
#[derive(Debug)]
pub struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
    upgrade: tokio::signal::unix::Signal,
}

impl Signals {
    /// Must be called in a tokio runtime.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            upgrade: signal(SignalKind::user_defined2())?,
        })
    }

    /// The next one; equal signals that come close together may be told once. Cancel-safe.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            biased;
            Some(()) = self.terminate.recv() => Signal::Terminate,
            Some(()) = self.interrupt.recv() => Signal::Interrupt,
            Some(()) = self.hangup.recv() => Signal::Hangup,
            Some(()) = self.upgrade.recv() => Signal::Upgrade,
            // The runtime is going down, and this task with it.
            else => std::future::pending().await,
        }
    }

    /// The next one that asks for an end. Cancel-safe.
    pub async fn next_end(&mut self) -> Signal {
        loop {
            let signal = self.next().await;
            if matches!(signal, Signal::Terminate | Signal::Interrupt) {
                return signal;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal as Raw, getpid, kill_process};

    use super::*;

    #[tokio::test]
    async fn each_signal_arrives_under_its_name() {
        let mut signals = Signals::new().unwrap();
        for (raw, expected) in [
            (Raw::HUP, Signal::Hangup),
            (Raw::USR2, Signal::Upgrade),
            (Raw::TERM, Signal::Terminate),
            (Raw::INT, Signal::Interrupt),
            (Raw::HUP, Signal::Hangup),
        ] {
            kill_process(getpid(), raw).unwrap();
            assert_eq!(signals.next().await, expected);
        }
    }
}
