//! One process takes over from another without a gap (DESIGN §5 "Upgrade").
//!
//! The running process waits on a Unix socket. The next one connects ([`ask`]), is given the
//! listening sockets and what is remembered, gets ready, and says when it takes over
//! ([`Inheritance::take_over`]). Until then the running process goes on; from then on it serves the
//! clients that it has and follows the new one (`secondary`), which decides (`primary`) who owns
//! what. Moves no client's frame and accepts none: that is done by whoever drives the [`Step`]s.

mod primary;
mod secondary;
mod successor;
mod wire;

use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt, PermissionsExt},
            net as blocking,
        },
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use thiserror::Error;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use self::primary::Synced;
pub use self::{
    primary::{Household, Primary},
    secondary::{Follower, Secondary, follow},
    successor::{Inheritance, UpgradeError, ask},
    wire::{Wire, WireError},
};
use crate::{
    core::{
        event::{Event, UpgradePhase},
        peer::{Instance, Message, Role, VERSIONS},
    },
    store::Store,
};

/// For one line of a handshake.
const PATIENCE: Duration = Duration::from_secs(5);

/// For a successor to become ready, and to take what it is given.
const GETTING_READY: Duration = Duration::from_secs(600);
const TAKING: Duration = Duration::from_secs(30);

/// Sessions that are told at a time.
const CHUNK: usize = 256;

/// After `accept` has failed for want of files or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The name of the rendezvous among the sockets that are handed over.
const RENDEZVOUS: &str = "upgrade";

/// This process, told from all others, past and to come.
pub fn own_instance() -> Instance {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Instance(format!("{}-{:x}", std::process::id(), now.as_nanos()))
}

/// The socket on which the next process asks.
#[derive(Debug)]
pub struct Rendezvous {
    listeners: Vec<blocking::UnixListener>,
}

/// Why there is none.
#[derive(Debug, Error)]
pub enum RendezvousError {
    /// A running Taxiway waits there.
    #[error(
        "{path} belongs to a running Taxiway: take over from it with `taxiway run --upgrade`, or \
         set another upgrade.socket"
    )]
    InUse {
        /// `upgrade.socket`
        path: PathBuf,
    },
    /// It cannot be made.
    #[error("cannot make the socket {path}: {error}")]
    Io {
        /// `upgrade.socket`
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl Rendezvous {
    /// Makes it; what a process that is dead has left there is replaced.
    ///
    /// # Errors
    /// Somebody else waits there, or it cannot be made.
    pub fn bind(path: &Path) -> Result<Self, RendezvousError> {
        let failed = |error| RendezvousError::Io {
            path: path.to_owned(),
            error,
        };
        if let Some(parent) = path.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(parent)
                .map_err(failed)?;
        }
        let listener = match blocking::UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                match blocking::UnixStream::connect(path) {
                    Ok(_) => return Err(RendezvousError::InUse { path: path.into() }),
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                    Err(error) => return Err(failed(error)),
                }
                fs::remove_file(path).map_err(failed)?;
                blocking::UnixListener::bind(path)
            }
            bound => bound,
        };
        let listener = listener.map_err(failed)?;
        // Whoever connects is looked at as well; this keeps others from trying.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self {
            listeners: vec![listener],
        })
    }

    /// As handed over; another one is made if the configuration wants another. The old one stays
    /// as well: that is where older processes look for this one.
    ///
    /// # Errors
    /// As for [`Rendezvous::bind`].
    pub fn adopt(path: &Path, handed: Vec<OwnedFd>) -> Result<Self, RendezvousError> {
        let mut listeners = Vec::new();
        let mut is_there = false;
        for socket in handed {
            let listener = blocking::UnixListener::from(socket);
            let address = listener.local_addr().ok();
            is_there |= address.is_some_and(|a| a.as_pathname() == Some(path));
            listeners.push(listener);
        }
        if !is_there {
            listeners.extend(Self::bind(path)?.listeners);
        }
        Ok(Self { listeners })
    }
}

/// What the process that is asked has to do, in this order.
#[derive(Debug)]
pub enum Step {
    /// Name the listening sockets and give copies, or say why there is no upgrade.
    Sockets(oneshot::Sender<Result<Vec<(String, OwnedFd)>, String>>),
    /// Stop accepting.
    Release(oneshot::Sender<()>),
    /// Nothing came of it: accept again.
    Resume,
    /// It is done: serve the clients that are there, and [`follow`] on this link.
    Retire(Box<Wire>),
}

