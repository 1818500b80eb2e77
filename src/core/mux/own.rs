//! Calls of Taxiway's own on a client's upstream connections, under ids that no client uses.

use super::{
    Context, Mux,
    outbox::{Dest, Outbox},
    reopening::Step,
    session::Rest,
    turn::frame,
    upstream::{Phase, SlotId, Waiting},
    vouch::LastWord,
};
use crate::core::{id::SessionId, idmap::RequestId, reply};

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
    /// The step of a reopening that it is.
    pub(super) fn step(&self) -> Option<Step> {
        if let Errand::Reopen(step) = self.errand {
            return Some(step);
        }
        None
    }
}

/// What it is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Errand {
    /// A step of opening a session again.
    Reopen(Step),
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
    /// Has the session asked what this call answers? The number tells questions apart.
    Vouch(RequestId, u64),
    /// The same, of a call whose client has left meanwhile.
    VouchLate(Box<LastWord>),
    /// Does the turn of this session go on, which is this connection's to watch?
    Inherit(SessionId),
    /// A session is left that was opened when nobody waited for it any more.
    Undo(SessionId),
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

    /// Whether what is told of a session is told only until it is left again: nobody has it open here.
    pub(super) fn is_undoing(&self, slot: SlotId, session: &str) -> bool {
        let undoes =
            |own: &Own| matches!(&own.errand, Errand::Undo(undone) if undone.as_str() == session);
        self.own.iter().any(|own| own.slot == slot && undoes(own))
    }

    /// The answer to a call of ours, if it is one.
    pub(super) fn take_own(&mut self, slot: SlotId, id: &RequestId) -> Option<Own> {
        let at = self
            .own
            .iter()
            .position(|own| own.slot == slot && own.id == *id)?;
        Some(self.own.swap_remove(at))
    }

    /// Which session a call of ours is about.
    pub(super) fn session_of(&self, own: &Own) -> Option<SessionId> {
        if let Errand::Vouch(call, _) = &own.errand {
            return self.calls.get(call)?.session.clone();
        }
        if let Errand::VouchLate(word) = &own.errand {
            return word.session.clone();
        }
        self.entries.get(own.key).map(|entry| entry.id.clone())
    }

    /// What follows from its answer: the room that has asked knows.
    pub(super) fn handle_own_answer(
        &mut self,
        cx: &Context<'_>,
        own: &Own,
        answer: &OwnAnswer<'_>,
        out: &mut Outbox,
    ) {
        let key = own.key;
        match &own.errand {
            Errand::Reopen(step) => self.step_done(cx, (own, *step), answer, out),
            Errand::Save(Some(call)) => self.let_go(cx, own.slot, call, out),
            Errand::Join => self.joined(cx, key, answer, out),
            Errand::OpenInFull => self.opened_in_full(cx, key, answer.succeeded, out),
            Errand::Halt => self.halted(cx, key, out),
            Errand::Leave => self.left(cx, key, out),
            Errand::Quell => {
                self.quelled(key, own.slot);
                self.pass_next_send(cx, key, out);
            }
            Errand::Vouch(call, ticket) => {
                self.vouched(cx, own.slot, (call, *ticket), answer, out);
            }
            Errand::VouchLate(word) => self.vouched_late(own.slot, word, answer, out),
            Errand::Inherit(session) => self.inherited(cx, session, own.slot, answer),
            Errand::Save(None) | Errand::Undo(_) | Errand::Nobodys => {}
        }
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
