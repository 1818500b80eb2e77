//! The turn lock as one machine sees it: its sends ask for it, wait for it, and give it back when
//! the turn is over (DESIGN §5). The rules of who comes when are in `core::turnlock`.
//!
//! A turn ends in many ways. So nothing here hangs on one of them: after each step it is looked
//! which turns are still there, and the lock of one that is not is given back.

use std::{collections::HashMap, time::Instant};

use serde_json::value::RawValue;

use super::{
    Context, Mux, Output, Settings,
    calls::Call,
    outbox::{Dest, Outbox},
    own::{Errand, Own},
    turn::frame,
};
use crate::core::{
    event::ClosedBy,
    id::SessionId,
    identity::{Person, Principal},
    idmap::{Calls, RequestId},
    reply::{LostBy, ProxyError},
    route::Class,
    scan,
    turnlock::{Ask, Parting, Rule, Verdict},
};

/// What this connection has to do with locks. Each session stands in each list once.
#[derive(Debug, Default)]
pub(super) struct Locks {
    /// Those that it has.
    pub(super) held: Vec<Hold>,
    /// Those that it waits for.
    pub(super) wanted: Vec<Want>,
    /// Ends of turns that were kept back, for the simulation.
    #[cfg(test)]
    pub(super) kept: Vec<Vec<u8>>,
}

/// A lock that this connection has.
#[derive(Debug)]
pub(super) struct Hold {
    pub(super) session: SessionId,
    /// Where its entry stood when the lock was taken, and most likely still does.
    near: usize,
    /// The send that it was taken for, until it has its answer.
    call: Option<Send>,
    since: Instant,
    before: Before,
    /// The end of the turn before.
    unsaid: Option<Vec<u8>>,
    /// What the turn waits for, as far as this connection's client was asked.
    asked: Vec<String>,
    /// What it waited for when it was inherited, until it is known whether this connection's client
    /// was asked.
    pub(super) unasked: Vec<String>,
    /// What its client had answered so shortly before its process died that the turn may wait for it
    /// still, and nobody but this connection can say; until the session is open again.
    pub(super) given: Vec<String>,
}

/// A lock that it waits for.
#[derive(Debug)]
pub(super) struct Want {
    pub(super) session: SessionId,
    /// The first send that waits.
    call: Send,
    since: Instant,
    /// The end of the turn that it waits for, once that is there.
    unsaid: Option<Vec<u8>>,
}

/// How it stands with the turn before, as this connection hears it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Before {
    Over,
    /// The lock was given while it was heard to run.
    Runs,
    /// It was aborted. Its end comes before the next message, or not at all (docs/protocol.md).
    Aborted,
}

impl Hold {
    /// Whether a send of this connection is to begin a turn behind the one that was inherited.
    pub(super) fn is_sending(&self) -> bool {
        self.call.is_some()
    }

    /// It is given away in a turn that may go on.
    fn unheard(self) -> Output {
        let mut asked = self.asked;
        asked.extend(self.unasked);
        asked.extend(self.given);
        Output::TurnOver {
            session: self.session,
            parting: Parting::Unheard(asked),
        }
    }
}

/// A call, and which one under its id.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Send {
    id: RequestId,
    serial: u64,
}

impl Send {
    /// Whether it has no answer yet.
    fn is_in(&self, calls: &Calls<Call>) -> bool {
        calls.get(&self.id).is_some_and(|c| c.serial == self.serial)
    }
}

/// What becomes of a send.
#[derive(Debug)]
pub(super) enum Start {
    /// It may go.
    Now,
    /// It waits for somebody else's turn to end.
    Later,
    /// It may not.
    Never(ProxyError),
}

impl Locks {
    fn holds(&self, session: &SessionId) -> Option<&Hold> {
        self.held.iter().find(|hold| hold.session == *session)
    }

    fn wants(&self, session: &SessionId) -> Option<&Want> {
        self.wanted.iter().find(|want| want.session == *session)
    }

