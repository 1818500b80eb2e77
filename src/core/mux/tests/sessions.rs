//! Who is attached where: create, resume, adopt, detach, close, delete, fork, and what the
//! directory is told. (The rig compares the directory's view with the machine's after each step.)

use std::time::Duration;

use serde_json::{Value, json};

use super::rig::{Rig, event, failure, not_found, request, result};
use crate::core::{
    event::Event,
    locate::Purpose,
    mux::{CreateExisting, Output},
};

fn create(id: i64, session: &str) -> String {
    request(
        id,
        "session.create",
        json!({"sessionId": session, "model": "m"}),
    )
}

fn methods(rig: &mut Rig, backend: &str) -> Vec<Value> {
    rig.heard(backend)
        .iter()
        .map(|frame| frame["method"].clone())
        .collect()
}

#[test]
fn a_session_is_claimed_while_it_is_attached_or_attaching() {
    let mut rig = Rig::manual();
    rig.client(&create(1, "s1"));
    assert!(rig.claims.is_empty());
    let question = rig.asked();
    assert_eq!(question.purpose, Purpose::Create);
    rig.locate(&question, "b");
    assert_eq!(rig.claims.len(), 1);
    let (slot, _) = rig.connecting();
    rig.accept(slot, "b");
    rig.greet("b");
    rig.backend("b", &result(1, json!({"sessionId": "s1"})));
    let placed = rig.logged(|o| match o {
        Output::Event(Event::Placement {
            session, backend, ..
        }) => Some((session.to_string(), backend.to_string())),
        _ => None,
    });
    assert_eq!(placed, [("s1".to_owned(), "b".to_owned())]);
    // From now on nobody is asked.
    rig.client(&request(
        2,
        "session.getMessages",
        json!({"sessionId": "s1"}),
    ));
    assert!(rig.locates.is_empty());
    rig.client(&request(3, "session.detach", json!({"sessionId": "s1"})));
    rig.backend("b", &result(3, json!({"success": true})));
    assert!(rig.claims.is_empty() && rig.mux.entries.is_empty());
}

#[test]
fn a_create_that_fails_gives_its_claim_back() {
    let mut rig = Rig::new();
    rig.client(&create(1, "s1"));
    assert_eq!(rig.claims.len(), 1);
    rig.backend("a", &failure(1, "Rejected session.create request"));
    assert_eq!(rig.said_one()["id"], json!(1));
    assert!(rig.claims.is_empty() && rig.mux.entries.is_empty());
    // One of two at once.
    rig.client(&create(2, "s1"));
    rig.client(&create(3, "s1"));
    assert_eq!(rig.heard_ids("a"), [json!(1), json!(2), json!(3)]);
    rig.backend("a", &failure(2, "no"));
    assert_eq!(rig.claims.len(), 1);
    rig.backend("a", &result(3, json!({"sessionId": "s1"})));
    assert_eq!(rig.claims.len(), 1);
    rig.backend("a", &event("s1", "user.message", json!({})));
    assert_eq!(rig.mux.open_turns(), 1, "attached by the second");
}

#[test]
fn create_on_a_session_with_history_resumes_it() {
    let mut rig = Rig::new();
    rig.history.insert("s1".into());
    let body = r#"{"params":{"sessionId":"s1","model":"m"},"id":1,"method":"session.create","jsonrpc":"2.0"}"#;
    rig.client(body);
    assert_eq!(
        rig.heard_raw("a"),
        [body.replace("session.create", "session.resume")]
    );
    rig.backend("a", &result(1, json!({"sessionId": "s1"})));
    assert_eq!(rig.said_one()["result"]["sessionId"], json!("s1"));
    let actions = rig.logged(|o| match o {
        Output::Event(Event::CreateExisting { action, .. }) => Some(*action),
        _ => None,
    });
    assert_eq!(actions, ["resume"]);
    assert_eq!(
        rig.mux.held_bytes, 0,
        "what was kept to fall back on is gone"
    );
    assert_eq!(rig.claims.len(), 1);
}

