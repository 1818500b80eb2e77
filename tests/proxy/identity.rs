//! Clients that have to say who they are: tokens, JSON Web Tokens, what strangers may do, what a
//! flood of wrong tokens costs others, and what a reload or the end of a token does to those that
//! are connected.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::hmac;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::rig::{
    Client, Conf, Disks, Failure, Raw, Rig, Sims, Taxiway, bounded, event, frame, until,
};

const ANN: &str = "token-of-ann-0123456789";
const BOB: &str = "token-of-bob-0123456789";
const SECRET: &str = "secret-of-the-issuer-0123456789-0123456789";

fn hash(token: &str) -> String {
    Sha256::digest(token)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn principal(name: &str, token: &str) -> String {
    format!("{{ name = '{name}', token_sha256 = '{}' }}", hash(token))
}

/// Users may give their sessions any id.
fn any_id(conf: Conf) -> Conf {
    conf.without("identity.session_id_user")
}

/// Ann and Bob.
fn two(conf: Conf) -> Conf {
    let list = format!("[{}, {}]", principal("ann", ANN), principal("bob", BOB));
    any_id(conf).set("identity.principals", &list)
}

/// An issuer of JSON Web Tokens; its secret lies beside the configuration.
fn issuer(conf: Conf) -> Conf {
    let table = "[{ name = 'sso', issuer = 'https://sso.example', audience = 'copilot', \
                 secret_file = 'jwt.secret', leeway = '0s' }]";
    any_id(conf).set("identity.jwt", table)
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

fn claims(user: &str, seconds: u64) -> Value {
    let (iss, aud) = ("https://sso.example", "copilot");
    json!({ "iss": iss, "aud": aud, "sub": user, "exp": now() + seconds })
}

fn jwt(algorithm: &str, claims: &Value, secret: &str) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", part(&json!({ "alg": algorithm })), part(claims));
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let signature = match algorithm {
        "none" => String::new(),
        _ => URL_SAFE_NO_PAD.encode(hmac::sign(&key, message.as_bytes())),
    };
    format!("{message}.{signature}")
}

async fn says(client: &Client, token: &str) -> Result<Value, Failure> {
    client.call("connect", json!({ "token": token })).await
}

/// A client that has said who it is.
async fn known(rig: &Rig, token: &str) -> Client {
    let client = Client::connect(rig.taxiway.address()).await;
    says(&client, token).await.unwrap();
    client
}

fn code(answer: Result<Value, Failure>) -> i64 {
    answer.expect_err("refused").code
}

#[tokio::test]
async fn a_stranger_can_do_nothing_but_say_who_it_is() {
    bounded(60, async {
        let rig = Rig::with(1, Disks::Separate, two).await;
        let client = Client::connect(rig.taxiway.address()).await;
        for method in [
            "ping",
            "session.create",
            "session.list",
            "session.send",
            "runtime.shutdown",
            "no.such.method",
        ] {
            let failure = client.call(method, json!({ "sessionId": "s" })).await;
            let failure = failure.unwrap_err();
            assert_eq!(failure.code, -32001, "{method}");
            assert_eq!(failure.message, "AUTHENTICATION_REQUIRED");
        }
        let other = known(&rig, BOB).await;
        other.create("bobs").await;
        other.turn("bobs", "hello").await;
        for wrong in [
            json!({}),
            json!({ "token": 7 }),
            json!({ "token": "wrong" }),
        ] {
            let failure = client.call("connect", wrong).await.unwrap_err();
            assert_eq!(failure.code, -32002);
            assert_eq!(failure.message, "AUTHENTICATION_FAILED");
        }
        assert!(client.kept().is_empty(), "{:?}", client.kept());

        says(&client, ANN).await.unwrap();
        client.create("anns").await;
        client.turn("anns", "hello").await;
        // It is Ann from now on, whatever it says.
        assert_eq!(code(says(&client, BOB).await), -32002);
        assert_eq!(code(says(&client, "wrong").await), -32002);
        says(&client, ANN).await.unwrap();
        client.mode("anns").await.unwrap();

        let seen = rig.admin().scrape().await;
        let failed = |reason: &str| {
            seen.value(&format!(
                "taxiway_auth_failures_total{{reason=\"{reason}\"}}"
            ))
        };
        assert_eq!(failed("missing"), 2.0);
        assert_eq!(failed("wrong_token"), 2.0);
        assert_eq!(failed("other_principal"), 1.0);
        rig.taxiway.says("principal=\"ann\" user=\"ann\"").await;
        let log = rig.taxiway.log();
        for token in [ANN, BOB, &hash(ANN), &hash(BOB)] {
            assert!(!log.contains(token), "{log}");
        }
        let turn = log
            .lines()
            .find(|l| l.contains(" turn ") && l.contains("session=\"anns\""));
        let turn = turn.unwrap_or_else(|| panic!("{log}"));
        assert!(turn.contains("principal=\"ann\""), "{turn}");
        assert!(turn.contains("user=\"ann\""), "{turn}");
    })
    .await;
}

#[tokio::test]
async fn what_is_written_behind_connect_waits_for_its_answer() {
    bounded(60, async {
        let rig = Rig::with(1, Disks::Separate, two).await;
        let mut raw = Raw::connect(rig.taxiway.address()).await;
        let call = |id: u64, method: &str, params: Value| {
            frame(
                json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })
                    .to_string(),
            )
        };
        let mut bytes = call(1, "connect", json!({ "token": "wrong" }));
        bytes.extend(call(2, "ping", json!({})));
        bytes.extend(call(3, "connect", json!({ "token": ANN })));
        bytes.extend(call(4, "ping", json!({})));
        let last = call(5, "ping", json!({}));
        let (half, rest) = last.split_at(last.len() / 2);
        bytes.extend(half);
        raw.write(&bytes).await;
        let mut codes = Vec::new();
        for id in 1..=4 {
            let answer = raw.answer().await.unwrap();
            assert_eq!(answer["id"], id, "in the order written");
            codes.push(answer["error"]["code"].as_i64());
        }
        assert_eq!(codes, [Some(-32002), Some(-32001), None, None]);
        raw.write(rest).await;
        assert_eq!(raw.answer().await.unwrap()["id"], 5);
    })
    .await;
}

