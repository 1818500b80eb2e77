//! One event, one log line, its counters.
//!
//! The message of a line is the event's name; its fields are those of the event. Counted here, and
//! so not to be counted again by whoever records the event: the turn (`turns_total` and both
//! histograms), the placement, the error answered, the limit hit, create on an existing id, the
//! session not found, the reload, the release of a silent backend, the store's failures. The gauges
//! of backends and their ejections are not: the pool sets them.
//!
//! Must not log prompts, parameters or tokens: no event has a field for them.

use std::time::Duration;

use tracing::{debug, error, info, warn};

use self::backend::write_backend;
use super::{Label, Observer, clip, clip_to, metrics::unix_now};
use crate::core::{
    event::{Event, NotAdmitted, TurnRecord, UpgradePhase},
    release::How,
};

mod backend;

impl Observer {
    /// Writes the event's log line and moves its counters.
    pub fn record(&self, event: &Event) {
        self.count(event);
        self.write_line(event);
    }

    fn count(&self, event: &Event) {
        let metrics = self.metrics();
        match event {
            // A turn had an upstream connection, so its backend's series were made; if they are
            // gone, the backend has left the pool and they must not come back.
            Event::Turn(turn) => {
                if let Some(backend) = metrics.known_backend(&turn.backend) {
                    backend.turn_ended(turn.outcome, turn.duration, turn.first_event);
                }
            }
            // May come before anything else that names the backend.
            Event::Placement {
                backend, reason, ..
            } => metrics.backend(backend).placement(*reason),
            Event::ErrorAnswered { code, .. } => {
                metrics.error(*code);
                match *code {
                    METHOD_DENIED => metrics.access_denied("method"),
                    METHOD_UNKNOWN => metrics.access_denied("unknown_method"),
                    _ => {}
                }
            }
            Event::LimitHit { limit, .. } => metrics.limit_hit(limit),
            Event::NotAdmitted { reason, .. } => metrics.not_admitted(*reason),
            Event::CreateExisting { action, .. } => metrics.session_create_existing(action),
            Event::SessionNotFound { reason, .. } => metrics.session_not_found(reason.label()),
            Event::Denied { reason, .. } => metrics.access_denied(reason.label()),
            Event::Withheld { reason, .. } => metrics.frame_withheld(reason),
            Event::FrameCut { .. } => metrics.frame_cut(),
            Event::SessionParked { .. } => metrics.session_parked(),
            Event::ParkedEnded { result, .. } => metrics.parked_ended(result.label()),
            Event::SessionReopened { result, .. } => metrics.failover(result.label()),
            Event::Reload { ok, .. } => metrics.reload(*ok, unix_now()),
            Event::BackendReleased {
                how: how @ (How::Fenced | How::Unfenced),
                ..
            } => metrics.failover(how.label()),
            Event::FenceFailed { .. } => metrics.failover("fence_failed"),
            Event::Upgrade { phase, .. } => metrics.upgrade(*phase),
            Event::AuthenticationFailed { reason, .. } => metrics.auth_failure(reason),
            Event::StoreFailed { op, .. } => metrics.store_failed(op),
            Event::StoreBack => metrics.store_up(true),
            Event::ConnectionOpened { .. }
            | Event::ConnectionClosed { .. }
            | Event::NotAdmittedMore { .. }
            | Event::Authenticated { .. }
            | Event::Revoked { .. }
            | Event::UpstreamLost { .. }
            | Event::BackendHealth { .. }
            | Event::BackendAdmin { .. }
            | Event::BackendAdded { .. }
            | Event::BackendRemoved { .. }
            | Event::BackendReleased { .. }
            | Event::BackendReturned { .. }
            | Event::BackendViolation { .. }
            | Event::TurnStalled { .. }
            | Event::Drain { .. }
            | Event::AdminCall { .. }
            | Event::StoreOpened { .. }
            | Event::ManagedServer { .. } => {}
        }
    }

