//! When the sessions of a backend may be opened elsewhere, and what it has to do before it is used
//! again.

use super::*;

const HANG: Duration = Duration::from_millis(600);

/// The fastest hanging backend is out after 400 ms, and given up when nothing came for `HANG`.
fn shared(fence: Option<&str>) -> PoolOptions {
    PoolOptions {
        failover: failover(fence),
        ..options(Mode::SharedStorage)
    }
}

fn failover(fence: Option<&str>) -> config::Failover {
    let command = |script: &str| {
        let words = ["/bin/sh", "-c", script, "fence", "{name}", "{address}"];
        words.map(str::to_owned).to_vec()
    };
    config::Failover {
        hang_timeout: Some(HANG),
        fence_command: fence.map(command),
        fence_timeout: PATIENCE,
    }
}

impl Bench {
    fn pair(options: PoolOptions, a: &Fake, b: &Fake) -> Self {
        let both = vec![named("a", a.address), named("b", b.address)];
        Self::start_with(options, both)
    }

    async fn both_up(&self) {
        for name in ["a", "b"] {
            self.until_health(name, Health::Up).await;
        }
    }

    async fn until_released(&self, name: &str) {
        let what = format!("{name} to be released");
        let snapshot = self
            .until(&what, |s| s.get(&name.into()).is_some_and(|b| b.released))
            .await;
        let backend = snapshot.get(&name.into()).unwrap();
        assert!(!backend.is_usable() && !backend.takes_placements());
    }

    async fn until_usable(&self, name: &str) {
        self.until("it to be usable", |s| {
            let backend = s.get(&name.into()).unwrap();
            assert!(
                !backend.is_usable() || self.ears.moved.lock().unwrap().is_empty(),
                "used before it had closed what is open elsewhere"
            );
            backend.takes_placements()
        })
        .await;
    }

    fn moved(&self, ids: &[&str]) {
        *self.ears.moved.lock().unwrap() = ids.iter().map(|id| SessionId::from(*id)).collect();
    }
}

