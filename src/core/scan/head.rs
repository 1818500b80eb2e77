//! The general path: walks a body once and fills a [`Head`] by the rules of [`super`].
//!
//! Knows the three levels of objects that matter (the frame, its params, and three members of
//! those); everything else is passed over by the cursor.

use super::{
    Head, Id, Kind, Places, Reject, RejectReason, Span, Text,
    json::{Cursor, Fault, Value},
    number::Number,
    prefix,
    string::{self, Surrogates},
};

/// Longest key that means anything here, `inheritPlanBaseFromSessionId`, and some room.
const LONGEST_KEY: usize = 32;

/// From behind a method to the params that follow it: `","params":`.
const PARAMS_BEHIND_METHOD: usize = 11;

/// Reads a whole body. With its head comes the body as text.
pub(super) fn read(body: &[u8], surrogates: Surrogates) -> Result<(Head, &str), Reject> {
    let mut reader = Reader::new(body, surrogates)?;
    // Nothing else is accepted.
    let text = reader.cursor.text.unwrap_or_default();
    match reader.request() {
        Some(head) => Ok((head, text)),
        None => reader.read().map(|head| (head, text)),
    }
}

/// The same, member by member from the first one on.
pub(super) fn read_whole(body: &[u8], surrogates: Surrogates) -> Result<Head, Reject> {
    Reader::new(body, surrogates)?.read()
}

/// A member whose value decides about the frame.
#[derive(Clone, Copy)]
struct Member {
    /// Where its key came first: faults are judged in this order, as the CLI's map keeps it.
    first: usize,
    /// What its last duplicate says.
    value: Value,
}

/// What the top level of a frame holds.
#[derive(Default)]
struct Found {
    jsonrpc: Option<Member>,
    id: Option<Member>,
    /// Top-level `id` keys so far.
    ids: u32,
    method: Option<Text>,
    result: Option<Span>,
    error: Option<Member>,
    /// What is wrong with the inside of `error`, should this be a response.
    error_fault: Option<RejectReason>,
    params: Option<Params>,
    params_other_type: bool,
}

/// What `params` holds, if it is an object.
struct Params {
    span: Span,
    session: Option<Text>,
    session_other_type: bool,
    places: Places,
    wait: bool,
    event_type: Option<Text>,
    traceparent: Option<Text>,
}

impl Params {
    /// Those that begin at `start`; nothing has been read of them.
    fn new(start: usize) -> Self {
        Self {
            span: Span::new(start, start),
            session: None,
            session_other_type: false,
            places: Places::default(),
            wait: false,
            event_type: None,
            traceparent: None,
        }
    }

    /// Enters what was found.
    fn give(self, head: &mut Head) {
        head.params = Some(self.span);
        head.session = self.session;
        head.session_other_type = self.session_other_type;
        head.places = self.places;
        head.wait = self.wait;
        head.event_type = self.event_type;
        head.traceparent = self.traceparent;
    }
}

impl Found {
    /// The id to answer a refused frame with; see [`Reject::id`].
    fn only_id(&self, body: &[u8]) -> Option<Id> {
        let id = self
            .id
            .filter(|_| self.ids == 1)
            .and_then(|member| id(member.value))?;
        match id {
            // More digits may have been meant to follow.
            Id::Int(_, span) if span.end as usize == body.len() => None,
            Id::Int(..) | Id::Str(_) => Some(id),
        }
    }
}

struct Reader<'a> {
    body: &'a [u8],
    cursor: Cursor<'a>,
    found: Found,
}

impl<'a> Reader<'a> {
    /// At the start of `body`.
    fn new(body: &'a [u8], surrogates: Surrogates) -> Result<Self, Reject> {
        if u32::try_from(body.len()).is_err() {
            let reason = RejectReason::TooLong;
            return Err(Reject {
                code: reason.code(),
                reason,
                id: None,
            });
        }
        Ok(Self {
            body,
            cursor: Cursor::new(body, surrogates),
            found: Found::default(),
        })
    }

