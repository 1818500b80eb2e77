//! What is kept of a session so that it can be opened again: its parameters, what was done to it
//! since, copies of calls that may have to be made once more; and what is written to disk before it
//! is acknowledged.

use std::time::{Duration, Instant};

use super::{
    Context, Mux,
    calls::Call,
    heir::asked_in,
    outbox::{Dest, Outbox},
    own::{Errand, OwnAnswer},
    turn::frame,
    upstream::SlotId,
};
use crate::core::{
    event::ClosedBy,
    idmap::RequestId,
    replay::Effect,
    reply::{self, LostBy},
    route::Class,
    scan::{self, Head},
};

/// After so long without an answer the backend may have closed a session in silence (PROTOCOL §8),
/// so copies are kept of the next calls, to be made once more if that is so.
const QUIET: Duration = Duration::from_secs(5);

/// Largest call of which such a copy is kept, in bytes.
const COPY: usize = 64 * 1024;

/// How much memory for copies is kept: small calls, a few at a time.
const SPARES: usize = 4;
const SPARE_BYTES: usize = 512;

/// How many calls are repeated after a session was opened again.
const REPEATS: usize = 64;

/// What it takes to open a session again.
#[derive(Debug)]
pub(super) struct Kept {
    /// Body of the create or resume that opened it last.
    pub(super) body: Box<[u8]>,
    /// A model was chosen since.
    pub(super) model_chosen: bool,
    /// What was done to it since and has to be done again.
    pub(super) repeats: Vec<Repeat>,
    /// Something was done to it that cannot be.
    pub(super) tainted: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Repeat {
    pub(super) method: Box<str>,
    pub(super) params: Box<str>,
    /// Of an interest: what the client calls it, and what the backend does now.
    pub(super) handle: Option<(String, String)>,
    /// When it was made.
    pub(super) at: Instant,
}

impl Kept {
    fn bytes(&self) -> usize {
        let repeats = self.repeats.iter().map(|r| r.params.len());
        self.body.len() + repeats.sum::<usize>()
    }
}

impl Mux {
    // What is kept.

    /// Whether a copy of this call may be wanted, as far as that does not depend on its size.
    pub(super) fn may_copy(&self, cx: &Context<'_>, key: usize, call: &Call) -> bool {
        if cx.settings.session_params == 0 {
            return false;
        }
        let entry = &self.entries[key];
        let quiet = |at| cx.now.saturating_duration_since(at) >= QUIET;
        matches!(call.class, Class::Create | Class::Resume)
            || call.effect.is_repeatable()
            || entry.attached && entry.kept.is_some() && entry.answered.is_none_or(quiet)
    }

    /// Keeps a copy of a call that may be needed once more: if [it may](Self::may_copy).
    pub(super) fn keep_copy(&mut self, cx: &Context<'_>, id: &RequestId, body: &[u8]) {
        let Some(call) = self.calls.get(id) else {
            return;
        };
        let opens = matches!(call.class, Class::Create | Class::Resume);
        if opens && body.len() > cx.settings.session_params {
            self.limit_hit("limits.session_params");
            return;
        }
        let wanted = call.copy.is_none()
            && (opens || body.len() <= COPY && self.may_hold(body.len(), cx.settings));
        if wanted && let Some(call) = self.calls.get_mut(id) {
            let spares = self.spares.get_or_insert_default();
            let mut copy = spares.copies.pop().unwrap_or_default();
            copy.extend_from_slice(body);
            call.copy = Some(copy);
            self.held_bytes += body.len();
        }
    }

    /// A call leaves for its backend. If it is an answer without a copy, its turn cannot outlive that.
    pub(super) fn note_unkept(&mut self, key: usize, id: &RequestId) {
        let unkept = |call: &Call| call.effect == Effect::Answer && call.copy.is_none();
        if self.calls.get(id).is_some_and(unkept)
            && let Some(turn) = &mut self.entries[key].turn
        {
            turn.unkept = true;
        }
    }

    /// A call is over: the memory of its copy serves the next one.
    pub(super) fn recycle(&mut self, call: &mut Call) {
        if let Some(mut copy) = call.copy.take()
            // A session is opened once, and read-only calls are many.
            && !call.attaches()
            && copy.capacity() <= SPARE_BYTES
            && self.spares().copies.len() < SPARES
        {
            copy.clear();
            self.spares().copies.push(copy);
        }
    }

