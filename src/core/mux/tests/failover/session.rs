//! One session: what a process has of it in memory, and what is on disk.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// One line of a session's log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Line {
    pub(super) pid: u64,
    pub(super) what: What,
    /// Written by a process that was given up, before it was cleaned.
    pub(super) stale: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum What {
    /// An empty history begins.
    Start,
    User(String),
    Requested(String),
    /// A tool is answered, and what came of it is in the history.
    Completed(String),
    /// A tool is answered.
    Answered(String),
    /// What came of that.
    Ended(String),
    Answer(String),
    Idle,
    Mode(String),
    Shutdown,
}

/// The next thing that a turn does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    Start,
    Delta,
    /// Asks the clients for so many tools.
    Tools(u64),
    Message,
    End,
}

#[derive(Debug)]
pub(super) struct Turn {
    pub(super) number: u64,
    pub(super) message: String,
    pub(super) stages: VecDeque<Stage>,
    /// Tools that it waits for.
    pub(super) waiting: BTreeSet<String>,
    /// Calls that are answered at its end: connection and id.
    pub(super) owed: Vec<(u64, String)>,
}

/// A session that a process has open.
#[derive(Debug, Default)]
pub(super) struct Open {
    /// Connections that are attached, with the tool that each has declared.
    pub(super) attached: BTreeMap<u64, String>,
    /// It has had a turn, so there is, or will be, a log.
    pub(super) logged: bool,
    pub(super) unflushed: Vec<What>,
    /// Counts batches, so that a timer of an earlier one does nothing.
    pub(super) batch: u64,
    pub(super) turn: Option<Turn>,
    pub(super) queue: VecDeque<(String, Option<(u64, String)>)>,
    /// What the turn waited for that Taxiway itself has aborted last; over which connection, and when.
    pub(super) aborted: Option<(u64, u64, BTreeSet<String>)>,
    /// When it was called last.
    pub(super) used: u64,
    /// What is lost with the process, and restored by the client's own call.
    pub(super) approve: Option<String>,
}

/// What a turn waits for, instead of a tool, that is answered on disk and not ended there.
fn half(request: &str) -> String {
    format!("the end of {request}")
}

/// What a process makes of a log when it opens the session: the tools that its last turn waits for,
/// and that turn's message. A turn that waits for none does not go on.
pub(super) fn survivor(lines: &[Line]) -> Option<(String, BTreeSet<String>)> {
    let mut open: Option<(String, BTreeSet<String>)> = None;
    for line in lines {
        match &line.what {
            What::Start | What::Idle => open = None,
            What::User(message) => open = Some((message.clone(), BTreeSet::new())),
            What::Requested(request) => {
                if let Some((_, waiting)) = &mut open {
                    waiting.insert(request.clone());
                }
            }
            What::Completed(request) => {
                if let Some((_, waiting)) = &mut open {
                    waiting.remove(request);
                }
            }
            // By experiment: nobody can answer it any more, and the turn waits.
            What::Answered(request) => {
                if let Some((_, waiting)) = &mut open
                    && waiting.remove(request)
                {
                    waiting.insert(half(request));
                }
            }
            What::Ended(request) => {
                if let Some((_, waiting)) = &mut open {
                    waiting.remove(&half(request));
                }
            }
            // By experiment: what is pending outlives the end of its session, too.
            What::Answer(_) | What::Mode(_) | What::Shutdown => {}
        }
    }
    open.filter(|(_, waiting)| !waiting.is_empty())
}
