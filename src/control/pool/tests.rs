//! The pool against scripted servers: what it publishes, asks, keeps and tells.

use std::{
    future::Future,
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::broadcast,
    task::JoinHandle,
};

use super::*;
use crate::core::id::Secret;

mod operators;
mod release;
mod reload;

const PATIENCE: Duration = Duration::from_secs(20);

/// How the fake server meets what it reads.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Manner {
    Serve,
    /// As a stopped process: accepts, reads and answers nothing until it serves again.
    Stopped,
    /// Answers no ping, but tells of sessions all the time.
    Busy,
    /// Answers everything but `sessions.close`.
    Clings,
    Garbage,
    /// Answers with an id that nobody used.
    WrongId,
    /// Answers the half, then closes.
    Half,
}

struct Wishes {
    manner: watch::Sender<Manner>,
    sessions: Mutex<Vec<String>>,
    token: Option<&'static str>,
    protocol_version: u32,
    accepted: AtomicUsize,
    calls: Mutex<Vec<Value>>,
    /// Bodies for every connection.
    push: broadcast::Sender<Value>,
}

/// A server that speaks as much of the protocol as a control connection hears.
struct Fake {
    address: SocketAddr,
    wishes: Arc<Wishes>,
    task: JoinHandle<()>,
}

impl Fake {
    async fn start() -> Self {
        Self::start_with(3, None, "127.0.0.1:0".parse().unwrap()).await
    }

    async fn start_with(
        protocol_version: u32,
        token: Option<&'static str>,
        address: SocketAddr,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let wishes = Arc::new(Wishes {
            manner: watch::Sender::new(Manner::Serve),
            sessions: Mutex::new(Vec::new()),
            token,
            protocol_version,
            accepted: AtomicUsize::new(0),
            calls: Mutex::new(Vec::new()),
            push: broadcast::Sender::new(64),
        });
        let shared = wishes.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                shared.accepted.fetch_add(1, Ordering::SeqCst);
                connections.spawn(serve(stream, shared.clone()));
            }
        });
        Self {
            address,
            wishes,
            task,
        }
    }

    fn be(&self, manner: Manner) {
        self.wishes.manner.send_replace(manner);
    }

    fn list(&self, ids: &[&str]) {
        *self.wishes.sessions.lock().unwrap() = ids.iter().map(|id| id.to_string()).collect();
    }

    /// Ends it like a killed process: the listener and all connections at once.
    async fn kill(self) -> SocketAddr {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
        self.address
    }

    fn called(&self, method: &str) -> usize {
        self.wishes
            .calls
            .lock()
            .unwrap()
            .iter()
            .filter(|c| c["method"] == method)
            .count()
    }
}

