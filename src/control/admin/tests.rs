//! The server over real sockets, with a fake backstage.

mod seats;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    server::{Bounds, run_within},
    *,
};
use crate::core::id::Secret;

/// Longer than anything here takes; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(super) struct Stage {
    pub(super) readiness: Mutex<Readiness>,
    pub(super) backends: Mutex<Vec<BackendView>>,
    pub(super) sessions: Vec<SessionView>,
    pub(super) reload: Mutex<Option<Result<String, Value>>>,
    pub(super) audited: Mutex<Vec<(String, bool)>>,
}

impl Stage {
    pub(super) fn new() -> Self {
        let backend = |name: &str, sessions_open| BackendView {
            name: name.into(),
            address: "10.0.0.1:4321".into(),
            state: "ready".into(),
            health: "up".into(),
            takes_placements: true,
            weight: 1,
            weight_permille: 1000,
            sessions_open,
            ping_ms: Some(0.5),
            version: Some("1.0.102".into()),
            ..BackendView::default()
        };
        let session = |id: &str, user: &str, backend: &str| SessionView {
            id: id.into(),
            user: Some(user.into()),
            backend: Some(backend.into()),
            open: true,
            ..SessionView::default()
        };
        Self {
            readiness: Mutex::new(Readiness {
                ready: true,
                usable_backends: 2,
                ..Readiness::default()
            }),
            backends: Mutex::new(vec![backend("cli-1", 2), backend("cli-2", 0)]),
            sessions: vec![
                session("a/b c", "alice", "cli-1"),
                session("s-2", "bob", "cli-1"),
                session("s-3", "alice", "cli-2"),
            ],
            ..Self::default()
        }
    }

    fn edit(&self, name: &str, edit: impl FnOnce(&mut BackendView)) -> Result<(), ActionError> {
        let mut backends = self.backends.lock().unwrap();
        match backends.iter_mut().find(|b| b.name == name) {
            Some(backend) => {
                edit(backend);
                Ok(())
            }
            None => Err(ActionError::UnknownBackend(name.into())),
        }
    }
}

impl Backstage for Stage {
    fn readiness(&self) -> Readiness {
        self.readiness.lock().unwrap().clone()
    }

    fn metrics(&self) -> String {
        "taxiway_build_info 1\n".into()
    }

    fn backends(&self) -> Vec<BackendView> {
        self.backends.lock().unwrap().clone()
    }

    fn sessions(
        &self,
        filter: &SessionFilter,
        after: Option<&str>,
        limit: usize,
    ) -> Page<SessionView> {
        let wanted = |asked: &Option<String>, has: &Option<String>| asked.is_none() || asked == has;
        let mut items: Vec<_> = self
            .sessions
            .iter()
            .filter(|s| wanted(&filter.backend, &s.backend) && wanted(&filter.user, &s.user))
            .filter(|s| after.is_none_or(|after| s.id.as_str() > after))
            .cloned()
            .collect();
        let more = items.len() > limit;
        items.truncate(limit);
        let next = if more {
            items.last().map(|s| s.id.clone())
        } else {
            None
        };
        Page { items, next }
    }

    fn explain(&self, session: &str, principal: Option<&str>) -> Value {
        match principal {
            None => json!({ "session": session, "known": false }),
            Some(name) => json!({ "session": session, "as": name }),
        }
    }

    fn config(&self) -> Value {
        json!({ "routing": { "mode": "sticky" } })
    }

    fn set_state(&self, backend: &str, state: StateChange) -> Result<(), ActionError> {
        if (backend, state) == ("cli-2", StateChange::Maint) {
            return Err(ActionError::Conflict("it is the last one".into()));
        }
        self.edit(backend, |b| b.state = state.name().into())
    }

    fn set_weight(&self, backend: &str, weight: u32) -> Result<(), ActionError> {
        self.edit(backend, |b| b.weight = weight)
    }

