//! The rules of the table, one by one and under any sequence.

use proptest::prelude::*;

use super::*;

fn b(n: u8) -> BackendName {
    BackendName::from(format!("b{n}"))
}

fn s(n: u8) -> SessionId {
    SessionId::from(format!("s{n}"))
}

#[test]
fn two_clients_that_open_one_session_meet() {
    let now = Instant::now();
    let mut d = Directory::new(Mode::SharedStorage, 100);
    assert_eq!(d.claim(now, &s(1), &b(1), ConnectionId(1)), Claim::Granted);
    assert_eq!(
        d.claim(now, &s(1), &b(2), ConnectionId(2)),
        Claim::OwnedBy(b(1))
    );
    assert_eq!(d.load(&b(1)).sessions, 1);
    d.release(now, "s1", ConnectionId(1));
    assert_eq!(d.known(now, "s1").owner, Some(b(1)));
    d.release(now, "s1", ConnectionId(2));
    assert_eq!(d.known(now, "s1"), Known::default());
    assert_eq!(d.load(&b(1)), Load::default());
}

#[test]
fn history_outlives_the_owner_and_deletion_outlives_late_news() {
    let now = Instant::now();
    let mut d = Directory::new(Mode::Sticky, 100);
    d.claim(now, &s(1), &b(1), ConnectionId(1));
    d.learn_history(now, &s(1), &b(1));
    d.release(now, "s1", ConnectionId(1));
    let known = d.known(now, "s1");
    assert_eq!(
        (known.owner, known.home, known.has_history),
        (None, Some(b(1)), true)
    );
    d.delete(now, &s(1));
    d.learn_history(now, &s(1), &b(1));
    assert!(!d.known(now, "s1").has_history);
    let later = now + TOMBSTONE;
    d.learn_history(later, &s(1), &b(1));
    assert!(d.known(later, "s1").has_history);
}

#[test]
fn where_a_session_was_left_last_counts() {
    let now = Instant::now();
    let mut d = Directory::new(Mode::SharedStorage, 100);
    for backend in [1, 2] {
        d.claim(now, &s(1), &b(backend), ConnectionId(1));
        if backend == 2 {
            d.backend_silent(now, &b(2));
        }
        d.release(now, "s1", ConnectionId(1));
    }
    assert_eq!(d.known(now, "s1").maybe_open_at, Some(b(2)));
    d.backend_silent(now, &b(1));
    assert_eq!(
        d.known(now, "s1").maybe_open_at,
        Some(b(2)),
        "it has left b1 before"
    );
    d.backend_released(now, &b(2));
    assert_eq!(d.moved_from(&b(2)), [s(1)]);
}

#[test]
fn where_a_session_was_left_first_hides_nothing() {
    let now = Instant::now();
    let mut d = Directory::new(Mode::SharedStorage, 100);
    for backend in [1, 2] {
        d.claim(now, &s(1), &b(backend), ConnectionId(1));
        d.release(now, "s1", ConnectionId(1));
    }
    d.backend_silent(now, &b(1));
    assert_eq!(
        d.known(now, "s1").maybe_open_at,
        None,
        "b1 said that it does not have it before it was opened at b2"
    );
    d.backend_silent(now, &b(2));
    assert_eq!(
        d.known(now, "s1").maybe_open_at,
        Some(b(2)),
        "b2 may not have heard that it was left"
    );
    d.backend_gone(now, &b(1));
    assert_eq!(d.moved_from(&b(1)), []);
    d.backend_released(now, &b(2));
    assert_eq!(d.moved_from(&b(2)), [s(1)]);
    d.check_invariants();
}