fn frame(body: &Value) -> Vec<u8> {
    let body = body.to_string();
    format!("Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

async fn serve(stream: TcpStream, wishes: Arc<Wishes>) {
    let (mut read, mut write) = stream.into_split();
    let mut manner = wishes.manner.subscribe();
    let mut pushed = wishes.push.subscribe();
    let mut inbox = Vec::new();
    loop {
        manner.wait_for(|m| *m != Manner::Stopped).await.unwrap();
        let call = tokio::select! {
            _ = manner.changed() => continue,
            Ok(body) = pushed.recv() => {
                if write.write_all(&frame(&body)).await.is_err() {
                    return;
                }
                continue;
            }
            read = read.read_buf(&mut inbox) => {
                if read.unwrap_or(0) == 0 {
                    return;
                }
                continue_with(&mut inbox)
            }
        };
        for call in call {
            let now = *manner.borrow();
            let answer = wishes.answer(&call);
            wishes.calls.lock().unwrap().push(call.clone());
            let bytes = match now {
                Manner::Serve | Manner::Stopped => frame(&answer),
                Manner::Busy if call["method"] == "ping" => {
                    frame(&lifecycle("session.updated", "b"))
                }
                Manner::Clings if call["method"] == "sessions.close" => Vec::new(),
                Manner::Busy | Manner::Clings => frame(&answer),
                Manner::Garbage => b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
                Manner::WrongId => frame(&json!({"jsonrpc":"2.0","id":4711,"result":{}})),
                Manner::Half => {
                    let whole = frame(&answer);
                    let _ = write.write_all(&whole[..whole.len() / 2]).await;
                    return;
                }
            };
            if write.write_all(&bytes).await.is_err() {
                return;
            }
        }
    }
}

fn continue_with(inbox: &mut Vec<u8>) -> Vec<Value> {
    let mut calls = Vec::new();
    while let Some(end) = memchr::memmem::find(inbox, b"\r\n\r\n") {
        let header = std::str::from_utf8(&inbox[..end]).unwrap();
        let length: usize = header
            .strip_prefix("Content-Length: ")
            .unwrap()
            .parse()
            .unwrap();
        if inbox.len() < end + 4 + length {
            break;
        }
        calls.push(serde_json::from_slice(&inbox[end + 4..end + 4 + length]).unwrap());
        inbox.drain(..end + 4 + length);
    }
    calls
}

impl Wishes {
    fn answer(&self, call: &Value) -> Value {
        let result = match call["method"].as_str().unwrap() {
            "connect" if call["params"].get("token").map(|t| t.as_str().unwrap()) != self.token => {
                let error = json!({"code": -32002, "message": "AUTHENTICATION_FAILED"});
                return json!({"jsonrpc": "2.0", "id": call["id"], "error": error});
            }
            "connect" => json!({
                "ok": true, "protocolVersion": self.protocol_version, "version": "1.0.102",
                "taskKinds": ["agent", "shell"],
            }),
            "session.list" => {
                let ids = self.sessions.lock().unwrap();
                let list: Vec<Value> = ids
                    .iter()
                    .map(|id| json!({"sessionId": id, "isRemote": false}))
                    .collect();
                json!({ "sessions": list })
            }
            "null" => Value::Null,
            "echo" => call["params"].clone(),
            "fail" => {
                let error = json!({"code": -32603, "message": "no", "data": {"a": 1}});
                return json!({"jsonrpc": "2.0", "id": call["id"], "error": error});
            }
            _ => json!({"protocolVersion": self.protocol_version}),
        };
        json!({"jsonrpc": "2.0", "id": call["id"], "result": result})
    }
}

fn lifecycle(kind: &str, session: &str) -> Value {
    json!({"jsonrpc":"2.0","method":"session.lifecycle","params":{"type":kind,"sessionId":session}})
}

/// Everything that the pool told.
#[derive(Default)]
struct Ears {
    heard: Mutex<Vec<String>>,
    more: tokio::sync::Notify,
    in_use: AtomicUsize,
    /// What backend `a` has to close.
    moved: Mutex<Vec<SessionId>>,
}

impl Ears {
    fn note(&self, line: String) {
        self.heard.lock().unwrap().push(line);
        self.more.notify_waiters();
    }

    async fn wait_for(&self, line: &str) {
        within(line, async {
            loop {
                let more = self.more.notified();
                if self.has(line) {
                    return;
                }
                more.await;
            }
        })
        .await;
    }

    fn has(&self, line: &str) -> bool {
        self.heard.lock().unwrap().iter().any(|l| l.contains(line))
    }
}

impl PoolSink for Ears {
    fn lifecycle(&self, backend: &BackendName, kind: &str, session: &SessionId, body: Bytes) {
        self.note(format!(
            "lifecycle {backend} {kind} {session} {}",
            body.len()
        ));
    }

    fn disk(&self, backend: &BackendName, sessions: &[SessionId]) {
        self.note(format!("disk {backend} {sessions:?}"));
    }

    fn backend_lost(&self, backend: &BackendName, how: Lost) {
        self.note(format!("lost {backend} {how:?}"));
    }

    fn given_up(&self, backend: &BackendName) {
        self.note(format!("given up {backend}"));
    }

    fn moved_from(&self, backend: &BackendName) -> Vec<SessionId> {
        match backend.as_str() {
            "a" => self.moved.lock().unwrap().clone(),
            _ => Vec::new(),
        }
    }

    fn cleaned(&self, backend: &BackendName, sessions: &[SessionId]) {
        let mut moved = self.moved.lock().unwrap();
        moved.retain(|id| !sessions.contains(id));
        self.note(format!("cleaned {backend} {}", sessions.len()));
    }

    fn operator(&self, backend: &BackendName, state: Option<AdminState>, weight: Option<u32>) {
        self.note(format!("operator {backend} {state:?} {weight:?}"));
    }

    fn in_use(&self, _backend: &BackendName) -> usize {
        self.in_use.load(Ordering::SeqCst)
    }

    fn event(&self, event: Event) {
        self.note(format!("{event:?}"));
    }
}

async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited in vain for {what}"),
    }
}

