//! Frames as the real server reads them: headers, then a JSON-RPC message, with its own words for
//! everything that is wrong.
//!
//! Errors and quirks were taken from CLI 1.0.102 call by call (a `Content-Length` of `40.0` is 40,
//! of `0x28` is 0). This file must not act on a message, nor know any method.

use bytes::{Buf, Bytes, BytesMut};
use serde::Deserialize;
use serde_json::Value;

/// Longest header block that may be buffered without its end.
const HEADER_MAX: usize = 65_536;

/// What the start of the buffer holds.
pub(super) enum Cut {
    /// A complete body, taken out of the buffer.
    Frame(Bytes),
    /// More bytes are needed.
    Incomplete,
    /// The stream cannot be read on: this text is sent (`id:null`, -32700), then the connection
    /// closes.
    Broken(String),
}

/// Takes the first frame off `buffer`.
pub(super) fn cut(buffer: &mut BytesMut) -> Cut {
    let Some(end) = memchr::memmem::find(buffer, b"\r\n\r\n") else {
        if buffer.len() > HEADER_MAX {
            let buffered = buffer.len();
            return Cut::Broken(format!(
                "Message header exceeds maximum length {HEADER_MAX} (buffered {buffered})"
            ));
        }
        return Cut::Incomplete;
    };
    let length = match content_length(&buffer[..end]) {
        Ok(length) => length,
        Err(text) => return Cut::Broken(text),
    };
    let start = end + 4;
    match start.checked_add(length) {
        Some(whole) if whole <= buffer.len() => {
            buffer.advance(start);
            Cut::Frame(buffer.split_to(length).freeze())
        }
        // A length that no buffer will reach is waited for, as the real server does.
        Some(_) | None => Cut::Incomplete,
    }
}

fn content_length(block: &[u8]) -> Result<usize, String> {
    let mut found = None;
    let block = String::from_utf8_lossy(block);
    for line in block.split("\r\n") {
        let Some((name, value)) = line.split_once(':') else {
            return Err("Message header must separate key and value using ':'".to_owned());
        };
        if name.eq_ignore_ascii_case("content-length") {
            found = Some(value.trim().to_owned());
        }
    }
    let Some(value) = found.filter(|value| !value.is_empty()) else {
        return Err("Header must provide a Content-Length property.".to_owned());
    };
    leading_number(&value)
        .ok_or_else(|| format!("Content-Length value must be a number. Got {value}"))
}

/// The number that `value` starts with; what follows the digits does not matter.
fn leading_number(value: &str) -> Option<usize> {
    let digits = value.strip_prefix('+').unwrap_or(value);
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    digits[..end].parse().ok()
}

/// A request id, echoed exactly.
#[derive(Clone, PartialEq, Eq, Hash, Deserialize, Debug)]
#[serde(untagged)]
pub(super) enum RequestId {
    /// A signed 64-bit integer.
    Number(i64),
    /// Any string.
    Text(String),
}

impl RequestId {
    /// The id as JSON.
    pub(super) fn json(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => super::event::quoted(text),
        }
    }
}

/// One message of a client.
pub(super) enum Message {
    /// Wants an answer.
    Request {
        id: RequestId,
        method: String,
        params: Value,
    },
    /// Wants none, and gets none.
    Notification { method: String, params: Value },
    /// The client's answer to a request of ours. `result` is absent if it is an error.
    Response {
        id: Option<RequestId>,
        result: Option<Value>,
    },
}

/// A body that is answered with `id:null`.
pub(super) struct Rejected {
    /// -32700 or -32600.
    pub(super) code: i32,
    /// The real server's words.
    pub(super) text: String,
}

#[derive(Deserialize)]
struct Request {
    jsonrpc: String,
    id: RequestId,
    method: String,
    #[serde(default)]
    params: Value,
}

#[derive(Deserialize)]
struct Notification {
    jsonrpc: String,
    method: String,
    #[serde(default)]
    params: Value,
}

#[derive(Deserialize)]
struct Response {
    jsonrpc: String,
    id: Option<RequestId>,
    result: Option<Value>,
    #[serde(default, rename = "error")]
    _error: Option<ResponseError>,
}

#[derive(Deserialize)]
struct ResponseError {
    #[serde(rename = "code")]
    _code: i64,
    #[serde(rename = "message")]
    _message: String,
}

