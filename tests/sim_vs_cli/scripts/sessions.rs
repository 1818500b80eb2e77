//! Scripts about the life of sessions: opening, attaching, closing, lists.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::{
    super::{
        events, lifecycle, opened,
        subject::Subject,
        wire::{Wire, masked},
    },
    Lines, calls, open, turn,
};

pub(crate) async fn unknown_sessions(subject: &Subject, _: SocketAddr) -> Lines {
    let mut wire = Wire::to(subject.address()).await;
    let mut lines = Vec::new();
    let methods = [
        "session.send",
        "session.sendMessages",
        "session.fleet.start",
        "session.abort",
        "session.interruptMainTurn",
        "session.getMessages",
        "session.getMetadata",
        "session.delete",
        "session.destroy",
        "session.detach",
        "session.resume",
        "session.suspend",
        "session.mode.get",
        "session.model.getCurrent",
        "session.name.get",
        "session.queue.pendingItems",
        "session.tools.handlePendingToolCall",
        "session.permissions.handlePendingPermissionRequest",
        "session.ui.handlePendingUserInput",
        "session.eventLog.read",
        "session.metadata.getClientMetadata",
        "session.metadata.isProcessing",
        "session.shell.exec",
        "session.history.compact",
        "session.options.update",
        "session.mcp.list",
        "sessions.fork",
        "sessions.connect",
        "sessions.getMetadata",
        "sessions.readPersistedEvents",
        "sessions.getPersistedRemoteSteerable",
        "sessions.getEventFilePath",
        "sessions.close",
        "sessions.delete",
        "sessions.save",
        "sessions.releaseLock",
        "sessions.reloadPluginHooks",
        "sessions.loadDeferredRepoHooks",
        "sessions.getBoardEntryCount",
        "sessions.startRemoteControl",
        "sessions.configureSessionExtensions",
    ];
    for method in methods {
        calls(
            &mut wire,
            &mut lines,
            &[(method, json!({"sessionId": "nope"}))],
        )
        .await;
    }
    let without_id = [
        "session.send",
        "session.abort",
        "session.mode.get",
        "session.getMessages",
        "session.getMetadata",
        "session.delete",
        "session.destroy",
        "session.detach",
        "session.resume",
        "sessions.fork",
        "sessions.close",
        "sessions.getMetadata",
        "sessions.getClientMetadata",
        "sessions.checkInUse",
        "sessions.bulkDelete",
        "sessions.enrichMetadata",
        "sessions.findByPrefix",
        "sessions.findByTaskId",
    ];
    for method in without_id {
        let wrong = json!({"sessionId": 5});
        calls(
            &mut wire,
            &mut lines,
            &[(method, json!({})), (method, wrong)],
        )
        .await;
    }
    lines
}