    pub(super) fn hold_of(&mut self, session: &SessionId) -> Option<&mut Hold> {
        self.held.iter_mut().find(|hold| hold.session == *session)
    }

    /// A turn is this connection's that it has not asked for.
    pub(super) fn take(&mut self, session: &SessionId, since: Instant) {
        self.hold(session, usize::MAX, None, since);
    }

    fn hold(&mut self, session: &SessionId, near: usize, call: Option<Send>, since: Instant) {
        let mut hold = Hold {
            session: session.clone(),
            near,
            call,
            since,
            before: Before::Over,
            unsaid: None,
            asked: Vec::new(),
            unasked: Vec::new(),
            given: Vec::new(),
        };
        match self.hold_of(session) {
            Some(known) => {
                // A send does not change what the turn before it waits for, if that runs.
                if hold.is_sending() {
                    hold.unasked = std::mem::take(&mut known.unasked);
                }
                *known = hold;
            }
            None => {
                self.held.reserve_exact(1);
                self.held.push(hold);
            }
        }
    }

    /// Another turn has begun, and has an end of its own.
    fn forget_idle(&mut self, session: &SessionId) {
        let held = self.held.iter_mut().map(|h| (&h.session, &mut h.unsaid));
        let wanted = self.wanted.iter_mut().map(|w| (&w.session, &mut w.unsaid));
        for (_, unsaid) in held.chain(wanted).filter(|(s, _)| *s == session) {
            *unsaid = None;
        }
        if let Some(hold) = self
            .hold_of(session)
            .filter(|h| h.before == Before::Aborted)
        {
            hold.before = Before::Over;
        }
    }

    /// The client was told that the turn before is over: the end that it hears next is its own.
    pub(super) fn end_before(&mut self, session: &SessionId) {
        if let Some(hold) = self.hold_of(session) {
            hold.before = Before::Over;
        }
    }

    /// Somebody else has it from now on, and was told.
    pub(super) fn forget(&mut self, session: &SessionId) -> bool {
        let before = self.held.len();
        self.held.retain(|hold| hold.session != *session);
        self.held.len() < before
    }
}

impl Mux {
    // Asking.

    fn send_of(&self, call: &RequestId) -> Option<Send> {
        self.calls.get(call).map(|record| Send {
            id: call.clone(),
            serial: record.serial,
        })
    }

    fn is_pending(&self, send: &Send) -> bool {
        send.is_in(&self.calls)
    }

    fn person(&self) -> Option<Person> {
        self.principal.as_deref().map(Principal::person)
    }

    /// Whether this send, the first of those that are not forwarded, may leave.
    pub(super) fn start_turn(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        call: &RequestId,
        body: &[u8],
    ) -> Start {
        let Some(send) = self.send_of(call) else {
            return Start::Never(ProxyError::Cancelled);
        };
        let entry = &self.entries[key];
        let (session, in_turn) = (&entry.id, entry.turn.is_some());
        let hold = self.locks.holds(session);
        if hold.is_some_and(|hold| hold.call.as_ref() == Some(&send)) {
            let session = session.clone();
            return self.seat_turn(cx, &session);
        }
        let waits = self.locks.wants(session).is_some();
        if waits && self.locks.wants(session).is_some_and(|w| w.call == send) {
            return Start::Later;
        }
        let mut ask = Ask {
            connection: self.id,
            user: self.person(),
            rule: cx.settings.turns.rule,
            unit: cx.settings.turns.unit,
            in_turn: in_turn && hold.is_some(),
            steers: None,
        };
        let mut verdict = cx.commons.ask_turn(cx.now, session, &ask);
        if verdict == Verdict::LookCloser {
            ask.steers = Some(steers(body));
            verdict = cx.commons.ask_turn(cx.now, session, &ask);
        }
        let session = session.clone();
        match verdict {
            Verdict::Taken => {
                self.locks.hold(&session, key, Some(send), cx.now);
                self.seat_turn(cx, &session)
            }
            Verdict::Joins => Start::Now,
            Verdict::Waits => {
                if !waits {
                    self.locks.wanted.push(Want {
                        session,
                        call: send,
                        since: cx.now,
                        unsaid: None,
                    });
                }
                Start::Later
            }
            Verdict::Full => {
                self.limit_hit("turn_lock_queue");
                Start::Never(ProxyError::SessionBusy { session })
            }
            Verdict::Busy | Verdict::LookCloser => {
                Start::Never(ProxyError::SessionBusy { session })
            }
        }
    }

