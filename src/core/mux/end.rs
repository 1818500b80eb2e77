//! Endings: of an upstream connection, of the client's, of Taxiway itself. Who is told what, and
//! what becomes of everything that was under way.

use std::collections::VecDeque;

use super::{
    Asker, Context, Life, MAX_ATTEMPTS, Mux, Output,
    admission::REVOKED,
    calls::Place,
    note::Note,
    outbox::Outbox,
    reopening::Cause,
    session::{Held, Rest},
    upstream::{GivenUp, Phase, SlotId, Waiting},
};
use crate::core::{
    event::{CallOutcome, ClosedBy, Event, TurnOutcome},
    id::{BackendName, SessionId},
    idmap::BackendRequests,
    locate::Refusal,
    reply::{LostBy, ProxyError},
};

/// Whose fault it is that a connection was not made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Blame {
    Backend,
    Nobody,
}

impl Mux {
    /// Taxiway stops. No new work is taken; [`Output::Close`] comes when nothing runs any more.
    pub fn handle_drain(&mut self, cx: &Context<'_>, out: &mut Outbox) {
        if self.life == Life::Open {
            self.life = Life::Draining;
            self.refuse_waiting(cx, out);
            self.close_if_quiet();
        }
    }

    /// The time to drain is over: what still runs is ended honestly.
    pub fn handle_shutdown(&mut self, cx: &Context<'_>, out: &mut Outbox) {
        if self.life == Life::Closed {
            return;
        }
        self.cut(out);
        self.end_all_parked(cx, out);
        self.end_work(
            cx,
            &LostBy::Shutdown,
            ClosedBy::Operator,
            &ProxyError::Draining,
            out,
        );
        self.close("Taxiway is shutting down");
    }

    /// Tells the client of every turn and call that it hears no more of them, and why; `unsent` is
    /// for calls that never left.
    pub(super) fn end_work(
        &mut self,
        cx: &Context<'_>,
        cause: &LostBy,
        by: ClosedBy,
        unsent: &ProxyError,
        out: &mut Outbox,
    ) {
        for key in self.keys() {
            self.give_up_taking(cx, key);
            self.lose_turn(cx, key, cause, by, out);
        }
        // First, so that an answered send does not let the next one out.
        self.drop_queues();
        for (id, call) in self.drain_calls(|_| true) {
            // What is with a backend may have been executed: not to be repeated blindly.
            let left_for = call.at().filter(|_| call.vouching.is_none());
            let error = match left_for.and_then(|slot| self.backend_of(slot)) {
                Some(backend) => {
                    let method = call.method.as_str().to_owned();
                    ProxyError::BackendLost {
                        backend: backend.clone(),
                        method,
                    }
                }
                None => unsent.clone(),
            };
            self.answer_with_error(cx, &id, call, &error, out);
        }
    }

    /// The client closed its side, or its connection broke. Like the CLI, that is the end: Node's
    /// `stop()` waits for ours.
    /// [`Output::Park`] instead, if a turn goes on.
    pub fn handle_client_closed(&mut self, cx: &Context<'_>, out: &mut Outbox) {
        self.depart(cx, ClosedBy::Client, "client closed", true, out);
    }

    /// Nobody is left to hear of calls and turns: they are only counted.
    pub(super) fn abandon(&mut self, cx: &Context<'_>, by: ClosedBy) {
        self.drop_queues();
        for (_, call) in self.drain_calls(|_| true) {
            self.call_ended(cx, &call, CallOutcome::Abandoned);
            self.settle(cx, &call);
        }
        for key in self.keys() {
            self.end_turn(cx, key, TurnOutcome::Lost, by);
        }
    }

    /// Everything that waits here for something is dropped. Its calls stay in the table, as calls
    /// that never left.
    pub(super) fn drop_queues(&mut self) {
        for slot in self.upstreams.ids() {
            let Some(upstream) = self.upstreams.get_mut(slot) else {
                continue;
            };
            for Waiting { call, body } in upstream.waiting.drain(..) {
                self.held_bytes -= body.len();
                let Some(record) = call.and_then(|id| self.calls.get_mut(&id)) else {
                    continue;
                };
                record.place = Place::Held;
                upstream.calls -= 1;
            }
        }
        for (_, entry) in &mut self.entries {
            for held in entry.held.drain(..).chain(entry.sends.drain(..)) {
                self.held_bytes -= held.body.len();
            }
            entry.gate = None;
            entry.locating = None;
        }
        for (_, question) in self.questions.drain() {
            if let super::place::Question::Call(held) = question {
                self.held_bytes -= held.body.len();
            }
        }
        self.gates.clear();
    }

