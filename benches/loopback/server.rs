//! Simulated CLI servers that cost next to nothing: a turn is one write of bytes built beforehand.
//! Not faithful beyond what is measured; `taxiway sim` is the faithful one.

use std::{
    collections::HashMap,
    io::{Read, Write},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::wire;

/// Serves on `count` ports, which it prints, until its standard input ends.
pub(crate) fn serve(count: usize) -> anyhow::Result<()> {
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
            accepting.spawn(accept(listener));
        }
        std::io::stdout().flush()?;
        while accepting.join_next().await.is_some() {}
        Ok(())
    })
}

async fn accept(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            // A connection that breaks has ended, which is all there is to know here.
            let _ = talk(stream).await;
        });
    }
}

async fn talk(mut stream: TcpStream) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut turns: HashMap<(Vec<u8>, usize), wire::Turn> = HashMap::new();
    let mut input = Vec::with_capacity(4096);
    loop {
        if stream.read_buf(&mut input).await? == 0 {
            return Ok(());
        }
        let mut at = 0;
        while let Some(body) = wire::next_frame(&input[at..]) {
            let (start, end) = (at + body.start, at + body.end);
            if end > input.len() {
                break;
            }
            answer(&mut stream, &mut turns, &input[start..end]).await?;
            at = end;
        }
        input.drain(..at);
    }
}

async fn answer(
    stream: &mut TcpStream,
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
        Some("session.create") => json!({ "sessionId": call["params"]["sessionId"] }),
        _ => json!({}),
    };
    if !call["id"].is_null() {
        let answer = json!({ "jsonrpc": "2.0", "id": call["id"], "result": result });
        let frame = wire::framed(&answer.to_string());
        stream.write_all(&frame).await?;
    }
    Ok(())
}
