//! A disk that fails on demand, and what the store makes of it.

use std::{
    io,
    ops::Bound,
    sync::atomic::{AtomicU8, Ordering},
};

use redb::{BackendError, StorageBackend, backends::FileBackend};

use super::*;

/// What the disk does with a write.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Mood {
    Takes,
    Full,
    Hangs,
}

#[derive(Clone, Debug, Default)]
struct Fault(Arc<AtomicU8>);

impl Fault {
    fn set(&self, mood: Mood) {
        self.0.store(mood as u8, Ordering::SeqCst);
    }

    fn is(&self, mood: Mood) -> bool {
        self.0.load(Ordering::SeqCst) == mood as u8
    }

    fn medium(&self) -> Medium {
        let fault = self.clone();
        Medium {
            database: Arc::new(move |builder, file| {
                builder.create_with_backend(Faulty {
                    file: FileBackend::new(file)?,
                    fault: fault.clone(),
                })
            }),
            patience: Duration::from_secs(1),
        }
    }

    fn check(&self) -> io::Result<()> {
        let end = Instant::now() + Duration::from_secs(20);
        while self.is(Mood::Hangs) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        if self.is(Mood::Full) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Faulty {
    file: FileBackend,
    fault: Fault,
}

impl StorageBackend for Faulty {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.fault.check()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.fault.check()?;
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.fault.check()?;
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, from: Bound<u64>, to: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(from, to)
    }

    fn unlock_range(&self, from: Bound<u64>, to: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(from, to)
    }
}

/// How often it has said that it fails, and that it is back.
fn told(shelf: &Shelf) -> (Vec<&'static str>, usize) {
    let said = shelf.said();
    let mut failures = Vec::new();
    for event in &said {
        if let Event::StoreFailed {
            op,
            goes_down: true,
            ..
        } = event
        {
            failures.push(*op);
        }
    }
    let back = said.iter().filter(|e| matches!(e, Event::StoreBack));
    (failures, back.count())
}

async fn back(shelf: &Shelf) {
    until("success", || told(shelf).1 > 0).await;
}

#[tokio::test]
async fn a_full_disk_is_said_once_and_made_up_for() {
    let (shelf, fault) = (Shelf::new(), Fault::default());
    let store = shelf.open_on(Mode::Sticky, &fault.medium());
    store.claim(&s(1), &b(1), C).await.unwrap();
    assert!(store.is_up());
    fault.set(Mood::Full);
    // Returns once the failure is known; in memory it holds.
    store.claim(&s(2), &b(2), C).await.unwrap();
    assert!(!store.is_up());
    for n in 3..50 {
        store.claim(&s(n), &b(n), C).await.unwrap();
    }
    store.lock().release(Instant::now(), "s1", C);
    let wish = Operator {
        backend: b(1),
        state: Some(AdminState::Maint),
        weight: None,
    };
    store.keep_operator(wish.clone()).await;
    assert_eq!(store.known("s49").owner, Some(b(49)));
    assert_eq!(store.unwritten(), 49);
    until("another attempt", || shelf.said().len() > 3).await;
    assert_eq!(told(&shelf), (vec!["write"], 0), "said once");
    fault.set(Mood::Takes);
    back(&shelf).await;
    assert!(store.is_up());
    assert_eq!((store.unwritten(), told(&shelf)), (0, (vec!["write"], 1)));
    store.claim(&s(50), &b(50), C).await.unwrap();
    drop(store);
    let store = shelf.open(Mode::Sticky);
    for n in 2..=50 {
        assert_eq!(store.known(s(n).as_str()).maybe_open_at, Some(b(n)));
    }
    assert_eq!(store.known("s1"), Known::default());
    assert_eq!(store.operators(), [wish]);
}

#[tokio::test]
async fn a_disk_that_hangs_holds_nobody_up_for_long() {
    let (shelf, fault) = (Shelf::new(), Fault::default());
    let store = shelf.open_on(Mode::Sticky, &fault.medium());
    fault.set(Mood::Hangs);
    let began = Instant::now();
    store.claim(&s(1), &b(1), C).await.unwrap();
    assert!(!store.is_up());
    for n in 2..20 {
        store.claim(&s(n), &b(1), C).await.unwrap();
    }
    let took = began.elapsed();
    assert!(
        took < Duration::from_secs(8),
        "{took:?}: only one has waited"
    );
    assert_eq!(told(&shelf), (vec!["stall"], 0));
    fault.set(Mood::Takes);
    back(&shelf).await;
    assert_eq!(told(&shelf), (vec!["stall"], 1));
    drop(store);
    assert_eq!(shelf.contents().sessions.len(), 19);
}

#[tokio::test]
async fn a_file_that_is_taken_away_is_made_anew_with_everything() {
    let shelf = Shelf::new();
    let store = shelf.open(Mode::Sticky);
    store.claim(&s(1), &b(1), C).await.unwrap();
    let wish = Operator {
        backend: b(1),
        state: None,
        weight: Some(3),
    };
    store.keep_operator(wish.clone()).await;
    fs::remove_file(shelf.path()).unwrap();
    store.claim(&s(2), &b(2), C).await.unwrap();
    assert_eq!(told(&shelf), (vec!["write"], 0));
    back(&shelf).await;
    drop(store);
    let contents = shelf.contents();
    assert_eq!(contents.sessions.len(), 2);
    assert_eq!(contents.operators, [wish]);
}

#[tokio::test]
async fn what_cannot_be_written_at_the_end_is_said() {
    let (shelf, fault) = (Shelf::new(), Fault::default());
    let store = shelf.open_on(Mode::Sticky, &fault.medium());
    fault.set(Mood::Full);
    store.claim(&s(1), &b(1), C).await.unwrap();
    assert!(store.close(Duration::from_secs(20)).await);
    assert_eq!(told(&shelf), (vec!["write", "open"], 0));
    fault.set(Mood::Takes);
    drop(store);
    assert_eq!(shelf.contents().sessions.len(), 0);
}

#[tokio::test]
async fn who_gives_up_waiting_has_claimed_nothing() {
    let (shelf, fault) = (Shelf::new(), Fault::default());
    let store = shelf.open_on(Mode::Sticky, &fault.medium());
    store.claim(&s(1), &b(1), C).await.unwrap();
    store.lock().release(Instant::now(), "s1", C);
    store.claim(&s(2), &b(2), C).await.unwrap();
    fault.set(Mood::Hangs);
    let now = Instant::now();
    store.lock().learn_history(now, &s(2), &b(2));
    for n in [1, 2] {
        // Polled once: it waits for the disk.
        let (session, backend) = (s(n), b(n));
        let claim = store.claim(&session, &backend, C);
        assert!(futures_util::future::FutureExt::now_or_never(claim).is_none());
    }
    assert_eq!(store.known("s1").owner, None);
    assert_eq!(store.known("s2").owner, Some(b(2)), "it was held before");
    store.lock().check_invariants();
    fault.set(Mood::Takes);
}

#[tokio::test]
async fn the_end_does_not_wait_for_a_disk_that_hangs() {
    let (shelf, fault) = (Shelf::new(), Fault::default());
    let store = shelf.open_on(Mode::Sticky, &fault.medium());
    fault.set(Mood::Hangs);
    let began = Instant::now();
    store.claim(&s(1), &b(1), C).await.unwrap();
    assert!(!store.close(Duration::from_millis(100)).await);
    drop(store);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
    fault.set(Mood::Takes);
}
