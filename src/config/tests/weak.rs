//! Settings that are accepted and weak: each is told, with what to do; sound ones are not.

use super::*;
use crate::core::credential::Fingerprint;

const KEY: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/src/core/credential/tests/ed25519.pub.pem"
);

/// Summaries of the warnings, without the place.
fn told(text: &str) -> Vec<String> {
    let text = format!("{text}{MINIMAL}");
    let loaded = parse(&text, Path::new("t.toml"), &environment);
    let loaded = loaded.unwrap_or_else(|failure| panic!("{text}\n{failure}"));
    let lines = loaded.warnings.iter().map(Diagnostic::summary);
    lines
        .map(|line| line.split_once("warning: ").unwrap().1.to_owned())
        .collect()
}

/// A principal with a token of its own and these other keys.
fn one(name: &str, rest: &str) -> String {
    let hash = Fingerprint::of(name);
    format!("[[identity.principals]]\nname = \"{name}\"\ntoken_sha256 = \"{hash}\"\n{rest}\n")
}

fn issuer(name: &str, rest: &str) -> String {
    format!(
        "[[identity.jwt]]\nname = \"{name}\"\nissuer = \"{name}\"\naudience = \"a\"\n\
         key_file = '{KEY}'\n{rest}\n"
    )
}

fn share(pattern: &str, groups: &str) -> String {
    format!("[[identity.shared]]\npattern = '{pattern}'\ngroups = {groups}\n")
}

const USUAL: &str = "[identity]\nsession_id_user = '^user-(?<user>.+?)--'\n";

fn app() -> String {
    one(
        "app",
        "role = \"service\"\nrealm = \"acme\"\ngroups = \"red\"",
    )
}

#[test]
fn weak_settings_are_told() {
    let two = format!("{}{}", one("ann", ""), one("bob", ""));
    let in_acme = "realm = \"acme\"";
    for (text, expected) in [
        (
            format!("{USUAL}{}{}", one("ann@x", in_acme), one("bob", in_acme)),
            "identity.session_id_user: no id of a session names \"ann@x\"; let the pattern fit the \
             names",
        ),
        (
            format!(
                "[identity]\nsession_id_user = '^(?<user>\\d+)-'\n{}",
                (1..=5)
                    .map(|n| one(&format!("ann{n}"), in_acme))
                    .collect::<String>()
            ),
            "identity.session_id_user: no id of a session names \"ann1\", \"ann2\", \"ann3\" and 2 \
             more; let",
        ),
        (
            format!("{USUAL}{}", one("ann--x", "")),
            "identity.session_id_user: reads \"ann\" out of the ids of \"ann--x\"; change the name",
        ),
        (
            format!(
                "[identity]\nsession_id_user = 'user-(?<user>.+?)--'\n{}",
                app()
            ),
            "identity.session_id_user: fits in the middle of an id, too; start it with `^`",
        ),
        (
            format!("{USUAL}{two}"),
            "identity.session_id_user: with several realms it does not tell whose a session on a \
             disk is; give the principals one `realm`",
        ),
        (
            format!("{USUAL}{}", issuer("sso", "realm_claim = \"tenant\"")),
            "identity.session_id_user: with several realms it does not tell",
        ),
        (
            format!("{}{}", app(), share(".*", "\"red\"")),
            "identity.shared.pattern: shares every session; the groups may use all sessions",
        ),
        (
            format!("{}{}", app(), share("team-.*", "[\"red\", \"blue\"]")),
            "identity.shared.groups: nobody is in \"blue\"; a principal's `groups`",
        ),
        (
            format!("{two}[access]\nprofile = \"single-tenant\"\n"),
            "access.profile: \"single-tenant\" with several principals; use \"multi-tenant\"",
        ),
        (
            format!(
                "{}[access]\nprofile = \"single-tenant\"\n",
                issuer("sso", "")
            ),
            "access.profile: \"single-tenant\" with several principals; use \"multi-tenant\"",
        ),
        (
            format!("{}[access]\ndeny_params = []\n", app()),
            "access.deny_params: without \"cloud\", \"configDir\", \"enableSessionStore\", \
             \"persistPlanSelection\", \"pickerSettingsContext\"; such parameters reach",
        ),
        (
            format!(
                "{}[access]\ndeny_params = [\"cloud\", \"configDir\", \"persistPlanSelection\", \
                 \"pickerSettingsContext\", \"mcpServers.*.command\"]\n",
                app()
            ),
            "access.deny_params: without \"enableSessionStore\"; such parameters reach",
        ),
        (
            format!("[identity]\nadopt_by = \"ann\"\n{two}"),
            "identity.adopt_by: \"ann\" gets the sessions of all users; name a principal with role",
        ),
        (
            format!("[identity]\nadopt_by = \"sso/root\"\n{}", issuer("sso", "")),
            "identity.adopt_by: \"sso/root\" gets the sessions of all users; name a principal",
        ),
        (
            "[listener]\nproxy_protocol = \"required\"\nproxy_protocol_from = [\"0.0.0.0/0\"]\n"
                .to_owned(),
            "listener.proxy_protocol_from: everybody may say which address is its own; name the \
             balancers",
        ),
        (
            "[listener]\nproxy_protocol = \"required\"\nproxy_protocol_from = [\"10.0.0.1\", \
             \"::/0\"]\n"
                .to_owned(),
            "listener.proxy_protocol_from: everybody may say which address is its own; name the",
        ),
        (
            format!("[store]\nkind = \"memory\"\n{}", one("ann", "")),
            "store.kind: whose the sessions are is forgotten at a restart; use kind = \"embedded\"",
        ),
        (
            "[admin]\naddress = \"0.0.0.0:9321\"\n".to_owned(),
            "admin.address: not on loopback, and without a token; set `token_env`",
        ),
        (
            format!("{}{}", issuer("sso", in_acme), one("ann", in_acme)),
            "identity.jwt.realm: users of the principal \"ann\" are its users, too; whoever it \
             calls by the same name",
        ),
        (
            format!("{}{}", issuer("sso", ""), one("sso", "")),
            "identity.jwt.realm: users of the principal \"sso\" are its users, too; whoever",
        ),
        (
            format!("{}{}", issuer("one", in_acme), issuer("two", in_acme)),
            "identity.jwt.realm: users of the issuer \"one\" are its users, too; whoever",
        ),
        (
            format!(
                "{}{}",
                issuer("one", "realm_claim = \"t\""),
                issuer("two", "")
            ),
            "identity.jwt.realm: users of the issuer \"one\" are its users, too; whoever",
        ),
        (
            format!("{}{}", one("ann", ""), issuer("one", "realm_claim = \"t\"")),
            "identity.jwt.realm_claim: users of the principal \"ann\" are its users, too; whoever",
        ),
    ] {
        let warnings = told(&text);
        assert_eq!(warnings.len(), 1, "{text}: {warnings:?}");
        assert!(warnings[0].starts_with(expected), "{text}: {warnings:?}");
    }
}

