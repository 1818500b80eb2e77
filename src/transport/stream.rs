//! One connection, plain or under TLS, as both planes read and write it.
//!
//! The plain kind costs nothing over a `TcpStream`: no indirection, no copy, `writev` stays. Must
//! not know what the bytes mean.

use std::{
    io::{self, IoSlice, Write},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use rustix::net::{RecvFlags, SendFlags};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsStream;

use super::credentials;

/// A connection.
#[derive(Debug)]
pub enum Stream {
    /// As TCP carries it.
    Plain(TcpStream),
    /// Encrypted. Dropping it says so to the peer (`close_notify`).
    Tls(Box<Tls>),
}

/// What a peer's certificate, which was verified, says of who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// DNS names, URIs and mail addresses (SAN), then the common name; each once.
    pub names: Vec<String>,
}

/// The state of TLS on a connection whose handshake is done.
#[derive(Debug)]
pub struct Tls {
    inner: TlsStream<TcpStream>,
    /// Decrypted bytes may wait that the socket's readiness does not tell of.
    may_hold: bool,
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        Self::Plain(stream)
    }
}

impl Stream {
    pub(super) fn of_tls(inner: TlsStream<TcpStream>) -> Self {
        let may_hold = true;
        Self::Tls(Box::new(Tls { inner, may_hold }))
    }

    /// Whether a read may find something; without a system call.
    pub fn poll_read_ready(&self, task: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Plain(tcp) => tcp.poll_read_ready(task).map(|_| ()),
            Self::Tls(tls) if tls.may_hold => Poll::Ready(()),
            Self::Tls(tls) => tls.tcp().poll_read_ready(task).map(|_| ()),
        }
    }

    /// Whether bytes that were taken have not been given to the system: flushing gives them.
    pub fn holds_unsent(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(tls) => tls.inner.get_ref().1.wants_write(),
        }
    }

    /// Writes what the system takes at once.
    ///
    /// # Errors
    /// The socket's; `WouldBlock` if that is nothing, or not known without waiting.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.try_write(bytes),
            Self::Tls(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Our end of it.
    ///
    /// # Errors
    /// The socket's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp().local_addr()
    }

    /// The socket under it.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.tcp(),
        }
    }

    /// Who the peer's certificate says it is; none if it showed none.
    pub fn peer_identity(&self) -> Option<PeerIdentity> {
        let Self::Tls(tls) = self else { return None };
        let certificate = tls.inner.get_ref().1.peer_certificates()?.first()?;
        let names = credentials::facts(certificate)?.names;
        Some(PeerIdentity { names })
    }

    /// As a client: whether the server has let us in, as far as it tells. In TLS 1.3 a client is
    /// done before the server has judged its certificate; the tickets that follow are the first
    /// sign of it.
    pub fn is_welcomed(&self) -> bool {
        let Self::Tls(tls) = self else { return true };
        match &tls.inner {
            TlsStream::Client(client) => {
                let session = client.get_ref().1;
                session.protocol_version() != Some(rustls::ProtocolVersion::TLSv1_3)
                    || session.tls13_tickets_received() > 0
            }
            TlsStream::Server(_) => true,
        }
    }
}

impl Tls {
    fn tcp(&self) -> &TcpStream {
        self.inner.get_ref().0
    }

    fn poll_read(&mut self, task: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.inner.get_ref().1.wants_write() {
            // Whoever only reads from now on still wants what it wrote to leave. What is wrong with
            // writing shows in a write.
            let _flushed = Pin::new(&mut self.inner).poll_flush(task);
        }
        let read = Pin::new(&mut self.inner).poll_read(task, buf);
        self.may_hold = read.is_ready();
        match read {
            // Closed without a word: what a FIN is to plain TCP.
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Poll::Ready(Ok(()))
            }
            read @ (Poll::Ready(_) | Poll::Pending) => read,
        }
    }
}

/// Without waiting: an end is no reason to wait for a peer that takes nothing.
impl Drop for Tls {
    fn drop(&mut self) {
        struct Now<'a>(&'a TcpStream);
        impl Write for Now<'_> {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                // Not tokio's: it may not have heard yet that there is room.
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                Ok(rustix::net::send(self.0, bytes, flags)?)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        macro_rules! farewell {
            ($stream:expr) => {{
                let (tcp, session) = $stream.get_mut();
                session.send_close_notify();
                while session.wants_write() {
                    match session.write_tls(&mut Now(tcp)) {
                        Ok(n) if n > 0 => {}
                        Ok(_) | Err(_) => break,
                    }
                }
            }};
        }
        match &mut self.inner {
            TlsStream::Client(stream) => farewell!(stream),
            TlsStream::Server(stream) => farewell!(stream),
        }
        // Closed with bytes unread (tickets that nobody asked for, say), the system would reset the
        // connection, and throw away what the peer has not read yet.
        let mut unread = [0; 4096];
        for _ in 0..4 {
            let read = rustix::net::recv(self.tcp(), &mut unread[..], RecvFlags::DONTWAIT);
            if !matches!(read, Ok((_, n)) if n == unread.len()) {
                break;
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(task, buf),
            Self::Tls(tls) => tls.poll_read(task, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(task, bytes),
            Self::Tls(tls) => Pin::new(&mut tls.inner).poll_write(task, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(task, slices),
            Self::Tls(tls) => Pin::new(&mut tls.inner).poll_write_vectored(task, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(task),
            Self::Tls(tls) => Pin::new(&mut tls.inner).poll_flush(task),
        }
    }

    /// Says that nothing more comes; what the peer still has to say can be read.
    fn poll_shutdown(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(task),
            Self::Tls(tls) => Pin::new(&mut tls.inner).poll_shutdown(task),
        }
    }
}
