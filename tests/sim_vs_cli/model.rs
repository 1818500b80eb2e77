//! A scripted model behind an OpenAI-compatible endpoint: what the real CLI talks to.
//!
//! The prompt steers it like the simulated server: `[[len N]]`, `[[slow MS]]`, `[[tool NAME {…}]]`,
//! `[[ask Question?]]`. It must not be used by anything but tests.

use std::{net::SocketAddr, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

/// Starts it on a free port of the loopback.
pub(crate) async fn start() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that leaves in the middle is what `abort` looks like from here.
            tokio::spawn(async move { drop(serve(stream).await) });
        }
    });
    address
}

async fn serve(stream: TcpStream) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if read.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let line = line.trim().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        read.read_exact(&mut body).await?;
        let Ok(request) = serde_json::from_slice::<Value>(&body) else {
            write
                .write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
                .await?;
            continue;
        };
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        write.write_all(head.as_bytes()).await?;
        let (pieces, slow) = answer(&request);
        for piece in pieces {
            let chunk = json!({
                "id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 1,
                "model": "scripted", "choices": [piece],
            });
            let text = format!("data: {chunk}\n\n");
            write
                .write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes())
                .await?;
            if slow > 0 {
                tokio::time::sleep(Duration::from_millis(slow)).await;
            }
        }
        let usage = json!({
            "id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 1,
            "model": "scripted", "choices": [],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        });
        let text = format!("data: {usage}\n\ndata: [DONE]\n\n");
        let last = format!("{:x}\r\n{text}\r\n0\r\n\r\n", text.len());
        write.write_all(last.as_bytes()).await?;
    }
}

/// The choices of each chunk, and the pause between them in milliseconds.
fn answer(request: &Value) -> (Vec<Value>, u64) {
    let messages = request["messages"].as_array().cloned().unwrap_or_default();
    let last_user = messages
        .iter()
        .rposition(|message| message["role"] == "user")
        .unwrap_or(0);
    let prompt = messages.get(last_user).map(text).unwrap_or_default();
    let tools_done = messages
        .iter()
        .skip(last_user)
        .filter(|message| message["role"] == "tool")
        .count();
    let choice =
        |delta: Value, finish: Value| json!({"index": 0, "delta": delta, "finish_reason": finish});
    let mut pieces = vec![choice(
        json!({"role": "assistant", "content": ""}),
        Value::Null,
    )];
    let number = |word: &str| {
        directives(&prompt)
            .find_map(|(name, argument)| (name == word).then(|| argument.parse::<u64>().ok())?)
    };
    let calls = directives(&prompt).filter_map(|(name, argument)| match name {
        "tool" => argument
            .split_once(' ')
            .map(|(name, json)| (name.to_owned(), json.to_owned())),
        "ask" => Some((
            "ask_user".to_owned(),
            json!({"question": argument}).to_string(),
        )),
        _ => None,
    });
    if let Some((name, arguments)) = calls.into_iter().nth(tools_done) {
        let call = json!({"tool_calls": [{
            "index": 0, "id": format!("call_{tools_done:016x}"), "type": "function",
            "function": {"name": name, "arguments": arguments},
        }]});
        pieces.push(choice(call, Value::Null));
        pieces.push(choice(json!({}), "tool_calls".into()));
        return (pieces, 0);
    }
    for count in 0..number("len").unwrap_or(3) {
        pieces.push(choice(
            json!({"content": format!("w{count} ")}),
            Value::Null,
        ));
    }
    pieces.push(choice(json!({}), "stop".into()));
    (pieces, number("slow").unwrap_or(0))
}

fn text(message: &Value) -> String {
    match message["content"].as_array() {
        Some(parts) => parts
            .iter()
            .filter_map(|part| part["text"].as_str())
            .collect(),
        None => message["content"].as_str().unwrap_or_default().to_owned(),
    }
}

fn directives(prompt: &str) -> impl Iterator<Item = (&str, &str)> {
    let inside = prompt
        .split("[[")
        .skip(1)
        .filter_map(|part| part.split_once("]]"));
    inside.map(|(directive, _)| directive.split_once(' ').unwrap_or((directive, "")))
}