    fn reload(&self) -> BoxFuture<'_, Result<String, Value>> {
        let told = self
            .reload
            .lock()
            .unwrap()
            .take()
            .unwrap_or(Ok("nothing changed".into()));
        Box::pin(async move { told })
    }

    fn audit(&self, client: SocketAddr, action: &str, ok: bool) {
        assert!(client.ip().is_loopback());
        self.audited.lock().unwrap().push((action.to_owned(), ok));
    }
}

/// A served stage.
pub(super) struct Served {
    pub(super) address: SocketAddr,
    pub(super) stage: Arc<Stage>,
    shutdown: CancellationToken,
    task: JoinHandle<io::Result<()>>,
}

pub(super) fn serve(token: Option<&str>, bounds: Bounds) -> Served {
    serve_at("127.0.0.1:0", token, bounds)
}

fn serve_at(address: &str, token: Option<&str>, bounds: Bounds) -> Served {
    let bound = AdminServer::bind(address.parse().unwrap()).unwrap();
    let mut address = bound.address();
    if address.ip().is_unspecified() {
        address.set_ip([127, 0, 0, 1].into());
    }
    let stage = Arc::new(Stage::new());
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(run_within(
        bound,
        stage.clone(),
        token.map(Secret::new),
        shutdown.clone(),
        bounds,
    ));
    Served {
        address,
        stage,
        shutdown,
        task,
    }
}

impl Served {
    /// Sends bytes, reads to the end.
    async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        rest(&mut stream).await
    }

    /// One request with these header lines; gives status, head and body.
    async fn ask(&self, line: &str, headers: &str, body: &str) -> (u16, String, String) {
        let answer = self
            .raw(
                format!(
                    "{line} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n{body}",
                    body.len()
                )
                .as_bytes(),
            )
            .await;
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("{answer:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_ascii_lowercase(), body.to_owned())
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let (status, head, body) = self.ask(&format!("GET {path}"), LOCAL, "").await;
        assert!(head.contains("cache-control: no-store"), "{head}");
        (
            status,
            serde_json::from_str(&body).unwrap_or(Value::String(body)),
        )
    }

    async fn post(&self, path: &str, body: &str) -> (u16, Value) {
        let (status, _, body) = self.ask(&format!("POST {path}"), CHANGE, body).await;
        (status, serde_json::from_str(&body).unwrap())
    }

    fn audited(&self) -> Vec<(String, bool)> {
        std::mem::take(&mut self.stage.audited.lock().unwrap())
    }
}

async fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A connection that is reset has ended too: what was read before counts.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .expect("the end comes");
    String::from_utf8(answer).unwrap()
}

const LOCAL: &str = "host: localhost\r\n";
const CHANGE: &str = "host: localhost\r\ncontent-type: application/json\r\n";

#[tokio::test]
async fn probes_and_numbers() {
    let served = serve(None, Bounds::default());
    assert_eq!(served.get("/healthz").await, (200, json!("ok\n")));
    assert_eq!(
        served.get("/readyz").await,
        (
            200,
            json!({ "ready": true, "reasons": [], "usable_backends": 2 })
        )
    );
    assert_eq!(
        served.get("/metrics").await,
        (200, json!("taxiway_build_info 1\n"))
    );
    let (_, head, body) = served.ask("HEAD /metrics", LOCAL, "").await;
    assert!(
        head.contains("content-type: text/plain; version=0.0.4"),
        "{head}"
    );
    assert_eq!(body, "");

    served.stage.readiness.lock().unwrap().usable_backends = 0;
    assert_eq!(served.get("/readyz").await.0, 200);
    let (status, body) = served.get("/readyz?pool=1").await;
    assert_eq!(
        (status, &body["reasons"]),
        (503, &json!(["no backend is usable"]))
    );
    *served.stage.readiness.lock().unwrap() = Readiness {
        ready: false,
        reasons: vec!["draining".into()],
        notes: vec!["a disk".into()],
        usable_backends: 2,
    };
    let (status, body) = served.get("/readyz").await;
    assert_eq!((status, &body["reasons"]), (503, &json!(["draining"])));
    assert_eq!(body["notes"], json!(["a disk"]));
    // Kubernetes asks with the pod's address as host.
    assert_eq!(
        served
            .ask("GET /readyz", "host: 10.1.2.3:9321\r\n", "")
            .await
            .0,
        503
    );
}

