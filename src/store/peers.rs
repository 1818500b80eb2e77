//! One owner table for all processes of an upgrade.
//!
//! The table of the newest process decides. In an older one, claims become questions to it, and what
//! else changes for the sessions that its connections hold is told to it. Knows what is said, not
//! the socket on which: that is the control plane's.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ahash::RandomState;
use thiserror::Error;
use tokio::sync::{Notify, oneshot, watch};

use super::Store;
use crate::core::{
    directory::{Claim, Directory, Saved},
    id::{BackendName, ConnectionId, SessionId},
    identity::Person,
    peer::{self, Held, Instance, Message, Question, Remembered, Whose},
};

/// How long a claim waits for the process that decides: as long as that one may take to restart,
/// and less than a client's patience.
const DECISION: Duration = Duration::from_secs(5);

/// Sessions that are looked at, and told, at a time.
const CHUNK: usize = 512;

/// Another process decides who owns a session, and did not answer in time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("the Taxiway process that keeps the owner table does not answer")]
pub struct Unconfirmed;

/// Who decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Seat {
    #[default]
    Here,
    Elsewhere,
}

/// The way to the process that decides.
#[derive(Debug, Default)]
pub(super) struct Link {
    talk: Mutex<Talk>,
    wake: Notify,
    seat: watch::Sender<Seat>,
    /// A session has become somebody's.
    owned: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Talk {
    next: u64,
    /// Questions without an answer.
    asked: BTreeMap<u64, Asked>,
    /// Of these, those that were not written since the link is up.
    unsent: Vec<u64>,
    /// Sessions that the other side counts as held here.
    told: HashSet<SessionId, RandomState>,
}

/// The backend that owns a session, and whose the session is.
type Decision = (BackendName, Option<Whose>);

#[derive(Debug)]
struct Asked {
    session: SessionId,
    question: Question,
    answer: Option<oneshot::Sender<Decision>>,
}

impl Link {
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    pub(super) fn owned(&self) {
        self.owned.send_replace(());
    }

    fn talk(&self) -> MutexGuard<'_, Talk> {
        // Whole at every moment, so a panic elsewhere spoils nothing.
        self.talk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How far a process that follows has been told whose sessions are. To begin with, not at all.
#[derive(Debug, Default)]
pub struct Told {
    mark: Option<u64>,
    rest: Vec<SessionId>,
}

impl Told {
    /// It knows what was known when this process began.
    pub fn at_the_start() -> Self {
        Self {
            mark: Some(0),
            rest: Vec::new(),
        }
    }
}

/// A question that waits: while it does, the other side may count the session as held here.
struct Waiting<'a> {
    store: &'a Store,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // Under the table's lock, so that nobody looks between the two.
        let mut directory = self.store.lock();
        let asked = self.store.shared.link.talk().asked.remove(&self.id);
        if let Some(asked) = asked {
            directory.note(asked.session.as_str());
        }
    }
}

/// Everything that a successor has to know before it decides.
#[derive(Debug)]
pub struct Estate {
    /// In an order in which they can be told.
    pub messages: Vec<Message>,
}

/// How often, and after how long, a process that asks for a session that is being moved is looked
/// at again.
const MOVE_LOOKS: usize = 4;
const MOVE_LOOK: Duration = Duration::from_millis(500);

impl Store {
    /// Decides here, or asks the process that decides.
    pub(super) async fn decide(
        &self,
        session: &SessionId,
        question: Question,
        holder: ConnectionId,
        here: &(dyn Fn(&mut Directory) -> Claim + Sync),
    ) -> Result<Claim, Unconfirmed> {
        let deadline = tokio::time::Instant::now() + DECISION;
        let mut seat = self.shared.link.seat.subscribe();
        loop {
            let asked = {
                let directory = self.lock();
                if directory.follows() {
                    Ok(self.ask(session, &question))
                } else {
                    Err(self.decide_here(directory, session, holder, here))
                }
            };
            let (waiting, answer) = match asked {
                Ok(asked) => asked,
                Err(decided) => return Ok(decided.answer().await),
            };
            let decided = tokio::select! {
                answer = answer => answer.ok(),
                // The successor did not come: it is decided here again.
                _ = seat.wait_for(|seat| *seat == Seat::Here) => None,
                () = tokio::time::sleep_until(deadline) => return Err(Unconfirmed),
            };
            let Some((owner, whose)) = decided else {
                continue;
            };
            if let Question::Reown { from, .. } = &question
                && owner.as_str() == from
            {
                // Somebody hears it there still: who asks has lost it as before.
                return Ok(Claim::OwnedBy(owner));
            }
            let mut directory = self.lock();
            let obeyed = directory.obey(Instant::now(), session, &owner, holder);
            if let Some(whose) = whose {
                directory.obey_person(session, &Person::from(&whose));
            }
            drop(directory);
            drop(waiting);
            return Ok(if obeyed == Claim::Moving {
                Claim::Moving
            } else if owner.as_str() == question.want() {
                Claim::Granted
            } else {
                Claim::OwnedBy(owner)
            });
        }
    }

