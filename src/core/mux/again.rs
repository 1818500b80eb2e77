//! Calls that are made once more: they were not executed, or it does no harm if they are twice.

use std::collections::VecDeque;

use super::{
    Context, Mux, Output,
    calls::{Call, Place},
    outbox::Outbox,
    own::Errand,
    session::Held,
    upstream::SlotId,
};
use crate::core::{
    event::{ClosedBy, Event, NotFound},
    id::SessionId,
    idmap::RequestId,
    replay::Effect,
    reply::{self, LostBy},
    route::Class,
};

/// How often a call is made once more that was not executed: a server may have cleaned the session up
/// twice, or another client closed it; one that opens it each time and then does not know it is broken.
const REPEATS: u8 = 3;

impl Mux {
    /// A call about an attached session was answered "not found". Opens it again; whether the call
    /// itself, which was not executed, is made once more then.
    pub(super) fn retry_not_found(
        &mut self,
        cx: &Context<'_>,
        slot: SlotId,
        id: &RequestId,
        call: &mut Call,
        out: &mut Outbox,
    ) -> Option<RetriedCall> {
        let key = self.key_of(call)?;
        let entry = &self.entries[key];
        if call.attaches() || call.attachment.is_none() {
            return None;
        }
        let again = entry.attached && call.attachment != Some(entry.attachments);
        if entry.reopening.is_some() || again {
            // Another call was answered so before it. A send would come behind later ones now.
            let sends = matches!(call.class, Class::Send(_));
            if again && sends {
                return Some(RetriedCall::Answered);
            }
            return Some(self.hold_again(cx, key, id, call));
        }
        if entry.slot != Some(slot) || !entry.attached || !self.may_reopen(key) {
            return None;
        }
        let backend = self.upstreams.get(slot)?.backend.clone();
        let session = entry.id.clone();
        self.outputs
            .push_back(Output::Event(Event::SessionNotFound {
                session: session.clone(),
                reason: NotFound::ClosedByBackend,
            }));
        self.outputs.push_back(Output::ClosedByBackend {
            session,
            backend: backend.clone(),
        });
        if matches!(call.class, Class::Send(_)) {
            // The turn that it was to start.
            let entry = &mut self.entries[key];
            entry.turn.take_if(|turn| !turn.confirmed);
        }
        self.closed_in_silence(cx, key, &backend, out);
        Some(self.hold_again(cx, key, id, call))
    }

    /// The backend does not have the session open (any more: idle cleanup and closes by others are
    /// silent, PROTOCOL §8).
    pub(super) fn lost_sight(
        &mut self,
        cx: &Context<'_>,
        slot: SlotId,
        call: &Call,
        out: &mut Outbox,
    ) {
        let (Some(session), Some(upstream)) = (&call.session, self.upstreams.get(slot)) else {
            return;
        };
        let backend = upstream.backend.clone();
        let attached = self.key_at(call, slot).filter(|key| {
            let entry = &self.entries[*key];
            // Only if it was attached when the call was made, and not once more since.
            entry.attached && call.attachment == Some(entry.attachments)
        });
        let reason = if attached.is_some() {
            NotFound::ClosedByBackend
        } else {
            NotFound::Unknown
        };
        self.outputs
            .push_back(Output::Event(Event::SessionNotFound {
                session: session.clone(),
                reason,
            }));
        if let Some(key) = attached {
            self.lose_turn(cx, key, &LostBy::Closed, ClosedBy::Backend, out);
            let closed = Output::Closed {
                session: session.clone(),
                backend,
            };
            self.closed(cx, Some(key), closed);
        }
    }

    /// The backend has let go of the client before it closed the session, so nobody needs that opened
    /// again. What the client has written since the detach is about it all the same.
    pub(super) fn left_while_away(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        detach: &Call,
        out: &mut Outbox,
    ) {
        let entry = &mut self.entries[key];
        let session = entry.id.clone();
        let (later, before) = std::mem::take(&mut entry.held)
            .into_iter()
            .partition(|held| {
                let call = self.calls.get(&held.call);
                call.is_some_and(|call| call.serial > detach.serial)
            });
        entry.held = before;
        self.leave_with(cx, session, later, out);
    }

