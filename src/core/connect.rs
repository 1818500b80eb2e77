//! The `connect` call: what a client may say in it, what it is told, what backends are told.
//! Sends nothing and keeps no connection's state; whether a token is right is not judged here.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

use super::{id::Secret, reply::ProxyError, snapshot::Snapshot};

/// Largest `params` of a `connect`, in bytes: its options are kept as long as the connection.
pub const PARAMS_LIMIT: usize = 64 * 1024;

/// A client's `connect`, read in the order of the CLI: the token counts even if the rest is wrong.
#[derive(Clone, Debug)]
pub struct Request {
    /// `token`, if it is a string with something in it; anything else counts as none.
    pub token: Option<Secret>,
    /// The other fields, or what is wrong with them.
    pub options: Result<Options, ProxyError>,
}

/// What a client asked for in `connect`, besides being let in. Repeated on each of its upstreams.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
#[serde(
    expecting = "struct ConnectRequest",
    rename_all = "camelCase",
    deny_unknown_fields
)]
pub struct Options {
    #[serde(rename = "enableGitHubTelemetryForwarding")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    telemetry: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client_info: Option<Box<ClientInfo>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    supported_task_kinds: Option<Vec<TaskKind>>,
}

/// The editor and extension behind the client.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(
    expecting = "struct ConnectClientInfo",
    rename_all = "camelCase",
    deny_unknown_fields
)]
struct ClientInfo {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    editor_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    editor_version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    extension_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    extension_version: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum TaskKind {
    Agent,
    Shell,
    Client,
}

/// What all usable backends have in common, hence what a client may be told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// The lowest `protocolVersion`. Backends with another one are not used for this client.
    pub protocol_version: u32,
    /// The lowest CLI version.
    pub version: Arc<str>,
    /// Task kinds that every usable backend named, in the order of the first one.
    pub task_kinds: Vec<Arc<str>>,
}

/// Reads the params of a client's `connect`.
pub fn parse(params: Option<&RawValue>) -> Request {
    let text = params.map_or("null", RawValue::get);
    if text.len() > PARAMS_LIMIT {
        let complaint = format!("the params are larger than {PARAMS_LIMIT} bytes");
        return Request {
            token: None,
            options: Err(invalid(&complaint)),
        };
    }
    let mut value: Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(e) => {
            return Request {
                token: None,
                options: Err(invalid(&e.to_string())),
            };
        }
    };
    let token = value
        .as_object_mut()
        .and_then(|fields| fields.remove("token"))
        .and_then(|token| match token {
            Value::String(text) => Some(text).filter(|text| !text.is_empty()),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::Array(_)
            | Value::Object(_) => None,
        })
        .map(Secret::from);
    let options = if value.is_null() {
        Ok(Options::default())
    } else {
        serde_json::from_value(value).map_err(|e| invalid(&e.to_string()))
    };
    Request { token, options }
}

impl Request {
    /// The options, where no tokens are configured: then one must not be sent.
    pub fn without_tokens(self) -> Result<Options, ProxyError> {
        match self.token {
            Some(_) => Err(ProxyError::AuthenticationNotConfigured),
            None => self.options,
        }
    }
}

impl Options {
    /// What the control connection says: it asks for every task kind, so that the answer shows all
    /// that the backend can do.
    pub fn of_control_connection() -> Self {
        Self {
            telemetry: None,
            client_info: None,
            supported_task_kinds: Some(vec![TaskKind::Agent, TaskKind::Shell, TaskKind::Client]),
        }
    }

    /// Does this client want the telemetry of all sessions of a backend?
    pub fn wants_telemetry(&self) -> bool {
        self.telemetry == Some(true)
    }

    /// Without the telemetry: a backend would send that of everybody's sessions. The client is not
    /// told; it hears none.
    pub fn without_telemetry(self) -> Self {
        Self {
            telemetry: None,
            ..self
        }
    }

    /// A CLI has its own kinds whatever the client says, and offers others only to those who name
    /// them.
    fn allows(&self, kind: &str) -> bool {
        match kind {
            "agent" | "shell" => true,
            "client" => self
                .supported_task_kinds
                .as_ref()
                .is_some_and(|k| k.contains(&TaskKind::Client)),
            _ => false,
        }
    }
}

impl Facts {
    /// The common ground of the usable backends that have told theirs; none if there is no such
    /// backend.
    pub fn of(pool: &Snapshot) -> Option<Self> {
        let told = || pool.backends.iter().filter(|b| b.is_usable() && !b.removed);
        let protocol_version = told().filter_map(|b| b.protocol_version).min()?;
        let version = told()
            .filter_map(|b| b.version.as_ref())
            .min_by_key(|version| numbers(version))
            .cloned()
            .unwrap_or_else(|| Arc::from("0.0.0"));
        let mut kinds = told()
            .filter(|b| b.protocol_version.is_some())
            .map(|b| &b.task_kinds);
        let first = kinds.next().map(|kinds| kinds.to_vec()).unwrap_or_default();
        let task_kinds = kinds.fold(first, |mut common, kinds| {
            common.retain(|kind| kinds.contains(kind));
            common
        });
        Some(Self {
            protocol_version,
            version,
            task_kinds,
        })
    }
}

/// The `result` of a client's `connect`.
pub fn answer(options: &Options, facts: &Facts) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer<'a> {
        ok: bool,
        protocol_version: u32,
        version: &'a str,
        task_kinds: Vec<&'a str>,
    }
    let task_kinds = facts
        .task_kinds
        .iter()
        .map(|kind| &**kind)
        .filter(|kind| options.allows(kind))
        .collect();
    let answer = Answer {
        ok: true,
        protocol_version: facts.protocol_version,
        version: &facts.version,
        task_kinds,
    };
    serde_json::to_string(&answer).expect("plain structs of text and numbers serialize")
}

/// The params of `connect` on a backend: the client's options with the backend's own token.
pub fn upstream_params(options: &Options, token: Option<&Secret>) -> String {
    #[derive(Serialize)]
    struct Params<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        token: Option<&'a str>,
        #[serde(flatten)]
        options: &'a Options,
    }
    let params = Params {
        token: token.map(Secret::expose),
        options,
    };
    serde_json::to_string(&params).expect("plain structs of text serialize")
}

fn invalid(complaint: &str) -> ProxyError {
    ProxyError::InvalidParams(format!("Invalid connect request: {complaint}"))
}

/// A dotted version as numbers, so that 1.0.9 is lower than 1.0.102; what is no number counts as 0.
fn numbers(version: &str) -> Vec<u64> {
    version
        .split(['.', '-', '+'])
        .map(|part| part.parse().unwrap_or(0))
        .collect()
}

#[cfg(test)]
mod tests;
