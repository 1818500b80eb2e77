//! The admin listener: accepts, bounds, serves.
//!
//! Every connection is bounded in head, body, time and number, so that nobody keeps the health
//! checks from being answered. Must not look into requests: that is the routes' part.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpStream, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Backstage, api::Desk, gate::Gate};
use crate::core::id::Secret;

/// A listener that is bound and not served yet.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
}

impl Bound {
    /// Where it listens; tells the port if port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A socket that was bound by somebody else.
    ///
    /// # Errors
    /// It is no listening socket.
    pub fn adopt(listener: TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// A copy of the socket, for another process.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn socket(&self) -> io::Result<OwnedFd> {
        Ok(self.listener.try_clone()?.into())
    }

    /// The same socket once more: a server with another token can take over without a gap.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            listener: self.listener.try_clone()?,
            address: self.address,
        })
    }
}

/// How much a client may take.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    /// Connections at a time: one more takes the place of the oldest that asks for nothing, and is
    /// answered 503 if all are being answered.
    pub(super) connections: usize,
    /// For a head to arrive, and for an idle connection to ask again.
    pub(super) head_timeout: Duration,
    /// For a body to arrive.
    pub(super) body_timeout: Duration,
    /// After so long a connection ends with the answer it is in.
    pub(super) lifetime: Duration,
    /// For that answer, and for those in progress at the end of the server.
    pub(super) last_answer: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: 128,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(5),
            lifetime: Duration::from_secs(120),
            last_answer: Duration::from_secs(2),
        }
    }
}

/// Largest head of a request, in bytes; hyper keeps this much of a buffer.
const HEAD: usize = 16 * 1024;

/// Most headers of a request.
const HEADERS: usize = 64;

/// Before accept is tried again when the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// For a connection too many.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n\
    retry-after: 1\r\ncontent-length: 0\r\n\r\n";

/// The admin server.
#[derive(Debug)]
pub struct AdminServer;

impl AdminServer {
    /// Takes the address, so that a clash is known before anything else is started.
    pub fn bind(address: SocketAddr) -> io::Result<Bound> {
        Bound::adopt(TcpListener::bind(address)?)
    }

    /// Serves until `shutdown`, then lets the answers in progress end.
    ///
    /// Fails only if the listener cannot be served at all.
    pub async fn run(
        bound: Bound,
        backstage: Arc<dyn Backstage>,
        token: Option<Secret>,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        run_within(bound, backstage, token, shutdown, Bounds::default()).await
    }

    /// [`AdminServer::run`] on a thread of its own: health is answered while all else is busy.
    pub fn start(
        bound: Bound,
        backstage: Arc<dyn Backstage>,
        token: Option<Secret>,
        shutdown: CancellationToken,
    ) -> io::Result<thread::JoinHandle<io::Result<()>>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        thread::Builder::new()
            .name("taxiway-admin".into())
            .spawn(move || runtime.block_on(Self::run(bound, backstage, token, shutdown)))
    }
}

/// What a connection does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Use {
    /// It has not asked yet.
    Silent,
    /// It has its answer, and may ask again.
    Answered,
    /// It is being answered.
    Answering,
}

/// A connection's right to be served.
struct Seat {
    /// A [`Use`].
    used: AtomicU8,
    /// Asks the connection to end.
    end: CancellationToken,
}

impl Seat {
    fn use_is(&self, now: Use) {
        self.used.store(now as u8, Ordering::Release);
    }

    fn use_now(&self) -> Use {
        match self.used.load(Ordering::Acquire) {
            0 => Use::Silent,
            1 => Use::Answered,
            _ => Use::Answering,
        }
    }
}

/// The seats that are taken, by age. Whoever only holds connections open must not keep the health
/// checks out.
#[derive(Default)]
struct Seats {
    taken: Mutex<BTreeMap<u64, Arc<Seat>>>,
}

impl Seats {
    /// A seat, if need be that of the oldest connection that asks for nothing: one that never did
    /// rather than one that was answered.
    fn take(&self, number: u64, most: usize, shutdown: &CancellationToken) -> Option<Arc<Seat>> {
        let mut taken = self.taken();
        if taken.len() >= most {
            let idle = taken
                .iter()
                .map(|(number, seat)| (seat.use_now(), *number))
                .filter(|(used, _)| *used != Use::Answering)
                .min()?;
            taken.remove(&idle.1)?.end.cancel();
        }
        let seat = Arc::new(Seat {
            used: AtomicU8::new(Use::Silent as u8),
            end: shutdown.child_token(),
        });
        taken.insert(number, Arc::clone(&seat));
        Some(seat)
    }

    fn leave(&self, number: u64) {
        self.taken().remove(&number);
    }

    fn taken(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Seat>>> {
        // The map is whole at every moment, so a panic elsewhere spoils nothing.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) async fn run_within(
    bound: Bound,
    backstage: Arc<dyn Backstage>,
    token: Option<Secret>,
    shutdown: CancellationToken,
    bounds: Bounds,
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(bound.listener)?;
    let desk = Arc::new(Desk {
        backstage,
        gate: Gate::new(bound.address.ip(), token.as_ref()),
        body_timeout: bounds.body_timeout,
    });
    let seats = Arc::new(Seats::default());
    let connections = TaskTracker::new();
    for number in 0_u64.. {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(target: "taxiway", %error, "admin accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Those that gave up their seat may still be taking their last answer.
        let crowded = connections.len() >= bounds.connections.saturating_mul(2);
        let seat = if crowded {
            None
        } else {
            seats.take(number, bounds.connections, &shutdown)
        };
        let Some(seat) = seat else {
            // What does not fit into the empty send buffer of a new connection is not sent.
            let _ = stream.try_write(FULL);
            continue;
        };
        let (desk, bounds, seats) = (Arc::clone(&desk), bounds.clone(), Arc::clone(&seats));
        connections.spawn(async move {
            serve(stream, client, &desk, &bounds, &seat).await;
            seats.leave(number);
        });
    }
    drop(listener);
    connections.close();
    // Whoever has not taken the answer by then is left.
    let _ = timeout(bounds.last_answer, connections.wait()).await;
    Ok(())
}

async fn serve(stream: TcpStream, client: SocketAddr, desk: &Desk, bounds: &Bounds, seat: &Seat) {
    let service = service_fn(async |request| {
        seat.use_is(Use::Answering);
        let answer = desk.answer(client, request).await;
        seat.use_is(Use::Answered);
        Ok::<_, Infallible>(answer)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.head_timeout)
        .max_buf_size(HEAD)
        .max_headers(HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        // The client's errors are the client's business.
        _ = connection.as_mut() => return,
        () = tokio::time::sleep(bounds.lifetime) => {}
        () = seat.end.cancelled() => {}
    }
    if seat.use_now() == Use::Silent {
        // There is no answer that could be lost.
        return;
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(bounds.last_answer, connection).await;
}
