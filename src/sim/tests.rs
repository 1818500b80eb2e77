//! The simulated server against a small client of its own; the real one is compared elsewhere.

use std::time::Duration;

use bytes::BytesMut;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    Home, Misbehaviour, Order, SimOptions, SimServer, event,
    framing::{self, Cut},
};

/// No wait of these tests needs nearly as long.
const PATIENCE: Duration = Duration::from_secs(20);

struct Client {
    stream: TcpStream,
    buffer: BytesMut,
    last: u64,
    /// Frames that were read while waiting for another.
    read: Vec<Value>,
}

impl Client {
    async fn to(server: &SimServer) -> Self {
        let stream = TcpStream::connect(server.address()).await.unwrap();
        Self {
            stream,
            buffer: BytesMut::new(),
            last: 0,
            read: Vec::new(),
        }
    }

    async fn write(&mut self, bodies: &[Value]) {
        let mut out = Vec::new();
        for body in bodies {
            event::frame_into(&mut out, body.to_string().as_bytes());
        }
        self.stream.write_all(&out).await.unwrap();
    }

    fn request(&mut self, method: &str, params: Value) -> Value {
        self.last += 1;
        json!({"jsonrpc": "2.0", "id": self.last, "method": method, "params": params})
    }

    /// The next frame; `None` at the end of the stream.
    async fn frame(&mut self) -> Option<Value> {
        loop {
            if let Cut::Frame(body) = framing::cut(&mut self.buffer) {
                let value: Value = serde_json::from_slice(&body).unwrap();
                self.read.push(value.clone());
                return Some(value);
            }
            let read = self.stream.read_buf(&mut self.buffer);
            let read = tokio::time::timeout(PATIENCE, read)
                .await
                .expect("a frame comes");
            match read {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    async fn until(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let frame = self.frame().await.expect("the connection stays");
            if wanted(&frame) {
                return frame;
            }
        }
    }

    async fn call(&mut self, method: &str, params: Value) -> Value {
        let request = self.request(method, params);
        let id = request["id"].clone();
        self.write(&[request]).await;
        self.until(|frame| frame["id"] == id && frame.get("method").is_none())
            .await
    }

    async fn event(&mut self, kind: &str) -> Value {
        let event = self
            .until(|frame| frame["params"]["event"]["type"] == kind)
            .await;
        event["params"]["event"].clone()
    }

    /// Runs one turn to its end.
    async fn turn(&mut self, session: &str, prompt: &str) {
        self.call(
            "session.send",
            json!({"sessionId": session, "prompt": prompt}),
        )
        .await;
        self.event("session.idle").await;
    }

    fn events(&self) -> Vec<&str> {
        self.read
            .iter()
            .filter_map(|frame| frame["params"]["event"]["type"].as_str())
            .collect()
    }
}

fn message(answer: &Value) -> &str {
    answer["error"]["message"].as_str().unwrap_or_default()
}

async fn server(change: impl FnOnce(&mut SimOptions)) -> SimServer {
    let mut options = SimOptions::default();
    change(&mut options);
    SimServer::start(options).await.unwrap()
}

#[tokio::test]
async fn a_turn_has_the_order_of_the_real_one() {
    let server = server(|_| {}).await;
    let mut client = Client::to(&server).await;
    client
        .call("session.create", json!({"sessionId": "s"}))
        .await;
    // All notifications of the creation come before this answer.
    client.call("ping", json!({})).await;
    client.read.clear();
    client.turn("s", "[[len 2]]").await;
    let expected = [
        "pending_messages.modified",
        "pending_messages.modified",
        "session.title_changed",
        "session.tools_updated",
        "user.message",
        "system.message",
        "assistant.turn_start",
        "assistant.streaming_delta",
        "assistant.message_start",
        "assistant.message_delta",
        "assistant.streaming_delta",
        "assistant.message_delta",
        "assistant.usage",
        "assistant.message",
        "assistant.turn_end",
        "assistant.idle",
        "session.idle",
    ];
    assert_eq!(client.events(), expected);
    let updates = |frame: &&Value| frame["params"]["type"] == "session.updated";
    assert_eq!(client.read.iter().filter(updates).count(), 5);
}

#[tokio::test]
async fn eight_pings_in_one_write_are_answered_out_of_order() {
    let server = server(|_| {}).await;
    let mut client = Client::to(&server).await;
    let mut overtaken = false;
    for _ in 0..8 {
        let pings: Vec<_> = (0..8).map(|_| client.request("ping", json!({}))).collect();
        client.write(&pings).await;
        let mut ids = Vec::new();
        for _ in 0..8 {
            ids.push(client.frame().await.unwrap()["id"].as_u64().unwrap());
        }
        overtaken |= !ids.is_sorted();
        ids.sort_unstable();
        assert!(
            ids.windows(2).all(|pair| pair[0] + 1 == pair[1]),
            "each once: {ids:?}"
        );
    }
    assert!(overtaken);
}

#[tokio::test]
async fn order_can_be_kept() {
    let server = server(|options| options.order = Order::Kept).await;
    let mut client = Client::to(&server).await;
    let pings: Vec<_> = (0..64).map(|_| client.request("ping", json!({}))).collect();
    client.write(&pings).await;
    for ping in pings {
        assert_eq!(client.frame().await.unwrap()["id"], ping["id"]);
    }
}

#[tokio::test]
async fn a_shared_disk_is_seen_by_both_and_a_separate_one_is_not() {
    let home = Home::new();
    let one = server(|options| options.home = home.clone()).await;
    let two = server(|options| options.home = home.clone()).await;
    let three = server(|_| {}).await;
    let mut client = Client::to(&one).await;
    client
        .call("session.create", json!({"sessionId": "s"}))
        .await;
    client.turn("s", "hello").await;
    client
        .call("session.detach", json!({"sessionId": "s"}))
        .await;
    let mut other = Client::to(&two).await;
    let resumed = other
        .call("session.resume", json!({"sessionId": "s"}))
        .await;
    assert_eq!(resumed["result"]["sessionId"], "s");
    let messages = other
        .call("session.getMessages", json!({"sessionId": "s"}))
        .await;
    let told = messages["result"]["events"].to_string();
    assert!(told.contains("You said: hello"), "{told}");
    let mut stranger = Client::to(&three).await;
    let refused = stranger
        .call("session.resume", json!({"sessionId": "s"}))
        .await;
    assert_eq!(
        message(&refused),
        "Request session.resume failed with message: Failed to load session events: Session not found: s"
    );
}

#[tokio::test]
async fn the_end_of_the_last_connection_closes_the_session() {
    let server = server(|_| {}).await;
    let mut client = Client::to(&server).await;
    client
        .call("session.create", json!({"sessionId": "s"}))
        .await;
    let mut other = Client::to(&server).await;
    other
        .call("session.resume", json!({"sessionId": "s"}))
        .await;
    other.stream.shutdown().await.unwrap();
    while other.frame().await.is_some() {}
    assert_eq!(
        server.open_sessions(),
        ["s"],
        "one connection is still attached"
    );
    client.stream.shutdown().await.unwrap();
    while client.frame().await.is_some() {}
    // The end of the stream comes before the session is closed.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !server.open_sessions().is_empty() {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_kill_resets_connections_and_keeps_only_what_is_on_disk() {
    let home = Home::new();
    let server = server(|options| options.home = home.clone()).await;
    let mut client = Client::to(&server).await;
    client
        .call("session.create", json!({"sessionId": "done"}))
        .await;
    client.turn("done", "hello").await;
    client
        .call("session.create", json!({"sessionId": "empty"}))
        .await;
    server.kill();
    let mut end = [0; 1 << 16];
    let error = loop {
        match tokio::time::timeout(PATIENCE, client.stream.read(&mut end))
            .await
            .unwrap()
        {
            Ok(0) => panic!("an orderly end"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(home.sessions(), ["done"]);
    assert!(
        TcpStream::connect(server.address()).await.is_err(),
        "nobody listens"
    );
}

/// Else the kernel may give it to whoever asks next for any free one.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_port_of_a_killed_server_is_kept_for_its_successor() {
    let killed = server(|_| {}).await;
    let address = killed.address();
    killed.kill();
    let end = tokio::time::Instant::now() + PATIENCE;
    let refused = |error: std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
    // Its task has to come to that first.
    while !TcpStream::connect(address).await.is_err_and(refused) {
        assert!(tokio::time::Instant::now() < end, "it listens still");
        tokio::task::yield_now().await;
    }
    // As who asks for any free port does, and without its chance to be given another one.
    let stranger = tokio::net::TcpSocket::new_v4().unwrap();
    let taken = stranger.bind(address).unwrap_err();
    assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);
    let successor = server(|options| options.address = address).await;
    let mut client = Client::to(&successor).await;
    client.call("ping", json!({})).await;
}

#[tokio::test]
async fn a_send_is_lost_by_a_kill_right_after_its_answer() {
    let home = Home::new();
    let server = server(|options| options.home = home.clone()).await;
    let mut client = Client::to(&server).await;
    client
        .call("session.create", json!({"sessionId": "s"}))
        .await;
    let prompt = json!({"sessionId": "s", "prompt": "[[len 100]] [[slow 1000]]"});
    client.call("session.send", prompt).await;
    server.kill();
    assert!(home.sessions().is_empty());
}

#[tokio::test]
async fn a_paused_server_accepts_and_says_nothing() {
    let server = server(|_| {}).await;
    server.pause();
    let mut client = Client::to(&server).await;
    let ping = client.request("ping", json!({}));
    client.write(&[ping]).await;
    let silent = tokio::time::timeout(Duration::from_millis(200), client.frame()).await;
    assert!(silent.is_err(), "{silent:?}");
    server.resume();
    assert_eq!(client.frame().await.unwrap()["result"]["message"], "pong");
}

#[tokio::test]
async fn a_paused_server_can_be_killed() {
    let server = server(|_| {}).await;
    let mut client = Client::to(&server).await;
    client.call("ping", json!({})).await;
    server.pause();
    server.kill();
    assert!(client.frame().await.is_none());
}

#[tokio::test]
async fn faults_come_as_ordered() {
    let server = server(|_| {}).await;
    let mut client = Client::to(&server).await;
    let method = || Some("status.get".to_owned());
    server.misbehave(Misbehaviour::WrongId { method: method() });
    let request = client.request("status.get", json!({}));
    client.write(&[request]).await;
    assert_eq!(client.frame().await.unwrap()["id"], 987_654_321);
    server.misbehave(Misbehaviour::Silence { method: method() });
    let request = client.request("status.get", json!({}));
    client.write(&[request]).await;
    assert_eq!(
        client.call("ping", json!({})).await["result"]["message"],
        "pong"
    );
    server.behave();
    assert!(
        client
            .call("status.get", json!({}))
            .await
            .get("result")
            .is_some()
    );
    server.misbehave(Misbehaviour::HalfFrame { method: None });
    let requests = [
        client.request("ping", json!({})),
        client.request("ping", json!({})),
    ];
    client.write(&requests).await;
    let cut = tokio::time::timeout(Duration::from_millis(200), client.frame()).await;
    assert!(cut.is_err(), "half a frame is no frame");
    assert!(client.buffer.starts_with(b"Content-Length: "));
}

#[tokio::test]
async fn abort_drops_the_queue_and_ends_the_turn() {
    let server = server(|_| {}).await;
    let mut client = Client::to(&server).await;
    client
        .call("session.create", json!({"sessionId": "s"}))
        .await;
    let prompt = json!({"sessionId": "s", "prompt": "[[len 100000]] [[slow 1]]"});
    client.call("session.send", prompt).await;
    client.event("assistant.message_delta").await;
    client
        .call(
            "session.send",
            json!({"sessionId": "s", "prompt": "queued"}),
        )
        .await;
    client
        .call("session.abort", json!({"sessionId": "s"}))
        .await;
    let idle = client.event("session.idle").await;
    assert_eq!(idle["data"]["aborted"], true);
    let aborted = client
        .events()
        .iter()
        .position(|kind| *kind == "abort")
        .unwrap();
    let after = &client.events()[aborted..];
    assert!(!after.contains(&"assistant.message_delta"), "{after:?}");
    assert!(!after.contains(&"user.message"), "{after:?}");
    client.turn("s", "again").await;
}

#[tokio::test]
async fn a_pending_tool_call_survives_a_move_to_another_server() {
    let home = Home::new();
    let one = server(|options| {
        options.home = home.clone();
        options.flush_after = Duration::ZERO;
    })
    .await;
    let mut client = Client::to(&one).await;
    let tools = json!([{"name": "t", "skipPermission": true}]);
    client
        .call("session.create", json!({"sessionId": "s", "tools": tools}))
        .await;
    client
        .call(
            "session.send",
            json!({"sessionId": "s", "prompt": "[[tool t {}]]"}),
        )
        .await;
    let requested = client.event("external_tool.requested").await;
    let on_disk = || {
        home.load("s").is_some_and(|record| {
            record
                .events
                .iter()
                .any(|event| event.contains("external_tool.requested"))
        })
    };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !on_disk() {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
    one.kill();
    let two = server(|options| options.home = home.clone()).await;
    let mut client = Client::to(&two).await;
    let params = json!({"sessionId": "s", "tools": tools, "continuePendingWork": true});
    client.call("session.resume", params).await;
    let request = &requested["data"]["requestId"];
    let answer = json!({"sessionId": "s", "requestId": request, "result": "ok"});
    let answered = client
        .call("session.tools.handlePendingToolCall", answer)
        .await;
    assert_eq!(answered["result"]["success"], true);
    let complete = client.event("tool.execution_complete").await;
    assert_eq!(complete["data"]["result"]["content"], "ok");
    client.event("session.idle").await;
}

#[tokio::test]
async fn arrivals_are_noted_in_order() {
    let server = server(|_| {}).await;
    let mut client = Client::to(&server).await;
    client.call("ping", json!({})).await;
    client
        .call("session.create", json!({"sessionId": "s"}))
        .await;
    let seen: Vec<_> = server
        .seen()
        .into_iter()
        .map(|seen| (seen.connection, seen.method, seen.session))
        .collect();
    let expected = [
        (1, "ping".to_owned(), None),
        (1, "session.create".to_owned(), Some("s".to_owned())),
    ];
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn shutdown_by_a_client_ends_the_server() {
    let server = server(|_| {}).await;
    let mut client = Client::to(&server).await;
    assert_eq!(
        client.call("runtime.shutdown", json!({})).await["result"],
        Value::Null
    );
    assert!(client.frame().await.is_none());
    tokio::time::timeout(PATIENCE, server.ended())
        .await
        .unwrap();
    server.stop().await;
}
