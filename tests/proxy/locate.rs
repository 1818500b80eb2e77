//! Sessions that Taxiway did not open itself, creates on ids that exist, and what cannot be told.

use serde_json::{Value, json};
use taxiway::sim::Home;

use crate::rig::{
    Client, Conf, Disks, Rig, Sims, Taxiway, bounded, free_address, id_placed_on, until,
};

/// Opens sessions at one server behind Taxiway's back; they stay open while the client lives.
async fn behind(sims: &Sims, name: &str, sessions: &[&str]) -> Client {
    let client = Client::greeted(sims.get(name).address()).await;
    for session in sessions {
        client.create(session).await;
    }
    client
}

/// Leaves it with a turn on the disk, and closed.
async fn left_on_disk(sims: &Sims, name: &str, session: &str) {
    let client = behind(sims, name, &[session]).await;
    client.turn(session, "remember").await;
    let params = json!({ "sessionId": session });
    client.call("session.destroy", params).await.unwrap();
    assert!(sims.home(name).sessions().iter().any(|s| s == session));
}

#[tokio::test]
async fn a_session_that_is_open_somewhere_is_found_there() {
    bounded(60, async {
        for disks in [Disks::Separate, Disks::Shared] {
            let rig = Rig::with(3, disks, |conf| conf).await;
            let _hidden = behind(&rig.sims, "s2", &["hidden-1", "hidden-2", "hidden-3"]).await;
            let client = rig.client().await;
            // Without attaching, and by each way to attach.
            assert_eq!(client.mode("hidden-1").await.unwrap(), "interactive");
            client.create("hidden-2").await;
            client.turn("hidden-2", "hello").await;
            let params = json!({ "sessionId": "hidden-3" });
            client.call("session.resume", params).await.unwrap();
            for session in ["hidden-1", "hidden-2", "hidden-3"] {
                assert_eq!(rig.sims.owner(session).as_deref(), Some("s2"));
            }
            let unknown = client.mode("nowhere").await.unwrap_err();
            assert_eq!(unknown.code, -32603);
            assert!(
                unknown
                    .message
                    .ends_with("Session not found for sessionId: nowhere")
            );
        }
    })
    .await;
}

#[tokio::test]
async fn a_session_on_a_separate_disk_opens_at_home() {
    bounded(60, async {
        let rig = Rig::sticky(3).await;
        let client = rig.client().await;
        for home in ["s1", "s2", "s3"] {
            // Made after Taxiway has read the disks, on the disk where it would not be put.
            let id = format!("{}-made", id_placed_on(rig.admin(), "s1", home).await);
            left_on_disk(&rig.sims, home, &id).await;
            let params = json!({ "sessionId": id });
            client.call("session.resume", params.clone()).await.unwrap();
            assert_eq!(rig.sims.owner(&id).as_deref(), Some(home));
            let history = client.call("session.getMessages", params).await.unwrap();
            assert!(history.to_string().contains("remember"));
        }
    })
    .await;
}

#[tokio::test]
async fn sessions_on_the_disks_before_the_start_are_known() {
    bounded(60, async {
        let sims = Sims::start(2, Disks::Separate).await;
        left_on_disk(&sims, "s2", "old").await;
        let taxiway = Taxiway::start(Conf::new(Disks::Separate).all_of(&sims)).await;
        // It listens as soon as the servers are found healthy, and asks them about a session that is
        // named before their lists are here.
        until("the list of the disk", async || {
            let told = taxiway.admin.get("/api/v1/sessions/old/explain").await;
            if told["home"] == "s2" {
                Ok(())
            } else {
                Err(told)
            }
        })
        .await;
        let client = Client::greeted(taxiway.address()).await;
        client.create("old").await;
        assert_eq!(sims.owner("old").as_deref(), Some("s2"));
    })
    .await;
}

