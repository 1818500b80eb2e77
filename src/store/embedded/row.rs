//! What is written of one session and of one operator's wish, and how it is read again.
//!
//! Rows hold the time of the wall, since they outlive the process; the directory counts from its
//! own clock. Ids and names only: no parameter and no secret is ever here.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::{
    core::{
        directory::{Saved, TOMBSTONE},
        id::BackendName,
        identity::Person,
        snapshot::{AdminState, Mode},
    },
    store::Operator,
};

/// The layout of everything in the file. A reader refuses a higher one. Fields may be added to rows
/// without a new number, if older readers may ignore them.
pub(super) const SCHEMA: u32 = 1;

/// One session. Names are short: there may be a million rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SessionRow {
    /// The owner's name.
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    /// The home's name.
    #[serde(rename = "h", default, skip_serializing_if = "Option::is_none")]
    home: Option<String>,
    /// It has had a turn.
    #[serde(rename = "t", default, skip_serializing_if = "std::ops::Not::not")]
    has_history: bool,
    /// When it was deleted, in Unix milliseconds.
    #[serde(rename = "d", default, skip_serializing_if = "Option::is_none")]
    deleted: Option<u64>,
    /// Backends that must close it before they are used again.
    #[serde(rename = "m", default, skip_serializing_if = "Vec::is_empty")]
    pub(super) moved_from: Vec<String>,
    /// When it was last heard of, in Unix milliseconds, as of this writing.
    #[serde(rename = "u")]
    pub(super) used: u64,
    /// Whose it is: the realm, and the user.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    person: Option<(String, String)>,
}

/// One operator's wish.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OperatorRow {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    state: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<u32>,
}

impl SessionRow {
    pub(super) fn of(saved: &Saved, now: SystemTime) -> Self {
        let ago = |ago: Duration| millis(now.checked_sub(ago).unwrap_or(UNIX_EPOCH));
        Self {
            owner: saved.owner.as_ref().map(ToString::to_string),
            home: saved.home.as_ref().map(ToString::to_string),
            has_history: saved.has_history,
            deleted: saved.deleted.map(ago),
            moved_from: saved.moved_from.iter().map(ToString::to_string).collect(),
            used: ago(saved.idle),
            person: saved
                .person
                .as_ref()
                .map(|person| (person.realm.to_string(), person.user.to_string())),
        }
    }

    /// What the directory is told of it; none if there is nothing worth telling any more.
    ///
    /// `written_for` is the mode in which it was written. Under another one the disks are others:
    /// what is known of homes and histories says nothing of them.
    pub(super) fn restored(
        self,
        now: SystemTime,
        expire: Option<Duration>,
        written_for: Mode,
        mode: Mode,
    ) -> Option<Saved> {
        let since = |then: u64| Duration::from_millis(millis(now).saturating_sub(then));
        let same_disks = written_for == mode;
        let owner = self.owner.map(BackendName::from);
        let home = self.home.map(BackendName::from).filter(|_| same_disks);
        let is_past = self.deleted.is_some_and(|then| since(then) >= TOMBSTONE);
        let person = self.person.filter(|_| !is_past);
        let saved = Saved {
            // On separate disks a session that was open on a server lives there, or nowhere. Its
            // turn may be younger than what was written last.
            home: home.or_else(|| owner.clone().filter(|_| mode == Mode::Sticky)),
            owner,
            has_history: self.has_history && same_disks,
            deleted: self.deleted.map(since).filter(|ago| *ago < TOMBSTONE),
            idle: since(self.used),
            moved_from: match mode {
                Mode::Sticky => Vec::new(),
                Mode::SharedStorage => {
                    let moved = self.moved_from.into_iter();
                    moved.map(BackendName::from).collect()
                }
            },
            person: person.map(|(realm, user)| Arc::new(Person::new(&realm, &user))),
        };
        // Forgotten, one that is somebody's would be nobody's when its disk is read.
        let is_found_again = saved.has_history && saved.person.is_some();
        let is_old = expire.is_some_and(|expire| saved.idle >= expire) && !is_found_again;
        let is_closed = saved.owner.is_none() && saved.moved_from.is_empty();
        let is_empty = saved.home.is_none()
            && !saved.has_history
            && saved.deleted.is_none()
            && saved.person.is_none();
        (!(is_closed && (is_old || is_empty))).then_some(saved)
    }
}

impl OperatorRow {
    pub(super) fn of(operator: &Operator) -> Option<Self> {
        let row = Self {
            state: operator.state.map(|state| state_name(state).to_owned()),
            weight: operator.weight,
        };
        (row.state.is_some() || row.weight.is_some()).then_some(row)
    }

    /// `Err` if the state has a name that is not known here.
    pub(super) fn restored(self, backend: &str) -> Result<Operator, String> {
        let state = match self.state.as_deref() {
            None => None,
            Some("ready") => Some(AdminState::Ready),
            Some("drain") => Some(AdminState::Drain),
            Some("maint") => Some(AdminState::Maint),
            Some(other) => return Err(format!("backend {backend} has the state {other:?}")),
        };
        Ok(Operator {
            backend: BackendName::from(backend),
            state,
            weight: self.weight,
        })
    }
}

fn state_name(state: AdminState) -> &'static str {
    match state {
        AdminState::Ready => "ready",
        AdminState::Drain => "drain",
        AdminState::Maint => "maint",
    }
}

pub(super) fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Sticky => "sticky",
        Mode::SharedStorage => "shared-storage",
    }
}

pub(super) fn mode_of(name: &str) -> Option<Mode> {
    [Mode::Sticky, Mode::SharedStorage]
        .into_iter()
        .find(|mode| mode_name(*mode) == name)
}

/// In Unix milliseconds.
fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
