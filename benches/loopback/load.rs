//! The clients: connections with open sessions, each of which starts its next turn when the last
//! one has ended. Counts frames by their headers and looks into none.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use crate::wire;

/// How long anything may take that is not measured.
const PATIENCE: Duration = Duration::from_secs(20);

/// Room for what one read brings.
const BUFFER: usize = 256 * 1024;

/// What every connection does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    pub(crate) name: &'static str,
    pub(crate) connections: usize,
    /// Sessions of one connection.
    pub(crate) sessions: usize,
    /// Events of one turn.
    pub(crate) events: usize,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    pub(crate) turns: u64,
    pub(crate) frames: u64,
    /// Bytes that the clients received.
    pub(crate) bytes: u64,
}

/// A connection whose sessions are open.
pub(crate) struct Client {
    stream: TcpStream,
    /// Number of its first session.
    first: usize,
    sends: Vec<Vec<u8>>,
    input: Vec<u8>,
}

/// Connects the `number`th client of measurement `run` and opens its sessions.
pub(crate) async fn open(
    port: u16,
    run: u32,
    number: usize,
    work: &Work,
) -> anyhow::Result<Client> {
    let opening = async {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        let first = number * work.sessions;
        let mut client = Client {
            stream,
            first,
            sends: Vec::new(),
            input: Vec::new(),
        };
        client.ask(&wire::call(1, "connect", "{}")).await?;
        for session in first..first + work.sessions {
            let id = wire::session_id(run, session);
            let params = format!(r#"{{"sessionId":"{id}","model":"m"}}"#);
            client
                .ask(&wire::call(2, "session.create", &params))
                .await?;
            let mut send = wire::send(&id, work.events);
            wire::renumber(&mut send, client.sends.len() as u32);
            client.sends.push(send);
        }
        Ok(client)
    };
    tokio::time::timeout(PATIENCE, opening)
        .await
        .context("a client was not served in time")?
}

impl Client {
    /// One call and its answer, while nothing else is under way.
    async fn ask(&mut self, call: &[u8]) -> anyhow::Result<()> {
        self.stream.write_all(call).await?;
        let mut input = Vec::new();
        loop {
            ensure!(self.stream.read_buf(&mut input).await? > 0, "closed");
            if let Some(body) = wire::next_frame(&input)
                && let Some(text) = input.get(body)
            {
                let text = String::from_utf8_lossy(text);
                ensure!(text.contains(r#""result""#), "answered with {text}");
                return Ok(());
            }
        }
    }

    /// Turns on all sessions until `end`; returns when the last one has ended.
    async fn work(mut self, events: usize, end: Instant) -> anyhow::Result<Done> {
        let mut done = Done::default();
        let mut out = self.sends.concat();
        let mut running = self.sends.len();
        let mut next_id = self.sends.len() as u32;
        let mut buffer = std::mem::take(&mut self.input);
        buffer.reserve(BUFFER);
        loop {
            if !out.is_empty() {
                self.stream.write_all(&out).await?;
                out.clear();
            }
            if running == 0 {
                break;
            }
            let read = self.stream.read_buf(&mut buffer).await?;
            if read == 0 {
                bail!("the connection was closed in the middle of a turn");
            }
            done.bytes += read as u64;
            let goes_on = Instant::now() < end;
            let mut at = 0;
            while let Some(body) = wire::next_frame(&buffer[at..]) {
                let (start, stop) = (at + body.start, at + body.end);
                if stop > buffer.len() {
                    break;
                }
                at = stop;
                done.frames += 1;
                if stop - start != wire::IDLE {
                    continue;
                }
                done.turns += 1;
                if !goes_on {
                    running -= 1;
                    continue;
                }
                let number = wire::session_of_event(&buffer[start..stop]);
                let send = number
                    .and_then(|n| self.sends.get_mut(n.wrapping_sub(self.first)))
                    .context("an event of somebody else's session")?;
                wire::renumber(send, next_id);
                next_id += 1;
                out.extend_from_slice(send);
            }
            buffer.drain(..at);
        }
        // Each turn brought its answer and its events: no more, no less.
        let expected = done.turns * (events as u64 + 1);
        ensure!(
            done.frames == expected && buffer.is_empty(),
            "{} frames came instead of {expected}",
            done.frames
        );
        Ok(done)
    }
}

/// Opens all clients of `work`, over these ports in turn.
pub(crate) async fn open_all(ports: &[u16], run: u32, work: &Work) -> anyhow::Result<Vec<Client>> {
    let mut clients = Vec::new();
    for number in 0..work.connections {
        let port = ports[number % ports.len()];
        clients.push(open(port, run, number, work).await?);
    }
    Ok(clients)
}

/// Has all clients work for `length`; what they did, and how long it took.
pub(crate) async fn run(
    clients: Vec<Client>,
    work: &Work,
    length: Duration,
) -> anyhow::Result<(Done, Duration)> {
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for client in clients {
        tasks.spawn(client.work(work.events, began + length));
    }
    let all = async {
        let mut sum = Done::default();
        while let Some(done) = tasks.join_next().await {
            let done = done??;
            sum.turns += done.turns;
            sum.frames += done.frames;
            sum.bytes += done.bytes;
        }
        anyhow::Ok(sum)
    };
    let sum = tokio::time::timeout(length + PATIENCE, all)
        .await
        .context("the turns did not end")??;
    Ok((sum, began.elapsed()))
}
