//! Which answer a method gets: the table of methods, and those that concern no session.
//!
//! Texts and shapes were taken from CLI 1.0.102. This file must not wait: what cannot be answered
//! at once is handed to a task.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    aggregates, conversation, event, lifetime, opening,
    server::Shared,
    state::{Call, Provider, State},
};
use crate::core::route::catalog;

/// Answers one request.
pub(super) fn answer(shared: &Arc<Shared>, call: Call) {
    let mut state = shared.lock();
    let state = &mut *state;
    let Some(peer) = state.peers.get(&call.connection) else {
        return;
    };
    if call.method == "connect" {
        let params = Value::Object(call.params.clone());
        connect(shared, state, &call, params);
        return;
    }
    if !peer.authenticated {
        state.fail(&call, -32001, "AUTHENTICATION_REQUIRED");
        return;
    }
    match call.method.as_str() {
        "ping" => {
            let message = call
                .text("message")
                .map(|message| format!("pong: {message}"));
            let message = event::quoted(message.as_deref().unwrap_or("pong"));
            let time = event::now_nanos();
            let result =
                format!(r#"{{"message":{message},"timestamp":"{time}","protocolVersion":3}}"#);
            state.ok(&call, &result);
        }
        "status.get" => {
            let version = event::quoted(&shared.options.version);
            state.ok(
                &call,
                &format!(r#"{{"version":{version},"protocolVersion":3}}"#),
            );
        }
        "runtime.shutdown" => {
            state.ok(&call, "null");
            let shared = shared.clone();
            let tasks = shared.tasks.clone();
            tasks.spawn(async move { lifetime::terminate(&shared) });
        }
        "sessionFs.setProvider" => set_fs_provider(state, &call),
        "llmInference.setProvider" => set_llm_provider(state, &call),
        "llmInference.httpResponseStart" | "llmInference.httpResponseChunk" => {
            model_response(state, &call);
        }
        "session.create" => opening::create(shared, state, call),
        "session.resume" => opening::resume(shared, state, call),
        "session.detach" | "session.destroy" => opening::detach(shared, state, call),
        "session.delete" => opening::delete(shared, state, &call),
        method if method.starts_with("session.") => session_method(shared, state, call),
        method if method.starts_with("sessions.") => aggregates::answer(shared, state, &call),
        _ => fixed(state, &call),
    }
}

fn session_method(shared: &Arc<Shared>, state: &mut State, call: Call) {
    match call.method.as_str() {
        "session.list" | "session.getLastId" | "session.getMetadata" => {
            aggregates::answer(shared, state, &call);
        }
        "session.getForeground" => state.ok(&call, "{}"),
        "session.setForeground" => state.ok(
            &call,
            r#"{"success":false,"error":"Not running in TUI+server mode - no foreground session change handler registered"}"#,
        ),
        "session.getMessages" => conversation::messages(state, &call),
        method if catalog::is_session_method(method) => conversation::answer(shared, state, call),
        _ => unhandled(state, &call),
    }
}

/// Answers that never change on a server without a GitHub account.
fn fixed(state: &mut State, call: &Call) {
    let result = match call.method.as_str() {
        "auth.getStatus" => r#"{"isAuthenticated":false,"statusMessage":"Not authenticated"}"#,
        "models.list" | "account.getQuota" => {
            state.refuse(call, "Not authenticated. Please authenticate first.");
            return;
        }
        "models.getBuiltInCatalog" => r#"{"models":[{"id":"simulated-model"}]}"#,
        "tools.list" => r#"{"tools":[]}"#,
        "commands.list" => r#"{"commands":[]}"#,
        "account.getCurrentAuth" | "managedSettings.read" => "{}",
        "account.getAllUsers" => "[]",
        "mcp.config.list" => r#"{"servers":{}}"#,
        "mcp.config.reload" | "managedSettings.clearCache" => "null",
        "mcp.discover" => r#"{"servers":[]}"#,
        "extensions.discover" => r#"{"extensions":[],"mode":"load_and_augment"}"#,
        "hooks.discover" => r#"{"hooks":[],"warnings":[],"errors":[]}"#,
        "plugins.list" => r#"{"plugins":[]}"#,
        "plugins.updateAll" | "plugins.marketplaces.refresh" => r#"{"results":[]}"#,
        "plugins.marketplaces.list" => r#"{"marketplaces":[]}"#,
        "skills.discover" => r#"{"skills":[],"errors":[]}"#,
        "agents.discover" => r#"{"agents":[]}"#,
        "instructions.discover" => r#"{"sources":[]}"#,
        "skills.getDiscoveryPaths"
        | "agents.getDiscoveryPaths"
        | "instructions.getDiscoveryPaths" => r#"{"paths":[]}"#,
        "user.settings.get" => r#"{"settings":{}}"#,
        "plugins.builtin.set" if !state.sessions.is_empty() => {
            state.refuse(
                call,
                "Cannot set built-in plugins while sessions are active. Call plugins.builtin.set before creating any sessions.",
            );
            return;
        }
        "plugins.builtin.set"
        | "account.login"
        | "account.logout"
        | "secrets.addFilterValues"
        | "mcp.config.add"
        | "mcp.config.update"
        | "mcp.config.remove"
        | "mcp.config.enable"
        | "mcp.config.disable"
        | "mcp.planInstall"
        | "extensions.enable"
        | "extensions.disable"
        | "registerExtensionLaunchProvider"
        | "catalog.search"
        | "plugins.install"
        | "plugins.uninstall"
        | "plugins.update"
        | "plugins.enable"
        | "plugins.disable"
        | "plugins.marketplaces.add"
        | "plugins.marketplaces.remove"
        | "plugins.marketplaces.browse"
        | "skills.config.setDisabledSkills"
        | "skills.config.setSkillDisabled"
        | "user.settings.set" => "{}",
        "agentRegistry.spawn" => {
            state.fail(
                call,
                -32601,
                "agentRegistry.spawn is not enabled on this server",
            );
            return;
        }
        _ => {
            unhandled(state, call);
            return;
        }
    };
    state.ok(call, result);
}

pub(super) fn unhandled(state: &mut State, call: &Call) {
    let text = format!("Unhandled method {}", call.method);
    state.fail(call, -32601, &text);
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ConnectRequest {
    #[serde(default, rename = "enableGitHubTelemetryForwarding")]
    _telemetry: Option<bool>,
    #[serde(default, rename = "clientInfo")]
    _client: Option<ConnectClientInfo>,
    #[serde(default)]
    supported_task_kinds: Option<Vec<TaskKind>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ConnectClientInfo {
    #[serde(default, rename = "editorName")]
    _editor_name: Option<String>,
    #[serde(default, rename = "editorVersion")]
    _editor_version: Option<String>,
    #[serde(default, rename = "extensionName")]
    _extension_name: Option<String>,
    #[serde(default, rename = "extensionVersion")]
    _extension_version: Option<String>,
}

#[derive(Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
enum TaskKind {
    Agent,
    Shell,
    Client,
}

/// The handshake. `params` may be anything; the token is looked at before the other fields.
pub(super) fn connect(shared: &Shared, state: &mut State, call: &Call, mut params: Value) {
    let token = params
        .as_object_mut()
        .and_then(|params| params.remove("token"));
    let token = token
        .as_ref()
        .and_then(Value::as_str)
        .filter(|token| !token.is_empty());
    match (&shared.options.token, token) {
        (None, Some(_)) => return state.fail(call, -32003, "AUTHENTICATION_NOT_CONFIGURED"),
        (Some(wanted), found) if found != Some(wanted) => {
            return state.fail(call, -32002, "AUTHENTICATION_FAILED");
        }
        (Some(_), _) => {
            if let Some(peer) = state.peers.get_mut(&call.connection) {
                peer.authenticated = true;
            }
        }
        (None, None) => {}
    }
    if params.is_null() {
        params = Value::Object(Map::new());
    }
    match serde_json::from_value::<ConnectRequest>(params) {
        Ok(request) => {
            let kinds = request.supported_task_kinds.unwrap_or_default();
            let client = if kinds.contains(&TaskKind::Client) {
                r#","client""#
            } else {
                ""
            };
            let version = event::quoted(&shared.options.version);
            let result = format!(
                r#"{{"ok":true,"protocolVersion":3,"version":{version},"taskKinds":["agent","shell"{client}]}}"#
            );
            state.ok(call, &result);
        }
        Err(error) => {
            let text = format!("Invalid connect request: {error}");
            state.fail(call, -32602, &text);
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SetFsProvider {
    #[serde(rename = "initialCwd")]
    _initial_cwd: String,
    session_state_path: String,
    #[serde(rename = "conventions")]
    _conventions: String,
}

fn set_fs_provider(state: &mut State, call: &Call) {
    let asked = serde_json::from_value(Value::Object(call.params.clone()));
    let asked: SetFsProvider = match asked {
        Ok(asked) => asked,
        Err(error) => {
            let text = format!("Invalid sessionFs.setProvider params: {error}");
            return state.refuse(call, &text);
        }
    };
    let held = state.fs_provider.as_ref().map(|held| held.connection);
    if claim(state, call, held, "session filesystem provider") {
        let path = asked.session_state_path;
        state.fs_provider = Some(Provider {
            connection: call.connection,
            path,
        });
        state.ok(call, r#"{"success":true}"#);
    }
}

fn set_llm_provider(state: &mut State, call: &Call) {
    let held = state.llm_provider.as_ref().map(|held| held.connection);
    if claim(state, call, held, "LLM inference provider") {
        let provider = Provider {
            connection: call.connection,
            path: String::new(),
        };
        state.llm_provider = Some(provider);
        state.ok(call, r#"{"success":true}"#);
    }
}

/// Whether a connection may have a provider's place; refuses the call if not. The place is never
/// given back, not even when its holder's connection ends.
fn claim(state: &mut State, call: &Call, held: Option<u64>, what: &str) -> bool {
    if !state.sessions.is_empty() {
        let method = &call.method;
        let text = format!(
            "Cannot set {what} while sessions are active. Call {method} before creating any sessions."
        );
        state.refuse(call, &text);
        return false;
    }
    if held.is_some_and(|holder| holder != call.connection) {
        state.refuse(call, &format!("Another client is already the {what}."));
        return false;
    }
    true
}

fn model_response(state: &mut State, call: &Call) {
    let request = call.text("requestId").unwrap_or_default();
    let known = state.model_calls.contains_key(request);
    if call.method == "llmInference.httpResponseChunk"
        && (call.flag("end") || call.params.contains_key("error"))
        && let Some(done) = state.model_calls.remove(request)
    {
        // The turn may have been aborted meanwhile.
        let _ = done.send(());
    }
    state.ok(call, &format!(r#"{{"accepted":{known}}}"#));
}
