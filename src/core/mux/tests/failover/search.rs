//! Searches: what `proxy::locator` does, under the virtual clock.

use std::collections::VecDeque;

use super::{Act, MS, SECOND, World, faults::Fault};
use crate::core::{
    access::Relation,
    balance::{self, Policy},
    directory::{Claim, Standing},
    event::PlacementReason,
    id::{BackendName, ConnectionId, SessionId},
    locate::{self, Destination, Findings, Purpose, Refusal, Return, Step},
    mux::{Context, Locate, Located, Mux, Outbox},
    reply::ProxyError,
    snapshot::{Mode, Snapshot},
};

/// As in `proxy::locator` and its rules.
const ASK_AGAIN: u64 = SECOND;
const ORDER_WAIT: u64 = 2 * SECOND;
const ASK_TIMEOUT: u64 = 2 * SECOND;
const AT_A_TIME: usize = 8;

/// The answer of a backend to a question over its control connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    Yes,
    No,
    Silent,
    Gone,
}

/// How many sessions a backend opens again at present, and which searches wait.
#[derive(Debug, Default)]
pub(super) struct Door {
    taken: usize,
    queue: VecDeque<u64>,
}

/// A question of a machine on its way to an answer.
#[derive(Debug)]
pub(super) struct Search {
    pub(super) client: usize,
    pub(super) connection: ConnectionId,
    question: Locate,
    pub(super) session: SessionId,
    since: u64,
    /// Since when those that had the session before are waited for.
    late: Option<u64>,
    stage: Stage,
    /// A wake-up that was planned for an earlier round does nothing.
    pub(super) round: u64,
    pub(super) wants_pool: bool,
    pub(super) wants_store: bool,
    asks: usize,
    findings: Findings,
}

#[derive(Debug, Clone)]
enum Stage {
    Look,
    Ask(Vec<BackendName>),
    Claim(Destination),
    /// For news; this is said if that takes too long.
    Wait(Refusal),
    Asking,
    Reopen,
    Pinging(BackendName),
    /// The door of its owner, or of who is to be; and who gives it away, if somebody does.
    Door {
        to: BackendName,
        reason: PlacementReason,
        from: Option<BackendName>,
    },
}

impl World {
    // Permits.

    fn admit(&mut self, search: u64, backend: &BackendName) -> bool {
        let door = self.doors.entry(backend.to_string()).or_default();
        if door.taken < AT_A_TIME {
            door.taken += 1;
            return true;
        }
        door.queue.push_back(search);
        false
    }

    fn leave_door(&mut self, backend: &str) {
        let door = self.doors.get_mut(backend).unwrap();
        door.taken -= 1;
        if let Some(next) = door.queue.pop_front() {
            door.taken += 1;
            let round = self.searches[&next].round;
            self.plan(20, Act::Wake(next, round));
        }
    }

    pub(super) fn give_permit_back(&mut self, at: usize, session: &str) {
        if let Some(backend) = self.clients[at].permits.remove(session) {
            self.leave_door(&backend);
        }
    }

    /// Everything that is under way for a client whose task has ended.
    pub(super) fn drop_work(&mut self, at: usize, connection: ConnectionId) {
        for backend in std::mem::take(&mut self.clients[at].permits).into_values() {
            self.leave_door(&backend);
        }
        let mine: Vec<u64> = self
            .searches
            .iter()
            .filter(|(_, s)| s.connection == connection)
            .map(|(n, _)| *n)
            .collect();
        for search in mine {
            self.drop_search(search);
        }
    }

    fn drop_search(&mut self, number: u64) {
        let search = self.searches.remove(&number).unwrap();
        if let Stage::Door { to, .. } = search.stage
            && !self.leaves_queue(number, &to)
        {
            // It was let in a moment ago.
            self.leave_door(to.as_str());
        }
    }

    /// Whether it was waiting at the door of `backend`; it is not any more.
    fn leaves_queue(&mut self, number: u64, backend: &BackendName) -> bool {
        let waiting = &mut self.doors.get_mut(backend.as_str()).unwrap().queue;
        let place = waiting.iter().position(|n| *n == number);
        place.is_some_and(|place| waiting.remove(place).is_some())
    }

    pub(super) fn doors_are_free(&self) -> bool {
        let free = |door: &Door| door.taken == 0 && door.queue.is_empty();
        self.doors.values().all(free)
    }

    // Searches.

