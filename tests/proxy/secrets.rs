//! Secrets and words of users stay where they belong: everything that Taxiway writes (logs, answers
//! to operators, files) is searched for what was planted in what it reads.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use futures_util::future::join_all;
use memchr::memmem;
use ring::hmac;
use rustix::process::Signal;
use serde_json::{Value, json};
use taxiway::{
    core::credential::Fingerprint,
    sim::{Home, SimOptions, SimServer},
};
use tempfile::TempDir;
use tokio::process::Command;

use crate::rig::{Admin, Client, Conf, Disks, PATIENCE, Raw, Taxiway, bounded, event, frame};

/// What no one but its owner may read: a name for the report, and the text. Signs that JSON escapes
/// are in those that can have them.
const PLANTED: &[(&str, &str)] = &[
    ("token of ann", "planted-token-of-ann-0123456789"),
    ("token of bob", "planted-token-of-bob-0123456789"),
    ("wrong token", "planted-wrong-token-0123456789"),
    (
        "token in the wrong place",
        "planted-token-as-hash-0123456789",
    ),
    (
        "token of the servers",
        "planted-token-of-servers-0123456789",
    ),
    ("token of the admin", "planted-token-of-admin-0123456789"),
    ("wrong token of the admin", "planted-wrong-admin-0123456789"),
    (
        "secret of the issuer",
        "planted-secret-of-issuer-0123456789-0123456789",
    ),
    ("API key", "planted-api-key-\"0123456789\""),
    ("API key of a resume", "planted-second-api-key-0123456789"),
    ("header for the model", "planted-header-0123456789"),
    ("environment of a program", "planted-environment-0123456789"),
    ("GitHub token", "planted-github-token-0123456789"),
    ("system message", "planted system\nmessage 0123456789"),
    ("prompt", "planted \"prompt\" of ann \u{e9} 0123456789"),
    (
        "prompt in a turn that is lost",
        "planted-lost-prompt-0123456789",
    ),
    (
        "prompt that is malformed",
        "planted-malformed-prompt-0123456789",
    ),
    ("prompt that is denied", "planted-denied-prompt-0123456789"),
    ("arguments of a tool", "planted-arguments-0123456789"),
    ("result of a tool", "planted-result-0123456789"),
    ("answer to a question", "planted-answer-0123456789"),
];

/// What has to be found everywhere: the search works, and nobody was asleep.
const SESSION: &str = "user-ann--planted-in-plain-sight";

fn planted(name: &str) -> &'static str {
    let found = PLANTED.iter().find(|(known, _)| *known == name);
    found.expect("it is in the list").1
}

/// All ways in which `text` may stand in what is written. Of base64 what does not depend on the text
/// around it, for each of the three places where a group can begin.
fn forms(text: &str) -> Vec<Vec<u8>> {
    let escaped = Value::from(text).to_string();
    let escaped = escaped[1..escaped.len() - 1].to_owned();
    let twice = Value::from(escaped.as_str()).to_string();
    let hex: String = text.bytes().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    });
    let debug = format!("{text:?}");
    let mut forms = vec![
        text.to_owned(),
        escaped.clone(),
        twice[1..twice.len() - 1].to_owned(),
        debug[1..debug.len() - 1].to_owned(),
        hex.to_uppercase(),
        hex,
    ];
    for text in [text, &escaped] {
        for skip in 0..3 {
            let whole = (text.len() - skip) / 3 * 3;
            let part = &text.as_bytes()[skip..skip + whole];
            forms.push(STANDARD_NO_PAD.encode(part));
            forms.push(URL_SAFE_NO_PAD.encode(part));
        }
    }
    forms.into_iter().map(String::into_bytes).collect()
}

fn holds(bytes: &[u8], text: &str) -> bool {
    let forms = forms(text);
    forms.iter().any(|form| memmem::find(bytes, form).is_some())
}

/// Everything below a folder, with the path of each file.
fn files(folder: &Path, found: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if let Ok(bytes) = fs::read(&path) {
            // A socket cannot be read.
            found.push((path.display().to_string(), bytes));
        }
    }
}