#[test]
fn if_there_is_nothing_to_resume_the_create_goes_out_as_written() {
    let mut rig = Rig::new();
    rig.history.insert("s1".into());
    rig.client(&create(1, "s1"));
    rig.heard("a");
    let words = "Request session.resume failed with message: Failed to load session events: \
                 Session not found: s1";
    rig.backend("a", &failure(1, words));
    rig.silent();
    assert_eq!(rig.heard_raw("a"), [create(1, "s1")]);
    rig.backend("a", &result(1, json!({"sessionId": "s1"})));
    assert_eq!(rig.said_one()["id"], json!(1));
    assert_eq!(rig.claims.len(), 1);
    // Only once.
    rig.client(&create(2, "s2"));
    rig.backend("a", &failure(2, words));
    assert_eq!(rig.said_one()["id"], json!(2));
    // Any other failure is the answer.
    rig.history.insert("s3".into());
    rig.client(&create(3, "s3"));
    rig.backend(
        "a",
        &failure(3, "External tool name clash: Session not found: s"),
    );
    assert_eq!(rig.said_one()["id"], json!(3));
    assert_eq!(rig.mux.held_bytes, 0);
}

#[test]
fn create_on_a_session_with_history_is_passed_or_rejected_where_so_configured() {
    let mut rig = Rig::new();
    rig.history.insert("s1".into());
    rig.settings.create_existing = CreateExisting::Pass;
    rig.client(&create(1, "s1"));
    assert_eq!(rig.heard_raw("a"), [create(1, "s1")]);
    rig.backend("a", &failure(1, "no"));
    rig.said();

    rig.settings.create_existing = CreateExisting::Reject;
    rig.client(&create(2, "s1"));
    assert_eq!(rig.error(), (json!(2), -32014));
    assert!(rig.heard("a").is_empty() && rig.claims.is_empty() && rig.mux.entries.is_empty());
    // Resume is what the refusal recommends.
    rig.client(&request(3, "session.resume", json!({"sessionId": "s1"})));
    assert_eq!(methods(&mut rig, "a"), [json!("session.resume")]);
}

#[test]
fn a_rejected_create_does_not_take_what_is_behind_it_along() {
    let mut rig = Rig::manual();
    rig.history.insert("s1".into());
    rig.settings.create_existing = CreateExisting::Reject;
    rig.client(&create(1, "s1"));
    rig.client(&request(2, "session.resume", json!({"sessionId": "s1"})));
    rig.client(&create(3, "s1"));
    let question = rig.asked();
    rig.locate(&question, "a");
    let refused: Vec<Value> = rig.said().iter().map(|frame| frame["id"].clone()).collect();
    assert_eq!(refused, [json!(1), json!(3)]);
    assert_eq!(rig.claims.len(), 1, "the resume still holds it");
}

#[test]
fn a_create_without_an_id_is_adopted_under_the_id_that_the_backend_chose() {
    for params in [json!({}), json!({"sessionId": ""})] {
        let mut rig = Rig::manual();
        rig.client(&request(1, "session.create", params));
        let question = rig.asked();
        assert_eq!(
            (question.session.is_none(), question.purpose),
            (true, Purpose::Create)
        );
        rig.locate(&question, "c");
        let (slot, _) = rig.connecting();
        rig.accept(slot, "c");
        rig.greet("c");
        assert!(rig.claims.is_empty());
        rig.backend("c", &result(1, json!({"sessionId": "made-there"})));
        assert_eq!(rig.claims["made-there"], "c");
        assert_eq!(rig.said_one()["id"], json!(1));
        rig.client(&request(
            2,
            "session.getMessages",
            json!({"sessionId": "made-there"}),
        ));
        assert_eq!(rig.heard_ids("c"), [json!(1), json!(2)]);
        rig.pass(Duration::from_secs(100));
        assert_eq!(rig.sockets.len(), 1);
    }
}

