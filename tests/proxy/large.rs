//! Frames of tens of MiB, both ways; those of backends as they arrive.

use std::time::Duration;

use serde_json::json;
use taxiway::sim::Misbehaviour;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::rig::{
    Broken, Client, Conf, Disks, Raw, Rig, Sims, Spoil, Taxiway, bounded, event, frame, until,
};

const MIB: usize = 1 << 20;

/// The series that counts clients that were left in the middle of a frame.
const CUT: &str = "taxiway_cut_frames_total";

/// Gives a session a history of so many MiB, past the proxy: by a client of the server itself.
async fn with_history(sims: &Sims, session: &str, mib: usize) {
    let direct = Client::greeted(sims.get("s1").address()).await;
    direct.create(session).await;
    for _ in 0..mib / 17 {
        direct.turn(session, "[[len 272]] [[pad 65536]]").await;
    }
    direct.turn(session, "the end").await;
}

/// Length, first and last bytes, and a sum of all, of the answer with this id. It is read as fast as
/// it comes, and not kept.
async fn digest(raw: &mut Raw, id: u64) -> (usize, u64, String) {
    let mut buffer = vec![0; 256 * 1024];
    let (mut bytes, mut rest) = (raw.unread(), 0);
    let stream = &mut raw.stream;
    let opening = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":"#);
    loop {
        let n = stream.read(&mut buffer).await.unwrap();
        assert_ne!(n, 0, "the end in the middle");
        bytes.extend_from_slice(&buffer[..n]);
        // Frames before it are dropped.
        while let Some(blank) = memchr::memmem::find(&bytes, b"\r\n\r\n") {
            let header = std::str::from_utf8(&bytes[..blank]).unwrap();
            let length: usize = header["Content-Length: ".len()..].parse().unwrap();
            if bytes.len() < blank + 4 + opening.len() {
                break;
            }
            if bytes[blank + 4..].starts_with(opening.as_bytes()) {
                bytes.drain(..blank + 4);
                rest = length;
                break;
            }
            if bytes.len() < blank + 4 + length {
                break;
            }
            bytes.drain(..blank + 4 + length);
        }
        if rest > 0 {
            break;
        }
    }
    let length = rest;
    let mut sum = 0_u64;
    let mut last = Vec::new();
    let mut take = |piece: &[u8]| {
        sum = piece.iter().fold(sum, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(u64::from(*byte))
        });
        last.extend_from_slice(&piece[piece.len().saturating_sub(64)..]);
        last.drain(..last.len().saturating_sub(64));
    };
    assert!(bytes.len() <= rest, "nothing is behind it");
    take(&bytes);
    rest -= bytes.len();
    while rest > 0 {
        let n = stream.read(&mut buffer).await.unwrap();
        assert!(n > 0 && n <= rest, "{n} of {rest}");
        take(&buffer[..n]);
        rest -= n;
    }
    (length, sum, String::from_utf8_lossy(&last).into_owned())
}

/// Asks for a session's history under this id.
fn ask(id: u64, session: &str) -> Vec<u8> {
    let call = json!({
        "jsonrpc": "2.0", "id": id, "method": "session.getMessages",
        "params": { "sessionId": session },
    });
    frame(call.to_string())
}

