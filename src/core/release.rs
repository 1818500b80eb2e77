//! When the sessions of one backend may be opened elsewhere, and what has to happen before it is
//! used again (shared storage only). Never looks at a clock, runs a command or closes a session:
//! the shell does, and tells how it went.
//!
//! ```text
//!              gone, or silent long enough (and fenced)
//!        Held ─────────────────────────────────────────► Released
//!         ▲                                                │ ▲
//!         │ nothing is left to close          it answers   ▼ │ its connection ended
//!         └─────────────────────────────────────────────  Closing
//! ```
//!
//! A backend is *gone* if its process is known to be: that releases it at once. One that is only
//! *silent* may wake and write beside the new owner; so it is released only when it was ejected,
//! nothing was heard of it for `hang_timeout` although it was asked, and the fence command, if there is one, has made
//! sure of it. A backend that is kept in placement because too many are silent is not released:
//! then the judgement is what is in doubt.

use std::time::{Duration, Instant};

/// Between the first failure of a fence command and the next try; doubled by each further one.
const FENCE_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

/// Whoever decided by a picture of the pool that was old when a backend came back has done so by
/// then.
const LATECOMERS: Duration = Duration::from_millis(250);

/// Whether silent backends are fenced before they are released.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fence {
    /// There is no command for it.
    None,
    /// A command has to succeed first.
    Command,
}

/// The part of `[failover]` that this machine obeys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// Silence until the release; none = never.
    pub hang_timeout: Option<Duration>,
    /// What comes before it.
    pub fence: Fence,
}

/// Why its sessions may be opened elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// Its process is gone.
    Gone,
    /// It was silent, and the fence command succeeded.
    Fenced,
    /// It was silent; it may be alive.
    Unfenced,
}

/// What health says of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ejection {
    /// In placement, or not judged yet, or kept in placement although it is silent.
    In,
    /// Down.
    Out,
}

/// How the fence command ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fenced {
    /// It succeeded: the backend cannot write any more.
    Yes,
    /// Anything else.
    No,
}

/// What is to be done now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// Run the fence command, then tell [`Release::handle_fence`].
    Fence,
    /// Let everybody know: it is released, for this reason.
    Release(How),
    /// Close in it what was opened elsewhere, then tell [`Release::handle_closed`].
    Close,
    /// Let everybody know: it may be used again. With what had released it; none if nothing was
    /// known of it before.
    Return(Option<How>),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Held,
    Released,
    /// What was opened elsewhere is being closed in it.
    Closing,
}

/// The machine of one backend.
#[derive(Clone, Debug)]
pub struct Release {
    rules: Rules,
    phase: Phase,
    /// What released it last, if it is released.
    how: Option<How>,
    /// Since when nothing was heard of it.
    heard: Instant,
    /// A probe that was sent since then got no answer in time: without one, nobody knows whether it
    /// is silent.
    missed: bool,
    ejection: Ejection,
    /// The fence command is running.
    fencing: bool,
    /// It has failed so often since anything was heard, and is not tried again before then.
    failed: u32,
    retry: Option<Instant>,
    /// When to look once more for what was opened elsewhere.
    look: Option<Instant>,
    /// What was opened elsewhere was looked for since this machine was made.
    looked: bool,
    /// To be handed out by [`Release::poll_order`].
    order: Option<Order>,
}

impl Release {
    /// A backend of which nothing was heard yet. What it may have open from earlier times is
    /// closed before it is used.
    pub fn new(rules: Rules, now: Instant) -> Self {
        Self {
            rules,
            phase: Phase::Held,
            how: None,
            heard: now,
            missed: false,
            ejection: Ejection::In,
            fencing: false,
            failed: 0,
            retry: None,
            look: None,
            looked: false,
            order: None,
        }
    }

    /// Whether its sessions may be opened elsewhere; it must not be used then.
    pub fn is_released(&self) -> bool {
        self.phase != Phase::Held
    }

    /// New rules, from now on.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// Another process is to be watched under the same name: what is released stays so until that
    /// one answers.
    pub fn handle_moved(&mut self, now: Instant) {
        self.handle_unlinked();
        self.looked = false;
        self.handle_heard(now);
    }

