//! One session as one client connection sees it: where it is, the order of its sends, its turn.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use slab::Slab;

use super::{
    client::is_session_id,
    kept::{Kept, Repeat},
    moving::Freeze,
    parking::Parked,
    reopening::Reopening,
    takeover::Taking,
    upstream::SlotId,
};
use crate::core::{
    access::Relation,
    event::TurnOutcome,
    id::{BackendName, SessionId},
    idmap::RequestId,
    locate::Purpose,
    scan::Plain,
};

/// A send behind one that answers only at its turn's end waits at most this long (DESIGN §3:
/// else steering would wait for the turn that it wants to steer).
pub(super) const STEERING_WAIT: Duration = Duration::from_millis(250);

/// A busy server was seen to write the end of a tool's run 1.5 s behind the answer that ended it; in
/// between both are flushed at different times (docs/protocol.md). With the time that it takes to
/// give up a server that hangs.
const TORN: Duration = Duration::from_secs(5);

/// How many acknowledged sends of one turn are named when it is lost.
pub(super) const MAX_UNSEEN: usize = 64;

/// A request that is not forwarded yet.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) call: RequestId,
    pub(super) purpose: Purpose,
    pub(super) body: Vec<u8>,
    pub(super) since: Instant,
}

/// What opens a gate, besides the response of the send that closed it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Opener {
    /// Nothing: the response comes at once.
    Response,
    /// The turn takes up a message, or [`STEERING_WAIT`] is over: the response comes at the turn's
    /// end.
    Steering,
}

/// Closed while a send is under way; the next one passes when it opens.
#[derive(Debug)]
pub(super) struct Gate {
    /// The send that closed it.
    pub(super) call: RequestId,
    pub(super) opener: Opener,
    /// Opens at the latest then; set once the send has left.
    pub(super) until: Option<Instant>,
}

/// Something that a turn waits for.
#[derive(Clone)]
pub struct Asked {
    /// Its `requestId`.
    pub(super) id: String,
    /// The tool that is to be run, if that is what it waits for.
    pub(super) tool: Option<Box<str>>,
    /// Our client has answered, and the answer has left: what comes of it is not heard yet.
    pub(super) answered: bool,
    /// The event that told of it, where a client that takes the session over needs it.
    pub(super) event: Option<Box<[u8]>>,
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Asked").field(&self.id).finish()
    }
}

/// Something that a turn has waited for.
#[derive(Debug)]
struct Settled {
    /// Its `requestId`.
    id: String,
    /// The turn has taken up another message since.
    is_behind: bool,
}

/// What turns of a session have waited for. Behind a pointer, since idle sessions have none of it.
#[derive(Debug, Default)]
struct Past {
    /// What was answered in this turn, the last of it.
    settled: VecDeque<Settled>,
    /// What turns have asked that were aborted or told as over, since the last one that was not.
    void: Vec<String>,
}

impl Past {
    /// Nothing of this is to be answered any more.
    fn avoid(&mut self, requests: impl IntoIterator<Item = String>) {
        self.void.extend(requests);
        let more = self.void.len().saturating_sub(MAX_UNSEEN);
        self.void.drain(..more);
    }
}

/// What may be left of a turn that the client was told to be over, before its backend had said so:
/// nothing of it may go on, and its end is not told again. Until the next turn begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rest {
    Nothing,
    /// It may be running, and has to be aborted.
    Runs,
    /// It was aborted. Its end may be heard still: the CLI answers an abort before it tells of the
    /// end. Or never: there was nothing to abort, or the next send was there before.
    Ends,
}

/// What is counted of a running turn.
#[derive(Clone, Debug)]
pub(super) struct Turn {
    /// Its send was accepted, or an event of it came.
    pub(super) confirmed: bool,
    pub(super) since: Instant,
    pub(super) queued: Duration,
    pub(super) first_event: Option<Instant>,
    pub(super) events: u64,
    pub(super) bytes: u64,
    pub(super) failed: bool,
    /// Message ids of sends that were acknowledged, but not seen as `user.message` yet.
    pub(super) unseen: Vec<String>,
    /// Those of them that were with a backend which this turn has outlived: they were in its queue,
    /// which is in no other process.
    pub(super) missing: Vec<String>,
    pub(super) trace_id: Option<String>,
    /// How many events it had when it was looked at last.
    pub(super) events_seen: u64,
    /// The backend at which it is counted as silent, if it is.
    pub(super) stalled: Option<BackendName>,
    /// An answer was given in it of which there is no copy: it could not be given again.
    pub(super) unkept: bool,
    /// It has outlived this backend, since it waited for the client alone.
    pub(super) survived: Option<BackendName>,
    /// Where it goes on since, the model was not heard to be asked: it may have been half on disk,
    /// and wait for what no process remembers.
    pub(super) doubtful: bool,
    /// What its server was heard to do since then and not to have done, as hooks and tools.
    pub(super) works: u32,
    /// That server was told to abort it for all who have its session open.
    pub(super) quelled: bool,
}

