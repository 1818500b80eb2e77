//! `[listener.tls]`, `[backends.tls]`, networks, and what is warned about.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use tempfile::TempDir;

use super::*;
use crate::transport::testing::{Ca, Pair};

/// Files beside a configuration.
struct Folder {
    dir: TempDir,
    ca: Ca,
}

impl Folder {
    fn new() -> Self {
        let folder = Self {
            dir: tempfile::tempdir().unwrap(),
            ca: Ca::new(),
        };
        folder.write("ca.pem", &folder.ca.pem());
        folder.pair("server", &folder.ca.pair(&["localhost"]));
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn pair(&self, name: &str, pair: &Pair) {
        self.write(&format!("{name}.pem"), &pair.cert);
        self.write(&format!("{name}.key"), &pair.key);
    }

    fn read(&self, text: &str) -> Result<Loaded, Failure> {
        parse(text, &self.path("t.toml"), &environment)
    }

    fn warnings(&self, text: &str) -> Vec<String> {
        let loaded = self
            .read(text)
            .unwrap_or_else(|failure| panic!("{failure}"));
        loaded.warnings.iter().map(|w| w.message.clone()).collect()
    }

    fn error(&self, text: &str) -> String {
        let failure = self.read(text).unwrap_err();
        let errors: Vec<_> = failure.errors().collect();
        assert_eq!(errors.len(), 1, "{failure}");
        errors[0].summary()
    }
}

const ALL: &str = r#"
[listener]
allow_from = ["10.0.0.0/8", "127.0.0.1"]
proxy_protocol = "required"
proxy_protocol_from = ["10.0.0.5"]
[listener.tls]
cert = "server.pem"
key = "server.key"
client_ca = "ca.pem"
client_auth = "optional"
[[backends]]
name = "a"
address = "127.0.0.1:5001"
proxy_protocol = "v2"
[backends.tls]
ca = "ca.pem"
server_name = "cli.internal"
cert = "server.pem"
key = "server.key"
[[backends]]
name = "b"
address = "127.0.0.1:5002"
tls = { ca = "ca.pem" }
[[backends]]
name = "c"
address = "127.0.0.1:5003"
tls = false
"#;

#[test]
fn every_key_takes_effect_and_every_file_is_watched() {
    let folder = Folder::new();
    let loaded = folder.read(ALL).unwrap();
    let config = &loaded.config;
    let path = |name: &str| folder.path(name).display().to_string();
    let view = redacted(config);
    assert_eq!(
        view["listener"]["tls"],
        json!({
            "cert": path("server.pem"), "key": path("server.key"),
            "client_ca": path("ca.pem"), "client_auth": "optional",
        })
    );
    assert_eq!(
        view["backends"][0]["tls"],
        json!({
            "ca": path("ca.pem"), "server_name": "cli.internal",
            "cert": path("server.pem"), "key": path("server.key"),
        })
    );
    assert_eq!(view["backends"][0]["proxy_protocol"], "v2");
    assert_eq!(view["backends"][1]["tls"]["server_name"], json!(null));
    assert_eq!(view["backends"][2]["tls"], json!(null));
    assert_eq!(
        view["listener"]["allow_from"],
        json!(["10.0.0.0/8", "127.0.0.1/32"])
    );
    assert_eq!(view["listener"]["proxy_protocol"], "required");
    // The views of both sections are made from the same keys as the table.
    for (section, shown) in [
        ("listener.tls", &view["listener"]["tls"]),
        ("backends.tls", &view["backends"][0]["tls"]),
    ] {
        let section = SECTIONS.iter().find(|s| s.name == section).unwrap();
        let keys: BTreeSet<_> = section.keys.iter().map(|key| key.name).collect();
        let shown: BTreeSet<_> = shown
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(keys, shown);
    }
    let watched: BTreeSet<_> = loaded.files.iter().cloned().collect();
    let named = ["t.toml", "ca.pem", "server.pem", "server.key"];
    assert_eq!(
        watched,
        named.iter().map(|name| folder.path(name)).collect()
    );
    let shown: Vec<_> = config
        .certificates()
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(shown, ["listener", "backend a"]);
    assert_eq!(
        config.certificates()[0].1,
        64_060_588_800,
        "the start of the year 4000"
    );
}

#[test]
fn client_certificates_are_required_unless_the_file_says_otherwise() {
    let folder = Folder::new();
    let auth = |more: &str| {
        let text =
            format!("[listener.tls]\ncert = \"server.pem\"\nkey = \"server.key\"\n{more}{MINIMAL}");
        folder
            .read(&text)
            .unwrap()
            .config
            .listener
            .tls
            .unwrap()
            .client_auth
    };
    assert_eq!(auth(""), ClientAuth::None);
    assert_eq!(auth("client_ca = \"ca.pem\"\n"), ClientAuth::Required);
    let optional = "client_ca = \"ca.pem\"\nclient_auth = \"optional\"\n";
    assert_eq!(auth(optional), ClientAuth::Optional);
}

/// A certificate is a proof of who one is; one that nobody asks for is not.
#[test]
fn other_addresses_than_loopback_need_certificates_or_leave() {
    let folder = Folder::new();
    let text = |more: &str| {
        format!(
            "[listener]\naddress = \"0.0.0.0:4321\"\n[listener.tls]\ncert = \"server.pem\"\n\
             key = \"server.key\"\n{more}{MINIMAL}"
        )
    };
    assert_eq!(folder.warnings(&text("client_ca = \"ca.pem\"\n")), [""; 0]);
    for more in ["", "client_ca = \"ca.pem\"\nclient_auth = \"optional\"\n"] {
        let error = folder.error(&text(more));
        assert!(error.contains("clients need no token"), "{error}");
    }
}

#[test]
fn a_file_of_no_use_is_named_with_the_reason() {
    let folder = Folder::new();
    folder.pair("other", &folder.ca.pair(&["other"]));
    folder.write("garbage", "garbage");
    let tls = |cert: &str, key: &str, more: &str| {
        format!("[listener.tls]\ncert = \"{cert}\"\nkey = \"{key}\"\n{more}{MINIMAL}")
    };
    let backend = |lines: &str| format!("{MINIMAL}[backends.tls]\n{lines}");
    for (text, expected) in [
        (tls("none.pem", "server.key", ""), "listener.tls.cert: "),
        (tls("none.pem", "server.key", ""), "none.pem cannot be read"),
        (
            tls("garbage", "server.key", ""),
            "garbage holds no certificate in PEM form",
        ),
        (
            tls("server.pem", "garbage", ""),
            "garbage holds no private key",
        ),
        (
            tls("server.pem", "other.key", ""),
            "other.key is not the key of that certificate",
        ),
        (
            tls("server.pem", "server.key", "client_ca = \"garbage\"\n"),
            "listener.tls.client_ca: ",
        ),
        (
            tls("server.pem", "server.key", "client_auth = \"required\"\n"),
            "there is no `client_ca`",
        ),
        (
            tls("server.pem", "server.key", "alpn = 1\n"),
            "unknown key `listener.tls.alpn`",
        ),
        (
            format!("[listener.tls]\ncert = \"server.pem\"\n{MINIMAL}"),
            "listener.tls: `key` is missing",
        ),
        (
            format!("[listener]\ntls = true\n{MINIMAL}"),
            "listener.tls: expected a table, found true or false",
        ),
        (
            format!("{MINIMAL}tls = \"yes\"\n"),
            "backends.tls: expected true, false or a table",
        ),
        (
            backend("cert = \"server.pem\"\n"),
            "backends.tls.cert: `key` is missing",
        ),
        (
            backend("key = \"server.key\"\n"),
            "backends.tls.key: `cert` is missing",
        ),
        (backend("ca = \"garbage\"\n"), "backends.tls.ca: "),
        (
            backend("ca = \"ca.pem\"\nserver_name = \"a b\"\n"),
            "backends.tls.server_name: not a name",
        ),
        (
            format!("[listener]\nallow_from = [\"10.0.0.0/33\"]\n{MINIMAL}"),
            "is no network",
        ),
        (
            format!("[listener]\nallow_from = []\n{MINIMAL}"),
            "is empty",
        ),
        (
            format!("[listener]\nallow_from = \"10.0.0.0/8\"\n{MINIMAL}"),
            "expected a list like",
        ),
        (
            format!("[listener]\nproxy_protocol = \"required\"\n{MINIMAL}"),
            "`proxy_protocol_from` is missing",
        ),
        (
            format!("{MINIMAL}proxy_protocol = \"v3\"\n"),
            "must be one of \"off\", \"v1\", \"v2\"",
        ),
        (
            format!("[\"listener.tls\"]\n{MINIMAL}"),
            "unknown section `listener.tls`",
        ),
    ] {
        let error = folder.error(&text);
        assert!(error.contains(expected), "{text}\n{error}");
    }
}

#[test]
fn what_will_hurt_soon_is_warned_about() {
    let folder = Folder::new();
    let expired = folder.ca.pair_until(&["localhost"], 2001);
    folder.pair("expired", &expired);
    let text = |name: &str| {
        format!("[listener.tls]\ncert = \"{name}.pem\"\nkey = \"{name}.key\"\n{MINIMAL}")
    };
    let warnings = folder.warnings(&text("expired"));
    assert!(
        warnings[0].ends_with("expired.pem has expired on 2001-01-01"),
        "{warnings:?}"
    );
    fs::set_permissions(folder.path("server.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let warnings = folder.warnings(&text("server"));
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].ends_with("can be read by every user of this machine"));
    let idle = format!("[listener]\nproxy_protocol_from = [\"10.0.0.1\"]\n{MINIMAL}");
    assert!(folder.warnings(&idle)[0].contains("has no effect without"));
}

#[test]
fn another_certificate_in_the_same_file_is_a_change() {
    let folder = Folder::new();
    let before = folder.read(ALL).unwrap().config;
    assert!(diff(&before, &folder.read(ALL).unwrap().config).is_empty());
    folder.pair("server", &folder.ca.pair(&["localhost"]));
    let after = folder.read(ALL).unwrap().config;
    let changes = diff(&before, &after);
    assert!(changes.refused.is_empty());
    assert_eq!(
        changes.lines(),
        [
            "backend a: tls changed proxy_protocol v2",
            "listener.tls.cert: changed",
        ]
    );
    let without = folder.read(MINIMAL).unwrap().config;
    let changes = diff(&before, &without);
    assert!(changes.refused.is_empty());
    for key in [
        "listener.tls.key",
        "listener.allow_from",
        "listener.proxy_protocol",
    ] {
        assert!(changes.touches(key), "{key}: {:?}", changes.lines());
    }
}
