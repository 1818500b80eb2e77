//! What operators wish outlives the pool: it is told, and given back at the next start.

use super::*;

#[tokio::test]
async fn wishes_are_told_before_their_call_returns() {
    let fake = Fake::start().await;
    let bench = Bench::start(Mode::Sticky, &[("a", &fake)]);
    bench
        .pool
        .set_admin("a", Some(AdminState::Drain), "api")
        .unwrap();
    assert!(bench.ears.has("operator a Some(Drain) None"));
    bench.pool.set_weight("a", Some(7)).unwrap();
    assert!(bench.ears.has("operator a Some(Drain) Some(7)"));
    bench.pool.set_admin("a", None, "api").unwrap();
    assert!(bench.ears.has("operator a None Some(7)"));
    bench.pool.set_admin("b", None, "api").unwrap_err();
    assert!(!bench.ears.has("operator b"));
    bench.pool.set_weight("a", Some(0)).unwrap_err();
    assert!(!bench.ears.has("Some(0)"));
}

#[tokio::test]
async fn wishes_of_earlier_times_are_in_force_whenever_their_backend_comes() {
    let fake = Fake::start().await;
    let options = PoolOptions {
        operators: vec![
            ("a".into(), Some(AdminState::Maint), None),
            ("late".into(), Some(AdminState::Drain), Some(9)),
        ],
        ..options(Mode::Sticky)
    };
    let bench = Bench::start_with(options, vec![named("a", fake.address)]);
    assert_eq!(bench.pool.current().backends[0].admin, AdminState::Maint);
    assert!(!bench.ears.has("operator"), "nothing has changed");
    // As managed servers do.
    let all = vec![named("a", fake.address), named("late", fake.address)];
    bench.pool.apply(all.clone(), health());
    let is_as_wished = |pool: &Snapshot| {
        let late = pool.get(&"late".into()).unwrap();
        late.admin == AdminState::Drain && late.weight == 9
    };
    assert!(is_as_wished(&bench.pool.current()));
    // Also if it was away for a while.
    bench.pool.apply(vec![named("a", fake.address)], health());
    assert_eq!(
        bench.pool.current().get(&"late".into()).map(|b| b.removed),
        None
    );
    bench.pool.apply(all.clone(), health());
    assert!(is_as_wished(&bench.pool.current()));
    bench.pool.set_admin("late", None, "api").unwrap();
    bench.pool.apply(vec![named("a", fake.address)], health());
    bench.pool.apply(all, health());
    let late = bench.pool.current().get(&"late".into()).cloned().unwrap();
    assert_eq!((late.admin, late.weight), (AdminState::Ready, 9));
}