    /// Any body.
    fn read(mut self) -> Result<Head, Reject> {
        let body = self.body;
        let reason = match self.frame() {
            Ok(()) => match self.head() {
                Ok(head) => return Ok(head),
                Err(reason) => reason,
            },
            Err(fault) => RejectReason::malformed(body, fault),
        };
        let id = self.found.only_id(body);
        Err(Reject {
            code: reason.code(),
            reason,
            id,
        })
    }

    /// The head of a request that begins as most do and has nothing behind its params: says what
    /// [`frame`](Self::frame) and [`head`](Self::head) would say, for a third of the work. None, and
    /// nothing done, if it is another one, or a faulty one.
    fn request(&mut self) -> Option<Head> {
        if self.cursor.valid != self.body.len() {
            return None;
        }
        let (id, method, session, at) = prefix::request_opening(self.body)?;
        let start = method.span.end as usize + PARAMS_BEHIND_METHOD;
        let mut params = Params::new(start);
        params.session = Some(session);
        self.cursor.at = at;
        if self.rest_of_request(&mut params) != Ok(true) {
            self.cursor.at = 0;
            return None;
        }
        let mut head = prefix::empty(Kind::Request);
        head.id = Some(id);
        head.method = Some(method);
        params.give(&mut head);
        Some(head)
    }

    /// The members of `params` behind the first one, and the end of the frame: whether that comes
    /// next.
    fn rest_of_request(&mut self, params: &mut Params) -> Result<bool, Fault> {
        while let Some(key) = self.cursor.key(false)? {
            self.param(key, params)?;
        }
        params.span.end = Span::new(0, self.cursor.at).end;
        if self.cursor.key(false)?.is_some() {
            return Ok(false);
        }
        self.cursor.end().map(|()| true)
    }

    /// The whole body: one value and nothing behind it.
    fn frame(&mut self) -> Result<(), Fault> {
        if self.cursor.peek() != Some(b'{') {
            self.cursor.value(0)?;
            return self.cursor.end();
        }
        self.cursor.enter(0)?;
        let mut first = true;
        while let Some(key) = self.cursor.key(first)? {
            first = false;
            self.member(key)?;
        }
        self.cursor.end()
    }

    /// One member of the frame.
    fn member(&mut self, key: Text) -> Result<(), Fault> {
        let key_at = key.span.start as usize;
        let member = |old: Option<Member>, value| {
            Some(Member {
                first: old.map_or(key_at, |old| old.first),
                value,
            })
        };
        match self.name(key, &mut [0; LONGEST_KEY]) {
            b"jsonrpc" => {
                let value = self.cursor.value(1)?;
                self.found.jsonrpc = member(self.found.jsonrpc, value);
            }
            b"id" => {
                self.found.ids += 1;
                let value = self.cursor.value(1)?;
                self.found.id = member(self.found.id, value);
            }
            b"method" => self.found.method = text(self.cursor.value(1)?),
            b"params" => self.found.params = self.params()?,
            b"result" => {
                self.cursor.peek();
                let start = self.cursor.at;
                self.cursor.value(1)?;
                self.found.result = Some(Span::new(start, self.cursor.at));
            }
            b"error" => {
                let (value, fault) = self.error()?;
                self.found.error = member(self.found.error, value);
                self.found.error_fault = fault;
            }
            _ => {
                self.cursor.value(1)?;
            }
        }
        Ok(())
    }

    /// The value of `params`.
    fn params(&mut self) -> Result<Option<Params>, Fault> {
        let first_byte = self.cursor.peek();
        self.found.params_other_type = !matches!(first_byte, Some(b'{' | b'n'));
        if first_byte != Some(b'{') {
            self.cursor.value(1)?;
            return Ok(None);
        }
        let start = self.cursor.at;
        let mut params = Params::new(start);
        self.cursor.enter(1)?;
        let mut first = true;
        while let Some(key) = self.cursor.key(first)? {
            first = false;
            self.param(key, &mut params)?;
        }
        params.span = Span::new(start, self.cursor.at);
        Ok(Some(params))
    }

