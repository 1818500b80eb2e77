//! What a good file gives: defaults, values, the page of all keys, the command. Wrong files are in
//! `wrong`, reloads in `reload`.

use std::{collections::BTreeSet, path::Path, time::Duration};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    reference::{Absent, Kind, SECTIONS, Shape},
    *,
};

mod check_command;
mod failover;
mod fair;
mod identity;
mod reload;
mod store;
mod tls;
mod weak;
mod wrong;

const MINIMAL: &str = "[[backends]]\nname = \"a\"\naddress = \"127.0.0.1:5001\"\n";

/// Every key with a value that is not its default.
const EVERYTHING: &str = concat!(
    r#"
[listener]
address = "127.0.0.1:5321"
tcp_keepalive = "0s"
handshake_timeout = "11s"
write_stall = "31s"
allow_anonymous = true
allow_from = ["10.0.0.0/8"]
proxy_protocol = "required"
proxy_protocol_from = ["10.0.0.1"]
[admin]
address = "127.0.0.1:6321"
token_env = "ADMIN"
[routing]
mode = "shared-storage"
key = "session"
placement = "p2c"
load_factor = 0
granularity = "session"
aggregate_timeout = "250ms"
home_wait = "0s"
[identity]
session_id_user = '^(?<user>[a-z]+)-'
adopt_by = "ann"
revoke_grace = "2m"
tokens_file = '"#,
    env!("CARGO_MANIFEST_DIR"),
    r#"/src/config/tests/tokens.txt'
[[identity.principals]]
name = "ann"
role = "service"
realm = "acme"
groups = ["dev", "ops"]
token_env = "ANN"
tls_name = "ann.example"
allow = "sessions.*"
deny = ["session.shell.exec"]
connections = 3
sessions = 0
turns = 5
calls_per_second = 0
bytes_per_second = "0B"
[[identity.jwt]]
name = "sso"
issuer = "https://sso.example"
audience = "copilot"
key_file = '"#,
    env!("CARGO_MANIFEST_DIR"),
    r#"/src/core/credential/tests/ed25519.pub.pem'
jwks_file = '"#,
    env!("CARGO_MANIFEST_DIR"),
    r#"/src/config/tests/jwks.json'
secret_env = "JWT"
user_claim = "email"
groups_claim = "groups"
realm = "acme"
realm_claim = "tenant"
role = "service"
leeway = "0s"
allow = ["a", "b*"]
deny = "c"
[[identity.shared]]
pattern = "team-.*"
groups = "dev"
[access]
profile = "multi-tenant"
allow = ["session.shell.*"]
deny = ["session.abort"]
deny_params = ["mcpServers.*.command"]
[sessions]
create_existing = "reject"
detach_grace = "1m"
turn_stall = "10m"
turn_lock = "reject"
turn_lock_timeout = "1m"
turn_lock_holder = "send"
turn_max = "0s"
max_open_per_user = 7
turn_stall_action = "end"
[health]
interval = "1m"
timeout = "3s"
unhealthy_after = 4
healthy_after = 5
slow_start = "0s"
max_ejected = 1
[failover]
hang_timeout = "0s"
fence_command = ["./fence", "{name}", "{address}"]
fence_timeout = "5s"
[drain]
timeout = "1h30m"
accept_grace = "0s"
[upgrade]
socket = "run/upgrade.sock"
timeout = "1h"
[limits]
frame = "1GiB"
header = "4KiB"
cut_through_min = "2MiB"
frame_timeout = "1s"
calls_per_connection = 0x10
sessions_per_connection = 1_000
connections = 12
unauthenticated_connections = 5
unauthenticated_per_address = 2
directory_sessions = 2000
session_params = "64KiB"
connections_per_user = 3
turns_per_user = 4
calls_per_second = 50
bytes_per_second = "1MiB"
[log]
level = "trace"
format = "json"
identities = "hash"
[store]
kind = "memory"
path = "homes.db"
expire = "0s"
[[backends]]
name = "a"
address = "cli.example:5001"
weight = 1000
state = "maint"
connection_token_env = "CLI"
proxy_protocol = "v1"
[managed]
command = ["./bin/copilot", "--port={port}"]
servers = 2
state_dir = "homes"
start_timeout = "1m"
"#
);

fn environment(name: &str) -> Option<String> {
    match name {
        "HOME" => Some("/home/u".to_owned()),
        "ADMIN" => Some("s3cret-admin".to_owned()),
        "CLI" => Some("s3cret-cli\n".to_owned()),
        "ANN" => Some("s3cret-token-of-ann".to_owned()),
        "JWT" => Some("s3cret-of-more-than-thirty-two-bytes".to_owned()),
        "SHORT" => Some("s3cret".to_owned()),
        _ => None,
    }
}

