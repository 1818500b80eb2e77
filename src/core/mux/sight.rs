//! What the client may see and do where there are several users: which sessions its calls name, what
//! it is told about one that is not for it, which frames of backends reach it, and how it loses a
//! session that it may not use any more.
//!
//! Who may use what is decided in `access`, by the shell, which knows whose a session is: here is
//! only what follows from it.

use std::borrow::Cow;

use super::{
    Context, Life, Mux, Output,
    calls::Call,
    client::is_session_id,
    gate::Asked,
    outbox::{Dest, Outbox},
    own::Errand,
    session::{Entry, Held},
    upstream::SlotId,
};
use crate::core::{
    access::{Denial, Relation},
    event::{ClosedBy, Direction, Event, FrameKind, NotFound, TakeOverResult},
    id::SessionId,
    reply::{self, LostBy, ProxyError},
    route::{self, BackendClass, Class, Named, NamedAt, UnknownAnswer},
    scan::{Head, Text},
    sharing,
};

impl Mux {
    /// Whether there are sessions that this client may not see.
    pub(super) fn is_guarded(&self, cx: &Context<'_>) -> bool {
        self.principal.is_some() || cx.settings.access.authenticates
    }

    // Calls.

    /// The sessions that a call names besides the one that it is routed by. `Err` is a place where
    /// something stands that is no session's id, so that it is nobody's.
    pub(super) fn named_besides(
        &self,
        cx: &Context<'_>,
        asked: &Asked<'_>,
    ) -> Result<Vec<(NamedAt, SessionId)>, Named> {
        if !self.is_guarded(cx) {
            return Ok(Vec::new());
        }
        let (class, head, body) = (asked.class, asked.head, asked.body);
        if let (None, Some(main)) = (asked.named, route::main_session(class, head, body)) {
            // To create one under the empty id is to leave the id to the backend.
            let chooses = class == Class::Create && main.id.get(body).is_empty();
            if !chooses {
                return Err(main);
            }
        }
        let others = route::also_named(class, asked.method, head, body);
        let checked = others.into_iter().map(|named| {
            let id = named.id.get(body);
            if is_session_id(&id) {
                Ok((named.at, SessionId::from(&*id)))
            } else {
                Err(named)
            }
        });
        checked.collect()
    }

    /// Answers a call as its method answers for a session that the CLI does not know.
    pub(super) fn answer_unseen(
        &mut self,
        token: &[u8],
        method: &str,
        at: NamedAt,
        session: &str,
        out: &mut Outbox,
    ) {
        let answer = route::unknown_answer(method, at, session);
        let text = answer.json();
        let (kind, size) = match answer {
            UnknownAnswer::Error { .. } => (
                FrameKind::Error,
                out.write(Dest::Client, |b| reply::relayed_error(b, token, &text)),
            ),
            UnknownAnswer::Result(_) => (
                FrameKind::Response,
                out.write(Dest::Client, |b| reply::result(b, token, &text)),
            ),
        };
        self.tally.add(Direction::BackendToClient, kind, size);
    }

    /// The same for a call that was held, if that is why it fails. False if it is not.
    pub(super) fn fail_unseen(
        &mut self,
        token: &[u8],
        call: &Call,
        error: &ProxyError,
        out: &mut Outbox,
    ) -> bool {
        if let ProxyError::NotLocated {
            session: Some(session),
            why,
        } = error
        {
            let reason = NotFound::from(why);
            let session = session.clone();
            let event = Event::SessionNotFound { session, reason };
            self.outputs.push_back(Output::Event(event));
        }
        let ProxyError::Unseen { session, why } = error else {
            return false;
        };
        let why = *why;
        let method = call.method.as_str();
        let besides = call.also.iter().find(|(_, id)| id == session);
        let at = besides.map_or(call.named_at, |(at, _)| *at);
        self.answer_unseen(token, method, at, session.as_str(), out);
        if let NotFound::Denied(reason) = why {
            self.outputs.push_back(Output::Event(Event::Denied {
                connection: self.id,
                principal: self.principal.as_ref().map(|p| p.name.clone()),
                method: method.into(),
                session: session.clone(),
                reason,
            }));
        }
        self.outputs
            .push_back(Output::Event(Event::SessionNotFound {
                session: session.clone(),
                reason: why,
            }));
        true
    }

    /// Why a call is not for one who shares the session, if so.
    pub(super) fn beyond_member(
        &self,
        key: usize,
        call: &Call,
        head: &Head,
        body: &[u8],
    ) -> Option<ProxyError> {
        if self.entries[key].relation != Relation::Member {
            return None;
        }
        let params = head
            .params
            .map(|params| params.of(body))
            .unwrap_or_default();
        let method = call.method.as_str();
        let fields = match sharing::judge(call.class, method, params) {
            sharing::Verdict::Fine => return None,
            sharing::Verdict::NotTheirs => Vec::new(),
            sharing::Verdict::Changes(fields) => fields,
        };
        Some(ProxyError::NotForMembers {
            method: method.to_owned(),
            fields,
        })
    }

    // Frames of backends.