    pub(super) fn locate(
        &mut self,
        at: usize,
        mux: &mut Mux,
        cx: &Context<'_>,
        question: Locate,
        out: &mut Outbox,
    ) {
        let session = question.session.clone().expect("the model names sessions");
        let mut stage = Stage::Reopen;
        if question.purpose != Purpose::Reopen {
            match self.first(question.purpose, &session, &question.avoid) {
                Ok(next) => stage = next,
                Err(outcome) => {
                    mux.handle_located(cx, question.ticket, outcome, out);
                    return;
                }
            }
        }
        self.next_search += 1;
        let number = self.next_search;
        self.note(|| {
            format!(
                "c{at}: search {number} for {session}: {:?}",
                question.purpose
            )
        });
        self.searches.insert(
            number,
            Search {
                client: at,
                connection: self.clients[at].connection,
                question,
                session,
                since: self.now,
                late: None,
                stage,
                round: 0,
                wants_pool: false,
                wants_store: false,
                asks: 0,
                findings: Findings::default(),
            },
        );
        let delay = 10 + self.chance.below(100);
        self.plan(delay, Act::Wake(number, 0));
    }

    fn known(&self, session: &SessionId) -> crate::core::directory::Known {
        self.directory.known(self.instant(), session.as_str())
    }

    fn candidates(&self, avoid: &[BackendName]) -> Snapshot {
        let mut snapshot = Snapshot::clone(&self.snapshot);
        snapshot
            .backends
            .change(|all| all.retain(|b| !avoid.contains(&b.name)));
        snapshot
    }

    /// As `Search::first`.
    fn first(
        &self,
        purpose: Purpose,
        session: &SessionId,
        avoid: &[BackendName],
    ) -> Result<Stage, Result<Located, ProxyError>> {
        let known = self.known(session);
        match locate::first(purpose, &known, &self.candidates(avoid)) {
            Step::Refuse(why) => refuse_or_wait(session, why),
            Step::Go(to) if purpose == Purpose::Delete => Ok(Stage::Ask(vec![to.backend])),
            Step::Go(to) if purpose.attaches() => Ok(Stage::Claim(to)),
            Step::Go(to) => Err(Ok(located(to))),
            Step::Ask(backends) => Ok(Stage::Ask(backends)),
        }
    }

    fn place(
        &mut self,
        session: &SessionId,
        snapshot: &Snapshot,
    ) -> Option<(BackendName, PlacementReason)> {
        self.placements += 1;
        let policy = match snapshot.mode {
            Mode::Sticky => Policy::Sticky { load_factor: None },
            Mode::SharedStorage => Policy::LeastLoaded,
        };
        let loads = locate::loads(snapshot, |name| self.directory.load(name));
        let key = session.as_str();
        let (index, reason) = balance::place(policy, key, snapshot, &loads, self.placements)?;
        Some((snapshot.backends[index].name.clone(), reason))
    }

    /// A search goes on.
    pub(super) fn wake(&mut self, number: u64, round: u64) {
        if self.is_forgotten(number) {
            return self.end_forgotten(number);
        }
        let Some(search) = self.searches.get_mut(&number).filter(|s| s.round == round) else {
            return;
        };
        let snapshot = self.snapshot.clone();
        search.round += 1;
        search.wants_pool = false;
        search.wants_store = false;
        let (session, purpose) = (search.session.clone(), search.question.purpose);
        match search.stage.clone() {
            Stage::Look => {
                let avoid = search.question.avoid.clone();
                let next = self.first(purpose, &session, &avoid);
                self.go_on(number, next);
            }
            Stage::Ask(backends) => self.ask(number, &backends),
            Stage::Claim(destination) => {
                let outcome = self.claim(number, destination);
                self.found(number, outcome, None);
            }
            Stage::Wait(why) if self.now >= search.since + 30 * SECOND => {
                self.found(number, Err(refused(&session, why)), None);
            }
            Stage::Wait(why) => {
                // It was out of reach, and may not be any more.
                if let Refusal::OwnerAway(away) | Refusal::HomeAway(away) = why
                    && snapshot.get(&away).is_some_and(|b| b.is_usable())
                {
                    search.question.avoid.retain(|avoided| *avoided != away);
                }
                search.stage = Stage::Look;
                let round = search.round;
                self.wake(number, round);
            }
            Stage::Asking | Stage::Pinging(_) => {}
            Stage::Reopen => self.reopen(number),
            Stage::Door { to, reason, from } => {
                let usable = snapshot.get(&to).is_some_and(|b| b.is_usable());
                let waits = &self.doors[to.as_str()].queue;
                if usable && waits.contains(&number) {
                    // Something else has changed.
                    self.searches.get_mut(&number).unwrap().wants_pool = true;
                } else if usable {
                    self.enter(number, to, reason, from);
                } else {
                    if !self.leaves_queue(number, &to) {
                        self.leave_door(to.as_str());
                    }
                    self.searches.get_mut(&number).unwrap().stage = Stage::Reopen;
                    self.reopen(number);
                }
            }
        }
    }