#[test]
fn who_leaves_a_silent_backend_may_be_open_there_still() {
    let mut now = Instant::now();
    let mut d = Directory::new(Mode::SharedStorage, 100);
    let leave = |d: &mut Directory, now, n| {
        d.claim(now, &s(n), &b(1), ConnectionId(1));
        d.release(now, s(n).as_str(), ConnectionId(1));
    };
    leave(&mut d, now, 1);
    now += LEFT_WITHIN;
    leave(&mut d, now, 2);
    d.backend_silent(now, &b(1));
    leave(&mut d, now, 3);
    let maybe = |d: &Directory, id: &str| d.known(now, id).maybe_open_at;
    assert_eq!(maybe(&d, "s1"), None, "long before");
    assert_eq!(maybe(&d, "s2"), Some(b(1)), "shortly before");
    assert_eq!(maybe(&d, "s3"), Some(b(1)));
    d.not_open("s2", &b(2));
    assert_eq!(maybe(&d, "s2"), Some(b(1)));
    d.backend_back(&b(1));
    assert_eq!(maybe(&d, "s2"), Some(b(1)), "until it says no");
    d.not_open("s2", &b(1));
    assert_eq!(maybe(&d, "s2"), None);
    leave(&mut d, now, 4);
    assert_eq!(maybe(&d, "s4"), None);
    d.backend_gone(now, &b(1));
    assert_eq!(maybe(&d, "s3"), None);
    d.check_invariants();
}

#[test]
fn the_answer_to_a_close_spares_who_came_after_it() {
    let now = Instant::now();
    let later = now + CLOSE_WITHIN;
    let mut d = Directory::new(Mode::SharedStorage, 100);
    for (at, holder) in [(now, 1), (now, 2), (later, 3)] {
        d.claim(at, &s(1), &b(1), ConnectionId(holder));
    }
    d.begin_turn("s1", ConnectionId(2));
    d.closed_by(later, "s1", &b(2), ConnectionId(1));
    assert_eq!(d.known(later, "s1").holders, 3, "another backend's answer");
    d.closed_by(later, "s1", &b(1), ConnectionId(1));
    let known = d.known(later, "s1");
    assert_eq!((known.owner, known.holders), (Some(b(1)), 1));
    d.check_invariants();
    d.closed_by(later, "s1", &b(1), ConnectionId(3));
    assert_eq!(d.known(later, "s1").owner, None);
    d.check_invariants();
}

#[test]
fn only_who_has_a_session_can_say_that_it_is_deleted() {
    let now = Instant::now();
    for (mode, forgotten) in [(Mode::Sticky, false), (Mode::SharedStorage, true)] {
        let mut d = Directory::new(mode, 100);
        d.learn_history(now, &s(1), &b(1));
        d.learn_deleted(now, &s(1), &b(2));
        assert_eq!(d.known(now, "s1").deleted, forgotten);
        d.learn_deleted(now, &s(1), &b(1));
        assert!(d.known(now, "s1").deleted);
    }
}

#[test]
fn a_list_that_no_longer_has_a_session_forgets_its_home() {
    let now = Instant::now();
    let mut d = Directory::new(Mode::Sticky, 100);
    d.learn_disk(now, &b(1), &[s(1), s(2)]);
    d.learn_disk(now, &b(1), &[s(2)]);
    assert_eq!(d.known(now, "s1"), Known::default());
    assert_eq!(d.known(now, "s2").home, Some(b(1)));
    assert_eq!(d.homed_at(&b(1)), 1);
}

#[test]
fn at_the_limit_closed_sessions_go_and_open_ones_stay() {
    let now = Instant::now();
    let mut d = Directory::new(Mode::SharedStorage, 4);
    d.claim(now, &s(0), &b(1), ConnectionId(1));
    for n in 1..20 {
        d.learn_history(now, &s(n), &b(1));
    }
    assert!(d.len() <= 4, "{}", d.len());
    assert_eq!(d.known(now, "s0").owner, Some(b(1)));
    assert!(d.evicted() > 0);

    d.set_limit(8);
    for n in 20..40 {
        d.learn_history(now, &s(n), &b(1));
    }
    assert_eq!(d.len(), 8);
    d.set_limit(4);
    d.learn_history(now, &s(40), &b(1));
    assert!(d.len() <= 4, "{}", d.len());
}

