//! Every event as its log line and its counters, with identities plain and hashed.

use std::sync::Arc;

use serde_json::{Value, json};
use tracing::Level;

use super::*;
use crate::{
    core::{
        access::Denial,
        event::{ClosedBy, Identities, LogFormat, NotFound, PlacementReason, TurnOutcome},
        id::{BackendName, ConnectionId, SessionId},
        snapshot::{AdminState, Health},
    },
    observe::log::tests::captured,
};

fn turn() -> TurnRecord {
    TurnRecord {
        principal: Some("sso/alice".into()),
        reference: 17,
        user: Some(Arc::from("alice")),
        session: SessionId::from("user-alice--1"),
        backend: BackendName::from("cli-1"),
        client: "127.0.0.1:5000".parse().unwrap(),
        queued: Duration::from_micros(1500),
        first_event: Some(Duration::from_millis(420)),
        duration: Duration::from_secs(3),
        outcome: TurnOutcome::Ok,
        closed_by: ClosedBy::Backend,
        events: 9,
        bytes: 4096,
        trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736".into()),
    }
}

/// The lines of events, as JSON without the time stamp.
fn json_lines(observer: &Observer, events: &[Event]) -> Vec<Value> {
    let text = captured(LogFormat::Json, Level::DEBUG, || {
        for event in events {
            observer.record(event);
        }
    });
    text.lines()
        .map(|line| {
            let mut line: Value = serde_json::from_str(line).unwrap();
            assert!(line.as_object_mut().unwrap().remove("timestamp").is_some());
            line
        })
        .collect()
}

fn every_event() -> Vec<(Event, &'static str)> {
    let connection = ConnectionId(4);
    let client = "127.0.0.1:5000".parse().unwrap();
    let session = SessionId::from("s-1");
    let backend = BackendName::from("cli-1");
    let text: Arc<str> = Arc::from("why");
    let denied = |code| Event::ErrorAnswered {
        reference: 3,
        connection,
        method: Arc::from("session.shell.exec"),
        session: Some(SessionId::from("s-1")),
        code,
        message: Arc::from("not allowed for s-1"),
    };
    vec![
        (Event::ConnectionOpened { connection, client }, "connection"),
        (
            Event::ConnectionClosed {
                connection,
                client,
                closed_by: ClosedBy::Proxy,
                reason: text.clone(),
                duration: Duration::from_secs(1),
            },
            "connection",
        ),
        (
            Event::UpstreamLost {
                connection,
                backend: backend.clone(),
                calls: 2,
                turns: 1,
                reason: text.clone(),
            },
            "backend",
        ),
        (
            Event::Placement {
                connection,
                session: session.clone(),
                backend: backend.clone(),
                reason: PlacementReason::Bounded,
            },
            "placement",
        ),
        (Event::Turn(Box::new(turn())), "turn"),
        (denied(-32014), "denied"),
        (denied(-32601), "denied"),
        (denied(-32010), "error"),
        (
            Event::LimitHit {
                connection: None,
                limit: "limits.frame",
            },
            "limit",
        ),
        (
            Event::CreateExisting {
                session,
                action: "resume",
            },
            "session",
        ),
        (
            Event::SessionNotFound {
                session: SessionId::from("s-1"),
                reason: NotFound::Unknown,
            },
            "session",
        ),
        (
            Event::Denied {
                connection,
                principal: Some(Arc::from("alice")),
                method: Arc::from("session.send"),
                session: SessionId::from("s-1"),
                reason: Denial::OtherUser,
            },
            "denied",
        ),
        (
            Event::Withheld {
                connection,
                reason: "not_attached",
            },
            "connection",
        ),
        (
            Event::BackendHealth {
                backend: backend.clone(),
                from: Health::Up,
                to: Health::Down,
                reason: text.clone(),
                cause: Some("silent"),
            },
            "backend",
        ),
        (
            Event::BackendAdmin {
                backend: backend.clone(),
                from: AdminState::Ready,
                to: AdminState::Maint,
                by: "operator",
            },
            "backend",
        ),
        (
            Event::BackendAdded {
                backend: backend.clone(),
                address: text.clone(),
            },
            "backend",
        ),
        (
            Event::BackendRemoved {
                backend: backend.clone(),
                sessions: 2,
            },
            "backend",
        ),
        (
            Event::BackendReleased {
                backend: backend.clone(),
                how: How::Fenced,
                silent: Duration::from_secs(10),
                fence: Some(text.clone()),
            },
            "backend",
        ),
        (
            Event::BackendReleased {
                backend: backend.clone(),
                how: How::Unfenced,
                silent: Duration::from_secs(10),
                fence: None,
            },
            "backend",
        ),
        (
            Event::BackendReleased {
                backend: backend.clone(),
                how: How::Gone,
                silent: Duration::ZERO,
                fence: None,
            },
            "backend",
        ),
        (
            Event::FenceFailed {
                backend: backend.clone(),
                reason: text.clone(),
            },
            "backend",
        ),
        (
            Event::BackendReturned {
                backend: backend.clone(),
                closed: 3,
            },
            "backend",
        ),
        (
            Event::BackendViolation {
                backend: backend.clone(),
                what: text.clone(),
            },
            "backend",
        ),
        (
            Event::Reload {
                ok: true,
                trigger: "signal",
                summary: text.clone(),
            },
            "reload",
        ),
        (
            Event::Reload {
                ok: false,
                trigger: "file",
                summary: text.clone(),
            },
            "reload",
        ),
        (
            Event::Drain {
                phase: "turns",
                connections: 3,
                turns: 1,
            },
            "drain",
        ),
        (
            Event::AdminCall {
                client,
                action: Arc::from("POST /x"),
                ok: false,
            },
            "admin",
        ),
        (
            Event::StoreOpened {
                path: text.clone(),
                is_new: false,
                sessions: 3,
                forgotten: 1,
                other_mode: None,
            },
            "store",
        ),
        (
            Event::StoreOpened {
                path: text.clone(),
                is_new: true,
                sessions: 0,
                forgotten: 0,
                other_mode: Some("sticky"),
            },
            "store",
        ),
        (
            Event::StoreFailed {
                op: "write",
                reason: text.clone(),
                waiting: 7,
                goes_down: true,
            },
            "store",
        ),
        (Event::StoreBack, "store"),
        (
            Event::NotAdmitted {
                client,
                reason: NotAdmitted::Certificate,
                detail: "its certificate has expired".into(),
            },
            "connection",
        ),
        (
            Event::NotAdmitted {
                client,
                reason: NotAdmitted::Left,
                detail: "the client left".into(),
            },
            "connection",
        ),
        (
            Event::NotAdmittedMore {
                count: 1234,
                over: Duration::from_secs(10),
            },
            "connection",
        ),
        (
            Event::ManagedServer {
                backend,
                what: text,
                pid: Some(77),
            },
            "backend",
        ),
        (
            Event::Authenticated {
                connection,
                client,
                principal: "sso/alice".into(),
                user: "alice".into(),
                how: "jwt",
            },
            "connection",
        ),
        (
            Event::AuthenticationFailed {
                connection,
                client,
                reason: "expired",
                wait: Some(Duration::from_millis(200)),
            },
            "denied",
        ),
        (
            Event::Revoked {
                connection,
                client,
                principal: "sso/alice".into(),
                user: "alice".into(),
            },
            "connection",
        ),
        (
            Event::FrameCut {
                connection,
                backend: "cli-1".into(),
            },
            "backend",
        ),
    ]
}

