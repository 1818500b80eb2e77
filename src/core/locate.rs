//! Where a session is, or is to be: the decision, once the facts are in.
//!
//! Two steps, both pure. [`first`] says whether the directory already knows, or whom to ask;
//! [`decide`] turns the answers into a destination or a refusal. Asking is the shell's work.

use std::fmt;

use super::{
    balance::Load,
    directory::Known,
    event::PlacementReason,
    id::{BackendName, SessionId},
    snapshot::{AdminState, Backend, Mode, Snapshot},
};

/// What the located session is wanted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// A call that neither opens nor creates it.
    Use,
    /// `session.create` with an id of the client's choice.
    Create,
    /// `session.resume`, `sessions.open` of an existing session.
    Resume,
    /// `session.delete`: it is closed where it is open first.
    Delete,
    /// Taxiway itself opens it again for a client that has lost it.
    Reopen,
}

impl Purpose {
    /// Whether it makes the asking connection an attached one.
    pub fn attaches(self) -> bool {
        matches!(self, Self::Create | Self::Resume | Self::Reopen)
    }
}

/// What to do first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// The directory knows.
    Go(Destination),
    /// Ask these "open here?" and "on your disk?", then [`decide`].
    Ask(Vec<BackendName>),
    /// It cannot be had now.
    Refuse(Refusal),
}

/// Where a call goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Destination {
    /// The backend.
    pub backend: BackendName,
    /// How it was found.
    pub reason: PlacementReason,
    /// The session has history on disk (for create: reopen it rather than start it anew).
    pub has_history: bool,
}

/// Why a session cannot be had now. Always retryable: nothing was executed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The backend that has it open does not answer.
    OwnerAway(BackendName),
    /// The backend whose disk has it does not answer, and no other has that disk.
    HomeAway(BackendName),
    /// These did not say whether they have it.
    Silent(Vec<BackendName>),
    /// The disk of this backend was never read, so the session may be there.
    DiskUnread(BackendName),
    /// Connects to it failed, again and again.
    Unreachable(BackendName),
    /// This backend has not yet accepted Taxiway as the provider that a client asked for.
    Unprepared(BackendName),
    /// Another process keeps the owner table, and did not answer.
    Unconfirmed,
    /// No backend takes placements.
    NoBackend,
}

impl Refusal {
    /// The sentence for the client.
    pub fn explain(&self, session: Option<impl fmt::Display>) -> String {
        let what = session.map_or_else(|| "the call".to_owned(), |id| format!("session {id}"));
        match self {
            Self::OwnerAway(b) => {
                format!("{what} is open on backend {b}, which does not answer; retry later")
            }
            Self::HomeAway(b) => {
                format!("{what} lives on the disk of backend {b}, which is away; retry later")
            }
            Self::Silent(list) => format!(
                "cannot tell where {what} is: no answer from {}; retry later",
                list.iter()
                    .map(BackendName::as_str)
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
            Self::DiskUnread(b) => format!(
                "cannot tell whether {what} exists: the disk of backend {b} has not been read \
                 yet; retry later"
            ),
            Self::Unreachable(b) => {
                format!("backend {b} could not be reached for {what}; retry later")
            }
            Self::Unprepared(b) => format!(
                "backend {b} has not accepted the provider registration yet, so {what} is not \
                 opened there; retry later"
            ),
            Self::Unconfirmed => format!(
                "cannot tell who has {what} open: the Taxiway process that keeps the owner table \
                 does not answer; retry later"
            ),
            Self::NoBackend => {
                format!("no usable backend for {what}; retry later, see `taxiway status`")
            }
        }
    }
}

/// What the asked backends said.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Findings {
    /// The one that has it open.
    pub open_at: Option<BackendName>,
    /// Those whose disk lists it.
    pub on_disk: Vec<BackendName>,
    /// Those that did not answer in time.
    pub silent: Vec<BackendName>,
}