#[test]
fn who_hears_of_a_turn_late_does_not_report_it_again() {
    let now = Instant::now();
    let mut d = Directory::new(Mode::SharedStorage, 4);
    let (first, late) = (ConnectionId(1), ConnectionId(2));
    for who in [first, late] {
        d.claim(now, &s(0), &b(1), who);
    }
    d.begin_turn("s0", first);
    assert!(d.end_turn("s0", first, Some(7)));
    d.begin_turn("s0", late);
    assert!(!d.end_turn("s0", late, Some(7)));
    d.begin_turn("s0", late);
    assert!(d.end_turn("s0", late, Some(8)), "the next turn is another");
    assert_eq!(d.load(&b(1)).turns, 0);
}

#[test]
fn one_connection_reports_a_turn() {
    let now = Instant::now();
    let mut d = Directory::new(Mode::SharedStorage, 4);
    d.claim(now, &s(0), &b(1), ConnectionId(1));
    d.claim(now, &s(0), &b(1), ConnectionId(2));
    assert!(d.begin_turn("s0", ConnectionId(1)));
    assert!(!d.begin_turn("s0", ConnectionId(2)));
    assert_eq!(d.load(&b(1)).turns, 1);
    d.end_turn("s0", ConnectionId(2), None);
    assert_eq!(d.load(&b(1)).turns, 1);
    d.end_turn("s0", ConnectionId(1), None);
    assert_eq!(d.load(&b(1)).turns, 0);
}

proptest! {
    #[test]
    fn invariants_hold_under_any_sequence(
        steps in proptest::collection::vec((0u8..17, 0u8..6, 0u8..3, 0u64..4), 1..200),
        sticky: bool,
    ) {
        let now = Instant::now();
        let mode = if sticky { Mode::Sticky } else { Mode::SharedStorage };
        let mut d = Directory::new(mode, 4);
        for (op, session, backend, holder) in steps {
            let (id, at, who) = (s(session), b(backend), ConnectionId(holder));
            match op {
                0 | 1 => {
                    let known = d.known(now, id.as_str());
                    let before = known.owner;
                    let claim = d.claim(now, &id, &at, who);
                    let owner = d.known(now, id.as_str()).owner.expect("claimed");
                    prop_assert_eq!(claim == Claim::Moving, known.moving);
                    if known.moving {
                        continue;
                    }
                    prop_assert_eq!(before.unwrap_or(at.clone()), owner.clone());
                    prop_assert_eq!(claim == Claim::Granted, owner == at);
                }
                2 => d.release(now, id.as_str(), who),
                3 => d.close(id.as_str()),
                4 => d.delete(now, &id),
                5 => d.learn_disk(now, &at, std::slice::from_ref(&id)),
                6 => d.learn_history(now, &id, &at),
                7 => { d.begin_turn(id.as_str(), who); }
                8 => d.closed_by(now, id.as_str(), &at, who),
                9 => d.backend_silent(now, &at),
                10 => d.backend_back(&at),
                11 => d.backend_gone(now, &at),
                12 => d.stands(id.as_str(), who, Standing::Lost),
                13 => { d.begin_move(id.as_str(), &at); }
                14 => d.end_move(now, &id, true),
                15 => d.end_move(now, &id, false),
                _ => { d.end_turn(id.as_str(), who, None); }
            }
            d.check_invariants();
        }
    }
}

