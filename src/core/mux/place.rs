//! From a request that names a session, or none, to the upstream connection that shall have it:
//! what is held, what is asked, what is claimed, what is dispatched.

use std::time::Instant;

use super::{
    Context, CreateExisting, Locate, Located, Mux, Output, UPSTREAM_DEADLINE,
    calls::{Call, Place},
    client::Frame,
    outbox::{Dest, Outbox},
    session::{Entry, Held, Rest, seat},
    turn::{frame, trace_id},
    upstream::{Phase, SlotId, Waiting},
};
use crate::core::{
    event::{ClosedBy, Event, PlacementReason},
    frame::{FrameLimits, is_plain_header},
    id::{BackendName, SessionId},
    idmap::RequestId,
    locate::Purpose,
    replay::Effect,
    reply::{LostBy, ProxyError},
    route::{Class, SendKind},
    scan::{self, Head},
};

/// What waits for the answer to a [`Locate`].
#[derive(Debug)]
pub(super) enum Question {
    /// The requests held by this session.
    Session(usize),
    /// The session itself, to be opened again.
    Reopen(usize),
    /// One request without a session.
    Call(Held),
}

impl Mux {
    /// A call that any backend may serve: one that this client has already, else the shell picks.
    pub(super) fn route_anywhere(
        &mut self,
        cx: &Context<'_>,
        frame: Frame<'_>,
        id: RequestId,
        record: Box<Call>,
        out: &mut Outbox,
    ) {
        // A create without an id is a placement like any other.
        let placed = matches!(record.class, Class::Create | Class::Open);
        let pool = cx.snapshot();
        let ready = self
            .upstreams
            .iter()
            .filter(|(_, u)| !placed && u.phase == Phase::Ready)
            .find(|(_, u)| pool.get(&u.backend).is_some_and(|b| b.is_usable()))
            .map(|(slot, _)| slot);
        let ready = ready.filter(|_| record.also.is_empty());
        self.calls.insert(id.clone(), record);
        match ready {
            Some(slot) => self.forward(cx, slot, Some(id), frame, out),
            None if !self.may_hold(frame.body().len(), cx.settings) => {
                let error = self.too_much_held(cx.settings);
                self.fail(cx, &id, &error, out);
            }
            None => {
                let held = Held {
                    call: id,
                    purpose: Purpose::Use,
                    body: frame.keep(),
                    since: cx.now,
                };
                self.place_call(held);
            }
        }
    }

    /// Asks for a backend for a call without a session.
    pub(super) fn place_call(&mut self, held: Held) {
        let ticket = self.ticket();
        let call = self.calls.get(&held.call);
        let purpose = match call.map(|c| c.class) {
            Some(Class::Create | Class::Open) => Purpose::Create,
            _ => Purpose::Use,
        };
        let avoid = call.map(|c| c.avoided.clone()).unwrap_or_default();
        let also = self.ask_besides(&held.call, ticket);
        self.held_bytes += held.body.len();
        self.questions.insert(ticket, Question::Call(held));
        self.outputs.push_back(Output::Locate(Locate {
            ticket,
            session: None,
            purpose,
            avoid,
            principal: self.principal.clone(),
            also,
        }));
    }

    /// The sessions that a call names besides, which the question with this ticket is about, too.
    fn ask_besides(&mut self, call: &RequestId, ticket: u64) -> Vec<SessionId> {
        let Some(call) = self.calls.get_mut(call).filter(|c| !c.also.is_empty()) else {
            return Vec::new();
        };
        call.judged_by = Some(ticket);
        call.also
            .iter()
            .map(|(_, session)| session.clone())
            .collect()
    }

    /// A call that names a session: straight on if this connection hears it already, else the
    /// shell is asked where it is.
    #[allow(clippy::too_many_arguments, reason = "a call is too large to be moved")]
    pub(super) fn route_to_session(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        head: &Head,
        frame: Frame<'_>,
        id: RequestId,
        mut record: Box<Call>,
        out: &mut Outbox,
    ) {
        let purpose = Call::purpose(record.class);
        let entry = &self.entries[key];
        record.session = Some(entry.id.clone());
        let alone = record.also.is_empty();
        self.calls.insert(id.clone(), record);
        let direct = entry.locating.is_none()
            && entry.reopening.is_none()
            && !entry.is_changing_hands()
            && purpose == Purpose::Use
            && alone;
        let slot = entry.here_at().filter(|_| direct);
        if let Some(slot) = slot.filter(|_| !self.is_silent_here(key)) {
            self.dispatch(cx, key, slot, (id, cx.now), head, frame, false, out);
        } else if !self.may_hold(frame.body().len(), cx.settings) {
            self.answer_fails(cx, key, &id, frame.body(), out);
            let error = self.too_much_held(cx.settings);
            self.fail(cx, &id, &error, out);
        } else {
            let held = Held {
                call: id,
                purpose,
                body: frame.keep(),
                since: cx.now,
            };
            self.held_bytes += held.body.len();
            self.entries[key].held.push_back(held);
            self.locate(key);
        }
    }

