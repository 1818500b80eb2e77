//! Backends that are emptied while clients go on.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::rig::{Disks, Rig, bounded, event, until};

/// Every server is drained and restarted while turns run one after the other: nobody notices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_on_a_shared_disk_is_not_noticed() {
    bounded(90, async {
        let mut rig = Rig::shared(3).await;
        let stop = AtomicBool::new(false);
        let mut clients: Vec<crate::rig::Client> = Vec::new();
        for n in 0..4 {
            let client = rig.client().await;
            for s in 0..3 {
                client.create(&format!("s-{n}-{s}")).await;
            }
            clients.push(client);
        }
        let work = async |n: usize, s: usize| {
            let (client, id) = (&clients[n], format!("s-{n}-{s}"));
            let mut turns = 0;
            while !stop.load(Ordering::Relaxed) {
                let from = client.mark();
                client
                    .turn(&id, &format!("[[len 40]] [[slow 5]] turn-{turns}"))
                    .await;
                let lost = client.heard_since(from, &event(&id, "session.idle")).await;
                assert_eq!(lost["params"]["event"]["data"].get("aborted"), None);
                turns += 1;
            }
            assert_eq!(client.count(&event(&id, "session.error")), 0);
            let params = json!({ "sessionId": id });
            let messages = client.call("session.getMessages", params).await.unwrap();
            let text = messages.to_string();
            for turn in 0..turns {
                let said = format!("turn-{turn}\\\"");
                let said = said.trim_end_matches("\\\"");
                assert!(text.contains(said), "{id}: {said}");
            }
            turns
        };
        let restart = async {
            for name in ["s1", "s2", "s3"] {
                let path = format!("/api/v1/backends/{name}/drain");
                rig.taxiway.admin.change(&path, "{}").await;
                // As operators see it: the server itself is done a moment before it has said so.
                until(&format!("{name} is empty"), async || {
                    let backend = rig.taxiway.admin.backend(name).await;
                    if backend["sessions_open"] == 0 {
                        Ok(())
                    } else {
                        Err(backend)
                    }
                })
                .await;
                rig.sims.restart(name).await;
                let path = format!("/api/v1/backends/{name}/reset");
                rig.taxiway.admin.change(&path, "{}").await;
                rig.taxiway.admin.health(name, &["up", "probation"]).await;
            }
            stop.store(true, Ordering::Relaxed);
        };
        let (all, ()) = tokio::join!(
            futures_util::future::join_all(
                (0..4)
                    .flat_map(|n| (0..3).map(move |s| (n, s)))
                    .map(|(n, s)| work(n, s))
            ),
            restart
        );
        assert!(all.iter().sum::<usize>() > 12, "{all:?}");
        let scrape = rig.admin().scrape().await;
        let count =
            |result| scrape.value(&format!("taxiway_failovers_total{{result=\"{result}\"}}"));
        let (moved, reopened) = (count("moved"), count("reopened"));
        assert!(
            moved > 3.0 && reopened == 0.0,
            "{moved} moved, {reopened} reopened"
        );
    })
    .await;
}

/// On separate disks sessions are closed in place; calls wait for the home and then succeed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_home_is_waited_for() {
    bounded(60, async {
        let mut rig = Rig::with(2, Disks::Separate, |conf| {
            conf.text("routing.home_wait", "15s")
        })
        .await;
        let client = rig.client().await;
        let id = crate::rig::id_placed_on(rig.admin(), "s1", "drained").await;
        client.create(&id).await;
        let from = client.mark();
        client.send(&id, "[[len 60]] [[slow 10]]").await;
        rig.admin().change("/api/v1/backends/s1/drain", "{}").await;
        // The turn ends by itself.
        let idle = client.heard_since(from, &event(&id, "session.idle")).await;
        assert_eq!(idle["params"]["event"]["data"].get("aborted"), None);
        until("s1 is empty", async || {
            let open = rig.sims.get("s1").open_sessions();
            if open.is_empty() { Ok(()) } else { Err(open) }
        })
        .await;
        let waiting = client
            .begin("session.getMessages", json!({ "sessionId": id }))
            .await;
        rig.sims.restart("s1").await;
        rig.admin().change("/api/v1/backends/s1/reset", "{}").await;
        assert!(waiting.answer().await.is_ok());
        client.turn(&id, "after").await;
        assert_eq!(rig.sims.owner(&id).as_deref(), Some("s1"));
    })
    .await;
}

