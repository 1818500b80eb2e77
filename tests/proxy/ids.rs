//! Ids of both directions, calls written at once, and lists that are asked of several backends.

use std::{collections::BTreeSet, time::Instant};

use serde_json::{Value, json};

use crate::rig::{Client, Disks, Raw, Rig, bounded, event, frame, id_placed_on};

/// Two sessions on two backends, which must not be one.
async fn two_sessions(rig: &Rig, client: &Client, params: Value) -> [String; 2] {
    let mut ids = Vec::new();
    for backend in ["s1", "s2"] {
        let id = id_placed_on(rig.admin(), backend, "ids").await;
        let mut params = params.clone();
        params["sessionId"] = json!(id);
        client.call("session.create", params).await.unwrap();
        assert_eq!(rig.sims.owner(&id).as_deref(), Some(backend));
        ids.push(id);
    }
    [ids[0].clone(), ids[1].clone()]
}

fn request<'a>(method: &'a str, session: &'a str) -> impl Fn(&Value) -> bool + 'a {
    move |m| m["method"] == method && m["params"]["sessionId"] == session && m.get("id").is_some()
}

#[tokio::test]
async fn two_backends_ask_under_the_same_ids_and_each_gets_its_answer() {
    bounded(60, async {
        let rig = Rig::sticky(2).await;
        let client = rig.client().await;
        let ids = two_sessions(&rig, &client, json!({ "requestUserInput": true })).await;
        for id in &ids {
            client.send(id, "[[ask Which?]]").await;
        }
        let mut requests = Vec::new();
        for id in &ids {
            requests.push(client.heard(&request("userInput.request", id)).await);
        }
        // Each simulated server numbers its requests 1, 2, 3 … like the real one.
        let numbers: BTreeSet<u64> = requests.iter().map(|r| r["id"].as_u64().unwrap()).collect();
        assert_eq!(numbers.len(), 2, "{requests:?}");
        assert!(!numbers.contains(&0));
        // Answered the other way round, so that a mix-up shows.
        for (request, id) in requests.iter().zip(&ids).rev() {
            client
                .reply(
                    request,
                    json!({ "answer": format!("for {id}"), "wasFreeform": true }),
                )
                .await;
        }
        for id in &ids {
            let completed = client.heard(&event(id, "user_input.completed")).await;
            assert_eq!(
                completed["params"]["event"]["data"]["answer"],
                format!("for {id}")
            );
            client.heard(&event(id, "session.idle")).await;
        }
    })
    .await;
}

#[tokio::test]
async fn hooks_of_two_backends_run_side_by_side() {
    bounded(60, async {
        let rig = Rig::sticky(2).await;
        let client = rig.client().await;
        let ids = two_sessions(&rig, &client, json!({ "hooks": true })).await;
        let mark = client.mark();
        for id in &ids {
            client.send(id, "hello").await;
        }
        let (mut answered, mut ended) = (0, 0);
        let mut seen = BTreeSet::new();
        let mut at = mark;
        while ended < 2 {
            let wanted = |m: &Value| {
                m["method"] == "hooks.invoke" || m["params"]["event"]["type"] == "session.idle"
            };
            let message = client.next(&mut at, &wanted).await;
            if message["method"] == "hooks.invoke" {
                assert!(
                    seen.insert(message["id"].as_u64().unwrap()),
                    "an id came twice"
                );
                client.reply(&message, json!({})).await;
                answered += 1;
            } else {
                ended += 1;
            }
        }
        assert!(answered >= 6, "only {answered} hooks were asked");
    })
    .await;
}

#[tokio::test]
async fn answers_carry_the_clients_own_ids_with_their_type() {
    bounded(60, async {
        let rig = Rig::sticky(2).await;
        let client = rig.client().await;
        let id = "user-ann--ids";
        client.create(id).await;
        for call in [
            json!("0b7b7a1e-7a44-4a0e-9d5b-1f8cf6ad2e11"),
            json!(""),
            json!(0),
            json!(-7),
            json!(i64::MAX),
            json!("7"),
        ] {
            for method in ["ping", "session.mode.get", "session.list", "foo.bar"] {
                let params = json!({ "sessionId": id });
                let pending = client.begin_as(call.clone(), method, params).await;
                let answer = pending.answer().await;
                assert_eq!(
                    answer.is_err(),
                    method == "foo.bar",
                    "{call} {method} {answer:?}"
                );
            }
        }
        // Number and text are different ids, also at once.
        let (one, other) = (
            client
                .begin_as(json!(5), "session.mode.get", json!({ "sessionId": id }))
                .await,
            client
                .begin_as(json!("5"), "session.name.get", json!({ "sessionId": id }))
                .await,
        );
        assert_eq!(one.answer().await.unwrap(), json!("interactive"));
        assert_eq!(other.answer().await.unwrap(), json!({ "name": null }));
    })
    .await;
}

#[tokio::test]
async fn an_id_in_use_is_refused_and_the_first_call_still_gets_its_answer() {
    bounded(60, async {
        let rig = Rig::sticky(1).await;
        let mut client = Raw::connect(rig.taxiway.address()).await;
        let create = r#"{"jsonrpc":"2.0","id":1,"method":"session.create","params":{"sessionId":"a"}}"#;
        client.write(&frame(create)).await;
        assert_eq!(client.answer().await.unwrap()["id"], 1);
        let wait = r#"{"jsonrpc":"2.0","id":2,"method":"session.send","params":{"sessionId":"a","prompt":"[[len 20]] [[slow 20]]","wait":true}}"#;
        let again = r#"{"jsonrpc":"2.0","id":2,"method":"ping","params":{}}"#;
        client.write(&[frame(wait), frame(again)].concat()).await;
        let refused = client.answer().await.unwrap();
        assert_eq!((&refused["id"], &refused["error"]["code"]), (&json!(2), &json!(-32600)));
        let answered = client.answer().await.unwrap();
        assert_eq!(answered["id"], 2);
        assert!(answered["result"]["messageId"].is_string(), "{answered}");
    })
    .await;
}