    /// The turn is its; whether its user may have one more. If not, the lock goes with the send.
    fn seat_turn(&mut self, cx: &Context<'_>, session: &SessionId) -> Start {
        match cx.commons.seat_turn(cx.settings, session) {
            Ok(()) => Start::Now,
            Err(over) => Start::Never(self.over_cap(over)),
        }
    }

    /// Whether the turn of `session` is known to be this connection's.
    pub fn has_turn(&self, session: &SessionId) -> bool {
        self.locks.holds(session).is_some()
    }

    /// Whether a send need not stay behind those that wait for somebody's turn to end, since it is
    /// to steer that very turn.
    pub(super) fn overtakes(&self, key: usize, body: &[u8]) -> bool {
        let entry = &self.entries[key];
        entry.gate.is_none()
            && !entry.awaits_attach()
            && entry.turn.is_some()
            && self.locks.wants(&entry.id).is_some()
            && steers(body)
    }

    /// Whether the sends of a session wait for nothing but a turn: they can as well do so while it is
    /// moved.
    pub(super) fn awaits_turn(&self, key: usize) -> bool {
        let entry = &self.entries[key];
        let first = entry
            .sends
            .front()
            .and_then(|held| self.send_of(&held.call));
        let wanted = self.locks.wants(&entry.id).map(|want| &want.call);
        let granted = self.locks.holds(&entry.id).and_then(|h| h.call.as_ref());
        first.is_some_and(|first| wanted == Some(&first) || granted == Some(&first))
    }

    /// Why a call that would end the turn of a session may not, if so.
    pub(super) fn foreign_turn(
        &self,
        cx: &Context<'_>,
        key: usize,
        class: Class,
    ) -> Option<ProxyError> {
        if class != Class::Abort || cx.settings.turns.rule == Rule::Off {
            return None;
        }
        let session = &self.entries[key].id;
        let user = self.person();
        let may = cx
            .commons
            .may_end_turn(session.as_str(), self.id, user.as_ref());
        (!may).then(|| ProxyError::TurnOfAnother {
            session: session.clone(),
        })
    }

    // News.

    /// It is this connection's turn: what it waited for.
    pub fn handle_turn_granted(&mut self, cx: &Context<'_>, session: &SessionId, out: &mut Outbox) {
        let at = self.locks.wanted.iter().position(|w| w.session == *session);
        let want = at.map(|at| self.locks.wanted.swap_remove(at));
        let key = self.by_session.get(session).copied();
        // The send may be gone, and the next one have its place.
        let next = key.and_then(|key| self.entries[key].sends.front());
        let next = next.and_then(|held| self.send_of(&held.call));
        let call = want.as_ref().map(|want| want.call.clone());
        let call = call.filter(|call| self.is_pending(call)).or(next);
        if let (Some(want), true) = (&want, call.is_some()) {
            let took = cx.now.saturating_duration_since(want.since);
            self.outputs.push_back(Output::TurnWaited(took));
        }
        let runs = key.is_some_and(|key| self.entries[key].turn.is_some());
        let near = key.unwrap_or(usize::MAX);
        self.locks.hold(session, near, call, cx.now);
        if let Some(hold) = self.locks.held.iter_mut().find(|h| h.session == *session) {
            hold.before = if runs { Before::Runs } else { Before::Over };
            hold.unsaid = want.and_then(|want| want.unsaid);
        }
        if let Some(key) = key {
            if self.entries[key].freeze.is_none() {
                self.pass_next_send(cx, key, out);
            }
            self.settle_entry(key);
        }
        self.try_freezes(cx);
        self.close_if_quiet();
    }

