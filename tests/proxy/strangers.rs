//! Connections that say nothing, or nothing of use: they keep nobody out who can say who it is, and
//! do not fill the log.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use crate::rig::{Client, Conf, Disks, Raw, Rig, bounded, frame, until};

const ANN: &str = "token-of-ann-0123456789";
const BOB: &str = "token-of-bob-0123456789";
const TOTAL: &str = r#"{limit="limits.unauthenticated_connections"}"#;

/// Ann and Bob, and patience with who says nothing.
fn guarded(conf: Conf) -> Conf {
    let principal = |name: &str, token: &str| {
        let hash: String = Sha256::digest(token)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("{{ name = '{name}', token_sha256 = '{hash}' }}")
    };
    let list = format!("[{}, {}]", principal("ann", ANN), principal("bob", BOB));
    conf.without("identity.session_id_user")
        .set("identity.principals", &list)
        .text("listener.handshake_timeout", "1m")
}

async fn says(client: &Client, token: &str) {
    let answer = client.call("connect", json!({ "token": token })).await;
    answer.unwrap();
}

async fn known(rig: &Rig, token: &str) -> Client {
    let client = Client::connect(rig.taxiway.address()).await;
    says(&client, token).await;
    client
}

fn request(id: u32, method: &str, params: Value) -> Vec<u8> {
    let body = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
    frame(body.to_string())
}

/// A connection from another address of this machine.
async fn from(ip: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(IpAddr::from(ip), 0)).unwrap();
    socket.connect(to).await.unwrap()
}

async fn silent(count: usize, ip: [u8; 4], to: SocketAddr) -> Vec<TcpStream> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(from(ip, to).await);
    }
    all
}

async fn closed(stream: &mut TcpStream) {
    // A reset is an end as well.
    let end = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut [0])).await;
    assert!(
        !matches!(end.expect("it stays open"), Ok(1..)),
        "nobody says anything to a stranger"
    );
}

fn not_admitted(reason: &str) -> String {
    format!("taxiway_connections_not_admitted_total{{reason=\"{reason}\"}}")
}

/// All have one address, as behind a balancer that does not say where they are.
#[tokio::test]
async fn silent_strangers_keep_no_principal_out() {
    bounded(60, async {
        let rig = Rig::with(1, Disks::Separate, |conf| {
            guarded(conf)
                .set("limits.connections", "40")
                .set("limits.unauthenticated_connections", "30")
        })
        .await;
        let ann = known(&rig, ANN).await;
        ann.create("anns").await;
        let address = rig.taxiway.address();
        let mut strangers = silent(200, [127, 0, 0, 1], address).await;
        let evicted = not_admitted("evicted");
        rig.admin().metric_is(&evicted, 170.0).await;
        let bob = known(&rig, BOB).await;
        bob.create("bobs").await;
        bob.turn("bobs", "hello").await;
        ann.turn("anns", "hello").await;
        rig.admin().metric_is(&evicted, 171.0).await;
        // Oldest first.
        for stranger in &mut strangers[..171] {
            closed(stranger).await;
        }
        let seen = rig.admin().scrape().await;
        assert_eq!(
            seen.value(&format!("taxiway_limit_hits_total{TOTAL}")),
            171.0
        );
        assert_eq!(seen.value(&format!("taxiway_limit_usage{TOTAL}")), 29.0);
        assert_eq!(seen.value(&format!("taxiway_limit{TOTAL}")), 30.0);
        drop(strangers);
        rig.admin()
            .metric_is(&format!("taxiway_limit_usage{TOTAL}"), 0.0)
            .await;
        assert!(ann.is_open() && bob.is_open());
    })
    .await;
}

#[tokio::test]
async fn a_flood_pays_with_its_own_places() {
    bounded(60, async {
        let rig = Rig::with(1, Disks::Separate, |conf| {
            guarded(conf).set("limits.unauthenticated_connections", "10")
        })
        .await;
        let address = rig.taxiway.address();
        // It came first, and takes its time.
        let slow = Client::over(from([127, 0, 0, 1], address).await);
        let flood = silent(200, [127, 0, 0, 2], address).await;
        rig.admin().metric_is(&not_admitted("evicted"), 191.0).await;
        says(&slow, ANN).await;
        slow.create("anns").await;
        slow.turn("anns", "hello").await;
        drop(flood);
    })
    .await;
}

