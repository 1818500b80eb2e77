//! Bodies: the scanner's heads and refusals against those of a parser.

use std::borrow::Cow;

use taxiway::core::scan::{
    Head, Id, Kind, Reject, Span, Text, scan, scan_backend, scan_backend_whole, scan_whole,
};

use super::{cli::judge, json::Json};

fn parse(text: &[u8]) -> Json {
    serde_json::from_slice(text).expect("a span covers exactly one value")
}

fn same_text(body: &[u8], found: Option<Text>, expected: Option<&str>, place: &str) {
    assert_eq!(
        found.map(|text| text.get(body)),
        expected.map(Cow::Borrowed),
        "{place}"
    );
    if let Some(text) = found {
        let token = parse(text.token().of(body));
        assert_eq!(
            token,
            Json::Text(expected.unwrap_or_default().to_owned()),
            "{place}"
        );
        assert_eq!(text.escaped, text.span.of(body).contains(&b'\\'), "{place}");
        assert_eq!(text.plain(body).is_some(), !text.escaped, "{place}");
    }
}

fn same_span(body: &[u8], found: Option<Span>, expected: Option<&Json>, place: &str) {
    assert_eq!(
        found.map(|span| parse(span.of(body))).as_ref(),
        expected,
        "{place}"
    );
    if let Some(span) = found {
        assert_eq!(span.of(body), span.of(body).trim_ascii(), "{place}");
    }
}

fn same_id(body: &[u8], found: Option<Id>, expected: Option<Result<i64, &str>>, place: &str) {
    match (found, expected) {
        (None, None) => {}
        (Some(Id::Int(id, span)), Some(Ok(expected))) => {
            assert_eq!(id, expected, "{place}");
            assert_eq!(span.of(body), expected.to_string().as_bytes(), "{place}");
        }
        (Some(Id::Str(text)), Some(Err(expected))) => {
            same_text(body, Some(text), Some(expected), place);
        }
        _ => panic!("{place}: found {found:?}, expected {expected:?}"),
    }
}

/// All that is found, compared by value with what a parsed body says.
fn same_head(body: &[u8], head: &Head, value: &Json) {
    let none = Json::Null;
    let params = value
        .get("params")
        .filter(|params| matches!(params, Json::Object(_)));
    let in_params = params.unwrap_or(&none);
    let nested = |name, member| {
        in_params
            .get(name)
            .and_then(|object: &Json| object.text(member))
    };
    let response = matches!(head.kind, Kind::Result | Kind::Error);
    let error = value.get("error").filter(|error| **error != Json::Null);

    let id = value.id("id").filter(|_| head.kind != Kind::Notification);
    same_id(body, head.id, id, "id");
    let method = value.text("method").filter(|_| !response);
    same_text(body, head.method, method, "method");
    same_span(body, head.params, params, "params");
    same_span(
        body,
        head.result,
        value.get("result").filter(|_| response),
        "result",
    );
    same_span(body, head.error, error.filter(|_| response), "error");
    same_text(body, head.session, in_params.text("sessionId"), "sessionId");
    let other = in_params.get("sessionId").is_some() && head.session.is_none();
    assert_eq!(head.session_other_type, other, "sessionId of another type");
    assert_eq!(
        head.wait,
        in_params.get("wait") == Some(&Json::Bool(true)),
        "wait"
    );
    same_text(body, head.event_type, nested("event", "type"), "event.type");
    same_text(
        body,
        head.traceparent,
        in_params.text("traceparent"),
        "traceparent",
    );

    let places = &head.places;
    for (found, name) in [
        (places.to_session, "toSessionId"),
        (places.expected_from, "expectedFromSessionId"),
        (places.expected, "expectedSessionId"),
        (places.inherit_plan, "inheritPlanBaseFromSessionId"),
        (places.request_id, "requestId"),
        (places.kind, "kind"),
    ] {
        same_text(body, found, in_params.text(name), name);
    }
    same_text(
        body,
        places.options_session,
        nested("options", "sessionId"),
        "options.sessionId",
    );
    same_text(
        body,
        places.scope_session,
        nested("scope", "sessionId"),
        "scope.sessionId",
    );
    for (found, name) in [
        (places.session_ids, "sessionIds"),
        (places.exclude_session_ids, "excludeSessionIds"),
        (places.sessions, "sessions"),
    ] {
        same_span(body, found, in_params.array(name), name);
    }
    same_id(body, places.cancel_id, in_params.id("id"), "params.id");
}