    fn write_line(&self, event: &Event) {
        match event {
            Event::ConnectionOpened { connection, client } => info!(
                target: "taxiway",
                connection = connection.0,
                client_addr = %client,
                what = "opened",
                "connection"
            ),
            Event::NotAdmitted {
                client,
                reason: reason @ NotAdmitted::Left,
                detail,
            } => debug!(
                target: "taxiway",
                client_addr = %client,
                what = "not_admitted",
                reason = reason.label(),
                detail = clip(detail),
                "connection"
            ),
            Event::NotAdmitted {
                client,
                reason,
                detail,
            } => warn!(
                target: "taxiway",
                client_addr = %client,
                what = "not_admitted",
                reason = reason.label(),
                detail = clip(detail),
                "connection"
            ),
            Event::NotAdmittedMore { count, over } => warn!(
                target: "taxiway",
                what = "not_admitted",
                more = count,
                seconds = over.as_secs(),
                "connection"
            ),
            Event::ConnectionClosed {
                connection,
                client,
                closed_by,
                reason,
                duration,
            } => info!(
                target: "taxiway",
                connection = connection.0,
                client_addr = %client,
                what = "closed",
                closed_by = closed_by.label(),
                reason = clip(reason),
                duration_ms = milliseconds(*duration),
                "connection"
            ),
            Event::Authenticated {
                connection,
                client,
                principal,
                user,
                how,
            } => info!(
                target: "taxiway",
                connection = connection.0,
                client_addr = %client,
                what = "authenticated",
                principal = self.identity(principal),
                user = self.identity(user),
                by = how,
                "connection"
            ),
            Event::AuthenticationFailed {
                connection,
                client,
                reason,
                wait,
            } => warn!(
                target: "taxiway",
                connection = connection.0,
                client_addr = %client,
                method = "connect",
                reason,
                wait_ms = wait.map(milliseconds),
                "denied"
            ),
            Event::Revoked {
                connection,
                client,
                principal,
                user,
            } => warn!(
                target: "taxiway",
                connection = connection.0,
                client_addr = %client,
                what = "revoked",
                principal = self.identity(principal),
                user = self.identity(user),
                "connection"
            ),
            Event::SessionParked {
                connection,
                session,
            } => info!(
                target: "taxiway",
                connection = connection.0,
                session = self.identity(session.as_str()),
                what = "parked",
                "grace"
            ),
            Event::ParkedEnded {
                connection,
                session,
                result,
                took,
            } => info!(
                target: "taxiway",
                connection = connection.0,
                session = self.identity(session.as_str()),
                what = result.label(),
                duration_ms = milliseconds(*took),
                "grace"
            ),
            Event::UpstreamLost {
                connection,
                backend,
                calls,
                turns,
                reason,
            } => warn!(
                target: "taxiway",
                connection = connection.0,
                backend = clip(backend.as_str()),
                what = "upstream lost",
                calls,
                turns,
                reason = clip(reason),
                "backend"
            ),
            Event::FrameCut {
                connection,
                backend,
            } => warn!(
                target: "taxiway",
                connection = connection.0,
                backend = clip(backend.as_str()),
                what = "cut frame",
                reason = "the client is closed in the middle of a large message",
                "backend"
            ),
            Event::Placement {
                connection,
                session,
                backend,
                reason,
            } => info!(
                target: "taxiway",
                connection = connection.0,
                session = self.identity(session.as_str()),
                backend = clip(backend.as_str()),
                reason = reason.label(),
                "placement"
            ),
            Event::Turn(turn) => self.write_turn(turn),
            Event::ErrorAnswered {
                reference,
                connection,
                method,
                session,
                code,
                message,
            } => {
                self.write_error(
                    *reference,
                    connection.0,
                    method,
                    session
                        .as_ref()
                        .map(|session| self.identity(session.as_str())),
                    *code,
                    message,
                );
            }
            Event::TurnStalled {
                connection,
                session,
                backend,
                silent_for,
                ended,
            } => warn!(
                target: "taxiway",
                connection = connection.0,
                session = self.identity(session.as_str()),
                backend = clip(backend.as_str()),
                what = "stalled",
                silent_ms = milliseconds(*silent_for),
                ended,
                "turn"
            ),
            Event::LimitHit { connection, limit } => warn!(
                target: "taxiway",
                connection = connection.map(|c| c.0),
                limit,
                "limit"
            ),
            Event::SessionReopened {
                connection,
                session,
                from,
                to,
                result,
                took,
            } => info!(
                target: "taxiway",
                connection = connection.0,
                session = self.identity(session.as_str()),
                from = clip(from.as_str()),
                to = clip(to.as_ref().map_or("", |to| to.as_str())),
                result = result.label(),
                took_ms = milliseconds(*took),
                "failover"
            ),
            Event::CreateExisting { session, action } => info!(
                target: "taxiway",
                session = self.identity(session.as_str()),
                what = "create on an existing id",
                action,
                "session"
            ),
            Event::SessionNotFound { session, reason } => debug!(
                target: "taxiway",
                session = self.identity(session.as_str()),
                what = "not found",
                reason = reason.label(),
                "session"
            ),
            Event::Denied {
                connection,
                principal,
                method,
                session,
                reason,
            } => warn!(
                target: "taxiway",
                connection = connection.0,
                principal = self.identity(principal.as_deref().unwrap_or_default()),
                method = clip(method),
                session = self.identity(session.as_str()),
                reason = reason.label(),
                "denied"
            ),
            Event::Withheld { connection, reason } => debug!(
                target: "taxiway",
                connection = connection.0,
                what = "withheld",
                reason,
                "connection"
            ),
            Event::BackendHealth { .. }
            | Event::BackendAdmin { .. }
            | Event::BackendAdded { .. }
            | Event::BackendRemoved { .. }
            | Event::BackendReleased { .. }
            | Event::FenceFailed { .. }
            | Event::BackendReturned { .. }
            | Event::BackendViolation { .. }
            | Event::ManagedServer { .. } => write_backend(event),
            Event::Reload {
                ok: true,
                trigger,
                summary,
            } => info!(
                target: "taxiway",
                ok = true,
                trigger,
                summary = long(summary),
                "reload"
            ),
            Event::Reload {
                ok: false,
                trigger,
                summary,
            } => error!(
                target: "taxiway",
                ok = false,
                trigger,
                summary = long(summary),
                "reload"
            ),
            Event::Drain {
                phase,
                connections,
                turns,
            } => info!(
                target: "taxiway",
                phase,
                connections,
                turns,
                "drain"
            ),
            Event::Upgrade {
                phase,
                peer,
                detail,
            } => self.write_upgrade(*phase, *peer, detail),
            Event::AdminCall { client, action, ok } => info!(
                target: "taxiway",
                client_addr = %client,
                action = clip(action),
                ok,
                "admin"
            ),
            Event::StoreOpened {
                path,
                is_new,
                sessions,
                forgotten,
                other_mode,
            } => {
                let what = if *is_new { "made" } else { "opened" };
                write_store_opened(what, path, *sessions, *forgotten, *other_mode);
            }
            Event::StoreFailed {
                op,
                reason,
                waiting,
                goes_down,
            } => write_store_failed(op, reason, *waiting, *goes_down),
            Event::StoreBack => info!(
                target: "taxiway",
                what = "back",
                consequence = "everything that waited is on disk",
                "store"
            ),
        }
    }