/// Where a session is opened again for a client that has lost it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Return {
    /// At its owner.
    At(BackendName),
    /// Elsewhere: its owner does not have it open any more, or must close it before it is used.
    Move {
        #[allow(missing_docs)]
        from: BackendName,
    },
    /// Its owner has to come back first, or be given up.
    AwaitBackend(BackendName),
    /// Other clients still have to notice that it is lost, or it is being closed where it was.
    AwaitHolders,
    /// It was closed, and is known to be open nowhere: wherever a new one would go.
    Anywhere,
    /// Nobody has it: it is looked for like any other.
    Search,
}

/// Decides that. Sessions move only on a shared disk, and only away from a backend that was
/// released, once nobody hears them there (DESIGN §5). On separate disks a home that is being
/// drained is about to go, and is waited for.
pub fn reopen(known: &Known, snapshot: &Snapshot) -> Return {
    if known.moving {
        return Return::AwaitHolders;
    }
    let Some(owner) = known.owner.as_ref().or(match snapshot.mode {
        // Closed in place: it comes back when its home does.
        Mode::Sticky if known.adrift => known.home.as_ref(),
        Mode::Sticky | Mode::SharedStorage => None,
    }) else {
        return if known.adrift {
            Return::Anywhere
        } else {
            Return::Search
        };
    };
    let backend = snapshot.get(owner);
    // A backend that was removed serves what it has, but what was closed there stays closed.
    let may = |b: &Backend| {
        b.is_usable() && !is_leaving(b, snapshot.mode) && (known.owner.is_some() || !b.removed)
    };
    if backend.is_some_and(may) {
        return Return::At(owner.clone());
    }
    if snapshot.mode == Mode::SharedStorage && backend.is_none_or(|b| b.released) {
        return if known.adrift {
            Return::Move {
                from: owner.clone(),
            }
        } else {
            Return::AwaitHolders
        };
    }
    Return::AwaitBackend(owner.clone())
}

/// Whether what is closed at this backend stays closed until it is ready again.
fn is_leaving(backend: &Backend, mode: Mode) -> bool {
    mode == Mode::Sticky && backend.admin == AdminState::Drain
}

/// What can be said from the directory alone.
pub fn first(purpose: Purpose, known: &Known, snapshot: &Snapshot) -> Step {
    if let Some(owner) = &known.owner {
        if !snapshot.get(owner).is_some_and(|b| b.is_usable()) {
            return Step::Refuse(Refusal::OwnerAway(owner.clone()));
        }
        return Step::Go(Destination {
            backend: owner.clone(),
            reason: PlacementReason::Owner,
            has_history: known.has_history,
        });
    }
    if let Some(at) = &known.maybe_open_at
        && !snapshot.get(at).is_some_and(|b| b.is_usable())
    {
        return Step::Refuse(Refusal::OwnerAway(at.clone()));
    }
    if snapshot.mode == Mode::Sticky
        && let Some(home) = &known.home
    {
        let may =
            |b: &Backend| b.is_usable() && !(purpose.attaches() && is_leaving(b, snapshot.mode));
        if !snapshot.get(home).is_some_and(may) {
            return Step::Refuse(Refusal::HomeAway(home.clone()));
        }
        return Step::Go(Destination {
            backend: home.clone(),
            reason: PlacementReason::Home,
            has_history: known.has_history,
        });
    }
    Step::Ask(
        snapshot
            .backends
            .iter()
            .filter(|b| b.is_usable())
            .map(|b| b.name.clone())
            .collect(),
    )
}

