//! Session → owner, home, history: the rules of the table that all connections share.
//!
//! Pure: time comes in as an argument, `store` puts it behind a lock. It never sees a frame and
//! never asks a backend.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use ahash::RandomState;

use self::{passing::Passing, table::Sessions};
use super::{
    balance::Load,
    id::{BackendName, ConnectionId, SessionId},
    identity::Person,
    snapshot::Mode,
};

/// How long a deleted session is remembered as deleted, so that late `session.lifecycle`
/// notifications do not bring it back and Taxiway never recreates it by itself.
pub const TOMBSTONE: Duration = Duration::from_secs(600);

/// Sessions left by their last holder so lately that a backend which turns out to have been silent
/// may not have heard of it.
const LEFT_WITHIN: Duration = Duration::from_secs(60);
const LEFT_LIMIT: usize = 4096;

/// Sessions that backends still have to close, on all of them together. Each was open on a backend
/// when that went away, so there are rarely more than clients have open. At the bound nothing more
/// is moved: it waits for its backend.
const MOVED_LIMIT: usize = 100_000;

/// A claim so young when a `sessions.close` is answered may have been made after the call: it
/// stays. Kept wrongly it costs nothing but a count, dropped wrongly the session has two owners.
const CLOSE_WITHIN: Duration = Duration::from_secs(60);

/// How many old records one insertion may look at while it makes room.
const EVICTION_STEPS: usize = 8;

/// How far a client connection is with a session that it holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It opens the session at the owner, or is about to.
    Attaching,
    /// It hears the session.
    Attached,
    /// Its upstream connection has ended; it will open the session again.
    Lost,
}

/// A client connection that holds a session, and since when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Holder {
    connection: ConnectionId,
    claimed: Instant,
    standing: Standing,
    /// Its client has left in a turn.
    parked: bool,
}

/// What is known of one session. There may be a million, nearly all of them closed: what is true of
/// few at a time stands in a box.
#[derive(Debug)]
struct Record {
    /// Sticky only: the backend whose disk has it.
    home: Option<BackendName>,
    /// Whose it is; until the tombstone is over, too.
    person: Option<Arc<Person>>,
    last_use: Instant,
    now: Passing,
    /// It has had a turn, so `events.jsonl` exists and `session.create` would start an empty
    /// history over it (PROTOCOL: create on an existing id).
    has_history: bool,
    /// It is in [`Directory::dirty`].
    dirty: bool,
}

/// What outlives the process of one session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// The backend that has it open.
    pub owner: Option<BackendName>,
    /// The backend whose disk has it (separate disks only).
    pub home: Option<BackendName>,
    /// It has had a turn.
    pub has_history: bool,
    /// How long ago it was deleted, if it was.
    pub deleted: Option<Duration>,
    /// How long ago it was heard of last.
    pub idle: Duration,
    /// Backends that must close it before they are used again.
    pub moved_from: Vec<BackendName>,
    /// Whose it is.
    pub person: Option<Arc<Person>>,
}

impl Record {
    fn new(now: Instant) -> Self {
        Self {
            home: None,
            person: None,
            last_use: now,
            now: Passing::default(),
            has_history: false,
            dirty: false,
        }
    }

    /// What `holder` is to it.
    fn held_by(&mut self, holder: ConnectionId) -> Option<&mut Holder> {
        if self.now.holders.is_empty() {
            // Not even a look is to make a moment of it.
            return None;
        }
        let mut holders = self.now.holders.iter_mut();
        holders.find(|h| h.connection == holder)
    }

    /// Whether no connection hears the session any more, or is about to, although some hold it.
    fn is_adrift(&self) -> bool {
        !self.now.holders.is_empty()
            && self
                .now
                .holders
                .iter()
                .all(|h| h.standing == Standing::Lost)
    }

    /// Whether somebody holds it, or it is still being closed.
    fn is_open(&self) -> bool {
        !self.now.holders.is_empty() || self.now.moving
    }

    fn is_deleted(&self, now: Instant) -> bool {
        self.now
            .deleted_at
            .is_some_and(|at| now.saturating_duration_since(at) < TOMBSTONE)
    }
}

/// A copy of what the directory knows of one session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The backend that has it open.
    pub owner: Option<BackendName>,
    /// The backend that may have it open still: it was silent when the last holder left.
    pub maybe_open_at: Option<BackendName>,
    /// The backend whose disk has it (separate disks only).
    pub home: Option<BackendName>,
    /// It has had a turn.
    pub has_history: bool,
    /// It was deleted lately.
    pub deleted: bool,
    /// Client connections attached or attaching.
    pub holders: usize,
    /// A turn is running.
    pub in_turn: bool,
    /// It has holders, and all of them have lost it: nobody has it open at its owner for us.
    pub adrift: bool,
    /// The connection whose client has left it in a turn, if one is there.
    pub parked: Option<ConnectionId>,
    /// It is being closed where it is; nobody may open it until that is done.
    pub moving: bool,
    /// Whose it is, as far as anybody has said.
    pub person: Option<Arc<Person>>,
}

