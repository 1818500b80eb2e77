//! Sessions that are moved on purpose: each client's machine stands still with a session when
//! nothing of it is under way, says so, and opens it again when it was closed where it was. Who
//! moves what, and when, is the mover's business.

use super::{
    Asker, Context, Mux, Output,
    calls::Call,
    outbox::Outbox,
    own::Errand,
    reopening::{Cause, Stage},
    session::Rest,
    upstream::{GivenUp, SlotId, Waiting},
};
use crate::core::{
    event::{ClosedBy, TakeOverResult},
    id::{BackendName, SessionId},
    locate::Purpose,
    reply::{self, LostBy, ProxyError},
    route::Class,
};

/// A wish to move a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Freeze {
    /// Names the move, for [`Output::Frozen`].
    pub ticket: u64,
    /// Not when it suits, but now: what is under way is told to be lost.
    pub force: bool,
}

impl Mux {
    /// The session is to be moved away from this backend: [`Output::Frozen`] comes as soon as
    /// nothing of it is under way here. From then on its calls wait.
    pub fn handle_freeze(
        &mut self,
        cx: &Context<'_>,
        session: &str,
        backend: &BackendName,
        freeze: Freeze,
        out: &mut Outbox,
    ) {
        let Some(key) = self.by_session.get(session).copied() else {
            // It holds nothing any more, or not yet; the directory knows which.
            return;
        };
        let entry = &mut self.entries[key];
        if let Some(reopening) = &entry.reopening {
            if reopening.stage == Stage::Frozen {
                self.say_frozen(key, freeze.ticket);
            }
            return;
        }
        let at = entry.slot.and_then(|slot| self.upstreams.get(slot));
        if at.is_none_or(|upstream| upstream.backend != *backend) {
            return;
        }
        if entry.parked.is_some() {
            // It is left as soon as its turn ends.
            if freeze.force {
                self.leave(cx, key, TakeOverResult::Expired, out);
            }
            return;
        }
        entry.freeze = Some(freeze);
        self.freezing = true;
        if freeze.force {
            self.clear_way(cx, key, backend, out);
        }
        self.try_freezes(cx);
    }

    /// Looks whether the moment has come that a move waits for; after everything that may have
    /// ended something.
    pub(super) fn try_freezes(&mut self, cx: &Context<'_>) {
        if !self.freezing {
            return;
        }
        for key in self.keys() {
            self.try_freeze(cx, key);
        }
        self.freezing = self
            .entries
            .iter()
            .any(|(_, entry)| entry.freeze.is_some() && entry.reopening.is_none());
    }

    /// What is under way is told to be lost.
    fn clear_way(&mut self, cx: &Context<'_>, key: usize, backend: &BackendName, out: &mut Outbox) {
        let cause = LostBy::Drained(backend.clone());
        let in_turn = self.entries[key].turn.is_some();
        self.lose_turn(cx, key, &cause, ClosedBy::Operator, out);
        if in_turn {
            self.abort_rest(cx, key, out);
        }
        self.give_up_calls(cx, key, backend, |_| true, out);
    }

    /// Calls about this session that are with `backend` are answered as lost.
    fn give_up_calls(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        backend: &BackendName,
        which: impl Fn(&Call) -> bool,
        out: &mut Outbox,
    ) {
        let entry = &self.entries[key];
        let (session, slot) = (entry.id.clone(), entry.slot);
        let under_way = self.drain_calls(|call| {
            call.session.as_ref() == Some(&session)
                && call.at() == slot
                && !call.passing
                && which(call)
        });
        for (id, call) in under_way {
            let mut has_left = call.vouching.is_none();
            if let Some(upstream) = slot.and_then(|slot| self.upstreams.get_mut(slot)) {
                let waits = |w: &Waiting| w.call.as_ref() == Some(&id);
                if let Some(at) = upstream.waiting.iter().position(waits) {
                    // It has not left, so nothing answers it.
                    self.held_bytes -= upstream.waiting.remove(at).body.len();
                    has_left = false;
                } else if call.is_owed() {
                    // Its answer may come still.
                    let (class, session) = (call.class, call.session.clone());
                    upstream
                        .given_up
                        .insert(id.clone(), GivenUp { class, session });
                }
            }
            let error = if has_left {
                ProxyError::BackendLost {
                    backend: backend.clone(),
                    method: call.method.as_str().to_owned(),
                }
            } else {
                ProxyError::BackendUnavailable {
                    session: Some(session.clone()),
                    backend: Some(backend.clone()),
                }
            };
            self.answer_with_error(cx, &id, call, &error, out);
        }
    }

    /// Nobody can end the turn any more, and others have its session open. They may hear of its end
    /// before this connection has told its client anything else, and take it for completed; so its
    /// client is told nothing, and hears the end that the backend tells to all. Who opens the session
    /// there later finds that nothing runs.
    pub(super) fn abort_for_all(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        slot: SlotId,
        out: &mut Outbox,
    ) {
        let entry = &mut self.entries[key];
        entry.void_until_lost();
        let params = reply::session_params(entry.id.as_str());
        let errand = Errand::Quell;
        self.call_own(cx, key, slot, errand, "session.abort", &params, out);
    }

