//! Answers in the shapes that CLI 1.0.102 gives, from pools of one to three backends.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};

use super::*;

/// 2026-11-22T06:29:44Z, the time of the captured lists.
const THEN: u64 = 1_795_328_984;

fn raw(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned()).unwrap()
}

/// What a backend does in a test.
enum Does {
    Answers(&'static str),
    Refuses(&'static str),
    KeepsSilent,
}
use Does::{Answers, KeepsSilent, Refuses};

/// Owns what [`Answer`]s borrow.
struct Pool(Vec<(BackendName, Does, Box<RawValue>)>);

impl Pool {
    fn new(backends: Vec<Does>) -> Self {
        Self(
            backends
                .into_iter()
                .enumerate()
                .map(|(n, does)| {
                    let text = match does {
                        Answers(text) | Refuses(text) => raw(text),
                        KeepsSilent => raw("null"),
                    };
                    (BackendName::from(format!("cli-{}", n + 1)), does, text)
                })
                .collect(),
        )
    }

    fn answers(&self) -> Vec<Answer<'_>> {
        self.0
            .iter()
            .map(|(backend, does, text)| Answer {
                backend,
                outcome: match does {
                    Answers(_) => Ok(text),
                    Refuses(_) => Err(Failure::Refused(text)),
                    KeepsSilent => Err(Failure::Silent),
                },
            })
            .collect()
    }
}

fn merged(kind: Aggregate, params: &str, backends: Vec<Does>) -> Merged {
    let known = |backend: &BackendName| {
        vec![Known {
            session: SessionId::from(format!("known-on-{backend}")),
            last_used: UNIX_EPOCH + Duration::from_secs(THEN),
        }]
    };
    let visible = |session: &str| !session.starts_with("hidden");
    merge(
        kind,
        Some(&raw(params)),
        &Pool::new(backends).answers(),
        &known,
        &visible,
    )
}

fn result(merged: Merged) -> Value {
    let Merged::Result(text) = merged else {
        panic!("not a result: {merged:?}")
    };
    serde_json::from_str(&text).unwrap()
}

/// The name of the backend whose absence refused the answer.
fn refused_for(merged: Merged) -> Option<BackendName> {
    let Merged::ProxyError(ProxyError::BackendUnavailable {
        session: None,
        backend,
    }) = merged
    else {
        panic!("not a refusal: {merged:?}")
    };
    backend
}

const ERROR: &str = r#"{"code":-32603,"message":"Request x failed with message: no"}"#;
const LIST_A: &str = r#"{"sessions":[
    {"sessionId":"a-new","startTime":"2026-11-22T06:29:44.657Z","modifiedTime":"2026-11-22T06:29:45.084Z","isRemote":false,"isDetached":false,"summary":"I am \ud83d broken","context":{"cwd":"/w"}},
    {"sessionId":"twice","modifiedTime":"2026-11-22T06:29:41.000Z","summary":"old"}]}"#;
const LIST_B: &str = r#"{"sessions":[
    {"sessionId":"twice","modifiedTime":"2026-11-22T06:29:44.500Z","summary":"new"},
    {"sessionId":"hidden-1","modifiedTime":"2026-11-22T06:29:43.000Z"},
    {"sessionId":"b-old","modifiedTime":"2026-11-22T06:29:42Z","context":{"cwd":"/w","gitRoot":"/w","repository":"o/r","branch":"main"}}]}"#;

