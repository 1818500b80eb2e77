//! The file: opened and locked, read once, written in transactions.
//!
//! Decides nothing about when to write. Every failure is an error of [`StoreError`] or
//! [`WriteError`], with the words of the database or the system in it.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, ReadableTableMetadata,
    StorageError, Table, TableDefinition, backends::FileBackend,
};

use super::row::{OperatorRow, SCHEMA, SessionRow, mode_name, mode_of};
use crate::{
    core::{
        id::{BackendName, SessionId},
        snapshot::Mode,
    },
    store::{Operator, StoreError},
};

const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta");
const SESSIONS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("sessions");
const OPERATORS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("operators");

/// Pages kept in memory: writes touch few, and everything is read once.
const CACHE: usize = 8 << 20;

/// For those who wait. Slow disks take tenths of a second.
const PATIENCE: Duration = Duration::from_secs(5);

/// A file of at least this size that is mostly air is made smaller at the start.
const COMPACT_FROM: u64 = 16 << 20;
const AIR: u64 = 4;

/// What lies between the database and the disk. Tests put faults there.
#[derive(Clone)]
pub(super) struct Medium {
    /// Makes a database of an open file.
    pub(super) database: MakeDatabase,
    /// A disk that takes longer than this has failed, for those who wait.
    pub(super) patience: Duration,
}

/// See [`Medium`].
pub(super) type MakeDatabase =
    Arc<dyn Fn(&Builder, File) -> Result<Database, DatabaseError> + Send + Sync>;

impl Medium {
    /// Nothing.
    pub(super) fn plain() -> Self {
        Self {
            database: Arc::new(|builder, file| {
                builder.create_with_backend(FileBackend::new(file)?)
            }),
            patience: PATIENCE,
        }
    }
}

/// Why something could not be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    #[error("{0}")]
    Open(#[from] StoreError),
    #[error("{0}")]
    Database(#[from] redb::Error),
    #[error("the file was moved or removed")]
    Moved,
}

impl WriteError {
    /// For the metric.
    pub(super) fn op(&self) -> &'static str {
        match self {
            Self::Open(_) => "open",
            Self::Database(_) | Self::Moved => "write",
        }
    }
}

/// An open store file, locked against other processes.
#[derive(Debug)]
pub(super) struct StoreFile {
    database: Database,
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
    /// It was empty.
    pub(super) is_new: bool,
    /// The mode that its sessions were written for.
    pub(super) mode: Mode,
}

