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
        snapshot::Mode,
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
        let contents = file.read()?;
        Ok((file, contents))
    }));
    let (file, contents) = read.unwrap_or_else(|panic| {
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
    let wishes = contents
        .operators
        .iter()
        .map(|wish| (wish.backend.clone(), wish.clone()));
    let wishes: Wishes = Arc::new(Mutex::new(wishes.collect()));
    let restored = restore(contents.sessions, written_for, options);
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

/// The newest sessions, as many as are remembered; the others are forgotten.
fn restore(rows: Vec<(SessionId, SessionRow)>, written_for: Mode, options: &Options) -> Restored {
    let (now, wall) = (Instant::now(), SystemTime::now());
    let mut forgotten = Vec::new();
    let mut kept: Vec<(SessionId, u64, Saved)> = Vec::new();
    for (id, row) in rows {
        let used = row.used;
        match row.restored(wall, options.expire, written_for, options.mode) {
            Some(saved) => kept.push((id, used, saved)),
            None => forgotten.push(id),
        }
    }
    // Oldest first: the directory looks for what to forget in the order in which it was told. What
    // a backend has still to close is not forgotten before anything else.
    kept.sort_by_key(|(_, used, saved)| (!saved.moved_from.is_empty(), *used));
    let too_many = kept.len().saturating_sub(options.limit.max(1));
    forgotten.extend(kept.drain(..too_many).map(|(id, _, _)| id));
    let mut directory = Directory::new(options.mode, options.limit);
    let sessions = kept.len();
    for (id, _, saved) in kept {
        directory.restore(now, &id, saved);
    }
    Restored {
        directory,
        sessions,
        count_forgotten: forgotten.len(),
        forgotten,
    }
}

#[cfg(test)]
mod tests;
