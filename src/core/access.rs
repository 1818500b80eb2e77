//! Who may see and use which session: pure decisions from a principal, what is recorded of the
//! session, and the rules of the configuration. Looks nothing up and tells nobody.
//!
//! The CLI has no isolation between connections (PROTOCOL §4, §5): this is all there is.

use std::sync::Arc;

use regex::Regex;

use super::identity::{Person, Principal, Role};

mod methods;

pub use methods::{DecidedBy, Methods, fits};

/// The rules (`[identity]` and `[access]`), replaced whole by a reload.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Principals are configured: who has proved to be none of them may do nothing.
    pub authenticates: bool,
    /// Reads the user out of the id of a session: a group named `user`.
    pub session_id_user: Option<Regex>,
    /// The one realm, if there is exactly one: only then does an id alone say whose a session is.
    pub sole_realm: Option<Arc<str>>,
    /// The principal that sees sessions of nobody.
    pub adopt_by: Option<Arc<str>>,
    /// Sessions that several users share.
    pub shares: Vec<Share>,
    /// Which methods may be used.
    pub methods: Methods,
}

/// Sessions that groups of users share (DESIGN §4).
#[derive(Clone, Debug)]
pub struct Share {
    /// Their ids: the whole id must match.
    pub pattern: Regex,
    /// Who may use them, besides the one whose they are: members of any of these groups, in the
    /// same realm.
    pub groups: Vec<Arc<str>>,
}

/// How a principal stands to a session that it may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Relation {
    /// No principals are configured: everybody is everything.
    Anybody,
    /// It is the session's user, or a service trusted within the user's realm.
    Owner,
    /// It shares the session: what attaching changes for the others is not for it.
    Member,
    /// The session is nobody's, and it may take those.
    Adopter,
}

/// Why a principal may not use a session. For operators and counters: a client is told what the
/// CLI says about a session that it does not know.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Denial {
    /// It is a user's of the same realm.
    OtherUser,
    /// It is a user's of another realm.
    OtherRealm,
    /// Nobody knows whose it is.
    Unowned,
    /// Its id names another user than the one that wants to create it.
    IdOfOther,
    /// It answers what another session has asked.
    RequestOfOther,
}

impl Denial {
    /// The label of `access_denied_total`.
    pub fn label(self) -> &'static str {
        match self {
            Self::OtherUser => "other_user",
            Self::OtherRealm => "other_realm",
            Self::Unowned => "unowned",
            Self::IdOfOther => "id_of_other",
            Self::RequestOfOther => "request_of_other",
        }
    }
}

impl Access {
    /// The user that the id of a session names.
    pub fn user_of<'a>(&self, session: &'a str) -> Option<&'a str> {
        let user = self
            .session_id_user
            .as_ref()?
            .captures(session)?
            .name("user")?;
        Some(user.as_str()).filter(|user| !user.is_empty())
    }

    /// Whose `session` is: as recorded, else by its id where that says enough.
    pub fn owner(&self, recorded: Option<&Person>, session: &str) -> Option<Person> {
        recorded.cloned().or_else(|| {
            Some(Person {
                realm: self.sole_realm.clone()?,
                user: Arc::from(self.user_of(session)?),
            })
        })
    }

    /// Whose a session is that `principal` creates under this id (none = the backend chooses one).
    pub fn person_for(&self, principal: &Principal, session: Option<&str>) -> Person {
        let user = match principal.role {
            Role::User => None,
            Role::Service => session.and_then(|id| self.user_of(id)),
        };
        Person {
            realm: principal.realm.clone(),
            user: user.map_or_else(|| principal.user.clone(), Arc::from),
        }
    }

    /// Whether `principal` may use `session`, which is recorded as `recorded`'s and `exists` as far
    /// as anybody knows. One that does not may be created, under an id that names no other user.
    ///
    /// # Errors
    /// Why not.
    pub fn judge(
        &self,
        principal: Option<&Principal>,
        session: &str,
        recorded: Option<&Person>,
        exists: bool,
    ) -> Result<Relation, Denial> {
        let Some(principal) = principal else {
            return if self.authenticates {
                Err(Denial::Unowned)
            } else {
                Ok(Relation::Anybody)
            };
        };
        match self.owner(recorded, session) {
            Some(owner) if owner.realm != principal.realm => Err(Denial::OtherRealm),
            Some(owner) => match principal.role {
                Role::Service => Ok(Relation::Owner),
                Role::User if owner.user == principal.user => Ok(Relation::Owner),
                Role::User if self.is_shared_with(session, principal) => Ok(Relation::Member),
                Role::User if exists => Err(Denial::OtherUser),
                Role::User => Err(Denial::IdOfOther),
            },
            None if !exists => self.may_create(principal, session),
            None if self.adopt_by.as_deref() == Some(&*principal.name) => Ok(Relation::Adopter),
            None => Err(Denial::Unowned),
        }
    }

    /// An id that names a user, created by another one, would be that user's for whoever reads it.
    fn may_create(&self, principal: &Principal, session: &str) -> Result<Relation, Denial> {
        match (principal.role, self.user_of(session)) {
            (Role::User, _) if self.is_shared_with(session, principal) => Ok(Relation::Owner),
            (Role::User, Some(user)) if *user != *principal.user => Err(Denial::IdOfOther),
            (Role::User, None) if self.session_id_user.is_some() => Err(Denial::IdOfOther),
            (Role::User | Role::Service, _) => Ok(Relation::Owner),
        }
    }

    fn is_shared_with(&self, session: &str, principal: &Principal) -> bool {
        self.shares.iter().any(|share| {
            share.groups.iter().any(|g| principal.groups.contains(g))
                && share
                    .pattern
                    .find(session)
                    .is_some_and(|found| found.range() == (0..session.len()))
        })
    }
}

#[cfg(test)]
mod tests;
