//! Peers that do not read: what they do not take is not kept, and nobody else waits for them.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::rig::{Disks, Raw, Rig, bounded, event, frame, id_placed_on, until};

const MIB: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_costs_little_and_is_closed_in_time() {
    bounded(100, async {
        let rig = Rig::with(1, Disks::Separate, |conf| {
            conf.text("listener.write_stall", "8s")
                .text("log.level", "warn")
        })
        .await;
        let (sender, bystander) = (rig.client().await, rig.client().await);
        sender.create("loud").await;
        bystander.create("quiet").await;
        let mut deaf = Raw::connect(rig.taxiway.address()).await;
        let resume =
            r#"{"jsonrpc":"2.0","id":1,"method":"session.create","params":{"sessionId":"loud"}}"#;
        deaf.write(&frame(resume)).await;
        assert_eq!(deaf.answer().await.unwrap()["id"], 1);
        // Warm buffers belong to everybody.
        sender.turn("loud", "[[len 16]] [[pad 65536]]").await;
        let before = rig.taxiway.resident();

        let mut most = 0;
        let mut slowest = Duration::ZERO;
        for _ in 0..13 {
            sender.turn("loud", "[[len 32]] [[pad 65536]]").await;
            most = most.max(rig.taxiway.resident());
            let began = Instant::now();
            bystander.mode("quiet").await.unwrap();
            slowest = slowest.max(began.elapsed());
        }
        // 13 turns, each of 2 MiB of deltas and a message of 2 MiB.
        let grown = most.saturating_sub(before);
        println!(
            "52 MiB of events unread: grown by {} KiB, slowest answer {slowest:?}",
            grown >> 10
        );
        assert!(grown < 16 * MIB, "{} MiB", grown / MIB);
        assert!(slowest < Duration::from_secs(2), "{slowest:?}");

        let hits = r#"taxiway_limit_hits_total{limit="listener.write_stall"}"#;
        rig.admin().metric_is(hits, 1.0).await;
        rig.admin()
            .metric_is("taxiway_downstream_connections", 2.0)
            .await;
        sender.turn("loud", "go on").await;
        drop(deaf);
    })
    .await;
}

/// Floods a client that does not read: what waits for it in Taxiway is bounded, its server is not read
/// any more, others on the same server go on, and it misses nothing once it reads again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stops_reading_holds_1_mib_at_most_and_misses_nothing() {
    bounded(150, async {
        let rig = Rig::with(1, Disks::Separate, |conf| {
            conf.text("listener.write_stall", "60s")
                .text("log.level", "warn")
        })
        .await;
        let (other, bystander) = (rig.client().await, rig.client().await);
        bystander.create("quiet").await;
        other.create("loud").await;
        // Small events, ones that are held for their size, ones that pass as they arrive.
        let sends = [
            "[[len 10000]] [[pad 500]]",
            "[[len 320]] [[pad 65536]]",
            "[[len 12]] [[pad 65536]]",
        ];
        let relayed = r#"taxiway_bytes_total{direction="backend_to_client"}"#;
        let mut marks = vec![rig.admin().scrape().await.value(relayed)];
        for send in sends {
            other.turn("loud", send).await;
        }
        marks.push(rig.admin().scrape().await.value(relayed));
        let mut deaf = Raw::connect(rig.taxiway.address()).await;
        let resume =
            r#"{"jsonrpc":"2.0","id":1,"method":"session.resume","params":{"sessionId":"loud"}}"#;
        deaf.write(&frame(resume)).await;
        assert_eq!(deaf.answer().await.unwrap()["id"], 1);
        let before = rig.taxiway.resident();
        rig.taxiway.forget_peak();

        let mut most = 0.0_f64;
        for _ in 0..3 {
            for send in sends {
                other.turn("loud", send).await;
                let waits = rig.admin().scrape().await.value("taxiway_buffered_bytes");
                most = most.max(waits);
                let began = Instant::now();
                bystander.mode("quiet").await.unwrap();
                assert!(began.elapsed() < Duration::from_secs(2));
            }
            marks.push(rig.admin().scrape().await.value(relayed));
        }
        let grown = rig.taxiway.peak().saturating_sub(before);
        println!(
            "at most {most} bytes wait, peak grown by {} KiB",
            grown >> 10
        );
        assert!(most > 200.0 * 1024.0, "it was not full: {most}");
        assert!(most <= MIB as f64, "{most}");
        assert!(grown < 4 * MIB, "{} KiB", grown >> 10);
        // Once the sockets on the way are full, its server is not read: what passes is the other's.
        let alone = marks[1] - marks[0];
        let (first, last) = ((marks[2] - marks[1]) / alone, (marks[4] - marks[3]) / alone);
        println!("relayed {first:.2} times as much in the first round, {last:.2} in the last");
        assert!(first > 1.03 && last < 1.02, "{first} {last}");

        let mut next = 0_u64;
        let mut turns = 0;
        while turns < 9 {
            let message = deaf.next().await.unwrap();
            let event = &message["params"]["event"];
            match event["type"].as_str() {
                Some("assistant.message_delta") => {
                    let content = event["data"]["deltaContent"].as_str().unwrap();
                    let word = content.split(['.', ' ', 'x']).next().unwrap_or_default();
                    let number: u64 = word.trim_start_matches('w').parse().unwrap_or(u64::MAX);
                    assert_eq!(number, next, "{content:.40}");
                    next += 1;
                }
                Some("session.idle") => {
                    turns += 1;
                    next = 0;
                }
                _ => {}
            }
        }
        rig.admin().metric_is("taxiway_buffered_bytes", 0.0).await;
    })
    .await;
}

