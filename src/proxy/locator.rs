//! Carries out `core::locate`: looks into the directory, asks backends, claims.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;

use super::{
    Rules, Shared,
    hub::News,
    pacer::Permit,
    port::{Answer, Boxed},
    sight::{self, Sight},
};
use crate::core::{
    access::Relation,
    directory::{Claim, Known},
    event::PlacementReason,
    id::{BackendName, ConnectionId, SessionId},
    locate::{self, Destination, Findings, Purpose, Refusal, Return, Step},
    mux::{Locate, Located},
    reply::{self, ProxyError},
    snapshot::{AdminState, Backend, Health, Snapshot},
};

/// The answer to a [`Locate`].
pub(super) type Outcome = Result<Located, ProxyError>;

/// An answer that took time.
pub(super) struct Found {
    pub(super) outcome: Outcome,
    /// To be held until the session is open again.
    pub(super) permit: Option<Permit>,
}

impl From<Outcome> for Found {
    fn from(outcome: Outcome) -> Self {
        Self {
            outcome,
            permit: None,
        }
    }
}

/// Either the answer at once, or a future that asks for it.
pub(super) enum Locating {
    Done(Outcome),
    Asking(Boxed<Found>),
}

/// A backend that has just come into the pool again is asked once more after this time.
const SOON: Duration = Duration::from_millis(10);

/// A backend that did not answer is asked again after this long, unless the pool changes before.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// How long a client waits for those that had the session before it to have it again.
const ORDER_WAIT: Duration = Duration::from_secs(2);

/// Starts to locate.
pub(super) fn locate(
    shared: &Shared,
    rules: &Arc<Rules>,
    connection: ConnectionId,
    question: &Locate,
) -> Locating {
    let sight = Sight::new(shared, rules, question.principal.as_ref());
    for session in &question.also {
        if let Err(denial) = sight.of(shared, session.as_str()) {
            return Locating::Done(Err(sight::denied(session, denial)));
        }
    }
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
        returns: question.purpose == Purpose::Reopen,
        avoid: question.avoid.clone(),
        sight,
    };
    if question.purpose == Purpose::Reopen {
        return Locating::Asking(Box::pin(search.reopen()));
    }
    match search.first(&snapshot) {
        Ok(step) => Locating::Asking(Box::pin(search.run(step))),
        Err(outcome) => Locating::Done(outcome),
    }
}

/// What a search that takes time does next.
enum Next {
    /// Goes there.
    Claim(Destination),
    /// Asks these backends.
    Ask(Vec<BackendName>),
    /// Waits for this backend; `why` is said if that takes too long.
    Wait { away: BackendName, why: Refusal },
}

/// The search for one session.
struct Search {
    shared: Shared,
    rules: Arc<Rules>,
    connection: ConnectionId,
    session: SessionId,
    purpose: Purpose,
    /// It is opened again for a client that had it.
    returns: bool,
    avoid: Vec<BackendName>,
    sight: Sight,
}

impl Search {
    /// What can be said at once, else what to do about it.
    fn first(&self, snapshot: &Snapshot) -> Result<Next, Outcome> {
        let known = self.shared.store.known(self.session.as_str());
        self.sight.at_first(&self.session, &known).map_err(Err)?;
        match locate::first(self.purpose, &known, snapshot) {
            Step::Refuse(why) => self.refuse_or_wait(snapshot, why),
            Step::Go(destination) if self.purpose == Purpose::Delete => {
                Ok(Next::Ask(vec![destination.backend]))
            }
            Step::Go(destination) if self.purpose.attaches() => Ok(Next::Claim(destination)),
            Step::Go(destination) => Err(Ok(self.located(destination))),
            Step::Ask(backends) => Ok(Next::Ask(backends)),
        }
    }