    /// The session was opened by this call.
    pub(super) fn keep_params(&mut self, key: usize, call: &Call) {
        let entry = &mut self.entries[key];
        entry.kept = match (call.class, &call.copy) {
            (Class::Create | Class::Resume, Some(body)) => Some(Box::new(Kept {
                body: body.as_slice().into(),
                model_chosen: false,
                // What was done to an open session holds, however often it is resumed.
                repeats: entry.kept.take().map(|k| k.repeats).unwrap_or_default(),
                tainted: false,
            })),
            // Opened by other means: it stays where it is.
            _ => None,
        };
    }

    /// A call has succeeded; what it did is noted.
    pub(super) fn note_effect(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        call: &Call,
        answer: &OwnAnswer<'_>,
        out: &mut Outbox,
    ) {
        let entry = &mut self.entries[key];
        let Some(kept) = &mut entry.kept else { return };
        match call.effect {
            Effect::Read | Effect::Kept | Effect::Flush => {}
            Effect::ModelChosen => kept.model_chosen = true,
            Effect::Lost => kept.tainted = true,
            Effect::RepeatLast | Effect::RepeatEach | Effect::Interest => {
                let method = call.method.as_str();
                let params = call.copy.as_ref().and_then(|body| params_of(body));
                let handle = handle_of(answer.result).map(|handle| (handle.clone(), handle));
                let last = call.effect == Effect::RepeatLast;
                let same = |r: &Repeat| params.as_deref() == Some(&*r.params);
                // Said twice it is done once.
                kept.repeats
                    .retain(|r| *r.method != *method || r.handle.is_some() || !last && !same(r));
                let room = cx.settings.session_params.saturating_sub(kept.bytes());
                match params.filter(|p| p.len() <= room && kept.repeats.len() < REPEATS) {
                    Some(params) => kept.repeats.push(Repeat {
                        method: method.into(),
                        params: params.into(),
                        handle: handle.filter(|_| call.effect == Effect::Interest),
                        at: cx.now,
                    }),
                    None => kept.tainted = true,
                }
            }
            Effect::Disinterest => {
                let params = call.copy.as_ref().and_then(|body| params_of(body));
                let handle = params.and_then(|params| handle_of(params.as_bytes()));
                let given_back =
                    |r: &Repeat| r.handle.as_ref().map(|(_, now)| now) == handle.as_ref();
                kept.repeats
                    .retain(|r| r.handle.is_none() || !given_back(r));
            }
            Effect::Answer => {
                let answered = call.copy.as_ref().and_then(|body| request_of(body));
                let Some(answered) = answered else { return };
                // A server that is about to end wants it no more, the next one may: whatever it
                // said, the client will not answer again.
                self.keep_answer(cx.now, key, call, answer.succeeded);
                let entry = &mut self.entries[key];
                let was_open = entry.settle(answered);
                // If it was known as answered, another client was faster: the turn goes on.
                let in_vain = !answer.succeeded && was_open && entry.asked.is_empty();
                let survivor = entry.turn.as_mut().filter(|_| in_vain);
                if let Some(backend) = survivor.and_then(|turn| turn.survived.take()) {
                    // It was not on disk when its process died: nothing waits for it any more.
                    let cause = LostBy::Backend(backend);
                    self.lose_turn(cx, key, &cause, ClosedBy::Backend, out);
                    self.abort_all(cx, key, out);
                }
            }
        }
    }

    /// An answer that its backend has refused with an error. One that is about to end does so, at least
    /// of sends, and SDKs do not say it again.
    pub(super) fn keep_refused(&mut self, now: Instant, slot: SlotId, call: &Call) {
        if let Some(key) = self.key_at(call, slot)
            && call.effect == Effect::Answer
        {
            self.keep_answer(now, key, call, false);
        }
    }

