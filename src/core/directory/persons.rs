//! Whose sessions are: recorded by the claim that creates or adopts one, kept while anything of it
//! may be anywhere. Who may do what with it is decided in `access`.

use std::{collections::HashSet, sync::Arc, time::Instant};

use ahash::RandomState;

use super::{Directory, Record};
use crate::core::{id::SessionId, identity::Person};

/// How many persons are interned before those that own nothing any more are looked for.
const SWEEP: usize = 64;

/// Each person once, so that a million sessions of a thousand users keep a thousand names.
#[derive(Debug, Default)]
pub(super) struct Persons {
    all: HashSet<Arc<Person>, RandomState>,
    /// Swept when there are so many.
    sweep_at: usize,
}

impl Persons {
    /// The one that stands for `person`.
    pub(super) fn one(&mut self, person: &Person) -> Arc<Person> {
        if let Some(known) = self.all.get(person) {
            return known.clone();
        }
        if self.all.len() >= self.sweep_at.max(SWEEP) {
            self.all.retain(|known| Arc::strong_count(known) > 1);
            self.sweep_at = self.all.len() * 2;
        }
        let new = Arc::new(person.clone());
        self.all.insert(new.clone());
        new
    }
}

impl Record {
    /// Whose it is, unless it was deleted so long ago that nothing of it counts.
    pub(super) fn person(&self, now: Instant) -> Option<&Arc<Person>> {
        let is_past = self.deleted_at.is_some() && !self.is_deleted(now);
        self.person.as_ref().filter(|_| !is_past)
    }
}

impl Directory {
    /// Whose `session` is, as far as anybody has said.
    pub fn person(&self, now: Instant, session: &str) -> Option<&Arc<Person>> {
        self.sessions.get(session)?.person(now)
    }

    /// `session`, which was claimed or found just now, is `person`'s from now on, unless it is
    /// somebody's already. True if that is news.
    pub fn belongs(&mut self, now: Instant, session: &SessionId, person: &Person) -> bool {
        let Some(record) = self.sessions.get_mut(session) else {
            return false;
        };
        if record.person(now).is_some() {
            return false;
        }
        record.person = Some(self.persons.one(person));
        self.touch(session);
        true
    }

    /// The process that decides says so, whatever was known here.
    pub fn obey_person(&mut self, session: &SessionId, person: &Person) {
        let person = self.persons.one(person);
        if let Some(record) = self.sessions.get_mut(session)
            && record.person.as_ref() != Some(&person)
        {
            record.person = Some(person);
            self.touch(session);
        }
    }

    /// `copy` is a copy of `source`, and whoever owns that owns it.
    pub fn forked(&mut self, now: Instant, source: &str, copy: &SessionId) -> Option<Arc<Person>> {
        let person = self.person(now, source).cloned()?;
        self.entry(now, copy);
        self.belongs(now, copy, &person);
        Some(person)
    }

    /// How many sessions that are open or on disk nobody is known to own.
    pub fn unowned(&self, now: Instant) -> usize {
        let unowned = |r: &&Record| {
            r.person.is_none() && !r.is_deleted(now) && (r.has_history || r.owner.is_some())
        };
        self.sessions.values().filter(unowned).count()
    }

    /// How many persons are interned.
    #[cfg(test)]
    pub(super) fn persons_known(&self) -> usize {
        self.persons.all.len()
    }
}
