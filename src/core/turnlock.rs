//! Whose turn it is in each session: one at a time, and who waits comes in the order of asking
//! (DESIGN §5). Knows sessions only while somebody has a turn there or waits for one.
//!
//! Nobody has more than one place in a queue, and who has had a turn goes to its end: so of those
//! who want the session, nobody waits for more than one turn of each other.
//!
//! It measures no time (who waits gives up by itself, who has a turn ends it by itself), and tells
//! nobody: whoever changes it is told what follows.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use ahash::RandomState;
use hashbrown::{
    HashMap,
    hash_map::{Entry, EntryRef},
};

use super::{
    id::{ConnectionId, SessionId},
    identity::Person,
};

/// Connections that may wait for one session; who comes then is refused.
pub const MAX_WAITING: usize = 256;

/// `sessions.turn_lock`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// Sends of others wait until the turn is over.
    Queue,
    /// They are refused.
    Reject,
    /// They pass: what happens then is the server's business.
    Off,
}

/// `sessions.turn_lock_holder`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// A client connection: what it sends in its own turn belongs to that turn.
    Connection,
    /// Each send: one connection that speaks for many.
    Send,
}

/// What the configuration says of turns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Terms {
    /// What happens to sends of others.
    pub rule: Rule,
    /// Who is another.
    pub unit: Unit,
    /// How long a send waits.
    pub timeout: Duration,
    /// How long a turn may run; none = for ever.
    pub max: Option<Duration>,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            rule: Rule::Queue,
            unit: Unit::Connection,
            timeout: Duration::from_secs(300),
            max: Some(Duration::from_secs(3600)),
        }
    }
}

/// What is known of a send that wants a turn.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Whose send it is.
    pub connection: ConnectionId,
    /// For whom that connection speaks, if anybody knows.
    pub user: Option<Person>,
    /// The rule in force.
    pub rule: Rule,
    /// What holds the lock.
    pub unit: Unit,
    /// A turn that this connection has the lock for is running.
    pub in_turn: bool,
    /// It wants to steer the turn that runs (`mode:"immediate"`); none if that was not looked at.
    pub steers: Option<bool>,
}

/// The answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The turn is this connection's from now on.
    Taken,
    /// The send belongs to the turn that runs.
    Joins,
    /// It has to wait; [`Locks::release`] names the connection when it is its turn.
    Waits,
    /// Somebody else's turn runs.
    Busy,
    /// As many wait as may.
    Full,
    /// Whether it steers makes a difference: nothing has changed, ask again with that.
    LookCloser,
}

/// Who has the turn of a session.
#[derive(Clone, Debug)]
pub struct Holder {
    /// The connection that says when it is over.
    pub connection: ConnectionId,
    /// Who may steer and abort it; none = nobody knows.
    pub user: Option<Person>,
    /// The server has begun it by itself: it is nobody's.
    pub background: bool,
    /// Since when.
    pub since: Instant,
}

/// Who waits.
#[derive(Clone, Debug)]
pub struct Waiter {
    #[allow(missing_docs)]
    pub connection: ConnectionId,
    #[allow(missing_docs)]
    pub user: Option<Person>,
    #[allow(missing_docs)]
    pub since: Instant,
}

/// How it stands with a turn that a connection gives away.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Parting {
    /// It is over.
    Over,
    /// It may go on, and is not heard there any more. It waits for these (`requestId`s).
    Unheard(Vec<String>),
    /// It goes on and is heard there, but waits for these, of which that client knows nothing.
    Unasked(Vec<String>),
}

impl Parting {
    /// What the turn waits for.
    pub fn asked(&self) -> &[String] {
        match self {
            Self::Over => &[],
            Self::Unheard(asked) | Self::Unasked(asked) => asked,
        }
    }

    /// Who is to say when it is over, given who hears the session, and who has lost it and opens it
    /// again: the first who can be told. Who was asked may stand anywhere, so each passes it on to
    /// the next. Of those that have lost it, nobody need look after a turn that waits for nothing:
    /// none such outlives its process.
    pub fn heirs(
        &self,
        by: ConnectionId,
        mut hearers: Vec<ConnectionId>,
        mut lost: Vec<ConnectionId>,
    ) -> Vec<ConnectionId> {
        match self {
            Self::Over => hearers.clear(),
            Self::Unheard(_) => hearers.retain(|heir| *heir != by),
            Self::Unasked(_) => {
                let at = hearers.iter().position(|heir| *heir == by);
                hearers.drain(..at.map_or(hearers.len(), |at| at + 1));
            }
        }
        if !self.asked().is_empty() {
            // Never back, or two that cannot open it would pass it to each other for ever.
            let at = lost.iter().position(|heir| *heir == by);
            hearers.extend(lost.drain(at.map_or(0, |at| at + 1)..));
        }
        hearers
    }
}

/// The lock of one session.
#[derive(Clone, Debug)]
pub struct Lock {
    /// There is no queue without a holder.
    pub holder: Holder,
    /// Who comes next, first. Each connection once.
    pub queue: VecDeque<Waiter>,
}

/// All locks.
#[derive(Debug, Default)]
pub struct Locks {
    /// One look finds a lock, or where it belongs.
    locks: HashMap<SessionId, Lock, RandomState>,
    waiting: usize,
}

