//! What outlives the process, and what of it has changed.

use std::time::{Duration, Instant};

use super::{Directory, Saved};
use crate::core::{id::SessionId, snapshot::Mode};

impl Directory {
    /// Takes the sessions whose [`Directory::saved`] may have changed since the last call, each
    /// once. A session without a record is to be forgotten.
    pub fn take_dirty(&mut self) -> Vec<SessionId> {
        let dirty = std::mem::take(&mut self.dirty);
        for session in &dirty {
            if let Some(record) = self.sessions.get_mut(session) {
                record.dirty = false;
            }
        }
        dirty
    }

    /// Whether [`Directory::take_dirty`] would give something.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// What is to be kept of `session`; none if nothing is.
    pub fn saved(&self, now: Instant, session: &str) -> Option<Saved> {
        let moved = self.moved.iter();
        let moved = moved.filter(|(_, sessions)| sessions.contains(session));
        let mut moved_from: Vec<_> = moved.map(|(backend, _)| backend.clone()).collect();
        moved_from.sort();
        let Some(record) = self.sessions.get(session) else {
            return (!moved_from.is_empty()).then(|| Saved {
                moved_from,
                ..Saved::default()
            });
        };
        let kept = Saved {
            owner: record
                .now
                .owner
                .clone()
                .or_else(|| record.now.maybe_open_at.clone()),
            home: record.home.clone(),
            has_history: record.has_history,
            deleted: record
                .now
                .deleted_at
                .map(|at| now.saturating_duration_since(at)),
            idle: now.saturating_duration_since(record.last_use),
            moved_from,
            person: record.person(now).cloned(),
        };
        Some(kept)
    }

    /// Takes over what a former process has kept of `session`, unless it is known already. Who had
    /// it open then may have it open still.
    pub fn restore(&mut self, now: Instant, session: &SessionId, saved: Saved) {
        if self.mode == Mode::SharedStorage {
            for backend in &saved.moved_from {
                self.must_close(backend, session);
            }
        }
        let nothing = saved.owner.is_none()
            && saved.home.is_none()
            && !saved.has_history
            && saved.deleted.is_none()
            && saved.person.is_none();
        if nothing || self.sessions.contains_key(session) {
            return;
        }
        let back = |ago: Duration| now.checked_sub(ago).unwrap_or(now);
        let home = saved.home.filter(|_| self.mode == Mode::Sticky);
        let home = home.map(|home| self.names.one(home));
        let owner = saved.owner.map(|owner| self.names.one(owner));
        if let Some(home) = &home {
            *self.homes.entry(home.clone()).or_default() += 1;
        }
        let person = saved.person.map(|person| self.persons.one(&person));
        let record = self.entry(now, session);
        record.person = person;
        if owner.is_some() {
            record.now.maybe_open_at = owner;
        }
        record.home = home;
        record.has_history = saved.has_history;
        if let Some(deleted) = saved.deleted {
            record.now.deleted_at = Some(back(deleted));
        }
        record.last_use = back(saved.idle);
    }

    /// After [`Directory::restore`] of all there are, in whatever order: eviction looks at the oldest
    /// first. What a backend has still to close is not forgotten before anything else.
    pub fn order_by_age(&mut self) {
        let (sessions, moved) = (&self.sessions, &self.moved);
        self.ages.make_contiguous().sort_by_cached_key(|id| {
            let has_to_close = moved.values().any(|sessions| sessions.contains(id));
            (has_to_close, sessions.get(id).map(|r| r.last_use))
        });
    }

    /// What is to be kept of `session` has changed.
    pub(super) fn touch(&mut self, session: &SessionId) {
        self.note(session.as_str());
        if let Some(record) = self.sessions.get_mut(session) {
            record.now.settle();
            if std::mem::replace(&mut record.dirty, true) {
                return;
            }
        }
        self.dirty.push(session.clone());
    }
}
