//! A backend that breaks the protocol in ways that no simulated server does: a relay in front of
//! one, which spoils what comes back as soon as it is told to.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// What happens to the answer that holds the needle.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Spoil {
    /// Half of it, then the connection closes.
    HalfThenClose,
    /// Half of it, then nothing, for ever.
    HalfThenSilence,
    /// Half of it, then byte for byte, several in the time that it may take.
    HalfThenDrops,
    /// Other bytes in its place.
    Bytes(&'static [u8]),
    /// The connection closes in its place.
    Close,
}

/// Between two bytes of [`Spoil::HalfThenDrops`].
const DROP: Duration = Duration::from_millis(100);

type Order = Arc<Mutex<Option<(String, Spoil)>>>;

/// See the module.
pub(crate) struct Broken {
    pub(crate) address: SocketAddr,
    order: Order,
    task: JoinHandle<()>,
}

impl Drop for Broken {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Broken {
    /// In front of this server.
    pub(crate) async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let order = Order::default();
        let orders = order.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if let Ok(server) = TcpStream::connect(server).await {
                    tokio::spawn(relay(client, server, orders.clone()));
                }
            }
        });
        Self {
            address,
            order,
            task,
        }
    }

    /// The next bytes of the server that hold `needle` are spoilt, once.
    pub(crate) fn spoil(&self, needle: &str, how: Spoil) {
        *self.order.lock().unwrap() = Some((needle.to_owned(), how));
    }

    /// Whether that has not happened yet.
    pub(crate) fn is_armed(&self) -> bool {
        self.order.lock().unwrap().is_some()
    }
}

async fn relay(client: TcpStream, server: TcpStream, order: Order) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = tokio::spawn(async move {
        let _ended = tokio::io::copy(&mut from_client, &mut to_server).await;
    });
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from_server.read(&mut buffer).await {
        let bytes = &buffer[..n];
        let spoil = {
            let mut order = order.lock().unwrap();
            let hit = order.as_ref().is_some_and(|(needle, _)| {
                bytes.windows(needle.len()).any(|w| w == needle.as_bytes())
            });
            if hit { order.take() } else { None }
        };
        let sent = match spoil {
            None => to_client.write_all(bytes).await,
            Some((_, Spoil::Bytes(other))) => to_client.write_all(other).await,
            Some((_, Spoil::Close)) => break,
            Some((_, Spoil::HalfThenClose)) => {
                let _sent = to_client.write_all(&bytes[..n / 2]).await;
                break;
            }
            Some((_, Spoil::HalfThenDrops)) => {
                let (half, drops) = bytes.split_at(n / 2);
                let mut sent = to_client.write_all(half).await;
                for drop in drops.chunks(1) {
                    tokio::time::sleep(DROP).await;
                    if sent.is_ok() {
                        sent = to_client.write_all(drop).await;
                    }
                }
                sent
            }
            Some((_, Spoil::HalfThenSilence)) => {
                let _sent = to_client.write_all(&bytes[..n / 2]).await;
                std::future::pending().await
            }
        };
        if sent.is_err() {
            break;
        }
    }
    up.abort();
}
