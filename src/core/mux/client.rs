//! Frames of the client: each request to the backend that shall answer it.

use std::{ops::Range, time::Duration};

use super::{
    Asker, Context, Mux, Output, Serve, Served, Service,
    calls::Place,
    gate::Asked,
    outbox::{Dest, Outbox},
    place::Question,
};
use crate::core::{
    event::{CallOutcome, ClosedBy, Direction, FrameKind},
    frame::{Cut, FrameError},
    id::SessionId,
    idmap::RequestId,
    reply::{self, ProxyError},
    route::{self, Class},
    scan::{self, Head, Kind},
};

/// A frame on its way: where it stands in the buffer just read, or a copy that was held.
#[derive(Debug)]
pub(super) enum Frame<'a> {
    Here {
        input: &'a [u8],
        header: Range<usize>,
        body: Range<usize>,
    },
    Kept(Vec<u8>),
}

impl Frame<'_> {
    pub(super) fn body(&self) -> &[u8] {
        match self {
            Self::Here { input, body, .. } => &input[body.clone()],
            Self::Kept(body) => body,
        }
    }

    pub(super) fn keep(self) -> Vec<u8> {
        match self {
            Self::Here { input, body, .. } => input[body].to_vec(),
            Self::Kept(body) => body,
        }
    }
}

impl Mux {
    /// Bytes of the client. Returns how many were used up; the rest is the start of a frame that
    /// is not complete and comes again, with more behind it.
    pub fn handle_client(&mut self, cx: &Context<'_>, input: &[u8], out: &mut Outbox) -> usize {
        let mut done = 0;
        while self.is_heard() && !self.is_judged() {
            if done == input.len() && self.cutter.is_between_frames() {
                self.try_freezes(cx);
                break;
            }
            match self.cutter.cut(&input[done..]) {
                Ok(Cut::Frame { header, body }) => {
                    self.note_frame(cx);
                    let (header, body) = (
                        done + header.start..done + header.end,
                        done + body.start..done + body.end,
                    );
                    done = body.end;
                    self.handle_client_frame(cx, input, header, body, out);
                }
                Ok(Cut::Incomplete { .. }) => {
                    if done < input.len() {
                        self.partial_since.get_or_insert(cx.now);
                    }
                    self.try_freezes(cx);
                    break;
                }
                Err(error) => self.refuse_framing(cx, &error, out),
            }
        }
        done
    }

    /// After such an error nobody knows where the next frame starts, so the connection ends, as
    /// the CLI ends it.
    fn refuse_framing(&mut self, cx: &Context<'_>, error: &FrameError, out: &mut Outbox) {
        self.tally
            .add(Direction::ClientToBackend, FrameKind::Invalid, 0);
        let answer = match error {
            FrameError::FrameTooLong { limit, .. } => {
                self.limit_hit("limits.frame");
                ProxyError::LimitExceeded {
                    limit: "limits.frame",
                    value: *limit as u64,
                }
            }
            FrameError::HeaderTooLong { limit, .. } => {
                self.limit_hit("limits.header");
                ProxyError::LimitExceeded {
                    limit: "limits.header",
                    value: *limit as u64,
                }
            }
            FrameError::MissingContentLength
            | FrameError::BadContentLength { .. }
            | FrameError::MalformedHeader => ProxyError::Parse(error.to_string()),
        };
        self.refuse(reply::NULL_ID, "", None, &answer, out);
        let reason = "the client sent something that is not a frame";
        self.depart(cx, ClosedBy::Proxy, reason, true, out);
    }

    fn handle_client_frame(
        &mut self,
        cx: &Context<'_>,
        input: &[u8],
        header: Range<usize>,
        body: Range<usize>,
        out: &mut Outbox,
    ) {
        let size = body.end - header.start;
        let text = &input[body.clone()];
        let (head, utf8) = match scan::scan_text(text) {
            Ok(scanned) => scanned,
            Err(reject) => {
                self.tally
                    .add(Direction::ClientToBackend, FrameKind::Invalid, size);
                let error = if reject.code == -32700 {
                    ProxyError::Parse(reject.message())
                } else {
                    ProxyError::InvalidRequest(reject.message())
                };
                let id = reject
                    .id
                    .as_ref()
                    .map_or(reply::NULL_ID, |id| id.token().of(text));
                self.refuse(id, "", None, &error, out);
                return;
            }
        };
        let frame = Frame::Here {
            input,
            header,
            body,
        };
        let kind = match head.kind {
            Kind::Request => {
                self.handle_request(cx, &head, utf8, frame, out);
                FrameKind::Request
            }
            Kind::Notification => {
                self.handle_notification(cx, &head, frame, out);
                FrameKind::Notification
            }
            Kind::Result => {
                self.handle_answer(cx, &head, text, out);
                FrameKind::Response
            }
            Kind::Error => {
                self.handle_answer(cx, &head, text, out);
                FrameKind::Error
            }
        };
        self.tally.add(Direction::ClientToBackend, kind, size);
    }

