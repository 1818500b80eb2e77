//! Answers and texts as a CLI 1.0.102 gave them, asked for one by one.

use crate::core::{
    snapshot::{Backend, Health},
    testing::{self, snapshot},
};

use super::*;

fn read(params: &str) -> Request {
    parse(Some(&RawValue::from_string(params.to_owned()).unwrap()))
}

#[test]
fn params_are_accepted_as_by_a_real_server() {
    for params in [
        "{}",
        "null",
        "[]",
        r#"{"token":5}"#,
        r#"{"token":null}"#,
        r#"{"token":""}"#,
        r#"{"clientInfo":null}"#,
        r#"{"clientInfo":{}}"#,
        r#"{"clientInfo":{"editorName":null}}"#,
        r#"{"clientInfo":{"editorName":"e","editorVersion":"1","extensionName":"x",
            "extensionVersion":"2"}}"#,
        r#"{"supportedTaskKinds":null}"#,
        r#"{"supportedTaskKinds":[]}"#,
        r#"{"supportedTaskKinds":["client","agent","client"]}"#,
        r#"{"supportedTaskKinds":5,"supportedTaskKinds":["shell"]}"#,
        r#"{"enableGitHubTelemetryForwarding":null}"#,
    ] {
        assert!(read(params).without_tokens().is_ok(), "{params}");
    }
    assert_eq!(parse(None).without_tokens(), Ok(Options::default()));
}

#[test]
fn params_are_refused_in_the_words_of_a_real_server() {
    for (params, text) in [
        (
            r#"{"entra":{}}"#,
            "unknown field `entra`, expected one of `enableGitHubTelemetryForwarding`, \
             `clientInfo`, `supportedTaskKinds`",
        ),
        (
            r#"{"clientInfo":{"foo":1}}"#,
            "unknown field `foo`, expected one of `editorName`, `editorVersion`, `extensionName`, \
             `extensionVersion`",
        ),
        (
            r#"{"clientInfo":5}"#,
            "invalid type: integer `5`, expected struct ConnectClientInfo",
        ),
        (
            r#"{"clientInfo":{"editorName":1.5}}"#,
            "invalid type: floating point `1.5`, expected a string",
        ),
        (
            r#"{"supportedTaskKinds":5}"#,
            "invalid type: integer `5`, expected a sequence",
        ),
        (
            r#"{"supportedTaskKinds":["foo"]}"#,
            "unknown variant `foo`, expected one of `agent`, `shell`, `client`",
        ),
        (
            r#"{"enableGitHubTelemetryForwarding":"x"}"#,
            "invalid type: string \"x\", expected a boolean",
        ),
        (
            r#""x""#,
            "invalid type: string \"x\", expected struct ConnectRequest",
        ),
        ("[{}]", "invalid type: map, expected a boolean"),
    ] {
        let refused = read(params).without_tokens().unwrap_err();
        assert_eq!(refused.code(), -32602, "{params}");
        assert_eq!(
            refused.to_string(),
            format!("Invalid connect request: {text}")
        );
    }
}

#[test]
fn the_token_counts_before_the_other_fields() {
    let request = read(r#"{"foo":1,"token":"wrong","tok\u0065n":"right"}"#);
    assert_eq!(request.token, Some(Secret::new("right")));
    assert!(request.options.is_err());
    assert_eq!(
        request.without_tokens(),
        Err(ProxyError::AuthenticationNotConfigured)
    );
}

#[test]
fn params_without_bound_are_refused() {
    let long = format!(
        r#"{{"clientInfo":{{"editorName":"{}"}}}}"#,
        "x".repeat(PARAMS_LIMIT)
    );
    assert_eq!(read(&long).without_tokens().unwrap_err().code(), -32602);
}

fn backend(name: &str, protocol_version: u32, version: &str, kinds: &[&str]) -> Backend {
    Backend {
        protocol_version: Some(protocol_version),
        version: Some(Arc::from(version)),
        task_kinds: kinds.iter().map(|kind| Arc::from(*kind)).collect(),
        ..testing::backend(name, 1)
    }
}

#[test]
fn clients_are_told_what_all_usable_backends_can_do() {
    let all = ["agent", "shell", "client"];
    let mut down = backend("cli-4", 2, "0.9", &[]);
    down.health = Health::Down;
    let facts = Facts::of(&snapshot(vec![
        backend("cli-1", 4, "1.0.102", &all),
        backend("cli-2", 3, "1.0.99", &all),
        backend("cli-3", 3, "1.0.104", &["shell", "agent"]),
        down,
    ]))
    .unwrap();
    assert_eq!(facts.protocol_version, 3);
    assert_eq!(&*facts.version, "1.0.99");
    assert_eq!(facts.task_kinds, ["agent", "shell"].map(Arc::from));
    assert_eq!(Facts::of(&snapshot(vec![])), None);
}

#[test]
fn client_tasks_are_offered_only_to_those_who_name_them() {
    let facts = Facts::of(&snapshot(vec![backend(
        "a",
        3,
        "1.0.102",
        &["agent", "shell", "client"],
    )]))
    .unwrap();
    for (params, kinds) in [
        ("{}", r#"["agent","shell"]"#),
        (
            r#"{"supportedTaskKinds":["agent"]}"#,
            r#"["agent","shell"]"#,
        ),
        (
            r#"{"supportedTaskKinds":["client"]}"#,
            r#"["agent","shell","client"]"#,
        ),
    ] {
        assert_eq!(
            answer(&read(params).options.unwrap(), &facts),
            format!(r#"{{"ok":true,"protocolVersion":3,"version":"1.0.102","taskKinds":{kinds}}}"#)
        );
    }
}

#[test]
fn options_are_replayed_with_the_token_of_the_backend() {
    let asked = r#"{"enableGitHubTelemetryForwarding":true,"clientInfo":{"editorName":"é\"",
        "extensionVersion":null},"supportedTaskKinds":["agent","client","shell"]}"#;
    let options = read(asked).without_tokens().unwrap();
    assert!(options.wants_telemetry());
    let replayed = upstream_params(&options, Some(&Secret::new("s\"1")));
    assert_eq!(
        replayed,
        r#"{"token":"s\"1","enableGitHubTelemetryForwarding":true,"clientInfo":{"editorName":"é\""},"supportedTaskKinds":["agent","client","shell"]}"#
    );
    let heard = read(&replayed);
    assert_eq!(heard.token, Some(Secret::new("s\"1")));
    assert_eq!(heard.options, Ok(options));
    assert_eq!(upstream_params(&Options::default(), None), "{}");
    assert_eq!(
        upstream_params(&Options::of_control_connection(), None),
        r#"{"supportedTaskKinds":["agent","shell","client"]}"#
    );
}