#[tokio::test]
async fn lists_filter_and_page() {
    let served = serve(None, Bounds::default());
    let ids = |body: &Value| -> Vec<String> {
        let items = body["items"].as_array().unwrap();
        let id = |item: &Value| {
            item.get("id")
                .or(item.get("name"))
                .unwrap()
                .as_str()
                .unwrap()
                .into()
        };
        items.iter().map(id).collect()
    };
    let (status, all) = served.get("/api/v1/sessions").await;
    assert_eq!(
        (status, ids(&all), &all["next"]),
        (
            200,
            ["a/b c", "s-2", "s-3"].map(String::from).to_vec(),
            &Value::Null
        )
    );
    let (_, first) = served.get("/api/v1/sessions?limit=1").await;
    assert_eq!(
        (ids(&first), &first["next"]),
        (vec!["a/b c".into()], &json!("a/b c"))
    );
    let (_, second) = served.get("/api/v1/sessions?limit=2&after=a%2Fb+c").await;
    assert_eq!(
        (ids(&second), &second["next"]),
        (vec!["s-2".into(), "s-3".into()], &Value::Null)
    );
    assert_eq!(
        ids(&served.get("/api/v1/sessions?user=bob").await.1),
        ["s-2"]
    );
    assert_eq!(
        ids(&served
            .get("/api/v1/sessions?user=alice&backend=cli-2")
            .await
            .1),
        ["s-3"]
    );
    let (_, backends) = served.get("/api/v1/backends?limit=1").await;
    assert_eq!(
        (ids(&backends), &backends["next"]),
        (vec!["cli-1".into()], &json!("cli-1"))
    );
    let (_, backends) = served.get("/api/v1/backends?after=cli-1").await;
    assert_eq!(
        (ids(&backends), &backends["next"]),
        (vec!["cli-2".into()], &Value::Null)
    );
    assert_eq!(backends["items"][0]["health"], "up");
    for bad in ["?limit=0", "?limit=9999", "?users=x", "?after=%zz"] {
        let (status, body) = served.get(&format!("/api/v1/sessions{bad}")).await;
        assert_eq!(
            (status, &body["error"]["code"]),
            (400, &json!("bad_request")),
            "{bad}"
        );
    }
    assert_eq!(
        served.get("/api/v1/sessions/a%2Fb%20c/explain").await,
        (200, json!({ "session": "a/b c", "known": false }))
    );
    assert_eq!(
        served.get("/api/v1/sessions/s/explain?as=a%26b").await,
        (200, json!({ "session": "s", "as": "a&b" }))
    );
    assert_eq!(
        served.get("/api/v1/config").await.1["routing"]["mode"],
        "sticky"
    );
    assert_eq!(served.audited(), [], "looking is no change");
}

