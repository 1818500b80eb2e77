//! A backend that dies: what was in flight is told at once, the rest goes on, new sessions go
//! elsewhere, and it returns.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::rig::{Rig, bounded, event, id_placed_on, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_in_flight_are_answered_within_100_ms_and_lost_turns_end() {
    bounded(60, async {
        let mut rig = Rig::sticky(3).await;
        let client = rig.client().await;
        let (lost, idle, kept) = (
            id_placed_on(rig.admin(), "s1", "lost").await,
            id_placed_on(rig.admin(), "s1", "idle").await,
            id_placed_on(rig.admin(), "s2", "kept").await,
        );
        for id in [&lost, &idle, &kept] {
            client.create(id).await;
            client.turn(id, "first").await;
        }
        let flushed = async || {
            let home = rig.sims.home("s1").sessions();
            if home.len() == 2 { Ok(()) } else { Err(home) }
        };
        until("both sessions on disk", flushed).await;
        client.send(&kept, "[[len 60]] [[slow 20]]").await;
        let mark = client.mark();
        let wait = json!({ "sessionId": lost, "prompt": "[[len 1000]] [[slow 20]]", "wait": true });
        let waiting = client.begin("session.send", wait).await;
        client
            .heard_since(mark, &event(&lost, "assistant.message_delta"))
            .await;
        // Acknowledged, and still queued when the server dies.
        client.send(&lost, "queued").await;

        let began = Instant::now();
        rig.sims.get("s1").kill();
        let failure = waiting.answer().await.unwrap_err();
        let took = began.elapsed();
        assert_eq!(failure.code, -32011, "{failure:?}");
        assert_eq!(failure.data["retryable"], false);
        assert!(took < Duration::from_millis(100), "{took:?}");

        let error = client
            .heard_since(mark, &event(&lost, "session.error"))
            .await;
        let said = error["params"]["event"]["data"]["message"]
            .as_str()
            .unwrap();
        assert!(
            said.contains("s1") && said.contains("perhaps lost"),
            "{said}"
        );
        let end = client
            .heard_since(mark, &event(&lost, "session.idle"))
            .await;
        assert_eq!(end["params"]["event"]["data"]["aborted"], true);
        // A session that was in no turn has nothing to be told.
        assert_eq!(client.count(&event(&idle, "session.error")), 0);
        client
            .heard_since(mark, &event(&kept, "session.idle"))
            .await;
        assert_eq!(client.count(&event(&kept, "session.error")), 0);
        let ended = r#"taxiway_turns_total{backend="s1",outcome="lost"}"#;
        rig.admin().metric_is(ended, 1.0).await;

        rig.admin().health("s1", &["down"]).await;
        for n in 0..6 {
            let id = format!("user-elsewhere{n}--x");
            client.create(&id).await;
            assert_ne!(rig.sims.owner(&id).as_deref(), Some("s1"));
        }
        // Its sessions are on its disk and nowhere else, and what is said to them waits a while.
        let away = client
            .call("session.resume", json!({ "sessionId": lost }))
            .await
            .unwrap_err();
        assert_eq!(away.code, -32010);
        assert!(away.message.contains("s1"), "{away:?}");

        rig.sims.restart("s1").await;
        rig.admin().health("s1", &["up", "probation"]).await;
        for id in [&lost, &idle] {
            // Opened again without a word of the client.
            client.turn(id, "after").await;
            assert_eq!(rig.sims.owner(id).as_deref(), Some("s1"));
        }
        let back = id_placed_on(rig.admin(), "s1", "back").await;
        client.create(&back).await;
        assert_eq!(rig.sims.owner(&back).as_deref(), Some("s1"));
        assert!(client.is_open());
    })
    .await;
}

/// With one disk sessions are opened elsewhere, behind the client's back.
#[tokio::test]
async fn on_a_shared_disk_sessions_of_the_dead_open_elsewhere() {
    bounded(60, async {
        let rig = Rig::shared(2).await;
        let client = rig.client().await;
        let mut on_first = Vec::new();
        for n in 0..6 {
            let id = format!("moved-{n}");
            client.create(&id).await;
            client.turn(&id, "remember").await;
            if rig.sims.owner(&id).as_deref() == Some("s1") {
                on_first.push(id);
            }
        }
        assert!(!on_first.is_empty());
        until("all on disk", async || {
            let listed = rig.sims.home("s1").sessions().len();
            if listed == 6 { Ok(()) } else { Err(listed) }
        })
        .await;
        rig.sims.get("s1").kill();
        for id in &on_first {
            let params = json!({ "sessionId": id });
            assert_eq!(client.mode(id).await.unwrap(), "interactive");
            assert_eq!(rig.sims.owner(id).as_deref(), Some("s2"));
            let history = client.call("session.getMessages", params).await.unwrap();
            assert!(history.to_string().contains("remember"));
        }
    })
    .await;
}
