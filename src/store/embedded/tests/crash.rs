//! Every moment at which the process, or the machine, can end: what had returned is in the file.
//!
//! A disk that notes every write gives the file as it was after any of them.

use std::{io, ops::Bound};

use proptest::{prelude::*, test_runner::TestRng};
use redb::{BackendError, StorageBackend, backends::FileBackend};

use super::*;

/// What the disk was told.
#[derive(Clone, Debug)]
enum Told {
    Length(u64),
    Write(u64, Vec<u8>),
    Sync,
}

type Journal = Arc<Mutex<Vec<Told>>>;

#[derive(Debug)]
struct Noting {
    file: FileBackend,
    journal: Journal,
}

impl Noting {
    fn note(&self, told: Told) {
        self.journal.lock().unwrap().push(told);
    }
}

impl StorageBackend for Noting {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.note(Told::Length(len));
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.note(Told::Sync);
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.note(Told::Write(offset, data.to_vec()));
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

/// The file after these, in this order.
fn replay<'a>(journal: impl IntoIterator<Item = &'a Told>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for told in journal {
        match told {
            Told::Length(len) => bytes.resize(usize::try_from(*len).unwrap(), 0),
            Told::Write(at, written) => {
                let at = usize::try_from(*at).unwrap();
                if bytes.len() < at + written.len() {
                    bytes.resize(at + written.len(), 0);
                }
                bytes[at..at + written.len()].copy_from_slice(written);
            }
            Told::Sync => {}
        }
    }
    bytes
}

/// The file after a loss of power at `end`: what was told after the last sync is there or not.
fn after_power_loss(journal: &[Told], rng: &mut TestRng) -> Vec<u8> {
    let synced = journal
        .iter()
        .rposition(|told| matches!(told, Told::Sync))
        .map_or(0, |at| at + 1);
    let (sure, perhaps) = journal.split_at(synced);
    replay(
        sure.iter()
            .chain(perhaps.iter().filter(|_| rng.random_bool(0.5))),
    )
}

/// A random life of a directory. Gives what the disk was told, and what every session was when a
/// claim of it had returned: with how much of that the disk had been told by then.
async fn live(shelf: &Shelf, mode: Mode, steps: &[(u8, u64, u64)]) -> (Vec<Told>, Vec<Returned>) {
    let journal = Journal::default();
    let noting = journal.clone();
    let medium = Medium {
        database: Arc::new(move |builder, file| {
            builder.create_with_backend(Noting {
                file: FileBackend::new(file)?,
                journal: noting.clone(),
            })
        }),
        ..Medium::plain()
    };
    let store = shelf.open_on(mode, &medium);
    let mut returned = Vec::new();
    for &(op, session, backend) in steps {
        let (id, at) = (s(session), b(backend));
        let now = Instant::now();
        match op {
            0..=3 => {
                let person = whose(session);
                let claimed = store.claim_for(&id, &at, C, Some(&person)).await;
                claimed.unwrap();
                let owner = store.known(id.as_str()).owner;
                returned.push(Returned {
                    told: journal.lock().unwrap().len(),
                    session,
                    owner,
                });
                continue;
            }
            4 => store.lock().release(now, id.as_str(), C),
            5 => store.lock().learn_history(now, &id, &at),
            6 => store.lock().delete(now, &id),
            _ => store.lock().learn_disk(now, &at, std::slice::from_ref(&id)),
        }
        // From here on its owner is another, or written later.
        returned.push(Returned {
            told: 0,
            session,
            owner: None,
        });
    }
    drop(store);
    let journal = journal.lock().unwrap().clone();
    (journal, returned)
}

/// Whose each session is.
fn whose(session: u64) -> Person {
    Person::new("acme", &format!("user{}", session % 3))
}

/// A claim that returned; one without an owner ends what was known before.
#[derive(Debug)]
struct Returned {
    told: usize,
    session: u64,
    owner: Option<BackendName>,
}

