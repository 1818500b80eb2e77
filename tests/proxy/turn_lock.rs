//! One turn at a time in a session that several have open: who waits, who is refused, and that
//! nobody waits for nothing.

use std::sync::Arc;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    leaks::nothing_is_left,
    rig::{Client, Conf, Disks, Rig, bounded, event, until},
};

const WAITING: &str = "taxiway_queue_length{queue=\"turn_lock\"}";

async fn rig(settings: impl FnOnce(Conf) -> Conf) -> Rig {
    Rig::with(2, Disks::Shared, settings).await
}

/// Another connection with the session open.
async fn joined(rig: &Rig, session: &str) -> Client {
    let client = rig.client().await;
    client.create(session).await;
    client
}

fn prompt(message: &Value) -> &str {
    message["params"]["event"]["data"]["content"]
        .as_str()
        .unwrap_or_default()
}

fn send(session: &str, prompt: &str) -> Value {
    json!({ "sessionId": session, "prompt": prompt })
}

fn steering(session: &str) -> Value {
    json!({ "sessionId": session, "prompt": "quick", "mode": "immediate" })
}

/// Turns one after the other, as fast as they go; the turns of others that each had to wait for.
async fn many(client: &Client, session: &str, name: &str, count: usize) -> Vec<usize> {
    let mut waited = Vec::new();
    for n in 0..count {
        let own = format!("{name} {n}.");
        let mark = client.mark();
        client
            .send(session, &format!("{own} [[len 4]] [[slow 10]]"))
            .await;
        let mut from = mark;
        let mut foreign = 0;
        loop {
            let shown = client
                .next(&mut from, &event(session, "user.message"))
                .await;
            if prompt(&shown).starts_with(&own) {
                break;
            }
            foreign += 1;
        }
        waited.push(foreign);
        client
            .next(&mut from, &event(session, "session.idle"))
            .await;
    }
    waited
}

/// Each waits for one turn at most from when Taxiway has read its send. It is counted from when the
/// client has written it, and a thread of Taxiway's may stand still in between, as may a processor
/// that is not the machine's own: now and then there is one more.
fn is_fair(waited: &[usize]) -> bool {
    let more = waited.iter().filter(|turns| **turns > 1);
    more.count() <= 2 && waited.iter().all(|turns| *turns <= 5)
}

/// What a witness has seen of turns: each message, and each end.
fn story(witness: &Client, session: &str) -> Vec<String> {
    let kept = witness.kept();
    let of_turn =
        |m: &&Arc<Value>| event(session, "user.message")(m) || event(session, "session.idle")(m);
    let told = kept.iter().filter(of_turn).map(|m| {
        let text = prompt(m).split('.').next().unwrap_or_default();
        if event(session, "session.idle")(m) {
            "idle".to_owned()
        } else {
            text.to_owned()
        }
    });
    told.collect()
}

#[tokio::test]
async fn turns_of_several_never_meet_and_nobody_waits_for_more_than_one() {
    bounded(120, async {
        let rig = rig(|conf| conf).await;
        let witness = joined(&rig, "s").await;
        let (anna, ben) = (joined(&rig, "s").await, joined(&rig, "s").await);
        let waited = tokio::join!(many(&anna, "s", "anna", 20), many(&ben, "s", "ben", 20),);
        assert!(is_fair(&waited.0) && is_fair(&waited.1), "{waited:?}");
        until("the witness to have seen all", async || {
            let seen = story(&witness, "s").len();
            if seen >= 80 { Ok(()) } else { Err(seen) }
        })
        .await;
        let story = story(&witness, "s");
        for pair in story.chunks(2) {
            assert!(pair[0] != "idle" && pair[1] == "idle", "{story:?}");
        }
        let scrape = rig.admin().scrape().await;
        assert!(scrape.value("taxiway_turn_lock_wait_seconds_count") >= 20.0);
        rig.admin().metric_is(WAITING, 0.0).await;
        drop((anna, ben, witness));
        nothing_is_left(&rig).await;
    })
    .await;
}

