//! The frames that the simulated servers of this benchmark send, built once and written as they are,
//! and how they read the sends of `taxiway load` without parsing JSON. Knows no socket.

use std::ops::Range;

use memchr::memmem;

/// What stands before and behind the values of a send.
const SEND: [&[u8]; 4] = [
    br#"{"jsonrpc":"2.0","id":"#,
    br#","method":"session.send","params":{"sessionId":""#,
    br#"","prompt":""#,
    br#" events"}}"#,
];

/// Body length of `session.idle`, as seen of the CLI.
const IDLE: usize = 333;

/// Body length of all other events.
const EVENT: usize = 370;

/// Room for the answer to a send, at the head of its turn.
const ANSWER: usize = 192;

/// The prompt that asks for a turn of `events` events.
pub(crate) fn prompt(events: usize) -> String {
    format!("{events} events")
}

/// A body with its header.
pub(crate) fn framed(body: &str) -> Vec<u8> {
    format!("Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// What a server must know of a send.
pub(crate) struct Send<'a> {
    pub(crate) id: &'a [u8],
    pub(crate) session: &'a [u8],
    pub(crate) events: usize,
}

/// Reads the body of a send; none if it is any other call.
pub(crate) fn read_send(body: &[u8]) -> Option<Send<'_>> {
    let rest = body.strip_prefix(SEND[0])?;
    let (id, rest) = rest.split_at(rest.iter().position(|byte| !byte.is_ascii_digit())?);
    let rest = rest.strip_prefix(SEND[1])?;
    let (session, rest) = rest.split_at(rest.iter().position(|byte| *byte == b'"')?);
    let events = rest.strip_prefix(SEND[2])?.strip_suffix(SEND[3])?;
    let events = std::str::from_utf8(events).ok()?.parse().ok()?;
    Some(Send {
        id,
        session,
        events,
    })
}

/// The answer to a send and the events of its turn, as one piece of bytes.
pub(crate) struct Turn {
    bytes: Vec<u8>,
    /// Where the number of the turn stands in it, besides the answer: at the end of ids.
    numbered: Vec<usize>,
    /// How often it was used.
    number: u64,
}

impl Turn {
    /// A turn of `events` events, the last of which is `session.idle`; a long one begins as real
    /// ones do.
    pub(crate) fn new(session: &str, events: usize) -> Self {
        let mut out = vec![0; ANSWER];
        for at in 1..=events {
            let (kind, fields) = match at {
                _ if at == events => ("session.idle", r#"{"mode":"interactive"}"#.to_owned()),
                1 => (
                    "user.message",
                    format!(
                        r#"{{"content":"go on","messageId":"{MESSAGE}","turnId":"0","delivery":"idle"}}"#
                    ),
                ),
                2 => ("assistant.turn_start", r#"{"turnId":"0"}"#.to_owned()),
                _ => (
                    "assistant.message_delta",
                    format!(r#"{{"messageId":"{MESSAGE}","deltaContent":"word{at:04} "}}"#),
                ),
            };
            out.extend(event(session, kind, &fields));
        }
        // As with a real server, no two turns have the message or the `session.idle` of another one:
        // a proxy may take what it has heard before for an echo.
        let message = memmem::find(&out, MESSAGE.as_bytes());
        let idle = memmem::rfind(&out, EVENT_ID.as_bytes());
        let ids = message.into_iter().chain(idle);
        Self {
            numbered: ids.map(|at| at + NUMBER.start).collect(),
            bytes: out,
            number: 0,
        }
    }

    /// The bytes that answer the send with this id.
    pub(crate) fn answering(&mut self, id: &[u8]) -> &[u8] {
        self.number += 1;
        let number = format!("{:012x}", self.number);
        let answer = framed(&format!(
            r#"{{"jsonrpc":"2.0","id":{},"result":{{"messageId":"{}{number}"}}}}"#,
            String::from_utf8_lossy(id),
            &MESSAGE[..NUMBER.start],
        ));
        let start = ANSWER - answer.len();
        self.bytes[start..ANSWER].copy_from_slice(&answer);
        for at in &self.numbered {
            self.bytes[*at..*at + NUMBER.len()].copy_from_slice(number.as_bytes());
        }
        &self.bytes[start..]
    }
}

const MESSAGE: &str = "872e421f-25dd-4618-b3d5-3cdd0246f60a";

/// Of every event but those that end a turn.
const EVENT_ID: &str = "b79c4e42-b41d-42f2-88a9-f77064e61e87";

/// Where the number of the turn stands in an id.
const NUMBER: Range<usize> = 24..36;

fn event(session: &str, kind: &str, fields: &str) -> Vec<u8> {
    let head = format!(
        r#"{{"jsonrpc":"2.0","method":"session.event","params":{{"sessionId":"{session}","event":{{"type":"{kind}","data":{fields}"#
    );
    let tail = format!(
        r#","ephemeral":true,"id":"{EVENT_ID}","timestamp":"2026-11-22T06:30:20.965Z","parentId":"f5743f18-f798-49a4-a0ba-eeba7b699673""#
    );
    let plain = head.len() + tail.len() + r#","pad":"""#.len() + 3;
    let want = if kind == "session.idle" { IDLE } else { EVENT };
    let pad = "x".repeat(want.saturating_sub(plain));
    framed(&format!(r#"{head}{tail},"pad":"{pad}"}}}}}}"#))
}

/// One frame's body in `bytes`: where it begins and ends. None while the header is incomplete; the
/// end may lie beyond `bytes`.
pub(crate) fn next_frame(bytes: &[u8]) -> Option<Range<usize>> {
    const NAME: usize = "Content-Length: ".len();
    let mut length = 0;
    let mut at = NAME;
    while let digit @ b'0'..=b'9' = bytes.get(at)? {
        length = length * 10 + usize::from(digit - b'0');
        at += 1;
    }
    let start = at + 4;
    (bytes.len() >= start).then_some(start..start + length)
}

/// Fails if a turn is not what the load and the tables take it for.
pub(crate) fn check() {
    for events in [1, 2, 200] {
        let mut turn = Turn::new("load-7-123456", events);
        let bytes = turn.answering(b"18446744073709551615");
        let (mut at, mut bodies) = (0, Vec::new());
        while at < bytes.len() {
            let body = next_frame(&bytes[at..]).expect("a whole header");
            let text = &bytes[at + body.start..at + body.end];
            bodies.push(serde_json::from_slice::<serde_json::Value>(text).expect("JSON"));
            at += body.end;
        }
        assert_eq!(bodies.len(), events + 1);
        assert_eq!(bodies[0]["id"], u64::MAX);
        let kinds = bodies.iter().map(|body| &body["params"]["event"]["type"]);
        assert_eq!(kinds.filter(|kind| *kind == "session.idle").count(), 1);
        assert_eq!(bodies[events]["params"]["event"]["type"], "session.idle");
        let first = turn.answering(b"1").to_vec();
        let again = turn.answering(b"1");
        let differ = first.iter().zip(again).filter(|(a, b)| a != b).count();
        assert_eq!(
            differ,
            if events == 1 { 2 } else { 3 },
            "ids are of one turn"
        );
    }
}
