//! What a method may reach beyond its caller's own sessions: the reasons and the words of the
//! column `policy` in the one table of methods, and what a profile makes of them.
//!
//! Knows no principal, no list of the operator, and no session.

use super::Class;

/// How far a method reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// Not beyond its caller.
    Allow,
    /// The sessions that it names, at whatever place: each must be one that the caller may use.
    Own,
    /// All sessions; the answer is cut down to those that the caller may see.
    Filter,
    /// Further: the pool, its host, or other users. Refused in `multi-tenant`, with the reason.
    Deny(&'static str),
    /// Refused in any profile, whatever is allowed, with the reason.
    Never(&'static str),
    /// Not in the table and not about a session: nobody knows how far. Unknown to `multi-tenant`.
    Unlisted,
}

impl Policy {
    /// The word in `docs/methods.tsv`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Own => "own",
            Self::Filter => "filter",
            Self::Deny(_) => "deny",
            Self::Never(_) => "never",
            Self::Unlisted => "unlisted",
        }
    }
}

/// `access.profile`: what is allowed unless somebody says otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Profile {
    /// One user, or users who trust each other with the servers: all but [`Policy::Never`].
    #[default]
    SingleTenant,
    /// Users who must not reach each other: only what is known not to.
    MultiTenant,
}

impl Profile {
    /// The word of the configuration.
    pub fn word(self) -> &'static str {
        match self {
            Self::SingleTenant => "single-tenant",
            Self::MultiTenant => "multi-tenant",
        }
    }
}

/// What is to become of a method.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It goes on to routing.
    Allowed,
    /// -32014 with the reason.
    Denied(&'static str),
    /// -32601: nobody here knows it, and SDKs that try a method out fall back on that code.
    Unlisted,
}

/// What a profile makes of a method.
pub fn verdict(profile: Profile, policy: Policy) -> Verdict {
    match (policy, profile) {
        (Policy::Never(reason), _) | (Policy::Deny(reason), Profile::MultiTenant) => {
            Verdict::Denied(reason)
        }
        (Policy::Unlisted, Profile::MultiTenant) => Verdict::Unlisted,
        (Policy::Allow | Policy::Own | Policy::Filter, _)
        | (Policy::Deny(_) | Policy::Unlisted, Profile::SingleTenant) => Verdict::Allowed,
    }
}

pub(super) const SHUTDOWN: &str =
    "it would end a CLI server that others use too; drain the backend in Taxiway instead";
pub(super) const RUNS: &str =
    "it runs a program of the caller's choice on the host of the CLI server, and nobody is asked";
pub(super) const COMMANDS: &str =
    "its commands reach the sessions of others and the CLI server's own settings";
pub(super) const LOGS: &str =
    "it collects files of the CLI server's host and writes them wherever the caller says";
pub(super) const DISK: &str =
    "it reads directories of the caller's choice on the host of the CLI server";
pub(super) const PATH: &str = "it tells paths of the CLI server's host";
pub(super) const ACCOUNT: &str =
    "it is about the account that the CLI server is logged in with, which others share";
pub(super) const SETTINGS: &str = "it tells the CLI server's own settings, which others share";
pub(super) const SERVER_WIDE: &str = "it changes the CLI server for everybody who uses it";
pub(super) const TRUST: &str =
    "what it approves is kept by the CLI server, and holds for every user's sessions";
pub(super) const PROVIDER: &str =
    "a CLI server has one such provider, which is then told everything that all its sessions do";
pub(super) const EVERYBODY: &str = "it deletes sessions of everybody";
pub(super) const REMOTE: &str =
    "a CLI server has one remote control, whoever's session it is attached to";
pub(super) const CLOUD: &str =
    "sessions that do not live in this pool are out of reach of its access rules";

/// Methods of the table's families that a later CLI may have: refused like their kin.
const FAMILIES: &[(&str, &str)] = &[
    ("session.debug.", LOGS),
    ("session.gitHubAuth.", ACCOUNT),
    ("session.permissions.folderTrust.", TRUST),
    ("session.permissions.locations.", TRUST),
    ("session.shell.", RUNS),
];

/// The policy of a method that the table does not list.
pub(super) fn of_unlisted(method: &str, class: Class) -> Policy {
    if class != Class::Session {
        return Policy::Unlisted;
    }
    // Of those that are known, only the ones in the table reach further.
    let kin = FAMILIES.iter().find(|(prefix, _)| {
        method.starts_with(prefix) && !super::catalog::is_session_method(method)
    });
    kin.map_or(Policy::Own, |(_, reason)| Policy::Deny(reason))
}
