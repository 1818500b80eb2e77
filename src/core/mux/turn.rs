//! Turns and the order of sends: what drives them and what ends them.

use std::time::{Duration, Instant};

use super::{
    Context, Mux, Output,
    calls::Call,
    client::Frame,
    lock::Start,
    outbox::{Dest, Outbox},
    parking::KEPT_BODY,
    session::{Asked, Gate, Held, MAX_UNSEEN, Opener, Rest, STEERING_WAIT},
    tells::{TOOL_ASKED, Tells, acknowledged_id, end_of_turn, message_id, question, request_id},
    upstream::{Phase, SlotId},
};
use crate::core::{
    event::{ClosedBy, TurnOutcome, TurnRecord},
    id::{BackendName, SessionId},
    idmap::RequestId,
    locate::Purpose,
    reply::{self, LostBy, Stamp},
    route::{Class, SendKind},
    scan::{self, Head},
};

/// Longer names of tools are not kept; models take 64 bytes.
const MAX_TOOL_NAME: usize = 256;

impl Mux {
    /// Forwards a send, or holds it behind the one before it.
    pub(super) fn pass_send(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        (call, since): (RequestId, Instant),
        frame: Frame<'_>,
        trace_id: Option<String>,
        out: &mut Outbox,
    ) {
        let fits =
            matches!(frame, Frame::Kept(_)) || self.may_hold(frame.body().len(), cx.settings);
        let entry = &self.entries[key];
        let behind = entry.gate.is_some() || !entry.sends.is_empty() || entry.awaits_attach();
        let quelling = self.is_quelling(key);
        let start = if quelling || behind && !self.overtakes(key, frame.body()) {
            Start::Later
        } else {
            self.start_turn(cx, key, &call, frame.body())
        };
        match start {
            Start::Now => self.launch_send(cx, key, (call, since), frame, trace_id, out),
            Start::Never(error) => self.fail(cx, &call, &error, out),
            Start::Later if !fits => {
                let error = self.too_much_held(cx.settings);
                self.fail(cx, &call, &error, out);
            }
            Start::Later => {
                let held = Held {
                    call,
                    purpose: Purpose::Use,
                    body: frame.keep(),
                    since,
                };
                self.held_bytes += held.body.len();
                self.entries[key].sends.push_back(held);
            }
        }
    }

    /// Forwards a send and closes the gate behind it.
    fn launch_send(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        (call, since): (RequestId, Instant),
        frame: Frame<'_>,
        trace_id: Option<String>,
        out: &mut Outbox,
    ) {
        let entry = &mut self.entries[key];
        let Some(slot) = entry.slot else { return };
        let opener = match self.calls.get(&call).map(|c| c.class) {
            Some(Class::Send(SendKind::TurnEnd)) => Opener::Steering,
            _ => Opener::Response,
        };
        let spares = self.spares.get_or_insert_default();
        entry.gate = Some(spares.gate(Gate {
            call: call.clone(),
            opener,
            until: None,
        }));
        // The end of a turn is told only to those who hear the session.
        if entry.is_here() {
            let queued = cx.now.saturating_duration_since(since);
            let turn = entry
                .turn
                .get_or_insert_with(|| spares.turn(cx.now, queued));
            if turn.trace_id.is_none() {
                turn.trace_id = trace_id;
            }
        }
        self.forward(cx, slot, Some(call), frame, out);
        if self
            .upstreams
            .get(slot)
            .is_some_and(|u| u.phase == Phase::Ready)
        {
            self.arm_gate(cx, key);
        }
    }

    /// The send that closed this gate has left: for steering it opens after a while.
    pub(super) fn arm_gate(&mut self, cx: &Context<'_>, key: usize) {
        let Some(gate) = &mut self.entries[key].gate else {
            return;
        };
        if gate.opener == Opener::Steering && gate.until.is_none() {
            let until = cx.now + STEERING_WAIT;
            gate.until = Some(until);
            self.gates.push((until, key));
        }
    }

