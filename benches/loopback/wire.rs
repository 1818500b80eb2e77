//! The frames of this benchmark, built once, with every field that changes at a fixed place: so
//! neither the load nor the servers parse JSON while they are measured. Knows no socket.

use std::ops::Range;

/// Length of every session id here, that of the UUIDs that SDKs make.
pub(crate) const SESSION: usize = 36;

/// Where a session's number stands in its id.
const NUMBER: Range<usize> = 15..21;

/// What stands before and behind the id in a send; ids have nine digits.
const SEND: [&[u8]; 3] = [
    br#"{"jsonrpc":"2.0","id":"#,
    br#","method":"session.send","params":{"sessionId":""#,
    br#"","prompt":""#,
];

/// The end of a prompt that begins with a number.
const PROMPT_END: &[u8] = br#" events"}}"#;

/// Digits of an id.
const ID: usize = 9;

/// Where the id stands in a frame that [`send`] built, and in a turn that [`turn`] built.
fn id_range(frame: &[u8]) -> Range<usize> {
    let body = header_end(frame).unwrap_or(0);
    let start = body + SEND[0].len();
    start..start + ID
}

/// What begins every event.
const EVENT: &str = r#"{"jsonrpc":"2.0","method":"session.event","params":{"sessionId":""#;

/// Body length of `session.idle`: the only frames of that length, so the end of a turn is seen in
/// the header.
pub(crate) const IDLE: usize = 333;

/// The id of session `number` of measurement `run`.
pub(crate) fn session_id(run: u32, number: usize) -> String {
    format!("bench-{run:08}-{number:06}-40f1-9cc2b7a3e")
}

/// A body with its header.
pub(crate) fn framed(body: &str) -> Vec<u8> {
    format!("Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// A call with an id of nine digits.
pub(crate) fn call(id: u32, method: &str, params: &str) -> Vec<u8> {
    let id = 100_000_000 + id;
    framed(&format!(
        r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}"#
    ))
}

/// The send that asks for a turn of `events` events.
pub(crate) fn send(session: &str, events: usize) -> Vec<u8> {
    let params = format!(r#"{{"sessionId":"{session}","prompt":"{events} events"}}"#);
    call(0, "session.send", &params)
}

/// Gives a send another id.
pub(crate) fn renumber(send: &mut [u8], id: u32) {
    let digits = (100_000_000 + id % 900_000_000).to_string();
    let range = id_range(send);
    send[range].copy_from_slice(digits.as_bytes());
}

/// What a server must know of a send.
pub(crate) struct Send<'a> {
    pub(crate) id: &'a [u8],
    pub(crate) session: &'a [u8],
    pub(crate) events: usize,
}

/// Reads a body that [`send`] built; none if it is any other.
pub(crate) fn read_send(body: &[u8]) -> Option<Send<'_>> {
    let rest = body.strip_prefix(SEND[0])?;
    let (id, rest) = rest.split_at_checked(ID)?;
    let rest = rest.strip_prefix(SEND[1])?;
    let (session, rest) = rest.split_at_checked(SESSION)?;
    let events = rest.strip_prefix(SEND[2])?.strip_suffix(PROMPT_END)?;
    let events = std::str::from_utf8(events).ok()?.parse().ok()?;
    Some(Send {
        id,
        session,
        events,
    })
}

/// The answer to a send and the `events` events of its turn, ready to be written as they are but
/// for the answer's id. The last event is `session.idle`; a long turn begins as real ones do.
pub(crate) fn turn(session: &str, events: usize) -> Vec<u8> {
    let message = "872e421f-25dd-4618-b3d5-3cdd0246f60a";
    let mut out = framed(&format!(
        r#"{{"jsonrpc":"2.0","id":100000000,"result":{{"messageId":"{message}"}}}}"#
    ));
    for at in 1..=events {
        let (kind, fields) = match at {
            _ if at == events => ("session.idle", r#"{"mode":"interactive"}"#.to_owned()),
            1 => (
                "user.message",
                format!(
                    r#"{{"content":"go on","messageId":"{message}","turnId":"0","delivery":"idle"}}"#
                ),
            ),
            2 => ("assistant.turn_start", r#"{"turnId":"0"}"#.to_owned()),
            _ => (
                "assistant.message_delta",
                format!(r#"{{"messageId":"{message}","deltaContent":"word{at:04} "}}"#),
            ),
        };
        out.extend(event(session, kind, &fields));
    }
    out
}

fn event(session: &str, kind: &str, fields: &str) -> Vec<u8> {
    let head = format!(r#"{EVENT}{session}","event":{{"type":"{kind}","data":{fields}"#);
    let tail = concat!(
        r#","ephemeral":true,"id":"b79c4e42-b41d-42f2-88a9-f77064e61e87","#,
        r#""timestamp":"2026-11-22T06:30:20.965Z","parentId":"f5743f18-f798-49a4-a0ba-eeba7b699673""#
    );
    let plain = head.len() + tail.len() + r#","pad":"""#.len() + 3;
    // `session.idle` has a length of its own, all others are near 370 bytes.
    let want = if kind == "session.idle" { IDLE } else { 370 };
    let pad = "x".repeat(want.saturating_sub(plain));
    framed(&format!(r#"{head}{tail},"pad":"{pad}"}}}}}}"#))
}

/// Puts the id of a send into the answer at the head of its turn.
pub(crate) fn answer_to(turn: &mut [u8], id: &[u8]) {
    let range = id_range(turn);
    turn[range].copy_from_slice(id);
}

/// The number of the session that an event is about.
pub(crate) fn session_of_event(body: &[u8]) -> Option<usize> {
    let id = body.get(EVENT.len()..EVENT.len() + SESSION)?;
    std::str::from_utf8(&id[NUMBER]).ok()?.parse().ok()
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

fn header_end(frame: &[u8]) -> Option<usize> {
    next_frame(frame).map(|body| body.start)
}

/// Fails if the places assumed above are not where they are assumed.
pub(crate) fn check_places() {
    let id = session_id(7, 123_456);
    assert_eq!(id.len(), SESSION);
    let mut sent = send(&id, 200);
    renumber(&mut sent, 42);
    let body = next_frame(&sent).expect("a whole header");
    let read = read_send(&sent[body]).expect("what was just built");
    assert_eq!((read.id, read.session), (&b"100000042"[..], id.as_bytes()));
    assert_eq!(read.events, 200);
    for events in [1, 2, 200] {
        let turn = turn(&id, events);
        let (mut at, mut frames, mut idle) = (0, 0, Vec::new());
        while at < turn.len() {
            let body = next_frame(&turn[at..]).expect("a whole header");
            let text = &turn[at + body.start..at + body.end];
            serde_json::from_slice::<serde_json::Value>(text).expect("JSON");
            if text.len() == IDLE {
                idle.push((frames, session_of_event(text)));
            }
            frames += 1;
            at += body.end;
        }
        assert_eq!(frames, events + 1);
        assert_eq!(idle, [(events, Some(123_456))], "the end of a turn is told");
    }
}