    fn ask(
        &self,
        session: &SessionId,
        question: &Question,
    ) -> (Waiting<'_>, oneshot::Receiver<Decision>) {
        let link = &self.shared.link;
        let (tell, answer) = oneshot::channel();
        let mut talk = link.talk();
        let id = talk.next;
        talk.next += 1;
        let asked = Asked {
            session: session.clone(),
            question: question.clone(),
            answer: Some(tell),
        };
        talk.asked.insert(id, asked);
        talk.unsent.push(id);
        drop(talk);
        link.wake();
        (Waiting { store: self, id }, answer)
    }

    // The older process.

    /// What is remembered, to be told to a successor that gets ready: a first part of [`Estate`],
    /// for which nothing stands still. Changes from now on are part of [`Store::hand_over`].
    pub fn begin_to_tell(&self) -> Vec<SessionId> {
        let mut directory = self.lock();
        directory.note_news();
        directory.ids()
    }

    /// The lines about these sessions; at most a few hundred at a time, please.
    pub fn remembered(&self, sessions: &[SessionId]) -> Vec<Message> {
        let directory = self.lock();
        sessions
            .iter()
            .map(|session| remembered(&directory, session))
            .collect()
    }

    /// From here on another process decides: claims wait for it. Gives what it has to know, with
    /// the names of the processes that the other holders stand for.
    pub fn hand_over(&self, peers: &[(ConnectionId, Instance)]) -> Estate {
        let mut directory = self.lock();
        let mut messages = Vec::new();
        loop {
            let news = directory.take_news(CHUNK);
            if news.is_empty() {
                break;
            }
            messages.extend(news.iter().map(|session| remembered(&directory, session)));
        }
        directory.follow_primary();
        for (backend, sessions) in directory.all_moved() {
            messages.push(Message::Moved {
                backend: backend.to_string(),
                sessions: sessions.iter().map(ToString::to_string).collect(),
            });
        }
        let mut talk = self.shared.link.talk();
        let own = directory.all_held(&|holder| !peer::is_peer(holder));
        talk.told = own.iter().map(|(session, _)| session.clone()).collect();
        messages.extend(
            own.into_iter()
                .map(|(session, held)| holds(&session, None, held)),
        );
        for (peer, instance) in peers {
            let theirs = directory.all_held(&|holder| holder == *peer);
            let lines = theirs.into_iter();
            messages.extend(lines.map(|(session, held)| holds(&session, Some(instance), held)));
        }
        drop(talk);
        self.shared.link.seat.send_replace(Seat::Elsewhere);
        Estate { messages }
    }

    /// The successor did not come: it is decided here again.
    pub fn take_back(&self) {
        self.lock().decide();
        self.shared.link.seat.send_replace(Seat::Here);
    }

    /// The successor has taken over: these stand for processes that have gone over to it.
    pub fn retire(&self, peers: &[(ConnectionId, Instance)]) {
        for (holder, _) in peers {
            self.peer_left(*holder);
        }
        self.lock().forget_moved();
    }

    /// Whether another process decides.
    pub fn follows(&self) -> bool {
        self.lock().follows()
    }

    /// The link is up anew: everything is told once more, and asked once more.
    pub fn relink(&self) {
        let mut directory = self.lock();
        let mut talk = self.shared.link.talk();
        let own = directory.all_held(&|holder| !peer::is_peer(holder));
        talk.told.clear();
        talk.unsent = talk.asked.keys().copied().collect();
        drop(talk);
        for (session, _) in &own {
            directory.note(session.as_str());
        }
    }

