//! What a client sees where there are several users.

use std::sync::Arc;

use serde_json::{Value, json};

use super::rig::{Rig, Shell, event, notification, request, result, settings};
use crate::core::{
    access::{Access, Denial, Relation},
    event::{Event, NotFound},
    id::SessionId,
    identity::{Caps, Principal, Role},
    mux::{Output, Settings},
    reply::ProxyError,
};

fn ann() -> Arc<Principal> {
    Arc::new(Principal {
        name: Arc::from("ann"),
        role: Role::User,
        realm: Arc::from("acme"),
        user: Arc::from("ann"),
        groups: Vec::new(),
        expires: None,
        allow: Vec::new(),
        deny: Vec::new(),
        caps: Caps::default(),
    })
}

pub(super) fn rig(shell: Shell) -> Rig {
    let access = Access {
        authenticates: true,
        ..Access::default()
    };
    let settings = Settings {
        access: Arc::new(access),
        ..settings()
    };
    let mut rig = Rig::with(shell, settings);
    rig.step(&[], |mux, cx, _| {
        mux.set_principal(cx, ann());
        0
    });
    rig
}

fn unseen(session: &str) -> ProxyError {
    ProxyError::Unseen {
        session: SessionId::from(session),
        why: NotFound::Denied(Denial::OtherUser),
    }
}

fn deny(rig: &mut Rig, session: &str) {
    let question = rig.asked();
    assert_eq!(question.principal.as_deref(), Some(&*ann()));
    let ticket = question.ticket;
    rig.step(&[], |mux, cx, out| {
        mux.handle_located(cx, ticket, Err(unseen(session)), out);
        0
    });
}

pub(super) fn denials(rig: &mut Rig) -> Vec<(String, String)> {
    rig.logged(|output| match output {
        Output::Event(Event::Denied {
            method, session, ..
        }) => Some((method.to_string(), session.to_string())),
        _ => None,
    })
}

fn withheld(rig: &mut Rig) -> Vec<&'static str> {
    rig.logged(|output| match output {
        Output::Event(Event::Withheld { reason, .. }) => Some(*reason),
        _ => None,
    })
}

#[test]
fn a_denied_call_is_answered_in_the_words_of_its_method_and_nobody_is_asked() {
    let mut rig = rig(Shell::Manual);
    let of = |id: i64, method: &str| request(id, method, json!({"sessionId": "s1"}));
    rig.client(&of(1, "session.getMessages"));
    rig.client(&of(2, "session.send"));
    deny(&mut rig, "s1");
    let said = rig.said();
    let message = |id: i64| {
        let answer = said.iter().find(|m| m["id"] == id).unwrap();
        assert_eq!(answer["error"].get("data"), None, "as the CLI says it");
        answer["error"]["message"].as_str().unwrap().to_owned()
    };
    assert!(message(1).ends_with("failed with message: Session not found: s1"));
    assert!(message(2).ends_with("Session not found for sessionId: s1"));
    rig.client(&of(3, "session.delete"));
    deny(&mut rig, "s1");
    assert_eq!(rig.said_one()["result"]["success"], false);
    rig.client(&of(4, "session.create"));
    deny(&mut rig, "s1");
    let told = rig.said_one()["error"]["message"].to_string();
    assert!(told.contains("invalid sessionId"), "{told}");
    let methods: Vec<String> = denials(&mut rig).into_iter().map(|(m, _)| m).collect();
    assert_eq!(
        methods,
        [
            "session.getMessages",
            "session.send",
            "session.delete",
            "session.create"
        ]
    );
    assert!(rig.connects.is_empty());
}

#[test]
fn what_is_no_sessions_id_is_nobodys() {
    let mut rig = rig(Shell::Manual);
    for id in ["a/b", "../s1", "ѕ1", "s1 ", ""] {
        rig.client(&request(1, "session.send", json!({"sessionId": id})));
        let told = rig.said_one()["error"]["message"].to_string();
        assert!(told.contains("Session not found for sessionId: "), "{told}");
    }
    rig.client(&request(2, "session.create", json!({"sessionId": "a/b"})));
    assert!(
        rig.said_one()["error"]["message"]
            .to_string()
            .contains("invalid sessionId")
    );
    assert!(rig.locates.is_empty());
    // The backend chooses one.
    rig.client(&request(3, "session.create", json!({"sessionId": ""})));
    assert_eq!(rig.asked().session, None);
}

#[test]
fn sessions_that_a_call_names_besides_are_judged_before_it_leaves() {
    let mut rig = rig(Shell::Auto);
    rig.open("s1", "b");
    rig.shell = Shell::Manual;
    let set = |id: i64, from: &str| {
        let params =
            json!({"sessionId": "s1", "mode": "plan", "inheritPlanBaseFromSessionId": from});
        request(id, "session.mode.set", params)
    };
    rig.client(&set(1, "s2"));
    rig.client(&request(2, "session.mode.get", json!({"sessionId": "s1"})));
    rig.client(&set(3, "s3"));
    assert_eq!(rig.heard_ids("b"), [0; 0]);
    let question = rig.locates[0].clone();
    assert_eq!(question.also, [SessionId::from("s2")]);
    deny(&mut rig, "s2");
    let told = rig.said_one();
    assert_eq!(told["id"], 1);
    assert!(
        told["error"]["message"]
            .to_string()
            .contains("session not found: s2")
    );
    assert_eq!(
        denials(&mut rig),
        [("session.mode.set".into(), "s2".into())]
    );
    // The others go on, each judged by itself.
    let question = rig.asked();
    assert_eq!(question.also, []);
    rig.locate(&question, "b");
    assert_eq!(rig.heard_ids("b"), [2]);
    let question = rig.asked();
    assert_eq!(question.also, [SessionId::from("s3")]);
    rig.locate(&question, "b");
    assert_eq!(rig.heard_ids("b"), [3]);
}