    // The end of the turn before.

    /// The client is not told of the end of a turn while a send of its own waits for that: as on the
    /// server, where a queue has one `session.idle`, at its end. An SDK that awaits the end of its own
    /// turn would take the first that it hears.
    pub(super) fn keeps_idle(&mut self, key: usize, kind: &[u8], body: &[u8]) -> bool {
        if self.locks.held.is_empty() && self.locks.wanted.is_empty() {
            return false;
        }
        let Some(entry) = self.entries.get(key) else {
            return false;
        };
        match kind {
            b"user.message" | b"assistant.turn_start" => {
                self.locks.forget_idle(&entry.id);
                return false;
            }
            b"abort" => {
                let hold = self.locks.hold_of(&entry.id);
                if let Some(hold) = hold.filter(|h| h.before == Before::Runs) {
                    hold.before = Before::Aborted;
                }
                return false;
            }
            b"session.idle" => {}
            _ => return false,
        }
        // What ended before the send was taken was told before its answer.
        let calls = &self.calls;
        let before = |h: &&mut Hold| {
            h.session == entry.id
                && h.before != Before::Over
                && h.call.as_ref().is_some_and(|call| call.is_in(calls))
        };
        let hold = self.locks.held.iter_mut().find(before);
        let wanted = self.locks.wanted.iter_mut();
        let want = wanted.filter(|w| w.call.is_in(&self.calls));
        let unsaid = if let Some(hold) = hold {
            hold.before = Before::Over;
            &mut hold.unsaid
        } else if let Some(want) = want.into_iter().find(|w| w.session == entry.id) {
            &mut want.unsaid
        } else {
            return false;
        };
        *unsaid = Some(body.to_vec());
        #[cfg(test)]
        self.locks.kept.push(body.to_vec());
        true
    }

    /// A send was refused. If it was the one that was to begin a turn, what it has kept back is said.
    pub(super) fn say_idle(&mut self, id: &RequestId, serial: u64, out: &mut Outbox) {
        let is_it = |send: &Send| send.serial == serial && send.id == *id;
        let held = self.locks.held.iter_mut();
        let mut held = held.filter(|h| h.call.as_ref().is_some_and(is_it));
        let mut unsaid = held.next().and_then(|hold| hold.unsaid.take());
        if let Some(want) = self.locks.wanted.iter_mut().find(|w| is_it(&w.call)) {
            // The next send in the queue takes its place, and keeps it back as well.
            let key = self.by_session.get(&want.session);
            let more = key.is_some_and(|key| !self.entries[*key].sends.is_empty());
            if !more {
                unsaid = unsaid.or(want.unsaid.take());
            }
        }
        if let Some(body) = unsaid.filter(|_| self.is_heard()) {
            out.write(Dest::Client, |b| frame(b, &body));
        }
    }

    // Giving back.

    /// What is to be said of locks after a step, if something is.
    pub(super) fn settle_locks(&mut self) -> Option<Output> {
        if self.locks.held.is_empty() && self.locks.wanted.is_empty() {
            return None;
        }
        self.drop_holds().or_else(|| self.drop_wants())
    }

    fn drop_holds(&mut self) -> Option<Output> {
        let Some(gone) = self.locks.held.iter().position(|h| !self.needs_lock(h)) else {
            self.note_asked();
            return None;
        };
        let hold = self.locks.held.swap_remove(gone);
        let entry = self.key_of_hold(&hold).map(|key| &self.entries[key]);
        let over = entry.is_some_and(|entry| match &entry.reopening {
            None => entry.attached && entry.slot.is_some(),
            // Heirs would have it taken up again by the process that opens the session next.
            Some(reopening) => reopening.progress.idle,
        });
        Some(if over {
            Output::TurnOver {
                session: hold.session,
                parting: Parting::Over,
            }
        } else {
            hold.unheard()
        })
    }