/// A stopped backend takes no bytes: who writes to it waits, and nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_does_not_read_stops_only_those_who_write_to_it() {
    bounded(100, async {
        let rig = Rig::with(2, Disks::Separate, |conf| {
            conf.text("listener.write_stall", "3s").text("health.timeout", "10s")
        })
        .await;
        let (stuck, free) = (
            id_placed_on(rig.admin(), "s1", "stuck").await,
            id_placed_on(rig.admin(), "s2", "free").await,
        );
        let other = rig.client().await;
        other.create(&free).await;
        let same = id_placed_on(rig.admin(), "s1", "same").await;
        other.create(&same).await;

        let mut writer = Raw::connect(rig.taxiway.address()).await;
        let create = json!({ "jsonrpc": "2.0", "id": 0, "method": "session.create", "params": { "sessionId": stuck } });
        writer.write(&frame(create.to_string())).await;
        assert_eq!(writer.answer().await.unwrap()["id"], 0);
        rig.sims.get("s1").pause();
        let before = rig.taxiway.resident();
        // More than all buffers on the way hold, until no more is taken.
        let name = "x".repeat(60 * 1024);
        let mut written = 0_usize;
        for batch in 0..60 {
            let calls = (1..=16).flat_map(|n| {
                let params = json!({ "sessionId": stuck, "name": name });
                let call = json!({ "jsonrpc": "2.0", "id": batch * 16 + n, "method": "session.name.set", "params": params });
                frame(call.to_string())
            });
            let bytes: Vec<u8> = calls.collect();
            let write = tokio::io::AsyncWriteExt::write_all(&mut writer.stream, &bytes);
            if tokio::time::timeout(Duration::from_millis(500), write).await.is_err() {
                break;
            }
            written += bytes.len();
            other.turn(&free, "go on").await;
        }
        assert!(written < 50 << 20, "everything was taken: {written}");
        let waits = rig.admin().scrape().await.value("taxiway_buffered_bytes");
        println!("{written} bytes taken, {waits} of them wait in Taxiway");
        assert!(waits > 512.0 * 1024.0 && waits <= MIB as f64, "{waits}");
        let grown = rig.taxiway.resident().saturating_sub(before);
        assert!(grown < 4 * MIB, "{} KiB", grown >> 10);
        let mark = other.mark();
        other.turn(&free, "still").await;
        other.heard_since(mark, &event(&free, "session.idle")).await;
        rig.sims.get("s1").resume();
        until("s1 to be there", async || other.mode(&same).await).await;
    })
    .await;
}

