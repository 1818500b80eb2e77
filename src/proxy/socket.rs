//! TCP sockets as both legs want them.

use std::{io, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Frames are small and wait for nobody (no Nagle); a peer that vanishes without a word is noticed.
pub(super) fn prepare(socket: &TcpStream, keepalive: Option<Duration>) -> io::Result<()> {
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

/// Connects to `address` (`host:port`).
pub(super) async fn connect(address: &str, keepalive: Option<Duration>) -> io::Result<TcpStream> {
    let socket = TcpStream::connect(address).await?;
    prepare(&socket, keepalive)?;
    Ok(socket)
}
