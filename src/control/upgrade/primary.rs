//! The newest process's side of the links: what older ones say goes into the table, what they ask
//! is decided, and what operators say is passed on to them.

use std::{
    collections::{BTreeMap, HashSet},
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use rustix::process::{Pid, test_kill_process};
use tokio::{
    io::{AsyncBufRead, AsyncWrite},
    sync::{mpsc, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::wire::{self, Wire, WireError};
use crate::{
    core::{
        event::{Event, UpgradePhase},
        id::ConnectionId,
        peer::{self, Instance, Message},
    },
    store::{Store, Told},
};

/// How long a process that has lost its link is believed to hold what it held.
const RELINK: Duration = Duration::from_secs(10);

/// Lines that may wait to be written to one process; beyond it its link is cut, and made anew.
const MAILBOX: usize = 1024;

/// Questions of one process that may be decided at a time.
const QUESTIONS: usize = 1024;

/// What the table of processes needs of the rest.
pub trait Household: Send + Sync {
    /// What happened.
    fn record(&self, event: Event);
    /// What operators want now, one message for each backend.
    fn wishes(&self) -> Vec<Message>;
}

/// An answer that is on its way.
type Answering = Pin<Box<dyn Future<Output = Option<Message>> + Send>>;

/// The other processes; clones share the table.
#[derive(Clone)]
pub struct Primary {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    household: Arc<dyn Household>,
    peers: Mutex<BTreeMap<Instance, Peer>>,
    next: AtomicU64,
    count: watch::Sender<usize>,
    tasks: TaskTracker,
    stop: Mutex<CancellationToken>,
}

struct Peer {
    holder: ConnectionId,
    pid: Option<i32>,
    /// Its link, and which one it is.
    link: Option<(u64, mpsc::Sender<Message>)>,
}

impl Primary {
    /// No other process yet.
    pub fn new(store: Store, household: Arc<dyn Household>) -> Self {
        Self {
            inner: Arc::new(Inner {
                store,
                household,
                peers: Mutex::default(),
                next: AtomicU64::new(1),
                count: watch::Sender::new(0),
                tasks: TaskTracker::new(),
                stop: Mutex::default(),
            }),
        }
    }

    /// How many other processes there are.
    pub fn count(&self) -> usize {
        *self.inner.count.borrow()
    }

    /// Returns when there is none.
    pub async fn alone(&self) {
        // The sender lives in `self`.
        let mut count = self.inner.count.subscribe();
        let _never = count.wait_for(|n| *n == 0).await;
    }

    /// To all.
    pub fn tell(&self, message: &Message) {
        let mut full = Vec::new();
        for (instance, peer) in self.inner.peers().iter_mut() {
            if let Some((_, mailbox)) = &peer.link
                && mailbox.try_send(message.clone()).is_err()
            {
                // Without its mailbox the link ends; on the next one it hears everything anew.
                peer.link = None;
                full.push(instance.clone());
            }
        }
        for instance in full {
            let why = Some("it does not read".to_owned());
            self.inner.clone().expect(instance, why);
        }
    }

    /// The holder that stands for this process.
    pub(super) fn holder_of(&self, instance: &Instance) -> ConnectionId {
        let inner = &self.inner;
        let mut peers = inner.peers();
        let peer = peers.entry(instance.clone()).or_insert_with(|| Peer {
            holder: peer::holder(inner.next.fetch_add(1, Ordering::Relaxed)),
            pid: pid_of(instance),
            link: None,
        });
        let holder = peer.holder;
        inner.count.send_replace(peers.len());
        holder
    }

    /// All, by the holders that stand for them.
    pub(super) fn holders(&self) -> Vec<(ConnectionId, Instance)> {
        let peers = self.inner.peers();
        peers
            .iter()
            .map(|(instance, peer)| (peer.holder, instance.clone()))
            .collect()
    }

    /// Ends all links; what the processes hold stays in the table. They link up again, with
    /// whoever serves them then.
    pub(super) async fn pause(&self) {
        let inner = &self.inner;
        let former = std::mem::take(&mut *lock(&inner.stop));
        former.cancel();
        inner.tasks.close();
        inner.tasks.wait().await;
        inner.tasks.reopen();
    }

    /// They are another process's now.
    pub(super) fn retire(&self) {
        let holders = self.holders();
        self.inner.peers().clear();
        self.inner.count.send_replace(0);
        self.inner.store.retire(&holders);
    }

    /// Those that did not link up since they were heard of last are given time to.
    pub(super) fn expect_all(&self) {
        let waiting: Vec<Instance> = self
            .inner
            .peers()
            .iter()
            .filter(|(_, peer)| peer.link.is_none())
            .map(|(instance, _)| instance.clone())
            .collect();
        for instance in waiting {
            self.inner.clone().expect(instance, None);
        }
    }

    /// Serves a process that has linked up, in a task of its own.
    pub(super) fn serve(&self, wire: Wire, instance: Instance, synced: Synced) {
        let inner = self.inner.clone();
        let holder = self.holder_of(&instance);
        let (mailbox, mail) = mpsc::channel(MAILBOX);
        let number = inner.next.fetch_add(1, Ordering::Relaxed);
        let known_before = {
            let mut peers = inner.peers();
            let former = peers
                .get_mut(&instance)
                .and_then(|peer| peer.link.replace((number, mailbox.clone())));
            former.is_some()
        };
        if !known_before {
            inner.report(UpgradePhase::Attached, &instance, "");
        }
        for wish in inner.household.wishes() {
            let _full = mailbox.try_send(wish);
        }
        drop(mailbox);
        let stop = lock(&inner.stop).clone();
        inner.tasks.clone().spawn(async move {
            let Wire {
                mut read,
                mut write,
            } = wire;
            let link = Link {
                inner: &inner,
                holder,
                instance: &instance,
                synced,
                said: HashSet::new(),
            };
            let ended = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                ended = link.run(&mut read, &mut write, mail) => ended,
            };
            inner.link_ended(&instance, number, &ended);
        });
    }
}

/// Whether a process that links up has to tell everything first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Synced {
    /// It was part of the handing over.
    Already,
    /// It begins with all that it holds.
    NotYet,
}

/// Why a link ended.
enum End {
    /// It has ended by itself, and everything of it.
    Left,
    /// For the log.
    Broken(WireError),
}

struct Link<'a> {
    inner: &'a Inner,
    holder: ConnectionId,
    instance: &'a Instance,
    synced: Synced,
    /// What it has said that it holds, until it has said all.
    said: HashSet<String>,
}