    async fn run(mut self, first: Next) -> Found {
        let start = tokio::time::Instant::now();
        let mut next = first;
        loop {
            let decided = match next {
                Next::Claim(destination) => self.claim(destination, start).await,
                Next::Ask(backends) => self.ask_and_decide(&backends, start).await,
                Next::Wait { away, why } => {
                    let deadline = start + self.patience(&away);
                    let more = self.news_of(&away);
                    if tokio::time::timeout_at(deadline, more).await.is_err() {
                        return Found::from(Err(refused(Some(&self.session), why)));
                    }
                    // It may have been found unreachable before, and be back by now.
                    let snapshot = self.shared.pool.snapshot();
                    if snapshot.get(&away).is_some_and(Backend::is_usable) {
                        self.avoid.retain(|avoided| *avoided != away);
                    }
                    self.first(&candidates(&self.shared, self.purpose, &self.avoid))
                }
            };
            next = match decided {
                Ok(next) => next,
                Err(outcome) => return Found::from(outcome),
            };
        }
    }

    /// Opens the session again for a client that has lost it: waits as long as it takes.
    async fn reopen(self) -> Found {
        let mut late = None;
        loop {
            // Before looking, so that no change is missed.
            let mut changes = self.shared.store.changes();
            let snapshot = self.shared.pool.snapshot();
            let known = self.shared.store.known(self.session.as_str());
            if known.deleted {
                let error = ProxyError::session_not_found("session.resume", self.session.as_str());
                return Found::from(Err(error));
            }
            if let Err(error) = self.sight.at_first(&self.session, &known) {
                return Found::from(Err(error));
            }
            let decision = locate::reopen(&known, &snapshot);
            let pool_changes = self.shared.pool.changed(snapshot.generation);
            let is_next = || {
                let directory = self.shared.store.lock();
                directory.is_next(self.session.as_str(), self.connection)
            };
            if matches!(decision, Return::At(_) | Return::Move { .. }) && !is_next() {
                let now = tokio::time::Instant::now();
                let late = *late.get_or_insert(now + ORDER_WAIT);
                if now < late {
                    let change = changes.changed();
                    let _late = tokio::time::timeout_at(late, change).await;
                    continue;
                }
            }
            match decision {
                Return::At(owner) => {
                    let timeout = self.rules.aggregate_timeout;
                    let ping = self.shared.pool.ask(&owner, "ping", "{}".into(), timeout);
                    if !matches!(ping.await, Answer::Result(_) | Answer::Error(_)) {
                        let _quiet = tokio::time::timeout(ASK_AGAIN, pool_changes).await;
                        continue;
                    }
                    let Some(permit) = self.admit(&owner).await else {
                        continue;
                    };
                    if let Some(found) = self.claim_again(&owner, PlacementReason::Owner).await {
                        let (outcome, permit) = (Ok(found), Some(permit));
                        return Found { outcome, permit };
                    }
                    drop(permit);
                    let _late = tokio::time::timeout(ASK_AGAIN, changes.changed()).await;
                }
                Return::Anywhere => {
                    let all = candidates(&self.shared, self.purpose, &[]);
                    let Some((to, reason)) = self.place(&all) else {
                        pool_changes.await;
                        continue;
                    };
                    let Some(permit) = self.admit(&to).await else {
                        continue;
                    };
                    if let Some(found) = self.claim_again(&to, reason).await {
                        let (outcome, permit) = (Ok(found), Some(permit));
                        return Found { outcome, permit };
                    }
                    drop(permit);
                    let _late = tokio::time::timeout(ASK_AGAIN, changes.changed()).await;
                }
                Return::Move { from } => {
                    let others =
                        candidates(&self.shared, self.purpose, std::slice::from_ref(&from));
                    let Some((to, reason)) = self.place(&others) else {
                        pool_changes.await;
                        continue;
                    };
                    // First the place, then the owner: nobody is given to a backend that falls
                    // silent while he waits.
                    let Some(permit) = self.admit(&to).await else {
                        continue;
                    };
                    let (session, store) = (&self.session, &self.shared.store);
                    let moved = store.reown(session, &from, &to, self.connection).await;
                    if moved == Ok(Claim::Granted) {
                        let found = Located {
                            backend: to,
                            reason,
                            has_history: false,
                            parked: None,
                            relation: self.relation(),
                        };
                        return Found {
                            outcome: Ok(found),
                            permit: Some(permit),
                        };
                    }
                    drop(permit);
                    self.shared.report_unmoved();
                    // It may be heard there by a client of another process.
                    let change = changes.changed();
                    let _late = tokio::time::timeout(ASK_AGAIN, change).await;
                }
                Return::AwaitBackend(_) => pool_changes.await,
                Return::AwaitHolders => {
                    let change = changes.changed();
                    let _late = tokio::time::timeout(ASK_AGAIN, change).await;
                }
                Return::Search => {
                    let search = Self {
                        purpose: Purpose::Resume,
                        ..self
                    };
                    let usable = snapshot.backends.iter().filter(|b| b.is_usable());
                    let all = usable.map(|b| b.name.clone()).collect();
                    return search.run(Next::Ask(all)).await;
                }
            }
        }
    }

