//! The CLI's verdict on a parsed body, by types like its own and serde's derived code.

use serde::{
    Deserialize, Deserializer,
    de::{self, IgnoredAny},
};
use taxiway::core::scan::Kind;

use super::json::Json;

fn version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    let got = String::deserialize(deserializer)?;
    if got == "2.0" {
        return Ok(());
    }
    Err(de::Error::custom(format_args!(
        "unsupported jsonrpc version: expected \"2.0\", got {got:?}"
    )))
}

// The CLI's types, as its error texts show them. Only their verdicts are used.
#[derive(Deserialize)]
#[serde(untagged)]
#[allow(dead_code)]
enum RequestId {
    Integer(i64),
    Text(String),
}
#[derive(Deserialize)]
#[allow(dead_code)]
struct Request {
    #[serde(deserialize_with = "version")]
    jsonrpc: (),
    id: RequestId,
}
#[derive(Deserialize)]
#[allow(dead_code)]
struct Notification {
    #[serde(deserialize_with = "version")]
    jsonrpc: (),
}
#[derive(Deserialize)]
#[allow(dead_code)]
struct Response {
    #[serde(deserialize_with = "version")]
    jsonrpc: (),
    id: Option<RequestId>,
    error: Option<ResponseError>,
}
#[derive(Deserialize)]
#[allow(dead_code)]
struct ResponseError {
    code: i64,
    message: String,
    #[serde(default)]
    data: Option<IgnoredAny>,
}

/// What the CLI makes of a value: its kind, or the text of its refusal.
pub(crate) fn judge(value: &Json) -> Result<Kind, String> {
    let method = value.text("method").is_some();
    let error = value.get("error").is_some_and(|error| *error != Json::Null);
    let (number_or_text, null) = match value.get("id") {
        Some(Json::Unsigned(_) | Json::Signed(_) | Json::Float(_) | Json::Text(_)) => (true, false),
        Some(Json::Null) => (false, true),
        _ => (false, false),
    };
    let verdict = if method && number_or_text {
        Request::deserialize(value.clone()).map(|_| Kind::Request)
    } else if method && value.get("id").is_none() {
        Notification::deserialize(value.clone()).map(|_| Kind::Notification)
    } else if (number_or_text || null) && (error || value.get("result").is_some()) {
        let kind = if error { Kind::Error } else { Kind::Result };
        Response::deserialize(value.clone()).map(|_| kind)
    } else {
        let text = "not a recognizable JSON-RPC request, notification, or response";
        return Err(text.to_owned());
    };
    verdict.map_err(|error| error.to_string())
}
