//! Waiting for a backend: how long the calls of a session do whose backend is away or says nothing,
//! and what goes on when it is heard again.

use std::{collections::VecDeque, time::Instant};

use super::{
    Context, Mux, Output, Settings,
    calls::Call,
    kept::request_of,
    outbox::Outbox,
    reopening::Stage,
    session::{Asked, Held},
    upstream::SlotId,
};
use crate::core::{
    event::ClosedBy,
    id::BackendName,
    idmap::RequestId,
    locate::{Purpose, Refusal},
    replay::Effect,
    reply::{LostBy, ProxyError},
    snapshot::Mode,
};

impl Mux {
    /// What a call is told whose session is away for too long.
    pub(super) fn away(&self, cx: &Context<'_>, key: usize) -> ProxyError {
        let entry = &self.entries[key];
        let at = entry.reopening.as_ref().map(|r| r.from.clone());
        let at = at.or_else(|| {
            let slot = entry.slot.and_then(|slot| self.upstreams.get(slot));
            slot.map(|u| u.backend.clone())
        });
        let why = match cx.snapshot().mode {
            Mode::Sticky => at.map(Refusal::HomeAway),
            Mode::SharedStorage => at.map(Refusal::OwnerAway),
        };
        let why = why.unwrap_or(Refusal::NoBackend);
        ProxyError::NotLocated {
            session: Some(entry.id.clone()),
            why,
        }
    }

    /// Whether calls for this session wait for a backend that says nothing.
    pub(super) fn is_silent_here(&self, key: usize) -> bool {
        let slot = self.entries[key].here_at();
        slot.and_then(|slot| self.upstreams.get(slot))
            .is_some_and(|u| u.silent.is_some())
    }

    /// Keeps the count of sessions that have a deadline of this room.
    pub(super) fn note_waiting(&mut self, key: usize) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let waits = entry.reopening.is_some()
            || entry.taking.is_some()
            || entry.parked.is_some()
            || entry.locating.is_none() && !entry.held.is_empty();
        let before = std::mem::replace(&mut entry.waits, waits);
        self.waiting = self.waiting + usize::from(waits) - usize::from(before);
    }

    /// When [`Mux::lose_patience`] has something to do.
    pub(super) fn next_patience(&self, settings: &Settings) -> Option<Instant> {
        if self.waiting == 0 {
            return None;
        }
        let entries = self.entries.iter().filter(|(_, entry)| entry.waits);
        entries
            .flat_map(|(_, entry)| {
                let pause = entry.reopening.as_ref().and_then(|r| match r.stage {
                    Stage::Pausing(at) => Some(at),
                    Stage::Locating(_) | Stage::Calling | Stage::Frozen => None,
                });
                let held = entry
                    .held
                    .front()
                    .map(|held| held.since + settings.home_wait);
                let taking = entry.taking.as_ref().and_then(|taking| taking.until);
                let parked = entry.parked.as_ref().and_then(|parked| parked.until);
                pause.into_iter().chain(held).chain(taking).chain(parked)
            })
            .min()
    }

    /// Calls that have waited for too long are told so; what has paused goes on.
    pub(super) fn lose_patience(&mut self, cx: &Context<'_>, out: &mut Outbox) {
        if self.waiting == 0 {
            return;
        }
        for key in self.keys() {
            let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.waits) else {
                continue;
            };
            let rests = entry
                .reopening
                .as_ref()
                .is_some_and(|r| matches!(r.stage, Stage::Pausing(at) if at <= cx.now));
            let late = entry
                .held
                .iter()
                .take_while(|held| held.since + cx.settings.home_wait <= cx.now)
                .count();
            if late > 0 {
                let late: VecDeque<Held> = entry.held.drain(..late).collect();
                let error = self.away(cx, key);
                for held in &late {
                    self.answer_fails(cx, key, &held.call, &held.body, out);
                }
                self.fail_held(cx, late, &error, out);
            }
            if rests {
                self.seek(key);
            }
            let is_due = |until: Option<Instant>| until.is_some_and(|until| until <= cx.now);
            let taking = self.entries[key].taking.as_ref();
            if taking.is_some_and(|taking| is_due(taking.until)) {
                self.taking_too_long(cx, key, out);
            }
            let parked = self
                .entries
                .get(key)
                .and_then(|entry| entry.parked.as_ref());
            if parked.is_some_and(|parked| is_due(parked.until)) {
                self.parked_too_long(cx, key, out);
            }
            self.note_waiting(key);
            self.settle_entry(key);
        }
        self.close_if_quiet();
    }

    /// What the client says to a question of its turn cannot be passed on. SDKs do not say it again
    /// (or say something else), so the turn would wait for ever: it is told as over, and aborted
    /// when its backend is there.
    pub(super) fn answer_fails(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        call: &RequestId,
        body: &[u8],
        out: &mut Outbox,
    ) {
        let answers = |call: &Call| call.effect == Effect::Answer;
        if !self.calls.get(call).is_some_and(answers) {
            return;
        }
        let entry = &self.entries[key];
        let request = request_of(body);
        let waits = |asked: &Asked| Some(&asked.id) == request.as_ref();
        if !entry.asked.iter().any(waits) {
            return;
        }
        let from = entry.reopening.as_ref().map(|r| r.from.clone());
        let here = || self.upstreams.get(entry.slot?).map(|u| u.backend.clone());
        if let Some(backend) = from.or_else(here) {
            let cause = LostBy::Backend(backend);
            self.lose_turn(cx, key, &cause, ClosedBy::Backend, out);
            self.abort_all(cx, key, out);
        }
    }

    /// The backend of this upstream connection speaks again: what waited for it goes on.
    pub(super) fn speaks(&mut self, cx: &Context<'_>, slot: SlotId, out: &mut Outbox) {
        let Some(upstream) = self.upstreams.get_mut(slot) else {
            return;
        };
        upstream.silent = None;
        for key in self.keys() {
            if self.entries.get(key).and_then(|entry| entry.here_at()) == Some(slot) {
                // All this time it could say nothing.
                self.watch_survivor(cx, key);
            }
            let waits = self.entries.get(key).is_some_and(|entry| {
                entry.waits && entry.reopening.is_none() && entry.here_at() == Some(slot)
            });
            if waits {
                self.release_held(cx, key, slot, Purpose::Use, false, out);
                self.note_waiting(key);
                self.settle_entry(key);
            }
        }
    }

    /// The pool counts on the backend again.
    pub fn handle_backend_back(
        &mut self,
        cx: &Context<'_>,
        backend: &BackendName,
        out: &mut Outbox,
    ) {
        if let Some(slot) = self.upstreams.find(backend)
            && self.upstreams.get(slot).is_some_and(|u| u.silent.is_some())
        {
            self.speaks(cx, slot, out);
        }
    }

    /// The backend is given up: what it has open is opened elsewhere, so nothing that it says any
    /// more may reach the client.
    pub fn handle_backend_released(
        &mut self,
        cx: &Context<'_>,
        backend: &BackendName,
        out: &mut Outbox,
    ) {
        if let Some(slot) = self.upstreams.find(backend) {
            self.outputs.push_back(Output::CloseUpstream { slot });
            self.handle_upstream_dropped(cx, slot, "the backend was given up", out);
        }
    }
}