    /// The end of this machine. Calls and turns have been dealt with.
    pub(super) fn close(&mut self, reason: &'static str) {
        if self.life == Life::Closed {
            return;
        }
        debug_assert!(
            self.calls.is_empty(),
            "every call is answered or abandoned first"
        );
        self.drop_queues();
        self.life = Life::Closed;
        // What nobody waits for must not be started, least of all a claim in the directory.
        self.outputs.retain(|output| {
            !matches!(
                output,
                Output::Locate(_) | Output::Serve(_) | Output::Connect { .. }
            )
        });
        for key in self.keys() {
            let entry = self.entries.remove(key);
            if let Some(taking) = &entry.taking {
                self.held_bytes -= taking.held_bytes();
                let (to, note) = (taking.from, Note::GivenUp(entry.id.clone()));
                self.outputs.push_back(Output::Tell { to, note });
            }
            if entry.claimed {
                self.outputs.push_back(Output::Release(entry.id));
            }
        }
        self.by_session.clear();
        self.claimed = 0;
        self.waiting = 0;
        self.own.clear();
        self.watches.clear();
        for slot in self.upstreams.ids() {
            self.part_with(slot);
        }
        self.requests = BackendRequests::default();
        self.partial_since = None;
        self.drop_locks();
        self.outputs.push_back(Output::Close { reason });
    }

    pub(super) fn close_if_quiet(&mut self) {
        let ends = self.life == Life::Draining || self.is_revoked();
        let ends = ends && self.is_heard() && self.passing.is_none();
        if ends && self.calls.is_empty() && self.open_turns() == 0 {
            let reason = if self.life == Life::Draining {
                "drained"
            } else {
                REVOKED
            };
            self.close(reason);
        }
    }

    /// This connection no longer hears the session.
    pub(super) fn detached(&mut self, cx: &Context<'_>, key: usize) {
        self.give_up_taking(cx, key);
        self.end_turn(cx, key, TurnOutcome::Lost, ClosedBy::Client);
        self.change_entry(cx.now, key, |entry| {
            entry.attached = false;
            entry.kept = None;
            entry.rest = Rest::Nothing;
            entry.forget_asked();
        });
    }

    /// The session is closed for everybody, so the directory, told by `news`, counts nobody. If this
    /// connection is about to open it again there, it must stay there: it is counted anew.
    pub(super) fn closed(&mut self, cx: &Context<'_>, key: Option<usize>, news: Output) {
        if let Some(key) = key {
            self.detached(cx, key);
            self.unclaim(key);
        }
        self.outputs.push_back(news);
        if let Some(key) = key {
            if self.entries[key].is_here() {
                self.claim(key);
            }
            self.settle_entry(key);
        }
    }

    /// Closes an upstream connection that nothing needs.
    pub(super) fn part_with(&mut self, slot: SlotId) {
        self.upstreams.remove(slot);
        self.passing.take_if(|passing| *passing == slot);
        self.own.retain(|own| own.slot != slot);
        self.requests.forget(Asker::Upstream(slot));
        for (_, entry) in &mut self.entries {
            if entry.slot == Some(slot) {
                entry.slot = None;
            }
        }
        self.outputs.push_back(Output::CloseUpstream { slot });
    }

    /// The backend broke the protocol: nothing it says from here on can be trusted.
    pub(super) fn violated(
        &mut self,
        cx: &Context<'_>,
        slot: SlotId,
        what: &'static str,
        out: &mut Outbox,
    ) {
        let Some(upstream) = self.upstreams.get_mut(slot) else {
            return;
        };
        upstream.in_frame = false;
        let backend = upstream.backend.clone();
        self.outputs.push_back(Output::Violation { backend, what });
        self.outputs.push_back(Output::CloseUpstream { slot });
        self.handle_upstream_closed(cx, slot, what, out);
    }

