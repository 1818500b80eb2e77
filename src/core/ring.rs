//! Weighted rendezvous hashing with a fixed seed: key and backend names in, a ranking out.
//!
//! The ranking must be the same on every replica, machine, build and release, so it uses only
//! XXH3-64 and integer arithmetic: no float, whose logarithm may differ in the last bit from one
//! C library to the next, and no health, which differs from one replica to the next.
//! Which of the ranked backends may take a session is not decided here: `Backend` says it, and the
//! caller's filter.
//!
//! Each backend draws a number `u` in (0, 1) from the hash of key and name, and has the score
//! `-log2(u) / weight`; the lowest score ranks first. A backend that joins or leaves changes no
//! other backend's score, so it moves only the keys that it wins or held.
//!
//! [`rank`] is the definition. Placements draw from a [`Ring`], which finds the first of a ranking
//! without making it.

use std::{cmp::Ordering, collections::BTreeMap};

use twox_hash::XxHash3_64;

use super::snapshot::Backend;

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
    let mut drawn: Vec<Drawn> = backends
        .iter()
        .enumerate()
        .map(|(i, b)| Drawn::of(key, b, i))
        .collect();
    drawn.sort_unstable_by(|a, b| {
        let by_name = || backends[a.index].name.cmp(&backends[b.index].name);
        a.cmp_score(b).then_with(by_name)
    });
    out.clear();
    out.extend(drawn.iter().map(|d| d.index));
}

/// `Less` if `a` ranks before `b` for a key with this [`placement_hash`].
pub fn cmp_rank(key: u64, a: &Backend, b: &Backend) -> Ordering {
    let by_name = || a.name.cmp(&b.name);
    let (drawn, other) = (Drawn::of(key, a, 0), Drawn::of(key, b, 1));
    drawn.cmp_score(&other).then_with(by_name)
}

/// What drawing needs of a pool's backends, side by side: a placement on a hundred of them reads
/// 1.6 KiB instead of each [`Backend`] and its name.
///
/// A function of the backends that it was made of. Those that are removed are not in it.
#[derive(Clone, Debug)]
pub struct Ring {
    /// Those that take placements.
    open: Vec<Run>,
    /// Those that are configured, but take none.
    shut: Vec<Run>,
}

/// Who of a [`Ring`] is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Among {
    /// Who takes placements.
    Open,
    /// Who is configured, whether it takes placements now or not.
    Configured,
}

/// Backends of one weight: their draws compare as they are, without a logarithm.
#[derive(Clone, Debug)]
pub struct Run {
    /// Configured weight, at least 1.
    pub weight: u32,
    /// Share of it in force now.
    pub permille: u32,
    /// In the pool's order, never empty.
    pub seats: Vec<Seat>,
}

/// A backend's place in a [`Run`].
#[derive(Clone, Copy, Debug)]
pub struct Seat {
    /// [`placement_hash`] of its name.
    name: u64,
    index: u32,
}

impl Ring {
    /// The ring of these `backends`, which are ordered by name.
    pub(super) fn new(backends: &[Backend]) -> Self {
        let runs = |among: fn(&Backend) -> bool| {
            let mut runs: BTreeMap<_, Vec<Seat>> = BTreeMap::new();
            for (index, backend) in (0..).zip(backends).filter(|(_, b)| among(b)) {
                let alike = (backend.weight.max(1), backend.weight_permille);
                runs.entry(alike).or_default().push(Seat {
                    name: backend.name.placement_hash(),
                    index,
                });
            }
            // The heaviest first, which mostly win.
            let runs = runs.into_iter().rev();
            let run = |((weight, permille), seats)| Run {
                weight,
                permille,
                seats,
            };
            runs.map(run).collect()
        };
        Self {
            open: runs(Backend::takes_placements),
            shut: runs(|b| !b.removed && !b.takes_placements()),
        }
    }

    /// Its backends, by weight.
    pub fn runs(&self, among: Among) -> impl Iterator<Item = &Run> + Clone {
        let shut = match among {
            Among::Open => &[][..],
            Among::Configured => &self.shut,
        };
        self.open.iter().chain(shut)
    }

    /// The best of those `among` that `may` be it, for a key with this [`placement_hash`]: the first
    /// of them in [`rank`]. `may` is told places in the pool.
    pub fn first(&self, key: u64, among: Among, may: impl Fn(usize) -> bool) -> Option<usize> {
        let [first] = self.best(key, among, may);
        first
    }

    /// The first two in [`rank`] that take placements.
    pub fn first_two(&self, key: u64) -> [Option<usize>; 2] {
        self.best(key, Among::Open, |_| true)
    }

