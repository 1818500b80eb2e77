//! What the multiplexer costs per frame: events that pass, calls, requests of backends that get
//! another id. Sockets and the shell are not in it.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

mod stage;

use stage::{Stage, event, framed, request, response};

/// Frames in one read.
const RUN: u32 = 64;

fn frames(c: &mut Criterion) {
    let mut group = c.benchmark_group("mux");
    group.throughput(Throughput::Elements(u64::from(RUN)));

    let mut stage = Stage::new();
    let events = event(0, "assistant.message_delta").repeat(RUN as usize);
    group.bench_function("event passes", |b| b.iter(|| stage.backend(&events)));

    let mut stage = Stage::new();
    let mixed = [
        event(0, "assistant.message_delta"),
        event(1, "assistant.message_delta"),
    ]
    .concat();
    let mixed = mixed.repeat(RUN as usize / 2);
    group.bench_function("event passes, sessions in turn", |b| {
        b.iter(|| stage.backend(&mixed))
    });

    let mut stage = Stage::new();
    let requests: Vec<u8> = (0..RUN)
        .flat_map(|id| request(id, (id % 2) as u8))
        .collect();
    let responses: Vec<u8> = (0..RUN).rev().flat_map(response).collect();
    group.bench_function("request and response", |b| {
        b.iter(|| {
            stage.client(&requests);
            stage.backend(&responses);
        });
    });
    assert_eq!(stage.mux.open_calls(), 0);

    // A whole turn each, with the lock that nobody else wants, and without one.
    for (name, locks) in [("turn", false), ("turn with its lock", true)] {
        let mut stage = Stage::new();
        if locks {
            stage.lock_turns();
        }
        let send = framed(
            r#"{"jsonrpc":"2.0","id":1,"method":"session.send","params":{"sessionId":"s0","prompt":"hello"}}"#,
        );
        let turn = [
            response(1),
            event(0, "assistant.turn_start"),
            event(0, "session.idle"),
        ]
        .concat();
        group.throughput(Throughput::Elements(1));
        group.bench_function(name, |b| {
            b.iter(|| {
                stage.client(&send);
                stage.backend(&turn);
            });
        });
    }
    group.throughput(Throughput::Elements(u64::from(RUN)));

    let mut stage = Stage::new();
    let asks: Vec<u8> = (0..RUN)
        .flat_map(|id| {
            framed(&format!(
                r#"{{"jsonrpc":"2.0","id":{id},"method":"hooks.invoke","params":{{"sessionId":"s0","hookType":"preToolUse","input":{{"toolName":"bash"}}}}}}"#
            ))
        })
        .collect();
    let mut next = 1u64;
    group.bench_function("request of a backend and its answer", |b| {
        b.iter_batched(
            || {
                // The ids that the machine is about to give.
                let first = next;
                next += u64::from(RUN);
                (first..next)
                    .flat_map(|id| {
                        framed(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#))
                    })
                    .collect::<Vec<u8>>()
            },
            |answers| {
                stage.backend(&asks);
                stage.client(&answers);
            },
            criterion::BatchSize::PerIteration,
        );
    });
    assert!(stage.written() > 0);
    group.finish();
}

criterion_group!(benches, frames);
criterion_main!(benches);