/// The answer of every method to an id that was never used, on its own and with other params, must
/// be the one of the project's own table.
pub(crate) async fn unknown_answers(subject: &Subject, _: SocketAddr) -> Lines {
    use taxiway::core::route::{NamedAt, unknown_answer};

    const ID: &str = "never-was-0001";
    let mut wire = Wire::to(subject.address()).await;
    let mut lines = Vec::new();
    let table = include_str!("../../../docs/methods.tsv");
    for row in table.lines().skip(1) {
        let columns: Vec<&str> = row.split('\t').collect();
        let [method, _, _, unknown, _] = columns[..] else {
            panic!("five columns: {row}");
        };
        let answer = |at, id| unknown_answer(method, at, id);
        let plain = json!({"sessionId": ID});
        // What stands beside the id, wrong on purpose, is not looked at first.
        let odd = json!({"prompt": [[1]], "requestId": {}, "mode": 5, "sessionId": ID});
        let calls = match method {
            // A path of the server's own, for any id.
            "sessions.getEventFilePath" => continue,
            // No id is unknown to it: what it says to one that it refuses.
            "session.create" => vec![(json!({"sessionId": "a.b"}), NamedAt::Session, "a.b")],
            "sessions.open" => vec![
                (
                    json!({"kind": "attach", "sessionId": ID}),
                    NamedAt::Session,
                    ID,
                ),
                (
                    json!({"kind": "resume", "sessionId": ID}),
                    NamedAt::Session,
                    ID,
                ),
                (
                    json!({"kind": "create", "options": {"sessionId": "a.b"}}),
                    NamedAt::Options,
                    "a.b",
                ),
            ],
            "sessions.startRemoteControl" => {
                let config = json!({
                    "remote": false, "steerable": false, "explicit": false, "silent": false,
                });
                let params = json!({"config": config, "sessionId": ID});
                vec![(params, NamedAt::Session, ID)]
            }
            "sessions.stopRemoteControl" => {
                vec![(json!({"expectedSessionId": ID}), NamedAt::Expected, ID)]
            }
            "sessions.transferRemoteControl" => {
                vec![(json!({"toSessionId": ID}), NamedAt::To, ID)]
            }
            "sessions.enrichMetadata" => {
                let params = json!({"sessions": [{"sessionId": ID}]});
                vec![(params, NamedAt::Session, ID)]
            }
            "sessions.bulkDelete" | "sessions.checkInUse" | "sessions.getClientMetadata" => {
                vec![(json!({"sessionIds": [ID]}), NamedAt::Session, ID)]
            }
            _ if unknown == "-" => continue,
            // It does not take params that it does not know, whatever the session.
            "sessions.readPersistedEvents" => vec![(plain, NamedAt::Session, ID)],
            _ => vec![(plain, NamedAt::Session, ID), (odd, NamedAt::Session, ID)],
        };
        for (params, at, id) in calls {
            let said = wire.call(method, params.clone()).await;
            let meant = answer(at, id).json();
            assert!(
                said.ends_with(&format!(":{meant}}}")),
                "{method} {params}: {said} instead of {meant}"
            );
            lines.push(format!("{method} {params} → {meant}"));
        }
    }
    assert!(lines.len() > 500, "every method, not only {}", lines.len());
    lines
}

/// Another session named beside one's own.
pub(crate) async fn second_sessions(subject: &Subject, model: SocketAddr) -> Lines {
    use taxiway::core::route::{NamedAt, unknown_answer};

    let mut wire = Wire::to(subject.address()).await;
    let mut lines = Vec::new();
    open(&mut wire, model, "mine", json!({})).await;
    let method = "session.mode.set";
    for base in ["mine", "never-was-0001", "a b"] {
        let params = json!({
            "sessionId": "mine", "mode": "plan", "inheritPlanBaseFromSessionId": base,
        });
        calls(&mut wire, &mut lines, &[(method, params)]).await;
    }
    let meant = unknown_answer(method, NamedAt::InheritPlan, "never-was-0001").json();
    assert!(lines[1].contains(&meant), "{lines:?}");
    // The id in the options counts, not the one beside them.
    let params = json!({
        "kind": "create", "sessionId": "mine", "options": {"sessionId": "theirs"},
    });
    calls(&mut wire, &mut lines, &[("sessions.open", params)]).await;
    assert!(lines[3].contains("theirs"), "{lines:?}");
    lines
}

pub(crate) async fn session_ids(subject: &Subject, model: SocketAddr) -> Lines {
    let mut wire = Wire::to(subject.address()).await;
    let mut lines = Vec::new();
    for id in ["a b", "../x", "a.b", "ä", "_", ""] {
        for method in ["session.create", "session.resume"] {
            let answer = wire.call(method, opened(model, id, json!({}))).await;
            lines.push(format!("{method} {id:?} → {}", masked(&answer)));
        }
    }
    let long = "x".repeat(300);
    for method in ["session.create", "session.resume"] {
        // Which file could not be opened depends on the machine.
        let answer = wire.call(method, opened(model, &long, json!({}))).await;
        let (what, _) = answer.split_once("failed: ").expect("too long");
        lines.push(what.to_owned());
    }
    for id in [json!(5), json!(true), Value::Null, json!({})] {
        let params = opened(model, "x", json!({"sessionId": id}));
        let answer = wire.call("session.create", params).await;
        lines.push(format!("session.create {id} → {}", masked(&answer)));
    }
    let both = opened(model, "both", json!({"gitHubToken": "x"}));
    for method in ["session.create", "session.resume"] {
        let answer = wire.call(method, both.clone()).await;
        lines.push(format!(
            "{method} with two credentials → {}",
            masked(&answer)
        ));
    }
    calls(
        &mut wire,
        &mut lines,
        &[("session.delete", json!({"sessionId": "a b"}))],
    )
    .await;
    lines
}