    /// The send of `id` has its answer: the next one may pass.
    pub(super) fn send_settled(
        &mut self,
        cx: &Context<'_>,
        id: &RequestId,
        call: &Call,
        accepted: Option<(&Head, &[u8])>,
        out: &mut Outbox,
    ) {
        let Class::Send(kind) = call.class else {
            return;
        };
        let Some(key) = self.key_of(call) else { return };
        match (accepted, kind) {
            (Some((head, body)), SendKind::WaitFlag) => {
                self.acknowledged(cx, key, call, head, body)
            }
            // Its events have told of the whole turn.
            (Some(_), SendKind::TurnEnd) => {}
            (None, _) => {
                self.say_idle(id, call.serial, out);
                self.forget_unconfirmed(key);
            }
        }
        let entry = &self.entries[key];
        if entry.gate.as_ref().is_some_and(|gate| gate.call == *id) {
            self.open_gate(cx, key, out);
        } else {
            self.settle_entry(key);
        }
    }

    /// A send has failed: the turn that it was to start does not come, unless another send that is
    /// under way starts it.
    fn forget_unconfirmed(&mut self, key: usize) {
        let entry = &mut self.entries[key];
        if entry.turn.as_ref().is_none_or(|turn| turn.confirmed) {
            return;
        }
        let under_way = self.calls.count(|call| {
            matches!(call.class, Class::Send(_))
                && call.at().is_some()
                && call.session.as_ref() == Some(&entry.id)
        });
        if under_way == 0 {
            entry.turn = None;
        }
    }

    /// Lets the next held send of this session pass.
    pub(super) fn open_gate(&mut self, cx: &Context<'_>, key: usize, out: &mut Outbox) {
        self.gates.retain(|(_, k)| *k != key);
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let gate = entry.gate.take();
        self.spares().keep_gate(gate);
        self.pass_next_send(cx, key, out);
        self.settle_entry(key);
    }

