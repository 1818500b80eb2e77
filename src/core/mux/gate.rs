//! What stands between a client's request and its way to a backend: every reason to refuse one
//! before it is routed, in one place and order. What a session's whereabouts have to say comes
//! later, from the shell.

use super::{Context, Life, Mux, Over};
use crate::core::{
    access::DecidedBy,
    idmap::RequestId,
    reply::ProxyError,
    route::{self, Class, Policy, Profile, Verdict},
    scan::Head,
};

/// A request as it arrived.
pub(super) struct Asked<'a> {
    pub(super) class: Class,
    pub(super) policy: Policy,
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
        if !self.is_trusted(cx) && asked.class != Class::Connect {
            return Some(ProxyError::AuthenticationRequired);
        }
        if let Err(over) = self.enter(cx) {
            return Some(over);
        }
        self.denied(cx, asked)
            .or_else(|| shapeless(asked))
            .or_else(|| denied_param(cx, asked))
            .or_else(|| self.beyond_limit(cx, asked))
            .or_else(|| self.beyond_rate(cx, asked))
            .or_else(|| self.refused_in_drain(asked.class))
            .or_else(|| self.beyond_sessions(cx, asked))
    }

    /// Whether a request is pending under this id.
    fn is_taken(&self, call: &RequestId) -> bool {
        self.calls.contains(call)
            || self.upstreams.owe(call)
            || self.own.iter().any(|own| own.id == *call)
    }

    /// What this client may not do at all.
    fn denied(&self, cx: &Context<'_>, asked: &Asked<'_>) -> Option<ProxyError> {
        let access = &cx.settings.access;
        let principal = self.principal.as_deref();
        let reason = match access.method(principal, asked.method, asked.policy) {
            (Verdict::Denied(reason), _) => reason,
            (Verdict::Unlisted, _) => {
                return Some(ProxyError::MethodUnlisted {
                    method: asked.method.to_owned(),
                });
            }
            (Verdict::Allowed, by) if asked.class == Class::Open => {
                let profile = match by {
                    DecidedBy::Profile => access.methods.profile,
                    // Whoever lists the method means all of it.
                    DecidedBy::Operator | DecidedBy::Principal => Profile::SingleTenant,
                };
                route::open_refusal(profile, asked.head, asked.body)?
            }
            (Verdict::Allowed, _) => return None,
        };
        Some(ProxyError::MethodDenied {
            method: asked.method.to_owned(),
            reason,
        })
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

    /// Takes this connection's place among those of its user, once that is known. Without one it is
    /// to be closed.
    pub(super) fn enter(&mut self, cx: &Context<'_>) -> Result<(), ProxyError> {
        if !self.entered && !self.is_stranger(cx) {
            let entered = cx.commons.enter(cx.settings, self.principal.as_ref());
            entered.map_err(|over| self.over_cap(over))?;
            self.entered = true;
        }
        Ok(())
    }

    /// Whether there was no place for it.
    pub(super) fn is_surplus(&self, cx: &Context<'_>) -> bool {
        !self.entered && !self.is_stranger(cx)
    }

    fn beyond_rate(&mut self, cx: &Context<'_>, asked: &Asked<'_>) -> Option<ProxyError> {
        if matches!(asked.class, Class::Ping | Class::Connect) {
            return None;
        }
        let own = self.principal.as_ref().map(|principal| principal.caps);
        if !own.unwrap_or_default().or(cx.settings.caps).bound_rates() {
            return None;
        }
        let spent = cx.commons.spend(cx.settings, asked.body.len());
        spent.err().map(|over| self.over_cap(over))
    }

    pub(super) fn over_cap(&mut self, over: Over) -> ProxyError {
        self.limit_hit(over.limit);
        over.into()
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

/// Calls about sessions take an object. The CLI ends on a `session.resume` whose `params` is an
/// array or a string (seen with 1.0.102), for everybody, so none of the kind is let through.
fn shapeless(asked: &Asked<'_>) -> Option<ProxyError> {
    let about_sessions = match asked.class {
        Class::Session
        | Class::Create
        | Class::Resume
        | Class::Open
        | Class::Fork
        | Class::Detach
        | Class::Delete
        | Class::Close
        | Class::Send(_)
        | Class::Abort
        | Class::IdsArray(_)
        | Class::RemoteControl => true,
        Class::Ping
        | Class::Connect
        | Class::Aggregate(_)
        | Class::Any
        | Class::ServerWide(_)
        | Class::Provider(_)
        | Class::ByRequestId
        | Class::Cancel
        | Class::Denied(_)
        | Class::Unknown => false,
    };
    (about_sessions && asked.head.params_other_type).then(|| {
        ProxyError::InvalidParams(format!(
            "{} takes its params as one object, with its members by name",
            asked.method
        ))
    })
}

/// What opening or changing a session may not bring along.
fn denied_param(cx: &Context<'_>, asked: &Asked<'_>) -> Option<ProxyError> {
    if !route::shapes_session(asked.class, asked.method) {
        return None;
    }
    let params = asked.head.params?.of(asked.body);
    let param = cx.settings.access.methods.denied_param(params)?;
    Some(ProxyError::ParamDenied {
        method: asked.method.to_owned(),
        param: param.clone(),
    })
}

/// Whether a call of this class starts something that would outlive the drain.
fn starts_work(class: Class) -> bool {
    matches!(
        class,
        Class::Create | Class::Resume | Class::Open | Class::Send(_) | Class::Fork
    )
}
