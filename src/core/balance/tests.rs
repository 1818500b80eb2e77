//! Each policy: who may get a session, in which order, and how full.

use proptest::prelude::*;

use super::*;
use crate::core::{
    snapshot::{AdminState, Health},
    testing::{backend, backends, snapshot},
};

fn pool(weights: &[u32]) -> Snapshot {
    snapshot(backends(weights))
}

const POLICIES: [Policy; 5] = [
    Policy::Sticky { load_factor: None },
    Policy::Sticky {
        load_factor: Some(1.25),
    },
    Policy::LeastLoaded,
    Policy::TwoChoices,
    Policy::RoundRobin,
];

/// Places `n` sessions that stay open, key by key.
fn fill(policy: Policy, pool: &Snapshot, n: u64) -> Vec<Load> {
    let mut loads = vec![Load::default(); pool.backends.len()];
    for ticket in 0..n {
        let (i, _) = place(policy, &format!("user-{ticket}"), pool, &loads, ticket).unwrap();
        loads[i].sessions += 1;
    }
    loads
}

fn sessions(loads: &[Load]) -> Vec<u32> {
    loads.iter().map(|l| l.sessions).collect()
}

#[test]
fn only_backends_that_take_placements_get_any() {
    type Spoil = fn(&mut Backend);
    let spoilt: [(&str, Spoil); 6] = [
        ("drain", |b| b.admin = AdminState::Drain),
        ("maint", |b| b.admin = AdminState::Maint),
        ("removed", |b| b.removed = true),
        ("down", |b| b.health = Health::Down),
        ("unknown", |b| b.health = Health::Unknown),
        ("mismatch", |b| b.health = Health::StorageMismatch),
    ];
    for (what, spoil) in spoilt {
        for policy in POLICIES {
            let mut one = pool(&[1, 1, 1]);
            one.backends.change(|all| spoil(&mut all[1]));
            let loads = fill(policy, &one, 60);
            assert_eq!(loads[1].sessions, 0, "{what} {policy:?}");
            assert!(
                loads[0].sessions > 0 && loads[2].sessions > 0,
                "{what} {policy:?}"
            );

            one.backends.change(|all| all.iter_mut().for_each(spoil));
            assert_eq!(place(policy, "k", &one, &[], 7), None, "{what} {policy:?}");
        }
    }
    for policy in POLICIES {
        assert_eq!(place(policy, "k", &pool(&[]), &[], 0), None);
        assert_eq!(
            place(policy, "k", &pool(&[3]), &[], 9).map(|p| p.0),
            Some(0)
        );
    }
}

#[test]
fn sticky_says_hash_only_for_the_preferred_backend() {
    let mut three = pool(&[1, 1, 1]);
    for policy in &POLICIES[..2] {
        let (preferred, reason) = place(*policy, "alice", &three, &[], 0).unwrap();
        assert_eq!(reason, PlacementReason::Hash);

        three
            .backends
            .change(|all| all[preferred].health = Health::Down);
        let (next, reason) = place(*policy, "alice", &three, &[], 0).unwrap();
        assert_ne!(next, preferred);
        assert_eq!(reason, PlacementReason::Bounded);

        // Out of the configuration: now the next one is what every replica prefers.
        three.backends.change(|all| all[preferred].removed = true);
        assert_eq!(
            place(*policy, "alice", &three, &[], 0),
            Some((next, PlacementReason::Hash))
        );
        three = pool(&[1, 1, 1]);
    }
}

#[test]
fn bounded_load_passes_a_full_backend_by() {
    let three = pool(&[1, 1, 1]);
    let policy = Policy::Sticky {
        load_factor: Some(1.25),
    };
    let (preferred, _) = place(policy, "alice", &three, &[], 0).unwrap();
    let mut loads = vec![
        Load {
            turns: 0,
            sessions: 10
        };
        3
    ];
    // 30 open: capacity is ceil(1.25 × 31 / 3) = 13.
    loads[preferred].sessions = 12;
    assert_eq!(
        place(policy, "alice", &three, &loads, 0).map(|p| p.0),
        Some(preferred)
    );
    loads[preferred].sessions = 40;
    let (other, reason) = place(policy, "alice", &three, &loads, 0).unwrap();
    assert_ne!(other, preferred);
    assert_eq!(reason, PlacementReason::Bounded);
    // Unbounded does not look at loads.
    let unbounded = Policy::Sticky { load_factor: None };
    assert_eq!(
        place(unbounded, "alice", &three, &loads, 0).map(|p| p.0),
        Some(preferred)
    );
}

