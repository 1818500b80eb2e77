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

/// A row of `docs/methods.tsv`, whose middle columns follow from the code.
fn documented_row(method: &str, note: &str) -> String {
    let from_backend = classify_backend(method.as_bytes());
    if from_backend != BackendClass::Unknown && from_backend != BackendClass::Cancel {
        let class = documented_backend_name(from_backend);
        return format!("{method}\t{class}\t-\t-\t{note}");
    }
    let (class, policy) = look_up(method);
    let unknown = match class {
        Class::Session
        | Class::Create
        | Class::Resume
        | Class::Open
        | Class::Fork
        | Class::Detach
        | Class::Delete
        | Class::Close
        | Class::Send(_)
        | Class::Abort
        | Class::IdsArray(_)
        | Class::RemoteControl => unknown::tests::documented(method),
        Class::Ping
        | Class::Connect
        | Class::Aggregate(_)
        | Class::Any
        | Class::ServerWide(_)
        | Class::Provider(_)
        | Class::ByRequestId
        | Class::Cancel
        | Class::Denied(_)
        | Class::Unknown => "-".to_owned(),
    };
    let class = documented_name(class);
    format!("{method}\t{class}\t{}\t{unknown}\t{note}", policy.word())
}

#[test]
fn every_documented_method_is_as_documented() {
    const HEADER: &str = "method\tclass\tpolicy\tunknown_session\tnote";
    let mut rows = DOCUMENTED.lines();
    let mut wanted = HEADER.to_owned() + "\n";
    let columns = rows.next().map_or(0, |header| header.split('\t').count());
    let mut seen = Vec::new();
    for row in rows {
        let method = row.split('\t').next().unwrap_or_default();
        let note = row.split('\t').nth(columns - 1).unwrap_or_default();
        assert!(!seen.contains(&method), "{method} is there twice");
        wanted += &documented_row(method, note);
        wanted += "\n";
        seen.push(method);
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/methods.tsv");
        std::fs::write(path, wanted).expect("docs/methods.tsv can be written");
        return;
    }
    for (row, wanted) in DOCUMENTED.lines().zip(wanted.lines()) {
        assert_eq!(
            row, wanted,
            "UPDATE_DOCS=1 writes what follows from the code"
        );
    }
    assert!(
        seen.len() > 400,
        "the whole protocol, not only {}",
        seen.len()
    );
    let known = METHODS.iter().map(|(method, ..)| *method);
    for method in known.chain(catalog::session_methods()) {
        assert!(seen.contains(&method), "{method} is not documented");
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
        classify_backend(b"session.fromTheFuture"),
        BackendClass::Unknown
    );
}

#[test]
fn only_what_ends_the_server_is_denied_to_everybody() {
    let denied = |(_, class, policy): &&(&str, Class, Policy)| {
        let never = matches!(policy, Policy::Never(_));
        assert_eq!(matches!(class, Class::Denied(_)), never);
        never
    };
    let denied: Vec<&str> = METHODS.iter().filter(denied).map(|row| row.0).collect();
    assert_eq!(denied, ["runtime.shutdown"]);
}

#[test]
fn only_what_reaches_further_than_its_caller_is_denied_to_tenants() {
    let of = |method: &str| verdict(Profile::MultiTenant, look_up(method).1);
    for method in [
        "ping",
        "connect",
        "models.list",
        "status.get",
        "session.create",
        "session.send",
        "session.list",
        "session.options.update",
        "session.sendAndWait",
        "session.fromTheFuture",
        "session.permissions.setMode",
        "session.gitHubAuth.getStatus",
        "session.permissions.locations.apply",
        "sessions.open",
        "sessions.bulkDelete",
        "llmInference.httpResponseStart",
    ] {
        assert_eq!(of(method), Verdict::Allowed, "{method}");
    }
    for method in [
        "runtime.shutdown",
        "account.getQuota",
        "mcp.config.add",
        "llmInference.setProvider",
        "plugins.builtin.set",
        "session.shell.exec",
        "session.shell.fromTheFuture",
        "session.gitHubAuth.login",
        "session.tools.execute",
        "sessions.pruneOld",
        "sessions.startRemoteControl",
        "sessions.getEventFilePath",
    ] {
        assert!(matches!(of(method), Verdict::Denied(_)), "{method}");
    }
    for method in ["sessions.fromTheFuture", "tomorrow", ""] {
        assert_eq!(of(method), Verdict::Unlisted, "{method}");
    }
    for method in methods() {
        let single = verdict(Profile::SingleTenant, look_up(method).1);
        assert_eq!(
            matches!(single, Verdict::Denied(_)),
            method == "runtime.shutdown",
            "{method}"
        );
    }
}

#[test]
fn what_is_looked_up_is_what_the_table_says() {
    for (method, class, policy) in METHODS {
        assert_eq!(look_up(method), (*class, *policy), "{method}");
    }
}
