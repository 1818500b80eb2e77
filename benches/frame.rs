//! How fast a stream is cut into frames: whole reads, small reads, odd headers.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use taxiway::core::frame::{Cut, Cutter, FrameLimits, write_header};

const LIMITS: FrameLimits = FrameLimits {
    header: 8 * 1024,
    frame: 64 * 1024 * 1024,
};

/// Cuts all of `stream`, shown in reads of `read` bytes; the number of frames.
fn cut_all(stream: &[u8], read: usize) -> usize {
    let mut cutter = Cutter::new(LIMITS);
    let (mut consumed, mut received, mut frames) = (0, 0, 0);
    loop {
        match cutter
            .cut(&stream[consumed..received])
            .expect("well-formed")
        {
            Cut::Frame { body, .. } => {
                consumed += body.end;
                frames += 1;
            }
            Cut::Incomplete { .. } if received == stream.len() => return frames,
            Cut::Incomplete { .. } => received = stream.len().min(received + read),
        }
    }
}

fn frames(c: &mut Criterion) {
    let mut plain = Vec::new();
    let mut odd = Vec::new();
    for _ in 0..1000 {
        write_header(370, &mut plain);
        plain.extend_from_slice(&[b' '; 370]);
        odd.extend_from_slice(b"Content-Type: application/json\r\ncontent-length:370\r\n\r\n");
        odd.extend_from_slice(&[b' '; 370]);
    }
    let mut group = c.benchmark_group("frame");
    for (name, stream, read) in [
        ("1000 of 370 B, one read", &plain, usize::MAX),
        ("1000 of 370 B, reads of 100 B", &plain, 100),
        ("1000 of 370 B, two header lines", &odd, usize::MAX),
    ] {
        assert_eq!(cut_all(stream, read.min(stream.len())), 1000);
        group.throughput(Throughput::Bytes(stream.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| cut_all(black_box(stream), read.min(stream.len())));
        });
    }
    group.finish();

    let mut out = Vec::with_capacity(64);
    c.bench_function("frame/write header", |b| {
        b.iter(|| {
            out.clear();
            write_header(black_box(370), &mut out);
            black_box(out.len())
        });
    });
}

criterion_group!(benches, frames);
criterion_main!(benches);