pub(crate) async fn opening(subject: &Subject, model: SocketAddr) -> Lines {
    let mut wire = Wire::to(subject.address()).await;
    let mut lines = Vec::new();
    let mark = wire.mark();
    let answer = wire
        .call("session.create", opened(model, "opening-1", json!({})))
        .await;
    lines.push(masked(&answer));
    wire.quiet().await;
    lines.extend(events(&wire.since(mark)));
    lines.extend(lifecycle(&wire.since(mark)));
    let created_first = wire.since(mark)[0].contains("session.created");
    lines.push(format!(
        "the first broadcast comes before the answer: {created_first}"
    ));
    for (method, more) in [
        ("session.create", json!({})),
        ("session.resume", json!({})),
        ("session.resume", json!({"disableResume": true})),
    ] {
        let mark = wire.mark();
        let answer = wire
            .call(method, opened(model, "opening-1", more.clone()))
            .await;
        lines.push(format!("{method} {more} again → {}", masked(&answer)));
        wire.quiet().await;
        lines.extend(events(&wire.since(mark)));
        lines.extend(lifecycle(&wire.since(mark)));
    }
    let id = json!({"sessionId": "opening-1"});
    let table = [
        ("session.getMetadata", id.clone()),
        ("session.list", json!({})),
        ("session.mode.get", id.clone()),
    ];
    calls(&mut wire, &mut lines, &table).await;
    turn(&mut wire, "opening-1", "hello [[len 3]]").await;
    let table = [
        ("session.getMetadata", id.clone()),
        ("sessions.getMetadata", id.clone()),
        ("session.list", json!({})),
        ("session.getLastId", json!({})),
    ];
    calls(&mut wire, &mut lines, &table).await;
    wire.call("session.detach", id.clone()).await;
    wire.quiet().await;
    for more in [json!({}), json!({"disableResume": true})] {
        let mark = wire.mark();
        let answer = wire
            .call("session.resume", opened(model, "opening-1", more))
            .await;
        lines.push(masked(&answer));
        wire.quiet().await;
        // The title comes again after a reopen; the simulated server does not repeat it.
        let mut told = events(&wire.since(mark));
        told.retain(|event| !event.contains("session.title_changed"));
        lines.extend(told);
        lines.extend(lifecycle(&wire.since(mark)));
        wire.call("session.detach", id.clone()).await;
        wire.quiet().await;
    }
    let id = json!({"sessionId": "opening-1"});
    let table = [
        ("session.delete", id.clone()),
        ("session.delete", id.clone()),
    ];
    let mark = wire.mark();
    calls(&mut wire, &mut lines, &table).await;
    wire.quiet().await;
    lines.extend(lifecycle(&wire.since(mark)));
    lines
}

