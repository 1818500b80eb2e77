//! The thread that writes: takes all changes that wait into one transaction, again and again.
//!
//! It alone touches the file, so nothing else ever waits for the disk but who asks to. When writing
//! fails it says so once, tries again with growing pauses, and opens the file anew each time: the
//! database gives up an open file after an error.

use std::{
    collections::{BTreeSet, HashSet},
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use ahash::RandomState;
use tokio::sync::watch;

use super::{
    file::{Medium, StoreFile, Tables, WriteError},
    queue::{Batch, Health, Queue},
    row::{OperatorRow, SessionRow},
};
use crate::{
    core::{
        directory::Directory,
        event::Event,
        id::{BackendName, SessionId},
        snapshot::Mode,
    },
    store::{Options, Report, Wishes},
};

/// Changes that nobody waits for are gathered for so long, to be written together.
const GATHER: Duration = Duration::from_millis(5);

/// Between two attempts to write.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How many values are read under one lock of the directory.
const PAGE: usize = 256;

/// Handle of the thread. Dropping it ends the thread, once it has written what waits; a disk that
/// hangs is not waited for longer than by anybody else.
#[derive(Debug)]
pub(in crate::store) struct Writer {
    line: Arc<Line>,
}

/// How far the thread is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Progress {
    done: u64,
    health: Health,
}

/// What the thread and its customers share.
struct Line {
    queue: Mutex<Queue>,
    /// Something waits, or the end has come.
    wake: Condvar,
    /// Follows the queue, for those who cannot block.
    progress: watch::Sender<Progress>,
    /// How long anybody waits for the disk.
    patience: Duration,
    report: Report,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line").finish_non_exhaustive()
    }
}

/// What the thread is started with.
pub(super) struct Task {
    /// None if it is to be opened.
    pub(super) file: Option<StoreFile>,
    pub(super) path: PathBuf,
    pub(super) medium: Medium,
    pub(super) directory: Arc<Mutex<Directory>>,
    pub(super) wishes: Wishes,
    pub(super) options: Options,
}

/// Fewer changed sessions than this are always remembered one by one.
const LEAST_BOUND: usize = 10_000;

impl Writer {
    pub(super) fn start(task: Task) -> std::io::Result<Self> {
        let bound = task.options.limit.saturating_mul(2).max(LEAST_BOUND);
        let line = Arc::new(Line {
            queue: Mutex::new(Queue::new(bound)),
            wake: Condvar::new(),
            progress: watch::Sender::new(Progress {
                done: 0,
                health: Health::Up,
            }),
            patience: task.medium.patience,
            report: task.options.report,
        });
        let mut thread = Thread {
            line: line.clone(),
            file: task.file,
            path: task.path,
            mode: task.options.mode,
            medium: task.medium,
            directory: task.directory,
            wishes: task.wishes,
        };
        std::thread::Builder::new()
            .name("taxiway-store".to_owned())
            .spawn(move || thread.run())?;
        Ok(Self { line })
    }

    /// These have changed; call it under the directory's lock. Gives what to wait for until what
    /// `urgent` is now is on the disk.
    pub(in crate::store) fn push(
        &self,
        dirty: Vec<SessionId>,
        urgent: Option<&SessionId>,
    ) -> Option<u64> {
        let mut queue = self.line.queue();
        queue.push(dirty);
        let batch = urgent.and_then(|session| queue.wait_for(session));
        drop(queue);
        self.line.wake.notify_all();
        batch
    }

    /// All sessions are to be written anew.
    pub(super) fn push_everything(&self) {
        self.line.queue().push_everything();
        self.line.wake.notify_all();
    }

    /// An operator wants something else of `backend`. Gives what to wait for until it is on disk.
    pub(in crate::store) fn push_operator(&self, backend: BackendName) -> u64 {
        let batch = self.line.queue().push_operator(backend);
        self.line.wake.notify_all();
        batch
    }

    /// Returns once that batch is on the disk, or it is known that it cannot be for now.
    pub(in crate::store) async fn written(&self, batch: u64) {
        let mut progress = self.line.progress.subscribe();
        let there = progress.wait_for(|now| now.done >= batch || now.health != Health::Up);
        if tokio::time::timeout(self.line.patience, there)
            .await
            .is_err()
        {
            self.line.stalled(batch);
        }
    }

    /// The same for a thread that may block.
    pub(in crate::store) fn block_until_written(&self, batch: u64) {
        let end = Instant::now() + self.line.patience;
        let mut queue = self.line.queue();
        while queue.done < batch && queue.health == Health::Up {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(queue);
                return self.line.stalled(batch);
            }
            queue = self.line.wait(queue, Some(left));
        }
    }

    /// Whether what is claimed outlives the process.
    pub(in crate::store) fn is_up(&self) -> bool {
        self.line.queue().health == Health::Up
    }

    /// How many sessions are not on the disk as they are.
    pub(in crate::store) fn waiting(&self) -> usize {
        self.line.queue().len()
    }

    /// Writes what waits and gives the file up. Returns when that is done.
    pub(in crate::store) async fn close(&self) {
        self.line.close();
        let mut progress = self.line.progress.subscribe();
        // The sender is ours, so this ends by the thread's end alone.
        let _ended = progress.wait_for(|now| now.health == Health::Closed).await;
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.line.close();
        let end = Instant::now() + self.line.patience;
        let mut queue = self.line.queue();
        while queue.health != Health::Closed {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            queue = self.line.wait(queue, Some(left));
        }
    }
}

