//! Why a store cannot be opened, in words that say what to do.

use std::{io, path::PathBuf};

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Its directory is not there.
    #[error(
        "the store {} cannot be made: its directory does not exist\n{}",
        .0.display(), ELSEWHERE
    )]
    NoDirectory(PathBuf),
    /// It cannot be read and written by this user, or is no file.
    #[error("the store {} cannot be opened for writing: {error}\n{}", .path.display(), ELSEWHERE)]
    NotWritable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The file is something else.
    #[error(
        "{} is not a store of Taxiway: {found}\nNothing was changed in it. {}",
        .path.display(), ELSEWHERE
    )]
    NotAStore {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        found: String,
    },
    /// Another process has it.
    #[error(
        "the store {} is in use by {}\nEach Taxiway needs a file of its own: end the other one, or \
         name another file with store.path.",
        .path.display(), name_holder(*.pid)
    )]
    Locked {
        /// The file.
        path: PathBuf,
        /// The other process, if the system tells.
        pid: Option<u32>,
    },
    /// A later release has written it.
    #[error(
        "the store {} was written by a newer Taxiway (schema {found}, this one knows {known})\nRun \
         that release again, or {}",
        .path.display(), START_ANEW
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: String,
        /// The newest that is known here.
        known: u32,
    },
    /// It is damaged.
    #[error("the store {} is damaged: {what}\nPut back a copy of it, or {}", .path.display(), START_ANEW)]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// The system refuses for another reason.
    #[error("the store {} cannot be opened: {error}\n{}", .path.display(), ELSEWHERE)]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

const ELSEWHERE: &str = "Name a file that Taxiway may write with store.path, or keep nothing with \
                         store.kind = \"memory\".";

/// What is lost, so that nobody is afraid of doing it.
const START_ANEW: &str = "move the file away and start again: an empty one is made. Lost are \
                          operators' states (drain, maint, weights) and which server had a session \
                          open; nothing on the servers' disks: where sessions live is read from \
                          them again.";

impl StoreError {
    /// Whether the configuration or what it names has to change, rather than that something broke.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::NoDirectory(_) | Self::NotWritable { .. } | Self::NotAStore { .. } => true,
            Self::Locked { .. } | Self::Newer { .. } | Self::Damaged { .. } | Self::Io { .. } => {
                false
            }
        }
    }
}

fn name_holder(pid: Option<u32>) -> String {
    pid.map_or_else(
        || "another process".to_owned(),
        |pid| format!("another process (pid {pid})"),
    )
}
