//! TLS on both legs: what passes, what does not, and certificates that change under load.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::rig::{
    Authority, Client, Conf, Disks, Gate, Pair, Rig, Secure, Sims, Taxiway, bounded, event, frame,
    put, put_pair, until,
};

/// One authority for everything, and a listener that wants its certificates.
struct Mutual {
    ca: Authority,
    own: Pair,
    server: Pair,
}

impl Mutual {
    fn new() -> Self {
        let ca = Authority::new("authority");
        Self {
            own: ca.pair("client"),
            server: ca.pair("localhost"),
            ca,
        }
    }

    fn conf(conf: Conf) -> Conf {
        conf.text("listener.tls.cert", "server.pem")
            .text("listener.tls.key", "server.key")
            .text("listener.tls.client_ca", "ca.pem")
    }

    async fn start(&self, conf: Conf) -> Taxiway {
        Taxiway::start_with(Self::conf(conf), |folder| {
            put(folder, "ca.pem", &self.ca.pem());
            put_pair(folder, "server", &self.server);
        })
        .await
    }

    fn secure(&self) -> Secure {
        Secure::new(&self.ca.pem(), Some(&self.own))
    }

    async fn client(&self, taxiway: &Taxiway) -> Client {
        let client = Client::over(self.secure().connect(taxiway.address()).await.unwrap());
        client.greet().await;
        client
    }
}

fn refused(reason: &str) -> String {
    format!("taxiway_connections_not_admitted_total{{reason=\"{reason}\"}}")
}

#[tokio::test]
async fn clients_with_a_certificate_are_served_and_part_in_order() {
    bounded(60, async {
        let sims = Sims::start(2, Disks::Separate).await;
        let mutual = Mutual::new();
        let taxiway = mutual.start(Conf::new(Disks::Separate).all_of(&sims)).await;
        let client = mutual.client(&taxiway).await;
        client.create("s").await;
        client.turn("s", "hello").await;
        // More than any buffer on the way, both ways.
        let large = "x".repeat(2_000_000);
        let mark = client.mark();
        client.send("s", &large).await;
        let heard = client.heard_since(mark, &event("s", "user.message")).await;
        assert_eq!(heard["params"]["event"]["data"]["content"], large);
        client.heard_since(mark, &event("s", "session.idle")).await;
        // `client.stop()` of the SDKs: they half-close, and wait for the end.
        client.half_close().await;
        client.closed().await;
        assert!(taxiway.log().contains("client closed"), "{}", taxiway.log());
        let metrics = taxiway.admin.scrape().await;
        let expires = "taxiway_tls_certificate_not_after_timestamp_seconds{cert=\"listener\"}";
        assert!((metrics.value(expires) - 64_060_588_800.0).abs() < 1.0);
    })
    .await;
}

