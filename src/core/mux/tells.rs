//! What events tell of a turn, by their type; and what is read out of those few that are looked
//! into: once per prompt, per question to the client, and per turn, without building values.

use std::{
    borrow::Cow,
    hash::{DefaultHasher, Hash, Hasher},
};

use memchr::{memchr, memmem};
use serde::Deserialize;

/// The type of the event by which a turn asks for a tool of a client.
pub(super) const TOOL_ASKED: &[u8] = b"external_tool.requested";

/// What an event tells of its turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tells {
    /// Nothing but that it goes on: by far the most.
    Nothing,
    /// A message is in the history.
    Message,
    /// The model is asked.
    Started,
    /// A message has been queued, or taken from the queue.
    Pending,
    Failure,
    Idle,
    Abort,
    /// It waits for the client.
    Question,
    Answer,
}

impl Tells {
    /// By the event's type.
    #[inline]
    pub(super) fn by(kind: &[u8]) -> Self {
        match kind {
            b"user.message" => Self::Message,
            b"assistant.turn_start" => Self::Started,
            b"pending_messages.modified" => Self::Pending,
            b"session.error" => Self::Failure,
            b"session.idle" => Self::Idle,
            b"abort" => Self::Abort,
            TOOL_ASKED | b"permission.requested" => Self::Question,
            b"external_tool.completed" | b"permission.completed" => Self::Answer,
            _ => Self::Nothing,
        }
    }
}

/// A `session.event`, as far as it is looked into.
#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(borrow)]
    params: Params<'a>,
}

#[derive(Deserialize)]
struct Params<'a> {
    #[serde(borrow)]
    event: Event<'a>,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, default)]
    data: Option<Details<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Details<'a> {
    #[serde(borrow, default)]
    message_id: Option<Text<'a>>,
    #[serde(borrow, default)]
    request_id: Option<Text<'a>>,
    #[serde(borrow, default)]
    tool_name: Option<Text<'a>>,
}

/// Borrowed where it is written without escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

fn event(body: &[u8]) -> Option<Event<'_>> {
    let frame: Frame<'_> = serde_json::from_slice(body).ok()?;
    Some(frame.params.event)
}

/// `messageId` of a `user.message`.
pub(super) fn message_id(body: &[u8]) -> Option<String> {
    Some(event(body)?.data?.message_id?.0.into_owned())
}

/// `requestId` of an event by which a turn asks the client, or hears that it was answered.
pub(super) fn request_id(body: &[u8]) -> Option<String> {
    Some(event(body)?.data?.request_id?.0.into_owned())
}

/// `requestId` of an event by which a turn asks the client; and the name of the tool that is to be
/// run, if the event says one.
pub(super) fn question(body: &[u8]) -> Option<(String, Option<Box<str>>)> {
    let data = event(body)?.data?;
    let tool = data.tool_name.map(|name| Box::from(&*name.0));
    Some((data.request_id?.0.into_owned(), tool))
}

/// What stands for the event of this body, whoever hears it: its `id`, which the CLI writes behind
/// all that may hold another one. Read from the end, since every turn has such an event.
pub(super) fn event_mark(body: &[u8]) -> Option<u64> {
    const ID: &[u8] = br#""id":""#;
    let id = &body[memmem::rfind(body, ID)? + ID.len()..];
    let mut hasher = DefaultHasher::new();
    id[..memchr(b'"', id)?].hash(&mut hasher);
    Some(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(event: &str) -> Vec<u8> {
        let params = format!(r#"{{"sessionId":"s","event":{event}}}"#);
        format!(r#"{{"jsonrpc":"2.0","method":"session.event","params":{params}}}"#).into_bytes()
    }

    #[test]
    fn what_is_looked_for_is_found_where_it_belongs() {
        let body = frame(
            r#"{"type":"user.message","data":{"content":"{\"messageId\":1}","messageId":"m\u0031","attachments":[{"requestId":"no"}]},"id":"e-1"}"#,
        );
        assert_eq!(message_id(&body).as_deref(), Some("m1"));
        assert_eq!(request_id(&body), None);
        assert!(event_mark(&body).is_some());
        let body = frame(
            r#"{"type":"permission.requested","data":{"requestId":"r","id":"x"},"id":"e-1","parentId":"e-2"}"#,
        );
        assert_eq!(request_id(&body).as_deref(), Some("r"));
        assert_eq!(question(&body), Some(("r".into(), None)));
        let tool = frame(r#"{"data":{"toolName":"t\u0031","requestId":"r","arguments":{}}}"#);
        assert_eq!(question(&tool), Some(("r".into(), Some("t1".into()))));
        assert_eq!(event_mark(&body), event_mark(&frame(r#"{"id":"e-1"}"#)));
        assert_ne!(event_mark(&body), event_mark(&frame(r#"{"id":"e-2"}"#)));
        for odd in [
            "{}",
            "[]",
            "1",
            r#"{"data":1}"#,
            r#"{"data":{"requestId":1}}"#,
        ] {
            let body = frame(odd);
            let read = (message_id(&body), request_id(&body), event_mark(&body));
            assert_eq!(read, (None, None, None), "{odd}");
        }
    }
}
