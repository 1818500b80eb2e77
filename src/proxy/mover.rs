//! Empties backends that are being drained: each session is closed there at a moment when nothing
//! of it is under way, and its clients open it again elsewhere, or at home when that is back.
//!
//! Asks and waits; who has a session is the directory's to say, and whether something is under way
//! each connection's own.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ahash::RandomState;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::{Shared, hub::Message, port::Answer};
use crate::core::{
    id::{BackendName, ConnectionId, SessionId},
    mux::Freeze,
    reply,
    snapshot::{AdminState, Mode, Snapshot},
};

/// Sessions that one backend is closing at a time.
const AT_A_TIME: usize = 8;

/// How long the clients of one session may stand still for each other.
const STILL: Duration = Duration::from_secs(5);

/// After this long without an answer a backend is asked once more to close a session.
const CLOSE_PATIENCE: Duration = Duration::from_secs(60);

/// Before a move that did not come about is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// Where connections say that they stand still; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Moves {
    next: Arc<AtomicU64>,
    waiting: Arc<Mutex<Waiting>>,
}

type Waiting = HashMap<u64, mpsc::Sender<ConnectionId>, RandomState>;

impl Moves {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `connection` stands still with the session that this ticket is for.
    pub(super) fn frozen(&self, ticket: u64, connection: ConnectionId) {
        if let Some(mover) = self.lock().get(&ticket) {
            // Full or gone: it looks at the directory anyway.
            let _seen = mover.try_send(connection);
        }
    }
}

/// Moves sessions away from backends that are being drained, until `stop`.
pub async fn run(shared: Shared, stop: CancellationToken) {
    let mut draining: HashMap<BackendName, CancellationToken> = HashMap::new();
    loop {
        let snapshot = shared.pool.snapshot();
        draining.retain(|name, running| {
            let goes_on = snapshot.get(name).is_some_and(is_draining);
            if !goes_on {
                running.cancel();
            }
            goes_on
        });
        for backend in snapshot.backends.iter().filter(|b| is_draining(b)) {
            draining.entry(backend.name.clone()).or_insert_with(|| {
                let until = stop.child_token();
                tokio::spawn(empty(shared.clone(), backend.name.clone(), until.clone()));
                until
            });
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = shared.pool.changed(snapshot.generation) => {}
        }
    }
}

/// Whether its sessions are to leave.
fn is_draining(backend: &crate::core::snapshot::Backend) -> bool {
    backend.admin == AdminState::Drain || backend.removed
}

