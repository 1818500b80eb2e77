//! A cursor over JSON text that judges as serde_json does and builds nothing.
//!
//! Every check, its order and the position it reports follow serde_json's deserializer reading a
//! slice into a value, because that is what the CLI answers with; the tests compare them. It must
//! not recurse: what an attacker nests is held in the bits of one integer.

use super::{Span, Text, number::Number, string::Surrogates};

/// Containers that may be open at once; serde_json refuses to open the 128th.
const DEEPEST: u32 = 127;

/// What is wrong with a text that is not JSON.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Syntax {
    /// The text ends where an array goes on.
    #[error("EOF while parsing a list")]
    EofList,
    /// The text ends where an object goes on.
    #[error("EOF while parsing an object")]
    EofObject,
    /// The text ends in a string.
    #[error("EOF while parsing a string")]
    EofString,
    /// The text ends where a value should be, or in one.
    #[error("EOF while parsing a value")]
    EofValue,
    /// No colon behind a key.
    #[error("expected `:`")]
    ExpectedColon,
    /// Neither comma nor bracket behind an element.
    #[error("expected `,` or `]`")]
    ExpectedListEnd,
    /// Neither comma nor brace behind a member.
    #[error("expected `,` or `}}`")]
    ExpectedObjectEnd,
    /// A word other than `null`, `true`, `false`.
    #[error("expected ident")]
    ExpectedIdent,
    /// Something that begins no value.
    #[error("expected value")]
    ExpectedValue,
    /// A backslash before something that it does not escape.
    #[error("invalid escape")]
    InvalidEscape,
    /// A number that is not spelled as JSON wants it.
    #[error("invalid number")]
    InvalidNumber,
    /// A number beyond the range of a 64-bit float.
    #[error("number out of range")]
    NumberOutOfRange,
    /// A string that is not UTF-8.
    #[error("invalid unicode code point")]
    InvalidUnicode,
    /// A byte below 0x20 in a string.
    #[error("control character (\\u0000-\\u001F) found while parsing a string")]
    ControlCharacter,
    /// A key that is no string.
    #[error("key must be a string")]
    KeyMustBeAString,
    /// A trailing surrogate that nothing leads, or a leading one before another escape.
    #[error("lone leading surrogate in hex escape")]
    LoneSurrogate,
    /// A leading surrogate that nothing follows.
    #[error("unexpected end of hex escape")]
    UnexpectedEndOfHexEscape,
    /// A comma before a closing bracket or brace.
    #[error("trailing comma")]
    TrailingComma,
    /// Something behind the value.
    #[error("trailing characters")]
    TrailingCharacters,
    /// More than 127 containers open at once.
    #[error("recursion limit exceeded")]
    RecursionLimit,
}

/// A fault and the offset that stands for its position.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Fault {
    pub(super) syntax: Syntax,
    /// Number of bytes that are counted for line and column.
    pub(super) at: usize,
}

/// A value that has been read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Number(Number, Span),
    Text(Text),
    Array(Span),
    Object(Span),
}

/// A place in a body and what is known about the body as a whole.
pub(super) struct Cursor<'a> {
    pub(super) body: &'a [u8],
    /// Offset of the next byte.
    pub(super) at: usize,
    /// Offset of the first byte that is not UTF-8; the length of the body if all is.
    pub(super) valid: usize,
    pub(super) surrogates: Surrogates,
    /// The body, if all of it was found to be UTF-8.
    pub(super) text: Option<&'a str>,
}

impl<'a> Cursor<'a> {
    /// A cursor at the start of `body`, which must not exceed 4 GiB.
    pub(super) fn new(body: &'a [u8], surrogates: Surrogates) -> Self {
        // Once over the whole body is much faster than string by string, and finds the same:
        // outside of strings only ASCII is accepted, and quotes are ASCII.
        let text = std::str::from_utf8(body);
        Self {
            body,
            at: 0,
            valid: text.map_or_else(|error| error.valid_up_to(), str::len),
            surrogates,
            text: text.ok(),
        }
    }

    /// The same, of a body whose strings are not judged: wherever they are not UTF-8, so be it.
    pub(super) fn trusting(body: &'a [u8], surrogates: Surrogates) -> Self {
        Self {
            body,
            at: 0,
            valid: body.len(),
            surrogates,
            text: None,
        }
    }

    /// Skips white space; the next byte, not consumed.
    #[inline]
    pub(super) fn peek(&mut self) -> Option<u8> {
        loop {
            let byte = *self.body.get(self.at)?;
            // One comparison is enough for compact JSON, which has no white space.
            if byte > b' ' || !matches!(byte, b' ' | b'\n' | b'\t' | b'\r') {
                return Some(byte);
            }
            self.at += 1;
        }
    }

