//! Cost of a placement's ranking over a hundred backends.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use taxiway::core::ring::{self, Among};

#[path = "stage/pool.rs"]
mod pool;

fn ring(c: &mut Criterion) {
    let key = "59e32a26-9b05-4dee-9192-8af7c5135372";
    let pools = [
        ("equal", pool::hundred(|_| 1)),
        ("mixed", pool::hundred(|n| n % 7 + 1)),
    ];
    for (name, pool) in pools {
        let (backends, ring) = (&pool.backends, pool.backends.ring());
        c.bench_function(&format!("ring/first/100 {name}"), |b| {
            b.iter(|| {
                let key = ring::placement_hash(black_box(key));
                ring.first(key, Among::Open, |_| true)
            });
        });
        let mut ranking = Vec::new();
        c.bench_function(&format!("ring/rank/100 {name}"), |b| {
            b.iter(|| ring::rank(black_box(key), backends, &mut ranking));
        });
    }
}

criterion_group!(benches, ring);
criterion_main!(benches);
