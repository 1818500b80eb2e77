//! `sessions.turn_lock…` and the caps of users: who may use how much, and when.

use super::{Check, Table};
use crate::{
    config::{Config, Granularity},
    core::{
        identity::Caps,
        turnlock::{Rule, Terms, Unit},
    },
};

/// Keys of sections that need somebody to look at sessions and calls.
const KEYS: [(&str, &str); 6] = [
    ("sessions", "turn_lock"),
    ("sessions", "max_open_per_user"),
    ("limits", "connections_per_user"),
    ("limits", "turns_per_user"),
    ("limits", "calls_per_second"),
    ("limits", "bytes_per_second"),
];

/// What the file says of turns.
pub(super) fn terms(sessions: &Table) -> Terms {
    Terms {
        rule: sessions.word("turn_lock", |word| match word {
            "queue" => Some(Rule::Queue),
            "reject" => Some(Rule::Reject),
            "off" => Some(Rule::Off),
            _ => None,
        }),
        unit: sessions.word("turn_lock_holder", |word| match word {
            "connection" => Some(Unit::Connection),
            "send" => Some(Unit::Send),
            _ => None,
        }),
        timeout: sessions.duration("turn_lock_timeout"),
        max: sessions.duration_or_off("turn_max"),
    }
}

/// What it says of users.
pub(super) fn caps(limits: &Table, sessions: &Table) -> Caps {
    let cap = |table: &Table, key: &str| Some(table.integer(key)).filter(|most| *most > 0);
    Caps {
        connections: cap(limits, "connections_per_user"),
        sessions: cap(sessions, "max_open_per_user"),
        turns: cap(limits, "turns_per_user"),
        calls_per_second: cap(limits, "calls_per_second"),
        bytes_per_second: Some(limits.size("bytes_per_second") as u64).filter(|n| *n > 0),
    }
}

/// What it says of one principal: zero is as much as there is, whatever others have.
pub(super) fn own_caps(principal: &Table) -> Caps {
    let cap = |key: &str| {
        let most = principal.integer_or_none(key)?;
        Some(if most == 0 { u32::MAX } else { most })
    };
    let bytes = principal.size_or_none("bytes_per_second");
    Caps {
        connections: cap("connections"),
        sessions: cap("sessions"),
        turns: cap("turns"),
        calls_per_second: cap("calls_per_second"),
        bytes_per_second: bytes.map(|n| if n == 0 { u64::MAX } else { n }),
    }
}

impl Check<'_> {
    /// Where whole connections are relayed, nobody sees a turn or counts a call.
    pub(super) fn nobody_counts(&mut self, config: &Config) {
        if config.routing.granularity != Granularity::Connection {
            return;
        }
        for (section, key) in KEYS {
            let table = self.raw.table(section);
            let caps = &config.limits.caps;
            let off = match key {
                "turn_lock" => config.sessions.turns.rule == Rule::Off,
                "max_open_per_user" => caps.sessions.is_none(),
                "connections_per_user" => caps.connections.is_none(),
                "turns_per_user" => caps.turns.is_none(),
                "calls_per_second" => caps.calls_per_second.is_none(),
                _ => caps.bytes_per_second.is_none(),
            };
            let Some(span) = table.sound(key).filter(|_| !off) else {
                continue;
            };
            let message =
                format!("{section}.{key}: cannot be used with granularity = \"connection\"");
            self.report
                .error(span, message)
                .label("nobody looks at calls then")
                .help("use granularity = \"session\" below [routing], or take it out");
        }
    }
}
