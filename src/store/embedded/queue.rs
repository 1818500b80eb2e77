//! What waits to be written, and who waits for it.
//!
//! Holds names, never values: a value is read from the directory when it is written, so that a
//! session that changes often waits once. Pure but for its lock: it writes nothing and reads no
//! clock.

use std::collections::{BTreeSet, HashSet, VecDeque};

use ahash::RandomState;

use crate::core::id::{BackendName, SessionId};

/// How many changes that nobody waits for go into one transaction: those who wait for the next one
/// wait for this one, too.
const LOT: usize = 4096;

/// Whether what is claimed outlives the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Health {
    /// Writing works.
    Up,
    /// The last attempt failed, or takes too long; nobody waits.
    Down,
    /// Closed for good: nothing is written any more.
    Closed,
}

/// One transaction's worth.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Counts them, from 1.
    pub(super) number: u64,
    pub(super) sessions: Vec<SessionId>,
    /// Backends for which an operator wants something else now.
    pub(super) operators: BTreeSet<BackendName>,
    /// All sessions and wishes, whatever the file has now.
    pub(super) everything: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Queue {
    /// Somebody waits for these.
    urgent: Vec<SessionId>,
    /// In the order in which they changed. May name what has been written since as urgent.
    behind: VecDeque<SessionId>,
    /// Each session that waits, once.
    waiting: HashSet<SessionId, RandomState>,
    /// Those of the batch that is being written.
    in_flight: HashSet<SessionId, RandomState>,
    operators: BTreeSet<BackendName>,
    everything: bool,
    /// More names than this are not remembered one by one.
    bound: usize,
    /// The number of the batch that is taken next.
    next: u64,
    /// All batches up to this one are written.
    pub(super) done: u64,
    pub(super) health: Health,
    pub(super) closing: bool,
}

impl Queue {
    pub(super) fn new(bound: usize) -> Self {
        Self {
            urgent: Vec::new(),
            behind: VecDeque::new(),
            waiting: HashSet::default(),
            in_flight: HashSet::default(),
            operators: BTreeSet::new(),
            everything: false,
            bound,
            next: 1,
            done: 0,
            health: Health::Up,
            closing: false,
        }
    }

    /// These have changed.
    pub(super) fn push(&mut self, sessions: Vec<SessionId>) {
        if self.health == Health::Closed || self.everything {
            return;
        }
        for session in sessions {
            if self.waiting.insert(session.clone()) {
                self.behind.push_back(session);
            }
        }
        // `behind` may also name what has been written as urgent.
        if self.waiting.len() > self.bound || self.behind.len() > self.bound * 2 {
            self.push_everything();
        }
    }

    /// All sessions have changed, or too many to name.
    pub(super) fn push_everything(&mut self) {
        self.everything = true;
        self.urgent = Vec::new();
        self.behind = VecDeque::new();
        self.waiting = HashSet::default();
    }

    /// An operator wants something else of `backend`. Gives the batch that it is written with.
    pub(super) fn push_operator(&mut self, backend: BackendName) -> u64 {
        self.operators.insert(backend);
        self.next
    }

    /// Somebody wants to know when what `session` is now is written: with the batch of this
    /// number. None if it is.
    pub(super) fn wait_for(&mut self, session: &SessionId) -> Option<u64> {
        if self.health != Health::Up {
            return None;
        }
        if self.everything {
            return Some(self.next);
        }
        if self.waiting.contains(session) {
            self.urgent.push(session.clone());
            return Some(self.next);
        }
        // Its value is read after it was put in flight, hence after it changed.
        self.in_flight.contains(session).then(|| self.next - 1)
    }

    /// Nobody waits for anything that waits here.
    pub(super) fn is_patient(&self) -> bool {
        self.urgent.is_empty() && self.operators.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.operators.is_empty() && !self.everything
    }

