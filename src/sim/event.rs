//! The JSON that the simulated server writes: frames, events, ids and times, with the key order of
//! the real server.
//!
//! Text is put together by hand because serde_json would sort the keys. Nothing here knows a
//! session's state.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Whether an event is written to the session's log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Life {
    /// Part of the history; each one also causes a `session.updated`.
    Kept,
    /// Only sent.
    Ephemeral,
}

/// `text` as a JSON string.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Appends one frame.
pub(super) fn frame_into(out: &mut Vec<u8>, body: &[u8]) {
    head_into(out, body.len());
    out.extend_from_slice(body);
}

fn head_into(out: &mut Vec<u8>, length: usize) {
    out.extend_from_slice(b"Content-Length: ");
    number_into(out, length);
    out.extend_from_slice(b"\r\n\r\n");
}

fn number_into(out: &mut Vec<u8>, number: usize) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        // A remainder of ten fits a digit.
        digits[at] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

fn digits(number: usize) -> usize {
    number.checked_ilog10().map_or(1, |log| log as usize + 1)
}

/// The body of a successful answer; `id` and `result` are JSON.
pub(super) fn result(id: &str, result: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#)
}

/// The body of an error answer; `id` is JSON.
pub(super) fn error(id: &str, code: i32, message: &str) -> String {
    let message = quoted(message);
    format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{code},"message":{message}}}}}"#)
}

/// A request of the server; `params` is JSON.
pub(super) fn request(id: u64, method: &str, params: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}"#)
}

/// One event object; `data` is JSON, `parent` the id before it in the log.
pub(super) fn event(
    kind: &str,
    data: &str,
    life: Life,
    id: &str,
    time: &str,
    parent: Option<&str>,
) -> String {
    let ephemeral = match life {
        Life::Kept => "",
        Life::Ephemeral => r#""ephemeral":true,"#,
    };
    let parent = parent.map_or_else(|| "null".to_owned(), |parent| format!("\"{parent}\""));
    format!(
        r#"{{"type":"{kind}","data":{data},{ephemeral}"id":"{id}","timestamp":"{time}","parentId":{parent}}}"#
    )
}

/// The notification that carries `event`.
pub(super) fn session_event(session: &str, event: &str) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","method":"session.event","params":{{"sessionId":"{session}","event":{event}}}}}"#
    )
}

/// The broadcast about a session's life. `metadata` is absent for `session.deleted`.
pub(super) fn lifecycle(kind: &str, session: &str, metadata: Option<(&str, &str)>) -> String {
    let mut body = format!(
        r#"{{"jsonrpc":"2.0","method":"session.lifecycle","params":{{"type":"{kind}","sessionId":{}"#,
        quoted(session)
    );
    if let Some((start, modified)) = metadata {
        let _ = write!(
            body,
            r#","metadata":{{"startTime":"{start}","modifiedTime":"{modified}"}}"#
        );
    }
    body.push_str("}}");
    body
}

/// The wall clock as the real server prints it: `2026-11-22T06:29:46.173Z`.
pub(super) fn now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

/// Milliseconds since 1970.
pub(super) fn now_millis() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_millis()
}

/// Nanoseconds, as in `ping`.
pub(super) fn now_nanos() -> String {
    humantime::format_rfc3339_nanos(SystemTime::now()).to_string()
}

/// A seeded source of numbers and UUIDs, shared without a lock.
pub(super) struct Numbers(AtomicU64);

impl Numbers {
    /// A source of its own for each seed.
    pub(super) fn new(seed: u64) -> Self {
        Self(AtomicU64::new(mix(seed)))
    }

    /// The next number (splitmix64).
    pub(super) fn next(&self) -> u64 {
        mix(self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed))
    }

    /// A number below `bound`; 0 if that is 0.
    pub(super) fn below(&self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.next() % bound).unwrap_or(0)
    }

    /// A UUID v4.
    pub(super) fn uuid(&self) -> String {
        let mut text = Vec::with_capacity(36);
        self.uuid_into(&mut text);
        String::from_utf8(text).expect("hexadecimal digits and dashes")
    }

    /// Appends a UUID v4.
    pub(super) fn uuid_into(&self, out: &mut Vec<u8>) {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let high = (self.next() & !0xf000) | 0x4000;
        let low = (self.next() & !(0b11 << 62)) | (0b10 << 62);
        let bits = (u128::from(high) << 64) | u128::from(low);
        for place in 0..32 {
            if matches!(place, 8 | 12 | 16 | 20) {
                out.push(b'-');
            }
            out.push(HEX[(bits >> (124 - 4 * place)) as usize & 15]);
        }
    }
}

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The two frames of each streamed token, built from fixed parts.
///
/// Benches use the simulated server as a source of load, so a delta costs a few copies and two
/// UUIDs, and no allocation.
pub(super) struct Deltas {
    streaming: [Vec<u8>; 2],
    message: [Vec<u8>; 2],
    middle: &'static [u8],
    tail: Vec<u8>,
}

