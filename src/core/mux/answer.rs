//! What the answers of backends say: read by hand, since only a word or two of them counts.

use crate::core::{id::SessionId, scan::Head};

/// Whether a body that is no JSON-RPC message for us is the CLI's complaint about a frame that it
/// could not read.
pub(super) fn is_null_id_error(body: &[u8]) -> bool {
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(body) else {
        return false;
    };
    value.get("id").is_some_and(serde_json::Value::is_null) && value.get("error").is_some()
}

/// The CLI's only sign that a session is not open where it was asked for (PROTOCOL §8): these words,
/// then the session's id.
pub(super) fn is_not_found(head: &Head, body: &[u8], session: Option<&SessionId>) -> bool {
    let (Some(error), Some(session)) = (head.error, session) else {
        return false;
    };
    let text = error.of(body);
    [
        &b"Session not found for sessionId: "[..],
        b"Session not found: ",
    ]
    .iter()
    .any(|words| {
        memchr::memmem::find_iter(text, words)
            .any(|at| text[at + words.len()..].starts_with(session.as_str().as_bytes()))
    })
}

/// `{"success":true}` as a whole result.
pub(super) fn says_success(head: &Head, body: &[u8]) -> bool {
    head.result
        .is_some_and(|r| memchr::memmem::find(r.of(body), br#""success":true"#).is_some())
}

/// `{"success":false}` as a whole result.
pub(super) fn says_failure(head: &Head, body: &[u8]) -> bool {
    head.result
        .is_some_and(|r| memchr::memmem::find(r.of(body), br#""success":false"#).is_some())
}

/// `sessions.open` answers an unknown session with a status instead of an error.
pub(super) fn says_not_found(head: &Head, body: &[u8]) -> bool {
    let status = br#""status":"not_found""#;
    head.result
        .is_some_and(|r| memchr::memmem::find(r.of(body), status).is_some())
}

/// `result.sessionId`.
pub(super) fn result_session(head: &Head, body: &[u8]) -> Option<SessionId> {
    let result: serde_json::Value = serde_json::from_slice(head.result?.of(body)).ok()?;
    result.get("sessionId")?.as_str().map(SessionId::from)
}

/// `n` in decimal, without an allocation.
pub(super) fn write_number(mut n: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            return &digits[at..];
        }
    }
}

/// What a server answers to everything once it was told to end (PROTOCOL §4).
pub(super) fn is_shutting_down(head: &Head, body: &[u8]) -> bool {
    head.error.is_some_and(|error| {
        let error = error.of(body);
        let finds = |words: &[u8]| memchr::memmem::find(error, words).is_some();
        finds(b"-32000") && finds(b"SERVER_SHUTTING_DOWN")
    })
}
