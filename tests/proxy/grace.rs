//! Clients that leave in a turn: it goes on, the next connection takes it over, and whatever
//! happens nothing stays behind.

use serde_json::{Value, json};

use crate::{
    leaks::nothing_is_left,
    rig::{Client, Conf, Disks, Rig, bounded, event, id_placed_on, until},
};

const PARKED: &str = "taxiway_sessions_parked";

fn results(result: &str) -> String {
    format!("taxiway_takeovers_total{{result=\"{result}\"}}")
}

async fn rig(disks: Disks, grace: &'static str) -> Rig {
    Rig::with(2, disks, |conf: Conf| {
        conf.text("sessions.detach_grace", grace)
    })
    .await
}

fn tools() -> Value {
    json!([{ "name": "probe", "parameters": { "type": "object" }, "skipPermission": true }])
}

/// A client with a session in a turn.
async fn in_turn(rig: &Rig, session: &str, prompt: &str) -> Client {
    let client = rig.client().await;
    let params = json!({ "sessionId": session, "tools": tools(), "requestUserInput": true });
    client.call("session.create", params).await.unwrap();
    client.turn(session, "before").await;
    let mark = client.mark();
    client.send(session, prompt).await;
    let begun = event(session, "assistant.turn_start");
    client.heard_since(mark, &begun).await;
    client
}

async fn parked(rig: &Rig, count: f64) {
    rig.admin().metric_is(PARKED, count).await;
}

fn resume(session: &str) -> Value {
    json!({ "sessionId": session, "tools": tools(), "requestUserInput": true })
}

