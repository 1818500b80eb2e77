//! One pass over a body: its kind and where id, method and session stand. Builds no values.
//!
//! It decides as the CLI does, which parses with serde_json: strict JSON, at most 127 containers
//! deep, and of duplicate keys the last one counts, at every level and whether escaped or not. It
//! must not copy, allocate on an accepted frame, or look at anything but the bytes it was given.
//!
//! # Kinds, as seen on CLI 1.0.102
//!
//! Of the members `method`, `id`, `result`, `error` (each as its last duplicate says):
//!
//! 1. `method` is a string and `id` a string or number: a **request**, whatever else is there.
//! 2. `method` is a string and there is no `id` key: a **notification**, whatever else is there.
//! 3. `id` is a string, number or null, and there is a `result` key (null counts) or an `error`
//!    other than null: a **response**. A response with id null is silently taken and ignored.
//! 4. Anything else is not recognizable: -32600.
//!
//! Then the members are judged in the order in which their keys first came: `jsonrpc` must be the
//! string `2.0`, a number as `id` must be a 64-bit signed integer (`-0`, `1.0` and `1e2` are not),
//! and the `error` of a response must hold an integer `code` and a string `message` (or be an
//! array of two or three members in that order). The first that fails gives the text; a missing
//! `jsonrpc` fails last. Of a response with both, a non-null `error` decides.
//!
//! Texts of -32700 are serde_json's own, with line and column.

use std::{borrow::Cow, ops::Range};

mod head;
mod json;
mod number;
mod prefix;
mod reject;
mod string;
#[cfg(test)]
mod tests;

pub use json::Syntax;
pub use reject::{Reject, RejectReason};

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// A call that awaits a response.
    Request,
    /// A message that awaits nothing.
    Notification,
    /// The response of a call that succeeded.
    Result,
    /// The response of a call that failed.
    Error,
}

/// A range of bytes of a body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// Offset of the first byte.
    pub start: u32,
    /// Offset behind the last byte.
    pub end: u32,
}

impl Span {
    /// Offsets of a body that [`scan`] has found to be short enough.
    #[inline]
    fn new(start: usize, end: usize) -> Self {
        debug_assert!(start <= end && u32::try_from(end).is_ok(), "{start}..{end}");
        // Nothing is cut off: bodies over 4 GiB are refused before any span is made.
        Self {
            start: start as u32,
            end: end as u32,
        }
    }

    /// The same as a range, to index or splice with.
    pub fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }

    /// The bytes it covers; `body` must be the body it was found in.
    pub fn of(self, body: &[u8]) -> &[u8] {
        &body[self.range()]
    }
}

/// A JSON string.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Text {
    /// Inside the quotes, as written.
    pub span: Span,
    /// Whether it holds a backslash, so that what is written is not what is meant.
    pub escaped: bool,
}

impl Text {
    /// What is meant. A lone surrogate escape, which only a backend may send, reads as U+FFFD.
    pub fn get<'a>(&self, body: &'a [u8]) -> Cow<'a, str> {
        let raw = self.span.of(body);
        if !self.escaped {
            // Nearly always so, and found out much sooner than what would have to be replaced.
            return std::str::from_utf8(raw)
                .map_or_else(|_| String::from_utf8_lossy(raw), Cow::Borrowed);
        }
        let mut text = Vec::with_capacity(raw.len());
        string::unescape(raw, |part| text.extend_from_slice(part));
        Cow::Owned(String::from_utf8_lossy(&text).into_owned())
    }

    /// The same of a body that is known to be text: of few strings it is asked again.
    #[inline]
    pub fn within<'a>(&self, body: &'a str) -> Cow<'a, str> {
        match body.get(self.span.range()) {
            Some(text) if !self.escaped => Cow::Borrowed(text),
            _ => self.get(body.as_bytes()),
        }
    }

    /// What is meant, if that is what is written; otherwise see [`get`](Self::get).
    pub fn plain<'a>(&self, body: &'a [u8]) -> Option<&'a str> {
        if self.escaped {
            None
        } else {
            std::str::from_utf8(self.span.of(body)).ok()
        }
    }

    /// The same as bytes, which need no check.
    #[inline]
    pub fn plain_bytes<'a>(&self, body: &'a [u8]) -> Option<&'a [u8]> {
        (!self.escaped).then(|| self.span.of(body))
    }

    /// The token with its quotes.
    pub fn token(&self) -> Span {
        Span {
            start: self.span.start - 1,
            end: self.span.end + 1,
        }
    }
}

