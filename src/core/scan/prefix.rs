//! The short cut for what a backend sends most: heads read off a frame's first bytes.
//!
//! Recognises byte for byte what CLI 1.0.102 emits and nothing else; the slightest difference
//! (a space, an escape, another order) leaves the frame to the general scanner. Never used on
//! frames from clients, since it trusts what it does not read; but for how their requests begin
//! ([`request_opening`]), behind which the general scanner goes on.

use memchr::memchr2;

use super::{Alike, Head, Id, Kind, Opening, Places, Span, Text};

/// Longest session id, event type or string id read here; longer ones take the general path.
const LONGEST: usize = 256;

const OPENING: &[u8] = br#"{"jsonrpc":"2.0","#;
const EVENT: &[u8] = br#""method":"session.event","params":{"sessionId":""#;
const EVENT_TYPE: &[u8] = br#","event":{"type":""#;
/// [`OPENING`] and [`EVENT`].
const RUN: &[u8; 65] = br#"{"jsonrpc":"2.0","method":"session.event","params":{"sessionId":""#;
/// What stands between session and type of an event.
const RUN_TYPE: &[u8; 19] = br#"","event":{"type":""#;
/// Where `session.event` stands in a body that begins with [`OPENING`] and [`EVENT`].
const METHOD: std::ops::Range<usize> = OPENING.len() + 10..OPENING.len() + 23;
/// Where the params begin in such a body.
const PARAMS: usize = OPENING.len() + 34;
const DATA: &[u8] = br#","data":"#;
const ID: &[u8] = br#""id":"#;
/// What stands between the id of a client's request and its method, and between that and the
/// session.
const CALLED: &[u8] = br#","method":""#;
const NAMED: &[u8] = br#","params":{"sessionId":""#;
const RESULT: &[u8] = br#","result":"#;
/// With the brace: an error is an object, and `"error":null` would make this another kind.
const ERROR: &[u8] = br#","error":{"#;

/// The head of `body`, if it begins and ends as the CLI's events and responses do.
pub(super) fn head(body: &[u8]) -> Option<Head> {
    if u32::try_from(body.len()).is_err() {
        return None;
    }
    let rest = body.strip_prefix(OPENING)?;
    if rest.starts_with(EVENT) {
        event(body)
    } else {
        response(body)
    }
}

/// The session of the event in `body`, as it is written.
#[inline]
pub(super) fn event_session(body: &[u8]) -> Option<&[u8]> {
    let (start, rest) = body.split_first_chunk()?;
    if start != RUN {
        return None;
    }
    let window = &rest[..rest.len().min(LONGEST)];
    Some(&window[..memchr::memchr(b'"', window)?])
}

/// What stands behind the session's text of the event in `body`, its quote first.
#[inline]
pub(super) fn behind_session(body: &[u8]) -> Option<&[u8]> {
    let named = event_session(body)?;
    Some(&body[RUN.len() + named.len()..])
}

/// Whether event, params and frame are closed.
#[inline(always)]
pub(super) fn is_closed(body: &[u8]) -> bool {
    body.last_chunk() == Some(b"}}}")
}

/// The type of the event in `body`, if it is one of `session`, which reads as it is written, and
/// how events like it begin: for a run of events of one session, where no head is needed.
/// Recognises what [`head`] recognises, and nothing else.
#[inline]
pub(super) fn event_of<'a>(body: &'a [u8], session: &[u8]) -> Option<(&'a [u8], Alike<'a>)> {
    // Arrays of known length: these comparisons are a few instructions each, and no calls.
    let (start, rest) = body.split_first_chunk()?;
    let (named, rest) = rest.split_at_checked(session.len())?;
    let (between, rest) = rest.split_first_chunk()?;
    if start != RUN || between != RUN_TYPE || named != session || !is_closed(rest) {
        return None;
    }
    let end = memchr2(b'"', b'\\', &rest[..rest.len().min(LONGEST)])?;
    let (event_type, rest) = rest.split_at(end);
    let plain = event_type
        .iter()
        .fold(true, |plain, byte| plain & matches!(byte, b' '..=b'~'));
    // With the quote, and what may follow a member.
    let alike = body.len() - rest.len() + 2;
    (plain && matches!(rest, [b'"', b',' | b'}', ..])).then(|| (event_type, Alike(&body[..alike])))
}

