//! What events tell of a turn, by their type; and what is read out of those few that are looked
//! into: once per prompt, per question to the client, and per turn, without building values.

use std::borrow::Cow;

use memchr::{memchr, memchr_iter, memchr2, memrchr};

use crate::core::scan;

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
    /// The server does something that may take any time, and say nothing.
    Works,
    /// It has done that.
    Rests,
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
            b"tool.execution_start" | b"hook.start" | b"session.compaction_start" => Self::Works,
            b"tool.execution_complete" | b"hook.end" | b"session.compaction_complete" => {
                Self::Rests
            }
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

/// `messageId` of a `user.message`.
pub(super) fn message_id(body: &[u8]) -> Option<String> {
    text_in_data(body, "messageId")
}

/// `requestId` of an event by which a turn asks the client, or hears that it was answered.
pub(super) fn request_id(body: &[u8]) -> Option<String> {
    text_in_data(body, "requestId")
}

fn text_in_data(body: &[u8], name: &str) -> Option<String> {
    let text = scan::text_at(body, &["params", "event", "data", name])?;
    Some(text.get(body).into_owned())
}

/// `messageId` of the result of a send; mostly all that it says.
pub(super) fn acknowledged_id(result: &[u8]) -> Option<String> {
    let alone = result.strip_prefix(br#"{"messageId":""#);
    let alone = alone.and_then(|rest| rest.strip_suffix(br#""}"#));
    if let Some(id) = alone.filter(|id| memchr2(b'"', b'\\', id).is_none()) {
        // Much sooner found out than what would have to be replaced.
        let id =
            std::str::from_utf8(id).map_or_else(|_| String::from_utf8_lossy(id), Cow::Borrowed);
        return Some(id.into_owned());
    }
    let id = scan::text_at(result, &["messageId"])?;
    Some(id.get(result).into_owned())
}

/// Whether a `session.idle` ends a turn that was aborted. Few do, and every turn has one: what does not
/// name it is not read.
pub(super) fn is_aborted(body: &[u8]) -> bool {
    let named = memchr_iter(b'b', body).any(|at| body[at..].starts_with(b"borted"));
    let may_be_escaped = || memchr(b'\\', body).is_some();
    (named || may_be_escaped()) && scan::is_true_at(body, &["params", "event", "data", "aborted"])
}

/// What stands behind the data of a `session.idle` that begins as nearly all do: the CLI says how the
/// session goes on, and nothing else.
fn behind_plain_data(body: &[u8]) -> Option<&[u8]> {
    const DATA: &[u8] = br#"","event":{"type":"session.idle","data":{"#;
    let data = scan::behind_session(body)?.strip_prefix(DATA)?;
    if let Some(rest) = data.strip_prefix(b"}") {
        return Some(rest);
    }
    let mode = data.strip_prefix(br#""mode":""#)?;
    mode[memchr2(b'"', b'\\', mode)?..].strip_prefix(b"\"}")
}

/// `requestId` of an event by which a turn asks the client; and the name of the tool that is to be
/// run, if the event says one.
pub(super) fn question(body: &[u8]) -> Option<(String, Option<Box<str>>)> {
    let tool = text_in_data(body, "toolName").map(Box::from);
    Some((request_id(body)?, tool))
}

/// The same in every build, since the processes of an upgrade compare marks; no more than a few
/// instructions, since nobody gains by two events with one mark but a turn that is not counted.
fn mark_of(id: &[u8]) -> u64 {
    let (words, rest) = id.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    words
        .iter()
        .chain([&last])
        .fold(id.len() as u64, |mark, word| {
            let mixed = (mark ^ u64::from_le_bytes(*word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            mixed ^ (mixed >> 29)
        })
}

/// What a `session.idle` says: whether it ends a turn that was aborted, and what stands for it.
pub(super) fn end_of_turn(body: &[u8]) -> (bool, Option<u64>) {
    const NEXT: &[u8] = br#","timestamp":""#;
    let Some(rest) = behind_plain_data(body) else {
        return (is_aborted(body), event_mark(body));
    };
    // Then its id is mostly the next that is said, and said once.
    let rest = rest.strip_prefix(br#","ephemeral":true"#).unwrap_or(rest);
    if let Some(id) = rest.strip_prefix(br#","id":""#)
        && let Some(end) = memchr(b'"', id)
        && id[end + 1..].starts_with(NEXT)
    {
        return (false, Some(mark_of(&id[..end])));
    }
    (false, event_mark(body))
}

/// What stands for the event of this body, whoever hears it: its `id`, which the CLI writes behind
/// all that may hold another one. Read from the end, since every turn has such an event.
fn event_mark(body: &[u8]) -> Option<u64> {
    let mut end = body.len();
    // This letter is rare there, other than quotes and colons: to go from one to the next is cheaper
    // than to look for a word.
    loop {
        end = memrchr(b'i', &body[..end])?;
        if body[..end].ends_with(b"\"")
            && let Some(id) = body[end..].strip_prefix(br#"id":""#)
        {
            return Some(mark_of(&id[..memchr(b'"', id)?]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(event: &str) -> Vec<u8> {
        let params = format!(r#"{{"sessionId":"s","event":{event}}}"#);
        format!(r#"{{"jsonrpc":"2.0","method":"session.event","params":{params}}}"#).into_bytes()
    }

    #[test]
    fn the_end_of_an_aborted_turn_is_known_however_it_is_written() {
        for (data, aborted) in [
            (r#"{"mode":"plan"}"#, false),
            ("{}", false),
            (r#"{"mode":"plan","aborted":true}"#, true),
            (r#"{"mode":"a\"}","aborted":true}"#, true),
            (r#"{"aborted":true,"mode":"plan"}"#, true),
            (r#"{"mode":"plan", "aborted" : true}"#, true),
            (r#"{"\u0061borted":true}"#, true),
            (r#"{"a\u0062orted":true}"#, true),
            (r#"{"aborted":false}"#, false),
            (r#"{"mode":"aborted"}"#, false),
            (r#"{"mode":{"aborted":true}}"#, false),
        ] {
            let body = frame(&format!(
                r#"{{"type":"session.idle","data":{data},"id":"b"}}"#
            ));
            assert_eq!(end_of_turn(&body), (aborted, event_mark(&body)), "{data}");
            assert_eq!(is_aborted(&body), aborted, "{data}");
        }
    }

    #[test]
    fn an_acknowledged_message_is_read_however_it_is_written() {
        for (result, id) in [
            (r#"{"messageId":"m-1"}"#, Some("m-1")),
            (r#"{ "messageId" : "m-1" }"#, Some("m-1")),
            (r#"{"messageId":"m-1","more":"x"}"#, Some("m-1")),
            (
                r#"{"more":{"messageId":"no"},"messageId":"m-1"}"#,
                Some("m-1"),
            ),
            (r#"{"messageId":"m\u002d1"}"#, Some("m-1")),
            (r#"{"messageId":""}"#, Some("")),
            (r#"{"messageId":1}"#, None),
            ("{}", None),
            ("null", None),
        ] {
            assert_eq!(
                acknowledged_id(result.as_bytes()).as_deref(),
                id,
                "{result}"
            );
        }
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
        for data in ["{}", r#"{"mode":"plan"}"#, r#"{"aborted":true}"#] {
            for more in ["", r#","ephemeral":true"#, r#","agentId":"a""#] {
                let idle = format!(
                    r#"{{"type":"session.idle","data":{data}{more},"id":"e-1","timestamp":"t","parentId":null}}"#
                );
                let aborted = data.contains("aborted");
                let end = end_of_turn(&frame(&idle));
                assert_eq!(end, (aborted, event_mark(&body)), "{idle}");
            }
        }
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
