//! Which backend a new session goes to, by policy, from one snapshot and the loads known here.
//! Never connects, asks or waits; sessions that already have an owner or a home do not come here.

use std::cmp::Ordering;

use super::{
    event::PlacementReason,
    ring::{self, Among, Run, Seat},
    snapshot::{Backend, Backends, Snapshot},
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
    let hash = || ring::placement_hash(key);
    match policy {
        Policy::Sticky { load_factor: None } => hashed(hash(), backends, |_| true),
        Policy::Sticky {
            load_factor: Some(factor),
        } => sticky(hash(), backends, loads, factor),
        Policy::LeastLoaded => {
            let index = least_loaded(hash(), backends, loads)?;
            Some((index, PlacementReason::LeastLoaded))
        }
        Policy::TwoChoices => {
            let index = lighter_of_two(hash(), backends, loads)?;
            Some((index, PlacementReason::TwoChoices))
        }
        Policy::RoundRobin => Some((in_turn(backends, ticket)?, PlacementReason::RoundRobin)),
    }
}

/// The first in the key's rank that takes placements and that `may` is true for; if there is none, the
/// first that takes placements.
fn hashed(
    key: u64,
    backends: &Backends,
    may: impl Fn(usize) -> bool,
) -> Option<(usize, PlacementReason)> {
    let ring = backends.ring();
    let preferred = ring.first(key, Among::Configured, |_| true)?;
    // Nearly always.
    if backends[preferred].takes_placements() && may(preferred) {
        return Some((preferred, PlacementReason::Hash));
    }
    let chosen = ring
        .first(key, Among::Open, may)
        .or_else(|| ring.first(key, Among::Open, |_| true))?;
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
    key: u64,
    backends: &Backends,
    loads: &[Load],
    factor: f64,
) -> Option<(usize, PlacementReason)> {
    let (mut weights, mut sessions) = (0_u64, 0_u64);
    for run in backends.ring().runs(Among::Open) {
        weights += u64::from(run.weight) * run.seats.len() as u64;
        let open = run.seats.iter().map(|seat| load(loads, seat.index()));
        sessions += open.map(|load| u64::from(load.sessions)).sum::<u64>();
    }
    hashed(key, backends, |i| {
        let weight = f64::from(backends[i].weight.max(1));
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

/// Whether there are open turns where a session may go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    Idle,
    Busy,
}

impl Contender {
    fn new(index: usize, backends: &[Backend], loads: &[Load], pace: Pace) -> Self {
        let (backend, load) = (&backends[index], load(loads, index));
        // A ramping or slow backend counts as one turn busier while there are turns, else its zero
        // would win against every working backend and draw the whole pool's traffic.
        let more = pace == Pace::Busy && backend.weight_permille < 1000;
        Self {
            index,
            turns: u64::from(load.turns) + u64::from(more),
            // As they would be after the placement, so that an idle pool fills by weight.
            sessions: u64::from(load.sessions) + 1,
            weight: weight_in_force(backend.weight, backend.weight_permille),
        }
    }

    /// Loads per weight, compared crosswise.
    fn cmp_load(&self, other: &Self) -> Ordering {
        let cross = |mine: u64, others: u64| {
            let mine = u128::from(mine) * u128::from(other.weight);
            mine.cmp(&(u128::from(others) * u128::from(self.weight)))
        };
        cross(self.turns, other.turns).then_with(|| cross(self.sessions, other.sessions))
    }
}

/// The least loaded; ties go to the first in the key's rank, so that several Taxiways that see the
/// same idle pool do not all choose the same backend.
fn least_loaded(key: u64, backends: &Backends, loads: &[Load]) -> Option<usize> {
    let runs = backends.ring().runs(Among::Open);
    let is_busy = |seat: &Seat| load(loads, seat.index()).turns > 0;
    // Not asked in a pool without ramps, where nobody looks at it.
    let ramps = runs.clone().any(|run| run.permille < 1000);
    let pace = match ramps && runs.clone().any(|run| run.seats.iter().any(is_busy)) {
        true => Pace::Busy,
        false => Pace::Idle,
    };
    let lightest = runs.map(|run| Contender::new(lightest(key, run, loads), backends, loads, pace));
    let best = lightest.min_by(|a, b| {
        a.cmp_load(b)
            .then_with(|| ring::cmp_rank(key, &backends[a.index], &backends[b.index]))
    })?;
    Some(best.index)
}

/// The least loaded of those that weigh the same: their loads compare as they are.
fn lightest(key: u64, run: &Run, loads: &[Load]) -> usize {
    let (mut lightest, mut least, mut largest) = (0, u64::MAX, 0);
    for seat in &run.seats {
        let load = load(loads, seat.index());
        // Turns before sessions.
        let load = u64::from(load.turns) << 32 | u64::from(load.sessions);
        if load > least {
            continue;
        }
        let draw = seat.draw(key);
        if load < least || draw > largest {
            (lightest, least, largest) = (seat.index(), load, draw);
        }
    }
    lightest
}

/// The less loaded of the first two in the key's rank, the first if they are equal.
fn lighter_of_two(key: u64, backends: &Backends, loads: &[Load]) -> Option<usize> {
    let [first, second] = backends.ring().first_two(key);
    let (first, Some(second)) = (first?, second) else {
        return first;
    };
    let pace = match [first, second].iter().any(|&i| load(loads, i).turns > 0) {
        true => Pace::Busy,
        false => Pace::Idle,
    };
    let [one, other] = [first, second].map(|i| Contender::new(i, backends, loads, pace));
    match other.cmp_load(&one) {
        Ordering::Less => Some(second),
        Ordering::Equal | Ordering::Greater => Some(first),
    }
}

/// Weighted round robin without a state: ticket `t` takes slot `t × step mod W` of `W` slots, with
/// a step near the golden section of `W` and coprime to it, so that every run of `W` tickets hits
/// each slot once and no backend gets its slots in a burst.
fn in_turn(backends: &Backends, ticket: u64) -> Option<usize> {
    let runs = backends.ring().runs(Among::Open);
    let weight = |run: &Run| u128::from(weight_in_force(run.weight, run.permille));
    let unit = runs.clone().map(weight).reduce(gcd)?;
    let width = |run: &Run| weight(run) / unit;
    let slots: u128 = runs
        .clone()
        .map(|run| width(run) * run.seats.len() as u128)
        .sum();
    let mut step = (slots * 618 / 1000).max(1);
    while gcd(step, slots) != 1 {
        step += 1;
    }
    let mut slot = u128::from(ticket) % slots * step % slots;
    for run in runs {
        // As many side by side for each of the run.
        let place = usize::try_from(slot / width(run)).ok();
        if let Some(seat) = place.and_then(|place| run.seats.get(place)) {
            return Some(seat.index());
        }
        slot -= width(run) * run.seats.len() as u128;
    }
    None
}

fn load(loads: &[Load], index: usize) -> Load {
    loads.get(index).copied().unwrap_or_default()
}

/// At least 1: loads are divided by it.
fn weight_in_force(weight: u32, permille: u32) -> u64 {
    (u64::from(weight) * u64::from(permille)).max(1)
}

fn gcd(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests;