fn read(text: &str) -> Result<Loaded, Failure> {
    parse(text, Path::new("/etc/taxiway/t.toml"), &environment)
}

fn good(text: &str) -> Config {
    read(text)
        .unwrap_or_else(|failure| panic!("{failure}"))
        .config
}

#[test]
fn a_minimal_file_has_the_promised_defaults() {
    let config = good(MINIMAL);
    assert_eq!(
        redacted(&config),
        json!({
            "source": "/etc/taxiway/t.toml",
            "listener": {
                "address": "127.0.0.1:4321", "tcp_keepalive": "1m", "handshake_timeout": "10s",
                "write_stall": "30s", "allow_anonymous": false, "allow_from": null,
                "proxy_protocol": "off", "proxy_protocol_from": null, "tls": null,
            },
            "admin": { "address": "127.0.0.1:9321", "token": null },
            "routing": {
                "mode": "sticky", "key": "user", "placement": "least-loaded", "load_factor": 1.25,
                "granularity": "session", "aggregate_timeout": "2s", "home_wait": "30s",
            },
            "identity": {
                "session_id_user": null, "principals": [], "tokens_file": null, "jwt": [],
                "shared": [], "adopt_by": null, "revoke_grace": "1m",
            },
            "access": {
                "profile": "single-tenant", "allow": [], "deny": [], "deny_params": [],
            },
            "sessions": {
                "create_existing": "resume", "detach_grace": "30s", "turn_stall": "0s",
                "turn_stall_action": "log", "turn_lock": "queue", "turn_lock_timeout": "5m",
                "turn_lock_holder": "connection", "turn_max": "1h", "max_open_per_user": 0,
            },
            "health": {
                "interval": "2s", "timeout": "1s", "unhealthy_after": 3, "healthy_after": 2,
                "slow_start": "30s", "max_ejected": 0.5,
            },
            "failover": { "hang_timeout": "10s", "fence_command": null, "fence_timeout": "10s" },
            "drain": { "timeout": "10m", "accept_grace": "5s" },
            "upgrade": { "socket": null, "timeout": "1d" },
            "limits": {
                "frame": "64MiB", "header": "8KiB", "cut_through_min": "1MiB",
                "frame_timeout": "30s",
                "calls_per_connection": 1024, "sessions_per_connection": 1024,
                "connections": 10000, "unauthenticated_connections": 5000,
                "unauthenticated_per_address": 0, "directory_sessions": 1_000_000, "session_params": "1MiB",
                "connections_per_user": 0, "turns_per_user": 0, "calls_per_second": 0,
                "bytes_per_second": "0B",
            },
            "log": { "level": "info", "format": "text", "identities": "plain" },
            "store": {
                "kind": "embedded", "path": "/etc/taxiway/taxiway.db", "expire": "90d",
            },
            "backends": [{
                "name": "a", "address": "127.0.0.1:5001", "weight": 1, "state": "ready",
                "connection_token": null, "proxy_protocol": "off",
                "tls": null,
            }],
            "managed": null,
        })
    );
    assert_eq!(config.limits.frame, 64 << 20);
    assert_eq!(config.listener.tcp_keepalive, Some(Duration::from_secs(60)));
    assert_eq!(config.routing.load_factor, Some(1.25));
}

#[test]
fn managed_has_the_promised_defaults() {
    let managed = good("[managed]\n").managed.unwrap();
    assert_eq!(
        managed,
        Managed {
            command: [
                "copilot",
                "--headless",
                "--no-auto-update",
                "--port",
                "{port}"
            ]
            .map(String::from)
            .to_vec(),
            servers: 3,
            state_dir: PathBuf::from("/home/u/.local/state/taxiway"),
            start_timeout: Duration::from_secs(30),
        }
    );
    let names: Vec<_> = managed.names().map(|n| n.to_string()).collect();
    assert_eq!(names, ["managed-1", "managed-2", "managed-3"]);
    let with_xdg = |name: &str| (name == "XDG_STATE_HOME").then(|| "/state".to_owned());
    let other = Managed::with_program("/opt/copilot", &with_xdg).unwrap();
    assert_eq!(other.state_dir, Path::new("/state/taxiway"));
    assert_eq!(other.command[0], "/opt/copilot");
    assert_eq!(other.command[1..], managed.command[1..]);
    assert_eq!(Managed::with_program("x", &|_| None), None);
}

