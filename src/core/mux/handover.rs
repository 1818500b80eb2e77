//! Handing a parked session over to the connection that takes it (`takeover` is that side): what
//! its turn waits for is told, answers of the other client are passed on, then it is left.

use std::time::{Duration, Instant};

use super::{
    Asker, Context, Mux, Output,
    client::swap_id,
    note::{Handover, HeldRequest, Note},
    outbox::{Dest, Outbox},
    parking::Stage,
    session::{Asked, Turn},
};
use crate::core::{
    event::TakeOverResult,
    id::{ConnectionId, SessionId},
    idmap::RequestId,
};

impl Mux {
    /// A backend asks a client that is gone: whoever takes the session over answers.
    pub(super) fn hold_request(&mut self, request: u64) {
        let found = self.requests.iter().find(|(id, _, _)| *id == request);
        let Some(held) = found.map(|(_, _, held)| held) else {
            return;
        };
        let (Some(session), Some(body)) = (held.session.clone(), held.body.clone()) else {
            return;
        };
        let entry = self.by_session.get(&session).map(|key| &self.entries[*key]);
        let stage = entry.and_then(|e| e.parked.as_ref()).map(|p| p.stage);
        if let Some(Stage::Handing(to) | Stage::Leaving(Some(to))) = stage {
            let request = (request, body);
            let note = Note::Request { session, request };
            self.outputs.push_back(Output::Tell { to, note });
        }
    }

    fn parked_key(&self, session: &SessionId) -> Option<usize> {
        let key = self.by_session.get(session).copied()?;
        self.entries[key].parked.is_some().then_some(key)
    }

    /// `by` hears the session, and wants it whole.
    pub(super) fn hand_over(
        &mut self,
        cx: &Context<'_>,
        by: ConnectionId,
        session: SessionId,
        out: &mut Outbox,
    ) {
        let Some(key) = self.parked_key(&session) else {
            let handover = None;
            let note = Note::Left { session, handover };
            self.outputs.push_back(Output::Tell { to: by, note });
            return;
        };
        let Some(parked) = &mut self.entries[key].parked else {
            return;
        };
        match parked.stage {
            Stage::InTurn => self.hand_to(key, by),
            Stage::Lingering => {
                // It has been opened long since.
                parked.waiting.push_back(by);
                self.detach_parked(cx, key, None, out);
            }
            Stage::Handing(_) | Stage::Halting | Stage::Leaving(_) => parked.waiting.push_back(by),
        }
    }

    fn hand_to(&mut self, key: usize, by: ConnectionId) {
        let entry = &mut self.entries[key];
        let Some(parked) = &mut entry.parked else {
            return;
        };
        parked.stage = Stage::Handing(by);
        parked.until = None;
        let (session, asked) = (entry.id.clone(), entry.asked.clone());
        let mut requests: Vec<(u64, HeldRequest)> = self
            .requests
            .iter()
            .filter(|(_, _, request)| request.session.as_ref() == Some(&session))
            .filter_map(|(id, _, request)| Some((id, request.body.clone()?)))
            .collect();
        requests.sort_unstable_by_key(|(id, _)| *id);
        self.note_waiting(key);
        let note = Note::Parked {
            session,
            asked,
            requests,
        };
        self.outputs.push_back(Output::Tell { to: by, note });
    }

    /// The client of `by` has answered a request that came here. `id` is where its id stands.
    pub(super) fn answer_for_client(
        &mut self,
        cx: &Context<'_>,
        request: u64,
        body: &[u8],
        id: std::ops::Range<usize>,
        out: &mut Outbox,
    ) {
        let Ok(number) = i64::try_from(request) else {
            return;
        };
        let Some((Asker::Upstream(slot), token, _)) = self.requests.take(&RequestId::Int(number))
        else {
            return;
        };
        if self.upstreams.get(slot).is_some() {
            out.write(Dest::Upstream(slot), |b| swap_id(b, body, id, &token));
            self.close_spent(cx, slot, out);
        }
    }

    /// Nothing is left to be asked: the session is `by`'s.
    pub(super) fn let_go_of(
        &mut self,
        cx: &Context<'_>,
        by: ConnectionId,
        session: &SessionId,
        out: &mut Outbox,
    ) {
        let Some(key) = self.parked_key(session) else {
            return;
        };
        let Some(parked) = &mut self.entries[key].parked else {
            return;
        };
        if parked.stage == Stage::Handing(by) {
            parked.result = TakeOverResult::TakenOver;
            self.detach_parked(cx, key, Some(by), out);
        }
    }

    /// `by` does not take it over after all: the next one may, or it waits on.
    pub(super) fn given_back(
        &mut self,
        cx: &Context<'_>,
        by: ConnectionId,
        session: &SessionId,
        out: &mut Outbox,
    ) {
        let Some(key) = self.parked_key(session) else {
            return;
        };
        let in_turn = self.entries[key].turn.is_some();
        let Some(parked) = &mut self.entries[key].parked else {
            return;
        };
        parked.waiting.retain(|waits| *waits != by);
        if parked.stage != Stage::Handing(by) {
            return;
        }
        parked.stage = Stage::InTurn;
        parked.until = Some(cx.now + cx.settings.detach_grace.unwrap_or_default());
        let next = parked.waiting.pop_front();
        self.note_waiting(key);
        match next {
            Some(next) => self.hand_to(key, next),
            None if in_turn => {}
            None => self.leave(cx, key, TakeOverResult::Ended, out),
        }
    }

    /// What a session that was taken over brings with it, for a client that has left meanwhile.
    pub(super) fn take_in_parked(
        &mut self,
        cx: &Context<'_>,
        session: &SessionId,
        handover: Option<Box<Handover>>,
        out: &mut Outbox,
    ) {
        let (Some(key), Some(handover)) = (self.parked_key(session), handover) else {
            return;
        };
        self.unwatch(key);
        self.entries[key].turn = None;
        self.take_in(cx, key, *handover, None);
        if self.entries[key].turn.is_none() {
            self.leave(cx, key, TakeOverResult::Ended, out);
        }
    }

    /// A turn that is known to run, though not heard of yet.
    pub(super) fn assume_turn(&mut self, now: Instant, key: usize) {
        let entry = &mut self.entries[key];
        let turn = entry
            .turn
            .get_or_insert_with(|| Turn::new(now, Duration::ZERO));
        turn.confirmed = true;
    }

    /// What the turn of an entry waits for, without what is there twice.
    pub(super) fn merge_asked(&mut self, key: usize, more: Vec<Asked>) {
        let asked = &mut self.entries[key].asked;
        for one in more {
            if asked.iter().all(|known| known.id != one.id) {
                asked.push(one);
            }
        }
    }
}
