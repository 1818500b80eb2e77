//! Frames of tens of MiB, both ways.

use serde_json::json;

use crate::rig::{Rig, bounded, event};

const MIB: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backends_frame_of_32_mib_arrives_whole() {
    bounded(100, async {
        let rig = Rig::sticky(1).await;
        let (client, other) = (rig.client().await, rig.client().await);
        client.create("large").await;
        other.create("small").await;
        client.send("large", "[[len 512]] [[pad 65536]]").await;
        // Others go on meanwhile.
        other.turn("small", "hello").await;
        let message = client.heard(&event("large", "assistant.message")).await;
        let content = message["params"]["event"]["data"]["content"]
            .as_str()
            .unwrap();
        assert_eq!(content.len(), 32 * MIB);
        client.heard(&event("large", "session.idle")).await;
        let deltas: usize = client
            .kept()
            .iter()
            .filter(|m| event("large", "assistant.message_delta")(m))
            .map(|m| {
                m["params"]["event"]["data"]["deltaContent"]
                    .as_str()
                    .unwrap()
                    .len()
            })
            .sum();
        assert_eq!(deltas, 32 * MIB);
        client.mode("large").await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clients_frame_of_60_mib_arrives_whole() {
    bounded(100, async {
        let rig = Rig::sticky(1).await;
        let (client, other) = (rig.client().await, rig.client().await);
        client.create("large").await;
        other.create("small").await;
        let blob = "x".repeat(60 * MIB);
        let prompt = json!({
            "sessionId": "large", "prompt": "[[len 1]]",
            "attachments": [{ "type": "blob", "data": blob }], "wait": true,
        });
        let sent = client.begin("session.send", prompt).await;
        other.turn("small", "hello").await;
        assert!(sent.answer().await.unwrap()["messageId"].is_string());
        let bytes = r#"taxiway_bytes_total{direction="client_to_backend"}"#;
        assert!(rig.admin().scrape().await.value(bytes) > 60.0 * MIB as f64);
        client.turn("large", "and on").await;
        // The buffer that it took is given back.
        let resident = rig.taxiway.resident();
        assert!(resident < 100 * MIB as u64, "{resident}");
    })
    .await;
}
