//! What has come by the time that something is handled: taken with it, so that many sessions which
//! are opened together cost one write, one look at the deadlines and one publication, not one each.

use std::time::Instant;

use tokio::sync::{mpsc, watch};

use super::{Command, Link, Target, Watch};

/// So much at a time: then deadlines are looked at.
const TOGETHER: usize = 64;

impl Watch {
    /// What came in the same read.
    pub(super) fn handle_rest(&mut self, now: Instant) {
        for _ in 1..TOGETHER {
            match self.link.as_mut().map(|link| link.next_of_read(now)) {
                Some(Ok(Some(incoming))) => self.handle_incoming(now, incoming),
                Some(Err(error)) => return self.handle_link_error(now, &error),
                Some(Ok(None)) | None => return,
            }
        }
    }

    /// Commands that wait behind one, up to a change: a question that was asked after it is for who
    /// is there after it. So first it is seen that a question waits, then that nothing has changed
    /// before it was asked.
    pub(super) fn handle_more(
        &mut self,
        now: Instant,
        target: &watch::Receiver<Target>,
        commands: &mut mpsc::Receiver<Command>,
    ) {
        for _ in 1..TOGETHER {
            let has_room = !self.moved && self.link.as_mut().is_none_or(Link::has_room);
            if !has_room || commands.is_empty() || target.has_changed().unwrap_or(true) {
                return;
            }
            let Ok(command) = commands.try_recv() else {
                return;
            };
            self.handle_command(now, command);
        }
    }
}
