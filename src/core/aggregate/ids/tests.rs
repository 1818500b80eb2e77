//! Splitting and joining: the joined answer is the one that a single server would have given.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::core::reply::ProxyError;

fn raw(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned()).unwrap()
}

/// `a…` lives on cli-a, `b…` on cli-b, anything else nowhere.
fn owner(session: &str) -> Option<BackendName> {
    match session.as_bytes().first() {
        Some(b'a') => Some("cli-a".into()),
        Some(b'b') => Some("cli-b".into()),
        Some(_) | None => None,
    }
}

fn split_of(kind: IdsArray, params: &str) -> Split {
    split(kind, Some(&raw(params)), &owner, &|_| true)
}

/// What a CLI would say to one part.
fn server(kind: IdsArray, params: &str) -> String {
    let params: Value = serde_json::from_str(params).unwrap();
    let listed: Vec<Value> = params[array_name(kind)].as_array().unwrap().clone();
    let id = |v: &Value| v.as_str().unwrap().to_owned();
    match kind {
        IdsArray::GetClientMetadata => listed
            .iter()
            .map(|v| match owner(&id(v)) {
                Some(_) => json!({"sessionId":v,"status":"ok","metadata":{"keys":params["keys"]}}),
                None => json!({"sessionId":v,"status":"notFound"}),
            })
            .collect::<Value>()
            .to_string(),
        IdsArray::EnrichMetadata => {
            let sessions = listed
                .into_iter()
                .filter(|v| !id(&v["sessionId"]).ends_with("empty"));
            let sessions: Value = sessions
                .map(|mut v| {
                    v["isDetached"] = json!(false);
                    v
                })
                .collect();
            json!({"sessions":sessions}).to_string()
        }
        IdsArray::BulkDelete => {
            let freed: serde_json::Map<_, _> =
                listed.iter().map(|v| (id(v), json!(id(v).len()))).collect();
            json!({"freedBytes":freed}).to_string()
        }
        IdsArray::CheckInUse => {
            let used: Value = listed
                .into_iter()
                .filter(|v| id(v).ends_with("used"))
                .collect();
            json!({"inUse":used}).to_string()
        }
    }
}

/// Joins with the answers of [`server`], except of the backend named.
fn joined(split: &Split, silent: &str) -> Merged {
    let nobody = BackendName::from("cli-x");
    let texts: Vec<_> = split
        .parts()
        .iter()
        .map(|p| raw(&server(split.kind, &p.params)))
        .collect();
    let answers: Vec<Answer<'_>> = split
        .parts()
        .iter()
        .zip(&texts)
        .map(|(part, text)| {
            let backend = part.backend.as_ref().unwrap_or(&nobody);
            let answers = backend.as_str() != silent;
            Answer {
                backend,
                outcome: if answers {
                    Ok(text)
                } else {
                    Err(Failure::Silent)
                },
            }
        })
        .collect();
    split.join(&answers)
}

fn value(merged: Merged) -> Value {
    let Merged::Result(text) = merged else {
        panic!("not a result: {merged:?}")
    };
    serde_json::from_str(&text).unwrap()
}

