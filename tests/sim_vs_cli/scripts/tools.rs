//! Scripts about tools: clashes, permissions, questions, hooks.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::{
    super::{
        events, lifecycle, opened,
        subject::Subject,
        wire::{Wire, masked},
    },
    Lines, calls, open, respond, tools, turn,
};

pub(crate) async fn tool_clash(subject: &Subject, model: SocketAddr) -> Lines {
    let mut one = Wire::to(subject.address()).await;
    let mut two = Wire::to(subject.address()).await;
    let mut lines = Vec::new();
    open(&mut one, model, "clash-1", tools("clash_tool", true)).await;
    for method in ["session.resume", "session.create"] {
        let answer = two
            .call(method, opened(model, "clash-1", tools("clash_tool", true)))
            .await;
        lines.push(masked(&answer));
    }
    for (wire, name) in [(&mut two, "another_tool"), (&mut one, "clash_tool")] {
        let answer = wire
            .call(
                "session.resume",
                opened(model, "clash-1", tools(name, true)),
            )
            .await;
        lines.push(masked(&answer));
    }
    one.call("session.detach", json!({"sessionId": "clash-1"}))
        .await;
    let answer = two
        .call(
            "session.resume",
            opened(model, "clash-1", tools("clash_tool", true)),
        )
        .await;
    lines.push(masked(&answer));
    lines
}

/// The events of a turn with a tool, without what is not promised.
fn tool_events(bodies: &[String]) -> Lines {
    let mut told = events(bodies);
    told.retain(|event| {
        !event.contains("pending_messages")
            && !event.contains("streaming_delta")
            && !event.contains("message_delta")
    });
    told
}

pub(crate) async fn tool_with_permission(subject: &Subject, model: SocketAddr) -> Lines {
    let mut wire = Wire::to(subject.address()).await;
    let mut other = Wire::to(subject.address()).await;
    let mut lines = Vec::new();
    open(&mut wire, model, "tool-1", tools("tool_one", false)).await;
    open(&mut other, model, "tool-other", json!({})).await;
    let mark = wire.mark();
    let prompt = r#"[[tool tool_one {"city":"Rome"}]] [[len 2]]"#;
    wire.call(
        "session.send",
        json!({"sessionId": "tool-1", "prompt": prompt}),
    )
    .await;
    let requested = wire.event(mark, "permission.requested").await;
    let pending = wire
        .call(
            "session.permissions.pendingRequests",
            json!({"sessionId": "tool-1"}),
        )
        .await;
    lines.push(masked(&pending));
    let decide = |session: &str| {
        let id = &requested["requestId"];
        json!({"sessionId": session, "requestId": id, "result": {"kind": "approve-once"}})
    };
    let method = "session.permissions.handlePendingPermissionRequest";
    let table = [
        // A permission is asked for in its own session only.
        (method, decide("tool-other")),
        (method, decide("tool-1")),
        (method, decide("tool-1")),
    ];
    calls(&mut other, &mut lines, &table).await;
    let requested = wire.event(mark, "external_tool.requested").await;
    let answer = |session: &str| {
        let id = &requested["requestId"];
        json!({"sessionId": session, "requestId": id, "result": {"textResultForLlm": "ok", "resultType": "success"}})
    };
    let method = "session.tools.handlePendingToolCall";
    // A tool's answer may name any session.
    let table = [(method, answer("tool-other")), (method, answer("tool-1"))];
    calls(&mut other, &mut lines, &table).await;
    // Whose it was the log says, to whoever asks.
    let log = |session: &str, max: u32| {
        json!({"sessionId": session, "types": ["external_tool.requested"], "agentScope": "all",
            "direction": "backward", "max": max})
    };
    let method = "session.eventLog.read";
    let table = [
        (method, log("tool-1", 100)),
        (method, log("tool-1", 1)),
        (method, log("tool-other", 100)),
        (method, log("tool-none", 100)),
    ];
    calls(&mut other, &mut lines, &table).await;
    wire.event(mark, "session.idle").await;
    wire.quiet().await;
    lines.extend(tool_events(&wire.since(mark)));
    let complete = wire.event(mark, "tool.execution_complete").await;
    lines.push(format!("{} {}", complete["success"], complete["result"]));
    lines.push(format!("{} updates", lifecycle(&wire.since(mark)).len()));
    lines
}

