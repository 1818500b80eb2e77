//! Who may connect: what is read, what is refused, what is worth a warning, what a reload says.

use tempfile::TempDir;

use super::*;
use crate::core::{
    credential::Fingerprint,
    id::Secret,
    identity::{Caps, Role},
};

/// A directory with `t.toml` and what it names.
struct Files(TempDir);

impl Files {
    fn new(files: &[(&str, &str)]) -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        Self(dir)
    }

    fn read(&self, text: &str) -> Result<Loaded, Failure> {
        let path = self.0.path().join("t.toml");
        parse(&format!("{text}{MINIMAL}"), &path, &environment)
    }

    fn good(&self, text: &str) -> Loaded {
        self.read(text)
            .unwrap_or_else(|failure| panic!("{failure}"))
    }

    fn errors(&self, text: &str) -> Vec<String> {
        let failure = match self.read(text) {
            Ok(loaded) => panic!("accepted: {text}\n{:?}", loaded.warnings),
            Err(failure) => failure,
        };
        let shown = format!("{failure} {:?}", failure.to_json());
        assert!(!shown.contains("s3cret"), "{shown}");
        failure.errors().map(|d| d.message.clone()).collect()
    }

    fn warnings(&self, text: &str) -> Vec<String> {
        let loaded = self.good(text);
        loaded.warnings.into_iter().map(|d| d.message).collect()
    }
}

fn plain() -> Files {
    Files::new(&[])
}

fn hash(token: &str) -> String {
    Fingerprint::of(token).to_string()
}

fn who(config: &Config, token: &str) -> Option<String> {
    let now = std::time::SystemTime::now();
    let proved = config
        .identity
        .principals
        .by_token(Some(&Secret::new(token)), now);
    proved.ok().map(|proved| proved.principal.name.to_string())
}

const PEM: &str = include_str!("../../core/credential/tests/ed25519.pub.pem");

#[test]
fn tokens_come_from_everywhere_and_several_at_a_time() {
    let files = Files::new(&[
        ("a.token", "file-token-of-ann-1\n\nfile-token-of-ann-2\n"),
        ("b.token", "file-token-of-ann-3"),
        (
            "many",
            &format!("eve@example.org {} acme - dev,ops\n", hash("listed")),
        ),
    ]);
    let text = format!(
        "[identity]\ntokens_file = \"many\"\n\
         [[identity.principals]]\nname = \"ann\"\nrole = \"service\"\n\
         token_env = [\"ANN\", \"CLI\"]\ntoken_file = [\"a.token\", \"b.token\"]\n\
         token_sha256 = [\"{}\", \"{}\"]\n\
         [[identity.principals]]\nname = \"bob\"\ntoken_sha256 = \"{}\"\n",
        hash("hashed-1"),
        hash("hashed-2"),
        hash("bobs"),
    );
    let loaded = files.good(&text);
    let config = &loaded.config;
    for token in [
        "s3cret-token-of-ann",
        "s3cret-cli",
        "file-token-of-ann-1",
        "file-token-of-ann-2",
        "file-token-of-ann-3",
        "hashed-1",
        "hashed-2",
    ] {
        assert_eq!(who(config, token), Some("ann".to_owned()), "{token}");
    }
    assert_eq!(who(config, "bobs"), Some("bob".to_owned()));
    assert_eq!(who(config, "listed"), Some("eve@example.org".to_owned()));
    assert_eq!(who(config, "ann"), None);
    assert!(config.identity.access.authenticates);
    let names: Vec<_> = loaded.files.iter().filter_map(|f| f.file_name()).collect();
    assert_eq!(names, ["t.toml", "a.token", "b.token", "many"], "watched");
    assert_eq!(config.secret_variables, ["ANN", "CLI"], "withheld");

    let entries = config.identity.principals.entries();
    let realms: Vec<&str> = entries.iter().map(|e| &*e.principal.realm).collect();
    assert_eq!(realms, ["ann", "bob", "acme"]);
    assert_eq!(entries[0].principal.role, Role::Service);
    assert_eq!(config.identity.access.sole_realm, None);
    let shown = redacted(config)["identity"].to_string();
    assert!(!shown.contains("hashed") && !shown.contains(&hash("bobs")));
    assert!(!shown.contains("eve"), "{shown}");
}