    /// How many sessions wait or are being written.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.in_flight.len()
    }

    /// Takes the next batch: all that somebody waits for, and a lot of the others.
    pub(super) fn take(&mut self) -> Batch {
        let mut sessions = Vec::new();
        for session in std::mem::take(&mut self.urgent) {
            if self.waiting.remove(&session) {
                sessions.push(session);
            }
        }
        let most = sessions.len() + LOT;
        while sessions.len() < most
            && let Some(session) = self.behind.pop_front()
        {
            if self.waiting.remove(&session) {
                sessions.push(session);
            }
        }
        self.in_flight = sessions.iter().cloned().collect();
        self.next += 1;
        Batch {
            number: self.next - 1,
            sessions,
            operators: std::mem::take(&mut self.operators),
            everything: std::mem::take(&mut self.everything),
        }
    }

    /// It is on the disk. Gives whether writing had failed before.
    pub(super) fn written(&mut self, number: u64) -> bool {
        self.in_flight.clear();
        self.done = number;
        std::mem::replace(&mut self.health, Health::Up) == Health::Down
    }

    /// It is not. What it held waits again, unless it has changed since. Gives whether writing
    /// worked before.
    pub(super) fn failed(&mut self, batch: Batch) -> bool {
        self.in_flight.clear();
        if batch.everything {
            self.push_everything();
        }
        self.push(batch.sessions);
        self.operators.extend(batch.operators);
        std::mem::replace(&mut self.health, Health::Down) == Health::Up
    }

    /// The end: nothing is taken any more, nobody waits.
    pub(super) fn close(&mut self) {
        self.push_everything();
        self.everything = false;
        self.in_flight.clear();
        self.operators.clear();
        self.health = Health::Closed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(n: usize) -> SessionId {
        SessionId::from(format!("s{n}"))
    }

    #[test]
    fn a_session_that_changes_often_waits_once_and_who_asks_goes_first() {
        let mut queue = Queue::new(1_000_000);
        queue.push((0..LOT + 10).map(s).collect());
        queue.push(vec![s(0)]);
        let last = s(LOT + 9);
        assert_eq!(queue.wait_for(&s(LOT + 99)), None, "nothing waits");
        assert_eq!(queue.wait_for(&last), Some(1));
        assert!(!queue.is_patient());
        let first = queue.take();
        assert_eq!((first.number, first.sessions.len()), (1, LOT + 1));
        assert_eq!(first.sessions[0], last);
        assert_eq!(queue.wait_for(&last), Some(1), "it is in flight");
        queue.push(vec![last.clone()]);
        assert_eq!(queue.wait_for(&last), Some(2), "it has changed since");
        assert!(!queue.written(1));
        assert_eq!(queue.wait_for(&s(0)), None, "it is written");
        let second = queue.take();
        assert_eq!(second.sessions.len(), 10, "no session twice");
        assert_eq!(second.sessions[0], last);
        assert!(queue.is_empty());
    }

    #[test]
    fn what_failed_waits_again() {
        let [a, b] = ["a", "b"].map(BackendName::from);
        let mut queue = Queue::new(100);
        queue.push(vec![s(1), s(2)]);
        assert_eq!(queue.push_operator(a.clone()), 1);
        let batch = queue.take();
        queue.push(vec![s(2), s(3)]);
        assert_eq!(queue.push_operator(b.clone()), 2);
        assert!(queue.failed(batch), "it worked before");
        assert_eq!(queue.wait_for(&s(1)), None, "nobody waits while it is down");
        let again = queue.take();
        assert_eq!(again.sessions, [s(2), s(3), s(1)]);
        assert_eq!(again.operators, [a, b].into());
        assert!(queue.written(again.number), "it is back");
        assert_eq!(queue.done, 2);
    }

    #[test]
    fn more_names_than_the_bound_become_everything() {
        let mut queue = Queue::new(10);
        queue.push((0..11).map(s).collect());
        queue.push((0..11).map(s).collect());
        assert_eq!(queue.len(), 0);
        let batch = queue.take();
        assert!(batch.everything && batch.sessions.is_empty());
        queue.push(vec![s(1)]);
        queue.failed(batch);
        let batch = queue.take();
        assert!(batch.everything && batch.sessions.is_empty());
        queue.written(batch.number);
        assert!(queue.is_empty());
    }
}
