//! Sessions whose upstream connection has ended, or which their backend has closed in silence: each
//! client's machine opens them again by itself, with calls of its own, while the client's calls
//! wait. Where they are opened is the directory's decision, by way of the shell.

use std::{collections::VecDeque, time::Duration};

use super::{
    Context, Locate, Located, Mux, Output,
    heir::asked_in,
    kept::handle_of,
    outbox::Outbox,
    own::{Errand, Own, OwnAnswer},
    place::Question,
    reopening::{Cause, Progress, Reopening, Stage, Step},
    session::{Entry, Held, Rest, Turn},
    tells::is_aborted,
};
use crate::core::{
    event::{ClosedBy, Event, ReopenResult, TurnOutcome},
    id::BackendName,
    locate::Purpose,
    reopen::{self, Form},
    reply::{self, LostBy, ProxyError},
};

/// How often opening it may fail before it is given up, and how long after the first failure it is
/// tried again; twice as long after each further one.
const ATTEMPTS: u32 = 8;
const PAUSE: Duration = Duration::from_millis(50);

impl Mux {
    // Losing.

    /// Whether the session can be opened again if it is lost now.
    pub(super) fn may_reopen(&self, key: usize) -> bool {
        let entry = &self.entries[key];
        entry.reopening.is_some() || entry.attached && entry.kept.is_some()
    }

    /// Whether its turn goes on in the process that opens it again: it waits for the client alone.
    pub(super) fn turn_survives(&self, key: usize) -> bool {
        let entry = &self.entries[key];
        let turn = entry.turn.as_ref();
        let in_turn = turn.is_some_and(|turn| turn.confirmed && !turn.unkept);
        let waits = !entry.asked.is_empty() || !entry.answers.is_empty();
        in_turn && waits && self.may_reopen(key)
    }

    /// The session is not heard any more: it is opened again. `turn_lost`: its turn was told as
    /// lost.
    pub(super) fn start_reopening(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        from: &BackendName,
        turn_lost: bool,
        cause: Cause,
    ) {
        self.abandon_errands(key);
        self.gates.retain(|(_, k)| *k != key);
        self.forget_question(key);
        let mut reopening = Reopening::new(cx.now, cause, from, Stage::Pausing(cx.now));
        if let Some(was) = &self.entries[key].reopening {
            reopening.since = was.since;
            reopening.failures = was.failures;
            // Nothing of it was under way: it is no loss that the backend has ended first.
            if was.cause == Cause::Moved {
                reopening.cause = Cause::Moved;
            }
        }
        self.count_no_more(key);
        self.change_entry(cx.now, key, |entry| {
            entry.slot = None;
            entry.attached = false;
            entry.attaching = 0;
            entry.gate = None;
            entry.reopening = Some(Box::new(reopening));
            entry.forget_answered();
            if turn_lost {
                entry.rest = Rest::Runs;
            } else if entry.rest == Rest::Ends {
                // Its end was to come over the connection that is gone. If there was nothing to
                // abort, none is on disk, and the next process goes on with what is pending there.
                let ended = cause != Cause::Connection;
                entry.rest = if ended { Rest::Nothing } else { Rest::Runs };
            }
            if let Some(turn) = &mut entry.turn {
                turn.outlives(from);
                entry.revive_asked();
            }
            let sends = std::mem::take(&mut entry.sends);
            let held = std::mem::replace(&mut entry.held, sends);
            entry.held.extend(held);
        });
        self.note_given(key);
        let session = self.entries[key].id.clone();
        self.outputs.push_back(Output::Lost(session));
        self.seek(key);
        self.note_waiting(key);
    }

    /// Stands still with a session that is open here.
    pub(super) fn freeze(&mut self, cx: &Context<'_>, key: usize, from: &BackendName) {
        let reopening = Reopening::new(cx.now, Cause::Moved, from, Stage::Frozen);
        self.change_entry(cx.now, key, |entry| {
            entry.attached = false;
            entry.reopening = Some(Box::new(reopening));
        });
        self.note_waiting(key);
    }

    /// The answers to what is under way for a reopening do not count any more.
    pub(super) fn abandon_errands(&mut self, key: usize) {
        for own in self.own.iter_mut().filter(|own| own.key == key) {
            if own.step().is_some() {
                own.errand = Errand::Nobodys;
            }
        }
    }