    /// Waits for a place at `backend`; none if it cannot be used any more by then.
    async fn admit(&self, backend: &BackendName) -> Option<Permit> {
        let mut admitted = std::pin::pin!(self.shared.pacer.admit(backend));
        loop {
            let snapshot = self.shared.pool.snapshot();
            if !snapshot.get(backend).is_some_and(Backend::is_usable) {
                return None;
            }
            tokio::select! {
                biased;
                () = self.shared.pool.changed(snapshot.generation) => {}
                permit = &mut admitted => return permit,
            }
        }
    }

    /// Counts this connection there, unless the session is somewhere else by now: then nothing is.
    async fn claim_again(&self, at: &BackendName, reason: PlacementReason) -> Option<Located> {
        let claim = self.shared.store.claim(&self.session, at, self.connection);
        let backend = match claim.await {
            Ok(Claim::Granted) => at.clone(),
            Ok(Claim::OwnedBy(owner)) => owner,
            Ok(Claim::Moving) | Err(_) => return None,
        };
        Some(Located {
            backend,
            reason,
            has_history: false,
            parked: None,
            relation: self.relation(),
        })
    }

    /// How the client stands to a session that it was found to see.
    fn relation(&self) -> Relation {
        let judged = self.sight.of(&self.shared, self.session.as_str());
        // Between the two looks it may have been given to somebody: then the least is granted.
        judged.unwrap_or(Relation::Member)
    }

    fn located(&self, destination: Destination) -> Located {
        let Destination {
            backend,
            reason,
            has_history,
        } = destination;
        Located {
            backend,
            reason,
            has_history,
            parked: None,
            relation: self.relation(),
        }
    }

    /// Whether who asks may have a session of which the asked backends said this. One that is not
    /// there is nowhere to be sent to: somebody else might make it before the call arrives.
    fn judge(&self, known: &Known, findings: &Findings) -> Result<(), ProxyError> {
        if !self.sight.is_guarded() || known.person.is_some() {
            return Ok(());
        }
        let found = findings.open_at.is_some() || !findings.on_disk.is_empty();
        let exists = found || sight::exists(known);
        if exists || self.purpose == Purpose::Create {
            let judged = self.sight.judge(self.session.as_str(), None, exists);
            return judged
                .map(drop)
                .map_err(|denial| sight::denied(&self.session, denial));
        }
        if self.returns || !findings.silent.is_empty() {
            return Ok(());
        }
        Err(sight::unknown(&self.session, known))
    }

    fn place(&self, snapshot: &Snapshot) -> Option<(BackendName, PlacementReason)> {
        let key = self
            .rules
            .key_of(self.session.as_str(), self.sight.principal());
        self.shared.store.place(self.rules.policy, key, snapshot)
    }

