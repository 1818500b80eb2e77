//! Turns that say nothing: counted, told to operators, and ended if that is configured.
//!
//! A turn is looked at once in `sessions.turn_stall`, not with each event: so a stall is noticed
//! after at most twice that time, and events cost nothing.

use super::{Context, Mux, Output, outbox::Outbox};
use crate::core::{
    event::{ClosedBy, Event},
    reply::LostBy,
};

impl Mux {
    /// A turn of this session has begun.
    pub(super) fn watch(&mut self, cx: &Context<'_>, key: usize) {
        if let Some(stall) = cx.settings.turn_stall {
            self.watches.push((cx.now + stall, key));
        }
    }

    /// Its turn is over.
    pub(super) fn unwatch(&mut self, key: usize) {
        if !self.watches.is_empty() {
            self.watches.retain(|(_, k)| *k != key);
        }
    }

    /// Looks at the turns whose time has come.
    pub(super) fn look_for_stalls(&mut self, cx: &Context<'_>, out: &mut Outbox) {
        while let Some(at) = self.watches.iter().position(|(at, _)| *at <= cx.now) {
            let (_, key) = self.watches.swap_remove(at);
            let Some(stall) = cx.settings.turn_stall else {
                continue;
            };
            // What waits for the client is not stalled: a person may take any time.
            let asked = self.entries.contains(key) && self.is_asked(key);
            // Nor is what is in the middle of a frame, or behind one: that has a deadline of its own.
            let speaks = self
                .entries
                .get(key)
                .is_some_and(|e| self.is_in_frame(e.slot));
            let Some(entry) = self.entries.get_mut(key) else {
                continue;
            };
            let slot = entry.slot;
            let waits = asked || speaks || !entry.asked.is_empty() || entry.reopening.is_some();
            let Some(turn) = entry.turn.as_mut() else {
                continue;
            };
            let silent = turn.events == turn.events_seen && !waits;
            turn.events_seen = turn.events;
            let before = std::mem::replace(&mut turn.stalled, silent);
            self.watches.push((cx.now + stall, key));
            let backend = slot.and_then(|slot| self.upstreams.get(slot));
            let Some(backend) = backend.map(|u| u.backend.clone()) else {
                continue;
            };
            if silent != before {
                self.outputs.push_back(Output::TurnSilent {
                    backend: backend.clone(),
                    silent,
                });
            }
            if !silent || before {
                continue;
            }
            let session = self.entries[key].id.clone();
            let ended = cx.settings.ends_stalled;
            self.outputs.push_back(Output::Event(Event::TurnStalled {
                connection: self.id,
                session,
                backend,
                silent_for: stall,
                ended,
            }));
            if ended {
                self.end_stalled(cx, key, out);
            }
        }
    }

    /// The client is told that its turn is over, and the backend that it is to end it.
    fn end_stalled(&mut self, cx: &Context<'_>, key: usize, out: &mut Outbox) {
        self.lose_turn(cx, key, &LostBy::Stalled, ClosedBy::Proxy, out);
        self.abort_all(cx, key, out);
        self.settle_entry(key);
        self.close_if_quiet();
    }
}
