//! Owners that change: who has lost a session, where it goes, what the backend that had it must
//! close before it is used again.

use std::{collections::HashSet, time::Instant};

use super::{Claim, Directory, Standing};
use crate::core::{
    id::{BackendName, ConnectionId, SessionId},
    snapshot::Mode,
};

impl Directory {
    /// `holder` hears the session at its owner now, or has lost its upstream connection there.
    pub fn stands(&mut self, session: &str, holder: ConnectionId, standing: Standing) {
        if let Some(record) = self.sessions.get_mut(session)
            && let Some(holder) = record.held_by(holder)
        {
            holder.standing = standing;
            self.note(session);
        }
    }

    /// Whether `holder` may open `session` at `backend`, as it was told before: nothing has changed
    /// since. From now on it is about to, whatever was thought of it.
    pub fn confirm(&mut self, session: &str, backend: &BackendName, holder: ConnectionId) -> bool {
        let Some(record) = self.sessions.get_mut(session) else {
            return false;
        };
        if record.now.moving || record.now.owner.as_ref() != Some(backend) {
            return false;
        }
        let Some(holder) = record.held_by(holder) else {
            return false;
        };
        if holder.standing == Standing::Lost {
            holder.standing = Standing::Attaching;
            self.note(session);
        }
        true
    }

    /// When `holder` has claimed `session` last, if it holds it.
    pub fn claimed_at(&self, session: &str, holder: ConnectionId) -> Option<Instant> {
        let record = self.sessions.get(session)?;
        let holder = record.now.holders.iter().find(|h| h.connection == holder)?;
        Some(holder.claimed)
    }

    /// Takes back the claim that `holder` has made at that time, unless it has claimed again since.
    pub fn unclaim(&mut self, now: Instant, session: &str, holder: ConnectionId, claimed: Instant) {
        if self.claimed_at(session, holder) == Some(claimed) {
            self.release(now, session, holder);
        }
    }

    /// The client of `holder` has left `session` in a turn; its connection stays for a while.
    pub fn park(&mut self, session: &str, holder: ConnectionId) {
        if let Some(record) = self.sessions.get_mut(session)
            && let Some(holder) = record.held_by(holder)
        {
            holder.parked = true;
        }
    }

    /// Whether everybody who held `session` before `holder` did is attached again: after a
    /// failover clients are re-attached in their original order, since the last one to attach
    /// decides the model and the system message (PROTOCOL §4).
    pub fn is_next(&self, session: &str, holder: ConnectionId) -> bool {
        self.sessions.get(session).is_none_or(|record| {
            record
                .now
                .holders
                .iter()
                .take_while(|h| h.connection != holder)
                .all(|h| h.standing == Standing::Attached)
        })
    }

    /// Gives `session`, whose owner is known not to have it open any more, or not to be heard of
    /// until it has closed it, to `to`, and registers `holder` as attaching there. Only if `from`
    /// is the owner still and nobody hears the session there: else as [`Directory::claim`] answers
    /// for the owner there is.
    ///
    /// The caller vouches for `from`: its process is gone, fenced, or silent for
    /// `failover.hang_timeout` (DESIGN §5).
    pub fn reown(
        &mut self,
        now: Instant,
        session: &SessionId,
        from: &BackendName,
        to: &BackendName,
        holder: ConnectionId,
    ) -> Claim {
        if let Some(record) = self.sessions.get(session)
            && record.now.owner.as_ref() == Some(from)
            && !record.now.moving
            && self.mode == Mode::SharedStorage
            && from != to
        {
            let is_known = record.now.holders.iter().any(|h| h.connection == holder);
            let moves = record.is_adrift() && self.note_moved(from, session);
            if moves {
                self.change_owner(session, from, to);
            } else if is_known {
                // Somebody hears it there, or has not noticed yet; or too many have moved already.
                // Who asks has lost it still.
                return Claim::OwnedBy(from.clone());
            }
        }
        self.claim(now, session, to, holder)
    }

    /// Sessions that `backend` has open, in id order.
    pub fn owned_by(&self, backend: &BackendName) -> Vec<SessionId> {
        let mut owned: Vec<_> = self
            .sessions
            .iter()
            .filter(|(_, r)| r.now.owner.as_ref() == Some(backend))
            .map(|(id, _)| id.clone())
            .collect();
        owned.sort();
        owned
    }

    /// `session` is about to be closed at `backend`: until [`Directory::end_move`] nobody may open
    /// it. False, and nothing changes, unless `backend` is its owner and nobody hears it there.
    pub fn begin_move(&mut self, session: &str, backend: &BackendName) -> bool {
        let Some(record) = self.sessions.get_mut(session) else {
            return false;
        };
        let may = record.now.owner.as_ref() == Some(backend)
            && record.is_adrift()
            && record.now.turn.is_none()
            && !record.now.moving;
        if may {
            record.now.moving = true;
        }
        may
    }