#[test]
fn parts_keep_the_other_params_and_the_order() {
    let params = r#"{"sessionIds":["x"],"sessionIds":["b1","a1","b2","z"],"keys":["k\""]}"#;
    let split = split_of(IdsArray::GetClientMetadata, params);
    let parts: Vec<(Option<&str>, &str)> = split
        .parts()
        .iter()
        .map(|part| {
            (
                part.backend.as_ref().map(BackendName::as_str),
                &*part.params,
            )
        })
        .collect();
    assert_eq!(
        parts,
        [
            (
                Some("cli-b"),
                r#"{"keys":["k\""],"sessionIds":["b1","b2"]}"#
            ),
            (Some("cli-a"), r#"{"keys":["k\""],"sessionIds":["a1"]}"#),
            (None, r#"{"keys":["k\""],"sessionIds":["z"]}"#),
        ]
    );
}

#[test]
fn what_needs_no_split_passes_as_it_is() {
    for (kind, params, backend) in [
        (
            IdsArray::BulkDelete,
            r#"{ "sessionIds" : ["a1","a2"] }"#,
            Some("cli-a"),
        ),
        (IdsArray::BulkDelete, r#"{"sessionIds":[]}"#, None),
        (IdsArray::BulkDelete, r#"{"sessionIds":["a1",5]}"#, None),
        (IdsArray::BulkDelete, r#"{"sessionIds":5}"#, None),
        (IdsArray::BulkDelete, r#"["a1"]"#, None),
        (
            IdsArray::EnrichMetadata,
            r#"{"sessions":[{"sessionId":"a1"},{"x":1}]}"#,
            None,
        ),
        (
            IdsArray::EnrichMetadata,
            r#"{"sessions":[{"sessionId":"b1","x":1}]}"#,
            Some("cli-b"),
        ),
    ] {
        let split = split_of(kind, params);
        let part = Part {
            backend: backend.map(BackendName::from),
            params: params.to_owned(),
            unseen: None,
        };
        assert_eq!(split.parts(), [part], "{params}");
    }
    assert_eq!(
        split(IdsArray::CheckInUse, None, &owner, &|_| true).parts()[0].params,
        "{}"
    );
    let one = split_of(IdsArray::CheckInUse, r#"{"sessionIds":["a1"]}"#);
    let backend = BackendName::from("cli-a");
    let answer = |outcome| {
        one.join(&[Answer {
            backend: &backend,
            outcome,
        }])
    };
    let odd = raw("[1, 2]");
    assert_eq!(answer(Ok(&odd)), Merged::Result("[1, 2]".to_owned()));
    assert_eq!(
        answer(Err(Failure::Silent)),
        Merged::ProxyError(ProxyError::BackendUnavailable {
            session: None,
            backend: Some(backend.clone())
        })
    );
}

#[test]
fn a_refused_part_refuses_the_whole() {
    let split = split_of(
        IdsArray::GetClientMetadata,
        r#"{"sessionIds":["a1","b 1"]}"#,
    );
    let error = raw(r#"{"code":-32603,"message":"Invalid sessionId: \"b 1\""}"#);
    let fine = raw(r#"[{"sessionId":"a1","status":"notFound"}]"#);
    let (a, b) = (BackendName::from("cli-a"), BackendName::from("cli-b"));
    let answers = [
        Answer {
            backend: &a,
            outcome: Ok(&fine),
        },
        Answer {
            backend: &b,
            outcome: Err(Failure::Refused(&error)),
        },
    ];
    assert_eq!(
        split.join(&answers),
        Merged::BackendError(error.get().to_owned())
    );
}

#[test]
fn reads_are_partial_where_a_backend_is_silent() {
    let split = split_of(IdsArray::GetClientMetadata, r#"{"sessionIds":["b1","a1"]}"#);
    let metadata = value(joined(&split, "cli-b"));
    assert_eq!(metadata[0]["status"], "unavailable");
    assert_eq!(metadata[0]["sessionId"], "b1");
    assert_eq!(metadata[1]["status"], "ok");

    let records = r#"{"sessions":[{"sessionId":"b1","n":1.0},{"sessionId":"a1"}]}"#;
    let Merged::Result(text) = joined(&split_of(IdsArray::EnrichMetadata, records), "cli-b") else {
        panic!("a result")
    };
    assert_eq!(
        text,
        r#"{"sessions":[{"sessionId":"b1","n":1.0},{"isDetached":false,"sessionId":"a1"}],"taxiway":{"missing":["cli-b"]}}"#
    );
}

#[test]
fn decisions_and_changes_are_refused_where_a_backend_is_silent() {
    for kind in [IdsArray::BulkDelete, IdsArray::CheckInUse] {
        let split = split_of(kind, r#"{"sessionIds":["b1","a1"]}"#);
        assert_eq!(
            joined(&split, "cli-b"),
            unavailable(Some(&BackendName::from("cli-b")))
        );
    }
}

#[test]
fn garbage_from_a_backend_is_silence() {
    let (a, b) = (BackendName::from("cli-a"), BackendName::from("cli-b"));
    for kind in [
        IdsArray::GetClientMetadata,
        IdsArray::BulkDelete,
        IdsArray::CheckInUse,
    ] {
        let split = split_of(kind, r#"{"sessionIds":["b1","a1"]}"#);
        for text in ["5", "[{}]", "{}", "null", r#"{"inUse":5,"freedBytes":[]}"#] {
            let text = raw(text);
            let answers = [
                Answer {
                    backend: &b,
                    outcome: Ok(&text),
                },
                Answer {
                    backend: &a,
                    outcome: Ok(&text),
                },
            ];
            assert_eq!(split.join(&answers), unavailable(None), "{kind:?} {text}");
        }
    }
}

proptest! {
    /// Whatever the ids, their order and their repetitions: split, asked and joined gives what one
    /// server gives that has them all.
    #[test]
    fn joined_is_what_one_server_would_say(
        ids in prop::collection::vec("[abz][0-9]?(used|empty)?", 0..12),
        kind in prop::sample::select(vec![
            IdsArray::GetClientMetadata,
            IdsArray::EnrichMetadata,
            IdsArray::BulkDelete,
            IdsArray::CheckInUse,
        ]),
    ) {
        let listed: Value = ids
            .iter()
            .enumerate()
            .map(|(n, id)| match array_name(kind) {
                "sessions" => json!({"sessionId":id,"n":n}),
                _ => json!(id),
            })
            .collect();
        let params = json!({array_name(kind): listed, "keys": ["k"]}).to_string();
        let whole: Value = serde_json::from_str(&server(kind, &params)).unwrap();
        let split = split_of(kind, &params);
        prop_assert!(!split.parts().is_empty());
        prop_assert_eq!(value(joined(&split, "nobody")), whole);
    }
}

#[test]
fn sessions_of_others_are_answered_for_as_unknown_and_nobody_is_asked() {
    let mine = |session: &str| session.starts_with("a-my");
    let cases = [
        (
            IdsArray::GetClientMetadata,
            r#"{"sessionIds":["b-x","a-my","b-x"]}"#,
            r#"[{"sessionId":"b-x","status":"notFound"},{"sessionId":"a-my","status":"ok","metadata":{"keys":null}},{"sessionId":"b-x","status":"notFound"}]"#,
        ),
        (
            IdsArray::EnrichMetadata,
            r#"{"sessions":[{"sessionId":"b-x","isDetached":true},{"sessionId":"a-other"},{"sessionId":"a-my"}]}"#,
            r#"{"sessions":[{"sessionId":"b-x","isDetached":true},{"sessionId":"a-other","isDetached":false},{"isDetached":false,"sessionId":"a-my"}]}"#,
        ),
        // A session of one's own does not hide the one that is meant.
        (
            IdsArray::EnrichMetadata,
            r#"{"sessions":[{"sessionId":"a-my","session\u0049d":"b-x"}]}"#,
            r#"{"sessions":[{"sessionId":"a-my","session\u0049d":"b-x","isDetached":false}]}"#,
        ),
        (
            IdsArray::BulkDelete,
            r#"{"sessionIds":["b-x","a-my"]}"#,
            r#"{"freedBytes":{"b-x":0,"a-my":4}}"#,
        ),
        (
            IdsArray::CheckInUse,
            r#"{"sessionIds":["b-x-used","a-my-used"]}"#,
            r#"{"inUse":["a-my-used"]}"#,
        ),
    ];
    for (kind, params, wanted) in cases {
        let split = split(kind, Some(&raw(params)), &owner, &mine);
        let texts: Vec<_> = split
            .parts()
            .iter()
            .map(|part| match &part.unseen {
                Some(answer) => raw(answer),
                None => {
                    assert!(!part.params.contains("b-x"), "{}", part.params);
                    raw(&server(kind, &part.params))
                }
            })
            .collect();
        let nobody = BackendName::from("cli-x");
        let answers: Vec<_> = texts
            .iter()
            .map(|text| Answer {
                backend: &nobody,
                outcome: Ok(text),
            })
            .collect();
        let Merged::Result(told) = split.join(&answers) else {
            panic!("{params}");
        };
        let value = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(value(&told), value(wanted), "{params}");
    }
}
