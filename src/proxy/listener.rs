//! Accepts client connections and gives each its task.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::net::{TcpListener, TcpSocket};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Shared, driver::Driver, relay, socket};
use crate::core::{event::Event, id::ConnectionId};

/// Clients that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// After `accept` has failed for want of files or memory, others get time to give some back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Binds the address that clients connect to.
///
/// # Errors
/// The socket's: most often that the address is taken.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Connections of one process, over all its listeners.
#[derive(Clone, Debug)]
pub struct Connections {
    next: Arc<AtomicU64>,
    tasks: TaskTracker,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            next: Arc::new(AtomicU64::new(1)),
            tasks: TaskTracker::new(),
        }
    }
}

impl Connections {
    /// How many are open.
    pub fn open(&self) -> usize {
        self.tasks.len()
    }

    /// Waits until none is open; call it once nothing accepts any more.
    pub async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Accepts until `stop`.
    pub async fn accept(&self, listener: TcpListener, shared: Shared, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.start(stream, peer, &shared),
                Err(error) => {
                    tracing::warn!(target: "taxiway", %error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn start(&self, stream: tokio::net::TcpStream, peer: SocketAddr, shared: &Shared) {
        let rules = shared.rules.load();
        if self.tasks.len() >= rules.connections {
            // Closed at once: a client that waits for an answer would only wait longer.
            shared.observer.record(&Event::LimitHit {
                connection: None,
                limit: "limits.connections",
            });
            return;
        }
        if socket::prepare(&stream, rules.tcp_keepalive).is_err() {
            return;
        }
        let id = ConnectionId(self.next.fetch_add(1, Ordering::Relaxed));
        if rules.by_connection {
            self.tasks
                .spawn(relay::run(shared.clone(), id, peer, stream));
        } else {
            self.tasks
                .spawn(Driver::new(shared.clone(), id, peer, stream).run());
        }
    }
}
