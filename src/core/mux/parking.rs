//! Detach grace: the client's connection has ended in a turn. Its upstream connection stays for a
//! while, so that the turn goes on (the CLI would abort it), until the turn ends, the grace is over,
//! or another connection takes the session over (`takeover`).
//!
//! Also how an upstream connection is left that owes the answer to a hook, grace or not: closed as
//! it is, the tool that the hook was to judge would run (docs/protocol.md). So its turn is aborted
//! first.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{
    Asker, Context, Life, Mux, Output,
    kept::params_of,
    note::{Handover, HeldRequest, Note},
    outbox::{Dest, Outbox},
    own::Errand,
    upstream::{GivenUp, Phase, SlotId},
};
use crate::core::{
    event::{CallOutcome, ClosedBy, Event, TakeOverResult, TurnOutcome},
    id::{ConnectionId, SessionId},
    idmap::RequestId,
    reply,
};

/// Largest request or event that is kept for a client that may take over, in bytes.
pub(super) const KEPT_BODY: usize = 256 * 1024;

/// Requests of which a copy is kept.
pub(super) const KEPT_REQUESTS: usize = 64;

/// How long one step of leaving a session may take before it is left by the hard way: its upstream
/// connection is closed.
pub(super) const STEP: Duration = Duration::from_secs(5);

/// What is kept of a request of a backend.
pub(super) struct Request {
    pub(super) session: Option<SessionId>,
    /// It is a `hooks.invoke`.
    pub(super) is_hook: bool,
    /// For a client that takes the session over: the body, and where its id stands.
    pub(super) body: Option<HeldRequest>,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Request").field(&self.session).finish()
    }
}

/// A session whose client has left.
#[derive(Debug)]
pub(super) struct Parked {
    since: Instant,
    /// When something has to happen; never while another client is asked what its turn waits for.
    pub(super) until: Option<Instant>,
    pub(super) stage: Stage,
    /// Tools that nobody else can run.
    tools: Vec<String>,
    /// Who waits for it to be left.
    pub(super) waiting: VecDeque<ConnectionId>,
    /// It was in a turn, and is counted.
    counts: bool,
    /// How it ends, as far as that is known.
    pub(super) result: TakeOverResult,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// Its turn goes on.
    InTurn,
    /// That connection is taking it over.
    Handing(ConnectionId),
    /// Its turn is being aborted.
    Halting,
    /// Our detach is out; whom to tell of the turn.
    Leaving(Option<ConnectionId>),
    /// It was being opened when its client left, so a detach might come too early: it stays until
    /// its upstream connection is closed.
    Lingering,
}

impl Parked {
    /// Who is taking it over.
    pub(super) fn handed_to(&self) -> Option<ConnectionId> {
        match self.stage {
            Stage::Handing(to) => Some(to),
            Stage::InTurn | Stage::Halting | Stage::Leaving(_) | Stage::Lingering => None,
        }
    }
}

impl Mux {
    // Parking.

