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
    upstream::{Phase, SlotId},
};
use crate::core::{
    event::{Direction, FrameKind},
    frame::PlainFrames,
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
        let frames = upstream.cutter.plain();
        let (mut key, mut done, mut events) = (upstream.recent, start, 0);
        loop {
            let rest = &input[done..];
            let entry = self.entries.get(key);
            let open = entry.filter(|entry| is_open(entry, slot));
            let stretch = open.map_or_else(Stretch::default, |e| stretch(frames, e, rest));
            let next = session_of_event(frames, &rest[stretch.size..]);
            // The same one: more than an event to be counted.
            let next = next.filter(|next| entry.is_none_or(|entry| entry.id.as_str() != *next));
            let next = next.and_then(|next| self.by_session.get(next).copied());
            if stretch.events > 0 {
                done += stretch.size;
                events += stretch.events;
                self.count_events(now, key, stretch.events, stretch.bytes);
            }
            match next {
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
}

/// The session that the event at the start of `rest` is of.
fn session_of_event(frames: PlainFrames, rest: &[u8]) -> Option<&str> {
    let (header, end) = frames.cut(rest)?;
    scan::event_session(&rest[header..end])
}

/// Whether events of a session pass to the client for being events of it.
pub(super) fn is_open(entry: &Entry, slot: SlotId) -> bool {
    entry.here_at() == Some(slot)
        && entry.reopening.is_none()
        && entry.taking.is_none()
        && entry.rest == Rest::Nothing
}

/// The events at the start of `input` that are of one session and tell nothing.
fn stretch(frames: PlainFrames, entry: &Entry, input: &[u8]) -> Stretch {
    let mut stretch = Stretch::default();
    let Some(session) = scan::Plain::new(entry.id.as_str()) else {
        return stretch;
    };
    let mut rest = input;
    let mut alike = scan::Alike::default();
    while let Some((header, end)) = frames.cut(rest) {
        let (frame, behind) = rest.split_at(end);
        let body = &frame[header..];
        // Events come in runs of one type, so what stands for the last one stands for most.
        if !alike.begins(body) {
            match scan::event_of(body, session) {
                Some((kind, like)) if Tells::by(kind) == Tells::Nothing => alike = like,
                Some(_) | None => break,
            }
        }
        stretch.events += 1;
        stretch.bytes += body.len();
        rest = behind;
    }
    stretch.size = input.len() - rest.len();
    stretch
}
