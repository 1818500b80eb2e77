//! How much of one connection's errors is logged. The counters count them all.

use std::time::{Duration, Instant};

/// Errors of one connection that get a log line of their own within [`ERROR_SPAN`]; the others are
/// only counted.
const ERROR_LINES: u32 = 100;

/// See [`ERROR_LINES`].
const ERROR_SPAN: Duration = Duration::from_secs(60);

/// Which errors of a connection are written to the log: a client may make them as fast as it can
/// write.
#[derive(Debug, Default)]
pub(super) struct ErrorLines {
    since: Option<Instant>,
    written: u32,
}

impl ErrorLines {
    /// Whether one more may be written.
    pub(super) fn admit(&mut self, now: Instant) -> bool {
        let over = |since| now.saturating_duration_since(since) >= ERROR_SPAN;
        if self.since.is_none_or(over) {
            self.since = Some(now);
            self.written = 0;
        }
        self.written = self.written.saturating_add(1);
        self.written <= ERROR_LINES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_errors_is_written_in_part_and_anew_after_a_while() {
        let start = Instant::now();
        let mut lines = ErrorLines::default();
        let admitted = |lines: &mut ErrorLines, now| (0..1000).filter(|_| lines.admit(now)).count();
        assert_eq!(admitted(&mut lines, start), 100);
        assert_eq!(admitted(&mut lines, start + ERROR_SPAN / 2), 0);
        assert_eq!(admitted(&mut lines, start + ERROR_SPAN), 100);
    }
}