    /// The client is gone. What is in a turn stays for the grace, if there is one and `parks` says
    /// that it may; what owes the answer to a hook until its turn is aborted; all else is left.
    pub(super) fn depart(
        &mut self,
        cx: &Context<'_>,
        by: ClosedBy,
        reason: &'static str,
        parks: bool,
        out: &mut Outbox,
    ) {
        if matches!(self.life, Life::Closed | Life::Parked) {
            return;
        }
        if by != ClosedBy::Client {
            self.cut(out);
        }
        let grace = cx.settings.detach_grace;
        let grace = grace.filter(|_| parks && self.life == Life::Open);
        self.let_takings_go(cx);
        let keys = self.keys();
        let stays = |mux: &Self, key: usize| {
            let aborts = mux.owes_hook(key) || mux.leaves_others_waiting(cx, key);
            grace.is_some() && mux.may_park(key) || aborts && mux.is_ready_here(key)
        };
        let stay: Vec<usize> = keys.into_iter().filter(|key| stays(self, *key)).collect();
        let mut slots: Vec<SlotId> = stay
            .iter()
            .filter_map(|key| self.entries[*key].slot)
            .collect();
        slots.dedup();
        if slots.is_empty() {
            self.abandon(cx, by);
            self.close(reason);
            return;
        }

        self.drop_queues();
        for (id, mut call) in self.drain_calls(|_| true) {
            self.call_ended(cx, &call, CallOutcome::Abandoned);
            let owed = call.is_owed();
            self.keep_last_word(&id, &mut call);
            self.settle(cx, &call);
            if let Some(upstream) = call.at().and_then(|slot| self.upstreams.get_mut(slot))
                && owed
            {
                // Its answer is still to come.
                let (class, session) = (call.class, call.session);
                upstream.given_up.insert(id, GivenUp { class, session });
            }
        }
        self.life = Life::Parked;
        self.partial_since = None;
        let mut parked = Vec::new();
        for key in self.keys() {
            let entry = &self.entries[key];
            if !entry.here_at().is_some_and(|slot| slots.contains(&slot)) {
                self.end_turn(cx, key, TurnOutcome::Lost, by);
                self.drop_entry(cx, key);
                continue;
            }
            parked.push(entry.id.clone());
            let in_turn = grace.is_some() && self.may_park(key);
            self.park_entry(cx, key, grace.filter(|_| in_turn));
        }
        for slot in self.upstreams.ids() {
            if !slots.contains(&slot) {
                self.part_with(slot);
            }
        }
        self.requests
            .retain(|asker, _| matches!(asker, Asker::Upstream(_)));
        let sessions = parked;
        self.outputs.push_back(Output::Park { reason, sessions });
        for key in self.keys() {
            let Some(parked) = self.entries.get(key).and_then(|e| e.parked.as_ref()) else {
                continue;
            };
            if parked.counts {
                let session = self.entries[key].id.clone();
                self.outputs.push_back(Output::Event(Event::SessionParked {
                    connection: self.id,
                    session,
                }));
            } else if self.owes_hook(key) || self.waits_for_own_tool(key) {
                self.halt(cx, key, out);
            } else if parked.stage != Stage::Lingering {
                self.end_turn(cx, key, TurnOutcome::Lost, by);
                self.detach_parked(cx, key, None, out);
            }
        }
    }

    fn park_entry(&mut self, cx: &Context<'_>, key: usize, grace: Option<Duration>) {
        self.abandon_errands(key);
        let opening = self.entries[key].attaching > 0;
        let tools = self.own_tools(key);
        self.change_entry(cx.now, key, |entry| {
            entry.parked = Some(Box::new(Parked {
                since: cx.now,
                until: grace.map(|grace| cx.now + grace),
                stage: if grace.is_none() && opening && !entry.attached {
                    Stage::Lingering
                } else {
                    Stage::InTurn
                },
                tools,
                waiting: VecDeque::new(),
                counts: grace.is_some(),
                result: TakeOverResult::Ended,
            }));
            entry.attached = true;
            entry.attaching = 0;
            // It ends with its upstream connection.
            entry.kept = None;
            entry.reopening = None;
        });
        self.note_waiting(key);
    }

    fn may_park(&self, key: usize) -> bool {
        let entry = &self.entries[key];
        let in_turn = entry.turn.as_ref().is_some_and(|turn| turn.confirmed);
        in_turn && entry.attached && entry.reopening.is_none() && self.is_ready_here(key)
    }

    fn is_ready_here(&self, key: usize) -> bool {
        let upstream = self.entries[key].here_at();
        let upstream = upstream.and_then(|slot| self.upstreams.get(slot));
        upstream.is_some_and(|u| u.phase == Phase::Ready)
    }

    /// Names of the tools that the client has declared for this session.
    fn own_tools(&self, key: usize) -> Vec<String> {
        let Some(kept) = &self.entries[key].kept else {
            return Vec::new();
        };
        let opened = params_of(&kept.body);
        let since = kept.repeats.iter().map(|repeat| repeat.params.to_string());
        let texts = opened.into_iter().chain(since);
        texts.flat_map(|params| tool_names(&params)).collect()
    }

    /// A request of this session to our client waits for its answer, and is a hook's.
    pub(super) fn owes_hook(&self, key: usize) -> bool {
        let entry = &self.entries[key];
        let mine = |r: &Request| r.is_hook && r.session.as_ref() == Some(&entry.id);
        self.requests.iter().any(|(_, asker, request)| {
            mine(request)
                && entry
                    .slot
                    .is_some_and(|slot| asker == Asker::Upstream(slot))
        })
    }

    /// The turn waits for a tool that only this client has.
    fn waits_for_own_tool(&self, key: usize) -> bool {
        let parked = self.entries[key].parked.as_ref();
        parked.is_some_and(|parked| self.waits_for_tool_of(key, &parked.tools))
    }

