//! Composition root: builds every room from a configuration, runs them, drains them.
//!
//! Sockets are bound first, so that a clash is known before anything is started. Nothing is decided
//! here beyond the order of these steps.

mod backstage;
mod bridge;
mod reload;
mod start;
mod succession;

use std::{
    io,
    process::ExitCode,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

pub(crate) use self::start::say;
pub use self::start::{Origin, Predecessor, Start};
use self::{
    backstage::{Stage, Stagehand},
    bridge::{News, Port},
    reload::Reloader,
    start::{Keeping, Servers},
    succession::{Door, House, Sockets, Table},
};
use crate::{
    config::{self, Config},
    control::{
        activation::{self, Activated, Progress},
        admin::{AdminServer, Bound},
        pool::{Pool, PoolOptions},
        signal::{Signal, Signals},
        upgrade::{Primary, Wire},
    },
    core::{
        balance::Policy,
        event::Event,
        frame::FrameLimits,
        id::Secret,
        mux::{CreateExisting, Settings},
        peer::Message as PeerMessage,
        snapshot::{Backend, Health, Mode, Snapshot},
        strangers::Bounds,
    },
    observe::{self, Observer},
    proxy::{
        Doorman, Front, Hub, Moves, Pacer, Providers, Quota, Rules, Shared, hub::Message,
        listener::Connections, lobby, mover, quota,
    },
    store::Store,
    transport::{ClientAuth, files},
};

/// Exit code: an address cannot be bound, or something cannot be reached (sysexits EX_UNAVAILABLE).
const UNAVAILABLE: u8 = 69;

/// How long the first round of probes may hold back the first client.
const FIRST_ROUND: Duration = Duration::from_secs(5);

/// After the time to drain is over, connections get this long to take their last bytes.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// At the end, what waits to be written gets this long.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// Runs Taxiway until it is told to stop; returns the program's exit code.
pub fn run(start: Start) -> ExitCode {
    // First of all: it changes the environment.
    let activated = match Activated::from_environment() {
        Ok(activated) => activated,
        Err(error) => {
            eprintln!("taxiway: a socket of the service manager cannot be used: {error}");
            return ExitCode::from(UNAVAILABLE);
        }
    };
    let wanted = &start.config.log;
    let log = match observe::log::init(wanted.level, wanted.format) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("taxiway: {error}");
            return ExitCode::FAILURE;
        }
    };
    // Before any thread is there that could be in the middle of wanting one.
    let open_files = files::raise();
    if let Some(warning) = config::few_files(&start.config, open_files) {
        tracing::warn!(target: "taxiway", "{warning}");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("taxiway: cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(async {
        match succession::acquire(&start, activated).await {
            Ok(sockets) => match serve(start, sockets, log.clone()).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(code) => code,
            },
            Err(code) => code,
        }
    });
    // What still runs is a task that nobody waits for.
    runtime.shutdown_timeout(Duration::from_millis(200));
    log.flush(Duration::from_secs(1));
    code
}

/// What all parts of a running Taxiway hold on to.
struct App {
    config: Arc<ArcSwap<Config>>,
    rules: Arc<ArcSwap<Rules>>,
    shared: Shared,
    pool: Pool,
    connections: Connections,
    stage: Arc<Stage>,
    log: observe::log::LogHandle,
    /// The listener that accepts now; replaced when its address changes.
    accepting: Option<Accepting>,
    /// The admin server that serves now.
    admin: Option<Administration>,
    backstage: Arc<Stagehand>,
    /// Older processes.
    primary: Primary,
    /// Where the store is, when it is this process's.
    keeping: Keeping,
}

