//! What must always be true of a machine between two handlers; for tests and the simulation.

use super::{Life, Mux, calls::Place, place::Question};

impl Mux {
    /// Looks at everything.
    ///
    /// # Panics
    /// If something is not as it must be.
    pub fn check_invariants(&self) {
        self.check_entries();
        self.check_upstreams();
        self.check_through();
        self.check_held();
        self.check_locks();
        assert_eq!(
            self.life == Life::Parked,
            self.entries.iter().any(|(_, e)| e.parked.is_some())
                || self.life == Life::Parked && !self.requests.is_empty(),
            "parked for something"
        );
        if self.life == Life::Parked {
            assert!(self.calls.is_empty() && self.questions.is_empty());
            assert!(self.entries.iter().all(|(_, e)| e.parked.is_some()));
        }
        if self.life == Life::Closed {
            assert!(self.entries.is_empty() && self.upstreams.iter().next().is_none());
            assert!(self.calls.is_empty() && self.questions.is_empty() && self.requests.is_empty());
            assert!(self.partial_since.is_none());
        }
    }

    fn check_entries(&self) {
        let claimed = self.entries.iter().filter(|(_, e)| e.claimed).count();
        assert_eq!(claimed, self.claimed, "claimed sessions");
        assert_eq!(
            self.by_session.len(),
            self.entries.len(),
            "index of sessions"
        );
        for (key, entry) in &self.entries {
            let id = &entry.id;
            assert_eq!(self.by_session.get(id), Some(&key), "{id} is indexed");
            assert!(!entry.is_spent(), "{id}: a spent entry stays");
            assert!(
                !entry.is_here() || entry.slot.is_some(),
                "{id}: attached nowhere"
            );
            assert!(
                !entry.claimed
                    || entry.is_here()
                    || entry.locating.is_some()
                    || entry.reopening.is_some(),
                "{id}: claimed for nothing"
            );
            assert!(
                !entry.is_here() || entry.claimed,
                "{id}: attached without a claim"
            );
            assert!(
                entry.held.is_empty()
                    || entry.locating.is_some()
                    || entry.reopening.is_some()
                    || entry.taking.is_some()
                    || self.is_silent_here(key),
                "{id}: held for nothing"
            );
            assert!(
                entry.sends.is_empty()
                    || entry.gate.is_some()
                    || entry.awaits_attach()
                    || self.awaits_turn(key)
                    || self.is_quelling(key),
                "{id}: sends wait for nothing"
            );
            assert!(
                entry.turn.is_none() || entry.is_here() || entry.reopening.is_some(),
                "{id}: a turn out of hearing"
            );
            if let Some(slot) = entry.slot {
                assert!(
                    self.upstreams.get(slot).is_some(),
                    "{id}: a slot that is gone"
                );
            }
            let attaching = self.calls.count(|c| {
                c.attaches()
                    && c.session.as_ref() == Some(id)
                    && c.at() == entry.slot
                    && entry.slot.is_some()
            });
            assert_eq!(attaching, entry.attaching as usize, "{id}: attaching");
            if let Some(gate) = &entry.gate {
                assert!(
                    gate.until.is_some() || self.calls.contains(&gate.call),
                    "{id}: a gate that nothing opens"
                );
                let listed = self
                    .gates
                    .iter()
                    .find(|(_, k)| *k == key)
                    .map(|(at, _)| *at);
                assert_eq!(listed, gate.until, "{id}: when the gate opens");
            }
            if let Some((ticket, _)) = entry.locating {
                let asked = self.questions.get(&ticket);
                assert!(
                    matches!(asked, Some(Question::Session(k)) if *k == key),
                    "{id}: asked"
                );
            }
        }
        self.check_reopening();
        let timed = self
            .entries
            .iter()
            .filter(|(_, e)| e.gate.as_ref().is_some_and(|gate| gate.until.is_some()));
        assert_eq!(timed.count(), self.gates.len(), "gates with a time limit");
    }