    /// The first send that waits, if nothing holds it any more.
    pub(super) fn pass_next_send(&mut self, cx: &Context<'_>, key: usize, out: &mut Outbox) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        if entry.gate.is_some() || entry.awaits_attach() || entry.sends.is_empty() {
            return;
        }
        if self.is_quelling(key) {
            return;
        }
        let entry = &mut self.entries[key];
        if entry.slot.is_none() {
            // Its backend was lost while a send was under way elsewhere.
            let sends = Vec::from(std::mem::take(&mut entry.sends));
            let session = entry.id.clone();
            self.held_bytes -= sends.iter().map(|held| held.body.len()).sum::<usize>();
            self.requeue(session, sends);
            return;
        }
        let Some(held) = entry.sends.pop_front() else {
            return;
        };
        match self.start_turn(cx, key, &held.call, &held.body) {
            Start::Now => {}
            Start::Later => {
                self.entries[key].sends.push_front(held);
                return;
            }
            Start::Never(error) => {
                self.held_bytes -= held.body.len();
                self.fail(cx, &held.call, &error, out);
                self.pass_next_send(cx, key, out);
                return;
            }
        }
        let entry = &self.entries[key];
        let Held {
            call, body, since, ..
        } = held;
        self.held_bytes -= body.len();
        if let Some(record) = self.calls.get_mut(&call) {
            record.attachment = entry.attached.then_some(entry.attachments);
        }
        // Read again: few sends are ever held, so nothing is kept of their heads.
        let head = scan::scan(&body).expect("it was scanned when it came");
        let trace = trace_id(&head, &body);
        self.launch_send(cx, key, (call, since), Frame::Kept(body), trace, out);
    }

    /// An event of a session, on its way to the client.
    pub(super) fn note_event(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        kind: &[u8],
        body: &[u8],
        out: &mut Outbox,
    ) {
        let tells = Tells::by(kind);
        match tells {
            // It goes on where its abort has not come yet; the client was told that it is over.
            Tells::Started if self.entries[key].rest == Rest::Runs => {}
            Tells::Message | Tells::Started => {
                self.entries[key].rest = Rest::Nothing;
                self.confirm_turn(cx, key);
                if let Some(turn) = &mut self.entries[key].turn {
                    turn.doubtful = false;
                }
                self.count_event(cx.now, key, body.len());
                if tells == Tells::Message {
                    self.learn_history(key);
                    self.note_shown(cx.now, key, body);
                    self.steer(cx, key, out);
                }
            }
            Tells::Works | Tells::Rests => {
                self.note_work(key, tells);
                self.count_event(cx.now, key, body.len());
            }
            Tells::Pending => {
                self.count_event(cx.now, key, body.len());
                self.steer(cx, key, out);
            }
            Tells::Failure => {
                if let Some(turn) = &mut self.entries[key].turn {
                    turn.failed = true;
                }
                self.count_event(cx.now, key, body.len());
            }
            Tells::Idle => {
                self.count_event(cx.now, key, body.len());
                self.entries[key].rest = Rest::Nothing;
                self.tell_missing(cx, key, out);
                let (aborted, mark) = end_of_turn(body);
                if let Some(taking) = &mut self.entries[key].taking {
                    taking.ended = Some((aborted, mark));
                }
                if let Some(turn) = &self.entries[key].turn {
                    let outcome = turn.outcome(aborted);
                    let by = if aborted {
                        ClosedBy::Client
                    } else {
                        ClosedBy::Backend
                    };
                    self.record_turn(cx, key, None, outcome, by, mark);
                    if aborted {
                        self.entries[key].void_asked();
                    } else {
                        self.entries[key].forget_asked();
                    }
                    self.settle_entry(key);
                }
                self.ask_again(cx, key, out);
                self.idle_in_between(cx, key, out);
            }
            Tells::Abort => {
                self.count_event(cx.now, key, body.len());
                self.entries[key].void_asked();
                self.halted(cx, key, out);
            }
            Tells::Question => {
                self.count_event(cx.now, key, body.len());
                let aborts = self.is_quelling(key);
                let entry = &mut self.entries[key];
                let question = question(body).filter(|_| entry.asked.len() < MAX_UNSEEN);
                if let Some((id, tool)) = question {
                    entry.ask_anew(&id, aborts);
                    let asked = &mut entry.asked;
                    let kept = cx.settings.detach_grace.is_some() && body.len() <= KEPT_BODY;
                    asked.push(Asked {
                        id,
                        // A permission names a tool that the server runs.
                        tool: tool.filter(|t| kind == TOOL_ASKED && t.len() <= MAX_TOOL_NAME),
                        answered: false,
                        event: kept.then(|| body.into()),
                    });
                    // Else the turn would not survive a crash in the next 150 ms.
                    self.save(cx, key, None, out);
                }
            }
            Tells::Answer => {
                self.count_event(cx.now, key, body.len());
                // What is permitted may take any time; and a busy server what comes of an answer.
                self.note_work(key, Tells::Works);
                if let Some(id) = request_id(body) {
                    self.entries[key].settle(id);
                }
            }
            Tells::Nothing => self.count_event(cx.now, key, body.len()),
        }
    }

    fn count_event(&mut self, now: Instant, key: usize, bytes: usize) {
        self.count_events(now, key, 1, bytes);
    }

    /// So many events of the running turn, with bodies of so many bytes.
    pub(super) fn count_events(&mut self, now: Instant, key: usize, events: u64, bytes: usize) {
        if let Some(turn) = &mut self.entries[key].turn {
            turn.first_event.get_or_insert(now);
            turn.events += events;
            turn.bytes += bytes as u64;
        }
    }

    /// The running turn has taken up a message: a send behind one that answers at the turn's end
    /// may pass now.
    fn steer(&mut self, cx: &Context<'_>, key: usize, out: &mut Outbox) {
        if self.entries[key]
            .gate
            .as_ref()
            .is_some_and(|gate| gate.opener == Opener::Steering)
        {
            self.open_gate(cx, key, out);
        }
    }

    /// The turn that is expected, or one that nobody here has started, has begun.
    pub(super) fn confirm_turn(&mut self, cx: &Context<'_>, key: usize) {
        let entry = &mut self.entries[key];
        let spares = &mut self.spares;
        let turn = entry.turn.get_or_insert_with(|| {
            let spares = spares.get_or_insert_default();
            spares.turn(cx.now, Duration::ZERO)
        });
        if !std::mem::replace(&mut turn.confirmed, true) {
            self.outputs.push_back(Output::TurnBegan(entry.id.clone()));
            self.watch(cx, key);
        }
    }

    fn learn_history(&mut self, key: usize) {
        let entry = &self.entries[key];
        if let Some(slot) = entry.slot {
            self.learn_history_of(entry.id.clone(), slot);
        }
    }

    pub(super) fn learn_history_of(&mut self, session: SessionId, slot: SlotId) {
        if let Some(upstream) = self.upstreams.get(slot) {
            let backend = upstream.backend.clone();
            self.outputs.push_back(Output::History { session, backend });
        }
    }

    /// The turn of this session is over.
    pub(super) fn end_turn(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        outcome: TurnOutcome,
        closed_by: ClosedBy,
    ) {
        self.record_turn(cx, key, None, outcome, closed_by, None);
    }

    /// `backend` is named if the session's upstream connection is gone; `mark` is that of the event
    /// that ended the turn.
    pub(super) fn record_turn(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        backend: Option<BackendName>,
        outcome: TurnOutcome,
        closed_by: ClosedBy,
        mark: Option<u64>,
    ) {
        self.unwatch(key);
        let turn = self.entries[key].turn.take();
        let Some(mut turn) = turn.filter(|turn| turn.confirmed) else {
            return;
        };
        let backend = backend.unwrap_or_else(|| {
            self.entries[key]
                .slot
                .and_then(|slot| self.upstreams.get(slot))
                .map_or_else(|| "".into(), |u| u.backend.clone())
        });
        let reference = self.reference();
        let entry = &self.entries[key];
        self.outputs.push_back(Output::TurnEnded(
            Box::new(TurnRecord {
                principal: None,
                reference,
                user: None,
                session: entry.id.clone(),
                backend,
                client: self.peer,
                queued: turn.queued,
                first_event: turn
                    .first_event
                    .map(|at| at.saturating_duration_since(turn.since)),
                duration: cx.now.saturating_duration_since(turn.since),
                outcome,
                closed_by,
                events: turn.events,
                bytes: turn.bytes,
                trace_id: turn.trace_id.take(),
            }),
            mark,
        ));
        self.spares().keep_turn(turn);
    }

    /// The turn of this session will not be ended by its backend any more: the client is told so,
    /// in the events that it waits for (DESIGN §2, honest failure).
    pub(super) fn lose_turn(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        cause: &LostBy,
        closed_by: ClosedBy,
        out: &mut Outbox,
    ) {
        let seed = u128::from(self.reference()) << 64 | u128::from(self.reference());
        let entry = &self.entries[key];
        if let Some(turn) = entry
            .turn
            .as_ref()
            .filter(|t| t.confirmed && (entry.attached || entry.reopening.is_some()))
        {
            let fresh = entry
                .shown_at
                .is_some_and(|at| cx.now.saturating_duration_since(at) < ON_DISK);
            let shown = entry.shown.as_ref().filter(|_| fresh);
            let unseen = turn.missing.iter().chain(&turn.unseen).chain(shown);
            let unseen: Vec<&str> = unseen.map(String::as_str).collect();
            let stamp = stamp(cx, seed);
            let session = entry.id.as_str();
            out.write(Dest::Client, |b| {
                reply::turn_lost(b, session, cause, &unseen, &stamp)
            });
            let session = entry.id.clone();
            self.locks.end_before(&session);
        }
        match cause {
            // Its upstream connection is gone already, and with it the way to its name.
            LostBy::Backend(backend) => {
                let backend = Some(backend.clone());
                self.record_turn(cx, key, backend, TurnOutcome::Lost, closed_by, None);
            }
            LostBy::Stalled => self.end_turn(cx, key, TurnOutcome::Stalled, closed_by),
            LostBy::TooLong => self.end_turn(cx, key, TurnOutcome::Aborted, closed_by),
            LostBy::Shutdown
            | LostBy::Closed
            | LostBy::Revoked
            | LostBy::Forbidden
            | LostBy::Drained(_) => {
                self.end_turn(cx, key, TurnOutcome::Lost, closed_by);
            }
        }
    }

    /// The turn ends by itself, and the client takes that for the end of what was queued behind it,
    /// too: what was lost of that with a backend is told before. Not earlier: an SDK takes a
    /// `session.error` for the end of the turn.
    fn tell_missing(&mut self, cx: &Context<'_>, key: usize, out: &mut Outbox) {
        let entry = &mut self.entries[key];
        let Some(turn) = entry.turn.as_mut().filter(|t| !t.missing.is_empty()) else {
            return;
        };
        let missing = std::mem::take(&mut turn.missing);
        turn.failed = true;
        let from = turn.survived.clone();
        if let Some(from) = from.filter(|_| self.is_heard()) {
            let seed = u128::from(self.reference()) << 64 | u128::from(self.reference());
            let missing: Vec<&str> = missing.iter().map(String::as_str).collect();
            let stamp = stamp(cx, seed);
            let session = self.entries[key].id.as_str();
            out.write(Dest::Client, |b| {
                reply::sends_lost(b, session, &from, &missing, &stamp)
            });
        }
    }

    /// The backend has acknowledged a send: its turn runs, or will, unless it is over already.
    fn acknowledged(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        call: &Call,
        head: &Head,
        body: &[u8],
    ) {
        let message = head
            .result
            .and_then(|result| acknowledged_id(result.of(body)));
        let entry = &self.entries[key];
        let news = message.filter(|id| entry.shown.as_ref() != Some(id));
        // Without a turn it may be one that is over, or that a detach in between has ended.
        let due = news.is_some() && call.attachment == Some(entry.attachments);
        let lost_at = entry.reopening.as_ref().map(|r| r.from.clone());
        if !entry.is_here() && lost_at.is_none() || entry.turn.is_none() && !due {
            return;
        }
        self.confirm_turn(cx, key);
        let Some(turn) = &mut self.entries[key].turn else {
            return;
        };
        if let Some(message) = news.filter(|_| turn.unseen.len() < MAX_UNSEEN) {
            turn.unseen.push(message);
        }
        if let Some(from) = lost_at {
            // Told when the session is open again, unless it goes on then.
            turn.outlives(&from);
        }
    }

    /// A `user.message` shows that the message it names is in the history.
    fn note_shown(&mut self, now: Instant, key: usize, body: &[u8]) {
        let entry = &mut self.entries[key];
        entry.shown = message_id(body);
        entry.leave_answers_behind();
        entry.shown_at = Some(now);
        if let (Some(turn), Some(shown)) = (&mut entry.turn, &entry.shown) {
            turn.unkept = false;
            turn.unseen.retain(|id| id != shown);
            turn.missing.retain(|id| id != shown);
        }
    }
}

/// A message that was shown is on disk some 150 ms later, and may be lost with its process before.
const ON_DISK: Duration = Duration::from_millis(300);

/// For events of our own.
fn stamp(cx: &Context<'_>, seed: u128) -> Stamp<'static> {
    Stamp {
        id: spread(seed),
        at: cx.wall(),
        parent: None,
    }
}

/// Appends a body with its header.
pub(super) fn frame(out: &mut Vec<u8>, body: &[u8]) {
    crate::core::frame::write_header(body.len(), out);
    out.extend_from_slice(body);
}

/// The trace id of a W3C `traceparent`: its second field.
pub(super) fn trace_id(head: &Head, body: &[u8]) -> Option<String> {
    let text = head.traceparent.as_ref()?.get(body).into_owned();
    let id = text.split('-').nth(1)?;
    (id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())).then(|| id.to_owned())
}

/// Spreads a counter over 128 bits (SplitMix64 on each half), so that ids made here look and
/// compare like the random ones of real events.
fn spread(seed: u128) -> u128 {
    let mix = |mut z: u64| {
        z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let (high, low) = ((seed >> 64) as u64, seed as u64);
    u128::from(mix(high ^ low.rotate_left(32))) << 64 | u128::from(mix(low))
}