    /// The client was told that its turn is over: nothing of it may go on, here or in the process
    /// that opens the session next.
    pub(super) fn abort_rest(&mut self, cx: &Context<'_>, key: usize, out: &mut Outbox) {
        let entry = &mut self.entries[key];
        entry.turn = None;
        entry.void_asked();
        entry.rest = Rest::Runs;
        let Some(slot) = entry.here_at().filter(|_| entry.reopening.is_none()) else {
            return;
        };
        let params = reply::session_params(entry.id.as_str());
        let errand = Errand::Quell;
        self.call_own(cx, key, slot, errand, "session.abort", &params, out);
    }

    /// As [`Mux::abort_rest`], with the sends that are under way: they fall under the abort, since
    /// they are in the queue that it drops, or will be once they are acknowledged.
    pub(super) fn abort_all(&mut self, cx: &Context<'_>, key: usize, out: &mut Outbox) {
        self.abort_rest(cx, key, out);
        let here = self.entries[key].here_at();
        let backend = here.and_then(|slot| self.upstreams.get(slot));
        if let Some(backend) = backend.map(|upstream| upstream.backend.clone()) {
            let sends = |call: &Call| matches!(call.class, Class::Send(_));
            self.give_up_calls(cx, key, &backend, sends, out);
        }
    }

    /// Stands still with the session if that is wished for, and nothing of it is under way.
    fn try_freeze(&mut self, cx: &Context<'_>, key: usize) {
        let Some(entry) = self.entries.get(key) else {
            return;
        };
        let (Some(freeze), Some(slot)) = (entry.freeze, entry.slot) else {
            return;
        };
        let still = entry.attached
            && entry.attaching == 0
            && entry.turn.is_none()
            && entry.gate.is_none()
            && (entry.sends.is_empty() || self.awaits_turn(key))
            && entry.held.is_empty()
            && entry.locating.is_none()
            && entry.reopening.is_none()
            && entry.taking.is_none();
        let moves = entry.kept.as_ref().is_some_and(|kept| !kept.tainted);
        if !still || !(moves || freeze.force) {
            return;
        }
        let session = Some(&entry.id);
        let calls = self
            .calls
            .count(|call| call.session.as_ref() == session && call.at() == Some(slot));
        let saves = self.own.iter().any(|own| own.key == key);
        if !freeze.force && (calls > 0 || saves || self.is_asked(key)) {
            return;
        }
        let Some(from) = self.upstreams.get(slot).map(|u| u.backend.clone()) else {
            return;
        };
        self.freeze(cx, key, &from);
        self.say_frozen(key, freeze.ticket);
    }

    fn say_frozen(&mut self, key: usize, ticket: u64) {
        let session = self.entries[key].id.clone();
        self.outputs.push_back(Output::Lost(session.clone()));
        self.outputs.push_back(Output::Frozen { session, ticket });
    }

    /// The move does not take place: what has waited goes on where it is.
    pub fn handle_thaw(&mut self, cx: &Context<'_>, session: &str, out: &mut Outbox) {
        let Some(key) = self.by_session.get(session).copied() else {
            return;
        };
        self.entries[key].freeze = None;
        let Some(slot) = self.entries[key].slot.filter(|_| self.is_frozen(key)) else {
            return;
        };
        self.change_entry(cx.now, key, |entry| {
            entry.reopening = None;
            entry.attached = true;
        });
        let session = self.entries[key].id.clone();
        self.outputs.push_back(Output::Attached(session));
        self.note_waiting(key);
        self.release_held(cx, key, slot, Purpose::Resume, false, out);
        self.pass_next_send(cx, key, out);
        self.settle_entry(key);
    }

    /// The session was closed where it was.
    pub fn handle_moved(&mut self, cx: &Context<'_>, session: &SessionId, out: &mut Outbox) {
        let Some(key) = self.by_session.get(session).copied() else {
            return;
        };
        self.entries[key].freeze = None;
        if !self.is_frozen(key) {
            return;
        }
        if self.entries[key].kept.is_some() {
            let from = self.entries[key].reopening.as_ref().map(|r| r.from.clone());
            if let Some(from) = from {
                self.start_reopening(cx, key, &from, false, Cause::Moved);
            }
        } else {
            // Nobody knows how to open it again but the client itself.
            let error = self.away(cx, key);
            self.give_up(cx, key, &error, out);
        }
    }

    fn is_frozen(&self, key: usize) -> bool {
        let reopening = self.entries[key].reopening.as_ref();
        reopening.is_some_and(|r| r.stage == Stage::Frozen)
    }

    /// Whether the client owes an answer to a request of this session; one that names none may be
    /// of any session of its upstream connection.
    pub(super) fn is_asked(&self, key: usize) -> bool {
        let entry = &self.entries[key];
        let here = entry.slot.map(Asker::Upstream);
        self.requests
            .iter()
            .any(|(_, asker, request)| match &request.session {
                Some(session) => *session == entry.id,
                None => Some(asker) == here,
            })
    }
}