#[test]
fn a_create_without_an_id_is_placed_although_an_upstream_connection_is_there() {
    let mut rig = Rig::new();
    rig.open("s1", "b");
    rig.client(&request(1, "session.create", json!({})));
    assert_eq!(
        rig.heard_ids("a"),
        [json!(1)],
        "where the shell says, not where it is easy"
    );
    rig.client(&request(2, "sessions.open", json!({"kind": "create"})));
    rig.backend(
        "a",
        &result(2, json!({"status": "created", "sessionId": "new"})),
    );
    assert_eq!(rig.claims["new"], "a");
}

#[test]
fn no_server_chooses_alone_which_session_was_last() {
    let mut rig = Rig::new();
    rig.client(&request(1, "sessions.open", json!({"kind": "resumeLast"})));
    assert_eq!(rig.error(), (json!(1), -32014));
    assert!(rig.heard_ids("a").is_empty() && rig.claims.is_empty());
}

#[test]
fn sessions_open_attaches_by_any_of_its_ids_unless_it_finds_nothing() {
    let mut rig = Rig::new();
    let open = |id: i64, params: Value| request(id, "sessions.open", params);
    rig.client(&open(1, json!({"kind": "attach", "sessionId": "s1"})));
    rig.client(&open(
        2,
        json!({"kind": "create", "options": {"sessionId": "s2"}}),
    ));
    rig.client(&open(3, json!({"kind": "resume", "sessionId": "s3"})));
    assert_eq!(rig.claims.len(), 3);
    rig.backend(
        "a",
        &result(1, json!({"status": "resumed", "sessionId": "s1"})),
    );
    rig.backend(
        "a",
        &result(2, json!({"status": "created", "sessionId": "s2"})),
    );
    rig.backend("a", &result(3, json!({"status": "not_found"})));
    assert_eq!(rig.claims.keys().collect::<Vec<_>>(), ["s1", "s2"]);
}

#[test]
fn detach_of_a_session_that_is_not_attached_here_needs_no_backend() {
    let mut rig = Rig::new();
    rig.open("s1", "b");
    rig.homes.insert("s2".into(), "c".into());
    for (id, method, success) in [(1, "session.destroy", false), (2, "session.detach", true)] {
        rig.client(&request(id, method, json!({"sessionId": "s2"})));
        assert_eq!(rig.said_one()["result"]["success"], json!(success));
    }
    assert!(rig.heard_ids("b").is_empty());
    assert_eq!((rig.claims.len(), rig.mux.entries.len()), (1, 1));
    // Twice.
    rig.client(&request(3, "session.detach", json!({"sessionId": "s1"})));
    rig.backend("b", &result(3, json!({"success": true})));
    assert_eq!(rig.said_one()["id"], json!(3));
    rig.client(&request(4, "session.detach", json!({"sessionId": "s1"})));
    assert_eq!(rig.said_one()["result"]["success"], json!(true));
    assert!(rig.claims.is_empty() && rig.mux.entries.is_empty());
}

fn told(rig: &mut Rig) -> Vec<String> {
    rig.logged(|output| match output {
        Output::Release(session) => Some(format!("release {session}")),
        Output::Adopt { session, backend } => Some(format!("adopt {session} {backend}")),
        Output::Closed { session, backend } => Some(format!("closed {session} {backend}")),
        Output::Deleted(session) => Some(format!("deleted {session}")),
        Output::History { session, backend } => Some(format!("history {session} {backend}")),
        Output::Forked {
            source,
            copy,
            backend,
        } => Some(format!("{copy} of {source} {backend}")),
        _ => None,
    })
}

