//! Scripts about turns: order of events, queueing, steering, abort.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::{
    super::{
        events, lifecycle,
        subject::Subject,
        wire::{Wire, masked},
    },
    Lines, calls, open, tools, turn,
};

pub(crate) async fn plain_turn(subject: &Subject, model: SocketAddr) -> Lines {
    let mut wire = Wire::to(subject.address()).await;
    let watcher = Wire::to(subject.address()).await;
    open(&mut wire, model, "turn-1", json!({})).await;
    let mark = watcher.mark();
    let bodies = turn(&mut wire, "turn-1", "hello [[len 4]]").await;
    let mut lines = events(&bodies);
    lines.extend(lifecycle(&watcher.since(mark)));
    // How many events come before the answer is not promised; that the turn goes on behind it is.
    let place = |part: &str| bodies.iter().position(|body| body.contains(part));
    let answered = place("\"result\":{\"messageId\"").expect("an answer");
    lines.push(format!(
        "answered before idle: {}",
        Some(answered) < place("\"session.idle\"")
    ));
    lines
}

pub(crate) async fn second_turn(subject: &Subject, model: SocketAddr) -> Lines {
    let mut wire = Wire::to(subject.address()).await;
    open(&mut wire, model, "turn-2", json!({})).await;
    turn(&mut wire, "turn-2", "one [[len 1]]").await;
    let bodies = turn(&mut wire, "turn-2", "two [[len 2]] [[slow 5]]").await;
    let mut lines = events(&bodies);
    let messages = wire
        .call("session.getMessages", json!({"sessionId": "turn-2"}))
        .await;
    let messages: Value = serde_json::from_str(&format!("{{{messages}")).expect("JSON");
    let kinds = messages["result"]["events"]
        .as_array()
        .expect("events")
        .iter();
    lines.extend(kinds.map(|event| event["type"].to_string()));
    let send = |prompt: Value| json!({"sessionId": "turn-2", "prompt": prompt});
    for params in [
        json!({"sessionId": "turn-2"}),
        send(json!(5)),
        send(json!("")),
    ] {
        let mark = wire.mark();
        calls(&mut wire, &mut lines, &[("session.send", params)]).await;
        wire.event(mark, "session.idle").await;
    }
    lines
}

pub(crate) async fn queueing(subject: &Subject, model: SocketAddr) -> Lines {
    let mut wire = Wire::to(subject.address()).await;
    let mut other = Wire::to(subject.address()).await;
    let mut lines = Vec::new();
    open(&mut wire, model, "queue-1", json!({})).await;
    let mark = wire.mark();
    let send = |prompt: &str| json!({"sessionId": "queue-1", "prompt": prompt});
    wire.call("session.send", send("first [[len 40]] [[slow 25]]"))
        .await;
    wire.events(mark, "assistant.message_delta", 1).await;
    other.call("session.send", send("second [[len 1]]")).await;
    wire.call("session.send", send("third [[len 1]]")).await;
    let id = json!({"sessionId": "queue-1"});
    let table = [
        ("session.queue.hasPending", id.clone()),
        ("session.metadata.isProcessing", id.clone()),
        ("session.metadata.activity", id.clone()),
    ];
    calls(&mut other, &mut lines, &table).await;
    wire.event(mark, "session.idle").await;
    wire.quiet().await;
    let mut told = events(&wire.since(mark));
    told.retain(|event| !event.contains("_delta"));
    // When exactly the queue is announced to have changed is not promised.
    told.retain(|event| !event.contains("pending_messages"));
    lines.extend(told);
    calls(&mut other, &mut lines, &[("session.metadata.activity", id)]).await;
    lines
}

