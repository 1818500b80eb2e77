//! Golden placements, and how few keys move when the pool changes.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;
use crate::core::{
    id::BackendName,
    snapshot::{Backends, Health},
    testing::{backend, backends as pool},
};

const KEYS: usize = 100_000;

fn placed(keys: impl Iterator<Item = String>, backends: &[Backend]) -> Vec<BackendName> {
    let pool = Backends::from(backends.to_vec());
    let first = |key: String| {
        let place = pool.ring().first(placement_hash(&key), Among::Open, all);
        pool[place.expect("the pool is not empty")].name.clone()
    };
    keys.map(first).collect()
}

fn winners(backends: &[Backend]) -> Vec<BackendName> {
    placed((0..KEYS).map(|k| format!("user-{k}")), backends)
}

fn all(_: usize) -> bool {
    true
}

/// The pools of the golden file. Weights, names that share prefixes, and one beyond ASCII.
fn golden_pools() -> Vec<(&'static str, Vec<Backend>)> {
    let names = [
        "a",
        "b",
        "backend-with-a-rather-long-name-in-some-cluster.local",
        "größe",
        "cli-10",
    ];
    vec![
        ("three", pool(&[1, 1, 1])),
        ("weighted", pool(&[1, 2, 5, 100])),
        ("named", names.iter().map(|n| backend(n, 1)).collect()),
        ("ten", pool(&[1; 10])),
    ]
}

fn golden_keys() -> Vec<String> {
    let mut keys: Vec<String> = (0..12).map(|i| format!("user-{i}")).collect();
    keys.extend(
        [
            "",
            "a",
            "alice",
            "Alice",
            "59e32a26-9b05-4dee-9192-8af7c5135372",
            "ключ",
        ]
        .map(String::from),
    );
    // One for each branch of XXH3 by length: to 16, 128, 240 bytes, and beyond.
    keys.extend([17, 129, 241, 300].map(|n| "x".repeat(n)));
    keys
}

fn placements() -> String {
    let mut text = String::new();
    let mut ranking = Vec::new();
    for (name, backends) in golden_pools() {
        for key in golden_keys() {
            rank(&key, &backends, &mut ranking);
            let names: Vec<&str> = ranking.iter().map(|&i| backends[i].name.as_str()).collect();
            writeln!(text, "{name}\t{key}\t{}", names.join(" ")).unwrap();
        }
    }
    text
}

/// A change of this file moves sessions away from their disks at the next upgrade.
#[test]
fn placements_are_the_golden_ones() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/placements.tsv");
    let golden = std::fs::read_to_string(path).unwrap();
    let golden: Vec<&str> = golden.lines().filter(|l| !l.starts_with('#')).collect();
    let now = placements();
    assert_eq!(now.lines().collect::<Vec<_>>(), golden);
}

#[test]
fn hash_is_xxh3_with_the_seed_of_placements() {
    // From the reference library, one for each of its branches by length.
    assert_eq!(placement_hash(""), 2048788332656741321);
    assert_eq!(placement_hash("cli-1"), 8783289320285677274);
    assert_eq!(placement_hash(&"x".repeat(300)), 16917824159515402543);
}

#[test]
fn logarithm_is_close_and_monotone() {
    let exact = |draw: u64| 64.0 - (draw as f64).log2();
    let mut last = None;
    let draws = (0..64u32).flat_map(|shift| (0..1000u64).map(move |i| (shift, i)));
    let mut draws: Vec<u64> = draws
        .map(|(shift, i)| ((1u64 << 63) | ((i * 0x0020_c49b_a5e3_53f7) >> 1)) >> shift)
        .chain([1, 2, 3, u64::MAX, u64::MAX - 1])
        .collect();
    draws.sort_unstable();
    for draw in draws {
        let log = neg_log2(draw);
        let close = log as f64 / (1u64 << FRACTION) as f64 - exact(draw);
        assert!((-1e-9..3e-6).contains(&close), "{draw}: off by {close}");
        assert!(last.is_none_or(|l| log <= l), "{draw}: not monotone");
        last = Some(log);
    }
    assert_eq!(neg_log2(1), 64 << FRACTION);
    assert_eq!(neg_log2(1 << 63), 1 << FRACTION);
    assert_eq!(neg_log2(u64::MAX), 1);
}

#[test]
fn a_new_backend_takes_its_share_and_moves_nothing_else() {
    for n in [1, 2, 3, 5, 9, 20] {
        let before = pool(&vec![1; n]);
        let after = pool(&vec![1; n + 1]);
        let joined = &after[n].name;
        let mut moved = 0;
        for (old, new) in winners(&before).into_iter().zip(winners(&after)) {
            if old != new {
                assert_eq!(&new, joined, "a key moved between two old backends");
                moved += 1;
            }
        }
        let share = moved as f64 / KEYS as f64;
        let fair = 1.0 / (n as f64 + 1.0);
        assert!(
            (fair - 0.01..=fair + 0.01).contains(&share),
            "{n} + 1: {share} moved"
        );
    }
}