#[tokio::test]
async fn who_is_not_let_in_is_told_of_and_disturbs_nobody() {
    bounded(60, async {
        let sims = Sims::start(1, Disks::Separate).await;
        let mutual = Mutual::new();
        let conf = Conf::new(Disks::Separate).all_of(&sims);
        let taxiway = mutual
            .start(conf.text("listener.handshake_timeout", "1s"))
            .await;
        let (address, admin) = (taxiway.address(), taxiway.admin.clone());
        let bystander = mutual.client(&taxiway).await;
        bystander.create("s").await;
        bystander.send("s", "[[len 40]] [[slow 50]]").await;

        // No certificate; one of another authority, and of one of the same name.
        let stranger = |name: &str| {
            let own = Authority::new(name).pair("client");
            Secure::new(&mutual.ca.pem(), Some(&own))
        };
        let strangers = [
            (Secure::new(&mutual.ca.pem(), None), "CertificateRequired"),
            (stranger("other"), "UnknownCA"),
            (stranger("authority"), "DecryptError"),
        ];
        for (n, (secure, alert)) in strangers.iter().enumerate() {
            let mut stream = secure.connect(address).await.unwrap();
            let heard = stream.read(&mut [0; 10]).await.unwrap_err();
            assert!(heard.to_string().contains(alert), "{heard}");
            let count = (n + 1) as f64;
            admin.metric_is(&refused("certificate"), count).await;
            admin
                .metric_is("taxiway_auth_failures_total{reason=\"certificate\"}", count)
                .await;
        }
        taxiway.says("it showed no certificate").await;

        // Plain frames, a PROXY header, and nothing at all.
        for (bytes, words) in [
            (
                frame(r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#),
                "does not look like TLS",
            ),
            (
                b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n".to_vec(),
                "looks like a PROXY header",
            ),
        ] {
            let mut plain = TcpStream::connect(address).await.unwrap();
            plain.write_all(&bytes).await.unwrap();
            // However it ends, no byte comes.
            let mut got = Vec::new();
            let _ended = plain.read_to_end(&mut got).await;
            assert!(got.is_empty(), "{got:?}");
            taxiway.says(words).await;
        }
        admin.metric_is(&refused("plain_on_tls"), 2.0).await;
        let mut silent = TcpStream::connect(address).await.unwrap();
        assert_eq!(silent.read(&mut [0; 10]).await.unwrap(), 0);
        admin.metric_is(&refused("timeout"), 1.0).await;
        // Garbage that starts as TLS does.
        let mut garbage = TcpStream::connect(address).await.unwrap();
        garbage
            .write_all(b"\x16\x03\x01\x00\x05garbage")
            .await
            .unwrap();
        let _ended = garbage.read_to_end(&mut Vec::new()).await;
        admin.metric_is(&refused("tls"), 1.0).await;

        bystander.heard(&event("s", "session.idle")).await;
        admin.metric_is("taxiway_downstream_connections", 1.0).await;
    })
    .await;
}

#[tokio::test]
async fn tls_on_the_plain_port_is_told_at_once() {
    for granularity in ["session", "connection"] {
        bounded(60, async {
            let rig = Rig::with(1, Disks::Separate, |conf| {
                conf.text("routing.granularity", granularity)
            })
            .await;
            let secure = Secure::new(&Authority::new("a").pem(), None);
            let address = rig.taxiway.address();
            assert!(secure.connect(address).await.is_err());
            rig.admin().metric_is(&refused("tls_on_plain"), 1.0).await;
            rig.taxiway.says("this looks like TLS").await;
            rig.client().await.create("s").await;
        })
        .await;
    }
}

/// A message that passes as it arrives, over TLS on both legs and a PROXY header.
#[tokio::test]
async fn large_messages_pass_whole_under_tls() {
    bounded(60, async {
        let sims = Sims::start(1, Disks::Separate).await;
        let mutual = Mutual::new();
        let tls = Some((&mutual.server, &*mutual.ca.pem()));
        let gate = Gate::before(sims.get("s1").address(), true, tls).await;
        let conf = Conf::new(Disks::Separate)
            .backend("s1", &gate.address.to_string())
            .backend_set("s1", "proxy_protocol", "'v2'")
            .backend_set(
                "s1",
                "tls",
                "{ ca = 'ca.pem', server_name = 'localhost', cert = 'server.pem', key = 'server.key' }",
            );
        let taxiway = mutual.start(conf).await;
        let client = mutual.client(&taxiway).await;
        client.create("s").await;
        client.turn("s", "[[len 64]] [[pad 65536]]").await;
        client.turn("s", "[[len 20]] [[pad 65536]]").await;
        let params = json!({ "sessionId": "s" });
        let through = client.call("session.getMessages", params.clone()).await.unwrap();
        let direct = Client::greeted(sims.get("s1").address()).await;
        direct.call("session.resume", params.clone()).await.unwrap();
        let mut expected = direct.call("session.getMessages", params).await.unwrap();
        let events = expected["events"].as_array_mut().unwrap();
        // Its own resume.
        events.retain(|event| event["type"] != "session.resume");
        assert!(through == expected, "they differ");
        assert!(!gate.headers().is_empty());
    })
    .await;
}

/// The layer-4 choice, over TLS on both legs.
#[tokio::test]
async fn whole_connections_are_relayed_under_tls() {
    bounded(60, async {
        let sims = Sims::start(1, Disks::Separate).await;
        let mutual = Mutual::new();
        let gate = Gate::before(
            sims.get("s1").address(),
            false,
            Some((&mutual.server, &mutual.ca.pem())),
        )
        .await;
        let conf = Conf::new(Disks::Separate)
            .text("routing.granularity", "connection")
            .backend("s1", &gate.address.to_string())
            .backend_set(
                "s1",
                "tls",
                "{ ca = 'ca.pem', server_name = 'localhost', cert = 'server.pem', key = 'server.key' }",
            );
        let taxiway = mutual.start(conf).await;
        let client = mutual.client(&taxiway).await;
        client.create("s").await;
        client.turn("s", "hello").await;
        client.half_close().await;
        client.closed().await;
        taxiway.admin.metric_is("taxiway_downstream_connections", 0.0).await;
    })
    .await;
}

#[tokio::test]
async fn backends_are_reached_over_tls_and_known_by_their_certificates() {
    bounded(60, async {
        let sims = Sims::start(2, Disks::Separate).await;
        let mutual = Mutual::new();
        let ca = mutual.ca.pem();
        let gate = Gate::before(sims.get("s1").address(), false, Some((&mutual.server, &ca))).await;
        let own = "ca = 'ca.pem', server_name = 'localhost'";
        let shown = "cert = 'client.pem', key = 'client.key'";
        let conf = |tls: &str| {
            Conf::new(Disks::Separate)
                .backend("s1", &gate.address.to_string())
                .backend_set("s1", "tls", tls)
        };
        let prepare = |folder: &std::path::Path| {
            put(folder, "ca.pem", &ca);
            put(folder, "other.pem", &Authority::new("other").pem());
            put_pair(folder, "client", &mutual.own);
        };
        let good = conf(&format!("{{ {own}, {shown} }}"));
        let mut taxiway = Taxiway::start_with(good.clone(), prepare).await;
        taxiway.admin.health("s1", &["up"]).await;
        let client = Client::greeted(taxiway.address()).await;
        client.create("s").await;
        client.turn("s", "hello").await;
        let metrics = taxiway.admin.scrape().await;
        let expires = "taxiway_tls_certificate_not_after_timestamp_seconds{cert=\"backend s1\"}";
        assert!(metrics.value(expires) > 0.0);

        // Each with a name of its own, for which a connection has to be made.
        let keep = good.clone();
        for (name, tls, words) in [
            (
                "w1",
                format!("{{ ca = 'other.pem', server_name = 'localhost', {shown} }}"),
                "another authority",
            ),
            (
                "w2",
                format!("{{ ca = 'ca.pem', {shown} }}"),
                "another name than 127.0.0.1",
            ),
            ("w3", format!("{{ {own} }}"), "wants a client certificate"),
        ] {
            let wrong =
                Gate::before(sims.get("s2").address(), false, Some((&mutual.server, &ca))).await;
            let conf = keep
                .clone()
                .backend(name, &wrong.address.to_string())
                .backend_set(name, "tls", &tls);
            taxiway.reload(conf).await;
            taxiway.admin.health(name, &["down"]).await;
            let backend = taxiway.admin.backend(name).await;
            assert!(backend.to_string().contains(words), "{backend}");
        }
        // A server that speaks no TLS.
        let plain = keep
            .clone()
            .backend("plain", &sims.get("s2").address().to_string())
            .backend_set("plain", "tls", &format!("{{ {own} }}"));
        taxiway.reload(plain).await;
        taxiway.admin.health("plain", &["down"]).await;
        client.turn("s", "all the while").await;

        // TLS is switched off and on: what is open stays, what is new follows.
        let sim = sims.get("s2").address().to_string();
        let without = keep.clone().backend("late", &sim);
        taxiway.reload(without).await;
        taxiway.admin.health("late", &["up"]).await;
        client.turn("s", "still").await;
    })
    .await;
}

/// Every 150 ms another certificate, of another authority of clients every second time, while
/// connections come and go and turns run.
#[tokio::test]
async fn certificates_change_under_load_without_an_error() {
    bounded(120, async {
        let sims = Sims::start(2, Disks::Separate).await;
        let mutual = Arc::new(Mutual::new());
        let taxiway = mutual.start(Conf::new(Disks::Separate).all_of(&sims)).await;
        let address = taxiway.address();
        let steady = mutual.client(&taxiway).await;
        steady.create("steady").await;
        let over = Arc::new(AtomicBool::new(false));
        let turns = Arc::new(AtomicU64::new(0));
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let (mutual, over, turns) = (mutual.clone(), over.clone(), turns.clone());
                tokio::spawn(async move {
                    let mut n = 0;
                    while !over.load(Ordering::Relaxed) {
                        let stream = mutual.secure().connect(address).await.unwrap();
                        let client = Client::over(stream);
                        client.greet().await;
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
        let seen = async || {
            let stream = mutual.secure().connect(address).await.unwrap();
            let certificates = stream.get_ref().1.peer_certificates().unwrap();
            certificates[0].to_vec()
        };
        let mut before = seen().await;
        for _ in 0..8 {
            // The file that is written first does not fit the other: nothing may change by it.
            put_pair(&taxiway.folder(), "server", &mutual.ca.pair("localhost"));
            before = until("another certificate", async || {
                let now = seen().await;
                if now == before {
                    Err("the same")
                } else {
                    Ok(now)
                }
            })
            .await;
            steady.turn("steady", "through it").await;
        }
        // A key that does not fit, garbage, and nothing.
        let reloads = "taxiway_config_reloads_total{result=\"failure\"}";
        for (bad, words) in [
            (
                mutual.ca.pair("localhost").key,
                "is not the key of that certificate",
            ),
            ("garbage".to_owned(), "holds no private key"),
        ] {
            let failures = taxiway.admin.scrape().await.value(reloads);
            put(&taxiway.folder(), "server.key", &bad);
            until("a refused reload", async || {
                let now = taxiway.admin.scrape().await.value(reloads);
                if now > failures { Ok(()) } else { Err(now) }
            })
            .await;
            taxiway.says(words).await;
            assert!(taxiway.log().contains("server.key"), "{}", taxiway.log());
            assert_eq!(seen().await, before);
        }
        over.store(true, Ordering::Relaxed);
        for worker in workers {
            worker.await.unwrap();
        }
        steady.turn("steady", "to the end").await;
        assert!(turns.load(Ordering::Relaxed) > 20, "{turns:?}");
        assert!((taxiway.admin.scrape().await.sum("taxiway_errors_total")).abs() < 1e-9);
    })
    .await;
}

/// A client that reads nothing costs no more memory than a plain one does, and is given up.
#[tokio::test]
async fn a_client_that_reads_nothing_is_given_up_under_tls_too() {
    bounded(60, async {
        let sims = Sims::start(1, Disks::Separate).await;
        let mutual = Mutual::new();
        let conf = Conf::new(Disks::Separate).all_of(&sims);
        let taxiway = mutual.start(conf.text("listener.write_stall", "1s")).await;
        let mut stream = mutual.secure().connect(taxiway.address()).await.unwrap();
        // The answer is as long as the question: 64 MiB of them are on their way.
        let message = "x".repeat(1 << 20);
        let ping = json!({ "jsonrpc": "2.0", "id": 1, "method": "ping", "params": { "message": message } });
        let ping = frame(ping.to_string());
        let writing = async {
            loop {
                if stream.write_all(&ping).await.is_err() {
                    return;
                }
            }
        };
        let stalls = "taxiway_limit_hits_total{limit=\"listener.write_stall\"}";
        tokio::select! {
            () = writing => {}
            () = tokio::time::sleep(Duration::from_secs(30)) => {}
        }
        taxiway.admin.metric_is(stalls, 1.0).await;
        assert!(taxiway.resident() < 200 << 20, "{}", taxiway.resident());
    })
    .await;
}
