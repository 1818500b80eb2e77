//! Counts of what a connection has relayed, and of what waits here to be.

use super::Driver;
use crate::{
    core::event::{Direction, FrameKind},
    proxy::readbuf::CARRY,
};

impl Driver {
    /// Bytes that wait to be taken, and what has come of large frames.
    fn waiting(&self) -> usize {
        let large = |input: &Vec<u8>| Some(input.len()).filter(|size| *size > CARRY);
        let mut bytes = self.client_out.len() + self.out.behind();
        bytes += large(&self.client_in).unwrap_or_default();
        for upstream in self.upstreams.iter().flatten() {
            bytes += upstream.output.len() + large(&upstream.input).unwrap_or_default();
        }
        bytes
    }

    /// Says how many they are, mostly nothing new: none.
    pub(super) fn weigh(&mut self, bytes: usize) {
        if bytes != self.buffered {
            let change = bytes as i64 - self.buffered as i64;
            self.shared.observer.metrics().buffered(change);
            self.buffered = bytes;
        }
    }

    /// Counts what went through: a few additions per read, not per frame.
    pub(super) fn tally(&mut self) {
        self.weigh(self.waiting());
        let tally = self.mux.poll_tally();
        let metrics = self.shared.observer.metrics();
        for direction in [Direction::ClientToBackend, Direction::BackendToClient] {
            if tally.is_empty(direction) {
                continue;
            }
            metrics.add_bytes(direction, tally.bytes(direction));
            for kind in [
                FrameKind::Request,
                FrameKind::Notification,
                FrameKind::Response,
                FrameKind::Error,
                FrameKind::Invalid,
            ] {
                let frames = tally.frames(direction, kind);
                if frames > 0 {
                    metrics.add_frames(direction, kind, frames);
                }
            }
        }
    }
}