fn ids(list: &Value) -> Vec<&str> {
    list["sessions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["sessionId"].as_str().unwrap())
        .collect()
}

#[test]
fn lists_are_merged_newest_first_without_duplicates_and_strangers() {
    let Merged::Result(text) = merged(
        Aggregate::SessionList,
        "{}",
        vec![Answers(LIST_A), Answers(LIST_B)],
    ) else {
        panic!("a result")
    };
    // Not through serde_json: the broken surrogate must pass as it came.
    assert!(
        text.contains(r#""summary":"I am \ud83d broken","context":{"cwd":"/w"}}"#),
        "{text}"
    );
    let text = text.replace("\\ud83d", "");
    let list: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(ids(&list), ["a-new", "twice", "b-old"]);
    assert_eq!(list["sessions"][1]["summary"], "new");
    assert_eq!(list.get("taxiway"), None);
}

#[test]
fn the_list_of_an_only_backend_passes_as_it_is() {
    let merge = |list| merged(Aggregate::SessionsList, "{}", vec![Answers(list)]);
    assert_eq!(merge(LIST_A), Merged::Result(LIST_A.to_owned()));
    assert_eq!(ids(&result(merge(LIST_B))), ["twice", "b-old"]);
}

#[test]
fn where_a_backend_is_silent_lists_show_what_is_known_and_say_so() {
    for does in [
        KeepsSilent,
        Refuses(ERROR),
        Answers("[]"),
        Answers(r#"{"sessions":[{}]}"#),
    ] {
        let list = result(merged(
            Aggregate::SessionList,
            "{}",
            vec![Answers(LIST_B), does],
        ));
        assert_eq!(ids(&list), ["twice", "known-on-cli-2", "b-old"]);
        assert_eq!(list["taxiway"], json!({"missing":["cli-2"]}));
        assert_eq!(
            list["sessions"][1],
            json!({"sessionId":"known-on-cli-2","startTime":"2026-11-22T06:29:44.000Z",
                "modifiedTime":"2026-11-22T06:29:44.000Z","isRemote":false,"isDetached":false})
        );
    }
    let filtered = r#"{"filter":{"cwd":"/w"}}"#;
    let list = result(merged(
        Aggregate::SessionList,
        filtered,
        vec![Answers(LIST_B), KeepsSilent],
    ));
    assert_eq!(ids(&list), ["twice", "b-old"]);
    assert_eq!(list["taxiway"], json!({"missing":["cli-2"]}));
}

#[test]
fn without_any_answer_there_is_an_error() {
    for kind in [
        Aggregate::SessionList,
        Aggregate::SessionsList,
        Aggregate::LastId,
        Aggregate::LastForContext,
        Aggregate::Sizes,
        Aggregate::NonEmptyIds,
        Aggregate::FindByTaskId,
        Aggregate::PruneOld,
    ] {
        assert_eq!(refused_for(merged(kind, "{}", vec![])), None, "{kind:?}");
        let one = refused_for(merged(kind, "{}", vec![KeepsSilent]));
        assert_eq!(one, Some(BackendName::from("cli-1")), "{kind:?}");
        assert_eq!(
            merged(kind, "{}", vec![KeepsSilent, Refuses(ERROR)]),
            Merged::BackendError(ERROR.to_owned()),
            "{kind:?}"
        );
    }
}

#[test]
fn the_last_session_is_the_newest_of_all_or_nobody_knows() {
    let both = || vec![Answers(LIST_B), Answers(LIST_A)];
    assert_eq!(
        result(merged(Aggregate::LastId, "{}", both())),
        json!({"sessionId":"a-new"})
    );
    let empty = || Answers(r#"{"sessions":[]}"#);
    assert_eq!(
        result(merged(Aggregate::LastId, "{}", vec![empty(), empty()])),
        json!({})
    );
    let partial = merged(Aggregate::LastId, "{}", vec![Answers(LIST_A), KeepsSilent]);
    assert_eq!(refused_for(partial), Some(BackendName::from("cli-2")));
}

/// The ranking seen on a CLI 1.0.102 with sessions in two repositories.
#[test]
fn the_last_session_for_a_context_is_the_most_relevant() {
    const HOME: &str = r#"{"sessions":[
        {"sessionId":"plain","modifiedTime":"2026-11-22T13:06:23.517Z","context":{"cwd":"/"}},
        {"sessionId":"g2","modifiedTime":"2026-11-22T13:06:22.393Z","context":{"cwd":"/g2","gitRoot":"/g2","repository":"o/r","branch":"dev"}}]}"#;
    const OTHER: &str = r#"{"sessions":[
        {"sessionId":"gb","modifiedTime":"2026-11-22T13:06:21.285Z","context":{"cwd":"/g/b","gitRoot":"/g","repository":"o/r","branch":"main"}},
        {"sessionId":"ga","modifiedTime":"2026-11-22T13:06:20.209Z","context":{"cwd":"/g/a","gitRoot":"/g","repository":"o/r","branch":"main"}}]}"#;
    for (context, best) in [
        (r#"{"cwd":"/g/a"}"#, "ga"),
        (r#"{"cwd":"/x","gitRoot":"/g"}"#, "gb"),
        (r#"{"cwd":"/x","repository":"o/r"}"#, "g2"),
        (r#"{"cwd":"/x","repository":"o/r","branch":"main"}"#, "gb"),
        (r#"{"cwd":"/x","branch":"dev"}"#, "plain"),
        (r#"{"cwd":"/g/a","branch":"dev"}"#, "ga"),
        (r#"{"cwd":"/","gitRoot":"/g"}"#, "gb"),
        (
            r#"{"cwd":"/zz","gitRoot":"/g","repository":"o/r","branch":"dev"}"#,
            "g2",
        ),
        (r#"{"cwd":"/g/a/deep"}"#, "plain"),
        ("null", "plain"),
    ] {
        let params = format!(r#"{{"context":{context}}}"#);
        let last = merged(
            Aggregate::LastForContext,
            &params,
            vec![Answers(HOME), Answers(OTHER)],
        );
        assert_eq!(result(last), json!({"sessionId":best}), "{context}");
    }
    for context in ["5", r#"{"gitRoot":"/g"}"#] {
        let params = format!(r#"{{"context":{context}}}"#);
        assert_eq!(
            merged(Aggregate::LastForContext, &params, vec![Answers(HOME)]),
            lacks("sessions.getLastForContext", "cwd")
        );
    }
}

#[test]
fn a_prefix_finds_the_only_session_that_has_it() {
    const A: &str = r#"{"sessions":[{"sessionId":"aaaaaaaa-1111-4111-8111-000000000001"},
        {"sessionId":"aaaaaaaab"},{"sessionId":"bbbbbbbb-1111-4111-8111-000000000001"}]}"#;
    const B: &str = r#"{"sessions":[{"sessionId":"aaaaaaaa-1111-4111-8111-000000000002"},
        {"sessionId":"bbbbbbbb-1111-4111-8111-000000000001"}]}"#;
    let find = |prefix: &str, backends| {
        merged(
            Aggregate::FindByPrefix,
            &format!(r#"{{"prefix":"{prefix}"}}"#),
            backends,
        )
    };
    let both = || vec![Answers(A), Answers(B)];
    for (prefix, session) in [
        ("AAAAAAAA-1111-4111-8111-000000000001", None),
        ("AAAAAAAA-1111-4111-8111-00000000000", None),
        ("aaaaaaaa", None),
        ("bbbbbbb", None),
        ("bbbbbbbb", Some("bbbbbbbb-1111-4111-8111-000000000001")),
        ("BBBBBBBB-1", Some("bbbbbbbb-1111-4111-8111-000000000001")),
        ("ééééé", None),
    ] {
        let wanted = session.map_or(json!({}), |session| json!({"sessionId":session}));
        assert_eq!(result(find(prefix, both())), wanted, "{prefix}");
    }
    let half = || vec![Answers(B), KeepsSilent];
    assert_eq!(
        refused_for(find("aaaaaaaa", half())),
        Some(BackendName::from("cli-2"))
    );
    let ambiguous = vec![Answers(A), Answers(B), KeepsSilent];
    assert_eq!(result(find("aaaaaaaa", ambiguous)), json!({}));
    assert_eq!(
        merged(Aggregate::FindByPrefix, "{}", both()),
        lacks("sessions.findByPrefix", "prefix")
    );
}

#[test]
fn a_task_is_found_even_if_others_are_silent_but_not_missed() {
    let hit = || Answers(r#"{"sessionId":"s-1"}"#);
    let none = || Answers("{}");
    let find = |backends| merged(Aggregate::FindByTaskId, r#"{"taskId":"t"}"#, backends);
    assert_eq!(
        result(find(vec![none(), hit(), KeepsSilent])),
        json!({"sessionId":"s-1"})
    );
    assert_eq!(result(find(vec![none(), none()])), json!({}));
    assert_eq!(
        refused_for(find(vec![KeepsSilent, none()])),
        Some(BackendName::from("cli-1"))
    );
    let hidden = Answers(r#"{"sessionId":"hidden-1"}"#);
    assert_eq!(
        result(find(vec![hidden, hit()])),
        json!({"sessionId":"s-1"})
    );
}

#[test]
fn sizes_and_ids_are_united() {
    let sizes = merged(
        Aggregate::Sizes,
        "{}",
        vec![
            Answers(r#"{"sizes":{"s-1":23899,"hidden-1":1}}"#),
            Answers(r#"{"sizes":{"s-2":1e3,"s-1":23899}}"#),
            KeepsSilent,
        ],
    );
    assert_eq!(
        sizes,
        Merged::Result(
            r#"{"sizes":{"s-1":23899,"s-2":1e3},"taxiway":{"missing":["cli-3"]}}"#.to_owned()
        )
    );
    for (params, wanted) in [
        ("{}", json!(["a1", "b1", "both", "a3"])),
        (r#"{"limit":2}"#, json!(["a1", "b1"])),
        (r#"{"limit":0}"#, json!([])),
        (r#"{"limit":-1}"#, json!(["a1", "b1", "both", "a3"])),
        (r#"{"limit":"x"}"#, json!(["a1", "b1", "both", "a3"])),
        (r#"{"limit":0,"limit":1}"#, json!(["a1"])),
    ] {
        let ids = merged(
            Aggregate::NonEmptyIds,
            params,
            vec![
                Answers(r#"{"sessionIds":["a1","both","a3"]}"#),
                Answers(r#"{"sessionIds":["b1","hidden-1","both"]}"#),
            ],
        );
        assert_eq!(result(ids), json!({"sessionIds":wanted}), "{params}");
    }
}

#[test]
fn pruning_is_summed_or_refused() {
    let one = || {
        Answers(
            r#"{"deleted":[],"candidates":["s-1","s-2"],"skipped":["s-3"],"freedBytes":9,"dryRun":true}"#,
        )
    };
    let two = || {
        Answers(
            r#"{"deleted":["s-4"],"candidates":["s-2"],"skipped":[],"freedBytes":18446744073709551615,"dryRun":true}"#,
        )
    };
    assert_eq!(
        result(merged(Aggregate::PruneOld, "{}", vec![one(), two()])),
        json!({"deleted":["s-4"],"candidates":["s-1","s-2"],"skipped":["s-3"],
            "freedBytes":u64::MAX,"dryRun":true})
    );
    let refused = merged(Aggregate::PruneOld, "{}", vec![one(), KeepsSilent]);
    assert_eq!(refused_for(refused), Some(BackendName::from("cli-2")));
}

#[test]
fn questions_whose_answers_cannot_be_compared_become_lists() {
    let params = raw(r#"{"prefix":"aaaaaaaa"}"#);
    for (kind, method, asked) in [
        (
            Aggregate::SessionList,
            "session.list",
            r#"{"prefix":"aaaaaaaa"}"#,
        ),
        (
            Aggregate::SessionsList,
            "sessions.list",
            r#"{"prefix":"aaaaaaaa"}"#,
        ),
        (Aggregate::LastId, "session.list", "{}"),
        (Aggregate::FindByPrefix, "session.list", "{}"),
        (
            Aggregate::PruneOld,
            "sessions.pruneOld",
            r#"{"prefix":"aaaaaaaa"}"#,
        ),
    ] {
        assert_eq!(ask(kind, Some(&params)), (method, asked.to_owned()));
    }
    assert_eq!(
        ask(Aggregate::Sizes, None),
        ("sessions.getSizes", "{}".to_owned())
    );
}

#[test]
fn server_wide_changes_succeed_everywhere_or_name_who_failed() {
    let change = |backends| server_wide("user.settings.set", &Pool::new(backends).answers());
    let ok = || Answers(r#"{"shadowedKeys":[]}"#);
    assert_eq!(
        change(vec![ok(), ok()]),
        Merged::Result(r#"{"shadowedKeys":[]}"#.to_owned())
    );
    assert_eq!(
        change(vec![
            ok(),
            Refuses(r#"{"code":-32603,"message":"no \"x\"","data":{"a":[1]}}"#)
        ]),
        Merged::BackendError(
            r#"{"code":-32603,"message":"Backend cli-2: no \"x\"","data":{"a":[1]}}"#.to_owned()
        )
    );
    assert_eq!(
        change(vec![Refuses(ERROR)]),
        Merged::BackendError(ERROR.to_owned())
    );
    assert_eq!(refused_for(change(vec![])), None);
    assert_eq!(
        refused_for(change(vec![ok(), Refuses("5")])),
        Some(BackendName::from("cli-2"))
    );
    assert_eq!(
        change(vec![ok(), KeepsSilent]),
        Merged::ProxyError(ProxyError::BackendLost {
            backend: BackendName::from("cli-2"),
            method: "user.settings.set".to_owned()
        })
    );
}
