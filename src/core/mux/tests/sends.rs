//! Sends of one session reach its backend in the order written (DESIGN §3).

use std::time::Duration;

use serde_json::{Value, json};

use super::rig::{Rig, event, failure, framed, notification, request, result};

fn ack(id: i64) -> String {
    result(id, json!({"messageId": format!("m{id}")}))
}

fn user_message(session: &str, id: i64) -> String {
    event(
        session,
        "user.message",
        json!({"messageId": format!("m{id}")}),
    )
}

fn ids(ids: &[i64]) -> Vec<Value> {
    ids.iter().map(|id| json!(id)).collect()
}

#[test]
fn the_next_send_leaves_when_the_one_before_is_answered() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    // Eight in one write.
    let params = json!({"sessionId": "s1", "prompt": "p"});
    let all: Vec<u8> = (1..=8)
        .flat_map(|n| framed(&request(n, "session.send", params.clone())))
        .collect();
    rig.client_bytes(&all);
    for n in 1..=8 {
        assert_eq!(rig.heard_ids("a"), ids(&[n]));
        rig.pass(Duration::from_secs(10));
        assert_eq!(
            rig.heard_ids("a"),
            ids(&[]),
            "no time limit: the answer comes at once"
        );
        if n % 3 == 0 {
            rig.backend("a", &failure(n, "no"));
        } else {
            rig.backend("a", &ack(n));
        }
        assert_eq!(rig.said_one()["id"], json!(n));
    }
    assert_eq!(rig.mux.held_bytes, 0);
}

#[test]
fn other_calls_and_other_sessions_do_not_wait() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.open("s2", "a");
    rig.send(1, "s1");
    rig.send(2, "s1");
    rig.send(3, "s2");
    rig.client(&request(4, "session.abort", json!({"sessionId": "s1"})));
    assert_eq!(rig.heard_ids("a"), ids(&[1, 3, 4]));
}

#[test]
fn eight_sends_written_before_the_session_is_located_keep_their_order() {
    let mut rig = Rig::manual();
    for n in 1..=8 {
        rig.send(n, "s1");
    }
    let question = rig.asked();
    rig.locate(&question, "a");
    let (slot, _) = rig.connecting();
    rig.accept(slot, "a");
    rig.greet("a");
    for n in 1..=8 {
        assert_eq!(rig.heard_ids("a"), ids(&[n]));
        rig.backend("a", &ack(n));
    }
}

#[test]
fn a_send_written_behind_a_create_leaves_when_the_session_is_open() {
    let mut rig = Rig::new();
    rig.client(&request(1, "session.create", json!({"sessionId": "s1"})));
    rig.send(2, "s1");
    rig.client(&request(
        3,
        "session.mcp.oauth.handlePendingRequest",
        json!({"sessionId": "s1"}),
    ));
    rig.send(4, "s1");
    // What is no send may be what the create waits for.
    assert_eq!(rig.heard_ids("a"), ids(&[1, 3]));
    rig.backend("a", &result(1, json!({"sessionId": "s1"})));
    assert_eq!(rig.heard_ids("a"), ids(&[2]));
    rig.backend("a", &ack(2));
    assert_eq!(rig.heard_ids("a"), ids(&[4]));

    // And if it does not open, the backend says so to each.
    rig.client(&request(5, "session.resume", json!({"sessionId": "s2"})));
    rig.send(6, "s2");
    assert_eq!(rig.heard_ids("a"), ids(&[5]));
    rig.backend("a", &failure(5, "no"));
    assert_eq!(rig.heard_ids("a"), ids(&[6]));
}

#[test]
fn a_send_that_waits_for_an_attach_leaves_when_the_session_is_found_elsewhere() {
    let mut rig = Rig::new();
    rig.client(&request(1, "session.create", json!({"sessionId": "s1"})));
    rig.send(2, "s1");
    rig.homes.insert("s1".into(), "b".into());
    rig.client(&request(3, "session.delete", json!({"sessionId": "s1"})));
    assert_eq!(rig.heard_ids("b"), ids(&[2, 3]));
}

#[test]
fn a_send_that_waits_for_its_turns_end_lets_the_next_one_steer() {
    for (n, opener) in [
        user_message("s1", 1),
        event("s1", "pending_messages.modified", json!({})),
    ]
    .iter()
    .enumerate()
    {
        let mut rig = Rig::new();
        rig.open("s1", "a");
        rig.open("s2", "a");
        rig.send_and_wait(1, "s1");
        rig.send(2, "s1");
        rig.send(3, "s1");
        rig.backend("a", &event("s1", "session.tools_updated", json!({})));
        rig.backend("a", &user_message("s2", 9));
        assert_eq!(rig.heard_ids("a"), ids(&[1]), "{n}");
        rig.backend("a", opener);
        assert_eq!(rig.heard_ids("a"), ids(&[2]), "one at a time");
        rig.backend("a", opener);
        rig.pass(Duration::from_secs(1));
        assert_eq!(
            rig.heard_ids("a"),
            ids(&[]),
            "2 is answered at once, so 3 waits for that"
        );
        rig.backend("a", &ack(2));
        assert_eq!(rig.heard_ids("a"), ids(&[3]));
        // The turn's end, and its answer, long after.
        rig.backend("a", &ack(3));
        rig.backend("a", &event("s1", "session.idle", json!({})));
        rig.said();
        rig.backend("a", &ack(1));
        assert_eq!(rig.said_one()["id"], json!(1));
    }
}

