//! Weighted rendezvous hashing with a fixed seed: key and backend names in, a ranking out.
//!
//! The ranking must be the same on every replica, machine, build and release, so it uses only
//! XXH3-64 and integer arithmetic: no float, whose logarithm may differ in the last bit from one
//! C library to the next, and no health, which differs from one replica to the next.
//! Which of the ranked backends may take a session is not decided here.
//!
//! Each backend draws a number `u` in (0, 1) from the hash of key and name, and has the score
//! `-log2(u) / weight`; the lowest score ranks first. A backend that joins or leaves changes no
//! other backend's score, so it moves only the keys that it wins or held.

use std::cmp::Ordering;

use twox_hash::XxHash3_64;

use super::{id::BackendName, snapshot::Backend};

/// Seed of every placement hash. Changing it moves every session of every user.
const SEED: u64 = 0x7461_7869_7761_7931;

/// Fraction bits of a fixed-point logarithm.
const FRACTION: u32 = 56;
/// Leading mantissa bits that select a segment of the logarithm's table.
const SEGMENT: u32 = 8;
/// `log2(1 + i / 256)` in fixed point, for the ends of the 256 segments.
const LOG2: [u64; (1 << SEGMENT) + 1] = log2_table();

/// XXH3-64 of a key or name with the seed of placements.
pub fn placement_hash(text: &str) -> u64 {
    XxHash3_64::oneshot_with_seed(SEED, text.as_bytes())
}

/// Fills `out` with the indices of all `backends`, best first for `key`.
pub fn rank(key: &str, backends: &[Backend], out: &mut Vec<usize>) {
    let key = placement_hash(key);
    let mut seats: Vec<Seat<'_>> = backends
        .iter()
        .enumerate()
        .map(|(i, b)| Seat::new(key, b, i))
        .collect();
    seats.sort_unstable_by(Seat::cmp_score);
    out.clear();
    out.extend(seats.iter().map(|s| s.index));
}

/// The best of those `backends` that pass `filter`: the first of [`rank`] that does.
pub fn first(key: &str, backends: &[Backend], filter: impl Fn(&Backend) -> bool) -> Option<usize> {
    first_at(placement_hash(key), backends, |_, backend| filter(backend))
}

/// The same for a key with this [`placement_hash`]; `filter` is told the place in `backends`, too.
pub fn first_at(
    key: u64,
    backends: &[Backend],
    filter: impl Fn(usize, &Backend) -> bool,
) -> Option<usize> {
    // With its logarithm, which most of the others then do not need.
    let mut best: Option<(Seat<'_>, u64)> = None;
    for (index, backend) in backends.iter().enumerate() {
        let seat = Seat::new(key, backend, index);
        // Most have lost already, whatever the filter thinks of them.
        if let Some((best, log)) = &best
            && seat.is_surely_after(best, *log)
        {
            continue;
        }
        if !filter(index, backend) {
            continue;
        }
        if let Some((best, _)) = &best
            && seat.cmp_score(best) != Ordering::Less
        {
            continue;
        }
        let log = neg_log2(seat.draw);
        best = Some((seat, log));
    }
    best.map(|(seat, _)| seat.index)
}

/// `Less` if `a` ranks before `b` for a key with this [`placement_hash`].
pub fn cmp_rank(key: u64, a: &Backend, b: &Backend) -> Ordering {
    Seat::new(key, a, 0).cmp_score(&Seat::new(key, b, 1))
}

/// One backend's draw for one key.
struct Seat<'a> {
    /// 64 bits that stand for `u = draw / 2^64`; never 0.
    draw: u64,
    /// Configured weight, at least 1.
    weight: u32,
    /// Place in the slice.
    index: usize,
    /// Breaks ties.
    name: &'a BackendName,
}

impl<'a> Seat<'a> {
    #[inline]
    fn new(key: u64, backend: &'a Backend, index: usize) -> Self {
        let draw = mix(key ^ backend.name.placement_hash()).max(1);
        Self {
            draw,
            weight: backend.weight.max(1),
            index,
            name: &backend.name,
        }
    }

    /// Whether `self` ranks after `best`, whose [`neg_log2`] is `log`, as far as can be told without
    /// a logarithm: `-ln(u) >= 1 - u`, which is close for draws that have a chance.
    #[inline]
    fn is_surely_after(&self, best: &Self, log: u64) -> bool {
        if self.weight <= best.weight && self.draw < best.draw {
            return true;
        }
        // log2(e) from below, times `1 - u` in fixed point.
        let at_least = (!self.draw >> (64 - FRACTION)) / 1024 * 1477;
        u128::from(at_least) * u128::from(best.weight) > u128::from(log) * u128::from(self.weight)
    }

    /// `Less` if `self` ranks before `other`. Total: names are unique.
    fn cmp_score(&self, other: &Self) -> Ordering {
        let by_score = if self.weight == other.weight {
            Ordering::Equal
        } else {
            // a / wa < b / wb, without the division: both factors fit 64 bits.
            let mine = u128::from(neg_log2(self.draw)) * u128::from(other.weight);
            let others = u128::from(neg_log2(other.draw)) * u128::from(self.weight);
            mine.cmp(&others)
        };
        // The logarithm never falls as its argument grows, so among equal weights the larger draw
        // has the lower score, and is also the finer measure.
        by_score
            .then_with(|| other.draw.cmp(&self.draw))
            .then_with(|| self.name.cmp(other.name))
    }
}

/// Spreads 64 bits over 64 bits, one to one (the finaliser of SplitMix64).
#[inline]
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// `-log2(draw / 2^64)` in fixed point with [`FRACTION`] bits, at least 1; `draw` is not 0.
///
/// Linear between the table's points: at most 3e-6 above the true value, and monotone.
#[inline]
fn neg_log2(draw: u64) -> u64 {
    let zeros = draw.leading_zeros();
    // The bits below the leading one, moved to the top.
    let mantissa = (draw << zeros) << 1;
    let segment = (mantissa >> (64 - SEGMENT)) as usize;
    let within = mantissa << SEGMENT;
    let (low, high) = (LOG2[segment], LOG2[segment + 1]);
    let step = (u128::from(high - low) * u128::from(within)) >> 64;
    let exponent = u64::from(63 - zeros) << FRACTION;
    let log = exponent + low + step as u64;
    ((64 << FRACTION) - log).max(1)
}

/// The table of [`neg_log2`], by repeated squaring: each squaring of a number in [1, 2) yields the
/// next bit of its logarithm.
const fn log2_table() -> [u64; (1 << SEGMENT) + 1] {
    let mut table = [0; (1 << SEGMENT) + 1];
    let mut i = 0;
    while i < 1 << SEGMENT {
        // 1 + i/256 with 63 fraction bits.
        let mut x: u128 = (1 << 63) + ((i as u128) << (63 - SEGMENT));
        let mut log: u64 = 0;
        let mut bit = 0;
        while bit < FRACTION {
            x = (x * x) >> 63;
            log <<= 1;
            if x >= 1 << 64 {
                x >>= 1;
                log |= 1;
            }
            bit += 1;
        }
        table[i] = log;
        i += 1;
    }
    table[1 << SEGMENT] = 1 << FRACTION;
    table
}

#[cfg(test)]
mod tests;
