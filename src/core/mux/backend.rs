//! Frames of backends: each answer to its call, each event to the client, each request under an id
//! of our own; and the handshake on a new upstream connection. How they end is in `end`.

use std::ops::{ControlFlow, Range};

use super::{
    Asker, Context, MAX_BACKEND_REQUESTS, Mux, Output,
    again::RetriedCall,
    answer::{
        is_not_found, is_null_id_error, is_shutting_down, result_session, says_failure,
        says_not_found, says_success, write_number,
    },
    calls::{Call, Place},
    client::{Frame, swap_id},
    note::HeldRequest,
    outbox::{Dest, Outbox},
    own::{Errand, OwnAnswer},
    parking::{KEPT_BODY, KEPT_REQUESTS, Request},
    place::write_frame,
    turn::frame,
    upstream::{GivenUp, Phase, SlotId, Waiting},
};
use crate::core::{
    connect,
    event::{CallOutcome, ClosedBy, Direction, FrameKind},
    frame::Cut,
    id::SessionId,
    idmap::RequestId,
    replay::Effect,
    reply::{self, ProxyError},
    route::{BackendClass, Class, classify_backend},
    scan::{self, Head, Kind},
};

/// The id of our own `connect` on a new upstream connection. Nothing else is sent before its
/// answer, so it cannot meet an id of the client.
const HANDSHAKE_ID: &[u8] = b"0";

impl Mux {
    /// The shell has connected this slot: the handshake begins.
    pub fn handle_upstream_connected(&mut self, cx: &Context<'_>, slot: SlotId, out: &mut Outbox) {
        let Some(upstream) = self.upstreams.get_mut(slot) else {
            return;
        };
        upstream.phase = Phase::Handshaking;
        let pool = cx.snapshot();
        let token = pool.get(&upstream.backend).and_then(|b| b.token.as_ref());
        let params = connect::upstream_params(&self.connect, token);
        out.write(Dest::Upstream(slot), |b| {
            reply::request(b, HANDSHAKE_ID, "connect", &params)
        });
    }

    /// Bytes of a backend. Returns how many were used up, as [`Mux::handle_client`] does: none while
    /// a large frame of [another one](Mux::passing) passes.
    pub fn handle_upstream(
        &mut self,
        cx: &Context<'_>,
        slot: SlotId,
        input: &[u8],
        out: &mut Outbox,
    ) -> usize {
        let mut done = 0;
        if self.upstreams.get(slot).is_some_and(|u| u.silent.is_some()) {
            self.speaks(cx, slot, out);
        }
        if self.is_through(slot) {
            match self.go_on(cx, slot, input, out) {
                ControlFlow::Continue(end) => done = end,
                ControlFlow::Break(end) => return end,
            }
        }
        loop {
            let (end, telling) = self.pass_run(cx.now, slot, input, done, out);
            done = end;
            if let Some(telling) = telling {
                done = self.pass_telling(cx, telling, done, out);
                continue;
            }
            let Some(upstream) = self.upstreams.get_mut(slot) else {
                break;
            };
            if done == input.len() && upstream.cutter.is_between_frames() {
                upstream.in_frame = false;
                self.try_freezes(cx);
                break;
            }
            match upstream.cutter.cut(&input[done..]) {
                Ok(Cut::Frame { header, body }) => {
                    let (header, body) = (
                        done + header.start..done + header.end,
                        done + body.start..done + body.end,
                    );
                    done = body.end;
                    self.handle_backend_frame(cx, slot, input, header, body, out);
                }
                Ok(Cut::Incomplete { total }) => {
                    upstream.in_frame = done < input.len();
                    self.try_freezes(cx);
                    if total.is_some_and(|total| total > cx.settings.cut_through_min) {
                        done = self.begin_through(cx, slot, input, done, out);
                    }
                    break;
                }
                Err(_) => {
                    self.violated(cx, slot, "sent something that is not a frame", out);
                    break;
                }
            }
        }
        done
    }

