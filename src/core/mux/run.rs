//! Runs: frames of a backend, side by side in what was read, that are events of attached sessions
//! and concern nobody but the client. Nearly all bytes there are pass here: as one range, and for a
//! few dozen instructions a frame.
//!
//! What holds for a session is looked at once, when the run comes to it, since nothing in a run
//! changes it. Whatever needs more than a count ends the run, and goes through `backend`.

use std::time::Instant;

use super::{
    Mux,
    outbox::{Dest, Outbox},
    session::{Entry, Rest},
    tells::Tells,
    upstream::{Phase, SlotId, Upstream},
};
use crate::core::{
    event::{Direction, FrameKind},
    scan,
};

/// The part of a run that is of one session.
#[derive(Default)]
struct Stretch {
    events: u64,
    /// Of their bodies.
    bytes: usize,
    /// With their headers.
    size: usize,
}

impl Mux {
    /// Passes the run at `start` of `input` to the client. Returns where it ends.
    pub(super) fn pass_run(
        &mut self,
        now: Instant,
        slot: SlotId,
        input: &[u8],
        start: usize,
        out: &mut Outbox,
    ) -> usize {
        let Some(upstream) = self.upstreams.get(slot) else {
            return start;
        };
        let fresh = upstream.phase == Phase::Ready && upstream.cutter.is_between_frames();
        if !fresh || !self.is_heard() {
            return start;
        }
        let (mut key, mut done, mut events) = (upstream.recent, start, 0);
        while let Some(upstream) = self.upstreams.get(slot) {
            let rest = &input[done..];
            let entry = self.entries.get(key).filter(|entry| is_open(entry, slot));
            let stretch = entry.map_or_else(Stretch::default, |e| stretch(upstream, e, rest));
            let rest = &rest[stretch.size..];
            let next = self.session_of_event(upstream, rest);
            if stretch.events > 0 {
                done += stretch.size;
                events += stretch.events;
                self.count_events(now, key, stretch.events, stretch.bytes);
            }
            // The same: more than an event to be counted.
            match next.filter(|next| *next != key) {
                Some(next) => key = next,
                None => break,
            }
        }
        if events > 0 {
            out.pass(Dest::Client, start..done);
            let (to, kind) = (Direction::BackendToClient, FrameKind::Notification);
            self.tally.add_many(to, kind, events, done - start);
            if let Some(upstream) = self.upstreams.get_mut(slot) {
                upstream.recent = key;
            }
        }
        done
    }

    /// The key of the session that the event at the start of `rest` is of.
    fn session_of_event(&self, upstream: &Upstream, rest: &[u8]) -> Option<usize> {
        let (header, end) = upstream.cutter.plain(rest)?;
        let session = scan::event_session(&rest[header..end])?;
        self.by_session.get(session).copied()
    }
}

/// Whether events of a session pass to the client for being events of it.
pub(super) fn is_open(entry: &Entry, slot: SlotId) -> bool {
    entry.here_at() == Some(slot)
        && entry.reopening.is_none()
        && entry.taking.is_none()
        && entry.rest == Rest::Nothing
}

/// The events at the start of `input` that are of one session and tell nothing.
fn stretch(upstream: &Upstream, entry: &Entry, input: &[u8]) -> Stretch {
    let mut stretch = Stretch::default();
    let Some(session) = scan::Plain::new(entry.id.as_str()) else {
        return stretch;
    };
    let mut rest = input;
    let mut alike = scan::Alike::default();
    while let Some((header, end)) = upstream.cutter.plain(rest) {
        let body = &rest[header..end];
        // Events come in runs of one type, so what stands for the last one stands for most.
        if !alike.begins(body) {
            match scan::event_of(body, session) {
                Some((kind, like)) if Tells::by(kind) == Tells::Nothing => alike = like,
                Some(_) | None => break,
            }
        }
        stretch.events += 1;
        stretch.bytes += end - header;
        rest = &rest[end..];
    }
    stretch.size = input.len() - rest.len();
    stretch
}