/// A request id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Id {
    /// An integer, and where it is written.
    Int(i64, Span),
    /// A string.
    Str(Text),
}

impl Id {
    /// The whole JSON token, quotes included: the range to replace when ids are swapped.
    pub fn token(&self) -> Span {
        match self {
            Self::Int(_, span) => *span,
            Self::Str(text) => text.token(),
        }
    }
}

/// What a frame says that concerns a proxy. All spans are ranges of the scanned body.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head {
    /// See the rules at the top of this file.
    pub kind: Kind,
    /// None for notifications, and for responses to nobody (`"id":null`).
    pub id: Option<Id>,
    /// Requests and notifications only.
    pub method: Option<Text>,
    /// The whole `params` value, if it is an object; other types count as no params.
    pub params: Option<Span>,
    /// Whether `params` is there but neither an object nor null: what such a call means is its
    /// method's own affair, and none takes it but by mistake.
    pub params_other_type: bool,
    /// `params.sessionId`, if it is a string.
    pub session: Option<Text>,
    /// Whether `params.sessionId` is there but no string (null included).
    pub session_other_type: bool,
    /// The other places where `params` may name something to route by.
    pub places: Places,
    /// Whether `params.wait` is literally `true`.
    pub wait: bool,
    /// `params.event.type`, if it is a string.
    pub event_type: Option<Text>,
    /// `params.traceparent`, if it is a string.
    pub traceparent: Option<Text>,
    /// The whole `result` value; responses only.
    pub result: Option<Span>,
    /// The whole `error` value unless null; responses only.
    pub error: Option<Span>,
}

/// Places in `params`, besides `sessionId`, where some methods name what they are about
/// (PROTOCOL.md §2 and §4). Each is filled for every method; only the router knows which count.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Places {
    /// `toSessionId`.
    pub to_session: Option<Text>,
    /// `expectedFromSessionId`.
    pub expected_from: Option<Text>,
    /// `expectedSessionId`.
    pub expected: Option<Text>,
    /// `inheritPlanBaseFromSessionId`.
    pub inherit_plan: Option<Text>,
    /// `options.sessionId`.
    pub options_session: Option<Text>,
    /// `scope.sessionId`.
    pub scope_session: Option<Text>,
    /// `sessionIds`, the whole array.
    pub session_ids: Option<Span>,
    /// `excludeSessionIds`, the whole array.
    pub exclude_session_ids: Option<Span>,
    /// `sessions`, the whole array.
    pub sessions: Option<Span>,
    /// `requestId`.
    pub request_id: Option<Text>,
    /// `id`: the call that a `$/cancelRequest` is about.
    pub cancel_id: Option<Id>,
    /// `kind`.
    pub kind: Option<Text>,
}

/// Reads a frame from the untrusted side, a client: the whole body is validated.
///
/// # Errors
///
/// Exactly the bodies that the CLI would answer with -32700 or -32600 and `id:null`.
pub fn scan(body: &[u8]) -> Result<Head, Reject> {
    scan_text(body).map(|(head, _)| head)
}

/// The same, for who reads on in the body: with it comes the body as text, which it was found to be.
///
/// # Errors
///
/// As [`scan`].
#[inline]
pub fn scan_text(body: &[u8]) -> Result<(Head, &str), Reject> {
    head::read(body, string::Surrogates::Paired)
}

/// Reads a frame from the trusted side, a backend.
///
/// Gives the same head as [`scan`] on all that [`scan`] accepts, and takes lone surrogate escapes
/// too, since tool output may hold anything.
///
/// Bodies that begin as the CLI begins its `session.event` notifications and its responses are
/// judged by that beginning and their last bytes alone, in time that does not depend on their
/// length: whatever stands between is trusted to be JSON without a second `id`, `params`,
/// `sessionId`, `event`, `type`, `result` or `error`, and without other members that belong in
/// [`Places`]. The CLI serialises these frames from structs, so it cannot write such a thing.
///
/// # Errors
///
/// As [`scan`]; from a backend it means that the backend is broken.
pub fn scan_backend(body: &[u8]) -> Result<Head, Reject> {
    match prefix::head(body) {
        Some(head) => Ok(head),
        None => scan_backend_whole(body),
    }
}