#[tokio::test]
async fn changes_are_made_and_audited() {
    let served = serve(None, Bounds::default());
    for change in StateChange::ALL {
        let (status, body) = served
            .post(&format!("/api/v1/backends/cli-1/{}", change.name()), "{}")
            .await;
        assert_eq!(
            (status, &body["backend"]["state"]),
            (200, &json!(change.name()))
        );
        assert_eq!(
            served.audited(),
            [(format!("{} cli-1", change.name()), true)]
        );
    }
    let (status, body) = served
        .post("/api/v1/backends/cli-1/weight", r#"{"weight":7}"#)
        .await;
    assert_eq!((status, &body["backend"]["weight"]), (200, &json!(7)));
    assert_eq!(served.audited(), [("weight cli-1 7".into(), true)]);
    let put = served
        .ask(
            "PUT /api/v1/backends/cli-1/weight",
            CHANGE,
            r#"{"weight":8}"#,
        )
        .await;
    assert_eq!(put.0, 200);
    assert_eq!(served.audited(), [("weight cli-1 8".into(), true)]);

    for (path, body, status, code) in [
        ("/api/v1/backends/cli-9/drain", "", 404, "unknown_backend"),
        ("/api/v1/backends/cli-2/maint", "{}", 409, "conflict"),
        (
            "/api/v1/backends/cli-1/weight",
            r#"{"weight":0}"#,
            422,
            "invalid",
        ),
        (
            "/api/v1/backends/cli-1/weight",
            r#"{"weight":-1}"#,
            400,
            "bad_request",
        ),
        ("/api/v1/backends/cli-1/weight", "{}", 400, "bad_request"),
        (
            "/api/v1/backends/cli-1/weight",
            r#"{"weight":1,"x":2}"#,
            400,
            "bad_request",
        ),
        ("/api/v1/backends/cli-1/drain", "[]", 400, "bad_request"),
        ("/api/v1/backends/cli-1/drain", "{", 400, "bad_request"),
    ] {
        let (got, answer) = served.post(path, body).await;
        assert_eq!(
            (got, &answer["error"]["code"]),
            (status, &json!(code)),
            "{path} {body}"
        );
        assert!(answer["error"]["message"].is_string());
        let audited = served.audited();
        assert_eq!(audited.len(), 1, "{path}");
        assert!(!audited[0].1, "{path}");
    }
}

#[tokio::test]
async fn reload_says_what_changed_or_what_is_wrong() {
    let served = serve(None, Bounds::default());
    let tell = |told| *served.stage.reload.lock().unwrap() = Some(told);
    tell(Ok("added cli-3".into()));
    assert_eq!(
        served.post("/api/v1/reload", "").await,
        (200, json!({ "summary": "added cli-3" }))
    );
    tell(Err(json!("taxiway.toml:3:1: unknown key")));
    let (status, body) = served.post("/api/v1/reload", "").await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (422, &json!("config_refused"))
    );
    assert_eq!(body["error"]["message"], "taxiway.toml:3:1: unknown key");
    tell(Err(json!({ "message": "two errors", "errors": [1, 2] })));
    let (_, body) = served.post("/api/v1/reload", "").await;
    assert_eq!(body["error"]["message"], "two errors");
    assert_eq!(body["error"]["details"]["errors"], json!([1, 2]));
    let reload = |ok| ("reload".to_owned(), ok);
    assert_eq!(
        served.audited(),
        [reload(true), reload(false), reload(false)]
    );
}

#[tokio::test]
async fn methods_and_paths_that_do_not_exist() {
    let served = serve(None, Bounds::default());
    let (status, head, _) = served.ask("DELETE /api/v1/backends", LOCAL, "").await;
    assert_eq!(status, 405);
    assert!(head.contains("allow: get, head"), "{head}");
    let (status, head, _) = served.ask("GET /api/v1/reload", LOCAL, "").await;
    assert_eq!(status, 405);
    assert!(head.contains("allow: post"), "{head}");
    for path in ["/nothing", "/api/v1/backends/cli-1/eat", "/api/v2/backends"] {
        let (status, body) = served.get(path).await;
        assert_eq!(
            (status, &body["error"]["code"]),
            (404, &json!("not_found")),
            "{path}"
        );
    }
    assert_eq!(served.audited(), []);
}

