//! What is known of a session on its way back (see [`super::reopen`]).

use std::time::Instant;

use crate::core::id::BackendName;

/// A session on its way back.
#[derive(Debug)]
pub(super) struct Reopening {
    pub(super) since: Instant,
    pub(super) cause: Cause,
    /// The backend that had it.
    pub(super) from: BackendName,
    pub(super) stage: Stage,
    pub(super) failures: u32,
    /// An answer that its turn has had may be half on disk.
    pub(super) torn: bool,
    pub(super) progress: Progress,
}

/// How far it is with the process that opens it.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// It left nothing on disk, and was created again.
    pub(super) created: bool,
    /// How many of the turn's answers were given again.
    pub(super) answered: usize,
    /// One of these was waited for still.
    pub(super) wanted: bool,
    /// Nothing runs there.
    pub(super) idle: bool,
    /// How many of [`Kept::repeats`](super::kept::Kept) were made.
    pub(super) repeated: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// The question with this ticket is out.
    Locating(u64),
    /// A call of ours is.
    Calling,
    /// It is still open, and about to be closed: nothing of it is under way.
    Frozen,
    /// It has failed; tried again then.
    Pausing(Instant),
}

/// A call of ours on the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Resume,
    Create,
    /// An answer that the turn has had is given again, in case it was not on disk.
    Answer,
    /// Does the turn that waits for the client go on?
    IsProcessing,
    Abort,
    Repeat,
}

/// Why a session is opened again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cause {
    /// Its upstream connection has ended.
    Connection,
    /// Its backend has closed it in silence.
    Closed,
    /// It was moved on purpose.
    Moved,
}

impl Reopening {
    pub(super) fn new(since: Instant, cause: Cause, from: &BackendName, stage: Stage) -> Self {
        Self {
            since,
            cause,
            from: from.clone(),
            stage,
            failures: 0,
            torn: false,
            progress: Progress::default(),
        }
    }

    pub(super) fn is_calling(&self) -> bool {
        self.stage == Stage::Calling
    }

    /// Whether its backend may still speak of it.
    pub(super) fn is_here(&self) -> bool {
        matches!(self.stage, Stage::Calling | Stage::Frozen)
    }

    pub(super) fn asks(&self) -> Option<u64> {
        match self.stage {
            Stage::Locating(ticket) => Some(ticket),
            Stage::Calling | Stage::Frozen | Stage::Pausing(_) => None,
        }
    }
}