/// A listener that accepts.
struct Accepting {
    /// A copy of its socket.
    copy: std::net::TcpListener,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// An admin server that serves.
struct Administration {
    /// Its socket, for one with another token.
    bound: Bound,
    /// Ends it.
    stop: CancellationToken,
}

/// From the sockets to the end.
async fn serve(
    start: Start,
    mut sockets: Sockets,
    log: observe::log::LogHandle,
) -> Result<(), ExitCode> {
    let fail = |message: String| {
        eprintln!("taxiway: {message}");
        ExitCode::FAILURE
    };
    let mut signals =
        Signals::new().map_err(|error| fail(format!("cannot catch signals: {error}")))?;
    let observer = Observer::new(start.config.log.identities);
    observer.follow_log(&log);
    let (address, admin_address) = (sockets.address(&start.config), sockets.admin.address());
    let (wishes, wished) = mpsc::channel(16);
    let config = &start.config;
    let keeping = Keeping::new(config, &observer);
    let store = start::open_store(&start, &keeping)?;
    // Before anything else is learnt of sessions.
    let mut inheritance = sockets.inherit(&store).await?;
    let Sockets {
        listener,
        admin,
        rendezvous,
        instance,
        ..
    } = sockets;
    let mut admin = Some(admin);
    let mut app = App::build(&start.config, observer.clone(), log, wishes, store, keeping);
    if let Some(inheritance) = &mut inheritance {
        app.follow_wishes(inheritance.wishes());
    } else if let Some(admin) = admin.take() {
        // From here on health is answered, and says what is being waited for. A successor leaves
        // that to the process that still serves.
        app.start_administration(admin)
            .map_err(|error| fail(cannot_serve(admin_address, &error)))?;
    }
    // Before servers start, which takes seconds: a change meanwhile is a change.
    let mut reloader = Reloader::new(&start, wished);
    let mut hangup = false;
    let mut servers = Servers::start(&start, &observer, &app.pool)
        .await
        .map_err(|error| fail(error.to_string()))?;
    let came_up = tokio::select! {
        () = servers.come_up() => true,
        () = ends(&mut signals, &mut hangup) => false,
    };
    app.apply_backends(&servers);
    // Clients that connect by now wait in the listener's backlog: with no backend probed there
    // would be nothing to tell them.
    let probed = came_up
        && tokio::select! {
            () = app.probed() => true,
            () = ends(&mut signals, &mut hangup) => false,
        };
    if !probed {
        servers.stop().await;
        app.end_administration();
        return Ok(());
    }
    if let Some(inheritance) = inheritance {
        let store = app.shared.store.clone();
        let pid = inheritance.pid();
        // The last moment at which anything may fail.
        let taken = inheritance.take_over(&store, &app.primary).await;
        taken.map_err(|error| fail(error.to_string()))?;
        app.keeping.take(&store);
        app.took_over(pid);
    }
    if let Some(admin) = admin {
        app.start_administration(admin)
            .map_err(|error| fail(cannot_serve(admin_address, &error)))?;
    }
    let door = Door::new(listener)
        .map_err(|error| fail(format!("cannot listen on {address}: {error}")))?;
    app.accept(door);
    let (mut table, mut steps) = Table::start(&app, rendezvous, &start.config, instance)
        .map_err(|error| fail(format!("cannot serve upgrade.socket: {error}")))?;
    app.stage.ready.store(true, Ordering::Release);
    activation::notify(Progress::Ready);
    start::greet(&start, &servers, address, admin_address, &app.pool);
    let mut managed = servers.watch();

    if hangup {
        reloader.reload(&mut app, &servers, "signal", None).await;
    }
    let end = loop {
        tokio::select! {
            signal = signals.next() => match signal {
                Signal::Hangup => {
                    activation::notify(Progress::Reloading);
                    reloader.reload(&mut app, &servers, "signal", None).await;
                    activation::notify(Progress::Ready);
                }
                Signal::Upgrade => succession::start_successor(),
                Signal::Terminate | Signal::Interrupt => break End::Signal(signal),
            },
            wish = reloader.next() => {
                reloader.reload(&mut app, &servers, wish.trigger, wish.answer).await;
            }
            () = managed.changed() => app.apply_backends(&servers),
            step = steps.next() => {
                if let Some(wire) = app.do_step(step, start.origin).await {
                    break End::Retire(wire);
                }
            }
        }
    };
    // Whoever wishes for a reload from now on is refused, and does not wait for the end; so is a
    // successor.
    drop(reloader);
    drop(steps);
    match end {
        End::Signal(signal) => {
            activation::notify(Progress::Stopping);
            // A person at a terminal has no balancer that needs time to look away.
            let grace = if signal == Signal::Interrupt {
                Duration::ZERO
            } else {
                app.config.load().drain.accept_grace
            };
            app.drain(grace, &mut signals).await;
        }
        End::Retire(wire) => app.retire(wire, &mut table, &mut signals).await,
    }
    table.end().await;
    servers.stop().await;
    app.end_administration();
    // What could not be written in that time was said before.
    let _written = app.shared.store.close(LAST_WRITES).await;
    Ok(())
}

/// Why it does not go on as before.
enum End {
    /// It was asked to end.
    Signal(Signal),
    /// Another process has taken over, and is at the other end of this.
    Retire(Box<Wire>),
}

fn cannot_serve(address: std::net::SocketAddr, error: &io::Error) -> String {
    format!("cannot serve the admin address {address}: {error}")
}

/// Returns when an end is asked for; notes it if a reload is, which cannot be made yet.
async fn ends(signals: &mut Signals, hangup: &mut bool) {
    loop {
        match signals.next().await {
            Signal::Hangup => *hangup = true,
            Signal::Upgrade => {}
            Signal::Terminate | Signal::Interrupt => return,
        }
    }
}

impl App {
    fn build(
        config: &Config,
        observer: Observer,
        log: observe::log::LogHandle,
        wishes: mpsc::Sender<backstage::ReloadWish>,
        store: Store,
        keeping: Keeping,
    ) -> Self {
        let hub = Hub::default();
        let news = News {
            store: store.clone(),
            hub: hub.clone(),
            observer: observer.clone(),
        };
        let options = PoolOptions {
            keepalive: config.listener.tcp_keepalive,
            failover: config.failover.clone(),
            operators: store
                .operators()
                .into_iter()
                .map(|wish| (wish.backend, wish.state, wish.weight))
                .collect(),
            ..PoolOptions::new(config.routing.mode, config.health.clone())
        };
        store
            .lock()
            .forget_backends(|name| config.backends.iter().any(|b| b.name == *name));
        let pool = Pool::start(options, config.backends.clone(), Arc::new(news));
        let rules = Arc::new(ArcSwap::from_pointee(rules(config)));
        let port = Arc::new(Port(pool.clone()));
        let providers = Providers::new(
            port.clone(),
            store.clone(),
            hub.clone(),
            observer.clone(),
            rules.clone(),
        );
        let shared = Shared {
            pool: port,
            store: store.clone(),
            observer: observer.clone(),
            hub,
            rules: rules.clone(),
            providers,
            pacer: Pacer::default(),
            moves: Moves::default(),
            quota: Quota::default(),
            doorman: Doorman::default(),
        };
        tokio::spawn(mover::run(shared.clone(), CancellationToken::new()));
        let connections = Connections::default();
        let stage = Arc::new(Stage::default());
        let config = Arc::new(ArcSwap::from_pointee(config.clone()));
        let open = connections.clone();
        let house = House {
            observer: observer.clone(),
            pool: pool.clone(),
        };
        let primary = Primary::new(store.clone(), Arc::new(house));
        let backstage = Arc::new(Stagehand {
            pool: pool.clone(),
            store,
            observer,
            stage: stage.clone(),
            config: config.clone(),
            rules: rules.clone(),
            quota: shared.quota.clone(),
            doorman: shared.doorman.clone(),
            reload: wishes,
            open_connections: Arc::new(move || open.open()),
            primary: primary.clone(),
        });
        let app = Self {
            config,
            rules,
            shared,
            pool,
            connections,
            stage,
            log,
            accepting: None,
            admin: None,
            backstage,
            primary,
            keeping,
        };
        app.show_limits();
        app
    }