#[test]
fn defaults_are_those_of_the_page() {
    let files = Files::new(&[("key.pem", PEM)]);
    let text = format!(
        "[[identity.principals]]\nname = \"ann\"\ntoken_sha256 = \"{}\"\nrealm = \"acme\"\n\
         [[identity.jwt]]\nname = \"sso\"\nissuer = \"i\"\naudience = \"a\"\nrealm = \"acme\"\n\
         key_file = \"key.pem\"\n",
        hash("x")
    );
    let config = files.good(&text).config;
    let view = &redacted(&config)["identity"];
    assert_eq!(
        view["principals"],
        json!([{
            "name": "ann", "role": "user", "realm": "acme", "groups": [], "token": ["[redacted]"],
            "tls_name": [], "allow": [], "deny": [], "connections": null, "sessions": null,
            "turns": null, "calls_per_second": null, "bytes_per_second": null,
        }])
    );
    assert_eq!(
        view["jwt"],
        json!([{
            "name": "sso", "issuer": "i", "audience": ["a"], "key_file": ["key.pem"],
            "jwks_file": null, "secret": null, "user_claim": "sub", "groups_claim": null,
            "realm": "acme", "realm_claim": null, "role": "user", "leeway": "30s", "allow": [],
            "deny": [],
        }])
    );
    let sole = config.identity.access.sole_realm.as_deref();
    assert_eq!(sole, Some("acme"), "one realm in all");
}

#[test]
fn a_principal_may_have_more_or_less_than_others() {
    let files = Files::new(&[]);
    let text = format!(
        "[limits]\nturns_per_user = 3\ncalls_per_second = 10\n[[identity.principals]]\n\
         name = \"ann\"\ntoken_sha256 = \"{}\"\nturns = 9\nsessions = 0\n\
         bytes_per_second = \"0B\"\n",
        hash("x")
    );
    let config = files.good(&text).config;
    let entry = &config.identity.principals.entries()[0];
    let caps = entry.principal.caps.or(config.limits.caps);
    assert_eq!(
        caps,
        Caps {
            connections: None,
            sessions: Some(u32::MAX),
            turns: Some(9),
            calls_per_second: Some(10),
            bytes_per_second: Some(u64::MAX),
        }
    );
}

