//! A client that writes bytes as they are and reads only when told to.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::PATIENCE;

/// A body with its header.
pub(crate) fn frame(body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut bytes = format!("Content-Length: {}\r\n\r\n", body.len()).into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// See the module.
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    read: Vec<u8>,
}

impl Raw {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self {
            stream: TcpStream::connect(address).await.unwrap(),
            read: Vec::new(),
        }
    }

    /// Fails if the peer does not take it.
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        let written = timeout(PATIENCE, self.stream.write_all(bytes)).await;
        written.expect("nobody reads").unwrap();
    }

    /// The next body; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some((body, rest)) = self.cut() {
                let value = serde_json::from_slice(&self.read[body]).unwrap();
                self.read.drain(..rest);
                return Some(value);
            }
            let more = timeout(PATIENCE, self.stream.read_buf(&mut self.read)).await;
            match more.expect("nothing comes, and no end") {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// The next answer: what is neither a request nor a notification.
    pub(crate) async fn answer(&mut self) -> Option<Value> {
        loop {
            let value = self.next().await?;
            if value.get("method").is_none() {
                return Some(value);
            }
        }
    }

    /// What has been read and not given out, for who reads the stream by himself.
    pub(crate) fn unread(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.read)
    }

    /// Reads and throws away until the peer closes.
    pub(crate) async fn closed(&mut self) {
        while self.next().await.is_some() {}
    }

    fn cut(&self) -> Option<(std::ops::Range<usize>, usize)> {
        let header = self.read.windows(4).position(|w| w == b"\r\n\r\n")?;
        let text = std::str::from_utf8(&self.read[..header]).unwrap();
        // The strictest reader of all SDKs wants exactly this header and no other.
        let length: usize = text
            .strip_prefix("Content-Length: ")
            .unwrap()
            .parse()
            .unwrap();
        let start = header + 4;
        (self.read.len() >= start + length).then_some((start..start + length, start + length))
    }
}