/// The destination, once the asked backends have answered or fallen silent. `place` chooses for a
/// session that is open nowhere; it is called at most once.
///
/// # Errors
/// The reason why the session cannot be had now.
pub fn decide(
    purpose: Purpose,
    session: &SessionId,
    known: &Known,
    snapshot: &Snapshot,
    findings: &Findings,
    place: impl FnOnce() -> Option<(BackendName, PlacementReason)>,
) -> Result<Destination, Refusal> {
    if let Some(owner) = &findings.open_at {
        return Ok(Destination {
            backend: owner.clone(),
            reason: PlacementReason::Owner,
            has_history: known.has_history || !findings.on_disk.is_empty(),
        });
    }
    let fresh = purpose == Purpose::Create
        && !known.has_history
        && !known.deleted
        && is_random_uuid(session.as_str());
    // An id that an SDK has just drawn at random is nowhere yet, so silence about it proves
    // nothing and must not stop new sessions; any other may be where we cannot see.
    // That it has been judged to be down meanwhile does not say what it has open.
    let counts = |b: &Backend| b.admin != AdminState::Maint;
    let silent: Vec<_> = findings
        .silent
        .iter()
        .filter(|name| snapshot.get(name).is_some_and(counts))
        .cloned()
        .collect();
    if !silent.is_empty() && !fresh {
        return Err(Refusal::Silent(silent));
    }
    if snapshot.mode == Mode::Sticky {
        if let Some(home) = findings.on_disk.first() {
            return Ok(Destination {
                backend: home.clone(),
                reason: PlacementReason::Home,
                has_history: true,
            });
        }
        let unread = snapshot
            .backends
            .iter()
            .find(|b| !b.disk_read && !b.removed);
        if let Some(unread) = unread.filter(|_| !fresh) {
            return Err(Refusal::DiskUnread(unread.name.clone()));
        }
    }
    let (backend, reason) = place().ok_or(Refusal::NoBackend)?;
    let has_history = known.has_history || !findings.on_disk.is_empty();
    Ok(Destination {
        backend,
        reason,
        has_history,
    })
}

/// The key that sticky placement hashes: the user, if the session's id tells one, else the id.
pub fn routing_key<'a>(user: Option<&'a str>, session: &'a str) -> &'a str {
    user.unwrap_or(session)
}

/// One entry of the loads that `balance` compares, in the snapshot's order.
pub fn loads(snapshot: &Snapshot, of: impl Fn(&BackendName) -> Load) -> Vec<Load> {
    snapshot.backends.iter().map(|b| of(&b.name)).collect()
}