fn health() -> config::Health {
    config::Health {
        interval: Duration::from_millis(100),
        timeout: Duration::from_millis(100),
        unhealthy_after: 3,
        healthy_after: 2,
        slow_start: Duration::from_millis(200),
        max_ejected: 0.5,
    }
}

fn options(mode: Mode) -> PoolOptions {
    PoolOptions {
        disk_recheck: Duration::from_millis(100),
        disk_reread: Duration::from_millis(100),
        ..PoolOptions::new(mode, health())
    }
}

fn named(name: &str, address: impl ToString) -> config::Backend {
    config::Backend {
        name: name.into(),
        address: Arc::from(address.to_string()),
        weight: 1,
        state: AdminState::Ready,
        connection_token: None,
        proxy_protocol: None,
        tls: None,
    }
}

struct Bench {
    pool: Pool,
    ears: Arc<Ears>,
}

impl Bench {
    fn start(mode: Mode, backends: &[(&str, &Fake)]) -> Self {
        Self::start_with(
            options(mode),
            backends
                .iter()
                .map(|(name, fake)| named(name, fake.address))
                .collect(),
        )
    }

    fn start_with(options: PoolOptions, backends: Vec<config::Backend>) -> Self {
        let ears = Arc::new(Ears::default());
        Self {
            pool: Pool::start(options, backends, ears.clone()),
            ears,
        }
    }

    async fn until(&self, what: &str, holds: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let mut snapshots = self.pool.snapshots();
        within(what, async {
            snapshots.wait_for(|s| holds(s)).await.unwrap().clone()
        })
        .await
    }

    async fn until_health(&self, name: &str, health: Health) -> Arc<Snapshot> {
        let what = format!("{name} to be {health:?}");
        self.until(&what, |s| {
            s.get(&name.into()).is_some_and(|b| b.health == health)
        })
        .await
    }

    async fn ask(&self, name: &str, method: &str, params: &str) -> Result<Answer, AskError> {
        self.pool.ask(&name.into(), method, params, PATIENCE).await
    }
}

fn result(answer: Result<Answer, AskError>) -> String {
    match answer {
        Ok(Answer::Result(raw)) => raw.get().to_owned(),
        other => panic!("not a result: {other:?}"),
    }
}

