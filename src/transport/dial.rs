//! Outgoing connections: TCP as both legs want it, then what the peer wants in front and around.

use std::{io, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use thiserror::Error;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{fault::Fault, files, stream::Stream, tls::Connector};
use crate::core::proxy_header::{self, Source, Version};

/// What goes between TCP and the first frame of an outgoing connection.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transport {
    /// Whose connection it is, said first.
    pub proxy_protocol: Option<Version>,
    /// TLS, with this.
    pub tls: Option<Connector>,
}

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// Nothing was reached.
    #[error("{0}")]
    Tcp(io::Error),
    /// Something was reached, and TLS with it failed: it is there.
    #[error("{0}")]
    Tls(Fault),
    /// The connection broke afterwards.
    #[error("{0}")]
    Broken(io::Error),
}

impl From<ConnectError> for io::Error {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Tcp(error) | ConnectError::Broken(error) => error,
            ConnectError::Tls(fault) => Self::new(io::ErrorKind::InvalidData, fault),
        }
    }
}

impl Transport {
    /// Connects to `address` (`host:port`). Waits as long as the system and the peer do: the caller
    /// sets the limit.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(
        &self,
        address: &str,
        keepalive: Option<Duration>,
        source: Source,
    ) -> Result<Stream, ConnectError> {
        let tcp = TcpStream::connect(address)
            .await
            .map_err(ConnectError::Tcp)?;
        files::spare(&tcp).map_err(ConnectError::Tcp)?;
        prepare(&tcp, keepalive).map_err(ConnectError::Tcp)?;
        self.secure(tcp, address, source).await
    }

    /// The same for a TCP connection that was made to `address`.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn secure(
        &self,
        mut tcp: TcpStream,
        address: &str,
        source: Source,
    ) -> Result<Stream, ConnectError> {
        if let Some(version) = self.proxy_protocol {
            let mut header = Vec::new();
            proxy_header::write(version, source, &mut header);
            tcp.write_all(&header).await.map_err(ConnectError::Broken)?;
        }
        let Some(tls) = &self.tls else {
            return Ok(Stream::Plain(tcp));
        };
        tls.connect(tcp, address)
            .await
            .map_err(|error| match Fault::of(&error) {
                Some(fault) => ConnectError::Tls(fault),
                None => ConnectError::Broken(error),
            })
    }
}

/// Frames are small and wait for nobody (no Nagle); a peer that vanishes without a word is noticed.
///
/// # Errors
/// The socket's.
pub fn prepare(socket: &TcpStream, keepalive: Option<Duration>) -> io::Result<()> {
    socket.set_nodelay(true)?;
    if let Some(idle) = keepalive {
        let interval = (idle / 4).max(Duration::from_secs(1));
        let probes = TcpKeepalive::new()
            .with_time(idle)
            .with_interval(interval)
            .with_retries(4);
        SockRef::from(socket).set_tcp_keepalive(&probes)?;
    }
    Ok(())
}
