//! How sessions are created, resumed, left, deleted, forked.
//!
//! It must not run a turn.

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::oneshot;

use super::{
    event::{self, Life},
    lifetime::{self, Closing},
    server::{Shared, WORK},
    session::Session,
    state::{Asked, Call, State},
    turn,
};

/// Whether the real server takes this as a session id.
pub(super) fn is_valid(id: &str) -> bool {
    !id.is_empty()
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

/// `session.create`: attaches to an open session, or starts an empty one.
pub(super) fn create(shared: &Arc<Shared>, state: &mut State, call: Call) {
    let id = match call.params.get("sessionId") {
        None | Some(Value::Null) => shared.numbers.uuid(),
        Some(Value::String(id)) if id.is_empty() => shared.numbers.uuid(),
        Some(Value::String(id)) => id.clone(),
        Some(Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
            return state.refuse(&call, "session.create sessionId must be a string");
        }
    };
    if !acceptable(state, &call, &id) {
        return;
    }
    let Some(provider) = &state.fs_provider else {
        return create_now(shared, state, &call, &id);
    };
    // The provider's disk is read first. If its connection is gone nobody ever answers.
    let path = event::quoted(&format!("{}/settings.json", provider.path));
    let params = format!(r#"{{"path":{path},"sessionId":"{id}"}}"#);
    let (done, answered) = oneshot::channel();
    let connection = provider.connection;
    if state.ask(
        connection,
        "sessionFs.readFile",
        &params,
        Asked::Provider(done),
    ) {
        let shared = shared.clone();
        let tasks = shared.tasks.clone();
        tasks.spawn(async move {
            let answer = shared.stopped.run_until_cancelled(answered).await;
            if let Some(Ok(_)) = answer {
                create_now(&shared, &mut shared.lock(), &call, &id);
            }
        });
    }
}

/// Refuses what both ways of opening refuse.
fn acceptable(state: &mut State, call: &Call, id: &str) -> bool {
    let method = &call.method;
    if !is_valid(id) {
        let text = format!("Rejected {method} request with invalid sessionId: {id}");
        state.refuse(call, &text);
        return false;
    }
    if call.text("gitHubToken").is_some() && call.params.contains_key("provider") {
        let text = format!("Cannot specify both gitHubToken and provider in {method}.");
        state.refuse(call, &text);
        return false;
    }
    // File names are limited to 255 bytes; the real server's own limit was met between 200 and
    // 255.
    if id.len() > 240 {
        let what = match method.as_str() {
            "session.create" => "session construction failed: ENAMETOOLONG",
            _ => "session resume failed",
        };
        state.refuse(call, &format!("{what}: File name too long (os error 36)"));
        return false;
    }
    true
}

fn clash(state: &mut State, call: &Call, name: &str) {
    let text = format!("External tool name clash: {name} already registered by another connection");
    state.refuse(call, &text);
}

fn create_now(shared: &Arc<Shared>, state: &mut State, call: &Call, id: &str) {
    if let Some(session) = state.sessions.get_mut(id) {
        if let Err(name) = session.attach(call.connection, &call.params) {
            return clash(state, call, &name);
        }
        let result = session.opened_json();
        state.ok(call, &result);
        state.lifecycle("session.created", id);
        return;
    }
    let time = event::now();
    if !shared.options.home.make(id, &time) {
        return state.refuse(
            call,
            "session construction failed: ENOSPC: No space left on device",
        );
    }
    let known = shared.options.home.with(id, |record| {
        record.holders.insert(shared.process);
        record.has_turn
    });
    state.last_epoch += 1;
    let mut session = Session::new(id, state.last_epoch, time.clone());
    // A closed session of this name keeps its log, and the new one appends to it.
    session.has_turn = known == Some(true);
    if let Err(name) = session.attach(call.connection, &call.params) {
        return clash(state, call, &name);
    }
    let result = session.opened_json();
    let model = event::quoted(session.model.as_deref().unwrap_or_default());
    state.sessions.insert(id.to_owned(), session);
    state.lifecycle("session.created", id);
    state.ok(call, &result);
    let version = event::quoted(&shared.options.version);
    let data = format!(
        r#"{{"sessionId":"{id}","version":1,"producer":"copilot-agent","copilotVersion":{version},"startTime":"{time}","selectedModel":{model},"contextTier":null,"context":{{"cwd":"{WORK}"}},"remoteSteerable":false,"alreadyInUse":false}}"#
    );
    shared.emit(state, id, "session.start", &data, Life::Kept);
    state.lifecycle("session.created", id);
}

/// `session.resume`: attaches to an open session, or reads one from disk.
pub(super) fn resume(shared: &Arc<Shared>, state: &mut State, call: Call) {
    let Some(id) = call.text("sessionId").map(str::to_owned) else {
        return state.refuse(&call, "Missing sessionId parameter");
    };
    if !acceptable(state, &call, &id) {
        return;
    }
    let was_open = state.sessions.contains_key(&id);
    let mut in_use = false;
    if !was_open {
        let Some(record) = shared.options.home.load(&id) else {
            let text = format!("Failed to load session events: Session not found: {id}");
            return state.refuse(&call, &text);
        };
        in_use = record
            .holders
            .iter()
            .any(|holder| *holder != shared.process);
        shared
            .options
            .home
            .with(&id, |record| record.holders.insert(shared.process));
        state.last_epoch += 1;
        let session = Session::restored(&id, state.last_epoch, &record);
        state.sessions.insert(id.clone(), session);
    }
    let Some(session) = state.sessions.get_mut(&id) else {
        return;
    };
    if let Err(name) = session.attach(call.connection, &call.params) {
        return clash(state, &call, &name);
    }
    let result = session.opened_json();
    let events = session.history.len();
    let bytes: usize = session.history.iter().map(|event| event.len() + 1).sum();
    let model = event::quoted(session.model.as_deref().unwrap_or_default());
    let active = session.busy.is_some();
    let pending = call
        .flag("continuePendingWork")
        .then(|| pending_tool(session))
        .flatten();
    state.ok(&call, &result);
    if !call.flag("disableResume") {
        let time = event::now();
        let data = format!(
            r#"{{"resumeTime":"{time}","selectedModel":{model},"contextTier":null,"sessionLimits":null,"context":{{"cwd":"{WORK}"}},"remoteSteerable":false,"eventsFileSizeBytes":{bytes},"eventCount":{events},"alreadyInUse":{in_use},"sessionWasActive":{active}}}"#
        );
        shared.emit(state, &id, "session.resume", &data, Life::Kept);
    }
    if !was_open && let Some(pending) = pending {
        turn::take_up(shared, state, &id, pending);
    }
}

/// A tool call of the log that nobody has answered: its `external_tool.requested` data.
fn pending_tool(session: &Session) -> Option<Value> {
    let mut pending = None;
    for event in &session.history {
        let Ok(mut event) = serde_json::from_str::<Value>(event) else {
            continue;
        };
        match event.get("type").and_then(Value::as_str) {
            Some("external_tool.requested") => {
                pending = event.get_mut("data").map(Value::take);
            }
            Some("external_tool.completed" | "assistant.turn_end" | "abort") => pending = None,
            Some(_) | None => {}
        }
    }
    pending
}

/// `session.detach` and `session.destroy`: the last connection to leave closes the session.
pub(super) fn detach(shared: &Arc<Shared>, state: &mut State, call: Call) {
    let Some(id) = call.text("sessionId").map(str::to_owned) else {
        return state.refuse(&call, "Missing sessionId parameter");
    };
    let Some(session) = state.sessions.get_mut(&id) else {
        return detached(state, &call, false);
    };
    if !session.is_last(call.connection) {
        let was = session.detach(call.connection);
        return detached(state, &call, was);
    }
    if session.attached.iter().any(|attachment| attachment.hooks) {
        // The last hook is awaited before the session may close.
        turn::session_end(shared, state, call, &id);
        return;
    }
    close_last(shared, state, &call, &id);
}

/// Closes a session that its last connection leaves, and says so.
pub(super) fn close_last(shared: &Arc<Shared>, state: &mut State, call: &Call, id: &str) {
    lifetime::close(shared, state, id, Closing::Announced);
    detached(state, call, true);
}

fn detached(state: &mut State, call: &Call, was_attached: bool) {
    let success = was_attached || call.method == "session.detach";
    state.ok(call, &format!(r#"{{"success":{success}}}"#));
}

/// `session.delete`.
pub(super) fn delete(shared: &Arc<Shared>, state: &mut State, call: &Call) {
    let Some(id) = call.text("sessionId") else {
        return state.refuse(call, "Missing sessionId parameter");
    };
    if !is_valid(id) {
        return state.ok(call, r#"{"success":false,"error":"Invalid sessionId"}"#);
    }
    if remove(shared, state, id).is_none() {
        let text = event::quoted(&format!("Session file not found for {id}"));
        return state.ok(call, &format!(r#"{{"success":false,"error":{text}}}"#));
    }
    state.lifecycle("session.deleted", id);
    state.lifecycle("session.deleted", id);
    state.ok(call, r#"{"success":true}"#);
}

/// Closes a session and removes its directory; says how large its log was.
pub(super) fn remove(shared: &Arc<Shared>, state: &mut State, id: &str) -> Option<usize> {
    lifetime::close(shared, state, id, Closing::Deleted);
    state.opened.remove(id);
    shared.options.home.remove(id)
}
