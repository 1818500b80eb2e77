//! What stands on both sides of Taxiway in these tests: tiny CLI processes and a tiny client. The
//! processes know the rules of provider places (PROTOCOL §4c) and nothing of sessions.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};

use crate::core::frame::{Cut, Cutter, FrameLimits, write_header};

/// Longer than anything here takes; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what)
        .await
        .expect("it happens soon")
}

fn framed(body: &str) -> Vec<u8> {
    let mut frame = Vec::new();
    write_header(body.len(), &mut frame);
    frame.extend_from_slice(body.as_bytes());
    frame
}

/// Frames of one socket.
struct Frames<R> {
    reader: R,
    cutter: Cutter,
    buffer: Vec<u8>,
}

impl<R: AsyncReadExt + Unpin> Frames<R> {
    fn new(reader: R) -> Self {
        let limits = FrameLimits {
            header: 1024,
            frame: 1 << 28,
        };
        Self {
            reader,
            cutter: Cutter::new(limits),
            buffer: Vec::new(),
        }
    }

    async fn next(&mut self) -> Option<String> {
        loop {
            if let Cut::Frame { body, .. } = self.cutter.cut(&self.buffer).unwrap() {
                let text = String::from_utf8(self.buffer[body.clone()].to_vec()).unwrap();
                self.buffer.drain(..body.end);
                return Some(text);
            }
            if self.reader.read_buf(&mut self.buffer).await.ok()? == 0 {
                return None;
            }
        }
    }
}

#[derive(Default)]
struct Process {
    /// Which connection holds each place; never given back.
    places: HashMap<String, usize>,
    connections: HashMap<usize, mpsc::UnboundedSender<String>>,
    /// The error message with which every claim is refused.
    refusal: Option<String>,
}

/// A CLI process; ends when dropped.
pub(super) struct Cli {
    pub(super) address: SocketAddr,
    process: Arc<Mutex<Process>>,
    heard: mpsc::UnboundedReceiver<String>,
    tasks: JoinSet<()>,
}

impl Cli {
    pub(super) async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap()).await
    }

    pub(super) async fn start_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let process = Arc::new(Mutex::new(Process::default()));
        let (tell, heard) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        let shared = process.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            for number in 0.. {
                let Ok((socket, _)) = listener.accept().await else {
                    return;
                };
                connections.spawn(serve(number, socket, shared.clone(), tell.clone()));
            }
        });
        Self {
            address,
            process,
            heard,
            tasks,
        }
    }

    /// Ends the process; another may take its port at once.
    pub(super) async fn stop(mut self) {
        self.tasks.shutdown().await;
    }

    pub(super) fn refuse(&self, message: Option<&str>) {
        self.process.lock().unwrap().refusal = message.map(str::to_owned);
    }

    /// Sends `body` to whoever holds the place.
    pub(super) fn ask(&self, place: &str, body: &Value) {
        let process = self.process.lock().unwrap();
        let holder = process.places[place];
        process.connections[&holder].send(body.to_string()).unwrap();
    }

    /// The next frame that was neither `connect` nor about sessions.
    pub(super) async fn heard(&mut self) -> Value {
        let body = soon(self.heard.recv()).await.expect("the process runs");
        serde_json::from_str(&body).unwrap()
    }

    pub(super) fn has_heard_nothing(&mut self) -> bool {
        self.heard.try_recv().is_err()
    }
}

async fn serve(
    number: usize,
    socket: TcpStream,
    process: Arc<Mutex<Process>>,
    tell: mpsc::UnboundedSender<String>,
) {
    let (reader, mut writer) = socket.into_split();
    let mut frames = Frames::new(reader);
    let (sender, mut outgoing) = mpsc::unbounded_channel::<String>();
    process.lock().unwrap().connections.insert(number, sender);
    loop {
        tokio::select! {
            body = frames.next() => {
                let Some(body) = body else { return };
                let frame: Value = serde_json::from_str(&body).unwrap();
                let answer = answer(number, &frame, &process, &tell);
                if let Some(mut answer) = answer {
                    answer["jsonrpc"] = json!("2.0");
                    answer["id"] = frame["id"].clone();
                    writer.write_all(&framed(&answer.to_string())).await.unwrap();
                }
            }
            Some(body) = outgoing.recv() => writer.write_all(&framed(&body)).await.unwrap(),
        }
    }
}

