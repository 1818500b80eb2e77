//! One TCP connection: bytes in, calls to [`super::answers`], bytes out.
//!
//! Requests run concurrently and are answered out of order, as configured. It must not know what a
//! method does.

use std::{io, sync::Arc, time::Duration};

use bytes::BytesMut;
use serde_json::Value;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};

use super::{
    answers, event,
    framing::{self, Cut, Message, RequestId},
    lifetime,
    outbox::Outbox,
    server::{Order, Shared},
    state::{Asked, Call},
};

/// Most bytes of unread frames; a client that sends a larger frame is dropped.
const BUFFER_MAX: usize = 512 << 20;
/// Room asked for before each read.
const READ: usize = 64 << 10;

/// How long the last bytes of an ending server may take.
const STOP_GRACE: Duration = Duration::from_millis(500);

/// Why reading ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ended {
    /// FIN or a broken stream.
    Peer,
    /// A header that cannot be read on from; the error is still to be delivered.
    Broken,
}

/// Accepts until the server ends.
pub(super) async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    let stopped = shared.stopped.clone();
    let accepting = async {
        loop {
            shared.awake().await;
            match listener.accept().await {
                Ok((stream, _)) => {
                    // Refused by some platforms; only latency depends on it.
                    let _ = stream.set_nodelay(true);
                    start(&shared, stream);
                }
                // Out of file descriptors, most likely: a pause gives others time to close.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    stopped.run_until_cancelled(accepting).await;
}

fn start(shared: &Arc<Shared>, stream: TcpStream) {
    let outbox = Arc::new(Outbox::new());
    let connection = {
        let mut state = shared.lock();
        if shared.stopped.is_cancelled() {
            return;
        }
        state.join(outbox.clone(), shared.options.token.is_none())
    };
    let stream = Arc::new(stream);
    shared
        .tasks
        .spawn(serve(shared.clone(), stream, outbox, connection));
}

async fn serve(shared: Arc<Shared>, stream: Arc<TcpStream>, outbox: Arc<Outbox>, connection: u64) {
    let writing = write(shared.clone(), stream.clone(), outbox.clone());
    let writer = shared.tasks.spawn(writing);
    let reading = read(&shared, &stream, connection);
    let stopped = shared.stopped.clone();
    match stopped.run_until_cancelled(reading).await {
        // The real server closes its side at once; answers under way are not sent any more.
        Some(Ended::Peer) => outbox.abandon(),
        Some(Ended::Broken) => outbox.finish(),
        // The outbox has been told how to end.
        None => {}
    }
    drop(stream);
    // It ends by itself: the outbox is closed.
    let _ = writer.await;
    lifetime::leave(&shared, connection);
}

async fn write(shared: Arc<Shared>, stream: Arc<TcpStream>, outbox: Arc<Outbox>) {
    let mut batch = Vec::new();
    while outbox.take(&mut batch).await.is_some() {
        shared.awake().await;
        let all = write_all(&stream, &batch);
        tokio::select! {
            written = all => if written.is_err() { break },
            // A kill or an end must not wait for a client that does not read.
            () = outbox.abandoned() => break,
            () = grace_is_over(&shared) => break,
        }
        batch.clear();
        if batch.capacity() > 1 << 20 {
            batch = Vec::new();
        }
    }
    if outbox.is_abandoned() && shared.stopped.is_cancelled() {
        // Killed: what is unsent is thrown away and the peer sees a reset.
        let _ = SockRef::from(&*stream).set_linger(Some(Duration::ZERO));
    } else {
        let _ = SockRef::from(&*stream).shutdown(std::net::Shutdown::Write);
    }
}

async fn grace_is_over(shared: &Shared) {
    shared.stopped.cancelled().await;
    tokio::time::sleep(STOP_GRACE).await;
}

async fn write_all(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn read(shared: &Arc<Shared>, stream: &TcpStream, connection: u64) -> Ended {
    let mut buffer = BytesMut::new();
    loop {
        if stream.readable().await.is_err() {
            return Ended::Peer;
        }
        shared.awake().await;
        buffer.reserve(READ);
        match stream.try_read_buf(&mut buffer) {
            Ok(0) => return Ended::Peer,
            Ok(_) if buffer.len() > BUFFER_MAX => return Ended::Peer,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => return Ended::Peer,
        }
        if frames(shared, connection, &mut buffer) == Cutting::Broken {
            return Ended::Broken;
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Cutting {
    GoOn,
    Broken,
}

/// Handles every complete frame of the buffer.
fn frames(shared: &Arc<Shared>, connection: u64, buffer: &mut BytesMut) -> Cutting {
    let mut calls = Vec::new();
    let mut cutting = Cutting::GoOn;
    loop {
        match framing::cut(buffer) {
            Cut::Frame(body) => calls.extend(message(shared, connection, &body)),
            Cut::Incomplete => break,
            Cut::Broken(text) => {
                shared
                    .lock()
                    .push(connection, &event::error("null", -32700, &text));
                cutting = Cutting::Broken;
                break;
            }
        }
    }
    if shared.options.order != Order::Kept {
        for last in (1..calls.len()).rev() {
            calls.swap(last, shared.numbers.below(last + 1));
        }
    }
    for call in calls {
        run(shared, call);
    }
    cutting
}

/// Handles one body; returns it if it is a request.
fn message(shared: &Arc<Shared>, connection: u64, body: &[u8]) -> Option<Call> {
    let message = match framing::read(body) {
        Ok(message) => message,
        Err(rejected) => {
            let answer = event::error("null", rejected.code, &rejected.text);
            shared.lock().push(connection, &answer);
            return None;
        }
    };
    let mut state = shared.lock();
    match message {
        Message::Notification { method, params } => {
            state.note(connection, &method, &params);
            None
        }
        Message::Request { id, method, params } => {
            state.note(connection, &method, &params);
            let id = id.json();
            let (params, positional) = match params {
                Value::Object(params) => (params, Value::Null),
                other @ (Value::Null
                | Value::Bool(_)
                | Value::Number(_)
                | Value::String(_)
                | Value::Array(_)) => (serde_json::Map::new(), other),
            };
            let call = Call {
                connection,
                id,
                method,
                params,
            };
            if call.method == "connect" {
                // The handshake reads even what is no object, and is never overtaken by a
                // request behind it more than the shuffle allows.
                if !positional.is_null() {
                    answers::connect(shared, &mut state, &call, positional);
                    return None;
                }
            }
            Some(call)
        }
        Message::Response { id, result } => {
            let Some(RequestId::Number(id)) = id else {
                return None;
            };
            let id = u64::try_from(id).ok()?;
            let asked = state.asked(connection, id)?;
            drop(state);
            response(shared, asked, result);
            None
        }
    }
}

fn response(shared: &Arc<Shared>, asked: Asked, result: Option<Value>) {
    match asked {
        // Whoever asked may be gone; then nobody cares.
        Asked::Hook(done) | Asked::Provider(done) => drop(done.send(result)),
        Asked::Input { session, request } => {
            let answer = result
                .as_ref()
                .and_then(|result| result.get("answer")?.as_str());
            let Some(answer) = answer else { return };
            let mut state = shared.lock();
            let session = state.sessions.get_mut(&session);
            if let Some(done) = session.and_then(|session| session.inputs.remove(&request)) {
                drop(done.send(answer.to_owned()));
            }
        }
    }
}

/// Answers a request, now or after its seeded pause.
fn run(shared: &Arc<Shared>, call: Call) {
    let pause = match shared.options.order {
        Order::Kept | Order::Shuffled => None,
        Order::Spread(most) => {
            let most = usize::try_from(most.as_micros()).unwrap_or(usize::MAX);
            let micros = shared.numbers.below(most.saturating_add(1));
            Some(Duration::from_micros(u64::try_from(micros).unwrap_or(0)))
        }
    };
    let Some(pause) = pause else {
        answers::answer(shared, call);
        return;
    };
    let then = shared.clone();
    shared.tasks.spawn(async move {
        let waits = async {
            tokio::time::sleep(pause).await;
            then.awake().await;
        };
        if then.stopped.run_until_cancelled(waits).await.is_some() {
            answers::answer(&then, call);
        }
    });
}
