//! Handshakes, ends and joins over real sockets.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use proptest::strategy::{Strategy, ValueTree};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{
    testing::{Ca, Pair},
    *,
};
use crate::core::proxy_header::{Source, Version};

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

async fn plain() -> (Stream, Stream) {
    let (near, far) = sockets().await;
    (near.into(), far.into())
}

fn acceptor(own: &Pair, ca: Option<&str>, client_auth: ClientAuth) -> Acceptor {
    Acceptor::new(&ServerFiles {
        cert: own.cert.as_bytes(),
        key: own.key.as_bytes(),
        client_ca: ca.map(str::as_bytes),
        client_auth,
    })
    .unwrap()
}

fn connector(ca: &str, own: Option<&Pair>, name: Option<&str>) -> Connector {
    let files = ClientFiles {
        ca: Some(ca.as_bytes()),
        identity: own.map(|own| (own.cert.as_bytes(), own.key.as_bytes())),
    };
    Connector::new(&files, name).unwrap()
}

/// Both ends of a handshake, as far as they got.
async fn handshake(
    acceptor: &Acceptor,
    connector: Connector,
) -> (Result<Stream, ConnectError>, io::Result<Stream>) {
    let (near, far) = sockets().await;
    let transport = Transport {
        proxy_protocol: None,
        tls: Some(connector),
    };
    tokio::join!(
        transport.secure(near, "localhost:1", Source::Own),
        acceptor.accept(far)
    )
}

/// A connection under TLS: client, server.
async fn encrypted() -> (Stream, Stream) {
    let ca = Ca::new();
    let acceptor = acceptor(&ca.pair(&["localhost"]), None, ClientAuth::None);
    let (near, far) = handshake(&acceptor, connector(&ca.pem(), None, None)).await;
    (near.unwrap(), far.unwrap())
}

#[tokio::test]
async fn a_client_is_known_by_all_names_of_its_certificate() {
    let ca = Ca::new();
    let server = acceptor(
        &ca.pair(&["localhost"]),
        Some(&ca.pem()),
        ClientAuth::Optional,
    );
    let own = ca.client("app.example", "spiffe://x/app", "app@example.org", "app");
    let (near, far) = handshake(&server, connector(&ca.pem(), Some(&own), None)).await;
    let identity = far.unwrap().peer_identity().unwrap();
    assert_eq!(
        identity.names,
        ["app.example", "spiffe://x/app", "app@example.org", "app"]
    );
    drop(near);
    let (near, far) = handshake(&server, connector(&ca.pem(), None, None)).await;
    assert_eq!(far.unwrap().peer_identity(), None);
    drop(near);
    let (near, _far) = plain().await;
    assert_eq!(near.peer_identity(), None);
}

#[tokio::test]
async fn who_is_not_trusted_is_told_of_in_words() {
    let (ca, other, again) = (Ca::new(), Ca::named("other"), Ca::new());
    let server = acceptor(
        &ca.pair(&["localhost"]),
        Some(&ca.pem()),
        ClientAuth::Required,
    );
    let expired = acceptor(&ca.pair_until(&["localhost"], 2001), None, ClientAuth::None);
    let client = ca.pair(&["client"]);
    for (server, connector, words) in [
        (
            &server,
            connector(&other.pem(), None, None),
            "another authority",
        ),
        (
            &server,
            connector(&again.pem(), None, None),
            "another authority",
        ),
        (
            &server,
            connector(&ca.pem(), None, Some("other.example")),
            "another name",
        ),
        (&expired, connector(&ca.pem(), None, None), "expired"),
    ] {
        let (near, far) = handshake(server, connector).await;
        let Err(ConnectError::Tls(fault)) = near else {
            panic!("{near:?}")
        };
        assert_eq!(fault.blame, Blame::PeerCertificate);
        assert!(fault.to_string().contains(words), "{fault}");
        let told = Fault::of(&far.unwrap_err()).unwrap();
        assert_ne!(told.blame, Blame::PeerCertificate, "{told}");
    }
    // The other way round; a client of TLS 1.3 learns it when it reads.
    for (own, server_says, client_hears) in [
        (None, "showed no certificate", "wants a client certificate"),
        (
            Some(other.pair(&["client"])),
            "another authority",
            "refuses our certificate",
        ),
        (
            Some(again.pair(&["client"])),
            "another authority",
            "refuses our certificate",
        ),
    ] {
        let (near, far) = handshake(&server, connector(&ca.pem(), own.as_ref(), None)).await;
        let fault = Fault::of(&far.unwrap_err()).unwrap();
        assert_eq!(fault.blame, Blame::PeerCertificate);
        assert!(fault.to_string().contains(server_says), "{fault}");
        let mut near = near.unwrap();
        assert!(!near.is_welcomed());
        let heard = near.read(&mut [0; 9]).await.unwrap_err();
        let heard = Fault::of(&heard).unwrap();
        assert_eq!(heard.blame, Blame::OwnCertificate);
        assert!(heard.to_string().contains(client_hears), "{heard}");
    }
    let (near, far) = handshake(&server, connector(&ca.pem(), Some(&client), None)).await;
    let (mut near, mut far) = (near.unwrap(), far.unwrap());
    far.write_all(b"x").await.unwrap();
    near.read_exact(&mut [0]).await.unwrap();
    assert!(near.is_welcomed());
}

