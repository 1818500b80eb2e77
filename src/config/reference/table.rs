//! The table itself. Adding a key here makes the checks and the documentation know it; `check`
//! then has to take it up.

use std::time::Duration;

use self::edges::{BACKENDS, BACKENDS_TLS, LISTENER, LISTENER_TLS};
use super::{Absent, Key, Kind, Reload, Section, Shape};

mod limits;
mod sessions;

mod access;
mod edges;
mod identity;

const MODE_IS_FIXED: &str = "each mode keeps homes and owners of sessions in its own way";
const GRANULARITY_IS_FIXED: &str = "connections are relayed in one way or the other, not both";
const LOG_IS_FIXED: &str = "the log is opened once";
const SERVERS_ARE_FIXED: &str = "managed servers are set up once, when Taxiway starts";

const STORE_IS_FIXED: &str = "the store is opened once, when Taxiway starts";

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

const HOUR: Duration = secs(3600);

const fn span(min: Duration, max: Duration) -> Kind {
    Kind::Duration {
        min,
        max,
        zero: None,
    }
}

const fn span_or(min: Duration, max: Duration, zero: &'static str) -> Kind {
    Kind::Duration {
        min,
        max,
        zero: Some(zero),
    }
}

const fn at_most(max: u32) -> Kind {
    Kind::Integer { min: 0, max }
}

const fn choice(words: &'static [&'static str]) -> Kind {
    Kind::Choice {
        words,
        planned: &[],
    }
}

const fn key(
    name: &'static str,
    kind: Kind,
    absent: Absent,
    reload: Reload,
    text: &'static str,
) -> Key {
    Key {
        name,
        kind,
        absent,
        reload,
        text,
    }
}

const fn not_built(name: &'static str, text: &'static str) -> Key {
    Key {
        name,
        kind: Kind::NotBuilt,
        absent: Absent::Means(""),
        reload: Reload::Live,
        text,
    }
}

