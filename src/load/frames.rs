//! What a server says, as far as load must know it: frames cut from any chunks in bounded memory,
//! and which of them ends a turn. Only frames that are none of the usual events are parsed.

use std::borrow::Cow;

use memchr::memchr;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::core::frame::{Cut, Cutter, FrameError, FrameLimits};

/// Of a longer frame only the beginning is kept: an event says there what it is.
const KEPT: usize = 64 * 1024;

/// What is kept of a buffer when nothing is in it.
const IDLE_CAPACITY: usize = 4096;

const LIMITS: FrameLimits = FrameLimits {
    header: 4096,
    frame: usize::MAX / 2,
};

/// Cuts one connection's bytes into frames.
#[derive(Debug)]
pub(super) struct Frames {
    cutter: Cutter,
    /// The beginning of a frame that has not come whole.
    carry: Vec<u8>,
    /// Bytes still to come of a frame whose beginning has been told.
    skip: usize,
}

impl Frames {
    pub(super) fn new() -> Self {
        Self {
            cutter: Cutter::new(LIMITS),
            carry: Vec::new(),
            skip: 0,
        }
    }

    /// Tells each body that is whole now, or the first [`KEPT`] bytes of it.
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), FrameError> {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len());
                self.skip -= skipped;
                bytes = &bytes[skipped..];
            } else if self.carry.is_empty() {
                match self.cutter.cut(bytes)? {
                    Cut::Frame { body, .. } => {
                        each(&bytes[body.clone()]);
                        bytes = &bytes[body.end..];
                    }
                    Cut::Incomplete { .. } => {
                        let kept = bytes.len().min(KEPT);
                        self.carry.extend_from_slice(&bytes[..kept]);
                        bytes = &bytes[kept..];
                        self.tell_long(&mut each)?;
                    }
                }
            } else {
                bytes = self.go_on(bytes, &mut each)?;
            }
        }
        Ok(())
    }

    /// Goes on with the frame in `carry`; returns what was not needed for it.
    fn go_on<'a>(
        &mut self,
        bytes: &'a [u8],
        each: &mut impl FnMut(&[u8]),
    ) -> Result<&'a [u8], FrameError> {
        let had = self.carry.len();
        let wanted = match self.cutter.cut(&self.carry)? {
            Cut::Incomplete { total: Some(total) } => total.min(KEPT).saturating_sub(had),
            // Enough for any usual header.
            Cut::Incomplete { total: None } | Cut::Frame { .. } => 64,
        };
        let taken = wanted.max(1).min(bytes.len());
        self.carry.extend_from_slice(&bytes[..taken]);
        if let Cut::Frame { body, .. } = self.cutter.cut(&self.carry)? {
            each(&self.carry[body.clone()]);
            self.give_back();
            return Ok(&bytes[body.end - had..]);
        }
        self.tell_long(each)?;
        Ok(&bytes[taken..])
    }

    /// Tells the frame in `carry` and forgets it, if no more of it is to be kept.
    fn tell_long(&mut self, each: &mut impl FnMut(&[u8])) -> Result<(), FrameError> {
        if self.carry.len() >= KEPT
            && let Cut::Incomplete { total: Some(total) } = self.cutter.cut(&self.carry)?
        {
            let header = memchr::memmem::find(&self.carry, b"\r\n\r\n").map_or(0, |at| at + 4);
            each(&self.carry[header..]);
            self.skip = total - self.carry.len();
            self.cutter = Cutter::new(LIMITS);
            self.give_back();
        }
        Ok(())
    }

    fn give_back(&mut self) {
        self.carry.clear();
        self.carry.shrink_to(IDLE_CAPACITY);
    }
}

/// What a frame means to the load.
#[derive(Debug, PartialEq)]
pub(super) enum Heard<'a> {
    /// `session.idle`: a turn has ended.
    Idle { session: &'a str },
    /// `session.error`: the turn that runs there has failed; `session.idle` follows.
    Failed { session: &'a str, message: String },
    /// Any other event.
    Event,
    /// The answer to a call.
    Answer {
        id: u64,
        error: Option<(i64, String)>,
    },
    /// A request, which wants an answer.
    Asked { id: Vec<u8> },
    /// Anything else.
    Other,
}

/// How the CLI begins an event, and where its type stands.
const EVENT: &[u8] = br#"{"jsonrpc":"2.0","method":"session.event","params":{"sessionId":""#;
const TYPE: &[u8] = br#"","event":{"type":""#;
/// How it begins an answer to a call with a number.
const ANSWER: &[u8] = br#"{"jsonrpc":"2.0","id":"#;

/// Understands a body, or the beginning of a long one.
pub(super) fn hear(body: &[u8]) -> Heard<'_> {
    usual(body).unwrap_or_else(|| parsed(body))
}

/// The frames that come in masses, by the places where the CLI writes things.
fn usual(body: &[u8]) -> Option<Heard<'_>> {
    if let Some(rest) = body.strip_prefix(EVENT) {
        let end = memchr(b'"', rest)?;
        let kind = rest[end..].strip_prefix(TYPE)?;
        if kind.starts_with(b"session.idle\"") {
            let session = std::str::from_utf8(&rest[..end]).ok()?;
            // With a backslash in it, the session's name is another one.
            return (!session.contains('\\')).then_some(Heard::Idle { session });
        }
        return (!kind.starts_with(b"session.error\"")).then_some(Heard::Event);
    }
    let rest = body.strip_prefix(ANSWER)?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if !rest[digits..].starts_with(br#","result":"#) {
        return None;
    }
    let id = std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()?;
    Some(Heard::Answer { id, error: None })
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
    error: Option<Complaint>,
}

