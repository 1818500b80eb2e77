//! Which of many like things are told one by one, and how many are told together: strangers may
//! cause them as fast as they can connect. Tells nothing itself; whoever does counts every one.

use std::time::{Duration, Instant};

/// Those told one by one within [`SPAN`].
const ONE_BY_ONE: u32 = 20;

/// How long some are told one by one; and how often the others are told together.
pub const SPAN: Duration = Duration::from_secs(10);

/// What becomes of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Telling {
    /// It is told.
    Now,
    /// It is told with others, at that time: the first of them, so somebody has to see to it.
    Due(Instant),
    /// It is told with those.
    Together,
}

/// A kind of thing that may come in floods.
#[derive(Debug, Default)]
pub struct Flood {
    since: Option<Instant>,
    told: u32,
    left: u64,
}

impl Flood {
    /// One more.
    pub fn note(&mut self, now: Instant) -> Telling {
        let is_over = |since| now.saturating_duration_since(since) >= SPAN;
        // What is left from the span before is told when that is due, however late.
        let since = match self.since {
            Some(since) if self.left > 0 || !is_over(since) => since,
            Some(_) | None => {
                self.since = Some(now);
                self.told = 0;
                now
            }
        };
        if self.told < ONE_BY_ONE {
            self.told += 1;
            return Telling::Now;
        }
        self.left = self.left.saturating_add(1);
        match self.left {
            1 => Telling::Due(since + SPAN),
            _ => Telling::Together,
        }
    }

    /// How many are to be told together now; a new span begins. None if there are none.
    pub fn rest(&mut self) -> Option<u64> {
        let left = std::mem::take(&mut self.left);
        (left > 0).then(|| {
            self.since = None;
            left
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Notes so many at once: how many are told one by one, and when the others are due.
    fn come(flood: &mut Flood, now: Instant, count: u32) -> (u32, Option<Instant>) {
        let mut told = 0;
        let mut due = None;
        for _ in 0..count {
            match flood.note(now) {
                Telling::Now => told += 1,
                Telling::Due(at) => {
                    assert_eq!(due.replace(at), None, "one is enough");
                }
                Telling::Together => {}
            }
        }
        (told, due)
    }

    #[test]
    fn a_flood_is_told_in_part_and_its_rest_in_one() {
        let start = Instant::now();
        let mut flood = Flood::default();
        assert_eq!(come(&mut flood, start, 20), (20, None));
        assert_eq!(flood.rest(), None, "nothing was left out");
        assert_eq!(
            come(&mut flood, start + SPAN / 2, 1000),
            (0, Some(start + SPAN))
        );
        // Late, and still of that span.
        assert_eq!(come(&mut flood, start + SPAN * 2, 5), (0, None));
        assert_eq!(flood.rest(), Some(1005));
        assert_eq!(flood.rest(), None);
        let again = start + SPAN * 2;
        assert_eq!(come(&mut flood, again, 21), (20, Some(again + SPAN)));
        assert_eq!(flood.rest(), Some(1));
    }

    #[test]
    fn few_at_a_time_are_all_told() {
        let mut now = Instant::now();
        let mut flood = Flood::default();
        for _ in 0..50 {
            assert_eq!(come(&mut flood, now, 20), (20, None));
            assert_eq!(flood.rest(), None);
            now += SPAN;
        }
    }

    #[test]
    fn an_hour_of_flood_is_some_lines() {
        let start = Instant::now();
        let (mut flood, mut lines, mut all) = (Flood::default(), 0, 0);
        let mut due = None;
        for millisecond in 0..3_600_000 {
            let now = start + Duration::from_millis(millisecond);
            if due.is_some_and(|at| now >= at) {
                all += flood.rest().expect("it was due");
                lines += 1;
                due = None;
            }
            match flood.note(now) {
                Telling::Now => {
                    lines += 1;
                    all += 1;
                }
                Telling::Due(at) => due = Some(at),
                Telling::Together => {}
            }
        }
        all += flood.rest().unwrap_or(0);
        assert_eq!(all, 3_600_000, "every one is in one line");
        assert!(lines <= 361 * 21, "{lines}");
    }
}
