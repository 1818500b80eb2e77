//! Taking a session over from a connection whose client has left in a turn (DESIGN §5, in three
//! steps): this connection resumes it without what only one connection may declare; the parked one
//! leaves it; then the client's own call goes out as written.
//!
//! What the turn asks of its client is put to this one before the parked one leaves. For that the
//! client must have the answer to its call, so it gets that of the first step, and the third is made
//! as a call of our own.
//!
//! How the other side does it is in `parking`.

use std::time::Instant;

use super::{
    Asker, Context, Life, Mux, Output,
    client::Frame,
    note::{Handover, HeldRequest, Note},
    outbox::{Dest, Outbox},
    own::{Errand, OwnAnswer},
    parking::{Request, STEP},
    reopening::Cause,
    session::{Asked, Held},
    turn::frame,
};
use crate::core::{
    event::{CallOutcome, ClosedBy, Direction, FrameKind},
    id::{ConnectionId, SessionId},
    locate::Purpose,
    reopen::{self, Form},
    reply,
    route::Class,
    scan,
};

/// Events that come before the client has the answer to its call are kept up to here, in bytes.
const EARLY: usize = 1024 * 1024;

/// A session on its way here.
#[derive(Debug)]
pub(super) struct Taking {
    /// From this connection.
    pub(super) from: ConnectionId,
    stage: Stage,
    /// The stage ends by then.
    pub(super) until: Option<Instant>,
    /// The client's call, until it is forwarded.
    pub(super) held: Option<Held>,
    /// A create may have to be a resume.
    has_history: bool,
    /// It has its answer already.
    pub(super) answered: bool,
    /// Result of the first step.
    result: Vec<u8>,
    /// Framed events that the client gets after the answer.
    early: Vec<u8>,
    /// The events of what the turn waits for since before.
    asked: Vec<Asked>,
    /// Requests that our client has been asked and has not answered.
    requests: usize,
    /// The turn has ended since the first step: was it aborted, and the mark of that event.
    pub(super) ended: Option<(bool, Option<u64>)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// The first call is out.
    Joining,
    /// The parked connection was told of it.
    Claiming,
    /// Our client is asked what the turn waits for. Its calls pass.
    Asking,
    /// The parked connection leaves.
    Awaiting,
    /// The last call is out: the client's, or ours.
    Opening,
}

impl Taking {
    /// Whether calls for the session have to wait.
    pub(super) fn holds_calls(&self) -> bool {
        self.stage != Stage::Asking
    }

    /// Bytes kept.
    pub(super) fn held_bytes(&self) -> usize {
        self.held.as_ref().map_or(0, |held| held.body.len())
    }
}

impl Mux {
    // The way here.

    /// The session that is to be opened here was left in a turn by the client of `from`. Whether it
    /// is taken over.
    pub(super) fn take_over(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        from: ConnectionId,
        has_history: bool,
        out: &mut Outbox,
    ) -> bool {
        let entry = &self.entries[key];
        let (Some(first), Some(slot)) = (entry.held.front(), entry.slot) else {
            return false;
        };
        let opens = self
            .calls
            .get(&first.call)
            .is_some_and(|call| matches!(call.class, Class::Create | Class::Resume));
        if !opens || entry.is_here() || from == self.id {
            return false;
        }
        let session = entry.id.clone();
        let Some(params) = reopen::params(&first.body, session.as_str(), Form::Bare) else {
            return false;
        };
        self.change_entry(cx.now, key, |entry| {
            let held = entry.held.pop_front();
            entry.taking = Some(Box::new(Taking {
                from,
                stage: Stage::Joining,
                until: Some(cx.now + STEP),
                held,
                has_history,
                answered: false,
                result: Vec::new(),
                early: Vec::new(),
                asked: Vec::new(),
                requests: 0,
                ended: None,
            }));
        });
        if let Some(upstream) = self.upstreams.get_mut(slot) {
            // Its events do not go the short way now.
            upstream.recent = usize::MAX;
        }
        self.note_waiting(key);
        self.call_own(cx, key, slot, Errand::Join, "session.resume", &params, out);
        true
    }

    pub(super) fn is_taking(&self, key: usize) -> bool {
        self.entries
            .get(key)
            .is_some_and(|entry| entry.taking.is_some())
    }

