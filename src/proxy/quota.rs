//! What each user uses at a time, over all connections: connections, sessions, turns, calls and
//! bytes per second. Counts and refuses; what the caps are is the configuration's business, and who
//! somebody is the caller's.
//!
//! An account outlives its last connection for a while: leaving and coming back is no new start.

use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ahash::RandomState;
use arc_swap::ArcSwap;
use governor::{
    DefaultDirectRateLimiter, RateLimiter,
    clock::{Clock, DefaultClock},
};
use hashbrown::{
    HashMap,
    hash_map::{Entry, EntryRef},
};

use crate::core::{
    id::SessionId,
    identity::{Caps, Person},
    mux::Over,
};

/// Keys of the configuration.
pub const CONNECTIONS: &str = "limits.connections_per_user";
/// As above.
pub const SESSIONS: &str = "sessions.max_open_per_user";
/// As above.
pub const TURNS: &str = "limits.turns_per_user";
/// As above.
pub const CALLS: &str = "limits.calls_per_second";
/// As above.
pub const BYTES: &str = "limits.bytes_per_second";

/// How long an account without connections is kept.
const KEPT: Duration = Duration::from_secs(60);

/// Accounts that there may be before it is looked which are not needed any more.
const FEW: usize = 256;

/// When somebody may try again who has too much of something open: nobody knows when he closes it.
const SOON: Duration = Duration::from_secs(1);

/// The most that one user uses, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Client connections.
    pub connections: u32,
    /// Sessions open.
    pub sessions: u32,
    /// Turns running.
    pub turns: u32,
}

/// All accounts; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Quota(Arc<Mutex<Accounts>>);

#[derive(Debug, Default)]
struct Accounts {
    by_person: HashMap<Person, Arc<Account>, RandomState>,
    looked_at: usize,
}

impl Quota {
    /// The account of a person.
    pub fn account(&self, person: &Person) -> Arc<Account> {
        let mut accounts = lock(&self.0);
        if let Some(account) = accounts.by_person.get(person) {
            return account.clone();
        }
        if accounts.by_person.len() >= accounts.looked_at.max(FEW) {
            accounts.by_person.retain(|_, account| account.is_needed());
            accounts.looked_at = accounts.by_person.len() * 2;
        }
        let account = Arc::new(Account::default());
        accounts.by_person.insert(person.clone(), account.clone());
        account
    }

    /// The most that anybody uses of each.
    pub fn most(&self) -> Usage {
        let accounts = lock(&self.0);
        let used = accounts.by_person.values().map(|account| account.usage());
        used.fold(Usage::default(), |a, b| Usage {
            connections: a.connections.max(b.connections),
            sessions: a.sessions.max(b.sessions),
            turns: a.turns.max(b.turns),
        })
    }
}

/// What one person uses.
#[derive(Debug, Default)]
pub struct Account {
    open: Mutex<Open>,
    rates: ArcSwap<Rates>,
}

#[derive(Debug, Default)]
struct Open {
    connections: u32,
    /// How many connections have it open.
    sessions: HashMap<SessionId, u32, RandomState>,
    turns: u32,
    left: Option<Instant>,
}

impl Account {
    /// One more connection.
    ///
    /// # Errors
    /// There are as many as may be.
    pub fn enter(&self, most: Option<u32>) -> Result<(), Over> {
        let mut open = lock(&self.open);
        beyond(CONNECTIONS, open.connections, most)?;
        open.connections += 1;
        Ok(())
    }

    /// One less.
    pub fn leave(&self) {
        let mut open = lock(&self.open);
        open.connections = open.connections.saturating_sub(1);
        open.left = Some(Instant::now());
    }

    /// One more connection has this session open.
    ///
    /// # Errors
    /// There are as many as may be, and this is another one.
    pub fn open(&self, session: &SessionId, most: Option<u32>) -> Result<(), Over> {
        let mut open = lock(&self.open);
        let others = count(open.sessions.len());
        match open.sessions.entry(session.clone()) {
            Entry::Occupied(mut count) => *count.get_mut() += 1,
            Entry::Vacant(place) => {
                beyond(SESSIONS, others, most)?;
                place.insert(1);
            }
        }
        Ok(())
    }