#[tokio::test]
async fn strangers_make_room_where_connections_are_at_their_limit() {
    bounded(60, async {
        let rig = Rig::with(1, Disks::Separate, |conf| {
            guarded(conf)
                .set("limits.connections", "5")
                .set("limits.unauthenticated_connections", "100")
        })
        .await;
        let mut friends = vec![known(&rig, ANN).await, known(&rig, ANN).await];
        let address = rig.taxiway.address();
        let flood = silent(200, [127, 0, 0, 2], address).await;
        while friends.len() < 5 {
            friends.push(known(&rig, BOB).await);
        }
        drop(flood);
        // Now there is nobody to make room.
        let mut surplus = TcpStream::connect(address).await.unwrap();
        closed(&mut surplus).await;
        for friend in &friends {
            friend.call("ping", json!({})).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn one_address_may_have_some_and_others_some_more() {
    bounded(60, async {
        let rig = Rig::with(1, Disks::Separate, |conf| {
            guarded(conf).set("limits.unauthenticated_per_address", "2")
        })
        .await;
        let address = rig.taxiway.address();
        let mut one = silent(3, [127, 0, 0, 2], address).await;
        let other = silent(2, [127, 0, 0, 3], address).await;
        closed(&mut one[0]).await;
        let hits = r#"taxiway_limit_hits_total{limit="limits.unauthenticated_per_address"}"#;
        rig.admin().metric_is(hits, 1.0).await;
        let usage = format!("taxiway_limit_usage{TOTAL}");
        rig.admin().metric_is(&usage, 4.0).await;
        // Who has said who it is does not count.
        for _ in 0..3 {
            let known = Client::over(from([127, 0, 0, 3], address).await);
            says(&known, ANN).await;
        }
        drop((one, other));
    })
    .await;
}

/// Behind a balancer that says where clients are, those places count.
#[tokio::test]
async fn a_flood_behind_a_balancer_pays_as_well() {
    bounded(60, async {
        let rig = Rig::with(1, Disks::Separate, |conf| {
            guarded(conf)
                .text("listener.proxy_protocol", "required")
                .set("listener.proxy_protocol_from", "['127.0.0.1']")
                .set("limits.unauthenticated_connections", "10")
                .set("limits.unauthenticated_per_address", "4")
        })
        .await;
        let address = rig.taxiway.address();
        let come = async |client: &str| {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let header = format!("PROXY TCP4 {client} 10.0.0.1 1 2\r\n");
            stream.write_all(header.as_bytes()).await.unwrap();
            stream
        };
        let slow = come("192.0.2.1").await;
        // More than an address may have: a balancer is none.
        let mute = silent(6, [127, 0, 0, 1], address).await;
        let usage = format!("taxiway_limit_usage{TOTAL}");
        rig.admin().metric_is(&usage, 7.0).await;
        drop(mute);
        rig.admin().metric_is(&usage, 1.0).await;
        let mut flood = Vec::new();
        for _ in 0..50 {
            flood.push(come("192.0.2.2").await);
        }
        rig.admin().metric_is(&not_admitted("evicted"), 46.0).await;
        let slow = Client::over(slow);
        says(&slow, ANN).await;
        slow.create("anns").await;
    })
    .await;
}

fn lines(rig: &Rig, of: &str) -> usize {
    let log = rig.taxiway.log();
    log.lines().filter(|line| line.contains(of)).count()
}

/// What a balancer's health checks do, with and without principals.
#[tokio::test]
async fn who_comes_and_goes_without_a_word_leaves_no_line() {
    for conf in [|conf: Conf| conf, guarded] {
        bounded(60, async {
            let rig = Rig::with(1, Disks::Separate, conf).await;
            for _ in 0..300 {
                drop(TcpStream::connect(rig.taxiway.address()).await.unwrap());
            }
            rig.admin().metric_is(&not_admitted("left"), 300.0).await;
            let client = Client::connect(rig.taxiway.address()).await;
            // Without principals a token is an error, and a frame all the same.
            let _answer = client.call("connect", json!({ "token": ANN })).await;
            rig.taxiway.says("what=\"opened\"").await;
            drop(client);
            rig.taxiway.says("what=\"closed\"").await;
            assert_eq!(lines(&rig, "what=\"opened\""), 1);
            assert_eq!(lines(&rig, "what=\"closed\""), 1);
            assert_eq!(lines(&rig, "not_admitted"), 0);
        })
        .await;
    }
}

#[tokio::test]
async fn a_flood_of_nonsense_leaves_some_lines() {
    for conf in [|conf: Conf| conf, guarded] {
        bounded(60, async {
            let mut rig = Rig::with(1, Disks::Separate, conf).await;
            for n in 0..500 {
                let mut stream = TcpStream::connect(rig.taxiway.address()).await.unwrap();
                let nonsense = match n % 3 {
                    0 => &b"GET / HTTP/1.1\r\n\r\n"[..],
                    1 => b"\x16\x03\x01\x02\x00",
                    _ => b"Content-Length: 999999999999\r\n\r\n",
                };
                stream.write_all(nonsense).await.unwrap();
                let mut answer = Vec::new();
                let _reset = stream.read_to_end(&mut answer).await;
            }
            until("all to be counted", async || {
                let seen = rig.admin().scrape().await;
                let sum = seen.value(&not_admitted("refused"))
                    + seen.value(&not_admitted("tls_on_plain"));
                if sum == 500.0 { Ok(()) } else { Err(sum) }
            })
            .await;
            rig.taxiway.signal(Signal::TERM);
            rig.taxiway.ended().await;
            let log = rig.taxiway.log();
            let told = log
                .lines()
                .filter(|l| l.contains("what=\"not_admitted\" reason="))
                .count();
            let together: u64 = log
                .lines()
                .filter_map(|line| {
                    line.split_once("more=")?
                        .1
                        .split(' ')
                        .next()?
                        .parse::<u64>()
                        .ok()
                })
                .sum();
            assert_eq!(told as u64 + together, 500, "{log}");
            assert!(log.lines().count() < 300, "{log}");
            assert!(!log.contains("what=\"opened\""), "{log}");
        })
        .await;
    }
}

/// Files are what connections are made of: where they are short, who has not said who it is goes first.
#[tokio::test]
async fn strangers_make_room_where_files_are_short() {
    bounded(60, async {
        let rig = Rig::with(1, Disks::Separate, guarded).await;
        let ann = known(&rig, ANN).await;
        ann.create("anns").await;
        let pid = Pid::from_raw(i32::try_from(rig.taxiway.pid()).unwrap());
        let fds = format!("/proc/{}/fd", rig.taxiway.pid());
        let open = || std::fs::read_dir(&fds).unwrap().count();
        // Room for twenty, besides what is kept back.
        let room = open() + 20;
        let files = Rlimit {
            current: Some(room as u64 + 64),
            maximum: getrlimit(Resource::Nofile).maximum,
        };
        prlimit(pid, Resource::Nofile, files).unwrap();

        // Those that are called out together leave gaps below the line: who came in above it in the
        // meantime must not become more with each round.
        let mut strangers = Vec::new();
        for round in 0..10 {
            strangers.extend(silent(100, [127, 0, 0, 1], rig.taxiway.address()).await);
            // Behind all of them; turned away while many are on their way out.
            let mut bob = until("one who says who it is to get in", async || {
                let mut raw = Raw::connect(rig.taxiway.address()).await;
                let connect = request(1, "connect", json!({ "token": BOB }));
                let _reset = raw.stream.write_all(&connect).await;
                let is_in = raw.next().await;
                is_in.map(|_| raw).ok_or("turned away")
            })
            .await;
            let session = json!({ "sessionId": format!("bobs-{round}") });
            bob.write(&request(2, "session.create", session)).await;
            let created = bob.answer().await.unwrap();
            assert!(created.get("result").is_some(), "{created}");
            until("strangers to make room", async || {
                // Sixteen may be about to close; Bob, his server's, and what else comes and goes.
                let (held, most) = (open(), room + 16 + 4);
                if held <= most {
                    Ok(())
                } else {
                    Err((held, most))
                }
            })
            .await;
        }
        let hit = r#"taxiway_limit_hits_total{limit="open_files"}"#;
        assert!(rig.admin().scrape().await.value(hit) > 0.0);
        // The oldest went.
        closed(&mut strangers[0]).await;
        let bob = known(&rig, BOB).await;
        bob.create("bobs").await;
        bob.turn("bobs", "hello").await;
        ann.turn("anns", "hello").await;
    })
    .await;
}
