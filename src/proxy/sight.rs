//! Who may see which session, asked of the directory and the rules in one step: the one place where
//! the data plane joins the two. Decides nothing itself, and keeps nothing.

use std::{sync::Arc, time::Instant};

use super::{Rules, Shared};
use crate::core::{
    access::{Denial, Relation},
    directory::Known,
    event::NotFound,
    id::SessionId,
    identity::{Person, Principal},
    reply::ProxyError,
};

/// One client's eyes.
#[derive(Clone)]
pub(super) struct Sight {
    rules: Arc<Rules>,
    principal: Option<Arc<Principal>>,
    /// Sessions of which nobody knows whose they are may be taken here. Not in a process whose
    /// successor decides: that one may know, and be about to tell.
    adopts: bool,
}

/// Whether anybody has seen anything of the session.
pub(super) fn exists(known: &Known) -> bool {
    known.owner.is_some()
        || known.home.is_some()
        || known.maybe_open_at.is_some()
        || known.has_history
        || known.holders > 0
}

impl Sight {
    pub(super) fn new(
        shared: &Shared,
        rules: &Arc<Rules>,
        principal: Option<&Arc<Principal>>,
    ) -> Self {
        Self {
            rules: rules.clone(),
            principal: principal.cloned(),
            adopts: principal.is_none() || !shared.store.follows(),
        }
    }

    /// Whether there are sessions that it does not see.
    pub(super) fn is_guarded(&self) -> bool {
        self.principal.is_some() || self.rules.mux.access.authenticates
    }

    pub(super) fn principal(&self) -> Option<&Principal> {
        self.principal.as_deref()
    }

    /// How it stands to a session that is there, if it does.
    pub(super) fn of(&self, shared: &Shared, session: &str) -> Result<Relation, Denial> {
        if !self.is_guarded() {
            return Ok(Relation::Anybody);
        }
        let directory = shared.store.lock();
        let person = directory.person(Instant::now(), session);
        self.judge(session, person.map(|person| &**person), true)
    }

    /// The same, given whose it is.
    pub(super) fn judge(
        &self,
        session: &str,
        person: Option<&Person>,
        exists: bool,
    ) -> Result<Relation, Denial> {
        let principal = self.principal.as_deref();
        let access = &self.rules.mux.access;
        let relation = access.judge(principal, session, person, exists)?;
        if relation == Relation::Adopter && !self.adopts {
            return Err(Denial::Unowned);
        }
        Ok(relation)
    }

    /// What can be said of a session before anybody was asked about it: none = that depends on
    /// whether it is there.
    ///
    /// # Errors
    /// It is not for this client, whether it is there or not.
    pub(super) fn at_first(
        &self,
        session: &SessionId,
        known: &Known,
    ) -> Result<Option<Relation>, ProxyError> {
        let (name, person) = (session.as_str(), known.person.as_deref());
        let is_there = exists(known);
        let says_enough = !self.is_guarded()
            || is_there
            || self.principal.is_none()
            || self.rules.mux.access.owner(person, name).is_some();
        if !says_enough {
            return Ok(None);
        }
        let judged = self.judge(name, person, is_there);
        judged.map(Some).map_err(|denial| denied(session, denial))
    }

    /// Whose a session is that this client opens.
    pub(super) fn person_for(&self, session: &SessionId) -> Option<Person> {
        let principal = self.principal.as_deref()?;
        let access = &self.rules.mux.access;
        let by_id = access
            .owner(None, session.as_str())
            .filter(|owner| owner.realm == principal.realm);
        Some(by_id.unwrap_or_else(|| access.person_for(principal, Some(session.as_str()))))
    }
}

/// What is said of a session that a client may not see.
pub(super) fn denied(session: &SessionId, denial: Denial) -> ProxyError {
    ProxyError::Unseen {
        session: session.clone(),
        why: NotFound::Denied(denial),
    }
}

/// What is said of one that nobody has.
pub(super) fn unknown(session: &SessionId, known: &Known) -> ProxyError {
    ProxyError::Unseen {
        session: session.clone(),
        why: if known.deleted {
            NotFound::Deleted
        } else {
            NotFound::Unknown
        },
    }
}