#[test]
fn a_session_moves_only_when_nobody_hears_it_where_it_was() {
    let now = Instant::now();
    let mut directory = Directory::new(Mode::SharedStorage, 100);
    let (a, b) = (BackendName::from("a"), BackendName::from("b"));
    let session = SessionId::from("s");
    let (first, second) = (ConnectionId(1), ConnectionId(2));
    directory.claim(now, &session, &a, first);
    directory.claim(now, &session, &a, second);
    directory.stands("s", first, Standing::Attached);
    directory.stands("s", second, Standing::Attached);
    directory.begin_turn("s", first);
    directory.stands("s", first, Standing::Lost);
    let refused = directory.reown(now, &session, &a, &b, first);
    assert_eq!(refused, Claim::OwnedBy(a.clone()), "the second hears it");
    directory.stands("s", first, Standing::Lost);
    directory.stands("s", second, Standing::Lost);
    assert!(directory.known(now, "s").adrift);
    assert!(!directory.is_next("s", second), "the first was first");
    assert!(directory.is_next("s", first));
    let moved = directory.reown(now, &session, &a, &b, second);
    assert_eq!(moved, Claim::Granted);
    let late = directory.reown(now, &session, &a, &b, first);
    assert_eq!(late, Claim::Granted, "where the second went");
    directory.check_invariants();
    assert_eq!(directory.load(&a), Load::default());
    assert_eq!(directory.load(&b).turns, 1);
    assert_eq!(directory.moved_from(&a), std::slice::from_ref(&session));
    directory.cleaned(&a, std::slice::from_ref(&session));
    assert!(directory.moved_from(&a).is_empty());
}

#[test]
fn on_separate_disks_nothing_moves() {
    let now = Instant::now();
    let mut directory = Directory::new(Mode::Sticky, 100);
    let (a, b) = (BackendName::from("a"), BackendName::from("b"));
    let session = SessionId::from("s");
    directory.claim(now, &session, &a, ConnectionId(1));
    directory.stands("s", ConnectionId(1), Standing::Lost);
    let answer = directory.reown(now, &session, &a, &b, ConnectionId(1));
    assert_eq!(answer, Claim::OwnedBy(a));
}

#[test]
fn what_is_kept_comes_back_and_an_owner_only_perhaps() {
    let now = Instant::now() + Duration::from_secs(10_000);
    let mut directory = Directory::new(Mode::Sticky, 100);
    let (a, session) = (BackendName::from("a"), SessionId::from("s"));
    directory.claim(now, &session, &a, ConnectionId(1));
    directory.learn_history(now, &session, &a);
    assert_eq!(
        directory.take_dirty(),
        std::slice::from_ref(&session),
        "once"
    );
    directory.learn_history(now, &session, &a);
    assert!(!directory.is_dirty(), "nothing new");
    let saved = directory.saved(now, "s").expect("there is a record");
    let mut next = Directory::new(Mode::Sticky, 100);
    next.restore(now, &session, saved);
    let known = next.known(now, "s");
    assert_eq!((known.owner, known.maybe_open_at), (None, Some(a.clone())));
    assert_eq!(known.home, Some(a.clone()));
    assert!(known.has_history);
    assert_eq!(next.homed_at(&a), 1);
    next.check_invariants();
    directory.delete(now, &session);
    assert_eq!(directory.take_dirty(), [session]);
}

#[test]
fn what_may_be_open_at_a_backend_that_is_lost_is_closed_there_before_it_is_used() {
    let now = Instant::now();
    let mut d = Directory::new(Mode::SharedStorage, 100);
    for n in 1..=3 {
        d.claim(now, &s(n), &b(1), ConnectionId(1));
        d.learn_history(now, &s(n), &b(1));
    }
    d.release(now, "s1", ConnectionId(1));
    d.backend_silent(now, &b(1));
    d.release(now, "s2", ConnectionId(1));
    // Its connections are reset; whether it has heard who left, nobody knows.
    d.backend_gone(now, &b(1));
    assert_eq!(d.moved_from(&b(1)), [s(1), s(2)]);
    assert_eq!(d.known(now, "s1").maybe_open_at, None);
    d.cleaned(&b(1), &[s(1), s(2)]);
    // Left and opened there again: that is no leftover.
    d.release(now, "s3", ConnectionId(1));
    d.claim(now, &s(3), &b(1), ConnectionId(2));
    d.backend_gone(now, &b(1));
    assert_eq!(d.moved_from(&b(1)), []);
}