#[test]
fn steering_waits_a_quarter_of_a_second_at_most() {
    for method in [
        "session.send",
        "session.sendMessages",
        "session.fleet.start",
    ] {
        let mut rig = Rig::new();
        rig.open("s1", "a");
        let wait = json!({"sessionId": "s1", "wait": true});
        rig.client(&request(1, method, wait));
        rig.send(2, "s1");
        rig.pass(Duration::from_millis(249));
        assert_eq!(rig.heard_ids("a"), ids(&[1]), "{method}");
        rig.pass(Duration::from_millis(1));
        assert_eq!(rig.heard_ids("a"), ids(&[2]));
        assert_eq!(
            rig.mux.poll_timeout(&rig.settings),
            None,
            "no gate is left behind"
        );
    }
    // Always answered at the turn's end.
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.client(&request(
        1,
        "session.sendAndWait",
        json!({"sessionId": "s1"}),
    ));
    rig.send(2, "s1");
    rig.pass(Duration::from_millis(250));
    assert_eq!(rig.heard_ids("a"), ids(&[1, 2]));
}

#[test]
fn the_quarter_of_a_second_begins_when_the_send_leaves() {
    let mut rig = Rig::manual();
    rig.send_and_wait(1, "s1");
    rig.send(2, "s1");
    let question = rig.asked();
    rig.locate(&question, "a");
    let (slot, _) = rig.connecting();
    rig.accept(slot, "a");
    rig.pass(Duration::from_secs(2));
    rig.greet("a");
    assert_eq!(
        rig.heard_ids("a"),
        ids(&[1]),
        "both in one write would be a race"
    );
    rig.pass(Duration::from_millis(250));
    assert_eq!(rig.heard_ids("a"), ids(&[2]));
}

#[test]
fn the_answer_opens_the_gate_too_and_then_nothing_opens_it_twice() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.send_and_wait(1, "s1");
    rig.send_and_wait(2, "s1");
    rig.send(3, "s1");
    rig.backend("a", &failure(1, "refused"));
    assert_eq!(rig.heard_ids("a"), ids(&[1, 2]));
    rig.pass(Duration::from_millis(249));
    assert_eq!(
        rig.heard_ids("a"),
        ids(&[]),
        "2 has its own quarter of a second"
    );
    rig.pass(Duration::from_millis(1));
    assert_eq!(rig.heard_ids("a"), ids(&[3]));
}

#[test]
fn a_queued_send_that_is_cancelled_never_leaves() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    for n in 1..=3 {
        rig.send(n, "s1");
    }
    rig.client(&notification("$/cancelRequest", json!({"id": 2})));
    assert_eq!(rig.error(), (json!(2), -32800));
    rig.backend("a", &ack(1));
    assert_eq!(rig.heard_ids("a"), ids(&[1, 3]));
    // The one under way is its backend's to cancel, and its answer still opens the gate.
    rig.send(4, "s1");
    rig.client(&notification("$/cancelRequest", json!({"id": 3})));
    assert_eq!(rig.heard("a")[0]["method"], json!("$/cancelRequest"));
    rig.backend("a", &failure(3, "cancelled"));
    assert_eq!(rig.heard_ids("a"), ids(&[4]));
}

#[test]
fn a_send_cancelled_before_the_handshake_lets_the_next_one_out() {
    let mut rig = Rig::manual();
    rig.send(1, "s1");
    rig.send(2, "s1");
    let question = rig.asked();
    rig.locate(&question, "a");
    let (slot, _) = rig.connecting();
    rig.accept(slot, "a");
    rig.client(&notification("$/cancelRequest", json!({"id": 1})));
    assert_eq!(rig.error(), (json!(1), -32800));
    rig.greet("a");
    assert_eq!(rig.heard_ids("a"), ids(&[2]));
}

/// Calls of one session are taken up side by side in the backend, and an abort drops what is queued.
#[test]
fn no_send_leaves_before_an_abort_of_ours_is_answered() {
    for silent in [false, true] {
        let mut rig = Rig::new();
        rig.settings.turn_stall = Some(Duration::from_secs(60));
        rig.settings.ends_stalled = true;
        rig.open("s1", "a");
        rig.open("s2", "a");
        rig.backend("a", &user_message("s1", 9));
        rig.pass(Duration::from_secs(180));
        let heard = rig.heard("a");
        assert_eq!(heard[0]["method"], json!("session.abort"));
        rig.said();
        for n in 1..=2 {
            rig.send(n, "s1");
        }
        // What is queued behind the turn begins before the abort is there: it falls under it, too.
        rig.backend("a", &user_message("s1", 8));
        rig.send(3, "s2");
        assert_eq!(rig.heard_ids("a"), ids(&[3]), "silent: {silent}");
        if silent {
            rig.step(&[], |mux, cx, out| {
                mux.handle_backend_silent(cx, &"a".into(), out);
                0
            });
            rig.backend("a", &event("s2", "session.tools_updated", json!({})));
            assert_eq!(rig.heard_ids("a"), ids(&[]));
        }
        let abort = heard[0]["id"].clone();
        rig.backend("a", &result(abort, json!({"success": true})));
        assert_eq!(rig.heard_ids("a"), ids(&[1]));
        rig.backend("a", &ack(1));
        assert_eq!(rig.heard_ids("a"), ids(&[2]));
    }
}
