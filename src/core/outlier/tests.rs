//! A backend judged under a virtual clock: stopped, killed, busy, returning.

use proptest::prelude::*;

use super::*;

const RULES: Rules = Rules {
    interval: Duration::from_secs(2),
    timeout: Duration::from_secs(1),
    unhealthy_after: 3,
    healthy_after: 2,
    slow_start: Duration::from_secs(20),
};

/// A backend's behaviour, driven on a virtual clock.
struct Bench {
    outlier: Outlier,
    start: Instant,
    now: Instant,
}

/// How the peer meets the next probe.
#[derive(Clone, Copy, Debug)]
enum Peer {
    Answers(Duration),
    Silent,
    BusySilent,
    Refuses,
}

const PROMPT: Peer = Peer::Answers(Duration::from_millis(1));

impl Bench {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            outlier: Outlier::new(RULES, Disk::Fits, now),
            start: now,
            now,
        }
    }

    /// Waits until the next probe is due and lets it have its outcome.
    fn probe(&mut self, peer: Peer) -> Health {
        let due = self
            .outlier
            .poll_next_probe()
            .expect("no probe is in flight");
        self.now = self.now.max(due);
        self.outlier.handle_time(self.now);
        self.outlier.handle_probe_sent(self.now);
        assert_eq!(self.outlier.poll_next_probe(), None);
        match peer {
            Peer::Answers(rtt) => {
                self.now += rtt;
                self.outlier.handle_probe_ok(self.now, rtt);
            }
            Peer::Silent | Peer::BusySilent => {
                self.now += RULES.timeout / 2;
                if matches!(peer, Peer::BusySilent) {
                    self.outlier.handle_activity(self.now);
                }
                self.outlier.handle_probe_timeout(self.now);
                assert!(self.outlier.poll_deadline().is_some(), "not late yet");
                self.now += RULES.timeout / 2;
                self.outlier.handle_probe_timeout(self.now);
            }
            Peer::Refuses => self.outlier.handle_connect_failed(self.now),
        }
        self.outlier.health()
    }

    fn probes(&mut self, peers: &[Peer]) -> Vec<Health> {
        peers.iter().map(|&p| self.probe(p)).collect()
    }

    fn elapsed(&self) -> Duration {
        self.now - self.start
    }
}

#[test]
fn the_first_answer_is_enough_and_the_next_probe_waits_an_interval() {
    let mut bench = Bench::new();
    assert_eq!(bench.outlier.health(), Health::Unknown);
    assert_eq!(bench.probe(PROMPT), Health::Up);
    assert_eq!(
        bench.outlier.poll_next_probe(),
        Some(bench.now + RULES.interval)
    );
    assert_eq!(bench.outlier.weight_permille(bench.now), 1000);
}

#[test]
fn a_stopped_backend_is_down_within_its_bound() {
    let mut bench = Bench::new();
    bench.probe(PROMPT);
    let stopped = bench.now;
    let seen = bench.probes(&[Peer::Silent; 3]);
    assert_eq!(seen, [Health::Up, Health::Up, Health::Down]);
    assert_eq!(
        bench.now - stopped,
        RULES.interval + RULES.timeout * RULES.unhealthy_after
    );
    assert_eq!(bench.outlier.cause(), Some(&Cause::Silent));
}

#[test]
fn a_closed_port_is_down_within_tens_of_milliseconds() {
    let mut bench = Bench::new();
    let seen = bench.probes(&[Peer::Refuses; 3]);
    assert_eq!(seen, [Health::Unknown, Health::Unknown, Health::Down]);
    assert!(
        bench.elapsed() <= Duration::from_millis(50),
        "{:?}",
        bench.elapsed()
    );
    assert_eq!(bench.outlier.cause(), Some(&Cause::Unreachable));
    // From then on it is not hammered.
    assert_eq!(
        bench.outlier.poll_next_probe(),
        Some(bench.now + RULES.interval)
    );
}

#[test]
fn a_killed_backend_is_down_at_once() {
    let mut bench = Bench::new();
    bench.outlier.handle_connected(bench.now);
    bench.probes(&[PROMPT; 3]);
    let killed = bench.now;
    bench.outlier.handle_connection_lost(bench.now);
    let seen = bench.probes(&[Peer::Refuses; 2]);
    assert_eq!(seen, [Health::Up, Health::Down]);
    assert!(bench.now - killed <= Duration::from_millis(50));
}