#[test]
fn who_leaves_a_backend_that_is_gone_is_closed_there_before_it_is_used() {
    let now = Instant::now();
    let mut d = Directory::new(Mode::SharedStorage, 100);
    for n in 1..=3 {
        d.claim(now, &s(n), &b(1), ConnectionId(1));
    }
    d.backend_gone(now, &b(1));
    d.backend_released(now, &b(1));
    d.release(now, "s1", ConnectionId(1));
    // That it answers again does not say that it has heard who left.
    d.backend_back(&b(1));
    d.release(now, "s2", ConnectionId(1));
    assert_eq!(d.moved_from(&b(1)), [s(1), s(2)]);
    d.cleaned(&b(1), &[s(1), s(2)]);
    d.backend_returned(&b(1));
    d.release(now, "s3", ConnectionId(1));
    assert_eq!(d.moved_from(&b(1)), [], "it hears this one");
}

#[test]
fn what_was_taken_to_be_closed_is_closed_when_the_backend_comes_back() {
    let now = Instant::now();
    for (mode, left) in [(Mode::SharedStorage, vec![s(1)]), (Mode::Sticky, vec![])] {
        let mut d = Directory::new(mode, 100);
        d.claim(now, &s(1), &b(1), ConnectionId(1));
        d.stands("s1", ConnectionId(1), Standing::Lost);
        assert!(d.begin_move("s1", &b(1)));
        d.left_behind(&s(1), &b(1));
        d.end_move(now, &s(1), true);
        assert_eq!(d.moved_from(&b(1)), left, "{mode:?}");
    }
}

#[test]
fn a_former_owner_that_is_no_part_of_the_pool_stops_nobody() {
    let now = Instant::now();
    let mut d = Directory::new(Mode::SharedStorage, 100);
    for (n, owner) in [(1, b(1)), (2, b(2))] {
        let saved = Saved {
            owner: Some(owner),
            has_history: true,
            ..Saved::default()
        };
        d.restore(now, &s(n), saved);
    }
    d.forget_backends(|name| *name == b(2));
    assert_eq!(d.known(now, "s1").maybe_open_at, None);
    assert!(d.known(now, "s1").has_history);
    assert_eq!(d.known(now, "s2").maybe_open_at, Some(b(2)));
    d.check_invariants();
}

#[test]
fn a_claim_is_taken_back_only_by_who_made_it_last() {
    let now = Instant::now();
    let later = now + Duration::from_millis(1);
    let mut d = Directory::new(Mode::SharedStorage, 100);
    let who = ConnectionId(1);
    d.claim(now, &s(1), &b(1), who);
    assert_eq!(d.claimed_at("s1", who), Some(now));
    d.claim(later, &s(1), &b(1), who);
    d.unclaim(later, "s1", who, now);
    assert_eq!(d.known(later, "s1").holders, 1, "claimed again since");
    d.unclaim(later, "s1", who, later);
    assert_eq!(d.known(later, "s1"), Known::default());
    d.backend_silent(now, &b(1));
    d.claim(now, &s(2), &b(1), who);
    d.release(now, "s2", who);
    d.release(now, "s2", ConnectionId(2));
    let maybe = d.known(now, "s2").maybe_open_at;
    assert_eq!(maybe, Some(b(1)), "who holds nothing ends nothing");
}

#[test]
fn an_answer_counts_if_nothing_has_changed_since() {
    let now = Instant::now();
    let mut d = Directory::new(Mode::SharedStorage, 100);
    let who = ConnectionId(1);
    d.claim(now, &s(1), &b(1), who);
    assert!(d.confirm("s1", &b(1), who));
    assert!(!d.confirm("s1", &b(2), who), "another owner");
    assert!(!d.confirm("s1", &b(1), ConnectionId(2)), "not counted");
    d.stands("s1", who, Standing::Lost);
    assert!(d.confirm("s1", &b(1), who));
    assert!(!d.known(now, "s1").adrift, "it is about to open it");
    d.stands("s1", who, Standing::Lost);
    assert!(d.begin_move("s1", &b(1)));
    assert!(!d.confirm("s1", &b(1), who), "it is being closed");
}