/// Reads a body. The last of duplicate keys wins, as in the real server: both use serde_json.
pub(super) fn read(body: &[u8]) -> Result<Message, Rejected> {
    let value: Value = serde_json::from_slice(body).map_err(|error| Rejected {
        code: -32700,
        text: error.to_string(),
    })?;
    let id = value.get("id");
    let has_method = value.get("method").is_some_and(Value::is_string);
    let has_id = id.is_some_and(|id| id.is_string() || id.is_number());
    let answers = value.get("result").is_some() || value.get("error").is_some();
    if has_method && has_id {
        let request: Request = typed(value)?;
        version(&request.jsonrpc)?;
        let Request {
            id, method, params, ..
        } = request;
        Ok(Message::Request { id, method, params })
    } else if has_method && id.is_none() {
        let notification: Notification = typed(value)?;
        version(&notification.jsonrpc)?;
        let Notification { method, params, .. } = notification;
        Ok(Message::Notification { method, params })
    } else if answers && (has_id || id.is_some_and(Value::is_null)) {
        let response: Response = typed(value)?;
        version(&response.jsonrpc)?;
        Ok(Message::Response {
            id: response.id,
            result: response.result,
        })
    } else {
        let text = "not a recognizable JSON-RPC request, notification, or response";
        Err(Rejected {
            code: -32600,
            text: text.to_owned(),
        })
    }
}

fn typed<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, Rejected> {
    serde_json::from_value(value).map_err(|error| Rejected {
        code: -32600,
        text: error.to_string(),
    })
}

fn version(found: &str) -> Result<(), Rejected> {
    if found == "2.0" {
        return Ok(());
    }
    let text = format!("unsupported jsonrpc version: expected \"2.0\", got \"{found}\"");
    Err(Rejected { code: -32600, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(text: &str) -> Result<usize, String> {
        content_length(text.as_bytes())
    }

    #[test]
    fn header_values_are_read_like_the_real_server() {
        let forty = [
            "Content-Length: 40",
            "content-length:40",
            "CONTENT-LENGTH:   40  ",
            "Content-Length: +40",
            "Content-Length: 40.0",
            "Content-Length: 40, 40",
            "Content-Length: 0040",
            "Content-Length: 3\r\nContent-Length: 40",
            "Content-Type: x\r\nContent-Length: 40\r\nFoo: y",
            ": 5\r\nContent-Length: 40",
        ];
        for text in forty {
            assert_eq!(header(text), Ok(40), "{text}");
        }
        assert_eq!(header("Content-Length: 0x28"), Ok(0));
    }

    #[test]
    fn broken_headers_are_named() {
        let missing = "Header must provide a Content-Length property.";
        let colon = "Message header must separate key and value using ':'";
        let number = "Content-Length value must be a number. Got";
        let table = [
            ("Foo: 1", missing.to_owned()),
            ("Content-Length : 40", missing.to_owned()),
            ("Content-Length: ", missing.to_owned()),
            ("", colon.to_owned()),
            ("GET / HTTP/1.1", colon.to_owned()),
            ("Content-Length: x", format!("{number} x")),
            ("Content-Length: -5", format!("{number} -5")),
            (
                "Content-Length: 99999999999999999999999",
                format!("{number} 99999999999999999999999"),
            ),
        ];
        for (text, expected) in table {
            assert_eq!(header(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn frames_are_cut_whole_and_in_order() {
        let mut buffer =
            BytesMut::from(&b"Content-Length: 2\r\n\r\n{}Content-Length: 4\r\n\r\nnu"[..]);
        assert!(matches!(cut(&mut buffer), Cut::Frame(body) if body == "{}"));
        assert!(matches!(cut(&mut buffer), Cut::Incomplete));
        buffer.extend_from_slice(b"ll");
        assert!(matches!(cut(&mut buffer), Cut::Frame(body) if body == "null"));
        assert!(buffer.is_empty());
    }

    #[test]
    fn a_header_without_end_is_given_up() {
        let mut buffer = BytesMut::from(&vec![b'a'; HEADER_MAX + 1][..]);
        assert!(matches!(cut(&mut buffer), Cut::Broken(text) if text.contains("buffered 65537")));
    }

    #[test]
    fn the_last_duplicate_key_wins() {
        let body = br#"{"jsonrpc":"2.0","id":1,"id":2,"method":"a","m\u0065thod":"b"}"#;
        let Ok(Message::Request { id, method, .. }) = read(body) else {
            panic!("a request");
        };
        assert_eq!((id, method.as_str()), (RequestId::Number(2), "b"));
    }
}
