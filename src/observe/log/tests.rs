//! The log under readers that are stuck, gone or slow, and what a line may look like.

use std::sync::{Arc, Condvar, Mutex};

use super::*;

/// What a closure logs at a level, as the log would write it.
pub(crate) fn captured(format: LogFormat, level: Level, act: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Text(Arc<Mutex<Vec<u8>>>);
    impl Write for Text {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(line);
            Ok(line.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let text = Text::default();
    let queue = Queue::start(text.clone()).unwrap();
    let subscriber = tracing_subscriber::registry()
        .with(targets(level))
        .with(lines(format, queue.clone()));
    tracing::subscriber::with_default(subscriber, act);
    queue.flush(Duration::from_secs(60));
    let bytes = text.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

/// A reader that reads nothing until it is told to.
#[derive(Clone, Default)]
struct Stuck(Arc<(Mutex<Stand>, Condvar)>);

#[derive(Default)]
struct Stand {
    writing: bool,
    open: bool,
    lines: usize,
}

impl Stuck {
    fn wait_until_writing(&self) {
        let (stand, changed) = &*self.0;
        drop(
            changed
                .wait_while(stand.lock().unwrap(), |s| !s.writing)
                .unwrap(),
        );
    }

    fn open(&self) {
        self.0.0.lock().unwrap().open = true;
        self.0.1.notify_all();
    }
}

impl Write for Stuck {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let (stand, changed) = &*self.0;
        let mut stand = stand.lock().unwrap();
        stand.writing = true;
        changed.notify_all();
        stand = changed.wait_while(stand, |s| !s.open).unwrap();
        stand.lines += 1;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_stuck_reader_costs_lines_and_no_time() {
    let reader = Stuck::default();
    let queue = Queue::start(reader.clone()).unwrap();
    (&queue).write_all(b"first\n").unwrap();
    reader.wait_until_writing();
    // The writer holds one line; the queue takes its fill; the rest is lost, and nobody waits.
    for _ in 0..QUEUE + 7 {
        (&queue).write_all(b"more\n").unwrap();
    }
    assert_eq!(queue.dropped.get(), 7);
    queue.flush(Duration::ZERO);
    reader.open();
    queue.flush(Duration::from_secs(60));
    assert_eq!(reader.0.0.lock().unwrap().lines, 1 + QUEUE);
}

#[test]
fn a_reader_that_is_gone_is_counted() {
    struct Gone;
    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let queue = Queue::start(Gone).unwrap();
    (&queue).write_all(b"line\n").unwrap();
    queue.flush(Duration::from_secs(60));
    assert_eq!(queue.dropped.get(), 1);
}

#[test]
fn long_lines_are_cut() {
    let long = "x".repeat(3 * LINE_LIMIT);
    let text = captured(LogFormat::Text, Level::INFO, || tracing::info!(long));
    assert_eq!(text.len(), LINE_LIMIT + 1);
    assert!(text.ends_with("x\n"));
}

#[test]
fn levels_hold_and_libraries_are_quieter() {
    let text = captured(LogFormat::Text, Level::DEBUG, || {
        tracing::debug!(target: "taxiway", "ours");
        tracing::debug!(target: "taxiway::proxy", "ours too");
        tracing::trace!(target: "taxiway", "too fine");
        tracing::info!(target: "hyper", "chatter");
        tracing::warn!(target: "hyper", "trouble");
    });
    let messages: Vec<_> = text
        .lines()
        .filter_map(|l| l.split_once(": ").map(|x| x.1))
        .collect();
    assert_eq!(messages, ["ours", "ours too", "trouble"]);
    let text = captured(LogFormat::Text, Level::ERROR, || {
        tracing::warn!(target: "hyper", "trouble");
        tracing::error!(target: "taxiway", "bad");
    });
    assert!(text.contains("bad") && !text.contains("trouble"), "{text}");
}

#[test]
fn the_level_changes_while_it_runs() {
    let (filter, handle) = reload::Layer::new(targets(Level::WARN));
    let queue = Queue::start(io::sink()).unwrap();
    let log = LogHandle {
        filter: handle,
        queue: queue.clone(),
    };
    let subscriber = tracing_subscriber::registry()
        .with(filter)
        .with(lines(LogFormat::Text, queue));
    tracing::subscriber::with_default(subscriber, || {
        assert!(!tracing::enabled!(target: "taxiway", Level::INFO));
        log.set_level(Level::INFO);
        assert!(tracing::enabled!(target: "taxiway", Level::INFO));
        assert!(!tracing::enabled!(target: "taxiway", Level::DEBUG));
    });
}