    fn waits_for_tool_of(&self, key: usize, tools: &[String]) -> bool {
        let entry = &self.entries[key];
        let mut asked = entry.asked.iter().filter(|asked| !asked.answered);
        let of_theirs = |tool: &str| tools.iter().any(|theirs| theirs == tool);
        entry.turn.is_some() && asked.any(|asked| asked.tool.as_deref().is_some_and(of_theirs))
    }

    /// Others hear the session, and its turn waits for a tool of this client: it would stand for
    /// ever for them (DESIGN §5). Alone, it ends with the upstream connection, as on the server.
    fn leaves_others_waiting(&self, cx: &Context<'_>, key: usize) -> bool {
        let entry = &self.entries[key];
        !entry.asked.is_empty()
            && self.waits_for_tool_of(key, &self.own_tools(key))
            && cx.commons.has_others(entry.id.as_str(), self.id)
    }

    /// The client has detached from a session that others may hold. If its turn waits for a tool of
    /// this client, nobody is left to answer: it would stand for ever (DESIGN §5).
    pub(super) fn abort_orphan(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        slot: SlotId,
        out: &mut Outbox,
    ) {
        if self.entries[key].asked.is_empty() {
            return;
        }
        let tools = self.own_tools(key);
        if self.waits_for_tool_of(key, &tools) {
            let params = reply::session_params(self.entries[key].id.as_str());
            let errand = Errand::Nobodys;
            self.call_own(cx, key, slot, errand, "session.abort", &params, out);
        }
    }

    // Leaving.

    /// It need not stay any longer.
    pub(super) fn leave(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        result: TakeOverResult,
        out: &mut Outbox,
    ) {
        let Some(parked) = self.entries[key].parked.as_mut() else {
            return;
        };
        parked.result = result;
        if self.owes_hook(key) || self.waits_for_own_tool(key) {
            self.halt(cx, key, out);
        } else {
            self.detach_or_close(cx, key, out);
        }
    }

    /// Aborts its turn, which nobody is left to serve.
    fn halt(&mut self, cx: &Context<'_>, key: usize, out: &mut Outbox) {
        let entry = &mut self.entries[key];
        let (Some(parked), Some(slot)) = (&mut entry.parked, entry.slot) else {
            return;
        };
        parked.stage = Stage::Halting;
        parked.until = Some(cx.now + STEP);
        let params = reply::session_params(entry.id.as_str());
        self.note_waiting(key);
        self.call_own(cx, key, slot, Errand::Halt, "session.abort", &params, out);
    }

    /// The backend has taken note of an abort: of ours, or of another client's.
    pub(super) fn halted(&mut self, cx: &Context<'_>, key: usize, out: &mut Outbox) {
        let entry = self.entries.get(key).and_then(|e| e.parked.as_ref());
        if entry.is_some_and(|parked| parked.stage == Stage::Halting) {
            self.detach_or_close(cx, key, out);
        }
    }

    /// An upstream connection that still owes a hook's answer has to be closed: the turn would not
    /// end before. So is one that nothing else needs.
    fn detach_or_close(&mut self, cx: &Context<'_>, key: usize, out: &mut Outbox) {
        let Some(slot) = self.entries[key].slot else {
            return;
        };
        if self.owes_hook(key) || !self.is_needed(slot, key) {
            self.close_parked(cx, slot, out);
        } else {
            self.detach_parked(cx, key, None, out);
        }
    }

    /// Whether something else than this session still needs the upstream connection.
    fn is_needed(&self, slot: SlotId, key: usize) -> bool {
        self.entries.iter().any(|(other, entry)| {
            let stage = entry.parked.as_ref().map(|parked| parked.stage);
            let goes = matches!(stage, None | Some(Stage::Lingering | Stage::Leaving(None)));
            other != key && entry.slot == Some(slot) && !goes
        })
    }

    pub(super) fn detach_parked(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        to: Option<ConnectionId>,
        out: &mut Outbox,
    ) {
        let entry = &mut self.entries[key];
        let (Some(parked), Some(slot)) = (&mut entry.parked, entry.slot) else {
            return;
        };
        parked.stage = Stage::Leaving(to);
        parked.until = Some(cx.now + STEP);
        let params = reply::session_params(entry.id.as_str());
        self.note_waiting(key);
        self.call_own(cx, key, slot, Errand::Leave, "session.detach", &params, out);
    }

    /// The answer to our detach.
    pub(super) fn left(&mut self, cx: &Context<'_>, key: usize, out: &mut Outbox) {
        let is_leaving = |p: &Parked| matches!(p.stage, Stage::Leaving(_));
        let parked = self.entries.get(key).and_then(|e| e.parked.as_ref());
        if parked.is_some_and(|parked| is_leaving(parked)) {
            let slot = self.entries[key].slot;
            self.end_parked(cx, key, ClosedBy::Client);
            if let Some(slot) = slot {
                self.close_spent(cx, slot, out);
            }
        }
    }