    fn go_on(&mut self, number: u64, next: Result<Stage, Result<Located, ProxyError>>) {
        let stage = match next {
            Ok(stage) => stage,
            Err(outcome) => return self.found(number, outcome, None),
        };
        let search = self.searches.get_mut(&number).unwrap();
        search.stage = stage.clone();
        let (round, since) = (search.round, search.since);
        if let Stage::Wait(_) = stage {
            search.wants_pool = true;
            search.wants_store = true;
            self.plan_at(since + 30 * SECOND, Act::Wake(number, round));
        } else {
            self.wake(number, round);
        }
    }

    /// Waits for a change, or for so long.
    fn pause(&mut self, number: u64, stage: Stage, pool: bool, store: bool, most: Option<u64>) {
        let search = self.searches.get_mut(&number).unwrap();
        search.stage = stage;
        search.wants_pool = pool;
        search.wants_store = store;
        let round = search.round;
        if let Some(most) = most {
            self.plan(most, Act::Wake(number, round));
        }
    }

    /// As `Search::reopen`.
    fn reopen(&mut self, number: u64) {
        let search = &self.searches[&number];
        let (session, me) = (search.session.clone(), search.connection);
        let known = self.known(&session);
        if known.deleted {
            let error = ProxyError::session_not_found("session.resume", session.as_str());
            return self.found(number, Err(error), None);
        }
        let decision = locate::reopen(&known, &self.snapshot);
        self.note(|| format!("search {number} for {session}: {decision:?}"));
        let goes = matches!(decision, Return::At(_) | Return::Move { .. });
        if goes && !self.directory.is_next(session.as_str(), me) {
            let late = self.now + ORDER_WAIT;
            let late = *self
                .searches
                .get_mut(&number)
                .unwrap()
                .late
                .get_or_insert(late);
            if self.now < late {
                let most = Some(late - self.now);
                return self.pause(number, Stage::Reopen, false, true, most);
            }
        }
        match decision {
            Return::At(owner) => {
                let reply = self.control_reply(&owner, |_| true);
                self.searches.get_mut(&number).unwrap().stage = Stage::Pinging(owner.clone());
                self.answer_later(number, &owner, reply, Reply::No);
            }
            Return::Anywhere => {
                let all = self.candidates(&[]);
                let Some((to, reason)) = self.place(&session, &all) else {
                    return self.pause(number, Stage::Reopen, true, false, None);
                };
                self.at_door(number, to, reason, None);
            }
            Return::Move { from } => {
                let others = self.candidates(std::slice::from_ref(&from));
                let Some((to, reason)) = self.place(&session, &others) else {
                    return self.pause(number, Stage::Reopen, true, false, None);
                };
                self.at_door(number, to, reason, Some(from));
            }
            Return::AwaitBackend(_) => self.pause(number, Stage::Reopen, true, false, None),
            Return::AwaitHolders => {
                self.pause(number, Stage::Reopen, false, true, Some(ASK_AGAIN));
            }
            Return::Search => {
                let search = self.searches.get_mut(&number).unwrap();
                search.question.purpose = Purpose::Resume;
                let usable = self.snapshot.backends.iter().filter(|b| b.is_usable());
                let all = usable.map(|b| b.name.clone()).collect();
                self.go_on(number, Ok(Stage::Ask(all)));
            }
        }
    }

    /// As `Search::admit`.
    fn at_door(
        &mut self,
        number: u64,
        to: BackendName,
        reason: PlacementReason,
        from: Option<BackendName>,
    ) {
        let admitted = self.admit(number, &to);
        let search = self.searches.get_mut(&number).unwrap();
        search.stage = Stage::Door { to, reason, from };
        search.wants_pool = !admitted;
        if admitted {
            let round = search.round;
            self.plan(0, Act::Wake(number, round));
        }
    }