/// Servers that want a token, what operators hand in, and what was written besides files.
struct Scene {
    sims: Vec<SimServer>,
    /// What the operator has written: the only place where secrets may be.
    given: TempDir,
    said: Vec<(String, Vec<u8>)>,
}

impl Scene {
    async fn new() -> Self {
        let home = Home::new();
        let mut sims = Vec::new();
        for seed in 1..=2 {
            let server = SimServer::start(SimOptions {
                home: home.clone(),
                seed,
                token: Some(planted("token of the servers").to_owned()),
                ..SimOptions::default()
            });
            sims.push(server.await.unwrap());
        }
        let given = TempDir::new().unwrap();
        for (file, name) in [
            ("ann", "token of ann"),
            ("servers", "token of the servers"),
            ("admin", "token of the admin"),
            ("issuer", "secret of the issuer"),
        ] {
            fs::write(given.path().join(file), planted(name)).unwrap();
        }
        let bob = Fingerprint::of(planted("token of bob"));
        let line = format!("bob {bob} acme user -\n");
        fs::write(given.path().join("tokens"), line).unwrap();
        Self {
            sims,
            given,
            said: Vec::new(),
        }
    }

    fn given(&self, file: &str) -> String {
        self.given.path().join(file).display().to_string()
    }

    fn conf(&self, format: &str, level: &str) -> Conf {
        let ann = format!(
            "[{{ name = 'ann', realm = 'acme', token_file = '{}' }}]",
            self.given("ann")
        );
        let issuer = format!(
            "[{{ name = 'sso', issuer = 'https://sso.example', audience = 'copilot', \
             secret_file = '{}' }}]",
            self.given("issuer")
        );
        let mut conf = Conf::new(Disks::Shared)
            .text("log.format", format)
            .text("log.level", level)
            .text("admin.token_file", &self.given("admin"))
            .text("identity.tokens_file", &self.given("tokens"))
            .set("identity.principals", &ann)
            .set("identity.jwt", &issuer)
            .text("store.kind", "embedded")
            .text("store.path", "taxiway.db")
            .text("upgrade.socket", "upgrade.sock")
            .text("drain.timeout", "2s")
            .text("drain.accept_grace", "0s");
        for (n, server) in self.sims.iter().enumerate() {
            let name = format!("s{}", n + 1);
            conf = conf
                .backend(&name, &server.address().to_string())
                .backend_set(
                    &name,
                    "connection_token_file",
                    &format!("'{}'", self.given("servers")),
                );
        }
        conf
    }

    /// Runs a command of the program in this folder.
    async fn command(&mut self, folder: &Path, arguments: &[&str], token: &str) -> Option<i32> {
        let run = Command::new(env!("CARGO_BIN_EXE_taxiway"))
            .args(arguments)
            .current_dir(folder)
            .env("TAXIWAY_ADMIN_TOKEN", planted(token))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let done = tokio::time::timeout(PATIENCE, run).await.unwrap().unwrap();
        let written = [done.stdout, done.stderr].concat();
        self.said
            .push((format!("taxiway {}", arguments.join(" ")), written));
        done.status.code()
    }