#[test]
fn one_that_connects_only_to_close_is_down_without_a_storm() {
    let mut bench = Bench::new();
    for _ in 0..RULES.unhealthy_after {
        assert_ne!(bench.outlier.health(), Health::Down);
        bench.now = bench.now.max(bench.outlier.poll_next_probe().unwrap());
        bench.outlier.handle_probe_sent(bench.now);
        bench.outlier.handle_connected(bench.now);
        bench
            .outlier
            .handle_probe_ok(bench.now, Duration::from_millis(1));
        bench.outlier.handle_connection_lost(bench.now);
    }
    assert_eq!(bench.outlier.cause(), Some(&Cause::Gone));
    assert_eq!(
        bench.outlier.poll_next_probe(),
        Some(bench.now + RULES.interval)
    );
}

#[test]
fn connections_that_end_now_and_then_eject_nobody() {
    let mut bench = Bench::new();
    for _ in 0..10 {
        bench.now = bench.now.max(bench.outlier.poll_next_probe().unwrap());
        bench.outlier.handle_connected(bench.now);
        bench.probes(&[PROMPT; 3]);
        bench.outlier.handle_connection_lost(bench.now);
        assert_eq!(bench.outlier.health(), Health::Up);
    }
}

#[test]
fn busy_is_not_dead() {
    let mut bench = Bench::new();
    bench.probe(PROMPT);
    for _ in 0..20 {
        assert_eq!(bench.probe(Peer::BusySilent), Health::Slow);
        // The next one follows at once.
        assert_eq!(bench.outlier.poll_next_probe(), Some(bench.now));
    }
    assert_eq!(bench.outlier.weight_permille(bench.now), SLOW_PERMILLE);
    // Timely again.
    assert_eq!(bench.probes(&[PROMPT; 2]), [Health::Slow, Health::Up]);
    // Silence after that is judged as ever.
    assert_eq!(bench.probes(&[Peer::Silent; 3])[2], Health::Down);
}

#[test]
fn frames_before_the_probe_do_not_excuse_silence_after_it() {
    let mut bench = Bench::new();
    bench.probe(PROMPT);
    for _ in 0..3 {
        bench.outlier.handle_activity(bench.now);
        bench.probe(Peer::Silent);
    }
    assert_eq!(bench.outlier.health(), Health::Down);
}

#[test]
fn a_single_silent_probe_ejects_nobody() {
    let mut bench = Bench::new();
    for _ in 0..10 {
        let seen = bench.probes(&[PROMPT, Peer::Silent, Peer::Silent]);
        assert_eq!(seen, [Health::Up; 3]);
    }
}

#[test]
fn late_answers_make_it_slow_until_the_average_recovers() {
    let mut bench = Bench::new();
    bench.probe(PROMPT);
    assert_eq!(
        bench.probe(Peer::Answers(Duration::from_millis(3000))),
        Health::Slow
    );
    let seen = bench.probes(&[PROMPT; 6]);
    assert_eq!(seen.last(), Some(&Health::Up));
    assert!(
        seen.iter().filter(|h| **h == Health::Slow).count() >= 2,
        "{seen:?}"
    );
}

#[test]
fn the_average_follows_the_answers() {
    let mut bench = Bench::new();
    assert_eq!(bench.outlier.ping(), None);
    bench.probe(Peer::Answers(Duration::from_millis(100)));
    assert_eq!(bench.outlier.ping(), Some(Duration::from_millis(100)));
    bench.probe(Peer::Answers(Duration::from_millis(20)));
    assert_eq!(bench.outlier.ping(), Some(Duration::from_millis(80)));
}

#[test]
fn a_return_goes_through_probation_and_a_ramp() {
    let mut bench = Bench::new();
    bench.probes(&[Peer::Refuses; 3]);
    assert_eq!(
        bench.probes(&[PROMPT; 2]),
        [Health::Down, Health::Probation]
    );
    let back = bench.now;
    assert_eq!(bench.outlier.weight_permille(back), 100);
    let mut weights = vec![100];
    let mut now = back;
    for _ in 0..100 {
        let Some(next) = bench.outlier.poll_ramp(now) else {
            break;
        };
        assert!(next > now);
        now = next;
        bench.outlier.handle_time(now);
        weights.push(bench.outlier.weight_permille(now));
    }
    assert_eq!(bench.outlier.health(), Health::Up);
    assert_eq!(now - back, RULES.slow_start);
    assert!(weights.is_sorted(), "{weights:?}");
    assert_eq!(weights.last(), Some(&1000));
    assert!(
        weights.windows(2).all(|w| w[1] - w[0] <= RAMP_STEP),
        "{weights:?}"
    );
}

