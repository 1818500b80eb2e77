//! Counts of what a connection has relayed.

use super::Driver;
use crate::core::event::{Direction, FrameKind};

impl Driver {
    /// Counts what went through: a few additions per read, not per frame.
    pub(super) fn tally(&mut self) {
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