/// Empties one backend, until told to stop.
async fn empty(shared: Shared, backend: BackendName, until: CancellationToken) {
    let deadline = Instant::now() + shared.rules.load().drain_timeout;
    let doors = Arc::new(Semaphore::new(AT_A_TIME));
    let under_way: Arc<Mutex<HashSet<SessionId>>> = Arc::default();
    loop {
        let mut changes = shared.store.changes();
        let owned = shared.store.lock().owned_by(&backend);
        for session in owned {
            let fresh = under_way
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(session.clone());
            if !fresh {
                continue;
            }
            let one = Move {
                shared: shared.clone(),
                backend: backend.clone(),
                session,
                deadline,
                doors: doors.clone(),
            };
            let (under_way, until) = (under_way.clone(), until.clone());
            tokio::spawn(async move {
                one.run(&until).await;
                under_way
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(&one.session);
            });
        }
        tokio::select! {
            () = until.cancelled() => return,
            _ = changes.changed() => {}
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

/// One session on its way.
struct Move {
    shared: Shared,
    backend: BackendName,
    session: SessionId,
    /// When what is under way is not waited for any longer.
    deadline: Instant,
    doors: Arc<Semaphore>,
}

/// Whether a session is closed where it was.
enum Closed {
    Yes,
    /// The backend is gone or given up; if it lives after all, it must close it before it is used.
    Perhaps,
}

/// What became of an attempt.
enum Tried {
    /// It is open there no more, or never was.
    Done,
    /// It is not the moment.
    NotNow,
}

impl Move {
    async fn run(&self, until: &CancellationToken) {
        while !until.is_cancelled() {
            match self.attempt(until).await {
                Tried::Done => return,
                Tried::NotNow => self.thaw(),
            }
            tokio::select! {
                () = until.cancelled() => {}
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
        self.thaw();
    }

    async fn attempt(&self, until: &CancellationToken) -> Tried {
        if !self.is_due() {
            return Tried::NotNow;
        }
        let ready = async {
            let still = self.all_stand_still().await;
            (still, self.doors.acquire().await)
        };
        let (still, door) = tokio::select! {
            ready = ready => ready,
            () = until.cancelled() => return Tried::NotNow,
        };
        // From here on it is not left half done. The picture may be newer than what told to begin.
        if !still || door.is_err() || !self.is_due() {
            return Tried::NotNow;
        }
        let begun = {
            let mut directory = self.shared.store.lock();
            if directory
                .known(Instant::now(), self.session.as_str())
                .owner
                .as_ref()
                != Some(&self.backend)
            {
                return Tried::Done;
            }
            directory.begin_move(self.session.as_str(), &self.backend)
        };
        if !begun {
            return Tried::NotNow;
        }
        let ended = Ended {
            mover: self,
            closed: false,
        };
        match self.close().await {
            Closed::Yes => {}
            Closed::Perhaps => {
                // Until it can be noted nobody may open the session.
                while !self.is_left_behind() {
                    self.shared.report_unmoved();
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
        ended.closed();
        Tried::Done
    }

    /// Closes it there. Returns once that is certain, however long it takes, or the backend is not
    /// counted on any more: a close that is put to it and not answered may be carried out whenever
    /// it wakes, and would reach whoever had opened the session by then.
    async fn close(&self) -> Closed {
        let pool = &self.shared.pool;
        let params = reply::session_params(self.session.as_str());
        loop {
            let given_up = self.given_up();
            let answer = pool.ask(
                &self.backend,
                "sessions.close",
                params.clone(),
                CLOSE_PATIENCE,
            );
            let answer = tokio::select! {
                biased;
                answer = answer => answer,
                () = given_up => return Closed::Perhaps,
            };
            match answer {
                // It answers `{}` whatever it knows of the session; and one call after the other,
                // so the answer stands for those before it, too.
                Answer::Result(_) | Answer::Error(_) => return Closed::Yes,
                Answer::Gone => return Closed::Perhaps,
                // Also if it could not be asked at present.
                Answer::Silent => {}
            }
            tokio::select! {
                () = self.given_up() => return Closed::Perhaps,
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
    }

    fn is_left_behind(&self) -> bool {
        let mut directory = self.shared.store.lock();
        directory.left_behind(&self.session, &self.backend)
    }

    /// Returns once the backend is released, or no part of the pool any more.
    async fn given_up(&self) {
        let pool = &self.shared.pool;
        loop {
            let snapshot = pool.snapshot();
            if snapshot.get(&self.backend).is_none_or(|b| b.released) {
                return;
            }
            pool.changed(snapshot.generation).await;
        }
    }

    /// On a shared disk another backend has to take it. On separate disks it waits for its home;
    /// one that was removed may never come back, so it serves its sessions as long as it may.
    fn is_due(&self) -> bool {
        let snapshot: Arc<Snapshot> = self.shared.pool.snapshot();
        if !snapshot.get(&self.backend).is_some_and(is_draining) {
            return false;
        }
        match snapshot.mode {
            Mode::SharedStorage => snapshot.backends.iter().any(|b| b.takes_placements()),
            Mode::Sticky => {
                let removed = snapshot.get(&self.backend).is_none_or(|b| b.removed);
                !removed || Instant::now() >= self.deadline
            }
        }
    }

    /// Asks every connection that holds the session to stand still with it, and waits until all do.
    async fn all_stand_still(&self) -> bool {
        let ticket = self.shared.moves.next.fetch_add(1, Ordering::Relaxed);
        let (sender, mut frozen) = mpsc::channel(64);
        self.shared.moves.lock().insert(ticket, sender);
        let _registered = Registered {
            moves: &self.shared.moves,
            ticket,
        };
        let mut asked: HashSet<ConnectionId> = HashSet::new();
        let mut first = None;
        let mut forced = false;
        loop {
            let mut changes = self.shared.store.changes();
            let (known, holders) = {
                let directory = self.shared.store.lock();
                let session = self.session.as_str();
                (
                    directory.known(Instant::now(), session),
                    directory.holders(session),
                )
            };
            if known.owner.as_ref() != Some(&self.backend) {
                return true;
            }
            if known.adrift {
                return true;
            }
            let now = Instant::now();
            let force = now >= self.deadline;
            if force && !forced {
                forced = true;
                asked.clear();
            }
            for holder in holders {
                if asked.insert(holder) {
                    let freeze = Freeze { ticket, force };
                    let (session, backend) = (self.session.clone(), self.backend.clone());
                    let news = Message::Freeze(session, backend, freeze);
                    self.shared.hub.send(holder, news);
                }
            }
            let patience = first.map_or(self.deadline, |at: Instant| at + STILL);
            let wake = if forced { now + STILL } else { patience };
            tokio::select! {
                _ = frozen.recv() => {
                    first.get_or_insert(Instant::now());
                }
                _ = changes.changed() => {}
                () = tokio::time::sleep_until(wake.into()) => {
                    // Some stand still and others cannot: nobody shall wait for ever.
                    if first.is_some() || forced {
                        return false;
                    }
                }
            }
        }
    }

    fn tell(&self, message: &Message) {
        let holders = self.shared.store.lock().holders(self.session.as_str());
        for holder in holders {
            self.shared.hub.send(holder, message.clone());
        }
    }

    fn thaw(&self) {
        self.tell(&Message::Thaw(self.session.clone()));
    }
}

/// Takes the ticket back, however it ends.
struct Registered<'a> {
    moves: &'a Moves,
    ticket: u64,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.moves.lock().remove(&self.ticket);
    }
}

/// Ends the move in the directory, however it ends: nobody could open the session else.
struct Ended<'a> {
    mover: &'a Move,
    closed: bool,
}

impl Ended<'_> {
    fn closed(mut self) {
        self.closed = true;
    }
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        let Move {
            shared, session, ..
        } = self.mover;
        let now = Instant::now();
        shared.store.lock().end_move(now, session, self.closed);
        shared.store.announce();
        if self.closed {
            self.mover.tell(&Message::Moved(session.clone()));
        }
    }
}
