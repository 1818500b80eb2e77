//! What it costs to claim a session so that a crash does not reach it: in memory, in a file on the
//! disk, in a file where writing through is free (`/dev/shm`), and many at once.

#![allow(missing_docs, reason = "criterion's macros make functions without")]

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use futures_util::future::join_all;
use taxiway::{
    core::{
        id::{BackendName, ConnectionId, SessionId},
        snapshot::Mode,
    },
    store::{Kind, Options, Store},
};

/// New sessions, each claimed once.
static NEXT: AtomicU64 = AtomicU64::new(0);

async fn claim(store: &Store, backend: &BackendName) {
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let session = SessionId::from(format!("59e32a26-9b05-4dee-9192-{n:012x}"));
    let claimed = store.claim(&session, backend, ConnectionId(1)).await;
    claimed.expect("it is decided here");
}

fn open(folder: Option<&Path>) -> Store {
    let kind = folder.map_or(Kind::Memory, |f| Kind::Embedded(f.join("bench.db")));
    let options = Options {
        mode: Mode::Sticky,
        limit: 1_000_000,
        expire: None,
        report: Arc::new(drop),
    };
    Store::open(&kind, &options).expect("a new folder takes a store")
}

fn claims(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime starts");
    let target = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target is writable");
    let memory = tempfile::tempdir_in("/dev/shm").ok();
    let backend = BackendName::from("cli-1");
    let mut group = c.benchmark_group("claim");
    for (name, folder) in [
        ("memory", None),
        ("disk", Some(target.path())),
        (
            "without fsync",
            memory.as_ref().map(tempfile::TempDir::path),
        ),
    ] {
        if name != "memory" && folder.is_none() {
            continue;
        }
        let store = open(folder);
        for at_once in [1, 64] {
            group.throughput(criterion::Throughput::Elements(at_once));
            group.bench_function(BenchmarkId::new(name, at_once), |b| {
                b.iter(|| {
                    runtime.block_on(join_all((0..at_once).map(|_| claim(&store, &backend))));
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, claims);
criterion_main!(benches);