#[test]
fn the_line_of_a_turn_has_every_field() {
    let observer = Observer::new(Identities::Plain);
    let lines = json_lines(&observer, &[Event::Turn(Box::new(turn()))]);
    let line = json!({
        "level": "INFO",
        "target": "taxiway",
        "message": "turn",
        "ref": 17,
        "principal": "sso/alice",
        "user": "alice",
        "session": "user-alice--1",
        "backend": "cli-1",
        "client_addr": "127.0.0.1:5000",
        "queue_ms": 1.5,
        "first_event_ms": 420.0,
        "duration_ms": 3000.0,
        "outcome": "ok",
        "closed_by": "backend",
        "events": 9,
        "bytes": 4096,
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    });
    assert_eq!(lines, [line]);
}

#[test]
fn what_is_not_known_is_left_out() {
    let observer = Observer::new(Identities::Plain);
    let bare = TurnRecord {
        principal: None,
        user: None,
        first_event: None,
        trace_id: None,
        ..turn()
    };
    let lines = json_lines(&observer, &[Event::Turn(Box::new(bare))]);
    for field in ["principal", "user", "first_event_ms", "trace_id"] {
        assert!(lines[0].get(field).is_none(), "{field} in {}", lines[0]);
    }
}

#[test]
fn text_lines_can_be_read_and_not_forged() {
    let observer = Observer::new(Identities::Plain);
    let forged = TurnRecord {
        user: Some(Arc::from("eve\nINFO taxiway: turn \u{1b}[2J")),
        ..turn()
    };
    let text = captured(LogFormat::Text, Level::INFO, || {
        observer.record(&Event::Turn(Box::new(turn())));
        observer.record(&Event::Turn(Box::new(forged)));
    });
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(!text.contains('\u{1b}'), "{text}");
    let start = r#" INFO taxiway: turn ref=17 principal="sso/alice" user="alice" session="user-"#;
    assert!(text.contains(start), "{text}");
}

