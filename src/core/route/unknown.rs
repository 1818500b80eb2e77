//! What the CLI answers, method by method, about a session that it does not know: what a caller
//! hears about a session that is not its own. Found by calling every method on CLI 1.0.102 with an
//! id that was never used; `docs/methods.tsv` shows the texts, and a test asks the real CLI.
//!
//! The CLI looks a session up before it looks at any other parameter, so the answer does not depend
//! on those. Two methods are otherwise: see [`unknown_answer`]. Decides nothing about who may what.

use super::{NamedAt, catalog};
use crate::core::reply::quoted;

/// What is said about a session that is not there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum UnknownAnswer {
    /// An error, without any `data`: the CLI has none.
    Error {
        /// JSON-RPC code.
        code: i32,
        /// The whole text, method and id included.
        message: String,
    },
    /// A result, as JSON text.
    Result(String),
}

impl UnknownAnswer {
    /// The value of `error` or `result` as JSON text, in the CLI's spelling.
    pub fn json(&self) -> String {
        match self {
            Self::Error { code, message } => {
                format!(r#"{{"code":{code},"message":{}}}"#, quoted(message))
            }
            Self::Result(result) => result.clone(),
        }
    }
}

/// The shapes that answers come in. In texts, `{id}` is the id as it was given; in results, the
/// same escaped for the inside of a JSON string.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shape {
    /// -32603, `Request METHOD failed with message: ` and this.
    Failed(&'static str),
    /// This JSON.
    Result(&'static str),
    /// -32601.
    Unhandled,
}

const GENERAL: Shape = Shape::Failed("Session not found for sessionId: {id}");
const NOTHING: Shape = Shape::Result("{}");
/// A session that one may not create looks like one whose id the CLI refuses.
const BAD_ID: Shape = Shape::Failed("Invalid sessionId: \"{id}\"");

/// What differs from the general rule, sorted by method.
const METHODS: &[(&str, Shape)] = {
    use Shape::{Failed, Result};
    &[
        (
            "session.create",
            Failed("Rejected session.create request with invalid sessionId: {id}"),
        ),
        (
            "session.delete",
            Result(r#"{"success":false,"error":"Session file not found for {id}"}"#),
        ),
        ("session.destroy", Result(r#"{"success":false}"#)),
        ("session.detach", Result(r#"{"success":true}"#)),
        ("session.getMessages", Failed("Session not found: {id}")),
        ("session.getMetadata", NOTHING),
        (
            "session.resume",
            Failed("Failed to load session events: Session not found: {id}"),
        ),
        (
            "session.setForeground",
            Result(
                r#"{"success":false,"error":"Not running in TUI+server mode - no foreground session change handler registered"}"#,
            ),
        ),
        (
            "sessions.bulkDelete",
            Result(r#"{"freedBytes":{"{id}":0}}"#),
        ),
        ("sessions.checkInUse", Result(r#"{"inUse":[]}"#)),
        ("sessions.close", NOTHING),
        ("sessions.configureSessionExtensions", Result("null")),
        (
            "sessions.connect",
            Failed("sessions.connect requires authentication"),
        ),
        ("sessions.delete", Failed("Session file not found for {id}")),
        (
            "sessions.enrichMetadata",
            Result(r#"{"sessions":[{"sessionId":"{id}","isDetached":false}]}"#),
        ),
        (
            "sessions.fork",
            Failed("Cannot fork session {id}: no persisted or in-memory events found"),
        ),
        ("sessions.getBoardEntryCount", NOTHING),
        (
            "sessions.getClientMetadata",
            Result(r#"[{"sessionId":"{id}","status":"notFound"}]"#),
        ),
        ("sessions.getMetadata", NOTHING),
        ("sessions.getPersistedRemoteSteerable", NOTHING),
        (
            "sessions.loadDeferredRepoHooks",
            Result(r#"{"startupPrompts":[],"hookCount":0}"#),
        ),
        ("sessions.open", Result(r#"{"status":"not_found"}"#)),
        (
            "sessions.readPersistedEvents",
            Failed("Persisted event journal is unavailable for session {id}"),
        ),
        ("sessions.releaseLock", NOTHING),
        ("sessions.reloadPluginHooks", NOTHING),
        ("sessions.save", NOTHING),
        (
            "sessions.startRemoteControl",
            Failed("session not found: {id}"),
        ),
        (
            "sessions.stopRemoteControl",
            Result(r#"{"status":{"state":"off"},"stopped":false}"#),
        ),
        (
            "sessions.transferRemoteControl",
            Result(r#"{"status":{"state":"off"},"transferred":false}"#),
        ),
    ]
};

/// What a CLI says to a call of `method` that names a session it does not know, at that place.
///
/// Methods that list sessions: the answer to a call that lists only this one. `session.create`: the
/// answer to an id that it refuses, as no id is unknown to it. A method of no table: as the CLI
/// answers a method that it does not know.
///
/// `sessions.readPersistedEvents` and `sessions.startRemoteControl` look at their other parameters
/// first, so a call of theirs that is malformed on purpose can tell a denial from an unknown
/// session. `sessions.getEventFilePath` answers any id with a path of the server's own, which
/// nobody here knows; the general text stands in for it.
pub fn unknown_answer(method: &str, at: NamedAt, id: &str) -> UnknownAnswer {
    fill(method, shape(method, at), id)
}

fn shape(method: &str, at: NamedAt) -> Shape {
    match (method, at) {
        ("session.mode.set", NamedAt::InheritPlan) => Shape::Failed("session not found: {id}"),
        ("sessions.open", NamedAt::Options) => BAD_ID,
        _ => match METHODS.binary_search_by(|(name, _)| (*name).cmp(method)) {
            Ok(at) => METHODS[at].1,
            Err(_) if catalog::is_session_method(method) => GENERAL,
            Err(_) if method == "sessions.getEventFilePath" => GENERAL,
            Err(_) => Shape::Unhandled,
        },
    }
}

fn fill(method: &str, shape: Shape, id: &str) -> UnknownAnswer {
    match shape {
        Shape::Failed(text) => UnknownAnswer::Error {
            code: -32603,
            message: format!(
                "Request {method} failed with message: {}",
                text.replace("{id}", id)
            ),
        },
        Shape::Result(json) => {
            let escaped = quoted(id);
            UnknownAnswer::Result(json.replace("{id}", &escaped[1..escaped.len() - 1]))
        }
        Shape::Unhandled => UnknownAnswer::Error {
            code: -32601,
            message: format!("Unhandled method {method}"),
        },
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The column `unknown_session` of `docs/methods.tsv`.
    pub(in super::super) fn documented(method: &str) -> String {
        match shape(method, NamedAt::Session) {
            Shape::Failed(text) => format!("error: {text}"),
            Shape::Result(json) => json.to_owned(),
            Shape::Unhandled => "unhandled".to_owned(),
        }
    }

    #[test]
    fn the_table_is_sorted_and_says_only_what_differs() {
        assert!(METHODS.is_sorted_by(|a, b| a.0 < b.0));
        for (method, shape) in METHODS {
            assert_ne!(*shape, GENERAL, "{method}");
            assert!(!catalog::is_session_method(method), "{method}");
        }
    }

    #[test]
    fn answers_are_spelled_as_the_cli_spells_them() {
        let answer = |method, at, id| unknown_answer(method, at, id).json();
        let long = "x".repeat(200);
        let cases = [
            (
                answer("session.send", NamedAt::Session, "s-1"),
                r#"{"code":-32603,"message":"Request session.send failed with message: Session not found for sessionId: s-1"}"#.to_owned(),
            ),
            (
                answer("session.mode.get", NamedAt::Session, &long),
                format!(r#"{{"code":-32603,"message":"Request session.mode.get failed with message: Session not found for sessionId: {long}"}}"#),
            ),
            (
                answer("session.mode.set", NamedAt::InheritPlan, "s-1"),
                r#"{"code":-32603,"message":"Request session.mode.set failed with message: session not found: s-1"}"#.to_owned(),
            ),
            (
                answer("sessions.open", NamedAt::Options, "s-1"),
                r#"{"code":-32603,"message":"Request sessions.open failed with message: Invalid sessionId: \"s-1\""}"#.to_owned(),
            ),
            (
                answer("session.delete", NamedAt::Session, "a\"b"),
                r#"{"success":false,"error":"Session file not found for a\"b"}"#.to_owned(),
            ),
            (
                answer("session.sendAndWait", NamedAt::Session, "s-1"),
                r#"{"code":-32601,"message":"Unhandled method session.sendAndWait"}"#.to_owned(),
            ),
            (
                answer("session.fromTheFuture", NamedAt::Session, "s-1"),
                r#"{"code":-32601,"message":"Unhandled method session.fromTheFuture"}"#.to_owned(),
            ),
        ];
        for (is, should) in cases {
            assert_eq!(is, should);
        }
    }

    #[test]
    fn an_id_cannot_break_out_of_an_answer() {
        for at in [NamedAt::Session, NamedAt::Options, NamedAt::InheritPlan] {
            let id = "{id}\"},\n\\u0000{\"";
            for (method, _) in METHODS {
                let json = unknown_answer(method, at, id).json();
                assert!(
                    serde_json::from_str::<serde_json::Value>(&json).is_ok(),
                    "{method}: {json}"
                );
            }
        }
    }
}
