//! Log lines to standard error, written by a thread of their own.
//!
//! Whoever logs never waits: a line goes into a bounded queue, and if whoever reads standard error
//! is too slow, lines are dropped and counted. Must not be used for data (commands print to
//! standard output themselves).

use std::{
    fmt,
    io::{self, Write},
    sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    thread,
    time::{Duration, Instant},
};

use prometheus::IntCounter;
use tracing::{Level, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    Layer, Registry,
    filter::Targets,
    fmt::MakeWriter,
    layer::SubscriberExt,
    registry::LookupSpan,
    reload,
    util::{SubscriberInitExt, TryInitError},
};

use super::metrics::{loose_counter, table};
use crate::core::event::LogFormat;

/// Most lines that wait for standard error.
const QUEUE: usize = 4096;

/// Longest line, in bytes; the rest of a longer one is cut off. With [`QUEUE`]: 64 MiB at most.
const LINE_LIMIT: usize = 16 * 1024;

/// Why logging could not be started.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The writer's thread could not be started.
    #[error("cannot start the thread that writes the log")]
    Thread(#[source] io::Error),
    /// This process has a log already.
    #[error("the log is already set up")]
    Twice(#[source] TryInitError),
}

/// The running log: its level can be changed, its losses read, its end awaited.
#[derive(Clone)]
pub struct LogHandle {
    filter: reload::Handle<Targets, Registry>,
    queue: Queue,
}

/// Starts the log of this process with `log.level` and `log.format`. Once per process.
pub fn init(level: Level, format: LogFormat) -> Result<LogHandle, InitError> {
    let queue = Queue::start(io::stderr()).map_err(InitError::Thread)?;
    let (filter, handle) = reload::Layer::new(targets(level));
    tracing_subscriber::registry()
        .with(filter)
        .with(lines(format, queue.clone()))
        .try_init()
        .map_err(InitError::Twice)?;
    Ok(LogHandle {
        filter: handle,
        queue,
    })
}

impl LogHandle {
    /// Changes `log.level` (a reload).
    pub fn set_level(&self, level: Level) {
        // Fails only if the subscriber is gone, and it lives as long as the process.
        let _ = self.filter.reload(targets(level));
    }

    /// How many lines were lost so far.
    pub fn dropped_lines(&self) -> u64 {
        self.queue.dropped.get()
    }

    /// Waits until everything logged so far is written, at most `patience`.
    pub fn flush(&self, patience: Duration) {
        self.queue.flush(patience);
    }

    pub(super) fn dropped_counter(&self) -> &IntCounter {
        &self.queue.dropped
    }
}

impl fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogHandle")
            .field("dropped", &self.dropped_lines())
            .finish_non_exhaustive()
    }
}

/// Taxiway's own lines at the level; those of its libraries only if something is wrong.
fn targets(level: Level) -> Targets {
    let others = LevelFilter::from_level(level.min(Level::WARN));
    Targets::new()
        .with_default(others)
        .with_target("taxiway", level)
}

/// The layer that turns events into lines.
fn lines<S, W>(format: LogFormat, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(writer);
    match format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .boxed(),
    }
}

enum Entry {
    Line(Vec<u8>),
    /// Everything before it has been written once this is answered.
    Mark(SyncSender<()>),
}

/// The near end of the writer's queue.
#[derive(Clone)]
struct Queue {
    entries: SyncSender<Entry>,
    dropped: IntCounter,
}

impl Queue {
    fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let (entries, waiting) = sync_channel(QUEUE);
        let dropped = loose_counter(&table::LOG_LINES_DROPPED);
        let lost = dropped.clone();
        thread::Builder::new()
            .name("taxiway-log".into())
            .spawn(move || write_all(out, &waiting, &lost))?;
        Ok(Self { entries, dropped })
    }

    fn flush(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let (done, written) = sync_channel(1);
        let mut mark = Entry::Mark(done);
        // Too slow a reader of standard error must not keep the process from ending.
        loop {
            mark = match self.entries.try_send(mark) {
                Ok(()) => break,
                Err(TrySendError::Disconnected(_)) => return,
                Err(TrySendError::Full(mark)) if Instant::now() < deadline => mark,
                Err(TrySendError::Full(_)) => return,
            };
            thread::sleep(Duration::from_millis(1));
        }
        let _ = written.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

fn write_all(mut out: impl Write, waiting: &Receiver<Entry>, lost: &IntCounter) {
    while let Ok(entry) = waiting.recv() {
        match entry {
            Entry::Line(line) => {
                if out.write_all(&line).is_err() {
                    lost.inc();
                }
            }
            Entry::Mark(done) => {
                let _ = out.flush();
                let _ = done.send(());
            }
        }
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = &'a Queue;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

impl Write for &Queue {
    /// The formatter writes each line with one call.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let kept = if line.len() > LINE_LIMIT {
            let mut kept = line[..LINE_LIMIT].to_vec();
            kept.push(b'\n');
            kept
        } else {
            line.to_vec()
        };
        if self.entries.try_send(Entry::Line(kept)).is_err() {
            self.dropped.inc();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests;
