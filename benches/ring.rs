//! Cost of a placement's ranking over a hundred backends.

use std::{hint::black_box, sync::Arc};

use criterion::{Criterion, criterion_group, criterion_main};
use taxiway::core::{
    ring,
    snapshot::{AdminState, Backend, Health},
};

fn pool(weight: impl Fn(u32) -> u32) -> Vec<Backend> {
    (0..100)
        .map(|i| Backend {
            name: format!("cli-{i}").into(),
            address: Arc::from("127.0.0.1:4321"),
            token: None,
            weight: weight(i),
            weight_permille: 1000,
            admin: AdminState::Ready,
            health: Health::Up,
            removed: false,
            released: false,
            protocol_version: Some(3),
            version: None,
            task_kinds: Arc::from([]),
            disk_read: true,
        })
        .collect()
}

fn ring(c: &mut Criterion) {
    let key = "59e32a26-9b05-4dee-9192-8af7c5135372";
    for (name, backends) in [("equal", pool(|_| 1)), ("mixed", pool(|i| i % 7 + 1))] {
        c.bench_function(&format!("ring/first/100 {name}"), |b| {
            b.iter(|| ring::first(black_box(key), &backends, Backend::takes_placements));
        });
        let mut ranking = Vec::new();
        c.bench_function(&format!("ring/rank/100 {name}"), |b| {
            b.iter(|| ring::rank(black_box(key), &backends, &mut ranking));
        });
    }
}

criterion_group!(benches, ring);
criterion_main!(benches);