impl StoreFile {
    /// Opens it, makes it if it is not there. `mode` is noted in a new one.
    pub(super) fn open(path: &Path, mode: Mode, medium: &Medium) -> Result<Self, StoreError> {
        let failed = |error: io::Error| refusal(path, error);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(failed(io::Error::other("it is not a regular file")));
        }
        let identity = (metadata.dev(), metadata.ino());
        let mut builder = Builder::new();
        // A look at every page: a file that was altered while nobody had it open is refused here,
        // and not half-way through a write.
        builder
            .set_cache_size(CACHE)
            .set_check_integrity_on_open(true);
        let database =
            (medium.database)(&builder, file).map_err(|error| self::failed(path, error))?;
        let mut opened = Self {
            database,
            path: path.to_owned(),
            identity,
            is_new: false,
            mode,
        };
        match opened.read_meta()? {
            Some(mode) => opened.mode = mode,
            None => {
                opened.is_new = true;
                opened.begin(mode).map_err(|e| damaged(path, &e))?;
            }
        }
        opened.compact(metadata.len());
        Ok(opened)
    }

    /// The mode; none if the file is new.
    fn read_meta(&self) -> Result<Option<Mode>, StoreError> {
        let read = || -> Result<_, redb::Error> {
            let transaction = self.database.begin_read()?;
            if transaction.list_tables()?.next().is_none() {
                return Ok(None);
            }
            let meta = transaction.open_table(META)?;
            let value = |key| -> Result<String, redb::Error> {
                let found = meta.get(key)?;
                Ok(found.map_or_else(String::new, |found| found.value().to_owned()))
            };
            Ok(Some((value("schema")?, value("mode")?)))
        };
        let not_ours = |found: String| StoreError::NotAStore {
            path: self.path.clone(),
            found,
        };
        let (schema, mode) = match read() {
            Ok(None) => return Ok(None),
            Ok(Some(meta)) => meta,
            Err(redb::Error::TableDoesNotExist(_) | redb::Error::TableTypeMismatch { .. }) => {
                return Err(not_ours(
                    "another program keeps its tables there".to_owned(),
                ));
            }
            Err(error) => return Err(damaged(&self.path, &error)),
        };
        match schema.parse::<u32>() {
            Ok(number) if number > SCHEMA => Err(StoreError::Newer {
                path: self.path.clone(),
                found: schema,
                known: SCHEMA,
            }),
            Ok(_) => mode_of(&mode)
                .map(Some)
                .ok_or_else(|| not_ours(format!("it was written for the mode {mode:?}"))),
            Err(_) => Err(not_ours(format!("its schema is {schema:?}"))),
        }
    }

    fn begin(&self, mode: Mode) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut meta = transaction.open_table(META)?;
            meta.insert("schema", SCHEMA.to_string().as_str())?;
            meta.insert("mode", mode_name(mode))?;
            transaction.open_table(SESSIONS)?;
            transaction.open_table(OPERATORS)?;
        }
        Ok(transaction.commit()?)
    }

    /// Gives air back to the system. It may fail without harm: the file is only large then.
    fn compact(&mut self, size: u64) {
        let stored = || -> Result<u64, redb::Error> {
            let transaction = self.database.begin_write()?;
            let stats = transaction.stats()?;
            transaction.abort()?;
            Ok(stats.stored_bytes())
        };
        if size >= COMPACT_FROM
            && let Ok(stored) = stored()
            && stored < size / AIR
        {
            let _still_large = self.database.compact();
        }
    }

    /// How many sessions are in it.
    pub(super) fn count(&self) -> Result<u64, StoreError> {
        let count = || -> Result<_, redb::Error> {
            let transaction = self.database.begin_read()?;
            Ok(transaction.open_table(SESSIONS)?.len()?)
        };
        count().map_err(|error| damaged(&self.path, &error))
    }

    /// Reads all sessions, one after the other, in the order of their ids: there may be a million.
    pub(super) fn each_session(
        &self,
        mut each: impl FnMut(&str, SessionRow),
    ) -> Result<(), StoreError> {
        let mut read = || -> Result<Result<(), String>, redb::Error> {
            let transaction = self.database.begin_read()?;
            for entry in transaction.open_table(SESSIONS)?.iter()? {
                let (id, row) = entry?;
                match serde_json::from_slice(row.value()) {
                    Ok(row) => each(id.value(), row),
                    Err(error) => return Ok(Err(format!("the row of a session: {error}"))),
                }
            }
            Ok(Ok(()))
        };
        self.readable(read())
    }

    /// Reads all wishes of operators.
    pub(super) fn operators(&self) -> Result<Vec<Operator>, StoreError> {
        let read = || -> Result<Result<_, String>, redb::Error> {
            let transaction = self.database.begin_read()?;
            let mut operators = Vec::new();
            for entry in transaction.open_table(OPERATORS)?.iter()? {
                let (backend, row) = entry?;
                let row = serde_json::from_slice::<OperatorRow>(row.value())
                    .map_err(|error| error.to_string())
                    .and_then(|row| row.restored(backend.value()));
                match row {
                    Ok(operator) => operators.push(operator),
                    Err(error) => return Ok(Err(format!("the row of an operator: {error}"))),
                }
            }
            Ok(Ok(operators))
        };
        self.readable(read())
    }

    fn readable<T>(&self, read: Result<Result<T, String>, redb::Error>) -> Result<T, StoreError> {
        match read {
            Ok(Ok(read)) => Ok(read),
            Ok(Err(what)) => Err(StoreError::Damaged {
                path: self.path.clone(),
                what,
            }),
            Err(error) => Err(damaged(&self.path, &error)),
        }
    }

    /// One transaction. When this returns, what `change` did is on the disk: the database has had
    /// the system write it through (`fdatasync`).
    pub(super) fn write(
        &self,
        change: impl FnOnce(&mut Tables<'_>) -> Result<(), redb::Error>,
    ) -> Result<(), WriteError> {
        // A file that was taken away under us would take every word and give none back.
        let there = std::fs::metadata(&self.path).map(|found| (found.dev(), found.ino()));
        if there.ok() != Some(self.identity) {
            return Err(WriteError::Moved);
        }
        let write = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            {
                let mut tables = Tables {
                    meta: transaction.open_table(META)?,
                    sessions: transaction.open_table(SESSIONS)?,
                    operators: transaction.open_table(OPERATORS)?,
                };
                change(&mut tables)?;
            }
            Ok(transaction.commit()?)
        };
        Ok(write()?)
    }
}

