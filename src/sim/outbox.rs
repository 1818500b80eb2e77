//! What waits to be written to one connection.
//!
//! The real server buffers for a slow reader without a visible bound; here the bound is
//! [`LIMIT`], after which the connection is dropped. This file must not write to a socket.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Most bytes that wait for one connection.
const LIMIT: usize = 512 << 20;

/// How the writer goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Open,
    /// Write what waits, then nothing more, and stay open.
    Mute,
    /// Write what waits, then close.
    Flush,
    /// Close now.
    Drop,
}

struct Waiting {
    bytes: Vec<u8>,
    end: End,
}

/// The queue of one connection: frames go in from any task, its writer takes them out.
pub(super) struct Outbox {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

impl Outbox {
    pub(super) fn new() -> Self {
        let waiting = Waiting {
            bytes: Vec::new(),
            end: End::Open,
        };
        Self {
            waiting: Mutex::new(waiting),
            wake: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues one frame with this body.
    pub(super) fn push(&self, body: &str) {
        self.append(|out| super::event::frame_into(out, body.as_bytes()));
    }

    /// Queues bytes as they are.
    pub(super) fn push_raw(&self, bytes: &[u8]) {
        self.append(|out| out.extend_from_slice(bytes));
    }

    fn append(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut waiting = self.lock();
        if waiting.end != End::Open {
            return;
        }
        write(&mut waiting.bytes);
        if waiting.bytes.len() > LIMIT {
            waiting.end = End::Drop;
            waiting.bytes = Vec::new();
        }
        drop(waiting);
        self.wake.notify_one();
    }

    /// Lets nothing more in, without closing.
    pub(super) fn mute(&self) {
        self.lock().end = End::Mute;
    }

    /// Closes the connection after what waits is written.
    pub(super) fn finish(&self) {
        self.close(End::Flush);
    }

    /// Closes the connection at once; what waits is lost.
    pub(super) fn abandon(&self) {
        self.close(End::Drop);
    }

    fn close(&self, end: End) {
        let mut waiting = self.lock();
        if waiting.end != End::Drop {
            waiting.end = end;
        }
        drop(waiting);
        self.wake.notify_one();
    }

    /// Whether it was told to close at once.
    pub(super) fn is_abandoned(&self) -> bool {
        self.lock().end == End::Drop
    }

    /// Returns when it is told to close at once.
    pub(super) async fn abandoned(&self) {
        while !self.is_abandoned() {
            self.wake.notified().await;
        }
    }

    /// Swaps what waits into the empty `batch`. `None`: the connection closes.
    pub(super) async fn take(&self, batch: &mut Vec<u8>) -> Option<()> {
        loop {
            {
                let mut waiting = self.lock();
                match waiting.end {
                    End::Drop => return None,
                    End::Open | End::Mute | End::Flush if !waiting.bytes.is_empty() => {
                        std::mem::swap(&mut waiting.bytes, batch);
                        return Some(());
                    }
                    End::Flush => return None,
                    End::Open | End::Mute => {}
                }
            }
            self.wake.notified().await;
        }
    }
}
