//! Calls of the client between their request and their one answer.

use std::time::Instant;

use super::{
    Context, Mux, Output, outbox::Outbox, session::Rest, upstream::SlotId, vouch::Vouching,
};
use crate::core::{
    event::{CallOutcome, ClosedBy, TurnOutcome},
    id::{BackendName, SessionId},
    idmap::RequestId,
    locate::Purpose,
    replay::{Effect, effect_of},
    reply::ProxyError,
    route::{self, Class, NamedAt},
};

/// Longest method name kept for messages, in bytes; the longest one known has 62.
const METHOD: usize = 64;

/// A method's name, kept without a heap allocation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Method {
    len: u8,
    bytes: [u8; METHOD],
}

impl Method {
    pub(super) fn new(text: &str) -> Self {
        let mut len = text.len().min(METHOD);
        while !text.is_char_boundary(len) {
            len -= 1;
        }
        let mut bytes = [0; METHOD];
        bytes[..len].copy_from_slice(&text.as_bytes()[..len]);
        Self {
            len: u8::try_from(len).expect("at most METHOD"),
            bytes,
        }
    }

    pub(super) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

/// Where a call is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// Held here until its session or backend is known, or the send before it has passed.
    Held,
    /// Being executed by the shell.
    Served(u64),
    /// Forwarded: this backend owes the answer.
    At(SlotId),
}

/// One call that awaits its answer.
#[derive(Debug)]
pub(super) struct Call {
    /// In the order written.
    pub(super) serial: u64,
    /// Where it names its session.
    pub(super) named_at: NamedAt,
    /// Sessions that it names besides, and that nobody has judged yet. Mostly none.
    pub(super) also: Vec<(NamedAt, SessionId)>,
    /// The question by which these are judged.
    pub(super) judged_by: Option<u64>,
    pub(super) place: Place,
    pub(super) class: Class,
    pub(super) method: Method,
    pub(super) session: Option<SessionId>,
    pub(super) since: Instant,
    /// A create that was turned into a resume: the original, to be sent if there is nothing to
    /// resume after all.
    pub(super) fallback: Option<Box<[u8]>>,
    /// Backends that it set out for and that turned out to be unreachable.
    pub(super) avoided: Vec<BackendName>,
    /// What becomes of its effect when its session is opened again.
    pub(super) effect: Effect,
    /// Bytes of the params that the shell has of it, to execute it.
    pub(super) params: usize,
    /// Its body, where it may be needed once more.
    pub(super) copy: Option<Vec<u8>>,
    /// How often it was sent once more already.
    pub(super) repeated: u8,
    /// Its answer is on its way to the client already, in pieces: it gets no other one.
    pub(super) passing: bool,
    /// The backend's answer, until what it acknowledges is on disk.
    pub(super) withheld: Option<Box<[u8]>>,
    /// It is as good as forwarded, but its session has to vouch for it first.
    pub(super) vouching: Option<Vouching>,
    /// [`Entry::attachments`](super::session::Entry) as it was when the call was dispatched; none
    /// if this connection was not attached then.
    pub(super) attachment: Option<u32>,
}

impl Call {
    pub(super) fn at(&self) -> Option<SlotId> {
        if let Place::At(slot) = self.place {
            Some(slot)
        } else {
            None
        }
    }

    /// Bytes of bodies that are kept for it.
    pub(super) fn kept_bytes(&self) -> usize {
        let bodies = [&self.fallback, &self.withheld];
        let bodies: usize = bodies.into_iter().flatten().map(|body| body.len()).sum();
        let vouching = self.vouching.as_ref().map_or(0, |v| v.body.len());
        bodies + vouching + self.params + self.copy.as_ref().map_or(0, Vec::len)
    }

    /// Whether the backend that it is at has still to answer it.
    pub(super) fn is_owed(&self) -> bool {
        self.withheld.is_none() && self.vouching.is_none()
    }

    /// Whether its success attaches this connection to its session.
    pub(super) fn attaches(&self) -> bool {
        self.session.is_some() && matches!(self.class, Class::Create | Class::Resume | Class::Open)
    }

    /// What its session is wanted for.
    pub(super) fn purpose(class: Class) -> Purpose {
        match class {
            Class::Create => Purpose::Create,
            Class::Resume | Class::Open => Purpose::Resume,
            Class::Delete => Purpose::Delete,
            Class::Ping
            | Class::Connect
            | Class::Session
            | Class::Fork
            | Class::Detach
            | Class::Close
            | Class::Send(_)
            | Class::Abort
            | Class::Aggregate(_)
            | Class::IdsArray(_)
            | Class::Any
            | Class::ServerWide(_)
            | Class::Provider(_)
            | Class::ByRequestId
            | Class::Cancel
            | Class::RemoteControl
            | Class::Denied(_)
            | Class::Unknown => Purpose::Use,
        }
    }
}