    fn handle_request(
        &mut self,
        cx: &Context<'_>,
        head: &Head,
        text: &str,
        frame: Frame<'_>,
        out: &mut Outbox,
    ) {
        let body = text.as_bytes();
        let (Some(id), Some(method)) = (&head.id, &head.method) else {
            return;
        };
        let token = id.token().of(body);
        let method = method.within(text);
        let (class, policy) = route::look_up(&method);
        let call = RequestId::read(id, body);
        let main = route::main_session(class, head, body);
        let session = main.map(|named| named.id.within(text));
        let known = session.as_deref().and_then(|id| self.by_session.get(id));
        let known = known.copied();
        // Anything else goes to any backend, which refuses it in its own words.
        let is_valid = |text: &&str| match known {
            Some(key) => self.entries[key].is_valid,
            None => is_session_id(text),
        };
        let named = session.as_deref().filter(is_valid);
        let asked = Asked {
            class,
            policy,
            method: &method,
            call: &call,
            token,
            named,
            head,
            body,
        };
        let refusal = self.refusal(cx, &asked);
        if let Some(error) = refusal {
            self.refuse(
                token,
                &method,
                session.as_deref().map(SessionId::from),
                &error,
                out,
            );
            if self.is_surplus(cx) {
                self.leave_surplus(cx, out);
            }
            return;
        }

        match class {
            Class::Ping => {
                let message = head.params.and_then(|p| ping_message(p.of(body)));
                let message = message.as_deref();
                let size = out.write(Dest::Client, |b| reply::pong(b, token, message, cx.wall()));
                self.tally
                    .add(Direction::BackendToClient, FrameKind::Response, size);
                self.answered_here(class, CallOutcome::Ok);
            }
            Class::Connect => self.handle_connect(cx, head, body, call, out),
            Class::Aggregate(kind) => self.serve(
                cx,
                head,
                &frame,
                (call, class),
                Service::Aggregate(kind),
                out,
            ),
            Class::IdsArray(kind) => self.serve(
                cx,
                head,
                &frame,
                (call, class),
                Service::IdsArray(kind),
                out,
            ),
            Class::ServerWide(spread) => {
                self.serve(
                    cx,
                    head,
                    &frame,
                    (call, class),
                    Service::ServerWide(spread),
                    out,
                );
            }
            Class::Provider(kind) => self.serve(
                cx,
                head,
                &frame,
                (call, class),
                Service::Provider(kind),
                out,
            ),
            Class::ByRequestId => {
                self.serve(cx, head, &frame, (call, class), Service::ByRequestId, out)
            }
            Class::Session
            | Class::Create
            | Class::Resume
            | Class::Open
            | Class::Fork
            | Class::Detach
            | Class::Delete
            | Class::Close
            | Class::Send(_)
            | Class::Abort
            | Class::Any
            | Class::RemoteControl
            | Class::Cancel
            | Class::Denied(_)
            | Class::Unknown => {
                let also = match self.named_besides(cx, &asked) {
                    Ok(also) => also,
                    Err(odd) => {
                        self.answer_unseen(token, &method, odd.at, &odd.id.get(body), out);
                        self.answered_here(class, CallOutcome::ProxyError);
                        return;
                    }
                };
                if class == Class::Detach
                    && let Some(session) = named
                    && self.is_nowhere(session)
                {
                    let held = self.forsake(cx, session, out);
                    self.answer_detach(&method, held, token, out);
                    self.close_if_quiet();
                    return;
                }
                let key =
                    named.map(|session| known.unwrap_or_else(|| self.new_entry(session.into())));
                let mut record = self.new_call(cx.now, class, &method);
                record.also = also;
                record.named_at = main.map_or(record.named_at, |named| named.at);
                match key {
                    Some(key) => self.route_to_session(cx, key, head, frame, call, record, out),
                    None => self.route_anywhere(cx, frame, call, record, out),
                }
            }
        }
    }

