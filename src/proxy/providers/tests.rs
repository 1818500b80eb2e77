//! Claims and what follows, over real sockets: a client, Taxiway's data plane, tiny processes.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::fake::{Cli, Client, soon};
use super::{super::Shared, *};
use crate::{
    config::Identities,
    core::{
        balance::Policy,
        frame::FrameLimits,
        id::SessionId,
        mux::{CreateExisting, Settings},
        snapshot::{Health, Mode},
        testing,
    },
    proxy::{listener::Connections, port::Alive},
};

mod fake;

const LLM: &str = "llmInference.setProvider";
const START: &str = "llmInference.httpRequestStart";
const CHUNK: &str = "llmInference.httpRequestChunk";

/// A control plane that only knows its backends.
struct StillPool {
    snapshot: Mutex<Arc<Snapshot>>,
}

impl StillPool {
    fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut current = self.snapshot.lock().unwrap();
        let mut next = Snapshot::clone(&current);
        change(&mut next);
        next.generation += 1;
        *current = Arc::new(next);
    }
}

impl Pool for StillPool {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.lock().unwrap().clone()
    }

    fn ask(&self, _: &BackendName, method: &str, _: String, _: Duration) -> Boxed<Answer> {
        let answer = match method {
            "session.getMetadata" => Answer::Result("{}".to_owned()),
            _ => Answer::Error(r#"{"code":-32603,"message":"Session not found"}"#.to_owned()),
        };
        Box::pin(std::future::ready(answer))
    }

    fn changed(&self, _since: u64) -> Boxed<()> {
        Box::pin(std::future::pending())
    }

    fn report_unreachable(&self, _: &BackendName) {}

    fn report_violation(&self, backend: &BackendName, what: &str) {
        panic!("{backend} {what}");
    }

    fn transport(&self, _: &BackendName) -> crate::transport::Transport {
        crate::transport::Transport::default()
    }

    fn activity(&self, _: &BackendName) -> Option<Arc<dyn Alive>> {
        None
    }
}

/// Taxiway's data plane in front of some backends.
pub(in crate::proxy) struct Taxiway {
    address: SocketAddr,
    pool: Arc<StillPool>,
    pub(in crate::proxy) shared: Shared,
    _stop: tokio_util::sync::DropGuard,
}

impl Taxiway {
    /// Before no server at all.
    pub(in crate::proxy) fn alone() -> Self {
        Self::before(&[])
    }

    fn before(backends: &[&Cli]) -> Self {
        let backends = backends.iter().enumerate().map(|(at, cli)| {
            let mut backend = testing::backend(&format!("cli-{}", at + 1), 1);
            backend.address = cli.address.to_string().into();
            backend
        });
        let snapshot = testing::snapshot(backends.collect());
        let pool = Arc::new(StillPool {
            snapshot: Mutex::new(Arc::new(snapshot)),
        });
        let (store, hub) = (Store::new(Mode::Sticky, 100), Hub::default());
        let observer = Observer::new(Identities::Plain);
        let rules = Arc::new(ArcSwap::from_pointee(rules()));
        let providers = Providers::new(
            pool.clone(),
            store.clone(),
            hub.clone(),
            observer.clone(),
            rules.clone(),
        );
        let shared = Shared {
            pool: pool.clone(),
            store,
            observer,
            hub,
            rules,
            providers,
            pacer: crate::proxy::Pacer::default(),
            moves: crate::proxy::Moves::default(),
            quota: crate::proxy::Quota::default(),
            doorman: crate::proxy::Doorman::default(),
        };
        let listener = crate::proxy::listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let (accepting, stopped) = (shared.clone(), stop.clone());
        tokio::spawn(async move {
            Connections::default()
                .accept(listener, accepting, stopped)
                .await;
        });
        Self {
            address,
            pool,
            shared,
            _stop: stop.drop_guard(),
        }
    }

