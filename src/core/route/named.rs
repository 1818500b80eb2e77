//! Which sessions a request names, and where: a caller must own each of them.
//!
//! Reads the places that `core::scan` found; knows no session.

use super::{Class, Profile, catalog};
use crate::core::scan::{Head, Places, Text};

/// A place in `params` where the id of a session stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NamedAt {
    /// `sessionId`
    Session,
    /// `options.sessionId`
    Options,
    /// `inheritPlanBaseFromSessionId`
    InheritPlan,
    /// `toSessionId`
    To,
    /// `expectedSessionId`
    Expected,
    /// `expectedFromSessionId`
    ExpectedFrom,
}

/// A session that a request names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Named {
    /// Where it stands.
    pub at: NamedAt,
    /// The id, in the request's body.
    pub id: Text,
}

impl Named {
    fn at(at: NamedAt, id: Option<Text>) -> Option<Self> {
        id.map(|id| Self { at, id })
    }
}

/// The session that a request of this class is routed by: the one that the CLI acts on.
///
/// `sessions.open` of kind `create` acts on `options.sessionId` and of any other on `sessionId`; it
/// does not look at the other one.
pub fn main_session(class: Class, head: &Head, body: &[u8]) -> Option<Named> {
    let places = &head.places;
    let session = Named::at(NamedAt::Session, head.session);
    if class == Class::Open {
        let options = Named::at(NamedAt::Options, places.options_session);
        let creates = places.kind.is_some_and(|kind| kind.get(body) == "create");
        if creates {
            options.or(session)
        } else {
            session.or(options)
        }
    } else if class == Class::RemoteControl {
        Named::at(NamedAt::To, places.to_session)
            .or(Named::at(NamedAt::Expected, places.expected))
            .or(Named::at(NamedAt::ExpectedFrom, places.expected_from))
            .or(session)
    } else {
        session
    }
}

/// Why a `sessions.open` is refused, if so.
///
/// Of the kinds, `attach` alone can neither open what another server has open, nor reach what is
/// not in the pool.
pub fn open_refusal(profile: Profile, head: &Head, body: &[u8]) -> Option<&'static str> {
    let kind = head.places.kind.map(|kind| kind.get(body));
    let kind = kind.as_deref().unwrap_or_default();
    if profile == Profile::MultiTenant && kind != "attach" {
        return Some(
            "of its kinds only `attach` keeps to the caller's sessions; use session.create and \
             session.resume",
        );
    }
    // It does not look at any id that stands beside it.
    (kind == "resumeLast").then_some(
        "which session was last is known to no single server, and the one that opened it by itself \
         might open what another has open: ask session.getLastId, then open that id with kind resume",
    )
}

/// The sessions that a request names besides its [`main_session`], where the CLI looks at them.
///
/// Of a method that no table lists, each place that any method has counts: it may look at it.
/// Arrays of ids are not in here; who answers those methods goes through them.
pub fn also_named(class: Class, method: &str, head: &Head, body: &[u8]) -> Vec<Named> {
    let Places {
        to_session,
        expected_from,
        expected,
        inherit_plan,
        options_session,
        ..
    } = head.places;
    let places = [
        Named::at(NamedAt::Session, head.session),
        Named::at(NamedAt::Options, options_session),
        Named::at(NamedAt::InheritPlan, inherit_plan),
        Named::at(NamedAt::To, to_session),
        Named::at(NamedAt::Expected, expected),
        Named::at(NamedAt::ExpectedFrom, expected_from),
    ];
    // Nearly every request ends here.
    if places[1..].iter().all(Option::is_none) {
        return Vec::new();
    }
    let main = main_session(class, head, body);
    let counts = |named: &Named| Some(*named) != main && counts(class, method, named.at);
    places.into_iter().flatten().filter(counts).collect()
}

