//! Where the listening sockets come from, and who gets them: this process from another one, from the
//! service manager or from nobody, and the next process from this one.
//!
//! Joins `control::upgrade` with the rest; who says what to whom is decided there.

use std::{
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    process::ExitCode,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{App, Origin, Predecessor, Start, UNAVAILABLE, start};
use crate::{
    config::{Config, UpgradeSocket},
    control::{
        activation::Activated,
        admin::{AdminServer, Bound},
        pool::Pool,
        signal::Signals,
        upgrade::{
            self, Follower, Household, Inheritance, Rendezvous, RendezvousError, Secondary, Step,
            Upgrades, Wire,
        },
    },
    core::{
        event::{Event, UpgradePhase},
        id::SessionId,
        identity::Person,
        peer::{self, Instance, Message},
        snapshot::AdminState,
    },
    observe::Observer,
    proxy::{
        hub::{self, Hub},
        listener,
    },
    store::Store,
};

/// The names of the sockets, for the service manager and among processes.
const LISTENER: &str = "listener";
const ADMIN: &str = "admin";

/// Exit code: the configuration does not allow what is asked for.
const CONFIG: u8 = 78;

/// A successor does not wait for a disk that hangs; nor does it get the file then, until it does not.
const LAST_WRITES: Duration = Duration::from_secs(2);

/// For the last lines to the newest process.
const LAST_LINES: Duration = Duration::from_secs(2);

/// The sockets of a start.
pub(super) struct Sockets {
    /// Where clients connect.
    pub(super) listener: std::net::TcpListener,
    /// Where operators do.
    pub(super) admin: Bound,
    /// Where the next process asks, if there is such a place.
    pub(super) rendezvous: Option<Rendezvous>,
    /// What else the running process gives.
    inheritance: Option<Inheritance>,
    pub(super) instance: Instance,
}

/// Takes over, finds or binds the sockets of this start: so that a clash is known before anything
/// is started.
pub(super) async fn acquire(start: &Start, mut activated: Activated) -> Result<Sockets, ExitCode> {
    let config = &start.config;
    let instance = upgrade::own_instance();
    let mut inheritance = match start.predecessor {
        Predecessor::None => None,
        Predecessor::Running => Some(ask(start, &instance).await?),
    };
    let handed = inheritance.as_mut().map(|inheritance| {
        let mut take = |name| inheritance.take(name).into_iter().next();
        let (listener, admin) = (take(LISTENER), take(ADMIN));
        (listener, admin, inheritance.take_rendezvous())
    });
    let (listener, admin, rendezvous) = handed.unwrap_or_default();
    let address = config.listener.address;
    let listener = match found(listener, &mut activated, LISTENER, address) {
        Some(listener) => listener,
        None => match listener::bind(address).and_then(TcpListener::into_std) {
            Ok(listener) => listener,
            Err(error) => {
                eprintln!("taxiway: cannot listen on {address}: {error}");
                if error.kind() == io::ErrorKind::AddrInUse {
                    eprintln!("{}", start::who_is_there(address).await);
                }
                return Err(ExitCode::from(UNAVAILABLE));
            }
        },
    };
    let address = config.admin.address;
    let bound = match found(admin, &mut activated, ADMIN, address) {
        Some(admin) => Bound::adopt(admin),
        None => AdminServer::bind(address),
    };
    let admin = bound.map_err(|error| {
        eprintln!("taxiway: cannot serve the admin address {address}: {error}");
        ExitCode::from(UNAVAILABLE)
    })?;
    for address in activated.left() {
        eprintln!(
            "taxiway: the service manager gave a socket at {address}, which is neither \
             listener.address nor admin.address, nor named `{LISTENER}` or `{ADMIN}`: not used"
        );
    }
    let rendezvous = make_rendezvous(&config.upgrade.socket, rendezvous)?;
    Ok(Sockets {
        listener,
        admin,
        rendezvous,
        inheritance,
        instance,
    })
}

/// A socket that is there already, if it is the one that is wanted.
fn found(
    handed: Option<OwnedFd>,
    activated: &mut Activated,
    name: &str,
    address: SocketAddr,
) -> Option<std::net::TcpListener> {
    let handed = handed.map(std::net::TcpListener::from).filter(|socket| {
        let at = socket.local_addr().ok();
        at.is_some_and(|at| at == address || (address.port() == 0 && at.ip() == address.ip()))
    });
    handed
        .or_else(|| activated.take(name, address))
        .filter(|socket| socket.set_nonblocking(true).is_ok())
}

async fn ask(start: &Start, instance: &Instance) -> Result<Inheritance, ExitCode> {
    if let Some(why) = keeps_servers(start.origin, &start.config) {
        eprintln!("taxiway: --upgrade is not possible: {why}");
        return Err(ExitCode::from(CONFIG));
    }
    let Some(path) = start.config.upgrade.socket.path() else {
        eprintln!(
            "taxiway: --upgrade needs to know where the running Taxiway waits: set upgrade.socket \
             (for both), or the environment variable XDG_RUNTIME_DIR"
        );
        return Err(ExitCode::from(CONFIG));
    };
    upgrade::ask(path, instance).await.map_err(|error| {
        eprintln!("taxiway: {error}");
        match error {
            upgrade::UpgradeError::Nobody { .. } => ExitCode::from(UNAVAILABLE),
            upgrade::UpgradeError::Refused(_) | upgrade::UpgradeError::Broken(_) => {
                ExitCode::FAILURE
            }
        }
    })
}

/// Starts this program again, as it is on disk now, to take over from this process: for a service
/// manager, to which the new one has to be of the same service. What becomes of it shows on the
/// upgrade socket.
pub(super) fn start_successor() {
    let mut words = std::env::args_os();
    let program = words.next().unwrap_or_else(|| "taxiway".into());
    let mut words: Vec<_> = words.collect();
    let flag = std::ffi::OsString::from("--upgrade");
    if !words.contains(&flag) {
        words.push(flag);
    }
    let started = tokio::process::Command::new(program)
        .args(words)
        .stdin(std::process::Stdio::null())
        .spawn();
    match started {
        // The runtime reaps it if it ends first.
        Ok(child) => drop(child),
        Err(error) => {
            tracing::error!(target: "taxiway", %error, "cannot start a successor");
        }
    }
}

/// Why servers that a process runs itself stand in the way of an upgrade, if there are some.
fn keeps_servers(origin: Origin, config: &Config) -> Option<&'static str> {
    if origin == Origin::Simulated {
        return Some("the simulated servers end with the process that runs them");
    }
    config.managed.as_ref().map(|_| {
        "managed servers end with the process that has started them. Restart Taxiway instead \
         (SIGTERM waits for the end of running turns), or run the servers by themselves and name \
         them in [[backends]]"
    })
}