    /// Whether one more session may be attached by this connection.
    pub(super) fn has_room(&self, limit: usize) -> bool {
        // Mostly there is no need to look closer.
        if self.entries.len() + self.calls.len() < limit {
            return true;
        }
        let named = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.has_place())
            .count();
        let unnamed = self
            .calls
            .count(|c| c.session.is_none() && matches!(c.class, Class::Create | Class::Open));
        named + unnamed < limit
    }

    pub(super) fn new_entry(&mut self, session: SessionId) -> usize {
        let key = seat(&mut self.entries, Entry::new(session.clone()));
        self.by_session.insert(session, key);
        key
    }

    /// Requests that were on their way already are located anew, before what was written later.
    pub(super) fn requeue(&mut self, session: SessionId, list: Vec<Held>) {
        let key = match self.by_session.get(&session) {
            Some(key) => *key,
            None => self.new_entry(session),
        };
        for held in list.into_iter().rev() {
            self.held_bytes += held.body.len();
            self.entries[key].held.push_front(held);
        }
        self.locate(key);
    }

    /// Asks where the session is, for the first request held, unless the question is out, or the
    /// answer is known and has to be waited for.
    pub(super) fn locate(&mut self, key: usize) {
        let entry = &self.entries[key];
        let (None, Some(first)) = (entry.locating, entry.held.front()) else {
            return;
        };
        let purpose = first.purpose;
        if entry.reopening.is_some()
            || entry.taking.is_some() && (entry.is_changing_hands() || purpose.attaches())
            || purpose == Purpose::Use && self.is_silent_here(key)
        {
            self.note_waiting(key);
            return;
        }
        let avoid = self
            .calls
            .get(&first.call)
            .map(|c| c.avoided.clone())
            .unwrap_or_default();
        let ticket = self.ticket();
        let entry = &mut self.entries[key];
        entry.locating = Some((ticket, purpose));
        let first = entry.held.front().map(|held| held.call.clone());
        let also = first.map(|call| self.ask_besides(&call, ticket));
        self.note_waiting(key);
        let entry = &self.entries[key];
        let session = Some(entry.id.clone());
        self.questions.insert(ticket, Question::Session(key));
        self.outputs.push_back(Output::Locate(Locate {
            ticket,
            session,
            purpose,
            avoid,
            principal: self.principal.clone(),
            also: also.unwrap_or_default(),
        }));
    }

    /// The answer to [`Output::Locate`].
    pub fn handle_located(
        &mut self,
        cx: &Context<'_>,
        ticket: u64,
        answer: Result<Located, ProxyError>,
        out: &mut Outbox,
    ) {
        match self.take_question(ticket) {
            // Cancelled meanwhile.
            None => {}
            Some(Question::Call(held)) => {
                self.held_bytes -= held.body.len();
                let opens = self.calls.get(&held.call);
                let opens = opens.is_some_and(|c| matches!(c.class, Class::Create | Class::Open));
                let room = if opens {
                    let room = cx.commons.may_open(cx.settings);
                    room.map_err(|over| self.over_cap(over))
                } else {
                    Ok(())
                };
                match room.and(answer) {
                    Ok(located) => {
                        let slot = self.slot_for(cx, &located.backend);
                        let limit = cx.settings.session_params;
                        if let Some(call) = self.calls.get_mut(&held.call)
                            && call.class == Class::Create
                            && held.body.len() <= limit
                        {
                            call.copy = Some(held.body.clone());
                            self.held_bytes += held.body.len();
                        }
                        self.forward(cx, slot, Some(held.call), Frame::Kept(held.body), out);
                    }
                    Err(error) => self.fail(cx, &held.call, &error, out),
                }
            }
            Some(Question::Reopen(key)) => self.reopen_located(cx, key, answer, out),
            Some(Question::Session(key)) => {
                let Some((_, purpose)) = self.entries[key].locating.take() else {
                    return;
                };
                let first = self.entries[key].held.front().map(|held| held.call.clone());
                let first = first.and_then(|call| self.calls.get_mut(&call));
                let judged = first.filter(|call| call.judged_by == Some(ticket));
                match answer {
                    Ok(located) => {
                        if let Some(call) = judged {
                            call.also.clear();
                        }
                        self.session_located(cx, key, purpose, located, out);
                    }
                    Err(error) => {
                        let asked = judged.is_some();
                        self.session_missed(cx, key, purpose, &error, asked, out);
                    }
                }
            }
        }
        self.close_if_quiet();
    }

    /// The answer to this question would have been out of date: it is asked once more, if it is
    /// waited for still.
    pub fn handle_astray(&mut self, question: Locate) {
        if self.awaits(question.ticket) {
            self.outputs.push_back(Output::Locate(question));
        }
    }

    /// Fails what the question was for. What waits for something else behind it is asked anew.
    fn session_missed(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        purpose: Purpose,
        error: &ProxyError,
        asked: bool,
        out: &mut Outbox,
    ) {
        let entry = &mut self.entries[key];
        let besides = matches!(error, ProxyError::Unseen { session, .. } if *session != entry.id);
        let held = &mut entry.held;
        // What the first call names besides concerns no other.
        let run = if besides {
            usize::from(asked)
        } else {
            held.iter().take_while(|h| h.purpose == purpose).count()
        };
        let failed: Vec<Held> = held.drain(..run).collect();
        self.locate(key);
        for held in failed {
            self.held_bytes -= held.body.len();
            self.fail(cx, &held.call, error, out);
        }
        self.settle_entry(key);
    }

    fn session_located(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        purpose: Purpose,
        located: Located,
        out: &mut Outbox,
    ) {
        self.entries[key].relation = located.relation;
        if purpose.attaches() {
            // Counted by the shell; given back below if nothing attaches after all.
            let entry = &mut self.entries[key];
            if !entry.claimed {
                entry.claimed = true;
                self.claimed += 1;
            }
            if let Err(over) = cx.commons.seat_session(cx.settings, &entry.id) {
                let error = self.over_cap(over);
                self.session_missed(cx, key, purpose, &error, true, out);
                return;
            }
            let entry = &self.entries[key];
            self.outputs.push_back(Output::Event(Event::Placement {
                connection: self.id,
                session: entry.id.clone(),
                backend: located.backend.clone(),
                reason: located.reason,
            }));
        }
        if !self.entries[key].held.is_empty() {
            let slot = self.slot_for(cx, &located.backend);
            self.move_entry(cx, key, slot, out);
            // Where it is open the CLI itself knows what a create on it means; but whether its owner
            // has it open is not known here: it may have been restarted, or chosen a moment ago.
            let resumes = cx.settings.create_existing == CreateExisting::Resume;
            let is_open = located.reason == PlacementReason::Owner;
            let closed_history = located.has_history && (resumes || !is_open);
            if let Some(from) = located.parked
                && self.take_over(cx, key, from, closed_history, out)
            {
                return;
            }
            self.release_held(cx, key, slot, purpose, closed_history, out);
        }
        self.settle_entry(key);
    }

    /// From now on the session is served by `slot`.
    fn move_entry(&mut self, cx: &Context<'_>, key: usize, slot: SlotId, out: &mut Outbox) {
        let entry = &self.entries[key];
        if entry.slot == Some(slot) {
            return;
        }
        if entry.turn.is_some() {
            // It is open elsewhere, so it was closed there, without a word.
            self.lose_turn(cx, key, &LostBy::Closed, ClosedBy::Backend, out);
        }
        let entry = &self.entries[key];
        let attaching = self.calls.count(|call| {
            call.attaches() && call.at() == Some(slot) && call.session.as_ref() == Some(&entry.id)
        });
        let attaching = u32::try_from(attaching).expect("bounded by limits.calls_per_connection");
        self.unwatch(key);
        self.change_entry(cx.now, key, |entry| {
            entry.slot = Some(slot);
            entry.attached = false;
            entry.attaching = attaching;
            entry.turn = None;
            entry.rest = Rest::Nothing;
        });
        // What waited for an attach there does not any more.
        self.pass_next_send(cx, key, out);
    }

    /// Sends on what was held for this session, up to the first request that needs more than the
    /// answered question gives.
    pub(super) fn release_held(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        slot: SlotId,
        asked_for: Purpose,
        has_history: bool,
        out: &mut Outbox,
    ) {
        while let Some(entry) = self.entries.get_mut(key) {
            let waits = entry.reopening.is_some() || entry.is_changing_hands();
            let Some(next) = entry.held.front().filter(|_| !waits) else {
                break;
            };
            let enough = match next.purpose {
                Purpose::Use => true,
                Purpose::Create | Purpose::Resume | Purpose::Reopen => asked_for.attaches(),
                Purpose::Delete => asked_for == Purpose::Delete,
            };
            let call = self.calls.get(&next.call);
            let enough = enough && call.is_none_or(|call| call.also.is_empty());
            if !enough {
                self.locate(key);
                break;
            }
            let Some(held) = entry.next_held() else {
                break;
            };
            self.held_bytes -= held.body.len();
            let head = scan::scan(&held.body).expect("it was scanned when it came");
            let frame = Frame::Kept(held.body);
            self.dispatch(
                cx,
                key,
                slot,
                (held.call, held.since),
                &head,
                frame,
                has_history,
                out,
            );
        }
    }

    /// One request of a session to the upstream connection that serves it.
    #[allow(
        clippy::too_many_arguments,
        reason = "each names one fact of the one step"
    )]
    pub(super) fn dispatch(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        slot: SlotId,
        (id, since): (RequestId, Instant),
        head: &Head,
        mut frame: Frame<'_>,
        has_history: bool,
        out: &mut Outbox,
    ) {
        let Some(call) = self.calls.get(&id) else {
            return;
        };
        let (class, effect) = (call.class, call.effect);
        let copies = self.may_copy(cx, key, call);
        let refused = self.beyond_member(key, call, head, frame.body());
        if let Some(error) = refused.or_else(|| self.foreign_turn(cx, key, class)) {
            self.fail(cx, &id, &error, out);
            return;
        }
        if effect == Effect::Disinterest
            && let Some(body) = self.name_interest(key, frame.body())
        {
            frame = Frame::Kept(body);
        }
        if copies {
            self.keep_copy(cx, &id, frame.body());
        }
        let (entry, Some(call)) = (&self.entries[key], self.calls.get_mut(&id)) else {
            return;
        };
        call.attachment = entry.attached.then_some(entry.attachments);
        if let Class::Send(_) = class {
            if head.wait {
                call.class = Class::Send(SendKind::TurnEnd);
            }
            let trace = trace_id(head, frame.body());
            self.pass_send(cx, key, (id, since), frame, trace, out);
            return;
        }
        if call.class == Class::Create && has_history {
            let action = match cx.settings.create_existing {
                CreateExisting::Resume => "resume",
                CreateExisting::Pass => "pass",
                CreateExisting::Reject => "reject",
            };
            let session = entry.id.clone();
            self.outputs
                .push_back(Output::Event(Event::CreateExisting { session, action }));
            match cx.settings.create_existing {
                CreateExisting::Resume => {
                    let original = frame.keep();
                    let resumed = as_resume(&original, head);
                    self.held_bytes += original.len();
                    call.fallback = Some(original.into_boxed_slice());
                    frame = Frame::Kept(resumed);
                }
                CreateExisting::Pass => {}
                CreateExisting::Reject => {
                    let reason = "a session with this id exists and has a history; use \
                                  session.resume, or delete it first (sessions.create_existing)";
                    let method = call.method.as_str().to_owned();
                    self.fail(cx, &id, &ProxyError::MethodDenied { method, reason }, out);
                    return;
                }
            }
        }
        if self.calls.get(&id).is_some_and(Call::attaches) {
            self.change_entry(cx.now, key, |entry| entry.attaching += 1);
        }
        self.forward_vouched(cx, key, slot, id, head, frame, out);
    }

    /// The upstream connection to `backend`: the one there is, or a new one.
    pub(super) fn slot_for(&mut self, cx: &Context<'_>, backend: &BackendName) -> SlotId {
        if let Some(slot) = self.upstreams.find(backend) {
            return slot;
        }
        let limits = FrameLimits {
            header: 64 * 1024,
            frame: super::BACKEND_FRAME,
        };
        let slot = self
            .upstreams
            .open(backend.clone(), limits, cx.now + UPSTREAM_DEADLINE);
        self.outputs.push_back(Output::Connect {
            slot,
            backend: backend.clone(),
        });
        slot
    }

    /// Forwards a frame to an upstream connection, or lets it wait for the handshake there.
    pub(super) fn forward(
        &mut self,
        cx: &Context<'_>,
        slot: SlotId,
        call: Option<RequestId>,
        frame: Frame<'_>,
        out: &mut Outbox,
    ) {
        let Some(upstream) = self.upstreams.get(slot) else {
            debug_assert!(false, "only slots that are there are given out");
            return;
        };
        // What was held already may wait on.
        if upstream.phase != Phase::Ready
            && let (Frame::Here { body, .. }, Some(id)) = (&frame, &call)
            && !self.may_hold(body.len(), cx.settings)
        {
            let error = self.too_much_held(cx.settings);
            self.fail(cx, id, &error, out);
            return;
        }
        let Some(upstream) = self.upstreams.get_mut(slot) else {
            return;
        };
        if let Some(record) = call.as_ref().and_then(|id| self.calls.get_mut(id)) {
            debug_assert!(record.at().is_none(), "a call is forwarded once");
            record.place = Place::At(slot);
            upstream.calls += 1;
        }
        upstream.note_idle(cx.now);
        if upstream.phase != Phase::Ready {
            let body = frame.keep();
            self.held_bytes += body.len();
            upstream.waiting.push(Waiting { call, body });
            return;
        }
        write_frame(Dest::Upstream(slot), frame, out);
    }

    // The one place where entries change what others count.

    /// Changes an entry, and keeps the upstream's count of attached sessions true.
    pub(super) fn change_entry(
        &mut self,
        now: Instant,
        key: usize,
        change: impl FnOnce(&mut Entry),
    ) {
        let entry = &mut self.entries[key];
        let before = entry.here_at();
        change(entry);
        let after = entry.here_at();
        if before == after {
            return;
        }
        if let Some(upstream) = before.and_then(|slot| self.upstreams.get_mut(slot)) {
            upstream.attached -= 1;
            upstream.note_idle(now);
        }
        if let Some(upstream) = after.and_then(|slot| self.upstreams.get_mut(slot)) {
            upstream.attached += 1;
            upstream.note_idle(now);
        }
    }

    /// This connection is attached, so the directory must count it: mostly it does already, but a
    /// close may have come in between, and an id that the backend chose was never claimed.
    pub(super) fn claim(&mut self, key: usize) {
        let entry = &mut self.entries[key];
        let Some(slot) = entry.slot else { return };
        let Some(upstream) = self.upstreams.get(slot) else {
            return;
        };
        if !entry.claimed {
            entry.claimed = true;
            self.claimed += 1;
            let (session, backend) = (entry.id.clone(), upstream.backend.clone());
            self.outputs.push_back(Output::Adopt { session, backend });
        }
    }

    /// The directory need not count this connection any more.
    pub(super) fn release(&mut self, key: usize) {
        if !self.unclaim(key) {
            return;
        }
        let session = self.entries[key].id.clone();
        self.outputs.push_back(Output::Release(session.clone()));
        // The answer to a question that is not even asked yet may claim anew: after this.
        let asked = |output: &Output| matches!(output, Output::Locate(l) if l.session.as_ref() == Some(&session));
        if let Some(question) = self
            .outputs
            .iter()
            .position(asked)
            .and_then(|at| self.outputs.remove(at))
        {
            self.outputs.push_back(question);
        }
    }

    /// Forgets the claim without a word; whether there was one.
    pub(super) fn unclaim(&mut self, key: usize) -> bool {
        let entry = &mut self.entries[key];
        let was = std::mem::replace(&mut entry.claimed, false);
        self.claimed -= usize::from(was);
        was
    }

    /// Gives back the claim of an entry that needs none, and drops one that nothing needs.
    pub(super) fn settle_entry(&mut self, key: usize) {
        self.note_waiting(key);
        let Some(entry) = self.entries.get(key) else {
            return;
        };
        let waited_for =
            entry.locating.is_some() || entry.reopening.is_some() || entry.parked.is_some();
        if entry.claimed && !entry.is_here() && !waited_for && entry.held.is_empty() {
            self.release(key);
        }
        if self.entries[key].is_spent() {
            let entry = self.entries.remove(key);
            self.waiting -= usize::from(entry.waits);
            self.by_session.remove(&entry.id);
        }
    }
}

/// Writes a frame as it stands if its header has the form that every reader takes.
pub(super) fn write_frame(dest: Dest, kept: Frame<'_>, out: &mut Outbox) {
    match kept {
        Frame::Here {
            input,
            header,
            body,
        } if is_plain_header(&input[header.clone()]) => {
            out.pass(dest, header.start..body.end);
        }
        Frame::Here { input, body, .. } => {
            out.write(dest, |b| frame(b, &input[body]));
        }
        Frame::Kept(body) => {
            out.write(dest, |b| frame(b, &body));
        }
    }
}

/// A `session.create` as the `session.resume` with the same params.
fn as_resume(body: &[u8], head: &Head) -> Vec<u8> {
    let mut resumed = Vec::with_capacity(body.len());
    let span = head.method.map(|m| m.span.range()).unwrap_or_default();
    resumed.extend_from_slice(&body[..span.start]);
    resumed.extend_from_slice(b"session.resume");
    resumed.extend_from_slice(&body[span.end..]);
    resumed
}