    /// The question of a client's call is not needed any more: the session is opened again anyway.
    pub(super) fn forget_question(&mut self, key: usize) {
        if let Some((ticket, _)) = self.entries[key].locating.take() {
            self.questions.remove(&ticket);
        }
        let asked = self.entries[key].reopening.as_ref().and_then(|r| r.asks());
        if let Some(ticket) = asked {
            self.questions.remove(&ticket);
        }
    }

    /// Asks where it is to be opened.
    pub(super) fn seek(&mut self, key: usize) {
        let ticket = self.ticket();
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let Some(reopening) = &mut entry.reopening else {
            return;
        };
        reopening.stage = Stage::Locating(ticket);
        let session = Some(entry.id.clone());
        self.questions.insert(ticket, Question::Reopen(key));
        self.outputs.push_back(Output::Locate(Locate {
            ticket,
            session,
            purpose: Purpose::Reopen,
            avoid: Vec::new(),
            principal: self.principal.clone(),
            also: Vec::new(),
        }));
    }

    /// Another connection has found that the backend has closed the session.
    pub fn handle_session_lost(
        &mut self,
        cx: &Context<'_>,
        session: &str,
        backend: &BackendName,
        out: &mut Outbox,
    ) {
        let Some(key) = self.by_session.get(session).copied() else {
            return;
        };
        let here = self.entries[key].slot.and_then(|s| self.upstreams.get(s));
        let theirs = here.is_some_and(|u| u.backend == *backend);
        if theirs && self.entries[key].parked.is_some() {
            self.parked_closed(cx, key, out);
            return;
        }
        if theirs && self.entries[key].attached && self.may_reopen(key) {
            self.closed_in_silence(cx, key, backend, out);
        }
    }

    /// The backend has closed the session without a word, and not for a client.
    pub(super) fn closed_in_silence(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        backend: &BackendName,
        out: &mut Outbox,
    ) {
        let in_turn = self.entries[key].turn.is_some();
        self.lose_turn(cx, key, &LostBy::Closed, ClosedBy::Backend, out);
        let entry = &mut self.entries[key];
        entry.turn = None;
        entry.forget_or_void(in_turn);
        self.start_reopening(cx, key, backend, in_turn, Cause::Closed);
    }

    /// What is held for a session that is open goes out.
    pub(super) fn goes_on(&mut self, cx: &Context<'_>, key: usize, out: &mut Outbox) {
        let entry = &self.entries[key];
        if let Some(slot) = entry
            .slot
            .filter(|_| entry.attached && entry.locating.is_none())
            && !self.is_silent_here(key)
        {
            self.release_held(cx, key, slot, Purpose::Use, false, out);
            self.note_waiting(key);
        }
    }

    /// Whether the client was told in other words what this event says: its turn is over.
    pub(super) fn is_told_already(&mut self, key: usize, kind: &[u8], body: &[u8]) -> bool {
        let entry = &mut self.entries[key];
        if entry.rest == Rest::Nothing || entry.parked.is_some() {
            return false;
        }
        match kind {
            b"abort" | b"assistant.idle" => {
                // What it asked before the abort was there.
                entry.void_asked();
                true
            }
            b"session.idle" => {
                // The next turn was acknowledged, and has not begun: it may be its end if it was
                // not aborted.
                let next = entry.turn.as_ref().is_some_and(|turn| turn.confirmed);
                let told = !next || is_aborted(body);
                if told {
                    entry.rest = Rest::Nothing;
                }
                told
            }
            _ => false,
        }
    }

    // Opening.

    /// The answer to the question of [`Mux::seek`].
    pub(super) fn reopen_located(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        answer: Result<Located, ProxyError>,
        out: &mut Outbox,
    ) {
        match answer {
            Ok(located) => {
                let slot = self.slot_for(cx, &located.backend);
                self.change_entry(cx.now, key, |entry| {
                    entry.slot = Some(slot);
                    entry.relation = located.relation;
                    if let Some(reopening) = &mut entry.reopening {
                        reopening.stage = Stage::Calling;
                        reopening.progress = Progress::default();
                    }
                });
                self.run(cx, key, Step::Resume, out);
            }
            Err(error) => self.give_up(cx, key, &error, out),
        }
    }