/// The answer to [`Directory::claim`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The session is the claimed backend's now.
    Granted,
    /// Another backend has it: go there. The claim is registered there.
    OwnedBy(BackendName),
    /// It is being moved: ask again when that is over. Nothing is registered.
    Moving,
}

/// The table.
#[derive(Debug)]
pub struct Directory {
    mode: Mode,
    sessions: Sessions,
    /// Every session once, roughly by age: where eviction looks first.
    ages: VecDeque<SessionId>,
    limit: usize,
    loads: HashMap<BackendName, Load, RandomState>,
    /// How many sessions each backend is home to.
    homes: HashMap<BackendName, usize, RandomState>,
    evicted: u64,
    /// Backends that are not heard at present; and those whose sessions may be opened elsewhere,
    /// until they have closed what was.
    silent: HashSet<BackendName, RandomState>,
    released: HashSet<BackendName, RandomState>,
    /// Who was left lately, oldest first.
    left: VecDeque<(Instant, SessionId, BackendName)>,
    /// Sessions that were opened elsewhere, or may be, while this backend was away: it must not
    /// have them open when it is used again.
    moved: HashMap<BackendName, HashSet<SessionId, RandomState>, RandomState>,
    moved_limit: usize,
    /// How often that was in the way since the last [`Directory::take_unmoved`].
    unmoved: u64,
    /// Sessions whose [`Saved`] may have changed since [`Directory::take_dirty`].
    dirty: Vec<SessionId>,
    /// Sessions whose holders have changed, if another process wants to know.
    news: Option<HashSet<SessionId, RandomState>>,
    /// Another process decides who owns what.
    follows: bool,
    persons: persons::Persons,
    names: names::Names,
}

impl Directory {
    /// An empty table that remembers at most `limit` sessions (open ones are never forgotten).
    pub fn new(mode: Mode, limit: usize) -> Self {
        Self {
            mode,
            sessions: Sessions::default(),
            ages: VecDeque::new(),
            limit: limit.max(1),
            loads: HashMap::default(),
            homes: HashMap::default(),
            evicted: 0,
            silent: HashSet::default(),
            released: HashSet::default(),
            left: VecDeque::new(),
            moved: HashMap::default(),
            moved_limit: MOVED_LIMIT,
            unmoved: 0,
            dirty: Vec::new(),
            news: None,
            follows: false,
            persons: persons::Persons::default(),
            names: names::Names::default(),
        }
    }