    /// It was closed there, or it was not. If it was it has no owner: whoever holds it opens it
    /// again, where it is to be next.
    pub fn end_move(&mut self, now: Instant, session: &SessionId, closed: bool) {
        let Some(record) = self.sessions.get_mut(session) else {
            return;
        };
        if !record.now.moving {
            return;
        }
        record.now.moving = false;
        let left = record.now.holders.is_empty();
        if closed && let Some(owner) = record.now.owner.take() {
            let load = self.loads.entry(owner).or_default();
            load.sessions = load.sessions.saturating_sub(1);
        }
        self.touch(session);
        if left {
            // All have left meanwhile.
            let owner = self.sessions.get(session).and_then(|r| r.now.owner.clone());
            self.close(session.as_str());
            if let Some(owner) = owner {
                self.note_left(now, session, owner);
            }
        }
    }

    /// The connections of `backend` ended before it said that it has closed `session`, which is
    /// taken to be closed: if it lives after all, it must close it before it is used again. False
    /// if too many sessions are to be closed already: then nobody may open it.
    pub fn left_behind(&mut self, session: &SessionId, backend: &BackendName) -> bool {
        self.mode == Mode::Sticky || self.note_moved(backend, session)
    }

    pub(super) fn change_owner(
        &mut self,
        session: &SessionId,
        from: &BackendName,
        to: &BackendName,
    ) {
        let Some(record) = self.sessions.get_mut(session) else {
            return;
        };
        record.now.owner = Some(to.clone());
        let turns = u32::from(record.now.turn.is_some());
        let load = self.loads.entry(from.clone()).or_default();
        load.sessions = load.sessions.saturating_sub(1);
        load.turns = load.turns.saturating_sub(turns);
        let load = self.loads.entry(to.clone()).or_default();
        load.sessions += 1;
        load.turns += turns;
        self.touch(session);
    }

    /// The connections that hold `session`, in the order in which they came.
    pub fn holders(&self, session: &str) -> Vec<ConnectionId> {
        let record = self.sessions.get(session);
        record.map_or_else(Vec::new, |r| {
            r.now.holders.iter().map(|h| h.connection).collect()
        })
    }

    /// Sessions that `backend` must close before it is used again, in id order.
    pub fn moved_from(&self, backend: &BackendName) -> Vec<SessionId> {
        let mut moved: Vec<_> = self
            .moved
            .get(backend)
            .map(|moved| moved.iter().cloned().collect())
            .unwrap_or_default();
        moved.sort();
        moved
    }

    /// `backend` has closed these.
    pub fn cleaned(&mut self, backend: &BackendName, sessions: &[SessionId]) {
        if let Some(moved) = self.moved.get_mut(backend) {
            for session in sessions {
                moved.remove(session);
            }
            if moved.is_empty() {
                self.moved.remove(backend);
            }
            for session in sessions {
                self.touch(session);
            }
        }
    }

    /// What `backend` may have open may be opened elsewhere from now on: it is gone, or silent and
    /// given up. Whoever left it unheard, or leaves it until [`Directory::backend_returned`], leaves
    /// something that it must close when it comes back: its network may only have been cut.
    pub fn backend_released(&mut self, now: Instant, backend: &BackendName) {
        self.released.insert(backend.clone());
        for session in self.forget_maybe_open(backend) {
            self.note_moved_or_open(now, backend, &session);
            self.touch(&session);
        }
    }

    /// It has closed what was moved, and is used again; or it is not in the pool any more.
    pub fn backend_returned(&mut self, backend: &BackendName) {
        self.released.remove(backend);
    }

    /// False if too many are to be closed already: then it must not be opened elsewhere.
    pub(super) fn note_moved(&mut self, from: &BackendName, session: &SessionId) -> bool {
        if self.follows {
            // The process that decides cleans up: twice would close what was opened since.
            return true;
        }
        let is_known = self
            .moved
            .get(from)
            .is_some_and(|moved| moved.contains(session));
        let count: usize = self.moved.values().map(HashSet::len).sum();
        if !is_known && count >= self.moved_limit {
            self.unmoved += 1;
            return false;
        }
        self.must_close(from, session);
        self.touch(session);
        true
    }

    /// As [`Directory::note_moved`]; at the bound it may be open there until that says no.
    pub(super) fn note_moved_or_open(
        &mut self,
        now: Instant,
        from: &BackendName,
        session: &SessionId,
    ) {
        let held = self
            .sessions
            .get(session)
            .is_some_and(|r| r.now.owner.is_some());
        if !self.note_moved(from, session) && !held {
            self.entry(now, session).now.maybe_open_at = Some(from.clone());
            self.touch(session);
        }
    }

    pub(super) fn must_close(&mut self, at: &BackendName, session: &SessionId) {
        let moved = self.moved.entry(at.clone()).or_default();
        moved.insert(session.clone());
    }

    /// How often since the last call a session was not moved because backends have too many to
    /// close already.
    pub fn take_unmoved(&mut self) -> u64 {
        std::mem::take(&mut self.unmoved)
    }
}
