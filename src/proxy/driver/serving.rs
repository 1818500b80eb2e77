//! Calls that Taxiway executes itself, over control connections. Their answers may be large, and they
//! are nobody's bytes until they are written to the client: so a few calls are under way at a time,
//! and none is begun for a client that does not take what waits for it. The others wait as calls,
//! which `limits.calls_per_connection` bounds, and `limits.frame` their params. Executes nothing itself.

use std::collections::VecDeque;

use super::{Done, Driver};
use crate::{
    core::mux::{Serve, Service},
    proxy::{port::Boxed, services},
};

/// How many of one client are under way at a time.
const AT_ONCE: usize = 4;

/// Those of one client that are not answered.
#[derive(Default)]
pub(super) struct Serving {
    /// Not begun, in the order of the calls.
    waiting: VecDeque<(u64, Boxed<Done>)>,
    /// Tickets of those that are.
    begun: Vec<u64>,
}

impl Driver {
    /// Has a call executed, now or when others are answered.
    pub(super) fn serve(&mut self, call: Serve) {
        let ticket = call.ticket;
        // What a client says to a server that waits for it must not wait for anything.
        let waits = !matches!(call.service, Service::Provider(_) | Service::ByRequestId);
        let future = services::serve(&self.shared, &self.rules, self.id, call);
        let future: Boxed<Done> = Box::pin(async move { Done::Served(ticket, future.await) });
        if waits {
            let serving = self.serving.get_or_insert_default();
            serving.waiting.push_back((ticket, future));
        } else {
            self.work.push(future);
        }
    }

    /// Begins with what may begin.
    pub(super) fn begin_serving(&mut self) {
        let is_full = self.client_is_full();
        let Some(serving) = self.serving.as_mut().filter(|_| !is_full) else {
            return;
        };
        while serving.begun.len() < AT_ONCE
            && let Some((ticket, future)) = serving.waiting.pop_front()
        {
            serving.begun.push(ticket);
            self.work.push(future);
        }
    }

    /// This one is not to be executed any more, if it has not begun.
    pub(super) fn unserve(&mut self, ticket: u64) {
        self.change_serving(|serving| serving.waiting.retain(|(waiting, _)| *waiting != ticket));
    }

    /// The client has left: nobody waits for those that have not begun.
    pub(super) fn stop_serving(&mut self) {
        self.change_serving(|serving| serving.waiting.clear());
    }

    /// This one is executed.
    pub(super) fn end_serving(&mut self, ticket: u64) {
        self.change_serving(|serving| serving.begun.retain(|begun| *begun != ticket));
    }

    /// Takes some out. Most connections never have any, and keep no room for them.
    fn change_serving(&mut self, change: impl FnOnce(&mut Serving)) {
        if let Some(serving) = &mut self.serving {
            change(serving);
            if serving.begun.is_empty() && serving.waiting.is_empty() {
                self.serving = None;
            }
        }
    }
}
