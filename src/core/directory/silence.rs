//! Backends that are not heard: what may still be open there, since who left it was perhaps not
//! heard either, and what such a one must close before it is used again.

use std::{
    collections::{HashSet, VecDeque},
    time::Instant,
};

use ahash::RandomState;

use super::{Directory, LEFT_LIMIT, LEFT_WITHIN};
use crate::core::{
    id::{BackendName, SessionId},
    snapshot::Mode,
};

impl Directory {
    /// `backend` is not heard: whoever left lately, or leaves from now on, may be unheard there.
    pub fn backend_silent(&mut self, now: Instant, backend: &BackendName) {
        self.silent.insert(backend.clone());
        for (at, session) in self.take_left(backend) {
            if now.saturating_duration_since(at) < LEFT_WITHIN
                && !self.sessions.get(&session).is_some_and(|r| {
                    // Wherever it may be open by now, it was opened there after it was left here.
                    r.now.owner.is_some() || r.now.maybe_open_at.is_some() || r.is_deleted(now)
                })
            {
                self.entry(now, &session).now.maybe_open_at = Some(backend.clone());
                self.touch(&session);
            }
        }
    }

    /// The sessions that were left at `backend` last, in that order, and when. What of the others
    /// was left earlier goes: each was opened elsewhere after it, so it says nothing any more.
    fn take_left(&mut self, backend: &BackendName) -> Vec<(Instant, SessionId)> {
        let mut seen: HashSet<SessionId, RandomState> = HashSet::default();
        let mut taken = Vec::new();
        let mut kept = VecDeque::with_capacity(self.left.len());
        for (at, session, left) in std::mem::take(&mut self.left).into_iter().rev() {
            if !seen.insert(session.clone()) {
                continue;
            }
            if left == *backend {
                taken.push((at, session));
            } else {
                kept.push_front((at, session, left));
            }
        }
        self.left = kept;
        taken.reverse();
        taken
    }

    /// `backend` is heard again.
    pub fn backend_back(&mut self, backend: &BackendName) {
        self.silent.remove(backend);
    }

    /// The connections of `backend` are gone, and so its process is taken to be: nothing is open
    /// there but what its holders still know of. If it lives after all, it must close what others
    /// may open now: a stopped process whose connections were reset has not heard who has left.
    pub fn backend_gone(&mut self, now: Instant, backend: &BackendName) {
        self.silent.remove(backend);
        let left = self.take_left(backend);
        let perhaps = self.forget_maybe_open(backend);
        for session in &perhaps {
            self.touch(session);
        }
        if self.mode == Mode::SharedStorage {
            let left = left.into_iter().map(|(_, session)| session);
            for session in left.chain(perhaps) {
                let owner = self
                    .sessions
                    .get(&session)
                    .and_then(|r| r.now.owner.as_ref());
                if owner != Some(backend) {
                    self.note_moved_or_open(now, backend, &session);
                }
            }
        }
    }

    /// Nothing may be open at `backend` any more unless its holders know of it; what was.
    pub(super) fn forget_maybe_open(&mut self, backend: &BackendName) -> Vec<SessionId> {
        self.sessions
            .iter_mut()
            .filter(|(_, r)| r.now.maybe_open_at.as_ref() == Some(backend))
            .map(|(id, r)| {
                r.now.maybe_open_at = None;
                id.clone()
            })
            .collect()
    }

    pub(super) fn note_left(&mut self, now: Instant, session: &SessionId, backend: BackendName) {
        if self.released.contains(&backend) {
            self.note_moved_or_open(now, &backend, session);
            return;
        }
        if self.silent.contains(&backend) {
            self.entry(now, session).now.maybe_open_at = Some(backend);
            self.touch(session);
            return;
        }
        while self.left.front().is_some_and(|(at, _, _)| {
            self.left.len() >= LEFT_LIMIT || now.saturating_duration_since(*at) >= LEFT_WITHIN
        }) {
            self.left.pop_front();
        }
        self.left.push_back((now, session.clone(), backend));
    }
}