#[test]
fn the_directory_is_told_of_close_delete_fork_and_history() {
    let mut rig = Rig::new();
    for session in ["s1", "s2", "s3", "s4"] {
        rig.open(session, "b");
    }
    rig.client(&request(1, "sessions.close", json!({"sessionId": "s1"})));
    rig.backend("b", &result(1, json!({})));
    assert_eq!(told(&mut rig), ["closed s1 b"]);
    rig.client(&request(2, "session.delete", json!({"sessionId": "s2"})));
    rig.backend(
        "b",
        &result(
            2,
            json!({"success": false, "error": "Session file not found for s2"}),
        ),
    );
    assert_eq!(told(&mut rig), [""; 0]);
    rig.client(&request(3, "session.delete", json!({"sessionId": "s2"})));
    rig.backend("b", &result(3, json!({"success": true})));
    assert_eq!(told(&mut rig), ["deleted s2"]);
    rig.client(&request(4, "sessions.fork", json!({"sessionId": "s3"})));
    rig.backend("b", &result(4, json!({"sessionId": "copy"})));
    assert_eq!(told(&mut rig), ["copy of s3 b"]);
    rig.backend("b", &event("s4", "user.message", json!({"messageId": "m"})));
    assert_eq!(told(&mut rig), ["history s4 b"]);
    // What failed changes nothing.
    for (id, method) in [
        (5, "session.detach"),
        (6, "sessions.close"),
        (7, "session.delete"),
    ] {
        rig.client(&request(id, method, json!({"sessionId": "s3"})));
        rig.backend("b", &failure(id, "no"));
    }
    assert_eq!(told(&mut rig), [""; 0]);
    assert_eq!(rig.claims.keys().collect::<Vec<_>>(), ["s3", "s4"]);
}

#[test]
fn a_delete_is_located_as_such_also_behind_other_questions() {
    let mut rig = Rig::manual();
    let params = json!({"sessionId": "s1"});
    rig.client(&request(1, "session.getMessages", params.clone()));
    rig.client(&request(2, "session.delete", params.clone()));
    rig.client(&request(3, "session.getMessages", params));
    rig.client(&create(4, "s1"));
    let question = rig.asked();
    assert_eq!(question.purpose, Purpose::Use);
    rig.locate(&question, "a");
    let (slot, _) = rig.connecting();
    rig.accept(slot, "a");
    rig.greet("a");
    assert_eq!(rig.heard_ids("a"), [json!(1)]);
    let question = rig.asked();
    assert_eq!(question.purpose, Purpose::Delete);
    rig.locate(&question, "a");
    assert_eq!(rig.heard_ids("a"), [json!(2), json!(3)]);
    let question = rig.asked();
    assert_eq!(question.purpose, Purpose::Create);
    rig.locate(&question, "a");
    assert_eq!(rig.heard_ids("a"), [json!(4)]);
}

#[test]
fn a_failed_location_fails_what_it_was_for_and_asks_anew_for_the_rest() {
    let mut rig = Rig::manual();
    rig.client(&request(
        1,
        "session.getMessages",
        json!({"sessionId": "s1"}),
    ));
    rig.client(&request(
        2,
        "session.getMessages",
        json!({"sessionId": "s1"}),
    ));
    rig.client(&create(3, "s1"));
    rig.client(&request(
        4,
        "session.getMessages",
        json!({"sessionId": "s1"}),
    ));
    let question = rig.asked();
    rig.refuse_locate(&question);
    let said = rig.said();
    let failed: Vec<_> = said
        .iter()
        .map(|f| (&f["id"], &f["error"]["code"]))
        .collect();
    assert_eq!(
        failed,
        [(&json!(1), &json!(-32010)), (&json!(2), &json!(-32010))]
    );
    let question = rig.asked();
    assert_eq!(question.purpose, Purpose::Create);
    rig.refuse_locate(&question);
    assert_eq!(rig.error(), (json!(3), -32010));
    let question = rig.asked();
    assert_eq!(question.purpose, Purpose::Use);
    rig.refuse_locate(&question);
    assert_eq!(rig.error(), (json!(4), -32010));
    assert!(rig.mux.entries.is_empty() && rig.mux.held_bytes == 0);
}

#[test]
fn a_resume_that_cannot_be_located_leaves_an_attached_session_attached() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.shell = super::rig::Shell::Manual;
    rig.client(&request(1, "session.resume", json!({"sessionId": "s1"})));
    let question = rig.asked();
    rig.refuse_locate(&question);
    assert_eq!(rig.error(), (json!(1), -32010));
    assert_eq!(rig.claims.len(), 1);
    rig.client(&request(
        2,
        "session.getMessages",
        json!({"sessionId": "s1"}),
    ));
    assert_eq!(rig.heard_ids("a"), [json!(2)]);
}

