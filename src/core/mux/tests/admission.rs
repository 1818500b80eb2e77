//! Clients that must say who they are, and what they may do before.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde_json::json;

use super::rig::{Rig, Shell, event, framed, notification, request, result, settings};
use crate::core::{
    access::Access,
    id::Secret,
    identity::{Caps, Principal, Role},
    mux::{Output, Settings},
    reply::ProxyError,
};

fn principal(name: &str) -> Arc<Principal> {
    Arc::new(Principal {
        name: Arc::from(name),
        role: Role::User,
        realm: Arc::from(name),
        user: Arc::from(name),
        groups: Vec::new(),
        expires: None,
        allow: Vec::new(),
        deny: Vec::new(),
        caps: Caps::default(),
    })
}

fn strict() -> Rig {
    let access = Access {
        authenticates: true,
        ..Access::default()
    };
    Rig::with(
        Shell::Auto,
        Settings {
            access: Arc::new(access),
            ..settings()
        },
    )
}

fn asked(rig: &mut Rig) -> (u64, Option<Secret>) {
    let mut asked = rig.logged(|o| match o {
        Output::Authenticate { ticket, token } => Some((*ticket, token.clone())),
        _ => None,
    });
    assert_eq!(asked.len(), 1, "{asked:?}");
    asked.remove(0)
}

fn answer(rig: &mut Rig, ticket: u64, answer: Result<Arc<Principal>, ProxyError>) {
    rig.step(&[], |mux, cx, out| {
        mux.handle_authenticated(cx, ticket, answer, out);
        0
    });
    rig.client_bytes(b"");
}

fn connect(id: i64, token: &str) -> String {
    request(id, "connect", json!({"token": token}))
}

#[test]
fn a_stranger_may_only_connect() {
    let mut rig = strict();
    for (id, method) in [
        (1, "ping"),
        (2, "session.create"),
        (3, "no.such"),
        (4, "runtime.shutdown"),
    ] {
        rig.client(&request(id, method, json!({"sessionId": "s"})));
        assert_eq!(rig.error(), (json!(id), -32001), "{method}");
    }
    rig.client(&notification("session.notify", json!({"sessionId": "s"})));
    rig.client(&notification("$/cancelRequest", json!({"id": 1})));
    let news = framed(&notification(
        "session.lifecycle",
        json!({"sessionId": "t"}),
    ));
    rig.step(&[], |mux, cx, out| {
        mux.handle_lifecycle(cx, &news, out);
        0
    });
    rig.silent();
    assert!(rig.locates.is_empty() && rig.connects.is_empty() && rig.serves.is_empty());
    rig.client(&connect(5, "wrong"));
    let (ticket, token) = asked(&mut rig);
    assert_eq!(token.map(|t| t.expose().to_owned()), Some("wrong".into()));
    answer(&mut rig, ticket, Err(ProxyError::AuthenticationFailed));
    assert_eq!(rig.error(), (json!(5), -32002));
    rig.client(&request(6, "ping", json!({})));
    assert_eq!(rig.error(), (json!(6), -32001));
}

#[test]
fn what_comes_behind_a_connect_waits_for_its_answer() {
    let mut rig = strict();
    let mut bytes = framed(&connect(1, "right"));
    bytes.extend(framed(&request(2, "ping", json!({"message": "x"}))));
    rig.client_bytes(&bytes);
    rig.silent();
    let (ticket, _) = asked(&mut rig);
    answer(&mut rig, ticket, Ok(principal("ann")));
    let said = rig.said();
    assert_eq!(said.len(), 2, "{said:?}");
    assert_eq!(said[0]["result"]["ok"], json!(true));
    assert_eq!(said[1]["result"]["message"], json!("pong: x"));
    assert_eq!(
        rig.mux.principal().map(|p| p.name.to_string()),
        Some("ann".into())
    );
}

#[test]
fn the_token_counts_even_if_the_rest_is_wrong() {
    let mut rig = strict();
    rig.client(&request(
        1,
        "connect",
        json!({"token": "right", "colour": "red"}),
    ));
    let (ticket, _) = asked(&mut rig);
    answer(&mut rig, ticket, Ok(principal("ann")));
    assert_eq!(rig.error(), (json!(1), -32602));
    rig.client(&request(2, "ping", json!({})));
    assert!(rig.said_one()["result"].is_object());
}

