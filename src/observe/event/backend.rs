//! The lines of backends: their health, state, place in the pool, and processes.
//!
//! Counts nothing.

use tracing::{error, info, warn};

use super::milliseconds;
use crate::{
    core::{event::Event, release::How, snapshot::Health},
    observe::{Label, clip},
};

/// The lines named `backend`.
pub(super) fn write_backend(event: &Event) {
    match event {
        Event::BackendHealth {
            backend,
            from,
            to,
            reason,
            cause: _,
        } => {
            macro_rules! line {
                ($level:ident) => {
                    $level!(
                        target: "taxiway",
                        backend = clip(backend.as_str()),
                        what = "health",
                        from = from.label(),
                        to = to.label(),
                        reason = clip(reason),
                        "backend"
                    )
                };
            }
            match to {
                Health::Down | Health::StorageMismatch => line!(warn),
                Health::Unknown | Health::Up | Health::Slow | Health::Probation => line!(info),
            }
        }
        Event::BackendAdmin {
            backend,
            from,
            to,
            by,
        } => info!(
            target: "taxiway",
            backend = clip(backend.as_str()),
            what = "state",
            from = from.label(),
            to = to.label(),
            by,
            "backend"
        ),
        Event::BackendAdded { backend, address } => info!(
            target: "taxiway",
            backend = clip(backend.as_str()),
            what = "added",
            address = clip(address),
            "backend"
        ),
        Event::BackendRemoved { backend, sessions } => info!(
            target: "taxiway",
            backend = clip(backend.as_str()),
            what = "removed",
            sessions,
            "backend"
        ),
        Event::BackendReleased {
            backend,
            how,
            silent,
            fence,
        } => {
            macro_rules! line {
                ($level:ident) => {
                    $level!(
                        target: "taxiway",
                        backend = clip(backend.as_str()),
                        what = "released",
                        reason = how.label(),
                        silent_ms = milliseconds(*silent),
                        fence = fence.as_deref().map(clip),
                        "backend"
                    )
                };
            }
            match how {
                // It may wake, and write beside the new owners.
                How::Unfenced => line!(warn),
                How::Gone | How::Fenced => line!(info),
            }
        }
        Event::FenceFailed { backend, reason } => error!(
            target: "taxiway",
            backend = clip(backend.as_str()),
            what = "fence failed",
            reason = clip(reason),
            "backend"
        ),
        Event::BackendReturned { backend, closed } => info!(
            target: "taxiway",
            backend = clip(backend.as_str()),
            what = "returned",
            closed_sessions = closed,
            "backend"
        ),
        Event::BackendViolation { backend, what } => warn!(
            target: "taxiway",
            backend = clip(backend.as_str()),
            what = "violation",
            reason = clip(what),
            "backend"
        ),
        Event::ManagedServer { backend, what, pid } => info!(
            target: "taxiway",
            backend = clip(backend.as_str()),
            what = clip(what),
            pid,
            "backend"
        ),
        Event::ConnectionOpened { .. }
        | Event::NotAdmitted { .. }
        | Event::NotAdmittedMore { .. }
        | Event::ConnectionClosed { .. }
        | Event::Authenticated { .. }
        | Event::AuthenticationFailed { .. }
        | Event::Revoked { .. }
        | Event::UpstreamLost { .. }
        | Event::FrameCut { .. }
        | Event::Placement { .. }
        | Event::Turn(_)
        | Event::ErrorAnswered { .. }
        | Event::LimitHit { .. }
        | Event::CreateExisting { .. }
        | Event::SessionReopened { .. }
        | Event::TurnStalled { .. }
        | Event::SessionNotFound { .. }
        | Event::Denied { .. }
        | Event::Withheld { .. }
        | Event::SessionParked { .. }
        | Event::ParkedEnded { .. }
        | Event::Reload { .. }
        | Event::Drain { .. }
        | Event::Upgrade { .. }
        | Event::StoreOpened { .. }
        | Event::StoreFailed { .. }
        | Event::StoreBack
        | Event::AdminCall { .. } => debug_assert!(false, "{event:?} is no line of a backend"),
    }
}