    /// Makes a call of our own.
    fn run(&mut self, cx: &Context<'_>, key: usize, step: Step, out: &mut Outbox) {
        let entry = &self.entries[key];
        let session = entry.id.as_str();
        let (Some(slot), Some(kept), Some(reopening)) = (entry.slot, &entry.kept, &entry.reopening)
        else {
            return;
        };
        let opens = |form: Form| {
            reopen::params(&kept.body, session, form).map(|params| (form.method(), params))
        };
        let call = match step {
            Step::Resume => opens(Form::Resume {
                keep_model: !kept.model_chosen,
                goes_on: self.knows_of_work(cx, key),
            }),
            Step::Create => opens(Form::Create),
            Step::Answer => entry
                .answers
                .get(reopening.progress.answered)
                .map(|r| (&*r.method, r.params.to_string())),
            Step::IsProcessing => Some((
                "session.metadata.isProcessing",
                reply::session_params(session),
            )),
            Step::Abort => Some(("session.abort", reply::session_params(session))),
            Step::Repeat => kept
                .repeats
                .get(reopening.progress.repeated)
                .map(|r| (&*r.method, r.params.to_string())),
        };
        let Some((method, params)) = call else {
            let error = self.away(cx, key);
            self.give_up(cx, key, &error, out);
            return;
        };
        let method = method.to_owned();
        let errand = Errand::Reopen(step);
        self.call_own(cx, key, slot, errand, &method, &params, out);
    }

    /// Whether there is something that the next process has to go on with, or that is to be aborted
    /// there. What is pending on disk may as well be of a turn that is long given up: a client that
    /// resumes without `continuePendingWork` gives up what its session waited for, and nothing says
    /// so on disk before the next turn begins (docs/protocol.md). Revived, it would be nobody's, and
    /// every send would wait behind it.
    fn knows_of_work(&self, cx: &Context<'_>, key: usize) -> bool {
        let entry = &self.entries[key];
        entry.turn.is_some()
            || entry.rest == Rest::Runs
            || cx.commons.is_in_turn(cx.now, entry.id.as_str())
    }

