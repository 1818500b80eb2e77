//! `[limits]`: what happens at each, and that it is told and counted.

use serde_json::{Value, json};

use crate::rig::{Client, Disks, Failure, Raw, Rig, bounded, frame, until};

async fn hits(rig: &Rig, limit: &str) -> f64 {
    let series = format!("taxiway_limit_hits_total{{limit=\"{limit}\"}}");
    rig.admin().scrape().await.value(&series)
}

/// Waits until it has been hit once.
async fn once(rig: &Rig, limit: &str) {
    let series = format!("taxiway_limit_hits_total{{limit=\"{limit}\"}}");
    rig.admin().metric_is(&series, 1.0).await;
}

fn is_limit(failure: &Failure, limit: &str) {
    assert_eq!(failure.code, -32013, "{failure:?}");
    assert_eq!(failure.data["limit"], limit, "{failure:?}");
    assert_eq!(failure.data["code"], "LIMIT_EXCEEDED");
    assert_eq!(failure.data["retryable"], true);
    assert!(failure.message.contains(limit), "{failure:?}");
}

#[tokio::test]
async fn frames_and_headers_beyond_their_limit_end_the_connection() {
    bounded(60, async {
        let rig = Rig::with(1, Disks::Separate, |conf| {
            conf.text("limits.frame", "64KiB")
                .text("limits.header", "256B")
        })
        .await;
        let bystander = rig.client().await;
        bystander.create("bystander").await;

        let fits = "x".repeat(60 << 10);
        let answer = bystander
            .call("ping", json!({ "message": fits }))
            .await
            .unwrap();
        assert_eq!(answer["message"], format!("pong: {fits}"));

        let header = format!("X: {}\r\nContent-Length: 2\r\n\r\n{{}}", "a".repeat(300));
        let rows: [(&str, Vec<u8>); 4] = [
            // Refused as soon as it is announced.
            ("limits.frame", b"Content-Length: 65537\r\n\r\n".to_vec()),
            (
                "limits.frame",
                b"Content-Length: 999999999999999\r\n\r\n".to_vec(),
            ),
            ("limits.header", header.into_bytes()),
            // And before the end of what never ends.
            ("limits.header", "a".repeat(300).into_bytes()),
        ];
        for (n, (limit, bytes)) in rows.iter().enumerate() {
            let before = hits(&rig, limit).await;
            let mut raw = Raw::connect(rig.taxiway.address()).await;
            raw.write(bytes).await;
            let answer = raw
                .next()
                .await
                .unwrap_or_else(|| panic!("row {n}: no answer"));
            assert_eq!(answer["id"], Value::Null, "row {n}: {answer}");
            assert_eq!(answer["error"]["code"], -32013, "row {n}: {answer}");
            assert_eq!(
                answer["error"]["data"]["limit"], *limit,
                "row {n}: {answer}"
            );
            assert_eq!(raw.next().await, None, "row {n}");
            let series = format!("taxiway_limit_hits_total{{limit=\"{limit}\"}}");
            rig.admin().metric_is(&series, before + 1.0).await;
        }
        bystander.mode("bystander").await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn one_call_too_many_is_refused_and_the_others_go_on() {
    bounded(60, async {
        let rig = Rig::with(1, Disks::Separate, |conf| {
            conf.set("limits.calls_per_connection", "4")
        })
        .await;
        let client = rig.client().await;
        client.create("busy").await;
        rig.sims.get("s1").pause();
        let mut waiting = Vec::new();
        for _ in 0..4 {
            let params = json!({ "sessionId": "busy" });
            waiting.push(client.begin("session.mode.get", params).await);
        }
        let params = json!({ "sessionId": "busy" });
        let refused = client.call("session.mode.get", params).await.unwrap_err();
        is_limit(&refused, "limits.calls_per_connection");
        once(&rig, "limits.calls_per_connection").await;
        // It is a limit of each connection by itself.
        let other = rig.client().await;
        other.call("ping", json!({})).await.unwrap();
        rig.sims.get("s1").resume();
        for call in waiting {
            call.answer().await.unwrap();
        }
        client.mode("busy").await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn one_session_too_many_is_refused_until_another_is_left() {
    bounded(60, async {
        let rig = Rig::with(2, Disks::Separate, |conf| {
            conf.set("limits.sessions_per_connection", "2")
        })
        .await;
        let client = rig.client().await;
        client.create("one").await;
        client.create("two").await;
        let params = json!({ "sessionId": "three" });
        let refused = client
            .call("session.create", params.clone())
            .await
            .unwrap_err();
        is_limit(&refused, "limits.sessions_per_connection");
        once(&rig, "limits.sessions_per_connection").await;
        assert_eq!(rig.sims.owner("three"), None);
        // What it has already counts once.
        client.create("two").await;
        let left = json!({ "sessionId": "one" });
        client.call("session.destroy", left).await.unwrap();
        client.call("session.create", params).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn one_connection_too_many_is_closed_at_once() {
    bounded(60, async {
        let rig = Rig::with(1, Disks::Separate, |conf| {
            conf.set("limits.connections", "2")
        })
        .await;
        let first = rig.client().await;
        let second = rig.client().await;
        let mut third = Raw::connect(rig.taxiway.address()).await;
        assert_eq!(third.next().await, None);
        once(&rig, "limits.connections").await;
        let scrape = rig.admin().scrape().await;
        let usage = r#"taxiway_limit_usage{limit="limits.connections"}"#;
        assert!((scrape.value(usage) - 2.0).abs() < 1e-9);
        first.call("ping", json!({})).await.unwrap();
        drop(second);
        // As soon as one has left, the next may come.
        until("a place", async || {
            let mut raw = Raw::connect(rig.taxiway.address()).await;
            let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
            // A connection that is closed at once may break while it is written.
            let _broken = tokio::io::AsyncWriteExt::write_all(&mut raw.stream, &frame(ping)).await;
            raw.next().await.ok_or(())
        })
        .await;
        let _last: Client = first;
    })
    .await;
}