/// Lists are made here, so that no backend would feel that they are not read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_asks_for_lists_and_does_not_read_them_holds_2_mib_at_most() {
    const SESSIONS: usize = 250;
    const CALLS: u64 = 500;
    bounded(150, async {
        let rig = Rig::with(2, Disks::Separate, |conf| {
            conf.text("listener.write_stall", "60s")
                .text("log.level", "warn")
        })
        .await;
        let other = rig.client().await;
        for n in 0..SESSIONS {
            let id = format!("one-of-many-{n}");
            other.create(&id).await;
            other.turn(&id, &"remember ".repeat(50)).await;
        }
        until("all on disk", async || {
            let list = other.call("session.list", json!({})).await.unwrap();
            let listed = list["sessions"].as_array().unwrap().len();
            if listed == SESSIONS {
                Ok(())
            } else {
                Err(listed)
            }
        })
        .await;
        let mut deaf = Raw::connect(rig.taxiway.address()).await;
        deaf.write(&frame(
            r#"{"jsonrpc":"2.0","id":0,"method":"ping","params":{}}"#,
        ))
        .await;
        assert_eq!(deaf.answer().await.unwrap()["id"], 0);
        let before = rig.taxiway.resident();
        rig.taxiway.forget_peak();

        let series = r#"taxiway_calls_total{class="aggregate",outcome="ok"}"#;
        let answered = async || rig.admin().scrape().await.value(series);
        let begun = answered().await;
        let calls = (1..=CALLS).flat_map(|id| {
            let call =
                json!({ "jsonrpc": "2.0", "id": id, "method": "session.list", "params": {} });
            frame(call.to_string())
        });
        let calls: Vec<u8> = calls.collect();
        deaf.write(&calls).await;
        // Until it is full, and no more is made: the same, a few looks long.
        let full = 200.0 * 1024.0;
        let mut most = 0.0_f64;
        let (mut made, mut same) = (begun, 0);
        until("an end of the answers", async || {
            let scrape = rig.admin().scrape().await;
            most = most.max(scrape.value("taxiway_buffered_bytes"));
            let now = scrape.value(series);
            let is_still = most > full && (now - made).abs() < 0.5;
            same = if is_still { same + 1 } else { 0 };
            made = now;
            if same >= 50 { Ok(()) } else { Err((now, most)) }
        })
        .await;
        let grown = rig.taxiway.peak().saturating_sub(before);
        println!(
            "{} of {CALLS} calls answered, at most {most} bytes wait, peak grown by {} KiB",
            made - begun,
            grown >> 10
        );
        assert!(made - begun < 0.9 * CALLS as f64, "it reads");
        assert!(most <= 2.0 * MIB as f64, "{most}");
        assert!(grown < 16 * MIB, "{} KiB", grown >> 10);
        // Others are answered meanwhile.
        other.call("session.list", json!({})).await.unwrap();

        let mut ids: Vec<u64> = Vec::new();
        while ids.len() < usize::try_from(CALLS).unwrap() {
            let answer = deaf.answer().await.unwrap();
            assert_eq!(
                answer["result"]["sessions"].as_array().unwrap().len(),
                SESSIONS
            );
            ids.push(answer["id"].as_u64().unwrap());
        }
        // A few are made at a time, and may overtake each other, as in the CLI itself.
        let near = ids.iter().enumerate().all(|(at, id)| at as u64 + 4 >= *id);
        assert!(near, "{ids:?}");
        ids.sort_unstable();
        assert_eq!(ids, (1..=CALLS).collect::<Vec<_>>());
        rig.admin().metric_is("taxiway_buffered_bytes", 0.0).await;
    })
    .await;
}
