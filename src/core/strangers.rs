//! Connections that have not proved who they are: how many there may be, and which goes when there
//! are too many. Closes nothing itself, and never hears of a connection that has proved it.
//!
//! The newest is let in, and the oldest goes: who means well says who it is within moments, and who
//! does not can hold a place for so long only as nobody wants it. The oldest *of the address that has
//! the most*, so that a flood from one address costs its own places and nobody else's. Where all
//! come from one address, as behind a balancer that does not say who they are, that is the oldest of
//! all, and no bound per address does any harm unless one is configured.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use ahash::RandomState;

use super::{id::ConnectionId, network::neighbourhood};

/// How many there may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// In all; at least 1.
    pub total: usize,
    /// From one address, or one IPv6 network of 64 bits; none = any number.
    pub per_address: Option<usize>,
}

/// Which bound is exceeded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exceeded {
    /// That in all.
    Total,
    /// That of an address.
    PerAddress,
}

/// Everybody who has not proved who it is. Numbers of connections grow with their age.
#[derive(Debug, Default)]
pub struct Strangers {
    addresses: HashMap<ConnectionId, IpAddr, RandomState>,
    /// Oldest first.
    of_address: HashMap<IpAddr, BTreeSet<ConnectionId>, RandomState>,
    /// The last is the address that has the most, and of several such the one with the oldest.
    by_weight: BTreeSet<(usize, Reverse<ConnectionId>, IpAddr)>,
}

impl Strangers {
    /// One more, from there. Where more than `bounds` are there then, one that has to go; it is
    /// forgotten. Never the one that comes, unless it is the only one.
    pub fn arrive(
        &mut self,
        id: ConnectionId,
        address: IpAddr,
        bounds: Bounds,
    ) -> Option<(ConnectionId, Exceeded)> {
        self.leave(id);
        self.put(id, neighbourhood(address));
        self.surplus(neighbourhood(address), bounds)
    }

    /// It is known now where it really comes from. It keeps its age.
    pub fn moved(
        &mut self,
        id: ConnectionId,
        address: IpAddr,
        bounds: Bounds,
    ) -> Option<(ConnectionId, Exceeded)> {
        self.leave(id).then(|| {
            self.put(id, neighbourhood(address));
            self.surplus(neighbourhood(address), bounds)
        })?
    }

    /// It has proved who it is, or has left. False if it is not here, because it had to go.
    pub fn leave(&mut self, id: ConnectionId) -> bool {
        let Some(address) = self.addresses.remove(&id) else {
            return false;
        };
        self.change(address, |ids| ids.remove(&id));
        true
    }

    /// The one that has to go first; it is forgotten.
    pub fn evict(&mut self) -> Option<ConnectionId> {
        let (_, Reverse(oldest), _) = self.by_weight.last().copied()?;
        self.leave(oldest);
        Some(oldest)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.addresses.len()
    }

