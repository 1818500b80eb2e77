//! Lines of JSON, and file descriptors beside one of them, over a Unix socket. Everything that is
//! read is bounded in size and by the caller in time.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use thiserror::Error;
use tokio::{
    io::{
        AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, Interest,
    },
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use crate::core::peer::Message;

/// Longest line: a session's id is as long as its client likes.
const MAX_LINE: usize = 1 << 20;

/// File descriptors beside one line.
pub(super) const MAX_SOCKETS: usize = 16;

/// What goes wrong on the line.
#[derive(Debug, Error)]
pub enum WireError {
    /// The socket's.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The other side has ended.
    #[error("the other process has closed the connection")]
    Ended,
    /// No line of this protocol.
    #[error("what came is no message of an upgrade")]
    Garbage,
    /// Something else was due.
    #[error("an unexpected message came")]
    Unexpected,
    /// Nothing came in time.
    #[error("the other process did not answer in time")]
    Late,
}

/// One message as a line.
fn line(message: &Message) -> Vec<u8> {
    let mut text = serde_json::to_vec(message).expect("strings and numbers have a JSON text");
    text.push(b'\n');
    text
}

pub(super) async fn write(
    to: &mut (impl AsyncWrite + Unpin),
    messages: &[Message],
) -> Result<(), WireError> {
    let bytes: Vec<u8> = messages.iter().flat_map(line).collect();
    Ok(to.write_all(&bytes).await?)
}

/// The next message. Not cancel-safe: a line may be half read.
pub(super) async fn read(from: &mut (impl AsyncBufRead + Unpin)) -> Result<Message, WireError> {
    let mut text = Vec::new();
    let limit = MAX_LINE as u64 + 1;
    from.take(limit).read_until(b'\n', &mut text).await?;
    match text.last() {
        None => Err(WireError::Ended),
        Some(b'\n') => parse(&text),
        Some(_) if text.len() > MAX_LINE => Err(WireError::Garbage),
        Some(_) => Err(WireError::Ended),
    }
}

fn parse(text: &[u8]) -> Result<Message, WireError> {
    serde_json::from_slice(text).map_err(|_| WireError::Garbage)
}

/// A line with file descriptors beside it, whole.
async fn write_with_sockets(
    stream: &UnixStream,
    message: &Message,
    sockets: &[OwnedFd],
) -> Result<(), WireError> {
    let text = line(message);
    let sockets: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
    let sent = stream.async_io(Interest::WRITABLE, || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !sockets.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&sockets)) {
            return Err(io::Error::other("too many sockets"));
        }
        let sent = sendmsg(
            stream,
            &[IoSlice::new(&text)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        );
        Ok(sent?)
    });
    if sent.await? == text.len() {
        Ok(())
    } else {
        // Far below the size of a socket's buffer, and the first that goes into it.
        Err(WireError::Io(io::ErrorKind::WriteZero.into()))
    }
}

/// A line and the file descriptors beside it. The sender must send nothing more until it is answered.
async fn read_with_sockets(stream: &UnixStream) -> Result<(Message, Vec<OwnedFd>), WireError> {
    let (mut text, mut sockets) = (Vec::new(), Vec::new());
    while text.last() != Some(&b'\n') {
        let mut chunk = [0; 4096];
        let received = stream.async_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let received = recvmsg(
                stream,
                &mut [IoSliceMut::new(&mut chunk)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            )?;
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(more) = message {
                    sockets.extend(more);
                }
            }
            Ok(received.bytes)
        });
        let n = received.await?;
        if n == 0 {
            return Err(WireError::Ended);
        }
        text.extend_from_slice(&chunk[..n]);
        if text.len() > MAX_LINE || sockets.len() > MAX_SOCKETS {
            return Err(WireError::Garbage);
        }
    }
    Ok((parse(&text)?, sockets))
}

/// Both ways of a connection.
#[derive(Debug)]
pub struct Wire {
    pub(super) read: BufReader<OwnedReadHalf>,
    pub(super) write: OwnedWriteHalf,
}

impl Wire {
    pub(super) fn new(stream: UnixStream) -> Self {
        let (read, write) = stream.into_split();
        Self {
            read: BufReader::new(read),
            write,
        }
    }

    pub(super) async fn read(&mut self) -> Result<Message, WireError> {
        read(&mut self.read).await
    }

    pub(super) async fn write(&mut self, messages: &[Message]) -> Result<(), WireError> {
        write(&mut self.write, messages).await
    }

    /// A line with file descriptors beside it.
    pub(super) async fn write_with_sockets(
        &self,
        message: &Message,
        sockets: &[OwnedFd],
    ) -> Result<(), WireError> {
        write_with_sockets(self.write.as_ref(), message, sockets).await
    }

    /// A line and the file descriptors beside it. The other side sends nothing more until it is
    /// answered.
    pub(super) async fn read_with_sockets(&self) -> Result<(Message, Vec<OwnedFd>), WireError> {
        read_with_sockets(self.write.as_ref()).await
    }
}