/// The defaults of the table, written out, give what leaving them out gives.
#[test]
fn every_default_of_the_table_is_the_one_in_force() {
    let mut text = String::new();
    for section in SECTIONS {
        match section.shape {
            Shape::List => text.push_str(MINIMAL),
            Shape::Table => text.push_str(&format!("[{}]\n", section.name)),
            // Without a block there is none, and one needs more than defaults.
            Shape::NestedList => continue,
            // Its keys have no defaults that could be written.
            Shape::Nested => continue,
        }
        for key in section.keys {
            let written = match (&key.absent, &key.kind) {
                (Absent::Value(v), Kind::Integer { .. } | Kind::Number { .. } | Kind::Flag) => {
                    (*v).to_owned()
                }
                (Absent::Value(v), _) => format!("{v:?}"),
                (Absent::Words(words), _) => format!("{words:?}"),
                (Absent::Refused | Absent::Means(_), _) => continue,
            };
            text.push_str(&format!("{} = {written}\n", key.name));
        }
    }
    let without = good(&format!("{MINIMAL}[managed]\n"));
    assert_eq!(redacted(&good(&text)), redacted(&without), "{text}");
}

/// None is accepted and ignored: each key that is written shows in the result.
#[test]
fn every_key_of_the_table_takes_effect() {
    let everything = redacted(&good(EVERYTHING));
    let defaults = redacted(&good(&format!("{MINIMAL}[managed]\n")));
    // Nested tables need files: see `tls`.
    for section in SECTIONS.iter().filter(|s| s.shape != Shape::Nested) {
        let pick = |view: &Value| match section.shape {
            Shape::List => view[section.name][0].clone(),
            Shape::NestedList => {
                let (outer, inner) = section.name.split_once('.').unwrap();
                view[outer][inner][0].clone()
            }
            Shape::Table | Shape::Nested => view[section.name].clone(),
        };
        let (set, default) = (pick(&everything), pick(&defaults));
        let built = section.keys.iter().filter(|k| k.is_built());
        let fields: BTreeSet<_> = built.map(|k| k.field()).collect();
        let shown: BTreeSet<_> = set
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(
            fields, shown,
            "{}: the table and the view differ",
            section.name
        );
        for field in fields {
            // Not with shared storage, and the name has no default; both are tested elsewhere.
            if !["granularity", "name", "tls"].contains(&field) {
                assert_ne!(set[field], default[field], "{}.{field}", section.name);
            }
        }
    }
    let layer4 = good(&format!(
        "[routing]\ngranularity = \"connection\"\n{MINIMAL}"
    ));
    assert_eq!(layer4.routing.granularity, Granularity::Connection);
}

#[test]
fn values_are_what_is_written() {
    let config = good(EVERYTHING);
    assert_eq!(config.listener.tcp_keepalive, None);
    assert_eq!(config.routing.load_factor, None);
    assert_eq!(config.routing.aggregate_timeout, Duration::from_millis(250));
    assert_eq!(config.routing.home_wait, Duration::ZERO);
    assert_eq!(config.sessions.detach_grace, Some(Duration::from_secs(60)));
    assert_eq!(config.sessions.turn_stall_action, StallAction::End);
    assert_eq!(config.failover.hang_timeout, None);
    let fence = ["/etc/taxiway/./fence", "{name}", "{address}"].map(String::from);
    assert_eq!(config.failover.fence_command.as_deref(), Some(&fence[..]));
    assert_eq!(config.limits.session_params, 64 << 10);
    assert_eq!(config.drain.timeout, Duration::from_secs(5400));
    let socket = PathBuf::from("/etc/taxiway/run/upgrade.sock");
    assert_eq!(config.upgrade.socket, UpgradeSocket::Given(socket));
    assert_eq!(config.limits.calls_per_connection, 16);
    assert_eq!(config.limits.sessions_per_connection, 1000);
    assert_eq!(config.health.max_ejected, 1.0);
    assert_eq!(config.log.level, tracing::Level::TRACE);
    assert_eq!(config.admin.token.unwrap().expose(), "s3cret-admin");
    assert_eq!(
        config.backends[0]
            .connection_token
            .as_ref()
            .unwrap()
            .expose(),
        "s3cret-cli"
    );
    let managed = config.managed.unwrap();
    assert_eq!(managed.state_dir, Path::new("/etc/taxiway/homes"));
    assert_eq!(managed.command[0], "/etc/taxiway/./bin/copilot");
}

#[test]
fn secrets_are_never_shown() {
    let loaded = read(EVERYTHING).unwrap();
    let shown = format!(
        "{} {:?} {:?}",
        redacted(&loaded.config),
        loaded.config,
        loaded.warnings
    );
    assert!(!shown.contains("s3cret"), "{shown}");
    assert!(shown.contains("\"token\":\"[redacted]\""), "{shown}");
}