impl Link<'_> {
    async fn run(
        mut self,
        read: &mut (impl AsyncBufRead + Unpin),
        write: &mut (impl AsyncWrite + Unpin),
        mut mail: mpsc::Receiver<Message>,
    ) -> End {
        let (answers, mut answered) = mpsc::channel::<Message>(QUESTIONS);
        let store = &self.inner.store;
        let mut told = match self.synced {
            Synced::Already => Told::at_the_start(),
            Synced::NotYet => Told::default(),
        };
        let mut owners = store.owners_changed();
        owners.mark_changed();
        let writing = async {
            loop {
                let messages = tokio::select! {
                    Some(message) = answered.recv() => vec![message],
                    message = mail.recv() => match message {
                        Some(message) => vec![message],
                        // A newer link of the same process.
                        None => return WireError::Ended,
                    },
                    Ok(()) = owners.changed() => {
                        let lines = store.owners(&mut told);
                        if !lines.is_empty() {
                            owners.mark_changed();
                        }
                        lines
                    }
                };
                if let Err(error) = wire::write(write, &messages).await {
                    return error;
                }
            }
        };
        let reading = async {
            let mut asking: FuturesUnordered<Answering> = FuturesUnordered::new();
            loop {
                let next = {
                    let mut line = std::pin::pin!(wire::read(read));
                    loop {
                        tokio::select! {
                            biased;
                            Some(answer) = asking.next(), if !asking.is_empty() => {
                                if let Some(answer) = answer
                                    && answers.send(answer).await.is_err()
                                {
                                    return End::Broken(WireError::Ended);
                                }
                            }
                            line = &mut line, if asking.len() < QUESTIONS => break line,
                        }
                    }
                };
                match next {
                    Ok(Message::Leaving) => return End::Left,
                    Ok(message) => match self.take(message).await {
                        Ok(Some(answering)) => asking.push(answering),
                        Ok(None) => {}
                        Err(error) => return End::Broken(error),
                    },
                    Err(error) => return End::Broken(error),
                }
            }
        };
        tokio::select! {
            end = reading => end,
            error = writing => End::Broken(error),
        }
    }

    /// Takes one line; an answer to it may need time.
    async fn take(&mut self, message: Message) -> Result<Option<Answering>, WireError> {
        let store = &self.inner.store;
        match message {
            Message::Holds {
                session,
                held,
                of: None,
            } => {
                if !store.peer_holds(self.holder, &session, &held) {
                    let what = format!(
                        "session {session} has two owners, one of them {}",
                        held.owner
                    );
                    self.inner
                        .report(UpgradePhase::Conflict, self.instance, &what);
                }
                self.note(session);
                Ok(None)
            }
            Message::Gone { session, deleted } => {
                store.peer_gone(self.holder, &session, deleted);
                Ok(None)
            }
            Message::Synced => {
                if self.synced == Synced::NotYet {
                    store.peer_synced(self.holder, &self.said);
                    self.synced = Synced::Already;
                    self.said = HashSet::new();
                }
                Ok(None)
            }
            Message::Ask {
                id,
                session,
                question,
            } => {
                let (store, holder) = (store.clone(), self.holder);
                self.note(session.clone());
                let mut answering: Answering = Box::pin(async move {
                    let decided = store.peer_asks(holder, &session, &question).await;
                    let (owner, whose) = decided.ok()?;
                    Some(Message::Answer {
                        id,
                        owner: owner.to_string(),
                        whose,
                    })
                });
                // What comes next on the line must find it begun.
                let mut early = None;
                poll_fn(|task| {
                    if let Poll::Ready(answer) = answering.as_mut().poll(task) {
                        early = Some(answer);
                    }
                    Poll::Ready(())
                })
                .await;
                Ok(Some(match early {
                    Some(answer) => Box::pin(std::future::ready(answer)),
                    None => answering,
                }))
            }
            Message::Hello { .. }
            | Message::Welcome { .. }
            | Message::Refused { .. }
            | Message::Received
            | Message::Remembers { .. }
            | Message::Operator { .. }
            | Message::TakeOver
            | Message::Holds { .. }
            | Message::Moved { .. }
            | Message::Taken
            | Message::Retired
            | Message::Answer { .. }
            | Message::Owned { .. }
            | Message::Drain
            | Message::Leaving => Err(WireError::Unexpected),
        }
    }

    fn note(&mut self, session: String) {
        if self.synced == Synced::NotYet {
            self.said.insert(session);
        }
    }
}

