//! What one who shares a session may do with it (DESIGN §4): take part, not change it for the
//! others. Words and params only; who shares what is decided in `access`.
//!
//! In the CLI, whoever attaches last decides about model, provider and system message of all
//! (PROTOCOL §5), and whoever knows a session may close, delete and reconfigure it.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::{
    replay::{Effect, effect_of},
    route::Class,
};

/// What becomes of a call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It may pass.
    Fine,
    /// It is for the owner alone.
    NotTheirs,
    /// It would be for everybody, but for these params.
    Changes(Vec<String>),
}

/// Params of create and resume that are about the client that attaches and about nobody else: what
/// it offers, what it wants to be asked, what it wants to hear. Sorted.
const OWN_PARAMS: &[&str] = &[
    "canvases",
    "clientName",
    "commands",
    "continuePendingWork",
    "disableResume",
    "envValueMode",
    "hooks",
    "includeSubAgentStreamingEvents",
    "kind",
    "openCanvases",
    "requestAutoModeSwitch",
    "requestElicitation",
    "requestExitPlanMode",
    "requestMcpApps",
    "requestPermission",
    "requestUserInput",
    "sessionId",
    "streaming",
    "toolFilterPrecedence",
    "tools",
    "traceparent",
    "tracestate",
];

/// Of the methods that change something, those by which one takes part. Sorted.
const TAKES_PART: &[&str] = &[
    "session.commands.handlePendingCommand",
    "session.commands.respondToQueuedCommand",
    "session.mcp.headers.handlePendingHeadersRefreshRequest",
    "session.mcp.oauth.handlePendingRequest",
    "session.permissions.notifyPromptShown",
    "session.tasks.waitForPending",
    "session.ui.elicitation",
    "session.ui.ephemeralQuery",
    "session.ui.handlePendingAutoModeSwitch",
    "session.ui.handlePendingElicitation",
    "session.ui.handlePendingExitPlanMode",
    "session.ui.handlePendingSampling",
    "session.ui.handlePendingSessionLimitsExhausted",
    "session.ui.handlePendingUserInput",
    "sessions.save",
];

/// Of the methods that only look, those that show what is the owner's own: credentials. Sorted.
const OWNERS_EYES: &[&str] = &["session.provider.getEndpoint"];

/// Judges a call of one who shares the session. `params` is the JSON text of its params.
pub fn judge(class: Class, method: &str, params: &[u8]) -> Verdict {
    match class {
        Class::Create | Class::Resume | Class::Open => {
            let fields = beyond(params);
            if fields.is_empty() {
                Verdict::Fine
            } else {
                Verdict::Changes(fields)
            }
        }
        Class::Send(_) | Class::Abort | Class::Detach | Class::Any | Class::Ping => Verdict::Fine,
        Class::Session | Class::Unknown => {
            let looks = matches!(
                effect_of(method),
                Effect::Read | Effect::Answer | Effect::Interest | Effect::Disinterest
            );
            let fine = looks && OWNERS_EYES.binary_search(&method).is_err()
                || TAKES_PART.binary_search(&method).is_ok();
            if fine {
                Verdict::Fine
            } else {
                Verdict::NotTheirs
            }
        }
        Class::Connect
        | Class::Fork
        | Class::Delete
        | Class::Close
        | Class::Aggregate(_)
        | Class::IdsArray(_)
        | Class::ServerWide(_)
        | Class::Provider(_)
        | Class::ByRequestId
        | Class::Cancel
        | Class::RemoteControl
        | Class::Denied(_) => Verdict::NotTheirs,
    }
}

/// The params by which attaching would change the session. One that says nothing changes nothing.
fn beyond(params: &[u8]) -> Vec<String> {
    if params.is_empty() {
        return Vec::new();
    }
    let Ok(params) = serde_json::from_slice::<BTreeMap<String, &RawValue>>(params) else {
        return vec!["params".to_owned()];
    };
    params
        .into_iter()
        .filter(|(name, value)| {
            let says_nothing = matches!(value.get(), "null" | "false" | "\"\"" | "[]" | "{}");
            !says_nothing && OWN_PARAMS.binary_search(&name.as_str()).is_err()
        })
        .map(|(name, _)| name)
        .collect()
}

