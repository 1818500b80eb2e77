//! News for client connections: `session.lifecycle` of all backends, provider requests, drain.
//!
//! Each connection has a mailbox; the hub knows them all. A mailbox is bounded: a client that does
//! not read loses news of sessions first, never frames of its sessions.
//!
//! News of sessions are for everybody, so that where many connections open sessions each of them
//! wakes all others, seven times with a turn. They are put into mailboxes a few dozen times in a second
//! at most, and all that have come meanwhile at once.

mod post;

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use ahash::RandomState;
use bytes::Bytes;
use futures_util::task::AtomicWaker;

use self::post::{Next, Post};
use crate::core::{
    id::{BackendName, ConnectionId, SessionId},
    identity::Person,
    mux::{Freeze, Note},
};

/// News of sessions that wait for one slow client.
const MAILBOX: usize = 1024;

/// One message to a connection.
#[derive(Clone, Debug)]
pub enum Message {
    /// What is new of sessions, in the order in which it came; not the first so many of them.
    News(Arc<[News]>, usize),
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

impl Message {
    /// How many news it brings.
    fn news(&self) -> usize {
        if let Self::News(news, skipped) = self {
            news.len() - skipped
        } else {
            0
        }
    }
}

/// Something new about a session, for all who may hear of it.
#[derive(Clone, Debug)]
pub enum News {
    /// A `session.lifecycle` notification.
    Lifecycle {
        /// What it is about.
        session: SessionId,
        /// Whose that is, as far as anybody knew when it came.
        person: Option<Arc<Person>>,
        /// The whole frame.
        frame: Bytes,
    },
    /// This session, which was nobody's, is this person's.
    Owned(SessionId, Arc<Person>),
}

impl News {
    /// Bytes that it takes to tell of it.
    fn len(&self) -> usize {
        match self {
            Self::Lifecycle { frame, .. } => frame.len(),
            Self::Owned(..) => 0,
        }
    }
}

/// Where one connection's messages wait.
#[derive(Debug, Default)]
pub struct Mailbox {
    queue: Mutex<Queue>,
    /// Whether `queue` holds something: a connection asks on every wake-up, and nearly always in
    /// vain.
    waiting: AtomicBool,
    /// The first of all news of sessions that may be for its client; none while this is zero.
    hears_from: AtomicU64,
    lost: AtomicU32,
    waker: AtomicWaker,
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<Message>,
    /// News in them.
    news: usize,
}

impl Mailbox {
    fn push(&self, message: Message) {
        {
            let mut queue = self.queue();
            let news = message.news();
            if news > 0 && queue.news + news > MAILBOX {
                let news = u32::try_from(news).unwrap_or(u32::MAX);
                self.lost.fetch_add(news, Ordering::Relaxed);
                return;
            }
            queue.news += news;
            queue.messages.push_back(message);
            self.waiting.store(true, Ordering::Release);
        }
        self.waker.wake();
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
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
        let message = queue.messages.pop_front();
        queue.news -= message.as_ref().map_or(0, Message::news);
        if queue.messages.is_empty() {
            self.waiting.store(false, Ordering::Release);
            queue.messages = VecDeque::new();
        }
        message
    }

    /// Whether nothing waits and nothing was dropped.
    #[inline]
    pub fn is_quiet(&self) -> bool {
        !self.waiting.load(Ordering::Acquire) && self.lost.load(Ordering::Relaxed) == 0
    }