/// `{"jsonrpc":"2.0","method":"session.event","params":{"sessionId":"…","event":{"type":"…"…}}}`
fn event(body: &[u8]) -> Option<Head> {
    let (session, event_type, at) = event_opening(body)?;
    if !is_closed(&body[at..]) {
        return None;
    }
    Some(Head {
        method: Some(Text {
            span: Span::new(METHOD.start, METHOD.end),
            escaped: false,
        }),
        params: Some(Span::new(PARAMS, body.len() - 1)),
        session: Some(session),
        event_type: Some(event_type),
        ..empty(Kind::Notification)
    })
}

/// Session and type of the event that `body` begins with, and where it goes on.
#[inline]
fn event_opening(body: &[u8]) -> Option<(Text, Text, usize)> {
    let (session, at) = text(body, OPENING.len() + EVENT.len())?;
    let start = at + EVENT_TYPE.len();
    if !body[at..].starts_with(EVENT_TYPE) {
        return None;
    }
    let (event_type, at) = text(body, start)?;
    // What may follow a member.
    matches!(body[at..], [b',' | b'}', ..]).then_some((session, event_type, at))
}

/// Where the value of `data` begins in the event of `body`, if that stands behind the type.
pub(super) fn event_data(body: &[u8]) -> Option<usize> {
    let rest = body.strip_prefix(OPENING)?;
    if !rest.starts_with(EVENT) {
        return None;
    }
    let (_, _, at) = event_opening(body)?;
    body[at..].starts_with(DATA).then_some(at + DATA.len())
}

/// What begins as the frames do that [`head`] reads.
pub(super) fn opening(start: &[u8]) -> Option<Opening> {
    let rest = start.strip_prefix(OPENING)?;
    if rest.starts_with(EVENT) {
        let (session, event_type, _) = event_opening(start)?;
        return Some(Opening::Event {
            session,
            event_type,
        });
    }
    let (id, at) = response_opening(start)?;
    let value = start[at..].strip_prefix(RESULT)?;
    begins_value(value).then_some(Opening::Result { id })
}

/// `{"jsonrpc":"2.0","id":N,"result":…}` and `{"jsonrpc":"2.0","id":N,"error":{…}}`
fn response(body: &[u8]) -> Option<Head> {
    let (id, at) = response_opening(body)?;
    let rest = &body[at..];
    // The last brace closes the frame.
    let end = body.len() - 1;
    if rest.starts_with(RESULT) {
        let start = at + RESULT.len();
        let value = matches!(body[start..], [_, .., b'}']) && begins_value(&body[start..]);
        return value.then(|| Head {
            id: Some(id),
            result: Some(Span::new(start, end)),
            ..empty(Kind::Result)
        });
    }
    (rest.starts_with(ERROR) && rest[ERROR.len()..].ends_with(b"}}")).then(|| Head {
        id: Some(id),
        error: Some(Span::new(at + ERROR.len() - 1, end)),
        ..empty(Kind::Error)
    })
}

/// The id of the response that `body` begins with, and where it goes on.
#[inline]
fn response_opening(body: &[u8]) -> Option<(Id, usize)> {
    let start = OPENING.len() + ID.len();
    if !body[OPENING.len()..].starts_with(ID) {
        return None;
    }
    match body.get(start)? {
        b'"' => {
            let (text, at) = text(body, start + 1)?;
            Some((Id::Str(text), at))
        }
        b'0'..=b'9' => integer(body, start),
        _ => None,
    }
}

/// How most requests of clients begin, since all SDKs write the members of a frame in this order:
/// `{"jsonrpc":"2.0","id":N,"method":"…","params":{"sessionId":"…"`. Id, method, session, and where
/// it goes on. Of what follows nothing is known.
pub(super) fn request_opening(body: &[u8]) -> Option<(Id, Text, Text, usize)> {
    if !body.starts_with(OPENING) {
        return None;
    }
    let (id, at) = response_opening(body)?;
    if !body[at..].starts_with(CALLED) {
        return None;
    }
    let (method, at) = text(body, at + CALLED.len())?;
    if !body[at..].starts_with(NAMED) {
        return None;
    }
    let (session, at) = text(body, at + NAMED.len())?;
    Some((id, method, session, at))
}

/// What a value may begin with: the emitter writes no space.
#[inline]
fn begins_value(body: &[u8]) -> bool {
    matches!(
        body,
        [
            b'{' | b'[' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n',
            ..
        ]
    )
}

/// A short string of printable ASCII without escapes, and where it goes on behind its quote.
fn text(body: &[u8], start: usize) -> Option<(Text, usize)> {
    let window = &body[start..body.len().min(start + LONGEST)];
    let length = memchr::memchr(b'"', window)?;
    // Looks at every byte rather than stopping at the first odd one: this way it vectorises.
    let plain = window[..length].iter().fold(true, |plain, byte| {
        plain & matches!(byte, b' '..=b'~') & (*byte != b'\\')
    });
    let end = start + length;
    plain.then(|| {
        (
            Text {
                span: Span::new(start, end),
                escaped: false,
            },
            end + 1,
        )
    })
}

