//! What another configuration does to backends that are known and in use.

use super::*;

#[tokio::test]
async fn reload_adds_moves_and_removes() {
    let (a, b) = (Fake::start().await, Fake::start().await);
    let bench = Bench::start(Mode::Sticky, &[("a", &a)]);
    bench.until_health("a", Health::Up).await;
    let generation = bench.pool.current().generation;
    bench.pool.apply(vec![named("a", a.address)], health());
    assert_eq!(
        bench.pool.current().generation,
        generation,
        "nothing changed"
    );

    bench
        .pool
        .apply(vec![named("c", b.address), named("a", a.address)], health());
    let names: Vec<_> = bench
        .pool
        .current()
        .backends
        .iter()
        .map(|b| b.name.clone())
        .collect();
    assert_eq!(names, ["a".into(), "c".into()]);
    bench.until_health("c", Health::Up).await;
    assert_eq!(
        a.wishes.accepted.load(Ordering::SeqCst),
        1,
        "its connection stays"
    );

    // The same name at another address is another process: not before the first is out of use.
    bench.ears.in_use.store(1, Ordering::SeqCst);
    bench
        .pool
        .apply(vec![named("a", b.address), named("c", b.address)], health());
    let moving = bench.pool.current();
    let moving = moving.get(&"a".into()).unwrap();
    assert_eq!(&*moving.address, a.address.to_string());
    assert!(moving.is_usable() && !moving.takes_placements());
    let reason = bench.pool.observations()[0].reason.clone().unwrap();
    assert!(reason.contains(&b.address.to_string()), "{reason}");
    bench.ears.in_use.store(0, Ordering::SeqCst);
    bench
        .until("its new address", |s| {
            let a = s.get(&"a".into()).unwrap();
            &*a.address == b.address.to_string().as_str() && a.health == Health::Up && a.disk_read
        })
        .await;

    // Still serving: kept without placements, until nothing uses it.
    bench.ears.in_use.store(2, Ordering::SeqCst);
    bench.pool.apply(vec![named("c", b.address)], health());
    let removed = bench.pool.current();
    let removed = removed.get(&"a".into()).unwrap();
    assert!(removed.removed && removed.is_usable() && !removed.takes_placements());
    bench
        .ears
        .wait_for(r#"BackendRemoved { backend: "a", sessions: 2 }"#)
        .await;
    bench.ears.in_use.store(0, Ordering::SeqCst);
    bench.until("its end", |s| s.backends.len() == 1).await;
    bench
        .ears
        .wait_for(r#"BackendRemoved { backend: "a", sessions: 0 }"#)
        .await;
}

#[tokio::test]
async fn a_change_of_token_or_address_leaves_the_verdict_until_there_is_another() {
    let (fake, next) = (Fake::start().await, Fake::start().await);
    let bench = Bench::start(Mode::SharedStorage, &[("a", &fake)]);
    bench.until_health("a", Health::Up).await;
    let mut snapshots = bench.pool.snapshots();
    let mut changed = named("a", fake.address);
    changed.connection_token = Some(Secret::new("other"));
    bench.pool.apply(vec![changed], health());
    bench.ask("a", "echo", "{}").await.unwrap();
    assert_eq!(fake.wishes.accepted.load(Ordering::SeqCst), 1, "its link");
    bench.pool.apply(vec![named("a", next.address)], health());
    bench.ask("a", "echo", "{}").await.unwrap();
    within("the new one", async {
        while next.called("session.list") == 0 || next.called("ping") == 0 {
            let now = snapshots.borrow_and_update().clone();
            assert_eq!(now.backends[0].health, Health::Up);
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(next.called("echo"), 1);
}

#[tokio::test]
async fn a_removed_backend_can_return_before_it_is_purged() {
    let fake = Fake::start().await;
    let bench = Bench::start(Mode::Sticky, &[("a", &fake)]);
    bench.until_health("a", Health::Up).await;
    bench.ears.in_use.store(1, Ordering::SeqCst);
    bench.pool.apply(vec![], health());
    assert!(bench.pool.current().backends[0].removed);
    bench.pool.apply(vec![named("a", fake.address)], health());
    bench.ears.in_use.store(0, Ordering::SeqCst);
    let pings = fake.called("ping");
    within("a few probes", async {
        while fake.called("ping") < pings + 4 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(bench.pool.current().backends[0].takes_placements());
}