    /// The first `N`, in order.
    #[inline]
    fn best<const N: usize>(
        &self,
        key: u64,
        among: Among,
        may: impl Fn(usize) -> bool,
    ) -> [Option<usize>; N] {
        let mut best: [Option<Drawn>; N] = [None; N];
        for run in self.runs(among) {
            for (draw, index) in run.largest::<N>(key, &may) {
                // Nobody, or hopeless, and so are those that drew less.
                if draw == 0
                    || best[N - 1].is_some_and(|last| last.is_surely_before(draw, run.weight))
                {
                    break;
                }
                let drawn = Drawn::new(draw, run.weight, index);
                if best[N - 1].is_some_and(|last| last.is_before(&drawn)) {
                    break;
                }
                best[N - 1] = Some(drawn);
                for i in (1..N).rev() {
                    if best[i - 1].is_none_or(|other| drawn.is_before(&other)) {
                        best.swap(i - 1, i);
                    }
                }
            }
        }
        best.map(|drawn| Some(drawn?.index))
    }
}

impl Run {
    /// The `N` largest draws of those that `may` be it, and whose they are, the largest first; draws
    /// of 0 if there are fewer.
    #[inline]
    fn largest<const N: usize>(&self, key: u64, may: impl Fn(usize) -> bool) -> [(u64, usize); N] {
        let mut largest = [(0, 0); N];
        // What a draw's upper bits have to reach.
        let mut least = 0;
        for seat in &self.seats {
            let upper = upper(key ^ seat.name);
            // Nearly always, once a few have drawn.
            if upper < least {
                continue;
            }
            let draw = lower(upper);
            // Of equal draws the first keeps its place: it has the lesser name.
            if draw <= largest[N - 1].0 || !may(seat.index()) {
                continue;
            }
            largest[N - 1] = (draw, seat.index());
            for i in (1..N).rev() {
                if largest[i].0 > largest[i - 1].0 {
                    largest.swap(i - 1, i);
                }
            }
            least = largest[N - 1].0 & UPPER;
        }
        largest
    }
}

impl Seat {
    /// The backend's place in the pool.
    #[inline]
    pub fn index(&self) -> usize {
        self.index as usize
    }

    /// What it draws for a key with this [`placement_hash`]: of one weight, the largest ranks first.
    #[inline]
    pub fn draw(&self, key: u64) -> u64 {
        draw(key, self.name)
    }
}

/// 64 bits that stand for `u = draw / 2^64`; never 0.
#[inline]
fn draw(key: u64, name: u64) -> u64 {
    lower(upper(key ^ name))
}

/// One backend's draw for one key.
#[derive(Clone, Copy)]
struct Drawn {
    draw: u64,
    /// Its [`neg_log2`].
    log: u64,
    /// Configured weight, at least 1.
    weight: u32,
    /// Place in the pool.
    index: usize,
}

impl Drawn {
    #[inline]
    fn new(draw: u64, weight: u32, index: usize) -> Self {
        Self {
            draw,
            log: neg_log2(draw),
            weight,
            index,
        }
    }

    fn of(key: u64, backend: &Backend, index: usize) -> Self {
        let draw = draw(key, backend.name.placement_hash());
        Self::new(draw, backend.weight.max(1), index)
    }

    /// Whether `self` ranks before who drew this, as far as can be told without the logarithm:
    /// `-ln(u) >= 1 - u`, which is close for draws that have a chance.
    #[inline]
    fn is_surely_before(&self, draw: u64, weight: u32) -> bool {
        if weight <= self.weight && draw < self.draw {
            return true;
        }
        // log2(e) from below, times `1 - u` in fixed point.
        let at_least = (!draw >> (64 - FRACTION)) / 1024 * 1477;
        u128::from(at_least) * u128::from(self.weight) > u128::from(self.log) * u128::from(weight)
    }

    /// Of one pool, which is ordered by name.
    #[inline]
    fn is_before(&self, other: &Self) -> bool {
        let by_name = || self.index.cmp(&other.index);
        self.cmp_score(other).then_with(by_name) == Ordering::Less
    }

    /// `Less` if `self` ranks before `other`. Names break ties.
    #[inline]
    fn cmp_score(&self, other: &Self) -> Ordering {
        let by_score = if self.weight == other.weight {
            Ordering::Equal
        } else {
            // a / wa < b / wb, without the division: both factors fit 64 bits.
            let mine = u128::from(self.log) * u128::from(other.weight);
            mine.cmp(&(u128::from(other.log) * u128::from(self.weight)))
        };
        // The logarithm never falls as its argument grows, so among equal weights the larger draw
        // has the lower score, and is also the finer measure.
        by_score.then_with(|| other.draw.cmp(&self.draw))
    }
}

/// The bits of a draw that [`upper`] says already.
const UPPER: u64 = !0 << 33;

/// Spreads 64 bits over 64 bits, one to one (the finaliser of SplitMix64), but for its last step,
/// which changes the lower 33 only.
#[inline]
fn upper(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb)
}

/// The last step, and no 0, which has no logarithm.
#[inline]
fn lower(x: u64) -> u64 {
    (x ^ (x >> 31)).max(1)
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
