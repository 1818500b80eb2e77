//! Every case of the turn lock, and what must hold whatever happens.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::prelude::*;

use super::*;

fn id(n: u64) -> ConnectionId {
    ConnectionId(n)
}

fn ask(n: u64) -> Ask {
    Ask {
        connection: id(n),
        user: None,
        rule: Rule::Queue,
        unit: Unit::Connection,
        in_turn: false,
        steers: Some(false),
    }
}

fn of(user: &str, n: u64) -> Ask {
    Ask {
        user: Some(Person::new("realm", user)),
        ..ask(n)
    }
}

impl Locks {
    fn check(&self) {
        let mut waiting = 0;
        for lock in self.locks.values() {
            waiting += lock.queue.len();
            assert!(lock.queue.len() <= MAX_WAITING);
            let names: BTreeSet<_> = lock.queue.iter().map(|w| w.connection).collect();
            assert_eq!(names.len(), lock.queue.len(), "one place each");
        }
        assert_eq!(waiting, self.waiting);
    }
}

#[test]
fn who_comes_first_has_it_and_the_others_wait_in_order() {
    let (now, s) = (Instant::now(), SessionId::from("s"));
    let mut locks = Locks::default();
    assert_eq!(locks.ask(now, &s, &ask(1)), Verdict::Taken);
    for n in [3, 2, 4] {
        assert_eq!(locks.ask(now, &s, &ask(n)), Verdict::Waits, "{n}");
        assert_eq!(
            locks.ask(now, &s, &ask(n)),
            Verdict::Waits,
            "{n}: twice is once"
        );
    }
    assert_eq!(locks.waiting(), 3);
    locks.withdraw("s", id(2));
    assert_eq!(locks.release(now, "s", id(4)), None, "it is not 4's");
    assert_eq!(locks.release(now, "s", id(1)), Some(id(3)));
    assert_eq!(locks.release(now, "s", id(3)), Some(id(4)));
    assert_eq!(locks.release(now, "s", id(4)), None);
    assert!(locks.is_empty() && locks.waiting() == 0);
}

/// See the test below.
type Row = (
    Option<&'static str>,
    bool,
    u64,
    Option<&'static str>,
    bool,
    bool,
    Unit,
    Rule,
    Option<bool>,
    Verdict,
);

