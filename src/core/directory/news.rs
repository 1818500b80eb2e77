//! What backends say of sessions, whoever holds them: on their disk, deleted, with history.

use std::{collections::HashSet, time::Instant};

use super::Directory;
use crate::core::{
    id::{BackendName, SessionId},
    snapshot::Mode,
};

impl Directory {
    /// The session list of `backend`, just read. Sessions that were at home there and are not
    /// listed any more are forgotten unless open.
    pub fn learn_disk(&mut self, now: Instant, backend: &BackendName, listed: &[SessionId]) {
        if self.mode == Mode::Sticky {
            let current: HashSet<&str> = listed.iter().map(SessionId::as_str).collect();
            let mut gone = Vec::new();
            self.sessions.retain(|id, r| {
                let stays = r.home.as_ref() != Some(backend)
                    || r.is_open()
                    || r.now.maybe_open_at.is_some()
                    || r.now.deleted_at.is_some()
                    || current.contains(id.as_str());
                if !stays {
                    gone.push(id.clone());
                }
                stays
            });
            if let Some(count) = self.homes.get_mut(backend) {
                *count -= gone.len();
            }
            for session in &gone {
                self.touch(session);
            }
        }
        for session in listed {
            self.learn_history(now, session, backend);
        }
    }

    /// `backend` says that `session` was deleted. With separate disks that is news only from the
    /// one that has it: another may have deleted a copy that it should never have had.
    pub fn learn_deleted(&mut self, now: Instant, session: &SessionId, backend: &BackendName) {
        let elsewhere = self.mode == Mode::Sticky
            && self.sessions.get(session).is_some_and(|r| {
                let has_it = r.now.owner.as_ref().or(r.home.as_ref());
                has_it.is_some_and(|has_it| has_it != backend)
            });
        if !elsewhere {
            self.delete(now, session);
        }
    }

    /// `session` has had a turn and lies on the disk of `backend`.
    pub fn learn_history(&mut self, now: Instant, session: &SessionId, backend: &BackendName) {
        let sticky = self.mode == Mode::Sticky;
        let record = self.entry(now, session);
        if record.is_deleted(now) {
            return;
        }
        let mut news = !std::mem::replace(&mut record.has_history, true);
        if sticky && record.home.is_none() {
            record.home = Some(backend.clone());
            *self.homes.entry(backend.clone()).or_default() += 1;
            news = true;
        }
        if news {
            self.touch(session);
        }
    }
}
