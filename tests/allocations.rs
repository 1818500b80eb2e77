//! The hot path owns what it needs: in the steady state a frame that passes costs no heap
//! allocation.

#[path = "../benches/stage/mod.rs"]
mod stage;

use stage::Stage;
use taxiway::proxy::readbuf::{carry_over, give_back, keep_rest, take_buffer};

fn allocations(work: impl FnOnce()) -> u64 {
    allocation_counter::measure(work).count_total
}

/// Does it often enough that every table has its size.
fn warm_up(stage: &mut Stage, work: impl Fn(&mut Stage)) {
    for _ in 0..100 {
        work(stage);
    }
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![1u8; 10]))), 1);
}

#[test]
fn events_that_pass_allocate_nothing() {
    let mut stage = Stage::new();
    let events = [
        stage::event(0, "assistant.streaming_delta"),
        stage::event(1, "assistant.message_delta"),
        stage::event(0, "tool.execution_start"),
    ]
    .concat();
    warm_up(&mut stage, |stage| stage.backend(&events));
    let count = allocations(|| {
        for _ in 0..100 {
            stage.backend(&events);
        }
    });
    assert_eq!(count, 0, "for 300 events");
    assert!(stage.written() >= 300 * 300, "they did pass");
}

/// Reads one piece as a connection does that has `tail` of a frame.
fn read(stage: &mut Stage, tail: &mut Vec<u8>, piece: &[u8]) {
    let mut buffer = take_buffer();
    let kept = carry_over(tail, &mut buffer);
    let end = kept + piece.len();
    buffer[kept..end].copy_from_slice(piece);
    let used = stage.backend_in_part(&buffer[..end]);
    keep_rest(tail, Vec::new(), &buffer[..end], false, used);
    give_back(buffer);
}

#[test]
fn reads_that_end_in_a_frame_allocate_nothing_and_idle_connections_own_nothing() {
    let mut wire = Vec::new();
    for n in 0..200 {
        let kind = ["assistant.message_delta", "tool.execution_start"][n % 2];
        let event = String::from_utf8(stage::event(0, kind)).expect("text");
        let pad = "x".repeat([0, 0, 0, 700, 5_000, 0, 30_000][n % 7]);
        let body = event.split("\r\n\r\n").last().expect("a body");
        wire.extend(stage::framed(&body.replace("w0 ", &pad)));
    }
    // Two connections of one thread, both in the middle of a frame most of the time.
    let mut stages = [Stage::new(), Stage::new()];
    let mut tails = [Vec::new(), Vec::new()];
    let sizes = [100, 4_000, 37, 20_000, 1_500, 60_000, 1];
    let mut tails_seen = 0;
    let mut round = || {
        let (mut at, mut n) = (0, 0);
        while at < wire.len() {
            let end = wire.len().min(at + sizes[n % sizes.len()]);
            for (stage, tail) in stages.iter_mut().zip(&mut tails) {
                read(stage, tail, &wire[at..end]);
                tails_seen += usize::from(!tail.is_empty());
            }
            (at, n) = (end, n + 1);
        }
        assert!(
            tails.iter().all(|tail| tail.capacity() == 0),
            "all is used up"
        );
    };
    for _ in 0..5 {
        round();
    }
    let count = allocations(|| (0..20).for_each(|_| round()));
    assert!(tails_seen > 1000, "{tails_seen} reads ended in a frame");
    assert_eq!(count, 0, "for 8000 events");
}

#[test]
fn requests_and_responses_with_integer_ids_allocate_nothing() {
    let mut stage = Stage::new();
    let requests = [
        stage::request(1, 0),
        stage::request(2, 1),
        stage::request(3, 0),
    ]
    .concat();
    let responses = [stage::response(2), stage::response(3), stage::response(1)].concat();
    let round = |stage: &mut Stage| {
        stage.client(&requests);
        stage.backend(&responses);
    };
    warm_up(&mut stage, round);
    let count = allocations(|| {
        for _ in 0..100 {
            round(&mut stage);
        }
    });
    assert_eq!(count, 0, "for 300 calls");
    assert_eq!(stage.mux.open_calls(), 0);
}

#[test]
fn a_lock_that_nobody_else_wants_allocates_nothing() {
    let turn = |stage: &mut Stage| {
        stage.client(&stage::framed(
            r#"{"jsonrpc":"2.0","id":1,"method":"session.send","params":{"sessionId":"s0"}}"#,
        ));
        stage.backend(&stage::response(1));
        stage.backend(&stage::event(0, "assistant.turn_start"));
        stage.backend(&stage::event(0, "session.idle"));
    };
    let counts = [false, true].map(|locks| {
        let mut stage = Stage::new();
        if locks {
            stage.lock_turns();
        }
        warm_up(&mut stage, turn);
        allocations(|| (0..100).for_each(|_| turn(&mut stage)))
    });
    assert_eq!(
        counts[0], counts[1],
        "for 100 turns without a lock, and with one"
    );
}

#[test]
fn asking_for_the_next_timeout_allocates_nothing() {
    let mut stage = Stage::new();
    stage.client(&stage::request(1, 0));
    let count = allocations(|| {
        std::hint::black_box(stage.mux.poll_timeout(&stage.settings));
    });
    assert_eq!(count, 0);
}
