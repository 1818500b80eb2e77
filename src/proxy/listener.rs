//! Accepts client connections and gives each its task.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Shared,
    driver::Driver,
    front::Front,
    lobby::{EVICTED, Seat},
    relay,
};
use crate::{
    core::{event::NotAdmitted, id::ConnectionId, strangers::Bounds},
    transport::{Stream, files, prepare},
};

/// Clients that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// After `accept` has failed for want of files or memory, others get time to give some back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Beyond `limits.connections`: those that make room, and have not come to that yet.
const LEAVING: usize = BACKLOG as usize;

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
    /// Whoever has not passed the front by then is sent away: nobody would tell it of the end.
    closing: CancellationToken,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            next: Arc::new(AtomicU64::new(1)),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
        }
    }
}

/// The task of a connection whose certificate, if it has shown one, says who it is. One that is
/// nobody's proves nothing: a token may still.
fn driver(
    shared: Arc<Shared>,
    id: ConnectionId,
    client: SocketAddr,
    stream: Stream,
    seat: Option<Seat>,
) -> Driver {
    let shown = stream.peer_identity();
    let principals = shared.rules.load().principals.clone();
    let driver = Driver::new(shared, id, client, stream, seat);
    let proved = shown.and_then(|identity| principals.by_certificate(&identity.names).ok());
    match proved {
        Some(proved) => driver.known_as(proved),
        None => driver,
    }
}

impl Connections {
    /// How many are open.
    pub fn open(&self) -> usize {
        self.tasks.len()
    }

    /// Sends away whoever has not done its handshake; call it before the others are told that
    /// Taxiway ends.
    pub fn close_front(&self) {
        self.closing.cancel();
    }

    /// Waits until none is open; call it once nothing accepts any more.
    pub async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Accepts until `stop`.
    pub async fn accept(&self, listener: TcpListener, shared: Shared, stop: CancellationToken) {
        let shared = Arc::new(shared);
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.start(stream, peer, &shared),
                Err(error) if files::is_exhaustion(&error) => {
                    // It waits in the backlog, and the socket stays ready: without a pause this
                    // would go round as fast as it can.
                    shared.doorman.book.no_file(&shared.observer);
                    // One for each try: their files are free a moment later.
                    let lobby = &shared.doorman.lobby;
                    lobby.see_out(|leaving| leaving + 1, files::IN_ADVANCE);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                Err(error) => {
                    tracing::warn!(target: "taxiway", %error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn start(&self, stream: TcpStream, peer: SocketAddr, shared: &Arc<Shared>) {
        let rules = shared.rules.load();
        let (observer, doorman) = (&shared.observer, &shared.doorman);
        if let Err(closed) = rules.front.admit(peer) {
            doorman.book.note(observer, peer, closed);
            return;
        }
        let leaving = doorman.lobby.leaving();
        if self.tasks.len().saturating_sub(leaving) >= rules.connections {
            // Who has proved who it is stays; one who has not makes room.
            if !doorman.lobby.see_out(|leaving| leaving + 1, LEAVING) {
                // Closed at once: a client that waits for an answer would only wait longer.
                doorman.book.surplus(observer);
                return;
            }
            observer.metrics().limit_hit("limits.connections");
        }
        let beyond = files::beyond(&stream);
        if beyond > 0 {
            if !doorman.lobby.see_out(|_| beyond, files::IN_ADVANCE) {
                // Closed at once as well: nobody could serve it, and what is left is needed for
                // those that are served.
                doorman.book.no_file(observer);
                return;
            }
            observer.metrics().limit_hit(files::OPEN_FILES);
        }
        if prepare(&stream, rules.tcp_keepalive).is_err() {
            return;
        }
        let id = ConnectionId(self.next.fetch_add(1, Ordering::Relaxed));
        let by_connection = rules.by_connection;
        let seat = rules.strangers.map(|bounds| {
            // Balancers are no clients, however many connections come from one.
            let per_address = bounds
                .per_address
                .filter(|_| rules.front.proxy_from.is_none());
            let at_first = Bounds {
                per_address,
                ..bounds
            };
            let seat = doorman.lobby.sit(id, peer.ip(), at_first, observer);
            seat.bound_by(bounds)
        });
        if !rules.front.is_plain() {
            let front = rules.front.clone();
            let connections = self.clone();
            let shared = shared.clone();
            self.tasks.spawn(async move {
                let passed = connections
                    .pass(&front, stream, peer, &shared, seat.as_ref())
                    .await;
                let Some((stream, client)) = passed else {
                    return;
                };
                // A certificate that was wanted is all that is asked of it.
                let seat = seat.filter(|_| shared.rules.load().mux.access.authenticates);
                // Its own allocation, so that no connection carries the other kind's state.
                if by_connection {
                    Box::pin(relay::run(shared, id, client, stream)).await;
                } else {
                    Box::pin(driver(shared, id, client, stream, seat).run()).await;
                }
            });
        } else if by_connection {
            let stream = Stream::Plain(stream);
            self.tasks
                .spawn(relay::run(shared.clone(), id, peer, stream));
        } else {
            let stream = Stream::Plain(stream);
            self.tasks
                .spawn(Driver::new(shared.clone(), id, peer, stream, seat).run());
        }
    }

    /// The connection behind the front, and where its client is.
    async fn pass(
        &self,
        front: &Front,
        stream: TcpStream,
        peer: SocketAddr,
        shared: &Shared,
        seat: Option<&Seat>,
    ) -> Option<(Stream, SocketAddr)> {
        let called = std::future::poll_fn(|task| match seat {
            Some(seat) => seat.poll_called(task),
            None => Poll::Pending,
        });
        let received = tokio::select! {
            received = front.receive(stream, peer, seat) => received,
            () = called => Err((peer, (NotAdmitted::Evicted, EVICTED.to_owned()))),
            () = self.closing.cancelled() => {
                let what = "Taxiway is shutting down".to_owned();
                Err((peer, (NotAdmitted::Left, what)))
            }
        };
        received
            .map_err(|(client, closed)| {
                shared.doorman.book.note(&shared.observer, client, closed);
            })
            .ok()
    }
}