#[tokio::test]
async fn a_closed_session_on_the_common_disk_opens_at_the_least_loaded() {
    bounded(60, async {
        let rig = Rig::shared(3).await;
        left_on_disk(&rig.sims, "s1", "closed").await;
        let busy = rig.client().await;
        let mut loads = std::collections::BTreeMap::<String, usize>::new();
        for n in 0..8 {
            let id = format!("busy-{n}");
            busy.create(&id).await;
            *loads.entry(rig.sims.owner(&id).unwrap()).or_default() += 1;
        }
        let least = rig
            .sims
            .names()
            .into_iter()
            .min_by_key(|name| loads.get(name).copied().unwrap_or(0))
            .unwrap();
        let params = json!({ "sessionId": "closed" });
        busy.call("session.resume", params.clone()).await.unwrap();
        assert_eq!(rig.sims.owner("closed").unwrap(), least, "{loads:?}");
        let history = busy.call("session.getMessages", params).await.unwrap();
        assert!(history.to_string().contains("remember"));
    })
    .await;
}

/// `sessions.create_existing`.
#[tokio::test]
async fn create_on_a_closed_session_with_history() {
    bounded(60, async {
        for action in ["resume", "pass", "reject"] {
            let rig = Rig::with(2, Disks::Separate, |conf| {
                conf.text("sessions.create_existing", action)
            })
            .await;
            left_on_disk(&rig.sims, "s1", "again").await;
            let client = rig.client().await;
            let params = json!({ "sessionId": "again" });
            let created = client.call("session.create", params.clone()).await;
            let history = client.call("session.getMessages", params).await;
            match action {
                "resume" => {
                    assert_eq!(created.unwrap()["sessionId"], "again");
                    assert!(history.unwrap().to_string().contains("remember"));
                }
                "pass" => {
                    created.unwrap();
                    assert!(!history.unwrap().to_string().contains("remember"));
                }
                _ => {
                    let refused = created.unwrap_err();
                    assert_eq!(refused.code, -32014, "{refused:?}");
                    assert!(refused.message.contains("sessions.create_existing"));
                    assert_eq!(rig.sims.owner("again"), None);
                }
            }
            let series = format!("taxiway_session_create_existing_total{{action=\"{action}\"}}");
            rig.admin().metric_is(&series, 1.0).await;
        }
    })
    .await;
}