#[tokio::test]
async fn what_does_not_speak_tls_is_told_from_what_is_not_there() {
    let ca = Ca::new();
    let transport = Transport {
        proxy_protocol: None,
        tls: Some(connector(&ca.pem(), None, None)),
    };
    for answer in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b""] {
        let (near, mut far) = sockets().await;
        let plain = async {
            assert!(far.read(&mut [0; 4096]).await.unwrap() > 0);
            far.write_all(answer).await.unwrap();
            far.shutdown().await.unwrap();
        };
        let (near, ()) = tokio::join!(transport.secure(near, "localhost:1", Source::Own), plain);
        let Err(ConnectError::Tls(fault)) = near else {
            panic!("{near:?}")
        };
        assert_eq!(fault.blame, Blame::NotTls, "{fault}");
    }
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = gone.local_addr().unwrap().to_string();
    drop(gone);
    let refused = transport.connect(&address, None, Source::Own).await;
    assert!(matches!(refused, Err(ConnectError::Tcp(_))), "{refused:?}");
}

#[tokio::test]
async fn a_proxy_header_goes_first() {
    let (near, mut far) = sockets().await;
    let transport = Transport {
        proxy_protocol: Some(Version::V1),
        tls: None,
    };
    let source = Source::Client {
        from: "10.0.0.1:2".parse().unwrap(),
        to: "10.0.0.3:4".parse().unwrap(),
    };
    let mut near = transport.secure(near, "x:1", source).await.unwrap();
    near.write_all(b"rest").await.unwrap();
    drop(near);
    let mut text = String::new();
    far.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "PROXY TCP4 10.0.0.1 10.0.0.3 2 4\r\nrest");
}