#[test]
fn secrets_come_from_files_beside_the_configuration() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let (file, secret) = (dir.path().join("t.toml"), dir.path().join("admin.token"));
    std::fs::write(
        &file,
        format!("[admin]\ntoken_file = \"admin.token\"\n{MINIMAL}"),
    )
    .unwrap();
    std::fs::write(&secret, "hunter2\n").unwrap();

    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let loaded = load(&file).unwrap();
    assert_eq!(loaded.config.admin.token.unwrap().expose(), "hunter2");
    assert_eq!(loaded.files, [file.clone(), secret.clone()]);
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);

    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o604)).unwrap();
    let warnings = load(&file).unwrap().warnings;
    assert!(
        warnings[0]
            .message
            .ends_with("can be read by every user of this machine")
    );
    assert_eq!(
        (warnings[0].severity, warnings[0].position),
        (Severity::Warning, Some((2, 14)))
    );

    for (content, expected) in [
        (" \n".to_owned(), "is empty"),
        ("x".repeat(70_000), "too large for a secret"),
    ] {
        std::fs::write(&secret, content).unwrap();
        let failure = load(&file).unwrap_err();
        assert!(failure.to_string().contains(expected), "{failure}");
    }
    std::fs::remove_file(&secret).unwrap();
    let failure = load(&file).unwrap_err();
    assert!(
        failure.to_string().contains("admin.token cannot be read"),
        "{failure}"
    );
    assert_eq!(
        failure.files,
        [file, secret],
        "the missing file is to be watched as well"
    );
}

#[test]
fn risky_settings_are_warned_about() {
    for (text, expected) in [
        (
            "[listener]\naddress = \"[::1]:4321\"\n",
            "t.toml:2:11: warning: listener.address: the Python SDK connects over IPv4 only; \
             listen on \"127.0.0.1:4321\" if any client uses it",
        ),
        (
            "[listener]\naddress = \"0.0.0.0:4321\"\nallow_anonymous = true\n",
            "t.toml:2:11: warning: listener.address: whoever reaches 0.0.0.0:4321 can use every \
             session; let a firewall or network policy admit only the machines that run clients",
        ),
        (
            "[listener]\naddress = \"127.0.0.1:0\"\n",
            "t.toml:2:11: warning: listener.address: port 0 is another port at each start; \
             clients need one that stays, as in 4321",
        ),
        (
            "[routing]\nplacement = \"p2c\"\n",
            "t.toml:2:13: warning: routing.placement: has no effect with mode = \"sticky\"; take \
             it out, or use mode = \"shared-storage\"",
        ),
        (
            "[routing]\nmode = \"shared-storage\"\nkey = \"user\"\n",
            "t.toml:3:7: warning: routing.key: has no effect with mode = \"shared-storage\"; take \
             it out, or use mode = \"sticky\"",
        ),
        (
            "[routing]\nmode = \"shared-storage\"\n[managed]\n",
            "t.toml:2:8: warning: routing.mode: managed servers do not share their storage; use \
             mode = \"sticky\" with [managed]",
        ),
        (
            "[access]\ndeny = [\"session.shell.*\", \"session.sned\"]\n[managed]\n",
            "t.toml:2:8: warning: access.deny: no known method is named `session.sned`; `taxiway \
             check --methods` lists those that are known",
        ),
        (
            "[access]\nprofile = \"multi-tenant\"\nallow = [\"llmInference.*\"]\n[managed]\n",
            "t.toml:3:9: warning: access.allow: whoever calls llmInference.setProvider may be told \
             of every session of a server; give that client servers of its own",
        ),
    ] {
        let loaded = parse(
            &format!("{text}{MINIMAL}"),
            Path::new("t.toml"),
            &environment,
        );
        let warnings: Vec<_> = loaded
            .unwrap()
            .warnings
            .iter()
            .map(Diagnostic::summary)
            .collect();
        assert_eq!(warnings, [expected], "{text}");
    }
    let warnings = read(&format!("{MINIMAL}state = \"drain\"\n"))
        .unwrap()
        .warnings;
    assert_eq!(
        warnings[0].message,
        "backends.state: no backend is \"ready\""
    );
    assert!(read(MINIMAL).unwrap().warnings.is_empty());
}