/// A version 4 UUID in its canonical form (RFC 9562 §5.4), as all six SDKs draw them.
fn is_random_uuid(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == 36
        && bytes.iter().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => *b == b'-',
            14 => *b == b'4',
            19 => matches!(b, b'8' | b'9' | b'a' | b'b' | b'A' | b'B'),
            _ => b.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{snapshot::Health, testing};

    fn backend(name: &str, health: Health, disk_read: bool) -> Backend {
        Backend {
            health,
            disk_read,
            ..testing::backend(name, 1)
        }
    }

    fn pool(mode: Mode, backends: Vec<Backend>) -> Snapshot {
        Snapshot {
            mode,
            ..testing::snapshot(backends)
        }
    }

    const UUID: &str = "59e32a26-9b05-4dee-9192-8af7c5135372";

    #[test]
    fn an_open_session_is_used_where_it_is_and_refused_when_that_is_away() {
        let up = pool(Mode::SharedStorage, vec![backend("a", Health::Up, true)]);
        let known = Known {
            owner: Some("a".into()),
            holders: 1,
            ..Known::default()
        };
        assert!(matches!(first(Purpose::Use, &known, &up), Step::Go(d) if d.backend == "a".into()));
        let down = pool(Mode::SharedStorage, vec![backend("a", Health::Down, true)]);
        let perhaps = Known {
            maybe_open_at: Some("a".into()),
            ..Known::default()
        };
        assert!(matches!(
            first(Purpose::Use, &perhaps, &down),
            Step::Refuse(Refusal::OwnerAway(_))
        ));
        assert_eq!(
            first(Purpose::Use, &perhaps, &up),
            Step::Ask(vec!["a".into()])
        );
        let Step::Refuse(refusal) = first(Purpose::Use, &known, &down) else {
            panic!()
        };
        assert!(
            refusal
                .explain(Some("s"))
                .contains("session s is open on backend a")
        );
    }

    #[test]
    fn separate_disks_never_move_a_session() {
        let down = pool(
            Mode::Sticky,
            vec![
                backend("a", Health::Down, true),
                backend("b", Health::Up, true),
            ],
        );
        let known = Known {
            home: Some("a".into()),
            has_history: true,
            ..Known::default()
        };
        assert_eq!(
            first(Purpose::Use, &known, &down),
            Step::Refuse(Refusal::HomeAway("a".into()))
        );
    }

    #[test]
    fn while_a_disk_was_never_read_only_fresh_ids_are_placed() {
        let pool = pool(
            Mode::Sticky,
            vec![
                backend("a", Health::Down, false),
                backend("b", Health::Up, true),
            ],
        );
        let place = || Some((BackendName::from("b"), PlacementReason::Hash));
        let go = |purpose, id: &str| {
            decide(
                purpose,
                &id.into(),
                &Known::default(),
                &pool,
                &Findings::default(),
                place,
            )
        };
        assert_eq!(
            go(Purpose::Resume, UUID),
            Err(Refusal::DiskUnread("a".into()))
        );
        assert_eq!(
            go(Purpose::Create, "team"),
            Err(Refusal::DiskUnread("a".into()))
        );
        assert_eq!(go(Purpose::Create, UUID).map(|d| d.backend), Ok("b".into()));
    }

    #[test]
    fn a_silent_backend_stops_what_it_could_decide() {
        let pool = pool(
            Mode::SharedStorage,
            vec![
                backend("a", Health::Up, true),
                backend("b", Health::Up, true),
            ],
        );
        let findings = Findings {
            silent: vec!["a".into()],
            ..Findings::default()
        };
        let place = || Some((BackendName::from("b"), PlacementReason::LeastLoaded));
        let go = |purpose, id: &str, findings: &Findings| {
            decide(
                purpose,
                &id.into(),
                &Known::default(),
                &pool,
                findings,
                place,
            )
        };
        assert_eq!(
            go(Purpose::Resume, "s", &findings),
            Err(Refusal::Silent(vec!["a".into()]))
        );
        assert!(go(Purpose::Create, UUID, &findings).is_ok());
        let used = Known {
            has_history: true,
            ..Known::default()
        };
        let again = decide(
            Purpose::Create,
            &UUID.into(),
            &used,
            &pool,
            &findings,
            place,
        );
        assert!(again.is_err(), "an id with a history is not fresh");
        let found = Findings {
            open_at: Some("b".into()),
            ..findings
        };
        assert_eq!(
            go(Purpose::Resume, "s", &found).map(|d| d.reason),
            Ok(PlacementReason::Owner)
        );
    }

    #[test]
    fn who_was_silent_and_is_down_by_now_may_still_have_it_open() {
        let pool = pool(
            Mode::SharedStorage,
            vec![
                backend("a", Health::Down, true),
                backend("b", Health::Up, true),
            ],
        );
        let findings = Findings {
            silent: vec!["a".into()],
            ..Findings::default()
        };
        let place = || Some((BackendName::from("b"), PlacementReason::LeastLoaded));
        let known = Known::default();
        assert_eq!(
            decide(
                Purpose::Resume,
                &"s".into(),
                &known,
                &pool,
                &findings,
                place
            ),
            Err(Refusal::Silent(vec!["a".into()]))
        );
    }

    #[test]
    fn only_canonical_random_uuids_count_as_fresh() {
        for (text, fresh) in [
            (UUID, true),
            ("59e32a26-9b05-1dee-9192-8af7c5135372", false),
            ("59e32a26-9b05-4dee-c192-8af7c5135372", false),
            ("59e32a269b054dee91928af7c5135372", false),
            ("team-review", false),
            ("", false),
        ] {
            assert_eq!(is_random_uuid(text), fresh, "{text}");
        }
    }
}
