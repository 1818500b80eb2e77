//! Percent-coding of path segments and query parameters.
//!
//! Must not accept what it cannot read exactly: a bad escape is an error, never passed through.

use std::fmt::Write;

/// A text that is not percent-coded UTF-8.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not percent-coded UTF-8")]
pub(super) struct BadEscape;

/// Decodes a path segment.
pub(super) fn decode(text: &str) -> Result<String, BadEscape> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let [high, low, tail @ ..] = rest else {
            return Err(BadEscape);
        };
        let digit = |byte: &u8| char::from(*byte).to_digit(16).ok_or(BadEscape);
        let value = digit(high)? * 16 + digit(low)?;
        bytes.push(u8::try_from(value).expect("two hexadecimal digits are a byte"));
        rest = tail;
    }
    String::from_utf8(bytes).map_err(|_| BadEscape)
}

/// Encodes a text so that it is one path segment, or one value of a query.
pub(super) fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").expect("writing to a String cannot fail");
        }
    }
    out
}

/// The parameters of a query, decoded; `+` is a space there.
pub(super) fn query(query: &str) -> Result<Vec<(String, String)>, BadEscape> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((
                decode(&name.replace('+', " "))?,
                decode(&value.replace('+', " "))?,
            ))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_survives(text in any::<String>()) {
            let coded = encode(&text);
            prop_assert!(coded.bytes().all(|b| b.is_ascii_graphic() && !b"/?&#+=".contains(&b)));
            prop_assert_eq!(decode(&coded).unwrap(), text.clone());
            let pair = format!("a={coded}");
            prop_assert_eq!(query(&pair).unwrap(), vec![("a".to_owned(), text)]);
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = decode(&text);
            let _ = query(&text);
        }
    }

    #[test]
    fn bad_escapes_are_errors() {
        for text in ["%", "%2", "%zz", "%+1", "%ff", "a%C3"] {
            assert_eq!(decode(text), Err(BadEscape), "{text}");
        }
    }

    #[test]
    fn queries_are_taken_apart() {
        let pairs = |text| query(text).unwrap();
        assert_eq!(pairs(""), []);
        assert_eq!(
            pairs("a=1&b&&c=x+y%2B"),
            [("a", "1"), ("b", ""), ("c", "x y+")].map(|(a, b)| (a.to_owned(), b.to_owned()))
        );
    }
}
