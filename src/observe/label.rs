//! The words by which values of `core` are shown in metrics, log lines and the admin API.
//!
//! Must not know more than one word a value: no text for people.

use crate::core::{
    event::{
        CallOutcome, ClosedBy, Direction, FrameKind, NotAdmitted, PlacementReason, ReopenResult,
        TakeOverResult, TurnOutcome, UpgradePhase,
    },
    release::How,
    snapshot::{AdminState, Health, Mode},
};

/// A value with a fixed, short, public word.
pub trait Label: Copy + 'static {
    /// Every value, in the order of [`Label::position`].
    const ALL: &'static [Self];

    /// The word: a contract with dashboards and scripts.
    fn label(self) -> &'static str;

    /// Its place in [`Label::ALL`].
    fn position(self) -> usize;
}

macro_rules! labels {
    ($($type:ident { $($variant:ident = $word:literal),+ $(,)? })+) => {$(
        impl Label for $type {
            const ALL: &'static [Self] = &[$($type::$variant),+];

            fn label(self) -> &'static str {
                match self {
                    $($type::$variant => $word,)+
                }
            }

            fn position(self) -> usize {
                // The enums have no explicit discriminants, and the test below holds the order.
                self as usize
            }
        }
    )+};
}

labels! {
    Direction {
        ClientToBackend = "client_to_backend",
        BackendToClient = "backend_to_client",
    }
    FrameKind {
        Request = "request",
        Notification = "notification",
        Response = "response",
        Error = "error",
        Invalid = "invalid",
    }
    NotAdmitted {
        AllowFrom = "allow_from",
        ProxyFrom = "proxy_protocol_from",
        ProxyHeader = "proxy_header",
        PlainOnTls = "plain_on_tls",
        TlsOnPlain = "tls_on_plain",
        Certificate = "certificate",
        Tls = "tls",
        TimedOut = "timeout",
        Evicted = "evicted",
        Refused = "refused",
        Left = "left",
    }
    CallOutcome {
        Ok = "ok",
        BackendError = "backend_error",
        ProxyError = "proxy_error",
        Abandoned = "abandoned",
    }
    UpgradePhase {
        Offered = "offered",
        Failed = "failed",
        TakenOver = "taken_over",
        Retired = "retired",
        Attached = "peer_attached",
        Gone = "peer_gone",
        Link = "link",
        Conflict = "conflict",
    }
    TurnOutcome {
        Ok = "ok",
        Error = "error",
        Aborted = "aborted",
        Lost = "lost",
        Stalled = "stalled",
    }
    ReopenResult {
        Resumed = "reopened",
        Created = "recreated",
        Moved = "moved",
        Failed = "failed",
    }
    TakeOverResult {
        TakenOver = "taken_over",
        Expired = "expired",
        Ended = "ended",
    }
    ClosedBy {
        Client = "client",
        Backend = "backend",
        Proxy = "proxy",
        Operator = "operator",
    }
    PlacementReason {
        Hash = "hash",
        Bounded = "bounded",
        LeastLoaded = "least_loaded",
        Owner = "owner",
        Home = "home",
        RoundRobin = "round_robin",
        TwoChoices = "two_choices",
    }
    AdminState {
        Ready = "ready",
        Drain = "drain",
        Maint = "maint",
    }
    Health {
        Unknown = "unknown",
        Up = "up",
        Slow = "slow",
        Down = "down",
        Probation = "probation",
        StorageMismatch = "storage_mismatch",
    }
    How {
        Gone = "gone",
        Fenced = "fenced",
        Unfenced = "unfenced",
    }
    Mode {
        Sticky = "sticky",
        SharedStorage = "shared-storage",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ordered<T: Label>() {
        let mut words = Vec::new();
        for (i, value) in T::ALL.iter().enumerate() {
            assert_eq!(value.position(), i, "{}", value.label());
            assert!(!words.contains(&value.label()), "{} twice", value.label());
            words.push(value.label());
        }
    }

    #[test]
    fn positions_follow_the_list_and_words_differ() {
        ordered::<Direction>();
        ordered::<FrameKind>();
        ordered::<NotAdmitted>();
        ordered::<CallOutcome>();
        ordered::<TurnOutcome>();
        ordered::<ClosedBy>();
        ordered::<PlacementReason>();
        ordered::<AdminState>();
        ordered::<Health>();
        ordered::<How>();
        ordered::<Mode>();
    }
}