#[tokio::test]
async fn who_waits_is_shown_can_leave_and_is_served_in_order() {
    bounded(60, async {
        let rig = rig(|conf| conf).await;
        let anna = joined(&rig, "s").await;
        let (ben, carl, dora) = (
            joined(&rig, "s").await,
            joined(&rig, "s").await,
            joined(&rig, "s").await,
        );
        anna.send("s", "first. [[len 100000]] [[slow 20]]").await;
        anna.heard(&event("s", "assistant.turn_start")).await;
        let bens = ben.begin("session.send", send("s", "ben.")).await;
        rig.admin().metric_is(WAITING, 1.0).await;
        let carls = carl
            .begin_as(json!("c"), "session.send", send("s", "carl."))
            .await;
        rig.admin().metric_is(WAITING, 2.0).await;
        let doras = dora.begin("session.send", send("s", "dora.")).await;
        rig.admin().metric_is(WAITING, 3.0).await;

        let told = rig.admin().get("/api/v1/sessions/s/explain").await;
        let lock = &told["turn_lock"];
        assert_eq!(lock["waiting"].as_array().unwrap().len(), 3, "{told}");
        assert_eq!(lock["begun_by_server"], false, "{told}");
        let shown = rig.admin().get("/api/v1/sessions?limit=10").await;
        let shown = &shown["items"][0];
        assert_eq!(shown["turn_holder"], lock["holder"], "{shown}");
        assert_eq!(shown["turn_waiters"], 3, "{shown}");

        let body =
            json!({ "jsonrpc": "2.0", "method": "$/cancelRequest", "params": { "id": "c" } });
        carl.write(&crate::rig::frame(body.to_string())).await;
        assert_eq!(carls.answer().await.unwrap_err().code, -32800);
        rig.admin().metric_is(WAITING, 2.0).await;
        drop(dora);
        rig.admin().metric_is(WAITING, 1.0).await;
        assert!(doras.answer_if_any().await.is_none());

        // Steering is the turn's own; where nobody knows who is who, everybody may abort.
        let refused = ben.call("session.send", steering("s")).await.unwrap_err();
        assert_eq!(
            (refused.code, &refused.data["code"]),
            (-32012, &json!("SESSION_BUSY"))
        );
        anna.call("session.send", steering("s")).await.unwrap();
        carl.call("session.abort", json!({ "sessionId": "s" }))
            .await
            .unwrap();
        bens.answer().await.unwrap();
        let shown = ben
            .heard(&|m| event("s", "user.message")(m) && prompt(m) == "ben.")
            .await;
        assert!(!shown.is_null());
        drop((anna, ben, carl));
        nothing_is_left(&rig).await;
        let told = rig.admin().get("/api/v1/sessions/s/explain").await;
        assert!(told["turn_lock"].is_null(), "{told}");
    })
    .await;
}

