//! Keys of `[sessions]`. What they mean together is checked elsewhere.

use super::{Absent, HOUR, Key, Reload, at_most, choice, key, ms, not_built, secs, span, span_or};

pub(super) const KEYS: &[Key] = &[
    key(
        "create_existing",
        choice(&["resume", "pass", "reject"]),
        Absent::Value("resume"),
        Reload::Live,
        "`session.create` on the id of a closed session that has had a turn. `resume`: it \
         is reopened and answered as create. `pass`: the CLI starts an empty history over \
         the old one. `reject`: an error.",
    ),
    key(
        "turn_lock",
        choice(&["queue", "reject", "off"]),
        Absent::Value("queue"),
        Reload::Live,
        "Sends while somebody else's turn runs in the session. `queue`: they wait until it \
         is over, in the order in which they came. `reject`: they get -32012. `off`: they \
         pass, and the CLI makes them part of whatever runs there.",
    ),
    key(
        "turn_lock_timeout",
        span(ms(100), secs(86_400)),
        Absent::Value("5m"),
        Reload::Live,
        "How long a send waits for somebody else's turn to end, before it gets -32012.",
    ),
    key(
        "turn_lock_holder",
        choice(&["connection", "send"]),
        Absent::Value("connection"),
        Reload::Live,
        "Whose a turn is. `connection`: what the same client connection sends meanwhile \
         belongs to it. `send`: each send is somebody else's, for one connection that \
         speaks for many.",
    ),
    key(
        "turn_max",
        span_or(secs(1), secs(7 * 86_400), "off"),
        Absent::Value("1h"),
        Reload::Live,
        "A turn that has run for so long is aborted, and its clients are told.",
    ),
    not_built("max_open_per_backend", "caps"),
    key(
        "max_open_per_user",
        at_most(1_000_000),
        Absent::Value("0"),
        Reload::Live,
        "Sessions that one user may have open, on all connections together; 0 = any number. \
         Beyond it creates and resumes get -32013. Whoever has one open already may open it \
         again.",
    ),
    not_built("max_turns", "caps"),
    key(
        "detach_grace",
        span_or(ms(100), HOUR, "off"),
        Absent::Value("30s"),
        Reload::Live,
        "How long a running turn goes on after its client's connection broke, for the \
         same user's next connection to take it over.",
    ),
    key(
        "turn_stall",
        span_or(secs(1), secs(7 * 86_400), "off"),
        Absent::Value("0s"),
        Reload::Live,
        "A turn without any event for so long is stalled.",
    ),
    key(
        "turn_stall_action",
        choice(&["log", "end"]),
        Absent::Value("log"),
        Reload::Live,
        "What happens to a stalled turn. `log`: it is counted and logged. `end`: it is \
         ended as well, and its clients are told.",
    ),
    not_built(
        "ephemeral",
        "sessions deleted when their last client leaves",
    ),
    not_built("ttl", "deletion of old sessions"),
    not_built("ttl_scope", "deletion of old sessions"),
];
