//! Turns that say nothing: counted, told to operators, and ended if that is configured.
//!
//! A turn is looked at once in `sessions.turn_stall`, not with each event: so a stall is noticed
//! after at most twice that time, and events cost nothing.
//!
//! A turn that goes on after a failover is watched in any case, until the model is asked again. A
//! server that dies between two writes leaves one that is answered, as far as its log says, and whose
//! next step nothing will take. Mostly that shows when the session is opened (see `reopen`); where it
//! does not, silence is what is left of it. A server that goes on says so at once.

use std::time::Duration;

use super::{Context, Mux, Output, outbox::Outbox, tells::Tells, upstream::SlotId};
use crate::core::{
    event::{ClosedBy, Event},
    reply::LostBy,
};

/// For so long a turn that goes on after a failover may say nothing, while nobody owes it an answer.
/// By experiment the next event comes within milliseconds of the answer; a starved machine is slower.
const DOUBT: Duration = Duration::from_secs(15);

impl Mux {
    /// A turn of this session has begun.
    pub(super) fn watch(&mut self, cx: &Context<'_>, key: usize) {
        if let Some(stall) = cx.settings.turn_stall {
            self.watches.push((cx.now + stall, key));
        }
    }

    /// The session is open again. If its turn goes on, it has to say so.
    pub(super) fn watch_survivor(&mut self, cx: &Context<'_>, key: usize) {
        let entry = &mut self.entries[key];
        let awaits = entry.awaits_answer();
        if let Some(turn) = entry.turn.as_deref_mut().filter(|turn| turn.doubtful) {
            turn.events_seen = if awaits { u64::MAX } else { turn.events };
            self.unwatch(key);
            self.watches.push((cx.now + DOUBT, key));
        }
    }

    /// Its turn is over, or not looked at any more.
    pub(super) fn unwatch(&mut self, key: usize) {
        if !self.watches.is_empty() {
            self.watches.retain(|(_, k)| *k != key);
        }
        self.count_no_more(key);
    }

    /// If its turn was counted as silent, it is no more, wherever that was.
    pub(super) fn count_no_more(&mut self, key: usize) {
        let turn = self.entries.get_mut(key);
        let turn = turn.and_then(|entry| entry.turn.as_mut());
        if let Some(backend) = turn.and_then(|turn| turn.stalled.take()) {
            let silent = false;
            self.outputs
                .push_back(Output::TurnSilent { backend, silent });
        }
    }

    /// Looks at the turns whose time has come.
    pub(super) fn look_for_stalls(&mut self, cx: &Context<'_>, out: &mut Outbox) {
        while let Some(at) = self.watches.iter().position(|(at, _)| *at <= cx.now) {
            let (_, key) = self.watches.swap_remove(at);
            let turn = self.entries.get(key).and_then(|e| e.turn.as_deref());
            let doubtful = turn.is_some_and(|turn| turn.doubtful);
            let period = if doubtful {
                Some(DOUBT)
            } else {
                cx.settings.turn_stall
            };
            let Some(stall) = period else { continue };
            // What waits for the client is not stalled: a person may take any time.
            let asked = self.entries.contains(key) && self.is_asked(key);
            // Nor is what is in the middle of a frame, or behind one: that has a deadline of its own.
            let speaks = self
                .entries
                .get(key)
                .is_some_and(|e| self.is_in_frame(e.slot));
            // Nor is one whose server is silent as a whole: that is told otherwise.
            let stands = self.entries.contains(key) && self.is_silent_here(key);
            let Some(entry) = self.entries.get_mut(key) else {
                continue;
            };
            let slot = entry.slot;
            let awaits = entry.awaits_answer() || entry.reopening.is_some();
            let Some(turn) = entry.turn.as_mut() else {
                continue;
            };
            let works = doubtful && turn.works > 0;
            let waits = asked || speaks || stands || awaits || works;
            let silent = turn.events == turn.events_seen && !waits;
            // Its silence counts from the next look on.
            turn.events_seen = if waits { u64::MAX } else { turn.events };
            let before = turn.stalled.is_some();
            self.watches.push((cx.now + stall, key));
            let backend = slot.and_then(|slot| self.upstreams.get(slot));
            let Some(backend) = backend.map(|u| u.backend.clone()) else {
                continue;
            };
            if !silent {
                self.count_no_more(key);
            } else if let Some(turn) = self.entries[key].turn.as_mut().filter(|_| !before) {
                turn.stalled = Some(backend.clone());
                self.outputs.push_back(Output::TurnSilent {
                    backend: backend.clone(),
                    silent,
                });
            }
            let ended = if doubtful {
                self.may_end_doubtful(cx, key)
            } else {
                cx.settings.ends_stalled
            };
            // Whoever may not say so now may be the one to do so later.
            if !silent || before && !(doubtful && ended) {
                continue;
            }
            let session = self.entries[key].id.clone();
            self.outputs.push_back(Output::Event(Event::TurnStalled {
                connection: self.id,
                session,
                backend,
                silent_for: stall,
                ended,
            }));
            match slot {
                Some(slot) if ended && doubtful => self.end_doubtful(cx, key, slot, out),
                _ if ended => self.end_stalled(cx, key, out),
                _ => {}
            }
        }
    }

    /// What the server was heard to do, or to have done, in a turn that may have been forgotten there.
    pub(super) fn note_work(&mut self, key: usize, tells: Tells) {
        let turn = self.entries[key].turn.as_deref_mut();
        if let Some(turn) = turn.filter(|turn| turn.doubtful) {
            turn.works = if tells == Tells::Rests {
                turn.works.saturating_sub(1)
            } else {
                turn.works.saturating_add(1)
            };
        }
    }

    /// Of those who have the session open only one may say so: another one's abort could end the next
    /// turn.
    fn may_end_doubtful(&mut self, cx: &Context<'_>, key: usize) -> bool {
        if self.is_quelling(key) {
            return false;
        }
        let session = &self.entries[key].id;
        let alone = !cx.commons.has_others(session.as_str(), self.id);
        alone || self.locks.hold_of(session).is_some()
    }

    /// It does not go on.
    fn end_doubtful(&mut self, cx: &Context<'_>, key: usize, slot: SlotId, out: &mut Outbox) {
        let entry = &mut self.entries[key];
        let Some(turn) = &mut entry.turn else { return };
        let shared = cx.commons.has_others(entry.id.as_str(), self.id);
        // It may say that it has, and no end.
        if shared && !std::mem::replace(&mut turn.quelled, true) {
            return self.abort_for_all(cx, key, slot, out);
        }
        self.lose_survivor(cx, key, out);
        self.abort_all(cx, key, out);
        self.settle_entry(key);
        self.close_if_quiet();
    }

    /// The client is told that its turn is over, and the backend that it is to end it.
    fn end_stalled(&mut self, cx: &Context<'_>, key: usize, out: &mut Outbox) {
        self.lose_turn(cx, key, &LostBy::Stalled, ClosedBy::Proxy, out);
        self.abort_all(cx, key, out);
        self.settle_entry(key);
        self.close_if_quiet();
    }
}