pub(crate) async fn two_connections(subject: &Subject, model: SocketAddr) -> Lines {
    let mut one = Wire::to(subject.address()).await;
    let mut two = Wire::to(subject.address()).await;
    let mut lines = Vec::new();
    open(&mut one, model, "two-1", json!({})).await;
    lines.push("a watcher hears".to_owned());
    // Another connection than the one that was answered: it may hear of it later.
    two.until("the new session's lifecycle", |wire| {
        lifecycle(&wire.since(0)).len() >= 3
    })
    .await;
    two.quiet().await;
    lines.extend(lifecycle(&two.since(0)));
    lines.extend(events(&two.since(0)));
    let mark = two.mark();
    let answer = two
        .call("session.create", opened(model, "two-1", json!({})))
        .await;
    lines.push(masked(&answer));
    two.quiet().await;
    lines.extend(lifecycle(&two.since(mark)));
    let mark = two.mark();
    turn(&mut one, "two-1", "hello [[len 3]]").await;
    two.quiet().await;
    lines.push("the second connection hears the turn of the first".to_owned());
    lines.extend(events(&two.since(mark)));
    lines.push(format!("{} updates", lifecycle(&two.since(mark)).len()));
    let id = json!({"sessionId": "two-1"});
    let mark = one.mark();
    calls(&mut one, &mut lines, &[("session.detach", id.clone())]).await;
    calls(&mut two, &mut lines, &[("session.mode.get", id.clone())]).await;
    turn(&mut two, "two-1", "alone [[len 1]]").await;
    one.quiet().await;
    lines.push("the first connection, detached, hears".to_owned());
    lines.extend(events(&one.since(mark)));
    let table = [
        ("session.destroy", id.clone()),
        ("session.detach", id.clone()),
        (
            "session.send",
            json!({"sessionId": "two-1", "prompt": "from outside [[len 1]]"}),
        ),
    ];
    let mark = two.mark();
    calls(&mut one, &mut lines, &table).await;
    two.event(mark, "session.idle").await;
    calls(
        &mut two,
        &mut lines,
        &[("session.destroy", id.clone()), ("session.destroy", id)],
    )
    .await;
    lines
}

pub(crate) async fn closing(subject: &Subject, model: SocketAddr) -> Lines {
    let mut wire = Wire::to(subject.address()).await;
    let mut other = Wire::to(subject.address()).await;
    let mut lines = Vec::new();
    let id = json!({"sessionId": "closing-1"});
    open(&mut wire, model, "closing-1", json!({})).await;
    for (method, caller_is_attached) in [
        ("session.detach", true),
        ("sessions.close", false),
        ("session.delete", false),
    ] {
        let resumed = wire
            .call("session.resume", opened(model, "closing-1", json!({})))
            .await;
        lines.push(masked(&resumed));
        wire.quiet().await;
        let mark = wire.mark();
        let prompt = json!({"sessionId": "closing-1", "prompt": "[[len 400]] [[slow 20]]"});
        wire.call("session.send", prompt).await;
        wire.events(mark, "assistant.message_delta", 2).await;
        let caller = if caller_is_attached {
            &mut wire
        } else {
            &mut other
        };
        calls(caller, &mut lines, &[(method, id.clone())]).await;
        wire.quiet().await;
        let mut told = events(&wire.since(mark));
        told.retain(|event| !event.contains("delta"));
        lines.push(format!("{method} in a turn"));
        lines.extend(told.iter().rev().take(2).cloned());
        lines.push(format!("{} broadcasts", lifecycle(&wire.since(mark)).len()));
        let send = json!({"sessionId": "closing-1", "prompt": "x"});
        let table = [("session.send", send), ("session.getMessages", id.clone())];
        calls(&mut other, &mut lines, &table).await;
    }
    calls(
        &mut wire,
        &mut lines,
        &[("session.resume", opened(model, "closing-1", json!({})))],
    )
    .await;
    lines
}

pub(crate) async fn half_close(subject: &Subject, model: SocketAddr) -> Lines {
    let mut watcher = Wire::to(subject.address()).await;
    let mut wire = Wire::to(subject.address()).await;
    let mut lines = Vec::new();
    open(&mut wire, model, "half-1", json!({})).await;
    let mark = wire.mark();
    let prompt = json!({"sessionId": "half-1", "prompt": "[[len 400]] [[slow 20]]"});
    wire.call("session.send", prompt).await;
    wire.events(mark, "assistant.message_delta", 2).await;
    let heard = watcher.mark();
    wire.finish().await;
    wire.end().await;
    let told = events(&wire.since(mark));
    lines.push(format!(
        "shutdown announced: {}",
        told.contains(&"session.shutdown".to_owned())
    ));
    // The stream ends before the session is closed.
    let id = json!({"sessionId": "half-1"});
    loop {
        let answer = watcher.call("session.mode.get", id.clone()).await;
        if answer.contains("error") {
            lines.push(answer);
            break;
        }
    }
    watcher.quiet().await;
    lines.extend(lifecycle(&watcher.since(heard)));
    calls(&mut watcher, &mut lines, &[("session.delete", id)]).await;
    lines
}

