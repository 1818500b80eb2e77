//! `[identity]`: who may connect, what proves it, and what would make that worth little.

use std::{collections::BTreeSet, ops::Range, path::Path, sync::Arc};

use super::{
    Check,
    secret::{self, MAX_SECRET},
    tokens,
};
use crate::{
    config::{Identity, IssuerFiles, Listener, Routing, raw::Table},
    core::{
        access::{Access, Share},
        credential::{Claim, Clash, Entry, Fingerprint, Issuer, Key, Principals, Rules},
        id::Secret,
        identity::{Caps, Principal, Role},
    },
};

/// Shorter tokens can be guessed, in characters.
const SHORT_TOKEN: usize = 16;

/// Largest `tokens_file` and `jwks_file`.
const MAX_LIST_FILE: u64 = 32 << 20;

/// Lines of one file that are complained of.
const MAX_BAD_LINES: usize = 20;

/// Keys of one issuer: each may have to be tried for each token.
const MAX_KEYS: usize = 32;

/// Where a principal comes from.
struct Place {
    span: Range<usize>,
    /// Of `tokens_file`.
    line: Option<usize>,
}

impl Check<'_> {
    /// Does anything say who may connect? What is wrong with it is said elsewhere.
    pub(super) fn has_principals(&self) -> bool {
        let is_listed = |name| self.raw.list(name).next().is_some();
        is_listed("identity.principals")
            || is_listed("identity.jwt")
            || self.raw.table("identity").entry("tokens_file").is_some()
    }

    /// The section. `listener` and `routing` are those that it will be used with.
    pub(super) fn identity(&mut self, listener: &Listener, routing: &Routing) -> Identity {
        let raw = self.raw;
        let table = raw.table("identity");
        let (mut entries, mut places) = (Vec::new(), Vec::new());
        for table in raw.list("identity.principals") {
            if let Some(entry) = self.principal(table) {
                entries.push(entry);
                places.push(Place {
                    span: table.sound("name").cloned().unwrap_or_default(),
                    line: None,
                });
            }
        }
        let written = entries.len();
        let tokens_file = table.text("tokens_file").map(|text| self.path(&text));
        if let (Some(path), Some(span)) = (&tokens_file, table.sound("tokens_file")) {
            self.listed(path, span, &mut entries, &mut places);
        }
        self.unique_names(&entries, &places);
        let (issuers, files) = self.issuers();
        let realms = realms(&entries, &issuers);
        let shares = self.shares();
        let access = Access {
            authenticates: self.has_principals(),
            session_id_user: table.pattern("session_id_user"),
            sole_realm: realms
                .filter(|realms| realms.len() == 1)
                .and_then(|r| r.first().cloned()),
            adopt_by: self.adopter(&entries, &issuers),
            shares,
            methods: self.method_rules(self.has_principals(), routing.granularity),
        };
        if access.authenticates {
            self.worth(listener, routing);
        } else {
            self.idle(table);
        }
        let principals = Principals::new(entries, issuers).unwrap_or_else(|clashes| {
            self.clashes(&clashes, &places);
            Principals::default()
        });
        Identity {
            access: Arc::new(access),
            principals: Arc::new(principals),
            written,
            tokens_file,
            issuers: files,
            revoke_grace: table.duration("revoke_grace"),
        }
    }

    fn principal(&mut self, table: &Table) -> Option<Entry> {
        let name = table.text("name")?;
        let realm = table.text("realm").unwrap_or_else(|| name.clone());
        let tokens = self.tokens(table);
        let certificates = arcs(table, "tls_name");
        let keys = ["token_env", "token_file", "token_sha256", "tls_name"];
        if keys.iter().all(|key| table.entry(key).is_none())
            && let Some(span) = table.sound("name")
        {
            let message = format!("identity.principals: nothing proves who is {name:?}");
            self.report.error(span, message).help(format!(
                "add `token_sha256 = \"…\"`, as printed by `taxiway token {name}`, or `token_env`, \
                 `token_file`, `tls_name`"
            ));
        }
        let principal = Principal {
            user: Arc::from(name.as_str()),
            name: Arc::from(name),
            role: role(table),
            realm: Arc::from(realm),
            groups: arcs(table, "groups"),
            expires: None,
            allow: self.methods(table, "allow"),
            deny: self.methods(table, "deny"),
            caps: super::fair::own_caps(table),
        };
        Some(Entry {
            principal: Arc::new(principal),
            tokens,
            certificates,
        })
    }

    fn tokens(&mut self, table: &Table) -> Vec<Fingerprint> {
        let mut tokens = Vec::new();
        if let (Some(names), Some(span)) =
            (table.words_or_none("token_env"), table.sound("token_env"))
        {
            let key = table.full_name("token_env");
            for name in names {
                if let Some(token) = self.read_variable(&key, &name, span) {
                    self.look_at_token(&key, &token, span);
                    tokens.push(Fingerprint::of(token.expose()));
                }
            }
        }
        if let (Some(paths), Some(span)) =
            (table.words_or_none("token_file"), table.sound("token_file"))
        {
            let key = table.full_name("token_file");
            for path in paths {
                let path = self.path(&path);
                let Some(text) = self.read_file(&key, &path, span) else {
                    continue;
                };
                let lines = text.expose().lines().map(str::trim);
                for line in lines.filter(|line| !line.is_empty()) {
                    self.look_at_token(&key, &Secret::new(line), span);
                    tokens.push(Fingerprint::of(line));
                }
            }
        }
        let hashes = table.words_or_none("token_sha256").unwrap_or_default();
        let hashes = hashes.iter().filter_map(|hash| Fingerprint::parse(hash));
        let (empty, hashes): (Vec<_>, Vec<_>) = hashes.partition(Fingerprint::is_of_nothing);
        if let (false, Some(span)) = (empty.is_empty(), table.sound("token_sha256")) {
            let name = table.full_name("token_sha256");
            self.report
                .error(span, format!("{name}: the hash is that of an empty token"))
                .label("whoever sends nothing would be this principal")
                .help("`taxiway token NAME` makes a token and prints its hash");
        }
        tokens.extend(hashes);
        tokens
    }

    fn look_at_token(&mut self, key: &str, token: &Secret, span: &Range<usize>) {
        let length = token.expose().chars().count();
        if length < SHORT_TOKEN {
            self.report
                .warning(
                    span,
                    format!("{key}: a token of {length} characters can be guessed"),
                )
                .help("`taxiway token NAME` makes one of 256 random bits");
        }
    }

    fn methods(&mut self, table: &Table, key: &str) -> Vec<Arc<str>> {
        let good = |method: &str| {
            let name = method.strip_suffix('*').unwrap_or(method);
            name.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-$/".contains(&b))
        };
        let methods = table.words_or_none(key).unwrap_or_default();
        if let (Some(bad), Some(span)) = (methods.iter().find(|m| !good(m)), table.sound(key)) {
            let message = format!("{}: {bad:?} is no method", table.full_name(key));
            self.report
                .error(span, message)
                .help("a whole name, as in \"session.shell.exec\", or a prefix, as in \"mcp.*\"");
        }
        methods
            .iter()
            .map(|method| Arc::from(method.as_str()))
            .collect()
    }

    /// `tokens_file`.
    fn listed(
        &mut self,
        path: &Path,
        span: &Range<usize>,
        entries: &mut Vec<Entry>,
        places: &mut Vec<Place>,
    ) {
        let key = "identity.tokens_file";
        let Some(text) = self.read_list(key, path, span) else {
            return;
        };
        let (listed, bad) = tokens::parse(&text);
        for line in bad.iter().take(MAX_BAD_LINES) {
            let (name, line, reason) = (path.display(), line.line, &line.reason);
            self.report
                .error(span, format!("{key}: {name}:{line}: {reason}"))
                .help("NAME SHA256 [REALM] [ROLE] [GROUP,GROUP…]");
        }
        if bad.len() > MAX_BAD_LINES {
            let more = bad.len() - MAX_BAD_LINES;
            let message = format!("{key}: {}: {more} more lines are wrong", path.display());
            self.report.error(span, message);
        }
        for one in listed {
            places.push(Place {
                span: span.clone(),
                line: one.tokens.first().map(|(line, _)| *line),
            });
            let name: Arc<str> = Arc::from(one.name);
            entries.push(Entry {
                principal: Arc::new(Principal {
                    user: name.clone(),
                    name,
                    role: one.role,
                    realm: Arc::from(one.realm),
                    groups: one.groups.into_iter().map(Arc::from).collect(),
                    expires: None,
                    allow: Vec::new(),
                    deny: Vec::new(),
                    caps: Caps::default(),
                }),
                tokens: one.tokens.into_iter().map(|(_, token)| token).collect(),
                certificates: Vec::new(),
            });
        }
    }

    fn unique_names(&mut self, entries: &[Entry], places: &[Place]) {
        let mut seen = BTreeSet::new();
        for (entry, place) in entries.iter().zip(places) {
            let name = &entry.principal.name;
            if !seen.insert(name) {
                let at = place
                    .line
                    .map_or(String::new(), |line| format!(" (line {line})"));
                let message = format!("identity.principals: {name:?} is there twice{at}");
                self.report
                    .error(&place.span, message)
                    .help("a principal can have several tokens: write a list");
            }
        }
    }

    fn clashes(&mut self, clashes: &[Clash], places: &[Place]) {
        for clash in clashes.iter().take(MAX_BAD_LINES) {
            let (first, second) = (&places[clash.first], &places[clash.second]);
            let what = match clash.over {
                Claim::Token => "token",
                Claim::Certificate => "certificate name",
            };
            let line = |place: &Place| place.line.map_or(String::new(), |n| format!(" (line {n})"));
            let message = format!(
                "identity: two principals have the same {what}{}",
                line(second)
            );
            self.report
                .error(&second.span, message)
                .label("second")
                .also(&first.span, format!("first{}", line(first)))
                .help(format!(
                    "whose a {what} is must be certain: give each its own"
                ));
        }
    }

    fn issuers(&mut self) -> (Vec<Issuer>, Vec<IssuerFiles>) {
        let (mut issuers, mut files): (Vec<Issuer>, Vec<_>) = (Vec::new(), Vec::new());
        for table in self.raw.list("identity.jwt") {
            let keys = self.keys(table);
            let (Some(name), Some(issuer)) = (table.text("name"), table.text("issuer")) else {
                continue;
            };
            for (key, is_taken) in [
                ("name", issuers.iter().any(|i| *i.rules.name == *name)),
                ("issuer", issuers.iter().any(|i| i.rules.issuer == issuer)),
            ] {
                if let (true, Some(span)) = (is_taken, table.sound(key)) {
                    self.report
                        .error(span, format!("identity.jwt.{key}: is there twice"))
                        .help("one block for each issuer, with all its keys and audiences");
                }
            }
            let realm = table.text("realm").unwrap_or_else(|| name.clone());
            files.push(IssuerFiles {
                keys: table.words_or_none("key_file").unwrap_or_default(),
                key_set: table.text("jwks_file"),
                has_secret: ["secret_env", "secret_file"]
                    .iter()
                    .any(|key| table.entry(key).is_some()),
            });
            issuers.push(Issuer {
                rules: Rules {
                    name: Arc::from(name),
                    issuer,
                    audiences: table.words_or_none("audience").unwrap_or_default(),
                    user_claim: table.text("user_claim").expect("it has a default"),
                    groups_claim: table.text("groups_claim"),
                    realm: Arc::from(realm),
                    realm_claim: table.text("realm_claim"),
                    role: role(table),
                    leeway: table.duration("leeway"),
                    allow: self.methods(table, "allow"),
                    deny: self.methods(table, "deny"),
                },
                keys,
            });
        }
        (issuers, files)
    }

    fn keys(&mut self, table: &Table) -> Vec<Key> {
        let mut keys = Vec::new();
        if let (Some(paths), Some(span)) =
            (table.words_or_none("key_file"), table.sound("key_file"))
        {
            let name = table.full_name("key_file");
            for path in paths {
                let path = self.path(&path);
                let Some(text) = self.read_list(&name, &path, span) else {
                    continue;
                };
                match Key::from_pem(&text) {
                    Ok(key) => keys.push(key),
                    Err(fault) => {
                        let message = format!("{name}: {}: {fault}", path.display());
                        self.report.error(span, message);
                    }
                }
            }
        }
        if let (Some(path), Some(span)) = (table.text("jwks_file"), table.sound("jwks_file")) {
            let path = self.path(&path);
            self.key_set(&table.full_name("jwks_file"), &path, span, &mut keys);
        }
        let span = table.sound("secret_env").or(table.sound("secret_file"));
        if let (Some(secret), Some(span)) = (self.secret(table, "secret"), span) {
            match Key::from_secret(&secret) {
                Ok(key) => keys.push(key),
                Err(fault) => {
                    let message = format!("{}: {fault}", table.full_name("secret"));
                    self.report.error(span, message);
                }
            }
        }
        let sources = ["key_file", "jwks_file", "secret_env", "secret_file"];
        let is_named = sources.iter().any(|key| table.entry(key).is_some());
        if let (false, Some(span)) = (is_named, table.sound("name")) {
            self.report
                .error(span, "identity.jwt: no key to check its tokens with")
                .help("add `key_file`, `jwks_file`, or `secret_env` or `secret_file`");
        }
        if let (true, Some(span)) = (keys.len() > MAX_KEYS, table.sound("name")) {
            let message = format!("identity.jwt: {} keys are too many", keys.len());
            self.report
                .error(span, message)
                .help(format!("at most {MAX_KEYS}"));
        }
        keys
    }

    fn key_set(&mut self, name: &str, path: &Path, span: &Range<usize>, keys: &mut Vec<Key>) {
        let Some(text) = self.read_list(name, path, span) else {
            return;
        };
        let shown = path.display();
        match Key::from_key_set(&text) {
            Err(fault) => {
                self.report
                    .error(span, format!("{name}: {shown}: {fault}"))
                    .help("it looks like {\"keys\": [{\"kty\": \"RSA\", …}]}");
            }
            Ok((usable, others)) => {
                let kinds =
                    "RSA of at least 2048 bits for RS256, EC P-256 for ES256, Ed25519 for EdDSA";
                if usable.is_empty() {
                    let message = format!("{name}: {shown} holds no key that can be used");
                    self.report.error(span, message).help(kinds);
                } else if others > 0 {
                    let message = format!("{name}: {others} keys of {shown} cannot be used");
                    self.report.warning(span, message).help(kinds);
                }
                keys.extend(usable);
            }
        }
    }

    fn shares(&mut self) -> Vec<Share> {
        let mut shares = Vec::new();
        for table in self.raw.list("identity.shared") {
            if let (Some(pattern), groups) = (table.pattern("pattern"), arcs(table, "groups")) {
                shares.push(Share { pattern, groups });
            }
        }
        shares
    }

    fn adopter(&mut self, entries: &[Entry], issuers: &[Issuer]) -> Option<Arc<str>> {
        let table = self.raw.table("identity");
        let (name, span) = (table.text("adopt_by")?, table.sound("adopt_by")?);
        let is_known = entries.iter().any(|entry| *entry.principal.name == *name)
            || name
                .split_once('/')
                .is_some_and(|(issuer, _)| issuers.iter().any(|i| *i.rules.name == *issuer));
        if !is_known {
            self.report
                .error(span, "identity.adopt_by: no principal has this name")
                .help("a name of [[identity.principals]] or tokens_file, or NAME/USER of a JWT issuer");
        }
        Some(Arc::from(name))
    }

    /// What makes tokens worth little.
    fn worth(&mut self, listener: &Listener, routing: &Routing) {
        use crate::config::Granularity;
        let (raw, table) = (self.raw, self.raw.table("listener"));
        if let Some(span) = table.sound("allow_anonymous")
            && listener.allow_anonymous
        {
            self.report
                .warning(
                    span,
                    "listener.allow_anonymous: has no effect with principals",
                )
                .help("take it out: every client has to say who it is");
        }
        if let Some(span) = table.sound("address")
            && !listener.address.ip().is_loopback()
            && listener.tls.is_none()
        {
            let message = "listener.address: tokens cross the network in clear text";
            self.report
                .warning(span, message)
                .label("not on loopback, and without TLS")
                .help(
                    "whoever can read the traffic has the tokens: keep it in a network of its own",
                );
        }
        if routing.granularity == Granularity::Connection
            && let Some(span) = raw.table("routing").sound("granularity")
        {
            let message = "routing.granularity: \"connection\" cannot be used with principals";
            self.report
                .error(span, message)
                .label("checks nothing behind the first message")
                .help("use granularity = \"session\"");
        }
    }

    /// What does nothing without principals.
    fn idle(&mut self, table: &Table) {
        let shared = self.raw.list("identity.shared").next();
        // A name of `adopt_by` that nobody has is an error already.
        let grace = table.sound("revoke_grace").cloned();
        let spans = grace
            .map(|span| ("revoke_grace", span))
            .into_iter()
            .chain(shared.and_then(|table| Some(("shared", table.span.clone()?))));
        for (key, span) in spans.collect::<Vec<_>>() {
            self.report
                .warning(
                    &span,
                    format!("identity.{key}: has no effect without principals"),
                )
                .help("everybody may use every session until clients have to say who they are");
        }
    }

    fn read_list(&mut self, key: &str, path: &Path, span: &Range<usize>) -> Option<String> {
        self.report.depends_on(path.to_owned());
        let limit = if key.ends_with("key_file") {
            MAX_SECRET
        } else {
            MAX_LIST_FILE
        };
        secret::read(path, limit)
            .map_err(|error| {
                let message = format!("{key}: {} cannot be read: {error}", path.display());
                self.report
                    .error(span, message)
                    .help("relative paths start at the directory of the configuration file");
            })
            .ok()
    }
}

/// Every realm; none if a token may bring others.
fn realms(entries: &[Entry], issuers: &[Issuer]) -> Option<BTreeSet<Arc<str>>> {
    let is_open = issuers
        .iter()
        .any(|issuer| issuer.rules.realm_claim.is_some());
    let of_entries = entries.iter().map(|entry| entry.principal.realm.clone());
    let of_issuers = issuers.iter().map(|issuer| issuer.rules.realm.clone());
    (!is_open).then(|| of_entries.chain(of_issuers).collect())
}

fn role(table: &Table) -> Role {
    table.word("role", |word| match word {
        "user" => Some(Role::User),
        "service" => Some(Role::Service),
        _ => None,
    })
}

fn arcs(table: &Table, key: &str) -> Vec<Arc<str>> {
    let words = table.words_or_none(key).unwrap_or_default();
    words.into_iter().map(Arc::from).collect()
}