    /// What follows from its answer.
    pub(super) fn step_done(
        &mut self,
        cx: &Context<'_>,
        (own, step): (&Own, Step),
        answer: &OwnAnswer<'_>,
        out: &mut Outbox,
    ) {
        let key = own.key;
        let left = |e: &Entry| e.kept.is_none() && e.reopening.is_some();
        if self.entries.get(key).is_some_and(left) {
            self.left_while_opening(cx, key, own.slot, out);
            return;
        }
        let lately = self.entries.get(key).is_some_and(Entry::answered_lately);
        let Some(reopening) = self.entries.get_mut(key).and_then(|e| e.reopening.as_mut()) else {
            return;
        };
        match step {
            Step::Resume if answer.succeeded => self.ask_survivor(cx, key, out),
            Step::Answer => {
                let at = reopening.progress.answered;
                reopening.progress.answered += 1;
                let taken = answer.succeeded
                    && memchr::memmem::find(answer.result, br#""success":false"#).is_none();
                reopening.progress.wanted |= taken;
                reopening.torn |= !taken && lately;
                let entry = &mut self.entries[key];
                if let Some(given) = entry.answers.get_mut(at) {
                    // As new as can be here. Or half on disk, where it stays so should this process
                    // end as well.
                    if taken || lately {
                        given.at = cx.now;
                    }
                    if let Some(request) = asked_in(&given.params) {
                        entry.settle(request);
                    }
                }
                self.ask_survivor(cx, key, out);
            }
            Step::Resume if answer.not_found => self.run(cx, key, Step::Create, out),
            Step::Create if answer.succeeded => {
                reopening.progress.created = true;
                self.entries[key].rest = Rest::Nothing;
                self.next_errand(cx, key, out);
            }
            Step::IsProcessing => {
                let (torn, wanted) = (reopening.torn, reopening.progress.wanted);
                let over = memchr::memmem::find(answer.result, br#""processing":false"#).is_some();
                reopening.progress.idle = over;
                // It waits for something that its client was never asked: the question was lost on
                // its way, and nobody asks it again.
                let entry = &self.entries[key];
                let unasked = !wanted && entry.asked.is_empty();
                // Or for a tool that is known as answered, and whose result is lost.
                let shared = || cx.commons.has_others(entry.id.as_str(), self.id);
                // Others may have ended it, and begun the next one.
                let survived = |turn: &Turn| turn.survived.is_some();
                let survives = entry.turn.as_deref().is_some_and(survived);
                if survives && !over && !unasked && torn && shared() {
                    self.abort_for_all(cx, key, own.slot, out);
                } else if survives && (over || unasked || torn) {
                    let entry = &mut self.entries[key];
                    if !over {
                        entry.rest = Rest::Runs;
                    } else if let Some(hold) = self.locks.hold_of(&entry.id) {
                        // Whatever of it was inherited.
                        hold.unasked.clear();
                    }
                    self.lose_survivor(cx, key, out);
                } else if !over && self.is_only_heir(cx, key) {
                    self.entries[key].rest = Rest::Runs;
                }
                self.next_errand(cx, key, out);
            }
            Step::Resume | Step::Create => self.pause(cx, key, out),
            Step::Abort => {
                self.quelled(key, own.slot);
                self.next_errand(cx, key, out);
            }
            Step::Repeat => {
                let at = reopening.progress.repeated;
                reopening.progress.repeated += 1;
                let kept = self.entries[key].kept.as_mut();
                if let Some(repeat) = kept.and_then(|kept| kept.repeats.get_mut(at))
                    && let (Some((_, now)), Some(new)) =
                        (&mut repeat.handle, handle_of(answer.result))
                {
                    *now = new;
                }
                self.next_errand(cx, key, out);
            }
        }
    }

    /// Whether the turn goes on shows once it has been given what it may have forgotten.
    fn ask_survivor(&mut self, cx: &Context<'_>, key: usize, out: &mut Outbox) {
        let inherits = self.is_only_heir(cx, key);
        let entry = &self.entries[key];
        let Some(reopening) = &entry.reopening else {
            return;
        };
        if entry.turn.is_none() && !inherits {
            self.next_errand(cx, key, out);
        } else if reopening.progress.answered < entry.answers.len() {
            self.run(cx, key, Step::Answer, out);
        } else {
            self.run(cx, key, Step::IsProcessing, out);
        }
    }

    fn next_errand(&mut self, cx: &Context<'_>, key: usize, out: &mut Outbox) {
        let entry = &mut self.entries[key];
        let (Some(reopening), Some(kept)) = (&mut entry.reopening, &entry.kept) else {
            return;
        };
        if entry.rest == Rest::Runs {
            self.run(cx, key, Step::Abort, out);
        } else if reopening.progress.repeated < kept.repeats.len() {
            self.run(cx, key, Step::Repeat, out);
        } else {
            self.reopened(cx, key, out);
        }
    }

    /// The turn that seemed to have outlived its process has not.
    pub(super) fn lose_survivor(&mut self, cx: &Context<'_>, key: usize, out: &mut Outbox) {
        let entry = &mut self.entries[key];
        if let Some(turn) = &mut entry.turn
            && let Some(backend) = turn.survived.take()
        {
            entry.void_asked();
            let cause = LostBy::Backend(backend);
            self.lose_turn(cx, key, &cause, ClosedBy::Backend, out);
            self.entries[key].turn = None;
        }
    }

    /// It is open again: what waited goes on.
    fn reopened(&mut self, cx: &Context<'_>, key: usize, out: &mut Outbox) {
        let mut was = None;
        self.change_entry(cx.now, key, |entry| {
            was = entry.reopening.take();
            entry.attached = true;
            entry.attachments += 1;
            entry.answered = Some(cx.now);
        });
        self.note_waiting(key);
        let entry = &self.entries[key];
        let (Some(was), Some(slot)) = (was, entry.slot) else {
            return;
        };
        self.outputs.push_back(Output::Attached(entry.id.clone()));
        let result = match (was.cause, was.progress.created) {
            (Cause::Moved, _) => ReopenResult::Moved,
            (Cause::Connection | Cause::Closed, true) => ReopenResult::Created,
            (Cause::Connection | Cause::Closed, false) => ReopenResult::Resumed,
        };
        self.report(cx, key, &was, result);
        if was.progress.created {
            // What a turn waited for was in the history that is not there.
            self.lose_survivor(cx, key, out);
        }
        self.look_after_turn(cx, key, out);
        self.watch_survivor(cx, key);
        self.release_held(cx, key, slot, Purpose::Resume, false, out);
        self.pass_next_send(cx, key, out);
        self.settle_entry(key);
        self.close_if_quiet();
    }

    fn report(&mut self, cx: &Context<'_>, key: usize, was: &Reopening, result: ReopenResult) {
        let session = self.entries[key].id.clone();
        let to = self.entries[key]
            .slot
            .and_then(|slot| self.upstreams.get(slot))
            .map(|u| u.backend.clone());
        self.outputs.push_back(Output::Reopened(session.clone()));
        self.outputs
            .push_back(Output::Event(Event::SessionReopened {
                connection: self.id,
                session,
                from: was.from.clone(),
                to,
                result,
                took: cx.now.saturating_duration_since(was.since),
            }));
    }

    /// Opening it has failed: tried again soon.
    pub(super) fn pause(&mut self, cx: &Context<'_>, key: usize, out: &mut Outbox) {
        self.abandon_errands(key);
        let Some(reopening) = self.entries[key].reopening.as_mut() else {
            return;
        };
        reopening.failures += 1;
        if reopening.failures >= ATTEMPTS {
            let error = self.away(cx, key);
            self.give_up(cx, key, &error, out);
            return;
        }
        let pause = PAUSE * 2u32.pow(reopening.failures - 1);
        let session = self.entries[key].id.clone();
        self.change_entry(cx.now, key, |entry| {
            entry.slot = None;
            if let Some(reopening) = &mut entry.reopening {
                reopening.stage = Stage::Pausing(cx.now + pause);
            }
        });
        // Others may have their turn meanwhile; and who was about to open it where it cannot be
        // must not keep it from going elsewhere.
        self.outputs.push_back(Output::Reopened(session.clone()));
        self.outputs.push_back(Output::Lost(session));
        self.note_waiting(key);
    }

    /// It cannot be opened: whoever waits is told, and the client may try by itself.
    pub(super) fn give_up(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        error: &ProxyError,
        out: &mut Outbox,
    ) {
        self.abandon_errands(key);
        // While it is known that the session was to come back: else its client would hear nothing.
        if let Some(from) = self.entries[key].reopening.as_ref().map(|r| r.from.clone()) {
            let cause = LostBy::Backend(from);
            self.lose_turn(cx, key, &cause, ClosedBy::Proxy, out);
            self.entries[key].turn = None;
        }
        let mut was = None;
        self.change_entry(cx.now, key, |entry| {
            was = entry.reopening.take();
            entry.kept = None;
            entry.rest = Rest::Nothing;
            entry.forget_asked();
        });
        self.note_waiting(key);
        if let Some(was) = was {
            self.report(cx, key, &was, ReopenResult::Failed);
        }
        let entry = &mut self.entries[key];
        entry.slot = None;
        let held = std::mem::take(&mut entry.held);
        self.fail_held(cx, held, error, out);
        self.settle_entry(key);
        self.close_if_quiet();
    }

    pub(super) fn fail_held(
        &mut self,
        cx: &Context<'_>,
        held: VecDeque<Held>,
        error: &ProxyError,
        out: &mut Outbox,
    ) {
        for held in held {
            self.held_bytes -= held.body.len();
            self.fail(cx, &held.call, error, out);
        }
    }

    /// Whether this connection hears the session nowhere, and is not about to: there is nothing to
    /// detach from.
    pub(super) fn is_nowhere(&self, session: &str) -> bool {
        let key = self.by_session.get(session);
        key.is_none_or(|key| self.is_away(*key))
    }

    /// Whether it waits to be opened again, and nothing is under way for that.
    pub(super) fn is_away(&self, key: usize) -> bool {
        let reopening = self.entries[key].reopening.as_ref();
        reopening.is_some_and(|r| !r.is_here())
    }

    /// The client gives up a session that waits for its backend: nobody needs it opened again.
    /// Whether there was one.
    pub(super) fn forsake(&mut self, cx: &Context<'_>, session: &str, out: &mut Outbox) -> bool {
        let Some(key) = self.by_session.get(session).copied() else {
            return false;
        };
        let error = self.away(cx, key);
        self.abandon_errands(key);
        self.forget_question(key);
        let from = self.entries[key].reopening.as_ref().map(|r| r.from.clone());
        let (outcome, by) = (TurnOutcome::Lost, ClosedBy::Client);
        self.record_turn(cx, key, from, outcome, by, None);
        self.change_entry(cx.now, key, |entry| {
            entry.reopening = None;
            entry.kept = None;
            entry.forget_asked();
        });
        let entry = &mut self.entries[key];
        let name = entry.id.clone();
        let held = std::mem::take(&mut entry.held);
        self.outputs.push_back(Output::Reopened(name));
        self.fail_held(cx, held, &error, out);
        self.settle_entry(key);
        true
    }

    /// How a turn is lost whose backend is: with a way back or without one.
    pub(super) fn lose_or_keep_turn(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        backend: &BackendName,
        out: &mut Outbox,
    ) -> bool {
        if self.turn_survives(key) {
            return false;
        }
        let entry = &mut self.entries[key];
        let in_turn = entry.turn.is_some();
        entry.forget_or_void(in_turn);
        let cause = LostBy::Backend(backend.clone());
        self.lose_turn(cx, key, &cause, ClosedBy::Backend, out);
        self.entries[key].turn = None;
        in_turn
    }
}