    /// Nothing but white space may follow.
    pub(super) fn end(&mut self) -> Result<(), Fault> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.unexpected(Syntax::TrailingCharacters)),
        }
    }

    /// Steps into the container whose bracket comes next; `open` others are open around it.
    pub(super) fn enter(&mut self, open: u32) -> Result<(), Fault> {
        if open >= DEEPEST {
            return Err(self.unexpected(Syntax::RecursionLimit));
        }
        self.at += 1;
        Ok(())
    }

    /// The next key of the object that the cursor is in, with its colon, or the object's end.
    #[inline]
    pub(super) fn key(&mut self, first: bool) -> Result<Option<Text>, Fault> {
        let syntax = match self.peek() {
            Some(b'}') => {
                self.at += 1;
                return Ok(None);
            }
            Some(b'"') if first => return self.key_and_colon().map(Some),
            Some(b',') if !first => {
                self.at += 1;
                match self.peek() {
                    Some(b'"') => return self.key_and_colon().map(Some),
                    Some(b'}') => Syntax::TrailingComma,
                    Some(_) => Syntax::KeyMustBeAString,
                    None => Syntax::EofValue,
                }
            }
            Some(_) if first => Syntax::KeyMustBeAString,
            Some(_) => Syntax::ExpectedObjectEnd,
            None => Syntax::EofObject,
        };
        Err(self.unexpected(syntax))
    }

    fn key_and_colon(&mut self) -> Result<Text, Fault> {
        let key = self.string()?;
        let syntax = match self.peek() {
            Some(b':') => {
                self.at += 1;
                return Ok(key);
            }
            Some(_) => Syntax::ExpectedColon,
            None => Syntax::EofObject,
        };
        Err(self.unexpected(syntax))
    }

    /// Whether the array that the cursor is in goes on; if so an element comes next.
    #[inline]
    pub(super) fn element(&mut self, first: bool) -> Result<bool, Fault> {
        let syntax = match self.peek() {
            Some(b']') => {
                self.at += 1;
                return Ok(false);
            }
            Some(_) if first => return Ok(true),
            Some(b',') => {
                self.at += 1;
                match self.peek() {
                    Some(b']') => Syntax::TrailingComma,
                    Some(_) => return Ok(true),
                    None => Syntax::EofValue,
                }
            }
            Some(_) => Syntax::ExpectedListEnd,
            None => Syntax::EofList,
        };
        Err(self.unexpected(syntax))
    }

    /// Reads a whole value of any type; `open` containers are open around it.
    pub(super) fn value(&mut self, open: u32) -> Result<Value, Fault> {
        match self.peek() {
            Some(b'"') => self.string().map(Value::Text),
            Some(b'{') => self.skip(open).map(Value::Object),
            Some(b'[') => self.skip(open).map(Value::Array),
            Some(b'n') => self.word(b"null").map(|()| Value::Null),
            Some(b't') => self.word(b"true").map(|()| Value::Bool(true)),
            Some(b'f') => self.word(b"false").map(|()| Value::Bool(false)),
            Some(b'-' | b'0'..=b'9') => {
                let start = self.at;
                let number = self.number()?;
                Ok(Value::Number(number, Span::new(start, self.at)))
            }
            Some(_) => Err(self.unexpected(Syntax::ExpectedValue)),
            None => Err(self.unexpected(Syntax::EofValue)),
        }
    }

    /// Passes over the container that comes next, in constant space.
    fn skip(&mut self, open: u32) -> Result<Span, Fault> {
        let start = self.at;
        // One bit per container opened here, the innermost lowest: 1 is an object. 127 fit.
        let mut kinds: u128 = 0;
        let mut depth = open;
        loop {
            // A value comes next.
            let mut first = false;
            match self.peek() {
                Some(b'"') => {
                    self.string()?;
                }
                Some(bracket @ (b'{' | b'[')) => {
                    self.enter(depth)?;
                    depth += 1;
                    kinds = kinds << 1 | u128::from(bracket == b'{');
                    first = true;
                }
                _ => {
                    self.value(depth)?;
                }
            }
            // Behind a value or an opening bracket: go on to the next value, or close.
            loop {
                let more = if kinds & 1 == 1 {
                    self.key(first)?.is_some()
                } else {
                    self.element(first)?
                };
                if more {
                    break;
                }
                first = false;
                kinds >>= 1;
                depth -= 1;
                if depth == open {
                    return Ok(Span::new(start, self.at));
                }
            }
        }
    }

    /// Reads `word`, whose first letter comes next.
    fn word(&mut self, word: &[u8]) -> Result<(), Fault> {
        if self.body[self.at..].starts_with(word) {
            self.at += word.len();
            return Ok(());
        }
        for &expected in word {
            match self.next() {
                Some(byte) if byte == expected => {}
                Some(_) => return Err(self.fault(Syntax::ExpectedIdent)),
                None => break,
            }
        }
        Err(self.fault(Syntax::EofValue))
    }

    /// The next byte, consumed.
    pub(super) fn next(&mut self) -> Option<u8> {
        let byte = *self.body.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    /// A fault of the byte just consumed.
    pub(super) fn fault(&self, syntax: Syntax) -> Fault {
        Fault {
            syntax,
            at: self.at,
        }
    }

    /// A fault of the byte that comes next.
    pub(super) fn unexpected(&self, syntax: Syntax) -> Fault {
        Fault {
            syntax,
            at: self.body.len().min(self.at + 1),
        }
    }
}
