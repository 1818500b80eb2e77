//! The simulated server against the real Copilot CLI, on the same calls.
//!
//! Every script runs on both; what they answer is masked (ids, times, paths) and must then be equal
//! word for word, key order included. The real program is named by `TAXIWAY_TEST_CLI`; without it
//! these tests fail, they are never skipped.
//!
//! Documented differences: the simulated server leaves out the events `model.*` and [`OMITTED`], which carry
//! nothing a client acts on; of the events of [`LOOSE`] only type and order are compared.

mod model;
mod scripts;
mod subject;
mod wire;

use std::fmt::Write as _;

use serde_json::{Value, json};

use self::{subject::Subject, wire::masked};

/// Events of the real server that the simulated one does not send, besides `model.*`.
const OMITTED: &[&str] = &[
    "agent.interrupted",
    "session.background_tasks_changed",
    "session.indexed_search",
    "session.managed_settings_resolved",
    "session.mcp_servers_loaded",
    "session.skills_loaded",
    "session.usage_info",
];

/// Events whose content depends on the machine, the model, or the vendor's prompts.
const LOOSE: &[&str] = &[
    "assistant.usage",
    "hook.end",
    "hook.start",
    "session.resume",
    "session.shutdown",
    "system.message",
    "tool.execution_complete",
    "tool.execution_start",
];

/// Params of `session.create` and `session.resume`.
fn opened(model: std::net::SocketAddr, id: &str, more: Value) -> Value {
    let mut params = json!({
        "sessionId": id,
        "model": "scripted",
        "provider": {"type": "openai", "baseUrl": format!("http://{model}/v1"), "apiKey": "x"},
        "requestPermission": true,
        "streaming": true,
        "envValueMode": "direct",
    });
    for (key, value) in more.as_object().cloned().unwrap_or_default() {
        params[key] = value;
    }
    params
}

/// The events among `bodies`, masked, without the omitted ones; loose ones as their type.
fn events(bodies: &[String]) -> Vec<String> {
    let mut lines = Vec::new();
    for body in bodies
        .iter()
        .filter(|body| body.contains("\"method\":\"session.event\""))
    {
        let parsed: Value = serde_json::from_str(body).expect("JSON");
        let kind = parsed["params"]["event"]["type"]
            .as_str()
            .expect("a type")
            .to_owned();
        if kind.starts_with("model.") || OMITTED.contains(&kind.as_str()) {
            continue;
        }
        let life = if parsed["params"]["event"]["ephemeral"] == true {
            " (ephemeral)"
        } else {
            ""
        };
        // Which event is whose parent depends on the omitted ones too.
        lines.push(if LOOSE.contains(&kind.as_str()) {
            format!("{kind}{life}")
        } else {
            masked(body)
        });
    }
    lines
}

/// The broadcasts among `bodies`, masked.
fn lifecycle(bodies: &[String]) -> Vec<String> {
    let broadcast = |body: &&String| body.contains("\"method\":\"session.lifecycle\"");
    bodies
        .iter()
        .filter(broadcast)
        .map(|body| masked(body))
        .collect()
}

/// What differs between two transcripts; empty if nothing does.
fn difference(name: &str, sim: &[String], real: &[String]) -> String {
    let mut text = String::new();
    if sim == real {
        assert!(!sim.is_empty(), "script {name} has compared nothing");
        return text;
    }
    let common = sim.iter().zip(real).take_while(|(a, b)| a == b).count();
    let _ = writeln!(text, "== {name}: equal for {common} lines, then");
    let short = |line: &String| line.chars().take(500).collect::<String>();
    for line in sim.iter().skip(common).take(6) {
        let _ = writeln!(text, "  sim  {}", short(line));
    }
    for line in real.iter().skip(common).take(6) {
        let _ = writeln!(text, "  real {}", short(line));
    }
    let mut other = sim.iter().skip(common).zip(real.iter().skip(common));
    let others = other.by_ref().filter(|(a, b)| a != b).count();
    let _ = writeln!(
        text,
        "  ({others} lines differ by place, {} against {})",
        sim.len(),
        real.len()
    );
    text
}

/// Runs scripts on both servers and fails with all differences at once.
macro_rules! compare {
    ($token:expr; $($script:ident),+ $(,)?) => {{
        let model = model::start().await;
        let real = Subject::real($token);
        let sim = Subject::sim($token).await;
        let mut differences = String::new();
        $(
            let told = scripts::$script(&sim, model).await;
            let meant = scripts::$script(&real, model).await;
            differences.push_str(&difference(stringify!($script), &told, &meant));
        )+
        assert!(differences.is_empty(), "the simulated server differs from the real one:\n{differences}");
    }};
}

#[tokio::test(flavor = "multi_thread")]
async fn handshake_and_bad_input_are_the_same() {
    compare!(None; handshake, bad_bodies, bad_headers, methods_without_session);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_is_checked_the_same() {
    compare!(Some("secret"); token);
}

#[tokio::test(flavor = "multi_thread")]
async fn providers_are_claimed_the_same() {
    compare!(None; fs_provider);
    compare!(None; llm_provider);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_live_the_same() {
    compare!(None;
        unknown_sessions, unknown_answers, second_sessions, session_ids, opening, two_connections, closing, half_close, life_without_turn,
        create_over_closed,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_the_same() {
    compare!(None; aggregates);
}

#[tokio::test(flavor = "multi_thread")]
async fn turns_are_the_same() {
    compare!(None;
        plain_turn, second_turn, queueing, steering, late_steering, waiting, abort, open_session_methods,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_permissions_hooks_and_questions_are_the_same() {
    compare!(None;
        tool_clash, tool_with_permission, rejected_permission, unasked_permission, tool_failure, unknown_tool,
        questions, hooks,
    );
}
