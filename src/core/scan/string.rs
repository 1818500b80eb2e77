//! Strings: where they end, whether they are sound, and what they mean.

use super::{
    Span, Text,
    json::{Cursor, Fault, Syntax},
};

/// A string is walked in words this far before a vectorised search takes over.
const SHORT: usize = 64;

/// Whether `\ud83d` needs its other half.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Surrogates {
    /// As serde_json has it: lone ones are faults.
    Paired,
    /// Lone ones pass.
    Any,
}

impl Cursor<'_> {
    /// Reads the string whose quote comes next.
    #[inline]
    pub(super) fn string(&mut self) -> Result<Text, Fault> {
        self.at += 1;
        let start = self.at;
        let mut escaped = false;
        loop {
            self.skip_plain();
            match self.body.get(self.at) {
                Some(b'"') => {
                    let span = Span::new(start, self.at);
                    self.at += 1;
                    if self.valid < self.at {
                        return Err(self.not_utf8(span));
                    }
                    return Ok(Text { span, escaped });
                }
                Some(b'\\') => {
                    escaped = true;
                    self.at += 1;
                    self.escape()?;
                }
                Some(_) => {
                    self.at += 1;
                    return Err(self.fault(Syntax::ControlCharacter));
                }
                None => return Err(self.fault(Syntax::EofString)),
            }
        }
    }

    /// Moves on to the next quote, backslash or control character, or to the end of the body.
    #[inline]
    fn skip_plain(&mut self) {
        const ONES: u64 = u64::MAX / 255;
        let rest = &self.body[self.at..];
        // Eight bytes at a time: a byte's high bit is set if the byte stops us, and nothing
        // below the lowest set bit is a false alarm.
        for chunk in rest[..rest.len().min(SHORT)].chunks_exact(8) {
            let bytes = u64::from_le_bytes(chunk.try_into().expect("chunks of exactly 8"));
            let quote = bytes ^ (ONES * u64::from(b'"'));
            let backslash = bytes ^ (ONES * u64::from(b'\\'));
            let stops = (bytes.wrapping_sub(ONES * 0x20) & !bytes)
                | (quote.wrapping_sub(ONES) & !quote)
                | (backslash.wrapping_sub(ONES) & !backslash);
            let stops = stops & (ONES << 7);
            if stops != 0 {
                self.at += stops.trailing_zeros() as usize / 8;
                return;
            }
            self.at += 8;
        }
        let rest = &self.body[self.at..];
        let end = if rest.len() < 8 {
            rest.len()
        } else {
            memchr::memchr2(b'"', b'\\', rest).unwrap_or(rest.len())
        };
        let stop = |byte: &u8| matches!(byte, b'"' | b'\\' | ..0x20);
        // The minimum vectorises; where the offending byte stands matters only if there is one.
        let plain = end >= 8
            && rest[..end]
                .iter()
                .fold(0xff, |low: u8, &byte| low.min(byte))
                >= 0x20;
        self.at += if plain {
            end
        } else {
            rest[..end].iter().position(stop).unwrap_or(end)
        };
    }

    /// Reads what follows a backslash.
    fn escape(&mut self) -> Result<(), Fault> {
        match self.next() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(()),
            Some(b'u') => self.unicode_escape(),
            Some(_) => Err(self.fault(Syntax::InvalidEscape)),
            None => Err(self.fault(Syntax::EofString)),
        }
    }

    /// Reads the digits behind `\u`, and the other half of a surrogate pair.
    fn unicode_escape(&mut self) -> Result<(), Fault> {
        let unit = self.hex()?;
        if self.surrogates == Surrogates::Any {
            // Both halves are escapes of their own, paired or not.
            return Ok(());
        }
        match unit {
            0xDC00..=0xDFFF => return Err(self.fault(Syntax::LoneSurrogate)),
            0xD800..=0xDBFF => {}
            _ => return Ok(()),
        }
        for expected in [b'\\', b'u'] {
            match self.next() {
                Some(byte) if byte == expected => {}
                Some(_) => return Err(self.fault(Syntax::UnexpectedEndOfHexEscape)),
                None => return Err(self.fault(Syntax::EofString)),
            }
        }
        match self.hex()? {
            0xDC00..=0xDFFF => Ok(()),
            _ => Err(self.fault(Syntax::LoneSurrogate)),
        }
    }

    fn hex(&mut self) -> Result<u16, Fault> {
        let Some(digits) = self.body.get(self.at..self.at + 4) else {
            self.at = self.body.len();
            return Err(self.fault(Syntax::EofString));
        };
        self.at += 4;
        hex(digits).ok_or(self.fault(Syntax::InvalidEscape))
    }

    /// A string just read is not UTF-8. serde_json counts back from the closing quote by the
    /// length that the rest of the string has once it is unescaped.
    #[cold]
    fn not_utf8(&self, string: Span) -> Fault {
        let mut length = 0;
        unescape(&self.body[self.valid..string.end as usize], |part| {
            length += part.len()
        });
        Fault {
            syntax: Syntax::InvalidUnicode,
            at: self.at - length,
        }
    }
}

fn hex(digits: &[u8]) -> Option<u16> {
    digits.iter().try_fold(0, |unit, &digit| {
        Some(unit << 4 | u16::try_from(char::from(digit).to_digit(16)?).ok()?)
    })
}

/// Hands out what the inside of an accepted string means, part by part. Lone surrogates become
/// U+FFFD.
pub(super) fn unescape(raw: &[u8], mut part: impl FnMut(&[u8])) {
    let mut rest = raw;
    while let Some(plain) = memchr::memchr(b'\\', rest) {
        part(&rest[..plain]);
        let (character, length) = escaped(&rest[plain..]);
        part(character.encode_utf8(&mut [0; 4]).as_bytes());
        rest = &rest[plain + length..];
    }
    part(rest);
}

/// The character that the escape at the start of `raw` stands for, and the escape's length.
fn escaped(raw: &[u8]) -> (char, usize) {
    let unit = |at: usize| {
        let escape = raw.get(at..at + 6)?;
        escape
            .starts_with(b"\\u")
            .then(|| hex(&escape[2..]))
            .flatten()
    };
    let lone = char::REPLACEMENT_CHARACTER;
    match raw.get(1) {
        Some(b'b') => ('\u{8}', 2),
        Some(b'f') => ('\u{c}', 2),
        Some(b'n') => ('\n', 2),
        Some(b'r') => ('\r', 2),
        Some(b't') => ('\t', 2),
        Some(b'u') => {
            let Some(high) = unit(0) else {
                return (lone, raw.len().min(6));
            };
            let pair = match (high, unit(6)) {
                (0xD800..=0xDBFF, Some(low @ 0xDC00..=0xDFFF)) => {
                    char::decode_utf16([high, low]).next().and_then(Result::ok)
                }
                _ => None,
            };
            match pair {
                Some(character) => (character, 12),
                None => (char::from_u32(high.into()).unwrap_or(lone), 6),
            }
        }
        Some(&byte) => (char::from(byte), 2),
        None => (lone, 1),
    }
}
