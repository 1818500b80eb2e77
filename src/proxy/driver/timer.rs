//! Deadlines: of the multiplexer, of peers that do not read, of frames that do not end.

use std::time::Instant;

use super::{Driver, Task, upstreams::End};
use crate::{core::mux::SlotId, proxy::outbuf::OutBuf};

impl Driver {
    pub(super) fn poll_timer(&mut self, now: Instant, task: &mut Task<'_>) -> bool {
        let Some(now) = self.arm(now, task) else {
            return false;
        };
        self.armed = None;
        let stall = self.rules.write_stall;
        let stalled = |out: &OutBuf| out.stalled_since().is_some_and(|at| now >= at + stall);
        if stalled(&self.client_out) {
            self.shared
                .observer
                .metrics()
                .limit_hit("listener.write_stall");
            self.gone_why = Some("the client read nothing for listener.write_stall");
            self.client_gone = true;
            self.step(now, task, &[], |_, _, _| 0);
            return true;
        }
        let stuck: Vec<SlotId> = self
            .upstreams
            .iter()
            .flatten()
            .filter(|u| stalled(&u.output))
            .map(|u| u.slot)
            .collect();
        for slot in &stuck {
            self.end_upstream(
                now,
                task,
                *slot,
                End::Given("the backend read nothing for too long"),
            );
        }
        if !stuck.is_empty() {
            // The client was not read because of it: what it owes is not due yet.
            self.mux.handle_client_unread(now);
            return true;
        }
        let patience = self.rules.mux.frame_timeout;
        let cut: Vec<SlotId> = self
            .upstreams
            .iter()
            .flatten()
            .filter(|u| !self.is_held_back(u.slot))
            .filter(|u| u.partial_since.is_some_and(|at| now >= at + patience))
            .map(|u| u.slot)
            .collect();
        for slot in cut {
            // The multiplexer knows that this is a violation.
            let why = "the backend stopped in the middle of a frame";
            self.end_upstream(now, task, slot, End::Met(why));
        }
        self.step(now, task, &[], |mux, cx, out| {
            mux.handle_timeout(cx, out);
            0
        });
        true
    }

    /// Sets the timer to the next deadline; if one is due, what time it is.
    fn arm(&mut self, now: Instant, task: &mut Task<'_>) -> Option<Instant> {
        let (stall, patience) = (self.rules.write_stall, self.rules.mux.frame_timeout);
        // A loop, since this is asked on each wake-up.
        let mut next = self.mux.poll_timeout(&self.rules.mux);
        let mut sooner = |at: Option<Instant>, wait| {
            if let Some(at) = at.map(|at| at + wait) {
                next = Some(next.map_or(at, |next| next.min(at)));
            }
        };
        sooner(self.client_out.stalled_since(), stall);
        // Backends are not read while the client takes nothing, so they cannot be late then.
        for upstream in self.upstreams.iter().flatten() {
            sooner(upstream.output.stalled_since(), stall);
            let is_read = !self.is_held_back(upstream.slot);
            sooner(upstream.partial_since.filter(|_| is_read), patience);
        }
        let next = next?;
        if next <= now {
            return Some(now);
        }
        // A deadline that has moved away, as most do, leaves the timer as it is: setting it takes a
        // lock that all threads share.
        if self.armed.is_none_or(|at| next < at) {
            self.arm_at(next);
        } else if self.is_asleep && self.armed.is_some_and(|at| now < at) {
            // It knows whom to wake: a task has one waker as long as it lives.
            return None;
        }
        if self.sleep.as_mut().poll(task).is_pending() {
            // One that was asked when the task had used up its budget has not heard whom to wake.
            self.is_asleep = tokio::task::coop::has_budget_remaining();
            return None;
        }
        self.arm_at(next);
        // The timer knows better than this turn's moment.
        let is_due = self.sleep.as_mut().poll(task).is_ready();
        is_due.then_some(next)
    }

    fn arm_at(&mut self, at: Instant) {
        self.armed = Some(at);
        self.is_asleep = false;
        self.sleep.as_mut().reset(at.into());
    }
}