    /// It has a permit: now it claims its place.
    fn enter(
        &mut self,
        number: u64,
        to: BackendName,
        reason: PlacementReason,
        from: Option<BackendName>,
    ) {
        let search = &self.searches[&number];
        let (session, me) = (search.session.clone(), search.connection);
        let destination = Destination {
            backend: to.clone(),
            reason,
            has_history: false,
        };
        let Some(from) = from else {
            let outcome = self.claim(number, destination);
            return self.found(number, outcome, Some(to));
        };
        let now = self.instant();
        if self.directory.reown(now, &session, &from, &to, me) != Claim::Granted {
            self.leave_door(to.as_str());
            return self.pause(number, Stage::Reopen, false, true, Some(ASK_AGAIN));
        }
        self.note(|| format!("{session} moves from {from} to {to}"));
        self.stats.moved += 1;
        if !self.quiet && self.chance.below(self.size.sessions as u64 * 2) == 0 {
            // Its new owner dies before it is open there.
            let server = self.server_named(to.as_str());
            let soon = self.chance.below(10 * MS);
            self.plan(soon, Act::Fault(Fault::Kill(server)));
            let later = 100 * MS + self.chance.below(4 * SECOND);
            self.plan(later, Act::Fault(Fault::Start(server)));
        }
        self.found(number, Ok(located(destination)), Some(to));
    }

    /// What a backend says over its control connection.
    fn control_reply(&self, backend: &BackendName, yes: impl Fn(usize) -> bool) -> Reply {
        let server = self.server_named(backend.as_str());
        if let Some(reply) = self.control_is_down(server) {
            return reply;
        }
        match (self.servers[server].answers(), yes(server)) {
            (false, _) => Reply::Silent,
            (true, true) => Reply::Yes,
            (true, false) => Reply::No,
        }
    }

    fn answer_later(&mut self, number: u64, backend: &BackendName, open: Reply, disk: Reply) {
        let delay = match (open, disk) {
            (Reply::Silent, _) | (_, Reply::Silent) => ASK_TIMEOUT,
            _ => 50 + self.chance.span(10 * MS),
        };
        let round = self.searches[&number].round;
        let name = backend.to_string();
        self.plan(delay, Act::Asked(number, round, name, open, disk));
    }

    fn ask(&mut self, number: u64, backends: &[BackendName]) {
        let search = self.searches.get_mut(&number).unwrap();
        search.stage = Stage::Asking;
        search.asks = backends.len();
        search.findings = Findings::default();
        let session = search.session.to_string();
        for backend in backends {
            let open = self.control_reply(backend, |server| {
                let process = self.servers[server].process.as_ref();
                process.is_some_and(|p| p.sessions.contains_key(&session))
            });
            let disk = self.control_reply(backend, |server| {
                self.disks[self.disk_of(server)].contains_key(&session)
            });
            self.answer_later(number, backend, open, disk);
        }
        if backends.is_empty() {
            self.all_asked(number);
        }
    }

    pub(super) fn asked(
        &mut self,
        number: u64,
        round: u64,
        backend: &str,
        open: Reply,
        disk: Reply,
    ) {
        if self.is_forgotten(number) {
            return self.end_forgotten(number);
        }
        let Some(search) = self.searches.get_mut(&number).filter(|s| s.round == round) else {
            return;
        };
        let name = BackendName::from(backend);
        if matches!(&search.stage, Stage::Pinging(owner) if *owner == name) {
            search.round += 1;
            if matches!(open, Reply::Yes | Reply::No) {
                self.at_door(number, name, PlacementReason::Owner, None);
            } else {
                self.pause(number, Stage::Reopen, true, false, Some(ASK_AGAIN));
            }
            return;
        }
        let session = search.session.clone();
        if open == Reply::Silent || disk == Reply::Silent {
            search.findings.silent.push(name.clone());
        }
        if open == Reply::Yes {
            search.findings.open_at = Some(name.clone());
        }
        if disk == Reply::Yes {
            search.findings.on_disk.push(name.clone());
        }
        search.asks -= 1;
        let last = search.asks == 0;
        if matches!(open, Reply::No | Reply::Gone) {
            self.directory.not_open(session.as_str(), &name);
        }
        if last {
            self.searches.get_mut(&number).unwrap().round += 1;
            self.all_asked(number);
        }
    }

    /// As the rest of `Search::ask_and_decide`.
    fn all_asked(&mut self, number: u64) {
        let search = &self.searches[&number];
        let (session, purpose) = (search.session.clone(), search.question.purpose);
        let findings = search.findings.clone();
        let snapshot = self.candidates(&search.question.avoid);
        let known = self.known(&session);
        self.note(|| format!("search {number} for {session}: {findings:?}"));
        let destination = match &known.owner {
            Some(owner) if findings.open_at.is_none() && purpose != Purpose::Delete => {
                Ok(Destination {
                    backend: owner.clone(),
                    reason: PlacementReason::Owner,
                    has_history: known.has_history || !findings.on_disk.is_empty(),
                })
            }
            _ => {
                let placed = self.place(&session, &snapshot);
                locate::decide(purpose, &session, &known, &snapshot, &findings, || placed)
            }
        };
        let next = match destination {
            Ok(destination) if purpose.attaches() => Ok(Stage::Claim(destination)),
            Ok(destination) => {
                if destination.has_history {
                    let now = self.instant();
                    self.directory
                        .learn_history(now, &session, &destination.backend);
                }
                Err(Ok(located(destination)))
            }
            Err(why) => refuse_or_wait(&session, why),
        };
        self.go_on(number, next);
    }