fn make_rendezvous(
    wanted: &UpgradeSocket,
    handed: Vec<OwnedFd>,
) -> Result<Option<Rendezvous>, ExitCode> {
    let Some(path) = wanted.path() else {
        return Ok(None);
    };
    match Rendezvous::adopt(path, handed) {
        Ok(rendezvous) => Ok(Some(rendezvous)),
        Err(error @ RendezvousError::Io { .. }) if matches!(wanted, UpgradeSocket::Usual(_)) => {
            tracing::warn!(target: "taxiway", %error, "no upgrade will be possible");
            Ok(None)
        }
        Err(error) => {
            eprintln!("taxiway: upgrade.socket: {error}");
            Err(ExitCode::from(UNAVAILABLE))
        }
    }
}

impl Sockets {
    /// Where clients connect; tells the port if port 0 was asked for.
    pub(super) fn address(&self, config: &Config) -> SocketAddr {
        self.listener
            .local_addr()
            .unwrap_or(config.listener.address)
    }

    /// Learns what the running process remembers, if there is one.
    pub(super) async fn inherit(&mut self, store: &Store) -> Result<Option<Inheritance>, ExitCode> {
        let Some(mut inheritance) = self.inheritance.take() else {
            return Ok(None);
        };
        inheritance.remember(store).await.map_err(|error| {
            eprintln!("taxiway: {error}");
            ExitCode::FAILURE
        })?;
        Ok(Some(inheritance))
    }
}