#[test]
fn weights_are_respected() {
    for weights in [
        &[1, 1, 1][..],
        &[1, 2, 3],
        &[1, 10],
        &[7, 1, 1, 1],
        &[100, 50, 25, 25],
    ] {
        let backends = pool(weights);
        let total: u32 = weights.iter().sum();
        let won = winners(&backends);
        for backend in &backends {
            let share = won.iter().filter(|n| **n == backend.name).count() as f64 / KEYS as f64;
            let fair = f64::from(backend.weight) / f64::from(total);
            assert!(
                (share - fair).abs() < 0.006,
                "{weights:?} {}: {share}",
                backend.name
            );
        }
    }
}

#[test]
fn a_larger_weight_only_attracts() {
    let before = pool(&[2, 2, 2, 2]);
    let after = pool(&[2, 2, 3, 2]);
    for (old, new) in winners(&before).into_iter().zip(winners(&after)) {
        assert!(old == new || new.as_str() == "cli-3");
    }
}

/// No two names are known that draw alike, so these seats have none.
#[test]
fn of_equal_draws_the_lesser_name_ranks_first() {
    let run = |weight, permille, seats: &[u32]| Run {
        weight,
        permille,
        seats: seats.iter().map(|&index| Seat { name: 5, index }).collect(),
    };
    let ring = |open| Ring {
        open,
        shut: Vec::new(),
    };
    let one = ring(vec![run(1, 1000, &[3, 4, 7])]);
    let two = ring(vec![run(1, 1000, &[4, 7]), run(1, 100, &[3, 8])]);
    // The key that is as its name draws the least there is: from 0, which has no logarithm.
    for key in [5, 6, 7] {
        for ring in [&one, &two] {
            assert_eq!(ring.first(key, Among::Open, all), Some(3));
            assert_eq!(ring.first(key, Among::Open, |i| i > 3), Some(4));
            assert_eq!(ring.first_two(key), [Some(3), Some(4)]);
        }
    }
}

proptest! {
    #[test]
    fn rank_orders_all_whatever_the_order_of_the_slice(
        key in ".{0,40}",
        weights in prop::collection::vec(1u32..=1000, 0..12),
        turn in 0usize..12,
    ) {
        let backends = pool(&weights);
        let mut rotated = backends.clone();
        rotated.rotate_left(turn.min(weights.len()));
        let (mut a, mut b) = (vec![99], Vec::new());
        rank(&key, &backends, &mut a);
        rank(&key, &rotated, &mut b);
        let a: Vec<_> = a.iter().map(|&i| &backends[i].name).collect();
        let b: Vec<_> = b.iter().map(|&i| &rotated[i].name).collect();
        prop_assert_eq!(&a, &b);
        let mut sorted = a.clone();
        sorted.sort();
        sorted.dedup();
        prop_assert_eq!(sorted.len(), weights.len());
    }

    #[test]
    fn the_ring_agrees_with_the_ranking(
        key in ".{0,40}",
        members in prop::collection::btree_map(
            prop_oneof!["cli-[0-9]{1,2}", "[a-zß]{0,3}"],
            (
                prop_oneof![3 => 1u32..=4, 1 => any::<u32>()],
                prop::sample::select(vec![1000u32, 1000, 100, 0]),
                // Up, down, removed; and whether it passes.
                prop::sample::select(vec![0, 0, 0, 0, 1, 2]),
                prop::bool::weighted(0.6),
            ),
            0..60,
        ),
    ) {
        let made = members.iter().map(|(name, &(weight, permille, state, _))| Backend {
            weight_permille: permille,
            health: if state == 1 { Health::Down } else { Health::Up },
            removed: state == 2,
            ..backend(name, weight)
        });
        let mut backends: Vec<_> = made.collect();
        backends.reverse();
        let pool = Backends::from(backends);
        let passes: Vec<bool> = members.values().map(|member| member.3).collect();
        let mut ranking = Vec::new();
        rank(&key, &pool, &mut ranking);

        let (hash, ring) = (placement_hash(&key), pool.ring());
        let open: Vec<usize> = ranking.iter().copied().filter(|&i| pool[i].takes_placements()).collect();
        let configured: Vec<usize> = ranking.iter().copied().filter(|&i| !pool[i].removed).collect();
        for (among, expected) in [(Among::Open, &open), (Among::Configured, &configured)] {
            prop_assert_eq!(ring.first(hash, among, all), expected.first().copied());
            let expected = expected.iter().copied().find(|&i| passes[i]);
            prop_assert_eq!(ring.first(hash, among, |i| passes[i]), expected);
        }
        prop_assert_eq!(ring.first_two(hash), [0, 1].map(|n| open.get(n).copied()));
        for two in ranking.windows(2) {
            prop_assert_eq!(cmp_rank(hash, &pool[two[0]], &pool[two[1]]), Ordering::Less);
        }
    }

    #[test]
    fn removal_moves_only_the_keys_of_the_removed(
        weights in prop::collection::vec(1u32..=20, 2..10),
        gone in 0usize..10,
        salt in any::<u32>(),
    ) {
        let backends = pool(&weights);
        let gone = gone % backends.len();
        let mut left = backends.clone();
        left.remove(gone);
        let keys = || (0..200).map(|k| format!("{salt}-{k}"));
        for (old, new) in placed(keys(), &backends).into_iter().zip(placed(keys(), &left)) {
            prop_assert!(old == new || old == backends[gone].name);
        }
    }
}