#[test]
fn hashed_identities_hide_names_and_stay_recognisable() {
    let observer = Observer::new(Identities::Hash);
    let events: Vec<Event> = every_event().into_iter().map(|(event, _)| event).collect();
    let lines = json_lines(&observer, &events);
    let text = format!("{lines:?}");
    for name in ["alice", "s-1"] {
        assert!(!text.contains(name), "{name} in {text}");
    }
    let sessions: Vec<&Value> = lines
        .iter()
        .filter_map(|line| line.get("session"))
        .collect();
    assert!(
        sessions
            .iter()
            .all(|s| s.as_str().unwrap().starts_with("h:"))
    );
    // The placement's and the errors' session is one, the turn's another.
    assert_eq!(sessions[0], sessions[2]);
    assert_ne!(sessions[0], sessions[1]);
    // Another process has other keys.
    let other = json_lines(&Observer::new(Identities::Hash), &events);
    assert_ne!(other[3]["session"], lines[3]["session"]);
    // And a reload may switch it off.
    observer.set_identities(Identities::Plain);
    assert_eq!(json_lines(&observer, &events)[3]["session"], "s-1");
}

#[test]
fn every_event_is_one_line_of_its_name() {
    let observer = Observer::new(Identities::Plain);
    for (event, name) in every_event() {
        let lines = json_lines(&observer, std::slice::from_ref(&event));
        assert_eq!(lines.len(), 1, "{event:?}");
        assert_eq!(lines[0]["message"], name, "{event:?}");
        assert_eq!(lines[0]["target"], "taxiway");
    }
}

#[test]
fn each_event_moves_its_counter_once() {
    let observer = Observer::new(Identities::Plain);
    observer.metrics().reload(true, 1.0);
    for (event, _) in every_event() {
        observer.record(&event);
    }
    let text = observer.metrics().render();
    for line in [
        "taxiway_placements_total{backend=\"cli-1\",reason=\"bounded\"} 1",
        "taxiway_turns_total{backend=\"cli-1\",outcome=\"ok\"} 1",
        "taxiway_turn_duration_seconds_count 1",
        "taxiway_turn_first_event_seconds_count 1",
        "taxiway_errors_total{code=\"-32014\"} 1",
        "taxiway_access_denied_total{reason=\"method\"} 1",
        "taxiway_access_denied_total{reason=\"unknown_method\"} 1",
        "taxiway_auth_failures_total{reason=\"expired\"} 1",
        "taxiway_access_denied_total{reason=\"other_user\"} 1",
        "taxiway_frames_withheld_total{reason=\"not_attached\"} 1",
        "taxiway_limit_hits_total{limit=\"limits.frame\"} 1",
        "taxiway_cut_frames_total 1",
        "taxiway_session_create_existing_total{action=\"resume\"} 1",
        "taxiway_session_not_found_total{reason=\"unknown\"} 1",
        "taxiway_failovers_total{result=\"fenced\"} 1",
        "taxiway_failovers_total{result=\"unfenced\"} 1",
        "taxiway_failovers_total{result=\"fence_failed\"} 1",
        "taxiway_config_reloads_total{result=\"success\"} 2",
        "taxiway_config_reloads_total{result=\"failure\"} 1",
        "taxiway_config_last_reload_successful 0",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\nis not in\n{text}");
    }
    // The series of a backend that left do not come back with its last turn.
    observer
        .metrics()
        .forget_backend(&BackendName::from("cli-1"));
    observer.record(&Event::Turn(Box::new(turn())));
    let text = observer.metrics().render();
    assert!(!text.contains("cli-1"));
    assert!(
        !text.contains("result=\"gone\""),
        "that is no failure to decide"
    );
}

#[test]
fn texts_of_peers_are_clipped() {
    let observer = Observer::new(Identities::Plain);
    let long = TurnRecord {
        session: SessionId::from("ä".repeat(9000)),
        ..turn()
    };
    let lines = json_lines(&observer, &[Event::Turn(Box::new(long))]);
    assert_eq!(lines[0]["session"].as_str().unwrap().len(), 256);
}

#[test]
fn references_never_repeat() {
    let observer = Observer::new(Identities::Plain);
    let clone = observer.clone();
    assert_eq!(
        (
            observer.reference(),
            clone.reference(),
            observer.reference()
        ),
        (1, 2, 3)
    );
}
