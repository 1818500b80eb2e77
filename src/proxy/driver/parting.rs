//! The client has left and its machine lives on: what becomes of its socket, and what the two
//! machines say to each other when a session changes hands.

use std::time::Instant;

use super::{Done, Driver, LINGER, Message, Task};
use crate::{
    core::{
        event::{ClosedBy, Event, NotAdmitted},
        id::{ConnectionId, SessionId},
        mux::{Context, Note},
    },
    proxy::{
        Shared, desk, front,
        lobby::{EVICTED, Seat},
        outbuf::OutBuf,
        port::Boxed,
    },
    transport::Stream,
};

impl Driver {
    /// The client's connection ends here; the rest of the task goes on for these sessions.
    pub(super) fn park(&mut self, reason: &'static str, sessions: &[SessionId]) {
        {
            let mut directory = self.shared.store.lock();
            for session in sessions {
                directory.park(session.as_str(), self.id);
            }
        }
        self.shared.store.announce();
        self.shared.providers.leave(self.id);
        self.stop_serving();
        let out = std::mem::take(&mut self.client_out);
        if let Some(client) = self.client.take()
            && !self.client_gone
            && !out.is_empty()
        {
            self.work.push(see_off(client, out));
        }
        self.client_gone = true;
        self.client_in = Vec::new();
        self.say_closed(reason);
    }

    /// The client has said something: its connection is worth lines of its own. Where it has to say who
    /// it is, it has.
    pub(super) fn say_opened(&mut self) {
        if !std::mem::replace(&mut self.said_opened, true) {
            self.seat = None;
            self.shared.observer.record(&Event::ConnectionOpened {
                connection: self.id,
                client: self.peer,
            });
        }
    }

    /// It may have to make room before it has said who it is.
    pub(super) fn poll_seat(&mut self, now: Instant, task: &mut Task<'_>) -> bool {
        let is_called = |seat: &Seat| seat.poll_called(task).is_ready();
        if self.client_gone || !self.seat.as_deref().is_some_and(is_called) {
            return false;
        }
        self.send_away((NotAdmitted::Evicted, EVICTED));
        self.step(now, task, &[], |_, _, _| 0);
        true
    }

    /// The client's connection has ended; said and counted once.
    pub(super) fn say_closed(&mut self, reason: &'static str) {
        if std::mem::replace(&mut self.said_closed, true) {
            return;
        }
        let reason = self.gone_why.unwrap_or(reason);
        let closed_by = match reason {
            "client closed" => ClosedBy::Client,
            "drained" | "Taxiway is shutting down" => ClosedBy::Operator,
            _ => ClosedBy::Proxy,
        };
        self.shared.observer.metrics().downstream_closed();
        if !self.said_opened {
            let why = self.not_admitted;
            let why = why.unwrap_or_else(|| front::came_to_nothing(closed_by, reason));
            let closed = (why, reason.to_owned());
            let Shared {
                doorman, observer, ..
            } = &*self.shared;
            doorman.book.note(observer, self.peer, closed);
            return;
        }
        self.shared.observer.record(&Event::ConnectionClosed {
            connection: self.id,
            client: self.peer,
            closed_by,
            reason: reason.into(),
            duration: self.opened.elapsed(),
        });
    }

    pub(super) fn tell(&mut self, cx: &Context<'_>, to: ConnectionId, note: Note) {
        let message = Message::Note(self.id, note.clone());
        if !self.shared.hub.send(to, message) {
            // It may have been given the turn with it.
            desk::leave(&self.shared.store, &self.shared.hub, to);
            self.mux.handle_untold(cx, &note, &mut self.out);
        }
    }
}

/// Writes what is left for a client, for a while, and closes its connection.
fn see_off(mut client: Stream, mut out: OutBuf) -> Boxed<Done> {
    Box::pin(async move {
        let written = std::future::poll_fn(|task| {
            let flushed = out.flush(&mut client, Instant::now(), task);
            if flushed.is_err() || out.is_empty() {
                std::task::Poll::Ready(())
            } else {
                std::task::Poll::Pending
            }
        });
        let _late = tokio::time::timeout(LINGER, written).await;
        Done::SeenOff
    })
}
