//! Answers to requests of a session, where there are several users. The CLI takes some of them under
//! the id of any session that is open, so the `requestId` alone decides whose turn they go to (see
//! `route::asked_by`). What this connection has heard the session ask is answered at once. Of
//! everything else the session's own log has to say first that it was asked there: the client may
//! know of it from before it attached, and from before this process.
//!
//! Nothing is remembered beyond the call itself, so that it holds however sessions move.

use std::sync::Arc;

use serde::Deserialize;

use super::{
    Context, Mux, Output,
    again::RetriedCall,
    calls::{Call, Place},
    client::Frame,
    outbox::{Dest, Outbox},
    own::{Errand, OwnAnswer},
    place::write_frame,
    upstream::{GivenUp, SlotId, Waiting},
};
use crate::core::{
    access::Denial,
    event::{CallOutcome, Direction, Event, FrameKind},
    id::SessionId,
    idmap::RequestId,
    replay::Effect,
    reply::{self, ProxyError},
    route::{self, Class, NamedAt},
    scan::Head,
};

/// How many of the newest requests of a session count: those of one turn that are open at a time.
const NEWEST: usize = 100;

/// What the CLI says of a request that it does not know, by experiment.
const UNKNOWN_REQUEST: &str = r#"{"success":false}"#;

/// A call that has not left: its session is asked first whether it asked for this.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Vouching {
    /// The question, of several under one call's id.
    ticket: u64,
    request: String,
    event: &'static str,
    pub(super) body: Vec<u8>,
}

/// Such a call whose client has left while its turn stays: it has answered all the same.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct LastWord {
    id: RequestId,
    class: Class,
    pub(super) session: Option<SessionId>,
    vouching: Vouching,
}

impl Mux {
    /// The client has left, and `call` waits to be vouched for.
    pub(super) fn keep_last_word(&mut self, id: &RequestId, call: &mut Call) {
        let Some(vouching) = call.vouching.take() else {
            return;
        };
        // What is held for a client does not count any more.
        self.held_bytes -= vouching.body.len();
        let asks = Errand::Vouch(id.clone(), vouching.ticket);
        if let Some(own) = self.own.iter_mut().find(|own| own.errand == asks) {
            own.errand = Errand::VouchLate(Box::new(LastWord {
                id: id.clone(),
                class: call.class,
                session: call.session.clone(),
                vouching,
            }));
        }
    }

    /// The session's log has said what it asked; nobody hears what comes of it.
    pub(super) fn vouched_late(
        &mut self,
        slot: SlotId,
        word: &LastWord,
        answer: &OwnAnswer<'_>,
        out: &mut Outbox,
    ) {
        let LastWord {
            id,
            class,
            session,
            vouching,
        } = word;
        let is_theirs = answer.succeeded
            && has_asked(answer.result, vouching.event, &vouching.request) == Some(true);
        if let Some(upstream) = self.upstreams.get_mut(slot).filter(|_| is_theirs) {
            let (class, session) = (*class, session.clone());
            upstream
                .given_up
                .insert(id.clone(), GivenUp { class, session });
            let body = vouching.body.clone();
            write_frame(Dest::Upstream(slot), Frame::Kept(body), out);
        }
    }

