//! After all clients have left nothing of them is left, however they left.

use serde_json::json;

use crate::rig::{Disks, Raw, Rig, bounded, event, frame, until};

/// Every gauge of what clients use.
const GAUGES: [&str; 5] = [
    "taxiway_downstream_connections",
    "taxiway_upstream_connections",
    "taxiway_sessions_open",
    "taxiway_turns_open",
    "taxiway_sessions_parked",
];

pub(crate) async fn nothing_is_left(rig: &Rig) {
    until("nothing to be left", async || {
        let scrape = rig.admin().scrape().await;
        let left = GAUGES.map(|gauge| scrape.sum(gauge));
        if left.iter().all(|n| *n == 0.0) {
            Ok(())
        } else {
            Err(left)
        }
    })
    .await;
    let sessions = rig.admin().get("/api/v1/sessions?limit=1000").await;
    let open: Vec<_> = sessions["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|s| s["open"] == true || s["connections"] != 0)
        .collect();
    assert!(open.is_empty(), "{open:?}");
    // Nor at the servers: what remains is one control connection each.
    until("the servers to be left", async || {
        let left: Vec<_> = rig
            .sims
            .names()
            .iter()
            .map(|name| {
                let sim = rig.sims.get(name);
                (sim.connections(), sim.open_sessions())
            })
            .collect();
        if left.iter().all(|(n, open)| *n == 1 && open.is_empty()) {
            Ok(())
        } else {
            Err(left)
        }
    })
    .await;
}

#[tokio::test]
async fn clients_that_leave_in_every_way_leave_nothing() {
    bounded(60, async {
        for disks in [Disks::Separate, Disks::Shared] {
            let rig = Rig::with(3, disks, |conf| conf).await;
            for round in 0..3 {
                let mut clients = Vec::new();
                for n in 0..6 {
                    let client = rig.client().await;
                    for s in 0..4 {
                        let id = format!("user-{n}-{s}--{round}");
                        client.create(&id).await;
                        if s % 2 == 0 {
                            client.turn(&id, "hello").await;
                        }
                    }
                    // In the middle of a turn; with a question open; with calls under way.
                    client
                        .send(&format!("user-{n}-0--{round}"), "[[len 10000]] [[slow 20]]")
                        .await;
                    let ask = json!({ "sessionId": format!("ask-{n}-{round}"), "requestUserInput": true });
                    client.call("session.create", ask).await.unwrap();
                    client.send(&format!("ask-{n}-{round}"), "[[ask Well?]]").await;
                    client.heard(&|m| m["method"] == "userInput.request").await;
                    let _unanswered = client.begin("session.list", json!({})).await;
                    let _unplaced = client
                        .begin("session.create", json!({ "sessionId": format!("late-{n}-{round}") }))
                        .await;
                    clients.push(client);
                }
                drop(clients);
            }
            nothing_is_left(&rig).await;
        }
    })
    .await;
}

/// The frame that ends a connection may come in one write with one that opens a session.
#[tokio::test]
async fn a_session_opened_in_the_same_write_that_ends_the_connection() {
    bounded(60, async {
        for disks in [Disks::Separate, Disks::Shared] {
            let rig = Rig::with(2, disks, |conf| conf).await;
            // Known, so that it is located at once.
            let holder = rig.client().await;
            for id in ["known", "closed"] {
                holder.create(id).await;
                holder.turn(id, "remember").await;
            }
            let params = json!({ "sessionId": "closed" });
            holder.call("session.destroy", params).await.unwrap();
            for id in ["known", "closed", "new"] {
                for method in ["session.create", "session.resume"] {
                    let open = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": { "sessionId": id } });
                    let mut raw = Raw::connect(rig.taxiway.address()).await;
                    let mut bytes = frame(open.to_string());
                    bytes.extend(b"this is no frame\r\n\r\n");
                    raw.write(&bytes).await;
                    raw.closed().await;
                    // And one that says goodbye as soon as it has asked.
                    let mut raw = Raw::connect(rig.taxiway.address()).await;
                    raw.write(&frame(open.to_string())).await;
                    tokio::io::AsyncWriteExt::shutdown(&mut raw.stream).await.unwrap();
                    raw.closed().await;
                }
            }
            drop(holder);
            nothing_is_left(&rig).await;
        }
    })
    .await;
}

/// Cancelled calls leave nothing either.
#[tokio::test]
async fn calls_that_are_cancelled_while_they_are_located() {
    bounded(60, async {
        let rig = Rig::sticky(2).await;
        let client = rig.client().await;
        for n in 0..40 {
            let id = format!("cancelled-{n}");
            let create = json!({ "jsonrpc": "2.0", "id": id, "method": "session.create", "params": { "sessionId": id } });
            let cancel = json!({ "jsonrpc": "2.0", "method": "$/cancelRequest", "params": { "id": id } });
            let bytes = [frame(create.to_string()), frame(cancel.to_string())].concat();
            client.write(&bytes).await;
            client.heard(&|m| m["id"] == id && m["error"]["code"] == -32800).await;
        }
        // One that has reached its backend runs there to its end, as with the CLI.
        client.create("sent").await;
        let send = json!({ "jsonrpc": "2.0", "id": "s", "method": "session.send", "params": { "sessionId": "sent", "prompt": "[[len 20]] [[slow 20]]", "wait": true } });
        let cancel = json!({ "jsonrpc": "2.0", "method": "$/cancelRequest", "params": { "id": "s" } });
        client.write(&frame(send.to_string())).await;
        client.heard(&event("sent", "assistant.message_delta")).await;
        client.write(&frame(cancel.to_string())).await;
        client.heard(&|m| m["id"] == "s" && m["result"]["messageId"].is_string()).await;
        drop(client);
        nothing_is_left(&rig).await;
    })
    .await;
}