/// The running process's side.
pub struct Upgrades {
    /// This process.
    pub instance: Instance,
    /// The other processes.
    pub primary: Primary,
    /// The table.
    pub store: Store,
    /// Where the news go.
    pub household: Arc<dyn Household>,
    /// To whoever does the steps.
    pub steps: mpsc::Sender<Step>,
}

/// What the tasks of [`Upgrades`] share.
struct Server {
    upgrades: Upgrades,
    rendezvous: Vec<OwnedFd>,
    /// A successor is getting ready.
    busy: AtomicBool,
    /// Connections are left waiting for the successor.
    waiting: watch::Sender<bool>,
    stop: CancellationToken,
}

impl Upgrades {
    /// Waits for successors, and for older processes, until `stop` or until one has taken over.
    /// Must be called in a tokio runtime.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn serve(self, rendezvous: Rendezvous, stop: CancellationToken) -> io::Result<()> {
        let mut copies = Vec::new();
        let mut listeners = Vec::new();
        for listener in rendezvous.listeners {
            copies.push(listener.as_fd().try_clone_to_owned()?);
            listeners.push(UnixListener::from_std(listener)?);
        }
        self.primary.expect_all();
        let server = Arc::new(Server {
            upgrades: self,
            rendezvous: copies,
            busy: AtomicBool::new(false),
            waiting: watch::Sender::new(false),
            stop,
        });
        for listener in listeners {
            tokio::spawn(server.clone().accept(listener));
        }
        Ok(())
    }
}

