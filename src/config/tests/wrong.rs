//! Wrong files and what their authors are told.

use super::*;

/// One line for each error, without the file.
fn told(text: &str) -> Vec<String> {
    match parse(text, Path::new("t.toml"), &environment) {
        Ok(loaded) => panic!("accepted: {text}\n{:?}", redacted(&loaded.config)),
        Err(failure) => {
            let shown = format!("{failure} {:?}", failure.to_json());
            assert!(!shown.contains("s3cret"), "{shown}");
            let lines = failure.summaries();
            lines
                .iter()
                .map(|l| l.trim_start_matches("t.toml:").trim_start().to_owned())
                .collect()
        }
    }
}

type Row = (&'static str, &'static [&'static str]);

/// Each is put before a pool that is right.
const SECTIONS_WRONG: &[Row] = &[
    (
        "x = 1\n",
        &[
            "1:1: error: unknown key `x`; sections are: listener, admin, routing, identity, \
             access, sessions, health, failover, drain, upgrade, limits, log, store, backends, \
             managed",
        ],
    ),
    (
        "address = \"127.0.0.1:1\"\n",
        &[
            "1:1: error: unknown key `address`; `address` belongs to `[listener]` or \
             `[admin]`",
        ],
    ),
    (
        "[listner]\n",
        &["1:2: error: unknown section `listner`; did you mean `listener`?"],
    ),
    (
        "[listener]\nzzz = 1\n",
        &[
            "2:1: error: unknown key `listener.zzz`; keys of this section are: address, \
             tcp_keepalive, handshake_timeout, write_stall, allow_anonymous, \
           allow_from, proxy_protocol, proxy_protocol_from, tls",
        ],
    ),
    (
        "[health]\ntimeout_ms = 1\n",
        &["2:1: error: unknown key `health.timeout_ms`; did you mean `timeout`?"],
    ),
    (
        "[health]\nmode = 1\n",
        &["2:1: error: unknown key `health.mode`; `mode` belongs to `[routing]`"],
    ),
    (
        "[[identity.principals]]\nname = \"x\"\n",
        &[
            "2:8: error: identity.principals: nothing proves who is \"x\"; add `token_sha256 = \
             \"…\"`, as printed by `taxiway token x`, or `token_env`, `token_file`, `tls_name`",
        ],
    ),
    (
        "[access]\nprofile = \"x\"\n",
        &["2:11: error: access.profile: must be one of \"multi-tenant\", \"single-tenant\""],
    ),
    (
        "[access]\nallow = [\"session.send\", \"a*b\", \"a b\"]\ndeny = [5]\n",
        &[
            "2:9: error: access.allow: \"a b\" is no name",
            "3:8: error: access.deny: expected a list of names",
        ],
    ),
    (
        "[access]\nallow = [\"a*b\"]\n",
        &[
            "2:9: error: access.allow: `*` is not at the end of `a*b`; it stands for any rest, as \
             in \"session.shell.*\"",
        ],
    ),
    (
        "[access]\nallow = [\"runtime.shutdown\", \"session.sned\", \"mcp.*\"]\ndeny = [\"mcp.*\"]\n",
        &[
            "2:9: error: access.allow: runtime.shutdown is never forwarded: it would end a CLI \
             server that others use too; drain the backend in Taxiway instead; take it out",
            "2:9: error: access.allow: `mcp.*` is in `deny`, too; take it out of one of them",
        ],
    ),
    (
        "[routing]\ngranularity = \"connection\"\n[access]\nprofile = \"multi-tenant\"\n",
        &[
            "4:11: error: access.profile: cannot be used with granularity = \"connection\"; use \
             granularity = \"session\" below [routing], or take it out",
        ],
    ),
    (
        "[sessions]\nmax_turns = 4\n",
        &[
            "2:1: error: not built yet: sessions.max_turns (caps); take it out: it would have no \
             effect, and Taxiway ignores nothing silently",
        ],
    ),
    (
        "[routing]\nmode = \"isolated\"\n",
        &[
            "2:8: error: routing.mode: not built yet: \"isolated\"; one of \"sticky\", \
             \"shared-storage\"",
        ],
    ),
    (
        "[routing]\nmode = \"stiky\"\n",
        &[
            "2:8: error: routing.mode: must be one of \"sticky\", \"shared-storage\"; did you \
             mean \"sticky\"?",
        ],
    ),
    (
        "[routing]\nmode = \"x\"\n",
        &["2:8: error: routing.mode: must be one of \"sticky\", \"shared-storage\""],
    ),
    (
        "[routing]\nload_factor = 0.5\n",
        &["2:15: error: routing.load_factor: must be 1.0 to 100.0, or 0 for no bound"],
    ),
    (
        "[routing]\nload_factor = nan\n",
        &["2:15: error: routing.load_factor: must be 1.0 to 100.0, or 0 for no bound"],
    ),
    (
        "[routing]\nload_factor = \"1.25\"\n",
        &[
            "2:15: error: routing.load_factor: expected a number, found a string; write it \
             without quotes: 1.25",
        ],
    ),
    (
        "[routing]\nload_factor = 99999999999999999999\n",
        &["2:15: error: routing.load_factor: must be 1.0 to 100.0, or 0 for no bound"],
    ),
    (
        "[log]\nlevel = true\n",
        &[
            "2:9: error: log.level: expected one of \"error\", \"warn\", \"info\", \"debug\", \
             \"trace\", found true or false",
        ],
    ),
    (
        "[listener]\nallow_anonymous = \"yes\"\n",
        &["2:19: error: listener.allow_anonymous: expected true or false, found a string"],
    ),
    (
        "[listener]\nallow_anonymous = 2026-11-22\n",
        &["2:19: error: listener.allow_anonymous: expected true or false, found a date"],
    ),
    (
        "listener = 4\n",
        &[
            "1:1: error: listener: expected a table, found a whole number; write \
             `[listener]`, once",
        ],
    ),
    (
        "[health]\nunhealthy_after = -1\n",
        &["2:19: error: health.unhealthy_after: must be 1 to 100"],
    ),
    (
        "[health]\nunhealthy_after = 1.0\n",
        &["2:19: error: health.unhealthy_after: expected a whole number, found a number"],
    ),
    (
        "[health]\nunhealthy_after = \"3\"\n",
        &[
            "2:19: error: health.unhealthy_after: expected a whole number, found a string; \
             write it without quotes: 3",
        ],
    ),
    (
        "[health]\ninterval = 30\n",
        &[
            "2:12: error: health.interval: a duration needs its unit; write \"30s\", \
             \"30ms\", \"30m\" or \"30h\"",
        ],
    ),
    (
        "[health]\ninterval = \"30\"\n",
        &[
            "2:12: error: health.interval: not a duration: the unit is missing; write \
             \"30s\"; units are d h m s ms, as in \"30s\", \"250ms\", \"1h30m\"",
        ],
    ),
    (
        "[health]\ninterval = \"30 s\"\n",
        &[
            "2:12: error: health.interval: not a duration: this unit is not known; units are \
             d h m s ms, as in \"30s\", \"250ms\", \"1h30m\"",
        ],
    ),
    (
        "[health]\ninterval = \"1.5s\"\n",
        &[
            "2:12: error: health.interval: not a duration: whole numbers only; units are d h \
             m s ms, as in \"30s\", \"250ms\", \"1h30m\"",
        ],
    ),
    (
        "[health]\ninterval = \"0s\"\n",
        &["2:12: error: health.interval: must be \"100ms\" to \"1h\""],
    ),
    (
        "[health]\nslow_start = \"2d\"\n",
        &[
            "2:14: error: health.slow_start: must be \"100ms\" to \"1h\", or \"0s\" for at \
             once",
        ],
    ),
    (
        "[limits]\nframe = 64\n",
        &[
            "2:9: error: limits.frame: a size needs its unit; write \"64MiB\", \"64KiB\" or \
             \"64B\"",
        ],
    ),
    (
        "[limits]\nframe = \"64MB\"\n",
        &[
            "2:9: error: limits.frame: not a size: this unit is not known; units are GiB MiB \
             KiB B, as in \"64MiB\"",
        ],
    ),
    (
        "[limits]\nframe = \"1KiB\"\n",
        &["2:9: error: limits.frame: must be \"64KiB\" to \"1GiB\""],
    ),
    (
        "[listener]\naddress = \"4321\"\n",
        &[
            "2:11: error: listener.address: not an address to listen on; as in \
             \"127.0.0.1:4321\"",
        ],
    ),
    (
        "[listener]\naddress = \":4321\"\n",
        &[
            "2:11: error: listener.address: not an address to listen on; write \
             \"127.0.0.1:4321\" for this machine only, \"0.0.0.0:4321\" for all interfaces",
        ],
    ),
    (
        "[listener]\naddress = \"localhost:4321\"\n",
        &[
            "2:11: error: listener.address: not an address to listen on; write \
             \"127.0.0.1:4321\"",
        ],
    ),
    (
        "[listener]\naddress = \"::1:4321\"\n",
        &["2:11: error: listener.address: not an address to listen on; write \"[::1]:4321\""],
    ),
    (
        "[listener]\naddress = \"http://127.0.0.1:4321\"\n",
        &["2:11: error: listener.address: not an address; write \"127.0.0.1:4321\""],
    ),
    (
        "[listener]\naddress = \"0.0.0.0:4321\"\n",
        &[
            "2:11: error: listener.address: not on loopback, and clients need no token; \
             listen on 127.0.0.1, say who may connect with [[identity.principals]], want client \
             certificates ([listener.tls]), or set `allow_anonymous = true` below [listener]",
        ],
    ),
    (
        "[admin]\naddress = \"127.0.0.1:4321\"\n",
        &[
            "2:11: error: admin.address: 127.0.0.1:4321 collides with listener.address \
             127.0.0.1:4321; give the admin server a port of its own, as in \
             \"127.0.0.1:9321\"",
        ],
    ),
    (
        "[listener]\naddress = \"127.0.0.1:9321\"\n",
        &[
            "2:11: error: admin.address: 127.0.0.1:9321 collides with listener.address \
             127.0.0.1:9321; give the admin server a port of its own, as in \
             \"127.0.0.1:9321\"",
        ],
    ),
    (
        "[listener]\naddress = \"127.0.0.1:1\"\n[admin]\naddress = \"0.0.0.0:1\"\n",
        &[
            "4:11: error: admin.address: 0.0.0.0:1 collides with listener.address \
             127.0.0.1:1; give the admin server a port of its own, as in \"127.0.0.1:9321\"",
        ],
    ),
    (
        "[identity]\nsession_id_user = '('\n",
        &[
            "2:19: error: identity.session_id_user: not a regular expression: unclosed group; \
             syntax: https://docs.rs/regex/latest/regex/#syntax; no look-around",
        ],
    ),
    (
        "[identity]\nsession_id_user = '^(.*)-'\n",
        &[
            "2:19: error: identity.session_id_user: no group is named `user`; name it: \
             '^user-(?<user>.+?)--'",
        ],
    ),
    (
        "[identity]\nsession_id_user = '(?=x)'\n",
        &[
            "2:19: error: identity.session_id_user: not a regular expression: look-around, \
             including look-ahead and look-behind, is not supported; syntax: \
             https://docs.rs/regex/latest/regex/#syntax; no look-around",
        ],
    ),
    (
        "[admin]\ntoken = \"s3cret\"\n",
        &[
            "2:1: error: unknown key `admin.token`; secrets are not written in the file: \
             `token_env` names an environment variable, `token_file` a file",
        ],
    ),
    (
        "[admin]\ntoken_env = \"MISSING\"\n",
        &[
            "2:13: error: admin.token_env: the environment variable MISSING is not set; set \
             it where Taxiway is started",
        ],
    ),
    (
        "[admin]\ntoken_env = \"s3cretpasted\"\n",
        &[
            "2:13: error: admin.token_env: the environment variable that is named here is not \
             set; set it where Taxiway is started",
        ],
    ),
    (
        "[admin]\ntoken_env = \"s3cret-pasted\"\n",
        &[
            "2:13: error: admin.token_env: not the name of an environment variable; letters, \
             digits and `_`, as in \"CLI_TOKEN\"",
        ],
    ),
    (
        "[admin]\ntoken_env = \"ADMIN\"\ntoken_file = \"x\"\n",
        &[
            "3:14: error: admin.token_file: `token_env` names the same secret; keep one of \
             them",
        ],
    ),
    (
        "[admin]\ntoken_file = \"$HOME/x\"\n",
        &[
            "2:14: error: admin.token_file: `~` and `$` are not expanded; write the whole \
             path, or one relative to this file",
        ],
    ),
    (
        "[admin]\ntoken_file = \"/nonexistent/x\"\n",
        &[
            "2:14: error: admin.token_file: /nonexistent/x cannot be read: No such file or \
             directory (os error 2); relative paths start at the directory of the \
             configuration file",
        ],
    ),
    (
        "[listener\n",
        &[
            "1:10: error: not TOML: unclosed table, expected `]`; is a closing bracket \
             missing, here or above?",
        ],
    ),
    (
        "[log]\nlevel = [\"info\"\n",
        &[
            "3:1: error: not TOML: missing comma between array elements, expected `,`; is a \
             closing bracket missing, here or above?",
        ],
    ),
    (
        "[heath]\ninterval = 2s\n[health]\ntimeout = \"1\n",
        &[
            "1:2: error: unknown section `heath`; did you mean `health`?",
            "2:12: error: not TOML: string values must be quoted; words, addresses, durations \
             and sizes are written in quotes",
            "4:13: error: not TOML: invalid basic string, expected `\"`",
        ],
    ),
    (
        "[log]\nlevel = info\n",
        &[
            "2:9: error: not TOML: invalid float; words, addresses, durations and sizes are \
             written in quotes",
        ],
    ),
    (
        "[log]\nlevel = \"info\nformat = \"text\"\n",
        &["2:14: error: not TOML: invalid basic string, expected `\"`"],
    ),
    (
        "[log]\nlevel = \"info\"\nlevel = \"warn\"\n",
        &["3:1: error: not TOML: duplicate key"],
    ),
    ("[log]\n[log]\n", &["2:2: error: not TOML: duplicate key"]),
];

/// Each is a whole file.
const POOLS_WRONG: &[Row] = &[
    (
        "",
        &[
            "error: the pool is empty; add a `[[backends]]` block with `name` and `address` \
             for each CLI server, or `[managed]` to have Taxiway start them",
        ],
    ),
    (
        "[managed]\ncommand = [\"copilot\"]\n",
        &["2:11: error: managed.command: `{port}` is missing; add \"--port\", \"{port}\""],
    ),
    (
        "[managed]\ncommand = []\n",
        &["2:11: error: managed.command: is empty"],
    ),
    (
        "[managed]\nservers = 0\nstate_dir = \"~/x\"\n",
        &[
            "2:11: error: managed.servers: must be 1 to 64",
            "3:13: error: managed.state_dir: `~` and `$` are not expanded; write the whole \
             path, or one relative to this file",
        ],
    ),
    (
        "backends = []\n",
        &[
            "error: the pool is empty; add a `[[backends]]` block with `name` and `address` \
             for each CLI server, or `[managed]` to have Taxiway start them",
        ],
    ),
    (
        "[backends]\nname = \"a\"\naddress = \"x:1\"\n",
        &[
            "1:2: error: backends: expected a list of tables, found a table; write \
             `[[backends]]`, a block for each of them",
        ],
    ),
    (
        "backends = [1]\n",
        &[
            "1:13: error: backends: expected a list of tables, found a whole number; write \
             `[[backends]]`, a block for each of them",
        ],
    ),
    (
        "[[managed]]\n",
        &["1:3: error: managed: expected a table, found a list; write `[managed]`, once"],
    ),
    (
        "[[backends]]\n",
        &[
            "1:1: error: backends: `name` is missing; add `name = …`",
            "1:1: error: backends: `address` is missing; add `address = …`",
        ],
    ),
    (
        "[[backends]]\nname = \"a b\"\naddress = \"x:1\"\n",
        &[
            "2:8: error: backends.name: not a name; 1 to 128 letters, digits, `.` `_` `-` \
             `:`, as in \"cli-1\"",
        ],
    ),
    (
        "[[backends]]\nname = \"a\"\naddress = 127.0.0.1:1\n",
        &[
            "3:16: error: not TOML: invalid float; words, addresses, durations and sizes are \
             written in quotes",
        ],
    ),
    (
        "[managed]\n[[backends]]\nname = \"managed-2\"\naddress = \"x:1\"\n",
        &[
            "3:8: error: backends.name: \"managed-2\" is a managed server; names of managed \
             servers are managed-1, managed-2, …: take another",
        ],
    ),
    (
        "[[backends]]\nname = \"a\"\naddress = \"localhost:4321\"\n",
        &[
            "3:11: error: backends.address: localhost:4321 is Taxiway's own listener; start \
             the CLI server on another port, or move listener.address",
        ],
    ),
    (
        "[[backends]]\nname = \"a\"\naddress = \"h:1\"\n[[backends]]\nname = \"b\"\naddress = \
         \"h:1\"\n",
        &[
            "6:11: error: backends.address: h:1 is there twice; two names for one server \
             would open its sessions twice",
        ],
    ),
];

#[test]
fn each_mistake_is_explained() {
    for (text, expected) in SECTIONS_WRONG {
        assert_eq!(&told(&format!("{text}{MINIMAL}")), expected, "{text}");
    }
}

#[test]
fn each_mistake_in_the_pool_is_explained() {
    for (text, expected) in POOLS_WRONG {
        assert_eq!(&told(text), expected, "{text}");
    }
}

/// Wrong in six places: a name, a unit, the syntax, a combination, a repetition, a range.
const SIX: &str = r#"[listener]
adress = "127.0.0.1:4321"

[health]
interval = 2
timeout = "1s

[routing]
mode = "shared-storage"
granularity = "connection"

[[backends]]
name = "cli-1"
address = "10.0.0.11:4321"

[[backends]]
name = "cli-1"
address = "10.0.0.12:4321"
weight = 5000
"#;

#[test]
fn all_mistakes_are_told_at_once_with_excerpts() {
    let failure = parse(SIX, Path::new("t.toml"), &environment).unwrap_err();
    assert_eq!(failure.to_string(), SIX_TOLD);
    let places: Vec<_> = failure.errors().map(|d| d.position.unwrap()).collect();
    assert_eq!(
        places,
        [(2, 1), (5, 12), (6, 14), (10, 15), (17, 8), (19, 10)]
    );
    let json = failure.to_json();
    assert_eq!(
        json[1],
        json!({
            "severity": "error", "file": "t.toml", "line": 5, "column": 12,
            "message": "health.interval: a duration needs its unit",
            "help": "write \"2s\", \"2ms\", \"2m\" or \"2h\"",
        })
    );
}

const SIX_TOLD: &str = r#"error: unknown key `listener.adress`
 --> t.toml:2:1
  |
2 | adress = "127.0.0.1:4321"
  | ^^^^^^
  |
  = help: did you mean `address`?

error: health.interval: a duration needs its unit
 --> t.toml:5:12
  |
5 | interval = 2
  |            ^ of what?
  |
  = help: write "2s", "2ms", "2m" or "2h"

error: not TOML: invalid basic string, expected `"`
 --> t.toml:6:14
  |
6 | timeout = "1s
  |              ^

error: routing.granularity: "connection" cannot be used with shared-storage
  --> t.toml:10:15
   |
 9 | mode = "shared-storage"
   |        ---------------- needs one owner for each session
10 | granularity = "connection"
   |               ^^^^^^^^^^^^ sees no sessions
   |
   = help: use granularity = "session", or mode = "sticky"

error: backends.name: "cli-1" is there twice
  --> t.toml:17:8
   |
13 | name = "cli-1"
   |        ------- first here
...
17 | name = "cli-1"
   |        ^^^^^^^ again
   |
   = help: a name is a backend's identity: give each its own

error: backends.weight: must be 1 to 1000
  --> t.toml:19:10
   |
19 | weight = 5000
   |          ^^^^ out of range

6 errors; nothing was applied"#;

/// Warnings of a refused file follow its errors and do not count.
#[test]
fn warnings_are_told_beside_errors() {
    let text = "[routing]\nplacement = \"p2c\"\nmodus = 1\n[managed]\n";
    let failure = read(text).unwrap_err();
    let severities: Vec<_> = failure.diagnostics.iter().map(|d| d.severity).collect();
    assert_eq!(severities, [Severity::Error, Severity::Warning]);
    assert!(
        failure
            .to_string()
            .ends_with("\n1 error; nothing was applied")
    );
}

/// A line with a secret in clear text is never quoted, whatever else is wrong with it.
#[test]
fn clear_text_secrets_are_not_quoted() {
    for line in [
        "token = \"s3cret\"",
        "token = s3cret",
        "token_env = \"s3cret-s3cret\"",
        "token_env = \"s3cret_lower\"",
        "\"token\" = \"s3cret",
    ] {
        let text = format!("[admin]\n{line}\n{MINIMAL}");
        let failure = read(&text).unwrap_err();
        assert!(!failure.to_string().contains("s3cret"), "{failure}");
        assert_eq!(failure.diagnostics[0].position.unwrap().0, 2, "{failure}");
    }
}

#[test]
fn many_mistakes_are_bounded() {
    let mut text = String::from("[log]\n");
    for n in 0..5000 {
        text.push_str(&format!("key{n} = 1\n"));
    }
    let failure = read(&text).unwrap_err();
    assert_eq!(failure.diagnostics.len(), 100);
    assert_eq!((failure.left_out, failure.error_count), (4901, 5001));
    assert!(
        failure
            .to_string()
            .ends_with("and 4901 more\n\n5001 errors; nothing was applied")
    );

    let backends: String = (0..1001)
        .map(|n| format!("[[backends]]\nname = \"b{n}\"\naddress = \"h{n}:1\"\n"))
        .collect();
    assert_eq!(read(&backends).unwrap_err().summaries().len(), 1);
}

/// Found when they are read, and told before they are felt.
#[test]
fn what_cannot_work_well_is_told() {
    let loaded = read(&format!("[health]\ntimeout = \"3s\"\n{MINIMAL}")).unwrap();
    let told: Vec<_> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].contains("health.timeout: longer than health.interval"),
        "{told:?}"
    );
    let fits = format!("[health]\ninterval = \"3s\"\ntimeout = \"3s\"\n{MINIMAL}");
    assert!(read(&fits).unwrap().warnings.is_empty());

    let text = "[[backends]]\nname = \"a\"\naddress = \"localhost:9321\"\n";
    let failure = read(text).unwrap_err().to_string();
    assert!(
        failure.contains("localhost:9321 is Taxiway's admin address"),
        "{failure}"
    );

    let none = Config::no_config(Vec::new(), None);
    assert_eq!(none.own_address("localhost:4321"), Some("listener.address"));
    assert_eq!(none.own_address("127.0.0.1:9321"), Some("admin.address"));
    assert_eq!(none.own_address("127.0.0.1:5001"), None);
}