/// What does not end by itself within `drain.timeout` is ended honestly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_does_not_end_in_time_is_ended_and_its_session_moves() {
    bounded(60, async {
        let rig = Rig::with(2, Disks::Shared, |conf| conf.text("drain.timeout", "500ms")).await;
        let client = rig.client().await;
        let id = "long".to_owned();
        client.create(&id).await;
        let from = rig.sims.owner(&id).unwrap();
        client.turn(&id, "first").await;
        let mark = client.mark();
        client.send(&id, "[[len 100000]] [[slow 20]]").await;
        client
            .heard_since(mark, &event(&id, "assistant.message_delta"))
            .await;
        rig.admin()
            .change(&format!("/api/v1/backends/{from}/drain"), "{}")
            .await;
        let error = client.heard_since(mark, &event(&id, "session.error")).await;
        assert!(error.to_string().contains("drained"), "{error}");
        client.turn(&id, "second").await;
        assert_ne!(rig.sims.owner(&id), Some(from));
    })
    .await;
}

/// A server that falls silent while it is to close a session may do so whenever it wakes: until it
/// has, or is given up, nobody opens the session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_that_is_not_answered_is_waited_for() {
    bounded(60, async {
        let rig = Rig::with(2, Disks::Shared, |conf| {
            conf.text("routing.home_wait", "7s")
                .text("failover.hang_timeout", "120s")
        })
        .await;
        let (client, other) = (rig.client().await, rig.client().await);
        client.create("s").await;
        client.turn("s", "before").await;
        let from = rig.sims.owner("s").unwrap();
        rig.sims.get(&from).pause();
        let path = format!("/api/v1/backends/{from}/drain");
        rig.admin().change(&path, "{}").await;
        until("it to stand still", async || {
            let shown = rig.admin().get("/api/v1/sessions/s/explain").await;
            if shown["moving"] == true {
                Ok(())
            } else {
                Err(shown)
            }
        })
        .await;
        let params = || json!({ "sessionId": "s" });
        let waiting = [
            client.begin("session.getMessages", params()).await,
            other.begin("session.resume", params()).await,
        ];
        for waiting in waiting {
            let refused = waiting.answer().await.unwrap_err();
            assert_eq!(refused.code, -32010, "{refused:?}");
            assert!(refused.message.contains(&from), "{refused:?}");
        }
        // Its own client has left: it is being closed all the same.
        drop(client);
        rig.admin()
            .metric_is("taxiway_downstream_connections", 1.0)
            .await;
        let refused = other.call("session.resume", params()).await.unwrap_err();
        assert_eq!(refused.code, -32010, "{refused:?}");
        let waiting = other.begin("session.resume", params()).await;
        rig.sims.get(&from).resume();
        waiting.answer().await.unwrap();
        other.turn("s", "after").await;
        assert_ne!(rig.sims.owner("s"), Some(from.clone()));
        assert!(rig.sims.get(&from).open_sessions().is_empty());
    })
    .await;
}

/// A server that is given up meanwhile closes the session when it wakes, before it is used.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_is_not_waited_for_at_a_server_that_is_given_up() {
    bounded(60, async {
        let rig = Rig::with(2, Disks::Shared, |conf| {
            conf.text("routing.home_wait", "20s")
                .text("failover.hang_timeout", "1s")
        })
        .await;
        let client = rig.client().await;
        client.create("s").await;
        client.turn("s", "before").await;
        let from = rig.sims.owner("s").unwrap();
        rig.sims.get(&from).pause();
        let path = format!("/api/v1/backends/{from}/drain");
        rig.admin().change(&path, "{}").await;
        client.turn("s", "meanwhile").await;
        rig.sims.get(&from).resume();
        rig.admin().health(&from, &["up", "probation"]).await;
        until("it to be closed there", async || {
            let open = rig.sims.get(&from).open_sessions();
            if open.is_empty() { Ok(()) } else { Err(open) }
        })
        .await;
        client.turn("s", "after").await;
        assert_eq!(client.count(&event("s", "session.error")), 0);
    })
    .await;
}
