//! Large frames of backends, passed on as they arrive.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::rig::{Rig, Shell, event, framed, request, result, settings};
use crate::core::{
    event::{CallOutcome, Direction, Event, FrameKind},
    mux::{Freeze, Output, Settings},
};

/// From here on bodies are large.
const LARGE: usize = 1000;

/// `s1` at `a` and `s2` at `b`.
fn rig_with(settings: Settings) -> Rig {
    let mut rig = Rig::with(
        Shell::Auto,
        Settings {
            cut_through_min: LARGE,
            ..settings
        },
    );
    rig.open("s1", "a");
    rig.open("s2", "b");
    rig.heard("a");
    rig.heard("b");
    rig.mux.poll_tally();
    rig
}

fn rig() -> Rig {
    rig_with(settings())
}

fn get_messages(rig: &mut Rig, id: i64, session: &str) {
    rig.client(&request(
        id,
        "session.getMessages",
        json!({"sessionId": session}),
    ));
}

fn large(id: impl Into<Value>) -> String {
    result(id, json!({"events": "x".repeat(5 * LARGE)}))
}

fn delta(session: &str) -> String {
    let data = json!({"deltaContent": "y".repeat(3 * LARGE)});
    event(session, "assistant.message_delta", data)
}

/// The first `size` bytes of a frame, and the rest.
fn split(body: &str, size: usize) -> (Vec<u8>, Vec<u8>) {
    let mut frame = framed(body);
    let rest = frame.split_off(size);
    (frame, rest)
}

fn cuts(rig: &Rig) -> usize {
    let is_cut = |output: &&Output| matches!(output, Output::Event(Event::FrameCut { .. }));
    rig.log.iter().filter(is_cut).count()
}

#[test]
fn an_answer_passes_as_it_arrives_and_is_answered_when_it_has() {
    let mut rig = rig();
    get_messages(&mut rig, 7, "s1");
    let (first, rest) = split(&large(7), 2000);
    rig.backend_bytes("a", &first);
    assert_eq!(rig.said_in_part(), first, "all of it is with the client");
    assert_eq!(rig.mux.passing(), Some(rig.slot("a")));
    assert_eq!(rig.mux.open_calls(), 1, "it is not answered yet");
    let (to, response) = (Direction::BackendToClient, FrameKind::Response);
    assert_eq!(rig.mux.poll_tally().frames(to, response), 0);
    rig.backend_bytes("a", &rest);
    assert_eq!(rig.said_raw(), [large(7)]);
    assert_eq!((rig.mux.passing(), rig.mux.open_calls()), (None, 0));
    let tally = rig.mux.poll_tally();
    assert_eq!(tally.frames(to, response), 1);
    assert_eq!(tally.bytes(to), framed(&large(7)).len() as u64);
    let ended = rig.logged(|o| match o {
        Output::CallEnded { class, outcome, .. } => Some((*class, *outcome)),
        _ => None,
    });
    assert_eq!(ended, [("session", CallOutcome::Ok)]);
}

