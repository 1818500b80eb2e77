//! What one step of the multiplexer wants written, and where: mostly ranges of the buffer that was
//! just read, so that a run of frames that pass unchanged leaves in one write.

use std::ops::Range;

use super::upstream::SlotId;

/// Which socket bytes are for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dest {
    /// The client.
    Client,
    /// The upstream connection in this slot.
    Upstream(SlotId),
}

/// Where bytes stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    /// In the buffer that the step was given.
    Input,
    /// In the outbox.
    Own,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    dest: Dest,
    source: Source,
    start: usize,
    end: usize,
}

/// Who may write to the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Gate {
    #[default]
    Open,
    /// Pieces of one large frame; all else waits behind it.
    Passing,
    /// Nobody: the client was left in the middle of a frame.
    Shut,
}

/// Memory of an [`Outbox`] that is needed only while it holds something.
#[derive(Debug, Default)]
pub struct OutboxMemory {
    segments: Vec<Segment>,
    own: Vec<u8>,
}

/// Ordered writes of one connection. Reused from step to step, so that the steady state allocates
/// nothing.
#[derive(Debug, Default)]
pub struct Outbox {
    segments: Vec<Segment>,
    own: Vec<u8>,
    gate: Gate,
    /// What waits for the end of the frame that passes to the client in pieces: kept from step to
    /// step, and mostly empty.
    behind: Vec<u8>,
}

impl Outbox {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Memory for the writes to come, unless some are there already, in memory of its own.
    pub fn lend(&mut self, memory: OutboxMemory) {
        if self.is_empty() {
            (self.segments, self.own) = (memory.segments, memory.own);
        }
    }

    /// That memory, unless something is still to be written. What waits behind a frame that passes
    /// stays.
    pub fn return_memory(&mut self) -> OutboxMemory {
        if !self.is_empty() {
            return OutboxMemory::default();
        }
        OutboxMemory {
            segments: std::mem::take(&mut self.segments),
            own: std::mem::take(&mut self.own),
        }
    }

    /// Forgets what was written; keeps the memory unless one step has needed an unusual amount.
    pub fn clear(&mut self) {
        const KEEP: usize = 64 * 1024;
        self.segments.clear();
        self.own.clear();
        self.own.shrink_to(KEEP);
    }

    /// Bytes of the step's input go to `dest` as they are.
    pub fn pass(&mut self, dest: Dest, range: Range<usize>) {
        debug_assert!(
            dest != Dest::Client || self.gate != Gate::Passing,
            "no other backend is heard meanwhile"
        );
        self.push(dest, Source::Input, range.start, range.end);
    }

    /// Bytes that `write` appends go to `dest`. Returns how many they were.
    pub fn write(&mut self, dest: Dest, write: impl FnOnce(&mut Vec<u8>)) -> usize {
        if self.gate != Gate::Open && dest == Dest::Client {
            return self.write_behind(write);
        }
        let start = self.own.len();
        write(&mut self.own);
        self.push(dest, Source::Own, start, self.own.len());
        self.own.len() - start
    }

    #[cold]
    fn write_behind(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> usize {
        let start = self.behind.len();
        write(&mut self.behind);
        let size = self.behind.len() - start;
        if self.gate == Gate::Shut {
            self.behind.clear();
        }
        size
    }

    /// From here on only [pieces](Self::pass_piece) of one frame go to the client, which begins with
    /// what `write` appends.
    pub(super) fn begin_pieces(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.write(Dest::Client, write);
        self.gate = Gate::Passing;
    }

    /// Bytes of the step's input are the next piece of the frame.
    pub(super) fn pass_piece(&mut self, range: Range<usize>) {
        self.push(Dest::Client, Source::Input, range.start, range.end);
    }

    /// The frame has passed, and so may what has waited behind it.
    pub(super) fn end_pieces(&mut self) {
        self.gate = Gate::Open;
        let behind = std::mem::take(&mut self.behind);
        self.write(Dest::Client, |own| own.extend_from_slice(&behind));
    }

    /// The rest of the frame will not come, so that the client could not tell what else it is
    /// given from it: it is given nothing any more.
    pub(super) fn shut(&mut self) {
        self.gate = Gate::Shut;
        self.behind = Vec::new();
    }

    /// Bytes that wait for a frame to have passed to the client.
    pub fn behind(&self) -> usize {
        self.behind.len()
    }

    fn push(&mut self, dest: Dest, source: Source, start: usize, end: usize) {
        if start == end {
            return;
        }
        if let Some(last) = self.segments.last_mut()
            && last.dest == dest
            && last.source == source
            && last.end == start
        {
            last.end = end;
            return;
        }
        self.segments.push(Segment {
            dest,
            source,
            start,
            end,
        });
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// The writes in order, resolved against the step's input.
    pub fn iter<'a>(&'a self, input: &'a [u8]) -> impl Iterator<Item = (Dest, &'a [u8])> {
        self.segments.iter().map(move |s| {
            let bytes = match s.source {
                Source::Input => &input[s.start..s.end],
                Source::Own => &self.own[s.start..s.end],
            };
            (s.dest, bytes)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_for_one_socket_leave_as_one_slice() {
        let mut out = Outbox::new();
        let up = Dest::Upstream(SlotId::for_test(0));
        out.pass(Dest::Client, 0..4);
        out.pass(Dest::Client, 4..6);
        out.write(Dest::Client, |b| b.extend_from_slice(b"xy"));
        out.pass(up, 6..8);
        out.pass(Dest::Client, 8..8);
        let input = b"abcdefgh";
        let all: Vec<_> = out.iter(input).collect();
        assert_eq!(
            all,
            [
                (Dest::Client, &b"abcdef"[..]),
                (Dest::Client, &b"xy"[..]),
                (up, &b"gh"[..])
            ]
        );
        out.clear();
        assert!(out.is_empty());
    }
}
