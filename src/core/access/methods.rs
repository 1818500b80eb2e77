//! Which methods may be used: what the profile says, what the operator says otherwise for
//! everybody, and what for one principal. Pure words and patterns; sessions are judged elsewhere.

use std::sync::Arc;

use serde_json::Value;

use super::Access;
use crate::core::{
    identity::Principal,
    route::{Policy, Profile, Verdict, verdict},
};

/// The rules of `[access]` about methods.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Methods {
    /// `access.profile`
    pub profile: Profile,
    /// Allowed although the profile denies them: whole names, or a prefix with `*`.
    pub allow: Vec<Arc<str>>,
    /// Denied although the profile allows them.
    pub deny: Vec<Arc<str>>,
    /// Parameters that opening or changing a session may not have: paths of members, with `*` for
    /// any.
    pub deny_params: Vec<Arc<str>>,
}

/// Who has decided about a method.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DecidedBy {
    /// `access.profile`, or what holds in any profile.
    Profile,
    /// `access.allow` or `access.deny`.
    Operator,
    /// The same two of the principal.
    Principal,
}

impl DecidedBy {
    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Profile => "profile",
            Self::Operator => "access",
            Self::Principal => "principal",
        }
    }
}

const BY_OPERATOR: &str = "the operator of this proxy has denied it (access.deny)";
const BY_PRINCIPAL: &str = "the operator of this proxy has denied it to this client (deny)";

impl Access {
    /// Whether `principal` may use a method that reaches so far. The principal's own lists go
    /// before those for everybody, and these before the profile; in each pair of lists the longest
    /// pattern that fits counts. What is never forwarded is allowed by none.
    pub fn method(
        &self,
        principal: Option<&Principal>,
        method: &str,
        policy: Policy,
    ) -> (Verdict, DecidedBy) {
        let of_profile = verdict(self.methods.profile, policy);
        if let Policy::Never(_) = policy {
            return (of_profile, DecidedBy::Profile);
        }
        let own = principal.and_then(|p| listed(method, &p.allow, &p.deny));
        match own {
            Some(Listed::Allowed) => return (Verdict::Allowed, DecidedBy::Principal),
            Some(Listed::Denied) => return (Verdict::Denied(BY_PRINCIPAL), DecidedBy::Principal),
            None => {}
        }
        match listed(method, &self.methods.allow, &self.methods.deny) {
            Some(Listed::Allowed) => (Verdict::Allowed, DecidedBy::Operator),
            Some(Listed::Denied) => (Verdict::Denied(BY_OPERATOR), DecidedBy::Operator),
            None => (of_profile, DecidedBy::Profile),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Listed {
    Allowed,
    Denied,
}

/// What two lists say of a method; of two patterns that fit equally well the denial counts.
fn listed(method: &str, allow: &[Arc<str>], deny: &[Arc<str>]) -> Option<Listed> {
    let best = |patterns: &[Arc<str>]| {
        let fits = patterns.iter().filter(|p| fits(p, method));
        fits.map(|p| p.len()).max()
    };
    match (best(allow), best(deny)) {
        (None, None) => None,
        (Some(allow), Some(deny)) if allow > deny => Some(Listed::Allowed),
        (Some(_), None) => Some(Listed::Allowed),
        (Some(_) | None, Some(_)) => Some(Listed::Denied),
    }
}

impl Methods {
    /// The first denied parameter that a call has, given its `params`. Null counts as none, as it
    /// does to the CLI; what cannot be read has none, as it has reached nobody.
    pub fn denied_param(&self, params: &[u8]) -> Option<&Arc<str>> {
        if self.deny_params.is_empty() {
            return None;
        }
        let params: Value = serde_json::from_slice(params).ok()?;
        self.deny_params
            .iter()
            .find(|path| has(&params, path.split('.')))
    }
}

/// Whether something stands at that path.
fn has<'a>(value: &Value, mut path: impl Iterator<Item = &'a str> + Clone) -> bool {
    match path.next() {
        // SDKs say of some that they do not want them.
        None => !value.is_null() && *value != Value::Bool(false),
        Some("*") => match value {
            Value::Object(members) => members.values().any(|member| has(member, path.clone())),
            Value::Array(items) => items.iter().any(|item| has(item, path.clone())),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
        },
        Some(name) => value.get(name).is_some_and(|member| has(member, path)),
    }
}

/// Whether a pattern of a list means a method: its name, or a prefix of it with `*` at the end.
pub fn fits(pattern: &str, method: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => method.starts_with(prefix),
        None => pattern == method,
    }
}