/// Whether the CLI may look at that place.
fn counts(class: Class, method: &str, at: NamedAt) -> bool {
    use NamedAt::{Expected, ExpectedFrom, InheritPlan, Options, Session, To};
    if class == Class::Open {
        return matches!(at, Session | Options);
    }
    if class == Class::RemoteControl {
        return matches!(at, Session | To | Expected | ExpectedFrom);
    }
    if method == "session.mode.set" {
        return at == InheritPlan;
    }
    match class {
        Class::Session => !method.starts_with("sessions.") && !catalog::is_session_method(method),
        Class::Unknown => true,
        Class::Ping
        | Class::Connect
        | Class::Create
        | Class::Resume
        | Class::Open
        | Class::Fork
        | Class::Detach
        | Class::Delete
        | Class::Close
        | Class::Send(_)
        | Class::Abort
        | Class::Aggregate(_)
        | Class::IdsArray(_)
        | Class::Any
        | Class::ServerWide(_)
        | Class::Provider(_)
        | Class::ByRequestId
        | Class::Cancel
        | Class::RemoteControl
        | Class::Denied(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{route::classify, scan::scan};

    /// What a call of `method` with these params names: the main session, then the others.
    fn named(method: &str, params: &str) -> Vec<(NamedAt, String)> {
        let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#);
        let body = body.as_bytes();
        let head = scan(body).expect("a good frame");
        let class = classify(method);
        let others = also_named(class, method, &head, body);
        main_session(class, &head, body)
            .into_iter()
            .chain(others)
            .map(|named| (named.at, named.id.get(body).into_owned()))
            .collect()
    }

    /// Method, params, and what they name.
    type Case = (
        &'static str,
        &'static str,
        &'static [(NamedAt, &'static str)],
    );

    #[test]
    fn every_place_that_the_cli_looks_at_counts() {
        use NamedAt::{Expected, ExpectedFrom, InheritPlan, Options, Session, To};
        let cases: &[Case] = &[
            ("session.send", r#"{"sessionId":"a"}"#, &[(Session, "a")]),
            (
                "session.send",
                r#"{"sessionId":"a","toSessionId":"b"}"#,
                &[(Session, "a")],
            ),
            (
                "session.mode.set",
                r#"{"inheritPlanBaseFromSessionId":"b","mode":"plan","sessionId":"a"}"#,
                &[(Session, "a"), (InheritPlan, "b")],
            ),
            // Of duplicates the last counts, however its key is written.
            (
                "session.mode.set",
                r#"{"sessionId":"x","inheritPlanBaseFromSessionId":"mine","inherit\u0050lanBaseFromSessionId":"b","session\u0049d":"a"}"#,
                &[(Session, "a"), (InheritPlan, "b")],
            ),
            (
                "session.mode.set",
                r#"{"sessionId":"a","inheritPlanBaseFromSessionId":"b","inheritPlanBaseFromSessionId":5}"#,
                &[(Session, "a")],
            ),
            (
                "sessions.open",
                r#"{"kind":"attach","sessionId":"a"}"#,
                &[(Session, "a")],
            ),
            (
                "sessions.open",
                r#"{"kind":"attach","options":{"sessionId":"b"},"sessionId":"a"}"#,
                &[(Session, "a"), (Options, "b")],
            ),
            // A session of one's own beside it does not hide the one that is meant.
            (
                "sessions.open",
                r#"{"options":{"sessionId":"b"},"sessionId":"mine","kind":"create"}"#,
                &[(Options, "b"), (Session, "mine")],
            ),
            (
                "sessions.open",
                r#"{"kind":"attach","sessionId":"mine","\u006bind":"cre\u0061te","options":{"x":{"sessionId":"y"},"sessionId":"z","session\u0049d":"b"}}"#,
                &[(Options, "b"), (Session, "mine")],
            ),
            // Of duplicate objects the last counts, as a whole.
            (
                "sessions.open",
                r#"{"kind":"create","options":{"sessionId":"x"},"options":{"name":"n"}}"#,
                &[],
            ),
            (
                "sessions.transferRemoteControl",
                r#"{"toSessionId":"b","expectedFromSessionId":"a"}"#,
                &[(To, "b"), (ExpectedFrom, "a")],
            ),
            (
                "sessions.stopRemoteControl",
                r#"{"sessionId":"mine","expectedSessionId":"b"}"#,
                &[(Expected, "b"), (Session, "mine")],
            ),
            // Nobody knows where a method of tomorrow looks.
            (
                "session.fromTheFuture",
                r#"{"sessionId":"a","toSessionId":"b","options":{"sessionId":"c"}}"#,
                &[(Session, "a"), (Options, "c"), (To, "b")],
            ),
            (
                "tomorrow",
                r#"{"expectedSessionId":"b","expectedFromSessionId":"c"}"#,
                &[(Expected, "b"), (ExpectedFrom, "c")],
            ),
        ];
        for (method, params, expected) in cases {
            let expected: Vec<_> = expected
                .iter()
                .map(|(at, id)| (*at, (*id).to_owned()))
                .collect();
            assert_eq!(named(method, params), expected, "{method} {params}");
        }
    }
}