#[tokio::test]
async fn a_backend_joins_with_its_versions_and_its_disk() {
    let fake = Fake::start().await;
    fake.list(&["s1", "s2"]);
    let bench = Bench::start(Mode::Sticky, &[("a", &fake)]);
    let snapshot = bench.until("its disk", |s| s.backends[0].disk_read).await;
    let backend = &snapshot.backends[0];
    assert_eq!(backend.health, Health::Up);
    assert_eq!(backend.protocol_version, Some(3));
    assert_eq!(backend.version.as_deref(), Some("1.0.102"));
    assert_eq!(backend.task_kinds.len(), 2);
    bench.ears.wait_for(r#"disk a ["s1", "s2"]"#).await;
    assert!(bench.ears.has("BackendAdded"));
    let connect = fake.wishes.calls.lock().unwrap()[0].clone();
    assert_eq!(
        connect["params"],
        json!({"supportedTaskKinds": ["agent", "client", "shell"]})
    );
    assert!(bench.pool.observations()[0].ping.is_some());
}

#[tokio::test]
async fn the_token_opens_the_door_and_a_wrong_one_is_told() {
    let any = "127.0.0.1:0".parse().unwrap();
    let fake = Fake::start_with(3, Some("to\"ken"), any).await;
    let mut right = named("right", fake.address);
    right.connection_token = Some(Secret::new("to\"ken"));
    let wrong = named("wrong", fake.address);
    let bench = Bench::start_with(options(Mode::Sticky), vec![right, wrong]);
    bench.until_health("right", Health::Up).await;
    bench.until_health("wrong", Health::Down).await;
    let reason = bench.pool.observations()[1].reason.clone().unwrap();
    assert!(reason.contains("-32002 AUTHENTICATION_FAILED"), "{reason}");
}

#[tokio::test]
async fn another_protocol_version_is_not_used() {
    let fake = Fake::start_with(2, None, "127.0.0.1:0".parse().unwrap()).await;
    let bench = Bench::start(Mode::Sticky, &[("old", &fake)]);
    let snapshot = bench.until_health("old", Health::Down).await;
    assert_eq!(snapshot.backends[0].protocol_version, Some(2));
    bench.ears.wait_for("protocol version 2 instead of 3").await;
    assert_eq!(
        bench.ask("old", "echo", "{}").await.unwrap_err(),
        AskError::Unusable
    );
}

#[tokio::test]
async fn questions_get_their_own_answers() {
    let fake = Fake::start().await;
    let bench = Bench::start(Mode::Sticky, &[("a", &fake)]);
    bench.until_health("a", Health::Up).await;
    let questions = (0..100).map(|i| {
        let bench = &bench;
        async move {
            let params = format!(r#"{{"n":{i}}}"#);
            assert_eq!(result(bench.ask("a", "echo", &params).await), params);
        }
    });
    let mut running: Vec<_> = questions.map(Box::pin).collect();
    for question in &mut running {
        question.await;
    }
    assert_eq!(result(bench.ask("a", "null", "{}").await), "null");
    match bench.ask("a", "fail", "{}").await {
        Ok(Answer::Error {
            code: -32603,
            message,
            raw,
        }) => {
            assert_eq!(message, "no");
            assert!(raw.get().contains(r#""data""#));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        bench.ask("nobody", "echo", "{}").await.unwrap_err(),
        AskError::Unusable
    );
}

#[tokio::test]
async fn a_question_to_a_stopped_backend_times_out_and_to_a_killed_one_is_lost() {
    let fake = Fake::start().await;
    let slow = config::Health {
        interval: Duration::from_secs(60),
        ..health()
    };
    let options = PoolOptions {
        health: slow,
        ..options(Mode::Sticky)
    };
    let bench = Bench::start_with(options, vec![named("a", fake.address)]);
    bench.until_health("a", Health::Up).await;
    fake.be(Manner::Stopped);
    let brief = Duration::from_millis(50);
    let answer = bench.pool.ask(&"a".into(), "echo", "{}", brief).await;
    assert_eq!(answer.unwrap_err(), AskError::TimedOut);
    let (answer, _) = tokio::join!(bench.ask("a", "echo", "{}"), fake.kill());
    assert_eq!(answer.unwrap_err(), AskError::Lost);
    // And whoever asks next is told the same, whatever is known of its health by then.
    let answer = bench.ask("a", "echo", "{}").await;
    assert_eq!(answer.unwrap_err(), AskError::Lost);
    bench.ears.wait_for("lost a Gone").await;
}

#[tokio::test]
async fn many_questions_at_once_wait_for_room() {
    let fake = Fake::start().await;
    let bench = Bench::start(Mode::Sticky, &[("a", &fake)]);
    bench.until_health("a", Health::Up).await;
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..MAX_COMMANDS * 6 {
        let pool = bench.pool.clone();
        asking.spawn(async move { pool.ask(&"a".into(), "echo", "{}", PATIENCE).await });
    }
    while let Some(answer) = within("an answer", asking.join_next()).await {
        answer.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_backend_ejected_for_silence_is_not_gone() {
    let fake = Fake::start().await;
    let bench = Bench::start(Mode::Sticky, &[("a", &fake)]);
    bench.until_health("a", Health::Up).await;
    bench.pool.apply(
        vec![named("a", fake.address)],
        config::Health {
            max_ejected: 1.0,
            ..health()
        },
    );
    fake.be(Manner::Stopped);
    bench.until_health("a", Health::Down).await;
    let answer = bench.ask("a", "echo", "{}").await;
    assert_eq!(answer.unwrap_err(), AskError::Unusable);
    assert!(!bench.ears.has("lost a Gone"));
}

#[tokio::test]
async fn lifecycle_events_are_passed_on() {
    let fake = Fake::start().await;
    let bench = Bench::start(Mode::Sticky, &[("a", &fake)]);
    bench
        .until("its disk", |s| s.backends.iter().any(|b| b.disk_read))
        .await;
    for body in [
        json!({"jsonrpc":"2.0","method":"host.event","params":{}}),
        json!({"jsonrpc":"2.0","method":"session.lifecycle","params":[1]}),
        json!({"jsonrpc":"2.0","id":"x","method":"hooks.invoke","params":{}}),
        lifecycle("session.created", "s1"),
        lifecycle("session.deleted", "s1"),
    ] {
        fake.wishes.push.send(body).unwrap();
    }
    let length = lifecycle("session.deleted", "s1").to_string().len();
    bench
        .ears
        .wait_for(&format!("lifecycle a session.deleted s1 {length}"))
        .await;
    assert!(bench.ears.has("lifecycle a session.created s1"));
    assert_eq!(bench.pool.current().backends[0].health, Health::Up);
}

#[tokio::test]
async fn a_stopped_backend_goes_and_comes_back() {
    let (a, b) = (Fake::start().await, Fake::start().await);
    let bench = Bench::start(Mode::Sticky, &[("a", &a), ("b", &b)]);
    bench.until_health("a", Health::Up).await;
    bench.until_health("b", Health::Up).await;
    let stopped = Instant::now();
    a.be(Manner::Stopped);
    let snapshot = bench.until_health("a", Health::Down).await;
    let bound = health().interval + health().timeout * health().unhealthy_after;
    // Room for a machine that is busy with other tests; the exact bound is tested in the core.
    assert!(
        stopped.elapsed() < bound + Duration::from_secs(2),
        "{:?}",
        stopped.elapsed()
    );
    assert!(!snapshot.panic);
    assert_eq!(snapshot.backends[1].health, Health::Up);
    bench.ears.wait_for("lost a Silent").await;
    a.be(Manner::Serve);
    let snapshot = bench.until_health("a", Health::Probation).await;
    assert!(snapshot.backends[0].weight_permille < 1000);
    let snapshot = bench.until_health("a", Health::Up).await;
    assert_eq!(snapshot.backends[0].weight_permille, 1000);
    // All on the connection of the beginning.
    assert_eq!(a.wishes.accepted.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_backend_stopped_before_it_was_known_is_down_and_not_flooded() {
    let fake = Fake::start().await;
    let settled = Fake::start().await;
    fake.be(Manner::Stopped);
    let bench = Bench::start(Mode::Sticky, &[("a", &fake), ("b", &settled)]);
    bench.until_health("a", Health::Down).await;
    assert_eq!(fake.wishes.accepted.load(Ordering::SeqCst), 1);
    fake.be(Manner::Serve);
    bench.until_health("a", Health::Up).await;
}

#[tokio::test]
async fn a_killed_backend_is_down_at_once_and_returns_on_its_port() {
    let (a, b) = (Fake::start().await, Fake::start().await);
    let bench = Bench::start(Mode::Sticky, &[("a", &a), ("b", &b)]);
    bench.until_health("a", Health::Up).await;
    let address = a.kill().await;
    let killed = Instant::now();
    bench.until_health("a", Health::Down).await;
    assert!(killed.elapsed() < health().interval + Duration::from_secs(2));
    bench.ears.wait_for("lost a Gone").await;
    let _again = Fake::start_with(3, None, address).await;
    bench.until_health("a", Health::Up).await;
    assert_eq!(bench.pool.current().backends[1].health, Health::Up);
}

#[tokio::test]
async fn a_closed_port_is_down_long_before_an_interval() {
    let free = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let slow = config::Health {
        interval: Duration::from_secs(60),
        ..health()
    };
    let options = PoolOptions {
        health: slow,
        ..options(Mode::Sticky)
    };
    let bench = Bench::start_with(options, vec![named("a", free)]);
    bench.until_health("a", Health::Down).await;
    bench.ears.wait_for("cannot be connected to").await;
}

#[tokio::test]
async fn busy_is_slow_and_not_dead() {
    let fake = Fake::start().await;
    let bench = Bench::start(Mode::Sticky, &[("a", &fake)]);
    bench.until_health("a", Health::Up).await;
    fake.be(Manner::Busy);
    let snapshot = bench.until_health("a", Health::Slow).await;
    assert!(snapshot.backends[0].takes_placements());
    assert!(snapshot.backends[0].weight_permille < 1000);
    // Frames that only the data plane sees count as much.
    fake.be(Manner::Stopped);
    let activity = bench.pool.activity(&"a".into()).unwrap();
    let marking = tokio::spawn(async move {
        loop {
            activity.mark();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let long = (health().interval + health().timeout * health().unhealthy_after) * 2;
    let down = tokio::time::timeout(long, bench.until_health("a", Health::Down)).await;
    assert!(down.is_err(), "taken for dead");
    marking.abort();
    // Alone in its pool, a silent backend stays in placement; its judgement is in the panic flag.
    bench
        .until("panic", |s| s.panic && s.backends[0].health == Health::Slow)
        .await;
    fake.be(Manner::Serve);
    bench.until_health("a", Health::Up).await;
}

#[tokio::test]
async fn nonsense_ejects_and_is_told() {
    for (manner, what) in [
        (Manner::Garbage, "header"),
        (Manner::WrongId, "never made"),
        (Manner::Half, "closed its connections"),
    ] {
        let (bad, good) = (Fake::start().await, Fake::start().await);
        let bench = Bench::start(Mode::Sticky, &[("bad", &bad), ("good", &good)]);
        bench.until_health("bad", Health::Up).await;
        bench.until_health("good", Health::Up).await;
        bad.be(manner);
        bench.until_health("bad", Health::Down).await;
        bench.ears.wait_for(what).await;
        bench.ears.wait_for("lost bad").await;
        bad.be(Manner::Serve);
        bench.until_health("bad", Health::Up).await;
        assert!(
            !bench.ears.has(r#"backend: "good", from: Up"#),
            "{manner:?}"
        );
    }
}

#[tokio::test]
async fn reports_of_the_data_plane_eject() {
    let fake = Fake::start().await;
    let bench = Bench::start(Mode::Sticky, &[("a", &fake)]);
    bench.until_health("a", Health::Up).await;
    bench
        .pool
        .report_violation(&"a".into(), "sent half a frame");
    bench.until_health("a", Health::Down).await;
    bench.ears.wait_for("sent half a frame").await;
    bench.ears.wait_for("lost a Violation").await;
    bench.until_health("a", Health::Up).await;

    for _ in 0..health().unhealthy_after {
        bench.pool.report_connect_failed(&"a".into());
    }
    bench.until_health("a", Health::Down).await;
    bench.until_health("a", Health::Up).await;
}

#[tokio::test]
async fn too_many_silent_backends_stay_in_placement() {
    let fakes = [
        Fake::start().await,
        Fake::start().await,
        Fake::start().await,
    ];
    let names = ["a", "b", "c"];
    let bench = Bench::start(
        Mode::Sticky,
        &std::array::from_fn::<_, 3, _>(|i| (names[i], &fakes[i])),
    );
    for name in names {
        bench.until_health(name, Health::Up).await;
    }
    fakes[0].be(Manner::Stopped);
    fakes[1].be(Manner::Stopped);
    let snapshot = bench.until("panic", |s| s.panic).await;
    let health: Vec<Health> = snapshot.backends.iter().map(|b| b.health).collect();
    assert_eq!(
        health.iter().filter(|h| **h == Health::Down).count(),
        1,
        "{health:?}"
    );
    assert_eq!(
        snapshot
            .backends
            .iter()
            .filter(|b| b.takes_placements())
            .count(),
        2
    );
    fakes[0].be(Manner::Serve);
    fakes[1].be(Manner::Serve);
    bench
        .until("calm", |s| {
            !s.panic && s.backends.iter().all(|b| b.health == Health::Up)
        })
        .await;
}

#[tokio::test]
async fn shared_storage_keeps_a_backend_with_another_disk_out() {
    let (a, b) = (Fake::start().await, Fake::start().await);
    a.list(&["s1", "s2"]);
    b.list(&["s2"]);
    let bench = Bench::start(Mode::SharedStorage, &[("a", &a)]);
    bench.until_health("a", Health::Up).await;
    bench
        .pool
        .apply(vec![named("a", a.address), named("b", b.address)], health());
    let snapshot = bench.until_health("b", Health::StorageMismatch).await;
    assert!(!snapshot.backends[1].takes_placements());
    assert_eq!(snapshot.backends[0].health, Health::Up);
    bench.ears.wait_for("does not list sessions").await;
    b.list(&["s2", "s1", "s3"]);
    bench.until_health("b", Health::Up).await;
    // A disk that is lost later is seen too, and the first that shows it is not used.
    a.list(&[]);
    bench
        .until("a mismatch", |s| {
            s.backends
                .iter()
                .filter(|b| b.health == Health::StorageMismatch)
                .count()
                == 1
        })
        .await;
}

#[tokio::test]
async fn separate_disks_that_join_together_are_seen() {
    let (a, b) = (Fake::start().await, Fake::start().await);
    a.list(&["s1"]);
    b.list(&["s2"]);
    let bench = Bench::start(Mode::SharedStorage, &[("a", &a), ("b", &b)]);
    let snapshot = bench
        .until("one of them out", |s| {
            s.backends
                .iter()
                .any(|b| b.health == Health::StorageMismatch)
                && s.backends.iter().any(|b| b.health == Health::Up)
        })
        .await;
    assert_eq!(snapshot.mode, Mode::SharedStorage);
}

#[tokio::test]
async fn sessions_deleted_meanwhile_are_no_mismatch() {
    let (a, b) = (Fake::start().await, Fake::start().await);
    a.list(&["s1", "s2"]);
    // Not read again in this test: what is known of it grows old.
    let options = PoolOptions {
        disk_reread: PATIENCE * 2,
        ..options(Mode::SharedStorage)
    };
    let bench = Bench::start_with(options, vec![named("a", a.address)]);
    bench.until_health("a", Health::Up).await;
    a.list(&["s1"]);
    b.list(&["s1"]);
    bench
        .pool
        .apply(vec![named("a", a.address), named("b", b.address)], health());
    bench.until_health("b", Health::Up).await;
    assert!(!bench.ears.has("StorageMismatch"));
}

#[tokio::test]
async fn operators_win_until_reset() {
    let fake = Fake::start().await;
    let bench = Bench::start(Mode::Sticky, &[("a", &fake)]);
    let pool = &bench.pool;
    let admin = || {
        (
            pool.current().backends[0].admin,
            pool.current().backends[0].weight,
        )
    };
    assert_eq!(admin(), (AdminState::Ready, 1));
    pool.set_admin("a", Some(AdminState::Drain), "api").unwrap();
    pool.set_weight("a", Some(7)).unwrap();
    assert_eq!(admin(), (AdminState::Drain, 7));
    assert!(bench.ears.has(r#"from: Ready, to: Drain, by: "api""#));

    let mut file = named("a", fake.address);
    file.weight = 3;
    file.state = AdminState::Maint;
    pool.apply(vec![file], health());
    assert_eq!(admin(), (AdminState::Drain, 7));
    pool.set_admin("a", None, "api").unwrap();
    pool.set_weight("a", None).unwrap();
    assert_eq!(admin(), (AdminState::Maint, 3));
    assert_eq!(pool.observations()[0].operator, None);

    assert_eq!(pool.set_weight("a", Some(0)), Err(PoolError::ZeroWeight));
    let unknown = pool.set_admin("b", None, "api");
    assert_eq!(unknown, Err(PoolError::UnknownBackend("b".into())));
}

#[tokio::test]
async fn stopping_ends_every_connection() {
    let fake = Fake::start().await;
    let bench = Bench::start(Mode::Sticky, &[("a", &fake)]);
    bench.until_health("a", Health::Up).await;
    assert_eq!(fake.wishes.push.receiver_count(), 1);
    bench.pool.stop();
    assert!(bench.pool.current().backends.is_empty());
    within("its connection to end", async {
        while fake.wishes.push.receiver_count() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    bench.pool.apply(vec![named("a", fake.address)], health());
    assert!(bench.pool.current().backends.is_empty());
}

#[tokio::test]
async fn an_empty_pool_is_not_in_a_panic() {
    let bench = Bench::start_with(options(Mode::Sticky), vec![]);
    assert!(!bench.pool.current().panic);
}