#[tokio::test]
async fn a_stranger_has_little_room_and_little_time() {
    bounded(60, async {
        let rig = Rig::with(1, Disks::Separate, |conf| {
            two(conf).text("listener.handshake_timeout", "1s")
        })
        .await;
        let client = Client::connect(rig.taxiway.address()).await;
        assert_eq!(code(says(&client, &"x".repeat(17 * 1024)).await), -32002);
        rig.admin()
            .metric_is("taxiway_auth_failures_total{reason=\"too_long\"}", 1.0)
            .await;
        let mut raw = Raw::connect(rig.taxiway.address()).await;
        let params = json!({ "token": "x".repeat(65 * 1024) });
        let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "connect", "params": params });
        raw.write(&frame(call.to_string())).await;
        assert_eq!(raw.answer().await.unwrap()["error"]["code"], -32013);
        raw.closed().await;

        let busy = Client::connect(rig.taxiway.address()).await;
        let start = Instant::now();
        while let Some(Err(failure)) = busy.begin("ping", json!({})).await.answer_if_any().await {
            assert_ne!(failure.code, -32002);
        }
        busy.closed().await;
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "frames prolong nothing"
        );
        let friend = known(&rig, ANN).await;
        // Who has said who it is may be silent for longer than who has not.
        Raw::connect(rig.taxiway.address()).await.closed().await;
        friend.create("s").await;
    })
    .await;
}

#[tokio::test]
async fn json_web_tokens_are_judged() {
    bounded(60, async {
        let sims = Sims::start(1, Disks::Separate).await;
        let conf = issuer(Conf::new(Disks::Separate).all_of(&sims));
        let taxiway = Taxiway::start_with(conf, |folder| {
            fs::write(folder.join("jwt.secret"), SECRET).unwrap();
        })
        .await;
        let rig = Rig { sims, taxiway };
        let with = |name: &str, value: Value| {
            let mut claims = claims("eve", 60);
            claims[name] = value;
            claims
        };
        for (token, reason) in [
            (
                jwt("HS256", &with("exp", json!(now() - 1)), SECRET),
                "expired",
            ),
            (
                jwt("HS256", &with("nbf", json!(now() + 60)), SECRET),
                "not_yet_valid",
            ),
            (
                jwt("HS256", &with("aud", json!("other")), SECRET),
                "wrong_audience",
            ),
            (
                jwt("HS256", &with("iss", json!("evil")), SECRET),
                "wrong_issuer",
            ),
            (
                jwt("HS256", &claims("eve", 60), &SECRET.to_uppercase()),
                "bad_signature",
            ),
            (jwt("none", &claims("eve", 60), ""), "unsigned"),
            (jwt("RS256", &claims("eve", 60), SECRET), "wrong_algorithm"),
            ("not.a.token".to_owned(), "malformed"),
        ] {
            let client = Client::connect(rig.taxiway.address()).await;
            let failure = says(&client, &token).await.unwrap_err();
            assert_eq!(failure.code, -32002, "{reason}");
            assert_eq!(failure.message, "AUTHENTICATION_FAILED");
            rig.admin()
                .metric_is(
                    &format!("taxiway_auth_failures_total{{reason=\"{reason}\"}}"),
                    1.0,
                )
                .await;
            assert_eq!(code(client.call("ping", json!({})).await), -32001);
            assert!(!rig.taxiway.log().contains(&token), "{reason}");
        }
        let alice = known(&rig, &jwt("HS256", &claims("alice", 60), SECRET)).await;
        alice.create("hers").await;
        alice.turn("hers", "hello").await;
        rig.taxiway
            .says("principal=\"sso/alice\" user=\"alice\"")
            .await;

        // The issuer's key is replaced by another: the file is watched.
        let other = SECRET.replace("issuer", "future");
        fs::write(rig.taxiway.folder().join("jwt.secret"), &other).unwrap();
        alice.closed().await;
        let client = Client::connect(rig.taxiway.address()).await;
        let old = says(&client, &jwt("HS256", &claims("alice", 60), SECRET)).await;
        assert_eq!(code(old), -32002);
        known(&rig, &jwt("HS256", &claims("alice", 60), &other)).await;
    })
    .await;
}