#[tokio::test]
async fn foreign_pages_are_kept_out() {
    let served = serve(None, Bounds::default());
    let drain = "POST /api/v1/backends/cli-1/drain";
    // DNS rebinding: the page's own name leads to this address.
    let rebound = "host: evil.example\r\ncontent-type: application/json\r\n";
    assert_eq!(served.ask(drain, rebound, "{}").await.0, 403);
    for path in ["/", "/metrics", "/api/v1/sessions", "/nothing"] {
        assert_eq!(
            served.ask(&format!("GET {path}"), rebound, "").await.0,
            403,
            "{path}"
        );
    }
    // A form, or a fetch without asking first, cannot say JSON.
    let form = "host: localhost\r\ncontent-type: text/plain\r\n";
    assert_eq!(served.ask(drain, form, "{}").await.0, 415);
    let foreign = format!("{CHANGE}origin: https://evil.example\r\n");
    assert_eq!(served.ask(drain, &foreign, "{}").await.0, 403);
    assert_eq!(served.stage.backends()[0].state, "ready");
    let audited = served.audited();
    assert_eq!(audited.len(), 3);
    assert!(
        audited
            .iter()
            .all(|(action, ok)| action == "drain cli-1" && !ok)
    );
    let own = format!("{CHANGE}origin: http://localhost\r\n");
    assert_eq!(served.ask(drain, &own, "{}").await.0, 200);
}

#[tokio::test]
async fn the_token_guards_the_api() {
    let served = serve(Some("open sesame"), Bounds::default());
    let (status, head, _) = served.ask("GET /api/v1/sessions", LOCAL, "").await;
    assert_eq!(status, 401);
    assert!(head.contains("www-authenticate: bearer"), "{head}");
    let wrong = format!("{CHANGE}authorization: Bearer nope\r\n");
    assert_eq!(served.ask("POST /api/v1/reload", &wrong, "").await.0, 401);
    assert_eq!(served.audited(), [("reload".into(), false)]);
    let right = format!("{CHANGE}authorization: Bearer open sesame\r\n");
    assert_eq!(served.ask("GET /api/v1/sessions", &right, "").await.0, 200);
    assert_eq!(served.ask("POST /api/v1/reload", &right, "").await.0, 200);
    for path in ["/healthz", "/readyz", "/metrics", "/"] {
        assert_eq!(served.get(path).await.0, 200, "{path}");
    }
}

#[tokio::test]
async fn without_a_token_the_network_gets_no_api() {
    let served = serve_at("0.0.0.0:0", None, Bounds::default());
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(served.get(path).await.0, 200, "{path}");
    }
    for path in ["/", "/api/v1/backends", "/api/v1/config"] {
        let (status, body) = served.get(path).await;
        assert_eq!(
            (status, &body["error"]["code"]),
            (403, &json!("token_not_configured"))
        );
    }
    assert_eq!(served.post("/api/v1/reload", "").await.0, 403);
}

#[tokio::test]
async fn the_page_is_whole_and_runs_only_its_own_script() {
    let served = serve(None, Bounds::default());
    let (status, head, page) = served.ask("GET /", LOCAL, "").await;
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/html"), "{head}");
    let nonce = head
        .split("script-src 'nonce-")
        .nth(1)
        .unwrap()
        .split('\'')
        .next()
        .unwrap();
    assert_eq!(page.matches(&format!("nonce=\"{nonce}\"")).count(), 2);
    assert!(!page.contains("NONCE"));
    for outside in [
        "http://",
        "https://",
        "src=",
        "<link",
        "@import",
        "innerHTML",
    ] {
        assert!(!page.contains(outside), "{outside}");
    }
    let (_, again, _) = served.ask("GET /", LOCAL, "").await;
    assert!(!again.contains(nonce), "a nonce is used once");
}

#[tokio::test]
async fn too_much_is_refused() {
    let served = serve(None, Bounds::default());
    let long = format!("{LOCAL}x: {}\r\n", "x".repeat(20 * 1024));
    assert_eq!(served.ask("GET /healthz", &long, "").await.0, 431);
    let many: String = (0..70).map(|i| format!("x-{i}: 1\r\n")).collect();
    assert_eq!(
        served
            .ask("GET /healthz", &format!("{LOCAL}{many}"), "")
            .await
            .0,
        431
    );
    let body = format!("{{\"x\":\"{}\"}}", "x".repeat(20 * 1024));
    let (status, _, answer) = served.ask("POST /api/v1/reload", CHANGE, &body).await;
    assert_eq!(status, 413, "{answer}");
    assert!(
        served
            .raw(b"\x16\x03\x01garbage\r\n\r\n")
            .await
            .starts_with("HTTP/1.1 400")
    );
    assert_eq!(served.get("/healthz").await.0, 200);
}