    fn claim(&mut self, number: u64, destination: Destination) -> Result<Located, ProxyError> {
        let (session, me) = {
            let search = &self.searches[&number];
            (search.session.clone(), search.connection)
        };
        let now = self.instant();
        let mut found = located(destination);
        if found.has_history {
            self.directory.learn_history(now, &session, &found.backend);
        }
        match self.directory.claim(now, &session, &found.backend, me) {
            Claim::Granted => {}
            Claim::OwnedBy(owner) => {
                found.backend = owner;
                found.reason = PlacementReason::Owner;
            }
            Claim::Moving => panic!("nothing is drained here"),
        }
        Ok(found)
    }

    // As `proxy::driver::searches`.

    /// Whether its machine does not wait for its answer any more.
    fn is_forgotten(&self, number: u64) -> bool {
        self.searches.get(&number).is_some_and(|search| {
            let mux = self.clients[search.client].mux.as_ref();
            mux.is_some_and(|mux| !mux.awaits(search.question.ticket))
        })
    }

    fn end_forgotten(&mut self, number: u64) {
        let search = &self.searches[&number];
        let (at, session) = (search.client, search.session.clone());
        self.note(|| format!("c{at}: search {number} for {session} is not wanted any more"));
        self.drop_search(number);
        self.stats.forgotten += 1;
        self.put_right(at, &session);
    }

    /// Makes the directory agree with a machine about a session that a search may have counted.
    fn put_right(&mut self, at: usize, session: &SessionId) {
        let me = self.clients[at].connection;
        let Some(mux) = &self.clients[at].mux else {
            return;
        };
        let now = self.instant();
        let mut searches = self.searches.values();
        let searched = searches.any(|s| s.connection == me && s.session == *session);
        if mux.has_lost(session.as_str()) {
            self.directory.stands(session.as_str(), me, Standing::Lost);
            self.wake_for_store();
        } else if !mux.holds(session.as_str()) && !searched {
            self.directory.release(now, session.as_str(), me);
        }
    }

    /// The answer, for the machine.
    fn found(
        &mut self,
        number: u64,
        outcome: Result<Located, ProxyError>,
        permit: Option<BackendName>,
    ) {
        let search = self.searches.remove(&number).unwrap();
        let (at, me) = (search.client, search.connection);
        self.note(|| format!("c{at}: search {number} for {}: {outcome:?}", search.session));
        if let (Ok(located), true) = (&outcome, search.question.purpose.attaches()) {
            let session = search.session.as_str();
            // Nothing comes in between here.
            assert!(self.directory.confirm(session, &located.backend, me));
        }
        if let Some(backend) = permit {
            let session = search.session.to_string();
            let before = self.clients[at]
                .permits
                .insert(session, backend.to_string());
            if let Some(backend) = before {
                self.leave_door(&backend);
            }
        }
        let ticket = search.question.ticket;
        self.step(at, &[], |mux, cx, out| {
            mux.handle_located(cx, ticket, outcome, out);
            0
        });
        if search.question.purpose.attaches() {
            self.put_right(at, &search.session);
        }
    }

    /// Whether it counts as a holder for an answer that is still to come.
    pub(super) fn claims_soon(&self, session: &str, holder: ConnectionId) -> bool {
        self.searches
            .values()
            .any(|s| s.connection == holder && s.session.as_str() == session)
    }
}

fn located(destination: Destination) -> Located {
    Located {
        backend: destination.backend,
        reason: destination.reason,
        has_history: destination.has_history,
        parked: None,
        relation: Relation::Anybody,
    }
}

fn refused(session: &SessionId, why: Refusal) -> ProxyError {
    ProxyError::NotLocated {
        session: Some(session.clone()),
        why,
    }
}

fn refuse_or_wait(session: &SessionId, why: Refusal) -> Result<Stage, Result<Located, ProxyError>> {
    match &why {
        Refusal::OwnerAway(_) | Refusal::HomeAway(_) => Ok(Stage::Wait(why)),
        Refusal::DiskUnread(_)
        | Refusal::Silent(_)
        | Refusal::Unreachable(_)
        | Refusal::Unprepared(_)
        | Refusal::Unconfirmed
        | Refusal::NoBackend => Err(Err(refused(session, why))),
    }
}