/// A listener that is ready to accept, and a copy of its socket for another process.
pub(super) struct Door {
    pub(super) listener: TcpListener,
    pub(super) copy: std::net::TcpListener,
}

impl Door {
    pub(super) fn new(socket: std::net::TcpListener) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            copy: socket.try_clone()?,
            listener: TcpListener::from_std(socket)?,
        })
    }
}

/// What operators want now: of one backend, or of all.
pub(super) fn wishes(pool: &Pool, of: Option<&str>) -> Vec<Message> {
    pool.observations()
        .into_iter()
        .filter(|seen| of.is_none_or(|name| seen.name.as_str() == name))
        .map(|seen| Message::Operator {
            backend: seen.name.to_string(),
            state: seen.operator.map(peer::Wish::from),
            weight: seen.operator_weight,
        })
        .collect()
}

/// What the table of processes needs of this one.
pub(super) struct House {
    pub(super) observer: Observer,
    pub(super) pool: Pool,
}

impl Household for House {
    fn record(&self, event: Event) {
        self.observer.record(&event);
    }

    fn wishes(&self) -> Vec<Message> {
        wishes(&self.pool, None)
    }
}

/// What this process does as the newest says.
struct Obedience {
    observer: Observer,
    pool: Pool,
    hub: Hub,
    drain: Notify,
}

impl Follower for Obedience {
    fn record(&self, event: Event) {
        self.observer.record(&event);
    }

    fn wish(&self, backend: &str, state: Option<peer::Wish>, weight: Option<u32>) {
        wish(&self.pool, backend, state, weight);
    }

    fn owned(&self, session: &SessionId, person: Person) {
        let news = hub::News::Owned(session.clone(), Arc::new(person));
        self.hub.tell(news);
    }

    fn drain(&self) {
        self.drain.notify_one();
    }
}

fn wish(pool: &Pool, backend: &str, state: Option<peer::Wish>, weight: Option<u32>) {
    // The other process may know backends that this one does not.
    let _unknown = pool.set_admin(backend, state.map(AdminState::from), "upgrade");
    let _unknown = pool.set_weight(backend, weight);
}

/// This process among the others.
pub(super) struct Table {
    instance: Instance,
    path: Option<std::path::PathBuf>,
    stop: CancellationToken,
    following: Option<JoinHandle<()>>,
}

/// Steps that a successor asks for.
pub(super) struct Steps(mpsc::Receiver<Step>);

impl Steps {
    /// The next one.
    pub(super) async fn next(&mut self) -> Step {
        match self.0.recv().await {
            Some(step) => step,
            None => std::future::pending().await,
        }
    }
}

impl Table {
    /// Waits for successors and older processes, if there is a place to.
    pub(super) fn start(
        app: &App,
        rendezvous: Option<Rendezvous>,
        config: &Config,
        instance: Instance,
    ) -> io::Result<(Self, Steps)> {
        let (steps, stepping) = mpsc::channel(1);
        let stop = CancellationToken::new();
        if let Some(rendezvous) = rendezvous {
            let house = House {
                observer: app.shared.observer.clone(),
                pool: app.pool.clone(),
            };
            let upgrades = Upgrades {
                instance: instance.clone(),
                primary: app.primary.clone(),
                store: app.shared.store.clone(),
                household: Arc::new(house),
                steps,
            };
            upgrades.serve(rendezvous, stop.clone())?;
        }
        let table = Self {
            instance,
            path: config.upgrade.socket.path().map(Into::into),
            stop,
            following: None,
        };
        Ok((table, Steps(stepping)))
    }