impl Turn {
    /// Behind a pointer: an idle session has no turn, and no room for one.
    pub(super) fn new(since: Instant, queued: Duration) -> Box<Self> {
        Box::new(Self::begun(since, queued, Vec::new()))
    }

    /// The same, in the memory of one that is over.
    pub(super) fn anew(mut self: Box<Self>, since: Instant, queued: Duration) -> Box<Self> {
        let unseen = std::mem::take(&mut self.unseen);
        *self = Self::begun(since, queued, unseen);
        self
    }

    /// It is over: only its memory is of use.
    pub(super) fn forget(&mut self) {
        self.unseen.clear();
        self.unseen.shrink_to(4);
        (self.missing, self.survived) = (Vec::new(), None);
    }

    fn begun(since: Instant, queued: Duration, unseen: Vec<String>) -> Self {
        Self {
            confirmed: false,
            since,
            queued,
            first_event: None,
            events: 0,
            bytes: 0,
            failed: false,
            unseen,
            missing: Vec::new(),
            trace_id: None,
            events_seen: 0,
            stalled: None,
            unkept: false,
            survived: None,
            doubtful: false,
            works: 0,
            quelled: false,
        }
    }

    /// It goes on, though this backend does not: what was queued there behind it is lost, by
    /// experiment, unless it is seen to begin all the same.
    pub(super) fn outlives(&mut self, backend: &BackendName) {
        self.survived = Some(backend.clone());
        self.doubtful = true;
        self.works = 0;
        self.quelled = false;
        self.missing.append(&mut self.unseen);
        self.missing.truncate(MAX_UNSEEN);
    }

    /// How it ended, given whether `session.idle` said `aborted`.
    pub(super) fn outcome(&self, aborted: bool) -> TurnOutcome {
        match (aborted, self.failed) {
            (true, _) => TurnOutcome::Aborted,
            (false, true) => TurnOutcome::Error,
            (false, false) => TurnOutcome::Ok,
        }
    }
}

/// One session of one client connection.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: SessionId,
    /// The id reads as it is written, in JSON too.
    is_plain: bool,
    /// The CLI takes the id for one.
    pub(super) is_valid: bool,
    /// The upstream connection that serves it, once located.
    pub(super) slot: Option<SlotId>,
    /// Create or resume succeeded on that upstream connection.
    pub(super) attached: bool,
    /// Creates and resumes awaiting their answer from that upstream connection.
    pub(super) attaching: u32,
    /// How often an attach has succeeded: "not found" about an earlier one says nothing.
    pub(super) attachments: u32,
    /// The directory counts this connection among the session's holders.
    pub(super) claimed: bool,
    /// The question that is out: where is it?
    pub(super) locating: Option<(u64, Purpose)>,
    /// Requests that wait for the answer to that, in the order written.
    pub(super) held: VecDeque<Held>,
    pub(super) gate: Option<Box<Gate>>,
    /// Sends that wait for the gate, or for the first attach.
    pub(super) sends: VecDeque<Held>,
    pub(super) turn: Option<Box<Turn>>,
    /// Message id of the last `user.message`: its acknowledgement may come after it, even after
    /// the whole turn.
    pub(super) shown: Option<String>,
    /// What it takes to open the session again; none if that cannot be.
    pub(super) kept: Option<Box<Kept>>,
    /// It is to be moved when nothing of it is under way.
    pub(super) freeze: Option<Freeze>,
    /// It is being opened again.
    pub(super) reopening: Option<Box<Reopening>>,
    /// Tools and permissions that the turn waits for, by `requestId`: they outlive their process.
    pub(super) asked: Vec<Asked>,
    /// What it does not wait for any more.
    past: Option<Box<Past>>,
    /// Answers to such that were acknowledged in this turn: they may not be on disk.
    pub(super) answers: Vec<Repeat>,
    /// What may be left of a turn that the client was told to be over.
    pub(super) rest: Rest,
    /// When `shown` was.
    pub(super) shown_at: Option<Instant>,
    /// Its client has left in a turn.
    pub(super) parked: Option<Box<Parked>>,
    /// It is being taken over from a connection whose client has left.
    pub(super) taking: Option<Box<Taking>>,
    /// When the backend was last heard to have it open.
    pub(super) answered: Option<Instant>,
    /// It is counted in [`Mux::waiting`](super::Mux).
    pub(super) waits: bool,
    /// How the client stands to it, as of when it was located last.
    pub(super) relation: Relation,
}