    /// What this call answers may have to be answered again, where the turn goes on. Of several answers
    /// the one that was taken counts.
    pub(super) fn keep_answer(&mut self, now: Instant, key: usize, call: &Call, taken: bool) {
        let entry = &mut self.entries[key];
        let Some(body) = call.copy.as_ref().filter(|_| entry.turn.is_some()) else {
            return;
        };
        // What is being aborted may be left to the next process.
        let asked = |request: &str| entry.asked.iter().any(|asked| asked.id == request);
        let over = |request: &str| entry.is_void(request) && !asked(request);
        let request = request_of(body).filter(|id| !entry.is_behind(id) && !over(id));
        let (Some(request), Some(params)) = (request, params_of(body)) else {
            return;
        };
        let is_same = |given: &Repeat| asked_in(&given.params).is_some_and(|id| id == request);
        if !taken && entry.answers.iter().any(is_same) {
            return;
        }
        entry.answers.retain(|given| !is_same(given));
        if entry.answers.len() >= REPEATS {
            entry.answers.remove(0);
        }
        entry.answers.push(Repeat {
            method: call.method.as_str().into(),
            params: params.into(),
            handle: None,
            at: now,
        });
    }

    /// The interest that a client gives back is known to the backend by another name, if the
    /// session was opened again since: handles count from one in each process.
    pub(super) fn name_interest(&self, key: usize, body: &[u8]) -> Option<Vec<u8>> {
        let kept = self.entries[key].kept.as_ref()?;
        let mut value: serde_json::Value = serde_json::from_slice(body).ok()?;
        let handle = value.pointer_mut("/params/handle")?;
        let (_, now) = kept
            .repeats
            .iter()
            .filter_map(|r| r.handle.as_ref())
            .find(|(said, now)| handle == said.as_str() && said != now)?;
        *handle = serde_json::Value::from(now.as_str());
        serde_json::to_vec(&value).ok()
    }

    /// Holds an answer back, to a call that [wants it](Effect::wants_save), until what it acknowledges
    /// is on disk: within some 150 ms after it a crash would undo it (docs/protocol.md). Whether it
    /// does.
    pub(super) fn withhold(
        &mut self,
        cx: &Context<'_>,
        slot: SlotId,
        id: &RequestId,
        body: &[u8],
        out: &mut Outbox,
    ) -> bool {
        let Some(call) = self.calls.get(id) else {
            return false;
        };
        let key = self.key_of(call).filter(|_| call.withheld.is_none());
        let Some(key) = key.filter(|key| self.entries[*key].slot == Some(slot)) else {
            return false;
        };
        let saves = body.len() <= COPY && self.save(cx, key, Some(id.clone()), out);
        if saves && let Some(call) = self.calls.get_mut(id) {
            call.withheld = Some(body.into());
            self.held_bytes += body.len();
        }
        saves
    }

    /// Has the backend write what it has of the session to disk now. Whether it is asked to.
    pub(super) fn save(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        for_call: Option<RequestId>,
        out: &mut Outbox,
    ) -> bool {
        let entry = &self.entries[key];
        let (Some(slot), Some(_)) = (entry.slot.filter(|_| entry.attached), &entry.kept) else {
            return false;
        };
        let params = reply::session_params(entry.id.as_str());
        let errand = Errand::Save(for_call);
        self.call_own(cx, key, slot, errand, "sessions.save", &params, out);
        true
    }

    /// What an answer acknowledges is on disk, or cannot be told to be: the client gets it.
    pub(super) fn let_go(
        &mut self,
        cx: &Context<'_>,
        slot: SlotId,
        id: &RequestId,
        out: &mut Outbox,
    ) {
        let Some(body) = self.calls.get(id).and_then(|call| call.withheld.clone()) else {
            return;
        };
        let Ok(head) = scan::scan_backend(&body) else {
            return;
        };
        if self.handle_backend_answer(cx, slot, &head, &body, true, out) {
            out.write(Dest::Client, |b| frame(b, &body));
        }
    }
}

/// The params of a request, as JSON text.
pub(super) fn params_of(body: &[u8]) -> Option<String> {
    let head = scan::scan(body).ok()?;
    String::from_utf8(head.params?.of(body).to_vec()).ok()
}

/// `handle` of an object.
pub(super) fn handle_of(object: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(object).ok()?;
    Some(value.get("handle")?.as_str()?.to_owned())
}

/// `params.requestId` of a request.
pub(super) fn request_of(body: &[u8]) -> Option<String> {
    let head: Head = scan::scan(body).ok()?;
    let text = head.places.request_id?;
    Some(text.get(body).into_owned())
}
