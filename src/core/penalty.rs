//! How long who fails to say who it is has to wait for the answer, by the address it comes from:
//! guessing must be slow, and a mistake must not be. Waits for nobody and answers nobody itself.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use ahash::RandomState;

use super::network::neighbourhood;

/// The first failure of an address.
const FIRST: Duration = Duration::from_millis(100);

/// Later ones wait twice as long as the one before, up to this.
const LONGEST: Duration = Duration::from_secs(5);

/// An address without a failure for so long has none.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(300);

/// Failures of one address that may wait for their answer at a time.
const WAITING: u32 = 32;

/// Addresses remembered; beyond it the one that has been quiet for longest is forgotten.
const ADDRESSES: usize = 4096;

/// What becomes of a failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Penalty {
    /// Its answer waits so long; then [`Penalties::served`].
    Wait(Duration),
    /// Too many of its address wait: the connection ends.
    Leave,
}

#[derive(Debug)]
struct Offender {
    failures: u32,
    waiting: u32,
    last: Instant,
}

/// Who has failed of late.
#[derive(Debug, Default)]
pub struct Penalties {
    offenders: HashMap<IpAddr, Offender, RandomState>,
}

impl Penalties {
    /// Somebody at `address` has failed.
    pub fn failed(&mut self, now: Instant, address: IpAddr) -> Penalty {
        let address = neighbourhood(address);
        if !self.offenders.contains_key(&address) {
            self.make_room(now);
        }
        let offender = self.offenders.entry(address).or_insert(Offender {
            failures: 0,
            waiting: 0,
            last: now,
        });
        if is_forgotten(offender, now) {
            offender.failures = 0;
        }
        offender.last = now;
        let delay = FIRST.saturating_mul(1_u32.checked_shl(offender.failures).unwrap_or(u32::MAX));
        offender.failures = offender.failures.saturating_add(1);
        if offender.waiting >= WAITING {
            return Penalty::Leave;
        }
        offender.waiting += 1;
        Penalty::Wait(delay.min(LONGEST))
    }

    /// A failure has had its answer, or its connection has ended before.
    pub fn served(&mut self, address: IpAddr) {
        if let Some(offender) = self.offenders.get_mut(&neighbourhood(address)) {
            offender.waiting = offender.waiting.saturating_sub(1);
        }
    }

    /// Addresses remembered.
    pub fn len(&self) -> usize {
        self.offenders.len()
    }

    /// Nobody has failed of late.
    pub fn is_empty(&self) -> bool {
        self.offenders.is_empty()
    }

    fn make_room(&mut self, now: Instant) {
        if self.offenders.len() < ADDRESSES {
            return;
        }
        self.offenders
            .retain(|_, offender| !is_forgotten(offender, now));
        if self.offenders.len() < ADDRESSES {
            return;
        }
        let quietest = self.offenders.iter().min_by_key(|(_, o)| o.last);
        if let Some(address) = quietest.map(|(address, _)| *address) {
            self.offenders.remove(&address);
        }
    }
}

fn is_forgotten(offender: &Offender, now: Instant) -> bool {
    offender.waiting == 0 && now.saturating_duration_since(offender.last) >= FORGOTTEN_AFTER
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    #[test]
    fn waits_grow_up_to_a_bound_and_are_forgotten() {
        let start = Instant::now();
        let mut penalties = Penalties::default();
        let mut waits = Vec::new();
        for n in 0..40 {
            let Penalty::Wait(wait) = penalties.failed(start, address(1)) else {
                panic!("refused at {n}");
            };
            waits.push(wait.as_millis());
            penalties.served(address(1));
        }
        assert_eq!(waits[..8], [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert!(waits[8..].iter().all(|wait| *wait == 5000));
        // Another address pays for nothing.
        let first = Penalty::Wait(FIRST);
        assert_eq!(penalties.failed(start, address(2)), first);
        let just_before = start + FORGOTTEN_AFTER - Duration::from_millis(1);
        assert_eq!(
            penalties.failed(just_before, address(1)),
            Penalty::Wait(LONGEST)
        );
        penalties.served(address(1));
        let later = just_before + FORGOTTEN_AFTER;
        assert_eq!(penalties.failed(later, address(1)), first);
    }

    #[test]
    fn few_of_one_address_wait_at_a_time() {
        let now = Instant::now();
        let mut penalties = Penalties::default();
        for _ in 0..WAITING {
            assert_ne!(penalties.failed(now, address(1)), Penalty::Leave);
        }
        assert_eq!(penalties.failed(now, address(1)), Penalty::Leave);
        assert_ne!(penalties.failed(now, address(2)), Penalty::Leave);
        penalties.served(address(1));
        assert_ne!(penalties.failed(now, address(1)), Penalty::Leave);
        assert_eq!(penalties.failed(now, address(1)), Penalty::Leave);
    }

    #[test]
    fn the_table_is_bounded_and_the_quietest_goes() {
        let start = Instant::now();
        let mut penalties = Penalties::default();
        let mut now = start;
        for n in 0..10 * ADDRESSES as u32 {
            now += Duration::from_millis(1);
            penalties.failed(now, address(n));
            assert!(penalties.len() <= ADDRESSES);
        }
        // The last one is remembered, the first one is not.
        let second = Penalty::Wait(FIRST * 2);
        assert_eq!(
            penalties.failed(now, address(10 * ADDRESSES as u32 - 1)),
            second
        );
        assert_eq!(penalties.failed(now, address(0)), Penalty::Wait(FIRST));
        // What nobody counts must do no harm.
        penalties.served(address(5));
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let now = Instant::now();
        let mut penalties = Penalties::default();
        let first = Penalty::Wait(FIRST);
        let fails =
            |penalties: &mut Penalties, text: &str| penalties.failed(now, text.parse().unwrap());
        assert_eq!(fails(&mut penalties, "2001:db8:1:2::1"), first);
        assert_eq!(
            fails(&mut penalties, "2001:db8:1:2:ffff::9"),
            Penalty::Wait(FIRST * 2)
        );
        assert_eq!(fails(&mut penalties, "2001:db8:1:3::1"), first);
        assert_eq!(fails(&mut penalties, "::ffff:10.0.0.1"), first);
        assert_eq!(
            fails(&mut penalties, "10.0.0.1"),
            Penalty::Wait(FIRST * 2),
            "the same host, written otherwise"
        );
    }
}