    /// A detach from a session that this connection is attached to nowhere: there is nothing to
    /// detach, wherever the session is, so it needs no backend. The answers are the CLI's
    /// (PROTOCOL §8); to a client that has not been told that it is not attached, it is.
    fn answer_detach(&mut self, method: &str, held: bool, token: &[u8], out: &mut Outbox) {
        let success = if method == "session.destroy" && !held {
            r#"{"success":false}"#
        } else {
            r#"{"success":true}"#
        };
        let size = out.write(Dest::Client, |b| reply::result(b, token, success));
        self.tally
            .add(Direction::BackendToClient, FrameKind::Response, size);
        self.answered_here(Class::Detach, CallOutcome::Ok);
    }

    pub(super) fn answered_here(&mut self, class: Class, outcome: CallOutcome) {
        let took = Duration::ZERO;
        let class = route::class_name(class);
        self.outputs.push_back(Output::CallEnded {
            class,
            outcome,
            took,
        });
    }

    fn serve(
        &mut self,
        cx: &Context<'_>,
        head: &Head,
        frame: &Frame<'_>,
        (id, class): (RequestId, Class),
        service: Service,
        out: &mut Outbox,
    ) {
        let body = frame.body();
        let ticket = self.ticket();
        let method = head
            .method
            .map(|m| m.get(body).into_owned())
            .unwrap_or_default();
        let params = head
            .params
            .map(|p| String::from_utf8_lossy(p.of(body)).into_owned());
        let mut record = self.new_call(cx.now, class, &method);
        let size = params.as_ref().map_or(0, String::len);
        if !self.may_hold(size, cx.settings) {
            self.calls.insert(id.clone(), record);
            let error = self.too_much_held(cx.settings);
            self.fail(cx, &id, &error, out);
            return;
        }
        record.place = Place::Served(ticket);
        // It may wait for the client to read the answers of others.
        record.params = size;
        self.held_bytes += size;
        self.calls.insert(id, record);
        self.outputs.push_back(Output::Serve(Serve {
            ticket,
            service,
            method,
            params,
            principal: self.principal.clone(),
        }));
    }

    /// What the shell was asked to execute has ended.
    pub fn handle_served(
        &mut self,
        cx: &Context<'_>,
        ticket: u64,
        served: &Served,
        out: &mut Outbox,
    ) {
        // A cancelled call has its answer already.
        let Some((id, call)) = self.drain_calls(|c| c.place == Place::Served(ticket)).pop() else {
            return;
        };
        let mut token = Vec::with_capacity(40);
        id.write(&mut token);
        match served {
            Served::Result(result) => {
                let size = out.write(Dest::Client, |b| reply::result(b, &token, result));
                self.tally
                    .add(Direction::BackendToClient, FrameKind::Response, size);
                self.settle(cx, &call);
                self.call_ended(cx, &call, CallOutcome::Ok);
            }
            Served::Relayed(error) => {
                let size = out.write(Dest::Client, |b| reply::relayed_error(b, &token, error));
                self.tally
                    .add(Direction::BackendToClient, FrameKind::Error, size);
                self.settle(cx, &call);
                self.call_ended(cx, &call, CallOutcome::BackendError);
            }
            Served::Failed(error) => self.answer_with_error(cx, &id, call, error, out),
        }
        self.close_if_quiet();
    }

    /// Notifications of the client never locate or reopen a session (DESIGN §3).
    fn handle_notification(
        &mut self,
        cx: &Context<'_>,
        head: &Head,
        frame: Frame<'_>,
        out: &mut Outbox,
    ) {
        let body = frame.body();
        let Some(method) = &head.method else { return };
        if self.is_stranger(cx) {
            return;
        }
        // Who is nobody any more may still take back what it asked for.
        if route::classify(&method.get(body)) == Class::Cancel {
            if let Some(id) = &head.places.cancel_id {
                let id = RequestId::read(id, body);
                self.cancel(cx, &id, frame, out);
            }
            return;
        }
        if !self.is_trusted(cx) {
            return;
        }
        let Some(session) = &head.session else { return };
        let Some(key) = self.by_session.get(&*session.get(body)).copied() else {
            return;
        };
        let entry = &self.entries[key];
        if let (true, Some(slot)) = (entry.attached, entry.slot) {
            self.forward(cx, slot, None, frame, out);
        }
    }

