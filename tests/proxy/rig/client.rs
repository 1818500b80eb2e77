//! An SDK's connection: calls that await their answers, everything else kept in order.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::{oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

use super::{PATIENCE, frame};

/// An error answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Failure {
    pub(crate) code: i64,
    pub(crate) message: String,
    pub(crate) data: Value,
}

/// A call that was written.
pub(crate) struct Pending(oneshot::Receiver<Result<Value, Failure>>);

impl Pending {
    /// Its answer. Fails if the connection ends without one.
    pub(crate) async fn answer(self) -> Result<Value, Failure> {
        let answered = timeout(PATIENCE, self.0).await;
        answered
            .expect("no answer came")
            .expect("the connection ended without an answer")
    }

    /// The same; none if the connection ends without an answer.
    pub(crate) async fn answer_if_any(self) -> Option<Result<Value, Failure>> {
        let answered = timeout(PATIENCE, self.0).await;
        answered.expect("no answer came").ok()
    }
}

#[derive(Default)]
struct Inbox {
    /// By the id's JSON text.
    waiting: HashMap<String, oneshot::Sender<Result<Value, Failure>>>,
    /// Requests, notifications, and answers that nobody waits for.
    kept: Vec<Arc<Value>>,
}

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// See the module. Dropping it closes the connection.
pub(crate) struct Client {
    write: tokio::sync::Mutex<Writer>,
    inbox: Arc<Mutex<Inbox>>,
    /// How many are kept; none once the connection has ended.
    count: watch::Receiver<Option<usize>>,
    next_id: AtomicU64,
    reader: JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (read, write) = stream.into_split();
        Self::of(Box::new(read), Box::new(write))
    }

    /// Over a connection of another kind.
    pub(crate) fn over(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        let (read, write) = tokio::io::split(stream);
        Self::of(Box::new(read), Box::new(write))
    }

    fn of(read: Reader, write: Writer) -> Self {
        let inbox = Arc::new(Mutex::new(Inbox::default()));
        let (tell, count) = watch::channel(Some(0));
        let reader = tokio::spawn(read_all(read, inbox.clone(), tell));
        Self {
            write: tokio::sync::Mutex::new(write),
            inbox,
            count,
            next_id: AtomicU64::new(0),
            reader,
        }
    }

    /// Connected as SDKs do.
    pub(crate) async fn greeted(address: SocketAddr) -> Self {
        let client = Self::connect(address).await;
        client.greet().await;
        client
    }

    /// Says `connect`.
    pub(crate) async fn greet(&self) {
        let answer = self.call("connect", json!({})).await.unwrap();
        assert_eq!(answer["protocolVersion"], 3);
    }

    /// Says that nothing more comes, as SDKs do when they stop.
    pub(crate) async fn half_close(&self) {
        self.write.lock().await.shutdown().await.unwrap();
    }

    /// Bytes as they are.
    pub(crate) async fn write(&self, bytes: &[u8]) {
        let mut write = self.write.lock().await;
        let written = timeout(PATIENCE, async {
            write.write_all(bytes).await?;
            write.flush().await
        })
        .await;
        // A connection that was closed meanwhile shows where its answers are missed.
        let _broken = written.expect("nobody reads");
    }

    /// Writes a call under an id of the caller's.
    pub(crate) async fn begin_as(&self, id: Value, method: &str, params: Value) -> Pending {
        let (done, answer) = oneshot::channel();
        self.inbox
            .lock()
            .unwrap()
            .waiting
            .insert(id.to_string(), done);
        if !self.is_open() {
            self.inbox.lock().unwrap().waiting.clear();
        }
        let body = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        self.write(&frame(body.to_string())).await;
        Pending(answer)
    }

    /// Writes a call.
    pub(crate) async fn begin(&self, method: &str, params: Value) -> Pending {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.begin_as(json!(id), method, params).await
    }

    /// Writes a call and awaits its answer.
    pub(crate) async fn call(&self, method: &str, params: Value) -> Result<Value, Failure> {
        self.begin(method, params).await.answer().await
    }

    /// Answers a request of the server.
    pub(crate) async fn reply(&self, request: &Value, result: Value) {
        let body = json!({ "jsonrpc": "2.0", "id": request["id"], "result": result });
        self.write(&frame(body.to_string())).await;
    }

    pub(crate) async fn create(&self, session: &str) {
        self.call("session.create", json!({ "sessionId": session }))
            .await
            .unwrap();
    }

    /// Sends a prompt; the turn may still run.
    pub(crate) async fn send(&self, session: &str, prompt: &str) {
        let params = json!({ "sessionId": session, "prompt": prompt });
        self.call("session.send", params).await.unwrap();
    }

    /// A whole turn; gives its `session.idle`.
    pub(crate) async fn turn(&self, session: &str, prompt: &str) -> Arc<Value> {
        let mark = self.mark();
        self.send(session, prompt).await;
        self.heard_since(mark, &event(session, "session.idle"))
            .await
    }

    /// Whether the session is open where the proxy looks for it.
    pub(crate) async fn mode(&self, session: &str) -> Result<Value, Failure> {
        self.call("session.mode.get", json!({ "sessionId": session }))
            .await
    }

    /// A place in what is kept.
    pub(crate) fn mark(&self) -> usize {
        self.inbox.lock().unwrap().kept.len()
    }

    /// The first kept message that matches, from the start.
    pub(crate) async fn heard(&self, wanted: &(dyn Fn(&Value) -> bool + Sync)) -> Arc<Value> {
        self.heard_since(0, wanted).await
    }

    /// The first that matches, from a mark on.
    pub(crate) async fn heard_since(
        &self,
        mark: usize,
        wanted: &(dyn Fn(&Value) -> bool + Sync),
    ) -> Arc<Value> {
        let mut from = mark;
        self.next(&mut from, wanted).await
    }

    /// The first that matches, from `from` on, which is moved behind it.
    pub(crate) async fn next(
        &self,
        from: &mut usize,
        wanted: &(dyn Fn(&Value) -> bool + Sync),
    ) -> Arc<Value> {
        let mut count = self.count.clone();
        let found = timeout(PATIENCE, async {
            loop {
                let end = count.borrow_and_update().is_none();
                {
                    let inbox = self.inbox.lock().unwrap();
                    while let Some(message) = inbox.kept.get(*from) {
                        *from += 1;
                        if wanted(message) {
                            return Some(message.clone());
                        }
                    }
                }
                if end || count.changed().await.is_err() {
                    return None;
                }
            }
        });
        match found.await {
            Ok(Some(found)) => found,
            ended => {
                let inbox = self.inbox.lock().unwrap();
                let last = &inbox.kept[inbox.kept.len().saturating_sub(8)..];
                let ended = if ended.is_ok() { "ended" } else { "is silent" };
                panic!("what is awaited does not come: the connection {ended}; last: {last:#?}")
            }
        }
    }

    /// How many of the kept match.
    pub(crate) fn count(&self, wanted: &(dyn Fn(&Value) -> bool + Sync)) -> usize {
        self.kept().iter().filter(|m| wanted(m)).count()
    }

    /// Everything kept.
    pub(crate) fn kept(&self) -> Vec<Arc<Value>> {
        self.inbox.lock().unwrap().kept.clone()
    }

    pub(crate) fn is_open(&self) -> bool {
        self.count.borrow().is_some()
    }

    /// Waits for the end of the connection.
    pub(crate) async fn closed(&self) {
        let mut count = self.count.clone();
        let ended = count.wait_for(Option::is_none);
        let ended = timeout(PATIENCE, ended).await;
        // The sender has gone with the reader: that is an end as well.
        let _gone = ended.expect("the connection stays open");
    }
}

