//! Calls of Taxiway's own on a client's upstream connections, under ids that no client uses.

use super::{
    Context, Mux,
    outbox::{Dest, Outbox},
    session::Rest,
    turn::frame,
    upstream::{Phase, SlotId, Waiting},
};
use crate::core::{idmap::RequestId, reply};

/// A call of our own that a backend owes an answer.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) id: RequestId,
    pub(super) slot: SlotId,
    /// Of this entry.
    pub(super) key: usize,
    pub(super) errand: Errand,
}

impl Own {
    /// Whether it is a step of a reopening.
    pub(super) fn reopens(&self) -> bool {
        !matches!(
            self.errand,
            Errand::Save(_)
                | Errand::Nobodys
                | Errand::Join
                | Errand::OpenInFull
                | Errand::Halt
                | Errand::Leave
                | Errand::Quell
        )
    }
}

/// What it is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Errand {
    Resume,
    Create,
    /// An answer that the turn has had is given again, in case it was not on disk.
    Answer,
    /// Does the turn that waits for the client go on?
    IsProcessing,
    Abort,
    Repeat,
    /// What was acknowledged goes to disk; the answer to this call waits for that.
    Save(Option<RequestId>),
    /// The first step of taking a session over.
    Join,
    /// The last one.
    OpenInFull,
    /// The turn of a session whose client has left is aborted.
    Halt,
    /// Such a session is left.
    Leave,
    /// A turn that the client was told to be over is aborted where it may still run.
    Quell,
    /// Nobody wants its answer any more.
    Nobodys,
}

/// The answer to a call of our own.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnAnswer<'a> {
    pub(super) succeeded: bool,
    /// It says that the session is not there.
    pub(super) not_found: bool,
    /// The result, as JSON text.
    pub(super) result: &'a [u8],
}

impl Mux {
    /// Makes one.
    #[allow(
        clippy::too_many_arguments,
        reason = "each names one fact of the one step"
    )]
    pub(super) fn call_own(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        slot: SlotId,
        errand: Errand,
        method: &str,
        params: &str,
        out: &mut Outbox,
    ) {
        self.next_serial += 1;
        // No SDK makes such ids, and a client that did would be told that this one is taken.
        let id = RequestId::from_text(&format!("taxiway-{}", self.next_serial));
        let body = reply::request_body(id.token().as_bytes(), method, params);
        self.own.push(Own {
            id,
            slot,
            key,
            errand,
        });
        let Some(upstream) = self.upstreams.get_mut(slot) else {
            return;
        };
        upstream.note_idle(cx.now);
        if upstream.phase == Phase::Ready {
            out.write(Dest::Upstream(slot), |b| frame(b, &body));
        } else {
            self.held_bytes += body.len();
            upstream.waiting.push(Waiting { call: None, body });
        }
    }

    /// The answer to a call of ours, if it is one.
    pub(super) fn take_own(&mut self, slot: SlotId, id: &RequestId) -> Option<Own> {
        let at = self
            .own
            .iter()
            .position(|own| own.slot == slot && own.id == *id)?;
        Some(self.own.swap_remove(at))
    }

    /// Whether an abort of ours is not answered yet where the session is: a send that came to its
    /// turn there before it would be dropped with what the abort is for.
    pub(super) fn is_quelling(&self, key: usize) -> bool {
        let here = |own: &Own| self.entries[key].slot == Some(own.slot);
        self.own
            .iter()
            .any(|own| own.key == key && own.errand == Errand::Quell && here(own))
    }

    /// The backend at `slot` has taken note of our abort.
    pub(super) fn quelled(&mut self, key: usize, slot: SlotId) {
        if let Some(entry) = self.entries.get_mut(key)
            && entry.slot == Some(slot)
            && entry.rest == Rest::Runs
        {
            entry.rest = Rest::Ends;
        }
    }
}
