//! Where bytes are read to: one buffer that all connections of a thread share, so that an idle
//! connection owns none. Only the start of a frame whose rest has not come stays with its
//! connection.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context as Task, Poll},
};

use tokio::io::{AsyncRead, ReadBuf};

use crate::transport::Stream;

/// The shared read buffer of a thread.
pub(super) const SCRATCH: usize = 128 * 1024;

/// The start of a frame up to this size is copied in front of the next read, so that the rest of
/// the run still passes from the shared buffer.
pub(super) const CARRY: usize = SCRATCH / 2;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Takes the thread's buffer for one read; [`give_back`] returns it.
pub(super) fn take_buffer() -> Vec<u8> {
    let mut buffer = BUFFER.with(|b| std::mem::take(&mut *b.borrow_mut()));
    if buffer.len() < SCRATCH {
        buffer.resize(SCRATCH, 0);
    }
    buffer
}

/// Returns the thread's buffer.
pub(super) fn give_back(buffer: Vec<u8>) {
    BUFFER.with(|b| *b.borrow_mut() = buffer);
}

/// Moves the start of a frame in front of the shared buffer, if it is small. Returns its size
/// there; 0 and a non-empty `input` mean that reading goes on in `input`.
pub(super) fn carry_over(input: &mut Vec<u8>, buffer: &mut [u8]) -> usize {
    let kept = input.len();
    if kept == 0 || kept > CARRY {
        return 0;
    }
    buffer[..kept].copy_from_slice(input);
    *input = Vec::new();
    kept
}

/// Nothing came: the start of the frame goes back to its connection.
pub(super) fn restore(input: &mut Vec<u8>, kept: &[u8]) {
    if !kept.is_empty() {
        input.extend_from_slice(kept);
    }
}

/// Reads once, behind `kept` bytes of the shared buffer, or at most `room` bytes to the end of
/// `input` if a large frame gathers there.
pub(super) fn read(
    socket: &mut Stream,
    input: &mut Vec<u8>,
    buffer: &mut [u8],
    (kept, room): (usize, usize),
    task: &mut Task<'_>,
) -> Poll<io::Result<usize>> {
    if input.is_empty() {
        let mut space = ReadBuf::new(&mut buffer[kept..]);
        return Pin::new(socket)
            .poll_read(task, &mut space)
            .map_ok(|()| space.filled().len());
    }
    let room = room.min(buffer.len());
    let mut space = ReadBuf::new(&mut buffer[..room]);
    let read = Pin::new(socket)
        .poll_read(task, &mut space)
        .map_ok(|()| space.filled().len());
    if let Poll::Ready(Ok(n)) = read {
        input.extend_from_slice(&buffer[..n]);
    }
    read
}

/// What was not used up waits with its connection for the rest of its frame.
pub(super) fn keep_rest(
    input: &mut Vec<u8>,
    large: Vec<u8>,
    shared: &[u8],
    whole: bool,
    used: usize,
) {
    *input = match (whole, used) {
        (true, 0) => large,
        (true, used) => large[used..].to_vec(),
        (false, used) => shared[used..].to_vec(),
    };
}
