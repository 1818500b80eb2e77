//! What a reload would change: what can be applied, and what is refused with its reason.
//!
//! Applies nothing. Which keys can be applied is said by the table in `reference`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use serde_json::Value;

use super::{
    Backend, Config, Identity,
    reference::{Key, Kind, Reload, SECTIONS, Shape},
    view::{entry, redacted, section, state},
};
use crate::{
    core::{credential::Issuer, id::BackendName, proxy_header::Version, snapshot::AdminState},
    transport::Acceptor,
};

/// More principals that changed than this are counted, not named.
const MAX_PRINCIPALS: usize = 20;

/// All differences between two configurations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// By the order of the new file, removed ones last.
    pub backends: Vec<BackendChange>,
    /// Every other key that changed and can be applied.
    pub settings: Vec<Setting>,
    /// If this is not empty, nothing may be applied.
    pub refused: Vec<Refusal>,
}

/// What happens to one backend. Names are identities: a new name is a new backend.
#[derive(Clone, Debug, PartialEq)]
pub enum BackendChange {
    /// Joins the pool.
    Added(Backend),
    /// Leaves it once its open sessions are done.
    Removed(BackendName),
    /// Stays, with its homes.
    Changed {
        /// Who.
        name: BackendName,
        /// Where it is now, if it moved.
        address: Option<Arc<str>>,
        /// Its weight now, if that changed.
        weight: Option<u32>,
        /// What the file wants of it now, if that changed.
        state: Option<AdminState>,
        /// Whether its token is another one (or gone, or new).
        token: Token,
        /// What goes between TCP and frames now, if that changed, in words.
        transport: Option<String>,
    },
}

/// What became of a backend's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// As before.
    Same,
    /// Another one, or none any more.
    Changed,
}

/// A key outside `[[backends]]` whose value changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// `section.key`.
    pub key: String,
    /// Before, as in [`redacted`]; null = none.
    pub old: Value,
    /// Now.
    pub new: Value,
}

/// A change that a running Taxiway cannot make.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// What would change.
    pub setting: Setting,
    /// Why it cannot.
    pub reason: &'static str,
}

impl Changes {
    /// Is everything as before?
    pub fn is_empty(&self) -> bool {
        self.backends.is_empty() && self.settings.is_empty() && self.refused.is_empty()
    }

    /// Did `section.key` change?
    pub fn touches(&self, key: &str) -> bool {
        self.settings.iter().any(|setting| setting.key == key)
    }

    /// One line for each change that can be applied, for logs and the admin API.
    pub fn lines(&self) -> Vec<String> {
        let backends = self.backends.iter().map(ToString::to_string);
        backends
            .chain(self.settings.iter().map(ToString::to_string))
            .collect()
    }

    /// One line for each refused change.
    pub fn refusals(&self) -> Vec<String> {
        self.refused.iter().map(ToString::to_string).collect()
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A secret that was replaced by another looks the same on both sides.
        if self.old == self.new {
            return write!(f, "{}: changed", self.key);
        }
        write!(f, "{}: {} → {}", self.key, self.old, self.new)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} needs a restart: {}", self.setting, self.reason)
    }
}

impl fmt::Display for BackendChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added(backend) => write!(f, "backend {} added", backend.name),
            Self::Removed(name) => write!(f, "backend {name} removed"),
            Self::Changed {
                name,
                address,
                weight,
                state: wanted,
                token,
                transport,
            } => {
                write!(f, "backend {name}:")?;
                if let Some(address) = address {
                    write!(f, " address {address}")?;
                }
                if let Some(weight) = weight {
                    write!(f, " weight {weight}")?;
                }
                if let Some(wanted) = wanted {
                    write!(f, " state {}", state(*wanted))?;
                }
                if let Some(transport) = transport {
                    write!(f, " {transport}")?;
                }
                match token {
                    Token::Same => Ok(()),
                    Token::Changed => f.write_str(" token changed"),
                }
            }
        }
    }
}

/// What changes from `old` to `new`.
pub fn diff(old: &Config, new: &Config) -> Changes {
    let mut changes = Changes {
        backends: backends(old, new),
        ..Changes::default()
    };
    let (old_view, new_view) = (redacted(old), redacted(new));
    // Nested tables of `[[backends]]` are compared with their backends.
    let is_single = |name: &str| !name.starts_with("backends.");
    let tables = SECTIONS.iter().filter(|s| match s.shape {
        Shape::Table => true,
        Shape::Nested => is_single(s.name),
        Shape::List | Shape::NestedList => false,
    });
    for table in tables {
        let mut seen = Vec::new();
        // Those are compared below, one by one: what the view shows of them is not all.
        let has_value =
            |key: &&Key| key.is_built() && !matches!(key.kind, Kind::Nested(_) | Kind::Tables);
        for key in table.keys.iter().filter(has_value) {
            let field = key.field();
            if seen.contains(&field) {
                continue;
            }
            seen.push(field);
            let value = |view| {
                section(view, table.name)
                    .and_then(|s| s.get(field))
                    .cloned()
                    .unwrap_or_default()
            };
            let (before, after): (Value, Value) = (value(&old_view), value(&new_view));
            let name = format!("{}.{field}", table.name);
            // What the view does not show: a secret, and what files hold.
            let same_inside = match name.as_str() {
                "admin.token" => old.admin.token == new.admin.token,
                "listener.tls.cert" => acceptor(old) == acceptor(new),
                _ => true,
            };
            if before == after && same_inside {
                continue;
            }
            let setting = Setting {
                key: name,
                old: before,
                new: after,
            };
            match key.reload {
                Reload::Live | Reload::NewConnections => changes.settings.push(setting),
                Reload::Restart(reason) => changes.refused.push(Refusal { setting, reason }),
            }
        }
    }
    changes.settings.extend(identity(old, new));
    changes
}

