//! Carries out what `core::release` decides about one backend: runs the fence command, tells the
//! pool, closes what was opened elsewhere.

use std::{
    collections::{HashSet, VecDeque},
    future::Future,
    pin::Pin,
    time::{Duration, Instant},
};

use super::{Purpose, Watch};
use crate::{
    config,
    control::fence::{self, FenceError, LastLine},
    core::{
        event::Event,
        id::SessionId,
        release::{Fence, Fenced, How, Order, Rules},
        reply,
    },
};

/// Sessions that are being closed at a time.
const CLOSING_AT_ONCE: usize = 32;
/// A backend that closes none of them for so long is connected to anew.
const CLOSE_PATIENCE: Duration = Duration::from_secs(30);

/// The fence command, running.
pub(super) type Fencing = Pin<Box<dyn Future<Output = Result<LastLine, FenceError>> + Send>>;

/// Sessions that were opened elsewhere, on their way to be closed here.
pub(super) struct Closing {
    waiting: VecDeque<SessionId>,
    asked: HashSet<SessionId, ahash::RandomState>,
    closed: Vec<SessionId>,
    deadline: Instant,
}

/// What the machine has to know of the configuration.
pub(super) fn rules(failover: &config::Failover) -> Rules {
    Rules {
        hang_timeout: failover.hang_timeout,
        fence: match failover.fence_command {
            Some(_) => Fence::Command,
            None => Fence::None,
        },
    }
}

impl Watch {
    /// Does what is due.
    pub(super) fn carry_out(&mut self, now: Instant) {
        // With separate disks nothing can be opened elsewhere.
        if !self.habits.compare_disks {
            return;
        }
        if self.closing.as_ref().is_some_and(|c| now >= c.deadline) {
            tracing::warn!(backend = %self.name, "does not close sessions that are open elsewhere");
            self.unlink();
            self.outlier.handle_connection_lost(now);
        }
        if self.release.poll_deadline().is_some_and(|due| now >= due) {
            self.listen(now);
        }
        if let Some(heard) = self.outlier.heard() {
            self.release.handle_heard(heard);
        }
        while let Some(order) = self.release.poll_order(now) {
            match order {
                Order::Fence => self.begin_fence(),
                Order::Release(how) => self.tell_released(now, how),
                Order::Close => self.begin_closing(now),
                Order::Return(how) => self.tell_returned(how),
            }
        }
    }

    pub(super) fn release_deadline(&self) -> Option<Instant> {
        if !self.habits.compare_disks {
            return None;
        }
        let patience = self.closing.as_ref().map(|closing| closing.deadline);
        [self.release.poll_deadline(), patience]
            .into_iter()
            .flatten()
            .min()
    }

    /// The process is gone.
    pub(super) fn release_gone(&mut self) {
        if self.habits.compare_disks {
            self.release.handle_gone();
        }
    }

    /// It answered on its control connection.
    pub(super) fn handle_answer(&mut self) {
        if self.habits.compare_disks && self.ready {
            self.release.handle_answer();
        }
    }

    pub(super) fn handle_fenced(&mut self, now: Instant, ended: Result<LastLine, FenceError>) {
        self.fencing = None;
        // Perhaps it was about to wake.
        self.listen(now);
        if let Some(heard) = self.outlier.heard() {
            self.release.handle_heard(heard);
        }
        match ended {
            Ok(last) => {
                self.fenced = last;
                self.release.handle_fence(now, Fenced::Yes);
                if !self.release.is_released() {
                    tracing::warn!(backend = %self.name, "was heard while it was being fenced");
                }
            }
            Err(error) => {
                self.release.handle_fence(now, Fenced::No);
                if let Some(board) = self.board.upgrade() {
                    board.event(Event::FenceFailed {
                        backend: self.name.clone(),
                        reason: error.to_string().into(),
                    });
                }
            }
        }
    }

    /// It has answered a `sessions.close`: an error says that it is not open either.
    pub(super) fn handle_closed(&mut self, now: Instant, session: SessionId) {
        let Some(closing) = &mut self.closing else {
            return;
        };
        if !closing.asked.remove(&session) {
            return;
        }
        closing.closed.push(session);
        closing.deadline = now + CLOSE_PATIENCE;
        self.close_more(now);
    }

    /// Takes note of frames that came on other connections.
    fn listen(&mut self, now: Instant) {
        if self.activity.take() {
            self.outlier.handle_activity(now);
        }
    }

    fn begin_fence(&mut self) {
        let failover = &self.target.failover;
        let Some(command) = failover.fence_command.clone() else {
            return;
        };
        tracing::info!(backend = %self.name, "is silent; running the fence command");
        let (name, address) = (self.name.clone(), self.target.address.clone());
        let limit = failover.fence_timeout;
        self.fencing = Some(Box::pin(fence::run(command, name, address, limit)));
    }

    fn tell_released(&mut self, now: Instant, how: How) {
        // Whoever hears of it finds it in the snapshot.
        self.publish();
        let Some(board) = self.board.upgrade() else {
            return;
        };
        let heard = self.outlier.heard().unwrap_or(now);
        board.event(Event::BackendReleased {
            backend: self.name.clone(),
            how,
            silent: now.saturating_duration_since(heard),
            fence: self.fenced.take().filter(|_| how == How::Fenced),
        });
        match how {
            How::Gone => {}
            How::Fenced | How::Unfenced => board.given_up(&self.name),
        }
    }

    fn begin_closing(&mut self, now: Instant) {
        let Some(board) = self.board.upgrade() else {
            return;
        };
        let waiting: VecDeque<SessionId> = board.moved_from(&self.name).into();
        self.closing = Some(Closing {
            waiting,
            asked: HashSet::default(),
            closed: Vec::new(),
            deadline: now + CLOSE_PATIENCE,
        });
        self.close_more(now);
    }

    fn close_more(&mut self, now: Instant) {
        let (Some(closing), Some(link)) = (&mut self.closing, &mut self.link) else {
            return;
        };
        while closing.asked.len() < CLOSING_AT_ONCE
            && let Some(session) = closing.waiting.pop_front()
        {
            let params = reply::session_params(session.as_str());
            let purpose = Purpose::Close(session.clone());
            if link.call("sessions.close", &params, purpose, now).is_err() {
                // Choked; the next answer makes room.
                closing.waiting.push_front(session);
                break;
            }
            closing.asked.insert(session);
        }
        if !closing.waiting.is_empty() || !closing.asked.is_empty() {
            return;
        }
        let closed = std::mem::take(&mut closing.closed);
        self.closing = None;
        let Some(board) = self.board.upgrade() else {
            return;
        };
        if !closed.is_empty() {
            board.cleaned(&self.name, &closed);
        }
        self.stale += closed.len();
        let left = board.moved_from(&self.name).len();
        let own = !self.release.is_released();
        self.release.handle_closed(now, left);
        if own && self.stale > 0 {
            // What came late, after it had returned.
            self.tell_returned(None);
        }
    }

    fn tell_returned(&mut self, how: Option<How>) {
        let closed = std::mem::take(&mut self.stale);
        if closed == 0 && how.is_none() {
            return;
        }
        // Whoever hears of it finds it in the snapshot.
        self.publish();
        if let Some(board) = self.board.upgrade() {
            board.event(Event::BackendReturned {
                backend: self.name.clone(),
                closed,
            });
        }
    }
}
