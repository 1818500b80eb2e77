//! The admin listener: accepts, bounds, serves.
//!
//! Every connection is bounded in head, body, time and number, so that nobody keeps the health
//! checks from being answered. Must not look into requests: that is the routes' part.

use std::{
    convert::Infallible,
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    thread,
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpStream, sync::Semaphore, time::timeout};
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
    /// Connections at a time; more are answered 503.
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
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Bound { listener, address })
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
    let seats = Arc::new(Semaphore::new(bounds.connections));
    let connections = TaskTracker::new();
    loop {
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
        match Arc::clone(&seats).try_acquire_owned() {
            Ok(seat) => {
                let (desk, bounds, shutdown) =
                    (Arc::clone(&desk), bounds.clone(), shutdown.clone());
                connections.spawn(async move {
                    serve(stream, client, &desk, &bounds, &shutdown).await;
                    drop(seat);
                });
            }
            Err(_) => {
                // What does not fit into the empty send buffer of a new connection is not sent.
                let _ = stream.try_write(FULL);
            }
        }
    }
    drop(listener);
    connections.close();
    // Whoever has not taken the answer by then is left.
    let _ = timeout(bounds.last_answer, connections.wait()).await;
    Ok(())
}

async fn serve(
    stream: TcpStream,
    client: SocketAddr,
    desk: &Desk,
    bounds: &Bounds,
    shutdown: &CancellationToken,
) {
    let service =
        service_fn(async |request| Ok::<_, Infallible>(desk.answer(client, request).await));
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
        () = shutdown.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(bounds.last_answer, connection).await;
}