    /// Whoever has a turn next that goes on has to know what it waits for; then it may be too late to
    /// look.
    fn note_asked(&mut self) {
        for at in 0..self.locks.held.len() {
            let key = self.key_of_hold(&self.locks.held[at]);
            let entry = key.map(|key| &self.entries[key]);
            let asked = entry.map_or(&[][..], |entry| &entry.asked);
            let hold = &mut self.locks.held[at];
            if asked.is_empty() && hold.asked.is_empty() && hold.unasked.is_empty() {
                continue;
            }
            // What its client has answered is on its way before all that comes of its leaving.
            let open = asked.iter().filter(|asked| !asked.answered);
            if !open.clone().map(|asked| &asked.id).eq(&hold.asked) {
                hold.asked = open.map(|asked| asked.id.clone()).collect();
            }
            if let Some(entry) = entry.filter(|_| !hold.unasked.is_empty()) {
                hold.unasked.retain(|id| !entry.is_settled(id));
            }
        }
    }

    /// The entry of its session, looked for first where it was.
    fn key_of_hold(&self, hold: &Hold) -> Option<usize> {
        match self.entries.get(hold.near) {
            Some(entry) if entry.id == hold.session => Some(hold.near),
            Some(_) | None => self.by_session.find(&hold.session),
        }
    }

    fn needs_lock(&self, hold: &Hold) -> bool {
        let key = self.key_of_hold(hold);
        // Mostly it is clear: its turn is heard to run, or was asked for here.
        let entry = key.map(|key| &self.entries[key]);
        if entry.is_some_and(|entry| entry.turn.is_some() && entry.is_here()) {
            return true;
        }
        if hold.call.as_ref().is_some_and(|call| self.is_pending(call)) {
            // A send may be answered only at the end of its turn; but if its client was asked what
            // that waits for and has detached, somebody else has to see that there is one.
            let hears = entry.is_some_and(|e| e.is_here() || e.reopening.is_some());
            return hears || hold.asked.is_empty();
        }
        let Some(key) = key else {
            return false;
        };
        // An abort that is on its way would end the next one's turn.
        let matters = |own: &Own| match &own.errand {
            Errand::Nobodys | Errand::Halt | Errand::Quell => own.key == key,
            Errand::Inherit(session) => *session == hold.session,
            Errand::Reopen(_)
            | Errand::Save(_)
            | Errand::Vouch(..)
            | Errand::VouchLate(_)
            | Errand::Join
            | Errand::OpenInFull
            | Errand::Undo(_)
            | Errand::Leave => false,
        };
        let entry = &self.entries[key];
        // Whether it goes on shows when the session is open again.
        let looks = !hold.unasked.is_empty() && entry.reopening.is_some();
        entry.turn.is_some() || looks || self.own.iter().any(matters)
    }

    fn drop_wants(&mut self) -> Option<Output> {
        let mut at = 0;
        while let Some(want) = self.locks.wanted.get(at) {
            if self.is_pending(&want.call) {
                at += 1;
                continue;
            }
            // It has its answer; the next one takes its place.
            let key = self.by_session.get(&want.session);
            let next = key.and_then(|key| self.entries[*key].sends.front());
            if let Some(next) = next.and_then(|held| self.send_of(&held.call)) {
                self.locks.wanted[at].call = next;
                at += 1;
            } else {
                let want = self.locks.wanted.swap_remove(at);
                return Some(Output::TurnUnwanted(want.session));
            }
        }
        None
    }

    /// The end of this machine: nothing is held or wanted any more.
    pub(super) fn drop_locks(&mut self) {
        for want in std::mem::take(&mut self.locks.wanted) {
            self.outputs.push_back(Output::TurnUnwanted(want.session));
        }
        for hold in std::mem::take(&mut self.locks.held) {
            self.outputs.push_back(hold.unheard());
        }
    }