    /// A backend has said nothing for so long that the pool does not count on it. It may only be
    /// stopped or cut off for a while, so its connection, what is attached there and its turns
    /// stay; but nobody is left waiting: calls are answered now, and a late answer is swallowed.
    pub fn handle_backend_silent(
        &mut self,
        cx: &Context<'_>,
        backend: &BackendName,
        out: &mut Outbox,
    ) {
        let Some(slot) = self.upstreams.find(backend) else {
            return;
        };
        // One that is not ready has its own deadline.
        let Some(upstream) = self
            .upstreams
            .get_mut(slot)
            .filter(|u| u.phase == Phase::Ready)
        else {
            return;
        };
        upstream.silent.get_or_insert(cx.now);
        // First, so that an answered send does not let the next one out.
        for key in self.keys() {
            let Some(entry) = self.entries.get_mut(key) else {
                continue;
            };
            if entry.slot != Some(slot) || entry.reopening.is_some() {
                continue;
            }
            let sends = std::mem::take(&mut entry.sends);
            let held = std::mem::replace(&mut entry.held, sends);
            entry.held.extend(held);
            self.note_waiting(key);
        }
        let unanswered = self.drain_calls(|call| call.at() == Some(slot) && !call.passing);
        let owed = unanswered.iter().filter(|(_, c)| c.is_owed());
        if let Some(upstream) = self.upstreams.get_mut(slot) {
            upstream.given_up.extend(owed.map(|(id, call)| {
                let (class, session) = (call.class, call.session.clone());
                (id.clone(), GivenUp { class, session })
            }));
        }
        for (id, call) in self.hold_repeatable(cx, unanswered, false) {
            let method = call.method.as_str().to_owned();
            let error = ProxyError::BackendLost {
                backend: backend.clone(),
                method,
            };
            self.answer_with_error(cx, &id, call, &error, out);
        }
        // What waits for a session to be opened there looks for it elsewhere now.
        for key in self.keys() {
            if !self.entries[key].is_here() {
                self.locate(key);
            }
        }
        self.close_if_quiet();
    }

    /// As [`Mux::handle_upstream_closed`], for one that Taxiway itself has closed: that it ended in
    /// the middle of a frame is not the backend's fault.
    pub fn handle_upstream_dropped(
        &mut self,
        cx: &Context<'_>,
        slot: SlotId,
        why: &'static str,
        out: &mut Outbox,
    ) {
        if let Some(upstream) = self.upstreams.get_mut(slot) {
            upstream.in_frame = false;
        }
        self.handle_upstream_closed(cx, slot, why, out);
    }

    /// An upstream connection could not be made, or has ended. Safe to call for a slot that is
    /// gone already.
    pub fn handle_upstream_closed(
        &mut self,
        cx: &Context<'_>,
        slot: SlotId,
        why: &'static str,
        out: &mut Outbox,
    ) {
        self.upstream_ended(cx, slot, (why, Blame::Backend), out);
    }

    /// The same, of one that could not be made for want of something of Taxiway's own: that tells
    /// nothing of the backend.
    pub fn handle_upstream_unmade(
        &mut self,
        cx: &Context<'_>,
        slot: SlotId,
        why: &'static str,
        out: &mut Outbox,
    ) {
        self.upstream_ended(cx, slot, (why, Blame::Nobody), out);
    }