    /// One member of `params`. Each arm overwrites what an earlier duplicate left.
    fn param(&mut self, key: Text, params: &mut Params) -> Result<(), Fault> {
        let places = &mut params.places;
        match self.name(key, &mut [0; LONGEST_KEY]) {
            b"sessionId" => {
                params.session = text(self.cursor.value(2)?);
                params.session_other_type = params.session.is_none();
            }
            b"event" => params.event_type = self.text_in(b"type")?,
            b"options" => places.options_session = self.text_in(b"sessionId")?,
            b"scope" => places.scope_session = self.text_in(b"sessionId")?,
            b"wait" => params.wait = self.cursor.value(2)? == Value::Bool(true),
            b"traceparent" => params.traceparent = text(self.cursor.value(2)?),
            b"toSessionId" => places.to_session = text(self.cursor.value(2)?),
            b"expectedFromSessionId" => places.expected_from = text(self.cursor.value(2)?),
            b"expectedSessionId" => places.expected = text(self.cursor.value(2)?),
            b"inheritPlanBaseFromSessionId" => {
                places.inherit_plan = text(self.cursor.value(2)?);
            }
            b"sessionIds" => places.session_ids = array(self.cursor.value(2)?),
            b"excludeSessionIds" => places.exclude_session_ids = array(self.cursor.value(2)?),
            b"sessions" => places.sessions = array(self.cursor.value(2)?),
            b"requestId" => places.request_id = text(self.cursor.value(2)?),
            b"id" => places.cancel_id = id(self.cursor.value(2)?),
            b"kind" => places.kind = text(self.cursor.value(2)?),
            _ => {
                self.cursor.value(2)?;
            }
        }
        Ok(())
    }

    /// A member of `params`: the string called `name` in it, if it is an object that has one.
    fn text_in(&mut self, name: &[u8]) -> Result<Option<Text>, Fault> {
        if self.cursor.peek() != Some(b'{') {
            self.cursor.value(2)?;
            return Ok(None);
        }
        self.cursor.enter(2)?;
        let mut found = None;
        let mut first = true;
        while let Some(key) = self.cursor.key(first)? {
            first = false;
            let value = self.cursor.value(3)?;
            if self.name(key, &mut [0; LONGEST_KEY]) == name {
                found = text(value);
            }
        }
        Ok(found)
    }

    /// The value of `error`, and why it would not do in a response.
    fn error(&mut self) -> Result<(Value, Option<RejectReason>), Fault> {
        let bracket = self.cursor.peek();
        let start = self.cursor.at;
        match bracket {
            Some(b'{') => {
                let fault = self.error_object()?;
                Ok((Value::Object(Span::new(start, self.cursor.at)), fault))
            }
            Some(b'[') => {
                let fault = self.error_array()?;
                Ok((Value::Array(Span::new(start, self.cursor.at)), fault))
            }
            Some(_) | None => {
                let value = self.cursor.value(1)?;
                let fault = RejectReason::invalid_type(self.body, value, "struct ResponseError");
                Ok((value, (value != Value::Null).then_some(fault)))
            }
        }
    }

    fn error_object(&mut self) -> Result<Option<RejectReason>, Fault> {
        self.cursor.enter(1)?;
        let (mut code, mut message) = (None::<Member>, None::<Member>);
        let mut first = true;
        while let Some(key) = self.cursor.key(first)? {
            first = false;
            let value = self.cursor.value(2)?;
            let member = match self.name(key, &mut [0; LONGEST_KEY]) {
                b"code" => &mut code,
                b"message" => &mut message,
                _ => continue,
            };
            let first = member.map_or(key.span.start as usize, |member| member.first);
            *member = Some(Member { first, value });
        }
        let faults = [
            code.and_then(|code| Some((code.first, self.not_a_code(code.value)?))),
            message.and_then(|message| Some((message.first, self.not_a_message(message.value)?))),
        ];
        if let Some((_, fault)) = faults.into_iter().flatten().min_by_key(|(first, _)| *first) {
            return Ok(Some(fault));
        }
        let missing = |field| Some(RejectReason::MissingField { field });
        Ok(match (code, message) {
            (None, _) => missing("code"),
            (Some(_), None) => missing("message"),
            (Some(_), Some(_)) => None,
        })
    }