#[test]
fn one_failure_ends_probation() {
    for peer in [Peer::Silent, Peer::Refuses] {
        let mut bench = Bench::new();
        bench.probes(&[Peer::Refuses; 3]);
        bench.probes(&[PROMPT; 2]);
        assert_eq!(bench.probe(peer), Health::Down);
    }
}

#[test]
fn without_a_ramp_it_is_up_at_once() {
    let mut bench = Bench::new();
    bench.outlier.set_rules(
        Rules {
            slow_start: Duration::ZERO,
            ..RULES
        },
        bench.now,
    );
    bench.probes(&[Peer::Refuses; 3]);
    assert_eq!(bench.probes(&[PROMPT; 2]), [Health::Down, Health::Up]);
    assert_eq!(bench.outlier.poll_ramp(bench.now), None);
}

#[test]
fn answers_of_a_process_that_wakes_do_not_bring_it_back() {
    let mut bench = Bench::new();
    bench.probe(PROMPT);
    bench.probes(&[Peer::Silent; 6]);
    for _ in 0..6 {
        bench
            .outlier
            .handle_probe_ok(bench.now, Duration::from_secs(9));
    }
    assert_eq!(bench.outlier.health(), Health::Down);
    assert_eq!(bench.probes(&[PROMPT; 2])[1], Health::Probation);
    // Nor do they make it slow once it is back.
    for _ in 0..20 {
        assert!(matches!(
            bench.probe(PROMPT),
            Health::Probation | Health::Up
        ));
    }
    assert_eq!(bench.outlier.health(), Health::Up);
}

#[test]
fn a_violation_ejects_at_once_and_longer_each_time() {
    let mut bench = Bench::new();
    bench.probe(PROMPT);
    let mut absences = Vec::new();
    for _ in 0..3 {
        bench
            .outlier
            .handle_violation(bench.now, Arc::from("garbage"));
        assert_eq!(bench.outlier.health(), Health::Down);
        assert_eq!(
            bench.outlier.cause(),
            Some(&Cause::Violation(Arc::from("garbage")))
        );
        let from = bench.now;
        while bench.probe(PROMPT) == Health::Down {}
        absences.push(bench.now - from);
    }
    assert!(
        absences.is_sorted() && absences[2] > absences[0],
        "{absences:?}"
    );
    assert!(absences[2] < LONGEST_HOLD * 2);
    // Long ago is forgotten.
    bench.now += VIOLATION_MEMORY;
    bench
        .outlier
        .handle_violation(bench.now, Arc::from("garbage"));
    let from = bench.now;
    while bench.probe(PROMPT) == Health::Down {}
    assert_eq!(bench.now - from, absences[0]);
}

#[test]
fn the_latest_cause_is_told() {
    let mut bench = Bench::new();
    bench.probe(PROMPT);
    bench.probes(&[Peer::Silent; 3]);
    bench.probe(Peer::Refuses);
    assert_eq!(bench.outlier.cause(), Some(&Cause::Unreachable));
    bench
        .outlier
        .handle_rejected(bench.now, Arc::from("wrong token"));
    assert_eq!(
        bench.outlier.cause().map(Cause::describe).as_deref(),
        Some("wrong token")
    );
    bench.probes(&[PROMPT; 2]);
    assert_eq!(bench.outlier.cause(), None);
}

#[test]
fn reports_of_others_count_and_bring_the_next_probe_forward() {
    let mut bench = Bench::new();
    bench.probe(PROMPT);
    bench.outlier.handle_reported_failure(bench.now);
    assert_eq!(bench.outlier.health(), Health::Up);
    assert_eq!(bench.outlier.poll_next_probe(), Some(bench.now));
    bench.outlier.handle_reported_failure(bench.now);
    bench.outlier.handle_reported_failure(bench.now);
    assert_eq!(bench.outlier.health(), Health::Down);
    // Once down, many clients that try do not put its return off.
    let due = bench.outlier.poll_next_probe();
    bench.now += Duration::from_secs(1);
    bench.outlier.handle_reported_failure(bench.now);
    assert_eq!(bench.outlier.poll_next_probe(), due);
}

