//! What a client is told of a turn that no backend will end any more. When, is not decided here.

use serde::Serialize;

use super::{Quote, Stamp, event};
use crate::core::id::BackendName;

/// Why a turn has no end of its own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LostBy {
    /// Its backend went away.
    Backend(BackendName),
    /// Taxiway stopped, and the time to drain was over.
    Shutdown,
    /// Its backend was drained, and the time for that was over.
    Drained(BackendName),
    /// It said nothing for `sessions.turn_stall`.
    Stalled,
    /// It has run for `sessions.turn_max`.
    TooLong,
    /// Its session is not open any more where it ran: closed by somebody else, or by the backend.
    Closed,
    /// Its client may not use the session any more.
    Forbidden,
    /// Who it ran for is nobody any more, and the time for its last turns was over.
    Revoked,
}

/// Appends the end of a turn that no backend will end any more: a `session.event` of type
/// `session.error`, by which SDKs reject the call that waits for the turn, then `session.idle` with
/// `aborted`.
///
/// `unseen` are the `messageId`s of sends that the backend had acknowledged, but that the client
/// never saw as `user.message`: they may be lost.
pub fn turn_lost(
    out: &mut Vec<u8>,
    session: &str,
    cause: &LostBy,
    unseen: &[&str],
    stamp: &Stamp<'_>,
) {
    let outlook = if matches!(cause, LostBy::Forbidden) {
        "What"
    } else {
        "The session goes on once it is open again; what"
    };
    let (code, cause) = match cause {
        LostBy::Backend(backend) => (
            "BACKEND_LOST",
            format!("Backend {backend} was lost in the middle of this turn"),
        ),
        LostBy::Drained(backend) => (
            "DRAINING",
            format!("Backend {backend} was drained before this turn had ended"),
        ),
        LostBy::Stalled => (
            "TURN_STALLED",
            "This turn had no event for sessions.turn_stall and was ended".to_owned(),
        ),
        LostBy::TooLong => (
            "TURN_TOO_LONG",
            "This turn ran for longer than sessions.turn_max and was ended".to_owned(),
        ),
        LostBy::Forbidden => (
            "SESSION_CLOSED",
            "The session is not available to this client any more".to_owned(),
        ),
        LostBy::Shutdown => (
            "DRAINING",
            "Taxiway shut down before this turn had ended".to_owned(),
        ),
        LostBy::Revoked => (
            "AUTHENTICATION_REQUIRED",
            "What proved who this client is has run out or was taken back".to_owned(),
        ),
        LostBy::Closed => (
            "SESSION_CLOSED",
            "The session was closed in the middle of this turn".to_owned(),
        ),
    };
    let mut message =
        format!("{cause}. {outlook} the turn had done by then may or may not be in its history");
    if !unseen.is_empty() {
        message += &format!("; acknowledged but perhaps lost: {}", named(unseen));
    }
    let error = LostTurn {
        error_type: "query",
        error_code: code,
        message: &message,
    };
    event(out, session, "session.error", &error, stamp);
    // A real idle event names the last event of the history as its parent; neither of ours is in
    // it. Flipping one random bit makes the second id as unique as the first.
    let idle = Stamp {
        id: stamp.id ^ 1,
        ..*stamp
    };
    event(out, session, "session.idle", &Idle { aborted: true }, &idle);
}

/// Appends a `session.error` about sends that a backend had acknowledged and that were lost with it,
/// while the turn that they were queued behind went on elsewhere. For just before the end of that
/// turn, since SDKs reject the calls that wait for it.
pub fn sends_lost(
    out: &mut Vec<u8>,
    session: &str,
    backend: &BackendName,
    unseen: &[&str],
    stamp: &Stamp<'_>,
) {
    let message = format!(
        "Backend {backend} was lost with what was queued behind this turn: acknowledged and not \
         executed: {}. The turn itself has gone on elsewhere",
        named(unseen)
    );
    let error = LostTurn {
        error_type: "query",
        error_code: "BACKEND_LOST",
        message: &message,
    };
    event(out, session, "session.error", &error, stamp);
}

/// How many messages, and which, as far as they fit.
fn named(messages: &[&str]) -> String {
    let first = messages.iter().take(8);
    let names: Vec<String> = first.map(|id| Quote(id).to_string()).collect();
    let more = if messages.len() > names.len() {
        ", …"
    } else {
        ""
    };
    format!("{} message(s) ({}{more})", messages.len(), names.join(", "))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LostTurn<'a> {
    error_type: &'a str,
    error_code: &'a str,
    message: &'a str,
}

#[derive(Serialize)]
struct Idle {
    aborted: bool,
}