    /// A frame came from it, on whatever connection.
    pub fn handle_heard(&mut self, at: Instant) {
        if at > self.heard {
            self.heard = at;
            self.missed = false;
            self.failed = 0;
            self.retry = None;
        }
    }

    /// A probe that was sent at that time got no answer.
    pub fn handle_missed(&mut self, sent: Instant) {
        self.missed |= sent >= self.heard;
    }

    /// What health says now.
    pub fn handle_ejection(&mut self, ejection: Ejection) {
        self.ejection = ejection;
    }

    /// Its process is gone.
    pub fn handle_gone(&mut self) {
        match self.phase {
            Phase::Held => self.release(How::Gone),
            Phase::Closing => self.phase = Phase::Released,
            Phase::Released => {}
        }
    }

    /// The fence command has ended.
    pub fn handle_fence(&mut self, now: Instant, fenced: Fenced) {
        self.fencing = false;
        match fenced {
            Fenced::Yes if self.phase == Phase::Held && self.is_silent(now) => {
                self.release(How::Fenced);
            }
            Fenced::Yes => {}
            Fenced::No => {
                let pause = FENCE_BACKOFF * (1 << self.failed.min(6));
                self.failed = self.failed.saturating_add(1);
                self.retry = Some(now + pause.min(LONGEST_BACKOFF));
            }
        }
    }

    /// It answered a call on its control connection, whose handshake is done.
    pub fn handle_answer(&mut self) {
        if self.phase == Phase::Released || !self.looked {
            self.phase = Phase::Closing;
            self.looked = true;
            self.order = Some(Order::Close);
        }
    }

    /// Its control connection ended, and with it what was asked there.
    pub fn handle_unlinked(&mut self) {
        self.look = None;
        if self.phase == Phase::Closing {
            self.phase = Phase::Released;
            self.order = None;
        }
    }

    /// What had been opened elsewhere is closed in it; `left` more have been meanwhile.
    pub fn handle_closed(&mut self, now: Instant, left: usize) {
        match (self.phase, left) {
            (Phase::Closing, 0) => {
                self.phase = Phase::Held;
                self.look = Some(now + LATECOMERS);
                self.order = Some(Order::Return(self.how.take()));
            }
            (Phase::Closing, _) => self.order = Some(Order::Close),
            (Phase::Held | Phase::Released, _) => {}
        }
    }

    /// What is to be done now; to be asked until there is nothing.
    pub fn poll_order(&mut self, now: Instant) -> Option<Order> {
        if let Some(order) = self.order.take() {
            return Some(order);
        }
        if self.phase != Phase::Held {
            return None;
        }
        if self.look.is_some_and(|at| now >= at) {
            self.look = None;
            return Some(Order::Close);
        }
        if !self.is_silent(now) {
            return None;
        }
        match self.rules.fence {
            Fence::None => {
                self.release(How::Unfenced);
                self.order.take()
            }
            Fence::Command if self.fencing || self.retry.is_some_and(|at| now < at) => None,
            Fence::Command => {
                self.fencing = true;
                Some(Order::Fence)
            }
        }
    }

    /// When [`Release::poll_order`] has to be asked again although nothing has happened.
    pub fn poll_deadline(&self) -> Option<Instant> {
        if self.phase != Phase::Held {
            return None;
        }
        let silent = self
            .rules
            .hang_timeout
            .filter(|_| self.is_missing() && !self.fencing)
            .map(|hang| (self.heard + hang).max(self.retry.unwrap_or(self.heard)));
        [silent, self.look].into_iter().flatten().min()
    }

    fn is_silent(&self, now: Instant) -> bool {
        let long = |hang| now.saturating_duration_since(self.heard) >= hang;
        self.is_missing() && self.rules.hang_timeout.is_some_and(long)
    }

    fn is_missing(&self) -> bool {
        self.ejection == Ejection::Out && self.missed
    }

    fn release(&mut self, how: How) {
        self.phase = Phase::Released;
        self.how = Some(how);
        self.look = None;
        self.order = Some(Order::Release(how));
    }
}

#[cfg(test)]
mod tests;
