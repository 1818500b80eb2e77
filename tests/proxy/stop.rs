//! SIGTERM: readiness first, then no new work, running turns to their end, exit 0.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use tokio::net::TcpStream;

use crate::rig::{Disks, Rig, bounded, event, until};

async fn unready(rig: &Rig) {
    until("readiness to end", async || {
        match rig.admin().try_request("GET", "/readyz", None).await {
            Ok((503, _)) => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

#[tokio::test]
async fn readiness_ends_first_and_running_turns_end_by_themselves() {
    bounded(60, async {
        let mut rig = Rig::with(2, Disks::Separate, |conf| {
            conf.text("drain.accept_grace", "1500ms")
                .text("drain.timeout", "30s")
        })
        .await;
        let (busy, idle) = (rig.client().await, rig.client().await);
        busy.create("busy").await;
        busy.create("other").await;
        idle.create("idle").await;
        busy.send("busy", "[[len 200]] [[slow 20]]").await;
        rig.taxiway.signal(Signal::TERM);
        unready(&rig).await;
        let (alive, _) = rig
            .admin()
            .try_request("GET", "/healthz", None)
            .await
            .unwrap();
        assert_eq!(alive, 200);
        // At once: were it held until the end, what follows would come too late.
        let (refused, answer) = rig.admin().post("/api/v1/reload", "{}").await;
        assert_eq!(refused, 422, "{answer}");
        assert!(answer.contains("shutting down"), "{answer}");
        // Within the grace all is as ever: balancers have not looked yet.
        let late = rig.client().await;
        late.create("late").await;
        late.turn("late", "hello").await;
        idle.turn("idle", "hello").await;

        until(
            "the listener to close",
            async || match TcpStream::connect(rig.taxiway.address()).await {
                Ok(_) => Err("still accepts"),
                Err(_) => Ok(()),
            },
        )
        .await;
        // Who has nothing running is let go.
        idle.closed().await;
        late.closed().await;
        for (method, params) in [
            ("session.create", json!({ "sessionId": "refused" })),
            ("session.resume", json!({ "sessionId": "other" })),
            (
                "session.send",
                json!({ "sessionId": "other", "prompt": "x" }),
            ),
        ] {
            let refused = busy.call(method, params).await.unwrap_err();
            assert_eq!(refused.code, -32015, "{method}: {refused:?}");
            assert_eq!(refused.data["retryable"], true);
        }
        // What serves the running turn passes.
        busy.mode("busy").await.unwrap();
        let end = busy.heard(&event("busy", "session.idle")).await;
        assert!(
            end["params"]["event"]["data"].get("aborted").is_none(),
            "{end}"
        );
        busy.closed().await;
        assert_eq!(rig.taxiway.ended().await.code(), Some(0));
        assert_eq!(busy.count(&event("busy", "session.error")), 0);
        // And was not left behind.
        let sims = &rig.sims;
        until("the servers to be left", async || {
            let left: usize = sims.names().iter().map(|n| sims.get(n).connections()).sum();
            if left == 0 { Ok(()) } else { Err(left) }
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_second_sigterm_ends_at_once_and_honestly() {
    bounded(60, async {
        let mut rig = Rig::with(1, Disks::Separate, |conf| {
            conf.text("drain.accept_grace", "0s")
                .text("drain.timeout", "1h")
        })
        .await;
        let client = rig.client().await;
        client.create("endless").await;
        let send =
            json!({ "sessionId": "endless", "prompt": "[[len 100000]] [[slow 20]]", "wait": true });
        let waiting = client.begin("session.send", send).await;
        client
            .heard(&event("endless", "assistant.message_delta"))
            .await;
        rig.taxiway.signal(Signal::TERM);
        unready(&rig).await;
        until("the drain to begin", async || {
            let log = rig.taxiway.log();
            if log.contains("listener closed") {
                Ok(())
            } else {
                Err(log)
            }
        })
        .await;
        let began = Instant::now();
        rig.taxiway.signal(Signal::TERM);
        told_honestly(&client, "endless").await;
        let failure = waiting.answer().await.unwrap_err();
        assert!([-32011, -32015].contains(&failure.code), "{failure:?}");
        client.closed().await;
        assert_eq!(rig.taxiway.ended().await.code(), Some(0));
        assert!(
            began.elapsed() < Duration::from_secs(3),
            "{:?}",
            began.elapsed()
        );
    })
    .await;
}

#[tokio::test]
async fn when_the_time_to_drain_is_over_turns_are_ended_honestly() {
    bounded(60, async {
        let mut rig = Rig::with(1, Disks::Separate, |conf| {
            conf.text("drain.accept_grace", "0s")
                .text("drain.timeout", "600ms")
        })
        .await;
        let client = rig.client().await;
        client.create("endless").await;
        client.send("endless", "[[len 100000]] [[slow 20]]").await;
        client
            .heard(&event("endless", "assistant.message_delta"))
            .await;
        rig.taxiway.signal(Signal::TERM);
        told_honestly(&client, "endless").await;
        client.closed().await;
        assert_eq!(rig.taxiway.ended().await.code(), Some(0));
    })
    .await;
}

async fn told_honestly(client: &crate::rig::Client, session: &str) {
    let error = client.heard(&event(session, "session.error")).await;
    assert_eq!(
        error["params"]["event"]["data"]["errorCode"], "DRAINING",
        "{error}"
    );
    let idle = client.heard(&event(session, "session.idle")).await;
    assert_eq!(idle["params"]["event"]["data"]["aborted"], true, "{idle}");
}

/// A client that connects in the moment of the drain must not hold it up.
#[tokio::test]
async fn clients_that_come_and_go_do_not_hold_up_the_end() {
    bounded(60, async {
        let mut rig = Rig::with(1, Disks::Separate, |conf| {
            conf.text("drain.accept_grace", "200ms")
                .text("drain.timeout", "1h")
        })
        .await;
        let address = rig.taxiway.address();
        let storm: Vec<_> = (0..4)
            .map(|_| {
                tokio::spawn(async move {
                    let mut kept = Vec::new();
                    while let Ok(stream) = TcpStream::connect(address).await {
                        kept.push(stream);
                        tokio::task::yield_now().await;
                        if kept.len() > 300 {
                            kept.clear();
                        }
                    }
                    kept
                })
            })
            .collect();
        rig.taxiway.signal(Signal::TERM);
        let mut kept = Vec::new();
        for task in storm {
            kept.push(task.await.unwrap());
        }
        assert_eq!(rig.taxiway.ended().await.code(), Some(0));
    })
    .await;
}

#[tokio::test]
async fn an_interrupt_does_not_wait_for_balancers() {
    bounded(60, async {
        let mut rig = Rig::with(1, Disks::Separate, |conf| {
            conf.text("drain.accept_grace", "1h")
        })
        .await;
        let client = rig.client().await;
        client.create("idle").await;
        rig.taxiway.signal(Signal::INT);
        client.closed().await;
        assert_eq!(rig.taxiway.ended().await.code(), Some(0));
    })
    .await;
}