impl Entry {
    /// Whether the answer that is being given again was given so shortly before its process died that
    /// what it led to may not be on disk, even if the answer is.
    pub(super) fn answered_lately(&self) -> bool {
        let reopening = self.reopening.as_ref();
        let given =
            reopening.and_then(|r| Some((r.since, self.answers.get(r.progress.answered)?.at)));
        given.is_some_and(|(lost, at)| lost.saturating_duration_since(at) < TORN)
    }

    /// Those of its answers that were given so lately.
    pub(super) fn given_lately(&self) -> impl Iterator<Item = &Repeat> {
        let lost = self.reopening.as_ref().map(|r| r.since);
        let lately = move |at| lost.is_some_and(|l| l.saturating_duration_since(at) < TORN);
        self.answers.iter().filter(move |given| lately(given.at))
    }

    /// For so long its process was heard to do nothing: what it was given is as new as it was then.
    pub(super) fn stand_still(&mut self, silence: Duration) {
        for given in &mut self.answers {
            given.at += silence;
        }
    }

    /// The first call that is held, to be held no more. An idle session keeps no room for them.
    pub(super) fn next_held(&mut self) -> Option<Held> {
        let held = self.held.pop_front();
        if self.held.is_empty() {
            self.held.shrink_to_fit();
        }
        held
    }

    pub(super) fn new(id: SessionId) -> Self {
        Self {
            is_plain: Plain::new(id.as_str()).is_some(),
            is_valid: is_session_id(id.as_str()),
            id,
            slot: None,
            attached: false,
            attaching: 0,
            attachments: 0,
            claimed: false,
            locating: None,
            held: VecDeque::new(),
            gate: None,
            sends: VecDeque::new(),
            turn: None,
            shown: None,
            kept: None,
            freeze: None,
            reopening: None,
            asked: Vec::new(),
            past: None,
            answers: Vec::new(),
            rest: Rest::Nothing,
            shown_at: None,
            parked: None,
            taking: None,
            answered: None,
            waits: false,
            relation: Relation::Anybody,
        }
    }