/// What has to be in a file that was told `told`: sessions whose last change is a claim that had
/// returned by then, and that nothing has changed since.
fn due(returned: &[Returned], told: usize) -> Vec<(u64, BackendName)> {
    let mut due = Vec::new();
    for (at, claim) in returned.iter().enumerate() {
        let changed_later = returned[at + 1..]
            .iter()
            .any(|r| r.session == claim.session);
        if let Some(owner) = &claim.owner
            && claim.told <= told
            && !changed_later
        {
            due.push((claim.session, owner.clone()));
        }
    }
    due
}

fn check(mode: Mode, bytes: &[u8], due: &[(u64, BackendName)], when: &str) {
    let shelf = Shelf::new();
    fs::write(shelf.path(), bytes).unwrap();
    let store = Store::open(&Kind::Embedded(shelf.path()), &shelf.options(mode))
        .unwrap_or_else(|error| panic!("{when}: {error}"));
    store.lock().check_invariants();
    for (session, owner) in due {
        let known = store.known(s(*session).as_str());
        assert_eq!(
            known.maybe_open_at.as_ref(),
            Some(owner),
            "{when}: s{session}"
        );
        assert_eq!(known.person.as_deref(), Some(&whose(*session)), "{when}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_claim_that_returned_outlives_every_crash(
        steps in proptest::collection::vec((0u8..8, 0u64..12, 0u64..3), 1..40),
        sticky: bool,
        seed: [u8; 32],
    ) {
        let mode = if sticky { Mode::Sticky } else { Mode::SharedStorage };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let shelf = Shelf::new();
        let (journal, returned) = runtime.block_on(live(&shelf, mode, &steps));
        let mut rng = TestRng::from_seed(prop::test_runner::RngAlgorithm::ChaCha, &seed);
        // The first moments make the file; a process that ends in them has promised nothing yet.
        let made = journal.iter().filter(|t| matches!(t, Told::Sync)).count();
        prop_assert!(made > 1);
        for _ in 0..20 {
            let end = rng.random_range(0..=journal.len());
            let due = due(&returned, end);
            if due.is_empty() {
                continue;
            }
            check(mode, &replay(&journal[..end]), &due, "killed");
            check(mode, &after_power_loss(&journal[..end], &mut rng), &due, "no power");
        }
        check(mode, &replay(&journal), &due(&returned, journal.len()), "the end");
    }

    #[test]
    fn what_is_kept_is_the_same_after_a_stop(
        steps in proptest::collection::vec((0u8..8, 0u64..12, 0u64..3), 1..60),
        sticky: bool,
    ) {
        let mode = if sticky { Mode::Sticky } else { Mode::SharedStorage };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let shelf = Shelf::new();
        let store = shelf.open(mode);
        let mut twin = Directory::new(mode, 1000);
        runtime.block_on(async {
            for &(op, session, backend) in &steps {
                let (id, at, now) = (s(session), b(backend), Instant::now());
                if op < 4 {
                    store.claim(&id, &at, C).await.unwrap();
                    twin.claim(now, &id, &at, C);
                    continue;
                }
                for directory in [&mut *store.lock(), &mut twin] {
                    match op {
                        4 => directory.release(now, id.as_str(), C),
                        5 => directory.learn_history(now, &id, &at),
                        6 => directory.delete(now, &id),
                        _ => directory.learn_disk(now, &at, std::slice::from_ref(&id)),
                    }
                }
            }
        });
        drop(store);
        let store = shelf.open(mode);
        let directory = store.lock();
        let now = Instant::now();
        for n in 0..12 {
            let id = s(n);
            let timeless = |saved: Option<Saved>| saved.map(|saved| Saved {
                deleted: saved.deleted.map(|_| Duration::ZERO),
                idle: Duration::ZERO,
                ..saved
            });
            let mut expected = timeless(twin.saved(now, id.as_str()));
            if let Some(saved) = &mut expected && mode == Mode::Sticky && saved.home.is_none() {
                // Open on a server whose disk is its own.
                saved.home = saved.owner.clone();
            }
            prop_assert_eq!(timeless(directory.saved(now, id.as_str())), expected);
        }
    }
}