    /// Closes an upstream connection with everything that is parked there. What owes the answer to
    /// a hook is aborted before, by the last words on it.
    fn close_parked(&mut self, cx: &Context<'_>, slot: SlotId, out: &mut Outbox) {
        self.abort_hooked(Some(slot), out);
        for key in self.keys() {
            if self.entries[key].slot == Some(slot) {
                self.end_parked(cx, key, ClosedBy::Client);
            }
        }
        self.part_with(slot);
        self.close_if_empty();
    }

    /// Writes an abort for each session that owes the answer to a hook: on one upstream connection,
    /// or on all of them. For those that are closed now.
    pub(super) fn abort_hooked(&mut self, on: Option<SlotId>, out: &mut Outbox) {
        let mut owing: Vec<(SlotId, SessionId)> = Vec::new();
        for (_, asker, request) in self.requests.iter() {
            if let (Asker::Upstream(slot), Some(session)) = (asker, &request.session)
                && request.is_hook
                && on.is_none_or(|on| on == slot)
                && !owing.contains(&(slot, session.clone()))
            {
                owing.push((slot, session.clone()));
            }
        }
        for (slot, session) in owing {
            if self.upstreams.get(slot).is_some() {
                self.next_serial += 1;
                let id = RequestId::from_text(&format!("taxiway-{}", self.next_serial));
                let params = reply::session_params(session.as_str());
                let id = id.token();
                out.write(Dest::Upstream(slot), |b| {
                    reply::request(b, id.as_bytes(), "session.abort", &params)
                });
            }
        }
    }

    /// A parked session is left, or its upstream connection has ended: who waits for that is told.
    fn end_parked(&mut self, cx: &Context<'_>, key: usize, by: ClosedBy) {
        let Some(parked) = self.entries[key].parked.take() else {
            return;
        };
        let notes = self.farewell(key, &parked);
        // Unless it was taken over, nobody here reports how it ends.
        self.end_turn(cx, key, TurnOutcome::Lost, by);
        let session = self.entries[key].id.clone();
        self.drop_entry(cx, key);
        // The directory does not count us by the time that they hear of it.
        self.outputs.extend(notes);
        if parked.counts {
            self.outputs.push_back(Output::Event(Event::ParkedEnded {
                connection: self.id,
                session: session.clone(),
                result: parked.result,
                took: cx.now.saturating_duration_since(parked.since),
            }));
        }
    }

    /// What those are told who wait for the session to be left.
    fn farewell(&mut self, key: usize, parked: &Parked) -> Vec<Output> {
        // Whoever has it next looks for himself.
        self.unwatch(key);
        let entry = &mut self.entries[key];
        let mut told: Vec<ConnectionId> = Vec::new();
        let mut handover = None;
        if let Stage::Leaving(Some(to)) | Stage::Handing(to) = parked.stage {
            told.push(to);
            if entry.turn.is_some() && self.locks.forget(&entry.id) {
                let session = entry.id.clone();
                self.outputs.push_back(Output::TurnPassed { session, to });
            }
            handover = Some(Box::new(Handover {
                turn: entry.turn.take(),
                asked: std::mem::take(&mut entry.asked),
                answers: std::mem::take(&mut entry.answers),
            }));
        }
        told.extend(&parked.waiting);
        let left = |to| {
            let (session, handover) = (entry.id.clone(), handover.take());
            let note = Note::Left { session, handover };
            Output::Tell { to, note }
        };
        told.into_iter().map(left).collect()
    }

    /// Forgets an entry, whatever it was about.
    fn drop_entry(&mut self, cx: &Context<'_>, key: usize) {
        self.abandon_errands(key);
        self.unwatch(key);
        self.change_entry(cx.now, key, |entry| {
            entry.attached = false;
            entry.attaching = 0;
            entry.turn = None;
            entry.kept = None;
            entry.reopening = None;
            entry.parked = None;
            entry.slot = None;
            entry.forget_asked();
        });
        self.settle_entry(key);
    }