impl Inner {
    fn peers(&self) -> MutexGuard<'_, BTreeMap<Instance, Peer>> {
        lock(&self.peers)
    }

    fn report(&self, phase: UpgradePhase, instance: &Instance, detail: &str) {
        self.household.record(Event::Upgrade {
            phase,
            peer: pid_of(instance).and_then(|pid| u32::try_from(pid).ok()),
            detail: detail.into(),
        });
    }

    fn link_ended(self: &Arc<Self>, instance: &Instance, number: u64, end: &End) {
        {
            let mut peers = self.peers();
            let Some(peer) = peers.get_mut(instance) else {
                return;
            };
            if peer.link.as_ref().is_none_or(|(now, _)| *now != number) {
                return;
            }
            peer.link = None;
        }
        match end {
            End::Left => self.forget(instance, "ended"),
            End::Broken(why) => self.clone().expect(instance.clone(), Some(why.to_string())),
        }
    }

    /// Waits for it to link up again, as long as it lives.
    fn expect(self: Arc<Self>, instance: Instance, why: Option<String>) {
        let stop = lock(&self.stop).clone();
        self.tasks.clone().spawn(async move {
            let pid = self.peers().get(&instance).and_then(|peer| peer.pid);
            let gone = async {
                let end = tokio::time::Instant::now() + RELINK;
                let mut look = tokio::time::interval(Duration::from_millis(100));
                while tokio::time::Instant::now() < end {
                    look.tick().await;
                    let linked = self.peers().get(&instance).is_none_or(|p| p.link.is_some());
                    if linked {
                        return None;
                    }
                    if !pid.is_none_or(is_alive) {
                        return Some("is dead");
                    }
                }
                Some("does not link up again")
            };
            let gone = tokio::select! {
                () = stop.cancelled() => return,
                gone = gone => gone,
            };
            if let Some(how) = gone {
                let why = why.map_or_else(String::new, |why| format!(": {why}"));
                self.forget(&instance, &format!("{how}{why}"));
            }
        });
    }

    fn forget(&self, instance: &Instance, why: &str) {
        let gone = {
            let mut peers = self.peers();
            if peers.get(instance).is_some_and(|peer| peer.link.is_some()) {
                return;
            }
            let gone = peers.remove(instance);
            self.count.send_replace(peers.len());
            gone
        };
        if let Some(peer) = gone {
            self.store.peer_left(peer.holder);
            self.report(UpgradePhase::Gone, instance, why);
        }
    }
}

/// `PID-…`; see [`super::own_instance`].
pub(super) fn pid_of(instance: &Instance) -> Option<i32> {
    instance.0.split('-').next()?.parse().ok()
}

pub(super) fn is_alive(pid: i32) -> bool {
    Pid::from_raw(pid).is_some_and(|pid| test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whole at every moment, so a panic elsewhere spoils nothing.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