    /// The CLI also takes the members of an error in an array: code, message, data.
    fn error_array(&mut self) -> Result<Option<RejectReason>, Fault> {
        self.cursor.enter(1)?;
        let mut fault = None;
        let mut length = 0;
        while self.cursor.element(length == 0)? {
            let value = self.cursor.value(2)?;
            fault = fault.or_else(|| match length {
                0 => self.not_a_code(value),
                1 => self.not_a_message(value),
                _ => None,
            });
            length += 1;
        }
        let expected = match length {
            0 | 1 => "struct ResponseError with 3 elements",
            2 | 3 => return Ok(fault),
            _ => "fewer elements in array",
        };
        Ok(fault.or(Some(RejectReason::InvalidLength { length, expected })))
    }

    fn not_a_code(&self, value: Value) -> Option<RejectReason> {
        match value {
            Value::Number(Number::Signed(_), _) => None,
            Value::Number(Number::Unsigned(code), _) if i64::try_from(code).is_ok() => None,
            Value::Null
            | Value::Bool(_)
            | Value::Number(..)
            | Value::Text(_)
            | Value::Array(_)
            | Value::Object(_) => Some(RejectReason::invalid_type(self.body, value, "i64")),
        }
    }

    fn not_a_message(&self, value: Value) -> Option<RejectReason> {
        match text(value) {
            Some(_) => None,
            None => Some(RejectReason::invalid_type(self.body, value, "a string")),
        }
    }

    /// What a key means; empty if it is escaped and longer than any that matters.
    fn name<'b>(&self, key: Text, buffer: &'b mut [u8; LONGEST_KEY]) -> &'b [u8]
    where
        Self: 'b,
    {
        name(self.body, key, buffer)
    }

    /// Judges what was found.
    fn head(&mut self) -> Result<Head, RejectReason> {
        let found = &mut self.found;
        let error = found.error.filter(|error| error.value != Value::Null);
        let kind = match (found.method, found.id.map(|id| id.value)) {
            (Some(_), None) => Kind::Notification,
            (Some(_), Some(Value::Text(_) | Value::Number(..))) => Kind::Request,
            (_, Some(Value::Text(_) | Value::Number(..) | Value::Null)) if error.is_some() => {
                Kind::Error
            }
            (_, Some(Value::Text(_) | Value::Number(..) | Value::Null))
                if found.result.is_some() =>
            {
                Kind::Result
            }
            (Some(_) | None, _) => return Err(RejectReason::Unrecognized),
        };
        let response = matches!(kind, Kind::Result | Kind::Error);
        // What is wrong with each member that this kind has, by where its key came first.
        let faults = [
            found
                .jsonrpc
                .and_then(|member| Some((member.first, not_the_version(self.body, member.value)?))),
            found
                .id
                .and_then(|member| Some((member.first, not_an_id(member.value)?))),
            error
                .filter(|_| response)
                .and_then(|member| Some((member.first, found.error_fault.take()?))),
        ];
        if let Some((_, fault)) = faults.into_iter().flatten().min_by_key(|(first, _)| *first) {
            return Err(fault);
        }
        if found.jsonrpc.is_none() {
            return Err(RejectReason::MissingField { field: "jsonrpc" });
        }
        let mut head = prefix::empty(kind);
        head.id = found.id.and_then(|member| id(member.value));
        if response {
            head.result = found.result;
            head.error = error.and_then(|member| match member.value {
                Value::Object(span) | Value::Array(span) => Some(span),
                Value::Null | Value::Bool(_) | Value::Number(..) | Value::Text(_) => None,
            });
        } else {
            head.method = found.method;
        }
        head.params_other_type = found.params_other_type;
        if let Some(params) = found.params.take() {
            params.give(&mut head);
        }
        Ok(head)
    }
}