#[test]
fn users_are_read_out_of_session_ids() {
    let identity = good(&format!(
        "[identity]\nsession_id_user = '^user-(?<user>.+?)--'\n{MINIMAL}"
    ))
    .identity;
    assert_eq!(identity.access.user_of("user-alice--task"), Some("alice"));
    assert_eq!(
        identity.access.user_of("user-alice-b--task--2"),
        Some("alice-b")
    );
    assert_eq!(identity.access.user_of("other"), None);
    assert_eq!(
        good(MINIMAL).identity.access.user_of("user-alice--task"),
        None
    );
    let may_be_empty = Access {
        session_id_user: Some(regex::Regex::new("^u(?<user>.*)-").unwrap()),
        ..Default::default()
    };
    assert_eq!(may_be_empty.user_of("u-1"), None);
}

#[test]
fn the_start_without_a_file_has_the_same_defaults() {
    let backends = Backend::from_addresses(["10.0.0.1:4321", "[::1]:9", "cli:4321"]).unwrap();
    let config = Config::no_config(backends, None);
    let names: Vec<_> = config.backends.iter().map(|b| b.name.as_str()).collect();
    assert_eq!(names, ["10.0.0.1:4321", "[::1]:9", "cli:4321"]);
    let (mut mine, mut files) = (redacted(&config), redacted(&good(MINIMAL)));
    for view in [&mut mine, &mut files] {
        let view = view.as_object_mut().unwrap();
        view.remove("backends").unwrap();
        view.remove("source").unwrap();
        // Without a file there is no place beside it: whoever starts it chooses one.
        let store = view.remove("store").unwrap();
        assert_eq!(store["expire"], "90d");
    }
    assert_eq!(config.store.path, None);
    assert_eq!(mine, files);
    for (addresses, expected) in [
        (
            vec!["cli"],
            "\"cli\" is not a backend: not an address to connect to: the port is missing",
        ),
        (
            vec!["a:1", "a:1"],
            "\"a:1\" is not a backend: it is there twice",
        ),
        (
            vec!["http://a:1"],
            "\"http://a:1\" is not a backend: not an address; write \"a:1\"",
        ),
    ] {
        assert_eq!(
            Backend::from_addresses(addresses).unwrap_err().to_string(),
            expected
        );
    }
}

/// What `--backend` names can be written in a file, so that homes survive the change.
#[test]
fn command_line_names_are_names_of_a_file() {
    let config = good("[[backends]]\nname = \"[::1]:9\"\naddress = \"[::1]:9\"\n");
    assert_eq!(
        config.backends,
        Backend::from_addresses(["[::1]:9"]).unwrap()
    );
}

#[test]
fn every_example_passes() {
    let environment = |name: &str| match name.ends_with("_TOKEN") {
        true => Some("s3cret".to_owned()),
        false => environment(name),
    };
    for (folder, least) in [("conf", 4), ("conf/docker", 1)] {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let mut count = 0;
        for entry in std::fs::read_dir(examples).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "toml") {
                let text = std::fs::read_to_string(&path).unwrap();
                let loaded =
                    parse(&text, &path, &environment).unwrap_or_else(|failure| panic!("{failure}"));
                // The one of the container says what else keeps strangers away.
                let told = loaded.warnings.iter().map(Diagnostic::summary);
                let told: Vec<_> = told
                    .filter(|line| !line.contains("listener.address: whoever reaches"))
                    .collect();
                assert_eq!(told, [""; 0]);
                count += 1;
            }
        }
        assert!(count >= least, "the examples in {folder} have moved");
    }
}

#[test]
fn the_documentation_is_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let committed = std::fs::read_to_string(path).unwrap();
    assert!(
        committed == markdown(),
        "write it anew: taxiway check --reference > docs/configuration.md"
    );
}

proptest! {
    /// Whatever is done to a file, it is read or refused with places inside of it.
    #[test]
    fn no_text_breaks_the_reader(
        at in 0..EVERYTHING.len(),
        length in 0usize..40,
        with in "[a-z0-9=\\[\\]{}\"'#.,\\n \u{e9}]{0,12}",
    ) {
        let end = (at + length).min(EVERYTHING.len());
        let text = format!("{}{with}{}", &EVERYTHING[..at], &EVERYTHING[end..]);
        if let Err(failure) = read(&text) {
            prop_assert!(failure.error_count > 0);
            prop_assert!(!failure.to_string().contains("s3cret"));
            let lines = text.lines().count() + 1;
            for diagnostic in &failure.diagnostics {
                prop_assert!(diagnostic.position.is_none_or(|(line, _)| line <= lines));
            }
        }
    }
}

#[test]
fn deep_nesting_is_refused_not_overflowed() {
    for text in [
        "[".repeat(100_000),
        format!("a = {}", "[".repeat(100_000)),
        "a.".repeat(100_000),
    ] {
        assert!(read(&text).is_err());
    }
}