#[test]
fn the_disk_rules_over_answers_but_not_over_absence() {
    let now = Instant::now();
    let mut outlier = Outlier::new(RULES, Disk::Unread, now);
    outlier.handle_probe_sent(now);
    outlier.handle_probe_ok(now, Duration::ZERO);
    assert_eq!(outlier.health(), Health::Unknown);
    outlier.handle_disk_read(Disk::Mismatch);
    assert_eq!(outlier.health(), Health::StorageMismatch);
    outlier.handle_disk_read(Disk::Fits);
    assert_eq!(outlier.health(), Health::Up);
    outlier.handle_disk_read(Disk::Mismatch);
    outlier.handle_violation(now, Arc::from("x"));
    assert_eq!(outlier.health(), Health::Down);
}

#[test]
fn ejections_for_silence_are_limited_to_a_share_of_the_pool() {
    let t = Instant::now();
    let silent = |s| Standing::Silent {
        heard: Some(t + Duration::from_secs(s)),
    };
    let never = Standing::Silent { heard: None };
    let ok = Standing::Settled;
    // pool, max_ejected, kept
    let table: [(&[Standing], f64, &[usize]); 12] = [
        (&[], 0.5, &[]),
        (&[ok, ok, ok], 0.5, &[]),
        (&[silent(1)], 0.5, &[0]),
        (&[silent(1)], 1.0, &[]),
        (&[silent(1), ok], 0.5, &[]),
        (&[silent(1), ok, ok], 0.5, &[]),
        (&[silent(1), silent(2), ok], 0.5, &[1]),
        (&[silent(9), silent(2), silent(3)], 0.5, &[0, 2]),
        (&[never, silent(2), ok], 0.5, &[1]),
        (&[never, never, ok], 0.0, &[]),
        (&[silent(1), ok, ok], 0.0, &[0]),
        (
            &[silent(1), silent(2), silent(3), ok, ok, ok, ok, ok, ok, ok],
            0.3,
            &[],
        ),
    ];
    for (pool, max, kept) in table {
        let expected = Ejections {
            kept: kept.to_vec(),
            panic: !kept.is_empty(),
        };
        assert_eq!(limit_ejections(pool, max), expected, "{pool:?} {max}");
    }
}

fn peer() -> impl Strategy<Value = Peer> {
    prop_oneof![
        4 => (0u64..3000).prop_map(|ms| Peer::Answers(Duration::from_millis(ms))),
        2 => Just(Peer::Silent),
        1 => Just(Peer::BusySilent),
        1 => Just(Peer::Refuses),
    ]
}

proptest! {
    /// Whatever came before, silence ejects in time, prompt answers bring back, the weight stays
    /// in range and the next probe is never forgotten.
    #[test]
    fn any_history_ends_in_the_right_verdict(
        history in prop::collection::vec((peer(), 0u8..20), 0..60),
    ) {
        let mut bench = Bench::new();
        for (peer, extra) in history {
            match extra {
                0 => bench.outlier.handle_connection_lost(bench.now),
                1 => bench.outlier.handle_violation(bench.now, Arc::from("v")),
                2 => bench.outlier.handle_reported_failure(bench.now),
                3 => bench.outlier.handle_connected(bench.now),
                _ => {}
            }
            bench.probe(peer);
            prop_assert!((1..=1000).contains(&bench.outlier.weight_permille(bench.now)));
            let due = bench.outlier.poll_next_probe().unwrap();
            prop_assert!(due <= bench.now + RULES.interval);
            prop_assert_eq!(bench.outlier.cause().is_some(), bench.outlier.health() == Health::Down);
        }
        let from = bench.now;
        bench.probes(&[Peer::Silent; 3]);
        prop_assert_eq!(bench.outlier.health(), Health::Down);
        let bound = RULES.interval + RULES.timeout * RULES.unhealthy_after;
        // Already down, it is probed at leisure.
        prop_assert!(bench.now - from <= bound + RULES.interval * 3);
        let mut answers = 0;
        while bench.probe(PROMPT) != Health::Up {
            answers += 1;
            prop_assert!(answers < 60);
        }
    }
}