fn hasty() -> Bounds {
    let soon = Duration::from_millis(50);
    Bounds {
        head_timeout: soon,
        body_timeout: soon,
        last_answer: soon,
        ..Bounds::default()
    }
}

#[tokio::test]
async fn slow_clients_are_let_go() {
    let served = serve(None, hasty());
    // Half a head, half a body, nothing at all, nothing after an answer.
    let half = served.raw(b"GET /healthz HTTP/1.1\r\nhost:").await;
    assert!(
        half.is_empty() || half.starts_with("HTTP/1.1 408"),
        "{half}"
    );
    let half = "POST /api/v1/reload HTTP/1.1\r\nhost: localhost\r\n\
                content-type: application/json\r\ncontent-length: 9\r\n\r\n{";
    assert!(
        served
            .raw(half.as_bytes())
            .await
            .starts_with("HTTP/1.1 408")
    );
    assert_eq!(served.raw(b"").await, "");
    let idle = served
        .raw(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await;
    assert!(idle.starts_with("HTTP/1.1 200"), "{idle}");
}

#[tokio::test]
async fn a_connection_has_an_end() {
    let bounds = Bounds {
        lifetime: Duration::from_millis(50),
        ..Bounds::default()
    };
    let served = serve(None, bounds);
    let answer = served
        .raw(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let served = serve(
        None,
        Bounds {
            connections: 1,
            ..Bounds::default()
        },
    );
    let mut first = TcpStream::connect(served.address).await.unwrap();
    // It asked, and is awaited: its body is not whole.
    first
        .write_all(
            b"POST /api/v1/reload HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\n\
              content-type: application/json\r\ncontent-length: 9\r\n\r\n",
        )
        .await
        .unwrap();
    // Once its body is asked for, the first surely is being answered.
    first.read_u8().await.unwrap();
    let mut second = TcpStream::connect(served.address).await.unwrap();
    assert!(rest(&mut second).await.starts_with("HTTP/1.1 503"));
    drop(first);
    // The seat is free once the server has seen the end of the first.
    let again = async {
        while served.get_status().await != 200 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, again)
        .await
        .expect("the seat is given back");
}

impl Served {
    /// Of a health check; 0 if the connection was reset before its answer was read.
    async fn get_status(&self) -> u16 {
        let request = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let _ = stream.write_all(request).await;
        let answer = rest(&mut stream).await;
        answer
            .split(' ')
            .nth(1)
            .map_or(0, |status| status.parse().unwrap())
    }
}

#[tokio::test]
async fn shutdown_ends_idle_connections_and_the_server() {
    let served = serve(None, Bounds::default());
    let mut idle = TcpStream::connect(served.address).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    idle.read_u8().await.unwrap();
    served.shutdown.cancel();
    rest(&mut idle).await;
    timeout(PATIENCE, served.task)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(TcpStream::connect(served.address).await.is_err());
}

#[test]
fn a_thread_of_its_own_and_a_taken_address() {
    let bound = AdminServer::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = bound.address();
    let clash = AdminServer::bind(address).unwrap_err();
    assert_eq!(clash.kind(), io::ErrorKind::AddrInUse);
    let shutdown = CancellationToken::new();
    let thread = AdminServer::start(bound, Arc::new(Stage::new()), None, shutdown.clone()).unwrap();
    let client = client::AdminClient::for_listener(address, None);
    let probe = client::Command::Healthcheck(client::Probe::Pool);
    let told = client.run_blocking(&probe, client::Output::Table);
    assert_eq!(told.unwrap(), "ok\n");
    shutdown.cancel();
    thread.join().unwrap().unwrap();
}