/// Matches a `session.event` of this session and type.
pub(crate) fn event<'a>(session: &'a str, kind: &'a str) -> impl Fn(&Value) -> bool + 'a {
    move |message| {
        message["method"] == "session.event"
            && message["params"]["sessionId"] == session
            && message["params"]["event"]["type"] == kind
    }
}

async fn read_all(mut read: Reader, inbox: Arc<Mutex<Inbox>>, tell: watch::Sender<Option<usize>>) {
    let mut buffer = Vec::new();
    let mut done = 0;
    loop {
        while let Some((start, end)) = cut(&buffer[done..]) {
            let message: Value = serde_json::from_slice(&buffer[done + start..done + end]).unwrap();
            done += end;
            take(&inbox, &tell, message);
        }
        buffer.drain(..done);
        done = 0;
        if let Some((_, end)) = announced(&buffer) {
            buffer.reserve(end - buffer.len());
        }
        match read.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    // Those who wait learn it; whoever comes later sees it.
    tell.send_replace(None);
    inbox.lock().unwrap().waiting.clear();
}

fn take(inbox: &Mutex<Inbox>, tell: &watch::Sender<Option<usize>>, mut message: Value) {
    let mut inbox = inbox.lock().unwrap();
    if message.get("method").is_none()
        && let Some(waiting) = inbox.waiting.remove(&message["id"].to_string())
    {
        let error = message["error"].take();
        let answer = if error.is_null() {
            Ok(message["result"].take())
        } else {
            Err(Failure {
                code: error["code"].as_i64().unwrap(),
                message: error["message"].as_str().unwrap().to_owned(),
                data: error["data"].clone(),
            })
        };
        // The test may have lost interest.
        let _gone = waiting.send(answer);
        return;
    }
    inbox.kept.push(Arc::new(message));
    tell.send_replace(Some(inbox.kept.len()));
}

/// Where the first body starts and ends, once its header is there.
fn announced(bytes: &[u8]) -> Option<(usize, usize)> {
    let header = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let text = std::str::from_utf8(&bytes[..header]).unwrap();
    let length: usize = text
        .strip_prefix("Content-Length: ")
        .unwrap()
        .parse()
        .unwrap();
    Some((header + 4, header + 4 + length))
}

fn cut(bytes: &[u8]) -> Option<(usize, usize)> {
    announced(bytes).filter(|(_, end)| bytes.len() >= *end)
}