    /// Whether the client hears this session over `slot`, or may have just created it there under
    /// an id that the backend chose.
    fn hears(&self, cx: &Context<'_>, slot: SlotId, session: &str) -> bool {
        let here = self.by_session.get(session);
        here.is_some_and(|key| self.entries[*key].here_at() == Some(slot))
            || self.awaits_id(slot) && cx.commons.may_be_new(cx.settings, session)
    }

    /// Whether a call is out at `slot` whose answer says the id of a session that this client then
    /// hears.
    fn awaits_id(&self, slot: SlotId) -> bool {
        let creates = |call: &Call| {
            call.session.is_none()
                && call.at() == Some(slot)
                && matches!(call.class, Class::Create | Class::Open)
        };
        self.calls.count(creates) > 0
    }

    /// Whether a frame that a backend sends by itself is for this client. What it is not told of, it
    /// is not asked either, and nobody answers for it.
    pub(super) fn may_hear(
        &mut self,
        cx: &Context<'_>,
        slot: SlotId,
        class: BackendClass,
        head: &Head,
        body: &[u8],
    ) -> bool {
        if !self.is_guarded(cx) {
            return true;
        }
        let named = match class {
            // Of processes and registrations of this connection's own.
            BackendClass::ShellExit | BackendClass::Token | BackendClass::Cancel => return true,
            BackendClass::HostEvent => head.places.scope_session,
            BackendClass::Event
            | BackendClass::Lifecycle
            | BackendClass::Telemetry
            | BackendClass::Session
            | BackendClass::Hook
            | BackendClass::Provider(_) => head.session,
            BackendClass::Unknown => head.session.or(head.places.scope_session),
        };
        let text = |named: Text| -> Cow<'_, str> { named.get(body) };
        let reason = match named.map(text) {
            Some(session) if self.hears(cx, slot, &session) => return true,
            Some(_) => "not_attached",
            None => "no_session",
        };
        let connection = self.id;
        let event = Event::Withheld { connection, reason };
        self.outputs.push_back(Output::Event(event));
        false
    }

    // Losing access.

    /// The sessions that this connection hears, or holds to hear them again.
    pub fn sessions(&self) -> Vec<SessionId> {
        let has =
            |e: &Entry| e.is_here() || e.claimed || e.reopening.is_some() || e.parked.is_some();
        let entries = self.entries.iter().filter(|(_, entry)| has(entry));
        entries.map(|(_, entry)| entry.id.clone()).collect()
    }

    /// The client stands otherwise to this session from now on.
    pub fn handle_relation(&mut self, session: &str, relation: Relation) {
        if let Some(key) = self.by_session.get(session) {
            self.entries[*key].relation = relation;
        }
    }

    /// The client may not use this session any more: the rules have changed. What waits here is
    /// answered as for an unknown one, its turn is told to be over, and its backend that the client
    /// has left.
    pub fn handle_forbidden(
        &mut self,
        cx: &Context<'_>,
        session: &str,
        reason: Denial,
        out: &mut Outbox,
    ) {
        let Some(key) = self.by_session.get(session).copied() else {
            return;
        };
        if self.life == Life::Closed {
            return;
        }
        let error = ProxyError::Unseen {
            session: self.entries[key].id.clone(),
            why: NotFound::Denied(reason),
        };
        if self.entries[key].parked.is_some() {
            self.leave(cx, key, TakeOverResult::Expired, out);
            return;
        }
        if self.owes_hook(key) || self.entries[key].taking.is_some() {
            // To leave it alone takes several steps, each of which the client could watch.
            let reason = "a session of this connection is not allowed to its client any more";
            self.depart(cx, ClosedBy::Operator, reason, false, out);
            return;
        }
        let was_here = self.entries[key].here_at();
        if self.entries[key].reopening.is_some() {
            // First, since what is given up would be told as lost by its backend.
            self.lose_turn(cx, key, &LostBy::Forbidden, ClosedBy::Operator, out);
            self.entries[key].turn = None;
            self.forget_question(key);
            self.give_up(cx, key, &error, out);
        }
        let Some(entry) = self.entries.get(key).filter(|e| e.id.as_str() == session) else {
            return;
        };
        if let Some((ticket, _)) = entry.locating {
            self.questions.remove(&ticket);
        }
        if let Some(slot) = was_here {
            self.abort_orphan(cx, key, slot, out);
        }
        self.lose_turn(cx, key, &LostBy::Forbidden, ClosedBy::Operator, out);
        let mut held: std::collections::VecDeque<Held> = std::collections::VecDeque::new();
        self.change_entry(cx.now, key, |entry| {
            entry.turn = None;
            entry.locating = None;
            entry.attached = false;
            entry.kept = None;
            entry.gate = None;
            entry.forget_asked();
            held = std::mem::take(&mut entry.held);
            held.extend(std::mem::take(&mut entry.sends));
        });
        self.gates.retain(|(_, k)| *k != key);
        if let Some(slot) = was_here {
            let params = reply::session_params(session);
            let errand = Errand::Nobodys;
            self.call_own(cx, key, slot, errand, "session.detach", &params, out);
        }
        self.release(key);
        self.fail_held(cx, held, &error, out);
        if self
            .entries
            .get(key)
            .is_some_and(|e| e.id.as_str() == session)
        {
            self.settle_entry(key);
        }
        self.close_if_quiet();
    }
}
