//! Sessions that move from a backend that is lost to another one, on the client's own connection.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::rig::{Client, Conf, Disks, Rig, bounded, event, until};

async fn rig(count: usize, settings: impl FnOnce(Conf) -> Conf) -> Rig {
    Rig::with(count, Disks::Shared, settings).await
}

/// A session with a turn, on this server.
async fn session_on(rig: &Rig, client: &Client, server: &str, purpose: &str) -> String {
    for n in 0..100 {
        let id = format!("{purpose}-{n}");
        client.create(&id).await;
        if rig.sims.owner(&id).as_deref() == Some(server) {
            client.turn(&id, "first").await;
            return id;
        }
    }
    panic!("no session came to {server}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_sessions_of_a_killed_server_answer_within_five_seconds() {
    bounded(60, async {
        let rig = rig(3, |conf| conf).await;
        let client = rig.client().await;
        let mut on_first = Vec::new();
        for n in 0..300 {
            let id = format!("s-{n}");
            client.create(&id).await;
            if rig.sims.owner(&id).as_deref() == Some("s1") {
                client.turn(&id, "remember").await;
                on_first.push(id);
            }
        }
        assert!(on_first.len() >= 80, "{}", on_first.len());
        let began = Instant::now();
        rig.sims.get("s1").kill();
        for id in &on_first {
            assert_eq!(client.mode(id).await.unwrap(), "interactive");
            assert_ne!(rig.sims.owner(id).as_deref(), Some("s1"));
        }
        let took = began.elapsed();
        assert!(took < Duration::from_secs(5), "{took:?}");
        let reopened = r#"taxiway_failovers_total{result="reopened"}"#;
        rig.admin().metric_is(reopened, on_first.len() as f64).await;
        assert!(client.is_open());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_server_loses_its_sessions_and_is_cleaned_before_it_is_used() {
    bounded(60, async {
        let rig = rig(2, |conf| conf.text("failover.hang_timeout", "500ms")).await;
        let (client, other) = (rig.client().await, rig.client().await);
        let id = session_on(&rig, &client, "s1", "hung").await;
        let on = json!({ "sessionId": id });
        other.call("session.resume", on.clone()).await.unwrap();
        let mark = client.mark();
        client.send(&id, "[[len 1000]] [[slow 20]]").await;
        client
            .heard_since(mark, &event(&id, "assistant.message_delta"))
            .await;
        rig.sims.get("s1").pause();
        // Both are told, both come along, and what was asked meanwhile is answered.
        let asked = client.begin("session.getMessages", on).await;
        for client in [&client, &other] {
            let aborted = |frame: &serde_json::Value| {
                event(&id, "session.idle")(frame)
                    && frame["params"]["event"]["data"]["aborted"] == true
            };
            client.heard_since(0, &aborted).await;
        }
        let _lost_or_answered = asked.answer().await;
        other.turn(&id, "second").await;
        client.turn(&id, "third").await;
        rig.sims.get("s1").resume();
        rig.admin().health("s1", &["up", "probation"]).await;
        // Nothing is open there that is open elsewhere: `owner` fails if it is.
        until("the woken server has closed it", async || {
            let open = rig.sims.get("s1").open_sessions();
            if open.contains(&id) {
                Err(open)
            } else {
                Ok(())
            }
        })
        .await;
        assert_eq!(rig.sims.owner(&id).as_deref(), Some("s2"));
        client.turn(&id, "fourth").await;
    })
    .await;
}

/// Sessions that were given to a server which hangs before it has opened them go on to the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_while_it_takes_sessions_over_keeps_none() {
    bounded(60, async {
        let rig = rig(3, |conf| {
            conf.text("failover.hang_timeout", "500ms")
                .text("routing.home_wait", "15s")
        })
        .await;
        let mut clients = Vec::new();
        for n in 0..60 {
            let client = rig.client().await;
            let id = format!("s-{n}");
            client.create(&id).await;
            client.turn(&id, "first").await;
            clients.push((client, id));
        }
        rig.sims.get("s2").pause();
        rig.sims.get("s1").kill();
        let mut calls = Vec::new();
        for (client, id) in &clients {
            let params = json!({ "sessionId": id });
            calls.push(client.begin("session.mode.get", params).await);
        }
        for call in calls {
            assert_eq!(call.answer().await.unwrap(), "interactive");
        }
        for (_, id) in &clients {
            assert!(rig.sims.get("s3").open_sessions().contains(id), "{id}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_session_without_a_turn_is_created_again_and_a_deleted_one_is_not() {
    bounded(60, async {
        let rig = rig(2, |conf| conf).await;
        let client = rig.client().await;
        let mut fresh = Vec::new();
        for n in 0..8 {
            let id = format!("fresh-{n}");
            client.create(&id).await;
            fresh.push(id);
        }
        fresh.retain(|id| rig.sims.owner(id).as_deref() == Some("s1"));
        let deleted = fresh.pop().unwrap();
        let params = json!({ "sessionId": deleted });
        client.call("session.delete", params).await.unwrap();
        rig.sims.get("s1").kill();
        for id in &fresh {
            // A send that meets the dying server may have been executed; a question is repeated.
            client.mode(id).await.unwrap();
            client.turn(id, "first").await;
            assert_eq!(rig.sims.owner(id).as_deref(), Some("s2"));
        }
        assert!(client.mode(&deleted).await.is_err());
        assert_eq!(rig.sims.owner(&deleted), None);
    })
    .await;
}

/// On separate disks a session waits for its home, and so does what is said to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_wait_for_a_home_that_restarts() {
    bounded(60, async {
        let mut rig = Rig::with(2, Disks::Separate, |conf| {
            conf.text("routing.home_wait", "15s")
        })
        .await;
        let client = rig.client().await;
        let id = crate::rig::id_placed_on(rig.admin(), "s1", "home").await;
        client.create(&id).await;
        client.turn(&id, "first").await;
        let home = rig.sims.home("s1").clone();
        until("on disk", async || {
            let listed = home.sessions();
            if listed.contains(&id) {
                Ok(())
            } else {
                Err(listed)
            }
        })
        .await;
        rig.sims.get("s1").kill();
        rig.admin().health("s1", &["down"]).await;
        let waiting = client
            .begin("session.getMessages", json!({ "sessionId": id }))
            .await;
        let late = rig.client().await;
        let resume = late
            .begin("session.resume", json!({ "sessionId": id }))
            .await;
        rig.sims.restart("s1").await;
        let messages = waiting.answer().await.unwrap();
        assert!(messages.to_string().contains("first"), "{messages}");
        resume.answer().await.unwrap();
        assert_eq!(rig.sims.owner(&id).as_deref(), Some("s1"));
        late.turn(&id, "second").await;
    })
    .await;
}