#[test]
fn not_found_on_an_attached_session_means_that_it_was_closed() {
    let mut rig = Rig::new();
    rig.open("s1", "b");
    rig.client(&request(
        1,
        "session.getMessages",
        json!({"sessionId": "s1"}),
    ));
    rig.backend("b", &not_found(1, "session.getMessages", "s1"));
    assert_eq!(
        rig.said_one()["error"]["code"],
        json!(-32603),
        "the client is told as it came"
    );
    assert_eq!(told(&mut rig), ["closed s1 b"]);
    assert!(rig.claims.is_empty() && rig.mux.entries.is_empty());
    // Next time it is looked for.
    rig.homes.insert("s1".into(), "c".into());
    rig.client(&request(2, "session.resume", json!({"sessionId": "s1"})));
    assert_eq!(rig.heard_ids("c"), [json!(2)]);
    // Not attached: nothing to conclude.
    rig.client(&request(
        3,
        "session.getMessages",
        json!({"sessionId": "s9"}),
    ));
    rig.backend("a", &not_found(3, "session.getMessages", "s9"));
    let reasons = rig.logged(|output| match output {
        Output::Event(Event::SessionNotFound { reason, .. }) => Some(reason.label()),
        _ => None,
    });
    assert_eq!(reasons, ["unknown"]);
}

#[test]
fn not_found_about_something_else_or_about_earlier_closes_nothing() {
    let mut rig = Rig::new();
    rig.open("s1", "b");
    let set = json!({"sessionId": "s1", "inheritPlanBaseFromSessionId": "s2"});
    rig.client(&request(1, "session.mode.set", set));
    rig.backend("b", &not_found(1, "session.mode.set", "s2"));
    rig.client(&request(
        2,
        "session.shell.exec",
        json!({"sessionId": "s1"}),
    ));
    rig.backend("b", &failure(2, "grep: Session not found in s1"));
    assert_eq!(told(&mut rig), [""; 0]);

    // Written behind a resume, answered behind it: the session was not open when it was judged.
    rig.client(&request(3, "session.detach", json!({"sessionId": "s1"})));
    rig.backend("b", &result(3, json!({"success": true})));
    rig.client(&request(4, "session.resume", json!({"sessionId": "s1"})));
    rig.client(&request(
        5,
        "session.getMessages",
        json!({"sessionId": "s1"}),
    ));
    rig.backend("b", &result(4, json!({})));
    rig.log.clear();
    rig.backend("b", &not_found(5, "session.getMessages", "s1"));
    assert_eq!(told(&mut rig), [""; 0]);
    assert_eq!(rig.claims.len(), 1);
}

#[test]
fn a_session_that_is_closed_under_a_resume_is_claimed_anew_for_the_resume() {
    let mut rig = Rig::new();
    rig.open("s1", "b");
    rig.client(&request(1, "session.resume", json!({"sessionId": "s1"})));
    rig.client(&request(2, "sessions.close", json!({"sessionId": "s1"})));
    rig.backend("b", &result(2, json!({})));
    assert_eq!(
        told(&mut rig),
        ["closed s1 b", "adopt s1 b"],
        "else another may open it elsewhere"
    );
    rig.backend("b", &result(1, json!({"sessionId": "s1"})));
    assert_eq!(told(&mut rig), [""; 0]);
    assert_eq!(rig.claims.len(), 1);
}

#[test]
fn what_one_backend_closes_stays_attached_at_another() {
    let mut rig = Rig::new();
    rig.homes.insert("s1".into(), "b".into());
    rig.client(&request(1, "sessions.close", json!({"sessionId": "s1"})));
    rig.open("s1", "c");
    rig.backend("b", &result(1, json!({"success": true})));
    assert_eq!(rig.claims["s1"], "c");
    rig.client(&request(
        2,
        "session.getMessages",
        json!({"sessionId": "s1"}),
    ));
    assert_eq!(rig.heard_ids("c"), [json!(2)]);
}

