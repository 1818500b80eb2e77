//! One simulated server: options, start, stop, and the faults a test can put upon it.
//!
//! It must not know what a method does.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    process::id as process_id,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpSocket},
    sync::watch,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    connection,
    event::{Life, Numbers},
    home::Home,
    lifetime,
    misbehaviour::Misbehaviour,
    state::{Seen, State},
};

/// Where the simulated sessions pretend to live; no real server has a session there.
pub const ROOT: &str = "/simulated";
/// The working directory in their metadata.
pub(super) const WORK: &str = "/simulated/work";

/// In which order the requests of one connection are answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// As they came.
    Kept,
    /// Requests that arrive in one read are shuffled.
    Shuffled,
    /// Each request is held for a seeded time up to this one, so that requests written one after
    /// the other overtake each other too.
    Spread(Duration),
}

/// How a server is simulated.
#[derive(Clone)]
pub struct SimOptions {
    /// Where to listen; port 0 takes a free one.
    pub address: SocketAddr,
    /// The disk. Clone one to share it between servers.
    pub home: Home,
    /// What `COPILOT_CONNECTION_TOKEN` is to the real server.
    pub token: Option<String>,
    /// Announced in `connect` and `status.get`.
    pub version: String,
    /// For ids and for the order of answers.
    pub seed: u64,
    /// Order of answers.
    pub order: Order,
    /// Size of the text in `system.message`, bytes (about 42 000 in the real server).
    pub system_message: usize,
    /// How long an event may be in memory only; what is younger is lost by [`SimServer::kill`].
    pub flush_after: Duration,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            home: Home::new(),
            token: None,
            version: "1.0.102".to_owned(),
            seed: 1,
            order: Order::Shuffled,
            system_message: 256,
            // Measured: `user.message` was on disk 152–164 ms after the answer to its send.
            flush_after: Duration::from_millis(150),
        }
    }
}

/// What all tasks of one server share.
pub(super) struct Shared {
    pub(super) options: SimOptions,
    pub(super) numbers: Numbers,
    /// Stands for the process id in lock files.
    pub(super) process: u64,
    pub(super) stopped: CancellationToken,
    pub(super) tasks: TaskTracker,
    state: Mutex<State>,
    paused: watch::Sender<bool>,
}

impl Shared {
    /// The state; held for moments only.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns at once, unless the server is paused: then when it goes on or ends.
    pub(super) async fn awake(&self) {
        if !*self.paused.borrow() {
            return;
        }
        let mut paused = self.paused.subscribe();
        // Its sender lives in `self`, so the wait cannot fail.
        let goes_on = async { drop(paused.wait_for(|paused| !paused).await) };
        self.stopped.run_until_cancelled(goes_on).await;
    }

    /// Sends an event and makes sure that it gets on disk. `None`: the session is not open.
    pub(super) fn emit(
        self: &Arc<Self>,
        state: &mut State,
        session: &str,
        kind: &str,
        data: &str,
        life: Life,
    ) -> Option<()> {
        state.emit(session, &self.numbers.uuid(), kind, data, life)?;
        if life == Life::Kept {
            lifetime::flush_later(self, state, session);
        }
        Some(())
    }
}

/// A running simulated server. Dropping it is like SIGKILL.
pub struct SimServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    /// Holds the port while this lives, so that whoever asks for any free one is not given that of
    /// a server that was killed: its clients would meet a stranger. It never listens.
    _port: Option<TcpSocket>,
}

impl SimServer {
    /// Binds and starts. Must be called within a tokio runtime.
    ///
    /// On Linux nobody but another simulated server that names it is given the port as long as this
    /// lives, also when the server has ended.
    ///
    /// # Errors
    ///
    /// The address cannot be bound.
    pub async fn start(options: SimOptions) -> io::Result<Self> {
        static SERVERS: AtomicU64 = AtomicU64::new(1);
        let port = hold(options.address)?;
        let free = port.as_ref().map(TcpSocket::local_addr).transpose()?;
        let listener = TcpListener::bind(free.unwrap_or(options.address)).await?;
        let address = listener.local_addr()?;
        let number = SERVERS.fetch_add(1, Ordering::Relaxed);
        let process = (u64::from(process_id()) << 32) | number;
        // Two servers of one seed may share a disk, so ids must differ between servers.
        let seed = options.seed ^ (process << 16) ^ u64::from(address.port());
        let shared = Arc::new(Shared {
            options,
            numbers: Numbers::new(seed),
            process,
            stopped: CancellationToken::new(),
            tasks: TaskTracker::new(),
            state: Mutex::default(),
            paused: watch::Sender::new(false),
        });
        shared
            .tasks
            .spawn(connection::accept(shared.clone(), listener));
        Ok(Self {
            shared,
            address,
            _port: port,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it as SIGTERM does: nothing is drained, logs are completed, connections close.
    pub async fn stop(self) {
        lifetime::terminate(&self.shared);
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    /// Ends it as SIGKILL does: connections are reset, what was not on disk is lost.
    pub fn kill(&self) {
        lifetime::kill(&self.shared);
    }

    /// Returns when the server has ended, for example by `runtime.shutdown`.
    pub async fn ended(&self) {
        self.shared.stopped.cancelled().await;
    }

    /// Stops it in its tracks as SIGSTOP does: connections are still accepted, nothing answers.
    pub fn pause(&self) {
        self.shared.paused.send_replace(true);
    }

    /// Lets it go on, as SIGCONT does.
    pub fn resume(&self) {
        self.shared.paused.send_replace(false);
    }

    /// Ids of the sessions open here, sorted.
    pub fn open_sessions(&self) -> Vec<String> {
        let mut ids: Vec<_> = self.shared.lock().sessions.keys().cloned().collect();
        ids.sort();
        ids
    }

    /// Number of live connections.
    pub fn connections(&self) -> usize {
        self.shared.lock().peers.len()
    }

    /// Orders a fault.
    pub fn misbehave(&self, fault: Misbehaviour) {
        self.shared.lock().misbehaviours.push(fault);
    }

    /// Takes all ordered faults back.
    pub fn behave(&self) {
        self.shared.lock().misbehaviours.clear();
    }

    /// Requests and notifications of clients in the order they arrived, the latest 65 536.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.lock().seen.iter().cloned().collect()
    }
}

/// Takes a port for good. Linux lets a listener have what another socket is bound to that allows it
/// and does not listen; elsewhere the port is only taken while the server runs.
fn hold(address: SocketAddr) -> io::Result<Option<TcpSocket>> {
    if !cfg!(target_os = "linux") {
        return Ok(None);
    }
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(Some(socket))
}

impl Drop for SimServer {
    fn drop(&mut self) {
        lifetime::kill(&self.shared);
    }
}