    /// The next lines for the process that decides; none for now if it is empty.
    pub fn lines(&self) -> Vec<Message> {
        let now = Instant::now();
        let mut directory = self.lock();
        let news = directory.take_news(CHUNK);
        let mut talk = self.shared.link.talk();
        let mut lines = Vec::new();
        for session in news {
            if let Some(held) = directory.held_by(session.as_str(), &|h| !peer::is_peer(h)) {
                lines.push(holds(&session, None, held));
                talk.told.insert(session);
                continue;
            }
            let awaited = talk.asked.values().any(|asked| asked.session == session);
            if !awaited && talk.told.remove(&session) {
                let deleted = directory.known(now, session.as_str()).deleted;
                lines.push(Message::Gone {
                    session: session.to_string(),
                    deleted,
                });
            }
        }
        if directory.has_news() {
            // In the order in which it happened: first what was, then what is asked.
            return lines;
        }
        for id in std::mem::take(&mut talk.unsent) {
            let Some(asked) = talk.asked.get(&id) else {
                continue;
            };
            let (session, question) = (asked.session.clone(), asked.question.clone());
            lines.push(Message::Ask {
                id,
                session: session.to_string(),
                question,
            });
            talk.told.insert(session);
        }
        lines
    }

    /// Returns when [`Store::lines`] may have something. For one task at a time.
    pub async fn lines_wait(&self) {
        self.shared.link.wake.notified().await;
    }

    /// The process that decides has answered.
    pub fn answered(&self, id: u64, owner: &str, whose: Option<Whose>) {
        let mut talk = self.shared.link.talk();
        if let Some(asked) = talk.asked.get_mut(&id)
            && let Some(answer) = asked.answer.take()
        {
            // Who has asked may be gone.
            let _gone = answer.send((BackendName::from(owner), whose));
        }
    }

    // The newest process.

    /// A former process says what it remembers.
    pub fn learn_remembered(&self, session: &str, remembered: Remembered) {
        let empty = remembered == Remembered::default();
        let saved = Saved {
            owner: remembered.owner.map(BackendName::from),
            home: remembered.home.map(BackendName::from),
            has_history: remembered.has_history,
            deleted: remembered.deleted_ms.map(Duration::from_millis),
            idle: Duration::from_millis(remembered.idle_ms),
            // Told by itself.
            moved_from: Vec::new(),
            person: remembered
                .whose
                .as_ref()
                .map(|whose| Arc::new(Person::from(whose))),
        };
        let saved = (!empty).then_some(saved);
        self.lock()
            .renew(Instant::now(), &SessionId::from(session), saved);
    }

    /// The process that `holder` stands for holds this. False if somebody else owns the session:
    /// the two have not met.
    pub fn peer_holds(&self, holder: ConnectionId, session: &str, held: &Held) -> bool {
        let session = SessionId::from(session);
        let claim = self.lock().hold(Instant::now(), &session, holder, held);
        // Whoever waits for its standing looks again.
        self.announce();
        claim == Claim::Granted
    }

    /// The process that `holder` stands for holds this session no more.
    pub fn peer_gone(&self, holder: ConnectionId, session: &str, deleted: bool) {
        let now = Instant::now();
        let mut directory = self.lock();
        if deleted {
            directory.delete(now, &SessionId::from(session));
        } else {
            directory.release(now, session, holder);
        }
    }

    /// The process that `holder` stands for asks. Gives the owner, and whose it is.
    ///
    /// # Errors
    /// It is not decided here any more.
    pub async fn peer_asks(
        &self,
        holder: ConnectionId,
        session: &str,
        question: &Question,
    ) -> Result<Decision, Unconfirmed> {
        if self.follows() {
            return Err(Unconfirmed);
        }
        let session = SessionId::from(session);
        let want = BackendName::from(question.want());
        // A move takes a fraction of a second.
        for _ in 0..MOVE_LOOKS {
            let mut changes = self.changes();
            let claim = match question {
                Question::Claim { whose, .. } => {
                    let person = whose.as_ref().map(Person::from);
                    self.claim_for(&session, &want, holder, person.as_ref())
                        .await?
                }
                Question::Reown { from, .. } => {
                    let from = BackendName::from(from.as_str());
                    self.reown(&session, &from, &want, holder).await?
                }
            };
            match claim {
                Claim::Granted => return Ok((want, self.whose(&session))),
                Claim::OwnedBy(owner) => return Ok((owner, self.whose(&session))),
                Claim::Moving => {
                    let _ended = tokio::time::timeout(MOVE_LOOK, changes.changed()).await;
                }
            }
        }
        Err(Unconfirmed)
    }