impl Line {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Whole between two calls, as the directory.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change, or so long.
    fn wait<'q>(
        &self,
        queue: MutexGuard<'q, Queue>,
        within: Option<Duration>,
    ) -> MutexGuard<'q, Queue> {
        match within {
            None => self
                .wake
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner),
            Some(within) => {
                self.wake
                    .wait_timeout(queue, within)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        }
    }

    fn close(&self) {
        self.queue().closing = true;
        self.wake.notify_all();
    }

    /// Tells everybody who waits where the queue is.
    fn tell(&self, queue: MutexGuard<'_, Queue>) {
        let now = Progress {
            done: queue.done,
            health: queue.health,
        };
        self.progress.send_replace(now);
        drop(queue);
        self.wake.notify_all();
    }

    /// Somebody has waited for that batch in vain.
    fn stalled(&self, batch: u64) {
        let mut queue = self.queue();
        if queue.done >= batch || queue.health != Health::Up {
            return;
        }
        queue.health = Health::Down;
        let waiting = queue.len();
        drop(queue);
        (self.report)(Event::StoreFailed {
            op: "stall",
            reason: format!("the disk has taken nothing for {:?}", self.patience).into(),
            waiting,
            goes_down: true,
        });
        self.tell(self.queue());
    }
}

struct Thread {
    line: Arc<Line>,
    /// None after an error.
    file: Option<StoreFile>,
    path: PathBuf,
    mode: Mode,
    medium: Medium,
    directory: Arc<Mutex<Directory>>,
    wishes: Wishes,
}

impl Thread {
    fn run(&mut self) {
        let mut pause = FIRST_PAUSE;
        while let Some(batch) = self.next() {
            match self.write(&batch) {
                Ok(()) => {
                    pause = FIRST_PAUSE;
                    let mut queue = self.line.queue();
                    let is_back = queue.written(batch.number);
                    self.line.tell(queue);
                    if is_back {
                        (self.line.report)(Event::StoreBack);
                    }
                }
                Err(error) => {
                    // It takes no more writes after an error, and another attempt needs the lock.
                    self.file = None;
                    let mut queue = self.line.queue();
                    let goes_down = queue.failed(batch);
                    let (closing, waiting) = (queue.closing, queue.len());
                    drop(queue);
                    // Said before anybody goes on without it.
                    (self.line.report)(Event::StoreFailed {
                        op: error.op(),
                        reason: error.to_string().into(),
                        waiting,
                        goes_down: goes_down || closing,
                    });
                    self.line.tell(self.line.queue());
                    if closing {
                        break;
                    }
                    self.rest(pause);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
        // Gives the lock up before anybody hears that it is.
        self.file = None;
        let mut queue = self.line.queue();
        queue.close();
        self.line.tell(queue);
    }

    /// Waits for something to write; none at the end.
    fn next(&self) -> Option<Batch> {
        let mut queue = self.line.queue();
        while queue.is_empty() {
            if queue.closing {
                return None;
            }
            queue = self.line.wait(queue, None);
        }
        let end = Instant::now() + GATHER;
        while queue.is_patient() && !queue.closing {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            queue = self.line.wait(queue, Some(left));
        }
        Some(queue.take())
    }

    fn rest(&self, pause: Duration) {
        let end = Instant::now() + pause;
        let mut queue = self.line.queue();
        while !queue.closing {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            queue = self.line.wait(queue, Some(left));
        }
    }

    fn write(&mut self, batch: &Batch) -> Result<(), WriteError> {
        let mut everything = batch.everything;
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                let file = StoreFile::open(&self.path, self.mode, &self.medium)?;
                everything |= file.is_new || file.mode != self.mode;
                file
            }
        };
        let operators: Vec<_> = {
            let wishes = self.wishes.lock().unwrap_or_else(PoisonError::into_inner);
            let all = wishes.keys().filter(|_| everything);
            let names: BTreeSet<_> = all.chain(&batch.operators).cloned().collect();
            let row = |name: &_| wishes.get(name).and_then(OperatorRow::of);
            names.into_iter().map(|n| (row(&n), n)).collect()
        };
        file.write(|tables| {
            for (row, backend) in &operators {
                tables.operator(backend, row.as_ref())?;
            }
            if everything {
                tables.set_mode(self.mode)?;
                let sessions = self.directory().ids();
                let known: HashSet<&str, RandomState> =
                    sessions.iter().map(SessionId::as_str).collect();
                tables.retain(|id| known.contains(id))?;
                self.put(tables, &sessions)?;
            }
            self.put(tables, &batch.sessions)
        })?;
        self.file = Some(file);
        Ok(())
    }

    /// Writes what these are now.
    fn put(&self, tables: &mut Tables<'_>, sessions: &[SessionId]) -> Result<(), redb::Error> {
        for page in sessions.chunks(PAGE) {
            let rows: Vec<_> = {
                let (now, wall) = (Instant::now(), SystemTime::now());
                let directory = self.directory();
                page.iter()
                    .map(|id| {
                        let saved = directory.saved(now, id.as_str());
                        (id, saved.map(|saved| SessionRow::of(&saved, wall)))
                    })
                    .collect()
            };
            for (id, row) in rows {
                tables.session(id, row.as_ref())?;
            }
        }
        Ok(())
    }

    fn directory(&self) -> MutexGuard<'_, Directory> {
        self.directory
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
