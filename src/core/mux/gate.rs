//! What stands between a client's request and its way to a backend: every reason to refuse one
//! before it is routed, in one place and order. What a session's whereabouts have to say comes
//! later, from the shell.

use super::{Context, Life, Mux};
use crate::core::{idmap::RequestId, reply::ProxyError, route::Class, scan::Head};

/// A request as it arrived.
pub(super) struct Asked<'a> {
    pub(super) class: Class,
    pub(super) method: &'a str,
    pub(super) call: &'a RequestId,
    /// Its id as it is written.
    pub(super) token: &'a [u8],
    /// The session that it names where its class looks for one, if that can be a session's id.
    pub(super) named: Option<&'a str>,
    pub(super) head: &'a Head,
    pub(super) body: &'a [u8],
}

impl Mux {
    /// Why a request is not taken, if so.
    pub(super) fn refusal(&mut self, cx: &Context<'_>, asked: &Asked<'_>) -> Option<ProxyError> {
        if self.is_taken(asked.call) {
            return Some(ProxyError::duplicate_id(asked.token));
        }
        if self.is_stranger(cx) && asked.class != Class::Connect {
            return Some(ProxyError::AuthenticationRequired);
        }
        self.beyond_limit(cx, asked)
            .or_else(|| denied(asked))
            .or_else(|| self.refused_in_drain(asked.class))
            .or_else(|| self.beyond_sessions(cx, asked))
    }

    /// Whether a request is pending under this id.
    fn is_taken(&self, call: &RequestId) -> bool {
        self.calls.contains(call)
            || self.upstreams.owe(call)
            || self.own.iter().any(|own| own.id == *call)
    }

    fn beyond_limit(&mut self, cx: &Context<'_>, asked: &Asked<'_>) -> Option<ProxyError> {
        // These are answered at once.
        if matches!(asked.class, Class::Ping | Class::Connect) {
            return None;
        }
        if self.calls.len() + self.upstreams.given_up() >= cx.settings.calls {
            return Some(self.over("limits.calls_per_connection", cx.settings.calls));
        }
        let bytes = asked.call.heap_bytes();
        (bytes > 0 && !self.may_hold(bytes, cx.settings)).then(|| self.too_much_held(cx.settings))
    }

    fn refused_in_drain(&self, class: Class) -> Option<ProxyError> {
        (self.life == Life::Draining && starts_work(class)).then_some(ProxyError::Draining)
    }

    fn beyond_sessions(&mut self, cx: &Context<'_>, asked: &Asked<'_>) -> Option<ProxyError> {
        if !matches!(asked.class, Class::Create | Class::Resume | Class::Open) {
            return None;
        }
        let has_place = asked
            .named
            .and_then(|session| self.by_session.get(session))
            .is_some_and(|key| self.entries[*key].has_place());
        (!has_place && !self.has_room(cx.settings.sessions))
            .then(|| self.over("limits.sessions_per_connection", cx.settings.sessions))
    }

    fn over(&mut self, limit: &'static str, value: usize) -> ProxyError {
        self.limit_hit(limit);
        ProxyError::LimitExceeded {
            limit,
            value: value as u64,
        }
    }
}

/// What nobody may do through Taxiway.
fn denied(asked: &Asked<'_>) -> Option<ProxyError> {
    let reason = if let Class::Denied(reason) = asked.class {
        reason
    } else if asked.class == Class::Open
        && asked.named.is_none()
        && wants_last(asked.head, asked.body)
    {
        "which session was last is known to no single server, and the one that opened it by itself \
         might open what another has open: ask session.getLastId, then open that id with kind resume"
    } else {
        return None;
    };
    Some(ProxyError::MethodDenied {
        method: asked.method.to_owned(),
        reason,
    })
}

/// Whether a `sessions.open` leaves it to the server which session that is.
fn wants_last(head: &Head, body: &[u8]) -> bool {
    head.places
        .kind
        .is_some_and(|kind| kind.get(body) == "resumeLast")
}

/// Whether a call of this class starts something that would outlive the drain.
fn starts_work(class: Class) -> bool {
    matches!(
        class,
        Class::Create | Class::Resume | Class::Open | Class::Send(_) | Class::Fork
    )
}