#[tokio::test]
async fn a_streaming_turn_is_taken_over() {
    bounded(60, async {
        for disks in [Disks::Separate, Disks::Shared] {
            let rig = rig(disks, "20s").await;
            let old = in_turn(&rig, "s", "[[len 150]] [[slow 20]]").await;
            let owner = rig.sims.owner("s");
            drop(old);
            parked(&rig, 1.0).await;
            assert_eq!(rig.sims.owner("s"), owner);
            let shown = rig.admin().get("/api/v1/sessions?limit=10").await;
            assert_eq!(shown["items"][0]["parked"], true, "{shown}");
            rig.admin()
                .metric_is("taxiway_downstream_connections", 0.0)
                .await;

            let new = rig.client().await;
            new.call("session.resume", resume("s")).await.unwrap();
            let idle = new.heard(&event("s", "session.idle")).await;
            assert_ne!(idle["params"]["event"]["data"]["aborted"], true);
            parked(&rig, 0.0).await;
            rig.admin().metric_is(&results("taken_over"), 1.0).await;
            let scrape = rig.admin().scrape().await;
            assert!(
                (scrape.sum("taxiway_turns_total") - 2.0).abs() < 1e-9,
                "once each"
            );
            new.turn("s", "after").await;
            drop(new);
            nothing_is_left(&rig).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_pending_tool_is_shown_to_the_new_client_and_answered_by_it() {
    bounded(60, async {
        let rig = rig(Disks::Shared, "20s").await;
        let old = in_turn(&rig, "s", "[[tool probe {}]]").await;
        old.heard(&event("s", "external_tool.requested")).await;
        drop(old);
        parked(&rig, 1.0).await;
        let new = rig.client().await;
        new.call("session.create", resume("s")).await.unwrap();
        let asked = new.heard(&event("s", "external_tool.requested")).await;
        let request = &asked["params"]["event"]["data"]["requestId"];
        let answer = json!({ "sessionId": "s", "requestId": request, "result": "probed" });
        let method = "session.tools.handlePendingToolCall";
        let done = new.call(method, answer).await.unwrap();
        assert_eq!(done["success"], true);
        let idle = new.heard(&event("s", "session.idle")).await;
        assert_ne!(idle["params"]["event"]["data"]["aborted"], true);
        assert_eq!(new.count(&event("s", "external_tool.requested")), 1);
        drop(new);
        nothing_is_left(&rig).await;
    })
    .await;
}

/// The one who stays has heard the request, and has no such tool: it would wait for ever.
#[tokio::test]
async fn without_grace_who_stays_does_not_wait_for_a_tool_of_who_is_gone() {
    bounded(60, async {
        let rig = rig(Disks::Shared, "0s").await;
        let old = in_turn(&rig, "s", "[[tool probe {}]]").await;
        let stays = rig.client().await;
        let params = json!({ "sessionId": "s" });
        stays.call("session.resume", params).await.unwrap();
        old.heard(&event("s", "external_tool.requested")).await;
        drop(old);
        let idle = stays.heard(&event("s", "session.idle")).await;
        assert_eq!(idle["params"]["event"]["data"]["aborted"], true);
        stays.turn("s", "after").await;
        drop(stays);
        nothing_is_left(&rig).await;
    })
    .await;
}

#[tokio::test]
async fn a_question_is_put_to_the_new_client() {
    bounded(60, async {
        let rig = rig(Disks::Separate, "20s").await;
        let old = in_turn(&rig, "s", "[[ask Well?]]").await;
        old.heard(&|m| m["method"] == "userInput.request").await;
        drop(old);
        parked(&rig, 1.0).await;
        let new = rig.client().await;
        new.call("session.resume", resume("s")).await.unwrap();
        let asked = new.heard(&|m| m["method"] == "userInput.request").await;
        assert_eq!(asked["params"]["question"], "Well?");
        new.reply(&asked, json!({ "answer": "so", "wasFreeform": true }))
            .await;
        let idle = new.heard(&event("s", "session.idle")).await;
        assert_ne!(idle["params"]["event"]["data"]["aborted"], true);
        rig.admin().metric_is(&results("taken_over"), 1.0).await;
        // Its tools are the new client's: the session was opened in full.
        new.turn("s", "after").await;
        drop(new);
        nothing_is_left(&rig).await;
    })
    .await;
}

#[tokio::test]
async fn after_the_grace_the_session_is_closed() {
    bounded(60, async {
        let rig = rig(Disks::Shared, "400ms").await;
        let old = in_turn(&rig, "s", "[[len 10000]] [[slow 20]]").await;
        drop(old);
        rig.admin().metric_is(&results("expired"), 1.0).await;
        nothing_is_left(&rig).await;
        let new = rig.client().await;
        new.call("session.resume", resume("s")).await.unwrap();
        new.turn("s", "after").await;
    })
    .await;
}

#[tokio::test]
async fn a_turn_that_ends_meanwhile_is_in_the_history() {
    bounded(60, async {
        let rig = rig(Disks::Separate, "20s").await;
        drop(in_turn(&rig, "s", "[[len 20]] [[slow 20]]").await);
        rig.admin().metric_is(&results("ended"), 1.0).await;
        nothing_is_left(&rig).await;
        let new = rig.client().await;
        new.call("session.resume", resume("s")).await.unwrap();
        let read = new.call("session.getMessages", json!({ "sessionId": "s" }));
        let events = read.await.unwrap();
        let answers = events["events"].as_array().unwrap();
        let answers = answers.iter().filter(|e| e["type"] == "assistant.message");
        assert_eq!(answers.count(), 2);
    })
    .await;
}

#[tokio::test]
async fn a_backend_that_dies_takes_what_is_parked_with_it() {
    bounded(60, async {
        let mut rig = rig(Disks::Separate, "20s").await;
        drop(in_turn(&rig, "s", "[[len 10000]] [[slow 20]]").await);
        parked(&rig, 1.0).await;
        let owner = rig.sims.owner("s").unwrap();
        rig.sims.restart(&owner).await;
        rig.admin().metric_is(&results("ended"), 1.0).await;
        let new = rig.client().await;
        until("the session", async || {
            new.call("session.resume", resume("s")).await
        })
        .await;
        new.turn("s", "after").await;
        drop(new);
        nothing_is_left(&rig).await;
    })
    .await;
}

/// A search for a session that the client has left meanwhile does not count it as one who has it.
#[tokio::test]
async fn what_was_looked_for_when_its_client_left_is_held_by_nobody() {
    bounded(60, async {
        let mut rig = rig(Disks::Separate, "40s").await;
        let away = id_placed_on(rig.admin(), "s1", "away").await;
        let busy = id_placed_on(rig.admin(), "s2", "busy").await;
        let old = in_turn(&rig, &busy, "[[len 100000]] [[slow 20]]").await;
        old.create(&away).await;
        old.turn(&away, "before").await;
        rig.sims.get("s1").kill();
        rig.admin().health("s1", &["down"]).await;
        drop(old);
        parked(&rig, 1.0).await;
        rig.sims.restart("s1").await;
        rig.admin().health("s1", &["up", "probation"]).await;
        let new = rig.client().await;
        new.call("session.resume", resume(&away)).await.unwrap();
        new.turn(&away, "after").await;
        drop(new);
        until("nobody to hold it", async || {
            let shown = rig.admin().get("/api/v1/sessions?limit=10").await;
            let mut items = shown["items"].as_array().unwrap().iter();
            let item = items.find(|item| item["id"] == away.as_str()).unwrap();
            match (&item["open"], &item["connections"]) {
                (Value::Bool(false), count) if *count == 0 => Ok(()),
                _ => Err(item.clone()),
            }
        })
        .await;
        parked(&rig, 1.0).await;
    })
    .await;
}

#[tokio::test]
async fn two_hundred_that_leave_in_a_turn_leave_nothing() {
    bounded(120, async {
        let rig = rig(Disks::Shared, "3s").await;
        let mut clients = Vec::new();
        for n in 0..200 {
            let client = rig.client().await;
            let id = format!("user-{n}--x");
            client.create(&id).await;
            client.send(&id, "[[len 10000]] [[slow 50]]").await;
            let begun = event(&id, "assistant.turn_start");
            client.heard(&begun).await;
            clients.push(client);
        }
        drop(clients);
        // Every fourth is taken over, some by two at once, some by one that leaves again.
        let mut taking = Vec::new();
        for n in (0..200).step_by(4) {
            let id = format!("user-{n}--x");
            let client = rig.client().await;
            let pending = client.begin("session.resume", resume(&id)).await;
            if n % 8 == 0 {
                taking.push((client, pending));
            }
        }
        for (client, pending) in taking {
            pending.answer().await.unwrap();
            assert!(client.is_open());
        }
        let left = async || {
            let left = rig.admin().scrape().await.sum(PARKED);
            if left == 0.0 { Ok(()) } else { Err(left) }
        };
        until("nothing parked", left).await;
        nothing_is_left(&rig).await;
    })
    .await;
}
