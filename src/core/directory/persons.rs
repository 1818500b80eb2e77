//! Whose sessions are: recorded by the claim that creates or adopts one, kept while anything of it
//! may be anywhere. Who may do what with it is decided in `access`.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Instant,
};

use ahash::RandomState;

use super::{Directory, Record};
use crate::core::{id::SessionId, identity::Person};

/// How many persons are interned before those that own nothing any more are looked for.
const SWEEP: usize = 64;

/// How many of the latest changes another process can catch up on; beyond it is told everything.
const RECENT: usize = 4096;

/// Each person once, so that a million sessions of a thousand users keep a thousand names.
#[derive(Debug, Default)]
pub(super) struct Persons {
    all: HashSet<Arc<Person>, RandomState>,
    /// Swept when there are so many.
    sweep_at: usize,
    /// Sessions that became somebody's, oldest first; how many there were before these.
    recent: VecDeque<SessionId>,
    before: u64,
    /// There is one more since [`Directory::take_owned_news`].
    news: bool,
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

    fn note(&mut self, session: &SessionId) {
        if self.recent.len() >= RECENT {
            self.recent.pop_front();
            self.before += 1;
        }
        self.recent.push_back(session.clone());
        self.news = true;
    }
}

impl Record {
    /// Whose it is, unless it was deleted so long ago that nothing of it counts.
    pub(super) fn person(&self, now: Instant) -> Option<&Arc<Person>> {
        let is_past = self.now.deleted_at.is_some() && !self.is_deleted(now);
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
        self.persons.note(session);
        self.touch(session);
        true
    }

    // For processes that follow this one.

    /// How many sessions have become somebody's.
    pub fn owned_until(&self) -> u64 {
        self.persons.before + self.persons.recent.len() as u64
    }

    /// Those of them that have since there were `mark`; none if that is too long ago.
    pub fn owned_since(&self, mark: u64) -> Option<Vec<SessionId>> {
        let skip = usize::try_from(mark.checked_sub(self.persons.before)?).ok()?;
        Some(self.persons.recent.iter().skip(skip).cloned().collect())
    }

    /// All sessions that are somebody's.
    pub fn all_owned(&self) -> Vec<SessionId> {
        let owned = self.sessions.iter().filter(|(_, r)| r.person.is_some());
        owned.map(|(session, _)| session.clone()).collect()
    }

    /// Whether there are more since the last call.
    pub fn take_owned_news(&mut self) -> bool {
        std::mem::take(&mut self.persons.news)
    }

    /// The process that decides says whose a session is that may not be known here. True if that
    /// is news.
    pub fn learn_person(&mut self, now: Instant, session: &SessionId, person: &Person) -> bool {
        if self.person(now, session.as_str()).map(|p| &**p) == Some(person) {
            return false;
        }
        let record = self.entry(now, session);
        if record.now.deleted_at.is_some() && !record.is_deleted(now) {
            // What is created under the id of one that is long gone is another session.
            record.now.deleted_at = None;
        }
        self.obey_person(session, person);
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
            r.person.is_none() && !r.is_deleted(now) && (r.has_history || r.now.owner.is_some())
        };
        self.sessions.values().filter(unowned).count()
    }

    /// How many persons are interned.
    #[cfg(test)]
    pub(super) fn persons_known(&self) -> usize {
        self.persons.all.len()
    }
}