    fn whose(&self, session: &SessionId) -> Option<Whose> {
        let directory = self.lock();
        let person = directory.person(Instant::now(), session.as_str());
        person.map(|person| Whose::from(&**person))
    }

    /// The next lines for a process that follows, about whose sessions are; none if it has been told
    /// everything.
    pub fn owners(&self, told: &mut Told) -> Vec<Message> {
        let now = Instant::now();
        let directory = self.lock();
        if told.rest.is_empty() {
            let news = told.mark.and_then(|mark| directory.owned_since(mark));
            told.rest = news.unwrap_or_else(|| directory.all_owned());
            told.mark = Some(directory.owned_until());
        }
        let mut lines = Vec::new();
        while lines.is_empty() && !told.rest.is_empty() {
            let next = told.rest.len().saturating_sub(CHUNK);
            // What is nobody's any more was deleted long ago.
            lines.extend(told.rest.drain(next..).filter_map(|session| {
                let person = directory.person(now, session.as_str())?;
                Some(Message::Owned {
                    session: session.to_string(),
                    whose: Whose::from(&**person),
                })
            }));
        }
        lines
    }

    /// Changes when [`Store::owners`] may have something.
    pub fn owners_changed(&self) -> watch::Receiver<()> {
        self.shared.link.owned.subscribe()
    }

    /// The process that decides says whose a session is. True if that is news.
    pub fn learn_owner(&self, session: &SessionId, person: &Person) -> bool {
        let mut directory = self.lock();
        directory.follows() && directory.learn_person(Instant::now(), session, person)
    }

    /// The process that `holder` stands for has told everything that it holds: `said`. What it held
    /// before, and did not say, it holds no more.
    pub fn peer_synced(&self, holder: ConnectionId, said: &HashSet<String>) {
        let now = Instant::now();
        let mut directory = self.lock();
        for (session, _) in directory.all_held(&|h| h == holder) {
            if !said.contains(session.as_str()) {
                directory.release(now, session.as_str(), holder);
            }
        }
    }

    /// The process that `holder` stood for is gone.
    pub fn peer_left(&self, holder: ConnectionId) {
        self.peer_synced(holder, &HashSet::new());
    }

    /// These were opened elsewhere while `backend` was away, as a former process says.
    pub fn learn_moved(&self, backend: &str, sessions: Vec<String>) {
        let sessions: Vec<SessionId> = sessions.into_iter().map(SessionId::from).collect();
        self.lock()
            .learn_moved(&BackendName::from(backend), &sessions);
    }
}

fn holds(session: &SessionId, of: Option<&Instance>, held: Held) -> Message {
    Message::Holds {
        session: session.to_string(),
        of: of.cloned(),
        held,
    }
}

