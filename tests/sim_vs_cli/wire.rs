//! A client that sees raw bodies, and the masks that make two servers' words comparable.

use std::{
    net::SocketAddr,
    sync::{Arc, LazyLock, Mutex, MutexGuard},
    time::Duration,
};

use regex::Regex;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

/// No answer of either server takes nearly as long.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long nothing must come before nothing is believed to come.
const QUIET: Duration = Duration::from_millis(300);

/// What a connection has received.
#[derive(Default)]
struct Received {
    bodies: Vec<String>,
    ended: bool,
}

/// One connection.
pub(crate) struct Wire {
    write: OwnedWriteHalf,
    received: Arc<Mutex<Received>>,
    changed: watch::Receiver<usize>,
    last: u64,
}

impl Wire {
    /// Connects and starts to listen.
    pub(crate) async fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address)
            .await
            .expect("the server accepts");
        let (read, write) = stream.into_split();
        let received = Arc::new(Mutex::new(Received::default()));
        let (tell, changed) = watch::channel(0);
        tokio::spawn(listen(read, received.clone(), tell));
        Self {
            write,
            received,
            changed,
            last: 0,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Received> {
        self.received.lock().expect("no panic while locked")
    }

    /// Writes bytes as they are.
    pub(crate) async fn raw(&mut self, bytes: &[u8]) {
        // The server may have closed already, which the transcript will tell.
        let _ = self.write.write_all(bytes).await;
    }

    /// Writes one frame.
    pub(crate) async fn frame(&mut self, body: &[u8]) {
        let mut frame = format!("Content-Length: {}\r\n\r\n", body.len()).into_bytes();
        frame.extend_from_slice(body);
        self.raw(&frame).await;
    }

    /// Half-closes.
    pub(crate) async fn finish(&mut self) {
        self.write.shutdown().await.expect("still connected");
    }

    /// How many bodies have come.
    pub(crate) fn mark(&self) -> usize {
        self.lock().bodies.len()
    }

    /// The bodies since `mark`.
    pub(crate) fn since(&self, mark: usize) -> Vec<String> {
        self.lock().bodies[mark..].to_vec()
    }

    /// Whether the server has closed its side.
    pub(crate) fn ended(&self) -> bool {
        self.lock().ended
    }

    /// Waits until something holds of what has come since `mark`.
    pub(crate) async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let mut changed = self.changed.clone();
        let waits = async {
            loop {
                changed.borrow_and_update();
                if holds(self) {
                    return;
                }
                if changed.changed().await.is_err() {
                    assert!(holds(self), "the connection ended before {what}");
                    return;
                }
            }
        };
        if tokio::time::timeout(PATIENCE, waits).await.is_err() {
            panic!(
                "no {what}; came: {:#?}",
                self.since(0).iter().rev().take(8).collect::<Vec<_>>()
            );
        }
    }

    /// Waits for the end of the connection.
    pub(crate) async fn end(&mut self) {
        self.until("end", Self::ended).await;
    }

    /// Waits for a body that holds all `parts`; returns the first since `mark`.
    pub(crate) async fn body(&mut self, mark: usize, parts: &[&str]) -> String {
        let find = |wire: &Self| {
            let since = wire.since(mark);
            since
                .into_iter()
                .find(|body| parts.iter().all(|part| body.contains(part)))
        };
        self.until(&format!("{parts:?}"), |wire| find(wire).is_some())
            .await;
        find(self).expect("just found")
    }

    /// Waits for `count` events of a kind.
    pub(crate) async fn events(&mut self, mark: usize, kind: &str, count: usize) {
        let wanted = format!("\"event\":{{\"type\":\"{kind}\"");
        let found = |wire: &Self| {
            wire.since(mark)
                .iter()
                .filter(|body| body.contains(&wanted))
                .count()
        };
        self.until(kind, |wire| found(wire) >= count).await;
    }

    /// Waits for one event of a kind; returns its `data`.
    pub(crate) async fn event(&mut self, mark: usize, kind: &str) -> Value {
        let body = self
            .body(mark, &[&format!("\"event\":{{\"type\":\"{kind}\"")])
            .await;
        let body: Value = serde_json::from_str(&body).expect("JSON");
        body["params"]["event"]["data"].clone()
    }

    /// Waits until nothing has come for a while.
    pub(crate) async fn quiet(&mut self) {
        self.quiet_for(QUIET).await;
    }

    /// Waits until nothing has come for `pause`.
    pub(crate) async fn quiet_for(&mut self, pause: Duration) {
        let mut changed = self.changed.clone();
        changed.borrow_and_update();
        while let Ok(Ok(())) = tokio::time::timeout(pause, changed.changed()).await {}
    }

    /// Waits until one of two connections has more than what was seen of it.
    pub(crate) async fn either(one: &mut Self, seen_one: usize, two: &mut Self, seen_two: usize) {
        tokio::select! {
            () = one.until("another body", |wire| wire.mark() > seen_one) => {}
            () = two.until("another body", |wire| wire.mark() > seen_two) => {}
        }
    }

    /// Sends a request without waiting; returns its id.
    pub(crate) async fn request(&mut self, method: &str, params: Option<&Value>) -> u64 {
        self.last += 1;
        let mut body = json!({"jsonrpc": "2.0", "id": self.last, "method": method});
        if let Some(params) = params {
            body["params"] = params.clone();
        }
        self.frame(body.to_string().as_bytes()).await;
        self.last
    }

    /// Waits for an answer; returns its body.
    pub(crate) async fn answer(&mut self, id: u64) -> String {
        let (result, error) = (
            format!("\"id\":{id},\"result\":"),
            format!("\"id\":{id},\"error\":"),
        );
        let find = |wire: &Self| {
            let since = wire.since(0);
            since
                .into_iter()
                .rev()
                .find(|body| body.contains(&result) || body.contains(&error))
        };
        self.until(&format!("answer {id}"), |wire| find(wire).is_some())
            .await;
        find(self).expect("just found")
    }

    /// Calls; returns what of the answer's body stands behind its id.
    pub(crate) async fn call(&mut self, method: &str, params: Value) -> String {
        let id = self.request(method, Some(&params)).await;
        let body = self.answer(id).await;
        let start = format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},");
        body.strip_prefix(&start).unwrap_or(&body).to_owned()
    }
}

