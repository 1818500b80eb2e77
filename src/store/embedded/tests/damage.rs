//! Files that are no store, not whole, not ours, not free.

use proptest::prelude::*;

use super::*;

/// The bytes of a store with some sessions, and whether it was closed well.
fn bytes_of_a_store(sessions: u64) -> Vec<u8> {
    let shelf = Shelf::new();
    let store = shelf.open(Mode::Sticky);
    for n in 0..sessions {
        store.lock().learn_history(Instant::now(), &s(n), &b(n));
    }
    drop(store);
    fs::read(shelf.path()).unwrap()
}

/// Opens these bytes; an error must say what to do. Gives how many sessions came back.
fn open_bytes(bytes: &[u8]) -> Result<usize, String> {
    let shelf = Shelf::new();
    fs::write(shelf.path(), bytes).unwrap();
    let kind = Kind::Embedded(shelf.path());
    match Store::open(&kind, &shelf.options(Mode::Sticky)) {
        Ok(store) => {
            let known = store.lock();
            known.check_invariants();
            Ok(known.len())
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("t.db"), "{text}");
            assert!(
                text.contains("move the file away") || text.contains("store.path"),
                "{text}"
            );
            Err(text)
        }
    }
}

#[test]
fn a_file_cut_off_anywhere_opens_or_is_refused_in_words() {
    let whole = bytes_of_a_store(300);
    assert_eq!(open_bytes(&whole), Ok(300));
    assert_eq!(open_bytes(&[]), Ok(0), "an empty file is a new store");
    let mut refused = 0;
    for end in (512..whole.len()).step_by(512) {
        match open_bytes(&whole[..end]) {
            Ok(sessions) => assert_eq!(sessions, 300, "cut off at {end}: all or nothing"),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 10, "{refused} of {}", whole.len() / 512);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_file_with_foreign_bytes_never_panics(
        spots in proptest::collection::vec((0usize..1 << 20, any::<u8>()), 1..20),
    ) {
        let mut bytes = bytes_of_a_store(50);
        for (at, byte) in spots {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        // Bytes that nothing points to may be anything.
        let _opened_or_refused = open_bytes(&bytes);
    }
}

#[test]
fn what_is_no_store_is_refused_and_left_alone() {
    let shelf = Shelf::new();
    fs::write(shelf.path(), "# notes\n".repeat(1000)).unwrap();
    let error = shelf.refusal();
    assert!(matches!(error, StoreError::NotAStore { .. }), "{error:?}");
    assert!(error.is_configuration());
    assert!(
        fs::read_to_string(shelf.path())
            .unwrap()
            .starts_with("# notes")
    );

    let other = Shelf::new();
    let table: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("recipes");
    let database = redb::Database::create(other.path()).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction
        .open_table(table)
        .unwrap()
        .insert("cake", 1)
        .unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = other.refusal().to_string();
    assert!(error.contains("another program"), "{error}");
}

#[test]
fn a_file_in_use_names_who_has_it() {
    let shelf = Shelf::new();
    let _first = shelf.open(Mode::Sticky);
    let error = shelf.refusal();
    assert!(!error.is_configuration());
    #[cfg(target_os = "linux")]
    assert!(
        error
            .to_string()
            .contains(&format!("pid {}", std::process::id())),
        "{error}"
    );
    assert!(matches!(error, StoreError::Locked { .. }), "{error:?}");
}

#[test]
fn a_place_that_cannot_be_written_is_the_configurations_fault() {
    let shelf = Shelf::new();
    let open = |path| {
        let kind = Kind::Embedded(path);
        Store::open(&kind, &shelf.options(Mode::Sticky)).unwrap_err()
    };
    let nowhere = open(shelf.folder.path().join("no/t.db"));
    assert!(matches!(nowhere, StoreError::NoDirectory(_)), "{nowhere:?}");
    let folder = open(shelf.folder.path().to_owned());
    assert!(
        matches!(folder, StoreError::NotWritable { .. }),
        "{folder:?}"
    );
    let device = open(PathBuf::from("/dev/null"));
    assert!(
        matches!(device, StoreError::NotWritable { .. }),
        "{device:?}"
    );
    for error in [nowhere, folder, device] {
        assert!(error.is_configuration() && error.to_string().contains("store.path"));
    }
    for (kind, expected) in [
        (std::io::ErrorKind::PermissionDenied, true),
        (std::io::ErrorKind::ReadOnlyFilesystem, true),
        (std::io::ErrorKind::StorageFull, false),
    ] {
        let medium = Medium {
            database: Arc::new(move |_, _| Err(std::io::Error::from(kind).into())),
            ..Medium::plain()
        };
        let options = shelf.options(Mode::Sticky);
        let Err(error) = open_on(&shelf.path(), &options, &medium) else {
            panic!("{kind:?} is no reason to open");
        };
        assert_eq!(error.is_configuration(), expected, "{error}");
    }
}

#[test]
fn a_newer_schema_is_refused() {
    let shelf = Shelf::new();
    drop(shelf.open(Mode::Sticky));
    let meta: redb::TableDefinition<'_, &str, &str> = redb::TableDefinition::new("meta");
    let set = |key, value| {
        let database = redb::Database::create(shelf.path()).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction
            .open_table(meta)
            .unwrap()
            .insert(key, value)
            .unwrap();
        transaction.commit().unwrap();
    };
    set("schema", "2");
    let error = shelf.refusal();
    assert!(matches!(error, StoreError::Newer { .. }), "{error:?}");
    assert!(
        error.to_string().contains("nothing on the servers' disks"),
        "{error}"
    );
    set("schema", "1");
    set("mode", "isolated");
    let error = shelf.refusal();
    assert!(error.to_string().contains("isolated"), "{error}");
}
