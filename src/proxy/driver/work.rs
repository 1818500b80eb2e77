//! What a connection has under way besides its sockets: connects, searches, calls that are answered
//! here. An idle connection has none, and no room for it.

use std::task::{Context, Poll};

use futures_util::{StreamExt, stream::FuturesUnordered};

use super::Done;
use crate::proxy::port::Boxed;

/// The work; each piece is asked only when it has something to say.
#[derive(Default)]
pub(super) struct Work(Option<FuturesUnordered<Boxed<Done>>>);

impl Work {
    pub(super) fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(FuturesUnordered::is_empty)
    }

    pub(super) fn push(&mut self, work: Boxed<Done>) {
        self.0.get_or_insert_default().push(work);
    }

    pub(super) fn clear(&mut self) {
        self.0 = None;
    }

    /// What a piece has ended with; none if nothing has ended, and the task is woken when something
    /// does.
    #[inline]
    pub(super) fn poll_next(&mut self, task: &mut Context<'_>) -> Option<Done> {
        match self.0.as_mut()?.poll_next_unpin(task) {
            Poll::Ready(Some(done)) => Some(done),
            Poll::Ready(None) => {
                self.0 = None;
                None
            }
            Poll::Pending => None,
        }
    }
}
