//! `[access]`: which methods clients may use.

use std::{ops::Range, sync::Arc};

use super::Check;
use crate::{
    config::Granularity,
    core::{
        access::{Methods, fits},
        route::{self, Policy, Profile},
    },
};

/// What makes a session that is not in the pool, or in another home than all others; what shows it
/// the sessions of others; what writes the server's settings, or files wherever the caller says.
pub(super) const TENANTS_PARAMS: [&str; 5] = [
    "cloud",
    "configDir",
    "enableSessionStore",
    "persistPlanSelection",
    "pickerSettingsContext",
];

impl Check<'_> {
    /// The rules about methods. `asks` = clients have to say who they are.
    pub(super) fn method_rules(&mut self, asks: bool, granularity: Granularity) -> Methods {
        let table = self.raw.table("access");
        let profile = match table.text("profile").as_deref() {
            Some("multi-tenant") => Profile::MultiTenant,
            Some(_) => Profile::SingleTenant,
            None if asks => Profile::MultiTenant,
            None => Profile::SingleTenant,
        };
        let mut lists = [Vec::new(), Vec::new()];
        for (list, key) in lists.iter_mut().zip(["allow", "deny"]) {
            *list = table.words(key).into_iter().map(Arc::from).collect();
        }
        let [allow, deny] = lists;
        let spans = ["allow", "deny"].map(|key| table.sound(key).cloned());
        self.method_lists("access", [&allow, &deny], &spans);
        if let Some(span) = &spans[0] {
            self.gives_away(span, &allow, profile);
        }
        if granularity == Granularity::Connection {
            for key in ["profile", "allow", "deny", "deny_params"] {
                let Some(span) = table.sound(key) else {
                    continue;
                };
                let message =
                    format!("access.{key}: cannot be used with granularity = \"connection\"");
                self.report
                    .error(span, message)
                    .label("nobody looks at methods then")
                    .help("use granularity = \"session\" below [routing], or take it out");
            }
        }
        let deny_params = match (table.words_or_none("deny_params"), profile) {
            (Some(params), _) => params.into_iter().map(Arc::from).collect(),
            (None, Profile::MultiTenant) => TENANTS_PARAMS.map(Arc::from).to_vec(),
            (None, Profile::SingleTenant) => Vec::new(),
        };
        Methods {
            profile,
            allow,
            deny,
            deny_params,
        }
    }

    /// What is wrong with a pair of lists `allow` and `deny` of `section`, each with its place.
    pub(super) fn method_lists(
        &mut self,
        section: &str,
        lists: [&[Arc<str>]; 2],
        spans: &[Option<Range<usize>>; 2],
    ) {
        let known = route::methods();
        for ((key, list), span) in ["allow", "deny"].iter().zip(lists).zip(spans) {
            let Some(span) = span else { continue };
            for pattern in list {
                let name = pattern.strip_suffix('*').unwrap_or(pattern);
                if name.contains('*') {
                    let message = format!("{section}.{key}: `*` is not at the end of `{pattern}`");
                    let finding = self.report.error(span, message);
                    finding.help("it stands for any rest, as in \"session.shell.*\"");
                } else if !known.iter().any(|method| fits(pattern, method)) {
                    let message = format!("{section}.{key}: no known method is named `{pattern}`");
                    let finding = self.report.warning(span, message);
                    finding.help("`taxiway check --methods` lists those that are known");
                }
            }
        }
        let [allow, deny] = lists;
        let [Some(allowed), denied] = spans else {
            return;
        };
        for pattern in allow {
            if deny.contains(pattern) {
                let message = format!("{section}.allow: `{pattern}` is in `deny`, too");
                let finding = self.report.error(allowed, message);
                finding.label("allowed").help("take it out of one of them");
                if let Some(denied) = denied {
                    finding.also(denied, "denied");
                }
            }
            if let Policy::Never(reason) = route::look_up(pattern).1 {
                let message = format!("{section}.allow: {pattern} is never forwarded: {reason}");
                self.report.error(allowed, message).help("take it out");
            }
        }
    }

    /// Warns of what may be allowed, but hands one user's sessions to another.
    fn gives_away(&mut self, span: &Range<usize>, allow: &[Arc<str>], profile: Profile) {
        if profile == Profile::SingleTenant {
            return;
        }
        for method in route::methods() {
            let provider = matches!(route::classify(method), route::Class::Provider(_));
            if provider && allow.iter().any(|pattern| fits(pattern, method)) {
                let message = format!(
                    "access.allow: whoever calls {method} may be told of every session of a server"
                );
                self.report
                    .warning(span, message)
                    .help("give that client servers of its own");
            }
        }
    }
}