    /// One less.
    pub fn close(&self, session: &SessionId) {
        let mut open = lock(&self.open);
        if let EntryRef::Occupied(mut count) = open.sessions.entry_ref(session.as_str()) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    /// One more turn. Of a session one connection at a time has the turn, so that nobody asks whose it
    /// is.
    ///
    /// # Errors
    /// There are as many as may be.
    pub fn begin_turn(&self, most: Option<u32>) -> Result<(), Over> {
        let mut open = lock(&self.open);
        beyond(TURNS, open.turns, most)?;
        open.turns += 1;
        Ok(())
    }

    /// One less.
    pub fn end_turn(&self) {
        let mut open = lock(&self.open);
        debug_assert!(open.turns > 0, "it was begun");
        open.turns = open.turns.saturating_sub(1);
    }

    /// Whether one more session may be open.
    ///
    /// # Errors
    /// There are as many as may be.
    pub fn has_room(&self, most: Option<u32>) -> Result<(), Over> {
        let open = lock(&self.open);
        beyond(SESSIONS, count(open.sessions.len()), most)
    }

    /// One call of so many bytes, on a connection that takes frames of `frame` bytes at most.
    ///
    /// # Errors
    /// It comes too soon.
    pub fn spend(&self, caps: &Caps, bytes: usize, frame: usize) -> Result<(), Over> {
        // As much as there is, for a principal, is no rate.
        let calls = caps.calls_per_second.filter(|n| *n < u32::MAX);
        let wanted = (calls, caps.bytes_per_second.filter(|n| *n < u64::MAX));
        if wanted == (None, None) {
            return Ok(());
        }
        let mut rates = self.rates.load_full();
        if rates.caps != (wanted, frame) {
            rates = Arc::new(Rates::new(wanted, frame));
            self.rates.store(rates.clone());
        }
        rates.spend(bytes)
    }

    fn usage(&self) -> Usage {
        let open = lock(&self.open);
        Usage {
            connections: open.connections,
            sessions: count(open.sessions.len()),
            turns: open.turns,
        }
    }

    fn is_needed(&self) -> bool {
        let open = lock(&self.open);
        let used = open.connections > 0 || !open.sessions.is_empty() || open.turns > 0;
        used || open.left.is_none_or(|left| left.elapsed() < KEPT)
    }
}

/// What the rates are, and how much of them is used.
#[derive(Debug, Default)]
struct Rates {
    /// The caps that it was made for, and the largest frame.
    caps: ((Option<u32>, Option<u64>), usize),
    calls: Option<DefaultDirectRateLimiter>,
    bytes: Option<DefaultDirectRateLimiter>,
}

impl Rates {
    fn new(caps: (Option<u32>, Option<u64>), frame: usize) -> Self {
        let per_second =
            |n: u32| governor::Quota::per_second(NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN));
        // A nanosecond is the least that the limiter tells apart.
        let bytes = caps
            .1
            .map(|n| u32::try_from(n).unwrap_or(u32::MAX).min(FASTEST));
        // One whole frame passes, however slow.
        let burst = |n: u32| {
            let most = n.max(u32::try_from(frame).unwrap_or(u32::MAX));
            NonZeroU32::new(most).unwrap_or(NonZeroU32::MIN)
        };
        Self {
            caps: (caps, frame),
            calls: caps.0.map(|n| RateLimiter::direct(per_second(n))),
            bytes: bytes.map(|n| RateLimiter::direct(per_second(n).allow_burst(burst(n)))),
        }
    }

    fn spend(&self, bytes: usize) -> Result<(), Over> {
        let ((calls_cap, bytes_cap), _) = self.caps;
        if let (Some(limiter), Some(value)) = (&self.calls, calls_cap)
            && let Err(early) = limiter.check()
        {
            return Err(Over {
                limit: CALLS,
                value: u64::from(value),
                retry_after: early.wait_time_from(DefaultClock::default().now()),
            });
        }
        let bytes = u32::try_from(bytes).ok().and_then(NonZeroU32::new);
        if let (Some(limiter), Some(value), Some(bytes)) = (&self.bytes, bytes_cap, bytes)
            && let Ok(Err(early)) = limiter.check_n(bytes)
        {
            return Err(Over {
                limit: BYTES,
                value,
                retry_after: early.wait_time_from(DefaultClock::default().now()),
            });
        }
        Ok(())
    }
}

/// Bytes per second beyond which no rate is told from another.
const FASTEST: u32 = 1_000_000_000;