/// Every section, in the order of the documentation.
pub(in crate::config) const SECTIONS: &[Section] = &[
    LISTENER,
    LISTENER_TLS,
    Section {
        name: "admin",
        shape: Shape::Table,
        text: "Health, metrics, dashboard and API over HTTP.",
        keys: &[
            key(
                "address",
                Kind::Listen,
                Absent::Value("127.0.0.1:9321"),
                Reload::Live,
                "Where they are served.",
            ),
            key(
                "token_env",
                Kind::Variable,
                Absent::Means("no token"),
                Reload::Live,
                "Bearer token of the API. Without one, only `/healthz`, `/readyz` and `/metrics` \
                 answer on an address that is not loopback.",
            ),
            key(
                "token_file",
                Kind::SecretFile,
                Absent::Means("no token"),
                Reload::Live,
                "The same, from a file.",
            ),
        ],
    },
    Section {
        name: "routing",
        shape: Shape::Table,
        text: "Which backend a session goes to.",
        keys: &[
            key(
                "mode",
                Kind::Choice {
                    words: &["sticky", "shared-storage"],
                    planned: &["isolated"],
                },
                Absent::Value("sticky"),
                Reload::Restart(MODE_IS_FIXED),
                "Where the disks are. `sticky`: each backend has its own, a session lives where it \
                 was made. `shared-storage`: one disk for all, any backend can open any closed \
                 session.",
            ),
            key(
                "key",
                choice(&["user", "session"]),
                Absent::Value("user"),
                Reload::Live,
                "What `sticky` places by: the user if one is known (else the session), or the \
                 session. Sessions that exist stay where they are.",
            ),
            key(
                "placement",
                choice(&["least-loaded", "p2c", "round-robin"]),
                Absent::Value("least-loaded"),
                Reload::Live,
                "How `shared-storage` chooses: fewest open turns, then sessions, per weight; the \
                 less loaded of two; in turn.",
            ),
            key(
                "load_factor",
                Kind::Number {
                    min: 1.0,
                    max: 100.0,
                    zero: Some("no bound"),
                },
                Absent::Value("1.25"),
                Reload::Live,
                "Bound of `sticky`: a backend with more than so many times its share of the load \
                 is passed over for new sessions.",
            ),
            key(
                "granularity",
                choice(&["session", "connection"]),
                Absent::Value("session"),
                Reload::Restart(GRANULARITY_IS_FIXED),
                "`session`: each session is routed by itself (layer 7). `connection`: a whole \
                 connection goes to one backend, by its first key (layer 4).",
            ),
            key(
                "aggregate_timeout",
                span(ms(10), secs(60)),
                Absent::Value("2s"),
                Reload::Live,
                "How long lists and look-ups over all backends wait for a silent one.",
            ),
            key(
                "home_wait",
                span_or(ms(100), HOUR, "not at all"),
                Absent::Value("30s"),
                Reload::Live,
                "How long a call waits for its session's backend that is away, before it gets \
                 -32010. The session itself is waited for without end.",
            ),
            not_built("queue_timeout", "queues of turns"),
        ],
    },
    identity::IDENTITY,
    identity::PRINCIPALS,
    identity::JWT,
    identity::SHARED,
    access::ACCESS,
    Section {
        name: "sessions",
        shape: Shape::Table,
        text: "What happens to sessions.",
        keys: sessions::KEYS,
    },
    Section {
        name: "health",
        shape: Shape::Table,
        text: "When a backend gets no new sessions. One that stops answering is out after at most \
               `interval + timeout × unhealthy_after`.",
        keys: &[
            key(
                "interval",
                span(ms(100), HOUR),
                Absent::Value("2s"),
                Reload::Live,
                "Between two probes of a healthy backend; after a failed one the next is sent at \
                 once.",
            ),
            key(
                "timeout",
                span(ms(10), HOUR),
                Absent::Value("1s"),
                Reload::Live,
                "Until a probe counts as failed.",
            ),
            key(
                "unhealthy_after",
                Kind::Integer { min: 1, max: 100 },
                Absent::Value("3"),
                Reload::Live,
                "Failed probes in a row until it is ejected.",
            ),
            key(
                "healthy_after",
                Kind::Integer { min: 1, max: 100 },
                Absent::Value("2"),
                Reload::Live,
                "Good probes in a row until it is taken back, on probation.",
            ),
            key(
                "slow_start",
                span_or(ms(100), HOUR, "at once"),
                Absent::Value("30s"),
                Reload::Live,
                "How long its weight takes to grow back to full.",
            ),
            key(
                "max_ejected",
                Kind::Number {
                    min: 0.0,
                    max: 1.0,
                    zero: None,
                },
                Absent::Value("0.5"),
                Reload::Live,
                "At most this share of the pool is ejected for silence; beyond it the sessions \
                 stay and the metric `taxiway_pool_panic` is 1.",
            ),
        ],
    },
    Section {
        name: "failover",
        shape: Shape::Table,
        text: "When the sessions of a backend may be opened elsewhere (`shared-storage` only). A \
               backend that is gone (connection closed or refused, or ended by Taxiway) is given \
               up at once; these keys are for one that is silent. Before a backend that was given \
               up serves again, what was opened elsewhere is closed in it.",
        keys: &[
            key(
                "hang_timeout",
                span_or(ms(100), HOUR, "never"),
                Absent::Value("10s"),
                Reload::Live,
                "How long an ejected backend has to be silent (no ping answered, no message on any \
                 connection) until it is given up.",
            ),
            key(
                "fence_command",
                Kind::Words,
                Absent::Means("none"),
                Reload::Live,
                "Program and arguments that make sure that a silent backend cannot write any more, \
                 as in `[\"/usr/local/bin/fence\", \"{name}\"]`; exit code 0 = done. `{name}` and \
                 `{address}` are replaced. Unless it succeeds, the backend is not given up, and it \
                 is tried again. Without it a backend that was only stopped may write to its \
                 sessions' logs when it wakes, beside the new owner.",
            ),
            key(
                "fence_timeout",
                span(ms(100), HOUR),
                Absent::Value("10s"),
                Reload::Live,
                "How long the fence command may take; then it is killed, and has failed.",
            ),
        ],
    },
    Section {
        name: "drain",
        shape: Shape::Table,
        text: "How Taxiway and its backends are emptied.",
        keys: &[
            key(
                "timeout",
                span_or(ms(100), secs(7 * 86_400), "at once"),
                Absent::Value("10m"),
                Reload::Live,
                "How long running turns may go on.",
            ),
            key(
                "accept_grace",
                span_or(ms(100), HOUR, "none"),
                Absent::Value("5s"),
                Reload::Live,
                "After SIGTERM, connections are still accepted for so long while `/readyz` says \
                 503.",
            ),
        ],
    },
    Section {
        name: "upgrade",
        shape: Shape::Table,
        text: "Another process takes over without a gap: `taxiway run --upgrade`.",
        keys: &[
            key(
                "socket",
                Kind::Path,
                Absent::Means(
                    "`upgrade-IP-PORT.sock` in `$RUNTIME_DIRECTORY` or `$XDG_RUNTIME_DIR/taxiway`; \
                     without these variables there is none, and no upgrade",
                ),
                Reload::Restart("old processes look for their successor there"),
                "The Unix socket on which the running process hands its listening sockets over. \
                 Only its own user may connect.",
            ),
            key(
                "timeout",
                span(ms(100), secs(7 * 86_400)),
                Absent::Value("24h"),
                Reload::Live,
                "How long the old process goes on serving the clients that it has.",
            ),
        ],
    },
    Section {
        name: "limits",
        shape: Shape::Table,
        text: "Nothing grows without bound. What meets a limit gets an error that names its key.",
        keys: limits::KEYS,
    },
    Section {
        name: "log",
        shape: Shape::Table,
        text: "Never prompts, never parameters.",
        keys: &[
            key(
                "level",
                choice(&["error", "warn", "info", "debug", "trace"]),
                Absent::Value("info"),
                Reload::Live,
                "How much is logged.",
            ),
            key(
                "format",
                choice(&["text", "json"]),
                Absent::Value("text"),
                Reload::Restart(LOG_IS_FIXED),
                "For people, or one JSON object a line.",
            ),
            key(
                "identities",
                choice(&["plain", "hash"]),
                Absent::Value("plain"),
                Reload::Restart(LOG_IS_FIXED),
                "Users and sessions as they are, or as a keyed hash; the words of errors, which name \
                 them, are then left to the client.",
            ),
        ],
    },
    Section {
        name: "store",
        shape: Shape::Table,
        text: "Where Taxiway keeps which server has a session open, which one's disk it lives on, and \
               what operators want of servers, so that its own crash or restart loses none of it. \
               Ids and names only.",
        keys: &[
            key(
                "kind",
                Kind::Choice {
                    words: &["memory", "embedded"],
                    planned: &["redis"],
                },
                Absent::Value("embedded"),
                Reload::Restart(STORE_IS_FIXED),
                "`embedded`: a file that this Taxiway alone writes. `memory`: nothing is kept, and \
                 asked for again from the servers after a restart; what lives on a server that is \
                 away then is unknown until it is back.",
            ),
            key(
                "path",
                Kind::Path,
                Absent::Means(
                    "`taxiway.db` in `$STATE_DIRECTORY`, which systemd sets for a service with \
                     `StateDirectory=`, else beside the configuration file; for a start without \
                     one see [operations](operations.md#the-store)",
                ),
                Reload::Restart(STORE_IS_FIXED),
                "That file. It is made, readable by its user only; its directory must exist, be \
                 writable and be on a local disk.",
            ),
            key(
                "expire",
                span_or(HOUR, secs(3650 * 86_400), "never"),
                Absent::Value("90d"),
                Reload::Restart(STORE_IS_FIXED),
                "A closed session that was not used for so long is forgotten at the next start. It \
                 stays on its server's disk, and is known again once that is read.",
            ),
        ],
    },
    BACKENDS,
    BACKENDS_TLS,
    Section {
        name: "managed",
        shape: Shape::Table,
        text: "CLI servers that Taxiway starts and supervises itself, instead of or beside \
               `[[backends]]`. Without this section there are none.",
        keys: &[
            key(
                "command",
                Kind::Words,
                Absent::Words(&[
                    "copilot",
                    "--headless",
                    "--no-auto-update",
                    "--port",
                    "{port}",
                ]),
                Reload::Restart(SERVERS_ARE_FIXED),
                "Program and arguments. `{port}` and `{name}` are replaced. A program without `/` \
                 is looked up in `PATH`.",
            ),
            key(
                "servers",
                Kind::Integer { min: 1, max: 64 },
                Absent::Value("3"),
                Reload::Restart(SERVERS_ARE_FIXED),
                "How many. They are named `managed-1`, `managed-2`, …",
            ),
            key(
                "state_dir",
                Kind::Path,
                Absent::Means(
                    "`$XDG_STATE_HOME/taxiway`, or `~/.local/state/taxiway` without that variable",
                ),
                Reload::Restart(SERVERS_ARE_FIXED),
                "Each server's `COPILOT_HOME` is the directory of its name in here.",
            ),
            key(
                "start_timeout",
                span(secs(1), HOUR),
                Absent::Value("30s"),
                Reload::Restart(SERVERS_ARE_FIXED),
                "How long a server may take to say that it listens.",
            ),
        ],
    },
];
