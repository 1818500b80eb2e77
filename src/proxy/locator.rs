//! Carries out `core::locate`: looks into the directory, asks backends, claims.

use std::{collections::HashMap, sync::Arc, time::Instant};

use futures_util::future::join_all;

use super::{
    Rules, Shared,
    port::{Answer, Boxed},
};
use crate::core::{
    directory::Claim,
    event::PlacementReason,
    id::{BackendName, ConnectionId, SessionId},
    locate::{self, Destination, Findings, Purpose, Refusal, Step},
    mux::{Locate, Located},
    reply::{self, ProxyError},
    snapshot::{AdminState, Backend, Health, Snapshot},
};

/// The answer to a [`Locate`].
pub(super) type Outcome = Result<Located, ProxyError>;

/// Either the answer at once, or a future that asks for it.
pub(super) enum Locating {
    Done(Outcome),
    Asking(Boxed<Outcome>),
}

/// Starts to locate.
pub(super) fn locate(
    shared: &Shared,
    rules: &Arc<Rules>,
    connection: ConnectionId,
    question: &Locate,
) -> Locating {
    let snapshot = candidates(shared, question.purpose, &question.avoid);
    let Some(session) = question.session.clone() else {
        return Locating::Done(place_anew(shared, rules, connection, question, &snapshot));
    };
    let search = Search {
        shared: shared.clone(),
        rules: rules.clone(),
        connection,
        session,
        purpose: question.purpose,
        avoid: question.avoid.clone(),
    };
    match search.first(&snapshot) {
        Ok(outcome) => Locating::Done(outcome),
        Err(step) => Locating::Asking(Box::pin(search.run(step))),
    }
}

/// What a search that takes time does next.
enum Next {
    /// Asks these backends.
    Ask(Vec<BackendName>),
    /// Waits for a backend that has just joined to be known; `why` is said if that takes too long.
    Wait { joining: BackendName, why: Refusal },
}

/// The search for one session.
struct Search {
    shared: Shared,
    rules: Arc<Rules>,
    connection: ConnectionId,
    session: SessionId,
    purpose: Purpose,
    avoid: Vec<BackendName>,
}

impl Search {
    /// What can be said at once, or what to do about it.
    fn first(&self, snapshot: &Snapshot) -> Result<Outcome, Next> {
        let known = self.shared.store.known(self.session.as_str());
        match locate::first(&known, snapshot) {
            Step::Refuse(why) => self.refuse_or_wait(snapshot, why),
            Step::Go(destination) if self.purpose != Purpose::Delete => Ok(self.claim(destination)),
            Step::Go(destination) => Err(Next::Ask(vec![destination.backend])),
            Step::Ask(backends) => Err(Next::Ask(backends)),
        }
    }

    async fn run(self, first: Next) -> Outcome {
        let deadline = tokio::time::Instant::now() + self.rules.aggregate_timeout;
        let mut next = first;
        loop {
            let decided = match next {
                Next::Ask(backends) => self.ask_and_decide(&backends).await,
                Next::Wait { joining, why } => {
                    let known = self.is_known(&joining);
                    if tokio::time::timeout_at(deadline, known).await.is_err() {
                        return Err(refused(Some(&self.session), why));
                    }
                    self.first(&candidates(&self.shared, self.purpose, &self.avoid))
                }
            };
            next = match decided {
                Ok(outcome) => return outcome,
                Err(next) => next,
            };
        }
    }

    async fn ask_and_decide(&self, backends: &[BackendName]) -> Result<Outcome, Next> {
        let (shared, session) = (&self.shared, &self.session);
        let mut findings = ask(shared, &self.rules, session, backends).await;
        if self.purpose == Purpose::Delete && findings.open_at.is_none() {
            // While we asked, another client may have opened it.
            findings.open_at = shared.store.known(session.as_str()).owner;
        }
        if self.purpose == Purpose::Delete
            && let Some(owner) = &findings.open_at
        {
            // Closed where it is open first, so that nobody writes to what is being removed.
            let params = reply::session_params(session.as_str());
            let timeout = self.rules.aggregate_timeout;
            shared
                .pool
                .ask(owner, "sessions.close", params, timeout)
                .await;
        }
        // The answers took time: who is away by now is not chosen.
        let snapshot = candidates(shared, self.purpose, &self.avoid);
        let known = shared.store.known(session.as_str());
        let place = || {
            let key = self.rules.key_of(session.as_str());
            shared.store.place(self.rules.policy, key, &snapshot)
        };
        // While we asked, another client may have opened it here.
        let destination = match &known.owner {
            Some(owner) if findings.open_at.is_none() && self.purpose != Purpose::Delete => {
                Ok(Destination {
                    backend: owner.clone(),
                    reason: PlacementReason::Owner,
                    has_history: known.has_history || !findings.on_disk.is_empty(),
                })
            }
            _ => locate::decide(self.purpose, session, &known, &snapshot, &findings, place),
        };
        match destination {
            Ok(destination) => Ok(self.claim(destination)),
            Err(why) => self.refuse_or_wait(&snapshot, why),
        }
    }

    /// A backend that joins is known within milliseconds, so what only it can tell is worth a
    /// wait: a reload must not fail calls. One that is known to be away is not waited for.
    fn refuse_or_wait(&self, snapshot: &Snapshot, why: Refusal) -> Result<Outcome, Next> {
        let needed = match &why {
            Refusal::DiskUnread(name) | Refusal::OwnerAway(name) | Refusal::HomeAway(name) => {
                Some(name.clone())
            }
            Refusal::Silent(_)
            | Refusal::Unreachable(_)
            | Refusal::Unprepared(_)
            | Refusal::NoBackend => None,
        };
        match needed.filter(|name| snapshot.get(name).is_some_and(is_joining)) {
            Some(joining) => Err(Next::Wait { joining, why }),
            None => Ok(Err(refused(Some(&self.session), why))),
        }
    }

