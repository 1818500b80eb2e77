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

/// What is left to write on one socket, in order. Mostly nothing: then it is one pointer.
#[derive(Debug, Default)]
pub(super) struct OutBuf(Option<Box<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    start: usize,
    /// Since when the socket has taken nothing although something waits.
    stalled_since: Option<Instant>,
}

impl OutBuf {
    pub(super) fn len(&self) -> usize {
        let waiting = self.0.as_ref();
        waiting.map_or(0, |waiting| waiting.bytes.len() - waiting.start)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Since when nothing was taken.
    pub(super) fn stalled_since(&self) -> Option<Instant> {
        self.0.as_ref()?.stalled_since
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
        if let Some(waiting) = &mut self.0 {
            while waiting.start < waiting.bytes.len() {
                match Pin::new(&mut *socket).poll_write(cx, &waiting.bytes[waiting.start..]) {
                    Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(n)) => {
                        waiting.start += n;
                        waiting.stalled_since = None;
                    }
                    Poll::Ready(Err(error)) => return Err(error),
                    Poll::Pending => {
                        waiting.stalled_since.get_or_insert(now);
                        if waiting.start > waiting.bytes.len() / 2 {
                            waiting.bytes.drain(..waiting.start);
                            waiting.start = 0;
                        }
                        return Ok(());
                    }
                }
            }
            (waiting.bytes, waiting.start) = (Vec::new(), 0);
        }
        if socket.holds_unsent() && Pin::new(socket).poll_flush(cx)?.is_pending() {
            self.wait_since(now);
            return Ok(());
        }
        self.0 = None;
        Ok(())
    }

    /// The socket does not take what waits, or keeps what it has taken; since now, unless it has been
    /// so for a while.
    fn wait_since(&mut self, now: Instant) -> &mut Vec<u8> {
        let waiting = self.0.get_or_insert_default();
        waiting.stalled_since.get_or_insert(now);
        &mut waiting.bytes
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
        if self.is_empty() && socket.holds_unsent() {
            self.wait_since(now);
        }
        if let Some((first, others)) = rest.split_first() {
            let bytes = match &mut self.0 {
                Some(waiting) => &mut waiting.bytes,
                None => self.wait_since(now),
            };
            bytes.extend_from_slice(&first[skip..]);
            for slice in others {
                bytes.extend_from_slice(slice);
            }
        }
        Ok(())
    }
}
