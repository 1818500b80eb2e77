//! What every test of this crate is built from: servers, a proxy, clients, an operator.

mod admin;
mod broken;
mod certs;
mod client;
mod companion;
mod conf;
mod process;
mod raw;

use std::{future::Future, time::Duration};

use taxiway::sim::{Home, SimOptions, SimServer};
use tokio::time::Instant;

pub(crate) use self::{
    admin::Admin,
    broken::{Broken, Spoil},
    certs::{Authority, Gate, Pair, Secure, put, put_pair},
    client::{Client, Failure, event},
    companion::Companion,
    conf::{Conf, free_address},
    process::Taxiway,
    raw::{Raw, frame},
};

/// Between two looks at a condition.
const LOOK: Duration = Duration::from_millis(10);

/// The most that an await inside a test may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Ends a test that hangs.
pub(crate) async fn bounded<T>(seconds: u64, test: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(seconds), test)
        .await
        .unwrap_or_else(|_| panic!("the test did not end within {seconds} s"))
}

/// Looks until `holds` gives something; fails with what was awaited, and the last thing seen.
pub(crate) async fn until<T, W: std::fmt::Debug>(
    what: &str,
    mut holds: impl AsyncFnMut() -> Result<T, W>,
) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        match holds().await {
            Ok(found) => return found,
            Err(seen) if Instant::now() >= end => panic!("{what} did not come; last: {seen:?}"),
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

/// Whether simulated servers share their disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disks {
    Separate,
    Shared,
}

/// Simulated servers `s1`, `s2`, ….
pub(crate) struct Sims {
    servers: Vec<SimServer>,
    homes: Vec<Home>,
}

impl Sims {
    pub(crate) async fn start(count: usize, disks: Disks) -> Self {
        let mut sims = Self {
            servers: Vec::new(),
            homes: Vec::new(),
        };
        let common = Home::new();
        for _ in 0..count {
            sims.add(match disks {
                Disks::Separate => Home::new(),
                Disks::Shared => common.clone(),
            })
            .await;
        }
        sims
    }

    /// One more, on this disk.
    pub(crate) async fn add(&mut self, home: Home) {
        let server = SimServer::start(SimOptions {
            home: home.clone(),
            seed: self.servers.len() as u64 + 1,
            ..SimOptions::default()
        });
        self.servers.push(server.await.unwrap());
        self.homes.push(home);
    }

    pub(crate) fn count(&self) -> usize {
        self.servers.len()
    }

    /// By name.
    pub(crate) fn get(&self, name: &str) -> &SimServer {
        &self.servers[Self::position(name)]
    }

    pub(crate) fn home(&self, name: &str) -> &Home {
        &self.homes[Self::position(name)]
    }

    pub(crate) fn names(&self) -> Vec<String> {
        (1..=self.servers.len()).map(|n| format!("s{n}")).collect()
    }

    /// The name of the one server that has this session open; fails if it is open on several.
    pub(crate) fn owner(&self, session: &str) -> Option<String> {
        let owners: Vec<String> = self
            .names()
            .into_iter()
            .filter(|name| self.get(name).open_sessions().iter().any(|s| s == session))
            .collect();
        assert!(owners.len() <= 1, "{session} is open on {owners:?}");
        owners.into_iter().next()
    }

    /// Kills one and starts it anew at the same address, on the same disk.
    pub(crate) async fn restart(&mut self, name: &str) {
        let at = Self::position(name);
        let address = self.servers[at].address();
        self.servers[at].kill();
        let home = self.homes[at].clone();
        let started = until("the address of the killed server", async || {
            SimServer::start(SimOptions {
                address,
                home: home.clone(),
                seed: at as u64 + 1,
                ..SimOptions::default()
            })
            .await
        });
        self.servers[at] = started.await;
    }

    fn position(name: &str) -> usize {
        let number: usize = name.strip_prefix('s').unwrap().parse().unwrap();
        number - 1
    }
}

/// Servers, and a proxy in front of them.
pub(crate) struct Rig {
    pub(crate) sims: Sims,
    pub(crate) taxiway: Taxiway,
}

impl Rig {
    /// Separate disks, `sticky`, quick probes.
    pub(crate) async fn sticky(count: usize) -> Self {
        Self::with(count, Disks::Separate, |conf| conf).await
    }

    /// One disk, `shared-storage`, quick probes.
    pub(crate) async fn shared(count: usize) -> Self {
        Self::with(count, Disks::Shared, |conf| conf).await
    }

    /// The same, with other settings.
    pub(crate) async fn with(
        count: usize,
        disks: Disks,
        settings: impl FnOnce(Conf) -> Conf,
    ) -> Self {
        let sims = Sims::start(count, disks).await;
        let conf = settings(Conf::new(disks).all_of(&sims));
        let taxiway = Taxiway::start(conf).await;
        Self { sims, taxiway }
    }

    /// A client that has said `connect`.
    pub(crate) async fn client(&self) -> Client {
        Client::greeted(self.taxiway.address()).await
    }

    pub(crate) fn admin(&self) -> &Admin {
        &self.taxiway.admin
    }
}

/// A session id of a user of its own that Taxiway would put on `backend` now.
pub(crate) async fn id_placed_on(admin: &Admin, backend: &str, purpose: &str) -> String {
    for n in 0..1000 {
        let id = format!("user-{purpose}{n}--x");
        let told = admin.get(&format!("/api/v1/sessions/{id}/explain")).await;
        if told["placement_if_new"]["backend"] == backend {
            return id;
        }
    }
    panic!("no id of a thousand is placed on {backend}");
}