    /// Returns once more is known of a backend that joins.
    async fn is_known(&self, joining: &BackendName) {
        loop {
            let snapshot = self.shared.pool.snapshot();
            if !snapshot.get(joining).is_some_and(is_joining) {
                return;
            }
            self.shared.pool.changed(snapshot.generation).await;
        }
    }

    /// Counts this connection at the destination, or where somebody else was faster.
    fn claim(&self, destination: Destination) -> Outcome {
        let (shared, session) = (&self.shared, &self.session);
        if self.purpose.attaches()
            && destination.reason != PlacementReason::Owner
            && shared.providers.awaits(&destination.backend)
        {
            // Its home, say. Opened now, it would bypass the provider.
            let why = Refusal::Unprepared(destination.backend);
            return Err(refused(Some(session), why));
        }
        let Destination {
            mut backend,
            mut reason,
            has_history,
        } = destination;
        let now = Instant::now();
        let mut directory = shared.store.lock();
        if has_history {
            directory.learn_history(now, session, &backend);
        }
        if self.purpose.attaches()
            && let Claim::OwnedBy(owner) = directory.claim(now, session, &backend, self.connection)
        {
            backend = owner;
            reason = PlacementReason::Owner;
        }
        Ok(Located {
            backend,
            reason,
            has_history,
        })
    }
}

/// Whether it was not probed yet, or its disk not read yet, and nothing is known against it.
fn is_joining(backend: &Backend) -> bool {
    let unread = backend.is_usable() && !backend.disk_read;
    let unprobed = backend.health == Health::Unknown && backend.admin != AdminState::Maint;
    !backend.removed && (unprobed || unread)
}

/// The pool as this purpose sees it: without those to avoid; and those that have not taken the
/// provider registrations in force are given no new session, but asked like the others.
fn candidates(shared: &Shared, purpose: Purpose, avoid: &[BackendName]) -> Arc<Snapshot> {
    let snapshot = without(&shared.pool.snapshot(), avoid);
    let unprepared = match purpose {
        Purpose::Create | Purpose::Resume => shared.providers.unprepared(&snapshot),
        Purpose::Use | Purpose::Delete => Vec::new(),
    };
    if unprepared.is_empty() {
        return snapshot;
    }
    let mut snapshot = Snapshot::clone(&snapshot);
    for backend in &mut snapshot.backends {
        if unprepared.contains(&backend.name) {
            backend.admin = AdminState::Drain;
        }
    }
    Arc::new(snapshot)
}

/// The pool without the backends that were just found to be unreachable.
fn without(snapshot: &Arc<Snapshot>, avoid: &[BackendName]) -> Arc<Snapshot> {
    if avoid.is_empty() {
        return snapshot.clone();
    }
    let mut snapshot = Snapshot::clone(snapshot);
    snapshot.backends.retain(|b| !avoid.contains(&b.name));
    Arc::new(snapshot)
}

/// A backend for a call that names no session.
fn place_anew(
    shared: &Shared,
    rules: &Rules,
    connection: ConnectionId,
    question: &Locate,
    snapshot: &Snapshot,
) -> Outcome {
    // No session to hash: the connection and the ticket spread them.
    let key = format!("{connection}/{}", question.ticket);
    let placed = shared
        .store
        .place(rules.policy, &key, snapshot)
        .or_else(|| {
            // Calls that any backend may serve can do with one that only takes no new sessions.
            (question.purpose == Purpose::Use)
                .then(|| snapshot.backends.iter().find(|b| b.is_usable()))
                .flatten()
                .map(|b| (b.name.clone(), PlacementReason::LeastLoaded))
        });
    let (backend, reason) = placed.ok_or_else(|| refused(None, Refusal::NoBackend))?;
    Ok(Located {
        backend,
        reason,
        has_history: false,
    })
}

/// Asks each "open here?" and "on your disk?" (`session.mode.get` is answered only by the process
/// that has the session open; `session.getMetadata` names only sessions that have had a turn).
async fn ask(
    shared: &Shared,
    rules: &Rules,
    session: &SessionId,
    backends: &[BackendName],
) -> Findings {
    let params = reply::session_params(session.as_str());
    let ask = |backend: &BackendName, method: &str| {
        shared
            .pool
            .ask(backend, method, params.clone(), rules.aggregate_timeout)
    };
    let questions = backends.iter().map(|backend| {
        let (open, disk) = (
            ask(backend, "session.mode.get"),
            ask(backend, "session.getMetadata"),
        );
        async move { (backend.clone(), open.await, disk.await) }
    });
    let mut findings = Findings::default();
    for (backend, open, disk) in join_all(questions).await {
        match (&open, &disk) {
            (Answer::Silent, _) | (_, Answer::Silent) => findings.silent.push(backend.clone()),
            _ => {}
        }
        match open {
            Answer::Result(_) => findings.open_at = Some(backend.clone()),
            Answer::Error(_) | Answer::Gone => {
                shared.store.lock().not_open(session.as_str(), &backend);
            }
            Answer::Silent => {}
        }
        if matches!(&disk, Answer::Result(text) if lists_session(text)) {
            findings.on_disk.push(backend);
        }
    }
    findings
}

/// Whether a `session.getMetadata` result names the session: it is `{}` for an unknown one.
fn lists_session(result: &str) -> bool {
    let result: HashMap<String, serde::de::IgnoredAny> =
        serde_json::from_str(result).unwrap_or_default();
    result.contains_key("session")
}

fn refused(session: Option<&SessionId>, why: Refusal) -> ProxyError {
    ProxyError::NotLocated {
        session: session.cloned(),
        why,
    }
}