pub(crate) async fn rejected_permission(subject: &Subject, model: SocketAddr) -> Lines {
    let mut wire = Wire::to(subject.address()).await;
    let mut lines = Vec::new();
    open(&mut wire, model, "tool-2", tools("tool_two", false)).await;
    let mark = wire.mark();
    let prompt = r#"[[tool tool_two {"city":"Rome"}]] [[len 2]]"#;
    wire.call(
        "session.send",
        json!({"sessionId": "tool-2", "prompt": prompt}),
    )
    .await;
    let requested = wire.event(mark, "permission.requested").await;
    let id = &requested["requestId"];
    let params = json!({"sessionId": "tool-2", "requestId": id, "result": {"kind": "reject"}});
    let table = [("session.permissions.handlePendingPermissionRequest", params)];
    calls(&mut wire, &mut lines, &table).await;
    wire.event(mark, "session.idle").await;
    wire.quiet().await;
    lines.extend(tool_events(&wire.since(mark)));
    let complete = wire.event(mark, "tool.execution_complete").await;
    lines.push(format!("{} {}", complete["success"], complete["error"]));
    lines
}

pub(crate) async fn unasked_permission(subject: &Subject, model: SocketAddr) -> Lines {
    let mut wire = Wire::to(subject.address()).await;
    let mut more = tools("tool_three", false);
    more["requestPermission"] = json!(false);
    open(&mut wire, model, "tool-3", more).await;
    let bodies = turn(&mut wire, "tool-3", "[[tool tool_three {}]] [[len 1]]").await;
    let mut lines = tool_events(&bodies);
    let complete = wire.event(0, "tool.execution_complete").await;
    lines.push(format!("{} {}", complete["success"], complete["error"]));
    lines
}

pub(crate) async fn tool_failure(subject: &Subject, model: SocketAddr) -> Lines {
    let mut wire = Wire::to(subject.address()).await;
    open(&mut wire, model, "tool-4", tools("tool_four", true)).await;
    let mark = wire.mark();
    let prompt = "[[tool tool_four {}]] [[len 1]]";
    wire.call(
        "session.send",
        json!({"sessionId": "tool-4", "prompt": prompt}),
    )
    .await;
    let requested = wire.event(mark, "external_tool.requested").await;
    let id = &requested["requestId"];
    let params = json!({"sessionId": "tool-4", "requestId": id, "error": "boom"});
    let mut lines = Vec::new();
    calls(
        &mut wire,
        &mut lines,
        &[("session.tools.handlePendingToolCall", params)],
    )
    .await;
    wire.event(mark, "session.idle").await;
    wire.quiet().await;
    lines.extend(tool_events(&wire.since(mark)));
    let complete = wire.event(mark, "tool.execution_complete").await;
    lines.push(format!("{} {}", complete["success"], complete["error"]));
    lines
}

pub(crate) async fn unknown_tool(subject: &Subject, model: SocketAddr) -> Lines {
    let mut wire = Wire::to(subject.address()).await;
    open(&mut wire, model, "tool-5", json!({})).await;
    let bodies = turn(&mut wire, "tool-5", "[[tool no_such_tool {}]] [[len 1]]").await;
    let mut lines = tool_events(&bodies);
    let complete = wire.event(0, "tool.execution_complete").await;
    lines.push(format!("{} {}", complete["success"], complete["error"]));
    lines
}