#[test]
fn what_is_wrong_is_said() {
    let files = Files::new(&[
        ("key.pem", PEM),
        ("private.pem", "-----BEGIN PRIVATE KEY-----\n"),
        ("short", "0123456789"),
        (
            "keys.json",
            "{\"keys\": [{\"kty\": \"oct\", \"k\": \"czNjcmV0\"}]}",
        ),
        ("no.json", "s3cret"),
        ("list", &format!("ann {}\nann s3cret\ns3cret\n", hash("x"))),
        ("empty", ""),
    ]);
    let (x, y) = (hash("x"), hash("y"));
    let principal = |rest: &str| format!("[[identity.principals]]\n{rest}\n");
    let ann = principal(&format!("name = \"ann\"\ntoken_sha256 = \"{x}\""));
    let jwt = |rest: &str| {
        format!("[[identity.jwt]]\nname = \"sso\"\nissuer = \"i\"\naudience = \"a\"\n{rest}\n")
    };
    for (text, expected) in [
        (
            principal("name = \"ann\""),
            &["nothing proves who is \"ann\""][..],
        ),
        (principal("token_env = \"ANN\""), &["`name` is missing"]),
        (
            principal("name = \"a b\"\ntoken_env = \"ANN\""),
            &["not a name"],
        ),
        (
            principal("name = \"a/b\"\ntoken_env = \"ANN\""),
            &["not a name"],
        ),
        (
            principal("name = \"a\"\ntoken = \"s3cret\""),
            &["nothing proves", "unknown key `identity.principals.token`"],
        ),
        (
            principal("name = \"a\"\ntoken_sha256 = \"s3cret\""),
            &["not a SHA-256 hash"],
        ),
        (
            principal("name = \"a\"\ntoken_sha256 = [\"s3cret\"]"),
            &["not a SHA-256 hash"],
        ),
        (
            principal("name = \"a\"\ntoken_env = [\"s3cret value\"]"),
            &["not the name of an environment variable"],
        ),
        (principal("name = \"a\"\ntoken_env = []"), &["is empty"]),
        (
            principal("name = \"a\"\ntoken_env = [1]"),
            &["expected the name of an environment variable"],
        ),
        (
            principal("name = \"a\"\ntoken_env = \"NOBODY\""),
            &["NOBODY is not set"],
        ),
        (
            principal("name = \"a\"\ntoken_file = \"empty\""),
            &["is empty"],
        ),
        (
            principal("name = \"a\"\ntoken_file = \"nowhere\""),
            &["cannot be read"],
        ),
        (
            principal("name = \"a\"\ntoken_env = \"ANN\"\nrole = \"root\""),
            &["must be one of \"user\", \"service\""],
        ),
        (
            principal("name = \"a\"\ntoken_env = \"ANN\"\ndeny = \"*.x y\""),
            &["is no method"],
        ),
        (
            format!(
                "{ann}{}",
                principal(&format!("name = \"bob\"\ntoken_sha256 = \"{x}\""))
            ),
            &["two principals have the same token"],
        ),
        (
            format!(
                "{ann}{}",
                principal(&format!("name = \"ann\"\ntoken_sha256 = \"{y}\""))
            ),
            &["\"ann\" is there twice"],
        ),
        (
            format!(
                "{}{}",
                principal("name = \"a\"\ntls_name = \"x\""),
                principal("name = \"b\"\ntls_name = [\"y\", \"x\"]")
            ),
            &["the same certificate name"],
        ),
        (
            "identity.principals = 1\n".to_owned(),
            &["expected a list of tables, found a whole number"],
        ),
        (
            "[identity.principals]\nname = \"a\"\n".to_owned(),
            &["expected a list of tables, found a table"],
        ),
        (
            format!("[identity]\nadopt_by = \"bob\"\n{ann}"),
            &["no principal has this name"],
        ),
        (
            "[identity]\ntokens_file = \"list\"\n".to_owned(),
            &[
                "list:2: the second word is no SHA-256 hash",
                "list:3: the hash of a token is missing",
            ],
        ),
        (
            "[identity]\ntokens_file = \"nowhere\"\n".to_owned(),
            &["cannot be read"],
        ),
        (jwt(""), &["no key to check its tokens with"]),
        (
            jwt("key_file = \"private.pem\""),
            &["this is a private key"],
        ),
        (
            jwt("key_file = \"short\""),
            &["not a public key in PEM form"],
        ),
        (
            jwt("jwks_file = \"keys.json\""),
            &["holds no key that can be used"],
        ),
        (jwt("jwks_file = \"no.json\""), &["not a JSON Web Key Set"]),
        (jwt("secret_file = \"short\""), &["less than 32 bytes"]),
        (
            jwt("secret_file = \"key.pem\""),
            &["key in PEM form, not a shared secret"],
        ),
        (
            jwt("secret = \"s3cret\""),
            &["no key to check", "unknown key `identity.jwt.secret`"],
        ),
        (
            jwt("key_file = \"key.pem\"\nleeway = \"61s\""),
            &["must be \"1s\" to \"1m\""],
        ),
        (
            jwt("key_file = \"key.pem\"").replace("audience = \"a\"\n", ""),
            &["`audience` is missing"],
        ),
        (
            format!("{0}{0}", jwt("key_file = \"key.pem\"")),
            &[
                "identity.jwt.name: is there twice",
                "identity.jwt.issuer: is there twice",
            ],
        ),
        (
            format!("{ann}[[identity.shared]]\npattern = \"(\"\ngroups = \"g\"\n"),
            &["not a regular expression"],
        ),
        (
            format!("{ann}[[identity.shared]]\npattern = \".*\"\n"),
            &["`groups` is missing"],
        ),
        (
            format!("[routing]\ngranularity = \"connection\"\n{ann}"),
            &["cannot be used with principals"],
        ),
        (
            "[listener]\naddress = \"0.0.0.0:1\"\n".to_owned(),
            &["not on loopback, and clients need no token"],
        ),
        (
            "[identity]\nadopt_by = \"ann\"\n".to_owned(),
            &["no principal has this name"],
        ),
    ] {
        let errors = files.errors(&text);
        assert_eq!(errors.len(), expected.len(), "{text}: {errors:?}");
        for (error, expected) in errors.iter().zip(expected) {
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}

#[test]
fn what_is_risky_is_warned_of() {
    let files = Files::new(&[("key.pem", PEM)]);
    let ann = format!(
        "[[identity.principals]]\nname = \"ann\"\ntoken_sha256 = \"{}\"\n",
        hash("x")
    );
    let none: &[&str] = &[];
    for (text, expected) in [
        (ann.clone(), none),
        (format!("[identity]\nadopt_by = \"ann\"\n{ann}"), none),
        (
            "[identity]\nadopt_by = \"sso/root\"\n[[identity.jwt]]\nname = \"sso\"\nissuer = \"i\"\n\
             audience = \"a\"\nkey_file = \"key.pem\"\nrole = \"service\"\n"
                .to_owned(),
            none,
        ),
        (
            "[[identity.principals]]\nname = \"a\"\ntoken_env = \"SHORT\"\n".to_owned(),
            &["a token of 6 characters can be guessed"],
        ),
        (
            format!("[listener]\naddress = \"0.0.0.0:1\"\n{ann}"),
            &["tokens cross the network in clear text"],
        ),
        (
            format!("[listener]\nallow_anonymous = true\n{ann}"),
            &["listener.allow_anonymous: has no effect with principals"],
        ),
        (
            "[identity]\nrevoke_grace = \"1s\"\n[[identity.shared]]\n\
             pattern = \".*\"\ngroups = \"g\"\n"
                .to_owned(),
            &[
                "identity.revoke_grace: has no effect without principals",
                "identity.shared: has no effect without principals",
            ],
        ),
    ] {
        let warnings = files.warnings(&text);
        assert_eq!(warnings.len(), expected.len(), "{text}: {warnings:?}");
        for (warning, expected) in warnings.iter().zip(expected) {
            assert!(warning.contains(expected), "{text}: {warning}");
        }
    }
}

#[test]
fn sharing_is_what_is_written() {
    let text = format!(
        "[[identity.principals]]\nname = \"ann\"\ntoken_sha256 = \"{}\"\n\
         [[identity.shared]]\npattern = \"team-.*\"\ngroups = [\"dev\", \"ops\"]\n",
        hash("x")
    );
    let access = plain().good(&text).config.identity.access;
    assert_eq!(access.shares.len(), 1);
    assert!(access.shares[0].pattern.is_match("team-1"));
    assert_eq!(access.shares[0].groups, ["dev".into(), "ops".into()]);
    assert_eq!(access.sole_realm.as_deref(), Some("ann"));
}

#[test]
fn a_reload_says_whose_rights_changed_and_no_secret() {
    let principal = |name: &str, token: &str| {
        format!(
            "[[identity.principals]]\nname = \"{name}\"\ntoken_sha256 = \"{}\"\n",
            hash(token)
        )
    };
    let files = plain();
    let config = |text: &str| files.good(text).config;
    let before = config(&format!(
        "{}{}",
        principal("ann", "1"),
        principal("bob", "2")
    ));
    let after = config(&format!(
        "{}{}",
        principal("ann", "3"),
        principal("cid", "2")
    ));
    assert!(diff(&before, &before.clone()).is_empty());
    let changes = diff(&before, &after);
    assert_eq!(changes.refused, []);
    let lines = changes.lines();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert_eq!(lines[0], "identity.principals ann: changed");
    assert!(lines[1].starts_with("identity.principals bob: {"));
    assert!(lines[1].ends_with("→ null"), "{lines:?}");
    assert!(lines[2].starts_with("identity.principals cid: null →"));
    assert!(!lines.concat().contains(&hash("2")), "{lines:?}");
}

#[test]
fn a_reload_with_thousands_of_changes_is_short() {
    let list: String = (0..3000)
        .map(|n| format!("user-{n} {}\n", hash(&n.to_string())))
        .collect();
    let files = Files::new(&[("list", &list)]);
    let with = files.good("[identity]\ntokens_file = \"list\"\n").config;
    assert_eq!(with.identity.principals.entries().len(), 3000);
    assert_eq!(who(&with, "2999"), Some("user-2999".to_owned()));
    let lines = diff(&files.good("").config, &with).lines();
    assert!(lines.len() < 30, "{}", lines.len());
    let last = "identity.principals (2980 more): changed";
    assert!(lines.iter().any(|line| line == last), "{lines:?}");
}