/// Principals, issuers and shares that are others now.
fn identity(old: &Config, new: &Config) -> Vec<Setting> {
    let mut settings = Vec::new();
    let (before, after) = (&old.identity, &new.identity);
    let changed = by_name(
        before.principals.entries(),
        after.principals.entries(),
        |entry| &entry.principal.name,
    );
    let more = changed.len().saturating_sub(MAX_PRINCIPALS);
    for (name, old, new) in changed.into_iter().take(MAX_PRINCIPALS) {
        settings.push(Setting {
            key: format!("identity.principals {name}"),
            old: old.map(entry).unwrap_or_default(),
            new: new.map(entry).unwrap_or_default(),
        });
    }
    if more > 0 {
        settings.push(changed_setting(format!(
            "identity.principals ({more} more)"
        )));
    }
    let (had, have): (Vec<_>, Vec<_>) = (
        before.principals.issuers().collect(),
        after.principals.issuers().collect(),
    );
    for (name, old, new) in by_name(&had, &have, |issuer| &issuer.rules.name) {
        let shown = |issuer: Option<&&Issuer>| issuer.map(|i| i.rules.issuer.clone().into());
        settings.push(Setting {
            key: format!("identity.jwt {name}"),
            old: shown(old).unwrap_or_default(),
            new: shown(new).unwrap_or_default(),
        });
    }
    let shares = |identity: &Identity| -> Vec<(String, Vec<Arc<str>>)> {
        let shares = identity.access.shares.iter();
        shares
            .map(|share| (share.pattern.as_str().to_owned(), share.groups.clone()))
            .collect()
    };
    if shares(before) != shares(after) {
        settings.push(changed_setting("identity.shared".to_owned()));
    }
    settings
}

fn changed_setting(key: String) -> Setting {
    Setting {
        key,
        old: Value::Null,
        new: Value::Null,
    }
}

/// What is not the same in both, by name.
fn by_name<'a, T: PartialEq>(
    old: &'a [T],
    new: &'a [T],
    name: impl Fn(&T) -> &Arc<str>,
) -> Vec<(Arc<str>, Option<&'a T>, Option<&'a T>)> {
    let index = |list: &'a [T]| -> BTreeMap<Arc<str>, &'a T> {
        list.iter().map(|one| (name(one).clone(), one)).collect()
    };
    let (old, new) = (index(old), index(new));
    let names: BTreeSet<_> = old.keys().chain(new.keys()).cloned().collect();
    names
        .into_iter()
        .map(|name| {
            let (before, after) = (old.get(&name).copied(), new.get(&name).copied());
            (name, before, after)
        })
        .filter(|(_, before, after)| before != after)
        .collect()
}

/// For connections made from now on.
fn describe(backend: &Backend) -> String {
    let tls = if backend.tls.is_some() {
        "tls changed"
    } else {
        "plain TCP"
    };
    match backend.proxy_protocol {
        None => tls.to_owned(),
        Some(Version::V1) => format!("{tls} proxy_protocol v1"),
        Some(Version::V2) => format!("{tls} proxy_protocol v2"),
    }
}

fn acceptor(config: &Config) -> Option<&Acceptor> {
    config.listener.tls.as_ref().map(|tls| &tls.acceptor)
}

fn backends(old: &Config, new: &Config) -> Vec<BackendChange> {
    let mut changes = Vec::new();
    for after in &new.backends {
        let Some(before) = old.backends.iter().find(|b| b.name == after.name) else {
            changes.push(BackendChange::Added(after.clone()));
            continue;
        };
        if before == after {
            continue;
        }
        let same_token = before.connection_token == after.connection_token;
        let same_transport = before.transport() == after.transport();
        changes.push(BackendChange::Changed {
            name: after.name.clone(),
            address: (before.address != after.address).then(|| after.address.clone()),
            weight: (before.weight != after.weight).then_some(after.weight),
            state: (before.state != after.state).then_some(after.state),
            token: if same_token {
                Token::Same
            } else {
                Token::Changed
            },
            transport: (!same_transport).then(|| describe(after)),
        });
    }
    let gone = old
        .backends
        .iter()
        .filter(|b| new.backends.iter().all(|n| n.name != b.name));
    changes.extend(gone.map(|b| BackendChange::Removed(b.name.clone())));
    changes
}