pub(crate) async fn steering(subject: &Subject, model: SocketAddr) -> Lines {
    let mut wire = Wire::to(subject.address()).await;
    let mut lines = Vec::new();
    open(&mut wire, model, "steer-1", tools("steer_tool", true)).await;
    let mark = wire.mark();
    let send =
        |prompt: &str, mode: &str| json!({"sessionId": "steer-1", "prompt": prompt, "mode": mode});
    let prompt = r#"[[tool steer_tool {"city":"Rome"}]] [[len 1]]"#;
    wire.call(
        "session.send",
        json!({"sessionId": "steer-1", "prompt": prompt}),
    )
    .await;
    let requested = wire.event(mark, "external_tool.requested").await;
    wire.call("session.send", send("left [[len 1]]", "immediate"))
        .await;
    wire.call(
        "session.send",
        json!({"sessionId": "steer-1", "prompt": "later [[len 1]]"}),
    )
    .await;
    let items = wire
        .call(
            "session.queue.pendingItems",
            json!({"sessionId": "steer-1"}),
        )
        .await;
    // How items are numbered is not promised.
    let item = items.find("\"messageId\"").expect("an item");
    lines.push(masked(&items[item..]));
    let answer =
        json!({"sessionId": "steer-1", "requestId": requested["requestId"], "result": "ok"});
    calls(
        &mut wire,
        &mut lines,
        &[("session.tools.handlePendingToolCall", answer)],
    )
    .await;
    wire.event(mark, "session.idle").await;
    wire.quiet().await;
    let mut told = events(&wire.since(mark));
    told.retain(|event| !event.contains("pending_messages") && !event.contains("_delta"));
    lines.extend(told);
    lines
}

pub(crate) async fn late_steering(subject: &Subject, model: SocketAddr) -> Lines {
    let mut wire = Wire::to(subject.address()).await;
    open(&mut wire, model, "steer-2", json!({})).await;
    let mark = wire.mark();
    let send = json!({"sessionId": "steer-2", "prompt": "[[len 40]] [[slow 20]]", "wait": true});
    let waiting = wire.request("session.send", Some(&send)).await;
    wire.events(mark, "assistant.message_delta", 1).await;
    let steer = json!({"sessionId": "steer-2", "prompt": "left [[len 1]]", "mode": "immediate"});
    wire.call("session.send", steer).await;
    let early = wire
        .since(mark)
        .iter()
        .any(|body| body.contains(&format!("\"id\":{waiting},")));
    let mut lines = vec![format!("the waiting send was answered before: {early}")];
    wire.answer(waiting).await;
    wire.quiet().await;
    let bodies = wire.since(mark);
    let at = bodies
        .iter()
        .position(|body| body.contains(&format!("\"id\":{waiting},")))
        .expect("it has come");
    let idle = bodies
        .iter()
        .position(|body| body.contains("\"session.idle\""))
        .expect("it has come");
    lines.push(format!(
        "the waiting send is answered after session.idle: {}",
        at > idle
    ));
    let mut told = events(&bodies);
    told.retain(|event| !event.contains("pending_messages") && !event.contains("_delta"));
    lines.extend(told.into_iter().filter(|event| {
        // Whose prompt the second message answers differs: the real server names the first.
        !event.contains("\"assistant.message\"")
    }));
    lines
}

pub(crate) async fn waiting(subject: &Subject, model: SocketAddr) -> Lines {
    let mut wire = Wire::to(subject.address()).await;
    open(&mut wire, model, "wait-1", json!({})).await;
    let mark = wire.mark();
    let send = json!({"sessionId": "wait-1", "prompt": "[[len 2]]", "wait": true});
    let mut lines = vec![masked(&wire.call("session.send", send).await)];
    let idle = wire
        .since(mark)
        .iter()
        .any(|body| body.contains("\"session.idle\""));
    lines.push(format!("idle before the answer: {idle}"));
    lines
}

