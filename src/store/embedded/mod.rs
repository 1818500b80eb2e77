//! The directory kept in a file: opened at the start, mirrored by a thread that writes.
//!
//! The file is a copy of what the directory wants to be kept; nothing is ever looked up in it while
//! Taxiway runs. What is in it: ids of sessions, names of backends, times, operators' wishes.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Arc, Mutex},
    time::{Instant, SystemTime},
};

use crate::{
    core::{
        directory::{Directory, Saved},
        event::Event,
        id::SessionId,
    },
    store::{Options, StoreError, Wishes},
};

mod file;
mod queue;
mod row;
mod writer;

use self::{
    file::{Medium, StoreFile},
    row::SessionRow,
    writer::Task,
};
pub(super) use writer::Writer;

/// What a file gives at the start.
pub(super) struct Opened {
    pub(super) directory: Arc<Mutex<Directory>>,
    pub(super) wishes: Wishes,
    pub(super) writer: Writer,
}

/// Opens the file, fills a directory from it and starts to mirror that.
pub(super) fn open(path: &Path, options: &Options) -> Result<Opened, StoreError> {
    open_on(path, options, &Medium::plain())
}

fn open_on(path: &Path, options: &Options, medium: &Medium) -> Result<Opened, StoreError> {
    // The database checks what it reads; should one of its checks be a panic, the words of a
    // damaged file are still better than a trace.
    let read = catch_unwind(AssertUnwindSafe(|| {
        let file = StoreFile::open(path, options.mode, medium)?;
        let operators = file.operators()?;
        let restored = restore(&file, options)?;
        Ok((file, operators, restored))
    }));
    let (file, operators, restored) = read.unwrap_or_else(|panic| {
        let said = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        Err(StoreError::Damaged {
            path: path.to_owned(),
            what: said.unwrap_or("it cannot be read").to_owned(),
        })
    })?;
    let written_for = file.mode;
    let is_new = file.is_new;
    let wishes = operators
        .into_iter()
        .map(|wish| (wish.backend.clone(), wish));
    let wishes: Wishes = Arc::new(Mutex::new(wishes.collect()));
    let directory = Arc::new(Mutex::new(restored.directory));
    let writer = Writer::start(Task {
        file: Some(file),
        path: path.to_owned(),
        medium: medium.clone(),
        directory: directory.clone(),
        wishes: wishes.clone(),
        options: options.clone(),
    })
    .map_err(|error| StoreError::Io {
        path: path.to_owned(),
        error,
    })?;
    if written_for != options.mode {
        writer.push_everything();
    } else {
        writer.push(restored.forgotten, None);
    }
    (options.report)(Event::StoreOpened {
        path: path.display().to_string().into(),
        is_new,
        sessions: restored.sessions,
        forgotten: restored.count_forgotten,
        other_mode: (written_for != options.mode).then(|| row::mode_name(written_for)),
    });
    Ok(Opened {
        directory,
        wishes,
        writer,
    })
}

/// Mirrors a directory that is there already; the file is opened when it can be.
pub(super) fn attach(
    path: &Path,
    options: &Options,
    directory: &Arc<Mutex<Directory>>,
    wishes: &Wishes,
) -> std::io::Result<Writer> {
    let writer = Writer::start(Task {
        file: None,
        path: path.to_owned(),
        medium: Medium::plain(),
        directory: directory.clone(),
        wishes: wishes.clone(),
        options: options.clone(),
    })?;
    writer.push_everything();
    Ok(writer)
}

struct Restored {
    directory: Directory,
    sessions: usize,
    /// In the file, and not to be there any more.
    forgotten: Vec<SessionId>,
    count_forgotten: usize,
}

/// What is too many: sessions older than this, and of those that are as old the first ones. What a
/// backend has still to close is not forgotten before anything else.
struct TooOld {
    than: (bool, u64),
    as_old: usize,
}

impl TooOld {
    /// None if all are remembered. Rows pass one by one: a million of them held at once would take
    /// more memory than the directory.
    fn of(
        file: &StoreFile,
        limit: usize,
        age: impl Fn(SessionRow) -> Option<(bool, u64)>,
    ) -> Result<Option<Self>, StoreError> {
        if file.count()? <= limit as u64 {
            return Ok(None);
        }
        let mut ages = Vec::new();
        file.each_session(|_, row| ages.extend(age(row)))?;
        let too_many = ages.len().saturating_sub(limit);
        if too_many == 0 {
            return Ok(None);
        }
        let (older, than, _) = ages.select_nth_unstable(too_many);
        let as_old = older.iter().filter(|age| *age == than).count();
        let than = *than;
        Ok(Some(Self { than, as_old }))
    }

    fn is(&mut self, age: (bool, u64)) -> bool {
        if age == self.than && self.as_old > 0 {
            self.as_old -= 1;
            return true;
        }
        age < self.than
    }
}

/// The newest sessions, as many as are remembered; the others are forgotten.
fn restore(file: &StoreFile, options: &Options) -> Result<Restored, StoreError> {
    let (now, wall) = (Instant::now(), SystemTime::now());
    let saved = |row: SessionRow| row.restored(wall, options.expire, file.mode, options.mode);
    let age = |saved: &Saved, used: u64| (!saved.moved_from.is_empty(), used);
    let mut too_old = TooOld::of(file, options.limit.max(1), |row| {
        let used = row.used;
        saved(row).map(|saved| age(&saved, used))
    })?;
    let mut directory = Directory::new(options.mode, options.limit);
    let mut forgotten = Vec::new();
    let mut sessions = 0;
    file.each_session(|id, row| {
        let id = SessionId::from(id);
        let used = row.used;
        match saved(row) {
            Some(saved) if !too_old.as_mut().is_some_and(|it| it.is(age(&saved, used))) => {
                directory.restore(now, &id, saved);
                sessions += 1;
            }
            Some(_) | None => forgotten.push(id),
        }
    })?;
    directory.order_by_age();
    Ok(Restored {
        directory,
        sessions,
        count_forgotten: forgotten.len(),
        forgotten,
    })
}

#[cfg(test)]
mod tests;
