//! When each turn is to be sent, and on which session: pure functions of the turn's number, so that
//! nothing that happens on the way shifts the plan. Knows no clock and no socket.
//!
//! A client that waits for an answer before it sends the next request asks less of a target that is
//! slow, and then measures less of its slowness (coordinated omission). Here every turn has its time
//! before anything is sent, and is timed from it, however late it leaves.

use std::time::Duration;

/// What makes a session start its next turn.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Pace {
    /// The end of its last one: as much as the target takes.
    Closed,
    /// The plan: so many turns per second, on all sessions together.
    Open {
        /// Turns per second; above 0.
        rate: f64,
    },
}

impl Pace {
    /// When turn `number` (from 0, over all sessions) is to be sent, from the start; none if nothing
    /// but the last turn's end decides.
    pub fn at(self, number: u64) -> Option<Duration> {
        match self {
            Self::Closed => None,
            // From the number, not from the last turn's time: errors do not add up.
            Self::Open { rate } => Duration::try_from_secs_f64(number as f64 / rate).ok(),
        }
    }

    /// How many turns are to be sent within `length`.
    pub fn within(self, length: Duration) -> Option<u64> {
        match self {
            Self::Closed => None,
            Self::Open { rate } => Some((length.as_secs_f64() * rate).ceil() as u64),
        }
    }
}

/// The part of all connections that one thread has: those whose number leaves `index` when divided
/// by `of`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Share {
    /// Below `of`.
    pub index: usize,
    /// Threads.
    pub of: usize,
}

impl Share {
    /// Everything.
    pub const ALL: Self = Self { index: 0, of: 1 };

    /// The numbers of its connections, of `connections` in all.
    pub fn connections(self, connections: usize) -> impl ExactSizeIterator<Item = usize> {
        (self.index..connections).step_by(self.of)
    }
}

/// Whose turn is when: one round goes over all sessions, and neighbours in it are on different
/// connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rota {
    connections: u64,
    sessions: u64,
    share: Share,
    /// Connections of this share.
    own: u64,
}

/// A turn of a [`Rota`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Slot {
    /// Among the turns of all shares.
    pub(super) number: u64,
    /// Which of the share's connections.
    pub(super) client: usize,
    /// Which of its sessions.
    pub(super) seat: usize,
}

impl Rota {
    /// For `connections` in all with `sessions` each; every count above 0.
    pub(super) fn new(connections: usize, sessions: usize, share: Share) -> Self {
        Self {
            connections: connections as u64,
            sessions: sessions as u64,
            share,
            own: share.connections(connections).len() as u64,
        }
    }

    /// The `k`th turn (from 0) of this share; none if it has no connection.
    pub(super) fn slot(&self, k: u64) -> Option<Slot> {
        let seats = self.own * self.sessions;
        let (round, place) = (k.checked_div(seats)?, k % seats);
        let (seat, client) = (place / self.own, place % self.own);
        Some(Slot {
            number: self.number(round, client as usize, seat as usize),
            client: client as usize,
            seat: seat as usize,
        })
    }

    /// The number of turn `round` of a session.
    pub(super) fn number(&self, round: u64, client: usize, seat: usize) -> u64 {
        let connection = self.share.index as u64 + client as u64 * self.share.of as u64;
        round * self.connections * self.sessions + seat as u64 * self.connections + connection
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_are_those_of_the_rate() {
        let pace = Pace::Open { rate: 200.0 };
        for (number, millis) in [(0, 0), (1, 5), (2, 10), (200, 1000), (720_000, 3_600_000)] {
            assert_eq!(pace.at(number), Some(Duration::from_millis(millis)));
        }
        assert_eq!(pace.within(Duration::from_secs(2)), Some(400));
        assert_eq!(pace.within(Duration::from_millis(1)), Some(1));
        assert_eq!(Pace::Closed.at(7), None);
        assert_eq!(Pace::Closed.within(Duration::from_secs(1)), None);
    }

    #[test]
    fn a_round_goes_over_the_connections_first() {
        let rota = Rota::new(2, 2, Share::ALL);
        let round = |k| rota.slot(k).map(|slot| (slot.client, slot.seat));
        let expected = [(0, 0), (1, 0), (0, 1), (1, 1), (0, 0)];
        assert_eq!(Vec::from_iter((0..5).filter_map(round)), expected);
    }

    #[test]
    fn a_share_without_connections_has_no_turns() {
        let share = Share { index: 1, of: 2 };
        assert_eq!(Rota::new(1, 3, share).slot(0), None);
    }

    proptest! {
        /// Together the shares have every turn once, each in the order of its time, and every
        /// session has one turn in each round.
        #[test]
        fn shares_split_the_plan(
            connections in 1..20usize, sessions in 1..8usize, threads in 1..5usize, rounds in 1..4u64,
        ) {
            let total = (connections * sessions) as u64 * rounds;
            let mut seen = Vec::new();
            for index in 0..threads {
                let share = Share { index, of: threads };
                let rota = Rota::new(connections, sessions, share);
                let own = share.connections(connections).len();
                let mut last = None;
                for k in 0..(own * sessions) as u64 * rounds {
                    let slot = rota.slot(k).expect("it has connections");
                    prop_assert!(slot.client < own && slot.seat < sessions);
                    prop_assert!(last < Some(slot.number));
                    let round = k / (own * sessions) as u64;
                    prop_assert_eq!(rota.number(round, slot.client, slot.seat), slot.number);
                    last = Some(slot.number);
                    seen.push(slot.number);
                }
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, Vec::from_iter(0..total));
        }

        /// No turn is planned before an earlier one, none later than its share of the time, and the
        /// count within a length is that of the turns planned in it.
        #[test]
        fn the_plan_does_not_drift(rate in 0.01..1e6f64, number in 0..1_000_000_000u64) {
            let pace = Pace::Open { rate };
            let at = |n| pace.at(n).expect("an open loop has times");
            prop_assert!(at(number) <= at(number + 1));
            let exact = number as f64 / rate;
            prop_assert!((at(number).as_secs_f64() - exact).abs() < 1e-9 * exact.max(1.0));
            let within = pace.within(at(number)).expect("an open loop has a count");
            prop_assert!(within.abs_diff(number) <= 1, "{within} of {number}");
        }
    }
}
