//! Every case of the turn lock, and what must hold whatever happens.

use std::collections::{BTreeMap, BTreeSet};

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
fn whoever_hears_a_turn_may_inherit_it_and_who_was_not_asked_passes_it_on() {
    let among = |parting: Parting, by: u64, hearers: &[u64], lost: &[u64]| {
        let [hearers, lost] = [hearers, lost].map(|ids| ids.iter().copied().map(id).collect());
        let heirs = parting.heirs(id(by), hearers, lost);
        heirs.into_iter().map(|heir| heir.0).collect::<Vec<_>>()
    };
    let heirs = |parting: Parting, by: u64, hearers: &[u64]| among(parting, by, hearers, &[]);
    let unheard = || Parting::Unheard(vec!["r".into()]);
    let unasked = || Parting::Unasked(vec!["r".into()]);
    assert_eq!(heirs(Parting::Over, 1, &[1, 2, 3]), Vec::<u64>::new());
    assert_eq!(
        heirs(unheard(), 2, &[1, 2, 3]),
        [1, 3],
        "it may still be counted"
    );
    assert_eq!(heirs(unheard(), 2, &[1, 3]), [1, 3]);
    assert_eq!(heirs(unasked(), 1, &[1, 2, 3]), [2, 3]);
    assert_eq!(
        heirs(unasked(), 3, &[1, 2, 3]),
        Vec::<u64>::new(),
        "all have been told"
    );
    assert_eq!(
        heirs(unasked(), 4, &[1, 2, 3]),
        Vec::<u64>::new(),
        "nor may it go in a circle"
    );
    // Those who have lost it come last, and only for a turn that waits for something.
    assert_eq!(among(unheard(), 4, &[1], &[2, 3]), [1, 2, 3]);
    assert_eq!(among(unasked(), 1, &[1], &[2, 3]), [2, 3]);
    assert_eq!(among(unheard(), 2, &[1], &[2, 3]), [1, 3]);
    let nothing = Parting::Unheard(Vec::new());
    assert_eq!(among(nothing, 4, &[1], &[2, 3]), [1]);
    assert!(among(Parting::Over, 4, &[1], &[2, 3]).is_empty());
    assert_eq!(
        (unheard().asked(), Parting::Over.asked()),
        (unasked().asked(), &[][..])
    );
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

/// What one of many does next.
#[derive(Clone, Copy, Debug)]
enum Move {
    Send,
    /// Its turn is over, if it has one.
    End,
    GiveUp,
    Leave,
    /// Its turn is somebody else's to watch, who was not the one to begin it.
    Pass(u64),
}

fn moves() -> impl Strategy<Value = Vec<(u64, Move)>> {
    let one = prop_oneof![
        12 => Just(Move::Send),
        6 => Just(Move::End),
        1 => Just(Move::GiveUp),
        1 => Just(Move::Leave),
        1 => (0..6u64).prop_map(Move::Pass),
    ];
    prop::collection::vec((0..6u64, one), 0..400)
}

/// Whose turns somebody waits for from when it asks, the one that `runs` then included or not: of
/// each other one at most once.
fn is_fair(moves: Vec<(u64, Move)>, runs: bool) -> Result<(), TestCaseError> {
    let (now, s) = (Instant::now(), SessionId::from("s"));
    let mut locks = Locks::default();
    // Who has the lock, and whose turn it is.
    let mut turn: Option<(u64, u64)> = None;
    // By who waits.
    let mut waits: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for (who, what) in moves {
        let mut ends = false;
        match what {
            Move::Send => {
                let asked = Ask {
                    in_turn: turn.is_some_and(|(holder, _)| holder == who),
                    ..ask(who)
                };
                match locks.ask(now, &s, &asked) {
                    Verdict::Taken => {
                        prop_assert!(turn.is_none());
                        turn = Some((who, who));
                    }
                    Verdict::Joins => prop_assert!(waits.is_empty(), "others come first"),
                    Verdict::Waits => {
                        let running = turn.filter(|(_, of)| runs && *of != who);
                        let foreign = || running.iter().map(|(_, of)| *of).collect();
                        waits.entry(who).or_insert_with(foreign);
                    }
                    Verdict::Busy | Verdict::Full | Verdict::LookCloser => prop_assert!(false),
                }
            }
            Move::End => ends = turn.is_some_and(|(holder, _)| holder == who),
            Move::GiveUp => {
                locks.withdraw("s", id(who));
                waits.remove(&who);
            }
            Move::Leave => {
                ends = !locks.leave(id(who)).is_empty();
                waits.remove(&who);
            }
            Move::Pass(to) => {
                if locks.pass("s", id(who), id(to)) {
                    turn = turn.map(|(_, of)| (to, of));
                }
            }
        }
        if ends {
            let next = locks.release(now, "s", id(who)).map(|next| next.0);
            turn = next.map(|next| (next, next));
            if let Some(next) = next {
                prop_assert!(waits.remove(&next).is_some(), "it has not asked");
                for (waiter, foreign) in &mut waits {
                    prop_assert!(!foreign.contains(&next), "{waiter} waits for {next} again");
                    foreign.push(next);
                }
            }
            prop_assert!(
                turn.is_some() || waits.is_empty(),
                "somebody waits for nobody"
            );
        }
        locks.check();
    }
    Ok(())
}

proptest! {
    /// Of those who wait, and of who has the turn, nobody is served twice before another.
    #[test]
    fn nobody_waits_for_more_than_one_turn_of_each_other(moves in moves()) {
        is_fair(moves, false)?;
    }

    /// Of two who share a session, each waits for one turn of the other, which may be running.
    #[test]
    fn of_two_each_waits_for_one_turn_of_the_other(
        moves in prop::collection::vec((0..2u64, any::<bool>()), 0..400)
    ) {
        let moves = moves.into_iter();
        let moves = moves.map(|(who, sends)| (who, if sends { Move::Send } else { Move::End }));
        is_fair(moves.collect(), true)?;
    }
}