    /// Its id, to be looked for in bodies, if it reads as it is written.
    pub(super) fn plain_id(&self) -> Option<Plain<'_>> {
        self.is_plain.then(|| Plain::known(self.id.as_str()))
    }

    /// Whether this connection hears the session, or will if all goes well.
    pub(super) fn is_here(&self) -> bool {
        self.attached || self.attaching > 0 || self.is_reopening_here() || self.taking.is_some()
    }

    /// Whether it is being opened again where its backend is known already.
    pub(super) fn is_reopening_here(&self) -> bool {
        self.reopening.as_ref().is_some_and(|r| r.is_here())
    }

    /// The upstream connection over which it is heard.
    pub(super) fn here_at(&self) -> Option<SlotId> {
        self.slot.filter(|_| self.is_here())
    }

    /// Whether a send would reach the backend before the session is open there.
    pub(super) fn awaits_attach(&self) -> bool {
        !self.attached && (self.attaching > 0 || self.reopening.is_some() || self.taking.is_some())
            || self.is_changing_hands()
    }

    /// Whether it is being taken over, at a stage in which no call may pass.
    pub(super) fn is_changing_hands(&self) -> bool {
        self.taking.as_ref().is_some_and(|t| t.holds_calls())
    }

    /// Whether an attach is under way or has been made, so that another one costs no new place.
    pub(super) fn has_place(&self) -> bool {
        self.claimed || self.held.iter().any(|held| held.purpose.attaches())
    }

    /// The turn does not wait for this any more. Whether it was known to.
    pub(super) fn settle(&mut self, request: String) -> bool {
        let before = self.asked.len();
        self.asked.retain(|asked| asked.id != request);
        let settled = &mut self.past().settled;
        if settled.iter().all(|settled| settled.id != request) {
            if settled.len() >= MAX_UNSEEN {
                settled.pop_front();
            }
            settled.push_back(Settled {
                id: request,
                is_behind: false,
            });
        }
        self.asked.len() < before
    }

    /// The turn has taken up its next message: what it waited for before that is behind it. Given
    /// again, an answer to it would take the turn back there.
    pub(super) fn leave_answers_behind(&mut self) {
        self.answers.clear();
        if let Some(past) = &mut self.past {
            for settled in &mut past.settled {
                settled.is_behind = true;
            }
        }
    }

    pub(super) fn is_behind(&self, request: &str) -> bool {
        let mut settled = self.settled();
        settled.any(|settled| settled.is_behind && settled.id == request)
    }

    /// What its client has answered has got lost on its way, or may have: it is waited for still.
    pub(super) fn forget_answered(&mut self) {
        for asked in &mut self.asked {
            asked.answered = false;
        }
    }

    /// Whether this was answered.
    pub(super) fn is_settled(&self, request: &str) -> bool {
        self.settled().any(|settled| settled.id == request)
    }

    /// Whether the client was asked this, or it is answered.
    pub(super) fn has_heard_of(&self, request: &str) -> bool {
        self.asked.iter().any(|asked| asked.id == request) || self.is_settled(request)
    }

    /// The turn waits for nothing any more.
    pub(super) fn forget_asked(&mut self) {
        self.stop_waiting();
        self.past = None;
    }

    /// The same of one that was aborted, or told as over. An answer that comes right behind an abort is
    /// taken, and takes the turn up again (docs/protocol.md): none is passed on any more.
    pub(super) fn void_asked(&mut self) {
        // What is answered may have been so in a process that is gone, and be given again.
        let asked = std::mem::take(&mut self.asked);
        if !asked.is_empty() || self.past.is_some() {
            let past = self.past();
            let settled = std::mem::take(&mut past.settled);
            let settled = settled.into_iter().map(|settled| settled.id);
            past.avoid(settled.chain(asked.into_iter().map(|asked| asked.id)));
        }
        self.stop_waiting();
    }

    /// The connection is lost over which the session was heard. A turn of this connection is over with
    /// that; one of somebody else's may go on.
    pub(super) fn forget_or_void(&mut self, in_turn: bool) {
        if in_turn {
            self.void_asked();
        } else {
            self.stop_waiting();
        }
    }

    /// The turn is being aborted, and its end is still to be heard. A process that ends before it has
    /// aborted leaves a turn that waits for the same.
    pub(super) fn void_until_lost(&mut self) {
        // What is known as answered may not be so there.
        let settled = self.settled().map(|settled| settled.id.clone());
        let asked = self.asked.iter().map(|asked| asked.id.clone());
        let all: Vec<String> = settled.chain(asked).collect();
        if !all.is_empty() {
            self.past().avoid(all);
        }
    }

    /// It asks this; `aborts`: while an abort of ours is under way, which the question has crossed.
    pub(super) fn ask_anew(&mut self, request: &str, aborts: bool) {
        if aborts || self.rest == Rest::Runs {
            self.past().avoid([request.to_owned()]);
        } else if let Some(past) = &mut self.past {
            past.void.retain(|id| id != request);
        }
    }

    /// Whether the turn waits for an answer that would be passed on.
    pub(super) fn awaits_answer(&self) -> bool {
        self.asked.iter().any(|asked| !self.is_void(&asked.id))
    }

    /// What it has asked may be answered: its client itself has opened the session, and what that says
    /// of a turn is the newest word; or the turn has outlived the process that was to abort it.
    pub(super) fn revive_asked(&mut self) {
        if let Some(past) = &mut self.past {
            past.void.clear();
        }
    }

    /// Whether an answer to this would be to a turn that is over.
    pub(super) fn is_void(&self, request: &str) -> bool {
        let past = self.past.as_ref();
        past.is_some_and(|past| past.void.iter().any(|id| id == request))
    }

    fn stop_waiting(&mut self) {
        self.asked.clear();
        if let Some(past) = &mut self.past {
            past.settled.clear();
        }
        self.answers.clear();
    }

    fn past(&mut self) -> &mut Past {
        self.past.get_or_insert_default()
    }

    fn settled(&self) -> impl Iterator<Item = &Settled> {
        self.past.iter().flat_map(|past| &past.settled)
    }

    /// Whether nothing is left that needs the entry.
    pub(super) fn is_spent(&self) -> bool {
        !self.is_here()
            && !self.claimed
            && self.locating.is_none()
            && self.held.is_empty()
            && self.gate.is_none()
            && self.sends.is_empty()
            && self.turn.is_none()
            && self.reopening.is_none()
            && self.parked.is_none()
    }
}

/// Takes an entry in. Most connections have one session, so that the first takes the room of one.
pub(super) fn seat(entries: &mut Slab<Entry>, entry: Entry) -> usize {
    if entries.capacity() == 0 {
        entries.reserve_exact(1);
    }
    entries.insert(entry)
}