#[tokio::test]
async fn eight_pings_in_one_write_are_eight_answers_in_order() {
    bounded(60, async {
        let rig = Rig::sticky(2).await;
        let mut client = Raw::connect(rig.taxiway.address()).await;
        let mut bytes = Vec::new();
        for n in 0..8 {
            let ping = json!({ "jsonrpc": "2.0", "id": n, "method": "ping", "params": { "message": format!("m{n}") } });
            bytes.extend(frame(ping.to_string()));
        }
        client.write(&bytes).await;
        for n in 0..8 {
            let answer = client.next().await.unwrap();
            assert_eq!(answer["id"], n);
            assert_eq!(answer["result"]["message"], format!("pong: m{n}"));
            assert_eq!(answer["result"]["protocolVersion"], 3);
        }
    })
    .await;
}

#[tokio::test]
async fn eight_sends_in_one_write_reach_the_conversation_in_order() {
    bounded(60, async {
        let rig = Rig::sticky(2).await;
        let client = rig.client().await;
        client.create("sends").await;
        let mut bytes = Vec::new();
        for n in 0..8 {
            let send = json!({ "jsonrpc": "2.0", "id": 1000 + n, "method": "session.send", "params": { "sessionId": "sends", "prompt": format!("p{n}") } });
            bytes.extend(frame(send.to_string()));
        }
        client.write(&bytes).await;
        // The first turn may end before the second message comes.
        let eighth = |m: &Value| {
            event("sends", "user.message")(m) && m["params"]["event"]["data"]["content"] == "p7"
        };
        client.heard(&eighth).await;
        let messages: Vec<String> = client
            .kept()
            .iter()
            .filter(|m| event("sends", "user.message")(m))
            .map(|m| m["params"]["event"]["data"]["content"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(messages, ["p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7"]);
        let answered: Vec<u64> = client
            .kept()
            .iter()
            .filter(|m| m["result"]["messageId"].is_string())
            .map(|m| m["id"].as_u64().unwrap())
            .collect();
        assert_eq!(answered, (1000..1008).collect::<Vec<u64>>());
    })
    .await;
}

#[tokio::test]
async fn steering_reaches_the_turn_that_a_waiting_send_runs() {
    bounded(60, async {
        let rig = Rig::sticky(1).await;
        let client = rig.client().await;
        let params = json!({ "sessionId": "steered", "requestUserInput": true });
        client.call("session.create", params).await.unwrap();
        let send = json!({ "sessionId": "steered", "prompt": "[[ask Go on?]]", "wait": true });
        let waiting = client.begin("session.send", send).await;
        let steer = json!({ "sessionId": "steered", "prompt": "steer", "mode": "immediate" });
        client.call("session.send", steer).await.unwrap();
        let question = client.heard(&request("userInput.request", "steered")).await;
        client
            .reply(&question, json!({ "answer": "yes", "wasFreeform": true }))
            .await;
        assert!(waiting.answer().await.unwrap()["messageId"].is_string());
        let steered = client.count(&|m| m["params"]["event"]["data"]["delivery"] == "steering");
        assert_eq!(steered, 1);
    })
    .await;
}

#[tokio::test]
async fn a_silent_backend_is_named_in_lists_within_the_aggregate_timeout() {
    bounded(60, async {
        let rig = Rig::with(2, Disks::Separate, |conf| {
            // Probes notice much later than the list.
            conf.text("routing.aggregate_timeout", "700ms")
                .text("health.interval", "30s")
                .text("health.timeout", "30s")
        })
        .await;
        let client = rig.client().await;
        let ids = two_sessions(&rig, &client, json!({})).await;
        for id in &ids {
            client.turn(id, "remember me").await;
        }
        let both = client.call("session.list", json!({})).await.unwrap();
        assert_eq!(both["sessions"].as_array().unwrap().len(), 2, "{both}");
        assert!(both.get("taxiway").is_none(), "{both}");

        rig.sims.get("s2").pause();
        let began = Instant::now();
        let list = client.call("session.list", json!({})).await.unwrap();
        let took = began.elapsed();
        assert!((600..2500).contains(&took.as_millis()), "{took:?}");
        assert_eq!(list["taxiway"]["missing"], json!(["s2"]), "{list}");
        // What the directory knows of the silent one is shown.
        let listed: BTreeSet<&str> = list["sessions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|s| s["sessionId"].as_str().unwrap())
            .collect();
        assert_eq!(listed, ids.iter().map(String::as_str).collect());

        // What changes or decides something is not half done.
        let delete = json!({ "sessionIds": ids });
        let refused = client
            .call("sessions.bulkDelete", delete)
            .await
            .unwrap_err();
        assert_eq!(refused.code, -32010, "{refused:?}");

        rig.sims.get("s2").resume();
        let list = client.call("session.list", json!({})).await.unwrap();
        assert!(list.get("taxiway").is_none(), "{list}");
    })
    .await;
}