/// What the first bytes of a backend's frame say of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opening {
    /// An event of this session and this type. It ends with [`Opening::EVENT_END`].
    Event {
        /// As [`Head::session`].
        session: Text,
        /// As [`Head::event_type`].
        event_type: Text,
    },
    /// The response of a call that succeeded. It ends with [`Opening::RESULT_END`].
    Result {
        /// As [`Head::id`].
        id: Id,
    },
}

impl Opening {
    /// What closes params and frame: something may stand behind the event.
    pub const EVENT_END: &[u8] = b"}}";
    /// What closes the frame.
    pub const RESULT_END: &[u8] = b"}";
    /// No opening is longer than this.
    pub const LONGEST: usize = 1024;
}

/// What a backend's frame is, of which only the beginning has come: for frames that are too large
/// to be held. Says what [`scan_backend`] would say of the whole, and trusts what it has not seen as
/// that does. None: not (yet) to be told.
pub fn opening(start: &[u8]) -> Option<Opening> {
    prefix::opening(&start[..start.len().min(Opening::LONGEST)])
}

/// A session's id that reads as it is written, so that it can be looked for in a body.
#[derive(Clone, Copy, Debug)]
pub struct Plain<'a>(&'a [u8]);

impl<'a> Plain<'a> {
    /// None if it has to be escaped.
    pub fn new(session: &'a str) -> Option<Self> {
        // Looks at every byte rather than stopping at the first odd one: this way it vectorises.
        let plain = session.bytes().fold(true, |plain, byte| {
            plain & matches!(byte, b' '..=b'~') & (byte != b'"') & (byte != b'\\')
        });
        plain.then_some(Self(session.as_bytes()))
    }

    /// One of which [`Plain::new`] has said so.
    #[inline]
    pub fn known(session: &'a str) -> Self {
        debug_assert!(Self::new(session).is_some(), "it has to be escaped");
        Self(session.as_bytes())
    }
}

/// The type of the event in a backend's frame, if it is one of `session`, and how events like it
/// begin: shorter still than [`scan_backend`], for runs of events. None says nothing: scan it.
#[inline]
pub fn event_of<'a>(body: &'a [u8], session: Plain<'_>) -> Option<(&'a [u8], Alike<'a>)> {
    prefix::event_of(body, session.0)
}

/// How events of one session and one type begin, as [`event_of`] has read it.
#[derive(Clone, Copy, Default, Debug)]
pub struct Alike<'a>(&'a [u8]);

impl Alike<'_> {
    /// Whether this is such an event: one for which [`event_of`] would give the same. Nothing is,
    /// if nothing has been read yet.
    #[inline(always)]
    pub fn begins(self, body: &[u8]) -> bool {
        !self.0.is_empty() && body.starts_with(self.0) && prefix::is_closed(body)
    }
}

/// What stands as the session of the event in a backend's frame, to be looked for among sessions
/// whose id is [`Plain`]. None says nothing: scan it.
#[inline]
pub fn event_session(body: &[u8]) -> Option<&str> {
    prefix::event_session(body).and_then(|text| std::str::from_utf8(text).ok())
}

/// What stands behind the text that [`event_session`] gives, its quote first.
#[inline]
pub fn behind_session(body: &[u8]) -> Option<&[u8]> {
    prefix::behind_session(body)
}

/// Whether a backend's frame holds `true` at `path`, as [`text_at`] finds a string.
pub fn is_true_at(body: &[u8], path: &[&str]) -> bool {
    head::is_true_at(body, path)
}

/// The string that a backend's frame holds at `path`, a key in the object of the key before it. Of
/// keys that stand twice the first counts, and what stands behind the string is not looked at.
pub fn text_at(body: &[u8], path: &[&str]) -> Option<Text> {
    head::text_at(body, path)
}

/// [`scan`] without its short cut: the reference that it is compared with.
pub fn scan_whole(body: &[u8]) -> Result<Head, Reject> {
    head::read_whole(body, string::Surrogates::Paired)
}

/// [`scan_backend`] without its short cuts: the reference that they are compared with.
pub fn scan_backend_whole(body: &[u8]) -> Result<Head, Reject> {
    head::read_whole(body, string::Surrogates::Any)
}
