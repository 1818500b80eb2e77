//! The table of methods against its documentation.

use super::*;

const DOCUMENTED: &str = include_str!("../../../docs/methods.tsv");

/// The class column of `docs/methods.tsv`: the metric label, and what it does not tell.
fn documented_name(class: Class) -> String {
    let detail = if class == Class::Send(SendKind::WaitFlag) {
        "/wait_flag"
    } else if class == Class::Send(SendKind::TurnEnd) {
        "/turn_end"
    } else if class == Class::ServerWide(Spread::OnDisk) {
        "/on_disk"
    } else if class == Class::ServerWide(Spread::InMemory) {
        "/in_memory"
    } else {
        ""
    };
    class_name(class).to_owned() + detail
}

fn documented_backend_name(class: BackendClass) -> &'static str {
    match class {
        BackendClass::Event => "from_backend/event",
        BackendClass::Lifecycle => "from_backend/lifecycle",
        BackendClass::HostEvent => "from_backend/host_event",
        BackendClass::Telemetry => "from_backend/telemetry",
        BackendClass::ShellExit => "from_backend/shell_exit",
        BackendClass::Session => "from_backend/session",
        BackendClass::Hook => "from_backend/hook",
        BackendClass::Provider(_) => "from_backend/provider",
        BackendClass::Token => "from_backend/token",
        BackendClass::Cancel => "cancel",
        BackendClass::Unknown => "from_backend/unknown",
    }
}

#[test]
fn tables_are_sorted_without_duplicates() {
    assert!(METHODS.is_sorted_by(|a, b| a.0 < b.0));
    assert!(BACKEND_METHODS.is_sorted_by(|a, b| a.0 < b.0));
}

#[test]
fn every_documented_method_is_classified_as_documented() {
    let mut rows = DOCUMENTED.lines();
    assert_eq!(rows.next(), Some("method\tclass\tnote"));
    let mut seen = Vec::new();
    for row in rows {
        let columns: Vec<&str> = row.split('\t').collect();
        let [method, class, _note] = columns[..] else {
            panic!("three columns: {row}")
        };
        if class.starts_with("from_backend/") {
            assert_eq!(
                documented_backend_name(classify_backend(method)),
                class,
                "{method}"
            );
        } else {
            assert_eq!(documented_name(classify(method)), class, "{method}");
        }
        seen.push(method);
    }
    assert!(
        seen.len() > 400,
        "the whole protocol, not only {}",
        seen.len()
    );
    for (method, _) in METHODS {
        assert!(seen.contains(method), "{method} is not documented");
    }
    for (method, _) in BACKEND_METHODS {
        assert!(seen.contains(method), "{method} is not documented");
    }
}

#[test]
fn unlisted_methods_follow_the_general_rule() {
    assert_eq!(classify("session.mode.set"), Class::Session);
    assert_eq!(classify("session.fromTheFuture"), Class::Session);
    assert_eq!(classify("session"), Class::Unknown);
    assert_eq!(classify("sessions.fromTheFuture"), Class::Unknown);
    assert_eq!(classify("SESSION.send"), Class::Unknown);
    assert_eq!(classify("session.send\0"), Class::Session);
    assert_eq!(classify(""), Class::Unknown);
    assert_eq!(
        classify_backend("session.fromTheFuture"),
        BackendClass::Unknown
    );
}

#[test]
fn only_what_ends_the_server_is_denied_to_everybody() {
    let denied: Vec<&str> = METHODS
        .iter()
        .filter(|(_, class)| matches!(class, Class::Denied(_)))
        .map(|(method, _)| *method)
        .collect();
    assert_eq!(denied, ["runtime.shutdown"]);
}
