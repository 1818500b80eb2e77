//! Why a body was refused, in the CLI's words.
//!
//! Reached only on refusal, so this is the one part of the scanner that may allocate.

use super::{
    Id, Text,
    json::{Fault, Syntax, Value},
    number::Number,
};

/// Longest excerpt of a peer's own string that a reason repeats, in characters.
const EXCERPT: usize = 256;

/// A body that is no frame. The connection is still in step and stays open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reject {
    /// -32700 if it is not JSON, -32600 if it is not JSON-RPC.
    pub code: i32,
    /// What is wrong with it.
    pub reason: RejectReason,
    /// The id to answer with: set if the part that was read held exactly one top-level `id` key,
    /// with a valid and completely read value (an integer that the end of the body cuts off is
    /// not complete). Malformed bodies are read up to their first fault.
    pub id: Option<Id>,
}

impl Reject {
    /// The message to answer with, as the CLI words it.
    pub fn message(&self) -> String {
        self.reason.to_string()
    }
}

/// What is wrong with a body.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RejectReason {
    /// Not JSON (-32700).
    #[error("{syntax} at line {line} column {column}")]
    Malformed {
        /// The first fault.
        syntax: Syntax,
        /// Its line, from 1.
        line: usize,
        /// Its column in bytes, as serde_json counts.
        column: usize,
    },
    /// More than 4 GiB, more than offsets can express (-32600).
    #[error("message too long")]
    TooLong,
    /// JSON, but nothing of [the kinds](super).
    #[error("not a recognizable JSON-RPC request, notification, or response")]
    Unrecognized,
    /// A member that must be there is not.
    #[error("missing field `{field}`")]
    MissingField {
        /// Its key.
        field: &'static str,
    },
    /// `jsonrpc` is a string other than `2.0`.
    #[error("unsupported jsonrpc version: expected \"2.0\", got {got:?}")]
    Version {
        /// What it is, cut to a bounded excerpt.
        got: Box<str>,
    },
    /// `id` is a number but not a 64-bit signed integer.
    #[error("data did not match any variant of untagged enum RequestId")]
    InvalidId,
    /// A member is of the wrong type.
    #[error("invalid type: {found}, expected {expected}")]
    InvalidType {
        /// What it is, strings cut to a bounded excerpt.
        found: Box<str>,
        /// What it should be.
        expected: &'static str,
    },
    /// A member is of the right type but out of range.
    #[error("invalid value: {found}, expected {expected}")]
    InvalidValue {
        /// What it is.
        found: Box<str>,
        /// What it should be.
        expected: &'static str,
    },
    /// `error` is an array of the wrong length.
    #[error("invalid length {length}, expected {expected}")]
    InvalidLength {
        /// How many members it has.
        length: usize,
        /// How many it should have.
        expected: &'static str,
    },
}

impl RejectReason {
    /// The place and kind of a fault.
    pub(super) fn malformed(body: &[u8], fault: Fault) -> Self {
        let before = &body[..fault.at];
        let line_start = memchr::memrchr(b'\n', before).map_or(0, |newline| newline + 1);
        Self::Malformed {
            syntax: fault.syntax,
            line: 1 + memchr::memchr_iter(b'\n', before).count(),
            column: fault.at - line_start,
        }
    }

    /// `value` where `expected` should be.
    pub(super) fn invalid_type(body: &[u8], value: Value, expected: &'static str) -> Self {
        let found = found(body, value);
        match value {
            Value::Number(Number::Unsigned(_), _) if expected == "i64" => {
                Self::InvalidValue { found, expected }
            }
            Value::Null
            | Value::Bool(_)
            | Value::Number(..)
            | Value::Text(_)
            | Value::Array(_)
            | Value::Object(_) => Self::InvalidType { found, expected },
        }
    }

    /// A `jsonrpc` that is not `2.0`.
    pub(super) fn version(body: &[u8], got: Text) -> Self {
        Self::Version {
            got: excerpt(body, got),
        }
    }

    pub(super) fn code(&self) -> i32 {
        match self {
            Self::Malformed { .. } => -32700,
            Self::TooLong
            | Self::Unrecognized
            | Self::MissingField { .. }
            | Self::Version { .. }
            | Self::InvalidId
            | Self::InvalidType { .. }
            | Self::InvalidValue { .. }
            | Self::InvalidLength { .. } => -32600,
        }
    }
}

fn excerpt(body: &[u8], text: Text) -> Box<str> {
    text.get(body)
        .chars()
        .take(EXCERPT)
        .collect::<String>()
        .into()
}

/// A value as serde_json describes it in type errors.
fn found(body: &[u8], value: Value) -> Box<str> {
    match value {
        Value::Null => "null".into(),
        Value::Bool(value) => format!("boolean `{value}`").into(),
        Value::Number(Number::Unsigned(value), _) => format!("integer `{value}`").into(),
        Value::Number(Number::Signed(value), _) => format!("integer `{value}`").into(),
        Value::Number(Number::Float, span) => {
            // Printed by the same code that the CLI prints with, so digits and exponent agree.
            let value: f64 = serde_json::from_slice(span.of(body)).unwrap_or(f64::NAN);
            let text = serde_json::to_string(&value).unwrap_or_default();
            format!("floating point `{text}`").into()
        }
        Value::Text(text) => format!("string {:?}", excerpt(body, text)).into(),
        Value::Array(_) => "sequence".into(),
        Value::Object(_) => "map".into(),
    }
}
