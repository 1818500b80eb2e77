//! Reading frames into the buffer that all connections of a thread share. Only the start of a frame
//! whose rest has not come stays with its connection, in a buffer that its thread lends: where reads
//! end costs no allocation.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context as Task, Poll},
};

use tokio::io::{AsyncRead, ReadBuf};

use crate::transport::Stream;
pub use crate::transport::scratch::{SIZE as SCRATCH, give_back, take as take_buffer};

/// The start of a frame up to this size is copied in front of the next read, so that the rest of
/// the run still passes from the shared buffer.
pub const CARRY: usize = 64 * 1024;

/// Sizes of the buffers that are lent, and how many that came back a thread keeps of each: less than
/// half a MiB in all.
const LENT: [(usize, usize); 3] = [(1024, 64), (8 * 1024, 16), (CARRY, 4)];

thread_local! {
    static SHELF: RefCell<[Vec<Vec<u8>>; LENT.len()]> = const { RefCell::new([const { Vec::new() }; 3]) };
}

/// A copy of these bytes, in a lent buffer if they are few enough.
fn lend(bytes: &[u8]) -> Vec<u8> {
    if bytes.is_empty() {
        return Vec::new();
    }
    let Some(class) = LENT.iter().position(|(size, _)| bytes.len() <= *size) else {
        return bytes.to_vec();
    };
    let lent = SHELF.with_borrow_mut(|shelf| shelf[class].pop());
    let mut lent = lent.unwrap_or_else(|| Vec::with_capacity(LENT[class].0));
    lent.extend_from_slice(bytes);
    lent
}

/// A lent buffer comes back.
fn return_lent(mut lent: Vec<u8>) {
    let class = LENT.iter().position(|(size, _)| lent.capacity() == *size);
    let Some(class) = class else { return };
    lent.clear();
    SHELF.with_borrow_mut(|shelf| {
        if shelf[class].len() < LENT[class].1 {
            shelf[class].push(lent);
        }
    });
}

/// Moves the start of a frame in front of the shared buffer, if it is small. Returns its size
/// there; 0 and a non-empty `input` mean that reading goes on in `input`.
pub fn carry_over(input: &mut Vec<u8>, buffer: &mut [u8]) -> usize {
    let kept = input.len();
    if kept == 0 || kept > CARRY {
        return 0;
    }
    buffer[..kept].copy_from_slice(input);
    return_lent(std::mem::take(input));
    kept
}

/// Nothing came: the start of the frame goes back to its connection.
pub fn restore(input: &mut Vec<u8>, kept: &[u8]) {
    if !kept.is_empty() {
        *input = lend(kept);
    }
}

/// Reads once, behind `kept` bytes of the shared buffer, or at most `room` bytes to the end of
/// `input` if a large frame gathers there.
pub fn read(
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
pub fn keep_rest(input: &mut Vec<u8>, large: Vec<u8>, shared: &[u8], whole: bool, used: usize) {
    *input = match (whole, used) {
        (true, 0) => large,
        (true, used) => lend(&large[used..]),
        (false, used) => lend(&shared[used..]),
    };
}