fn answer(
    number: usize,
    frame: &Value,
    process: &Mutex<Process>,
    tell: &mpsc::UnboundedSender<String>,
) -> Option<Value> {
    let method = frame["method"].as_str();
    let mut process = process.lock().unwrap();
    let error = |message: &str| {
        let method = method.unwrap_or_default();
        let message = format!("Request {method} failed with message: {message}");
        Some(json!({"error": {"code": -32603, "message": message}}))
    };
    match method {
        Some("connect") => Some(
            json!({"result": {"ok": true, "protocolVersion": 3, "version": "1.0.102",
                "taskKinds": ["agent", "shell"]}}),
        ),
        Some("session.create") => {
            Some(json!({"result": {"sessionId": frame["params"]["sessionId"]}}))
        }
        Some(
            place @ ("llmInference.setProvider"
            | "sessionFs.setProvider"
            | "registerExtensionLaunchProvider"
            | "plugins.builtin.set"),
        ) => {
            let _ = tell.send(frame.to_string());
            if let Some(refusal) = &process.refusal {
                return error(refusal);
            }
            if place == "plugins.builtin.set" {
                return Some(json!({"result": null}));
            }
            if *process.places.entry(place.to_owned()).or_insert(number) != number {
                return error("Another client is already the provider.");
            }
            Some(json!({"result": {"success": true}}))
        }
        Some(_) => {
            let _ = tell.send(frame.to_string());
            Some(json!({"result": {"accepted": true}}))
        }
        None => {
            let _ = tell.send(frame.to_string());
            None
        }
    }
}

/// A client of Taxiway.
pub(super) struct Client {
    frames: Frames<tokio::net::tcp::OwnedReadHalf>,
    writer: tokio::net::tcp::OwnedWriteHalf,
    next_id: u64,
    /// Requests that came while an answer was awaited.
    asked: std::collections::VecDeque<Value>,
}

impl Client {
    pub(super) async fn connect(address: SocketAddr) -> Self {
        let (reader, writer) = TcpStream::connect(address).await.unwrap().into_split();
        let frames = Frames::new(reader);
        Self {
            frames,
            writer,
            next_id: 0,
            asked: Default::default(),
        }
    }

    pub(super) async fn write(&mut self, body: &Value) {
        self.writer
            .write_all(&framed(&body.to_string()))
            .await
            .unwrap();
    }

    /// Writes a call and returns its id.
    pub(super) async fn start(&mut self, method: &str, params: Value) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let call = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        self.write(&call).await;
        id
    }

    pub(super) async fn answer_to(&mut self, id: u64) -> Value {
        let answer = self.answer_to_any().await;
        assert_eq!(answer["id"], json!(id), "{answer}");
        answer
    }

    pub(super) async fn answer_to_any(&mut self) -> Value {
        loop {
            let body = soon(self.frames.next())
                .await
                .expect("the connection is open");
            let frame: Value = serde_json::from_str(&body).unwrap();
            if frame.get("method").is_some() {
                self.asked.push_back(frame);
            } else {
                return frame;
            }
        }
    }

    pub(super) async fn call(&mut self, method: &str, params: Value) -> Value {
        let id = self.start(method, params).await;
        self.answer_to(id).await
    }

    /// The next request that Taxiway puts to this client.
    pub(super) async fn asked(&mut self) -> Value {
        if let Some(frame) = self.asked.pop_front() {
            return frame;
        }
        let body = soon(self.frames.next())
            .await
            .expect("the connection is open");
        let frame: Value = serde_json::from_str(&body).unwrap();
        assert!(frame.get("method").is_some(), "{frame}");
        frame
    }
}