/// The tables within a transaction.
pub(super) struct Tables<'t> {
    meta: Table<'t, &'static str, &'static str>,
    sessions: Table<'t, &'static str, &'static [u8]>,
    operators: Table<'t, &'static str, &'static [u8]>,
}

impl Tables<'_> {
    pub(super) fn set_mode(&mut self, mode: Mode) -> Result<(), redb::Error> {
        self.meta.insert("mode", mode_name(mode))?;
        Ok(())
    }

    /// Keeps the row, or forgets the session.
    pub(super) fn session(
        &mut self,
        id: &SessionId,
        row: Option<&SessionRow>,
    ) -> Result<(), redb::Error> {
        match row {
            Some(row) => self.sessions.insert(id.as_str(), &*text(row))?,
            None => self.sessions.remove(id.as_str())?,
        };
        Ok(())
    }

    /// Forgets every session that `stays` is false for.
    pub(super) fn retain(&mut self, stays: impl Fn(&str) -> bool) -> Result<(), redb::Error> {
        Ok(self.sessions.retain(|id, _| stays(id))?)
    }

    /// Keeps the row, or forgets the wish.
    pub(super) fn operator(
        &mut self,
        backend: &BackendName,
        row: Option<&OperatorRow>,
    ) -> Result<(), redb::Error> {
        match row {
            Some(row) => self.operators.insert(backend.as_str(), &*text(row))?,
            None => self.operators.remove(backend.as_str())?,
        };
        Ok(())
    }
}

fn text(row: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(row).expect("a row has text keys and no map, so it is JSON")
}

fn damaged(path: &Path, error: &redb::Error) -> StoreError {
    StoreError::Damaged {
        path: path.to_owned(),
        what: error.to_string(),
    }
}

fn failed(path: &Path, error: DatabaseError) -> StoreError {
    if matches!(
        error,
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch
    ) {
        return StoreError::Locked {
            path: path.to_owned(),
            pid: holder(path),
        };
    }
    let DatabaseError::Storage(StorageError::Io(error)) = error else {
        return damaged(path, &error.into());
    };
    if error.kind() == io::ErrorKind::InvalidData {
        // So the database says that its mark is not at the start of the file.
        return StoreError::NotAStore {
            path: path.to_owned(),
            found: error.to_string(),
        };
    }
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return damaged(path, &error.into());
    }
    refusal(path, error)
}

/// What the system does not let us do with the file.
fn refusal(path: &Path, error: io::Error) -> StoreError {
    use io::ErrorKind as Kind;
    let path = path.to_owned();
    let kind = error.kind();
    if matches!(kind, Kind::NotFound | Kind::NotADirectory) {
        StoreError::NoDirectory(path)
    } else if matches!(
        kind,
        Kind::PermissionDenied | Kind::ReadOnlyFilesystem | Kind::IsADirectory | Kind::Other
    ) {
        StoreError::NotWritable { path, error }
    } else {
        StoreError::Io { path, error }
    }
}

/// The process that holds the lock, where the kernel lists it (Linux: `/proc/locks`, one line a
/// lock: number, kind, mode, access, pid, `major:minor:inode`, range).
fn holder(path: &Path) -> Option<u32> {
    let inode = std::fs::metadata(path).ok()?.ino().to_string();
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    locks
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| words.iter().any(|w| w.rsplit(':').next() == Some(&*inode)))
        .find_map(|words| words.get(4)?.parse().ok())
}