#[tokio::test]
async fn reject_refuses_at_once_and_a_wait_has_an_end() {
    bounded(60, async {
        for (key, value) in [
            ("sessions.turn_lock", "reject"),
            ("sessions.turn_lock_timeout", "300ms"),
        ] {
            let rig = rig(|conf| conf.text(key, value)).await;
            let (anna, ben) = (joined(&rig, "s").await, joined(&rig, "s").await);
            anna.send("s", "[[len 100000]] [[slow 20]]").await;
            anna.heard(&event("s", "assistant.turn_start")).await;
            let refused = ben.call("session.send", send("s", "no")).await.unwrap_err();
            assert_eq!(refused.code, -32012, "{refused:?}");
            assert_eq!(refused.data["retryable"], true);
            // Its own turn is its own.
            anna.send("s", "behind it").await;
            anna.call("session.abort", json!({ "sessionId": "s" }))
                .await
                .unwrap();
            anna.heard(&event("s", "session.idle")).await;
            // Whoever has heard of the end may be a moment ahead of it.
            let mark = ben.mark();
            until("the turn to be free", async || {
                ben.call("session.send", send("s", "now")).await
            })
            .await;
            let own = |m: &Value| event("s", "user.message")(m) && prompt(m) == "now";
            let mut from = mark;
            ben.next(&mut from, &own).await;
            ben.next(&mut from, &event("s", "session.idle")).await;
            drop((anna, ben));
            nothing_is_left(&rig).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_turn_whose_sender_has_left_is_still_waited_for() {
    bounded(60, async {
        for grace in ["0s", "20s"] {
            let rig = rig(|conf| conf.text("sessions.detach_grace", grace)).await;
            let (anna, ben) = (joined(&rig, "s").await, joined(&rig, "s").await);
            let witness = joined(&rig, "s").await;
            anna.send("s", "anna. [[len 40]] [[slow 20]]").await;
            ben.heard(&event("s", "assistant.turn_start")).await;
            let bens = ben.begin("session.send", send("s", "ben.")).await;
            rig.admin().metric_is(WAITING, 1.0).await;
            drop(anna);
            bens.answer().await.unwrap();
            ben.heard(&event("s", "session.idle")).await;
            witness
                .heard(&|m| event("s", "user.message")(m) && prompt(m).starts_with("ben."))
                .await;
            let story = story(&witness, "s");
            assert_eq!(story[..3], ["anna", "idle", "ben"], "{grace}: {story:?}");
            drop(witness);
            drop(ben);
            nothing_is_left(&rig).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_turn_that_is_too_long_is_ended_for_everybody() {
    bounded(60, async {
        let rig = rig(|conf| conf.text("sessions.turn_max", "1s")).await;
        let (anna, ben) = (joined(&rig, "s").await, joined(&rig, "s").await);
        let witness = joined(&rig, "s").await;
        anna.send("s", "[[len 100000]] [[slow 20]]").await;
        anna.heard(&event("s", "assistant.turn_start")).await;
        ben.send("s", "ben. [[len 3]]").await;
        let error = anna.heard(&event("s", "session.error")).await;
        let code = &error["params"]["event"]["data"]["errorCode"];
        assert_eq!(code, "TURN_TOO_LONG", "{error}");
        let idle = anna.heard(&event("s", "session.idle")).await;
        assert_eq!(idle["params"]["event"]["data"]["aborted"], true);
        // The end of the turn that ben has waited for is not the end of his.
        let idle = ben.heard(&event("s", "session.idle")).await;
        assert_ne!(
            idle["params"]["event"]["data"]["aborted"], true,
            "ben's turn is whole"
        );
        // Another connection hears it in its own time.
        let mut from = 0;
        let idle = witness.next(&mut from, &event("s", "session.idle")).await;
        let aborted = &idle["params"]["event"]["data"]["aborted"];
        assert_eq!(*aborted, true, "the server's own");
        witness.next(&mut from, &event("s", "session.idle")).await;
        assert_eq!(story(&witness, "s").last().unwrap(), "idle");
        let hits = "taxiway_limit_hits_total{limit=\"sessions.turn_max\"}";
        rig.admin().metric_is(hits, 1.0).await;
    })
    .await;
}

#[tokio::test]
async fn who_waits_when_taxiway_stops_is_told_so_at_once() {
    bounded(60, async {
        let rig = rig(|conf| {
            conf.text("drain.timeout", "30s")
                .text("drain.accept_grace", "0s")
        })
        .await;
        let (anna, ben) = (joined(&rig, "s").await, joined(&rig, "s").await);
        anna.send("s", "[[len 150]] [[slow 20]]").await;
        anna.heard(&event("s", "assistant.turn_start")).await;
        let bens = ben.begin("session.send", send("s", "ben.")).await;
        rig.admin().metric_is(WAITING, 1.0).await;
        rig.taxiway.signal(Signal::TERM);
        assert_eq!(bens.answer().await.unwrap_err().code, -32015);
        let idle = anna.heard(&event("s", "session.idle")).await;
        assert_ne!(idle["params"]["event"]["data"]["aborted"], true);
        anna.closed().await;
    })
    .await;
}

#[tokio::test]
async fn who_waits_when_a_backend_is_drained_waits_on() {
    bounded(60, async {
        let rig = rig(|conf| conf.text("drain.timeout", "20s")).await;
        let (anna, ben) = (joined(&rig, "s").await, joined(&rig, "s").await);
        anna.turn("s", "before").await;
        let mark = ben.mark();
        anna.send("s", "anna. [[len 40]] [[slow 20]]").await;
        let begun = event("s", "assistant.turn_start");
        ben.heard_since(mark, &begun).await;
        let from = rig.sims.owner("s").unwrap();
        let bens = ben.begin("session.send", send("s", "ben.")).await;
        rig.admin().metric_is(WAITING, 1.0).await;
        let drain = format!("/api/v1/backends/{from}/drain");
        rig.admin().change(&drain, "{}").await;
        bens.answer().await.unwrap();
        ben.heard(&|m| event("s", "user.message")(m) && prompt(m) == "ben.")
            .await;
        assert_ne!(
            rig.sims.owner("s"),
            Some(from),
            "it was moved between the two turns"
        );
        drop((anna, ben));
        nothing_is_left(&rig).await;
    })
    .await;
}
