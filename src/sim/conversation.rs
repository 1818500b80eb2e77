//! The `session.*` methods of a session that is open here.
//!
//! Whatever is not modelled answers a plausible result without effect. It must not run a turn
//! itself: it queues, and [`super::turn`] works the queue off.

use std::{collections::VecDeque, sync::Arc};

use serde_json::Value;

use super::{
    aggregates,
    event::{self, Life},
    opening::is_valid,
    server::{ROOT, Shared, WORK},
    session::{Decision, QUEUE_MAX, Sent, Session, ToolResult, TurnState, Waiter},
    state::{Call, State},
    turn,
};

/// Answers one call that names a session by `params.sessionId`.
pub(super) fn answer(shared: &Arc<Shared>, state: &mut State, call: Call) {
    let Some(id) = call.text("sessionId").map(str::to_owned) else {
        let text = format!("Missing sessionId in {} request", call.method);
        return state.refuse(&call, &text);
    };
    let Some(session) = state.sessions.get_mut(&id) else {
        return state.refuse(&call, &format!("Session not found for sessionId: {id}"));
    };
    let name = call.method.strip_prefix("session.").unwrap_or_default();
    match name {
        "send" => send(shared, state, call, &id),
        "sendMessages" => send_messages(shared, state, &call, &id),
        "abort" => abort(shared, state, &call, &id),
        "interruptMainTurn" => {
            let interrupted = session.busy.is_some();
            stop_turn(shared, state, &id);
            state.ok(&call, &format!(r#"{{"interrupted":{interrupted}}}"#));
        }
        "suspend" => state.ok(&call, "null"),
        "tools.handlePendingToolCall" => tool_answer(shared, state, &call),
        "permissions.handlePendingPermissionRequest" => permission_answer(state, &call, &id),
        "ui.handlePendingUserInput" => input_answer(state, &call, &id),
        "mode.set" => set_mode(shared, state, &call, &id),
        "model.switchTo" => switch_model(shared, state, &call, &id),
        "name.set" => {
            let name = call.text("name").unwrap_or_default().to_owned();
            let data = format!(r#"{{"title":{}}}"#, event::quoted(&name));
            session.name = Some(name);
            shared.emit(state, &id, "session.title_changed", &data, Life::Ephemeral);
            stored(shared, state, &id);
            state.ok(&call, "null");
        }
        "metadata.updateClientMetadata" => update_metadata(shared, state, &call, &id),
        "permissions.setApproveAll" => {
            session.approve_all = call.flag("enabled");
            state.ok(&call, r#"{"success":true}"#);
        }
        "queue.clear" => {
            session.queue.clear();
            session.steering.clear();
            shared.emit(
                state,
                &id,
                "pending_messages.modified",
                "{}",
                Life::Ephemeral,
            );
            state.ok(&call, "null");
        }
        "eventLog.registerInterest" => {
            session.interests += 1;
            let handle = session.interests;
            state.ok(&call, &format!(r#"{{"handle":"interest-{handle}"}}"#));
        }
        "log" => {
            let text = event::quoted(call.text("message").unwrap_or_default());
            let data = format!(r#"{{"infoType":"notification","message":{text}}}"#);
            shared.emit(state, &id, "session.info", &data, Life::Kept);
            let session = state.sessions.get(&id);
            let event = session
                .and_then(|session| session.last_event.clone())
                .unwrap_or_default();
            state.ok(&call, &format!(r#"{{"eventId":"{event}"}}"#));
        }
        "shell.exec" => {
            let process = shared.numbers.uuid();
            state.ok(&call, &format!(r#"{{"processId":"{process}"}}"#));
        }
        "eventLog.read" => {
            let page = read_log(session, &call);
            state.ok(&call, &page);
        }
        "history.compact" => state.refuse(&call, "Nothing to compact."),
        _ => {
            let result = view(session, name);
            state.ok(&call, &result);
        }
    }
}

/// Results that only look at the session.
fn view(session: &Session, name: &str) -> String {
    let id = &session.id;
    let busy = session.busy.is_some();
    match name {
        "mode.get" => event::quoted(&session.mode),
        "model.getCurrent" => {
            let model = event::quoted(session.model.as_deref().unwrap_or_default());
            format!(r#"{{"modelId":{model}}}"#)
        }
        "model.list" => r#"{"list":[],"modelPriceCategories":[],"quotaSnapshots":{}}"#.to_owned(),
        "name.get" => {
            let name = session
                .name
                .as_deref()
                .map_or("null".to_owned(), event::quoted);
            format!(r#"{{"name":{name}}}"#)
        }
        "metadata.getClientMetadata" => aggregates::metadata_json(&session.metadata),
        "metadata.isProcessing" => format!(r#"{{"processing":{busy}}}"#),
        "metadata.activity" => format!(r#"{{"abortable":{busy},"hasActiveWork":{busy}}}"#),
        "metadata.snapshot" => format!(
            r#"{{"sessionId":"{id}","startTime":"{}","modifiedTime":"{}","isRemote":false,"alreadyInUse":false,"workspacePath":"{ROOT}/session-state/{id}","workingDirectory":"{WORK}","currentMode":"{}","sessionLimits":null}}"#,
            session.start_time, session.modified, session.mode
        ),
        "queue.pendingItems" => pending_items(session),
        "queue.hasPending" => {
            let pending = !session.queue.is_empty() || !session.steering.is_empty();
            format!(r#"{{"hasPending":{pending}}}"#)
        }
        "permissions.pendingRequests" => {
            let items: Vec<_> = session
                .permissions
                .iter()
                .map(|wait| wait.request.as_str())
                .collect();
            format!(r#"{{"items":[{}]}}"#, items.join(","))
        }
        "permissions.getMode" => r#"{"mode":"manual"}"#.to_owned(),
        "gitHubAuth.getStatus" => {
            r#"{"isAuthenticated":false,"statusMessage":"Not authenticated"}"#.to_owned()
        }
        "options.update" => r#"{"success":true,"pluginHookCount":0}"#.to_owned(),
        "tasks.list" => r#"{"tasks":[]}"#.to_owned(),
        "agent.list" => r#"{"agents":[]}"#.to_owned(),
        "workspaces.listFiles" => r#"{"files":[]}"#.to_owned(),
        "commands.list" => r#"{"commands":[]}"#.to_owned(),
        "skills.list" => r#"{"skills":[]}"#.to_owned(),
        "plan.read" => format!(
            r#"{{"exists":false,"content":null,"path":"{ROOT}/session-state/{id}/plan.md"}}"#
        ),
        "eventLog.tail" => {
            let last = session.last_event.as_deref().unwrap_or_default();
            format!(r#"{{"cursor":"{last}|{}"}}"#, session.history.len())
        }
        _ => "{}".to_owned(),
    }
}

/// `session.eventLog.read` backwards: the newest kept events of some types, and the event at which
/// the search has ended. Forwards nobody here reads, so that is not modelled.
fn read_log(session: &Session, call: &Call) -> String {
    let types = call.params.get("types").and_then(Value::as_array);
    let max = call.params.get("max").and_then(Value::as_u64);
    let max = max.and_then(|max| usize::try_from(max).ok()).unwrap_or(200);
    let mut page = VecDeque::new();
    let mut left = session.history.len();
    let mut last = String::new();
    for text in session.history.iter().rev() {
        if page.len() >= max {
            break;
        }
        left -= 1;
        let event: Value = serde_json::from_str(text).unwrap_or_default();
        event["id"]
            .as_str()
            .unwrap_or_default()
            .clone_into(&mut last);
        if types.is_none_or(|types| types.contains(&event["type"])) {
            page.push_front(text.as_str());
        }
    }
    let page: Vec<&str> = page.into();
    format!(
        r#"{{"events":[{}],"cursor":"b:{last}","hasMore":{},"cursorStatus":"ok"}}"#,
        page.join(","),
        left > 0
    )
}

fn pending_items(session: &Session) -> String {
    let item = |(at, sent): (usize, &Sent)| {
        format!(
            r#"{{"id":"{}","messageId":"{}","kind":"message","displayText":{},"agentMode":"interactive"}}"#,
            at + 1,
            sent.message,
            event::quoted(&sent.prompt)
        )
    };
    let items: Vec<_> = session.queue.iter().enumerate().map(item).collect();
    let steering: Vec<_> = session
        .steering
        .iter()
        .map(|sent| event::quoted(&sent.prompt))
        .collect();
    format!(
        r#"{{"items":[{}],"steeringMessages":[{}],"inFlightSteeringCount":0}}"#,
        items.join(","),
        steering.join(",")
    )
}

/// `session.getMessages`: the kept events that this opening knows.
pub(super) fn messages(state: &mut State, call: &Call) {
    let Some(id) = call.text("sessionId") else {
        return state.refuse(call, "Missing sessionId parameter");
    };
    let Some(session) = state.sessions.get(id) else {
        return state.refuse(call, &format!("Session not found: {id}"));
    };
    let events: Vec<_> = session.history.iter().map(String::as_str).collect();
    let result = format!(r#"{{"events":[{}]}}"#, events.join(","));
    state.ok(call, &result);
}

/// Accepts a prompt; returns its message id, or `None` if the queue is full.
fn accept(
    shared: &Arc<Shared>,
    state: &mut State,
    id: &str,
    prompt: &str,
    immediate: bool,
) -> Option<String> {
    let session = state.sessions.get_mut(id)?;
    if session.queue.len() + session.steering.len() >= QUEUE_MAX {
        return None;
    }
    let message = shared.numbers.uuid();
    let prompt = prompt.to_owned();
    let running = session
        .busy
        .as_ref()
        .is_some_and(|busy| busy.state == TurnState::Running);
    let sent = |delivery| Sent {
        message: message.clone(),
        prompt,
        delivery,
    };
    if running && immediate {
        session.steering.push_back(sent("steering"));
    } else {
        let delivery = if session.busy.is_some() || !session.queue.is_empty() {
            "queued"
        } else {
            "idle"
        };
        session.queue.push_back(sent(delivery));
    }
    shared.emit(
        state,
        id,
        "pending_messages.modified",
        "{}",
        Life::Ephemeral,
    );
    Some(message)
}

const FULL: &str = "The queue of the simulated session is full";

fn send(shared: &Arc<Shared>, state: &mut State, call: Call, id: &str) {
    let prompt = call.text("prompt").unwrap_or_default();
    let immediate = call.text("mode") == Some("immediate");
    let Some(message) = accept(shared, state, id, prompt, immediate) else {
        return state.refuse(&call, FULL);
    };
    if call.flag("wait") {
        if let Some(session) = state.sessions.get_mut(id) {
            session.waiters.push(Waiter { call, message });
        }
    } else {
        state.ok(&call, &format!(r#"{{"messageId":"{message}"}}"#));
    }
    turn::start(shared, state, id);
}

fn send_messages(shared: &Arc<Shared>, state: &mut State, call: &Call, id: &str) {
    let messages = call.params.get("messages").and_then(Value::as_array);
    let mut accepted = Vec::new();
    for message in messages.into_iter().flatten() {
        let prompt = message
            .get("prompt")
            .and_then(Value::as_str)
            .unwrap_or_default();
        match accept(shared, state, id, prompt, false) {
            Some(message) => accepted.push(format!("\"{message}\"")),
            None => return state.refuse(call, FULL),
        }
    }
    state.ok(
        call,
        &format!(r#"{{"messageIds":[{}]}}"#, accepted.join(",")),
    );
    turn::start(shared, state, id);
}

fn abort(shared: &Arc<Shared>, state: &mut State, call: &Call, id: &str) {
    stop_turn(shared, state, id);
    state.ok(call, r#"{"success":true}"#);
}

/// Ends the running turn and drops the queue.
fn stop_turn(shared: &Arc<Shared>, state: &mut State, id: &str) {
    let Some(session) = state.sessions.get_mut(id) else {
        return;
    };
    let Some(busy) = session
        .busy
        .as_mut()
        .filter(|busy| busy.state == TurnState::Running)
    else {
        return;
    };
    busy.state = TurnState::Aborted;
    busy.cancel.cancel();
    session.queue.clear();
    session.steering.clear();
    session.permissions.clear();
    session.inputs.clear();
    state.tool_calls.retain(|_, wait| wait.session != id);
    shared.emit(
        state,
        id,
        "abort",
        r#"{"reason":"user_initiated"}"#,
        Life::Kept,
    );
    shared.emit(
        state,
        id,
        "pending_messages.modified",
        "{}",
        Life::Ephemeral,
    );
}

/// The request id that all three kinds of answer need.
fn request_id(state: &mut State, call: &Call) -> Option<String> {
    let id = call.text("requestId").map(str::to_owned);
    if id.is_none() {
        state.refuse(call, "Expected string parameter 'requestId'");
    }
    id
}

fn settled(state: &mut State, call: &Call, success: bool) {
    state.ok(call, &format!(r#"{{"success":{success}}}"#));
}

/// First answer wins. The session named by the answer does not matter.
fn tool_answer(shared: &Arc<Shared>, state: &mut State, call: &Call) {
    let Some(request) = request_id(state, call) else {
        return;
    };
    let Some(wait) = state.tool_calls.remove(&request) else {
        return settled(state, call, false);
    };
    let data = format!(r#"{{"requestId":"{request}"}}"#);
    shared.emit(
        state,
        &wait.session,
        "external_tool.completed",
        &data,
        Life::Kept,
    );
    settled(state, call, true);
    drop(wait.done.send(tool_result(call)));
}

fn tool_result(call: &Call) -> ToolResult {
    if call.params.contains_key("error") {
        return Err("Tool execution failed".to_owned());
    }
    let result = call.params.get("result");
    let text = result.and_then(Value::as_str).map(str::to_owned);
    let inside = result.and_then(|result| result.get("textResultForLlm")?.as_str());
    let text = text.or_else(|| inside.map(str::to_owned));
    let kind = result.and_then(|result| result.get("resultType")?.as_str());
    let text = text.unwrap_or_else(|| result.map(Value::to_string).unwrap_or_default());
    match kind {
        Some("failure" | "error" | "rejected" | "denied") => Err(text),
        Some(_) | None => Ok(text),
    }
}

fn permission_answer(state: &mut State, call: &Call, id: &str) {
    let Some(request) = request_id(state, call) else {
        return;
    };
    let Some(session) = state.sessions.get_mut(id) else {
        return;
    };
    let Some(at) = session
        .permissions
        .iter()
        .position(|wait| wait.id == request)
    else {
        return settled(state, call, false);
    };
    let wait = session.permissions.remove(at);
    let kind = call
        .params
        .get("result")
        .and_then(|result| result.get("kind")?.as_str());
    // Whatever is not an approval counts as a denial, words unknown to the server included.
    let approved = kind.is_some_and(|kind| kind.starts_with("approve"));
    let decision = if approved {
        Decision::Approved
    } else {
        Decision::Rejected
    };
    let _ = wait.decided.send(decision);
    settled(state, call, true);
}

fn input_answer(state: &mut State, call: &Call, id: &str) {
    let Some(request) = request_id(state, call) else {
        return;
    };
    let answer = call
        .params
        .get("response")
        .and_then(|response| response.get("answer")?.as_str());
    let answer = answer.unwrap_or_default().to_owned();
    let session = state.sessions.get_mut(id);
    let wait = session.and_then(|session| session.inputs.remove(&request));
    let success = wait.is_some_and(|done| done.send(answer).is_ok());
    settled(state, call, success);
}

fn set_mode(shared: &Arc<Shared>, state: &mut State, call: &Call, id: &str) {
    let mode = call.text("mode").unwrap_or_default();
    if !matches!(mode, "interactive" | "plan" | "autopilot") {
        let text =
            format!("unknown variant `{mode}`, expected one of `interactive`, `plan`, `autopilot`");
        return state.refuse(call, &text);
    }
    if let Some(base) = call.text("inheritPlanBaseFromSessionId") {
        if !is_valid(base) {
            let text = format!("Invalid sessionId: {}", event::quoted(base));
            return state.refuse(call, &text);
        }
        if !state.sessions.contains_key(base) {
            return state.refuse(call, &format!("session not found: {base}"));
        }
    }
    let Some(session) = state.sessions.get_mut(id) else {
        return;
    };
    let before = std::mem::replace(&mut session.mode, mode.to_owned());
    if before != mode {
        let data = format!(r#"{{"previousMode":"{before}","newMode":"{mode}"}}"#);
        shared.emit(state, id, "session.mode_changed", &data, Life::Kept);
    }
    state.ok(
        call,
        r#"{"status":"unchanged","modelChanged":false,"modeApplied":true}"#,
    );
}

fn switch_model(shared: &Arc<Shared>, state: &mut State, call: &Call, id: &str) {
    let Some(model) = call.text("modelId") else {
        return state.refuse(call, "missing or non-string parameter 'modelId'");
    };
    let Some(session) = state.sessions.get_mut(id) else {
        return;
    };
    let before = session.model.replace(model.to_owned()).unwrap_or_default();
    let text = event::quoted(&format!("Model changed from {before} to {model}"));
    let (before, model) = (event::quoted(&before), event::quoted(model));
    let data = format!(
        r#"{{"source":"sdk","contextTier":null,"newModel":{model},"previousModel":{before},"reasoningEffort":null}}"#
    );
    shared.emit(state, id, "session.model_change", &data, Life::Kept);
    let result = format!(
        r#"{{"status":"applied","deferred":false,"modelId":{model},"message":{text},"deprecationWarnings":[],"modelState":{{"modelId":{model}}}}}"#
    );
    state.ok(call, &result);
}

fn update_metadata(shared: &Arc<Shared>, state: &mut State, call: &Call, id: &str) {
    let known = |key: &&String| !matches!(key.as_str(), "sessionId" | "set" | "remove");
    if let Some(key) = call.params.keys().find(known) {
        let text = format!("unknown client metadata update parameter '{key}'");
        return state.fail(call, -32602, &text);
    }
    let set = call.params.get("set").and_then(Value::as_object);
    let set = set.into_iter().flatten();
    let pairs: Option<Vec<_>> = set
        .map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect();
    let Some(pairs) = pairs else {
        let text = "client metadata update parameter 'set' values must be strings";
        return state.fail(call, -32602, text);
    };
    let removed = call.params.get("remove").and_then(Value::as_array);
    let removed: Vec<_> = removed
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let Some(session) = state.sessions.get_mut(id) else {
        return;
    };
    session.metadata.extend(pairs);
    session
        .metadata
        .retain(|key, _| !removed.contains(&key.as_str()));
    let result = aggregates::metadata_json(&session.metadata);
    stored(shared, state, id);
    state.ok(call, &result);
}

/// Writes a name or client metadata to disk at once, as the real server does.
fn stored(shared: &Shared, state: &State, id: &str) {
    let Some(session) = state.sessions.get(id) else {
        return;
    };
    shared.options.home.with(id, |record| {
        record.name.clone_from(&session.name);
        record.metadata.clone_from(&session.metadata);
    });
}