#[tokio::test]
async fn one_that_is_gone_is_released_at_once_and_closes_before_it_is_used() {
    let (a, b) = (Fake::start().await, Fake::start().await);
    let bench = Bench::pair(shared(None), &a, &b);
    bench.both_up().await;
    let address = a.kill().await;
    bench.until_released("a").await;
    bench.ears.wait_for("how: Gone").await;
    assert!(
        !bench.ears.has("given up"),
        "its connections tell by themselves"
    );
    assert_eq!(
        bench.ask("a", "echo", "{}").await.unwrap_err(),
        AskError::Lost
    );
    let stale: Vec<String> = (0..100).map(|n| format!("s{n}")).collect();
    bench.moved(&stale.iter().map(String::as_str).collect::<Vec<_>>());

    let a = Fake::start_with(3, None, address).await;
    a.be(Manner::Clings);
    within("closes", async {
        while a.called("sessions.close") < 32 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // It answers everything else, and is not used.
    bench
        .until("its answers", |s| {
            let health = s.get(&"a".into()).unwrap().health;
            matches!(health, Health::Probation | Health::Up)
        })
        .await;
    assert!(bench.pool.current().get(&"a".into()).unwrap().released);
    assert_eq!(
        bench.ask("a", "echo", "{}").await.unwrap_err(),
        AskError::Unusable
    );
    assert_eq!(a.called("sessions.close"), 32, "bounded");
    // Its connection ends: all of it is asked for anew on the next.
    let address = a.kill().await;
    let a = Fake::start_with(3, None, address).await;
    bench.until_usable("a").await;
    assert_eq!(a.called("sessions.close"), 100);
    bench
        .ears
        .wait_for("BackendReturned { backend: \"a\", closed: 100 }")
        .await;
    assert!(bench.ears.has("cleaned a 100"));
}

#[tokio::test]
async fn what_is_opened_elsewhere_by_an_old_picture_is_closed_as_well() {
    let (a, b) = (Fake::start().await, Fake::start().await);
    let bench = Bench::pair(shared(None), &a, &b);
    bench.both_up().await;
    let address = a.kill().await;
    bench.until_released("a").await;
    let a = Fake::start_with(3, None, address).await;
    bench
        .until("its return", |s| !s.get(&"a".into()).unwrap().released)
        .await;
    bench.moved(&["late"]);
    bench.ears.wait_for("cleaned a 1").await;
    assert_eq!(a.called("sessions.close"), 1);
    bench.ears.wait_for("closed: 1").await;
}

#[tokio::test]
async fn one_that_is_silent_is_given_up_and_cleaned_when_it_wakes() {
    let (a, b) = (Fake::start().await, Fake::start().await);
    let bench = Bench::pair(shared(None), &a, &b);
    bench.both_up().await;
    a.be(Manner::Stopped);
    let down = bench.until_health("a", Health::Down).await;
    assert!(
        !down.get(&"a".into()).unwrap().released,
        "ejected is not released"
    );
    bench.until_released("a").await;
    bench.ears.wait_for("given up a").await;
    assert!(bench.ears.has("how: Unfenced"));
    assert!(bench.pool.observations()[0].away.is_some());
    assert!(bench.pool.observations()[1].away.is_none());
    bench.moved(&["s1", "s2"]);
    a.be(Manner::Serve);
    bench.until_usable("a").await;
    assert_eq!(a.called("sessions.close"), 2);
    assert_eq!(
        a.wishes.accepted.load(Ordering::SeqCst),
        1,
        "on the connection that it kept"
    );
    bench.ears.wait_for("closed: 2").await;
}

#[tokio::test]
async fn a_fence_command_decides() {
    let (a, b) = (Fake::start().await, Fake::start().await);
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().join("tried");
    // Fails at the first time.
    let script = format!(
        "test -e '{0}' && echo cut off $1 && exit 0; echo > '{0}'; echo no power; exit 4",
        mark.display()
    );
    let bench = Bench::pair(shared(Some(&script)), &a, &b);
    bench.both_up().await;
    a.be(Manner::Stopped);
    bench.ears.wait_for("FenceFailed").await;
    assert!(bench.ears.has("exit status: 4): no power"));
    assert!(!bench.pool.current().get(&"a".into()).unwrap().released);
    assert!(!bench.ears.has("given up"));
    bench.until_released("a").await;
    bench.ears.wait_for("given up a").await;
    assert!(bench.ears.has("how: Fenced"));
    assert!(bench.ears.has("cut off a"), "its last words");
}

#[tokio::test]
async fn one_that_is_kept_because_too_many_are_silent_is_not_given_up() {
    let (a, b) = (Fake::start().await, Fake::start().await);
    let none = config::Health {
        max_ejected: 0.0,
        ..health()
    };
    let options = PoolOptions {
        health: none,
        ..shared(None)
    };
    let bench = Bench::pair(options, &a, &b);
    bench.both_up().await;
    a.be(Manner::Stopped);
    bench.until("panic", |s| s.panic).await;
    within("the time to give it up", async {
        while bench.pool.observations()[0]
            .away
            .is_none_or(|away| away < HANG * 2)
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let kept = bench.pool.current();
    let kept = kept.get(&"a".into()).unwrap();
    assert!(!kept.released && kept.is_usable());
    // As soon as it may be ejected, it is given up.
    let both = vec![named("a", a.address), named("b", b.address)];
    bench.pool.apply(both, health());
    bench.until_released("a").await;
}

#[tokio::test]
async fn never_is_never_until_a_reload_says_otherwise() {
    let (a, b) = (Fake::start().await, Fake::start().await);
    let bench = Bench::pair(options(Mode::SharedStorage), &a, &b);
    bench.both_up().await;
    a.be(Manner::Stopped);
    bench.until_health("a", Health::Down).await;
    within("the time to give it up", async {
        while bench.pool.observations()[0]
            .away
            .is_none_or(|away| away < HANG)
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(!bench.pool.current().get(&"a".into()).unwrap().released);
    bench.pool.set_failover(failover(None));
    bench.until_released("a").await;
}

#[tokio::test]
async fn a_supervisor_knows_best() {
    let (a, b) = (Fake::start().await, Fake::start().await);
    let bench = Bench::pair(shared(None), &a, &b);
    bench.both_up().await;
    bench.moved(&["s1"]);
    bench.pool.report_gone(&"a".into());
    bench.ears.wait_for("how: Gone").await;
    bench.ears.wait_for("lost a Gone").await;
    bench.until_usable("a").await;
    assert_eq!(
        a.wishes.accepted.load(Ordering::SeqCst),
        2,
        "another process"
    );
    bench.ears.wait_for("cleaned a 1").await;
}

#[tokio::test]
async fn what_is_left_of_earlier_times_is_closed_before_the_first_use() {
    let a = Fake::start().await;
    a.be(Manner::Clings);
    let ears = Arc::new(Ears::default());
    ears.moved.lock().unwrap().push("s1".into());
    let bench = Bench {
        pool: Pool::start(shared(None), vec![named("a", a.address)], ears.clone()),
        ears,
    };
    bench.until_released("a").await;
    assert!(!bench.ears.has("BackendReleased"), "nobody released it now");
    let address = a.kill().await;
    let a = Fake::start_with(3, None, address).await;
    bench.until_usable("a").await;
    assert_eq!(a.called("sessions.close"), 1);
}

#[tokio::test]
async fn separate_disks_release_nothing_and_a_home_that_is_gone_can_move() {
    let (a, b) = (Fake::start().await, Fake::start().await);
    let sticky = PoolOptions {
        failover: failover(None),
        ..options(Mode::Sticky)
    };
    let bench = Bench::start_with(sticky, vec![named("a", a.address)]);
    bench.until_health("a", Health::Up).await;
    // Its sessions wait for it.
    bench.ears.in_use.store(1, Ordering::SeqCst);
    bench.moved(&["s1"]);
    a.kill().await;
    let down = bench.until_health("a", Health::Down).await;
    assert!(!down.backends[0].released);
    // The same home at another address.
    bench.pool.apply(vec![named("a", b.address)], health());
    let up = bench
        .until("its return", |s| {
            s.backends[0].address.as_ref() == b.address.to_string() && s.backends[0].is_usable()
        })
        .await;
    assert!(!up.backends[0].released);
    assert_eq!(b.called("sessions.close"), 0);
    assert!(!bench.ears.has("BackendReleased") && !bench.ears.has("given up"));
}