    fn handle_backend_frame(
        &mut self,
        cx: &Context<'_>,
        slot: SlotId,
        input: &[u8],
        header: Range<usize>,
        body: Range<usize>,
        out: &mut Outbox,
    ) {
        let size = body.end - header.start;
        let text = &input[body.clone()];
        let Ok(head) = scan::scan_backend(text) else {
            // Our own requests are valid, so an `id:null` error is about nothing that a client
            // sent: it is swallowed (two SDKs die of it, PROTOCOL §1).
            if is_null_id_error(text) {
                self.tally
                    .add(Direction::BackendToClient, FrameKind::Invalid, size);
            } else {
                self.violated(cx, slot, "sent a frame that is not JSON-RPC", out);
            }
            return;
        };
        let ready = self
            .upstreams
            .get(slot)
            .is_some_and(|u| u.phase == Phase::Ready);
        if !ready {
            self.handle_handshake(cx, slot, &head, text, out);
            return;
        }
        let frame = || Frame::Here {
            input,
            header: header.clone(),
            body: body.clone(),
        };
        let kind = match head.kind {
            Kind::Notification => {
                if self.handle_backend_notification(cx, slot, &head, text, out) {
                    self.pass_to_client(frame(), out);
                }
                FrameKind::Notification
            }
            Kind::Request => {
                self.handle_backend_request(cx, slot, &head, text, out);
                FrameKind::Request
            }
            Kind::Result => {
                if self.handle_backend_answer(cx, slot, &head, text, true, out) {
                    self.pass_to_client(frame(), out);
                }
                self.settle_takings(cx, out);
                FrameKind::Response
            }
            Kind::Error => {
                if self.handle_backend_answer(cx, slot, &head, text, false, out) {
                    self.pass_to_client(frame(), out);
                }
                self.settle_takings(cx, out);
                FrameKind::Error
            }
        };
        self.tally.add(Direction::BackendToClient, kind, size);
        self.close_if_quiet();
    }

    fn pass_to_client(&mut self, frame: Frame<'_>, out: &mut Outbox) {
        if self.is_heard() {
            write_frame(Dest::Client, frame, out);
        }
    }

    /// Anything that comes before the answer to our `connect` is not for the client.
    fn handle_handshake(
        &mut self,
        cx: &Context<'_>,
        slot: SlotId,
        head: &Head,
        body: &[u8],
        out: &mut Outbox,
    ) {
        if let (Kind::Request | Kind::Notification, _) | (_, None) = (head.kind, &head.id) {
            return;
        }
        if head
            .id
            .is_some_and(|id| id.token().of(body) != HANDSHAKE_ID)
        {
            self.violated(cx, slot, "answered a call that it was not asked", out);
            return;
        }
        // Servers from before `connect` say -32601 and need none (as the SDKs treat it).
        let old = head
            .error
            .is_some_and(|e| memchr::memmem::find(e.of(body), b"-32601").is_some());
        if head.kind == Kind::Error && !old {
            self.outputs.push_back(Output::CloseUpstream { slot });
            self.handle_upstream_closed(cx, slot, "refused our connect", out);
            return;
        }
        let Some(upstream) = self.upstreams.get_mut(slot) else {
            return;
        };
        upstream.phase = Phase::Ready;
        upstream.deadline = None;
        let waiting = std::mem::take(&mut upstream.waiting);
        upstream.note_idle(cx.now);
        for Waiting { call, body } in waiting {
            self.held_bytes -= body.len();
            out.write(Dest::Upstream(slot), |b| frame(b, &body));
            let record = call.as_ref().and_then(|id| self.calls.get(id));
            let key = record.and_then(|record| self.key_of(record));
            if let Some(key) = key
                && self.entries[key].gate.as_ref().map(|gate| &gate.call) == call.as_ref()
            {
                self.arm_gate(cx, key);
            }
        }
    }

    /// Whether the client shall have it.
    fn handle_backend_notification(
        &mut self,
        cx: &Context<'_>,
        slot: SlotId,
        head: &Head,
        body: &[u8],
        out: &mut Outbox,
    ) -> bool {
        let method = head.method.as_ref().and_then(|m| m.plain_bytes(body));
        let class = classify_backend(method.unwrap_or_default());
        if class != BackendClass::Lifecycle
            && class != BackendClass::Event
            && !self.may_hear(cx, slot, class, head, body)
        {
            return false;
        }
        match class {
            BackendClass::Lifecycle => false,
            BackendClass::Event => {
                let key = self.session_key(slot, head, body);
                match key.and_then(|key| Some((key, self.entries[key].here_at()?))) {
                    Some((key, here)) if here == slot => {
                        let kind = head.event_type.and_then(|t| t.plain_bytes(body));
                        let kind = kind.unwrap_or_default();
                        if self.is_told_already(key, kind, body) {
                            if kind == b"session.idle" {
                                self.ask_again(cx, key, out);
                            }
                            return false;
                        }
                        self.hear_event(cx, key, kind, body, out)
                    }
                    // It was open there before it was opened elsewhere: an echo.
                    Some(_) => false,
                    None => {
                        let named = head.session.map(|session| session.get(body));
                        let undone = named.filter(|session| self.is_undoing(slot, session));
                        if let Some(session) = undone {
                            // Who opens it next must not begin it anew.
                            if head
                                .event_type
                                .is_some_and(|t| &*t.get(body) == "user.message")
                            {
                                self.learn_history_of(SessionId::from(&*session), slot);
                            }
                            return false;
                        }
                        self.may_hear(cx, slot, class, head, body)
                    }
                }
            }
            BackendClass::Cancel => {
                self.handle_backend_cancel(slot, head, body, out);
                false
            }
            BackendClass::HostEvent
            | BackendClass::Telemetry
            | BackendClass::ShellExit
            | BackendClass::Session
            | BackendClass::Hook
            | BackendClass::Provider(_)
            | BackendClass::Token
            | BackendClass::Unknown => true,
        }
    }

