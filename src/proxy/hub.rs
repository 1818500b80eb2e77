//! News for client connections: `session.lifecycle` of all backends, provider requests, drain.
//!
//! Each connection has a mailbox; the hub knows them all. A mailbox is bounded: a client that does
//! not read loses lifecycle notifications first, never frames of its sessions.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use ahash::RandomState;
use bytes::Bytes;
use futures_util::task::AtomicWaker;

use crate::core::{
    id::{BackendName, ConnectionId, SessionId},
    identity::Person,
    mux::{Freeze, Note},
};

/// Lifecycle notifications that wait for one slow client.
const MAILBOX: usize = 1024;

/// One message to a connection.
#[derive(Clone, Debug)]
pub enum Message {
    /// A framed `session.lifecycle`.
    Lifecycle(News),
    /// This session, which was nobody's, is this person's.
    Owned(SessionId, Arc<Person>),
    /// A provider's request (body) under this token.
    ProviderRequest {
        /// Comes back with the answer.
        token: u64,
        /// The request's body.
        body: Bytes,
    },
    /// This backend says nothing any more, and is not counted on.
    BackendSilent(BackendName),
    /// It is counted on again.
    BackendBack(BackendName),
    /// It is given up: what it has open is opened elsewhere.
    BackendReleased(BackendName),
    /// The session is to be moved away from this backend.
    Freeze(SessionId, BackendName, Freeze),
    /// It is not, after all.
    Thaw(SessionId),
    /// It was closed there.
    Moved(SessionId),
    /// This backend has closed the session in silence.
    SessionLost(SessionId, BackendName),
    /// It is this connection's turn in the session, as it wanted.
    TurnGranted(SessionId),
    /// The turn that runs in the session is this connection's to watch; what it waits for.
    TurnInherited(SessionId, Arc<[String]>),
    /// The machine of another connection says something about a session.
    Note(ConnectionId, Note),
    /// The rules have changed.
    Rules,
    /// No new work; close when nothing runs.
    Drain,
    /// End now, honestly.
    Shutdown,
}

/// A `session.lifecycle` notification.
#[derive(Clone, Debug)]
pub struct News {
    /// What it is about.
    pub session: SessionId,
    /// Whose that is, as far as anybody knew when it came.
    pub person: Option<Arc<Person>>,
    /// The whole frame.
    pub frame: Bytes,
}

/// Where one connection's messages wait.
#[derive(Debug, Default)]
pub struct Mailbox {
    queue: Mutex<VecDeque<Message>>,
    /// Whether `queue` holds something: a connection asks on every wake-up, and nearly always in
    /// vain.
    waiting: AtomicBool,
    lost: AtomicU64,
    waker: AtomicWaker,
}

impl Mailbox {
    fn push(&self, message: Message) {
        {
            let mut queue = self.queue();
            let is_news = matches!(message, Message::Lifecycle(_) | Message::Owned(..));
            if is_news && queue.len() >= MAILBOX {
                self.lost.fetch_add(1, Ordering::Relaxed);
                return;
            }
            queue.push_back(message);
            self.waiting.store(true, Ordering::Release);
        }
        self.waker.wake();
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Message>> {
        self.queue
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The next message; registers the task to be woken when there is none.
    pub fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Message> {
        if let Some(message) = self.take() {
            return Poll::Ready(message);
        }
        self.register(cx);
        self.take().map_or(Poll::Pending, Poll::Ready)
    }

    /// Has the task woken by the next message that comes, once.
    pub fn register(&self, cx: &Context<'_>) {
        self.waker.register(cx.waker());
    }

    /// The next message; for a task that has [registered](Self::register) since it was woken.
    #[inline]
    pub fn take(&self) -> Option<Message> {
        if !self.waiting.load(Ordering::Acquire) {
            return None;
        }
        let mut queue = self.queue();
        let message = queue.pop_front();
        if queue.is_empty() {
            self.waiting.store(false, Ordering::Release);
            queue.shrink_to(0);
        }
        message
    }

    /// Whether nothing waits and nothing was dropped.
    #[inline]
    pub fn is_quiet(&self) -> bool {
        !self.waiting.load(Ordering::Acquire) && self.lost.load(Ordering::Relaxed) == 0
    }

    /// Lifecycle notifications that were dropped because the client did not read, since the last
    /// call.
    pub fn poll_lost(&self) -> u64 {
        match self.lost.load(Ordering::Relaxed) {
            0 => 0,
            _ => self.lost.swap(0, Ordering::Relaxed),
        }
    }
}

type Mailboxes = HashMap<ConnectionId, Arc<Mailbox>, RandomState>;

/// All mailboxes; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Hub {
    mailboxes: Arc<RwLock<Mailboxes>>,
    /// [`Message::Drain`] was published: who joins later is told as well.
    draining: Arc<AtomicBool>,
}

impl Hub {
    /// A mailbox for a new connection.
    pub fn join(&self, connection: ConnectionId) -> Arc<Mailbox> {
        let mailbox = Arc::new(Mailbox::default());
        let mut mailboxes = self.write();
        if self.draining.load(Ordering::Relaxed) {
            mailbox.push(Message::Drain);
        }
        mailboxes.insert(connection, mailbox.clone());
        mailbox
    }

    /// The connection has ended.
    pub fn leave(&self, connection: ConnectionId) {
        self.write().remove(&connection);
    }

    /// How many connections there are.
    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.read().is_empty()
    }

    /// To everybody.
    pub fn publish(&self, message: &Message) {
        let mailboxes = self.read();
        if matches!(message, Message::Drain) {
            // Under the lock: a connection joins either before this or after it.
            self.draining.store(true, Ordering::Relaxed);
        }
        for mailbox in mailboxes.values() {
            mailbox.push(message.clone());
        }
    }

    /// To one. False if it has left.
    pub fn send(&self, connection: ConnectionId, message: Message) -> bool {
        match self.read().get(&connection) {
            Some(mailbox) => {
                mailbox.push(message);
                true
            }
            None => false,
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Mailboxes> {
        self.mailboxes
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Mailboxes> {
        self.mailboxes
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn a_full_mailbox_drops_lifecycle_and_keeps_commands() {
        let hub = Hub::default();
        let mailbox = hub.join(ConnectionId(1));
        for _ in 0..=MAILBOX {
            hub.publish(&Message::Lifecycle(News {
                session: SessionId::from("s"),
                person: None,
                frame: Bytes::from_static(b"x"),
            }));
        }
        hub.publish(&Message::Drain);
        assert_eq!(mailbox.poll_lost(), 1);
        let mut cx = Context::from_waker(Waker::noop());
        let mut last = None;
        while let Poll::Ready(message) = mailbox.poll_next(&mut cx) {
            last = Some(message);
        }
        assert!(matches!(last, Some(Message::Drain)));
        hub.leave(ConnectionId(1));
        assert!(!hub.send(ConnectionId(1), Message::Drain));
    }

    #[test]
    fn who_joins_a_drain_is_told_of_it() {
        let hub = Hub::default();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(hub.join(ConnectionId(1)).poll_next(&mut cx).is_pending());
        hub.publish(&Message::Drain);
        let late = hub.join(ConnectionId(2));
        let told = late.poll_next(&mut cx);
        assert!(matches!(told, Poll::Ready(Message::Drain)));
    }
}
