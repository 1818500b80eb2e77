//! How fast heads are read: the short cut, the general path, and serde_json for comparison.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use taxiway::core::scan::{scan, scan_backend, scan_backend_whole};

/// The most frequent frame there is: one streamed token, 367 bytes, as recorded.
const TOKEN: &str = concat!(
    r#"{"jsonrpc":"2.0","method":"session.event","params":{"#,
    r#""sessionId":"team-review-1795329020660","event":{"type":"assistant.message_delta","#,
    r#""data":{"messageId":"872e421f-25dd-4618-b3d5-3cdd0246f60a","deltaContent":"w0 "},"#,
    r#""ephemeral":true,"id":"b79c4e42-b41d-42f2-88a9-f77064e61e87","#,
    r#""timestamp":"2026-11-22T06:30:20.965Z","parentId":"f5743f18-f798-49a4-a0ba-eeba7b699673"}}}"#
);

fn heads(c: &mut Criterion) {
    let send = concat!(
        r#"{"jsonrpc":"2.0","id":21,"method":"session.send","#,
        r#""params":{"sessionId":"user0-chat-1795328978763","prompt":"second 0"}}"#
    );
    let long = format!(
        r#"{{"jsonrpc":"2.0","id":21,"method":"session.send","params":{{"sessionId":"s","prompt":"{}"}}}}"#,
        "A line of text, as people paste it.\\n".repeat(6000)
    );
    let base64 = format!(
        r#"{{"jsonrpc":"2.0","id":21,"method":"session.send","params":{{"sessionId":"s","prompt":"{}"}}}}"#,
        "QUJD".repeat(60_000)
    );
    let messages = format!(
        r#"{{"jsonrpc":"2.0","id":8,"result":{{"events":[{}]}}}}"#,
        vec![TOKEN; 600].join(",")
    );
    let bodies = [
        ("token 367 B", TOKEN),
        ("send 119 B", send),
        ("paste 220 KB", &long),
        ("base64 240 KB", &base64),
        ("messages 220 KB", &messages),
    ];
    let mut group = c.benchmark_group("scan");
    for (name, body) in bodies {
        let body = body.as_bytes();
        assert_eq!(scan(body), scan_backend(body));
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_with_input(BenchmarkId::new("client", name), body, |b, body| {
            b.iter(|| scan(black_box(body)));
        });
        group.bench_with_input(BenchmarkId::new("backend", name), body, |b, body| {
            b.iter(|| scan_backend(black_box(body)));
        });
        group.bench_with_input(BenchmarkId::new("backend whole", name), body, |b, body| {
            b.iter(|| scan_backend_whole(black_box(body)));
        });
        group.bench_with_input(
            BenchmarkId::new("serde_json value", name),
            body,
            |b, body| {
                b.iter(|| serde_json::from_slice::<serde_json::Value>(black_box(body)));
            },
        );
    }
    group.finish();
}

criterion_group!(benches, heads);
criterion_main!(benches);