#[tokio::test]
async fn a_token_runs_out_on_a_connection_that_is_open() {
    bounded(60, async {
        let sims = Sims::start(1, Disks::Separate).await;
        let conf = issuer(Conf::new(Disks::Separate).all_of(&sims));
        let conf = conf.text("identity.revoke_grace", "1s");
        let taxiway = Taxiway::start_with(conf, |folder| {
            fs::write(folder.join("jwt.secret"), SECRET).unwrap();
        })
        .await;
        let rig = Rig { sims, taxiway };
        let idle = known(&rig, &jwt("HS256", &claims("idle", 2), SECRET)).await;
        let busy = known(&rig, &jwt("HS256", &claims("busy", 2), SECRET)).await;
        let fresh = known(&rig, &jwt("HS256", &claims("fresh", 2), SECRET)).await;
        for (client, session) in [(&idle, "i"), (&busy, "b"), (&fresh, "f")] {
            client.create(session).await;
        }
        busy.send("b", "[[len 60]] [[slow 100]]").await;
        says(&fresh, &jwt("HS256", &claims("fresh", 600), SECRET))
            .await
            .unwrap();
        idle.closed().await;
        until("busy to be nobody", async || match busy.mode("b").await {
            Err(failure) if failure.code == -32001 => Ok(()),
            other => Err(other),
        })
        .await;
        busy.heard(&event("b", "session.idle")).await;
        busy.closed().await;
        assert_eq!(
            busy.count(&event("b", "session.error")),
            0,
            "its turn has ended well"
        );
        fresh.turn("f", "still here").await;
    })
    .await;
}

#[tokio::test]
async fn a_reload_takes_back_what_it_gave() {
    bounded(60, async {
        let mut rig = Rig::with(1, Disks::Separate, two).await;
        let (ann, bob) = (known(&rig, ANN).await, known(&rig, BOB).await);
        let idle = known(&rig, ANN).await;
        ann.create("anns").await;
        bob.create("bobs").await;
        ann.send("anns", "[[len 40]] [[slow 50]]").await;
        let conf = rig.taxiway.conf.clone();
        let only_bob = format!("[{}]", principal("bob", BOB));
        rig.taxiway
            .reload(conf.set("identity.principals", &only_bob))
            .await;
        idle.closed().await;
        assert_eq!(code(ann.mode("anns").await), -32001);
        ann.heard(&event("anns", "session.idle")).await;
        ann.closed().await;
        let again = Client::connect(rig.taxiway.address()).await;
        assert_eq!(code(says(&again, ANN).await), -32002);
        bob.turn("bobs", "never noticed").await;
        rig.taxiway.says("what=\"revoked\" principal=\"ann\"").await;

        // Another token for Bob, beside the old one; then the old one goes.
        let new = "another-token-of-bob-0123456789";
        let both = format!(
            "[{{ name = 'bob', token_sha256 = ['{}', '{}'] }}]",
            hash(BOB),
            hash(new)
        );
        let conf = rig.taxiway.conf.clone();
        rig.taxiway
            .reload(conf.set("identity.principals", &both))
            .await;
        let newer = known(&rig, new).await;
        bob.turn("bobs", "still").await;
        let conf = rig.taxiway.conf.clone();
        let last = format!("[{}]", principal("bob", new));
        rig.taxiway
            .reload(conf.set("identity.principals", &last))
            .await;
        bob.closed().await;
        newer.create("newer").await;

        // A configuration that does not hold changes nothing.
        let conf = rig.taxiway.conf.clone();
        let clash = format!("[{}, {}]", principal("bob", new), principal("eve", new));
        let text = conf.set("identity.principals", &clash).render();
        let answer = rig.taxiway.refused_reload(&text).await.to_string();
        assert!(answer.contains("the same token"), "{answer}");
        newer.turn("newer", "hello").await;
    })
    .await;
}