impl Mux {
    /// A call that has just come.
    pub(super) fn new_call(&mut self, now: Instant, class: Class, method: &str) -> Box<Call> {
        self.next_serial += 1;
        let call = Call {
            serial: self.next_serial,
            named_at: NamedAt::Session,
            also: Vec::new(),
            judged_by: None,
            place: Place::Held,
            class,
            method: Method::new(method),
            session: None,
            since: now,
            fallback: None,
            avoided: Vec::new(),
            effect: if class == Class::Session {
                effect_of(method)
            } else {
                Effect::Kept
            },
            params: 0,
            copy: None,
            repeated: 0,
            passing: false,
            withheld: None,
            vouching: None,
            attachment: None,
        };
        self.spares().call(call)
    }

    /// Takes a call out of the table because its answer is here, and gives back what it counts for.
    pub(super) fn take_call(&mut self, cx: &Context<'_>, id: &RequestId) -> Option<Box<Call>> {
        let call = self.calls.remove(id)?;
        self.settle(cx, &call);
        Some(call)
    }

    /// Takes out all calls that `gone` is true for, in the order written.
    pub(super) fn drain_calls(
        &mut self,
        gone: impl FnMut(&Call) -> bool,
    ) -> Vec<(RequestId, Box<Call>)> {
        let mut calls = self.calls.drain_where(gone);
        calls.sort_unstable_by_key(|(_, call)| call.serial);
        calls
    }

    /// What a call that has just left the table counted for is given back.
    pub(super) fn settle(&mut self, cx: &Context<'_>, call: &Call) {
        self.held_bytes -= call.kept_bytes();
        if let Some(upstream) = call.at().and_then(|slot| self.upstreams.get_mut(slot)) {
            upstream.calls -= 1;
            upstream.note_idle(cx.now);
        }
    }

    /// Answers a call that is still in the table with an error of ours.
    pub(super) fn fail(
        &mut self,
        cx: &Context<'_>,
        id: &RequestId,
        error: &ProxyError,
        out: &mut Outbox,
    ) {
        if let Some(call) = self.calls.remove(id) {
            self.answer_with_error(cx, id, call, error, out);
        }
    }

    /// Answers a call that is already out of the table with an error of ours, and undoes what its
    /// success would have made.
    pub(super) fn answer_with_error(
        &mut self,
        cx: &Context<'_>,
        id: &RequestId,
        call: Box<Call>,
        error: &ProxyError,
        out: &mut Outbox,
    ) {
        self.settle(cx, &call);
        self.note_unanswered(&call);
        let mut token = Vec::with_capacity(40);
        id.write(&mut token);
        self.call_ended(cx, &call, CallOutcome::ProxyError);
        if !self.fail_unseen(&token, &call, error, out) {
            self.refuse(
                &token,
                call.method.as_str(),
                call.session.clone(),
                error,
                out,
            );
        }
        self.attach_settled(cx, &call, false, out);
        self.send_settled(cx, id, &call, None, out);
        if let Some(key) = self.key_of(&call) {
            self.settle_entry(key);
        }
    }

    /// A call has failed. If it was to answer what its session has asked, that is waited for still.
    pub(super) fn note_unanswered(&mut self, call: &Call) {
        if call.effect == Effect::Answer
            && let Some(key) = self.key_of(call)
        {
            self.entries[key].forget_answered();
        }
    }

    /// A create or resume of `call.session` has its answer.
    pub(super) fn attach_settled(
        &mut self,
        cx: &Context<'_>,
        call: &Call,
        succeeded: bool,
        out: &mut Outbox,
    ) {
        if !call.attaches() {
            return;
        }
        let Some(key) = self.key_of(call) else { return };
        if call.at().is_some() && call.at() == self.entries[key].slot {
            let aborts = self.is_quelling(key);
            self.change_entry(cx.now, key, |entry| {
                entry.attaching -= 1;
                if succeeded {
                    entry.attached = true;
                    entry.attachments += 1;
                    if !aborts && entry.rest == Rest::Nothing {
                        entry.revive_asked();
                    }
                }
            });
            if !self.entries[key].is_here() {
                // It was closed meanwhile, by another client or by a call of this one's, and is not
                // heard any more.
                self.end_turn(cx, key, TurnOutcome::Lost, ClosedBy::Backend);
            }
            if succeeded {
                self.keep_params(key, call);
                self.claim(key);
                let session = self.entries[key].id.clone();
                self.outputs.push_back(Output::Attached(session));
            }
        }
        if self.is_taking(key) {
            self.opened.push((key, succeeded));
        }
        self.pass_next_send(cx, key, out);
        self.settle_entry(key);
    }

    /// Where the entry of a call's session is.
    pub(super) fn key_of(&self, call: &Call) -> Option<usize> {
        self.by_session.find(call.session.as_ref()?)
    }

    pub(super) fn call_ended(&mut self, cx: &Context<'_>, call: &Call, outcome: CallOutcome) {
        let took = cx.now.saturating_duration_since(call.since);
        let class = route::class_name(call.class);
        self.outputs.push_back(Output::CallEnded {
            class,
            outcome,
            took,
        });
    }
}
