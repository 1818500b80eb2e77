//! The file: what comes back, what is refused in which words, what a failing disk does.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::Mutex,
    time::{Duration, UNIX_EPOCH},
};

use tempfile::TempDir;

use super::{row::mode_name, *};
use crate::{
    core::{
        directory::{Claim, Known, Standing, TOMBSTONE},
        id::{BackendName, ConnectionId},
        identity::Person,
        snapshot::{AdminState, Mode},
    },
    store::{Kind, Operator, Report, Store},
};

mod crash;
mod damage;
mod medium;

/// Everything in a file.
struct Contents {
    sessions: Vec<(SessionId, SessionRow)>,
    operators: Vec<Operator>,
}

/// A folder with a store in it, and what the store has said.
struct Shelf {
    folder: TempDir,
    said: Arc<Mutex<Vec<Event>>>,
}

impl Shelf {
    fn new() -> Self {
        Self {
            folder: TempDir::new().unwrap(),
            said: Arc::default(),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("t.db")
    }

    fn options(&self, mode: Mode) -> Options {
        let said = self.said.clone();
        let report: Report = Arc::new(move |event| said.lock().unwrap().push(event));
        Options {
            mode,
            limit: 1000,
            expire: Some(Duration::from_secs(3600)),
            report,
        }
    }

    fn open(&self, mode: Mode) -> Store {
        Store::open(&Kind::Embedded(self.path()), &self.options(mode)).unwrap()
    }

    fn open_on(&self, mode: Mode, medium: &Medium) -> Store {
        let opened = open_on(&self.path(), &self.options(mode), medium).unwrap();
        Store::with(opened.directory, opened.wishes, Some(opened.writer))
    }

    fn refusal(&self) -> StoreError {
        let kind = Kind::Embedded(self.path());
        Store::open(&kind, &self.options(Mode::Sticky)).unwrap_err()
    }

    fn said(&self) -> Vec<Event> {
        self.said.lock().unwrap().clone()
    }

    /// What the file has, without anything being decided about it.
    fn contents(&self) -> Contents {
        let file = StoreFile::open(&self.path(), Mode::Sticky, &Medium::plain()).unwrap();
        let mut sessions = Vec::new();
        let each = |id: &str, row| sessions.push((SessionId::from(id), row));
        file.each_session(each).unwrap();
        let operators = file.operators().unwrap();
        Contents {
            sessions,
            operators,
        }
    }
}

fn b(n: u64) -> BackendName {
    BackendName::from(format!("b{n}"))
}

fn s(n: u64) -> SessionId {
    SessionId::from(format!("s{n}"))
}

const C: ConnectionId = ConnectionId(1);

/// Looks until it holds.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "{what} does not come");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn everything_comes_back() {
    let shelf = Shelf::new();
    let store = shelf.open(Mode::Sticky);
    for n in 1..=4 {
        store.claim(&s(n), &b(n), C).await.unwrap();
    }
    {
        let mut directory = store.lock();
        let now = Instant::now();
        directory.learn_history(now, &s(2), &b(2));
        directory.learn_history(now, &s(3), &b(3));
        directory.release(now, "s3", C);
        directory.release(now, "s4", C);
        directory.learn_history(now, &s(5), &b(5));
        directory.delete(now, &s(5));
    }
    let wish = |n, state, weight| Operator {
        backend: b(n),
        state,
        weight,
    };
    let drain = wish(1, Some(AdminState::Drain), None);
    let heavy = wish(2, None, Some(7));
    store.keep_operator(drain.clone()).await;
    store.keep_operator_blocking(heavy.clone());
    store
        .keep_operator(wish(3, Some(AdminState::Maint), None))
        .await;
    store.keep_operator(wish(3, None, None)).await;
    drop(store);