#[test]
fn least_loaded_counts_turns_before_sessions_and_by_weight() {
    let turns = |t: [u32; 3], s: [u32; 3]| {
        (0..3)
            .map(|i| Load {
                turns: t[i],
                sessions: s[i],
            })
            .collect::<Vec<_>>()
    };
    // weights, loads, the backend that gets the session
    let table = [
        ([1, 1, 1], turns([2, 1, 3], [0, 50, 0]), 1),
        ([1, 1, 1], turns([1, 1, 1], [5, 6, 4]), 2),
        ([1, 4, 1], turns([1, 3, 1], [0, 0, 0]), 1),
        ([1, 4, 1], turns([0, 0, 0], [1, 6, 1]), 1),
        ([1, 4, 1], turns([0, 0, 0], [0, 6, 1]), 0),
    ];
    for (weights, loads, expected) in table {
        let got = place(Policy::LeastLoaded, "k", &pool(&weights), &loads, 0).map(|p| p.0);
        assert_eq!(got, Some(expected), "{weights:?} {loads:?}");
    }
}

#[test]
fn load_policies_fill_by_weight() {
    for policy in [Policy::LeastLoaded, Policy::RoundRobin] {
        assert_eq!(
            sessions(&fill(policy, &pool(&[1, 1, 1]), 300)),
            [100; 3],
            "{policy:?}"
        );
        let loads = sessions(&fill(policy, &pool(&[1, 2, 3]), 600));
        for (got, want) in loads.iter().zip([100, 200, 300]) {
            assert!(got.abs_diff(want) <= 1, "{policy:?}: {loads:?}");
        }
    }
    let loads = sessions(&fill(Policy::TwoChoices, &pool(&[1; 5]), 1000));
    assert!(loads.iter().all(|n| n.abs_diff(200) <= 10), "{loads:?}");
}

#[test]
fn an_idle_pool_is_not_entered_by_one_door() {
    let five = pool(&[1; 5]);
    let mut hit = [0; 5];
    for k in 0..500 {
        let (i, _) = place(Policy::LeastLoaded, &format!("user-{k}"), &five, &[], 0).unwrap();
        hit[i] += 1;
    }
    assert!(hit.iter().all(|&n| n > 60), "{hit:?}");
}

#[test]
fn a_ramping_backend_gets_its_part_only() {
    let mut three = pool(&[1, 1, 1]);
    three.backends.change(|all| all[0].weight_permille = 100);
    for policy in [Policy::LeastLoaded, Policy::RoundRobin] {
        let loads = sessions(&fill(policy, &three, 2100));
        assert!(loads[0].abs_diff(100) <= 2, "{policy:?}: {loads:?}");
    }
    // Everyone else works; its own zero must not draw all that comes.
    let mut loads = vec![
        Load {
            turns: 3,
            sessions: 3
        };
        3
    ];
    loads[0] = Load::default();
    let (i, _) = place(Policy::LeastLoaded, "k", &three, &loads, 0).unwrap();
    assert_ne!(i, 0);
    for load in &mut loads[1..] {
        load.turns = 11;
    }
    assert_eq!(
        place(Policy::LeastLoaded, "k", &three, &loads, 0).map(|p| p.0),
        Some(0)
    );
}

#[test]
fn two_choices_takes_the_lighter_of_the_two_best_ranked() {
    let five = pool(&[1; 5]);
    let mut ranking = Vec::new();
    for k in 0..50 {
        let key = format!("user-{k}");
        ring::rank(&key, &five.backends, &mut ranking);
        let mut loads = vec![Load::default(); 5];
        loads[ranking[0]].turns = 1;
        loads[ranking[1]].sessions = 9;
        let got = place(Policy::TwoChoices, &key, &five, &loads, 0);
        assert_eq!(got, Some((ranking[1], PlacementReason::TwoChoices)));
    }
}

#[test]
fn round_robin_does_not_serve_one_backend_in_a_burst() {
    let two = pool(&[1, 1]);
    let turns: Vec<_> = (0..4)
        .map(|t| place(Policy::RoundRobin, "k", &two, &[], t).unwrap().0)
        .collect();
    assert!(turns == [0, 1, 0, 1] || turns == [1, 0, 1, 0], "{turns:?}");
    let heavy = pool(&[5, 5]);
    let turns: Vec<_> = (0..8)
        .map(|t| place(Policy::RoundRobin, "k", &heavy, &[], t).unwrap().0)
        .collect();
    assert!(
        turns.windows(3).all(|w| w[0] != w[1] || w[1] != w[2]),
        "{turns:?}"
    );
}

