//! Who may connect at all, and whose word is taken for where a client is.

use std::{net::SocketAddr, time::Duration};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::rig::{
    Authority, Client, Conf, Disks, Gate, Rig, Secure, Sims, Taxiway, bounded, frame, put,
    put_pair, until,
};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn refused(reason: &str) -> String {
    format!("taxiway_connections_not_admitted_total{{reason=\"{reason}\"}}")
}

fn behind_balancer(conf: Conf) -> Conf {
    conf.text("listener.proxy_protocol", "required")
        .set("listener.proxy_protocol_from", "['127.0.0.1']")
}

fn v2(command: u8, kind: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u16).to_be_bytes();
    [SIGNATURE, &[command, kind], &length, body].concat()
}

async fn closed_without_a_byte(mut stream: TcpStream) {
    let mut got = Vec::new();
    // A reset is an end as well.
    let _ended = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut got))
        .await
        .expect("the connection stays open");
    assert!(got.is_empty(), "{got:?}");
}

#[tokio::test]
async fn the_address_of_the_header_is_the_clients() {
    bounded(60, async {
        let rig = Rig::with(1, Disks::Separate, behind_balancer).await;
        let tcp4 = [192, 0, 2, 7, 10, 0, 0, 2, 0x30, 0x39, 0x10, 0xe1];
        let with_tlv = [&tcp4[..], &[0x04, 0, 2, 1, 2]].concat();
        for (header, client_addr) in [
            (
                b"PROXY TCP4 192.0.2.9 10.0.0.1 56324 4321\r\n".to_vec(),
                "192.0.2.9:56324",
            ),
            (
                b"PROXY TCP6 2001:db8::9 ::1 1 2\r\n".to_vec(),
                "[2001:db8::9]:1",
            ),
            (v2(0x21, 0x11, &tcp4), "192.0.2.7:12345"),
            (v2(0x21, 0x11, &with_tlv), "192.0.2.7:12345"),
        ] {
            let mut stream = TcpStream::connect(rig.taxiway.address()).await.unwrap();
            stream.set_nodelay(true).unwrap();
            // In pieces, the last one with the start of the first frame behind it.
            let call = frame(r#"{"jsonrpc":"2.0","id":1,"method":"connect","params":{}}"#);
            let bytes = [&header[..], &call[..10]].concat();
            for piece in bytes.chunks(7) {
                stream.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            stream.write_all(&call[10..]).await.unwrap();
            let mut answer = [0; 16];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"Content-Length: ");
            rig.taxiway.says(client_addr).await;
        }
        // A health check of the balancer, and an address that it does not tell.
        for header in [v2(0x20, 0, &[]), b"PROXY UNKNOWN\r\n".to_vec()] {
            let mut stream = TcpStream::connect(rig.taxiway.address()).await.unwrap();
            let own = stream.local_addr().unwrap();
            stream.write_all(&header).await.unwrap();
            let client = Client::over(stream);
            client.greet().await;
            rig.taxiway.says(&own.to_string()).await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_no_header_is_closed() {
    bounded(60, async {
        let rig = Rig::with(1, Disks::Separate, |conf| {
            behind_balancer(conf)
                .text("listener.handshake_timeout", "1s")
                .set("listener.allow_from", "['192.0.2.0/24']")
        })
        .await;
        let address = rig.taxiway.address();
        let bad = [
            frame(r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#),
            b"PROXY TCP4 1.2.3.4\r\n".to_vec(),
            [b"PROXY ".as_slice(), &[b'x'; 200]].concat(),
            v2(0x21, 0x11, &[0; 3]),
            v2(0x21, 0x11, &[0; 60_000]),
            b"\x16\x03\x01\x02\x00\x01\x00".to_vec(),
        ];
        for bytes in &bad {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // It may be closed before it has taken everything.
            let _broken = stream.write_all(bytes).await;
            closed_without_a_byte(stream).await;
        }
        let header = refused("proxy_header");
        rig.admin().metric_is(&header, bad.len() as f64).await;
        rig.taxiway
            .says("this looks like TLS without one in front")
            .await;
        // Half of one, and no more.
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"PROXY TCP4 1").await.unwrap();
        closed_without_a_byte(stream).await;
        rig.admin().metric_is(&refused("timeout"), 1.0).await;
        // With a header, `allow_from` is about the client.
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"PROXY TCP4 198.51.100.1 10.0.0.1 1 2\r\n")
            .await
            .unwrap();
        closed_without_a_byte(stream).await;
        rig.admin().metric_is(&refused("allow_from"), 1.0).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"PROXY TCP4 192.0.2.1 10.0.0.1 1 2\r\n")
            .await
            .unwrap();
        Client::over(stream).greet().await;
    })
    .await;
}

#[tokio::test]
async fn a_header_from_elsewhere_is_not_read() {
    bounded(60, async {
        let rig = Rig::with(1, Disks::Separate, |conf| {
            behind_balancer(conf).set("listener.proxy_protocol_from", "['10.0.0.0/8']")
        })
        .await;
        let mut stream = TcpStream::connect(rig.taxiway.address()).await.unwrap();
        let _broken = stream
            .write_all(b"PROXY TCP4 10.0.0.1 10.0.0.1 1 2\r\n")
            .await;
        closed_without_a_byte(stream).await;
        rig.admin()
            .metric_is(&refused("proxy_protocol_from"), 1.0)
            .await;
        rig.taxiway.says("listener.proxy_protocol_from").await;
        assert!(!rig.taxiway.log().contains("10.0.0.1:1"));
    })
    .await;
}

#[tokio::test]
async fn a_header_where_none_is_expected_is_told() {
    bounded(60, async {
        let rig = Rig::sticky(1).await;
        for header in [
            b"PROXY TCP4 10.0.0.1 10.0.0.1 1 2\r\n".to_vec(),
            v2(0x20, 0, &[]),
        ] {
            let mut stream = TcpStream::connect(rig.taxiway.address()).await.unwrap();
            stream.write_all(&header).await.unwrap();
            closed_without_a_byte(stream).await;
        }
        rig.admin().metric_is(&refused("proxy_header"), 2.0).await;
        rig.taxiway.says("listener.proxy_protocol is").await;
    })
    .await;
}

#[tokio::test]
async fn only_allowed_networks_connect_and_a_reload_changes_them() {
    bounded(60, async {
        let mut rig = Rig::sticky(1).await;
        let inside = rig.client().await;
        let conf = rig.taxiway.conf.clone();
        let closed = conf
            .clone()
            .set("listener.allow_from", "['10.0.0.0/8', '192.0.2.1']");
        rig.taxiway.reload(closed).await;
        // More than are logged one by one.
        for _ in 0..300 {
            closed_without_a_byte(TcpStream::connect(rig.taxiway.address()).await.unwrap()).await;
        }
        rig.admin().metric_is(&refused("allow_from"), 300.0).await;
        let lines = rig
            .taxiway
            .log()
            .matches("not in listener.allow_from")
            .count();
        assert_eq!(lines, 20, "a flood is logged in part");
        // Who is in stays in.
        inside.create("s").await;
        rig.taxiway
            .reload(conf.set("listener.allow_from", "['127.0.0.0/8']"))
            .await;
        rig.client().await.create("t").await;
    })
    .await;
}

/// What a backend is told of its connections: Taxiway's own, and clients' with their addresses.
#[tokio::test]
async fn backends_are_told_whose_connection_it_is_before_tls() {
    bounded(60, async {
        let sims = Sims::start(1, Disks::Separate).await;
        let ca = Authority::new("authority");
        let server = ca.pair("localhost");
        let gate = Gate::before(sims.get("s1").address(), true, Some((&server, &ca.pem()))).await;
        let conf = behind_balancer(Conf::new(Disks::Separate))
            .backend("s1", &gate.address.to_string())
            .backend_set("s1", "proxy_protocol", "'v2'")
            .backend_set(
                "s1",
                "tls",
                "{ ca = 'ca.pem', server_name = 'localhost', cert = 'own.pem', key = 'own.key' }",
            );
        let taxiway = Taxiway::start_with(conf, |folder| {
            put(folder, "ca.pem", &ca.pem());
            put_pair(folder, "own", &ca.pair("taxiway"));
        })
        .await;
        taxiway.admin.health("s1", &["up"]).await;
        let own = v2(0x20, 0, &[]);
        assert_eq!(
            gate.headers()[0],
            own,
            "the control connection is Taxiway's own"
        );
        let mut stream = TcpStream::connect(taxiway.address()).await.unwrap();
        stream
            .write_all(b"PROXY TCP4 192.0.2.9 10.0.0.1 258 4321\r\n")
            .await
            .unwrap();
        let client = Client::over(stream);
        client.greet().await;
        client.create("s").await;
        client.turn("s", "hello").await;
        let last = gate.headers().pop().unwrap();
        let SocketAddr::V4(to) = taxiway.address() else {
            panic!("not IPv4")
        };
        let body = [
            &[192, 0, 2, 9][..],
            &to.ip().octets(),
            &[1, 2],
            &to.port().to_be_bytes(),
        ];
        assert_eq!(last, v2(0x21, 0x11, &body.concat()));
        let answer = client.call("ping", json!({})).await.unwrap();
        assert!(answer["message"].is_string());
    })
    .await;
}

/// A balancer in TCP mode passes TLS on: its header is in front of it.
#[tokio::test]
async fn a_header_comes_before_tls() {
    bounded(60, async {
        let sims = Sims::start(1, Disks::Separate).await;
        let ca = Authority::new("authority");
        let conf = behind_balancer(Conf::new(Disks::Separate).all_of(&sims))
            .text("listener.tls.cert", "server.pem")
            .text("listener.tls.key", "server.key");
        let taxiway = Taxiway::start_with(conf, |folder| {
            put_pair(folder, "server", &ca.pair("localhost"));
        })
        .await;
        let secure = Secure::new(&ca.pem(), None);
        assert!(secure.connect(taxiway.address()).await.is_err());
        taxiway
            .says("this looks like TLS without one in front")
            .await;
        let mut stream = TcpStream::connect(taxiway.address()).await.unwrap();
        stream
            .write_all(b"PROXY TCP4 192.0.2.9 10.0.0.1 258 4321\r\n")
            .await
            .unwrap();
        let client = Client::over(secure.over(stream).await.unwrap());
        client.greet().await;
        client.create("s").await;
        taxiway.says("192.0.2.9:258").await;
    })
    .await;
}

/// Two at a time is the limit, and handshakes count.
#[tokio::test]
async fn handshakes_count_as_connections() {
    bounded(60, async {
        let sims = Sims::start(1, Disks::Separate).await;
        let ca = Authority::new("authority");
        let conf = Conf::new(Disks::Separate)
            .all_of(&sims)
            .set("limits.connections", "2")
            .text("listener.tls.cert", "server.pem")
            .text("listener.tls.key", "server.key");
        let taxiway = Taxiway::start_with(conf, |folder| {
            put_pair(folder, "server", &ca.pair("localhost"));
        })
        .await;
        let secure = Secure::new(&ca.pem(), None);
        let idle = TcpStream::connect(taxiway.address()).await.unwrap();
        let client = Client::over(secure.connect(taxiway.address()).await.unwrap());
        client.greet().await;
        assert!(secure.connect(taxiway.address()).await.is_err());
        let hits = "taxiway_limit_hits_total{limit=\"limits.connections\"}";
        taxiway.admin.metric_is(hits, 1.0).await;
        drop(idle);
        until("a free place", async || {
            secure.connect(taxiway.address()).await.map(drop)
        })
        .await;
    })
    .await;
}
