//! `[access]`: which methods clients may use, and what the others are told.

use serde_json::{Value, json};

use crate::rig::{Client, Disks, Failure, Rig, bounded};

async fn refused(client: &Client, method: &str, params: Value) -> Failure {
    let answer = client.call(method, params.clone()).await;
    match answer {
        Err(failure) => failure,
        Ok(result) => panic!("{method} {params}: {result}"),
    }
}

fn session() -> Value {
    json!({"sessionId": "s"})
}

#[tokio::test]
async fn the_profile_decides_and_a_reload_changes_it_for_clients_that_are_there() {
    bounded(60, async {
        let mut rig = Rig::with(1, Disks::Separate, |conf| {
            conf.text("access.profile", "multi-tenant")
                .set("access.deny", "['session.abort']")
        })
        .await;
        let client = rig.client().await;
        client.create("s").await;

        let command = || json!({"sessionId": "s", "command": "id"});
        let cases = [
            ("session.shell.exec", command(), "on the host"),
            ("account.getAllUsers", json!({}), "the account"),
            ("session.abort", session(), "access.deny"),
            (
                "session.create",
                json!({"sessionId": "t", "configDir": "/tmp"}),
                "configDir",
            ),
        ];
        for (method, params, words) in cases {
            let failure = refused(&client, method, params).await;
            assert_eq!(failure.code, -32014, "{method}: {failure:?}");
            assert_eq!(failure.data["code"], "METHOD_DENIED", "{failure:?}");
            assert_eq!(failure.data["retryable"], false, "{failure:?}");
            assert!(failure.message.contains(words), "{failure:?}");
        }
        let counted = |reason| format!("taxiway_access_denied_total{{reason=\"{reason}\"}}");
        rig.admin().metric_is(&counted("method"), 4.0).await;
        assert_eq!(rig.sims.owner("t"), None);

        // A method that nobody knows is answered in the words that SDKs fall back on: by the
        // server if it is about a session, else by Taxiway.
        let probed = refused(&client, "session.sendAndWait", session()).await;
        assert_eq!((probed.code, &probed.data), (-32601, &Value::Null));
        let probed = refused(&client, "tomorrow", json!({})).await;
        assert_eq!(probed.code, -32601, "{probed:?}");
        assert_eq!(probed.data["source"], "taxiway", "{probed:?}");
        rig.admin().metric_is(&counted("unknown_method"), 1.0).await;

        // What is one's own goes on as ever.
        client.turn("s", "hello").await;
        client.call("session.list", json!({})).await.unwrap();

        let conf = rig.taxiway.conf.clone();
        let single = conf
            .text("access.profile", "single-tenant")
            .set("access.deny", "[]");
        rig.taxiway.reload(single).await;
        client.call("session.shell.exec", command()).await.unwrap();
        client.call("session.abort", session()).await.unwrap();
        let probed = refused(&client, "tomorrow", json!({})).await;
        assert_eq!((probed.code, &probed.data), (-32601, &Value::Null));
        let never = refused(&client, "runtime.shutdown", json!({})).await;
        assert_eq!(never.code, -32014, "{never:?}");
        client.turn("s", "still here").await;
    })
    .await;
}