    async fn ask_and_decide(
        &self,
        backends: &[BackendName],
        start: tokio::time::Instant,
    ) -> Result<Next, Outcome> {
        let (shared, session) = (&self.shared, &self.session);
        let asked = tokio::time::Instant::now();
        let mut findings = ask(shared, &self.rules, session, backends).await;
        if self.purpose == Purpose::Delete && findings.open_at.is_none() {
            // While we asked, another client may have opened it.
            findings.open_at = shared.store.known(session.as_str()).owner;
        }
        self.sight
            .at_first(session, &shared.store.known(session.as_str()))
            .and_then(|_| self.judge(&shared.store.known(session.as_str()), &findings))
            .map_err(Err)?;
        if self.purpose == Purpose::Delete
            && self.relation() != Relation::Member
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
            let key = self.rules.key_of(session.as_str(), self.sight.principal());
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
            Ok(destination) if self.purpose.attaches() => Ok(Next::Claim(destination)),
            Ok(destination) => {
                if destination.has_history {
                    let backend = &destination.backend;
                    let mut directory = shared.store.lock();
                    directory.learn_history(Instant::now(), session, backend);
                }
                Err(Ok(self.located(destination)))
            }
            // Silent at once, and usable: the one that was asked has left the pool under the question,
            // and is in it again by another reload.
            Err(Refusal::Silent(list))
                if asked.elapsed() < self.rules.aggregate_timeout
                    && start.elapsed() < self.rules.aggregate_timeout
                    && list.iter().all(|name| self.may_answer(name)) =>
            {
                // Twice as long each time.
                tokio::time::sleep(start.elapsed().max(SOON)).await;
                self.first(&candidates(shared, self.purpose, &self.avoid))
            }
            Err(why) => self.refuse_or_wait(&snapshot, why),
        }
    }

    fn may_answer(&self, name: &BackendName) -> bool {
        let snapshot = self.shared.pool.snapshot();
        snapshot.get(name).is_some_and(Backend::is_usable)
    }

    /// A backend that joins is known within milliseconds, so what only it can tell is worth a
    /// wait: a reload must not fail calls. The one that has the session, or its disk, is waited
    /// for, too: it may be restarting, or its sessions about to be moved.
    fn refuse_or_wait(&self, snapshot: &Snapshot, why: Refusal) -> Result<Next, Outcome> {
        let is_joining = |name: &BackendName| snapshot.get(name).is_some_and(is_joining);
        let away = match &why {
            Refusal::DiskUnread(name) if is_joining(name) => Some(name.clone()),
            Refusal::OwnerAway(name) | Refusal::HomeAway(name) => Some(name.clone()),
            Refusal::Silent(list) => list.iter().find(|name| is_joining(name)).cloned(),
            Refusal::DiskUnread(_)
            | Refusal::Unreachable(_)
            | Refusal::Unprepared(_)
            | Refusal::Unconfirmed
            | Refusal::NoBackend => None,
        };
        match away {
            Some(away) => Ok(Next::Wait { away, why }),
            None => Err(Err(refused(Some(&self.session), why))),
        }
    }

    /// How long this backend is waited for, from the start of the search.
    fn patience(&self, away: &BackendName) -> Duration {
        let snapshot = self.shared.pool.snapshot();
        if snapshot.get(away).is_some_and(is_joining) {
            self.rules.aggregate_timeout.max(self.rules.mux.home_wait)
        } else {
            self.rules.mux.home_wait
        }
    }

    /// Returns once there is news of this backend, or of who has what open.
    async fn news_of(&self, away: &BackendName) {
        let mut changes = self.shared.store.changes();
        let facts = |snapshot: &Snapshot| {
            let backend = snapshot.get(away)?;
            Some((
                backend.health,
                backend.admin,
                backend.removed,
                backend.released,
                backend.disk_read,
            ))
        };
        let mut snapshot = self.shared.pool.snapshot();
        let before = facts(&snapshot);
        while facts(&snapshot) == before {
            tokio::select! {
                () = self.shared.pool.changed(snapshot.generation) => {}
                _ = changes.changed() => return,
            }
            snapshot = self.shared.pool.snapshot();
        }
    }

    /// The connection whose client has left the session there in a turn.
    fn parked_at(&self, backend: &BackendName) -> Option<ConnectionId> {
        let known = self.shared.store.known(self.session.as_str());
        let there = known.owner.as_ref() == Some(backend);
        // What a client has left in a turn is not for those who share the session with it.
        let takes = there && self.purpose != Purpose::Reopen && self.relation() != Relation::Member;
        known.parked.filter(|_| takes)
    }

    /// The session was claimed: whose is it now? Two clients that create one at a time may both have
    /// been told that they may, but only the first of them has it.
    fn confirm(&self, was_unowned: bool) -> Result<Relation, ProxyError> {
        let (shared, session) = (&self.shared, &self.session);
        let judged = self.sight.of(shared, session.as_str());
        match judged {
            Ok(relation) => {
                let person = shared.store.known(session.as_str()).person;
                if let Some(person) = person.filter(|_| was_unowned) {
                    shared.hub.tell(News::Owned(session.clone(), person));
                }
                Ok(relation)
            }
            Err(denial) => {
                let mut directory = shared.store.lock();
                directory.release(Instant::now(), session.as_str(), self.connection);
                Err(sight::denied(session, denial))
            }
        }
    }

    /// Counts this connection at the destination, or where somebody else was faster.
    async fn claim(
        &self,
        destination: Destination,
        start: tokio::time::Instant,
    ) -> Result<Next, Outcome> {
        let (shared, session) = (&self.shared, &self.session);
        if destination.reason != PlacementReason::Owner
            && shared.providers.awaits(&destination.backend)
        {
            // Its home, say. Opened now, it would bypass the provider.
            let why = Refusal::Unprepared(destination.backend);
            return Err(Err(refused(Some(session), why)));
        }
        let mut found = self.located(destination);
        if found.has_history {
            let mut directory = shared.store.lock();
            directory.learn_history(Instant::now(), session, &found.backend);
        }
        // Before asking, so that no change is missed.
        let mut changes = shared.store.changes();
        let before = shared.store.known(session.as_str()).person;
        let person = self.sight.person_for(session);
        let claim = shared
            .store
            .claim_for(session, &found.backend, self.connection, person.as_ref())
            .await;
        let claim = claim.map_err(|_| Err(refused(Some(session), Refusal::Unconfirmed)))?;
        if claim != Claim::Moving {
            found.relation = self.confirm(before.is_none()).map_err(Err)?;
        }
        match claim {
            Claim::Granted => {
                found.parked = self.parked_at(&found.backend);
                Err(Ok(found))
            }
            Claim::OwnedBy(owner) => {
                found.backend = owner;
                found.reason = PlacementReason::Owner;
                found.parked = self.parked_at(&found.backend);
                Err(Ok(found))
            }
            // A fraction of a second, unless the backend falls silent in it.
            Claim::Moving => {
                if start.elapsed() >= self.patience(&found.backend) {
                    let why = Refusal::OwnerAway(found.backend);
                    return Err(Err(refused(Some(session), why)));
                }
                let _ended = tokio::time::timeout(ASK_AGAIN, changes.changed()).await;
                self.first(&candidates(shared, self.purpose, &self.avoid))
            }
        }
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
        Purpose::Create | Purpose::Resume | Purpose::Reopen => {
            shared.providers.unprepared(&snapshot)
        }
        Purpose::Use | Purpose::Delete => Vec::new(),
    };
    if unprepared.is_empty() {
        return snapshot;
    }
    let mut snapshot = Snapshot::clone(&snapshot);
    snapshot.backends.change(|backends| {
        let unprepared = |b: &&mut Backend| unprepared.contains(&b.name);
        let each = backends.iter_mut().filter(unprepared);
        each.for_each(|b| b.admin = AdminState::Drain);
    });
    Arc::new(snapshot)
}

/// The pool without the backends that were just found to be unreachable.
fn without(snapshot: &Arc<Snapshot>, avoid: &[BackendName]) -> Arc<Snapshot> {
    if avoid.is_empty() {
        return snapshot.clone();
    }
    let mut snapshot = Snapshot::clone(snapshot);
    let kept = |b: &Backend| !avoid.contains(&b.name);
    snapshot.backends.change(|all| all.retain(kept));
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
    let key = rules.key_of(&key, question.principal.as_deref());
    let placed = shared.store.place(rules.policy, key, snapshot).or_else(|| {
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
        parked: None,
        relation: Relation::Anybody,
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