async fn resumed(address: std::net::SocketAddr, session: &str) -> Raw {
    let mut raw = Raw::connect(address).await;
    let call = json!({
        "jsonrpc": "2.0", "id": 1, "method": "session.resume",
        "params": { "sessionId": session },
    });
    raw.write(&frame(call.to_string())).await;
    assert!(raw.answer().await.unwrap()["result"].is_object());
    raw
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_136_mib_passes_in_less_than_3_mib() {
    bounded(200, async {
        let rig = Rig::with(1, Disks::Separate, |conf| conf.text("log.level", "warn")).await;
        with_history(&rig.sims, "old", 136).await;
        let other = rig.client().await;
        other.create("small").await;
        let mut reader = resumed(rig.taxiway.address(), "old").await;
        let mut direct = resumed(rig.sims.get("s1").address(), "old").await;
        // Whatever is made once has been made.
        other.turn("small", "[[len 64]] [[pad 4096]]").await;
        let before = rig.taxiway.resident();
        rig.taxiway.forget_peak();
        reader.write(&ask(77, "old")).await;
        let through = digest(&mut reader, 77).await;
        let grown = rig.taxiway.peak().saturating_sub(before);
        println!("{} bytes, peak grown by {} KiB", through.0, grown >> 10);
        assert!(through.0 > 136 * MIB, "{}", through.0);
        assert!(grown < 3 * MIB as u64, "{} KiB", grown >> 10);
        // The same bytes as without a proxy.
        direct.write(&ask(77, "old")).await;
        assert_eq!(digest(&mut direct, 77).await, through);
        // And what is behind it is in step.
        reader
            .write(&frame(
                r#"{"jsonrpc":"2.0","id":78,"method":"ping","params":{}}"#,
            ))
            .await;
        assert_eq!(reader.answer().await.unwrap()["id"], 78);
        let bytes = r#"taxiway_bytes_total{direction="backend_to_client"}"#;
        assert!(rig.admin().scrape().await.value(bytes) > through.0 as f64);
        rig.admin().metric_is("taxiway_buffered_bytes", 0.0).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_do_not_wait_for_it_and_the_same_client_hears_the_rest_behind_it() {
    bounded(100, async {
        let rig = Rig::sticky(1).await;
        with_history(&rig.sims, "old", 34).await;
        let other = rig.client().await;
        other.create("small").await;
        let mut reader = resumed(rig.taxiway.address(), "old").await;
        reader.write(&ask(5, "old")).await;
        // It is not read now, and a call is answered by Taxiway meanwhile.
        until("the answer to begin", async || {
            let waits = rig.admin().scrape().await.value("taxiway_buffered_bytes");
            if waits > 200_000.0 {
                Ok(())
            } else {
                Err(waits)
            }
        })
        .await;
        let ping = r#"{"jsonrpc":"2.0","id":6,"method":"ping","params":{"message":"m"}}"#;
        reader.write(&frame(ping)).await;
        for _ in 0..20 {
            other.turn("small", "go on").await;
        }
        let (first, second) = (
            reader.answer().await.unwrap(),
            reader.answer().await.unwrap(),
        );
        assert_eq!((&first["id"], &second["id"]), (&json!(5), &json!(6)));
        let events = first["result"]["events"].as_array().unwrap();
        let is_message = |e: &&serde_json::Value| e["type"] == "assistant.message";
        assert_eq!(events.iter().filter(is_message).count(), 3);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_cut_off_ends_its_clients_connection_and_no_other() {
    bounded(100, async {
        for fault in ["it closes", "it stops", "it drops"] {
            let sims = Sims::start(1, Disks::Separate).await;
            let broken = Broken::before(sims.get("s1").address()).await;
            let conf = Conf::new(Disks::Separate)
                .text("limits.frame_timeout", "500ms")
                .backend("s1", &broken.address.to_string());
            let rig = Rig {
                taxiway: Taxiway::start(conf).await,
                sims,
            };
            with_history(&rig.sims, "old", 17).await;
            let other = rig.client().await;
            other.create("small").await;
            let mut reader = resumed(rig.taxiway.address(), "old").await;
            if fault == "it closes" {
                broken.spoil(r#""id":55,"result""#, Spoil::HalfThenClose);
            } else if fault == "it drops" {
                broken.spoil(r#""id":55,"result""#, Spoil::HalfThenDrops);
            } else {
                let method = Some("session.getMessages".to_owned());
                rig.sims
                    .get("s1")
                    .misbehave(Misbehaviour::HalfFrame { method });
            }
            reader.write(&ask(55, "old")).await;
            let mut got = reader.unread();
            let read = reader.stream.read_to_end(&mut got);
            tokio::time::timeout(Duration::from_secs(20), read)
                .await
                .unwrap()
                .unwrap();
            // The notifications before it.
            let answer = memchr::memmem::find(&got, br#"{"jsonrpc":"2.0","id":55"#).unwrap();
            let header = memchr::memmem::rfind(&got[..answer], b"Content").unwrap();
            got.drain(..header);
            let header = memchr::memmem::find(&got, b"\r\n\r\n").unwrap();
            let length = std::str::from_utf8(&got[16..header]).unwrap();
            let length: usize = length.parse().unwrap();
            assert!(
                length > 16 * MIB && got.len() < length,
                "{fault}: nothing is behind it"
            );
            rig.admin().metric_is(CUT, 1.0).await;
            assert!(rig.taxiway.log().contains("cut frame"), "{fault}");
            assert!(rig.taxiway.log().contains("cut_frame: "), "{fault}");
            assert!(other.is_open());
            // The session is there for whoever comes.
            let mut again = resumed(rig.taxiway.address(), "old").await;
            again.write(&ask(56, "old")).await;
            assert_eq!(again.answer().await.unwrap()["id"], 56);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_in_the_middle_of_it_harms_nobody() {
    bounded(100, async {
        let rig = Rig::sticky(1).await;
        with_history(&rig.sims, "old", 34).await;
        let before = rig.taxiway.resident();
        for n in 0..4 {
            let mut reader = resumed(rig.taxiway.address(), "old").await;
            if n % 2 == 1 {
                // In a turn, so that its session stays for a while.
                let send = json!({
                    "jsonrpc": "2.0", "id": 4, "method": "session.send",
                    "params": { "sessionId": "old", "prompt": "[[len 20]] [[slow 20]]" },
                });
                reader.write(&frame(send.to_string())).await;
                reader.answer().await.unwrap();
            }
            reader.write(&ask(5, "old")).await;
            let mut some = vec![0; 100_000];
            reader.stream.read_exact(&mut some).await.unwrap();
            reader.stream.shutdown().await.unwrap();
            drop(reader);
        }
        rig.admin()
            .metric_is("taxiway_downstream_connections", 0.0)
            .await;
        rig.admin()
            .metric_is("taxiway_upstream_connections{backend=\"s1\"}", 0.0)
            .await;
        rig.admin().metric_is("taxiway_buffered_bytes", 0.0).await;
        assert!(rig.admin().scrape().await.value(CUT).abs() < 1e-9);
        let grown = rig.taxiway.resident().saturating_sub(before);
        assert!(grown < 16 * MIB as u64, "{grown}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backends_frame_of_32_mib_arrives_whole() {
    bounded(100, async {
        let rig = Rig::sticky(1).await;
        let (client, other) = (rig.client().await, rig.client().await);
        client.create("large").await;
        other.create("small").await;
        client.send("large", "[[len 512]] [[pad 65536]]").await;
        // Others go on meanwhile.
        other.turn("small", "hello").await;
        let message = client.heard(&event("large", "assistant.message")).await;
        let content = message["params"]["event"]["data"]["content"]
            .as_str()
            .unwrap();
        assert_eq!(content.len(), 32 * MIB);
        client.heard(&event("large", "session.idle")).await;
        let deltas: usize = client
            .kept()
            .iter()
            .filter(|m| event("large", "assistant.message_delta")(m))
            .map(|m| {
                m["params"]["event"]["data"]["deltaContent"]
                    .as_str()
                    .unwrap()
                    .len()
            })
            .sum();
        assert_eq!(deltas, 32 * MIB);
        client.mode("large").await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clients_frame_of_60_mib_arrives_whole() {
    bounded(100, async {
        let rig = Rig::sticky(1).await;
        let (client, other) = (rig.client().await, rig.client().await);
        client.create("large").await;
        other.create("small").await;
        let blob = "x".repeat(60 * MIB);
        let prompt = json!({
            "sessionId": "large", "prompt": "[[len 1]]",
            "attachments": [{ "type": "blob", "data": blob }], "wait": true,
        });
        let sent = client.begin("session.send", prompt).await;
        other.turn("small", "hello").await;
        assert!(sent.answer().await.unwrap()["messageId"].is_string());
        let bytes = r#"taxiway_bytes_total{direction="client_to_backend"}"#;
        assert!(rig.admin().scrape().await.value(bytes) > 60.0 * MIB as f64);
        client.turn("large", "and on").await;
        // The buffer that it took is given back.
        let resident = rig.taxiway.resident();
        assert!(resident < 100 * MIB as u64, "{resident}");
    })
    .await;
}