/// Each row: who holds (its user, background), who asks, in a turn of its own, somebody waits, unit,
/// rule, steers; what it is told.
#[test]
fn every_case_of_a_lock_that_is_taken() {
    use Rule::{Off, Queue, Reject};
    use Unit::{Connection, Send};
    use Verdict::{Busy, Joins, LookCloser, Taken, Waits};
    let (anna, ben) = (Some("anna"), Some("ben"));
    let rows: &[Row] = &[
        // Its own turn.
        (
            None, false, 1, None, true, false, Connection, Queue, None, Joins,
        ),
        (
            None, false, 1, None, true, false, Connection, Reject, None, Joins,
        ),
        (
            None, false, 1, None, true, true, Connection, Queue, None, LookCloser,
        ),
        (
            None,
            false,
            1,
            None,
            true,
            true,
            Connection,
            Queue,
            Some(false),
            Waits,
        ),
        (
            None,
            false,
            1,
            None,
            true,
            true,
            Connection,
            Queue,
            Some(true),
            Joins,
        ),
        (
            None, false, 1, None, false, false, Connection, Queue, None, Taken,
        ),
        (
            None, false, 1, None, false, true, Connection, Queue, None, Waits,
        ),
        // Each send for itself.
        (
            None, false, 1, None, true, false, Send, Queue, None, LookCloser,
        ),
        (
            None,
            false,
            1,
            None,
            true,
            false,
            Send,
            Queue,
            Some(false),
            Waits,
        ),
        (
            None,
            false,
            1,
            None,
            true,
            false,
            Send,
            Reject,
            Some(false),
            Busy,
        ),
        (
            None,
            false,
            1,
            None,
            true,
            false,
            Send,
            Queue,
            Some(true),
            Joins,
        ),
        (None, false, 1, None, false, false, Send, Queue, None, Taken),
        // Somebody else's.
        (
            anna, false, 2, ben, false, false, Connection, Queue, None, LookCloser,
        ),
        (
            anna,
            false,
            2,
            ben,
            false,
            false,
            Connection,
            Queue,
            Some(false),
            Waits,
        ),
        (
            anna,
            false,
            2,
            ben,
            false,
            false,
            Connection,
            Reject,
            Some(false),
            Busy,
        ),
        (
            anna,
            false,
            2,
            ben,
            false,
            false,
            Connection,
            Queue,
            Some(true),
            Busy,
        ),
        (
            anna, false, 2, ben, false, false, Connection, Off, None, Joins,
        ),
        // The same user's on another connection.
        (
            anna,
            false,
            2,
            anna,
            false,
            false,
            Connection,
            Queue,
            Some(false),
            Waits,
        ),
        (
            anna,
            false,
            2,
            anna,
            false,
            false,
            Connection,
            Reject,
            Some(false),
            Busy,
        ),
        (
            anna,
            false,
            2,
            anna,
            false,
            false,
            Connection,
            Queue,
            Some(true),
            Joins,
        ),
        // Nobody knows who anybody is.
        (
            None,
            false,
            2,
            None,
            false,
            false,
            Connection,
            Queue,
            Some(false),
            Waits,
        ),
        (
            None,
            false,
            2,
            None,
            false,
            false,
            Connection,
            Queue,
            Some(true),
            Busy,
        ),
        (
            anna,
            false,
            2,
            None,
            false,
            false,
            Connection,
            Queue,
            Some(true),
            Busy,
        ),
        // Nobody's.
        (
            None,
            true,
            2,
            ben,
            false,
            false,
            Connection,
            Queue,
            Some(false),
            Waits,
        ),
        (
            None,
            true,
            2,
            ben,
            false,
            false,
            Connection,
            Queue,
            Some(true),
            Joins,
        ),
        (
            None, true, 1, None, true, false, Connection, Queue, None, Joins,
        ),
    ];
    let (now, s) = (Instant::now(), SessionId::from("s"));
    for row in rows {
        let (holder, background, by, user, in_turn, contended, unit, rule, steers, expected) = *row;
        let mut locks = Locks::default();
        if background {
            assert!(locks.begun(now, &s, id(1)));
        } else {
            let first = holder.map_or_else(|| ask(1), |user| of(user, 1));
            assert_eq!(locks.ask(now, &s, &first), Taken);
        }
        if contended {
            assert_eq!(locks.ask(now, &s, &of("carl", 3)), Waits);
        }
        let asked = Ask {
            connection: id(by),
            user: user.map(|user| Person::new("realm", user)),
            rule,
            unit,
            in_turn,
            steers,
        };
        let before = locks.waiting();
        assert_eq!(locks.ask(now, &s, &asked), expected, "{row:?}");
        let more = usize::from(expected == Waits);
        assert_eq!(locks.waiting(), before + more, "{row:?}");
        locks.check();
    }
}

#[test]
fn only_the_turns_user_ends_it_where_users_are_known() {
    let (now, s) = (Instant::now(), SessionId::from("s"));
    let person = |user: &str| Person::new("realm", user);
    let mut locks = Locks::default();
    assert!(locks.may_end("s", id(2), Some(&person("ben"))), "no turn");
    assert_eq!(locks.ask(now, &s, &of("anna", 1)), Verdict::Taken);
    for (by, user, may) in [
        (1, None, true),
        (2, Some("anna"), true),
        (2, Some("ben"), false),
        (2, None, true),
    ] {
        let user = user.map(person);
        assert_eq!(
            locks.may_end("s", id(by), user.as_ref()),
            may,
            "{by} {user:?}"
        );
    }
    let stranger = Person::new("other", "anna");
    assert!(!locks.may_end("s", id(2), Some(&stranger)), "another realm");
    assert_eq!(locks.release(now, "s", id(1)), None);
    assert!(locks.begun(now, &s, id(1)));
    assert!(locks.may_end("s", id(2), Some(&person("ben"))), "nobody's");
}