    /// A call that is still here is taken out and answered; one that is forwarded is its backend's
    /// to cancel.
    fn cancel(&mut self, cx: &Context<'_>, id: &RequestId, frame: Frame<'_>, out: &mut Outbox) {
        let Some(call) = self.calls.get(id) else {
            return;
        };
        let (place, session) = (call.place, call.session.clone());
        if let Place::Served(ticket) = place {
            self.outputs.push_back(Output::Unserve(ticket));
        }
        // One that waits for its session's log has not left.
        if let (Place::At(slot), None) = (place, &call.vouching) {
            let Some(upstream) = self.upstreams.get_mut(slot) else {
                return;
            };
            let Some(at) = upstream
                .waiting
                .iter()
                .position(|w| w.call.as_ref() == Some(id))
            else {
                self.forward(cx, slot, None, frame, out);
                return;
            };
            let waiting = upstream.waiting.remove(at);
            self.held_bytes -= waiting.body.len();
            // It never left: its answer lets the send behind it pass.
        }
        if let Some(key) = session.and_then(|s| self.by_session.get(&s).copied()) {
            let entry = &mut self.entries[key];
            for queue in [&mut entry.held, &mut entry.sends] {
                if let Some(at) = queue.iter().position(|held| held.call == *id)
                    && let Some(held) = queue.remove(at)
                {
                    self.held_bytes -= held.body.len();
                }
            }
            self.cancel_taking(cx, key, id, out);
            self.note_waiting(key);
        }
        let unplaced = self
            .questions
            .iter()
            .find_map(|(ticket, question)| match question {
                Question::Call(held) if held.call == *id => Some((*ticket, held.body.len())),
                Question::Call(_) | Question::Session(_) | Question::Reopen(_) => None,
            });
        if let Some((ticket, size)) = unplaced {
            self.questions.remove(&ticket);
            self.held_bytes -= size;
        }
        self.fail(cx, id, &ProxyError::Cancelled, out);
        self.close_if_quiet();
    }

    /// The client answers a request of a backend, under the id that we gave it. Answers to what is
    /// no longer asked are dropped, as the CLI drops them.
    fn handle_answer(&mut self, cx: &Context<'_>, head: &Head, body: &[u8], out: &mut Outbox) {
        let Some(id) = &head.id else { return };
        let Some((asker, token, kept)) = self.requests.take(&RequestId::read(id, body)) else {
            return;
        };
        let span = id.token().range();
        match asker {
            Asker::Upstream(slot) => {
                if self.upstreams.get(slot).is_some() {
                    out.write(Dest::Upstream(slot), |b| swap_id(b, body, span, &token));
                }
            }
            Asker::Provider(key) => {
                let body = body.to_vec();
                self.outputs.push_back(Output::ProviderAnswer {
                    token: key,
                    body,
                    id: span,
                });
            }
            Asker::Parked(to, request) => {
                self.answered_for(cx, (to, request), kept.session, body, span);
            }
        }
    }
}

/// Appends `body` with its header and another token where its id stands.
pub(super) fn swap_id(out: &mut Vec<u8>, body: &[u8], id: Range<usize>, token: &[u8]) {
    crate::core::frame::write_header(body.len() - id.len() + token.len(), out);
    out.extend_from_slice(&body[..id.start]);
    out.extend_from_slice(token);
    out.extend_from_slice(&body[id.end..]);
}

/// What the CLI accepts as a session id (PROTOCOL §4). Anything else goes to any backend, which
/// refuses it in its own words.
pub fn is_session_id(text: &str) -> bool {
    (1..=254).contains(&text.len())
        // Looks at every byte rather than stopping at the first odd one: this way it vectorises.
        && text.bytes().fold(true, |plain, b| {
            plain & (b.is_ascii_alphanumeric() | (b == b'_') | (b == b'-'))
        })
}

/// `params.message` of a ping, if it is a string.
fn ping_message(params: &[u8]) -> Option<String> {
    let params: serde_json::Value = serde_json::from_slice(params).ok()?;
    params.get("message")?.as_str().map(str::to_owned)
}
