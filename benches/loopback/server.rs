//! Simulated CLI servers that cost next to nothing: a turn is one write of bytes built beforehand.
//! Not faithful beyond what is measured; `taxiway sim` is the faithful one.

use std::{
    collections::HashMap,
    io::{Read, Write},
    sync::Arc,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::broadcast,
};

use crate::wire;

/// Serves on `count` ports, which it prints, until its standard input ends.
///
/// With `news` they tell each connection of each new session, twice as the real ones do.
pub(crate) fn serve(count: usize, news: bool) -> anyhow::Result<()> {
    // Whoever started this process holds the other end, even when it is killed.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut accepting = tokio::task::JoinSet::new();
        for _ in 0..count {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            println!("{}", listener.local_addr()?.port());
            accepting.spawn(accept(listener, news));
        }
        std::io::stdout().flush()?;
        while accepting.join_next().await.is_some() {}
        Ok(())
    })
}

/// What all connections of a server are told.
type News = broadcast::Sender<Arc<[u8]>>;

async fn accept(listener: TcpListener, tells: bool) {
    let news = tells.then(|| News::new(4096));
    while let Ok((stream, _)) = listener.accept().await {
        let news = news.clone();
        tokio::spawn(async move {
            // A connection that breaks has ended, which is all there is to know here.
            let _ = talk(stream, news.as_ref()).await;
        });
    }
}

async fn talk(mut stream: TcpStream, news: Option<&News>) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut heard = news.map(News::subscribe);
    let mut turns: HashMap<(Vec<u8>, usize), wire::Turn> = HashMap::new();
    let mut input = Vec::with_capacity(4096);
    loop {
        tokio::select! {
            read = stream.read_buf(&mut input) => if read? == 0 {
                return Ok(());
            },
            frame = next(&mut heard) => stream.write_all(&frame?).await?,
        }
        let mut at = 0;
        while let Some(body) = wire::next_frame(&input[at..]) {
            let (start, end) = (at + body.start, at + body.end);
            if end > input.len() {
                break;
            }
            answer(&mut stream, news, &mut turns, &input[start..end]).await?;
            at = end;
        }
        input.drain(..at);
    }
}

async fn next(news: &mut Option<broadcast::Receiver<Arc<[u8]>>>) -> anyhow::Result<Arc<[u8]>> {
    match news {
        Some(news) => Ok(news.recv().await?),
        None => std::future::pending().await,
    }
}

fn lifecycle(session: &Value) -> Arc<[u8]> {
    let time = "2026-11-22T06:30:20.965Z";
    let params = json!({
        "type": "session.created", "sessionId": session,
        "metadata": { "startTime": time, "modifiedTime": time },
    });
    let told = json!({ "jsonrpc": "2.0", "method": "session.lifecycle", "params": params });
    wire::framed(&told.to_string()).into()
}

async fn answer(
    stream: &mut TcpStream,
    news: Option<&News>,
    turns: &mut HashMap<(Vec<u8>, usize), wire::Turn>,
    body: &[u8],
) -> anyhow::Result<()> {
    if let Some(send) = wire::read_send(body) {
        let key = (send.session.to_vec(), send.events);
        let turn = turns.entry(key).or_insert_with(|| {
            wire::Turn::new(&String::from_utf8_lossy(send.session), send.events)
        });
        stream.write_all(turn.answering(send.id)).await?;
        return Ok(());
    }
    let call: Value = serde_json::from_slice(body)?;
    let result = match call["method"].as_str() {
        Some("connect") => json!({
            "ok": true, "protocolVersion": 3, "version": "1.0.102", "taskKinds": ["agent", "shell"],
        }),
        Some("ping") => json!({
            "message": "pong", "timestamp": "2026-11-22T06:30:20.965Z", "protocolVersion": 3,
        }),
        Some("session.list") => json!({ "sessions": [] }),
        Some("session.create") => {
            let session = &call["params"]["sessionId"];
            if let Some(news) = news {
                let told = lifecycle(session);
                let _nobody_hears = (news.send(told.clone()), news.send(told));
            }
            json!({ "sessionId": session })
        }
        _ => json!({}),
    };
    if !call["id"].is_null() {
        let answer = json!({ "jsonrpc": "2.0", "id": call["id"], "result": result });
        let frame = wire::framed(&answer.to_string());
        stream.write_all(&frame).await?;
    }
    Ok(())
}
