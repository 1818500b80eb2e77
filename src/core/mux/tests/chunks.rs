//! How the bytes are split between reads changes nothing of what is written.

use proptest::prelude::*;
use serde_json::json;

use super::rig::{Rig, event, failure, framed, notification, request, result};

/// What a client writes: all that can happen to a frame on its way in.
fn from_client() -> Vec<u8> {
    let session = json!({"sessionId": "s1", "prompt": "p"});
    let mut bytes: Vec<u8> = [
        request(1, "session.send", session.clone()),
        request(2, "session.send", session.clone()),
        request("three", "session.getMessages", session.clone()),
        request(3, "ping", json!({"message": "x"})),
        "{".to_owned(),
        request(3, "session.getMessages", json!({"sessionId": "s1"})),
        notification("$/cancelRequest", json!({"id": 2})),
        notification("session.thing", session.clone()),
        result(1, json!({"answer": true})),
        request(4, "session.send", session),
    ]
    .iter()
    .flat_map(|body| framed(body))
    .collect();
    bytes.extend_from_slice(b"content-length:43\r\nA: b\r\n\r\n");
    bytes.extend_from_slice(br#"{"jsonrpc":"2.0","id":7,"method":"connect"}"#);
    bytes.extend(framed(&request(
        8,
        "session.abort",
        json!({"sessionId": "s1"}),
    )));
    bytes
}

/// What its backend writes.
fn from_backend() -> Vec<u8> {
    [
        event("s1", "user.message", json!({"messageId": "m1"})),
        event(
            "s1",
            "assistant.message_delta",
            json!({"deltaContent": "w"}),
        ),
        request(1, "hooks.invoke", json!({"sessionId": "s1"})),
        request(2, "userInput.request", json!({"sessionId": "s1"})),
        notification("$/cancelRequest", json!({"id": 2})),
        notification("session.lifecycle", json!({"sessionId": "s1"})),
        r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"m"}}"#.to_owned(),
        result(1, json!({"messageId": "m1"})),
        failure("three", "no"),
        event("s1", "session.idle", json!({})),
    ]
    .iter()
    .flat_map(|body| framed(body))
    .collect()
}

/// Feeds both in pieces of these sizes, over and over; everything that was written.
fn outcome(
    (client, backend): (&[u8], &[u8]),
    cut_through_min: usize,
    sizes: &[usize],
) -> (Vec<String>, Vec<String>) {
    let mut rig = Rig::new();
    rig.settings.cut_through_min = cut_through_min;
    rig.open("s1", "a");
    rig.heard("a");
    let mut sizes = sizes.iter().copied().cycle();
    let mut feed = |rig: &mut Rig, mut bytes: &[u8], into: &dyn Fn(&mut Rig, &[u8])| {
        while !bytes.is_empty() {
            let (piece, rest) = bytes.split_at(sizes.next().unwrap().min(bytes.len()));
            into(rig, piece);
            bytes = rest;
        }
    };
    feed(&mut rig, client, &|rig, piece| rig.client_bytes(piece));
    feed(&mut rig, backend, &|rig, piece| {
        rig.backend_bytes("a", piece)
    });
    assert!(
        rig.mux.partial_since.is_none(),
        "nothing is left in the middle"
    );
    (rig.said_raw(), rig.heard_raw("a"))
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn any_chunking_of_the_input_gives_the_same_output(
        sizes in proptest::collection::vec(prop_oneof![3 => 1usize..20, 1 => 1usize..2000], 1..40),
        cut_through_min in prop_oneof![Just(usize::MAX), 0usize..300],
    ) {
        let (client, backend) = (from_client(), from_backend());
        let both = (&client[..], &backend[..]);
        let whole = outcome(both, usize::MAX, &[usize::MAX]);
        prop_assert!(whole.0.len() >= 12 && whole.1.len() >= 5, "{whole:#?}");
        prop_assert_eq!(outcome(both, cut_through_min, &sizes), whole);
    }
}