#[test]
fn sound_settings_are_not() {
    let two = format!("{}{}", one("ann", ""), one("bob", ""));
    let in_acme = "realm = \"acme\"";
    for text in [
        String::new(),
        // Without principals a pattern only says what lies together.
        "[identity]\nsession_id_user = '(?<user>\\d+)'\n".to_owned(),
        "[store]\nkind = \"memory\"\n[access]\nprofile = \"single-tenant\"\ndeny_params = []\n"
            .to_owned(),
        format!("{USUAL}{}", app()),
        format!("{USUAL}{}", one("ann", "")),
        format!("{USUAL}adopt_by = \"app\"\n{two}{}", app()),
        // A service has users of any name.
        format!("{USUAL}{}", one("a@b--c", "role = \"service\"")),
        format!("{}{}", app(), share("team-.*", "\"red\"")),
        format!(
            "{}{}",
            issuer("sso", "groups_claim = \"g\""),
            share("team-.*", "\"any\"")
        ),
        format!("{}[access]\nprofile = \"single-tenant\"\n", one("ann", "")),
        format!("{two}[access]\nprofile = \"multi-tenant\"\n"),
        format!(
            "{two}[access]\ndeny_params = [\"cloud\", \"configDir\", \"enableSessionStore\", \
             \"persistPlanSelection\", \"pickerSettingsContext\", \"x\"]\n"
        ),
        format!("[identity]\nadopt_by = \"app\"\n{two}{}", app()),
        // It is alone: whose else could they be?
        format!("[identity]\nadopt_by = \"ann\"\n{}", one("ann", "")),
        "[listener]\nproxy_protocol = \"required\"\nproxy_protocol_from = [\"10.0.0.0/8\"]\n"
            .to_owned(),
        format!("[store]\nkind = \"embedded\"\n{two}"),
        "[admin]\naddress = \"0.0.0.0:9321\"\ntoken_env = \"ADMIN\"\n".to_owned(),
        "[admin]\naddress = \"127.0.0.2:9321\"\n".to_owned(),
        // The application that the issuer's users belong to.
        format!("{}{}", issuer("sso", in_acme), app()),
        format!("{}{}", issuer("one", ""), issuer("two", "")),
        format!("{}{}", issuer("sso", ""), one("ann", in_acme)),
    ] {
        let warnings = told(&text);
        assert!(warnings.is_empty(), "{text}: {warnings:?}");
    }
}

#[test]
fn a_token_that_is_none_is_refused() {
    for nothing in ["", "\n", "\r\n"] {
        let text = format!(
            "[[identity.principals]]\nname = \"ann\"\ntoken_sha256 = [\"{}\", \"{}\"]\n{MINIMAL}",
            Fingerprint::of("good"),
            Fingerprint::of(nothing)
        );
        let failure = parse(&text, Path::new("t.toml"), &environment).unwrap_err();
        assert_eq!(
            failure.summaries(),
            [
                "t.toml:3:16: error: identity.principals.token_sha256: the hash is that of an \
                 empty token; `taxiway token NAME` makes a token and prints its hash"
            ]
        );
    }
}

/// What is said of half a configuration would follow from what is wrong with it.
#[test]
fn nothing_is_said_of_identity_while_it_is_wrong() {
    let text = format!(
        "[[identity.principals]]\nname = \"ann\"\ntoken_env = \"NOBODY\"\n{}{MINIMAL}",
        share("team-.*", "\"red\"")
    );
    let failure = parse(&text, Path::new("t.toml"), &environment).unwrap_err();
    assert_eq!(failure.diagnostics.len(), 1, "{failure}");
}