/// What each policy that looks at loads means, backend by backend along the whole ranking.
fn plainly(policy: Policy, key: &str, pool: &Snapshot, loads: &[Load]) -> Option<usize> {
    let mut ranking = Vec::new();
    ring::rank(key, &pool.backends, &mut ranking);
    ranking.retain(|&i| pool.backends[i].takes_placements());
    if let Policy::Sticky { load_factor } = policy {
        let all = ranking.iter();
        let (weights, sessions) = all.fold((0.0, 1.0), |(weights, sessions), &i| {
            let weight = f64::from(pool.backends[i].weight);
            (
                weights + weight,
                sessions + f64::from(load(loads, i).sessions),
            )
        });
        let fits = |&i: &usize| {
            load_factor.is_none_or(|factor| {
                let weight = f64::from(pool.backends[i].weight);
                let capacity = (factor * sessions * weight / weights).ceil();
                f64::from(load(loads, i).sessions) < capacity
            })
        };
        return ranking
            .iter()
            .copied()
            .find(fits)
            .or(ranking.first().copied());
    }
    if policy == Policy::TwoChoices {
        ranking.truncate(2);
    }
    let pace = match ranking.iter().any(|&i| load(loads, i).turns > 0) {
        true => Pace::Busy,
        false => Pace::Idle,
    };
    let all = ranking.iter();
    let all = all.map(|&i| Contender::new(i, &pool.backends, loads, pace));
    // The first of equal ones.
    all.min_by(Contender::cmp_load).map(|best| best.index)
}

proptest! {
    #[test]
    fn placements_are_what_the_policies_say(
        members in prop::collection::vec(
            (
                1u32..=3,
                prop::sample::select(vec![1000u32, 1000, 1000, 500, 0]),
                // Up, down, removed.
                prop::sample::select(vec![0, 0, 0, 0, 0, 1, 2]),
                (0u32..3, 0u32..4),
            ),
            0..24,
        ),
        loads in prop_oneof![Just(24usize), 0usize..24],
        key in ".{0,12}",
    ) {
        let named = members.iter().enumerate();
        let named = named.map(|(i, &(weight, weight_permille, state, _))| Backend {
            weight_permille,
            health: if state == 1 { Health::Down } else { Health::Up },
            removed: state == 2,
            ..backend(&format!("cli-{i:02}"), weight)
        });
        let pool = snapshot(named.collect());
        let each = members.iter().map(|&(.., (turns, sessions))| Load { turns, sessions });
        let loads: Vec<Load> = each.take(loads).collect();
        for policy in &POLICIES[..4] {
            prop_assert_eq!(
                place(*policy, &key, &pool, &loads, 0).map(|(i, _)| i),
                plainly(*policy, &key, &pool, &loads),
                "{:?}", policy
            );
        }
    }

    #[test]
    fn with_a_load_factor_no_backend_is_above_its_bound(
        weights in prop::collection::vec(1u32..=10, 1..8),
        percent in 100u32..=300,
        keys in prop::collection::vec(0u8..12, 1..200),
    ) {
        let pool = pool(&weights);
        let factor = f64::from(percent) / 100.0;
        let total_weight: u32 = weights.iter().sum();
        let mut loads = vec![Load::default(); weights.len()];
        for (n, key) in keys.iter().enumerate() {
            let policy = Policy::Sticky { load_factor: Some(factor) };
            let (i, _) = place(policy, &format!("user-{key}"), &pool, &loads, 0).unwrap();
            loads[i].sessions += 1;
            let share = (n + 1) as f64 * f64::from(weights[i]) / f64::from(total_weight);
            prop_assert!(f64::from(loads[i].sessions) <= factor * share + 1.0);
        }
    }

    #[test]
    fn every_round_of_tickets_serves_by_weight(
        weights in prop::collection::vec(1u32..=9, 1..7),
        start in 0u64..1_000_000,
    ) {
        let pool = pool(&weights);
        let unit = weights.iter().copied().reduce(|a, b| gcd(a.into(), b.into()) as u32).unwrap();
        let round = u64::from(weights.iter().sum::<u32>() / unit);
        let mut served = vec![0; weights.len()];
        for ticket in start..start + round {
            served[place(Policy::RoundRobin, "k", &pool, &[], ticket).unwrap().0] += 1;
        }
        let expected: Vec<u32> = weights.iter().map(|w| w / unit).collect();
        prop_assert_eq!(served, expected);
    }

    #[test]
    fn any_load_gives_a_backend_that_takes_placements(
        members in prop::collection::vec((1u32..=u32::MAX, 0u32..=1000, any::<bool>()), 0..6),
        load in any::<(u32, u32)>(),
        loads in 0usize..8,
        ticket in any::<u64>(),
        policy in prop::sample::select(POLICIES.to_vec()),
    ) {
        let mut pool = pool(&members.iter().map(|m| m.0).collect::<Vec<_>>());
        pool.backends.change(|all| {
            for (backend, member) in all.iter_mut().zip(&members) {
                backend.weight_permille = member.1;
                backend.health = if member.2 { Health::Up } else { Health::Down };
            }
        });
        let loads = vec![Load { turns: load.0, sessions: load.1 }; loads];
        match place(policy, "key", &pool, &loads, ticket) {
            Some((i, _)) => prop_assert!(members[i].2),
            None => prop_assert!(members.iter().all(|m| !m.2)),
        }
    }
}