    /// News that were dropped because the client did not read, since the last call.
    pub fn poll_lost(&self) -> u64 {
        match self.lost.load(Ordering::Relaxed) {
            0 => 0,
            _ => u64::from(self.lost.swap(0, Ordering::Relaxed)),
        }
    }
}

type Mailboxes = HashMap<ConnectionId, Arc<Mailbox>, RandomState>;

/// All mailboxes; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Hub(Arc<Inside>);

#[derive(Debug, Default)]
struct Inside {
    mailboxes: RwLock<Mailboxes>,
    /// [`Message::Drain`] was published: who joins later is told as well.
    draining: AtomicBool,
    /// News on their way to mailboxes. Locked before `mailboxes`.
    post: Mutex<Post>,
}

impl Hub {
    /// A mailbox for a new connection.
    pub fn join(&self, connection: ConnectionId) -> Arc<Mailbox> {
        let mailbox = Arc::new(Mailbox::default());
        let mut mailboxes = self.write();
        if self.0.draining.load(Ordering::Relaxed) {
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

    /// From here on its client may hear news of sessions: it is known who it is, or nobody asks.
    pub fn let_hear(&self, mailbox: &Mailbox) {
        if mailbox.hears_from.load(Ordering::Relaxed) == 0 {
            // What is told meanwhile is news to it.
            let post = self.post();
            mailbox
                .hears_from
                .store(post.next_serial(), Ordering::Release);
        }
    }

    /// To everybody, behind all news that came before it.
    pub fn publish(&self, message: &Message) {
        let mut post = self.post();
        self.deliver(&mut post);
        let mailboxes = self.read();
        if matches!(message, Message::Drain) {
            // Under the lock: a connection joins either before this or after it.
            self.0.draining.store(true, Ordering::Relaxed);
        }
        for mailbox in mailboxes.values() {
            mailbox.push(message.clone());
        }
    }

    /// Something new of a session, to everybody who may hear of sessions: at once if there was
    /// nothing new for a moment, else together with what comes in this moment.
    pub fn tell(&self, news: News) {
        let mut post = self.post();
        match post.take(news) {
            Next::Nothing => {}
            Next::Deliver => self.deliver(&mut post),
            Next::Wait(at) => match tokio::runtime::Handle::try_current() {
                Ok(runtime) => {
                    let hub = self.clone();
                    runtime.spawn(async move {
                        tokio::time::sleep_until(at).await;
                        hub.deliver(&mut hub.post());
                    });
                }
                Err(_) => self.deliver(&mut post),
            },
        }
    }

    fn deliver(&self, post: &mut Post) {
        let Some(news) = post.give() else { return };
        let end = post.next_serial();
        let mut count = 0;
        for mailbox in self.read().values() {
            let from = mailbox.hears_from.load(Ordering::Acquire);
            if from > 0 && from < end {
                // Who came meanwhile hears nothing of what was before.
                let heard = usize::try_from(end - from).unwrap_or(usize::MAX);
                mailbox.push(Message::News(
                    news.clone(),
                    news.len().saturating_sub(heard),
                ));
                count += 1;
            }
        }
        post.delivered(count);
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

    fn post(&self) -> MutexGuard<'_, Post> {
        self.0.post.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Mailboxes> {
        self.0
            .mailboxes
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Mailboxes> {
        self.0
            .mailboxes
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn lifecycle(session: &str, person: Option<&str>) -> News {
        News::Lifecycle {
            session: SessionId::from(session),
            person: person.map(|name| Arc::new(Person::new("service", name))),
            frame: Bytes::from_static(b"x"),
        }
    }

    /// All that waits: `session` of a lifecycle, `+session` of an owner, `!` of anything else.
    fn heard(mailbox: &Mailbox) -> Vec<String> {
        let mut heard = Vec::new();
        while let Some(message) = mailbox.take() {
            let Message::News(news, skipped) = message else {
                heard.push("!".to_owned());
                continue;
            };
            heard.extend(news[skipped..].iter().map(|news| match news {
                News::Lifecycle { session, .. } => session.to_string(),
                News::Owned(session, _) => format!("+{session}"),
            }));
        }
        heard
    }

    fn listening(hub: &Hub, id: u64) -> Arc<Mailbox> {
        let mailbox = hub.join(ConnectionId(id));
        hub.let_hear(&mailbox);
        mailbox
    }

    #[test]
    fn a_full_mailbox_drops_lifecycle_and_keeps_commands() {
        let hub = Hub::default();
        let mailbox = listening(&hub, 1);
        for _ in 0..=MAILBOX {
            hub.tell(lifecycle("s", Some("p")));
        }
        hub.publish(&Message::Drain);
        assert_eq!(mailbox.poll_lost(), 1);
        let mut cx = Context::from_waker(Waker::noop());
        let (mut last, mut news) = (None, 0);
        while let Poll::Ready(message) = mailbox.poll_next(&mut cx) {
            news += message.news();
            last = Some(message);
        }
        assert!(matches!(last, Some(Message::Drain)));
        assert_eq!(news, MAILBOX);
        hub.tell(lifecycle("t", Some("p")));
        assert_eq!(heard(&mailbox), ["t"], "there is room again");
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

    #[test]
    fn who_cannot_hear_news_is_not_woken_by_them() {
        let hub = Hub::default();
        let (deaf, hears) = (hub.join(ConnectionId(1)), listening(&hub, 2));
        hub.tell(lifecycle("s", Some("p")));
        assert!(deaf.is_quiet());
        assert_eq!(heard(&hears), ["s"]);
    }

    #[test]
    fn an_owner_is_told_where_somebody_may_wait_for_it() {
        let hub = Hub::default();
        let mailbox = listening(&hub, 1);
        let person = Arc::new(Person::new("service", "p"));
        let owned = |session: &str| News::Owned(SessionId::from(session), person.clone());
        hub.tell(owned("a"));
        hub.tell(lifecycle("b", Some("p")));
        hub.tell(owned("b"));
        assert_eq!(heard(&mailbox), ["b"], "whose both are was known before");
        hub.tell(lifecycle("c", None));
        hub.tell(owned("c"));
        hub.tell(owned("c"));
        assert_eq!(heard(&mailbox), ["c", "+c"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_in_one_moment_comes_at_once_and_in_order() {
        let hub = Hub::default();
        let mailbox = listening(&hub, 1);
        let turns = || async {
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
        };
        hub.tell(lifecycle("a", Some("p")));
        assert_eq!(heard(&mailbox), ["a"], "after a quiet moment at once");
        hub.tell(lifecycle("b", Some("p")));
        turns().await;
        assert!(mailbox.is_quiet());
        let late = listening(&hub, 2);
        hub.tell(lifecycle("c", Some("p")));
        tokio::time::advance(post::LONGEST).await;
        turns().await;
        assert!(matches!(mailbox.take(), Some(Message::News(news, 0)) if news.len() == 2));
        assert_eq!(heard(&late), ["c"], "no more than has come since");
        hub.tell(lifecycle("d", Some("p")));
        hub.publish(&Message::Rules);
        assert_eq!(heard(&mailbox), ["d", "!"], "nothing overtakes news");
        for _ in 0..post::MOST {
            hub.tell(lifecycle("e", Some("p")));
        }
        assert_eq!(heard(&mailbox).len(), post::MOST, "so many do not wait");
        tokio::time::advance(post::LONGEST).await;
        turns().await;
        assert!(mailbox.is_quiet(), "and come once");
    }
}