    /// The entry of the session that a frame names. Events come in runs of one session, so the
    /// last one is looked at before the table.
    fn session_key(&mut self, slot: SlotId, head: &Head, body: &[u8]) -> Option<usize> {
        let text = head.session.as_ref()?;
        let recent = self.upstreams.get(slot)?.recent;
        if let (Some(entry), Some(plain)) = (self.entries.get(recent), text.plain_bytes(body))
            && entry.id.as_str().as_bytes() == plain
        {
            return Some(recent);
        }
        let key = *self.by_session.get(&*text.get(body))?;
        self.upstreams.get_mut(slot)?.recent = key;
        Some(key)
    }

    /// A backend asks the client something: under an id that no other backend uses.
    fn handle_backend_request(
        &mut self,
        cx: &Context<'_>,
        slot: SlotId,
        head: &Head,
        body: &[u8],
        out: &mut Outbox,
    ) {
        let Some(id) = &head.id else { return };
        let token = id.token().of(body);
        if self.requests.len() >= MAX_BACKEND_REQUESTS {
            // An error of ours would stand for the client's word, and a hook that fails lets its
            // tool run: the backend sees its client leave instead, which denies.
            let limit = "backend_requests";
            self.limit_hit(limit);
            let value = MAX_BACKEND_REQUESTS as u64;
            let error = ProxyError::LimitExceeded { limit, value };
            self.refuse(reply::NULL_ID, "", None, &error, out);
            let reason = "backend_requests: too many requests of backends are not answered";
            self.depart(cx, ClosedBy::Proxy, reason, false, out);
            return;
        }
        let method = head.method.as_ref().and_then(|m| m.plain_bytes(body));
        let class = method.map(classify_backend);
        let kind = class.unwrap_or(BackendClass::Unknown);
        if !self.may_hear(cx, slot, kind, head, body) {
            return;
        }
        let span = id.token().range();
        let keeps = cx.settings.detach_grace.is_some()
            && body.len() <= KEPT_BODY
            && self.requests.len() < KEPT_REQUESTS;
        let kept = Request {
            session: head
                .session
                .as_ref()
                .map(|s| SessionId::from(&*s.get(body))),
            is_hook: class == Some(BackendClass::Hook),
            body: keeps.then(|| HeldRequest {
                body: body.into(),
                id: span.clone(),
            }),
        };
        self.ask_client(Asker::Upstream(slot), token, span, body, kept, out);
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "each names one fact of the one step"
    )]
    pub(super) fn ask_client(
        &mut self,
        asker: Asker,
        token: &[u8],
        id: Range<usize>,
        body: &[u8],
        kept: Request,
        out: &mut Outbox,
    ) {
        let ours = self.requests.assign(asker, token, kept);
        if !self.is_heard() {
            self.hold_request(ours);
            return;
        }
        let mut digits = [0; 20];
        let ours = write_number(ours, &mut digits);
        out.write(Dest::Client, |b| swap_id(b, body, id, ours));
    }

    /// A request that came over a provider connection of Taxiway's own, for the client that
    /// claimed the place. `token` comes back with the answer ([`Output::ProviderAnswer`]).
    /// Returns false, and does nothing, if the client cannot be asked.
    pub fn handle_provider_request(&mut self, token: u64, body: &[u8], out: &mut Outbox) -> bool {
        let Ok(head) = scan::scan_backend(body) else {
            return false;
        };
        let Some(id) = &head.id else { return false };
        if !self.is_heard() || self.requests.len() >= MAX_BACKEND_REQUESTS {
            return false;
        }
        let span = id.token();
        let kept = Request {
            session: None,
            is_hook: false,
            body: None,
        };
        self.ask_client(
            Asker::Provider(token),
            span.of(body),
            span.range(),
            body,
            kept,
            out,
        );
        true
    }

    fn handle_backend_cancel(&mut self, slot: SlotId, head: &Head, body: &[u8], out: &mut Outbox) {
        let Some(id) = &head.places.cancel_id else {
            return;
        };
        let span = id.token();
        if let Some(ours) = self.requests.find(Asker::Upstream(slot), span.of(body)) {
            let mut digits = [0; 20];
            let ours = write_number(ours, &mut digits);
            if self.is_heard() {
                out.write(Dest::Client, |b| swap_id(b, body, span.range(), ours));
            }
        }
    }

    /// Whether the client shall have it.
    pub(super) fn handle_backend_answer(
        &mut self,
        cx: &Context<'_>,
        slot: SlotId,
        head: &Head,
        body: &[u8],
        succeeded: bool,
        out: &mut Outbox,
    ) -> bool {
        let Some(id) = &head.id else { return false };
        let id = RequestId::read(id, body);
        if let Some(upstream) = self.upstreams.get_mut(slot)
            && let Some(late) = upstream.given_up.remove(&id)
        {
            if succeeded {
                self.succeeded_late(cx, slot, &late, head, body, out);
            }
            return false;
        }
        if !succeeded && is_shutting_down(head, body) {
            // It does nothing any more, and will be gone in a moment: better to leave at once than to
            // have each call refused, above all those that a turn waits for.
            self.outputs.push_back(Output::CloseUpstream { slot });
            self.handle_upstream_dropped(cx, slot, "the backend is shutting down", out);
            return false;
        }
        let call = self.calls.get(&id);
        let wants_save = call.is_some_and(|call| call.effect.wants_save());
        if call.and_then(Call::at) != Some(slot) {
            if let Some(own) = self.take_own(slot, &id) {
                let session = self.session_of(&own);
                let not_found = !succeeded && is_not_found(head, body, session.as_ref());
                let answer = OwnAnswer {
                    succeeded,
                    not_found,
                    result: head.result.map(|r| r.of(body)).unwrap_or_default(),
                };
                self.handle_own_answer(cx, &own, &answer, out);
                return false;
            }
            self.violated(cx, slot, "answered a call that it was not asked", out);
            return false;
        }
        if succeeded && wants_save && self.withhold(cx, slot, &id, body, out) {
            return false;
        }
        let Some(mut call) = self.take_call(cx, &id) else {
            return false;
        };
        let not_found = !succeeded && is_not_found(head, body, call.session.as_ref());
        if let Some(original) = call.fallback.take_if(|_| not_found) {
            // Nothing to resume after all: the create goes out as the client wrote it.
            call.place = Place::Held;
            self.held_bytes += call.kept_bytes();
            self.calls.insert(id.clone(), call);
            self.forward(cx, slot, Some(id), Frame::Kept(original.into_vec()), out);
            return false;
        }
        let retried = not_found
            .then(|| self.retry_not_found(cx, slot, &id, &mut call, out))
            .flatten();
        if retried == Some(RetriedCall::Held) {
            let key = self.key_of(&call);
            call.place = Place::Held;
            self.held_bytes += call.kept_bytes();
            self.calls.insert(id, call);
            if let Some(key) = key {
                self.goes_on(cx, key, out);
            }
            return false;
        }
        if let Some(key) = self.key_at(&call, slot).filter(|_| !not_found) {
            self.entries[key].answered = Some(cx.now);
        }
        let outcome = if succeeded {
            CallOutcome::Ok
        } else {
            CallOutcome::BackendError
        };
        self.call_ended(cx, &call, outcome);
        let sends = matches!(call.class, Class::Send(_));
        if succeeded {
            if !sends {
                self.succeeded(cx, slot, &call, head, body, out);
            }
        } else {
            self.note_unanswered(&call);
            if !not_found {
                self.keep_refused(cx.now, slot, &call);
            }
            if not_found && !call.attaches() && retried.is_none() {
                self.lost_sight(cx, slot, &call, out);
            }
        }
        if sends {
            self.send_settled(cx, &id, &call, succeeded.then_some((head, body)), out);
        } else {
            let opened = succeeded && !(call.class == Class::Open && says_not_found(head, body));
            self.attach_settled(cx, &call, opened, out);
            if let Some(key) = self.key_of(&call) {
                self.settle_entry(key);
            }
        }
        self.recycle(&mut call);
        self.spares().keep_call(call);
        true
    }

    /// What the success of a call changes.
    fn succeeded(
        &mut self,
        cx: &Context<'_>,
        slot: SlotId,
        call: &Call,
        head: &Head,
        body: &[u8],
        out: &mut Outbox,
    ) {
        let Some(upstream) = self.upstreams.get(slot) else {
            return;
        };
        let backend = upstream.backend.clone();
        match (call.class, &call.session) {
            (Class::Create | Class::Open, None) => {
                if let Some(session) = result_session(head, body) {
                    self.outputs.push_back(Output::Adopt {
                        session: session.clone(),
                        backend,
                    });
                    let key = self.adopt(cx, slot, session);
                    self.keep_params(key, call);
                }
            }
            (Class::Fork, Some(source)) => {
                if let Some(copy) = result_session(head, body) {
                    let source = source.clone();
                    self.outputs.push_back(Output::Forked {
                        source,
                        copy,
                        backend,
                    });
                }
            }
            (Class::Detach, Some(_)) => {
                if let Some(key) = self.key_of(call).filter(|key| self.is_away(*key)) {
                    self.left_while_away(cx, key, call, out);
                } else if let Some(key) = self.key_at(call, slot) {
                    self.abort_orphan(cx, key, slot, out);
                    self.detached(cx, key);
                    self.settle_entry(key);
                }
            }
            (Class::Close, Some(session)) => {
                let closed = Output::Closed {
                    session: session.clone(),
                    backend,
                };
                self.closed(cx, self.key_at(call, slot), closed);
            }
            (Class::Delete, Some(session)) if says_success(head, body) => {
                let deleted = Output::Deleted(session.clone());
                self.closed(cx, self.key_of(call), deleted);
            }
            (Class::Session, Some(_)) if !matches!(call.effect, Effect::Read | Effect::Kept) => {
                if let Some(key) = self.key_at(call, slot) {
                    let answer = OwnAnswer {
                        succeeded: !says_failure(head, body),
                        not_found: false,
                        result: head.result.map(|r| r.of(body)).unwrap_or_default(),
                    };
                    self.note_effect(cx, key, call, &answer, out);
                }
            }
            _ => {}
        }
    }

    /// A call has succeeded that its client was told to be lost: what it has done to who is attached
    /// is undone, since the client goes by what it was told.
    fn succeeded_late(
        &mut self,
        cx: &Context<'_>,
        slot: SlotId,
        late: &GivenUp,
        head: &Head,
        body: &[u8],
        out: &mut Outbox,
    ) {
        let Some(backend) = self.upstreams.get(slot).map(|u| u.backend.clone()) else {
            return;
        };
        let Some(session) = &late.session else { return };
        let key = self.by_session.get(session).copied();
        let here = key.filter(|key| self.entries[*key].slot == Some(slot));
        if let Some(key) = here.filter(|key| self.entries[*key].parked.is_some()) {
            // The last that its client has said before it left.
            let deleted = late.class == Class::Delete && says_success(head, body);
            if deleted || late.class == Class::Detach {
                let news = deleted.then(|| Output::Deleted(session.clone()));
                self.outputs.extend(news);
                self.parked_closed(cx, key, out);
            }
            return;
        }
        if late.class == Class::Detach {
            if let Some(key) = here.filter(|key| self.entries[*key].attached) {
                if self.may_reopen(key) {
                    self.closed_in_silence(cx, key, &backend, out);
                } else {
                    self.detached(cx, key);
                    self.settle_entry(key);
                }
            }
        } else if matches!(late.class, Class::Create | Class::Resume) {
            let wanted = here.is_some_and(|key| self.entries[key].is_here());
            if !wanted {
                let params = reply::session_params(session.as_str());
                let nobody = key.unwrap_or(usize::MAX);
                let errand = Errand::Undo(session.clone());
                self.call_own(cx, nobody, slot, errand, "session.detach", &params, out);
            }
        } else if late.class == Class::Delete && says_success(head, body) {
            self.closed(cx, key, Output::Deleted(session.clone()));
        }
    }

    /// A session whose id the backend chose: this connection is attached to it.
    fn adopt(&mut self, cx: &Context<'_>, slot: SlotId, session: SessionId) -> usize {
        let key = match self.by_session.get(&session) {
            Some(key) => *key,
            None => self.new_entry(session),
        };
        if self.entries[key].is_here() {
            return key;
        }
        self.change_entry(cx.now, key, |entry| {
            entry.slot = Some(slot);
            entry.attached = true;
            entry.attachments += 1;
        });
        self.claim(key);
        let session = self.entries[key].id.clone();
        self.outputs.push_back(Output::Attached(session));
        key
    }

    /// The entry of a call's session, if that session is served by `slot`: what another backend
    /// says of it does not concern the one that is attached.
    pub(super) fn key_at(&self, call: &Call, slot: SlotId) -> Option<usize> {
        self.key_of(call)
            .filter(|key| self.entries[*key].slot == Some(slot))
    }
}