    /// Serves the admin address on a thread of its own: health is answered while all else is busy.
    /// The former server goes on until this one is handed to [`App::is_administered_by`].
    fn administer(&self, bound: Bound, token: Option<Secret>) -> io::Result<Administration> {
        let stop = CancellationToken::new();
        let socket = bound.try_clone()?;
        AdminServer::start(socket, self.backstage.clone(), token, stop.clone())?;
        Ok(Administration { bound, stop })
    }

    fn start_administration(&mut self, bound: Bound) -> io::Result<()> {
        let token = self.config.load().admin.token.clone();
        let admin = self.administer(bound, token)?;
        self.is_administered_by(admin);
        Ok(())
    }

    fn is_administered_by(&mut self, admin: Administration) {
        self.end_administration();
        self.admin = Some(admin);
    }

    fn end_administration(&mut self) {
        if let Some(former) = self.admin.take() {
            former.stop.cancel();
        }
    }

    /// Accepts clients there, and no longer on the listener before it.
    fn accept(&mut self, door: Door) {
        let stop = CancellationToken::new();
        let (connections, shared, token) =
            (self.connections.clone(), self.shared.clone(), stop.clone());
        let listener = door.listener;
        let task = tokio::spawn(async move { connections.accept(listener, shared, token).await });
        let accepting = Accepting {
            copy: door.copy,
            stop,
            task,
        };
        if let Some(former) = self.accepting.replace(accepting) {
            former.stop.cancel();
        }
    }