/// See [`super::text_at`].
pub(super) fn text_at(body: &[u8], path: &[&str]) -> Option<Text> {
    let mut cursor = at(body, path)?;
    match cursor.peek() {
        Some(b'"') => cursor.string().ok(),
        Some(_) | None => None,
    }
}

/// See [`super::is_true_at`].
pub(super) fn is_true_at(body: &[u8], path: &[&str]) -> bool {
    at(body, path).is_some_and(|mut cursor| {
        cursor.peek() == Some(b't') && cursor.value(0) == Ok(Value::Bool(true))
    })
}

/// A cursor at the value of the last key of `path`.
fn at<'a>(body: &'a [u8], path: &[&str]) -> Option<Cursor<'a>> {
    u32::try_from(body.len()).ok()?;
    let mut cursor = Cursor::trusting(body, Surrogates::Any);
    let mut known = 0;
    if path.starts_with(&EVENT_DATA)
        && let Some(at) = prefix::event_data(body)
    {
        (cursor.at, known) = (at, EVENT_DATA.len());
    }
    for (depth, key) in (0..).zip(path).skip(known) {
        enter_at(&mut cursor, depth, key)?;
    }
    Some(cursor)
}

/// Where most of what is looked for stands, and nearly always at once behind the event's type.
const EVENT_DATA: [&str; 3] = ["params", "event", "data"];

/// Steps into the object that comes next, and on to the value of `wanted`.
fn enter_at(cursor: &mut Cursor<'_>, depth: u32, wanted: &str) -> Option<()> {
    if cursor.peek()? != b'{' {
        return None;
    }
    cursor.enter(depth).ok()?;
    let mut first = true;
    while let Some(key) = cursor.key(first).ok()? {
        first = false;
        if name(cursor.body, key, &mut [0; LONGEST_KEY]) == wanted.as_bytes() {
            return Some(());
        }
        cursor.value(depth + 1).ok()?;
    }
    None
}

/// See [`Reader::name`].
fn name<'b>(body: &'b [u8], key: Text, buffer: &'b mut [u8; LONGEST_KEY]) -> &'b [u8] {
    let raw = key.span.of(body);
    if !key.escaped {
        return raw;
    }
    let mut length = 0;
    string::unescape(raw, |part| {
        if let Some(room) = buffer.get_mut(length..length + part.len()) {
            room.copy_from_slice(part);
        }
        length += part.len();
    });
    buffer.get(..length).unwrap_or_default()
}

fn text(value: Value) -> Option<Text> {
    match value {
        Value::Text(text) => Some(text),
        Value::Null | Value::Bool(_) | Value::Number(..) | Value::Array(_) | Value::Object(_) => {
            None
        }
    }
}

fn array(value: Value) -> Option<Span> {
    match value {
        Value::Array(span) => Some(span),
        Value::Null | Value::Bool(_) | Value::Number(..) | Value::Text(_) | Value::Object(_) => {
            None
        }
    }
}

fn id(value: Value) -> Option<Id> {
    match value {
        Value::Text(text) => Some(Id::Str(text)),
        Value::Number(Number::Signed(id), span) => Some(Id::Int(id, span)),
        Value::Number(Number::Unsigned(id), span) => Some(Id::Int(i64::try_from(id).ok()?, span)),
        Value::Number(Number::Float, _)
        | Value::Null
        | Value::Bool(_)
        | Value::Array(_)
        | Value::Object(_) => None,
    }
}

fn not_an_id(value: Value) -> Option<RejectReason> {
    (value != Value::Null && id(value).is_none()).then_some(RejectReason::InvalidId)
}

fn not_the_version(body: &[u8], value: Value) -> Option<RejectReason> {
    match value {
        Value::Text(text) if text.get(body) == "2.0" => None,
        Value::Text(text) => Some(RejectReason::version(body, text)),
        Value::Null | Value::Bool(_) | Value::Number(..) | Value::Array(_) | Value::Object(_) => {
            Some(RejectReason::invalid_type(body, value, "a string"))
        }
    }
}