#[test]
fn what_is_written_meanwhile_waits_behind_it_and_so_do_other_backends() {
    let mut rig = rig();
    get_messages(&mut rig, 7, "s1");
    get_messages(&mut rig, 8, "s2");
    let (first, rest) = split(&delta("s1"), 1500);
    rig.backend_bytes("a", &first);
    // An answer of Taxiway's own, and two frames of the other backend.
    rig.client(&request(9, "ping", json!({"message": "m"})));
    rig.backend("b", &event("s2", "assistant.message_delta", json!({})));
    rig.backend("b", &large(8));
    // Calls go out all the same.
    get_messages(&mut rig, 10, "s2");
    assert_eq!(rig.heard_ids("b"), [json!(8), json!(10)]);
    assert_eq!(rig.said_in_part(), first);
    rig.silent();
    rig.backend_bytes("a", &rest);
    let said = rig.said_raw();
    assert_eq!(said.len(), 4, "{said:#?}");
    assert_eq!(said[0], delta("s1"));
    assert!(
        said[1].starts_with(r#"{"jsonrpc":"2.0","id":9,"#),
        "{}",
        said[1]
    );
    assert!(said[2].contains("message_delta") && said[2].contains("s2"));
    assert_eq!(said[3], large(8));
    // The next one begins at the end of the last one.
    let both = [framed(&delta("s1")), framed(&large(7))].concat();
    let (first, rest) = both.split_at(framed(&delta("s1")).len() + 1200);
    rig.backend_bytes("a", first);
    assert_eq!(rig.said_raw(), [delta("s1")]);
    rig.backend_bytes("a", rest);
    assert_eq!(rig.said_raw(), [large(7)]);
}

/// What is not begun before the whole of it is there.
#[test]
fn what_is_read_here_or_does_not_say_what_it_is_is_held() {
    let pad = "x".repeat(5 * LARGE);
    let hook = json!({"sessionId": "s1", "hookType": "preToolUse", "input": pad});
    let unknown = format!(r#"{{"jsonrpc":"2.0", "id":1,"result":{{"a":"{pad}"}}}}"#);
    let error =
        format!(r#"{{"jsonrpc":"2.0","id":1,"error":{{"code":-32603,"message":"{pad}"}}}}"#);
    let long = format!(
        r#"{{"jsonrpc":"2.0","id":"{}","result":"{pad}"}}"#,
        "7".repeat(999)
    );
    for (what, method, body) in [
        (
            "a send",
            "session.send",
            result(1, json!({"messageId": "m", "pad": pad})),
        ),
        (
            "a fork",
            "sessions.fork",
            result(1, json!({"sessionId": "f", "pad": pad})),
        ),
        ("an effect", "session.mcp.enable", large(1)),
        ("a space", "session.getMessages", unknown),
        ("an error", "session.getMessages", error),
        (
            "a request",
            "session.getMessages",
            request(5, "hooks.invoke", hook),
        ),
        (
            "its end",
            "session.getMessages",
            event("s1", "session.idle", json!({"p": pad})),
        ),
        (
            "its beginning",
            "session.getMessages",
            event("s1", "user.message", json!({"p": pad})),
        ),
        (
            "another's",
            "session.getMessages",
            event("s2", "assistant.message", json!({"p": pad})),
        ),
        (
            "a stranger's",
            "session.getMessages",
            event("s9", "assistant.message", json!({"p": pad})),
        ),
        ("a long id", "session.getMessages", long),
    ] {
        let mut rig = rig();
        rig.client(&request(1, method, json!({"sessionId": "s1"})));
        let (first, rest) = split(&body, 4000);
        rig.backend_bytes("a", &first);
        assert_eq!(
            (rig.mux.passing(), rig.said_in_part().len()),
            (None, 0),
            "{what}"
        );
        if what != "a long id" {
            rig.backend_bytes("a", &rest);
            assert!(rig.try_slot("a").is_some(), "{what}");
        }
    }
    // As long as they are small they are held as well.
    let mut rig = rig();
    let small = event(
        "s1",
        "assistant.message_delta",
        json!({"d": "x".repeat(LARGE - 200)}),
    );
    rig.backend_bytes("a", &split(&small, 500).0);
    assert_eq!(rig.mux.passing(), None);
}

#[test]
fn a_backend_that_ends_in_the_middle_of_it_ends_the_clients_connection() {
    let grace = Settings {
        detach_grace: Some(Duration::from_secs(30)),
        ..settings()
    };
    for (grace, closes) in [(settings(), true), (grace, false)] {
        let mut rig = rig_with(grace);
        // The other session is in a turn.
        rig.send(3, "s2");
        rig.backend("b", &result(3, json!({"messageId": "m"})));
        rig.backend("b", &event("s2", "user.message", json!({"messageId": "m"})));
        rig.said_raw();
        get_messages(&mut rig, 7, "s1");
        let (first, _) = split(&large(7), 2000);
        rig.backend_bytes("a", &first);
        rig.client(&request(9, "ping", json!({})));
        rig.lose("a");
        assert_eq!(rig.said_in_part(), first, "nothing comes behind it");
        assert_eq!(cuts(&rig), 1);
        let violations = rig.logged(|o| match o {
            Output::Violation { backend, .. } => Some(backend.to_string()),
            Output::Park { reason, sessions } => {
                assert!(reason.starts_with("cut_frame") && sessions.len() == 1);
                Some("parked".to_owned())
            }
            _ => None,
        });
        let expected = if closes {
            vec!["a"]
        } else {
            vec!["a", "parked"]
        };
        assert_eq!(violations, expected);
        assert_eq!(rig.closed.is_some(), closes);
    }
}

#[test]
fn one_that_does_not_end_as_it_must_is_cut_before_its_end() {
    for body in [large(7), delta("s1")] {
        let mut rig = rig();
        get_messages(&mut rig, 7, "s1");
        let mut frame = framed(&body);
        *frame.last_mut().unwrap() = b'x';
        for piece in [
            &frame[..2000],
            &frame[2000..frame.len() - 2],
            &frame[frame.len() - 2..],
        ] {
            rig.backend_bytes("a", piece);
        }
        assert!(
            rig.said_in_part().len() < frame.len(),
            "it could be taken for whole"
        );
        assert!(rig.closed.is_some_and(|why| why.starts_with("cut_frame")));
        assert_eq!(cuts(&rig), 1);
    }
}

#[test]
fn when_the_client_leaves_the_rest_is_eaten() {
    let mut rig = rig_with(Settings {
        detach_grace: Some(Duration::from_secs(30)),
        ..settings()
    });
    rig.send(1, "s1");
    rig.backend("a", &result(1, json!({"messageId": "m"})));
    rig.backend("a", &event("s1", "user.message", json!({"messageId": "m"})));
    get_messages(&mut rig, 7, "s1");
    rig.said_raw();
    let (first, rest) = split(&large(7), 2000);
    rig.backend_bytes("a", &first);
    rig.hang_up();
    assert_eq!(rig.mux.passing(), None);
    let (more, rest) = rest.split_at(1000);
    rig.backend_bytes("a", more);
    rig.backend_bytes("a", rest);
    // So is one that begins now.
    let (first_delta, rest) = split(&delta("s1"), 2000);
    rig.backend_bytes("a", &first_delta);
    rig.backend_bytes("a", &rest);
    assert_eq!(rig.said_in_part(), first);
    assert!(rig.closed.is_none(), "its turn goes on");
    rig.backend("a", &event("s1", "session.idle", json!({})));
    assert!(rig.closed.is_some());
    assert_eq!(cuts(&rig), 0);
}

#[test]
fn neither_silence_nor_a_forced_move_answers_what_is_being_answered() {
    for forced in [false, true] {
        let mut rig = rig();
        get_messages(&mut rig, 7, "s1");
        get_messages(&mut rig, 8, "s1");
        let (first, rest) = split(&large(7), 2000);
        rig.backend_bytes("a", &first);
        rig.step(&[], |mux, cx, out| {
            if forced {
                let freeze = Freeze {
                    ticket: 1,
                    force: true,
                };
                mux.handle_freeze(cx, "s1", &"a".into(), freeze, out);
            } else {
                mux.handle_backend_silent(cx, &"a".into(), out);
            }
            0
        });
        assert_eq!(rig.mux.open_calls(), 1);
        rig.backend_bytes("a", &rest);
        let said = rig.said();
        let ids: Vec<&Value> = said.iter().map(|frame| &frame["id"]).collect();
        assert_eq!(ids, [&json!(7), &json!(8)]);
        assert!(said[0]["result"].is_object());
        assert_eq!(said[1]["error"]["code"], -32011);
    }
}

#[test]
fn an_answer_that_is_not_waited_for_any_more_is_eaten() {
    let mut rig = rig();
    rig.client(&request(
        7,
        "session.shell.exec",
        json!({"sessionId": "s1"}),
    ));
    rig.step(&[], |mux, cx, out| {
        mux.handle_backend_silent(cx, &"a".into(), out);
        0
    });
    assert_eq!(rig.error(), (json!(7), -32011));
    let (first, rest) = split(&large(7), 2000);
    rig.backend_bytes("a", &first);
    assert_eq!(rig.mux.passing(), None);
    // Nobody waits for it.
    rig.backend("b", &event("s2", "assistant.message_delta", json!({})));
    assert_eq!(rig.said_raw().len(), 1);
    rig.backend_bytes("a", &rest);
    rig.silent();
    assert_eq!(rig.mux.open_calls(), 0);
    rig.backend("a", &event("s1", "assistant.message_delta", json!({})));
    assert_eq!(rig.said_raw().len(), 1);
}

#[test]
fn taxiway_does_not_stop_before_it_has_passed() {
    let mut rig = rig();
    let (first, rest) = split(&delta("s1"), 2000);
    rig.backend_bytes("a", &first);
    rig.drain_client();
    assert!(rig.closed.is_none());
    // Nor is the upstream connection closed for being idle.
    rig.client(&request(5, "session.detach", json!({"sessionId": "s1"})));
    rig.pass(Duration::from_secs(100));
    assert!(rig.try_slot("a").is_some() && rig.closed.is_none());
    rig.backend_bytes("a", &rest);
    assert_eq!(rig.said_raw()[0], delta("s1"));
    rig.backend("a", &result(5, json!({})));
    assert_eq!(rig.closed, Some("drained"));
}

#[test]
fn taxiway_that_ends_before_it_has_passed_says_so() {
    let mut rig = rig();
    get_messages(&mut rig, 7, "s1");
    rig.said_raw();
    let (first, _) = split(&large(7), 2000);
    rig.backend_bytes("a", &first);
    rig.drain_client();
    rig.shut_down();
    assert_eq!(rig.closed, Some("Taxiway is shutting down"));
    assert_eq!(rig.said_in_part(), first);
    assert_eq!(cuts(&rig), 1);
}

#[test]
fn a_turn_is_not_silent_while_its_backend_is_in_a_frame() {
    let mut rig = rig_with(Settings {
        turn_stall: Some(Duration::from_secs(10)),
        ends_stalled: true,
        ..settings()
    });
    rig.send(1, "s1");
    rig.backend("a", &result(1, json!({"messageId": "m"})));
    rig.backend("a", &event("s1", "user.message", json!({"messageId": "m"})));
    rig.said_raw();
    let (first, rest) = split(&delta("s1"), 2000);
    rig.backend_bytes("a", &first);
    rig.pass(Duration::from_secs(60));
    rig.backend_bytes("a", &rest);
    assert_eq!(rig.said_raw(), [delta("s1")]);
    rig.pass(Duration::from_secs(25));
    assert_eq!(rig.said().len(), 2, "now it is");
}

/// What two backends write, and what the client has asked them for.
fn script() -> [Vec<String>; 2] {
    let one = |session: &str, ids: [i64; 2]| {
        vec![
            delta(session),
            large(ids[0]),
            event(session, "assistant.message_delta", json!({"d": "small"})),
            event(
                session,
                "assistant.message",
                json!({"d": "z".repeat(2 * LARGE)}),
            ),
            event(session, "session.idle", json!({"d": "z".repeat(2 * LARGE)})),
            large(ids[1]),
        ]
    };
    [one("s1", [1, 2]), one("s2", [3, 4])]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 150, failure_persistence: None, ..ProptestConfig::default()
    })]

    /// However the bytes of two backends come, the client has the same frames as when they are held:
    /// each whole, those of one backend in its order.
    #[test]
    fn pieces_make_the_frames_that_would_have_been_held(
        pieces in proptest::collection::vec(
            (0usize..3, prop_oneof![1usize..8, 1usize..3000]), 20..300,
        ),
        cut_through_min in prop_oneof![Just(LARGE), Just(0)],
    ) {
        let mut rig = rig();
        rig.settings.cut_through_min = cut_through_min;
        for (id, session) in [(1, "s1"), (2, "s1"), (3, "s2"), (4, "s2")] {
            get_messages(&mut rig, id, session);
        }
        let script = script();
        let mut wires = script.each_ref().map(|bodies| {
            bodies.iter().flat_map(|body| framed(body)).collect::<Vec<u8>>()
        });
        let mut pings = 0;
        let mut said = Vec::new();
        let rest = [(0, usize::MAX), (1, usize::MAX), (0, usize::MAX)];
        for (who, size) in pieces.into_iter().chain(rest) {
            match ["a", "b"].get(who) {
                Some(backend) => {
                    let wire = &mut wires[who];
                    let piece: Vec<u8> = wire.drain(..size.min(wire.len())).collect();
                    rig.backend_bytes(backend, &piece);
                }
                None => {
                    pings += 1;
                    rig.client(&request(1000 + pings, "ping", json!({})));
                }
            }
            said.extend(rig.said_raw());
        }
        let of = |session: &str, ids: [&str; 2]| -> Vec<String> {
            let mine = |body: &&String| {
                body.contains(&format!(r#""sessionId":"{session}""#))
                    || ids.iter().any(|id| body.contains(&format!(r#""id":{id},"#)))
            };
            said.iter().filter(mine).cloned().collect()
        };
        prop_assert_eq!(of("s1", ["1", "2"]), &script[0][..]);
        prop_assert_eq!(of("s2", ["3", "4"]), &script[1][..]);
        prop_assert_eq!(said.len(), 12 + usize::try_from(pings).unwrap());
        prop_assert_eq!((rig.mux.open_calls(), rig.mux.passing()), (0, None));
    }
}
