//! What a profile lets through before anything is routed.

use std::sync::Arc;

use serde_json::{Value, json};

use super::rig::{Rig, Shell, request, settings};
use crate::core::{
    access::{Access, Methods},
    mux::Settings,
    route::Profile,
};

fn rig(methods: Methods) -> Rig {
    let access = Access {
        methods,
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

fn tenants() -> Methods {
    Methods {
        profile: Profile::MultiTenant,
        deny_params: vec![Arc::from("configDir")],
        ..Methods::default()
    }
}

/// The code of the answer that came at once; none if the call went on.
fn refused(rig: &mut Rig, method: &str, params: Value) -> Option<(i64, String)> {
    rig.client(&request(1, method, params));
    let answer = rig.said_raw().pop()?;
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    let code = answer["error"]["code"].as_i64()?;
    let text = answer["error"]["message"].as_str().unwrap_or_default();
    Some((code, text.to_owned()))
}

#[test]
fn tenants_get_no_further_than_their_own_sessions() {
    let cases = [
        (
            "session.shell.exec",
            json!({"sessionId": "s"}),
            -32014,
            "on the host",
        ),
        ("account.getQuota", json!({}), -32014, "account"),
        (
            "llmInference.setProvider",
            json!({}),
            -32014,
            "one such provider",
        ),
        ("runtime.shutdown", json!({}), -32014, "drain the backend"),
        (
            "sessions.pruneOld",
            json!({"olderThanDays": 1}),
            -32014,
            "everybody",
        ),
        (
            "sessions.open",
            json!({"kind": "resume", "sessionId": "s"}),
            -32014,
            "session.resume",
        ),
        (
            "sessions.open",
            json!({"kind": "create"}),
            -32014,
            "session.create",
        ),
        (
            "sessions.open",
            json!({"kind": "resumeLast", "sessionId": "s"}),
            -32014,
            "`attach`",
        ),
        ("sessions.open", json!({}), -32014, "`attach`"),
        (
            "sessions.fromTheFuture",
            json!({"sessionId": "s"}),
            -32601,
            "Unhandled method",
        ),
        ("tomorrow", json!({}), -32601, "Unhandled method tomorrow"),
        (
            "session.create",
            json!({"sessionId": "s", "configDir": "/"}),
            -32014,
            "configDir",
        ),
        (
            "session.options.update",
            json!({"sessionId": "s", "configDir": "/"}),
            -32014,
            "configDir",
        ),
    ];
    for (method, params, code, words) in cases {
        let mut tenants = rig(tenants());
        let answer = refused(&mut tenants, method, params.clone());
        let (is, text) = answer.unwrap_or_else(|| panic!("{method} {params} went on"));
        assert_eq!(is, code, "{method} {params}");
        assert!(text.contains(words), "{method} {params}: {text}");
        assert!(
            tenants.sockets.is_empty() && tenants.serves.is_empty(),
            "{method}"
        );
        // It is the profile that refuses it; but two things nobody may do.
        let mut alone = rig(Methods::default());
        let never = method == "runtime.shutdown" || params["kind"] == "resumeLast";
        assert_eq!(
            refused(&mut alone, method, params).is_some(),
            never,
            "{method}"
        );
    }
}

#[test]
fn tenants_get_what_is_theirs() {
    for (method, params) in [
        (
            "session.create",
            json!({"sessionId": "s", "configDir": null}),
        ),
        ("session.send", json!({"sessionId": "s", "configDir": "/"})),
        ("session.sendAndWait", json!({"sessionId": "s"})),
        ("session.fromTheFuture", json!({"sessionId": "s"})),
        ("sessions.open", json!({"kind": "attach", "sessionId": "s"})),
        ("models.list", json!({})),
        ("session.list", json!({})),
    ] {
        let mut tenants = rig(tenants());
        assert_eq!(refused(&mut tenants, method, params), None, "{method}");
        assert!(
            !tenants.sockets.is_empty() || !tenants.serves.is_empty(),
            "{method}"
        );
    }
}

#[test]
fn the_operator_may_say_otherwise() {
    let mut rig = rig(Methods {
        allow: vec![Arc::from("session.shell.exec"), Arc::from("sessions.open")],
        deny: vec![Arc::from("session.s*")],
        ..tenants()
    });
    let session = || json!({"sessionId": "s"});
    assert_eq!(refused(&mut rig, "session.shell.exec", session()), None);
    let kind = json!({"kind": "resume", "sessionId": "s2"});
    rig.client(&request(2, "sessions.open", kind));
    rig.silent();
    rig.client(&request(3, "session.send", session()));
    let answer = rig.said_raw().pop().expect("an answer");
    assert!(
        answer.contains("-32014") && answer.contains("access.deny"),
        "{answer}"
    );
}

#[test]
fn the_telemetry_of_everybody_is_for_no_tenant() {
    for (methods, heard) in [(Methods::default(), true), (tenants(), false)] {
        let mut rig = rig(methods);
        rig.client(&request(
            1,
            "connect",
            json!({"enableGitHubTelemetryForwarding": true}),
        ));
        let answer = rig.said_raw().pop().expect("an answer");
        assert!(answer.contains(r#""ok":true"#), "{answer}");
        rig.client(&request(2, "session.create", json!({"sessionId": "s"})));
        let greetings = rig
            .sockets
            .values()
            .map(|(_, socket)| socket.greeting.clone());
        let greetings: Vec<String> = greetings.flatten().collect();
        assert_eq!(greetings.len(), 1);
        let asked = greetings[0].contains("enableGitHubTelemetryForwarding");
        assert_eq!(asked, heard, "{}", greetings[0]);
    }
}
