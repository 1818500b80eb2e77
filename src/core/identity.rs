//! Who a client is, and whose a session is: values only. How a token proves it is in `credential`,
//! what follows from it in `access`.

use std::{fmt, sync::Arc, time::SystemTime};

/// Whose a session is: a user within a realm. Users of two realms never meet, whatever their names.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Person {
    /// The realm; by default the name of the principal that brought the user.
    pub realm: Arc<str>,
    /// The user within it.
    pub user: Arc<str>,
}

impl Person {
    /// `user` of `realm`.
    pub fn new(realm: &str, user: &str) -> Self {
        Self {
            realm: Arc::from(realm),
            user: Arc::from(user),
        }
    }
}

impl fmt::Display for Person {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.realm, self.user)
    }
}

impl fmt::Debug for Person {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// For whom a principal speaks (DESIGN §4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// For itself: the user is the principal.
    User,
    /// For the users of an application: the user is read from the id of each session, and within
    /// its realm it is trusted.
    Service,
}

/// Caps that a principal has of its own, in the place of those of `[limits]`; none = those.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Caps {
    /// Client connections at a time.
    pub connections: Option<u32>,
    /// Sessions open at a time.
    pub sessions: Option<u32>,
    /// Turns running at a time.
    pub turns: Option<u32>,
    /// Calls per second.
    pub calls_per_second: Option<u32>,
    /// Bytes from the client per second.
    pub bytes_per_second: Option<u64>,
}

impl Caps {
    /// These, and `common` where there is none.
    pub fn or(self, common: Self) -> Self {
        Self {
            connections: self.connections.or(common.connections),
            sessions: self.sessions.or(common.sessions),
            turns: self.turns.or(common.turns),
            calls_per_second: self.calls_per_second.or(common.calls_per_second),
            bytes_per_second: self.bytes_per_second.or(common.bytes_per_second),
        }
    }

    /// Whether each call counts.
    #[inline]
    pub fn bound_rates(&self) -> bool {
        self.calls_per_second.is_some() || self.bytes_per_second.is_some()
    }
}

/// Who a connection has proved to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Principal {
    /// Its name in the configuration, or what a token's claim says.
    pub name: Arc<str>,
    /// For whom it speaks.
    pub role: Role,
    /// Whose users it knows.
    pub realm: Arc<str>,
    /// The user that it is; for a service the one whose sessions name none.
    pub user: Arc<str>,
    /// Groups that it is in, for shared sessions.
    pub groups: Vec<Arc<str>>,
    /// When what proved it runs out.
    pub expires: Option<SystemTime>,
    /// Methods that it may use although the profile denies them: whole names, or a prefix with `*`.
    pub allow: Vec<Arc<str>>,
    /// Methods that it may not use although the profile allows them.
    pub deny: Vec<Arc<str>>,
    /// What it may use at a time.
    pub caps: Caps,
}

impl Principal {
    /// Whether `later` is the same one, perhaps with another expiry: the only change that a later
    /// `connect` may bring.
    pub fn is_renewed_by(&self, later: &Self) -> bool {
        self.name == later.name
            && self.role == later.role
            && self.realm == later.realm
            && self.user == later.user
    }

    /// The person that it is itself.
    pub fn person(&self) -> Person {
        Person {
            realm: self.realm.clone(),
            user: self.user.clone(),
        }
    }
}