/// However the other side ends, what it wrote arrives, and then an end.
#[tokio::test]
async fn ends_of_all_kinds_are_ends() {
    for encrypts in [false, true] {
        for kind in ["shutdown", "drop", "cut"] {
            let (mut near, mut far) = match encrypts {
                true => encrypted().await,
                false => plain().await,
            };
            near.write_all(b"last words").await.unwrap();
            near.flush().await.unwrap();
            match kind {
                "shutdown" => near.shutdown().await.unwrap(),
                "drop" => drop(near),
                // A FIN without `close_notify`.
                _ => {
                    let socket = socket2::SockRef::from(near.tcp());
                    socket.shutdown(std::net::Shutdown::Write).unwrap();
                    std::mem::forget(near);
                }
            }
            let mut text = String::new();
            let read = far.read_to_string(&mut text).await;
            assert_eq!(read.unwrap(), 10, "{kind}, encrypted: {encrypts}");
            if kind != "drop" {
                // The end was of one direction.
                far.write_all(b"x").await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn what_was_decrypted_needs_no_readiness_of_the_socket() {
    let (mut near, mut far) = encrypted().await;
    near.write_all(&[7; 1000]).await.unwrap();
    near.flush().await.unwrap();
    far.read_exact(&mut [0; 10]).await.unwrap();
    let ready = std::future::poll_fn(|task| std::task::Poll::Ready(far.poll_read_ready(task)));
    assert!(ready.await.is_ready(), "990 bytes wait");
    far.read_exact(&mut [0; 990]).await.unwrap();
}

#[test]
fn files_of_no_use_are_told_apart() {
    let ca = Ca::new();
    let (one, two) = (ca.pair(&["a"]), ca.pair(&["a"]));
    let new = |cert: &str, key: &str, client_ca: Option<&str>| {
        let files = ServerFiles {
            cert: cert.as_bytes(),
            key: key.as_bytes(),
            client_ca: client_ca.map(str::as_bytes),
            client_auth: ClientAuth::Required,
        };
        Acceptor::new(&files)
    };
    let good = new(&one.cert, &one.key, None).unwrap();
    assert!(good == new(&one.cert, &one.key, None).unwrap());
    assert!(good != new(&two.cert, &two.key, None).unwrap());
    assert!(good != new(&one.cert, &one.key, Some(&ca.pem())).unwrap());
    assert_eq!(good.facts().names[0], "a");
    for (cert, key, client_ca, part, words) in [
        ("", &*one.key, None, "certificate", "no certificate"),
        (&*one.key, &*one.key, None, "certificate", "no certificate"),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            &*one.key,
            None,
            "certificate",
            "no X.509",
        ),
        (&*one.cert, &*one.cert, None, "key", "no private key"),
        (
            &*one.cert,
            &*two.key,
            None,
            "key",
            "not the key of that certificate",
        ),
        (
            &*one.cert,
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
            None,
            "key",
            "encrypted",
        ),
        (
            &*one.cert,
            &*one.key,
            Some("x"),
            "authority",
            "no certificate",
        ),
    ] {
        let error = new(cert, key, client_ca).unwrap_err();
        let found = match &error {
            CredentialError::Certificate(_) => "certificate",
            CredentialError::Key(_) => "key",
            CredentialError::Authority(_) => "authority",
        };
        assert_eq!(found, part, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test]
async fn joined_connections_pass_bytes_and_ends_and_count() {
    for encrypts in [false, true] {
        let (mut client, mut front) = plain().await;
        let (mut back, mut server) = match encrypts {
            true => encrypted().await,
            false => plain().await,
        };
        let text: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
        let counts = [AtomicU64::new(0), AtomicU64::new(0)];
        let joining = splice(&mut front, &mut back, Duration::from_secs(60), |leg, n| {
            counts[leg as usize].fetch_add(n, Ordering::Relaxed);
        });
        // The server hears the end of the client, and has its say after that.
        let serving = async {
            let mut got = Vec::new();
            server.read_to_end(&mut got).await.unwrap();
            server.write_all(&got[..500_000]).await.unwrap();
            server.shutdown().await.unwrap();
            got
        };
        let asking = async {
            client.write_all(&text).await.unwrap();
            client.shutdown().await.unwrap();
            let mut got = Vec::new();
            client.read_to_end(&mut got).await.unwrap();
            got
        };
        let (joined, at_server, at_client) = tokio::join!(joining, serving, asking);
        joined.unwrap();
        assert!(
            at_server == text && at_client == text[..500_000],
            "{encrypts}"
        );
        let counts = counts.map(AtomicU64::into_inner);
        assert_eq!(counts, [1_000_000, 500_000]);
        let within = pipe::FILLED.take();
        assert_eq!(
            within > 500_000,
            cfg!(target_os = "linux") && !encrypts,
            "{within}"
        );
    }
}

/// Some systems do not move bytes by themselves, or must not: then they are copied.
#[tokio::test]
async fn what_is_not_moved_is_copied() {
    let (mut client, mut front) = plain().await;
    let (mut back, mut server) = plain().await;
    pipe::refuse();
    let text: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
    let joining = splice(&mut front, &mut back, Duration::from_secs(60), |_, _| {});
    let passing = async {
        let writing = async {
            client.write_all(&text).await.unwrap();
            client.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let (read, ()) = tokio::join!(server.read_to_end(&mut got), writing);
        read.unwrap();
        drop(server);
        got
    };
    let (_ended, got) = tokio::join!(joining, passing);
    assert!(got == text, "{} bytes", got.len());
    assert_eq!(pipe::FILLED.take(), 0);
}

/// An urgent byte, which no SDK sends: what is behind it cannot be moved by the kernel, which does not
/// tell that from nothing, or from the end.
#[tokio::test]
async fn what_is_behind_an_urgent_byte_passes() {
    for closes in [false, true] {
        let (mut client, mut front) = plain().await;
        let (mut back, mut server) = plain().await;
        let joining = splice(&mut front, &mut back, Duration::from_secs(60), |_, _| {});
        let writing = async {
            // So much that the second read is the kernel's, up to the urgent byte.
            client.write_all(&vec![7; 90_000]).await.unwrap();
            let urgent = rustix::net::SendFlags::OOB;
            rustix::net::send(client.tcp(), b"!", urgent).unwrap();
            client.write_all(&vec![8; 5_000]).await.unwrap();
            if closes {
                client.shutdown().await.unwrap();
            }
        };
        let reading = async {
            let mut got = vec![0; 95_000];
            server.read_exact(&mut got).await.unwrap();
            assert!(got[90_000..].iter().all(|byte| *byte == 8), "{closes}");
        };
        let passing = async {
            writing.await;
            reading.await;
        };
        let passed = tokio::time::timeout(Duration::from_secs(20), passing);
        tokio::select! {
            ended = joining => panic!("{ended:?}"),
            passed = passed => passed.expect("it does not pass"),
        }
        assert_eq!(pipe::FILLED.take() > 0, cfg!(target_os = "linux"));
    }
}

/// Pieces of all sizes, to a side that takes them now and then: whatever is copied and what the kernel
/// moves by itself comes in one order, and whole.
#[tokio::test]
async fn what_is_moved_and_what_is_copied_stays_in_order() {
    let mut runner = proptest::test_runner::TestRunner::default();
    let sizes = proptest::collection::vec(
        proptest::prop_oneof![1..2_000usize, 10_000..40_000usize, 200_000..600_000usize],
        1..30,
    );
    let mut within = 0;
    for _ in 0..24 {
        let sizes = sizes.new_tree(&mut runner).unwrap().current();
        let (mut client, mut front) = plain().await;
        let (mut back, mut server) = plain().await;
        let total: usize = sizes.iter().sum();
        let text: Vec<u8> = (0..total).map(|n| (n * 31 / 7 % 251) as u8).collect();
        let joining = splice(&mut front, &mut back, Duration::from_secs(60), |_, _| {});
        let writing = async {
            let mut rest = &text[..];
            for size in &sizes {
                let (piece, more) = rest.split_at(*size);
                client.write_all(piece).await.unwrap();
                rest = more;
                tokio::task::yield_now().await;
            }
            client.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let reading = async {
            let mut got = Vec::new();
            let mut piece = vec![0; 150_000];
            loop {
                for _ in 0..got.len() % 5 {
                    tokio::task::yield_now().await;
                }
                match server.read(&mut piece).await.unwrap() {
                    0 => break,
                    n => got.extend_from_slice(&piece[..n]),
                }
            }
            server.write_all(b"all").await.unwrap();
            server.shutdown().await.unwrap();
            got
        };
        let (joined, answer, got) = tokio::join!(joining, writing, reading);
        joined.unwrap();
        assert!(got == text, "{} of {total} bytes, {sizes:?}", got.len());
        assert_eq!(answer, b"all");
        within += pipe::FILLED.take();
    }
    assert_eq!(within > 0, cfg!(target_os = "linux"), "{within}");
}

/// A connection that breaks while the kernel moves its bytes is told as one whose bytes are copied.
#[tokio::test]
async fn a_break_in_much_is_told() {
    let (mut client, mut front) = plain().await;
    let (mut back, mut server) = plain().await;
    let text = vec![7; 400_000];
    let writing = async {
        client.write_all(&text).await.unwrap();
        // Read by nobody: closed with it, the connection is reset.
        server.write_all(&[1; 1000]).await.unwrap();
        client.tcp().readable().await.unwrap();
        drop(client);
        let mut count = 0;
        let mut piece = vec![0; 100_000];
        while let Ok(n @ 1..) = server.read(&mut piece).await {
            count += n;
        }
        count
    };
    let joining = splice(&mut front, &mut back, Duration::from_secs(60), |_, _| {});
    let ended = tokio::select! {
        ended = joining => ended,
        _ = writing => panic!("the server's side was closed"),
    };
    assert!(matches!(ended, Err(Halt::First(_))), "{ended:?}");
    assert_eq!(pipe::FILLED.take() > 0, cfg!(target_os = "linux"));
}

#[tokio::test]
async fn who_takes_nothing_for_too_long_ends_the_join() {
    for encrypts in [false, true] {
        let (mut client, mut front) = plain().await;
        let (mut back, _server) = match encrypts {
            true => encrypted().await,
            false => plain().await,
        };
        let joining = splice(&mut front, &mut back, Duration::from_millis(50), |_, _| {});
        let writing = async {
            // More than any socket buffers hold: ends only with the join.
            let text = vec![7; 1 << 20];
            loop {
                client.write_all(&text).await.unwrap();
            }
        };
        let ended = tokio::select! {
            ended = joining => ended,
            () = writing => Ok(()),
        };
        assert!(matches!(ended, Err(Halt::SecondStalled)), "{ended:?}");
        let within = cfg!(target_os = "linux") && !encrypts;
        assert_eq!(pipe::FILLED.take() > 0, within);
    }
}
