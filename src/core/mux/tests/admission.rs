//! Clients that must say who they are, and what they may do before.

use std::{sync::Arc, time::Duration};

use serde_json::json;

use super::rig::{Rig, Shell, framed, notification, request, settings};
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