#[test]
fn a_connection_stays_who_it_is() {
    let mut rig = strict();
    rig.client(&connect(1, "right"));
    let (ticket, _) = asked(&mut rig);
    answer(&mut rig, ticket, Ok(principal("ann")));
    rig.said_one();
    for (id, outcome) in [
        (2, Ok(principal("bob"))),
        (3, Err(ProxyError::AuthenticationFailed)),
    ] {
        rig.client(&connect(id, "other"));
        let (ticket, _) = asked(&mut rig);
        answer(&mut rig, ticket, outcome);
        assert_eq!(rig.error(), (json!(id), -32002));
        let name = rig.mux.principal().map(|p| p.name.to_string());
        assert_eq!(name, Some("ann".into()));
    }
    rig.client(&request(4, "ping", json!({})));
    assert!(rig.said_one()["result"].is_object());
}

#[test]
fn a_stranger_has_little_time_and_little_room() {
    let mut rig = strict();
    rig.pass(Duration::from_secs(9));
    rig.client(&request(1, "ping", json!({})));
    rig.said();
    rig.pass(Duration::from_secs(2));
    assert!(rig.closed.is_some(), "frames alone do not prolong it");

    let mut rig = strict();
    rig.client(&request(
        1,
        "connect",
        json!({"token": "x".repeat(65 * 1024)}),
    ));
    let (id, code) = rig.error();
    assert_eq!((id, code), (json!(null), -32013));
    assert!(rig.closed.is_some());

    // Who has proved who it is has the room of the configuration.
    let mut rig = strict();
    rig.client(&connect(1, "right"));
    let (ticket, _) = asked(&mut rig);
    answer(&mut rig, ticket, Ok(principal("ann")));
    rig.said_one();
    rig.pass(Duration::from_secs(60));
    rig.client(&request(
        2,
        "ping",
        json!({"message": "x".repeat(65 * 1024)}),
    ));
    assert!(rig.said_one()["result"].is_object());
    assert_eq!(rig.closed, None);
}

fn until(name: &str, expires: Duration) -> Arc<Principal> {
    Arc::new(Principal {
        expires: Some(SystemTime::UNIX_EPOCH + expires),
        ..(*principal(name)).clone()
    })
}

const SECS: fn(u64) -> Duration = Duration::from_secs;

/// Somebody whose token runs out 100 s after the start, with a minute of grace.
fn for_a_while() -> Rig {
    let mut rig = strict();
    rig.client(&connect(1, "right"));
    let (ticket, _) = asked(&mut rig);
    answer(&mut rig, ticket, Ok(until("ann", SECS(100))));
    rig.said_one();
    rig
}

fn calls(rig: &mut Rig, id: i64) {
    rig.client(&request(id, "ping", json!({})));
    assert!(rig.said_one()["result"].is_object());
}

#[test]
fn a_token_that_has_run_out_ends_the_connection_after_the_grace() {
    let mut rig = for_a_while();
    rig.pass(SECS(159));
    calls(&mut rig, 2);
    assert_eq!(rig.closed, None);
    rig.pass(SECS(2));
    assert!(rig.closed.is_some(), "nothing runs");
}

#[test]
fn a_fresh_token_renews_and_an_old_one_does_not() {
    let mut rig = for_a_while();
    rig.pass(SECS(150));
    rig.client(&connect(2, "fresh"));
    let (ticket, _) = asked(&mut rig);
    answer(&mut rig, ticket, Ok(until("ann", SECS(1000))));
    rig.said_one();
    rig.pass(SECS(900));
    calls(&mut rig, 3);
    // One that is shorter is the client's wish as well.
    rig.client(&connect(4, "short"));
    let (ticket, _) = asked(&mut rig);
    answer(&mut rig, ticket, Ok(until("ann", SECS(1051))));
    rig.said_one();
    rig.pass(SECS(62));
    assert!(rig.closed.is_some());
}

/// A turn of `s1` runs at `b`.
fn busy(rig: &mut Rig) {
    rig.open("s1", "b");
    let params = json!({"sessionId": "s1", "prompt": "p"});
    rig.client(&request(7, "session.send", params));
    rig.backend("b", &result(7, json!({"messageId": "m1"})));
    for kind in ["user.message", "assistant.turn_start"] {
        rig.backend("b", &event("s1", kind, json!({"messageId": "m1"})));
    }
    rig.said();
    rig.heard("b");
    assert_eq!(rig.mux.open_turns(), 1);
}

#[test]
fn a_running_turn_may_end_and_nothing_new_begins() {
    let mut rig = for_a_while();
    busy(&mut rig);
    rig.pass(SECS(161));
    assert_eq!(rig.closed, None, "a turn runs");
    for (id, method) in [(20, "session.send"), (21, "ping"), (22, "session.abort")] {
        rig.client(&request(
            id,
            method,
            json!({"sessionId": "s1", "prompt": "q"}),
        ));
        assert_eq!(rig.error(), (json!(id), -32001), "{method}");
    }
    // What the backend asks in the turn is answered as ever.
    rig.backend(
        "b",
        &request(5, "permission.request", json!({"sessionId": "s1"})),
    );
    let asked = rig.said_one();
    rig.client(&result(asked["id"].clone(), json!({"kind": "approved"})));
    assert_eq!(rig.heard("b").len(), 1, "the answer, and no call");
    rig.backend("b", &event("s1", "session.idle", json!({})));
    assert_eq!(rig.said_one()["params"]["event"]["type"], "session.idle");
    assert!(rig.closed.is_some(), "with its last turn");
}