    /// Another limit, from the next insertion on: a lower one is reached step by step.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit.max(1);
    }

    // Getters.

    /// What is known of `session`.
    pub fn known(&self, now: Instant, session: &str) -> Known {
        self.sessions
            .get(session)
            .map_or_else(Known::default, |r| Known {
                owner: r.now.owner.clone(),
                maybe_open_at: r.now.maybe_open_at.clone(),
                home: r.home.clone(),
                has_history: r.has_history,
                deleted: r.is_deleted(now),
                holders: r.now.holders.len(),
                in_turn: r.now.turn.is_some(),
                adrift: r.is_adrift(),
                parked: r
                    .now
                    .holders
                    .iter()
                    .find(|h| h.parked)
                    .map(|h| h.connection),
                moving: r.now.moving,
                person: r.person(now).cloned(),
            })
    }

    /// Open turns and sessions of `backend`.
    pub fn load(&self, backend: &BackendName) -> Load {
        self.loads.get(backend).copied().unwrap_or_default()
    }

    /// How many sessions are open, on all backends together.
    pub fn open(&self) -> u32 {
        self.loads.values().map(|load| load.sessions).sum()
    }

    /// Since when `session` was last heard of.
    pub fn idle(&self, now: Instant, session: &str) -> Option<Duration> {
        self.sessions
            .get(session)
            .map(|r| now.saturating_duration_since(r.last_use))
    }

    /// How many sessions are remembered.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// How many closed sessions were forgotten to make room.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// How many sessions have `backend` as their home.
    pub fn homed_at(&self, backend: &BackendName) -> usize {
        self.homes.get(backend).copied().unwrap_or(0)
    }

    /// How many sessions have their home at a backend that `is_there` is false for.
    pub fn stranded(&self, is_there: impl Fn(&BackendName) -> bool) -> usize {
        self.homes
            .iter()
            .filter(|(home, _)| !is_there(home))
            .map(|(_, n)| n)
            .sum()
    }

    /// Sessions on `backend`'s disk as far as known, with their last use; on a shared disk all that
    /// have history.
    pub fn on_disk_of(&self, now: Instant, backend: &BackendName) -> Vec<(SessionId, Instant)> {
        self.sessions
            .iter()
            .filter(|(_, r)| r.has_history && !r.is_deleted(now))
            .filter(|(_, r)| self.mode == Mode::SharedStorage || r.home.as_ref() == Some(backend))
            .map(|(id, r)| (id.clone(), r.last_use))
            .collect()
    }

    // Ownership.

    /// Registers `holder` as attaching to `session` on `want`, unless another backend has the
    /// session open already: then there. This is the one place where an owner is chosen, so two
    /// clients that open one session at the same moment meet.
    pub fn claim(
        &mut self,
        now: Instant,
        session: &SessionId,
        want: &BackendName,
        holder: ConnectionId,
    ) -> Claim {
        let record = self.entry(now, session);
        if record.now.moving {
            return Claim::Moving;
        }
        if record.now.deleted_at.is_some() {
            // What is created under the id of one that is long gone is another session.
            record.person = record.person(now).cloned();
            record.now.deleted_at = None;
        }
        let (answer, at) = match &record.now.owner {
            Some(owner) if owner != want => (Claim::OwnedBy(owner.clone()), owner.clone()),
            Some(owner) => (Claim::Granted, owner.clone()),
            None => (Claim::Granted, want.clone()),
        };
        let opened = record.now.owner.is_none();
        record.now.owner = Some(at.clone());
        record.now.maybe_open_at = None;
        match record.held_by(holder) {
            Some(holder) => {
                holder.claimed = now;
                if holder.standing == Standing::Lost {
                    holder.standing = Standing::Attaching;
                }
            }
            None => {
                // Most sessions have one.
                record.now.holders.reserve_exact(1);
                record.now.holders.push(Holder {
                    connection: holder,
                    claimed: now,
                    standing: Standing::Attaching,
                    parked: false,
                });
            }
        }
        if opened {
            self.loads.entry(at).or_default().sessions += 1;
            self.touch(session);
        }
        self.note(session.as_str());
        answer
    }

    /// `holder` is no longer attached to `session`. The last one to leave closes it (the CLI does
    /// so at once when its last attached connection detaches or ends).
    pub fn release(&mut self, now: Instant, session: &str, holder: ConnectionId) {
        let Some(record) = self.sessions.get_mut(session) else {
            return;
        };
        if record.held_by(holder).is_none() {
            // It holds nothing, so nothing ends with it.
            return;
        }
        record.now.holders.retain(|h| h.connection != holder);
        record.last_use = now;
        if record.now.holders.is_empty() {
            let owner = record.now.owner.clone().filter(|_| !record.now.moving);
            self.close(session);
            if let Some(owner) = owner {
                self.note_left(now, &SessionId::from(session), owner);
            }
        } else if record.now.turn == Some(holder) {
            // Its turn goes on for the others, but nobody here reports it any more.
            record.now.turn = None;
            if let Some(owner) = record.now.owner.clone() {
                let load = self.loads.entry(owner).or_default();
                load.turns = load.turns.saturating_sub(1);
            }
        }
        self.note(session);
    }

    /// `session` is open on no backend any more, for anybody (`sessions.close`, not found).
    pub fn close(&mut self, session: &str) {
        let Some(record) = self.sessions.get_mut(session) else {
            return;
        };
        record.now.holders.clear();
        record.now.maybe_open_at = None;
        let in_turn = record.now.turn.take().is_some();
        // What is being closed there by the mover keeps its owner until that is done: the close
        // would reach who opens it meanwhile.
        let moving = record.now.moving;
        let owner = record.now.owner.take_if(|_| !moving);
        if let Some(owner) = owner {
            let load = self.loads.entry(owner).or_default();
            load.sessions = load.sessions.saturating_sub(1);
            if in_turn {
                load.turns = load.turns.saturating_sub(1);
            }
        }
        if record.now.moving {
            self.touch(&SessionId::from(session));
            return;
        }
        // Whose it was is kept: files of it may lie on a disk although it never had a turn.
        let leaves_nothing =
            !record.has_history && record.now.deleted_at.is_none() && record.person.is_none();
        self.touch(&SessionId::from(session));
        if leaves_nothing {
            // A session without a turn leaves nothing behind when it closes.
            self.sessions.remove(session);
        }
    }

    /// `backend` has answered a `sessions.close` by `closer`. Who has claimed the session since the
    /// call stays.
    pub fn closed_by(
        &mut self,
        now: Instant,
        session: &str,
        backend: &BackendName,
        closer: ConnectionId,
    ) {
        let Some(record) = self.sessions.get_mut(session) else {
            return;
        };
        if record.now.owner.as_ref() != Some(backend) {
            return;
        }
        record.now.holders.retain(|h| {
            h.connection != closer && now.saturating_duration_since(h.claimed) < CLOSE_WITHIN
        });
        if record.now.holders.is_empty() {
            self.close(session);
        } else if record
            .now
            .turn
            .is_some_and(|turn| !record.now.holders.iter().any(|h| h.connection == turn))
        {
            record.now.turn = None;
            let load = self.loads.entry(backend.clone()).or_default();
            load.turns = load.turns.saturating_sub(1);
        }
        self.note(session);
    }

    /// `backend` says that it does not have `session` open.
    pub fn not_open(&mut self, session: &str, backend: &BackendName) {
        if let Some(record) = self.sessions.get_mut(session)
            && record.now.maybe_open_at.as_ref() == Some(backend)
        {
            record.now.maybe_open_at = None;
            self.touch(&SessionId::from(session));
        }
    }

    /// Gives up what may be open at backends that are no part of the pool any more: nobody could
    /// ask them, and the sessions would wait for ever.
    pub fn forget_backends(&mut self, is_there: impl Fn(&BackendName) -> bool) {
        let moved = self.moved.keys().filter(|b| !is_there(b));
        for backend in moved.cloned().collect::<Vec<_>>() {
            let sessions = self.moved_from(&backend);
            self.cleaned(&backend, &sessions);
        }
        let perhaps = self
            .sessions
            .values()
            .filter_map(|r| r.now.maybe_open_at.as_ref());
        let away: HashSet<BackendName> = perhaps.filter(|b| !is_there(b)).cloned().collect();
        for backend in away {
            for session in self.forget_maybe_open(&backend) {
                self.touch(&session);
            }
        }
    }

    /// `session` was deleted: not open, not on disk, and not to be brought back by late news.
    pub fn delete(&mut self, now: Instant, session: &SessionId) {
        let record = self.entry(now, session);
        record.now.deleted_at = Some(now);
        record.has_history = false;
        let home = record.home.take();
        self.leave_home(home);
        self.close(session.as_str());
    }

    // Turns.

    /// A turn of `session` begins. True for the connection that shall report it: the first to
    /// notice while it is open here.
    pub fn begin_turn(&mut self, session: &str, reporter: ConnectionId) -> bool {
        let Some(record) = self.sessions.get_mut(session) else {
            return false;
        };
        let Some(owner) = record.now.owner.clone().filter(|_| !record.now.moving) else {
            return false;
        };
        if record.now.turn.is_some() {
            return record.now.turn == Some(reporter);
        }
        record.now.turn = Some(reporter);
        self.loads.entry(owner).or_default().turns += 1;
        self.note(session);
        true
    }

    /// A turn has ended. True if `reporter` is the connection that reports it.
    ///
    /// `mark` stands for the event that ended it. A connection that hears of a turn late, when the
    /// one that reported it has seen its end, would report it again.
    pub fn end_turn(&mut self, session: &str, reporter: ConnectionId, mark: Option<u64>) -> bool {
        let Some(record) = self.sessions.get_mut(session) else {
            return false;
        };
        if record.now.turn != Some(reporter) {
            return false;
        }
        record.now.turn = None;
        if let Some(owner) = record.now.owner.clone() {
            let load = self.loads.entry(owner).or_default();
            load.turns = load.turns.saturating_sub(1);
        }
        let again = mark.is_some() && record.now.reported == mark;
        record.now.reported = mark.or(record.now.reported);
        self.note(session);
        !again
    }

    fn entry(&mut self, now: Instant, session: &SessionId) -> &mut Record {
        if !self.sessions.contains_key(session) {
            self.make_room();
            self.ages.push_back(session.clone());
        }
        let record = self
            .sessions
            .get_or_insert_with(session, || Record::new(now));
        record.last_use = now;
        record
    }

    /// Forgets long unused closed sessions at the limit. An open session goes to the back of the
    /// queue instead, so one insertion looks at few records.
    fn make_room(&mut self) {
        let mut steps = EVICTION_STEPS;
        while (self.sessions.len() >= self.limit || self.ages.len() >= self.limit * 2) && steps > 0
        {
            steps -= 1;
            let Some(oldest) = self.ages.pop_front() else {
                return;
            };
            match self.sessions.get(&oldest) {
                None => steps += 1,
                Some(record) if record.is_open() => self.ages.push_back(oldest),
                Some(_) => {
                    let home = self.sessions.remove(&oldest).and_then(|r| r.home);
                    self.leave_home(home);
                    self.touch(&oldest);
                    self.evicted += 1;
                }
            }
        }
    }

    fn leave_home(&mut self, home: Option<BackendName>) {
        if let Some(count) = home.and_then(|home| self.homes.get_mut(&home)) {
            *count -= 1;
        }
    }
}

mod invariants;
mod kept;
mod listing;
mod moves;
mod names;
mod news;
mod passing;
mod peers;
mod persons;
mod silence;
mod table;

#[cfg(test)]
mod tests;