/// Params named in one message, and how much of each, in bytes.
const FIELDS: usize = 8;
const FIELD: usize = 64;

/// The rest of the sentence for a client whose call is [`Verdict::Changes`] by these params, or
/// [`Verdict::NotTheirs`] if there are none.
pub fn refusal(fields: &[String]) -> String {
    if fields.is_empty() {
        return "this is for the one whose it is".to_owned();
    }
    let short = fields.iter().filter(|field| field.len() <= FIELD);
    let named: Vec<&str> = short.take(FIELDS).map(String::as_str).collect();
    let more = if fields.len() > named.len() {
        ", …"
    } else {
        ""
    };
    let named = named.join(", ");
    format!("only the one whose it is may say {named}{more}; leave that out")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::route::classify;

    fn judged(method: &str, params: &str) -> Verdict {
        judge(classify(method), method, params.as_bytes())
    }

    #[test]
    fn the_tables_are_sorted() {
        for table in [OWN_PARAMS, TAKES_PART, OWNERS_EYES] {
            assert!(table.is_sorted_by(|a, b| a < b), "{table:?}");
        }
    }

    #[test]
    fn who_shares_a_session_takes_part_and_changes_nothing() {
        for method in [
            "session.send",
            "session.sendAndWait",
            "session.abort",
            "session.detach",
            "session.getMessages",
            "session.eventLog.registerInterest",
            "session.mode.get",
            "session.tools.handlePendingToolCall",
            "session.permissions.handlePendingPermissionRequest",
            "session.ui.handlePendingUserInput",
            "sessions.getMetadata",
        ] {
            assert_eq!(judged(method, "{}"), Verdict::Fine, "{method}");
        }
        for method in [
            "session.delete",
            "sessions.delete",
            "sessions.close",
            "sessions.fork",
            "session.shutdown",
            "session.suspend",
            "session.mode.set",
            "session.model.switchTo",
            "session.options.update",
            "session.permissions.setApproveAll",
            "session.provider.add",
            "session.provider.getEndpoint",
            "session.queue.clear",
            "session.shell.exec",
            "session.gitHubAuth.setCredentials",
            "session.visibility.set",
            "session.fromTheFuture",
        ] {
            assert_eq!(judged(method, "{}"), Verdict::NotTheirs, "{method}");
        }
    }

    #[test]
    fn what_the_sdks_always_send_may_be_sent() {
        // As the Node SDK 1.0.14 resumes with a tool and nothing else.
        let plain = r#"{"sessionId":"team-1","toolFilterPrecedence":"excluded","tools":[{"name":"t"}],
            "requestPermission":true,"requestUserInput":false,"requestElicitation":false,
            "requestExitPlanMode":false,"requestAutoModeSwitch":false,"hooks":false,"streaming":true,
            "includeSubAgentStreamingEvents":true,"envValueMode":"direct"}"#;
        assert_eq!(judged("session.resume", plain), Verdict::Fine);
        assert_eq!(judged("session.create", plain), Verdict::Fine);
        let empty = r#"{"sessionId":"team-1","model":null,"systemMessage":{},"mcpServers":{}}"#;
        assert_eq!(judged("session.resume", empty), Verdict::Fine);
        let changes = r#"{"sessionId":"team-1","model":"m","pro\u0076ider":{"apiKey":"k"}}"#;
        let named = vec!["model".to_owned(), "provider".to_owned()];
        assert_eq!(judged("session.resume", changes), Verdict::Changes(named));
        // The last of duplicates counts, as in the CLI.
        let twice = r#"{"sessionId":"team-1","model":null,"model":"m"}"#;
        let named = vec!["model".to_owned()];
        assert_eq!(judged("session.resume", twice), Verdict::Changes(named));
    }
}
