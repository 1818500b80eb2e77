//! `session.lifecycle`: every client hears of every session, wherever it lives, exactly once.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::rig::{Client, Disks, Rig, bounded, id_placed_on};

/// How often each event came: by type and session.
type Heard = BTreeMap<(String, String), usize>;

fn lifecycle(message: &Value) -> Option<(String, String)> {
    (message["method"] == "session.lifecycle").then(|| {
        let text = |key: &str| message["params"][key].as_str().unwrap().to_owned();
        (text("type"), text("sessionId"))
    })
}

fn heard(client: &Client) -> Heard {
    let mut heard = Heard::new();
    for message in client.kept() {
        if let Some(key) = lifecycle(&message) {
            *heard.entry(key).or_default() += 1;
        }
    }
    heard
}

/// The last event of a session that is deleted; what a backend said before it has come by then.
async fn after_delete(client: &Client, session: &str) {
    let mut at = 0;
    // The server tells it twice.
    for _ in 0..2 {
        let wanted =
            |m: &Value| lifecycle(m) == Some(("session.deleted".to_owned(), session.to_owned()));
        client.next(&mut at, &wanted).await;
    }
}

/// Lives a short life at one backend, up to the delete.
async fn live(client: &Client, session: &str) {
    client.create(session).await;
    client.turn(session, "hello").await;
    let params = json!({ "sessionId": session });
    let deleted = client.call("session.delete", params).await.unwrap();
    assert_eq!(deleted["success"], true);
}

#[tokio::test]
async fn every_client_hears_each_event_once_whatever_it_is_connected_to() {
    bounded(60, async {
        let mut rig = Rig::sticky(3).await;
        // One with upstream connections everywhere, one with none, and one at each server directly.
        let (active, passive) = (rig.client().await, rig.client().await);
        let mut direct = Vec::new();
        for name in rig.sims.names() {
            direct.push(Client::greeted(rig.sims.get(&name).address()).await);
        }
        let mut lives = Vec::new();
        for name in rig.sims.names() {
            lives.push(id_placed_on(rig.admin(), &name, "first").await);
        }
        for session in &lives {
            live(&active, session).await;
        }
        let check = async |lives: &[String], direct: &[Client], clients: &[&Client]| {
            let mut expected = Heard::new();
            for (session, witness) in lives.iter().zip(direct) {
                after_delete(witness, session).await;
                for (key, count) in heard(witness) {
                    *expected.entry(key).or_default() += count;
                }
                for client in clients {
                    after_delete(client, session).await;
                }
            }
            for client in clients {
                let mut seen = heard(client);
                seen.retain(|(_, session), _| lives.contains(session));
                let mut expected = expected.clone();
                expected.retain(|(_, session), _| lives.contains(session));
                assert_eq!(seen, expected);
                assert!(expected.len() >= 3 * lives.len(), "{expected:?}");
            }
        };
        check(&lives, &direct, &[&active, &passive]).await;

        // A backend joins, one leaves while it is in use: nobody hears anything twice, or not.
        let kept = id_placed_on(rig.admin(), "s1", "kept").await;
        active.create(&kept).await;
        rig.sims.add(taxiway::sim::Home::new()).await;
        assert_eq!(rig.sims.count(), 4);
        let names = ["s2", "s3", "s4"];
        let other = rig.taxiway.conf.clone().only(&rig.sims, &names);
        rig.taxiway.reload(other).await;
        rig.admin().health("s4", &["up"]).await;
        let late = rig.client().await;
        let witnesses = {
            let mut witnesses = Vec::new();
            for name in names.iter().chain(&["s1"]) {
                witnesses.push(Client::greeted(rig.sims.get(name).address()).await);
            }
            witnesses
        };
        let mut lives = Vec::new();
        for name in names {
            let session = id_placed_on(rig.admin(), name, "second").await;
            live(&active, &session).await;
            lives.push(session);
        }
        // The one that is removed still serves, and is still heard.
        active.turn(&kept, "hello").await;
        let params = json!({ "sessionId": kept });
        active.call("session.delete", params).await.unwrap();
        after_delete(&late, &kept).await;
        check(&lives, &witnesses, &[&active, &passive, &late]).await;
        let updates =
            |client: &Client| heard(client).remove(&("session.updated".to_owned(), kept.clone()));
        assert_eq!(updates(&late), updates(&witnesses[3]));
        assert_eq!(late.count(&|m| m["method"] == "session.event"), 0);
    })
    .await;
}

#[tokio::test]
async fn on_a_shared_disk_as_well() {
    bounded(60, async {
        let rig = Rig::with(2, Disks::Shared, |conf| conf).await;
        let (active, passive) = (rig.client().await, rig.client().await);
        for n in 0..4 {
            let session = format!("life-{n}");
            live(&active, &session).await;
            for client in [&active, &passive] {
                after_delete(client, &session).await;
                let heard = heard(client);
                let count = |kind: &str| heard.get(&(kind.to_owned(), session.clone())).copied();
                assert_eq!(count("session.created"), Some(2));
                assert_eq!(count("session.deleted"), Some(2));
            }
        }
        let all: Heard = heard(&active);
        assert_eq!(all, heard(&passive));
        drop(rig);
    })
    .await;
}
