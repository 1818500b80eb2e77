//! Provider places by tables, and against a model.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::core::{
    snapshot::Health,
    testing::{backend, snapshot},
};

const A: ConnectionId = ConnectionId(1);
const B: ConnectionId = ConnectionId(2);
const LLM: Provider = Provider::LlmInference;
const FS: Provider = Provider::SessionFs;

fn name(text: &str) -> BackendName {
    BackendName::from(text)
}

/// A board on which `client` holds `kind`, registered on `backends`.
fn held(kind: Provider, client: ConnectionId, backends: &[&str]) -> Board {
    let mut board = Board::default();
    let params: Arc<str> = Arc::from("{}");
    assert_eq!(
        board.claim(kind, client, &params, false),
        Ok(Claim::Register)
    );
    for backend in backends {
        board.registered(&name(backend), kind, &params);
    }
    board.settle(kind, client, &params, true);
    board
}

fn message(result: Result<Claim, ProxyError>) -> String {
    result.map_or_else(|error| error.to_string(), |claim| format!("{claim:?}"))
}

#[test]
fn claims_are_refused_in_the_words_of_the_cli() {
    let cases = [
        (
            FS,
            "sessionFs.setProvider",
            "set session filesystem provider",
            "session filesystem",
        ),
        (
            LLM,
            "llmInference.setProvider",
            "set LLM inference provider",
            "LLM inference",
        ),
        (
            Provider::ExtensionLaunch,
            "registerExtensionLaunchProvider",
            "register an extension launch provider",
            "extension launch",
        ),
    ];
    for (kind, method, verb, noun) in cases {
        let mut board = held(kind, A, &["cli-1"]);
        assert_eq!(
            message(board.claim(kind, B, "{}", false)),
            format!(
                "Request {method} failed with message: Another client is already the {noun} \
                 provider."
            )
        );
        // That sessions are open is said first, also to the holder itself.
        for client in [A, B] {
            assert_eq!(
                message(board.claim(kind, client, "{}", true)),
                format!(
                    "Request {method} failed with message: Cannot {verb} while sessions are \
                     active. Call {method} before creating any sessions."
                )
            );
        }
        assert_eq!(
            board.claim(kind, A, r#"{"other":1}"#, false),
            Ok(Claim::Register)
        );
        board.leave(A);
        assert_eq!(board.claim(kind, B, "{}", false), Ok(Claim::Register));
        board.check_invariants();
    }
}

#[test]
fn places_are_independent_and_a_claim_under_way_counts() {
    let mut board = Board::default();
    assert_eq!(board.claim(FS, A, "{}", false), Ok(Claim::Register));
    assert!(board.claim(FS, B, "{}", false).is_err());
    assert_eq!(board.claim(LLM, B, "{}", false), Ok(Claim::Register));
    let params: Arc<str> = Arc::from("{}");
    board.settle(FS, A, &params, false);
    assert!(!board.is_in_force());
    assert_eq!(board.claim(FS, B, "{}", false), Ok(Claim::Register));
    // The first one's client has left while it was registered: the second one may.
    board.leave(B);
    assert_eq!(board.claim(LLM, A, "{}", false), Ok(Claim::Register));
}

#[test]
fn builtin_plugins_have_no_holder_and_the_same_again_is_no_change() {
    let kind = Provider::BuiltinPlugins;
    let params: Arc<str> = Arc::from(r#"{"paths":["/a"]}"#);
    let mut board = Board::default();
    assert!(message(board.claim(kind, A, &params, true)).ends_with(
        "Cannot set built-in plugins while sessions are active. Call plugins.builtin.set before \
         creating any sessions."
    ));
    assert_eq!(board.claim(kind, A, &params, false), Ok(Claim::Register));
    board.settle(kind, A, &params, true);
    assert_eq!(board.claim(kind, B, &params, true), Ok(Claim::InForce));
    assert_eq!(
        board.claim(kind, B, r#"{"paths":[]}"#, false),
        Ok(Claim::Register)
    );
    assert!(board.claim(kind, B, r#"{"paths":[]}"#, true).is_err());
}

#[test]
fn what_is_in_force_is_due_on_every_process_that_does_not_know_it() {
    let mut pool = snapshot(vec![backend("cli-1", 1), backend("cli-2", 1)]);
    let mut board = Board::default();
    let (old, new): (Arc<str>, Arc<str>) = (Arc::from("{}"), Arc::from(r#"{"x":1}"#));
    board.claim(LLM, A, &old, false).unwrap();
    board.registered(&name("cli-1"), LLM, &old);
    // Not in force before it has succeeded everywhere.
    assert!(board.due(&name("cli-2")).is_empty());
    assert!(board.unprepared(&pool).is_empty());
    board.registered(&name("cli-2"), LLM, &old);
    board.settle(LLM, A, &old, true);
    assert!(board.unprepared(&pool).is_empty());

    board.lost(&name("cli-2"));
    assert_eq!(board.unprepared(&pool), [name("cli-2")]);
    assert_eq!(board.due(&name("cli-2")), [(LLM, old.clone())]);
    // It stays in force when the client has left.
    board.leave(A);
    assert_eq!(board.due(&name("cli-2")), [(LLM, old.clone())]);
    pool.backends.change(|all| all[1].health = Health::Down);
    assert!(board.unprepared(&pool).is_empty());
    pool.backends.change(|all| all[1].health = Health::Up);
    board.registered(&name("cli-2"), LLM, &old);

    // A claim with other params that fails on one backend is taken back on the other.
    board.claim(LLM, B, &new, false).unwrap();
    board.registered(&name("cli-1"), LLM, &new);
    board.settle(LLM, B, &new, false);
    assert_eq!(board.due(&name("cli-1")), [(LLM, old.clone())]);
    assert!(board.due(&name("cli-2")).is_empty());
    board.claim(LLM, B, &new, false).unwrap();
    board.registered(&name("cli-2"), LLM, &new);
    board.settle(LLM, B, &new, true);
    assert!(board.unprepared(&pool).is_empty());
}

#[test]
fn exchanges_are_the_holders_alone_and_end_with_it() {
    let mut board = held(LLM, A, &["cli-1"]);
    let at = name("cli-1");
    let (start, _) = board.ask(&at, LLM, b"1", Exchange::Opens("r"), 10).unwrap();
    let (chunk, _) = board
        .ask(&at, LLM, b"2", Exchange::Continues("r"), 10)
        .unwrap();
    assert_eq!(board.responds(A, "r"), Some(at.clone()));
    assert_eq!(board.responds(B, "r"), None);
    assert_eq!(board.responds(A, "s"), None);
    assert_eq!(
        board.answered(start),
        Some((at.clone(), b"1".as_slice().into()))
    );
    let mut failures = board.leave(A);
    failures.sort_by_key(|f| f.id.is_some());
    let fail = |id: Option<&[u8]>, exchange: Option<&str>| Failure {
        backend: at.clone(),
        kind: LLM,
        id: id.map(Into::into),
        exchange: exchange.map(Arc::from),
    };
    assert_eq!(failures, [fail(None, Some("r")), fail(Some(b"2"), None)]);
    assert_eq!(board.answered(chunk), None);
    assert_eq!(board.responds(A, "r"), None);
    board.check_invariants();

    // Later ones fail at once; a new one is ended too, a part of an old one has no end to come.
    let (why, failure) = board
        .ask(&at, LLM, b"3", Exchange::Opens("s"), 10)
        .unwrap_err();
    assert_eq!(
        (why, failure),
        (Unasked::Vacant, fail(Some(b"3"), Some("s")))
    );
    let (_, failure) = board
        .ask(&at, LLM, b"4", Exchange::Continues("s"), 10)
        .unwrap_err();
    assert_eq!(failure, fail(Some(b"4"), None));

    // The next holder does not hear of the exchanges of the one before.
    board.claim(LLM, B, "{}", false).unwrap();
    board.settle(LLM, B, &Arc::from("{}"), true);
    assert!(
        board
            .ask(&at, LLM, b"5", Exchange::Continues("r"), 10)
            .is_err()
    );
    let (_, client) = board.ask(&at, LLM, b"6", Exchange::Opens("t"), 10).unwrap();
    assert_eq!(client, B);
    // The backend's cancel comes through, and ends it.
    assert!(
        board
            .ask(&at, LLM, b"7", Exchange::Cancels("t"), 10)
            .is_ok()
    );
    assert_eq!(board.responds(B, "t"), None);
    // A request that the client cannot take ends its exchange, once.
    let (token, _) = board.ask(&at, LLM, b"8", Exchange::Opens("u"), 10).unwrap();
    let (more, _) = board
        .ask(&at, LLM, b"9", Exchange::Continues("u"), 10)
        .unwrap();
    assert_eq!(board.refused(token), Some(fail(Some(b"8"), Some("u"))));
    assert_eq!(board.refused(more), Some(fail(Some(b"9"), None)));
    assert_eq!(board.refused(more), None);
    board.check_invariants();
}

#[test]
fn what_awaits_the_holder_is_bounded() {
    let at = name("cli-1");
    let mut board = held(FS, A, &["cli-1"]);
    for _ in 0..MAX_REQUESTS {
        board.ask(&at, FS, b"1", Exchange::Apart, 1).unwrap();
    }
    let (why, _) = board.ask(&at, FS, b"1", Exchange::Apart, 1).unwrap_err();
    assert_eq!(why, Unasked::Limit("provider_requests", MAX_REQUESTS));
    assert_eq!(why.error(FS).code(), -32013);

    // One large request passes alone.
    let mut board = held(FS, A, &["cli-1"]);
    let (large, _) = board
        .ask(&at, FS, b"1", Exchange::Apart, MAX_REQUEST_BYTES + 1)
        .unwrap();
    let (why, _) = board.ask(&at, FS, b"2", Exchange::Apart, 1).unwrap_err();
    assert_eq!(
        why,
        Unasked::Limit("provider_request_bytes", MAX_REQUEST_BYTES)
    );
    board.answered(large).unwrap();
    assert!(board.ask(&at, FS, b"2", Exchange::Apart, 1).is_ok());

    let mut board = held(LLM, A, &["cli-1"]);
    for at_once in 0..MAX_EXCHANGES {
        let request = at_once.to_string();
        let (token, _) = board
            .ask(&at, LLM, b"1", Exchange::Opens(&request), 1)
            .unwrap();
        board.answered(token).unwrap();
    }
    let (why, failure) = board
        .ask(&at, LLM, b"1", Exchange::Opens("more"), 1)
        .unwrap_err();
    assert_eq!(why, Unasked::Limit("provider_exchanges", MAX_EXCHANGES));
    assert_eq!(failure.exchange.as_deref(), Some("more"));
    board.finish("0");
    assert!(
        board
            .ask(&at, LLM, b"1", Exchange::Opens("more"), 1)
            .is_ok()
    );
    board.finish("1");
    let long = "x".repeat(MAX_REQUEST_ID + 1);
    let (why, _) = board
        .ask(&at, LLM, b"1", Exchange::Opens(&long), 1)
        .unwrap_err();
    assert_eq!(why, Unasked::Limit("provider_request_id", MAX_REQUEST_ID));
}

#[derive(Clone, Debug)]
enum Step {
    Claim(usize, u64),
    Ask(usize, usize, u8),
    Answer(usize),
    Refuse(usize),
    Leave(u64),
    Lose(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (1..4usize, 0..3u64).prop_map(|(place, client)| Step::Claim(place, client)),
        6 => (1..4usize, 0..3usize, any::<u8>()).prop_map(|(p, b, e)| Step::Ask(p, b, e)),
        3 => any::<usize>().prop_map(Step::Answer),
        1 => any::<usize>().prop_map(Step::Refuse),
        1 => (0..3u64).prop_map(Step::Leave),
        1 => (0..3usize).prop_map(Step::Lose),
    ]
}

proptest! {
    /// Each request of a backend is answered or failed exactly once, with its own id, to its own
    /// backend, unless that backend is gone; and each exchange ends at most once.
    #[test]
    fn the_ledger_is_a_bijection(steps in proptest::collection::vec(step(), 1..200)) {
        let backends = ["cli-1", "cli-2", "cli-3"].map(name);
        let params: Arc<str> = Arc::from("{}");
        let mut board = Board::default();
        // What is awaited: token → backend and id; and the exchanges that go on.
        let mut model: HashMap<u64, (usize, String, u64)> = HashMap::new();
        let mut exchanges: HashMap<String, usize> = HashMap::new();
        let mut serial = 0u32;
        for step in steps {
            match step {
                Step::Claim(place, client) => {
                    let kind = PLACES[place];
                    if board.claim(kind, ConnectionId(client), &params, false).is_ok() {
                        board.settle(kind, ConnectionId(client), &params, true);
                    }
                }
                Step::Ask(place, at, how) => {
                    serial += 1;
                    let (id, kind) = (format!("\"{serial}\""), PLACES[place]);
                    let known = exchanges.iter().find(|(_, b)| **b == at).map(|(r, _)| r.clone());
                    let fresh = format!("r{serial}");
                    let exchange = match (kind, how % 4, &known) {
                        (LLM, 0, _) => Exchange::Opens(&fresh),
                        (LLM, 1, Some(request)) => Exchange::Continues(request),
                        (LLM, 2, Some(request)) => Exchange::Cancels(request),
                        _ => Exchange::Apart,
                    };
                    match board.ask(&backends[at], kind, id.as_bytes(), exchange, how.into()) {
                        Ok((token, client)) => {
                            prop_assert!(model.insert(token, (at, id, client.0)).is_none());
                            if let Exchange::Opens(request) = exchange {
                                exchanges.insert(request.to_owned(), at);
                            }
                        }
                        Err((_, failure)) => {
                            prop_assert_eq!(&failure.backend, &backends[at]);
                            prop_assert_eq!(failure.id.as_deref(), Some(id.as_bytes()));
                        }
                    }
                    if let Exchange::Cancels(request) = exchange {
                        exchanges.remove(request);
                    }
                }
                Step::Answer(pick) | Step::Refuse(pick) if model.is_empty() => {
                    prop_assert!(board.answered(pick as u64).is_none());
                }
                Step::Answer(pick) => {
                    let token = *model.keys().nth(pick % model.len()).unwrap();
                    let (at, id, _) = model.remove(&token).unwrap();
                    let answered = board.answered(token);
                    prop_assert_eq!(answered, Some((backends[at].clone(), id.into_bytes().into())));
                    prop_assert!(board.answered(token).is_none());
                }
                Step::Refuse(pick) => {
                    let token = *model.keys().nth(pick % model.len()).unwrap();
                    let (at, id, _) = model.remove(&token).unwrap();
                    let failure = board.refused(token).unwrap();
                    prop_assert_eq!(failure.backend, backends[at].clone());
                    prop_assert_eq!(failure.id.as_deref(), Some(id.as_bytes()));
                    if let Some(request) = failure.exchange {
                        prop_assert_eq!(exchanges.remove(&*request), Some(at));
                    }
                }
                Step::Leave(client) => {
                    let mut failed = Vec::new();
                    for failure in board.leave(ConnectionId(client)) {
                        if let Some(request) = failure.exchange {
                            prop_assert!(exchanges.remove(&*request).is_some());
                        }
                        failed.extend(failure.id.map(|id| (failure.backend.clone(), id)));
                    }
                    let mut gone: Vec<_> = model
                        .iter()
                        .filter(|(_, (_, _, c))| *c == client)
                        .map(|(_, (at, id, _))| (backends[*at].clone(), id.as_bytes().into()))
                        .collect();
                    model.retain(|_, (_, _, c)| *c != client);
                    failed.sort();
                    gone.sort();
                    prop_assert_eq!(failed, gone);
                }
                Step::Lose(at) => {
                    board.lost(&backends[at]);
                    model.retain(|_, (b, _, _)| *b != at);
                    exchanges.retain(|_, b| *b != at);
                }
            }
            board.check_invariants();
            for (request, at) in &exchanges {
                let found = (0..3).find_map(|c| board.responds(ConnectionId(c), request));
                prop_assert_eq!(found.as_ref(), Some(&backends[*at]));
            }
        }
    }
}