    /// Returns when every backend has been probed once, or has had its time for that.
    async fn probed(&self) {
        let mut snapshots = self.pool.snapshots();
        let all =
            snapshots.wait_for(|pool| pool.backends.iter().all(|b| b.health != Health::Unknown));
        let _late = tokio::time::timeout(FIRST_ROUND, all).await;
    }

    fn apply_backends(&self, servers: &Servers) {
        let config = self.config.load();
        self.pool.set_failover(config.failover.clone());
        self.pool
            .apply(servers.backends(&config), config.health.clone());
    }

    fn show_limits(&self) {
        let metrics = self.shared.observer.metrics();
        let limits = self.config.load().limits.clone();
        for (name, value) in [
            ("limits.frame", limits.frame),
            ("limits.header", limits.header),
            ("limits.calls_per_connection", limits.calls_per_connection),
            (
                "limits.sessions_per_connection",
                limits.sessions_per_connection,
            ),
            ("limits.connections", limits.connections),
            (lobby::TOTAL, limits.unauthenticated_connections),
            ("limits.directory_sessions", limits.directory_sessions),
        ] {
            metrics.set_limit(name, value as f64);
        }
        let most = limits.unauthenticated_per_address;
        let most = most.map_or(f64::INFINITY, |most| most as f64);
        metrics.set_limit(lobby::PER_ADDRESS, most);
        let caps = limits.caps;
        let wide = |most: Option<u32>| most.map(f64::from);
        for (name, most) in [
            (quota::CONNECTIONS, wide(caps.connections)),
            (quota::SESSIONS, wide(caps.sessions)),
            (quota::TURNS, wide(caps.turns)),
            (quota::CALLS, wide(caps.calls_per_second)),
            (quota::BYTES, caps.bytes_per_second.map(|n| n as f64)),
        ] {
            metrics.set_limit(name, most.unwrap_or(f64::INFINITY));
        }
        metrics.set_certificates(&self.config.load().certificates());
    }

    /// The end: readiness first, then the listener, then each connection when its turns are over.
    async fn drain(&mut self, grace: Duration, signals: &mut Signals) {
        let mut accepting = self.accepting.take();
        // The copy of the socket goes as well: who connects now is refused, and does not wait.
        let stop_accepting = |accepting: &mut Option<Accepting>| {
            if let Some(Accepting { stop, .. }) = accepting.take() {
                stop.cancel();
            }
        };
        let observer = &self.shared.observer;
        let drain = self.config.load().drain.clone();
        let note = |phase| {
            let turns = self.open_turns();
            observer.record(&Event::Drain {
                phase,
                connections: self.connections.open(),
                turns,
            });
        };
        self.stage.draining.store(true, Ordering::Release);
        note("started");
        let gently = async {
            tokio::time::sleep(grace).await;
            stop_accepting(&mut accepting);
            self.connections.close_front();
            self.shared.hub.publish(&Message::Drain);
            // Without this process the older ones would have nobody to ask.
            self.primary.tell(&PeerMessage::Drain);
            note("listener closed");
            let all = async {
                self.connections.ended().await;
                self.primary.alone().await;
            };
            tokio::time::timeout(drain.timeout, all).await.is_ok()
        };
        let ended = tokio::select! {
            ended = gently => ended,
            _ = signals.next_end() => false,
        };
        stop_accepting(&mut accepting);
        if !ended {
            self.connections.close_front();
            note("time is over");
            self.shared.hub.publish(&Message::Shutdown);
            let _late = tokio::time::timeout(LAST_WORDS, self.connections.ended()).await;
        }
        self.shared.doorman.tell_rest(observer);
        note("ended");
    }

