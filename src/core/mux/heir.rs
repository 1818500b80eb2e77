//! A turn that goes on when the connection that had its lock does not hear it any more (it has left,
//! say): another one that hears the session is to say when it is over.
//!
//! That one may have come in the middle, or hear late what the other knew. So it does not go by what
//! it has heard, but asks the backend: the answer comes behind every event that was told before it.
//! And it was told what the turn waits for. Whoever has the lock was asked all of that, or gives the
//! lock to somebody who was; a turn that nobody is left to answer is aborted (DESIGN §5).

use std::time::Instant;

use super::{
    Context, Mux, Output,
    outbox::Outbox,
    own::{Errand, OwnAnswer},
    session::Rest,
    upstream::SlotId,
};
use crate::core::{id::SessionId, reply, turnlock::Parting};

impl Mux {
    /// Who had the turn of `session` does not hear it any more: this connection is to say when it is
    /// over. It waits for `asked`.
    pub fn handle_turn_inherited(
        &mut self,
        cx: &Context<'_>,
        session: &SessionId,
        asked: &[String],
        out: &mut Outbox,
    ) {
        if self.is_closed() {
            return self.part_with_turn(session, Parting::Unheard(asked.to_vec()));
        }
        self.handle_turn_taken(cx.now, session);
        if let Some(hold) = self.locks.hold_of(session) {
            hold.unasked = asked.to_vec();
        }
        if let Some(key) = self.by_session.get(session).copied() {
            self.note_given(key);
        }
        self.ask_whether_it_runs(cx, session, out);
    }

    /// The process of the session is gone: of what its client has answered lately, only this
    /// connection can say what became of it. Should it leave before it has, others have to know.
    pub(super) fn note_given(&mut self, key: usize) {
        let entry = &self.entries[key];
        if let Some(hold) = self.locks.hold_of(&entry.id) {
            let given = entry.given_lately();
            hold.given = given.filter_map(|given| asked_in(&given.params)).collect();
        }
    }

    /// Whether the turn that was inherited, should it go on in the process that has just opened the
    /// session, is nobody's: no client that is left knows of it.
    pub(super) fn is_only_heir(&mut self, cx: &Context<'_>, key: usize) -> bool {
        let entry = &self.entries[key];
        let hold = self.locks.hold_of(&entry.id);
        entry.turn.is_none()
            && hold.is_some_and(|hold| !hold.unasked.is_empty())
            && !cx.commons.has_others(entry.id.as_str(), self.id)
    }

    /// The session is open again: what was inherited while it was not is looked after.
    pub(super) fn look_after_turn(&mut self, cx: &Context<'_>, key: usize, out: &mut Outbox) {
        let entry = &self.entries[key];
        let (session, aborted) = (entry.id.clone(), entry.rest != Rest::Nothing);
        let Some(hold) = self.locks.hold_of(&session) else {
            return;
        };
        hold.given.clear();
        if aborted {
            hold.unasked.clear();
        } else if !hold.unasked.is_empty() {
            self.ask_whether_it_runs(cx, &session, out);
        }
    }

    /// This connection is to say when the turn of `session` is over, which it hears.
    pub fn handle_turn_taken(&mut self, now: Instant, session: &SessionId) {
        if self.is_closed() {
            return self.part_with_turn(session, Parting::Unheard(Vec::new()));
        }
        self.locks.take(session, now);
    }

    fn part_with_turn(&mut self, session: &SessionId, parting: Parting) {
        self.locks.forget(session);
        let session = session.clone();
        self.outputs
            .push_back(Output::TurnOver { session, parting });
    }

    /// Nobody who hears the session was asked what its turn waits for, which stays this
    /// connection's: it would stand for ever.
    pub fn handle_turn_orphaned(
        &mut self,
        cx: &Context<'_>,
        session: &SessionId,
        out: &mut Outbox,
    ) {
        self.handle_turn_taken(cx.now, session);
        let Some((key, slot)) = self.heard_at(session) else {
            return;
        };
        if self.entries[key].turn.is_some() {
            self.abort_for_all(cx, key, slot, out);
        }
    }

    /// The entry of a session that is open here, and where. No abort of ours is under way there: that
    /// ends whatever runs.
    fn heard_at(&self, session: &SessionId) -> Option<(usize, SlotId)> {
        let key = *self.by_session.get(session)?;
        let entry = &self.entries[key];
        let here = entry.attached && entry.reopening.is_none() && entry.rest != Rest::Runs;
        entry.slot.filter(|_| here).map(|slot| (key, slot))
    }

    fn ask_whether_it_runs(&mut self, cx: &Context<'_>, session: &SessionId, out: &mut Outbox) {
        if let Some((key, slot)) = self.heard_at(session) {
            let (method, errand) = (
                "session.metadata.isProcessing",
                Errand::Inherit(session.clone()),
            );
            let params = reply::session_params(session.as_str());
            self.call_own(cx, key, slot, errand, method, &params, out);
        }
    }

    /// A turn has ended. It may be the one before the one that is asked for, or the answer may have
    /// been made before the end, and come after it.
    pub(super) fn ask_again(&mut self, cx: &Context<'_>, key: usize, out: &mut Outbox) {
        let session = &self.entries[key].id;
        let asks = Errand::Inherit(session.clone());
        let asked = self.own.iter_mut().find(|own| own.errand == asks);
        if let Some(own) = asked {
            own.errand = Errand::Nobodys;
            let session = session.clone();
            if let Some(hold) = self.locks.hold_of(&session).filter(|h| h.is_sending()) {
                // What runs now may be this connection's own.
                hold.unasked.clear();
            }
            self.ask_whether_it_runs(cx, &session, out);
        }
    }

    /// The answer to that.
    pub(super) fn inherited(
        &mut self,
        cx: &Context<'_>,
        session: &SessionId,
        slot: SlotId,
        answer: &OwnAnswer<'_>,
    ) {
        let Some((key, here)) = self.heard_at(session) else {
            return;
        };
        let Some(hold) = self.locks.hold_of(session).filter(|_| here == slot) else {
            return;
        };
        let mut unasked = std::mem::take(&mut hold.unasked);
        if memchr::memmem::find(answer.result, br#""processing":true"#).is_none() {
            return;
        }
        // What was told as over ran before this one.
        self.entries[key].rest = Rest::Nothing;
        self.confirm_turn(cx, key);
        unasked.retain(|id| !self.entries[key].has_heard_of(id));
        if !unasked.is_empty() {
            self.part_with_turn(session, Parting::Unasked(unasked));
        }
    }
}

/// The `requestId` that these params of an answer name.
pub(super) fn asked_in(params: &str) -> Option<String> {
    let params: serde_json::Value = serde_json::from_str(params).ok()?;
    Some(params.get("requestId")?.as_str()?.to_owned())
}