    async fn client(&self) -> Client {
        Client::connect(self.address).await
    }

    /// Until every usable backend has its registrations.
    async fn prepared(&self) {
        soon(async {
            while !self
                .shared
                .providers
                .unprepared(&self.pool.snapshot())
                .is_empty()
            {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

pub(in crate::proxy) fn rules() -> Rules {
    let second = Duration::from_secs(1);
    Rules {
        mux: Settings {
            frame: FrameLimits {
                header: 8192,
                frame: 1 << 20,
            },
            cut_through_min: 1 << 20,
            frame_timeout: 30 * second,
            handshake_timeout: 10 * second,
            calls: 100,
            sessions: 100,
            session_params: 1 << 20,
            home_wait: Duration::from_secs(1),
            detach_grace: None,
            turn_stall: None,
            ends_stalled: false,
            turns: crate::core::turnlock::Terms::default(),
            revoke_grace: Duration::from_secs(60),
            last_turns: Duration::from_secs(600),
            caps: crate::core::identity::Caps::default(),
            access: Arc::default(),
            create_existing: CreateExisting::Resume,
        },
        principals: Arc::default(),
        policy: Policy::Sticky { load_factor: None },
        key_is_user: false,
        by_connection: false,
        aggregate_timeout: 2 * second,
        tcp_keepalive: None,
        write_stall: 30 * second,
        drain_timeout: Duration::from_secs(1),
        connections: 100,
        strangers: None,
        front: Arc::default(),
    }
}

fn message(answer: &Value) -> &str {
    answer["error"]["message"].as_str().unwrap_or_default()
}

fn request(id: u64, method: &str, params: Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
}

#[tokio::test]
async fn requests_of_both_backends_reach_the_holder_and_answers_go_back_where_they_came_from() {
    let (mut one, mut two) = (Cli::start().await, Cli::start().await);
    let taxiway = Taxiway::before(&[&one, &two]);
    let mut client = taxiway.client().await;
    let claimed = client.call(LLM, json!({"foo": 1})).await;
    assert_eq!(claimed["result"], json!({"success": true}));
    for cli in [&mut one, &mut two] {
        let heard = cli.heard().await;
        assert_eq!(
            (&heard["method"], &heard["params"]),
            (&json!(LLM), &json!({"foo": 1}))
        );
    }

    // Both number their requests from 1.
    one.ask(LLM, &request(1, START, json!({"requestId": "r-one"})));
    let first = client.asked().await;
    two.ask(LLM, &request(1, START, json!({"requestId": "r-two"})));
    let second = client.asked().await;
    assert_eq!(first["params"]["requestId"], "r-one");
    assert_eq!(second["params"]["requestId"], "r-two");
    assert_ne!(first["id"], second["id"]);
    for frame in [&second, &first] {
        let of = frame["params"]["requestId"].clone();
        client
            .write(&json!({"jsonrpc": "2.0", "id": frame["id"], "result": {"of": of}}))
            .await;
    }
    let answer = |of: &str| json!({"jsonrpc": "2.0", "id": 1, "result": {"of": of}});
    assert_eq!(one.heard().await, answer("r-one"));
    assert_eq!(two.heard().await, answer("r-two"));

    // Parts of a response go where the exchange is, in order, without waiting for each other.
    let mut ids = Vec::new();
    for part in 0..20 {
        let params = json!({"requestId": "r-two", "data": part, "end": part == 19});
        ids.push(client.start("llmInference.httpResponseChunk", params).await);
    }
    for part in 0..20 {
        assert_eq!(two.heard().await["params"]["data"], part);
    }
    let mut answered = Vec::new();
    for _ in &ids {
        let answer = client.answer_to_any().await;
        assert_eq!(answer["result"], json!({"accepted": true}));
        answered.push(answer["id"].as_u64().unwrap());
    }
    answered.sort_unstable();
    assert_eq!(answered, ids);

    // The exchange is over, others never were, and a stranger has no say in the one that goes on.
    let mut stranger = taxiway.client().await;
    for (who, of) in [(&mut client, "r-two"), (&mut stranger, "r-one")] {
        let params = json!({"requestId": of, "data": ""});
        let answer = who.call("llmInference.httpResponseChunk", params).await;
        assert_eq!(answer["result"], json!({"accepted": false}));
    }
    assert!(one.has_heard_nothing() && two.has_heard_nothing());
}

#[tokio::test]
async fn a_place_is_refused_while_it_is_held_or_a_session_is_open() {
    let mut cli = Cli::start().await;
    let taxiway = Taxiway::before(&[&cli]);
    let (mut first, mut second) = (taxiway.client().await, taxiway.client().await);
    let session = SessionId::from("s");
    taxiway
        .shared
        .store
        .lock()
        .claim(Instant::now(), &session, &"cli-1".into(), ConnectionId(99));
    assert_eq!(
        message(&first.call(LLM, json!({})).await),
        "Request llmInference.setProvider failed with message: Cannot set LLM inference provider \
         while sessions are active. Call llmInference.setProvider before creating any sessions."
    );
    assert!(cli.has_heard_nothing());
    taxiway.shared.store.lock().close("s");
    assert_eq!(
        first.call(LLM, json!({})).await["result"],
        json!({"success": true})
    );
    assert_eq!(
        message(&second.call(LLM, json!({})).await),
        "Request llmInference.setProvider failed with message: Another client is already the LLM \
         inference provider."
    );
    // Another place of the same processes is free, and the holder may claim again.
    let other = second
        .call("registerExtensionLaunchProvider", json!({}))
        .await;
    assert_eq!(other["result"], json!({"success": true}));
    assert_eq!(
        first.call(LLM, json!({})).await["result"],
        json!({"success": true})
    );
    let kinds =
        [cli.heard().await, cli.heard().await, cli.heard().await].map(|f| f["method"].clone());
    assert_eq!(
        kinds,
        [LLM, "registerExtensionLaunchProvider", LLM].map(|m| json!(m))
    );
}

#[tokio::test]
async fn when_the_holder_leaves_all_fails_at_once_and_the_next_may_claim() {
    let mut cli = Cli::start().await;
    let taxiway = Taxiway::before(&[&cli]);
    let mut first = taxiway.client().await;
    first.call(LLM, json!({})).await;
    cli.heard().await;
    cli.ask(LLM, &request(7, START, json!({"requestId": "answered"})));
    let start = first.asked().await;
    first
        .write(&json!({"jsonrpc": "2.0", "id": start["id"], "result": {}}))
        .await;
    assert_eq!(cli.heard().await["id"], 7);
    cli.ask(LLM, &request(8, START, json!({"requestId": "unanswered"})));
    first.asked().await;
    drop(first);

    // One error for the request, one end for each exchange (else the CLI's turn would hang).
    let mut ended = Vec::new();
    let mut refused = 0;
    for _ in 0..3 {
        let heard = cli.heard().await;
        if heard["method"] == "llmInference.httpResponseChunk" {
            assert_eq!(
                (&heard["params"]["end"], &heard["params"]["data"]),
                (&json!(true), &json!(""))
            );
            assert!(
                heard["params"]["error"]["message"]
                    .as_str()
                    .unwrap()
                    .contains("has left")
            );
            ended.push(heard["params"]["requestId"].as_str().unwrap().to_owned());
        } else {
            assert_eq!(
                (&heard["id"], &heard["error"]["code"]),
                (&json!(8), &json!(-32603))
            );
            refused += 1;
        }
    }
    ended.sort();
    assert_eq!(
        (ended, refused),
        (vec!["answered".to_owned(), "unanswered".to_owned()], 1)
    );

    // The same for what comes later; what belongs to no exchange gets its error.
    cli.ask(LLM, &request(9, START, json!({"requestId": "later"})));
    let (error, end) = (cli.heard().await, cli.heard().await);
    assert_eq!(
        (&error["id"], &error["error"]["code"]),
        (&json!(9), &json!(-32603))
    );
    assert_eq!(end["params"]["requestId"], "later");
    cli.ask(
        LLM,
        &request(10, CHUNK, json!({"requestId": "later", "end": true})),
    );
    assert_eq!(cli.heard().await["error"]["code"], -32603);

    // Over the same connection, which the CLI takes for the same provider; other params count.
    let mut second = taxiway.client().await;
    let claimed = second.call(LLM, json!({"other": true})).await;
    assert_eq!(claimed["result"], json!({"success": true}));
    assert_eq!(cli.heard().await["params"], json!({"other": true}));
    cli.ask(LLM, &request(11, START, json!({"requestId": "anew"})));
    assert_eq!(second.asked().await["params"]["requestId"], "anew");
}

#[tokio::test]
async fn a_backend_that_refuses_fails_the_claim_and_is_named() {
    let (one, two) = (Cli::start().await, Cli::start().await);
    let taxiway = Taxiway::before(&[&one, &two]);
    two.refuse(Some("no"));
    let mut client = taxiway.client().await;
    assert_eq!(
        message(&client.call(LLM, json!({})).await),
        "Backend cli-2: Request llmInference.setProvider failed with message: no"
    );
    // Not in force, so nothing is kept from sessions, and anybody may claim.
    assert!(
        taxiway
            .shared
            .providers
            .unprepared(&taxiway.pool.snapshot())
            .is_empty()
    );
    two.refuse(None);
    let mut other = taxiway.client().await;
    assert_eq!(
        other.call(LLM, json!({})).await["result"],
        json!({"success": true})
    );
    drop(other);

    // Nobody there at all.
    taxiway.pool.change(|pool| {
        pool.backends
            .change(|all| all.iter_mut().for_each(|b| b.health = Health::Down));
    });
    let answer = client.call("sessionFs.setProvider", json!({})).await;
    assert_eq!(answer["error"]["code"], -32010);
}

#[tokio::test]
async fn a_backend_that_comes_back_gets_registrations_before_sessions() {
    let mut cli = Cli::start().await;
    let taxiway = Taxiway::before(&[&cli]);
    let mut client = taxiway.client().await;
    client
        .call("plugins.builtin.set", json!({"paths": ["/p"]}))
        .await;
    client.call(LLM, json!({})).await;
    cli.ask(LLM, &request(1, START, json!({"requestId": "lost"})));
    let lost = client.asked().await;

    let address = cli.address;
    cli.stop().await;
    cli = Cli::start_at(address).await;
    cli.refuse(Some("not yet"));
    assert_eq!(cli.heard().await["method"], "plugins.builtin.set");
    let refused = client
        .call("session.create", json!({"sessionId": "s"}))
        .await;
    assert_eq!(refused["error"]["code"], -32010, "{refused}");
    cli.refuse(None);
    taxiway.prepared().await;
    let created = client
        .call("session.create", json!({"sessionId": "s"}))
        .await;
    assert_eq!(created["result"]["sessionId"], "s", "{created}");

    // The answer to the process that is gone does not reach the new one, the new one's requests
    // reach the client.
    client
        .write(&json!({"jsonrpc": "2.0", "id": lost["id"], "result": {}}))
        .await;
    cli.ask(LLM, &request(1, START, json!({"requestId": "new"})));
    let new = client.asked().await;
    assert_eq!(new["params"]["requestId"], "new");
    client
        .write(&json!({"jsonrpc": "2.0", "id": new["id"], "result": {"of": "new"}}))
        .await;
    let heard = soon(async {
        loop {
            let heard = cli.heard().await;
            if heard.get("method").is_none() {
                return heard;
            }
        }
    })
    .await;
    assert_eq!(heard["result"], json!({"of": "new"}));
}

#[tokio::test]
async fn a_backend_that_joins_is_registered_and_one_that_is_removed_let_go() {
    let (one, mut two) = (Cli::start().await, Cli::start().await);
    let taxiway = Taxiway::before(&[&one]);
    let mut client = taxiway.client().await;
    client.call(LLM, json!({"foo": 1})).await;
    taxiway.pool.change(|pool| {
        let mut joined = testing::backend("cli-2", 1);
        joined.address = two.address.to_string().into();
        pool.backends.change(|all| all.push(joined));
    });
    assert_eq!(two.heard().await["params"], json!({"foo": 1}));
    taxiway.prepared().await;
    two.ask(LLM, &request(1, START, json!({"requestId": "r"})));
    assert_eq!(client.asked().await["params"]["requestId"], "r");
    taxiway
        .pool
        .change(|pool| pool.backends.change(|all| all.truncate(1)));
    soon(async {
        while taxiway.shared.providers.inner.links().len() > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_the_client_cannot_take_and_what_is_no_provider_request_is_refused() {
    let mut cli = Cli::start().await;
    let taxiway = Taxiway::before(&[&cli]);
    let mut client = taxiway.client().await;
    client.call(LLM, json!({})).await;
    cli.heard().await;
    cli.ask(LLM, &request(1, "gitHubToken.getToken", json!({})));
    assert_eq!(cli.heard().await["error"]["code"], -32601);
    cli.ask(
        LLM,
        &request(
            2,
            "sessionFs.readFile",
            json!({"sessionId": "s", "path": "/p"}),
        ),
    );
    assert_eq!(cli.heard().await["error"]["code"], -32603);
    // More at once than may await one client.
    for id in 0..=provider::MAX_REQUESTS {
        cli.ask(
            LLM,
            &request(100 + id as u64, "llmInference.httpRequestStart", json!({})),
        );
    }
    let refused = cli.heard().await;
    assert_eq!(refused["error"]["code"], -32013);
    assert_eq!(refused["id"], 100 + provider::MAX_REQUESTS);
    assert_eq!(refused["error"]["data"]["limit"], "provider_requests");
    let metrics = taxiway.shared.observer.metrics().render();
    assert!(metrics.contains(r#"taxiway_limit_hits_total{limit="provider_requests"} 1"#));
    // A token that the client's machine turned down.
    let first = client.asked().await;
    assert_eq!(first["method"], START);
    taxiway.shared.providers.refused(1);
    let refused = cli.heard().await;
    assert_eq!(
        (&refused["id"], &refused["error"]["code"]),
        (&json!(100), &json!(-32013))
    );
}

#[tokio::test]
async fn a_claim_with_huge_params_is_refused() {
    let mut cli = Cli::start().await;
    let taxiway = Taxiway::before(&[&cli]);
    let mut client = taxiway.client().await;
    let params = json!({"x": "x".repeat(MAX_PARAMS)});
    let refused = client.call(LLM, params).await;
    assert_eq!(refused["error"]["data"]["limit"], "provider_params");
    assert!(cli.has_heard_nothing());
}

#[test]
fn a_link_takes_no_more_than_it_may_hold_except_bad_news() {
    let (link, _commands) = Link::new();
    let answer = |bytes| Command::Write(vec![b' '; bytes]);
    assert!(link.send(answer(link::MAX_QUEUED / 2)));
    assert!(!link.send(answer(link::MAX_QUEUED / 2)));
    assert!(link.send(answer(1)));
    assert!(link.send(answer(link::MAX_QUEUED / 2 - 1000)));
    let failure = Failure {
        backend: "cli-1".into(),
        kind: Provider::LlmInference,
        id: Some(vec![b'1'; 2000].into()),
        exchange: None,
    };
    assert!(link.send(Command::Fail(failure, Unasked::Vacant)));
    assert!(!link.send(answer(1)));
}