    fn open_turns(&self) -> usize {
        let snapshot = self.pool.current();
        let directory = self.shared.store.lock();
        snapshot
            .backends
            .iter()
            .map(|b| directory.load(&b.name).turns as usize)
            .sum()
    }
}

/// How many clients may not have proved yet who they are, if they have to.
fn strangers(config: &Config) -> Option<Bounds> {
    let tls = config.listener.tls.as_ref();
    let asks = config.identity.access.authenticates
        || tls.is_some_and(|tls| tls.client_auth != ClientAuth::None);
    asks.then_some(Bounds {
        total: config.limits.unauthenticated_connections,
        per_address: config.limits.unauthenticated_per_address,
    })
}

/// The part of the configuration that the data plane obeys.
fn rules(config: &Config) -> Rules {
    let routing = &config.routing;
    let policy = match (routing.mode, routing.placement) {
        (Mode::Sticky, _) => Policy::Sticky {
            load_factor: routing.load_factor,
        },
        (Mode::SharedStorage, config::Placement::LeastLoaded) => Policy::LeastLoaded,
        (Mode::SharedStorage, config::Placement::P2c) => Policy::TwoChoices,
        (Mode::SharedStorage, config::Placement::RoundRobin) => Policy::RoundRobin,
    };
    Rules {
        mux: Settings {
            frame: FrameLimits {
                header: config.limits.header,
                frame: config.limits.frame,
            },
            cut_through_min: config.limits.cut_through_min,
            frame_timeout: config.limits.frame_timeout,
            handshake_timeout: config.listener.handshake_timeout,
            calls: config.limits.calls_per_connection,
            sessions: config.limits.sessions_per_connection,
            create_existing: match config.sessions.create_existing {
                config::CreateExisting::Resume => CreateExisting::Resume,
                config::CreateExisting::Pass => CreateExisting::Pass,
                config::CreateExisting::Reject => CreateExisting::Reject,
            },
            session_params: config.limits.session_params,
            home_wait: config.routing.home_wait,
            detach_grace: config.sessions.detach_grace,
            turn_stall: config.sessions.turn_stall,
            ends_stalled: config.sessions.turn_stall_action == config::StallAction::End,
            turns: config.sessions.turns,
            access: config.identity.access.clone(),
            revoke_grace: config.identity.revoke_grace,
            last_turns: config.drain.timeout,
            caps: config.limits.caps,
        },
        principals: config.identity.principals.clone(),
        policy,
        key_is_user: routing.key == config::Key::User,
        by_connection: routing.granularity == config::Granularity::Connection,
        aggregate_timeout: routing.aggregate_timeout,
        tcp_keepalive: config.listener.tcp_keepalive,
        write_stall: config.listener.write_stall,
        drain_timeout: config.drain.timeout,
        connections: config.limits.connections,
        strangers: strangers(config),
        front: Arc::new(Front {
            allow_from: config.listener.allow_from.clone(),
            proxy_from: config.listener.proxy_protocol_from.clone(),
            tls: config.listener.tls.as_ref().map(|tls| tls.acceptor.clone()),
            patience: config.listener.handshake_timeout,
        }),
    }
}

/// The pool of a configuration as it is when every backend is up and idle: for `taxiway check`.
pub fn idle_pool(config: &Config) -> Snapshot {
    let managed = config.managed.as_ref().into_iter().flat_map(|m| m.names());
    let backends: Vec<Backend> = managed
        .map(|name| config::Backend::new(name, ""))
        .chain(config.backends.iter().cloned())
        .map(|backend| Backend {
            name: backend.name,
            address: backend.address,
            token: None,
            weight: backend.weight,
            weight_permille: 1000,
            admin: backend.state,
            health: Health::Up,
            removed: false,
            released: false,
            protocol_version: None,
            version: None,
            task_kinds: Arc::from([]),
            disk_read: true,
        })
        .collect();
    Snapshot {
        generation: 0,
        mode: config.routing.mode,
        backends: backends.into(),
        panic: false,
    }
}