    fn upstream_ended(
        &mut self,
        cx: &Context<'_>,
        slot: SlotId,
        (why, blame): (&'static str, Blame),
        out: &mut Outbox,
    ) {
        let cut = self.is_cut_by(slot, out);
        self.parked_lost(cx, slot);
        let Some(mut upstream) = self.upstreams.remove(slot) else {
            return;
        };
        let backend = upstream.backend;
        self.requests.forget(Asker::Upstream(slot));
        if upstream.in_frame {
            let what = "closed the connection in the middle of a frame";
            self.outputs.push_back(Output::Violation {
                backend: backend.clone(),
                what,
            });
        }
        self.own.retain(|own| own.slot != slot);
        let reached = upstream.phase == Phase::Ready;
        if !reached && blame == Blame::Backend {
            self.outputs.push_back(Output::Unreachable {
                backend: backend.clone(),
            });
        }

        if !reached {
            upstream.waiting.extend(self.unvouched(slot));
        }
        let mut turns = 0;
        let mut unsent = Vec::new();
        for key in self.keys() {
            let ours = self.entries[key].slot == Some(slot);
            // What was to be taken over went with it: the client's call sets out anew.
            let taken = ours.then(|| self.give_up_taking(cx, key)).flatten();
            match taken {
                Some(held) if reached => {
                    unsent.push((self.entries[key].id.clone(), VecDeque::from([held])));
                }
                Some(Held { call, body, .. }) => {
                    self.held_bytes += body.len();
                    let call = Some(call);
                    upstream.waiting.push(Waiting { call, body });
                }
                None => {}
            }
            let entry = &self.entries[key];
            let gate_at = entry
                .gate
                .as_ref()
                .map(|gate| self.calls.get(&gate.call)?.at());
            // A send may be under way where its session is not any more, and the other way round.
            let sends_end = match gate_at.flatten() {
                Some(at) if at == slot => ours || !reached,
                Some(_) => false,
                None => ours,
            };
            let reopens = ours && self.may_reopen(key);
            let mut turn_lost = false;
            if ours {
                let turn = entry.turn.as_ref().is_some_and(|turn| turn.confirmed);
                turn_lost = self.lose_or_keep_turn(cx, key, &backend, out);
                turns += usize::from(turn && turn_lost);
                let entry = &mut self.entries[key];
                entry.slot = None;
                entry.attached = false;
                entry.attaching = 0;
            }
            if sends_end {
                self.gates.retain(|(_, k)| *k != key);
                let entry = &mut self.entries[key];
                entry.gate = None;
                let sends = std::mem::take(&mut entry.sends);
                self.held_bytes -= sends.iter().map(|held| held.body.len()).sum::<usize>();
                unsent.push((entry.id.clone(), sends));
            }
            if let Some(since) = upstream.silent.filter(|_| ours) {
                let silence = cx.now.saturating_duration_since(since);
                self.entries[key].stand_still(silence);
            }
            if reopens && reached {
                self.start_reopening(cx, key, &backend, turn_lost, Cause::Connection);
            } else if reopens {
                self.pause(cx, key, out);
            } else if ours {
                self.release(key);
            }
        }

        // What never left is in `waiting` and sets out anew; of what left nobody knows.
        let lost = if reached {
            self.drain_calls(|call| call.at() == Some(slot))
        } else {
            Vec::new()
        };
        let calls = lost.len();
        let lost = self.hold_repeatable(cx, lost, true);
        for (id, call) in lost {
            let method = call.method.as_str().to_owned();
            let error = ProxyError::BackendLost {
                backend: backend.clone(),
                method,
            };
            self.answer_with_error(cx, &id, call, &error, out);
        }
        if reached {
            self.outputs.push_back(Output::Event(Event::UpstreamLost {
                connection: self.id,
                backend: backend.clone(),
                calls,
                turns,
                reason: why.into(),
            }));
        }
        self.set_out_again(cx, upstream.waiting, unsent, &backend, out);
        for key in self.keys() {
            self.settle_entry(key);
        }
        self.close_if_quiet();
        self.close_if_empty();
        if cut {
            self.leave_cut(cx, out);
        }
    }

    /// Calls that never left set out anew, in the order written: those that waited for the
    /// handshake, then the sends behind them, then what was held for the next location anyway.
    fn set_out_again(
        &mut self,
        cx: &Context<'_>,
        waiting: Vec<Waiting>,
        unsent: Vec<(SessionId, VecDeque<Held>)>,
        unreachable: &BackendName,
        out: &mut Outbox,
    ) {
        let mut again: Vec<(SessionId, Vec<Held>)> = Vec::new();
        for Waiting { call, body } in waiting {
            self.held_bytes -= body.len();
            // Notifications of the client are only for where a session is.
            let Some(id) = call else { continue };
            let Some(record) = self.calls.get_mut(&id) else {
                continue;
            };
            record.place = Place::Held;
            record.avoided.push(unreachable.clone());
            let body = match record.fallback.take() {
                Some(original) => {
                    self.held_bytes -= original.len();
                    original.into_vec()
                }
                None => body,
            };
            let held = Held {
                purpose: super::calls::Call::purpose(record.class),
                body,
                since: record.since,
                call: id,
            };
            let session = record.session.clone();
            if record.avoided.len() >= MAX_ATTEMPTS {
                let why = Refusal::Unreachable(unreachable.clone());
                self.fail(
                    cx,
                    &held.call,
                    &ProxyError::NotLocated { session, why },
                    out,
                );
                continue;
            }
            match session {
                Some(session) => match again.iter_mut().find(|(s, _)| *s == session) {
                    Some((_, list)) => list.push(held),
                    None => again.push((session, vec![held])),
                },
                None => self.place_call(held),
            }
        }
        for (session, sends) in unsent {
            match again.iter_mut().find(|(s, _)| *s == session) {
                Some((_, list)) => list.extend(sends),
                None if sends.is_empty() => {}
                None => again.push((session, sends.into())),
            }
        }
        for (session, list) in again {
            self.requeue(session, list);
        }
    }
}