async fn listen(read: OwnedReadHalf, received: Arc<Mutex<Received>>, tell: watch::Sender<usize>) {
    let mut read = BufReader::new(read);
    loop {
        let body = body(&mut read).await;
        let mut received = received.lock().expect("no panic while locked");
        match body {
            Some(body) => received.bodies.push(body),
            None => received.ended = true,
        }
        tell.send_modify(|count| *count += 1);
        if received.ended {
            return;
        }
    }
}

async fn body(read: &mut BufReader<OwnedReadHalf>) -> Option<String> {
    let mut head = String::new();
    read.read_line(&mut head)
        .await
        .ok()
        .filter(|read| *read > 0)?;
    let length = head
        .strip_prefix("Content-Length: ")
        .expect("the one header")
        .trim();
    let mut blank = String::new();
    read.read_line(&mut blank).await.ok()?;
    assert_eq!(blank, "\r\n", "one header only");
    let mut body = vec![0; length.parse().expect("a length")];
    read.read_exact(&mut body).await.ok()?;
    Some(String::from_utf8(body).expect("UTF-8"))
}

/// `text` without what differs from run to run: ids, times, paths.
pub(crate) fn masked(text: &str) -> String {
    static MASKS: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
        let masks = [
            (r"\d{4}-\d\d-\d\dT[0-9:.]+(Z|\+00:00)", "<time>"),
            (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "<uuid>"),
            (r#""timestamp":\d+"#, r#""timestamp":0"#),
            (r#""/[^"]*""#, r#""<path>""#),
            (r"call_[0-9a-f]{16}", "<call>"),
            (r"chatcmpl-\w+", "<completion>"),
            (r#""(freedBytes|sizes)":\{[^}]*\}"#, r#""$1":{…}"#),
            (r#""eventsFileSizeBytes":\d+"#, r#""eventsFileSizeBytes":0"#),
            (r#""eventCount":\d+"#, r#""eventCount":0"#),
        ];
        let compiled = masks.into_iter();
        compiled
            .map(|(mask, with)| (Regex::new(mask).expect("a regex"), with))
            .collect()
    });
    let mut text = text.to_owned();
    for (mask, with) in MASKS.iter() {
        text = mask.replace_all(&text, *with).into_owned();
    }
    text
}