pub(crate) async fn questions(subject: &Subject, model: SocketAddr) -> Lines {
    let mut one = Wire::to(subject.address()).await;
    let mut two = Wire::to(subject.address()).await;
    let mut lines = Vec::new();
    let more = json!({"requestUserInput": true});
    open(&mut one, model, "ask-1", more.clone()).await;
    two.call("session.resume", opened(model, "ask-1", more))
        .await;
    two.quiet().await;
    let prompt = "[[ask Which?]] [[len 1]]";
    for by_event in [false, true] {
        let (mark, other) = (one.mark(), two.mark());
        one.call(
            "session.send",
            json!({"sessionId": "ask-1", "prompt": prompt}),
        )
        .await;
        let asked = [
            one.body(mark, &["\"method\":\"userInput.request\""]).await,
            two.body(other, &["\"method\":\"userInput.request\""]).await,
        ];
        lines.extend(asked.iter().map(|body| masked(body)));
        if by_event {
            let requested = one.event(mark, "user_input.requested").await;
            let response = json!({"answer": "blue", "wasFreeform": true});
            let params = json!({"sessionId": "ask-1", "requestId": requested["requestId"], "response": response});
            calls(
                &mut two,
                &mut lines,
                &[("session.ui.handlePendingUserInput", params)],
            )
            .await;
        } else {
            respond(
                &mut two,
                &asked[1],
                json!({"answer": "blue", "wasFreeform": true}),
            )
            .await;
        }
        one.event(mark, "session.idle").await;
        one.quiet().await;
        lines.extend(tool_events(&one.since(mark)));
        let complete = one.event(mark, "tool.execution_complete").await;
        lines.push(format!("{} {}", complete["success"], complete["result"]));
    }
    lines
}

pub(crate) async fn hooks(subject: &Subject, model: SocketAddr) -> Lines {
    let mut one = Wire::to(subject.address()).await;
    let mut two = Wire::to(subject.address()).await;
    let mut lines = Vec::new();
    open(&mut one, model, "hook-1", json!({"hooks": true})).await;
    two.call(
        "session.resume",
        opened(model, "hook-1", json!({"hooks": true})),
    )
    .await;
    two.quiet().await;
    let (mark, other) = (one.mark(), two.mark());
    let send = json!({"sessionId": "hook-1", "prompt": "[[tool no_such_tool {}]] [[len 1]]"});
    one.call("session.send", send).await;
    let mut answered = [mark, other];
    let mut asked = Vec::new();
    loop {
        for (wire, from) in [&mut one, &mut two].into_iter().zip(&mut answered) {
            let bodies = wire.since(*from);
            *from += bodies.len();
            for body in bodies
                .iter()
                .filter(|body| body.contains("\"hooks.invoke\""))
            {
                let request: Value = serde_json::from_str(body).expect("JSON");
                asked.push(
                    request["params"]["hookType"]
                        .as_str()
                        .unwrap_or_default()
                        .to_owned(),
                );
                respond(wire, body, json!({})).await;
            }
        }
        if one
            .since(mark)
            .iter()
            .any(|body| body.contains("\"session.idle\""))
        {
            break;
        }
        Wire::either(&mut one, answered[0], &mut two, answered[1]).await;
    }
    // Every kind is asked of both; in which order of connections is not promised.
    asked.sort();
    lines.push(format!("{asked:?}"));
    one.quiet().await;
    let mut told = tool_events(&one.since(mark));
    // The real server runs the first hooks at the same time as what stands beside them.
    told.retain(|event| !event.starts_with("hook."));
    lines.extend(told);
    two.call("session.detach", json!({"sessionId": "hook-1"}))
        .await;
    let mark = one.mark();
    let leaving = one
        .request("session.detach", Some(&json!({"sessionId": "hook-1"})))
        .await;
    let last = one.body(mark, &["\"hooks.invoke\"", "sessionEnd"]).await;
    let early = one
        .since(mark)
        .iter()
        .any(|body| body.contains(&format!("\"id\":{leaving},\"result")));
    lines.push(format!("detached before the hook's answer: {early}"));
    respond(&mut one, &last, json!({})).await;
    lines.push(masked(
        &one.answer(leaving).await.replace(&leaving.to_string(), "N"),
    ));
    lines
}
