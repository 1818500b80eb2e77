//! Bytes that a socket did not take at once.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use tokio::io::AsyncWrite;

use crate::transport::Stream;

/// At most this many slices go into one `writev`.
const SLICES: usize = 64;

/// What is left to write on one socket, in order. Owns no memory while empty.
#[derive(Debug, Default)]
pub(super) struct OutBuf {
    bytes: Vec<u8>,
    start: usize,
    /// Since when the socket has taken nothing although something waits.
    stalled_since: Option<Instant>,
    /// The socket has taken bytes that it has not given to the system: TLS keeps some.
    unsent: bool,
}

impl OutBuf {
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.bytes.len() && !self.unsent
    }

    /// Since when nothing was taken.
    pub(super) fn stalled_since(&self) -> Option<Instant> {
        self.stalled_since
    }

    /// Keeps `bytes` for later.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Writes what waits.
    ///
    /// # Errors
    /// The socket's.
    #[inline]
    pub(super) fn flush(
        &mut self,
        socket: &mut Stream,
        now: Instant,
        cx: &mut Context<'_>,
    ) -> io::Result<()> {
        if self.is_empty() && !socket.holds_unsent() {
            return Ok(());
        }
        self.flush_rest(socket, now, cx)
    }

    fn flush_rest(
        &mut self,
        socket: &mut Stream,
        now: Instant,
        cx: &mut Context<'_>,
    ) -> io::Result<()> {
        while self.start < self.bytes.len() {
            match Pin::new(&mut *socket).poll_write(cx, &self.bytes[self.start..]) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(n)) => {
                    self.start += n;
                    self.stalled_since = None;
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {
                    self.stalled_since.get_or_insert(now);
                    if self.start > self.bytes.len() / 2 {
                        self.bytes.drain(..self.start);
                        self.start = 0;
                    }
                    return Ok(());
                }
            }
        }
        self.bytes = Vec::new();
        self.start = 0;
        self.unsent = false;
        if socket.holds_unsent() && Pin::new(socket).poll_flush(cx)?.is_pending() {
            self.unsent = true;
            self.stalled_since.get_or_insert(now);
            return Ok(());
        }
        self.stalled_since = None;
        Ok(())
    }

    /// Writes `slices`, straight from where they stand if nothing waits before them; what the
    /// socket does not take is kept.
    ///
    /// # Errors
    /// The socket's.
    pub(super) fn write(
        &mut self,
        socket: &mut Stream,
        slices: &[IoSlice<'_>],
        now: Instant,
        cx: &mut Context<'_>,
    ) -> io::Result<()> {
        let mut rest = slices;
        let mut skip = 0;
        while self.is_empty() && !rest.is_empty() {
            let written = if skip > 0 || rest.len() == 1 {
                Pin::new(&mut *socket).poll_write(cx, &rest[0][skip..])
            } else {
                let some = &rest[..rest.len().min(SLICES)];
                Pin::new(&mut *socket).poll_write_vectored(cx, some)
            };
            match written {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(mut n)) => {
                    n += skip;
                    while let Some(first) = rest.first()
                        && n >= first.len()
                    {
                        n -= first.len();
                        rest = &rest[1..];
                    }
                    skip = n;
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => break,
            }
        }
        if self.start == self.bytes.len() && socket.holds_unsent() {
            self.unsent = true;
            self.stalled_since.get_or_insert(now);
        }
        if let Some((first, others)) = rest.split_first() {
            if self.is_empty() {
                self.stalled_since = Some(now);
            }
            self.push(&first[skip..]);
            for slice in others {
                self.push(slice);
            }
        }
        Ok(())
    }
}