#[test]
fn frames_about_sessions_that_are_not_attached_here_are_withheld() {
    let mut rig = rig(Shell::Auto);
    rig.open("s1", "b");
    let about = |session: Value| {
        [
            event("x", "session.info", json!({})).replace("\"x\"", &session.to_string()),
            notification("session.fromTheFuture", json!({"sessionId": session})),
            notification(
                "host.event",
                json!({"scope": {"type": "session", "sessionId": session}, "kind": "k"}),
            ),
            notification(
                "gitHubTelemetry.event",
                json!({"sessionId": session, "event": {}}),
            ),
        ]
    };
    for frame in about(json!("s1")) {
        rig.backend("b", &frame);
        assert_eq!(rig.said().len(), 1, "{frame}");
    }
    for frame in about(json!("s2")) {
        rig.backend("b", &frame);
        rig.silent();
    }
    for method in ["host.event", "gitHubTelemetry.event", "news.fromTheFuture"] {
        rig.backend("b", &notification(method, json!({"kind": "k"})));
        rig.silent();
    }
    for method in [
        "hooks.invoke",
        "userInput.request",
        "what.isThis",
        "sessionFs.stat",
    ] {
        rig.backend("b", &request(7, method, json!({"sessionId": "s2"})));
        rig.silent();
        rig.backend("b", &request(8, method, json!({"sessionId": "s1"})));
        assert_eq!(rig.said_one()["method"], method);
    }
    rig.backend("b", &request(9, "what.isThis", json!({})));
    rig.silent();
    let mut reasons = withheld(&mut rig);
    reasons.sort_unstable();
    assert_eq!(
        reasons,
        [["no_session"; 4].as_slice(), &["not_attached"; 8]].concat()
    );
    // Nobody answers for the client.
    assert!(rig.heard("b").iter().all(|m| m.get("result").is_none()));
}

#[test]
fn a_session_whose_id_the_backend_chooses_is_heard_before_its_answer() {
    let mut rig = rig(Shell::Auto);
    rig.open("s1", "a");
    rig.client(&request(1, "session.create", json!({})));
    rig.backend(
        "a",
        &request(1, "sessionFs.stat", json!({"sessionId": "new"})),
    );
    assert_eq!(rig.said_one()["method"], "sessionFs.stat");
    // However long its answer takes, nothing else is heard.
    for method in ["sessionFs.stat", "userInput.request", "hooks.invoke"] {
        rig.backend(
            "a",
            &request(2, method, json!({"sessionId": "of-another-1"})),
        );
        rig.silent();
    }
    rig.backend("a", &event("of-another-1", "session.info", json!({})));
    rig.silent();
    rig.backend("a", &result(1, json!({"sessionId": "new"})));
    rig.said();
    rig.backend("a", &event("new", "session.start", json!({})));
    assert_eq!(rig.said().len(), 1);
    rig.backend("a", &event("other", "session.start", json!({})));
    rig.silent();
}

#[test]
fn a_member_may_not_change_the_session() {
    let mut rig = rig(Shell::Auto);
    rig.relation = Relation::Member;
    let with = json!({"sessionId": "s1", "provider": {"apiKey": "k"}, "streaming": true});
    rig.client(&request(1, "session.resume", with));
    assert_eq!(rig.error(), (json!(1), -32014));
    rig.open("s1", "a");
    for (id, method) in [
        (2, "session.mode.set"),
        (3, "sessions.close"),
        (4, "sessions.fork"),
    ] {
        rig.client(&request(id, method, json!({"sessionId": "s1"})));
        assert_eq!(rig.error(), (json!(id), -32014), "{method}");
    }
    rig.heard("a");
    rig.client(&request(
        5,
        "session.getMessages",
        json!({"sessionId": "s1"}),
    ));
    assert_eq!(rig.heard_ids("a"), [5]);
}

#[test]
fn a_session_that_is_forbidden_is_left_and_its_turn_told_as_over() {
    let mut rig = rig(Shell::Auto);
    rig.open("s1", "a");
    rig.open("s2", "a");
    rig.send(1, "s1");
    rig.backend("a", &result(1, json!({"messageId": "m"})));
    rig.backend("a", &event("s1", "assistant.turn_start", json!({})));
    rig.client(&request(2, "session.mode.get", json!({"sessionId": "s1"})));
    rig.said();
    rig.heard("a");
    rig.step(&[], |mux, cx, out| {
        mux.handle_forbidden(cx, "s1", Denial::OtherUser, out);
        0
    });
    let kinds: Vec<String> = rig
        .said()
        .iter()
        .map(|m| m["params"]["event"]["type"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(kinds, ["session.error", "session.idle"]);
    let methods: Vec<Value> = rig.heard("a").iter().map(|m| m["method"].clone()).collect();
    assert_eq!(methods, ["session.detach"], "the turn may be another's");
    assert_eq!(rig.claims.keys().collect::<Vec<_>>(), ["s2"]);
    // What was asked before is answered; nothing more is heard.
    rig.backend("a", &result(2, json!({"mode": "plan"})));
    assert_eq!(rig.said_one()["id"], 2);
    rig.backend("a", &event("s1", "assistant.message", json!({})));
    rig.silent();
    rig.backend("a", &event("s2", "session.info", json!({})));
    assert_eq!(rig.said().len(), 1);
    rig.shell = Shell::Manual;
    rig.client(&request(3, "session.send", json!({"sessionId": "s1"})));
    deny(&mut rig, "s1");
    assert_eq!(rig.said_one()["id"], 3);
}
