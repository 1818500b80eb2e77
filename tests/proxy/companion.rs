//! `taxiway companion`: plain TCP from a client, mTLS to a Taxiway.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::rig::{
    Authority, Client, Companion, Conf, Disks, Pair, Sims, Taxiway, bounded, free_address, put,
    put_pair, until,
};

const WITH_CERTIFICATE: [&str; 8] = [
    "--ca",
    "ca.pem",
    "--cert",
    "client.pem",
    "--key",
    "client.key",
    "--server-name",
    "localhost",
];

/// Servers, a Taxiway that wants certificates, and the companion's files.
struct Stage {
    ca: Authority,
    _sims: Sims,
    taxiway: Taxiway,
    folder: TempDir,
}

impl Stage {
    async fn new(server: impl Fn(&Authority) -> Pair) -> Self {
        let ca = Authority::new("authority");
        let sims = Sims::start(2, Disks::Separate).await;
        let conf = Conf::new(Disks::Separate)
            .all_of(&sims)
            .text("listener.tls.cert", "server.pem")
            .text("listener.tls.key", "server.key")
            .text("listener.tls.client_ca", "ca.pem");
        let taxiway = Taxiway::start_with(conf, |folder| {
            put(folder, "ca.pem", &ca.pem());
            put_pair(folder, "server", &server(&ca));
        })
        .await;
        let folder = TempDir::new().unwrap();
        put(folder.path(), "ca.pem", &ca.pem());
        put_pair(folder.path(), "client", &ca.pair("client"));
        Self {
            ca,
            _sims: sims,
            taxiway,
            folder,
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    async fn companion(&self, more: &[&str]) -> Companion {
        let to = self.taxiway.address().to_string();
        Companion::start(self.path(), &to, more).await
    }
}

fn good(ca: &Authority) -> Pair {
    ca.pair("localhost")
}

/// The client sees its connection closed, without a byte.
async fn closed(companion: &Companion) {
    let mut stream = TcpStream::connect(companion.address).await.unwrap();
    let mut got = Vec::new();
    // A reset is an end as well.
    let _ended = stream.read_to_end(&mut got).await;
    assert!(got.is_empty(), "{got:?}");
}

#[tokio::test]
async fn a_plain_client_comes_through() {
    bounded(60, async {
        let stage = Stage::new(good).await;
        let mut companion = stage.companion(&WITH_CERTIFICATE).await;
        assert_eq!(companion.ready().await.0, 200);
        let health = companion.health.try_request("GET", "/healthz", None).await;
        assert_eq!(health.unwrap().0, 200);
        let client = Client::greeted(companion.address).await;
        client.create("s").await;
        client.turn("s", "hello").await;
        client.turn("s", &"x".repeat(3_000_000)).await;
        client.half_close().await;
        client.closed().await;
        // One connection for each.
        let (one, two) = (
            Client::greeted(companion.address).await,
            Client::greeted(companion.address).await,
        );
        one.create("one").await;
        two.create("two").await;
        let taxiway = &stage.taxiway.admin;
        taxiway
            .metric_is("taxiway_downstream_connections", 2.0)
            .await;
        drop(one);
        taxiway
            .metric_is("taxiway_downstream_connections", 1.0)
            .await;
        // The end: no new ones, and the open one may finish.
        let pid = i32::try_from(companion.child.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
        until("shutting down", async || match companion.ready().await {
            (503, _) => Ok(()),
            other => Err(other),
        })
        .await;
        two.turn("two", "last words").await;
        two.half_close().await;
        two.closed().await;
        assert!(companion.ended().await.success());
    })
    .await;
}

#[tokio::test]
async fn certificates_of_both_sides_change_under_load_without_an_error() {
    bounded(120, async {
        let stage = Stage::new(good).await;
        let companion = stage.companion(&WITH_CERTIFICATE).await;
        let address = companion.address;
        let over = Arc::new(AtomicBool::new(false));
        let turns = Arc::new(AtomicU64::new(0));
        let workers: Vec<_> = (0..3)
            .map(|worker| {
                let (over, turns) = (over.clone(), turns.clone());
                tokio::spawn(async move {
                    let mut n = 0;
                    while !over.load(Ordering::Relaxed) {
                        let client = Client::greeted(address).await;
                        let id = format!("w{worker}-{n}");
                        client.create(&id).await;
                        client.turn(&id, "hello").await;
                        client.half_close().await;
                        client.closed().await;
                        turns.fetch_add(1, Ordering::Relaxed);
                        n += 1;
                    }
                })
            })
            .collect();
        let steady = Client::greeted(address).await;
        steady.create("steady").await;
        let reads = || companion.log().matches("certificates read again").count();
        for _ in 0..5 {
            let before = reads();
            put_pair(stage.path(), "client", &stage.ca.pair("client"));
            put_pair(
                &stage.taxiway.folder(),
                "server",
                &stage.ca.pair("localhost"),
            );
            until("new certificates", async || match reads() {
                now if now > before => Ok(()),
                now => Err(now),
            })
            .await;
            let done = turns.load(Ordering::Relaxed);
            until("turns with them", async || {
                match turns.load(Ordering::Relaxed) {
                    now if now >= done + 3 => Ok(()),
                    now => Err(now),
                }
            })
            .await;
            steady.turn("steady", "through it").await;
        }
        // What cannot be used changes nothing, and is told.
        put(stage.path(), "client.key", "garbage");
        companion
            .says("certificates stay as they were: client.key holds no private key")
            .await;
        Client::greeted(address).await.create("after").await;
        over.store(true, Ordering::Relaxed);
        for worker in workers {
            worker.await.unwrap();
        }
        assert!(turns.load(Ordering::Relaxed) >= 15);
        let errors = stage
            .taxiway
            .admin
            .scrape()
            .await
            .sum("taxiway_errors_total");
        assert!(errors.abs() < 1e-9, "{errors}");
    })
    .await;
}

#[tokio::test]
async fn what_is_wrong_with_the_far_side_is_told_and_the_client_is_closed() {
    bounded(90, async {
        let stage = Stage::new(good).await;
        put(stage.path(), "other.pem", &Authority::new("other").pem());
        put_pair(
            stage.path(),
            "stranger",
            &Authority::new("authority").pair("client"),
        );
        let named = ["--server-name", "localhost"];
        for (arguments, words) in [
            (["--ca", "ca.pem"].as_slice(), "wants a client certificate"),
            (
                &[
                    "--ca",
                    "ca.pem",
                    "--cert",
                    "stranger.pem",
                    "--key",
                    "stranger.key",
                ],
                "refuses our certificate",
            ),
            (
                &[
                    "--ca",
                    "other.pem",
                    "--cert",
                    "client.pem",
                    "--key",
                    "client.key",
                ],
                "another authority",
            ),
        ] {
            let companion = stage.companion(&[arguments, &named].concat()).await;
            closed(&companion).await;
            companion.says(words).await;
            let (status, text) = companion.ready().await;
            assert_eq!(status, 503);
            assert!(text.contains(words), "{text}");
        }
        let companion = stage.companion(&WITH_CERTIFICATE[..6]).await;
        closed(&companion).await;
        companion.says("another name than 127.0.0.1").await;

        let expired = Stage::new(|ca| ca.pair_until("localhost", 2001)).await;
        let companion = expired.companion(&WITH_CERTIFICATE).await;
        closed(&companion).await;
        companion.says("its certificate has expired").await;

        // A server that speaks something else, and nobody.
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = other.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = other.accept().await {
                let _read = stream.read(&mut [0; 4096]).await;
                let _written = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            }
        });
        let companion =
            Companion::start(stage.path(), &address.to_string(), &WITH_CERTIFICATE).await;
        closed(&companion).await;
        companion.says("what it speaks is not TLS").await;
        let nobody = free_address().to_string();
        let companion = Companion::start(stage.path(), &nobody, &WITH_CERTIFICATE).await;
        closed(&companion).await;
        companion.says("cannot be reached").await;
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_started_ends_with_its_code() {
    bounded(60, async {
        let folder = TempDir::new().unwrap();
        let ca = Authority::new("authority");
        put(folder.path(), "ca.pem", &ca.pem());
        put(folder.path(), "garbage", "garbage");
        put_pair(folder.path(), "client", &ca.pair("client"));
        put_pair(folder.path(), "other", &ca.pair("other"));
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let taken = taken
            .local_addr()
            .map(|at| (at.to_string(), taken))
            .unwrap();
        let to = ["--to", "localhost:1", "--ca", "ca.pem"];
        let with = |more: &[&'static str]| [&to[..], more].concat();
        for (arguments, code, words) in [
            (with(&["--listen", "0.0.0.0:0"]), 2, "loopback"),
            (with(&["--cert", "client.pem"]), 2, "--key"),
            (with(&["--server-name", "a b"]), 2, "neither a DNS name"),
            (vec!["--to", "localhost"], 2, "the port is missing"),
            (
                vec!["--to", "localhost:1", "--ca", "none"],
                78,
                "none cannot be read",
            ),
            (
                vec!["--to", "localhost:1", "--ca", "garbage"],
                78,
                "garbage holds no certificate",
            ),
            (
                with(&["--cert", "client.pem", "--key", "other.key"]),
                78,
                "other.key is not the key of that certificate",
            ),
            (
                [&to[..], &["--listen", taken.0.as_str()]].concat(),
                69,
                "cannot listen on",
            ),
        ] {
            let (found, said) = Companion::refused(folder.path(), &arguments).await;
            assert_eq!(found, Some(code), "{arguments:?}: {said}");
            assert!(said.contains(words), "{arguments:?}: {said}");
        }
    })
    .await;
}