#[test]
fn a_session_that_is_being_closed_is_opened_by_nobody_before_it_is() {
    let now = Instant::now();
    let who = ConnectionId(1);
    for closed in [true, false] {
        let mut d = Directory::new(Mode::SharedStorage, 1);
        d.claim(now, &s(1), &b(1), who);
        d.stands("s1", who, Standing::Lost);
        assert!(d.begin_move("s1", &b(1)));
        match closed {
            true => d.release(now, "s1", who),
            false => d.delete(now, &s(1)),
        }
        d.learn_history(now, &s(2), &b(1));
        d.check_invariants();
        let late = ConnectionId(2);
        assert_eq!(d.claim(now, &s(1), &b(2), late), Claim::Moving);
        let moved = d.reown(now, &s(1), &b(1), &b(2), late);
        assert_eq!(moved, Claim::Moving);
        d.end_move(now, &s(1), closed);
        d.check_invariants();
        assert_eq!(d.load(&b(1)), Load::default());
        assert_eq!(d.claim(now, &s(1), &b(2), late), Claim::Granted);
    }
}

#[test]
fn a_backend_that_is_given_up_moves_nothing_that_it_is_still_to_close() {
    let now = Instant::now();
    let who = ConnectionId(1);
    let mut d = Directory::new(Mode::SharedStorage, 100);
    d.claim(now, &s(1), &b(1), who);
    d.stands("s1", who, Standing::Lost);
    assert!(d.begin_move("s1", &b(1)));
    assert_eq!(d.reown(now, &s(1), &b(1), &b(2), who), Claim::Moving);
    assert_eq!(d.known(now, "s1").owner, Some(b(1)));
}

#[test]
fn what_a_backend_has_to_close_is_kept_and_too_much_of_it_moves_no_more() {
    let now = Instant::now();
    let mut d = Directory::new(Mode::SharedStorage, 100);
    d.moved_limit = 1;
    let who = ConnectionId(1);
    for n in 1..=2 {
        d.claim(now, &s(n), &b(1), who);
        d.stands(s(n).as_str(), who, Standing::Lost);
    }
    d.claim(now, &s(3), &b(1), who);
    d.backend_silent(now, &b(1));
    d.release(now, "s3", who);
    assert_eq!(d.reown(now, &s(1), &b(1), &b(2), who), Claim::Granted);
    assert_eq!(d.take_unmoved(), 0);
    // The next ones wait for their backend.
    let refused = d.reown(now, &s(2), &b(1), &b(2), who);
    assert_eq!(refused, Claim::OwnedBy(b(1)));
    assert!(d.known(now, "s2").adrift, "it is lost still");
    assert!(!d.left_behind(&s(2), &b(1)));
    d.backend_released(now, &b(1));
    assert_eq!(d.known(now, "s3").maybe_open_at, Some(b(1)));
    d.check_invariants();
    assert_eq!(d.take_unmoved(), 3);
    assert_eq!(d.take_unmoved(), 0);

    // The client leaves, and nothing else is known of the session.
    d.release(now, "s1", who);
    assert!(d.ids().contains(&s(1)));
    let saved = d.saved(now, "s1").expect("it is to be closed");
    assert_eq!(saved.moved_from, [b(1)]);
    let mut next = Directory::new(Mode::SharedStorage, 100);
    next.restore(now, &s(1), saved.clone());
    assert_eq!(next.moved_from(&b(1)), [s(1)]);
    assert!(next.is_empty(), "no session is known");
    let mut sticky = Directory::new(Mode::Sticky, 100);
    sticky.restore(now, &s(1), saved);
    assert!(sticky.moved_from(&b(1)).is_empty());
    next.forget_backends(|name| *name == b(1));
    assert_eq!(next.moved_from(&b(1)), [s(1)]);
    next.forget_backends(|_| false);
    assert_eq!(next.moved_from(&b(1)), []);

    d.take_dirty();
    d.cleaned(&b(1), &[s(1)]);
    assert_eq!(d.take_dirty(), [s(1)]);
    assert_eq!(d.saved(now, "s1"), None);
    assert_eq!(d.reown(now, &s(2), &b(1), &b(2), who), Claim::Granted);
}