    /// Forwards a call of a session; if it answers what this connection has not heard the session
    /// ask, then only once that is vouched for.
    #[allow(
        clippy::too_many_arguments,
        reason = "each names one fact of the one step"
    )]
    pub(super) fn forward_vouched(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        slot: SlotId,
        id: RequestId,
        head: &Head,
        frame: Frame<'_>,
        out: &mut Outbox,
    ) {
        if self.is_in_vain(key, &id, head, frame.body()) {
            // It is what the server says to it a moment later.
            self.answer_unknown(cx, &id, CallOutcome::Ok, out);
            return;
        }
        self.note_unkept(key, &id);
        let Some((request, event)) = self.unheard(cx, key, &id, head, frame.body()) else {
            self.note_answer(key, &id, head, frame.body());
            self.forward(cx, slot, Some(id), frame, out);
            return;
        };
        if matches!(frame, Frame::Here { .. }) && !self.may_hold(frame.body().len(), cx.settings) {
            let error = self.too_much_held(cx.settings);
            self.fail(cx, &id, &error, out);
            return;
        }
        let ticket = self.ticket();
        let (Some(call), Some(upstream)) = (self.calls.get_mut(&id), self.upstreams.get_mut(slot))
        else {
            return;
        };
        let body = frame.keep();
        self.held_bytes += body.len();
        call.vouching = Some(Vouching {
            ticket,
            request,
            event,
            body,
        });
        call.place = Place::At(slot);
        upstream.calls += 1;
        let session = self.entries[key].id.as_str();
        let params = reply::newest_events_params(session, event, NEWEST);
        let errand = Errand::Vouch(id, ticket);
        // The entry may be gone before the answer is there.
        let nobody = usize::MAX;
        self.call_own(
            cx,
            nobody,
            slot,
            errand,
            "session.eventLog.read",
            &params,
            out,
        );
    }

    /// Whether a call answers what a turn has asked that was told as over: the abort of what is left of
    /// that turn may be so near that it would be taken up again.
    fn is_in_vain(&self, key: usize, id: &RequestId, head: &Head, body: &[u8]) -> bool {
        let answers = |call: &Call| call.effect == Effect::Answer;
        self.calls.get(id).is_some_and(answers)
            && head.places.request_id.is_some_and(|request| {
                let entry = self.entries.get(key);
                entry.is_some_and(|entry| entry.is_void(&request.get(body)))
            })
    }

    /// If a call answers what its session has asked, that is not waited for from here on.
    fn note_answer(&mut self, key: usize, id: &RequestId, head: &Head, body: &[u8]) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let answers = |call: &Call| call.effect == Effect::Answer;
        let hold = self.locks.hold_of(&entry.id);
        let hold = hold.filter(|hold| !hold.unasked.is_empty());
        if entry.asked.is_empty() && hold.is_none() || !self.calls.get(id).is_some_and(answers) {
            return;
        }
        let Some(request) = head.places.request_id.as_ref().map(|text| text.get(body)) else {
            return;
        };
        if let Some(asked) = entry.asked.iter_mut().find(|asked| asked.id == request) {
            asked.answered = true;
        }
        // What it inherited and knows of without having been asked here.
        if let Some(hold) = hold {
            hold.unasked.retain(|id| *id != request);
        }
    }

    /// What a call answers that this connection has not heard its session ask, and the event by
    /// which it would have; none if that does not matter.
    fn unheard(
        &self,
        cx: &Context<'_>,
        key: usize,
        id: &RequestId,
        head: &Head,
        body: &[u8],
    ) -> Option<(String, &'static str)> {
        let call = self.calls.get(id)?;
        if call.effect != Effect::Answer || !self.is_guarded(cx) {
            return None;
        }
        let event = route::asked_by(call.method.as_str())?;
        // Without a request's id it answers nothing, and the CLI says so.
        let request = head.places.request_id?.get(body);
        let heard = self.entries[key].asked.iter();
        let heard = heard.map(|asked| asked.id.as_str()).any(|id| id == request);
        (!heard).then(|| (request.into_owned(), event))
    }

    /// The calls that wait for that at a backend that was never reached: as if they had waited for
    /// its handshake themselves.
    pub(super) fn unvouched(&mut self, slot: SlotId) -> Vec<Waiting> {
        let here = |call: &Call| call.at() == Some(slot) && call.vouching.is_some();
        let ids = self.calls.iter().filter(|(_, call)| here(call));
        let ids: Vec<RequestId> = ids.map(|(id, _)| id.clone()).collect();
        let taken = ids.into_iter().filter_map(|id| {
            let Vouching { body, .. } = self.calls.get_mut(&id)?.vouching.take()?;
            let call = Some(id);
            Some(Waiting { call, body })
        });
        taken.collect()
    }

    /// The session's log has said what it asked.
    pub(super) fn vouched(
        &mut self,
        cx: &Context<'_>,
        slot: SlotId,
        (id, ticket): (&RequestId, u64),
        answer: &OwnAnswer<'_>,
        out: &mut Outbox,
    ) {
        let asks = |v: &mut Vouching| v.ticket == ticket;
        let call = self.calls.get_mut(id).filter(|c| c.at() == Some(slot));
        let Some(Vouching {
            request,
            event,
            body,
            ..
        }) = call.and_then(|call| call.vouching.take_if(asks))
        else {
            // Answered meanwhile, or on its way again.
            return;
        };
        self.held_bytes -= body.len();
        if answer.not_found {
            self.nobody_there(cx, slot, id, out);
            return;
        }
        let asked = answer
            .succeeded
            .then(|| has_asked(answer.result, event, &request));
        match asked.flatten() {
            Some(true) => write_frame(Dest::Upstream(slot), Frame::Kept(body), out),
            Some(false) => self.refuse_answer(cx, id, out),
            // Nothing is known against it: the client may try again.
            None => {
                let backend = self.upstreams.get(slot).map(|u| u.backend.clone());
                let session = self.calls.get(id).and_then(|call| call.session.clone());
                let error = ProxyError::BackendUnavailable { session, backend };
                self.fail(cx, id, &error, out);
            }
        }
    }

    /// The answer is to nothing that its session has asked.
    fn refuse_answer(&mut self, cx: &Context<'_>, id: &RequestId, out: &mut Outbox) {
        let Some((method, session)) = self.answer_unknown(cx, id, CallOutcome::ProxyError, out)
        else {
            return;
        };
        self.outputs.push_back(Output::Event(Event::Denied {
            connection: self.id,
            principal: self.principal.as_ref().map(|p| p.name.clone()),
            method,
            session,
            reason: Denial::RequestOfOther,
        }));
    }

    /// A call gets the answer that the CLI has for answers to requests that it does not know. What it
    /// was, and of which session.
    fn answer_unknown(
        &mut self,
        cx: &Context<'_>,
        id: &RequestId,
        outcome: CallOutcome,
        out: &mut Outbox,
    ) -> Option<(Arc<str>, SessionId)> {
        let mut call = self.take_call(cx, id)?;
        let mut token = Vec::with_capacity(40);
        id.write(&mut token);
        let size = out.write(Dest::Client, |b| reply::result(b, &token, UNKNOWN_REQUEST));
        let response = FrameKind::Response;
        self.tally.add(Direction::BackendToClient, response, size);
        self.call_ended(cx, &call, outcome);
        if let Some(key) = self.key_of(&call).filter(|_| outcome == CallOutcome::Ok) {
            self.keep_answer(cx.now, key, &call, false);
        }
        let said = call.session.clone();
        let said = said.map(|session| (call.method.as_str().into(), session));
        if let Some(key) = self.key_of(&call) {
            self.settle_entry(key);
        }
        self.recycle(&mut call);
        said
    }

    /// The session is not open where it was asked, so the call itself would have been answered so.
    fn nobody_there(&mut self, cx: &Context<'_>, slot: SlotId, id: &RequestId, out: &mut Outbox) {
        let Some(mut call) = self.take_call(cx, id) else {
            return;
        };
        let retried = self.retry_not_found(cx, slot, id, &mut call, out);
        let key = self.key_of(&call);
        if retried == Some(RetriedCall::Held) {
            call.place = Place::Held;
            self.held_bytes += call.kept_bytes();
            self.calls.insert(id.clone(), call);
            if let Some(key) = key {
                self.goes_on(cx, key, out);
            }
            return;
        }
        if let Some(session) = &call.session {
            let mut token = Vec::with_capacity(40);
            id.write(&mut token);
            let (method, session) = (call.method.as_str(), session.clone());
            self.answer_unseen(&token, method, NamedAt::Session, session.as_str(), out);
        }
        self.call_ended(cx, &call, CallOutcome::BackendError);
        if retried.is_none() {
            self.lost_sight(cx, slot, &call, out);
        }
        if let Some(key) = self.key_of(&call) {
            self.settle_entry(key);
        }
        self.recycle(&mut call);
    }
}

/// Whether a page of a session's log has this request; none if it is no such page.
fn has_asked(page: &[u8], event: &str, request: &str) -> Option<bool> {
    #[derive(Deserialize)]
    struct Page {
        events: Vec<serde_json::Value>,
    }
    let page: Page = serde_json::from_slice(page).ok()?;
    Some(page.events.iter().any(|logged| {
        let id = logged.pointer("/data/requestId");
        logged.get("type").is_some_and(|kind| kind == event) && id.is_some_and(|id| id == request)
    }))
}