#[test]
fn a_session_that_is_found_elsewhere_moves_there_with_all_its_counts() {
    let mut rig = Rig::new();
    rig.open("s1", "b");
    // Somebody closed it and opened it at c. A resume is under way at b meanwhile.
    rig.client(&request(1, "session.resume", json!({"sessionId": "s1"})));
    rig.backend("b", &event("s1", "user.message", json!({"messageId": "m"})));
    rig.said();
    rig.homes.insert("s1".into(), "c".into());
    rig.client(&request(2, "session.resume", json!({"sessionId": "s1"})));
    assert_eq!(rig.heard_ids("c"), [json!(2)]);
    let said = rig.said();
    let ends: Vec<&Value> = said.iter().map(|f| &f["params"]["event"]["type"]).collect();
    assert_eq!(
        ends,
        ["session.error", "session.idle"],
        "nobody at b will end that turn"
    );
    rig.backend("c", &result(2, json!({})));
    rig.backend("b", &result(1, json!({})));
    assert_eq!(rig.said().len(), 2);
    // An echo of b would disturb the order of c's events.
    rig.backend("b", &event("s1", "assistant.message_delta", json!({})));
    rig.silent();
    rig.backend("c", &event("s1", "assistant.message_delta", json!({})));
    assert_eq!(rig.said().len(), 1);
    // And back while an answer of c is out.
    rig.client(&request(3, "session.resume", json!({"sessionId": "s1"})));
    rig.homes.insert("s1".into(), "b".into());
    rig.client(&request(4, "session.resume", json!({"sessionId": "s1"})));
    rig.backend("c", &failure(3, "no"));
    rig.backend("b", &result(4, json!({})));
    assert_eq!(rig.claims.len(), 1);
    rig.pass(Duration::from_secs(31));
    assert_eq!(rig.sockets.len(), 1, "c is not needed any more, b is");
}

#[test]
fn an_answer_that_comes_too_late_for_everybody_claims_nothing() {
    let mut rig = Rig::manual();
    rig.client(&create(1, "s1"));
    let question = rig.asked();
    rig.hang_up();
    let ticket = question.ticket;
    rig.step(&[], |mux, cx, out| {
        let located = crate::core::mux::Located {
            parked: None,
            backend: "a".into(),
            reason: crate::core::event::PlacementReason::Hash,
            has_history: false,
            relation: crate::core::access::Relation::Anybody,
        };
        mux.handle_located(cx, ticket, Ok(located), out);
        0
    });
    assert!(rig.connects.is_empty());
    assert!(rig.mux.is_closed());
}

#[test]
fn a_create_where_a_session_should_be_open_never_starts_over() {
    // Its owner may have been restarted since, or chosen a moment ago.
    for (history, method) in [(true, "session.resume"), (false, "session.create")] {
        let mut rig = Rig::new();
        if history {
            rig.history.insert("s1".into());
        }
        rig.open_there.insert("s1".into());
        rig.client(&request(1, "session.create", json!({"sessionId": "s1"})));
        assert_eq!(rig.heard("a")[0]["method"], json!(method));
    }
}

/// Deleted where it was before, and running where it is being resumed: when that fails, nobody hears
/// of its turn any more.
#[test]
fn a_turn_ends_with_the_attach_that_it_was_heard_by() {
    let mut rig = Rig::new();
    rig.open("s1", "a");
    rig.client(&request(1, "session.delete", json!({"sessionId": "s1"})));
    rig.client(&request(2, "session.resume", json!({"sessionId": "s1"})));
    rig.backend("a", &result(1, json!({"success": true})));
    let message = json!({"messageId": "m"});
    rig.backend("a", &event("s1", "user.message", message));
    assert_eq!(rig.mux.open_turns(), 1);
    rig.backend("a", &failure(2, "no"));
    assert_eq!(rig.mux.open_turns(), 0);
}