#[test]
fn a_turn_that_goes_on_is_passed_on_with_its_user() {
    let (now, s) = (Instant::now(), SessionId::from("s"));
    let mut locks = Locks::default();
    assert_eq!(locks.ask(now, &s, &of("anna", 1)), Verdict::Taken);
    assert_eq!(locks.ask(now, &s, &of("ben", 2)), Verdict::Waits);
    assert!(!locks.pass("s", id(2), id(3)));
    assert!(locks.pass("s", id(1), id(3)));
    assert!(!locks.begun(now, &s, id(2)), "it is one already");
    let ben = Person::new("realm", "ben");
    assert!(!locks.may_end("s", id(9), Some(&ben)), "still anna's");
    assert_eq!(locks.leave(id(1)), []);
    assert_eq!(locks.leave(id(3)), [s]);
    assert_eq!(locks.release(now, "s", id(3)), Some(id(2)));
}

#[test]
fn a_queue_has_an_end() {
    let (now, s) = (Instant::now(), SessionId::from("s"));
    let mut locks = Locks::default();
    assert_eq!(locks.ask(now, &s, &ask(0)), Verdict::Taken);
    for n in 1..=MAX_WAITING as u64 {
        assert_eq!(locks.ask(now, &s, &ask(n)), Verdict::Waits);
    }
    assert_eq!(locks.ask(now, &s, &ask(1000)), Verdict::Full);
    assert_eq!(
        locks.ask(now, &s, &ask(1)),
        Verdict::Waits,
        "it has its place"
    );
    locks.withdraw("s", id(5));
    assert_eq!(locks.ask(now, &s, &ask(1000)), Verdict::Waits);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Ask { in_turn: bool, steers: bool },
    Release,
    Withdraw,
    Leave,
    Pass(u64),
    Begun,
}

fn steps() -> impl Strategy<Value = Vec<(u64, usize, Step)>> {
    let step = prop_oneof![
        4 => (any::<bool>(), any::<bool>()).prop_map(|(in_turn, steers)| Step::Ask { in_turn, steers }),
        4 => Just(Step::Release),
        1 => Just(Step::Withdraw),
        1 => Just(Step::Leave),
        1 => (0..5u64).prop_map(Step::Pass),
        1 => Just(Step::Begun),
    ];
    prop::collection::vec((0..5u64, 0..2usize, step), 0..200)
}

