//! What is accepted and protects less than it looks: keys that are each right, and weak together.
//!
//! Warns and refuses nothing. Silent about `[identity]` while anything is wrong: half of it is not
//! known then.

use std::sync::Arc;

use super::{Check, access::TENANTS_PARAMS, pattern};
use crate::{
    config::{Config, raw::Table},
    core::{access::Access, credential::Principals, identity::Role, route::Profile},
};

/// Names that a warning spells out.
const NAMED: usize = 3;

impl Check<'_> {
    /// Looks at the whole, which was checked otherwise.
    pub(super) fn weak(&mut self, config: &Config) {
        self.anybodys_balancer(config);
        self.bare_admin(config);
        let (access, principals) = (&config.identity.access, &config.identity.principals);
        if !access.authenticates || self.report.has_errors() {
            return;
        }
        self.users_in_ids(access, principals);
        self.weak_shares(principals);
        self.weak_adoption(principals);
        self.one_person_twice(principals);
        self.weak_methods(access, principals);
        self.forgotten_owners(config);
    }

    fn anybodys_balancer(&mut self, config: &Config) {
        let everywhere = config.listener.proxy_protocol_from.as_ref();
        if let Some(span) = self.raw.table("listener").sound("proxy_protocol_from")
            && everywhere.is_some_and(|networks| networks.is_everywhere())
        {
            let message =
                "listener.proxy_protocol_from: everybody may say which address is its own";
            self.report
                .warning(span, message)
                .label("this is every address")
                .help(
                    "name the balancers alone: allow_from, what wrong tokens cost, and the log go \
                     by that address",
                );
        }
    }

    fn bare_admin(&mut self, config: &Config) {
        let table = self.raw.table("admin");
        let has_token = ["token_env", "token_file"]
            .iter()
            .any(|key| table.entry(key).is_some());
        if let Some(span) = table.sound("address")
            && !config.admin.address.ip().is_loopback()
            && !has_token
        {
            let message = "admin.address: not on loopback, and without a token";
            self.report
                .warning(span, message)
                .label("/metrics answers whoever reaches it, and the API nobody")
                .help("set `token_env` or `token_file` below [admin], or listen on 127.0.0.1");
        }
    }

    fn users_in_ids(&mut self, access: &Access, principals: &Principals) {
        let table = self.raw.table("identity");
        let (Some(reads), Some(span)) = (&access.session_id_user, table.sound("session_id_user"))
        else {
            return;
        };
        let Some(shape) = pattern::shape_of(reads) else {
            return;
        };
        if !shape.is_anchored {
            self.report
                .warning(
                    span,
                    "identity.session_id_user: fits in the middle of an id, too",
                )
                .label("`^` is missing")
                .help("start it with `^`: an id with two users in it is another's than it looks");
        }
        let users = principals.entries().iter().map(|entry| &entry.principal);
        let users: Vec<_> = users.filter(|one| one.role == Role::User).collect();
        let fitting = |name: &str| shape.fits(name);
        let named: Vec<&str> = users
            .iter()
            .map(|one| &*one.user)
            .filter(|n| !fitting(n))
            .collect();
        if !named.is_empty() {
            let message = format!(
                "identity.session_id_user: no id of a session names {}",
                listed(&named)
            );
            self.report
                .warning(span, message)
                .label("can create sessions only under ids that the server chooses")
                .help(
                    "let the pattern fit the names of principals with role = \"user\"; ids have \
                     letters, digits, `_` and `-` only",
                );
        }
        let misread = users.iter().find_map(|one| {
            let id = shape.example(&one.user).filter(|_| fitting(&one.user))?;
            let read = access.user_of(&id)?;
            (*read != *one.user).then(|| (one.user.clone(), read.to_owned()))
        });
        if let Some((user, read)) = misread {
            let message =
                format!("identity.session_id_user: reads {read:?} out of the ids of {user:?}");
            self.report
                .warning(span, message)
                .label("what ends a user in an id stands in that name")
                .help("change the name, or the pattern: who chooses ids could pass for another");
        }
        if access.sole_realm.is_none() && access.adopt_by.is_none() {
            let message = "identity.session_id_user: with several realms it does not tell whose a \
                           session on a disk is";
            self.report
                .warning(span, message)
                .label("tells the user, and not the realm")
                .help(
                    "give the principals one `realm`, or name who gets such sessions with \
                     `adopt_by`; until then nobody sees them",
                );
        }
    }

    fn weak_shares(&mut self, principals: &Principals) {
        let raw = self.raw;
        let is_open = principals
            .issuers()
            .any(|issuer| issuer.rules.groups_claim.is_some());
        let has_members = |group: &str| {
            let mut entries = principals.entries().iter();
            entries.any(|entry| entry.principal.groups.iter().any(|g| **g == *group))
        };
        for table in raw.list("identity.shared") {
            if let (Some(shared), Some(span)) = (table.pattern("pattern"), table.sound("pattern"))
                && pattern::fits_everything(&shared)
            {
                self.report
                    .warning(span, "identity.shared.pattern: shares every session")
                    .label("this is every id")
                    .help(
                        "the groups may use all sessions of their realm: name those that are \
                         shared, as in \"team-.*\"",
                    );
            }
            let groups = table.words_or_none("groups").unwrap_or_default();
            let empty: Vec<&str> = groups
                .iter()
                .map(String::as_str)
                .filter(|group| !is_open && !has_members(group))
                .collect();
            if let (false, Some(span)) = (empty.is_empty(), table.sound("groups")) {
                let message = format!("identity.shared.groups: nobody is in {}", listed(&empty));
                self.report
                    .warning(span, message)
                    .help("a principal's `groups`, or an issuer's `groups_claim`, says who is");
            }
        }
    }

    fn weak_adoption(&mut self, principals: &Principals) {
        let table = self.raw.table("identity");
        let (Some(name), Some(span)) = (table.text("adopt_by"), table.sound("adopt_by")) else {
            return;
        };
        let entries = principals.entries();
        let issuer = name.split_once('/').map(|(issuer, _)| issuer);
        let role = match issuer {
            Some(issuer) => principals
                .issuers()
                .find(|one| *one.rules.name == *issuer)
                .map(|one| one.rules.role),
            None => entries
                .iter()
                .find(|entry| *entry.principal.name == *name)
                .map(|entry| entry.principal.role),
        };
        if role == Some(Role::User) && has_several(principals) {
            let message = format!("identity.adopt_by: {name:?} gets the sessions of all users");
            self.report
                .warning(span, message)
                .label("one user among others")
                .help(
                    "name a principal with role = \"service\", or take it out once the old \
                     sessions are where they belong",
                );
        }
    }

    /// Two sources of users that bring the same (realm, user).
    fn one_person_twice(&mut self, principals: &Principals) {
        let raw = self.raw;
        // None = every realm.
        let mut seen: Vec<(Option<Arc<str>>, &Table)> = Vec::new();
        for (table, issuer) in raw.list("identity.jwt").zip(principals.issuers()) {
            let rules = &issuer.rules;
            let key = ["realm_claim", "realm", "name"]
                .into_iter()
                .find(|key| table.sound(key).is_some());
            let Some(span) = key.and_then(|key| table.sound(key)) else {
                continue;
            };
            let own = rules.realm_claim.is_none().then(|| rules.realm.clone());
            let meets = |realm: &Arc<str>| own.as_ref().is_none_or(|own| own == realm);
            let mut users = principals.entries().iter().map(|entry| &entry.principal);
            let user = users.find(|one| one.role == Role::User && meets(&one.realm));
            let before = seen
                .iter()
                .find(|(realm, _)| realm.as_ref().is_none_or(meets));
            let other = match (user, before) {
                (Some(user), _) => format!("principal {:?}", user.name),
                (None, Some((_, table))) => {
                    format!("issuer {:?}", table.text("name").unwrap_or_default())
                }
                (None, None) => {
                    seen.push((own, table));
                    continue;
                }
            };
            let what = if rules.realm_claim.is_some() {
                "realm_claim"
            } else {
                "realm"
            };
            let message = format!("identity.jwt.{what}: users of the {other} are its users, too");
            self.report
                .warning(span, message)
                .label(format!("issuer {:?}, in the same realm", rules.name))
                .help(
                    "whoever it calls by the same name has the same sessions: give one of the two \
                     another `realm`, unless both speak of the same people",
                );
        }
    }

    fn weak_methods(&mut self, access: &Access, principals: &Principals) {
        let table = self.raw.table("access");
        if access.methods.profile == Profile::SingleTenant {
            if let Some(span) = table.sound("profile")
                && has_several(principals)
            {
                let message = "access.profile: \"single-tenant\" with several principals";
                self.report
                    .warning(span, message)
                    .label("each may use what reaches the others")
                    .help(
                        "use \"multi-tenant\", and `allow` for single methods, unless they all \
                         trust each other with the servers",
                    );
            }
            return;
        }
        let Some(span) = table.sound("deny_params") else {
            return;
        };
        let denied = &access.methods.deny_params;
        let passing: Vec<&str> = TENANTS_PARAMS
            .into_iter()
            .filter(|param| !denied.iter().any(|one| **one == **param))
            .collect();
        if !passing.is_empty() {
            let message = format!("access.deny_params: without {}", all(&passing));
            self.report
                .warning(span, message)
                .label("replaces the default")
                .help(
                    "such parameters reach past the caller's own sessions (docs/security.md): \
                     write them as well",
                );
        }
    }

    fn forgotten_owners(&mut self, config: &Config) {
        let access = &config.identity.access;
        let Some(span) = self.raw.table("store").sound("kind") else {
            return;
        };
        if config.store.path.is_some() {
            return;
        }
        let label = match (&access.session_id_user, &access.sole_realm) {
            (Some(_), Some(_)) => "then only an id that names its user still tells",
            (Some(_), None) => "then nothing tells: an id has no realm",
            (None, _) => "then nothing tells: ids name no user",
        };
        self.report
            .warning(
                span,
                "store.kind: whose the sessions are is forgotten at a restart",
            )
            .label(label)
            .help(
                "use kind = \"embedded\": until then `identity.adopt_by` alone sees the old ones",
            );
    }
}

/// Whether more than one may connect.
fn has_several(principals: &Principals) -> bool {
    principals.entries().len() > 1 || principals.issuers().next().is_some()
}

/// Some names, and how many more.
fn listed(names: &[&str]) -> String {
    let (shown, more) = names.split_at(names.len().min(NAMED));
    match more.len() {
        0 => all(shown),
        more => format!("{} and {more} more", all(shown)),
    }
}

fn all(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    names.join(", ")
}