/// A span must be the place that counts, not an equal earlier duplicate: what is written there
/// instead must be what a parser then reads.
fn places_count(body: &[u8], head: &Head) {
    const MARK: &str = "\u{1}mark";
    let replaced = |span: Span| {
        let mut body = body.to_vec();
        body.splice(span.range(), *b"\"\\u0001mark\"");
        parse(&body)
    };
    let params = |value: &Json, name: &str| {
        assert_eq!(
            value.get("params").and_then(|params| params.text(name)),
            Some(MARK),
            "{name}"
        );
    };
    if let Some(id) = head.id {
        assert_eq!(replaced(id.token()).text("id"), Some(MARK));
    }
    for (span, name) in [
        (head.result, "result"),
        (head.error, "error"),
        (head.params, "params"),
    ] {
        if let Some(span) = span {
            assert_eq!(replaced(span).text(name), Some(MARK), "{name}");
        }
    }
    if let Some(method) = head.method {
        assert_eq!(replaced(method.token()).text("method"), Some(MARK));
    }
    let places = &head.places;
    for (text, name) in [
        (head.session, "sessionId"),
        (head.traceparent, "traceparent"),
        (places.to_session, "toSessionId"),
        (places.expected_from, "expectedFromSessionId"),
        (places.expected, "expectedSessionId"),
        (places.inherit_plan, "inheritPlanBaseFromSessionId"),
        (places.request_id, "requestId"),
        (places.kind, "kind"),
    ] {
        if let Some(text) = text {
            params(&replaced(text.token()), name);
        }
    }
    if let Some(id) = places.cancel_id {
        params(&replaced(id.token()), "id");
    }
    for (span, name) in [
        (places.session_ids, "sessionIds"),
        (places.exclude_session_ids, "excludeSessionIds"),
        (places.sessions, "sessions"),
    ] {
        if let Some(span) = span {
            params(&replaced(span), name);
        }
    }
    for (text, outer, inner) in [
        (head.event_type, "event", "type"),
        (places.options_session, "options", "sessionId"),
        (places.scope_session, "scope", "sessionId"),
    ] {
        if let Some(text) = text {
            let value = replaced(text.token());
            let object = value.get("params").and_then(|params| params.get(outer));
            assert_eq!(
                object.and_then(|object| object.text(inner)),
                Some(MARK),
                "{outer}.{inner}"
            );
        }
    }
}

/// The refusal must be the CLI's, in code and text.
fn same_refusal(reject: &Reject, code: i32, message: &str) {
    assert_eq!(reject.code, code, "{message}");
    let found = reject.message();
    if found.len() < 200 {
        assert_eq!(found, message);
    } else {
        // Long values of the peer are cut to an excerpt.
        assert_eq!(found.as_bytes()[..100], message.as_bytes()[..100]);
    }
}

/// The frames whose inside [`scan_backend`] may take on trust: those the CLI could have written.
fn is_trustworthy(body: &[u8], head: &Head, value: &Json) -> bool {
    let keys =
        |value: &Json| -> Vec<String> { value.members().into_iter().map(|(key, _)| key).collect() };
    if value.has_duplicates() || body.last() != Some(&b'}') {
        return false;
    }
    // A space before the last brace would shift the end of what stands before it.
    let closed = |last: Option<Span>| last.is_none_or(|span| span.end as usize == body.len() - 1);
    match head.kind {
        Kind::Request => value.get("result").is_none() && value.get("error").is_none(),
        Kind::Result => closed(head.result) && keys(value) == ["jsonrpc", "id", "result"],
        Kind::Error => closed(head.error) && keys(value) == ["jsonrpc", "id", "error"],
        Kind::Notification if value.text("method") != Some("session.event") => true,
        Kind::Notification => {
            let Some(params) = value.get("params") else {
                return true;
            };
            let event = params.get("event").unwrap_or(&Json::Null);
            let whole = keys(value) == ["jsonrpc", "method", "params"];
            let inside = keys(params) == ["sessionId", "event"] && !params.has_duplicates();
            whole && inside && closed(head.params) && !event.has_duplicates()
        }
    }
}

/// The scanner's verdict on any bytes is that of a parser that follows the CLI's rules.
pub(crate) fn check_scan(body: &[u8]) {
    let found = scan(body);
    assert_eq!(scan_whole(body), found, "the short cut says something else");
    let lenient = scan_backend_whole(body);
    let short = scan_backend(body);
    match serde_json::from_slice::<Json>(body) {
        Err(error) => {
            let reject = found.expect_err("not JSON");
            same_refusal(&reject, -32700, &error.to_string());
            if let Some(id) = reject.id {
                parse(id.token().of(body));
            }
        }
        Ok(value) => {
            assert_eq!(
                lenient, found,
                "a backend's frame is judged no stricter and no other"
            );
            match judge(&value) {
                Err(message) => {
                    let reject = found.expect_err("not JSON-RPC");
                    same_refusal(&reject, -32600, &message);
                    let only = value.id("id").filter(|_| value.count("id") == 1);
                    same_id(body, reject.id, only, "id of a refusal");
                }
                Ok(kind) => {
                    let head = found.expect("a frame");
                    assert_eq!(head.kind, kind);
                    same_head(body, &head, &value);
                    places_count(body, &head);
                    if is_trustworthy(body, &head, &value) {
                        assert_eq!(short, Ok(head), "the short cut says something else");
                    }
                }
            }
        }
    }
}