impl Locks {
    // Getters.

    /// The lock of a session that is in a turn.
    pub fn get(&self, session: &str) -> Option<&Lock> {
        self.locks.get(session)
    }

    /// How many sessions are in a turn.
    pub fn len(&self) -> usize {
        self.locks.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.locks.is_empty()
    }

    /// How many connections wait, for all sessions together.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether somebody may end the turn of `session`. Where nobody knows whose it is, or who asks,
    /// everybody may, as on the server itself.
    pub fn may_end(&self, session: &str, by: ConnectionId, user: Option<&Person>) -> bool {
        self.locks.get(session).is_none_or(|lock| {
            let known = lock.holder.user.as_ref().zip(user);
            lock.holder.connection == by || known.is_none_or(|(theirs, ours)| theirs == ours)
        })
    }

    // Changes.

    /// A send that would begin a turn of `session`.
    pub fn ask(&mut self, now: Instant, session: &SessionId, ask: &Ask) -> Verdict {
        let lock = match self.locks.entry(session.clone()) {
            Entry::Occupied(lock) => lock.into_mut(),
            Entry::Vacant(place) => {
                place.insert(Lock {
                    holder: Holder {
                        connection: ask.connection,
                        user: ask.user.clone(),
                        background: false,
                        since: now,
                    },
                    queue: VecDeque::new(),
                });
                return Verdict::Taken;
            }
        };
        if ask.rule == Rule::Off {
            return Verdict::Joins;
        }
        let holder = &mut lock.holder;
        let mine = holder.connection == ask.connection;
        if mine && lock.queue.is_empty() {
            if !ask.in_turn {
                // It is over, and that was not said yet.
                holder.user.clone_from(&ask.user);
                holder.background = false;
                holder.since = now;
                return Verdict::Taken;
            }
            if ask.unit == Unit::Connection {
                return Verdict::Joins;
            }
        }
        if !mine || ask.in_turn {
            let Some(steers) = ask.steers else {
                return Verdict::LookCloser;
            };
            let theirs = holder.user.as_ref();
            let same_user = theirs.is_some() && theirs == ask.user.as_ref();
            match (steers, mine || same_user || holder.background) {
                (true, true) => return Verdict::Joins,
                (true, false) => return Verdict::Busy,
                (false, _) => {}
            }
        }
        if ask.rule == Rule::Reject {
            return Verdict::Busy;
        }
        if lock.queue.iter().any(|w| w.connection == ask.connection) {
            return Verdict::Waits;
        }
        if lock.queue.len() >= MAX_WAITING {
            return Verdict::Full;
        }
        lock.queue.push_back(Waiter {
            connection: ask.connection,
            user: ask.user.clone(),
            since: now,
        });
        self.waiting += 1;
        Verdict::Waits
    }

    /// A turn of `session` has begun that nobody has asked for. Whether `by` is to say when it is
    /// over.
    pub fn begun(&mut self, now: Instant, session: &SessionId, by: ConnectionId) -> bool {
        if self.locks.contains_key(session) {
            return false;
        }
        let holder = Holder {
            connection: by,
            user: None,
            background: true,
            since: now,
        };
        let queue = VecDeque::new();
        self.locks.insert(session.clone(), Lock { holder, queue });
        true
    }

    /// The turn of `by` is over: whose turn it is now.
    pub fn release(
        &mut self,
        now: Instant,
        session: &str,
        by: ConnectionId,
    ) -> Option<ConnectionId> {
        let EntryRef::Occupied(mut lock) = self.locks.entry_ref(session) else {
            return None;
        };
        if lock.get().holder.connection != by {
            return None;
        }
        let Some(next) = lock.get_mut().queue.pop_front() else {
            lock.remove();
            return None;
        };
        self.waiting -= 1;
        lock.get_mut().holder = Holder {
            connection: next.connection,
            user: next.user,
            background: false,
            since: now,
        };
        Some(next.connection)
    }

    /// The turn goes on, but `from` will not hear of its end: `to` will. Whether it did have it.
    pub fn pass(&mut self, session: &str, from: ConnectionId, to: ConnectionId) -> bool {
        let lock = self.locks.get_mut(session);
        let Some(lock) = lock.filter(|lock| lock.holder.connection == from) else {
            return false;
        };
        lock.holder.connection = to;
        true
    }

    /// `connection` does not want the session any more, if it waits for it.
    pub fn withdraw(&mut self, session: &str, connection: ConnectionId) {
        if let Some(lock) = self.locks.get_mut(session) {
            let before = lock.queue.len();
            lock.queue.retain(|w| w.connection != connection);
            self.waiting -= before - lock.queue.len();
        }
    }

    /// `connection` is gone: it waits for nothing any more. The sessions whose turn it has; each is
    /// still to be released or passed on.
    pub fn leave(&mut self, connection: ConnectionId) -> Vec<SessionId> {
        let mut held = Vec::new();
        for (session, lock) in &mut self.locks {
            let before = lock.queue.len();
            lock.queue.retain(|w| w.connection != connection);
            self.waiting -= before - lock.queue.len();
            if lock.holder.connection == connection {
                held.push(session.clone());
            }
        }
        held
    }
}

#[cfg(test)]
mod tests;