#[test]
fn whose_a_session_is_stays_until_its_tombstone_is_over() {
    let now = Instant::now();
    let (ann, bob) = (Person::new("acme", "ann"), Person::new("acme", "bob"));
    let mut d = Directory::new(Mode::SharedStorage, 100);
    assert!(!d.belongs(now, &s(1), &ann), "nobody has claimed it");
    d.claim(now, &s(1), &b(1), ConnectionId(1));
    assert!(d.belongs(now, &s(1), &ann));
    assert!(!d.belongs(now, &s(1), &bob), "it is somebody's");
    // It never had a turn, but may have left files.
    d.release(now, "s1", ConnectionId(1));
    assert_eq!(d.known(now, "s1").person.as_deref(), Some(&ann));
    d.delete(now, &s(1));
    let later = now + TOMBSTONE;
    let still = later - Duration::from_secs(1);
    assert_eq!(d.person(still, "s1").map(|p| &**p), Some(&ann));
    assert_eq!(d.person(later, "s1"), None);
    assert_eq!(d.saved(later, "s1").unwrap().person, None);
    // What is made under its id then is another session.
    d.claim(later, &s(1), &b(1), ConnectionId(2));
    assert_eq!(d.person(later, "s1"), None);
    assert!(d.belongs(later, &s(1), &bob));
    assert_eq!(d.person(later, "s1").map(|p| &**p), Some(&bob));
    // Made anew before that it is the same one's.
    d.delete(later, &s(1));
    d.claim(later, &s(1), &b(1), ConnectionId(2));
    assert_eq!(d.person(later, "s1").map(|p| &**p), Some(&bob));
    d.check_invariants();
}

#[test]
fn a_copy_is_whose_its_source_is() {
    let now = Instant::now();
    let ann = Person::new("acme", "ann");
    let mut d = Directory::new(Mode::Sticky, 100);
    d.claim(now, &s(1), &b(1), ConnectionId(1));
    assert_eq!(d.forked(now, "s1", &s(2)), None, "nobody's");
    d.belongs(now, &s(1), &ann);
    assert_eq!(d.forked(now, "s1", &s(2)).as_deref(), Some(&ann));
    assert_eq!(d.known(now, "s2").person.as_deref(), Some(&ann));
    assert_eq!(d.unowned(now), 0);
    d.learn_history(now, &s(3), &b(1));
    assert_eq!(d.unowned(now), 1);
    d.check_invariants();
}

#[test]
fn a_person_is_kept_once_however_many_sessions_he_has() {
    let now = Instant::now();
    let mut d = Directory::new(Mode::SharedStorage, 10);
    let mut all = Vec::new();
    for n in 0..200_u32 {
        let session = SessionId::from(format!("of-{n}"));
        d.claim(now, &session, &b(1), ConnectionId(1));
        d.belongs(
            now,
            &session,
            &Person::new("acme", &format!("user{}", n % 3)),
        );
        all.extend(d.person(now, session.as_str()).cloned());
        d.release(now, session.as_str(), ConnectionId(1));
    }
    assert!(
        all.iter()
            .all(|p| all.iter().filter(|q| Arc::ptr_eq(p, q)).count() > 60)
    );
    drop(all);
    for n in 0..1000_u32 {
        let session = SessionId::from(format!("more-{n}"));
        d.claim(now, &session, &b(1), ConnectionId(1));
        d.belongs(now, &session, &Person::new("acme", &format!("once{n}")));
        d.release(now, session.as_str(), ConnectionId(1));
    }
    assert!(d.persons_known() < 200, "{}", d.persons_known());
}