    fn check_reopening(&self) {
        let waits = self.entries.iter().filter(|(_, e)| e.waits).count();
        assert_eq!(waits, self.waiting, "sessions with a deadline");
        for (key, entry) in &self.entries {
            let id = &entry.id;
            let mine = |own: &&super::own::Own| own.key == key && own.step().is_some();
            let own = self.own.iter().filter(mine);
            let Some(reopening) = &entry.reopening else {
                assert_eq!(own.count(), 0, "{id}: calls of ours for nothing");
                assert_eq!(
                    entry.waits,
                    entry.taking.is_some()
                        || entry.parked.is_some()
                        || entry.locating.is_none() && !entry.held.is_empty(),
                    "{id}: waits"
                );
                continue;
            };
            assert!(entry.waits && entry.claimed, "{id}: reopened for nothing");
            assert!(!entry.attached && entry.locating.is_none(), "{id}: at once");
            assert!(
                entry.sends.is_empty() && entry.gate.is_none(),
                "{id}: sends"
            );
            assert_eq!(own.count(), usize::from(reopening.is_calling()), "{id}");
            assert_eq!(entry.slot.is_some(), reopening.is_here(), "{id}: slot");
            if let Some(ticket) = reopening.asks() {
                let asked = self.questions.get(&ticket);
                assert!(
                    matches!(asked, Some(Question::Reopen(k)) if *k == key),
                    "{id}: asked"
                );
            }
        }
    }

    fn check_upstreams(&self) {
        for (slot, upstream) in self.upstreams.iter() {
            let name = &upstream.backend;
            let same = self
                .upstreams
                .iter()
                .filter(|(_, u)| u.backend == *name)
                .count();
            assert_eq!(same, 1, "upstream connections to {name}");
            let calls = self.calls.count(|c| c.at() == Some(slot));
            assert_eq!(calls, upstream.calls, "calls of {name}");
            let attached = self
                .entries
                .iter()
                .filter(|(_, e)| e.slot == Some(slot) && e.is_here())
                .count();
            assert_eq!(attached, upstream.attached, "attached at {name}");
            assert_eq!(
                upstream.idle_since.is_some(),
                upstream.is_idle(),
                "{name}: idle"
            );
            for call in upstream.waiting.iter().filter_map(|w| w.call.as_ref()) {
                let at = self.calls.get(call).and_then(super::calls::Call::at);
                assert_eq!(at, Some(slot), "{name}: {} waits", call.token());
            }
        }
    }

    /// Each call that is held is held in one place, and every byte is counted.
    fn check_held(&self) {
        let unplaced = self
            .questions
            .values()
            .filter_map(|question| match question {
                Question::Call(held) => Some(held),
                Question::Session(_) | Question::Reopen(_) => None,
            });
        let mut bytes = 0;
        let mut count = 0;
        let queues = self
            .entries
            .iter()
            .flat_map(|(_, e)| e.held.iter().chain(&e.sends));
        let taken = self.entries.iter().filter_map(|(_, e)| e.taking.as_ref());
        for taking in taken.clone().filter(|taking| taking.answered) {
            bytes += taking.held_bytes();
        }
        let taken = taken.filter(|taking| !taking.answered);
        let taken = taken.filter_map(|taking| taking.held.as_ref());
        for held in queues.chain(unplaced).chain(taken) {
            bytes += held.body.len();
            count += 1;
            let place = self.calls.get(&held.call).map(|c| c.place);
            assert_eq!(place, Some(Place::Held), "{} is held", held.call.token());
        }
        assert_eq!(
            self.calls.count(|c| c.place == Place::Held),
            count,
            "calls held"
        );
        let waiting = self.upstreams.iter().flat_map(|(_, u)| &u.waiting);
        bytes += waiting.map(|w| w.body.len()).sum::<usize>();
        bytes += self
            .calls
            .iter()
            .map(|(_, c)| c.kept_bytes())
            .sum::<usize>();
        assert_eq!(bytes, self.held_bytes, "bytes held");
    }

    fn check_locks(&self) {
        let held = self.locks.held.iter().map(|hold| &hold.session);
        let wanted = self.locks.wanted.iter().map(|want| &want.session);
        for list in [held.collect::<Vec<_>>(), wanted.collect()] {
            for (at, session) in list.iter().enumerate() {
                assert!(!list[..at].contains(session), "{session}: its lock twice");
            }
        }
    }
}