proptest! {
    /// One holder at a time, whatever happens; a queue drains in its order; and nothing is left
    /// when everybody has left.
    #[test]
    fn one_holder_and_first_come_first_served(steps in steps()) {
        let now = Instant::now();
        let sessions = [SessionId::from("s0"), SessionId::from("s1")];
        let mut locks = Locks::default();
        // By session: who has it, and who waits.
        let mut model: Vec<(Option<u64>, Vec<u64>)> = vec![(None, Vec::new()); 2];
        for (who, at, step) in steps {
            let session = &sessions[at];
            let (holder, queue) = &mut model[at];
            match step {
                Step::Ask { in_turn, steers } => {
                    let asked = Ask {
                        in_turn: in_turn && *holder == Some(who),
                        steers: Some(steers),
                        ..ask(who)
                    };
                    match locks.ask(now, session, &asked) {
                        Verdict::Taken => {
                            prop_assert!(holder.is_none() || *holder == Some(who) && queue.is_empty());
                            *holder = Some(who);
                        }
                        Verdict::Waits => {
                            prop_assert!(holder.is_some());
                            if !queue.contains(&who) {
                                queue.push(who);
                            }
                        }
                        Verdict::Joins | Verdict::Busy => prop_assert!(holder.is_some()),
                        Verdict::Full | Verdict::LookCloser => prop_assert!(false),
                    }
                }
                Step::Release => {
                    let next = locks.release(now, session.as_str(), id(who));
                    let expected = (*holder == Some(who)).then(|| {
                        *holder = (!queue.is_empty()).then(|| queue.remove(0));
                        *holder
                    });
                    prop_assert_eq!(next, expected.flatten().map(id));
                }
                Step::Withdraw => {
                    locks.withdraw(session.as_str(), id(who));
                    queue.retain(|w| *w != who);
                }
                Step::Leave => {
                    for session in locks.leave(id(who)) {
                        locks.release(now, session.as_str(), id(who));
                    }
                    for (holder, queue) in &mut model {
                        queue.retain(|w| *w != who);
                        if *holder == Some(who) {
                            *holder = (!queue.is_empty()).then(|| queue.remove(0));
                        }
                    }
                }
                Step::Pass(to) => {
                    let passed = locks.pass(session.as_str(), id(who), id(to));
                    prop_assert_eq!(passed, *holder == Some(who));
                    if passed {
                        *holder = Some(to);
                    }
                }
                Step::Begun => {
                    let begun = locks.begun(now, session, id(who));
                    prop_assert_eq!(begun, holder.is_none());
                    holder.get_or_insert(who);
                }
            }
            locks.check();
            for (session, (holder, queue)) in sessions.iter().zip(&model) {
                let lock = locks.get(session.as_str());
                prop_assert_eq!(lock.map(|l| l.holder.connection), holder.map(id));
                let waits = lock.map_or_else(Vec::new, |l| {
                    l.queue.iter().map(|w| w.connection).collect()
                });
                prop_assert_eq!(waits, queue.iter().map(|w| id(*w)).collect::<Vec<_>>());
            }
        }
        for who in 0..5 {
            for session in locks.leave(id(who)) {
                locks.release(now, session.as_str(), id(who));
            }
        }
        prop_assert!(locks.is_empty() && locks.waiting() == 0);
    }
}

/// Connections that send as fast as they may, each from a plan of its own: nobody waits for more
/// than one turn of each other one.
#[test]
fn nobody_waits_for_more_than_one_turn_of_each_other() {
    for seed in 0..200u64 {
        let mut chance = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut below = |n: u64| {
            chance ^= chance << 13;
            chance ^= chance >> 7;
            chance ^= chance << 17;
            chance % n
        };
        let clients = 2 + below(4);
        let (start, s) = (Instant::now(), SessionId::from("s"));
        let mut locks = Locks::default();
        let mut holder: Option<u64> = None;
        // Since somebody waits: how many turns of each other have begun.
        let mut waits: BTreeMap<u64, BTreeMap<u64, u32>> = BTreeMap::new();
        let mut turns = 0;
        for step in 0..2000u64 {
            let now = start + Duration::from_millis(step);
            let who = below(clients);
            if holder == Some(who) && below(3) == 0 {
                let next = locks.release(now, "s", id(who)).map(|id| id.0);
                holder = next;
                if let Some(next) = next {
                    turns += 1;
                    waits.remove(&next).expect("it waited");
                    for (waiter, seen) in &mut waits {
                        let seen = seen.entry(next).or_default();
                        *seen += 1;
                        assert!(*seen <= 1, "seed {seed}: {waiter} waits for {next} again");
                    }
                }
                continue;
            }
            let asked = Ask {
                in_turn: holder == Some(who),
                ..ask(who)
            };
            match locks.ask(now, &s, &asked) {
                Verdict::Taken => {
                    assert!(holder.is_none(), "seed {seed}");
                    holder = Some(who);
                }
                Verdict::Joins => assert!(holder == Some(who) && waits.is_empty(), "seed {seed}"),
                Verdict::Waits => {
                    waits.entry(who).or_default();
                }
                Verdict::Busy | Verdict::Full | Verdict::LookCloser => panic!("seed {seed}"),
            }
            locks.check();
        }
        assert!(turns > 100, "seed {seed}: {turns} turns were waited for");
    }
}