    /// All that operators can ask for, with the right token, a wrong one and none.
    async fn operators(&mut self, taxiway: &Taxiway) {
        let explain = format!("/api/v1/sessions/{SESSION}/explain");
        let ask = format!("{explain}?as=bob");
        let paths = [
            "/",
            "/healthz",
            "/readyz",
            "/readyz?pool=1",
            "/metrics",
            "/api/v1/backends",
            "/api/v1/sessions",
            "/api/v1/config",
            &explain,
            &ask,
            "/api/v1/none",
        ];
        for token in [
            Some("token of the admin"),
            Some("wrong token of the admin"),
            None,
        ] {
            let admin = Admin {
                address: taxiway.conf.address("admin"),
                token: token.map(|name| planted(name).to_owned()),
            };
            for path in paths {
                let (_, body) = admin.try_request("GET", path, None).await.unwrap();
                self.said.push((format!("GET {path}"), body.into_bytes()));
            }
            for (path, body) in [
                ("/api/v1/backends/s1/weight", r#"{"weight":2}"#.to_owned()),
                (
                    "/api/v1/backends/s1/drain",
                    format!("{{{}", planted("prompt that is malformed")),
                ),
                ("/api/v1/reload", "{}".to_owned()),
            ] {
                let (_, body) = admin.post(path, &body).await;
                self.said.push((format!("POST {path}"), body.into_bytes()));
            }
        }
    }

    /// Searches everything, also what is below these folders; gives where the session was found.
    fn searched(self, folders: &[PathBuf]) -> Vec<String> {
        let mut written = self.said;
        for folder in folders {
            files(folder, &mut written);
        }
        for (place, bytes) in &written {
            let planted = PLANTED
                .iter()
                .map(|(name, text)| (*name, (*text).to_owned()));
            for (name, secret) in planted.chain([("token of carol", signed("carol"))]) {
                let secret = &secret;
                if holds(bytes, secret) {
                    let mut lines = bytes.split(|byte| *byte == b'\n');
                    let line = lines.find(|line| holds(line, secret));
                    let line = line.map(String::from_utf8_lossy);
                    panic!("{name} is in {place}: {line:?}");
                }
            }
        }
        let found = written
            .into_iter()
            .filter(|(_, bytes)| holds(bytes, SESSION));
        found.map(|(place, _)| place).collect()
    }
}

/// A token of the issuer.
fn signed(user: &str) -> String {
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let claims = json!({
        "iss": "https://sso.example", "aud": "copilot", "sub": user, "exp": 4_000_000_000_u64,
    });
    let message = format!("{}.{}", part(json!({ "alg": "HS256" })), part(claims));
    let secret = planted("secret of the issuer").as_bytes();
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let signature = hmac::sign(&key, message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

async fn known(taxiway: &Taxiway, token: &str) -> Client {
    let client = Client::connect(taxiway.address()).await;
    client
        .call("connect", json!({ "token": token }))
        .await
        .unwrap();
    client
}

/// What an application says about a session.
fn parameters(key: &str) -> Value {
    json!({
        "sessionId": SESSION,
        "provider": {
            "type": "openai", "baseUrl": "http://127.0.0.1:9/v1", "apiKey": key,
            "headers": { "x-key": planted("header for the model") },
        },
        "mcpServers": { "one": { "command": "true", "args": [],
            "env": { "KEY": planted("environment of a program") } } },
        "systemMessage": { "mode": "append", "content": planted("system message") },
        "requestUserInput": true,
        "requestPermission": false,
        "tools": [{ "name": "look", "description": "x", "parameters": {}, "skipPermission": true }],
    })
}

/// A session's whole life, with the loss of its server in the middle of a turn.
async fn life(scene: &Scene, ann: &Client) {
    ann.call("session.create", parameters(planted("API key")))
        .await
        .unwrap();
    ann.turn(SESSION, planted("prompt")).await;
    let tool = format!(
        "[[tool look {{\"at\":\"{}\"}}]]",
        planted("arguments of a tool")
    );
    ann.send(SESSION, &format!("{tool} [[ask Which?]]")).await;
    let asked = ann.heard(&event(SESSION, "external_tool.requested")).await;
    let answer = json!({
        "sessionId": SESSION, "requestId": asked["params"]["event"]["data"]["requestId"],
        "result": planted("result of a tool"),
    });
    ann.call("session.tools.handlePendingToolCall", answer)
        .await
        .unwrap();
    let question = ann
        .heard(&|m: &Value| m["method"] == "userInput.request")
        .await;
    let answer = json!({ "answer": planted("answer to a question"), "wasFreeform": true });
    let mark = ann.mark();
    ann.reply(&question, answer).await;
    ann.heard_since(mark, &event(SESSION, "session.idle")).await;
    ann.call("session.resume", parameters(planted("API key of a resume")))
        .await
        .unwrap();

    let params = json!({ "sessionId": "user-ann--2", "gitHubToken": planted("GitHub token") });
    ann.call("session.create", params).await.unwrap();

    // The server goes in the middle of a turn; the other one is told all parameters again.
    let at = scene
        .sims
        .iter()
        .position(|s| s.open_sessions().iter().any(|id| id == SESSION));
    let at = at.expect("it is open");
    let mark = ann.mark();
    let lost = planted("prompt in a turn that is lost");
    ann.send(SESSION, &format!("{lost} [[len 100000]] [[slow 20]]"))
        .await;
    ann.heard_since(mark, &event(SESSION, "assistant.turn_start"))
        .await;
    scene.sims[at].kill();
    ann.heard_since(mark, &event(SESSION, "session.error"))
        .await;
    ann.turn(SESSION, planted("prompt")).await;
    assert!(
        scene.sims[1 - at]
            .open_sessions()
            .iter()
            .any(|id| id == SESSION)
    );
}

/// Those who may not, and those who cannot speak.
async fn strangers(taxiway: &Taxiway) {
    let bob = known(taxiway, planted("token of bob")).await;
    for method in [
        "session.send",
        "session.resume",
        "sessions.fork",
        "account.login",
        "no.such",
    ] {
        let params = json!({
            "sessionId": SESSION, "prompt": planted("prompt that is denied"),
            "token": planted("token of bob"),
        });
        bob.call(method, params).await.unwrap_err();
    }
    let params = json!({ "sessionId": "s", "configDir": planted("prompt that is denied") });
    bob.call("session.create", params).await.unwrap_err();

    // Each of one address is answered later than the one before, so all at once.
    let token = planted("wrong token");
    let wrong = [
        json!({ "token": token }),
        json!({ "token": format!("{}x", signed("eve")) }),
        json!({ "clientInfo": token }),
        json!({ "supportedTaskKinds": [token] }),
        json!([token, token]),
        json!(token),
    ];
    let refused = wrong.map(async |params| {
        let client = Client::connect(taxiway.address()).await;
        client.call("connect", params).await.unwrap_err();
    });
    join_all(refused).await;
    let prompt = planted("prompt that is malformed");
    for bytes in [
        frame(format!(
            r#"{{"jsonrpc":"{prompt}","id":1,"method":"ping"}}"#
        )),
        frame(format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":["{prompt}"]}}"#
        )),
        frame(format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"ping","params":"{prompt}"}}"#
        )),
        frame(format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"session.send","prompt":"{prompt}"#
        )),
        frame(format!(r#"["{prompt}"]"#)),
        frame(format!(r#"{{"jsonrpc":"2.0","id":1,"result":"{prompt}"}}"#)),
        format!("GET /?prompt={prompt} HTTP/1.1\r\nx: {prompt}\r\n\r\n").into_bytes(),
        format!("Content-Length: {prompt}\r\n\r\n").into_bytes(),
    ] {
        let mut raw = Raw::connect(taxiway.address()).await;
        raw.write(&bytes).await;
        raw.write(&frame("[]")).await;
        raw.next().await;
    }
}

/// Files that are wrong, with a token where none belongs.
fn mistakes(scene: &Scene, conf: &Conf) -> Vec<String> {
    let token = planted("token in the wrong place");
    let list = |entry: &str| format!("[{{ name = 'eve', {entry} }}]");
    let with = |key: &str, value: &str| conf.clone().set(key, value).render();
    vec![
        with(
            "identity.principals",
            &list(&format!("token_sha256 = '{token}'")),
        ),
        with("identity.principals", &list(&format!("token = '{token}'"))),
        with(
            "identity.principals",
            &list(&format!("token_sha256 = {token}")),
        ),
        with(
            "identity.principals",
            &list(&format!("token_file = 3, token = \"{token}\"")),
        ),
        with("admin.token", &format!("'{token}'")),
        with("admin.token", token),
        conf.clone()
            .backend_set("s1", "connection_token", &format!("'{token}'"))
            .render(),
        with(
            "identity.jwt",
            &format!("[{{ name = 'sso', issuer = 'i', audience = 'a', secret = '{token}' }}]"),
        ),
        // A key that is no hash, a file of tokens that has tokens in it.
        {
            let wrong = format!("eve {token} acme user -\n");
            fs::write(scene.given.path().join("wrong"), wrong).unwrap();
            with(
                "identity.tokens_file",
                &format!("'{}'", scene.given("wrong")),
            )
        },
    ]
}

#[tokio::test]
async fn nothing_that_is_written_has_a_secret_in_it() {
    bounded(120, async {
        for (format, level) in [("text", "trace"), ("json", "debug")] {
            let mut scene = Scene::new().await;
            let conf = scene.conf(format, level);
            let mut taxiway = Taxiway::start(conf).await;
            taxiway.admin.token = Some(planted("token of the admin").to_owned());
            let folder = taxiway.folder();

            let ann = known(&taxiway, planted("token of ann")).await;
            life(&scene, &ann).await;
            let carol = known(&taxiway, &signed("carol")).await;
            carol.create("user-carol--1").await;
            strangers(&taxiway).await;
            scene.operators(&taxiway).await;

            let conf = taxiway.conf.clone();
            for (n, text) in mistakes(&scene, &conf).into_iter().enumerate() {
                let told = taxiway.refused_reload(&text).await;
                scene.said.push((
                    format!("mistake {n}: reload"),
                    told.to_string().into_bytes(),
                ));
                for arguments in [
                    &["check", "-c", "taxiway.toml"][..],
                    &["check", "-c", "taxiway.toml", "-o", "json"],
                    &["run", "-c", "taxiway.toml"],
                ] {
                    let code = scene
                        .command(&folder, arguments, "token of the admin")
                        .await;
                    assert_ne!(code, Some(0), "mistake {n} {arguments:?}");
                }
            }
            let (status, _) = {
                taxiway.write(&conf.render());
                taxiway.admin.post("/api/v1/reload", "{}").await
            };
            assert_eq!(status, 200);
            let admin = conf.address("admin").to_string();
            for arguments in [
                &["check", "-c", "taxiway.toml", "-o", "json"][..],
                &["check", "-c", "taxiway.toml", "--methods", "--as", "ann"],
                &["status", "-c", "taxiway.toml"],
                &["sessions", "-c", "taxiway.toml", "-o", "json"],
                &["explain", "-c", "taxiway.toml", SESSION, "--as", "bob"],
            ] {
                let code = scene
                    .command(&folder, arguments, "token of the admin")
                    .await;
                let said = scene
                    .said
                    .last()
                    .map(|(_, text)| String::from_utf8_lossy(text));
                assert_eq!(code, Some(0), "{arguments:?} {admin}: {said:?}");
            }

            // A crash, a start from what was kept, an end in order.
            taxiway.kill().await;
            let mut kept = Vec::new();
            files(&folder, &mut kept);
            taxiway.start_again().await;
            let ann = known(&taxiway, planted("token of ann")).await;
            ann.call("session.resume", parameters(planted("API key")))
                .await
                .unwrap();
            ann.send(SESSION, "[[len 100000]] [[slow 20]]").await;
            taxiway.signal(Signal::TERM);
            taxiway.ended().await;

            // The operator's own file with the last mistake is none of what Taxiway writes.
            scene.said.extend(kept);
            let found = scene.searched(&[folder]);
            for wanted in [
                "/log",
                "/taxiway.db",
                "GET /api/v1/sessions",
                "taxiway explain",
            ] {
                let is_there = found.iter().any(|place| place.contains(wanted));
                assert!(is_there, "not in {wanted}: {found:?}");
            }
        }
    })
    .await;
}

#[test]
fn the_search_finds_each_form() {
    for (name, secret) in PLANTED {
        let json = Value::from(*secret).to_string();
        for before in ["", "a", "ab"] {
            let around = format!("{before}{secret}, and more");
            for form in [
                around.clone(),
                json.clone(),
                Value::from(json.as_str()).to_string(),
                format!("{secret:?}"),
                STANDARD_NO_PAD.encode(&around),
                URL_SAFE_NO_PAD.encode(format!("{before}{json}")),
            ] {
                assert!(holds(form.as_bytes(), secret), "{name} in {form}");
            }
        }
        assert!(!holds(SESSION.as_bytes(), secret));
    }
}
