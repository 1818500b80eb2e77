//! What two processes of one upgrade tell each other: one JSON object a line.
//!
//! The newest process is the *primary*: it decides who owns a session. Older ones, which only serve
//! the clients that they have, tell it what these hold and ask before they open anything. Values
//! only: who sends what when is the control plane's, what it does to the table the store's.

use serde::{Deserialize, Serialize};

use super::{directory::Standing, id::ConnectionId, identity::Person, snapshot::AdminState};

/// The versions of this protocol that are spoken here, best first.
pub const VERSIONS: [u32; 1] = [2];

/// Holders from here on are processes, not client connections.
const FIRST_HOLDER: u64 = 1 << 63;

/// The holder that stands for the `n`th other process.
pub fn holder(n: u64) -> ConnectionId {
    ConnectionId(FIRST_HOLDER | n)
}

/// Whether this holder stands for another process.
pub fn is_peer(holder: ConnectionId) -> bool {
    holder.0 >= FIRST_HOLDER
}

/// One process, for as long as it lives: no other ever has the same.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Instance(pub String);

/// What the connecting process wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// To take over.
    Successor,
    /// To share the owner table of the process that has taken over.
    Secondary,
}

/// How far the connections of one process are with a session, all together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stands {
    /// One or more are about to hear it, none does.
    Attaching,
    /// One or more hear it.
    Attached,
    /// All have lost it.
    Lost,
}

impl From<Stands> for Standing {
    fn from(stands: Stands) -> Self {
        match stands {
            Stands::Attaching => Self::Attaching,
            Stands::Attached => Self::Attached,
            Stands::Lost => Self::Lost,
        }
    }
}

/// Whose a session is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Whose {
    /// Of which realm.
    pub realm: String,
    /// Which user of it.
    pub user: String,
}

impl From<&Person> for Whose {
    fn from(person: &Person) -> Self {
        Self {
            realm: person.realm.to_string(),
            user: person.user.to_string(),
        }
    }
}

impl From<&Whose> for Person {
    fn from(whose: &Whose) -> Self {
        Self::new(&whose.realm, &whose.user)
    }
}

/// What one process holds of a session.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Held {
    /// The backend that has it open.
    pub owner: String,
    /// How far its connections are.
    pub stands: Stands,
    /// One of them reports the turn that is running.
    #[serde(default)]
    pub in_turn: bool,
    /// It has had a turn.
    #[serde(default)]
    pub has_history: bool,
    /// The backend whose disk has it (separate disks only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<String>,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whose: Option<Whose>,
}

/// What is remembered of a session that may be open nowhere.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Remembered {
    /// The backend that has it open, or may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The backend whose disk has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<String>,
    /// It has had a turn.
    #[serde(default)]
    pub has_history: bool,
    /// How long ago it was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_ms: Option<u64>,
    /// How long ago it was heard of last.
    #[serde(default)]
    pub idle_ms: u64,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whose: Option<Whose>,
}

/// What a secondary asks the primary about a session.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Question {
    /// Is it this backend's, or whose?
    Claim {
        /// Where it would be opened.
        want: String,
        /// Whose it is from now on, if it is nobody's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        whose: Option<Whose>,
    },
    /// It is lost there: may it move?
    Reown {
        /// The owner as known to the one who asks.
        from: String,
        /// Where it would be opened.
        to: String,
    },
}

impl Question {
    /// The backend that the one who asks would open it on.
    pub fn want(&self) -> &str {
        match self {
            Self::Claim { want, .. } => want,
            Self::Reown { to, .. } => to,
        }
    }
}

/// What an operator has said of a backend, as it is written here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "as in AdminState")]
pub enum Wish {
    Ready,
    Drain,
    Maint,
}

impl From<AdminState> for Wish {
    fn from(state: AdminState) -> Self {
        match state {
            AdminState::Ready => Self::Ready,
            AdminState::Drain => Self::Drain,
            AdminState::Maint => Self::Maint,
        }
    }
}

impl From<Wish> for AdminState {
    fn from(wish: Wish) -> Self {
        match wish {
            Wish::Ready => Self::Ready,
            Wish::Drain => Self::Drain,
            Wish::Maint => Self::Maint,
        }
    }
}

/// One line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Message {
    /// The first line of the process that connects.
    Hello {
        /// Spoken there, best first.
        versions: Vec<u32>,
        /// What it wants.
        role: Role,
        /// Which process it is.
        instance: Instance,
        /// Its release.
        taxiway: String,
    },
    /// The answer to it. With the sockets, if it wants to take over.
    Welcome {
        /// To be spoken from now on.
        version: u32,
        /// The release that answers.
        taxiway: String,
        /// Which process it is.
        instance: Instance,
        /// What each of the file descriptors beside this line is, in their order.
        #[serde(default)]
        sockets: Vec<String>,
    },
    /// The answer to it, if nothing comes of it.
    Refused {
        /// For the operator.
        reason: String,
    },
    /// The successor has the sockets: now for what is remembered.
    Received,
    /// A session that is remembered.
    Remembers {
        /// Its id.
        session: String,
        /// What of it.
        #[serde(flatten)]
        remembered: Remembered,
    },
    /// What an operator wants of a backend; none: what the configuration says.
    Operator {
        /// The backend.
        backend: String,
        /// Its state.
        state: Option<Wish>,
        /// Its weight.
        weight: Option<u32>,
    },
    /// All has been said that belongs together.
    Synced,
    /// The successor is ready to take over.
    TakeOver,
    /// A session that connections of a process hold.
    Holds {
        /// Its id.
        session: String,
        /// Whose connections; none: those of the process that says it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        of: Option<Instance>,
        /// What of it.
        #[serde(flatten)]
        held: Held,
    },
    /// The process that says it holds the session no more.
    Gone {
        /// Its id.
        session: String,
        /// It was deleted.
        #[serde(default)]
        deleted: bool,
    },
    /// These were opened elsewhere while the backend was away: it has to close them when it is back.
    Moved {
        /// From where.
        backend: String,
        /// Which.
        sessions: Vec<String>,
    },
    /// The successor has everything, and waits for the last word.
    Taken,
    /// The last word: the one who says it will never accept again.
    Retired,
    /// A secondary's question.
    Ask {
        /// Comes back with the answer.
        id: u64,
        /// The session.
        session: String,
        /// About it.
        #[serde(flatten)]
        question: Question,
    },
    /// The answer.
    Answer {
        /// Of the question.
        id: u64,
        /// Which backend owns the session now.
        owner: String,
        /// Whose it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        whose: Option<Whose>,
    },
    /// A session that is somebody's, whoever holds it.
    Owned {
        /// Its id.
        session: String,
        /// Whose it is.
        whose: Whose,
    },
    /// The primary ends: everybody ends.
    Drain,
    /// The secondary ends by itself; nothing of it is left.
    Leaving,
}