    /// Taxiway stops: who waits is told so.
    pub(super) fn refuse_waiting(&mut self, cx: &Context<'_>, out: &mut Outbox) {
        let waiting: Vec<SessionId> = self
            .locks
            .wanted
            .iter()
            .map(|w| w.session.clone())
            .collect();
        for session in waiting {
            let Some(key) = self.by_session.get(&session).copied() else {
                continue;
            };
            let sends = std::mem::take(&mut self.entries[key].sends);
            self.fail_held(cx, sends, &ProxyError::Draining, out);
            self.settle_entry(key);
        }
    }

    // Time.

    /// When [`Mux::watch_locks`] has something to do.
    pub(super) fn next_lock(&self, settings: &Settings) -> Option<Instant> {
        if self.locks.wanted.is_empty() && settings.turns.max.is_none() {
            return None;
        }
        let waits = self.locks.wanted.iter().filter_map(|want| {
            let call = self.calls.get(&want.call.id)?;
            Some(call.since + settings.turns.timeout)
        });
        let turns = self.locks.held.iter();
        let turns = turns.filter_map(|hold| Some(hold.since + settings.turns.max?));
        waits.chain(turns).min()
    }

    /// Sends that have waited for too long are refused, turns that have run for too long ended.
    pub(super) fn watch_locks(&mut self, cx: &Context<'_>, out: &mut Outbox) {
        let is_late = |mux: &Self, want: &Want| {
            let call = mux.calls.get(&want.call.id);
            call.is_some_and(|call| call.since + cx.settings.turns.timeout <= cx.now)
        };
        let late: Vec<(SessionId, RequestId)> = self
            .locks
            .wanted
            .iter()
            .filter(|want| is_late(self, want))
            .map(|want| (want.session.clone(), want.call.id.clone()))
            .collect();
        for (session, call) in late {
            self.unqueue(&session, &call);
            let error = ProxyError::SessionBusy { session };
            self.fail(cx, &call, &error, out);
        }
        let Some(max) = cx.settings.turns.max else {
            return;
        };
        let long: Vec<SessionId> = self
            .locks
            .held
            .iter_mut()
            .filter(|hold| hold.since + max <= cx.now)
            .map(|hold| {
                // Looked at again then, should its end not be heard.
                hold.since = cx.now;
                hold.session.clone()
            })
            .collect();
        for session in long {
            self.limit_hit("sessions.turn_max");
            let Some(key) = self.by_session.get(&session).copied() else {
                continue;
            };
            if self.entries[key].turn.is_some() {
                self.lose_turn(cx, key, &LostBy::TooLong, ClosedBy::Proxy, out);
                self.abort_rest(cx, key, out);
                self.settle_entry(key);
            }
        }
        self.close_if_quiet();
    }

    /// Takes a send out of where it waits.
    fn unqueue(&mut self, session: &SessionId, call: &RequestId) {
        let Some(key) = self.by_session.get(session).copied() else {
            return;
        };
        let entry = &mut self.entries[key];
        for queue in [&mut entry.held, &mut entry.sends] {
            if let Some(at) = queue.iter().position(|held| held.call == *call)
                && let Some(held) = queue.remove(at)
            {
                self.held_bytes -= held.body.len();
            }
        }
        self.note_waiting(key);
    }
}

/// Whether a send has `mode:"immediate"`, which makes it part of the turn that runs.
fn steers(body: &[u8]) -> bool {
    let Ok(head) = scan::scan(body) else {
        return false;
    };
    let params = head.params.map(|params| params.of(body));
    // As the CLI reads it: the last one of a name counts.
    let params: Option<HashMap<String, &RawValue>> =
        params.and_then(|text| serde_json::from_slice(text).ok());
    let mode = params.as_ref().and_then(|params| params.get("mode"));
    mode.is_some_and(|mode| {
        serde_json::from_str::<String>(mode.get()).is_ok_and(|m| m == "immediate")
    })
}