    /// As [`Mux::left_while_away`], when it was being opened: that was told to be left only after
    /// the call of ours had gone out, which has its answer now.
    pub(super) fn left_while_opening(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        slot: SlotId,
        out: &mut Outbox,
    ) {
        let entry = &mut self.entries[key];
        let session = entry.id.clone();
        // Nobody knows any more which of these came before; those find it closed.
        let held = std::mem::take(&mut entry.held);
        if !held.iter().any(|held| held.purpose.attaches()) {
            let params = reply::session_params(session.as_str());
            let errand = Errand::Nobodys;
            self.call_own(cx, usize::MAX, slot, errand, "session.detach", &params, out);
        }
        self.leave_with(cx, session, held, out);
    }

    fn leave_with(
        &mut self,
        cx: &Context<'_>,
        session: SessionId,
        later: VecDeque<Held>,
        out: &mut Outbox,
    ) {
        self.held_bytes -= later.iter().map(|held| held.body.len()).sum::<usize>();
        self.forsake(cx, session.as_str(), out);
        if !later.is_empty() {
            self.requeue(session, later.into());
        }
    }

    /// A call that was not executed is made once more when its session is open again, before what
    /// was written later.
    fn hold_again(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        id: &RequestId,
        call: &mut Call,
    ) -> RetriedCall {
        let copy = call.copy.take().filter(|_| call.repeated < REPEATS);
        let Some(body) = copy else {
            return RetriedCall::Answered;
        };
        call.repeated += 1;
        let held = Held {
            call: id.clone(),
            purpose: Call::purpose(call.class),
            body,
            since: cx.now,
        };
        self.held_bytes += held.body.len();
        let held_before = &self.entries[key].held;
        let earlier = |held: &&Held| {
            let other = self.calls.get(&held.call);
            other.is_some_and(|other| other.serial < call.serial)
        };
        let at = held_before.iter().take_while(earlier).count();
        self.entries[key].held.insert(at, held);
        RetriedCall::Held
    }

    /// Calls that were with a backend when it died, or when it fell silent, and that may be made
    /// once more: held again, as if they had just come. The others come back.
    pub(super) fn hold_repeatable(
        &mut self,
        cx: &Context<'_>,
        lost: Vec<(RequestId, Box<Call>)>,
        died: bool,
    ) -> Vec<(RequestId, Box<Call>)> {
        let mut again: Vec<(SessionId, Vec<Held>)> = Vec::new();
        let mut rest = Vec::new();
        for (id, mut call) in lost {
            let repeats = if matches!(call.class, Class::Create | Class::Resume) {
                // Nothing came of it that anybody was told.
                died
            } else if died {
                call.class == Class::Session && call.effect.is_repeatable()
            } else {
                matches!(call.effect, Effect::Read | Effect::Answer)
            };
            // An answer may be given as often as it takes: the first one counts. And who is told that
            // it is lost does not give it again.
            let may = repeats && (call.repeated == 0 || call.effect == Effect::Answer);
            // One that waits to be vouched for has not left.
            let unsent = call.vouching.take().map(|vouching| vouching.body);
            let session = call.session.clone().filter(|_| may || unsent.is_some());
            // The copies of the others are counted until these are answered.
            let held = session.and_then(|session| {
                let body = match unsent {
                    Some(body) => body,
                    None => call.copy.take()?,
                };
                Some((session, body))
            });
            let Some((session, body)) = held else {
                rest.push((id, call));
                continue;
            };
            self.settle(cx, &call);
            self.note_unanswered(&call);
            self.held_bytes -= body.len();
            call.fallback = None;
            call.withheld = None;
            call.copy = None;
            call.repeated = call.repeated.max(1);
            call.place = Place::Held;
            let held = Held {
                call: id.clone(),
                purpose: Call::purpose(call.class),
                body,
                since: cx.now,
            };
            self.calls.insert(id, call);
            match again.iter_mut().find(|(s, _)| *s == session) {
                Some((_, list)) => list.push(held),
                None => again.push((session, vec![held])),
            }
        }
        for (session, list) in again {
            self.requeue(session, list);
        }
        rest
    }
}

/// What becomes of a call that was answered "not found".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RetriedCall {
    /// Made once more when the session is open again.
    Held,
    /// The client gets the answer: there is no copy of the call.
    Answered,
}
