//! What one user may use at a time. Nobody needs a token here, so the user is the address, which all
//! clients of a test share.

use serde_json::{Value, json};

use crate::{
    leaks::nothing_is_left,
    rig::{Client, Conf, Disks, Failure, Rig, bounded, event, until},
};

async fn rig(settings: impl FnOnce(Conf) -> Conf) -> Rig {
    Rig::with(2, Disks::Shared, settings).await
}

/// Which cap it is, and when to come back.
fn over(refused: &Failure) -> (&str, u64) {
    assert_eq!(refused.code, -32013, "{refused:?}");
    assert_eq!(refused.data["code"], "LIMIT_EXCEEDED", "{refused:?}");
    assert_eq!(refused.data["retryable"], true, "{refused:?}");
    let after = refused.data["retry_after_ms"].as_u64().unwrap();
    assert!((1..=60_000).contains(&after), "{refused:?}");
    (refused.data["limit"].as_str().unwrap(), after)
}

async fn hits(rig: &Rig, limit: &str, count: f64) {
    let series = format!("taxiway_limit_hits_total{{limit=\"{limit}\"}}");
    rig.admin().metric_is(&series, count).await;
}

fn send(session: &str) -> Value {
    json!({ "sessionId": session, "prompt": "[[len 100000]] [[slow 20]]" })
}

#[tokio::test]
async fn one_connection_too_many_is_told_and_closed() {
    bounded(60, async {
        let limit = "limits.connections_per_user";
        let rig = rig(|conf| conf.set(limit, "2")).await;
        let (first, second) = (rig.client().await, rig.client().await);
        let usage = format!("taxiway_limit_usage{{limit=\"{limit}\"}}");
        rig.admin().metric_is(&usage, 2.0).await;
        // Whatever it begins with.
        for method in ["connect", "session.list", "ping"] {
            let third = Client::connect(rig.taxiway.address()).await;
            let refused = third.call(method, json!({})).await.unwrap_err();
            assert_eq!(over(&refused).0, limit, "{method}");
            third.closed().await;
        }
        hits(&rig, limit, 3.0).await;
        first.create("s").await;
        first.turn("s", "hello").await;
        drop(second);
        until("its place to be free", async || {
            let third = Client::connect(rig.taxiway.address()).await;
            third.call("connect", json!({})).await
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn sessions_of_a_user_are_counted_over_all_connections() {
    bounded(60, async {
        let limit = "sessions.max_open_per_user";
        let rig = rig(|conf| conf.set(limit, "2")).await;
        let (one, two) = (rig.client().await, rig.client().await);
        one.create("a").await;
        one.create("b").await;
        // The same ones again, elsewhere.
        two.create("a").await;
        let refused = two
            .call("session.create", json!({ "sessionId": "c" }))
            .await
            .unwrap_err();
        assert_eq!(over(&refused).0, limit);
        let refused = two.call("session.create", json!({})).await.unwrap_err();
        assert_eq!(over(&refused).0, limit, "under an id of the server's");
        hits(&rig, limit, 2.0).await;
        assert_eq!(rig.sims.owner("c"), None);
        // One is still open elsewhere, the other is not.
        let detach = |session| json!({ "sessionId": session });
        two.call("session.destroy", detach("a")).await.unwrap();
        let refused = two
            .call("session.create", json!({ "sessionId": "c" }))
            .await
            .unwrap_err();
        assert_eq!(over(&refused).0, limit);
        one.call("session.destroy", detach("b")).await.unwrap();
        two.create("c").await;
        let usage = format!("taxiway_limit_usage{{limit=\"{limit}\"}}");
        rig.admin().metric_is(&usage, 2.0).await;
        drop((one, two));
        rig.admin().metric_is(&usage, 0.0).await;
        nothing_is_left(&rig).await;
    })
    .await;
}

#[tokio::test]
async fn turns_of_a_user_are_counted_and_given_back() {
    bounded(60, async {
        let limit = "limits.turns_per_user";
        let rig = rig(|conf| conf.set(limit, "1")).await;
        let (one, two) = (rig.client().await, rig.client().await);
        one.create("a").await;
        two.create("b").await;
        one.call("session.send", send("a")).await.unwrap();
        one.heard(&event("a", "assistant.turn_start")).await;
        // What it sends meanwhile is no further turn.
        one.send("a", "and").await;
        for _ in 0..2 {
            let refused = two.call("session.send", send("b")).await.unwrap_err();
            assert_eq!(over(&refused).0, limit);
        }
        hits(&rig, limit, 2.0).await;
        let told = rig.admin().get("/api/v1/sessions/b/explain").await;
        assert!(told["turn_lock"].is_null(), "{told}");
        one.call("session.abort", json!({ "sessionId": "a" }))
            .await
            .unwrap();
        one.heard(&event("a", "session.idle")).await;
        let usage = format!("taxiway_limit_usage{{limit=\"{limit}\"}}");
        rig.admin().metric_is(&usage, 0.0).await;
        two.turn("b", "now").await;
        rig.admin().metric_is(&usage, 0.0).await;
        two.turn("b", "again").await;
        drop((one, two));
        nothing_is_left(&rig).await;
        rig.admin().metric_is(&usage, 0.0).await;
    })
    .await;
}

#[tokio::test]
async fn calls_that_come_too_fast_are_told_when_to_come_back() {
    bounded(60, async {
        let limit = "limits.calls_per_second";
        let rig = rig(|conf| conf.set(limit, "10")).await;
        let (one, two) = (rig.client().await, rig.client().await);
        let mut calls = Vec::new();
        for n in 0..40 {
            let client = if n % 2 == 0 { &one } else { &two };
            calls.push(client.begin("session.getForeground", json!({})).await);
        }
        let mut refused = Vec::new();
        for call in calls {
            refused.extend(call.answer().await.err());
        }
        assert!(
            (10..=30).contains(&refused.len()),
            "{} of 40",
            refused.len()
        );
        for failure in &refused {
            let (key, after) = over(failure);
            assert_eq!(key, limit);
            assert!(after <= 100, "{failure:?}");
        }
        hits(&rig, limit, refused.len() as f64).await;
        // These cost nothing.
        for n in 0..100 {
            let pong = one.call("ping", json!({ "message": n.to_string() })).await;
            assert_eq!(pong.unwrap()["message"], format!("pong: {n}"));
        }
        until("the next call to pass", async || {
            one.call("session.getForeground", json!({})).await
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn bytes_that_come_too_fast_are_refused_and_events_are_not() {
    bounded(60, async {
        let limit = "limits.bytes_per_second";
        let rig = rig(|conf| conf.text(limit, "64KiB").text("limits.frame", "64KiB")).await;
        let client = rig.client().await;
        client.create("s").await;
        let large = json!({ "sessionId": "s", "prompt": "x".repeat(40 << 10) });
        client.call("session.send", large.clone()).await.unwrap();
        let refused = client.call("session.send", large).await.unwrap_err();
        assert_eq!(over(&refused).0, limit);
        client.heard(&event("s", "session.idle")).await;
        hits(&rig, limit, 1.0).await;
        // A megabyte of events is no matter.
        let mark = client.mark();
        client.send("s", "[[len 4000]] [[pad 300]]").await;
        client.heard_since(mark, &event("s", "session.idle")).await;
        hits(&rig, limit, 1.0).await;
    })
    .await;
}
