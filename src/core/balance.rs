//! Which backend a new session goes to, by policy, from one snapshot and the loads known here.
//! Never connects, asks or waits; sessions that already have an owner or a home do not come here.

use std::cmp::Ordering;

use super::{
    event::PlacementReason,
    ring,
    snapshot::{Backend, Snapshot},
};

/// What a backend carries now, as this Taxiway knows it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Load {
    /// Open turns.
    pub turns: u32,
    /// Open sessions.
    pub sessions: u32,
}

/// How new sessions are placed.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Policy {
    /// By the key's rank (`routing.mode = "sticky"`).
    Sticky {
        /// No backend above this multiple of its share of sessions; none = unbounded.
        load_factor: Option<f64>,
    },
    /// Fewest open turns, then fewest open sessions, per weight in force.
    LeastLoaded,
    /// The less loaded of the first two by the key's rank.
    TwoChoices,
    /// In turn, by weight in force.
    RoundRobin,
}

/// Chooses the backend of a new session: its index in the snapshot, and why.
///
/// `loads` is parallel to `snapshot.backends` (what is missing counts as idle); `ticket` is a
/// counter that grows by one per placement. `None` if no backend takes placements.
pub fn place(
    policy: Policy,
    key: &str,
    snapshot: &Snapshot,
    loads: &[Load],
    ticket: u64,
) -> Option<(usize, PlacementReason)> {
    let backends = &snapshot.backends;
    match policy {
        Policy::Sticky { load_factor: None } => hashed(key, backends, |_, _| true),
        Policy::Sticky {
            load_factor: Some(factor),
        } => sticky(key, backends, loads, factor),
        Policy::LeastLoaded => {
            let among = 0..backends.len();
            let among = among.filter(|&i| backends[i].takes_placements());
            let index = least_loaded(key, backends, loads, among)?;
            Some((index, PlacementReason::LeastLoaded))
        }
        Policy::TwoChoices => {
            let hash = ring::placement_hash(key);
            let first = ring::first_at(hash, backends, |_, b| b.takes_placements())?;
            let second = ring::first_at(hash, backends, |i, b| i != first && b.takes_placements());
            let drawn = [Some(first), second].into_iter().flatten();
            let index = least_loaded(key, backends, loads, drawn)?;
            Some((index, PlacementReason::TwoChoices))
        }
        Policy::RoundRobin => Some((in_turn(backends, ticket)?, PlacementReason::RoundRobin)),
    }
}

fn candidates(backends: &[Backend]) -> Vec<usize> {
    (0..backends.len())
        .filter(|&i| backends[i].takes_placements())
        .collect()
}

/// The first in the key's rank that takes placements and that `may` is true for; if there is none, the
/// first that takes placements.
fn hashed(
    key: &str,
    backends: &[Backend],
    may: impl Fn(usize, &Backend) -> bool,
) -> Option<(usize, PlacementReason)> {
    let key = ring::placement_hash(key);
    let preferred = ring::first_at(key, backends, |_, b| !b.removed)?;
    let fits = |i: usize, b: &Backend| b.takes_placements() && may(i, b);
    // Nearly always.
    if fits(preferred, &backends[preferred]) {
        return Some((preferred, PlacementReason::Hash));
    }
    let chosen = ring::first_at(key, backends, fits)
        .or_else(|| ring::first_at(key, backends, |_, b| b.takes_placements()))?;
    let reason = match chosen == preferred {
        true => PlacementReason::Hash,
        false => PlacementReason::Bounded,
    };
    Some((chosen, reason))
}

/// The first in rank that stays within `factor` times its share once it has the new session.
///
/// Shares are taken over the backends that take placements now, by configured weight: a ramp must
/// not push keys away from where every other replica puts them.
fn sticky(
    key: &str,
    backends: &[Backend],
    loads: &[Load],
    factor: f64,
) -> Option<(usize, PlacementReason)> {
    let (mut weights, mut sessions) = (0_u64, 0_u64);
    for (i, backend) in backends.iter().enumerate() {
        if backend.takes_placements() {
            weights += u64::from(backend.weight.max(1));
            sessions += u64::from(load(loads, i).sessions);
        }
    }
    hashed(key, backends, |i, backend| {
        let weight = f64::from(backend.weight.max(1));
        let capacity = (factor * (sessions + 1) as f64 * weight / weights as f64).ceil();
        f64::from(load(loads, i).sessions) < capacity
    })
}

/// One that a session may go to, and what it would carry then.
struct Contender {
    index: usize,
    turns: u64,
    sessions: u64,
    weight: u64,
}

impl Contender {
    /// Loads per weight, compared crosswise.
    fn cmp_load(&self, other: &Self) -> Ordering {
        let cross = |mine: u64, others: u64| {
            let mine = u128::from(mine) * u128::from(other.weight);
            mine.cmp(&(u128::from(others) * u128::from(self.weight)))
        };
        cross(self.turns, other.turns).then_with(|| cross(self.sessions, other.sessions))
    }
}

/// The least loaded of `among`; ties go to the first in the key's rank, so that several Taxiways
/// that see the same idle pool do not all choose the same backend.
fn least_loaded(
    key: &str,
    backends: &[Backend],
    loads: &[Load],
    among: impl Iterator<Item = usize> + Clone,
) -> Option<usize> {
    let busy = among.clone().any(|i| load(loads, i).turns > 0);
    let key = ring::placement_hash(key);
    let contenders = among.map(|index| {
        let (backend, load) = (&backends[index], load(loads, index));
        Contender {
            index,
            // A ramping or slow backend counts as one turn busier while there are turns, else its
            // zero would win against every working backend and draw the whole pool's traffic.
            turns: u64::from(load.turns) + u64::from(busy && backend.weight_permille < 1000),
            // As they would be after the placement, so that an idle pool fills by weight.
            sessions: u64::from(load.sessions) + 1,
            weight: weight_in_force(backend),
        }
    });
    let best = contenders.min_by(|a, b| {
        a.cmp_load(b)
            .then_with(|| ring::cmp_rank(key, &backends[a.index], &backends[b.index]))
    })?;
    Some(best.index)
}

/// Weighted round robin without a state: ticket `t` takes slot `t × step mod W` of `W` slots, with
/// a step near the golden section of `W` and coprime to it, so that every run of `W` tickets hits
/// each slot once and no backend gets its slots in a burst.
fn in_turn(backends: &[Backend], ticket: u64) -> Option<usize> {
    let among = candidates(backends);
    let weights: Vec<u128> = among
        .iter()
        .map(|&i| u128::from(weight_in_force(&backends[i])))
        .collect();
    let unit = weights.iter().copied().reduce(gcd)?;
    let slots: u128 = weights.iter().map(|w| w / unit).sum();
    let mut step = (slots * 618 / 1000).max(1);
    while gcd(step, slots) != 1 {
        step += 1;
    }
    let mut slot = u128::from(ticket) % slots * step % slots;
    for (&index, weight) in among.iter().zip(&weights) {
        let width = weight / unit;
        if slot < width {
            return Some(index);
        }
        slot -= width;
    }
    None
}

fn load(loads: &[Load], index: usize) -> Load {
    loads.get(index).copied().unwrap_or_default()
}

fn weight_in_force(backend: &Backend) -> u64 {
    (u64::from(backend.weight) * u64::from(backend.weight_permille)).max(1)
}

fn gcd(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests;
