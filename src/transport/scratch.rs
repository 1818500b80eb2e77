//! Where bytes are read to: one buffer that all connections of a thread share, so that an idle
//! connection owns none. Must not be held across an await.

use std::cell::Cell;

/// Its size: several long turns of a server in one read and one write. What the system does for a byte
/// depends on how many of them come at once (docs/performance.md).
pub const SIZE: usize = 256 * 1024;

thread_local! {
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Takes the thread's buffer for one read; [`give_back`] returns it. What it holds is of whoever
/// had it last.
pub fn take() -> Vec<u8> {
    let mut buffer = BUFFER.take();
    if buffer.len() < SIZE {
        buffer.resize(SIZE, 0);
    }
    buffer
}

/// Returns the thread's buffer.
pub fn give_back(buffer: Vec<u8>) {
    BUFFER.set(buffer);
}