    /// The last lines, and no more.
    pub(super) async fn end(&mut self) {
        self.stop.cancel();
        if let Some(following) = self.following.take() {
            let _late = tokio::time::timeout(LAST_LINES, following).await;
        }
    }
}

impl App {
    /// What operators wanted of the process before this one.
    pub(super) fn follow_wishes(&self, wishes: Vec<(String, Option<peer::Wish>, Option<u32>)>) {
        for (backend, state, weight) in wishes {
            if state.is_some() || weight.is_some() {
                wish(&self.pool, &backend, state, weight);
            }
        }
    }

    pub(super) fn took_over(&self, from: Option<u32>) {
        self.shared.observer.record(&Event::Upgrade {
            phase: UpgradePhase::TakenOver,
            peer: from,
            detail: "".into(),
        });
    }

    /// Does a step; gives the link to the newest process when that is done.
    pub(super) async fn do_step(&mut self, step: Step, origin: Origin) -> Option<Box<Wire>> {
        match step {
            Step::Sockets(answer) => {
                let sockets = match keeps_servers(origin, &self.config.load()) {
                    Some(why) => Err(why.to_owned()),
                    None => self.copies().map_err(|error| error.to_string()),
                };
                // The successor may have given up.
                let _gone = answer.send(sockets);
            }
            Step::Release(done) => {
                self.stage.retired.store(true, Ordering::Release);
                if let Some(accepting) = &mut self.accepting {
                    accepting.stop.cancel();
                    // What it has accepted is this process's.
                    let _ended = (&mut accepting.task).await;
                }
                if let Some(admin) = &self.admin {
                    admin.stop.cancel();
                }
                // The file is the successor's next, which is told everything that comes after this.
                let _written = self.shared.store.close(LAST_WRITES).await;
                let _gone = done.send(());
            }
            Step::Resume => {
                self.stage.retired.store(false, Ordering::Release);
                self.keeping.take(&self.shared.store);
                if let Err(error) = self.resume() {
                    tracing::error!(target: "taxiway", %error, "cannot listen again");
                }
            }
            Step::Retire(wire) => return Some(wire),
        }
        None
    }

    fn copies(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        let mut copies = Vec::new();
        if let Some(accepting) = &self.accepting {
            copies.push((LISTENER.to_owned(), accepting.copy.try_clone()?.into()));
        }
        if let Some(admin) = &self.admin {
            copies.push((ADMIN.to_owned(), admin.bound.socket()?));
        }
        Ok(copies)
    }

    fn resume(&mut self) -> io::Result<()> {
        if let Some(accepting) = self.accepting.take() {
            self.accept(Door::new(accepting.copy)?);
        }
        if let Some(bound) = self.admin.as_ref().map(|admin| admin.bound.try_clone()) {
            self.start_administration(bound?)?;
        }
        Ok(())
    }

    /// Serves the clients that are there, until they have left or their time is over.
    pub(super) async fn retire(
        &mut self,
        wire: Box<Wire>,
        table: &mut Table,
        signals: &mut Signals,
    ) {
        // The sockets are another process's now.
        self.accepting = None;
        self.end_administration();
        let obedience = Arc::new(Obedience {
            observer: self.shared.observer.clone(),
            pool: self.pool.clone(),
            hub: self.shared.hub.clone(),
            drain: Notify::new(),
        });
        let secondary = Secondary {
            instance: table.instance.clone(),
            path: table.path.clone().unwrap_or_default(),
            store: self.shared.store.clone(),
            follower: obedience.clone(),
        };
        table.stop = CancellationToken::new();
        let following = upgrade::follow(secondary, *wire, table.stop.clone());
        table.following = Some(tokio::spawn(following));
        let timeout = self.config.load().upgrade.timeout;
        tokio::select! {
            () = self.connections.ended() => return,
            () = tokio::time::sleep(timeout) => {}
            _ = signals.next_end() => {}
            () = obedience.drain.notified() => {}
        }
        self.drain(Duration::ZERO, signals).await;
    }
}