fn remembered(directory: &Directory, session: &SessionId) -> Message {
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let remembered = directory
        .saved(Instant::now(), session.as_str())
        .map_or_else(Remembered::default, |saved| Remembered {
            owner: saved.owner.map(|owner| owner.to_string()),
            home: saved.home.map(|home| home.to_string()),
            has_history: saved.has_history,
            deleted_ms: saved.deleted.map(milliseconds),
            idle_ms: milliseconds(saved.idle),
            whose: saved.person.as_deref().map(Whose::from),
        });
    Message::Remembers {
        session: session.to_string(),
        remembered,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::snapshot::Mode;

    /// One process says to another what it remembers and holds.
    fn tell(from: &Store, to: &Store, holder: ConnectionId) {
        let sessions = from.begin_to_tell();
        let mut messages = from.remembered(&sessions);
        messages.extend(from.hand_over(&[]).messages);
        for message in messages {
            // As it comes out of the line.
            let text = serde_json::to_string(&message).unwrap();
            let message = serde_json::from_str(&text).unwrap();
            if let Message::Remembers {
                session,
                remembered,
            } = message
            {
                to.learn_remembered(&session, remembered);
            } else if let Message::Holds { session, held, .. } = message {
                assert!(to.peer_holds(holder, &session, &held));
            } else {
                panic!("{message:?}");
            }
        }
    }

    #[tokio::test]
    async fn whose_a_session_is_goes_over_to_the_next_process() {
        let (older, newer) = (
            Store::new(Mode::SharedStorage, 100),
            Store::new(Mode::SharedStorage, 100),
        );
        let (ann, bob) = (Person::new("acme", "ann"), Person::new("acme", "bob"));
        let (me, peer) = (ConnectionId(1), peer::holder(1));
        let (open, closed) = (SessionId::from("open"), SessionId::from("closed"));
        let backend = BackendName::from("b");
        for (session, person) in [(&open, &ann), (&closed, &bob)] {
            let claim = older.claim_for(session, &backend, me, Some(person)).await;
            assert_eq!(claim, Ok(Claim::Granted));
        }
        older.lock().release(Instant::now(), "closed", me);
        tell(&older, &newer, peer);
        let known = |store: &Store, session: &SessionId| store.known(session.as_str()).person;
        assert_eq!(known(&newer, &open).as_deref(), Some(&ann));
        assert_eq!(known(&newer, &closed).as_deref(), Some(&bob));

        // The newer one decides whose it is; the older one, which asks, obeys.
        let fresh = SessionId::from("fresh");
        let claim = newer.claim_for(&fresh, &backend, ConnectionId(9), Some(&bob));
        assert_eq!(claim.await, Ok(Claim::Granted));
        let asking = older.claim_for(&fresh, &backend, me, Some(&ann));
        let answering = async {
            loop {
                older.lines_wait().await;
                for line in older.lines() {
                    if let Message::Ask {
                        id,
                        session,
                        question,
                    } = line
                    {
                        let decided = newer.peer_asks(peer, &session, &question).await;
                        let (owner, whose) = decided.unwrap();
                        older.answered(id, owner.as_str(), whose);
                    }
                }
            }
        };
        let claim = tokio::select! {
            claim = asking => claim,
            () = answering => unreachable!("it goes on"),
        };
        assert_eq!(claim, Ok(Claim::Granted));
        assert_eq!(known(&older, &fresh).as_deref(), Some(&bob));
    }

    /// What the newer one has to say of owners, as it comes out of the line.
    fn tell_owners(from: &Store, to: &Store, told: &mut Told) -> usize {
        let mut news = 0;
        loop {
            let lines = from.owners(told);
            if lines.is_empty() {
                return news;
            }
            assert!(lines.len() <= CHUNK);
            for line in lines {
                let text = serde_json::to_string(&line).unwrap();
                let Message::Owned { session, whose } = serde_json::from_str(&text).unwrap() else {
                    panic!("{text}");
                };
                let session = SessionId::from(session);
                news += usize::from(to.learn_owner(&session, &Person::from(&whose)));
            }
        }
    }

    #[tokio::test]
    async fn a_process_that_follows_is_told_whose_sessions_are() {
        let store = || Store::new(Mode::SharedStorage, 10_000);
        let (older, newer) = (store(), store());
        let (ann, bob) = (Person::new("acme", "ann"), Person::new("acme", "bob"));
        let (backend, me) = (BackendName::from("b"), ConnectionId(9));
        let mut changed = newer.owners_changed();
        let create = async |session: &str, person: &Person| {
            let session = SessionId::from(session);
            let claim = newer.claim_for(&session, &backend, me, Some(person));
            assert_eq!(claim.await, Ok(Claim::Granted));
            newer.lock().release(Instant::now(), session.as_str(), me);
        };
        let known = |session: &str| older.known(session).person;
        let mut told = Told::at_the_start();

        create("early", &ann).await;
        assert_eq!(
            tell_owners(&newer, &older, &mut told),
            0,
            "it decides itself"
        );
        assert_eq!(known("early"), None);

        older.hand_over(&[]);
        create("fresh", &bob).await;
        assert!(changed.has_changed().unwrap());
        changed.mark_unchanged();
        assert_eq!(tell_owners(&newer, &older, &mut told), 1);
        assert_eq!(known("fresh").as_deref(), Some(&bob));
        // To use a session again is no news.
        create("fresh", &ann).await;
        assert!(!changed.has_changed().unwrap());
        assert_eq!(newer.owners(&mut told), []);

        // Another link, which cannot know what the first one has said.
        assert_eq!(tell_owners(&newer, &older, &mut Told::default()), 1);
        assert_eq!(known("early").as_deref(), Some(&ann));

        // More at a time than is kept in order: all is told once more.
        for n in 0..5000 {
            create(&format!("s{n}"), &ann).await;
        }
        assert_eq!(tell_owners(&newer, &older, &mut told), 5000);
        assert_eq!(known("s0").as_deref(), Some(&ann));
    }
}
