//! `taxiway check`.

use super::*;
use crate::config::command::{Answer, Output, Request, Wanted, check};

fn run(text: &str, request: Request) -> Answer {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.toml");
    std::fs::write(&path, text).unwrap();
    let place =
        |config: &Config, id: &str| (id != "unknown").then(|| config.backends[0].name.to_string());
    let mut answer = check(
        &Request {
            file: Some(path),
            ..request
        },
        &place,
    );
    let home = format!("{}/", dir.path().display());
    answer.out = answer.out.replace(&home, "");
    answer.err = answer.err.replace(&home, "");
    answer
}

fn ids(ids: &[&str]) -> Request {
    let session_ids = ids.iter().map(|id| (*id).to_owned()).collect();
    Request {
        session_ids,
        ..Request::default()
    }
}

#[test]
fn says_what_holds() {
    let text = format!("[identity]\nsession_id_user = '^(?<user>[a-z]+)-'\n{MINIMAL}");
    let answer = run(&text, ids(&["bob-1", "unknown"]));
    assert_eq!(answer.code, 0);
    assert_eq!(
        answer.out,
        "t.toml: ok\nmode sticky, 1 configured and 0 managed backends, clients at \
         127.0.0.1:4321, admin at 127.0.0.1:9321\nsession bob-1: user bob, placement a\n\
         session unknown: user unknown, placement unknown\n"
    );
    assert_eq!(answer.err, "");
    let json = run(
        &text,
        Request {
            output: Output::Json,
            ..ids(&["bob-1"])
        },
    );
    let json: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(json["ok"], true);
    assert_eq!(
        json["sessions"],
        json!([{"id": "bob-1", "user": "bob", "placement": "a"}])
    );
    assert_eq!(json["config"]["routing"]["mode"], "sticky");
}

#[test]
fn says_what_is_wrong_and_fails() {
    let answer = run("[log]\nlevel = \"loud\"\n", Request::default());
    assert_eq!((answer.code, answer.out.as_str()), (78, ""));
    assert!(answer.err.contains("t.toml:2:9"), "{}", answer.err);
    let json = run(
        "[drain]\ntimeout=[]\n",
        Request {
            output: Output::Json,
            ..ids(&[])
        },
    );
    assert_eq!(json.code, 78);
    let json: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(json["ok"], false);
    assert_eq!(
        json["diagnostics"][0],
        json!({
            "severity": "error", "file": "t.toml", "line": 2, "column": 9,
            "message": "drain.timeout: expected a duration like \"30s\", found a list", "help": null,
        })
    );
}

#[test]
fn warnings_go_to_standard_error() {
    let answer = run(
        &format!("[routing]\nplacement = \"p2c\"\n{MINIMAL}"),
        ids(&[]),
    );
    assert_eq!(answer.code, 0);
    assert!(
        answer.err.starts_with("warning: routing.placement"),
        "{}",
        answer.err
    );
}

#[test]
fn prints_the_reference() {
    let answer = run(
        "not even TOML",
        Request {
            reference: Wanted::Yes,
            ..ids(&[])
        },
    );
    assert_eq!((answer.code, answer.out), (0, markdown()));
}

#[test]
fn lists_what_may_be_used() {
    let text = format!(
        "[access]\nprofile = \"multi-tenant\"\nallow = [\"session.shell.exec\"]\n{MINIMAL}"
    );
    let wanted = |output| Request {
        methods: Wanted::Yes,
        output,
        ..Request::default()
    };
    let answer = run(&text, wanted(Output::Text));
    assert_eq!((answer.code, answer.err.as_str()), (0, ""));
    assert!(answer.out.starts_with("profile multi-tenant\n"));
    let line = |method: &str| {
        let mut lines = answer.out.lines();
        let found = lines.find(|line| line.split(' ').next() == Some(method));
        let words = found.unwrap_or_default().split_whitespace();
        words.skip(1).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("session.send"), "send own allowed profile");
    assert_eq!(line("session.shell.exec"), "session deny allowed access");
    assert_eq!(
        line("account.getQuota"),
        "any deny denied profile it is about the account that the CLI server is logged in with, \
         which others share"
    );
    let json: Value = serde_json::from_str(&run(&text, wanted(Output::Json)).out).unwrap();
    assert_eq!(json["profile"], "multi-tenant");
    let methods = json["methods"].as_array().unwrap();
    assert!(methods.len() > 350, "{}", methods.len());
    let kill = methods.iter().find(|m| m["method"] == "session.shell.kill");
    assert_eq!(kill.unwrap()["decision"], "denied");
}

#[test]
fn lists_what_a_principal_may_use() {
    let hash = "0".repeat(64);
    let text = format!(
        "[[identity.principals]]\nname = \"ops\"\ntoken_sha256 = \"{hash}\"\n\
         allow = [\"session.shell.exec\"]\n{MINIMAL}"
    );
    let by = |name: &str| Request {
        methods: Wanted::Yes,
        principal: Some(name.to_owned()),
        ..Request::default()
    };
    let answer = run(&text, by("ops"));
    assert_eq!((answer.code, answer.err.as_str()), (0, ""));
    let found = answer
        .out
        .lines()
        .find(|line| line.starts_with("session.shell.exec "));
    let words: Vec<_> = found.unwrap_or_default().split_whitespace().collect();
    assert_eq!(words[3..5], ["allowed", "principal"]);
    let answer = run(&text, by("nobody"));
    assert_eq!(answer.code, 78);
    assert_eq!(answer.err, "taxiway: no principal is named \"nobody\"\n");
}