/// A whole number of at most 18 digits, and where it goes on.
fn integer(body: &[u8], start: usize) -> Option<(Id, usize)> {
    let digits = body[start..]
        .iter()
        .take(19)
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    let end = start + digits;
    if digits > 18 || (digits > 1 && body[start] == b'0') {
        return None;
    }
    let value = body[start..end]
        .iter()
        .fold(0, |sum, byte| sum * 10 + i64::from(byte - b'0'));
    Some((Id::Int(value, Span::new(start, end)), end))
}

/// A head that says nothing but its kind.
pub(super) fn empty(kind: Kind) -> Head {
    Head {
        kind,
        id: None,
        method: None,
        params: None,
        session: None,
        params_other_type: false,
        session_other_type: false,
        places: Places::default(),
        wait: false,
        event_type: None,
        traceparent: None,
        result: None,
        error: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::scan::{scan_backend, scan_backend_whole};

    /// So that it cannot silently rot either.
    #[test]
    fn requests_of_sdks_are_recognised() {
        let recorded = include_str!("../../../tests/golden/from_clients.jsonl");
        let named = |line: &&str| line.contains(r#""params":{"sessionId":""#);
        let requests: Vec<&str> = recorded.lines().filter(named).collect();
        assert!(requests.len() >= 8, "{}", requests.len());
        for line in requests {
            let (id, method, session, at) = request_opening(line.as_bytes()).expect(line);
            let head = scan_backend_whole(line.as_bytes()).expect("a frame");
            assert_eq!(
                (Some(id), Some(method), Some(session)),
                (head.id, head.method, head.session)
            );
            assert!(line[at..].starts_with([',', '}']), "{line}");
        }
    }

    /// The short cut is taken for what the CLI was seen to send, so that it cannot silently rot, and
    /// says what the general path says.
    #[test]
    fn the_prefix_path_reads_recorded_events_and_responses() {
        let mut short = 0;
        for line in include_str!("../../../tests/golden/from_backends.jsonl").lines() {
            let body = line.as_bytes();
            let whole = scan_backend_whole(body).expect("a frame");
            let expected = matches!(whole.kind, Kind::Result | Kind::Error) && whole.id.is_some()
                || whole.event_type.is_some();
            assert_eq!(head(body), expected.then_some(whole), "{line}");
            short += usize::from(expected);
        }
        assert!(short >= 7, "{short} recorded frames took the short cut");
    }

    /// Of every beginning of a frame, and of damaged ones: what is said of it is true of the whole.
    #[test]
    fn an_opening_says_what_the_whole_is() {
        let (mut events, mut results) = (0, 0);
        for line in include_str!("../../../tests/golden/from_backends.jsonl").lines() {
            let whole = scan_backend(line.as_bytes()).expect("a frame");
            for end in 0..=line.len() {
                match opening(&line.as_bytes()[..end]) {
                    None => {}
                    Some(Opening::Event {
                        session,
                        event_type,
                    }) => {
                        assert_eq!(whole.session, Some(session), "{line}");
                        assert_eq!(whole.event_type, Some(event_type), "{line}");
                        assert!(line.as_bytes().ends_with(Opening::EVENT_END));
                        events += 1;
                    }
                    Some(Opening::Result { id }) => {
                        assert_eq!((whole.kind, whole.id), (Kind::Result, Some(id)), "{line}");
                        assert!(line.as_bytes().ends_with(Opening::RESULT_END));
                        results += 1;
                    }
                }
            }
        }
        assert!(events > 100 && results > 50, "{events} {results}");
        let long = format!(
            "{}\"{}",
            r#"{"jsonrpc":"2.0","id":"#,
            "7".repeat(LONGEST + 1)
        );
        for start in [
            r#"{"jsonrpc":"2.0","id":1,"error":{"code":1"#,
            r#"{"jsonrpc":"2.0","id":1,"result":"#,
            r#"{"jsonrpc":"2.0","id":1,"result": {"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"hooks.invoke""#,
            r#"{"jsonrpc":"2.0","id":12"#,
            &long,
        ] {
            assert_eq!(opening(start.as_bytes()), None, "{start}");
        }
    }

    /// Reads an event by its session as `head` reads it, from a body and every damaged copy of it.
    #[test]
    fn a_run_is_read_as_its_heads_are() {
        let mut read = 0;
        for line in include_str!("../../../tests/golden/from_backends.jsonl").lines() {
            let whole = scan_backend_whole(line.as_bytes()).expect("a frame");
            let Some(session) = whole.session.filter(|_| whole.event_type.is_some()) else {
                assert!(event_of(line.as_bytes(), b"s").is_none(), "{line}");
                continue;
            };
            let session = session.get(line.as_bytes()).into_owned();
            let named = event_session(line.as_bytes());
            assert_eq!(named, Some(session.as_bytes()), "{line}");
            for other in [session[1..].to_owned(), format!("{session}x")] {
                let found = event_of(line.as_bytes(), other.as_bytes());
                assert!(found.is_none(), "{line}");
            }
            let (kind, alike) = event_of(line.as_bytes(), session.as_bytes()).expect("an event");
            assert!(!Alike::default().begins(line.as_bytes()));
            for at in 0..line.len() {
                for byte in *b"\"\\}x,\n\xff" {
                    let mut body = line.as_bytes().to_vec();
                    body[at] = byte;
                    let expected = head(&body).and_then(|head| {
                        let named = head.session.is_some_and(|s| s.get(&body) == session);
                        let event_type = head.event_type.filter(|_| named)?;
                        Some(event_type.get(&body).into_owned().into_bytes())
                    });
                    let found = event_of(&body, session.as_bytes()).map(|(kind, _)| kind.to_vec());
                    assert_eq!(found, expected, "{}", String::from_utf8_lossy(&body));
                    let same = found.as_deref() == Some(kind) && at != alike.0.len() - 1;
                    if same || alike.begins(&body) {
                        assert_eq!(found.as_deref(), Some(kind));
                        assert!(alike.begins(&body), "{}", String::from_utf8_lossy(&body));
                    }
                    for cut in [body.len() - 1, alike.0.len(), alike.0.len() - 1] {
                        let (body, by) = (&body[..cut], session.as_bytes());
                        assert!(event_of(body, by).is_some() || !alike.begins(body));
                    }
                    read += usize::from(found.is_some());
                }
            }
        }
        assert!(read > 1000, "{read} events were read");
    }

    #[test]
    fn the_prefix_path_leaves_all_else_alone() {
        let event = |session: &str, rest: &str| {
            let session = format!(r#"{{"sessionId":"{session}","event":{{"type":"{rest}"#);
            format!(r#"{{"jsonrpc":"2.0","method":"session.event","params":{session}"#)
        };
        let long = "x".repeat(300);
        let id = "1".repeat(19);
        for body in [
            event(r"a\u0041", r#"x"}}}"#),
            event("é", r#"x"}}}"#),
            event(&long, r#"x"}}}"#),
            event("a", r#"é"}}}"#),
            event("a", r#"x"}}} "#),
            event("a", r#"x"}} }"#),
            event("a", r#"x" ,"data":{}}}}"#),
            event("a", "x"),
            event("a", ""),
            r#"{"jsonrpc":"2.0","method":"session.event","params":{"sessionId":"a","#.to_owned(),
            r#"{"jsonrpc":"2.0","id":1,"result": {}}"#.to_owned(),
            r#"{"jsonrpc":"2.0","id":1,"result":}"#.to_owned(),
            r#"{"jsonrpc":"2.0","id":1,"result":{} "#.to_owned(),
            r#"{"jsonrpc":"2.0","id":1,"error":null}"#.to_owned(),
            r#"{"jsonrpc":"2.0","id":1,"error":[1,"m"]}"#.to_owned(),
            r#"{"jsonrpc":"2.0","id":1,"error":{}"#.to_owned(),
            r#"{"jsonrpc":"2.0","id":1,"error":{"#.to_owned(),
            r#"{"jsonrpc":"2.0","id":1,"foo":{}}"#.to_owned(),
            r#"{"jsonrpc":"2.0","id":01,"result":{}}"#.to_owned(),
            r#"{"jsonrpc":"2.0","id":1.5,"result":{}}"#.to_owned(),
            r#"{"jsonrpc":"2.0","id":-1,"result":{}}"#.to_owned(),
            r#"{"jsonrpc":"2.0","id":null,"result":{}}"#.to_owned(),
            r#"{"jsonrpc":"2.0","id":"a\nb","result":{}}"#.to_owned(),
            format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#),
            r#"{"jsonrpc":"2.0","id":"#.to_owned(),
            r#"{"jsonrpc":"2.0","#.to_owned(),
            r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#.to_owned(),
        ] {
            assert_eq!(head(body.as_bytes()), None, "{body}");
            assert_eq!(
                scan_backend(body.as_bytes()),
                scan_backend_whole(body.as_bytes())
            );
        }
    }
}