impl Server {
    async fn accept(self: Arc<Self>, listener: UnixListener) {
        let mut waiting = self.waiting.subscribe();
        loop {
            if *waiting.borrow_and_update() {
                // Whoever connects now is the successor's.
                tokio::select! {
                    () = self.stop.cancelled() => return,
                    _ = waiting.changed() => continue,
                }
            }
            let accepted = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                _ = waiting.changed() => continue,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let server = self.clone();
                    let stop = self.stop.clone();
                    tokio::spawn(async move {
                        tokio::select! {
                            () = server.converse(stream) => {}
                            () = stop.cancelled() => {}
                        }
                    });
                }
                Err(error) => {
                    tracing::debug!(target: "taxiway", %error, "accept on upgrade.socket failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn converse(&self, stream: UnixStream) {
        let us = rustix::process::geteuid().as_raw();
        let peer = stream.peer_cred();
        if !peer.is_ok_and(|peer| peer.uid() == us || peer.uid() == 0) {
            self.report(UpgradePhase::Failed, "somebody of another user connected");
            return;
        }
        let mut wire = Wire::new(stream);
        let hello = timeout(PATIENCE, wire.read()).await;
        let Ok(Ok(Message::Hello {
            versions,
            role,
            instance,
            taxiway,
        })) = hello
        else {
            tracing::debug!(target: "taxiway", "what came on upgrade.socket was no greeting");
            return;
        };
        let Some(version) = VERSIONS.into_iter().find(|v| versions.contains(v)) else {
            let reason = format!(
                "Taxiway {} and Taxiway {taxiway} speak no common version of the upgrade protocol; \
                 restart instead",
                env!("CARGO_PKG_VERSION")
            );
            self.refuse(&mut wire, reason).await;
            return;
        };
        let welcome = |sockets| Message::Welcome {
            version,
            taxiway: env!("CARGO_PKG_VERSION").to_owned(),
            instance: self.upgrades.instance.clone(),
            sockets,
        };
        match role {
            Role::Secondary if *self.waiting.borrow() => {}
            Role::Secondary => {
                if let Ok(Ok(())) = timeout(PATIENCE, wire.write(&[welcome(Vec::new())])).await {
                    self.upgrades.primary.serve(wire, instance, Synced::NotYet);
                }
            }
            Role::Successor if self.busy.swap(true, Ordering::AcqRel) => {
                let reason = "another upgrade is under way".to_owned();
                self.refuse(&mut wire, reason).await;
            }
            Role::Successor => {
                let (tell, sockets) = oneshot::channel();
                self.step(Step::Sockets(tell)).await;
                let gone = || Err("this Taxiway is shutting down".to_owned());
                let sockets = sockets.await.unwrap_or_else(|_| gone());
                match sockets.and_then(|sockets| self.with_rendezvous(sockets)) {
                    Ok((names, sockets)) => {
                        self.offer(wire, &instance, &welcome(names), sockets).await;
                    }
                    Err(reason) => self.refuse(&mut wire, reason).await,
                }
                self.busy.store(false, Ordering::Release);
            }
        }
    }

    fn with_rendezvous(
        &self,
        sockets: Vec<(String, OwnedFd)>,
    ) -> Result<(Vec<String>, Vec<OwnedFd>), String> {
        let (mut names, mut sockets): (Vec<_>, Vec<_>) = sockets.into_iter().unzip();
        for socket in &self.rendezvous {
            let copy = socket.try_clone().map_err(|error| error.to_string())?;
            names.push(RENDEZVOUS.to_owned());
            sockets.push(copy);
        }
        Ok((names, sockets))
    }

    async fn refuse(&self, wire: &mut Wire, reason: String) {
        self.report(UpgradePhase::Failed, &reason);
        // It may be gone already.
        let _gone = timeout(PATIENCE, wire.write(&[Message::Refused { reason }])).await;
    }

    /// From the sockets to the last word.
    async fn offer(
        &self,
        mut wire: Wire,
        instance: &Instance,
        welcome: &Message,
        sockets: Vec<OwnedFd>,
    ) {
        let ready = self.get_ready(&mut wire, welcome, sockets).await;
        if let Err(why) = ready {
            self.upgrades.store.take_back();
            self.report_of(UpgradePhase::Failed, instance, &why.to_string());
            return;
        }
        self.waiting.send_replace(true);
        self.upgrades.primary.pause().await;
        let (released, release) = oneshot::channel();
        self.step(Step::Release(released)).await;
        let handed = if release.await.is_ok() {
            let handing = self.hand_over(&mut wire);
            timeout(TAKING, handing)
                .await
                .unwrap_or(Err(WireError::Late))
        } else {
            Err(WireError::Ended)
        };
        match handed {
            Ok(()) => {
                self.upgrades.primary.pause().await;
                self.upgrades.primary.retire();
                self.report_of(UpgradePhase::Retired, instance, "");
                self.step(Step::Retire(Box::new(wire))).await;
                self.stop.cancel();
            }
            Err(why) => {
                // Before anything else: whoever comes too late must not be believed.
                drop(wire);
                self.upgrades.store.take_back();
                self.step(Step::Resume).await;
                self.upgrades.primary.expect_all();
                self.waiting.send_replace(false);
                self.report_of(UpgradePhase::Failed, instance, &why.to_string());
            }
        }
    }

    /// Nothing stands still yet.
    async fn get_ready(
        &self,
        wire: &mut Wire,
        welcome: &Message,
        sockets: Vec<OwnedFd>,
    ) -> Result<(), WireError> {
        let telling = async {
            wire.write_with_sockets(welcome, &sockets).await?;
            drop(sockets);
            expect(wire, &Message::Received).await?;
            let store = &self.upgrades.store;
            for sessions in store.begin_to_tell().chunks(CHUNK) {
                wire.write(&store.remembered(sessions)).await?;
            }
            wire.write(&self.upgrades.household.wishes()).await?;
            wire.write(&[Message::Synced]).await
        };
        timeout(TAKING, telling)
            .await
            .unwrap_or(Err(WireError::Late))?;
        self.report(UpgradePhase::Offered, "");
        timeout(GETTING_READY, expect(wire, &Message::TakeOver))
            .await
            .unwrap_or(Err(WireError::Late))
    }

    /// Nobody accepts, and claims wait.
    async fn hand_over(&self, wire: &mut Wire) -> Result<(), WireError> {
        let peers = self.upgrades.primary.holders();
        let estate = self.upgrades.store.hand_over(&peers);
        for messages in estate.messages.chunks(CHUNK) {
            wire.write(messages).await?;
        }
        wire.write(&[Message::Synced]).await?;
        expect(wire, &Message::Taken).await?;
        wire.write(&[Message::Retired]).await
    }

    async fn step(&self, step: Step) {
        // Nobody does steps any more when the program ends.
        let _ending = self.upgrades.steps.send(step).await;
    }

    fn report(&self, phase: UpgradePhase, detail: &str) {
        self.upgrades.household.record(Event::Upgrade {
            phase,
            peer: None,
            detail: detail.into(),
        });
    }

    fn report_of(&self, phase: UpgradePhase, instance: &Instance, detail: &str) {
        self.upgrades.household.record(Event::Upgrade {
            phase,
            peer: primary::pid_of(instance).and_then(|pid| u32::try_from(pid).ok()),
            detail: detail.into(),
        });
    }
}

async fn expect(wire: &mut Wire, wanted: &Message) -> Result<(), WireError> {
    if wire.read().await? == *wanted {
        Ok(())
    } else {
        Err(WireError::Unexpected)
    }
}