/// Create on a session that is open attaches, whoever has it open, on the one server that has it.
#[tokio::test]
async fn create_and_resume_by_many_at_once_meet_on_one_backend() {
    bounded(60, async {
        for disks in [Disks::Separate, Disks::Shared] {
            let rig = Rig::with(3, disks, |conf| conf).await;
            let mut clients = Vec::new();
            for _ in 0..8 {
                clients.push(rig.client().await);
            }
            for n in 0..10 {
                let id = format!("race-{n}");
                let mut pending = Vec::new();
                for client in &clients {
                    let params = json!({ "sessionId": id });
                    pending.push(client.begin("session.create", params).await);
                }
                for call in pending {
                    call.answer().await.unwrap();
                }
                // Asserts that there is no second one.
                assert!(rig.sims.owner(&id).is_some());
                let told = rig
                    .admin()
                    .get(&format!("/api/v1/sessions/{id}/explain"))
                    .await;
                assert_eq!(told["connections"], 8, "{told}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_home_that_is_away_is_named_and_a_disk_that_was_never_read_is_not_guessed() {
    bounded(60, async {
        let sims = Sims::start(2, Disks::Separate).await;
        let nobody = free_address();
        let conf = Conf::new(Disks::Separate)
            .all_of(&sims)
            .backend("unread", &nobody.to_string());
        let mut taxiway = Taxiway::start(conf).await;
        let client = Client::greeted(taxiway.address()).await;
        // What may be on that disk is not "not found", and not begun anew elsewhere.
        for method in ["session.create", "session.resume", "session.mode.get"] {
            let params = json!({ "sessionId": "perhaps-there" });
            let refused = client.call(method, params).await.unwrap_err();
            assert_eq!(refused.code, -32010, "{method}: {refused:?}");
            assert!(refused.message.contains("unread"), "{refused:?}");
            assert_eq!(refused.data["retryable"], true);
        }
        // An id that an SDK has just drawn is nowhere yet.
        client.create("2f1e8a34-71a4-4f0c-9a57-3f6a3d2f9a11").await;

        let less = taxiway.conf.clone().all_of(&sims);
        taxiway.reload(less).await;
        client.create("perhaps-there").await;
        client.turn("perhaps-there", "remember").await;
        let home = sims.owner("perhaps-there").unwrap();
        let params = json!({ "sessionId": "perhaps-there" });
        client
            .call("session.destroy", params.clone())
            .await
            .unwrap();
        sims.get(&home).kill();
        taxiway.admin.health(&home, &["down"]).await;
        let away = client.call("session.resume", params).await.unwrap_err();
        assert_eq!(away.code, -32010);
        assert!(away.message.contains(&home), "{away:?}");
        let told = taxiway
            .admin
            .get("/api/v1/sessions/perhaps-there/explain")
            .await;
        assert_eq!(told["home"], home, "{told}");
    })
    .await;
}

/// A server with another disk, in a pool that is said to have one disk: whether it joins, or was
/// there before the others and looked right as long as there was nothing to compare it with.
#[tokio::test]
async fn a_server_with_another_disk_is_found_out() {
    bounded(60, async {
        for first in [vec!["s1", "s2"], vec!["s3"]] {
            let mut sims = Sims::start(2, Disks::Shared).await;
            left_on_disk(&sims, "s1", "common").await;
            sims.add(Home::new()).await;
            let conf = Conf::new(Disks::Shared);
            let mut taxiway = Taxiway::start(conf.only(&sims, &first)).await;
            for name in first {
                taxiway.admin.health(name, &["up"]).await;
            }
            let all = taxiway.conf.clone().all_of(&sims);
            taxiway.reload(all).await;
            taxiway.admin.health("s3", &["storage_mismatch"]).await;
            taxiway.admin.health("s1", &["up"]).await;
            taxiway.admin.health("s2", &["up"]).await;
            let client = Client::greeted(taxiway.address()).await;
            for n in 0..6 {
                let id = format!("placed-{n}");
                client.create(&id).await;
                assert_ne!(sims.owner(&id).as_deref(), Some("s3"));
            }
            let params = json!({ "sessionId": "common" });
            client.call("session.resume", params).await.unwrap();
            let state = r#"taxiway_backend_state{backend="s3",state="storage_mismatch"}"#;
            taxiway.admin.metric_is(state, 1.0).await;
        }
    })
    .await;
}

/// Deleted is deleted: on disk, in lists, and for late news.
#[tokio::test]
async fn delete_closes_and_removes_wherever_it_is() {
    bounded(60, async {
        let rig = Rig::sticky(2).await;
        let (owner, other) = (rig.client().await, rig.client().await);
        left_on_disk(&rig.sims, "s2", "closed").await;
        owner.create("open").await;
        owner.turn("open", "remember").await;
        for session in ["open", "closed"] {
            let params = json!({ "sessionId": session });
            let deleted = other.call("session.delete", params.clone()).await.unwrap();
            assert_eq!(deleted["success"], true, "{session}: {deleted}");
            assert_eq!(rig.sims.owner(session), None);
            let gone = other
                .call("session.resume", params.clone())
                .await
                .unwrap_err();
            assert!(gone.message.contains("Session not found"), "{gone:?}");
            let again = other.call("session.delete", params).await.unwrap();
            assert_eq!(again["success"], false, "{again}");
        }
        until("an empty list", async || {
            let list = other.call("session.list", json!({})).await.unwrap();
            if list["sessions"] == Value::Array(Vec::new()) {
                Ok(())
            } else {
                Err(list)
            }
        })
        .await;
    })
    .await;
}