    let store = shelf.open(Mode::Sticky);
    assert_eq!(store.operators(), [drain, heavy]);
    let open_at = |n| Known {
        maybe_open_at: Some(b(n)),
        home: Some(b(n)),
        ..Known::default()
    };
    assert_eq!(
        store.known("s1"),
        open_at(1),
        "open there, so it lives there"
    );
    let with_history = Known {
        has_history: true,
        ..open_at(2)
    };
    assert_eq!(store.known("s2"), with_history);
    let closed = Known {
        has_history: true,
        home: Some(b(3)),
        ..Known::default()
    };
    assert_eq!(store.known("s3"), closed);
    assert_eq!(store.known("s4"), Known::default(), "it left nothing");
    assert!(store.known("s5").deleted);
    store.lock().check_invariants();
    let mode = fs::metadata(shelf.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut opened = Vec::new();
    for event in shelf.said() {
        if let Event::StoreOpened {
            is_new, sessions, ..
        } = event
        {
            opened.push((is_new, sessions));
        }
    }
    assert_eq!(opened, [(true, 0), (false, 4)]);
}

#[tokio::test]
async fn a_claim_is_on_disk_when_it_returns_whoever_made_it() {
    let shelf = Shelf::new();
    let store = shelf.open(Mode::SharedStorage);
    // The first is noted by the way, the second finds it there: both rely on it.
    store.lock().claim(Instant::now(), &s(1), &b(1), C);
    store.claim(&s(1), &b(2), ConnectionId(2)).await.unwrap();
    assert_eq!(store.unwritten(), 0);
    store.claim(&s(1), &b(1), ConnectionId(3)).await.unwrap();
    for holder in 1..=3 {
        use crate::core::directory::Standing;
        let mut directory = store.lock();
        directory.stands("s1", ConnectionId(holder), Standing::Lost);
    }
    store.reown(&s(1), &b(1), &b(2), C).await.unwrap();
    assert_eq!(store.unwritten(), 0);
    drop(store);
    let store = shelf.open(Mode::SharedStorage);
    assert_eq!(store.known("s1").maybe_open_at, Some(b(2)));
}

#[tokio::test]
async fn the_newest_are_remembered_and_the_others_leave_the_file() {
    let shelf = Shelf::new();
    let store = shelf.open(Mode::Sticky);
    {
        let now = Instant::now();
        let mut directory = store.lock();
        for n in 0..20 {
            // Each younger than the one before; s0 has expired.
            let ago = if n == 0 { 4000 } else { 100 - n };
            let then = now.checked_sub(Duration::from_secs(ago)).unwrap();
            directory.learn_history(then, &s(n), &b(1));
        }
    }
    drop(store);
    let options = Options {
        limit: 5,
        ..shelf.options(Mode::Sticky)
    };
    let store = Store::open(&Kind::Embedded(shelf.path()), &options).unwrap();
    let mut ids = store.lock().ids();
    ids.sort();
    let mut newest: Vec<_> = (15..20).map(s).collect();
    newest.sort();
    assert_eq!(ids, newest);
    // The oldest of them is the first to go.
    store.lock().learn_history(Instant::now(), &s(99), &b(1));
    assert_eq!(store.known("s15"), Known::default());
    drop(store);
    let kept: Vec<_> = shelf
        .contents()
        .sessions
        .into_iter()
        .map(|(id, _)| id)
        .collect();
    assert_eq!(kept.len(), 5);
    assert!(kept.contains(&s(99)) && !kept.contains(&s(15)) && !kept.contains(&s(1)));
}

#[tokio::test]
async fn what_a_backend_has_to_close_comes_back() {
    let shelf = Shelf::new();
    let store = shelf.open(Mode::SharedStorage);
    store.claim(&s(1), &b(1), C).await.unwrap();
    store.lock().stands("s1", C, Standing::Lost);
    let moved = store.reown(&s(1), &b(1), &b(2), C).await;
    assert_eq!(moved, Ok(Claim::Granted));
    // Written with the owner; what follows is not waited for.
    drop(store);
    let store = shelf.open(Mode::SharedStorage);
    assert_eq!(store.known("s1").maybe_open_at, Some(b(2)));
    assert_eq!(store.lock().moved_from(&b(1)), [s(1)]);
    store.lock().not_open("s1", &b(2));
    drop(store);
    let store = shelf.open(Mode::SharedStorage);
    assert_eq!(store.lock().moved_from(&b(1)), [s(1)], "all that is known");
    store.lock().cleaned(&b(1), &[s(1)]);
    drop(store);
    assert!(shelf.contents().sessions.is_empty());
}

#[test]
fn old_rows_are_of_no_use() {
    let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let day = Duration::from_secs(86_400);
    let home = Saved {
        home: Some(b(1)),
        has_history: true,
        ..Saved::default()
    };
    let back = |saved: &Saved, later: Duration, expire| {
        let row = SessionRow::of(saved, now);
        row.restored(now + later, expire, Mode::Sticky, Mode::Sticky)
    };
    // One that is somebody's would be found again on a disk, as nobody's.
    let owned = Saved {
        person: Some(Arc::new(Person::new("acme", "ann"))),
        ..home.clone()
    };
    let aged = |saved: &Saved, by| Saved {
        idle: by,
        ..saved.clone()
    };
    let almost = day - Duration::from_secs(1);
    assert_eq!(back(&home, almost, Some(day)), Some(aged(&home, almost)));
    assert_eq!(back(&home, day, Some(day)), None);
    assert_eq!(back(&owned, day, Some(day)), Some(aged(&owned, day)));
    let left_nothing = Saved {
        person: owned.person.clone(),
        ..Saved::default()
    };
    let while_young = aged(&left_nothing, almost);
    assert_eq!(back(&left_nothing, almost, Some(day)), Some(while_young));
    assert_eq!(back(&left_nothing, day, Some(day)), None);
    assert_eq!(back(&home, day * 999, None), Some(aged(&home, day * 999)));
    // Who was open may be so still: only its backend can tell.
    let open = Saved {
        owner: Some(b(1)),
        ..home.clone()
    };
    assert_eq!(back(&open, day * 2, Some(day)), Some(aged(&open, day * 2)));
    let deleted = Saved {
        deleted: Some(Duration::from_secs(1)),
        person: owned.person.clone(),
        ..Saved::default()
    };
    let still = TOMBSTONE - Duration::from_secs(2);
    let restored = back(&deleted, still, None).unwrap();
    assert_eq!(restored.deleted, Some(still + Duration::from_secs(1)));
    assert_eq!(back(&deleted, TOMBSTONE, None), None);
    // A clock that was set back makes nothing older.
    let row = SessionRow::of(&home, now);
    let before = row.restored(now - day, Some(day), Mode::Sticky, Mode::Sticky);
    assert_eq!(before, Some(home));
}

#[tokio::test]
async fn in_another_mode_the_disks_are_others() {
    let shelf = Shelf::new();
    let store = shelf.open(Mode::Sticky);
    store.claim(&s(1), &b(1), C).await.unwrap();
    store.lock().learn_history(Instant::now(), &s(1), &b(1));
    store.lock().learn_history(Instant::now(), &s(2), &b(2));
    store.lock().delete(Instant::now(), &s(3));
    drop(store);
    for (mode, homes) in [(Mode::SharedStorage, None), (Mode::Sticky, Some(b(1)))] {
        let store = shelf.open(mode);
        let open = Known {
            maybe_open_at: Some(b(1)),
            home: homes,
            ..Known::default()
        };
        assert_eq!(store.known("s1"), open, "{mode:?}");
        assert_eq!(store.known("s2"), Known::default());
        assert!(store.known("s3").deleted);
        assert!(matches!(
            shelf.said().last(),
            Some(Event::StoreOpened { other_mode: Some(other), .. }) if *other != mode_name(mode)
        ));
        drop(store);
        drop(shelf.open(mode));
        assert!(matches!(
            shelf.said().last(),
            Some(Event::StoreOpened {
                other_mode: None,
                sessions: 2,
                ..
            })
        ));
    }
}

#[tokio::test]
async fn after_the_end_it_goes_on_in_memory_and_the_file_is_free() {
    let shelf = Shelf::new();
    let store = shelf.open(Mode::Sticky);
    store.lock().learn_history(Instant::now(), &s(1), &b(1));
    assert!(store.close(Duration::from_secs(20)).await);
    let next = shelf.open(Mode::Sticky);
    assert_eq!(next.known("s1").home, Some(b(1)));
    store.claim(&s(2), &b(2), C).await.unwrap();
    store.keep_operator_blocking(Operator {
        backend: b(1),
        state: None,
        weight: Some(2),
    });
    assert_eq!(store.known("s2").owner, Some(b(2)));
    assert_eq!((store.unwritten(), store.is_up()), (0, false));
    drop(store);
    drop(next);
    assert_eq!(shelf.contents().sessions.len(), 1);
}

#[tokio::test]
async fn a_successor_gets_the_file_once_it_is_free_and_writes_all_it_knows() {
    let shelf = Shelf::new();
    let (kind, options) = (Kind::Embedded(shelf.path()), shelf.options(Mode::Sticky));
    let old = shelf.open(Mode::Sticky);
    old.claim(&s(1), &b(1), C).await.unwrap();
    let new = Store::new(Mode::Sticky, 1000);
    new.claim(&s(2), &b(2), C).await.unwrap();
    let wish = Operator {
        backend: b(2),
        state: None,
        weight: Some(2),
    };
    new.keep_operator(wish.clone()).await;
    new.attach(&kind, &options).unwrap();
    // It is in use: that is said, and nobody is held up.
    new.claim(&s(3), &b(3), C).await.unwrap();
    assert!(!new.is_up());
    assert!(old.close(Duration::from_secs(20)).await);
    until("the file", || new.is_up()).await;
    new.claim(&s(4), &b(4), C).await.unwrap();
    // Given back and taken again, as after an upgrade that fails.
    assert!(new.close(Duration::from_secs(20)).await);
    old.attach(&kind, &options).unwrap();
    old.claim(&s(5), &b(5), C).await.unwrap();
    assert!(old.is_up());
    drop(old);
    let mut kept: Vec<_> = shelf
        .contents()
        .sessions
        .into_iter()
        .map(|(id, _)| id)
        .collect();
    kept.sort();
    assert_eq!(kept, [s(1), s(5)], "what the last one knows");
    assert_eq!(shelf.contents().operators, [wish]);
    drop(new);
}
