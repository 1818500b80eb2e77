//! Backends that break the protocol: their clients learn it at once, they are ejected, and
//! sessions elsewhere never notice.

use std::time::{Duration, Instant};

use serde_json::json;
use taxiway::sim::Misbehaviour;

use crate::rig::{
    Broken, Conf, Disks, Rig, Sims, Spoil, Taxiway, bounded, event, id_placed_on, until,
};

/// What "at once" may take on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(2);

/// A server `s1` behind a relay that can break, and a sound one, `s2`.
async fn broken_rig(settings: impl FnOnce(Conf) -> Conf) -> (Rig, Broken) {
    let sims = Sims::start(2, Disks::Separate).await;
    let broken = Broken::before(sims.get("s1").address()).await;
    let conf = Conf::new(Disks::Separate)
        .backend("s1", &broken.address.to_string())
        .backend("s2", &sims.get("s2").address().to_string());
    let taxiway = Taxiway::start(settings(conf)).await;
    (Rig { sims, taxiway }, broken)
}

/// A client whose call is spoilt; what it has elsewhere goes on.
async fn call_is_lost(rig: &Rig, spoil: impl FnOnce(), reason: &str) {
    let client = rig.client().await;
    let (bad, good) = (
        id_placed_on(rig.admin(), "s1", "bad").await,
        id_placed_on(rig.admin(), "s2", "good").await,
    );
    client.create(&bad).await;
    client.create(&good).await;
    let elsewhere = rig.client().await;
    elsewhere
        .call("session.resume", json!({ "sessionId": good }))
        .await
        .unwrap();
    client.turn(&bad, "one").await;
    client.send(&good, "[[len 60]] [[slow 20]]").await;

    spoil();
    let began = Instant::now();
    let params = json!({ "sessionId": bad });
    let lost = client.call("session.abort", params).await.unwrap_err();
    let took = began.elapsed();
    assert_eq!(lost.code, -32011, "{lost:?}");
    assert_eq!(lost.data["code"], "BACKEND_LOST");
    assert!(lost.message.contains("s1"), "{lost:?}");
    assert!(took < AT_ONCE, "{took:?}");

    let series = format!("taxiway_backend_ejections_total{{backend=\"s1\",reason=\"{reason}\"}}");
    rig.admin().metric_is(&series, 1.0).await;
    for other in [&client, &elsewhere] {
        other.heard(&event(&good, "session.idle")).await;
        assert!(other.is_open());
    }
    let lost = rig.admin().scrape().await;
    let turns = lost.value(r#"taxiway_turns_total{backend="s2",outcome="lost"}"#);
    assert!(turns.abs() < 1e-9);
    // It did nothing wrong since, so it is taken back, and the session can be had again.
    rig.admin().health("s1", &["up", "probation"]).await;
    client
        .call("session.resume", json!({ "sessionId": bad }))
        .await
        .unwrap();
    client.turn(&bad, "two").await;
}

fn aborts() -> Option<String> {
    Some("session.abort".to_owned())
}

#[tokio::test]
async fn garbage_instead_of_an_answer() {
    bounded(60, async {
        let rig = Rig::sticky(2).await;
        let fault = Misbehaviour::Garbage { method: aborts() };
        call_is_lost(&rig, || rig.sims.get("s1").misbehave(fault), "violation").await;
    })
    .await;
}

#[tokio::test]
async fn an_answer_under_an_id_that_nobody_asked_with() {
    bounded(60, async {
        let rig = Rig::sticky(2).await;
        let fault = Misbehaviour::WrongId { method: aborts() };
        call_is_lost(&rig, || rig.sims.get("s1").misbehave(fault), "violation").await;
    })
    .await;
}

#[tokio::test]
async fn half_an_answer_and_the_end_of_the_connection() {
    bounded(60, async {
        let (rig, broken) = broken_rig(|conf| conf).await;
        let order = || broken.spoil("\"success\":", Spoil::HalfThenClose);
        call_is_lost(&rig, order, "violation").await;
    })
    .await;
}

#[tokio::test]
async fn half_an_answer_and_no_more() {
    bounded(60, async {
        let (rig, broken) = broken_rig(|conf| conf.text("limits.frame_timeout", "500ms")).await;
        let order = || broken.spoil("\"success\":", Spoil::HalfThenSilence);
        call_is_lost(&rig, order, "violation").await;
    })
    .await;
}

#[tokio::test]
async fn bytes_that_are_no_message() {
    bounded(60, async {
        let (rig, broken) = broken_rig(|conf| conf).await;
        let ejected = r#"taxiway_backend_ejections_total{backend="s1",reason="violation"}"#;
        let mut ejections = 0.0;
        for bytes in [
            &b"Content-Length: 2\r\n\r\n{}"[..],
            b"Content-Length: 9\r\n\r\nnot json!",
            b"Content-Length: 7\r\n\r\n[1,2,3]",
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            b"Content-Length: 999999999999999\r\n\r\n{}",
        ] {
            let client = rig.client().await;
            let bad = id_placed_on(rig.admin(), "s1", "bytes").await;
            client.create(&bad).await;
            broken.spoil("\"success\":", Spoil::Bytes(bytes));
            let params = json!({ "sessionId": bad });
            let lost = client.call("session.abort", params).await.unwrap_err();
            let shown = String::from_utf8_lossy(bytes);
            assert_eq!(lost.code, -32011, "{shown}: {lost:?}");
            // It is out, and comes back, before the next one.
            ejections += 1.0;
            rig.admin().metric_is(ejected, ejections).await;
            rig.admin().health("s1", &["probation", "up"]).await;
        }
    })
    .await;
}

/// Garbage on the control connection alone ejects as well; sessions that are open there go on.
#[tokio::test]
async fn garbage_on_the_control_connection() {
    bounded(60, async {
        let rig = Rig::sticky(2).await;
        let client = rig.client().await;
        let here = id_placed_on(rig.admin(), "s1", "control").await;
        client.create(&here).await;
        // Clients' pings are answered by Taxiway, so this is a probe's.
        let ping = Some("ping".to_owned());
        let fault = Misbehaviour::Garbage { method: ping };
        rig.sims.get("s1").misbehave(fault);
        let ejected = r#"taxiway_backend_ejections_total{backend="s1",reason="violation"}"#;
        rig.admin().metric_is(ejected, 1.0).await;
        client.turn(&here, "still here").await;
        rig.admin().health("s1", &["up", "probation"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_silent_backend_is_ejected_in_time_and_keeps_its_sessions() {
    bounded(60, async {
        let rig = Rig::with(3, Disks::Separate, |conf| {
            conf.text("health.interval", "300ms")
                .text("health.timeout", "300ms")
                .set("health.unhealthy_after", "3")
        })
        .await;
        let client = rig.client().await;
        let here = id_placed_on(rig.admin(), "s1", "silent").await;
        let other = id_placed_on(rig.admin(), "s2", "other").await;
        client.create(&here).await;
        client.create(&other).await;
        let began = Instant::now();
        rig.sims.get("s1").pause();
        let waiting = client
            .begin("session.abort", json!({ "sessionId": here }))
            .await;
        rig.admin().health("s1", &["down"]).await;
        let took = began.elapsed();
        // interval + timeout × unhealthy_after, and what a busy machine adds.
        assert!(took < Duration::from_millis(1200 + 1000), "{took:?}");
        let ejected = r#"taxiway_backend_ejections_total{backend="s1",reason="silent"}"#;
        rig.admin().metric_is(ejected, 1.0).await;
        for n in 0..6 {
            let id = format!("user-away{n}--x");
            client.create(&id).await;
            assert_ne!(rig.sims.owner(&id).as_deref(), Some("s1"));
        }
        client.turn(&other, "go on").await;
        // Its call is not left waiting: it may have been executed, and says so.
        assert_eq!(waiting.answer().await.unwrap_err().code, -32011);
        // Stopped, not dead: it keeps the session, and its late answer disturbs nobody.
        rig.sims.get("s1").resume();
        rig.admin().health("s1", &["up", "probation"]).await;
        client.turn(&here, "back again").await;
    })
    .await;
}

/// Beyond `health.max_ejected` silent ones stay in placement: half a pool that does not answer is
/// more likely a broken network than so many broken servers.
#[tokio::test]
async fn no_more_than_max_ejected_are_ejected_for_silence() {
    bounded(60, async {
        let rig = Rig::with(4, Disks::Separate, |conf| {
            conf.set("health.max_ejected", "0.5")
                .text("health.timeout", "200ms")
        })
        .await;
        for name in ["s1", "s2", "s3"] {
            rig.sims.get(name).pause();
        }
        rig.admin().metric_is("taxiway_pool_panic", 1.0).await;
        let list = rig.admin().get("/api/v1/backends").await;
        let down = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|b| b["health"] == "down")
            .count();
        assert!(down <= 2, "{list:#}");
        for name in ["s1", "s2", "s3"] {
            rig.sims.get(name).resume();
        }
        rig.admin().metric_is("taxiway_pool_panic", 0.0).await;
    })
    .await;
}

/// A connection that closes between two frames is no fault of the protocol: whoever it served is
/// told, and nobody is ejected for it.
#[tokio::test]
async fn the_end_of_one_connection() {
    bounded(60, async {
        let (rig, broken) = broken_rig(|conf| conf).await;
        let (client, other) = (rig.client().await, rig.client().await);
        let id = id_placed_on(rig.admin(), "s1", "end").await;
        client.create(&id).await;
        client.turn(&id, "one").await;
        let kept = id_placed_on(rig.admin(), "s1", "kept").await;
        other.create(&kept).await;
        broken.spoil("\"success\":", Spoil::Close);
        let params = json!({ "sessionId": id });
        let lost = client
            .call("session.abort", params.clone())
            .await
            .unwrap_err();
        assert_eq!(lost.code, -32011, "{lost:?}");
        other.turn(&kept, "go on").await;
        client.call("session.resume", params).await.unwrap();
        client.turn(&id, "two").await;
        let scrape = rig.admin().scrape().await;
        assert_eq!(scrape.sum("taxiway_backend_ejections_total"), 0.0);
    })
    .await;
}

/// Sessions that are being opened again when their connection breaks once more ask anew, and do not
/// wait for the places that they hold themselves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_breaks_while_sessions_are_opened_again_stops_nobody() {
    bounded(60, async {
        let (mut rig, broken) = broken_rig(|conf| conf).await;
        let client = rig.client().await;
        let mut ids = Vec::new();
        for n in 0..12 {
            let id = id_placed_on(rig.admin(), "s1", &format!("again-{n}")).await;
            client.create(&id).await;
            client.turn(&id, "first").await;
            ids.push(id);
        }
        let home = rig.sims.home("s1").clone();
        until("on disk", async || {
            let listed = home.sessions().len();
            if listed == ids.len() {
                Ok(())
            } else {
                Err(listed)
            }
        })
        .await;
        broken.spoil("workspacePath", Spoil::Close);
        rig.sims.restart("s1").await;
        for id in &ids {
            assert_eq!(client.mode(id).await.unwrap(), "interactive");
        }
        assert!(!broken.is_armed(), "it has broken");
    })
    .await;
}
