//! Runs: frames of a backend, side by side in what was read, that are events of attached sessions
//! and concern nobody but the client. Nearly all bytes there are pass here: as one range, and for a
//! few dozen instructions a frame.
//!
//! What holds for a session is looked at once, when the run comes to it, since nothing in a run
//! changes it. Whatever needs more than a count ends the run, and goes through `backend`.

use std::time::Instant;

use super::{
    Context, Mux,
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
struct Stretch<'a> {
    events: u64,
    /// Of their bodies.
    bytes: usize,
    /// With their headers.
    size: usize,
    next: Next<'a>,
}

/// What stands behind a stretch.
#[derive(Default)]
enum Next<'a> {
    /// No whole frame that is easily cut.
    #[default]
    Unknown,
    /// A frame that is no such event of this session; its body.
    Other(&'a [u8]),
    /// An event of this session that tells something.
    Telling(Telling<'a>),
}

/// An event of an attached session that tells something of its turn: read, and not passed yet.
pub(super) struct Telling<'a> {
    pub(super) kind: &'a [u8],
    pub(super) body: &'a [u8],
    /// Of the frame.
    pub(super) size: usize,
}

/// Where a run ends, and the event behind it, with its session's key, if that was read.
pub(super) type Run<'a> = (usize, Option<(usize, Telling<'a>)>);

impl Mux {
    /// Passes the run at `start` of `input` to the client.
    pub(super) fn pass_run<'a>(
        &mut self,
        now: Instant,
        slot: SlotId,
        input: &'a [u8],
        start: usize,
        out: &mut Outbox,
    ) -> Run<'a> {
        let Some(upstream) = self.upstreams.get(slot) else {
            return (start, None);
        };
        let fresh = upstream.phase == Phase::Ready && upstream.cutter.is_between_frames();
        if !fresh || !self.is_heard() {
            return (start, None);
        }
        let frames = upstream.cutter.plain();
        let recent = upstream.recent;
        let (mut key, mut done, mut events) = (recent, start, 0);
        let telling = loop {
            let rest = &input[done..];
            let entry = self.entries.get(key);
            let open = entry.filter(|entry| is_open(entry, slot));
            let stretch = open.map_or_else(|| unread(frames, rest), |e| stretch(frames, e, rest));
            let next = match &stretch.next {
                // The same one: more than an event to be counted.
                Next::Other(body) => scan::event_session(body)
                    .filter(|next| entry.is_none_or(|entry| entry.id.as_str() != *next))
                    .and_then(|next| self.by_session.get(next).copied()),
                Next::Unknown | Next::Telling(_) => None,
            };
            if stretch.events > 0 {
                done += stretch.size;
                events += stretch.events;
                self.count_events(now, key, stretch.events, stretch.bytes);
            }
            match (next, stretch.next) {
                (Some(next), _) => key = next,
                (None, Next::Telling(telling)) => break Some((key, telling)),
                (None, Next::Unknown | Next::Other(_)) => break None,
            }
        };
        if events > 0 {
            out.pass(Dest::Client, start..done);
            let (to, kind) = (Direction::BackendToClient, FrameKind::Notification);
            self.tally.add_many(to, kind, events, done - start);
        }
        if key != recent
            && (events > 0 || telling.is_some())
            && let Some(upstream) = self.upstreams.get_mut(slot)
        {
            upstream.recent = key;
        }
        (done, telling)
    }

    /// The event behind a run, of the session with this key; its frame begins at `start`. Does what
    /// is done with any event, for what is known of this one already.
    pub(super) fn pass_telling(
        &mut self,
        cx: &Context<'_>,
        (key, telling): (usize, Telling<'_>),
        start: usize,
        out: &mut Outbox,
    ) -> usize {
        let Telling { kind, body, size } = telling;
        let end = start + size;
        if self.hear_event(cx, key, kind, body, out) && self.is_heard() {
            out.pass(Dest::Client, start..end);
        }
        let (to, kind) = (Direction::BackendToClient, FrameKind::Notification);
        self.tally.add(to, kind, size);
        self.close_if_quiet();
        end
    }

    /// An event of a session that is attached here. Whether the client shall have it.
    pub(super) fn hear_event(
        &mut self,
        cx: &Context<'_>,
        key: usize,
        kind: &[u8],
        body: &[u8],
        out: &mut Outbox,
    ) -> bool {
        self.note_event(cx, key, kind, body, out);
        let keeps = self.keeps_idle(key, kind, body)
            || self.is_taking(key) && self.keep_early(key, body, out);
        !keeps
    }
}

/// Whether events of a session pass to the client for being events of it.
pub(super) fn is_open(entry: &Entry, slot: SlotId) -> bool {
    entry.here_at() == Some(slot)
        && entry.reopening.is_none()
        && entry.taking.is_none()
        && entry.rest == Rest::Nothing
}

/// Nothing of `input`, of which the first frame is to be looked at.
fn unread(frames: PlainFrames, input: &[u8]) -> Stretch<'_> {
    let body = frames.cut(input).map(|(header, end)| &input[header..end]);
    Stretch {
        next: body.map_or(Next::Unknown, Next::Other),
        ..Stretch::default()
    }
}

/// The events at the start of `input` that are of one session and tell nothing.
fn stretch<'a>(frames: PlainFrames, entry: &Entry, input: &'a [u8]) -> Stretch<'a> {
    let mut stretch = Stretch::default();
    let mut rest = input;
    let mut alike = scan::Alike::default();
    while let Some((header, end)) = frames.cut(rest) {
        let (frame, behind) = rest.split_at(end);
        let body = &frame[header..];
        // Events come in runs of one type, so what stands for the last one stands for most.
        if !alike.begins(body) {
            let session = entry.plain_id();
            match session.and_then(|session| scan::event_of(body, session)) {
                Some((kind, like)) if Tells::by(kind) == Tells::Nothing => alike = like,
                Some((kind, _)) => {
                    let size = end;
                    stretch.next = Next::Telling(Telling { kind, body, size });
                    break;
                }
                None => {
                    stretch.next = Next::Other(body);
                    break;
                }
            }
        }
        stretch.events += 1;
        stretch.bytes += body.len();
        rest = behind;
    }
    stretch.size = input.len() - rest.len();
    stretch
}
