//! Which backend a new session goes to, by policy, from one snapshot and the loads known here.
//! Never connects, asks or waits; sessions that already have an owner or a home do not come here.

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
        Policy::Sticky { load_factor: None } => {
            let chosen = ring::first(key, backends, Backend::takes_placements)?;
            let preferred = ring::first(key, backends, |b| !b.removed);
            Some((chosen, hash_reason(chosen, preferred)))
        }
        Policy::Sticky {
            load_factor: Some(factor),
        } => sticky(key, backends, loads, factor),
        Policy::LeastLoaded => {
            let among = candidates(backends);
            let index = least_loaded(key, backends, loads, &among)?;
            Some((index, PlacementReason::LeastLoaded))
        }
        Policy::TwoChoices => {
            let first = ring::first(key, backends, Backend::takes_placements)?;
            let second = ring::first(key, backends, |b| {
                b.takes_placements() && b.name != backends[first].name
            });
            let drawn: Vec<usize> = [Some(first), second].into_iter().flatten().collect();
            let index = least_loaded(key, backends, loads, &drawn)?;
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

fn hash_reason(chosen: usize, preferred: Option<usize>) -> PlacementReason {
    if preferred == Some(chosen) {
        PlacementReason::Hash
    } else {
        PlacementReason::Bounded
    }
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
    let mut ranking = Vec::new();
    ring::rank(key, backends, &mut ranking);
    ranking.retain(|&i| !backends[i].removed);
    let preferred = ranking.first().copied();
    ranking.retain(|&i| backends[i].takes_placements());

    let weights: u64 = ranking
        .iter()
        .map(|&i| u64::from(backends[i].weight.max(1)))
        .sum();
    let sessions: u64 = ranking
        .iter()
        .map(|&i| u64::from(load(loads, i).sessions))
        .sum();
    let within = |&i: &usize| {
        let weight = f64::from(backends[i].weight.max(1));
        let capacity = (factor * (sessions + 1) as f64 * weight / weights as f64).ceil();
        f64::from(load(loads, i).sessions) < capacity
    };
    let chosen = ranking
        .iter()
        .copied()
        .find(within)
        .or(ranking.first().copied())?;
    Some((chosen, hash_reason(chosen, preferred)))
}

/// The least loaded of `among`; ties go to the first in the key's rank, so that several Taxiways
/// that see the same idle pool do not all choose the same backend.
fn least_loaded(key: &str, backends: &[Backend], loads: &[Load], among: &[usize]) -> Option<usize> {
    let busy = among.iter().any(|&i| load(loads, i).turns > 0);
    let key = ring::placement_hash(key);
    among.iter().copied().min_by(|&a, &b| {
        let (wa, wb) = (weight_in_force(&backends[a]), weight_in_force(&backends[b]));
        let (la, lb) = (load(loads, a), load(loads, b));
        let turns = |l: Load, backend: &Backend| {
            // A ramping or slow backend counts as one turn busier while there are turns, else its
            // zero would win against every working backend and draw the whole pool's traffic.
            u64::from(l.turns) + u64::from(busy && backend.weight_permille < 1000)
        };
        // Loads per weight, compared crosswise. Sessions are compared as they would be after the
        // placement, so that an idle pool fills by weight.
        let by_turns = (u128::from(turns(la, &backends[a])) * wb)
            .cmp(&(u128::from(turns(lb, &backends[b])) * wa));
        let by_sessions =
            ((u128::from(la.sessions) + 1) * wb).cmp(&((u128::from(lb.sessions) + 1) * wa));
        by_turns
            .then(by_sessions)
            .then_with(|| ring::cmp_rank(key, &backends[a], &backends[b]))
    })
}

/// Weighted round robin without a state: ticket `t` takes slot `t × step mod W` of `W` slots, with
/// a step near the golden section of `W` and coprime to it, so that every run of `W` tickets hits
/// each slot once and no backend gets its slots in a burst.
fn in_turn(backends: &[Backend], ticket: u64) -> Option<usize> {
    let among = candidates(backends);
    let weights: Vec<u128> = among
        .iter()
        .map(|&i| weight_in_force(&backends[i]))
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

fn weight_in_force(backend: &Backend) -> u128 {
    (u128::from(backend.weight) * u128::from(backend.weight_permille)).max(1)
}

fn gcd(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests;