pub(crate) async fn abort(subject: &Subject, model: SocketAddr) -> Lines {
    let mut wire = Wire::to(subject.address()).await;
    let mut other = Wire::to(subject.address()).await;
    let mut lines = Vec::new();
    open(&mut wire, model, "abort-1", json!({})).await;
    let id = json!({"sessionId": "abort-1"});
    calls(&mut other, &mut lines, &[("session.abort", id.clone())]).await;
    let mark = wire.mark();
    let send = |prompt: &str| json!({"sessionId": "abort-1", "prompt": prompt});
    wire.call("session.send", send("[[len 400]] [[slow 20]]"))
        .await;
    wire.events(mark, "assistant.message_delta", 2).await;
    wire.call("session.send", send("queued")).await;
    calls(&mut other, &mut lines, &[("session.abort", id.clone())]).await;
    wire.event(mark, "session.idle").await;
    wire.quiet().await;
    let mut told = events(&wire.since(mark));
    told.retain(|event| !event.contains("pending_messages") && !event.contains("_delta"));
    lines.extend(told);
    lines.extend(events(&turn(&mut wire, "abort-1", "again [[len 1]]").await));
    lines
}

pub(crate) async fn open_session_methods(subject: &Subject, model: SocketAddr) -> Lines {
    let mut wire = Wire::to(subject.address()).await;
    let mut lines = Vec::new();
    open(&mut wire, model, "open-1", json!({})).await;
    let with = |more: Value| {
        let mut params = json!({"sessionId": "open-1"});
        for (key, value) in more.as_object().cloned().unwrap_or_default() {
            params[key] = value;
        }
        params
    };
    let table = [
        ("session.suspend", json!({})),
        ("session.mode.set", json!({"mode": "plan"})),
        ("session.mode.get", json!({})),
        ("session.mode.set", json!({"mode": "bogus"})),
        ("session.model.getCurrent", json!({})),
        ("session.model.switchTo", json!({"modelId": "other"})),
        ("session.model.getCurrent", json!({})),
        ("session.model.list", json!({})),
        ("session.name.get", json!({})),
        ("session.name.set", json!({"name": "N"})),
        ("session.name.get", json!({})),
        ("session.metadata.activity", json!({})),
        ("session.metadata.isProcessing", json!({})),
        ("session.queue.pendingItems", json!({})),
        ("session.queue.hasPending", json!({})),
        ("session.queue.clear", json!({})),
        (
            "session.eventLog.registerInterest",
            json!({"eventType": "x"}),
        ),
        (
            "session.eventLog.registerInterest",
            json!({"eventType": "y"}),
        ),
        ("session.permissions.pendingRequests", json!({})),
        ("session.permissions.getMode", json!({})),
        (
            "session.permissions.setApproveAll",
            json!({"enabled": true}),
        ),
        ("session.tasks.list", json!({})),
        ("session.log", json!({"message": "hello"})),
        ("session.options.update", json!({"options": {}})),
        ("session.plan.read", json!({})),
        ("session.workspaces.listFiles", json!({})),
        ("session.agent.list", json!({})),
        ("session.gitHubAuth.getStatus", json!({})),
        ("session.history.compact", json!({})),
        ("session.interruptMainTurn", json!({})),
        ("session.tools.handlePendingToolCall", json!({})),
        (
            "session.tools.handlePendingToolCall",
            json!({"requestId": "x", "result": "y"}),
        ),
        (
            "session.permissions.handlePendingPermissionRequest",
            json!({"requestId": "x", "result": {"kind": "approve-once"}}),
        ),
        (
            "session.ui.handlePendingUserInput",
            json!({"requestId": "x", "response": {"answer": "y", "wasFreeform": true}}),
        ),
        ("session.sendAndWait", json!({"prompt": "x"})),
        ("session.foo.bar", json!({})),
    ];
    let mark = wire.mark();
    for (method, more) in table {
        calls(&mut wire, &mut lines, &[(method, with(more))]).await;
    }
    wire.quiet().await;
    let mut told = events(&wire.since(mark));
    // The real server tries to compact, and says so.
    told.retain(|event| !event.contains("compaction") && !event.contains("pending_messages"));
    lines.extend(told);
    lines
}
