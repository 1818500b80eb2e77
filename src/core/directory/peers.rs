//! The table as several processes share it: what one of them holds, and what another says of it.

use std::time::Instant;

use super::{Claim, Directory, Record, Saved, Standing};
use crate::core::{
    id::{BackendName, ConnectionId, SessionId},
    identity::Person,
    peer::{Held, Stands, Whose as Said},
};

/// Whether a holder is one of those asked for.
type Whose<'a> = &'a dyn Fn(ConnectionId) -> bool;

impl Directory {
    /// From now on, what changes for holders is noted for [`Directory::take_news`], and sessions
    /// that moved away are not: cleaning up after them is the primary's.
    pub fn follow_primary(&mut self) {
        self.news.get_or_insert_default();
        self.follows = true;
    }

    /// From now on, what changes for holders is noted for [`Directory::take_news`].
    pub fn note_news(&mut self) {
        self.news.get_or_insert_default();
    }

    /// This table decides again, for itself.
    pub fn decide(&mut self) {
        self.news = None;
        self.follows = false;
    }

    /// Whether it follows another process's.
    pub fn follows(&self) -> bool {
        self.follows
    }

    /// Whether [`Directory::take_news`] would give something.
    pub fn has_news(&self) -> bool {
        self.news.as_ref().is_some_and(|news| !news.is_empty())
    }

    /// Sessions whose holders, turn or history have changed since the last call, at most `limit`.
    pub fn take_news(&mut self, limit: usize) -> Vec<SessionId> {
        let Some(news) = &mut self.news else {
            return Vec::new();
        };
        let taken: Vec<SessionId> = news.iter().take(limit).cloned().collect();
        for session in &taken {
            news.remove(session);
        }
        taken
    }

    /// Something has changed for the holders of `session`.
    pub fn note(&mut self, session: &str) {
        if let Some(news) = &mut self.news
            && !news.contains(session)
        {
            news.insert(SessionId::from(session));
        }
    }

    /// What these holders hold of `session`, if they do.
    pub fn held_by(&self, session: &str, whose: Whose<'_>) -> Option<Held> {
        held(self.sessions.get(session)?, whose)
    }

    /// Everything that these holders hold.
    pub fn all_held(&self, whose: Whose<'_>) -> Vec<(SessionId, Held)> {
        let held = |(id, record)| Some((SessionId::clone(id), held(record, whose)?));
        self.sessions.iter().filter_map(held).collect()
    }

    /// Another process, which `holder` stands for here, holds `session`. The answer is that of
    /// [`Directory::claim`].
    pub fn hold(
        &mut self,
        now: Instant,
        session: &SessionId,
        holder: ConnectionId,
        held: &Held,
    ) -> Claim {
        let owner = self.names.one(BackendName::from(held.owner.as_str()));
        let claim = self.claim(now, session, &owner, holder);
        self.stands(session.as_str(), holder, Standing::from(held.stands));
        if let Some(whose) = &held.whose {
            self.belongs(now, session, &Person::from(whose));
        }
        if held.has_history {
            let home = held.home.as_deref().map_or(owner, BackendName::from);
            self.learn_history(now, session, &home);
        }
        if held.in_turn {
            self.begin_turn(session.as_str(), holder);
        } else {
            self.end_turn(session.as_str(), holder, None);
        }
        claim
    }

    /// The primary says that `session` is `owner`'s, and that `holder` may attach there.
    pub fn obey(
        &mut self,
        now: Instant,
        session: &SessionId,
        owner: &BackendName,
        holder: ConnectionId,
    ) -> Claim {
        if let Some(record) = self.sessions.get_mut(session)
            && !record.now.moving
            && let Some(from) = record.now.owner.clone()
            && from != *owner
        {
            // It was moved by another process while nobody here heard it.
            self.change_owner(session, &from, owner);
        }
        self.claim(now, session, owner, holder)
    }

    /// All sessions that something is remembered of.
    pub fn ids(&self) -> Vec<SessionId> {
        let moved = self.moved.values().flatten();
        let moved = moved.filter(|session| !self.sessions.contains_key(*session));
        let mut ids: Vec<_> = moved.cloned().collect();
        ids.sort();
        ids.dedup();
        ids.extend(self.sessions.keys().cloned());
        ids
    }

    /// [`Directory::restore`] in place of what is known, unless somebody here holds it.
    pub fn renew(&mut self, now: Instant, session: &SessionId, saved: Option<Saved>) {
        if self
            .sessions
            .get(session)
            .is_some_and(|r| r.now.owner.is_some())
        {
            return;
        }
        let home = self.sessions.remove(session).and_then(|r| r.home);
        self.leave_home(home);
        if let Some(saved) = saved {
            self.restore(now, session, saved);
        }
        self.touch(session);
    }

    /// All of [`Directory::moved_from`].
    pub fn all_moved(&self) -> Vec<(BackendName, Vec<SessionId>)> {
        let each = |backend: &BackendName| (backend.clone(), self.moved_from(backend));
        self.moved.keys().map(each).collect()
    }

    /// Another process says that these were opened elsewhere while `backend` was away.
    pub fn learn_moved(&mut self, backend: &BackendName, sessions: &[SessionId]) {
        for session in sessions {
            if !self.follows {
                self.must_close(backend, session);
                self.touch(session);
            }
        }
    }

    /// Cleaning up is another process's from now on.
    pub fn forget_moved(&mut self) {
        self.moved.clear();
    }
}

fn held(record: &Record, whose: Whose<'_>) -> Option<Held> {
    let mut theirs = record.now.holders.iter().filter(|h| whose(h.connection));
    let first = theirs.next()?.standing;
    let stands = theirs.fold(stands(first), |all, holder| match (all, holder.standing) {
        (Stands::Attached, _) | (_, Standing::Attached) => Stands::Attached,
        (Stands::Attaching, _) | (_, Standing::Attaching) => Stands::Attaching,
        (Stands::Lost, Standing::Lost) => Stands::Lost,
    });
    Some(Held {
        owner: record.now.owner.as_ref()?.to_string(),
        stands,
        in_turn: record.now.turn.is_some_and(whose),
        has_history: record.has_history,
        home: record.home.as_ref().map(ToString::to_string),
        whose: record.person.as_deref().map(Said::from),
    })
}

fn stands(standing: Standing) -> Stands {
    match standing {
        Standing::Attaching => Stands::Attaching,
        Standing::Attached => Stands::Attached,
        Standing::Lost => Stands::Lost,
    }
}
