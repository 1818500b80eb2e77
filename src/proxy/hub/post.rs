//! News of sessions on their way to all mailboxes: when they are put in, and which nobody waits for.
//! Knows no mailbox.

use std::{collections::HashMap, sync::Arc, time::Duration};

use ahash::RandomState;
use tokio::time::Instant;

use super::News;
use crate::core::id::SessionId;

/// How long news wait for others, for those that come right behind others. Nobody sees it; and
/// servers that tell thousands of news do not wake everybody thousands of times.
const PAUSE: Duration = Duration::from_millis(5);

/// The more hear them, the more it takes to tell each of them.
const PAUSE_EACH: Duration = Duration::from_micros(20);

/// The longest that news wait.
pub(super) const LONGEST: Duration = Duration::from_millis(50);

/// So many do not wait any more.
pub(super) const MOST: usize = 256;

/// Nor do so many bytes: a client that does not read takes this much more than it should.
const MOST_BYTES: usize = 64 * 1024;

/// Connections wait for an owner of a session that they have heard of for ten seconds; in which they
/// may be late.
const UNOWNED_FOR: Duration = Duration::from_secs(60);

/// Sessions without an owner that are remembered.
const UNOWNED: usize = 1024;

/// What waits.
#[derive(Debug, Default)]
pub(super) struct Post {
    /// All news so far.
    count: u64,
    news: Vec<News>,
    bytes: usize,
    /// What comes before then waits.
    next: Option<Instant>,
    /// Somebody comes to deliver what waits.
    is_called_for: bool,
    unowned: Unowned,
}

/// What to do with what waits.
#[derive(Debug)]
pub(super) enum Next {
    Nothing,
    Deliver,
    /// Deliver it then.
    Wait(Instant),
}

impl Post {
    pub(super) fn take(&mut self, news: News) -> Next {
        let now = Instant::now();
        match &news {
            News::Lifecycle {
                session,
                person: None,
                ..
            } => self.unowned.note(now, session),
            News::Lifecycle { .. } => {}
            // Most sessions have an owner before anybody hears of them.
            News::Owned(session, _) if !self.unowned.take(now, session) => return Next::Nothing,
            News::Owned(..) => {}
        }
        self.count += 1;
        self.bytes += news.len();
        self.news.push(news);
        let is_full = self.news.len() >= MOST || self.bytes >= MOST_BYTES;
        match self.next.filter(|at| *at > now && !is_full) {
            None => Next::Deliver,
            Some(_) if self.is_called_for => Next::Nothing,
            Some(at) => {
                self.is_called_for = true;
                Next::Wait(at)
            }
        }
    }

    /// The number of the news to come; the first is 1.
    pub(super) fn next_serial(&self) -> u64 {
        self.count + 1
    }

    /// All that waits, to be delivered now.
    pub(super) fn give(&mut self) -> Option<Arc<[News]>> {
        self.is_called_for = false;
        if self.news.is_empty() {
            return None;
        }
        self.bytes = 0;
        Some(self.news.drain(..).collect())
    }

    /// It was delivered to so many.
    pub(super) fn delivered(&mut self, mailboxes: u32) {
        let pause = PAUSE + PAUSE_EACH.saturating_mul(mailboxes);
        self.next = Some(Instant::now() + pause.min(LONGEST));
    }
}

/// Sessions of which connections were told when nobody knew whose they are.
#[derive(Debug, Default)]
struct Unowned {
    since: HashMap<SessionId, Instant, RandomState>,
    /// There were too many to be remembered: until then it may be any.
    any_until: Option<Instant>,
}

impl Unowned {
    fn note(&mut self, now: Instant, session: &SessionId) {
        if self.since.len() >= UNOWNED {
            self.since.retain(|_, since| now < *since + UNOWNED_FOR);
        }
        if self.since.len() >= UNOWNED {
            self.since.clear();
            self.any_until = Some(now + UNOWNED_FOR);
        }
        self.since.insert(session.clone(), now);
    }

    /// Whether somebody may have heard of it; it is somebody's now.
    fn take(&mut self, now: Instant, session: &SessionId) -> bool {
        let since = self.since.remove(session);
        self.any_until.is_some_and(|until| now < until)
            || since.is_some_and(|since| now < since + UNOWNED_FOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_without_an_owner_are_remembered_in_bounds() {
        let (now, mut unowned) = (Instant::now(), Unowned::default());
        let id = |n: usize| SessionId::from(format!("s{n}"));
        assert!(!unowned.take(now, &id(0)));
        unowned.note(now, &id(0));
        assert!(unowned.take(now, &id(0)));
        assert!(!unowned.take(now, &id(0)), "once");
        unowned.note(now, &id(0));
        let late = now + UNOWNED_FOR;
        assert!(!unowned.take(late, &id(0)), "nobody waits so long");
        for n in 0..UNOWNED {
            unowned.note(now, &id(n));
        }
        assert!(!unowned.take(now, &id(UNOWNED)));
        // Those are too late to be waited for, and make room.
        unowned.note(late, &id(UNOWNED));
        assert_eq!(unowned.since.len(), 1);
        for n in 0..UNOWNED {
            unowned.note(late, &id(n));
        }
        assert!(unowned.take(late, &id(UNOWNED)), "it may be any");
        assert!(unowned.since.len() <= UNOWNED);
        assert!(!unowned.take(late + UNOWNED_FOR, &id(UNOWNED)));
    }
}
