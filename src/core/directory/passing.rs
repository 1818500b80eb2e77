//! What is true of few sessions at a time: those that are open, or were a moment ago. The others
//! cost a pointer.

use std::{
    ops::{Deref, DerefMut},
    time::Instant,
};

use super::Holder;
use crate::core::id::{BackendName, ConnectionId};

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Moment {
    /// The backend that has it open, and the client connections that hold it. There is no owner
    /// without holders, unless it is being moved; holders without an owner wait for the session to be
    /// opened again.
    pub(super) owner: Option<BackendName>,
    pub(super) holders: Vec<Holder>,
    /// All holders left while this backend was silent: it may have it open until it says no, or
    /// is gone.
    pub(super) maybe_open_at: Option<BackendName>,
    /// The connection whose turn is running: the one that reports it.
    pub(super) turn: Option<ConnectionId>,
    /// Stands for the event that ended the turn reported last, for those that hold it since then.
    pub(super) reported: Option<u64>,
    pub(super) deleted_at: Option<Instant>,
    /// It is being closed where it is, to be opened elsewhere or later: nobody may open it now.
    pub(super) moving: bool,
}

static NOTHING: Moment = Moment {
    owner: None,
    holders: Vec::new(),
    maybe_open_at: None,
    turn: None,
    reported: None,
    deleted_at: None,
    moving: false,
};

/// Reads as a [`Moment`] of which nothing is true; the first change makes a real one.
#[derive(Debug, Default)]
pub(super) struct Passing(Option<Box<Moment>>);

impl Passing {
    /// Gives up what says nothing any more.
    pub(super) fn settle(&mut self) {
        if let Some(moment) = &mut self.0 {
            if moment.holders.is_empty() && !moment.moving {
                // Who comes next has not heard of any turn.
                moment.reported = None;
            }
            if **moment == NOTHING {
                self.0 = None;
            }
        }
    }

    /// Whether nothing is there that says nothing.
    pub(super) fn is_settled(&self) -> bool {
        self.0.as_deref() != Some(&NOTHING)
    }
}

impl Deref for Passing {
    type Target = Moment;

    fn deref(&self) -> &Moment {
        self.0.as_deref().unwrap_or(&NOTHING)
    }
}

impl DerefMut for Passing {
    fn deref_mut(&mut self) -> &mut Moment {
        self.0.get_or_insert_with(|| {
            Box::new(Moment {
                owner: None,
                holders: Vec::new(),
                maybe_open_at: None,
                turn: None,
                reported: None,
                deleted_at: None,
                moving: false,
            })
        })
    }
}