pub(crate) async fn life_without_turn(subject: &Subject, model: SocketAddr) -> Lines {
    let mut wire = Wire::to(subject.address()).await;
    let mut lines = Vec::new();
    open(&mut wire, model, "bare-1", json!({})).await;
    let id = json!({"sessionId": "bare-1"});
    let mark = wire.mark();
    let table = [
        (
            "session.name.set",
            json!({"sessionId": "bare-1", "name": "N"}),
        ),
        (
            "session.mode.set",
            json!({"sessionId": "bare-1", "mode": "plan"}),
        ),
        ("session.mode.get", id.clone()),
        ("session.detach", id.clone()),
        ("session.resume", opened(model, "bare-1", json!({}))),
        ("session.getMetadata", id.clone()),
        ("session.delete", id.clone()),
    ];
    calls(&mut wire, &mut lines, &table).await;
    wire.quiet().await;
    lines.extend(lifecycle(&wire.since(mark)));
    lines.extend(events(&wire.since(mark)));
    lines
}

pub(crate) async fn create_over_closed(subject: &Subject, model: SocketAddr) -> Lines {
    let mut wire = Wire::to(subject.address()).await;
    let mut lines = Vec::new();
    open(&mut wire, model, "over-1", json!({})).await;
    turn(&mut wire, "over-1", "the first life [[len 1]]").await;
    let id = json!({"sessionId": "over-1"});
    wire.call("session.detach", id.clone()).await;
    wire.quiet().await;
    let mark = wire.mark();
    let answer = wire
        .call("session.create", opened(model, "over-1", json!({})))
        .await;
    lines.push(masked(&answer));
    wire.quiet().await;
    lines.extend(lifecycle(&wire.since(mark)));
    calls(
        &mut wire,
        &mut lines,
        &[("session.getMetadata", id.clone())],
    )
    .await;
    let messages = wire.call("session.getMessages", id.clone()).await;
    lines.push(format!(
        "old prompt in the history: {}",
        messages.contains("the first life")
    ));
    turn(&mut wire, "over-1", "the second life [[len 1]]").await;
    wire.call("session.detach", id.clone()).await;
    wire.call("session.resume", opened(model, "over-1", json!({})))
        .await;
    let messages = wire.call("session.getMessages", id.clone()).await;
    for life in ["the first life", "the second life"] {
        lines.push(format!(
            "{life} after a resume: {}",
            messages.contains(life)
        ));
    }
    calls(&mut wire, &mut lines, &[("session.delete", id)]).await;
    lines
}