#[test]
fn who_connects_in_time_goes_on_in_the_middle_of_a_turn() {
    let mut rig = for_a_while();
    busy(&mut rig);
    rig.pass(SECS(161));
    rig.client(&connect(30, "fresh"));
    let (ticket, _) = asked(&mut rig);
    answer(&mut rig, ticket, Ok(until("ann", SECS(1000))));
    rig.said_one();
    calls(&mut rig, 31);
    rig.backend("b", &event("s1", "session.idle", json!({})));
    rig.said();
    assert_eq!(rig.closed, None);
}

#[test]
fn a_turn_without_end_ends_honestly() {
    let mut rig = for_a_while();
    busy(&mut rig);
    rig.pass(SECS(161));
    rig.client(&request(40, "session.mode.get", json!({"sessionId": "s1"})));
    rig.said();
    rig.pass(SECS(601));
    let said = rig.said();
    let kinds: Vec<_> = said
        .iter()
        .filter_map(|m| m["params"]["event"]["type"].as_str())
        .collect();
    assert_eq!(kinds, ["session.error", "session.idle"], "{said:?}");
    assert!(rig.closed.is_some());
}

fn judge_again(rig: &mut Rig, now: Option<Arc<Principal>>) {
    rig.step(&[], |mux, cx, out| {
        mux.handle_judged_again(cx, now, out);
        0
    });
}

#[test]
fn a_reload_may_take_somebody_away_at_once() {
    let mut rig = for_a_while();
    busy(&mut rig);
    judge_again(&mut rig, None);
    rig.client(&request(50, "ping", json!({})));
    assert_eq!(rig.error(), (json!(50), -32001));
    rig.backend("b", &event("s1", "session.idle", json!({})));
    assert!(rig.closed.is_some());

    let mut rig = for_a_while();
    judge_again(&mut rig, None);
    assert!(rig.closed.is_some(), "nothing runs");
}

#[test]
fn a_reload_may_change_rights_and_not_the_expiry() {
    let mut rig = for_a_while();
    let mut other = (*principal("ann")).clone();
    other.groups = vec![Arc::from("dev")];
    judge_again(&mut rig, Some(Arc::new(other)));
    let now = rig.mux.principal().unwrap();
    assert_eq!(now.groups, [Arc::from("dev")]);
    calls(&mut rig, 60);
    rig.pass(SECS(161));
    assert!(rig.closed.is_some());
}

#[test]
fn a_reload_may_begin_or_cease_to_ask() {
    // Somebody who was never asked is a stranger from then on, and has no way to go on.
    let mut rig = Rig::new();
    calls(&mut rig, 1);
    rig.settings.access = strict().settings.access;
    judge_again(&mut rig, None);
    assert!(rig.closed.is_some());

    // Who is just about to say it may.
    let mut rig = strict();
    judge_again(&mut rig, None);
    rig.client(&connect(1, "right"));
    let (ticket, _) = asked(&mut rig);
    judge_again(&mut rig, None);
    answer(&mut rig, ticket, Ok(principal("ann")));
    rig.said_one();
    calls(&mut rig, 2);

    let mut rig = for_a_while();
    rig.settings.access = Arc::default();
    judge_again(&mut rig, None);
    rig.pass(SECS(1000));
    calls(&mut rig, 61);
    assert!(rig.mux.principal().is_none());
}

#[test]
fn who_guesses_for_long_is_turned_out() {
    let mut rig = strict();
    for id in 1..=10 {
        assert_eq!(rig.closed, None, "{id}");
        rig.client(&connect(id, "guess"));
        let (ticket, _) = asked(&mut rig);
        answer(&mut rig, ticket, Err(ProxyError::AuthenticationFailed));
        assert_eq!(rig.error(), (json!(id), -32002));
    }
    assert!(rig.closed.is_some());
}

#[test]
fn a_certificate_needs_no_token() {
    let mut rig = strict();
    rig.step(&[], |mux, cx, _| {
        mux.set_principal(cx, principal("ann"));
        0
    });
    calls(&mut rig, 1);
    rig.pass(SECS(60));
    assert_eq!(rig.closed, None);
}