#[derive(Deserialize)]
struct Complaint {
    code: i64,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
struct SessionEvent<'a> {
    #[serde(rename = "sessionId")]
    session: &'a str,
    event: Event,
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    data: EventData,
}

#[derive(Default, Deserialize)]
struct EventData {
    #[serde(default)]
    message: String,
}

fn parsed(body: &[u8]) -> Heard<'_> {
    let Ok(message) = serde_json::from_slice::<Message<'_>>(body) else {
        return Heard::Other;
    };
    match (message.id, message.method.as_deref()) {
        (Some(id), Some(_)) => Heard::Asked {
            id: id.get().as_bytes().to_vec(),
        },
        (Some(id), None) => match id.get().parse() {
            Ok(id) => Heard::Answer {
                id,
                error: message.error.map(|error| (error.code, error.message)),
            },
            Err(_) => Heard::Other,
        },
        (None, Some("session.event")) => event(message.params),
        (None, Some(_) | None) => Heard::Other,
    }
}

fn event(params: Option<&RawValue>) -> Heard<'_> {
    let params = params.map_or("null", RawValue::get);
    let Ok(SessionEvent { session, event }) = serde_json::from_str(params) else {
        return Heard::Event;
    };
    match event.kind.as_str() {
        "session.idle" => Heard::Idle { session },
        "session.error" => Heard::Failed {
            session,
            message: event.data.message,
        },
        _ => Heard::Event,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::frame::write_header;

    fn framed(body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write_header(body.len(), &mut out);
        out.extend_from_slice(body);
        out
    }

    proptest! {
        /// However the bytes are split, the same bodies are told.
        #[test]
        fn chunks_do_not_matter(
            lengths in prop::collection::vec(prop_oneof![0..300usize, Just(KEPT), Just(200_000)], 1..8),
            cuts in prop::collection::vec(1..4000usize, 1..20),
        ) {
            let bodies: Vec<Vec<u8>> = lengths
                .iter()
                .enumerate()
                .map(|(at, length)| vec![b'a' + at as u8; *length])
                .collect();
            let stream: Vec<u8> = bodies.iter().flat_map(|body| framed(body)).collect();
            let mut frames = Frames::new();
            let mut told = Vec::new();
            let (mut rest, mut cuts) = (&stream[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let cut = (*cuts.next().expect("it goes round")).min(rest.len());
                frames.feed(&rest[..cut], |body| told.push(body.to_vec())).expect("frames");
                rest = &rest[cut..];
            }
            prop_assert_eq!(told.len(), bodies.len());
            for (told, body) in told.iter().zip(&bodies) {
                prop_assert!(body.starts_with(told));
                prop_assert!(told.len() == body.len() || told.len() > KEPT - 64);
            }
            prop_assert!(frames.carry.is_empty() && frames.skip == 0);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _either = Frames::new().feed(&bytes, |body| {
                hear(body);
            });
            hear(&bytes);
        }
    }

    #[test]
    fn a_long_frame_is_not_kept() {
        let mut frames = Frames::new();
        let body = vec![b'x'; 10 << 20];
        let mut told = 0;
        for chunk in framed(&body).chunks(32 * 1024) {
            frames.feed(chunk, |_| told += 1).unwrap();
            assert!(frames.carry.capacity() <= 2 * KEPT);
        }
        assert_eq!((told, frames.skip), (1, 0));
        frames
            .feed(&framed(b"{}"), |body| assert_eq!(body, b"{}"))
            .unwrap();
        assert!(frames.carry.capacity() <= IDLE_CAPACITY);
    }

    #[test]
    fn frames_are_understood() {
        let failed = |message: &str| Heard::Failed {
            session: "s-1",
            message: message.to_owned(),
        };
        let refused = Heard::Answer {
            id: 7,
            error: Some((-32603, "no".to_owned())),
        };
        let idle = Heard::Idle { session: "s-1" };
        for (body, expected) in [
            (
                r#"{"jsonrpc":"2.0","method":"session.event","params":{"sessionId":"s-1","event":{"type":"session.idle","data":{}}}}"#,
                &idle,
            ),
            (
                r#"{"method":"session.event","params":{"event":{"data":{"mode":"x"},"type":"session\u002eidle"},"sessionId":"s-1"}}"#,
                &idle,
            ),
            (
                r#"{"jsonrpc":"2.0","method":"session.event","params":{"sessionId":"s-1","event":{"type":"session.error","data":{"message":"down"}}}}"#,
                &failed("down"),
            ),
            (
                r#"{"jsonrpc":"2.0","method":"session.event","params":{"sessionId":"s-1","event":{"type":"assistant.message_delta","data":{"deltaContent":"\"session.idle\""}}}}"#,
                &Heard::Event,
            ),
            (
                r#"{"jsonrpc":"2.0","id":7,"result":{}}"#,
                &Heard::Answer { id: 7, error: None },
            ),
            (
                r#"{"jsonrpc":"2.0","id":7,"error":{"code":-32603,"message":"no"}}"#,
                &refused,
            ),
            (
                r#"{"jsonrpc":"2.0","id":3,"method":"hooks.invoke","params":{}}"#,
                &Heard::Asked { id: b"3".to_vec() },
            ),
            (
                r#"{"jsonrpc":"2.0","method":"session.lifecycle","params":{}}"#,
                &Heard::Other,
            ),
            (
                r#"{"jsonrpc":"2.0","id":null,"error":{"code":1}}"#,
                &Heard::Other,
            ),
            ("nonsense", &Heard::Other),
        ] {
            assert_eq!(&hear(body.as_bytes()), expected, "{body}");
        }
    }
}
