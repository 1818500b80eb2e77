//! Keys of `[limits]`. What they mean together is checked elsewhere.

use super::{Absent, HOUR, Key, Kind, Reload, at_most, key, ms, span};

pub(super) const KEYS: &[Key] = &[
    key(
        "frame",
        Kind::Size {
            min: 64 << 10,
            max: 1 << 30,
        },
        Absent::Value("64MiB"),
        Reload::NewConnections,
        "Largest message from a client.",
    ),
    key(
        "header",
        Kind::Size {
            min: 64,
            max: 1 << 20,
        },
        Absent::Value("8KiB"),
        Reload::NewConnections,
        "Largest block of header lines of a message.",
    ),
    key(
        "cut_through_min",
        Kind::Size {
            min: 64 << 10,
            max: 512 << 20,
        },
        Absent::Value("1MiB"),
        Reload::Live,
        "A larger message of a backend is passed on as it arrives, so that it costs no memory; \
         the client hears nothing else meanwhile. Those that Taxiway reads (the answers to calls \
         that open, change or leave a session, the ends of turns, requests) are held until they \
         are complete, up to 512MiB.",
    ),
    key(
        "frame_timeout",
        span(ms(100), HOUR),
        Absent::Value("30s"),
        Reload::NewConnections,
        "A client's message, from its first byte to its last. A backend of whose message less than \
         64 KiB and not the end come in that time is ejected; what its client does not read does not \
         count. There is no limit to the whole of a large one, which takes as long as its client does.",
    ),
    key(
        "calls_per_connection",
        Kind::Integer {
            min: 1,
            max: 1_000_000,
        },
        Absent::Value("1024"),
        Reload::NewConnections,
        "Calls of one client connection that wait for their response.",
    ),
    key(
        "sessions_per_connection",
        Kind::Integer {
            min: 1,
            max: 1_000_000,
        },
        Absent::Value("1024"),
        Reload::NewConnections,
        "Sessions attached on one client connection.",
    ),
    key(
        "connections",
        Kind::Integer {
            min: 1,
            max: 1_000_000,
        },
        Absent::Value("10000"),
        Reload::Live,
        "Client connections. Where clients have to prove who they are, one more takes the place \
         of one that has not; else it is closed at once.",
    ),
    key(
        "unauthenticated_connections",
        Kind::Integer {
            min: 1,
            max: 1_000_000,
        },
        Absent::Means("half of `connections`"),
        Reload::Live,
        "Client connections that have not proved who they are, where they have to (`[identity]`, \
         client certificates). One more closes the oldest of the address that has the most of \
         them; those that have proved it are not touched.",
    ),
    key(
        "unauthenticated_per_address",
        at_most(1_000_000),
        Absent::Value("0"),
        Reload::Live,
        "The same, from one client address (an IPv6 network of 64 bits counts as one); 0 = any \
         number. For addresses of single clients: behind a balancer without `proxy_protocol` all \
         of them have one.",
    ),
    key(
        "directory_sessions",
        Kind::Integer {
            min: 1000,
            max: 100_000_000,
        },
        Absent::Value("1000000"),
        Reload::Live,
        "Sessions remembered in memory; beyond it the closed ones unused for longest are \
         forgotten and asked for again.",
    ),
    key(
        "session_params",
        Kind::Size {
            min: 4 << 10,
            max: 64 << 20,
        },
        Absent::Value("1MiB"),
        Reload::NewConnections,
        "Parameters of a session's last create or resume that are kept in memory, per \
         session and client, to open it again elsewhere. A session with longer ones is not \
         reopened.",
    ),
    key(
        "connections_per_user",
        at_most(1_000_000),
        Absent::Value("0"),
        Reload::NewConnections,
        "Client connections of one user; 0 = any number. One more is told -32013 and closed. \
         Here and below: where clients need no token, a user is a client address; a \
         service is a user, and so are the users that it speaks for where sessions and \
         turns are counted.",
    ),
    key(
        "turns_per_user",
        at_most(1_000_000),
        Absent::Value("0"),
        Reload::Live,
        "Turns of one user that may run at a time; 0 = any number. Beyond it sends get -32013.",
    ),
    key(
        "calls_per_second",
        at_most(1_000_000),
        Absent::Value("0"),
        Reload::Live,
        "Calls of one user per second, on all connections together; 0 = any number. Beyond \
         it they get -32013 with `data.retry_after_ms`. Answers, `ping` and `connect` do not \
         count.",
    ),
    key(
        "bytes_per_second",
        Kind::Size {
            min: 0,
            max: 1 << 30,
        },
        Absent::Value("0B"),
        Reload::Live,
        "Bytes of calls of one user per second, up to a billion; `\"0B\"` = any number. One \
         frame of the largest size passes at once.",
    ),
];