    /// Closes an upstream connection that nothing parked needs any more. One that a hook's answer
    /// is still to go over stays.
    pub(super) fn close_spent(&mut self, cx: &Context<'_>, slot: SlotId, out: &mut Outbox) {
        let used = self.entries.iter().any(|(_, entry)| {
            let stage = entry.parked.as_ref().map(|parked| parked.stage);
            entry.slot == Some(slot) && stage != Some(Stage::Lingering)
        });
        let owes = self.requests.iter().any(|(_, asker, request)| {
            let gone = request
                .session
                .as_ref()
                .is_none_or(|s| !self.by_session.contains_key(s));
            asker == Asker::Upstream(slot) && request.is_hook && gone
        });
        if !used && !owes && self.life == Life::Parked {
            self.close_parked(cx, slot, out);
        }
    }

    /// Nothing is parked any more.
    pub(super) fn close_if_empty(&mut self) {
        if self.life == Life::Parked && self.upstreams.iter().next().is_none() {
            self.close("nothing is parked any more");
        }
    }

    /// Closes an upstream connection that nothing has needed for a while.
    pub(super) fn part_with_hooks(&mut self, slot: SlotId, out: &mut Outbox) {
        self.abort_hooked(Some(slot), out);
        self.part_with(slot);
        self.close_if_empty();
    }

    // What happens meanwhile.

    /// The turn of a session has ended.
    pub(super) fn idle_in_between(&mut self, cx: &Context<'_>, key: usize, out: &mut Outbox) {
        let Some(entry) = self.entries.get(key) else {
            return;
        };
        match entry.parked.as_ref().map(|parked| parked.stage) {
            Some(Stage::InTurn) => self.leave(cx, key, TakeOverResult::Ended, out),
            Some(Stage::Halting) => self.detach_or_close(cx, key, out),
            Some(Stage::Handing(_) | Stage::Leaving(_) | Stage::Lingering) => {}
            None if entry.taking.is_some() => self.stop_asking(cx, key),
            None => {}
        }
    }

    /// The time of a parked session is over, or of a step of leaving it.
    pub(super) fn parked_too_long(&mut self, cx: &Context<'_>, key: usize, out: &mut Outbox) {
        let (Some(parked), Some(slot)) = (&self.entries[key].parked, self.entries[key].slot) else {
            return;
        };
        match parked.stage {
            Stage::InTurn => self.leave(cx, key, TakeOverResult::Expired, out),
            Stage::Leaving(_) if self.is_needed(slot, key) => self.linger(key),
            Stage::Halting | Stage::Leaving(_) => self.close_parked(cx, slot, out),
            Stage::Handing(_) | Stage::Lingering => {}
        }
    }

    /// The backend does not answer our detach: a hook of its own waits for the client, say.
    fn linger(&mut self, key: usize) {
        let Some(mut parked) = self.entries[key].parked.take() else {
            return;
        };
        let notes = self.farewell(key, &parked);
        self.outputs.extend(notes);
        parked.waiting.clear();
        parked.stage = Stage::Lingering;
        parked.until = None;
        self.entries[key].parked = Some(parked);
        self.note_waiting(key);
    }

    /// The backend of a parked session has closed it.
    pub(super) fn parked_closed(&mut self, cx: &Context<'_>, key: usize, out: &mut Outbox) {
        let slot = self.entries[key].slot;
        self.end_parked(cx, key, ClosedBy::Backend);
        if let Some(slot) = slot {
            self.close_spent(cx, slot, out);
        }
    }

    /// The upstream connection of these has ended.
    pub(super) fn parked_lost(&mut self, cx: &Context<'_>, slot: SlotId) {
        for key in self.keys() {
            if self.entries[key].slot == Some(slot) && self.entries[key].parked.is_some() {
                if let Some(parked) = &mut self.entries[key].parked
                    && matches!(parked.stage, Stage::Handing(_) | Stage::Leaving(Some(_)))
                {
                    parked.result = TakeOverResult::Ended;
                }
                self.end_parked(cx, key, ClosedBy::Backend);
            }
        }
    }

    /// Taxiway stops.
    pub(super) fn end_all_parked(&mut self, cx: &Context<'_>, out: &mut Outbox) {
        self.abort_hooked(None, out);
        for key in self.keys() {
            self.end_parked(cx, key, ClosedBy::Operator);
        }
    }
}

/// `tools[].name` of params.
fn tool_names(params: &str) -> Vec<String> {
    let params: serde_json::Value = serde_json::from_str(params).unwrap_or_default();
    let tools = params.get("tools").and_then(serde_json::Value::as_array);
    let name = |tool: &serde_json::Value| Some(tool.get("name")?.as_str()?.to_owned());
    tools.into_iter().flatten().filter_map(name).collect()
}