    fn write_upgrade(&self, phase: UpgradePhase, peer: Option<u32>, detail: &str) {
        let detail = Some(long(detail)).filter(|detail| !detail.is_empty());
        macro_rules! line {
            ($level:ident) => {
                $level!(target: "taxiway", phase = phase.label(), peer, detail, "upgrade")
            };
        }
        match phase {
            UpgradePhase::Failed | UpgradePhase::Conflict => line!(error),
            UpgradePhase::Link => line!(warn),
            UpgradePhase::Offered
            | UpgradePhase::TakenOver
            | UpgradePhase::Retired
            | UpgradePhase::Attached
            | UpgradePhase::Gone => line!(info),
        }
    }

    fn write_turn(&self, turn: &TurnRecord) {
        info!(
            target: "taxiway",
            {
                "ref" = turn.reference,
                principal = turn.principal.as_deref().map(|name| self.identity(name)),
                user = turn.user.as_deref().map(|user| self.identity(user)),
                session = self.identity(turn.session.as_str()),
                backend = clip(turn.backend.as_str()),
                client_addr = %turn.client,
                queue_ms = milliseconds(turn.queued),
                first_event_ms = turn.first_event.map(milliseconds),
                duration_ms = milliseconds(turn.duration),
                outcome = turn.outcome.label(),
                closed_by = turn.closed_by.label(),
                events = turn.events,
                bytes = turn.bytes,
                trace_id = turn.trace_id.as_deref().map(clip)
            },
            "turn"
        );
    }

    /// A refusal by policy is a `denied` line, everything else an `error` line.
    fn write_error(
        &self,
        reference: u64,
        connection: u64,
        method: &str,
        session: Option<String>,
        code: i32,
        message: &str,
    ) {
        // Its words name sessions and repeat what clients wrote; the client has them, with `ref`.
        let reason = (!self.hides_identities()).then(|| clip(message));
        macro_rules! line {
            ($name:literal) => {
                warn!(
                    target: "taxiway",
                    {
                        "ref" = reference,
                        connection,
                        method = clip(method),
                        session,
                        code,
                        reason
                    },
                    $name
                )
            };
        }
        if matches!(code, METHOD_DENIED | METHOD_UNKNOWN) {
            line!("denied")
        } else {
            line!("error")
        }
    }
}

fn write_store_opened(
    what: &str,
    path: &str,
    sessions: usize,
    forgotten: usize,
    other_mode: Option<&str>,
) {
    match other_mode {
        None => info!(
            target: "taxiway",
            what,
            path = clip(path),
            sessions,
            forgotten,
            "store"
        ),
        Some(written_for) => warn!(
            target: "taxiway",
            what,
            path = clip(path),
            sessions,
            forgotten,
            written_for,
            consequence = "routing.mode has changed: homes and histories are dropped and asked for \
                           again; who had a session open, deletions and operators' states are kept",
            "store"
        ),
    }
}

fn write_store_failed(op: &str, reason: &str, waiting: usize, goes_down: bool) {
    if goes_down {
        error!(
            target: "taxiway",
            what = "failed",
            op,
            reason = clip(reason),
            waiting,
            consequence = "goes on in memory: what changes from now on is lost if Taxiway ends; \
                           writing is tried again until it works",
            "store"
        );
    } else {
        debug!(
            target: "taxiway",
            what = "failed again",
            op,
            reason = clip(reason),
            waiting,
            "store"
        );
    }
}

/// DESIGN §10: not allowed through this proxy.
const METHOD_DENIED: i32 = -32014;
/// Made here only for methods that the profile lets nobody try.
const METHOD_UNKNOWN: i32 = -32601;

/// A summary of Taxiway's own (all errors of a configuration, say): more room than a peer's text.
fn long(text: &str) -> &str {
    clip_to(text, 8 * 1024)
}

/// To the microsecond: enough for a queue that is usually empty, short enough to read.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

#[cfg(test)]
mod tests;