fn beyond(limit: &'static str, used: u32, most: Option<u32>) -> Result<(), Over> {
    match most {
        Some(most) if used >= most => Err(Over {
            limit,
            value: u64::from(most),
            retry_after: SOON,
        }),
        _ => Ok(()),
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Counts are whole between two calls, whoever panics.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps(calls: Option<u32>, bytes: Option<u64>) -> Caps {
        Caps {
            calls_per_second: calls,
            bytes_per_second: bytes,
            ..Caps::default()
        }
    }

    fn limit_of(result: Result<(), Over>) -> Option<&'static str> {
        result.err().map(|over| over.limit)
    }

    #[test]
    fn one_account_a_person_and_one_count_for_all_connections() {
        let quota = Quota::default();
        let (anna, ben) = (Person::new("r", "anna"), Person::new("r", "ben"));
        let first = quota.account(&anna);
        first.enter(Some(2)).unwrap();
        quota.account(&anna).enter(Some(2)).unwrap();
        assert_eq!(limit_of(first.enter(Some(2))), Some(CONNECTIONS));
        quota.account(&ben).enter(Some(2)).unwrap();
        assert_eq!(quota.most().connections, 2);
        first.leave();
        first.enter(Some(2)).unwrap();
        assert_eq!(
            limit_of(first.enter(Some(1))),
            Some(CONNECTIONS),
            "lowered by a reload"
        );
        first.enter(None).unwrap();
    }

    #[test]
    fn a_session_counts_once_however_many_have_it_open() {
        let account = Account::default();
        let [a, b, c] = ["a", "b", "c"].map(SessionId::from);
        let most = Some(2);
        for session in [&a, &a, &b] {
            account.open(session, most).unwrap();
        }
        assert_eq!(limit_of(account.open(&c, most)), Some(SESSIONS));
        assert_eq!(limit_of(account.has_room(most)), Some(SESSIONS));
        account.begin_turn(most).unwrap();
        account.begin_turn(most).unwrap();
        assert_eq!(limit_of(account.begin_turn(most)), Some(TURNS));
        account.end_turn();
        account.close(&a);
        assert_eq!(limit_of(account.open(&c, most)), Some(SESSIONS));
        account.close(&a);
        account.close(&a);
        account.open(&c, most).unwrap();
        let usage = account.usage();
        assert_eq!((usage.sessions, usage.turns), (2, 1));
    }

    #[test]
    fn rates_let_a_burst_of_one_second_pass_and_say_when_to_come_back() {
        let account = Account::default();
        let slow = caps(Some(5), None);
        for n in 0..5 {
            account
                .spend(&slow, 10, 1000)
                .unwrap_or_else(|e| panic!("{n}: {e:?}"));
        }
        let over = account.spend(&slow, 10, 1000).unwrap_err();
        assert_eq!((over.limit, over.value), (CALLS, 5));
        assert!(over.retry_after <= Duration::from_millis(200), "{over:?}");
        // Another cap is another start; none is none.
        account.spend(&caps(Some(6), None), 10, 1000).unwrap();
        for _ in 0..100 {
            account.spend(&caps(None, None), 10, 1000).unwrap();
            let all = caps(Some(u32::MAX), Some(u64::MAX));
            account.spend(&all, 10, 1000).unwrap();
        }
    }

    #[test]
    fn the_largest_frame_passes_whatever_the_rate() {
        let account = Account::default();
        let slow = caps(None, Some(1000));
        account.spend(&slow, 4000, 4000).unwrap();
        let over = account.spend(&slow, 100, 4000).unwrap_err();
        assert_eq!((over.limit, over.value), (BYTES, 1000));
        assert!(over.retry_after > Duration::ZERO && over.retry_after <= Duration::from_secs(1));
    }

    #[test]
    fn accounts_that_nobody_needs_are_forgotten_after_a_while() {
        let quota = Quota::default();
        for n in 0..2 * FEW {
            let account = quota.account(&Person::new("r", &n.to_string()));
            if n >= FEW {
                account.enter(None).unwrap();
                account.leave();
            } else {
                lock(&account.open).left = Instant::now().checked_sub(KEPT);
            }
        }
        let kept = lock(&quota.0).by_person.len();
        assert!((FEW..FEW + FEW).contains(&kept), "{kept}");
    }
}
