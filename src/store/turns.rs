//! The turn locks behind a lock of their own, taken per send and turn, never per event: a long look
//! at the directory holds up no send.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use crate::core::{
    id::{ConnectionId, SessionId},
    identity::Person,
    turnlock::{Ask, Lock, Locks, Verdict},
};

/// A handle; clones share the locks.
#[derive(Clone, Debug, Default)]
pub struct Turns(Arc<Mutex<Locks>>);

impl Turns {
    /// [`Locks::ask`]
    pub fn ask(&self, now: Instant, session: &SessionId, ask: &Ask) -> Verdict {
        self.lock().ask(now, session, ask)
    }

    /// [`Locks::may_end`]
    pub fn may_end(&self, session: &str, by: ConnectionId, user: Option<&Person>) -> bool {
        self.lock().may_end(session, by, user)
    }

    /// [`Locks::begun`]
    pub fn begun(&self, now: Instant, session: &SessionId, by: ConnectionId) -> bool {
        self.lock().begun(now, session, by)
    }

    /// [`Locks::release`]
    pub fn release(&self, now: Instant, session: &str, by: ConnectionId) -> Option<ConnectionId> {
        self.lock().release(now, session, by)
    }

    /// [`Locks::pass`]
    pub fn pass(&self, session: &str, from: ConnectionId, to: ConnectionId) -> bool {
        self.lock().pass(session, from, to)
    }

    /// [`Locks::withdraw`]
    pub fn withdraw(&self, session: &str, connection: ConnectionId) {
        self.lock().withdraw(session, connection);
    }

    /// [`Locks::leave`]
    pub fn leave(&self, connection: ConnectionId) -> Vec<SessionId> {
        self.lock().leave(connection)
    }

    /// How it stands with one session; none if it is in no turn.
    pub fn get(&self, session: &str) -> Option<Lock> {
        self.lock().get(session).cloned()
    }

    /// How many connections wait.
    pub fn waiting(&self) -> usize {
        self.lock().waiting()
    }

    fn lock(&self) -> MutexGuard<'_, Locks> {
        // A panic under the lock is a bug of ours; the table itself is whole between two calls.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::turnlock::{Rule, Unit};

    fn ask(n: u64) -> Ask {
        Ask {
            connection: ConnectionId(n),
            user: Some(Person::new("realm", "anna")),
            rule: Rule::Queue,
            unit: Unit::Connection,
            in_turn: false,
            steers: None,
        }
    }

    /// The promise is less than 50 µs, with whatever machine this runs on.
    #[test]
    fn a_turn_that_nobody_else_wants_costs_microseconds() {
        let turns = Turns::default();
        let now = Instant::now();
        for n in 0..1000 {
            let session = SessionId::from(format!("other-{n}"));
            assert_eq!(turns.ask(now, &session, &ask(n)), Verdict::Taken);
        }
        let session = SessionId::from("s");
        let mut costs: Vec<_> = (0..2001)
            .map(|_| {
                let begun = Instant::now();
                assert_eq!(turns.ask(begun, &session, &ask(7)), Verdict::Taken);
                assert_eq!(turns.release(begun, "s", ConnectionId(7)), None);
                begun.elapsed()
            })
            .collect();
        costs.sort_unstable();
        let median = costs[costs.len() / 2];
        assert!(median < std::time::Duration::from_micros(50), "{median:?}");
        println!("{median:?}");
    }
}