pub(crate) async fn aggregates(subject: &Subject, model: SocketAddr) -> Lines {
    let mut wire = Wire::to(subject.address()).await;
    let mut watcher = Wire::to(subject.address()).await;
    let mut lines = Vec::new();
    let (a, b) = (
        "0123abcd-9b05-4dee-9192-8af7c5135372",
        "0123abce-9b05-4dee-9192-8af7c5135372",
    );
    for (id, prompt) in [(a, "one"), (b, "two"), ("list-3", "three")] {
        open(&mut wire, model, id, json!({})).await;
        turn(&mut wire, id, prompt).await;
    }
    open(&mut wire, model, "bare", json!({})).await;
    let ids = json!({"sessionIds": ["list-3", "nope", "bare", a]});
    let old = "2026-01-01T00:00:00.000Z";
    let set = |key: &str, value: Value| json!({"sessionId": "list-3", key: value});
    let table = [
        ("session.list", json!({})),
        ("session.list", json!({"limit": 1, "offset": 1})),
        ("session.list", json!({"filter": {"cwd": "/nowhere"}})),
        ("session.list", json!({"filter": {"repository": "x"}})),
        ("session.list", json!({"filter": {"foo": 1}})),
        ("session.list", json!({"filter": 5})),
        ("sessions.list", json!({"metadataLimit": 1})),
        ("session.getLastId", json!({})),
        (
            "sessions.getLastForContext",
            json!({"context": {"cwd": "/nowhere"}}),
        ),
        ("sessions.findByPrefix", json!({"prefix": "0123abcd"})),
        ("sessions.findByPrefix", json!({"prefix": "0123ABCD-9b"})),
        ("sessions.findByPrefix", json!({"prefix": "0123abc"})),
        ("sessions.findByPrefix", json!({"prefix": a})),
        ("sessions.findByPrefix", json!({"prefix": "list-3"})),
        ("sessions.findByTaskId", json!({"taskId": "x"})),
        ("sessions.checkInUse", ids.clone()),
        (
            "session.metadata.updateClientMetadata",
            set("set", json!({"owner": "a", "b": "c"})),
        ),
        (
            "session.metadata.updateClientMetadata",
            set("remove", json!(["b"])),
        ),
        (
            "session.metadata.updateClientMetadata",
            set("set", json!({"k": 5})),
        ),
        (
            "session.metadata.updateClientMetadata",
            set("unset", json!(["k"])),
        ),
        (
            "session.metadata.getClientMetadata",
            json!({"sessionId": "list-3"}),
        ),
        ("sessions.getClientMetadata", ids),
        ("sessions.getClientMetadata", json!({"sessionIds": []})),
        ("sessions.getClientMetadata", json!({"sessionIds": ["a b"]})),
        ("sessions.getClientMetadata", json!({"sessionIds": [5]})),
        ("sessions.checkInUse", json!({"sessionIds": [5]})),
        ("sessions.enrichMetadata", json!({"sessions": []})),
        ("sessions.getSizes", json!({})),
        (
            "sessions.pruneOld",
            json!({"olderThanDays": 1, "dryRun": true}),
        ),
        ("sessions.getEventFilePath", json!({"sessionId": "list-3"})),
        (
            "sessions.getBoardEntryCount",
            json!({"sessionId": "list-3"}),
        ),
        (
            "sessions.open",
            json!({"kind": "attach", "sessionId": "nope"}),
        ),
        (
            "sessions.open",
            json!({"kind": "attach", "sessionId": "list-3"}),
        ),
        ("sessions.open", json!({"kind": "attach"})),
        (
            "sessions.open",
            json!({"kind": "resume", "sessionId": "nope"}),
        ),
        ("sessions.open", json!({"kind": "bogus"})),
        (
            "sessions.open",
            json!({"kind": "create", "options": {"sessionId": "a b"}}),
        ),
        (
            "sessions.open",
            json!({"kind": "create", "options": {"sessionId": "opened-1"}}),
        ),
        ("session.mode.get", json!({"sessionId": "opened-1"})),
        ("sessions.fork", json!({"sessionId": "bare"})),
    ];
    calls(&mut wire, &mut lines, &table).await;
    // Its keys come in the order given, then the new ones: compared as values.
    let given = json!({"sessions": [
        {"sessionId": "list-3", "startTime": old, "modifiedTime": old, "isRemote": false},
        {"sessionId": "nope"},
    ]});
    let answer = wire.call("sessions.enrichMetadata", given).await;
    let answer: Value = serde_json::from_str(&format!("{{{answer}")).expect("JSON");
    lines.push(masked(&answer.to_string()));
    let mark = watcher.mark();
    let table = [
        ("sessions.bulkDelete", json!({"sessionIds": [a, "nope"]})),
        ("session.mode.get", json!({"sessionId": a})),
        ("sessions.bulkDelete", json!({"sessionIds": []})),
        ("sessions.delete", json!({"sessionId": b})),
    ];
    calls(&mut wire, &mut lines, &table).await;
    watcher.quiet().await;
    lines.extend(lifecycle(&watcher.since(mark)));
    let mark = watcher.mark();
    let caller = wire.mark();
    let answer = wire
        .call("sessions.fork", json!({"sessionId": "list-3"}))
        .await;
    lines.push(masked(&answer));
    watcher.quiet().await;
    lines.extend(lifecycle(&watcher.since(mark)));
    lines.extend(events(&wire.since(caller)));
    lines
}