    /// The answer to the first call.
    pub(super) fn joined(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        answer: &OwnAnswer<'_>,
        out: &mut Outbox,
    ) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let Some(taking) = entry.taking.as_mut().filter(|t| t.stage == Stage::Joining) else {
            return;
        };
        if answer.succeeded {
            taking.stage = Stage::Claiming;
            taking.until = Some(cx.now + STEP);
            taking.result = answer.result.to_vec();
            let (to, note) = (taking.from, Note::TakeOver(entry.id.clone()));
            self.outputs.push_back(Output::Tell { to, note });
        } else {
            // It has ended meanwhile, say. The client's own call will tell.
            self.open_in_full(cx, key, out);
        }
    }

    /// News of another machine about a session.
    pub fn handle_note(
        &mut self,
        cx: &Context<'_>,
        from: ConnectionId,
        note: Note,
        out: &mut Outbox,
    ) {
        if self.life == Life::Closed {
            return;
        }
        match note {
            Note::TakeOver(session) => self.hand_over(cx, from, session, out),
            Note::Answer { request, body, id } => {
                self.answer_for_client(cx, request, &body, id, out);
            }
            Note::LetGo(session) => self.let_go_of(cx, from, &session, out),
            Note::GivenUp(session) => self.given_back(cx, from, &session, out),
            Note::Parked {
                session,
                asked,
                requests,
            } => self.told_what_waits(cx, &session, asked, requests, out),
            Note::Request { session, request } => {
                if let Some(key) = self.by_session.get(&session).copied()
                    && self.life != Life::Parked
                {
                    self.ask_for(from, key, request, out);
                }
            }
            Note::Left { session, handover } => {
                if handover.as_ref().is_some_and(|h| h.turn.is_some()) {
                    self.handle_turn_taken(cx.now, &session);
                }
                self.is_left(cx, &session, handover, out);
            }
        }
    }

    /// The connection that a note was for has ended.
    pub fn handle_untold(&mut self, cx: &Context<'_>, note: &Note, out: &mut Outbox) {
        let Some(session) = note.session() else {
            return;
        };
        match note {
            Note::TakeOver(_) | Note::LetGo(_) => self.is_left(cx, session, None, out),
            Note::Parked { .. } | Note::Request { .. } | Note::Left { .. } => {
                // It did not get that far; another may.
                let tells = |key: &usize| self.entries[*key].parked.as_ref()?.handed_to();
                let by = self.by_session.get(session).and_then(tells);
                if let Some(by) = by {
                    self.given_back(cx, by, session, out);
                }
            }
            Note::Answer { .. } | Note::GivenUp(_) => {}
        }
    }

    fn taking_key(&self, session: &SessionId) -> Option<usize> {
        let key = self.by_session.get(session).copied()?;
        self.entries[key].taking.is_some().then_some(key)
    }

    fn told_what_waits(
        &mut self,
        cx: &Context<'_>,
        session: &SessionId,
        asked: Vec<Asked>,
        requests: Vec<(u64, HeldRequest)>,
        out: &mut Outbox,
    ) {
        let Some(key) = self.taking_key(session) else {
            return;
        };
        let Some(taking) = &mut self.entries[key].taking else {
            return;
        };
        if taking.stage != Stage::Claiming {
            return;
        }
        let from = taking.from;
        taking.asked = asked;
        if requests.is_empty() || taking.ended.is_some() {
            self.await_leave(cx, key);
            return;
        }
        taking.stage = Stage::Asking;
        taking.until = None;
        self.answer_opening(cx, key, out);
        for request in requests {
            self.ask_for(from, key, request, out);
        }
        self.note_waiting(key);
        if let Some(slot) = self.entries[key].slot {
            self.release_held(cx, key, slot, Purpose::Resume, false, out);
            self.pass_next_send(cx, key, out);
        }
        self.settle_entry(key);
    }

    /// Answers the client's call by the result of the first step.
    fn answer_opening(&mut self, cx: &Context<'_>, key: usize, out: &mut Outbox) {
        let Some(taking) = &mut self.entries[key].taking else {
            return;
        };
        taking.answered = true;
        let result = String::from_utf8_lossy(&taking.result).into_owned();
        let Some(id) = taking.held.as_ref().map(|held| held.call.clone()) else {
            return;
        };
        let body: Box<[u8]> = taking
            .held
            .as_ref()
            .map(|h| h.body.as_slice().into())
            .unwrap_or_default();
        let Some(mut call) = self.take_call(cx, &id) else {
            return;
        };
        let mut token = Vec::with_capacity(40);
        id.write(&mut token);
        let size = out.write(Dest::Client, |b| reply::result(b, &token, &result));
        self.tally
            .add(Direction::BackendToClient, FrameKind::Response, size);
        self.call_ended(cx, &call, CallOutcome::Ok);
        call.copy = (body.len() <= cx.settings.session_params).then(|| body.into_vec());
        self.keep_params(key, &call);
        self.change_entry(cx.now, key, |entry| {
            entry.attached = true;
            entry.attachments += 1;
        });
        let session = self.entries[key].id.clone();
        self.outputs.push_back(Output::Attached(session));
        self.show_asked(key, out);
    }

    /// The client has its answer: it gets what happened before, and what its turn waits for.
    fn show_asked(&mut self, key: usize, out: &mut Outbox) {
        let entry = &mut self.entries[key];
        let Some(taking) = &mut entry.taking else {
            return;
        };
        let (early, asked) = (
            std::mem::take(&mut taking.early),
            std::mem::take(&mut taking.asked),
        );
        // What it has been told of itself stands in `early`.
        for one in &asked {
            if entry.asked.iter().all(|known| known.id != one.id)
                && let Some(event) = &one.event
            {
                let size = out.write(Dest::Client, |b| frame(b, event));
                self.tally
                    .add(Direction::BackendToClient, FrameKind::Notification, size);
            }
        }
        out.write(Dest::Client, |b| b.extend_from_slice(&early));
        self.merge_asked(key, asked);
    }

    /// Puts a request that another connection has got to our client.
    fn ask_for(
        &mut self,
        from: ConnectionId,
        key: usize,
        (number, request): (u64, HeldRequest),
        out: &mut Outbox,
    ) {
        let entry = &mut self.entries[key];
        if let Some(taking) = &mut entry.taking {
            taking.requests += 1;
        }
        let kept = Request {
            session: Some(entry.id.clone()),
            is_hook: false,
            body: None,
        };
        let asker = Asker::Parked(from, number);
        let HeldRequest { body, id } = request;
        self.ask_client(asker, &[], id, &body, kept, out);
    }

    /// Our client has answered it.
    pub(super) fn answered_for(
        &mut self,
        cx: &Context<'_>,
        (to, request): (ConnectionId, u64),
        session: Option<SessionId>,
        body: &[u8],
        id: std::ops::Range<usize>,
    ) {
        let body = body.into();
        let note = Note::Answer { request, body, id };
        self.outputs.push_back(Output::Tell { to, note });
        let Some(key) = session.and_then(|session| self.taking_key(&session)) else {
            return;
        };
        if let Some(taking) = &mut self.entries[key].taking {
            taking.requests = taking.requests.saturating_sub(1);
            if taking.requests == 0 && taking.stage == Stage::Asking {
                self.await_leave(cx, key);
            }
        }
    }

    /// Whatever else our client is asked, the turn is over.
    pub(super) fn stop_asking(&mut self, cx: &Context<'_>, key: usize) {
        let taking = self.entries[key].taking.as_ref();
        if taking.is_some_and(|taking| taking.stage == Stage::Asking) {
            self.await_leave(cx, key);
        }
    }

    /// Nothing is left to be asked: the parked connection may leave.
    fn await_leave(&mut self, cx: &Context<'_>, key: usize) {
        let entry = &mut self.entries[key];
        let Some(taking) = &mut entry.taking else {
            return;
        };
        taking.stage = Stage::Awaiting;
        taking.until = Some(cx.now + STEP);
        let (to, note) = (taking.from, Note::LetGo(entry.id.clone()));
        self.outputs.push_back(Output::Tell { to, note });
        self.note_waiting(key);
    }

    /// It has, or is not there any more.
    fn is_left(
        &mut self,
        cx: &Context<'_>,
        session: &SessionId,
        handover: Option<Box<Handover>>,
        out: &mut Outbox,
    ) {
        if self.life == Life::Parked {
            self.take_in_parked(cx, session, handover, out);
            return;
        }
        let Some(key) = self.taking_key(session) else {
            return;
        };
        let Some(taking) = &mut self.entries[key].taking else {
            return;
        };
        if matches!(taking.stage, Stage::Joining | Stage::Opening) {
            return;
        }
        let ended = taking.ended.take();
        if let Some(mut handover) = handover {
            if !taking.answered {
                taking.asked = std::mem::take(&mut handover.asked);
            }
            self.take_in(cx, key, *handover, ended);
        }
        self.open_in_full(cx, key, out);
    }

    /// What the parked connection knew goes on here.
    pub(super) fn take_in(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        handover: Handover,
        ended: Option<(bool, Option<u64>)>,
    ) {
        self.merge_asked(key, handover.asked);
        let Some(mut turn) = handover.turn else {
            return;
        };
        // Told to the directory once more: who had it reports it no longer.
        turn.confirmed = false;
        self.unwatch(key);
        let entry = &mut self.entries[key];
        entry.answers.extend(handover.answers);
        entry.turn = Some(turn);
        self.confirm_turn(cx, key);
        if let (Some((aborted, mark)), Some(turn)) = (ended, &self.entries[key].turn) {
            let outcome = turn.outcome(aborted);
            self.record_turn(cx, key, None, outcome, ClosedBy::Backend, mark);
            self.entries[key].forget_asked();
        }
        self.watch_survivor(cx, key);
    }

    /// The last step.
    fn open_in_full(&mut self, cx: &Context<'_>, key: usize, out: &mut Outbox) {
        let entry = &mut self.entries[key];
        let (Some(taking), Some(slot)) = (&mut entry.taking, entry.slot) else {
            return;
        };
        taking.stage = Stage::Opening;
        taking.until = None;
        let (answered, has_history) = (taking.answered, taking.has_history);
        let Some(held) = taking.held.take() else {
            return;
        };
        self.held_bytes -= held.body.len();
        self.note_waiting(key);
        if answered {
            let session = self.entries[key].id.as_str();
            let form = Form::Resume {
                keep_model: true,
                goes_on: true,
            };
            let Some(params) = reopen::params(&held.body, session, form) else {
                return;
            };
            self.call_own(
                cx,
                key,
                slot,
                Errand::OpenInFull,
                "session.resume",
                &params,
                out,
            );
            return;
        }
        let head = scan::scan(&held.body).expect("it was scanned when it came");
        let sent = (held.call, held.since);
        let body = Frame::Kept(held.body);
        self.dispatch(cx, key, slot, sent, &head, body, has_history, out);
    }

    /// The answer to our own last call.
    pub(super) fn opened_in_full(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        succeeded: bool,
        out: &mut Outbox,
    ) {
        let Some(entry) = self.entries.get(key).filter(|entry| entry.taking.is_some()) else {
            return;
        };
        let upstream = entry.slot.and_then(|slot| self.upstreams.get(slot));
        let backend = upstream.map(|u| u.backend.clone());
        self.taken(cx, key, true, out);
        if !succeeded
            && self.may_reopen(key)
            && let Some(backend) = backend
        {
            // The client has been told that it has it whole: it is opened once more, or given up
            // honestly.
            self.start_reopening(cx, key, &backend, false, Cause::Closed);
        }
    }

    /// The client's last call has its answer, and the client has it.
    pub(super) fn settle_takings(&mut self, cx: &Context<'_>, out: &mut Outbox) {
        for (key, opened) in std::mem::take(&mut self.opened) {
            self.taken(cx, key, opened, out);
        }
    }

    /// It is over: the session is ours, or was refused.
    fn taken(&mut self, cx: &Context<'_>, key: usize, opened: bool, out: &mut Outbox) {
        let Some(entry) = self.entries.get(key).filter(|entry| entry.taking.is_some()) else {
            return;
        };
        let slot = entry.slot;
        if opened {
            self.show_asked(key, out);
        }
        self.change_entry(cx.now, key, |entry| entry.taking = None);
        self.note_waiting(key);
        if let Some(slot) = slot {
            if !opened && !self.entries[key].is_here() {
                self.undo_join(cx, key, out);
            }
            self.release_held(cx, key, slot, Purpose::Resume, false, out);
            self.pass_next_send(cx, key, out);
        }
        self.settle_entry(key);
    }

    /// The backend is not to hear of us for this session any more.
    pub(super) fn undo_join(&mut self, cx: &Context<'_>, key: usize, out: &mut Outbox) {
        self.unwatch(key);
        let entry = &mut self.entries[key];
        entry.turn = None;
        entry.forget_asked();
        let Some(slot) = entry.slot else { return };
        let params = reply::session_params(entry.id.as_str());
        self.call_own(
            cx,
            key,
            slot,
            Errand::Nobodys,
            "session.detach",
            &params,
            out,
        );
    }

    // Not getting there.

    /// Keeps an event from a client that does not have the answer to its call yet. Whether it did.
    pub(super) fn keep_early(&mut self, key: usize, body: &[u8], out: &mut Outbox) -> bool {
        let entry = &mut self.entries[key];
        let slot = entry.slot;
        let Some(taking) = entry.taking.as_mut().filter(|t| !t.answered) else {
            return false;
        };
        if let Some(upstream) = slot.and_then(|slot| self.upstreams.get_mut(slot)) {
            upstream.recent = usize::MAX;
        }
        if taking.early.len() + body.len() > EARLY {
            let early = std::mem::take(&mut taking.early);
            out.write(Dest::Client, |b| b.extend_from_slice(&early));
            out.write(Dest::Client, |b| frame(b, body));
        } else {
            frame(&mut taking.early, body);
        }
        true
    }

    /// A stage has taken too long.
    pub(super) fn taking_too_long(&mut self, cx: &Context<'_>, key: usize, out: &mut Outbox) {
        let silent = self.is_silent_here(key);
        let Some(taking) = &self.entries[key].taking else {
            return;
        };
        let ready = taking.stage != Stage::Joining && !silent;
        if ready || taking.answered {
            self.open_in_full(cx, key, out);
        } else if let Some(held) = self.give_up_taking(cx, key) {
            // From the start.
            self.held_bytes += held.body.len();
            self.entries[key].held.push_front(held);
            self.locate(key);
            self.settle_entry(key);
        }
    }

    /// It is not taken over any more; gives back the client's call, if it is still here.
    pub(super) fn give_up_taking(&mut self, cx: &Context<'_>, key: usize) -> Option<Held> {
        let mut taking = None;
        self.abandon_taking_errands(key);
        self.change_entry(cx.now, key, |entry| taking = entry.taking.take());
        self.note_waiting(key);
        let taking = taking?;
        let held = taking.held;
        self.held_bytes -= held.as_ref().map_or(0, |held| held.body.len());
        if matches!(
            taking.stage,
            Stage::Claiming | Stage::Asking | Stage::Awaiting
        ) {
            let note = Note::GivenUp(self.entries[key].id.clone());
            let to = taking.from;
            self.outputs.push_back(Output::Tell { to, note });
        }
        held.filter(|_| !taking.answered)
    }

    /// The client has cancelled the call by which it is taken over: whether it was that one.
    pub(super) fn cancel_taking(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        call: &crate::core::idmap::RequestId,
        out: &mut Outbox,
    ) -> bool {
        let entry = &self.entries[key];
        let held = entry
            .taking
            .as_ref()
            .and_then(|t| t.held.as_ref().filter(|_| !t.answered));
        if held.is_none_or(|held| held.call != *call) {
            return false;
        }
        self.give_up_taking(cx, key);
        self.undo_join(cx, key, out);
        true
    }

    /// The client has left while sessions were being taken over. Those whose parked connection
    /// leaves, or has left, are this one's now; the others stay with theirs.
    pub(super) fn let_takings_go(&mut self, cx: &Context<'_>) {
        for key in self.keys() {
            let Some(taking) = &self.entries[key].taking else {
                continue;
            };
            let ours = matches!(taking.stage, Stage::Awaiting | Stage::Opening);
            let runs = taking.stage == Stage::Awaiting && taking.ended.is_none();
            if !ours {
                // Its call is dropped with all others.
                self.give_up_taking(cx, key);
                if !self.entries[key].attached {
                    self.unwatch(key);
                    self.entries[key].turn = None;
                }
                continue;
            }
            let mut taking = None;
            self.abandon_taking_errands(key);
            self.change_entry(cx.now, key, |entry| {
                taking = entry.taking.take();
                entry.attached = true;
            });
            self.held_bytes -= taking.map_or(0, |taking| taking.held_bytes());
            self.note_waiting(key);
            if runs {
                self.assume_turn(cx.now, key);
            }
        }
    }

    fn abandon_taking_errands(&mut self, key: usize) {
        for own in self.own.iter_mut().filter(|own| own.key == key) {
            if matches!(own.errand, Errand::Join | Errand::OpenInFull) {
                own.errand = Errand::Nobodys;
            }
        }
    }
}