/// Length of a UUID and of a time with milliseconds.
const UUID: usize = 36;
const TIME: usize = 24;

impl Deltas {
    /// For one assistant message of `session`, whose log ends with the event `parent`.
    pub(super) fn new(session: &str, message: &str, parent: &str) -> Self {
        let start = |kind: &str, data: &str| {
            format!(
                r#"{{"jsonrpc":"2.0","method":"session.event","params":{{"sessionId":"{session}","event":{{"type":"{kind}","data":{{{data}"#
            )
            .into_bytes()
        };
        let content = format!(r#""messageId":"{message}","deltaContent":""#);
        Self {
            streaming: [
                start("assistant.streaming_delta", r#""totalResponseSizeBytes":"#),
                br#"},"ephemeral":true,"id":""#.to_vec(),
            ],
            message: [
                start("assistant.message_delta", &content),
                br#""},"ephemeral":true,"id":""#.to_vec(),
            ],
            middle: br#"","timestamp":""#,
            tail: format!(r#"","parentId":"{parent}"}}}}}}"#).into_bytes(),
        }
    }

    /// Appends the size frame: `total` bytes of the reply have come so far.
    pub(super) fn streaming_into(
        &self,
        out: &mut Vec<u8>,
        numbers: &Numbers,
        time: &str,
        total: usize,
    ) {
        head_into(out, self.length(&self.streaming) + digits(total));
        out.extend_from_slice(&self.streaming[0]);
        number_into(out, total);
        self.rest_into(out, numbers, time, &self.streaming[1]);
    }

    /// Appends the text frame. `content` must need no escape.
    pub(super) fn message_into(
        &self,
        out: &mut Vec<u8>,
        numbers: &Numbers,
        time: &str,
        content: &[u8],
    ) {
        head_into(out, self.length(&self.message) + content.len());
        out.extend_from_slice(&self.message[0]);
        out.extend_from_slice(content);
        self.rest_into(out, numbers, time, &self.message[1]);
    }

    fn length(&self, parts: &[Vec<u8>; 2]) -> usize {
        parts[0].len() + parts[1].len() + UUID + self.middle.len() + TIME + self.tail.len()
    }

    fn rest_into(&self, out: &mut Vec<u8>, numbers: &Numbers, time: &str, before: &[u8]) {
        debug_assert_eq!(time.len(), TIME);
        out.extend_from_slice(before);
        numbers.uuid_into(out);
        out.extend_from_slice(self.middle);
        out.extend_from_slice(time.as_bytes());
        out.extend_from_slice(&self.tail);
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use serde_json::Value;

    use super::{super::framing, *};

    #[test]
    fn delta_frames_are_whole_and_in_the_real_key_order() {
        let numbers = Numbers::new(7);
        let deltas = Deltas::new("s-1", &numbers.uuid(), &numbers.uuid());
        let mut out = Vec::new();
        deltas.streaming_into(&mut out, &numbers, &now(), 12_345);
        deltas.message_into(&mut out, &numbers, &now(), b"w0 ");
        let mut buffer = BytesMut::from(&out[..]);
        for kind in ["assistant.streaming_delta", "assistant.message_delta"] {
            let framing::Cut::Frame(body) = framing::cut(&mut buffer) else {
                panic!("a whole frame");
            };
            let text = std::str::from_utf8(&body).unwrap();
            let value: Value = serde_json::from_str(text).unwrap();
            assert_eq!(value["params"]["event"]["type"], kind);
            let order = [
                "jsonrpc",
                "method",
                "params",
                "sessionId",
                "event",
                "type",
                "data",
            ]
            .map(|key| text.find(&format!("\"{key}\"")).unwrap());
            assert!(order.is_sorted(), "{text}");
        }
        assert!(buffer.is_empty());
    }

    #[test]
    fn uuids_are_version_four_and_differ() {
        let numbers = Numbers::new(1);
        let (a, b) = (numbers.uuid(), numbers.uuid());
        assert_ne!(a, b);
        for text in [a, b] {
            assert_eq!(text.len(), UUID);
            assert_eq!(&text[14..15], "4");
            assert!(matches!(&text[19..20], "8" | "9" | "a" | "b"), "{text}");
        }
    }

    #[test]
    fn times_have_the_fixed_length() {
        assert_eq!(now().len(), TIME);
    }
}