    /// Nobody is a stranger.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    fn surplus(&mut self, address: IpAddr, bounds: Bounds) -> Option<(ConnectionId, Exceeded)> {
        let there = self.of_address.get(&address);
        if let (Some(most), Some(there)) = (bounds.per_address, there)
            && there.len() > most
            && let Some(oldest) = there.first().copied()
        {
            self.leave(oldest);
            return Some((oldest, Exceeded::PerAddress));
        }
        (self.len() > bounds.total)
            .then(|| self.evict())
            .flatten()
            .map(|id| (id, Exceeded::Total))
    }

    fn put(&mut self, id: ConnectionId, address: IpAddr) {
        self.addresses.insert(id, address);
        self.change(address, |ids| ids.insert(id));
    }

    /// Changes who is there, and its weight with it.
    fn change(&mut self, address: IpAddr, how: impl FnOnce(&mut BTreeSet<ConnectionId>) -> bool) {
        let ids = self.of_address.entry(address).or_default();
        let weight = |ids: &BTreeSet<ConnectionId>| {
            let oldest = ids.first().copied()?;
            Some((ids.len(), Reverse(oldest), address))
        };
        if let Some(before) = weight(ids) {
            self.by_weight.remove(&before);
        }
        how(ids);
        match weight(ids) {
            Some(after) => {
                self.by_weight.insert(after);
            }
            None => {
                self.of_address.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WIDE: Bounds = Bounds {
        total: 3,
        per_address: None,
    };

    fn address(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    /// Who goes when these come, in turn, as (connection, address).
    fn goes(bounds: Bounds, come: &[(u64, u8)]) -> Vec<Option<(u64, Exceeded)>> {
        let mut strangers = Strangers::default();
        come.iter()
            .map(|(id, from)| {
                let gone = strangers.arrive(ConnectionId(*id), address(*from), bounds);
                gone.map(|(id, why)| (id.0, why))
            })
            .collect()
    }

    #[test]
    fn the_oldest_of_the_address_with_the_most_goes() {
        use Exceeded::{PerAddress, Total};
        let narrow = Bounds {
            total: 3,
            per_address: Some(1),
        };
        type Row = (Bounds, &'static [(u64, u8)], &'static [(u64, Exceeded)]);
        let rows: [Row; 6] = [
            (WIDE, &[(1, 1), (2, 2), (3, 3)], &[]),
            // All have one: the oldest of all.
            (WIDE, &[(1, 1), (2, 2), (3, 3), (4, 4)], &[(1, Total)]),
            // One address, as behind a balancer.
            (
                WIDE,
                &[(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)],
                &[(1, Total), (2, Total)],
            ),
            // A flood does not touch who came before it, nor who comes in it.
            (
                WIDE,
                &[(1, 1), (2, 9), (3, 9), (4, 9), (5, 9), (6, 2), (7, 9)],
                &[(2, Total), (3, Total), (4, Total), (5, Total)],
            ),
            (narrow, &[(1, 1), (2, 2), (3, 1)], &[(1, PerAddress)]),
            (narrow, &[(1, 1), (2, 2), (3, 3), (4, 4)], &[(1, Total)]),
        ];
        for (bounds, come, expected) in rows {
            let gone: Vec<_> = goes(bounds, come).into_iter().flatten().collect();
            assert_eq!(gone, expected, "{come:?}");
        }
    }

    #[test]
    fn who_has_left_is_not_found_and_who_moves_keeps_its_age() {
        let mut strangers = Strangers::default();
        let id = ConnectionId;
        for n in 1..=3 {
            // All come from a balancer, which says later where they are.
            assert_eq!(strangers.arrive(id(n), address(100), WIDE), None);
        }
        assert_eq!(strangers.moved(id(1), address(1), WIDE), None);
        assert_eq!(strangers.moved(id(2), address(2), WIDE), None);
        assert_eq!(strangers.moved(id(3), address(3), WIDE), None);
        let gone = strangers.arrive(id(4), address(100), WIDE);
        assert_eq!(gone, Some((id(1), Exceeded::Total)), "the oldest of all");
        assert!(!strangers.leave(id(1)), "it had to go");
        assert_eq!(strangers.moved(id(1), address(9), WIDE), None);
        assert!(strangers.leave(id(2)));
        assert!(!strangers.leave(id(2)));
        assert_eq!(strangers.len(), 2);
        let one = Bounds {
            total: 3,
            per_address: Some(1),
        };
        let gone = strangers.moved(id(4), address(3), one);
        assert_eq!(gone, Some((id(3), Exceeded::PerAddress)));
        assert_eq!(strangers.evict(), Some(id(4)));
        assert_eq!(strangers.evict(), None);
        assert!(strangers.is_empty());
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let mut strangers = Strangers::default();
        let bounds = Bounds {
            total: 10,
            per_address: Some(1),
        };
        let mut come = |n, text: &str| {
            let gone = strangers.arrive(ConnectionId(n), text.parse().unwrap(), bounds);
            gone.map(|(id, _)| id.0)
        };
        assert_eq!(come(1, "2001:db8:1:2::1"), None);
        assert_eq!(come(2, "2001:db8:1:3::1"), None);
        assert_eq!(come(3, "2001:db8:1:2::2"), Some(1));
    }

    proptest! {
        /// Whatever happens: the bounds hold, nobody is lost, and who goes is the oldest where the
        /// most are.
        #[test]
        fn bounds_hold_and_the_flood_pays(
            steps in prop::collection::vec((0_u8..4, 0_u8..5, 0_u64..40), 1..200),
            total in 1_usize..8,
            per in prop::option::of(1_usize..4),
        ) {
            let bounds = Bounds { total, per_address: per };
            let mut strangers = Strangers::default();
            let mut model: Vec<(u64, u8)> = Vec::new();
            for (n, (what, from, whom)) in (100_u64..).zip(steps) {
                let gone = match what {
                    0 | 1 => {
                        model.push((n, from));
                        strangers.arrive(ConnectionId(n), address(from), bounds)
                    }
                    2 => {
                        let there = model.iter().any(|(id, _)| *id == 100 + whom);
                        model.retain(|(id, _)| *id != 100 + whom);
                        prop_assert_eq!(strangers.leave(ConnectionId(100 + whom)), there);
                        None
                    }
                    _ => {
                        if let Some(one) = model.iter_mut().find(|(id, _)| *id == 100 + whom) {
                            one.1 = from;
                        }
                        strangers.moved(ConnectionId(100 + whom), address(from), bounds)
                    }
                };
                let count = |model: &[(u64, u8)], of: u8| {
                    model.iter().filter(|(_, from)| *from == of).count()
                };
                if let Some((ConnectionId(gone), why)) = gone {
                    let at = model.iter().position(|(id, _)| *id == gone);
                    let address = model[at.expect("it was there")].1;
                    let oldest = model.iter().filter(|(_, a)| *a == address).map(|(id, _)| *id);
                    prop_assert_eq!(oldest.min(), Some(gone));
                    if why == Exceeded::Total {
                        let most = (0..5).map(|a| count(&model, a)).max();
                        prop_assert_eq!(Some(count(&model, address)), most);
                    }
                    model.retain(|(id, _)| *id != gone);
                }
                prop_assert_eq!(strangers.len(), model.len());
                prop_assert!(model.len() <= total);
                prop_assert!((0..5).all(|a| per.is_none_or(|per| count(&model, a) <= per)));
                prop_assert_eq!(strangers.of_address.len(), strangers.by_weight.len());
            }
        }
    }
}
