//! `routing.granularity = "connection"`: the layer-4 choice.

use serde_json::{Value, json};

use crate::rig::{Client, Disks, Raw, Rig, bounded, event, frame, id_placed_on};

async fn relay_rig(count: usize) -> Rig {
    Rig::with(count, Disks::Separate, |conf| {
        conf.text("routing.granularity", "connection")
    })
    .await
}

#[tokio::test]
async fn a_connection_goes_by_its_first_key_and_stays_there() {
    bounded(60, async {
        let mut rig = relay_rig(3).await;
        for backend in ["s1", "s2", "s3"] {
            let (first, elsewhere) = (
                id_placed_on(rig.admin(), backend, "first").await,
                id_placed_on(
                    rig.admin(),
                    if backend == "s1" { "s2" } else { "s1" },
                    "else",
                )
                .await,
            );
            // `connect` and pings come before any key, and are answered by Taxiway.
            let client = rig.client().await;
            let pong = client
                .call("ping", json!({ "message": "m" }))
                .await
                .unwrap();
            assert_eq!(pong["message"], "pong: m");
            client.create(&first).await;
            client.create(&elsewhere).await;
            for id in [&first, &elsewhere] {
                assert_eq!(rig.sims.owner(id).as_deref(), Some(backend));
            }
            client.turn(&first, "hello").await;
        }
        // Users meet where their key leads, from whatever connection.
        let user = id_placed_on(rig.admin(), "s2", "meet").await;
        let (one, two) = (rig.client().await, rig.client().await);
        one.create(&user).await;
        two.create(&user).await;
        let mark = two.mark();
        one.turn(&user, "both hear it").await;
        two.heard_since(mark, &event(&user, "session.idle")).await;

        // A reload that drains, removes and adds leaves it alone.
        rig.admin().change("/api/v1/backends/s2/drain", "{}").await;
        one.turn(&user, "drained").await;
        let less = rig.taxiway.conf.clone().only(&rig.sims, &["s1", "s3"]);
        rig.taxiway.reload(less).await;
        one.turn(&user, "removed").await;
        assert_eq!(rig.sims.owner(&user).as_deref(), Some("s2"));
        let new = rig.client().await;
        new.create("user-later--x").await;
        assert_ne!(rig.sims.owner("user-later--x").as_deref(), Some("s2"));
    })
    .await;
}

/// What comes behind the first key is the backend's to judge, whatever it is.
#[tokio::test]
async fn bytes_behind_the_first_key_are_not_read() {
    bounded(60, async {
        let rig = relay_rig(2).await;
        let mut raw = Raw::connect(rig.taxiway.address()).await;
        let create =
            r#"{"jsonrpc":"2.0","id":1,"method":"session.create","params":{"sessionId":"a"}}"#;
        // The second frame comes in the same write, and is no JSON.
        raw.write(&[frame(create), frame("{")].concat()).await;
        let (mut created, mut refused) = (false, false);
        while !(created && refused) {
            let answer = raw.answer().await.expect("still open");
            if answer["id"] == 1 {
                created = true;
            } else {
                // The server's own words, under `id:null`, which Taxiway swallows elsewhere.
                assert_eq!(answer["id"], Value::Null, "{answer}");
                assert_eq!(answer["error"]["code"], -32700, "{answer}");
                assert_eq!(answer["error"]["data"], Value::Null, "{answer}");
                refused = true;
            }
        }
        // Also methods that Taxiway would have answered itself, and ids in use.
        let ping = r#"{"jsonrpc":"2.0","id":7,"method":"ping"}"#;
        raw.write(&[frame(ping), frame(ping)].concat()).await;
        for _ in 0..2 {
            assert_eq!(raw.answer().await.unwrap()["id"], 7);
        }
        let owner = rig.sims.owner("a").unwrap();
        let pings = rig.sims.get(&owner).seen();
        let connection = pings.iter().find(|s| s.session.as_deref() == Some("a"));
        let connection = connection.unwrap().connection;
        let seen = |method: &str| {
            let of = |s: &&taxiway::sim::Seen| s.connection == connection && s.method == method;
            pings.iter().filter(of).count()
        };
        assert_eq!((seen("connect"), seen("ping")), (1, 2));
        // What is no frame at all ends the connection, as the server does.
        raw.write(b"GET / HTTP/1.1\r\n\r\n").await;
        raw.closed().await;
    })
    .await;
}

#[tokio::test]
async fn what_comes_before_the_key_is_judged_here_and_ends_are_passed_on() {
    bounded(60, async {
        let rig = relay_rig(2).await;
        let mut raw = Raw::connect(rig.taxiway.address()).await;
        raw.write(&frame("{")).await;
        let refused = raw.next().await.unwrap();
        assert_eq!(refused["error"]["code"], -32700, "{refused}");
        let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
        raw.write(&frame(ping)).await;
        assert_eq!(raw.next().await.unwrap()["id"], 1);
        raw.write(b"Content-Length: x\r\n\r\n").await;
        let refused = raw.next().await.unwrap();
        assert_eq!(refused["error"]["code"], -32700, "{refused}");
        assert_eq!(raw.next().await, None);

        let client: Client = rig.client().await;
        client.create("ended").await;
        let owner = rig.sims.owner("ended").unwrap();
        rig.admin()
            .metric_is(
                &format!("taxiway_upstream_connections{{backend=\"{owner}\"}}"),
                1.0,
            )
            .await;
        rig.sims.get(&owner).kill();
        client.closed().await;
        rig.admin()
            .metric_is(
                &format!("taxiway_upstream_connections{{backend=\"{owner}\"}}"),
                0.0,
            )
            .await;
        rig.admin()
            .metric_is("taxiway_downstream_connections", 0.0)
            .await;
    })
    .await;
}

/// The client's leaving closes its sessions there, as when it is connected directly.
#[tokio::test]
async fn a_client_that_leaves_leaves_its_backend() {
    bounded(60, async {
        let rig = relay_rig(1).await;
        let client = rig.client().await;
        client.create("left").await;
        drop(client);
        crate::rig::until("the session to close", async || {
            match rig.sims.owner("left") {
                None => Ok(()),
                Some(owner) => Err(owner),
            }
        })
        .await;
    })
    .await;
}