#[tokio::test]
async fn a_reload_changes_the_caps_of_who_is_connected() {
    bounded(60, async {
        let mut rig = Rig::with(1, Disks::Separate, two).await;
        let ann = known(&rig, ANN).await;
        for session in ["a", "b"] {
            ann.create(session).await;
        }
        let long =
            |session| json!({ "sessionId": session, "prompt": "[[len 100000]] [[slow 20]]" });
        ann.call("session.send", long("a")).await.unwrap();
        ann.heard(&event("a", "assistant.turn_start")).await;
        let capped = format!(
            "{{ name = 'ann', token_sha256 = '{}', turns = 1 }}",
            hash(ANN)
        );
        let conf = rig.taxiway.conf.clone();
        let conf = conf.set("identity.principals", &format!("[{capped}]"));
        rig.taxiway.reload(conf.clone()).await;
        assert_eq!(code(ann.call("session.send", long("b")).await), -32013);
        let free = format!("[{}]", principal("ann", ANN));
        rig.taxiway
            .reload(conf.set("identity.principals", &free))
            .await;
        ann.call("session.send", long("b")).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn thousands_of_principals_come_from_a_file_that_is_watched() {
    bounded(60, async {
        let line = |n: usize| format!("user-{n} {}\n", hash(&format!("secret token of {n}")));
        let list = |range: std::ops::Range<usize>| range.map(line).collect::<String>();
        let sims = Sims::start(1, Disks::Separate).await;
        let conf = Conf::new(Disks::Separate).all_of(&sims);
        let conf = any_id(conf).text("identity.tokens_file", "tokens");
        let taxiway = Taxiway::start_with(conf, |folder| {
            fs::write(folder.join("tokens"), list(0..5000)).unwrap();
        })
        .await;
        let rig = Rig { sims, taxiway };
        let first = known(&rig, "secret token of 0").await;
        let last = known(&rig, "secret token of 4999").await;
        last.create("s").await;
        let new = rig.taxiway.folder().join("tokens.new");
        fs::write(&new, list(1..5001)).unwrap();
        fs::rename(new, rig.taxiway.folder().join("tokens")).unwrap();
        first.closed().await;
        known(&rig, "secret token of 5000").await;
        last.turn("s", "still here").await;

        // A broken line changes nothing, and is said.
        fs::write(rig.taxiway.folder().join("tokens"), "user-1 secret\n").unwrap();
        rig.taxiway
            .says("tokens:1: the second word is no SHA-256 hash")
            .await;
        last.turn("s", "still here").await;
    })
    .await;
}

/// Guesses once on a connection of its own; the code of the answer, none without one.
async fn guess(address: std::net::SocketAddr, n: usize) -> Option<i64> {
    let client = Client::connect(address).await;
    let params = json!({ "token": format!("wrong token {n}") });
    let answer = client
        .begin("connect", params)
        .await
        .answer_if_any()
        .await?;
    Some(code(answer))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_wrong_tokens_hurt_nobody_else() {
    bounded(180, async {
        let rig = Rig::with(1, Disks::Separate, |conf| {
            // Strangers are gone before their tenth guess is answered.
            two(conf).text("listener.handshake_timeout", "1s")
        })
        .await;
        let friend = known(&rig, ANN).await;
        friend.create("anns").await;
        let address = rig.taxiway.address();
        const GUESSES: usize = 10_000;
        const AT_ONCE: usize = 100;
        let flood = tokio::spawn(async move {
            let mut tasks = tokio::task::JoinSet::new();
            let next = Arc::new(AtomicUsize::new(0));
            for _ in 0..AT_ONCE {
                let next = next.clone();
                tasks.spawn(async move {
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= GUESSES {
                            break;
                        }
                        let answer = guess(address, n).await;
                        assert!(matches!(answer, None | Some(-32002)), "{answer:?}");
                    }
                });
            }
            tasks.join_all().await;
        });
        let mut slowest = Duration::ZERO;
        let mut turns = 0;
        while !flood.is_finished() {
            let start = Instant::now();
            friend.turn("anns", "hello").await;
            slowest = slowest.max(start.elapsed());
            let start = Instant::now();
            known(&rig, BOB).await;
            slowest = slowest.max(start.elapsed());
            turns += 1;
        }
        flood.await.unwrap();
        assert!(turns > 3, "{turns}");
        assert!(
            slowest < Duration::from_secs(3),
            "{slowest:?} after {turns} turns"
        );
        let seen = rig.admin().scrape().await;
        let wrong = seen.value("taxiway_auth_failures_total{reason=\"wrong_token\"}");
        assert_eq!(wrong, GUESSES as f64);
        let lines = rig
            .taxiway
            .log()
            .lines()
            .filter(|l| l.contains("denied"))
            .count();
        assert!(lines <= 400, "{lines} lines");
    })
    .await;
}
