//! `[listener.tls]` and `[backends.tls]`: certificates and keys out of the files that are named.

use std::{
    ops::Range,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{Check, secret::is_readable_by_others};
use crate::{
    config::{BackendTls, ListenerTls, raw::Table},
    transport::{
        self, Acceptor, CertificateFacts, ClientAuth, ClientFiles, Connector, CredentialError,
        ServerFiles,
    },
};

/// With less of its life left than that, a certificate is warned about.
const SOON: Duration = Duration::from_secs(14 * 86_400);

/// A file that could be read.
struct Credential {
    key: &'static str,
    path: PathBuf,
    span: Range<usize>,
    bytes: Vec<u8>,
}

impl Check<'_> {
    /// TLS to clients, if it is wanted and its files are good.
    pub(super) fn listener_tls(&mut self) -> Option<ListenerTls> {
        let table = self.raw.table("listener").nested("tls")?;
        let (cert, key) = (
            self.credential(table, "cert"),
            self.private_key(table, "key"),
        );
        let ca = self.credential(table, "client_ca");
        let written = table.text("client_auth").map(|word| match word.as_str() {
            "required" => ClientAuth::Required,
            "optional" => ClientAuth::Optional,
            _ => ClientAuth::None,
        });
        if let (Some(auth), Some(span)) = (written, table.sound("client_auth")) {
            let has_ca = table.entry("client_ca").is_some();
            if auth == ClientAuth::None && has_ca {
                self.report
                    .warning(
                        span,
                        "listener.tls.client_auth: with \"none\", `client_ca` has no effect",
                    )
                    .help("take one of them out");
            } else if auth != ClientAuth::None && !has_ca {
                self.report
                    .error(span, "listener.tls.client_auth: there is no `client_ca`")
                    .label("judged by what?")
                    .help("name the authorities of clients' certificates with `client_ca`");
            }
        }
        let fallback = match table.entry("client_ca") {
            Some(_) => ClientAuth::Required,
            None => ClientAuth::None,
        };
        let client_auth = written.unwrap_or(fallback);
        let (cert, key) = (cert?, key?);
        let files = ServerFiles {
            cert: &cert.bytes,
            key: &key.bytes,
            client_ca: ca.as_ref().map(|ca| &ca.bytes[..]),
            client_auth,
        };
        let acceptor = match Acceptor::new(&files) {
            Ok(acceptor) => acceptor,
            Err(error) => {
                self.bad_credential(table, &error, Some(&cert), Some(&key), ca.as_ref());
                return None;
            }
        };
        self.lifetime(table, &cert, acceptor.facts());
        Some(ListenerTls {
            cert: cert.path,
            key: key.path,
            client_ca: ca.map(|ca| ca.path),
            client_auth,
            acceptor,
        })
    }

    /// TLS to one backend, if it is wanted and its files are good.
    pub(super) fn backend_tls(&mut self, backend: &Table) -> Option<BackendTls> {
        let table = backend.nested("tls")?;
        let ca = self.credential(table, "ca");
        let (cert, key) = (
            self.credential(table, "cert"),
            self.private_key(table, "key"),
        );
        for (one, other) in [("cert", "key"), ("key", "cert")] {
            if let (Some(entry), None) = (table.entry(one), table.entry(other)) {
                self.report
                    .error(
                        &entry.span,
                        format!("backends.tls.{one}: `{other}` is missing"),
                    )
                    .help("a certificate is of use only with its key");
                return None;
            }
        }
        let server_name = table.text("server_name");
        if server_name.is_none()
            && !table.is_faulty("server_name")
            && let (Some(address), Some(span)) = (backend.text("address"), backend.sound("address"))
        {
            let host = address.rsplit_once(':').map_or("", |(host, _)| host);
            if !transport::is_server_name(host.trim_matches(['[', ']'])) {
                self.report
                    .error(
                        span,
                        format!("backends.address: no certificate can be for {host}"),
                    )
                    .help("write what it is for as `server_name` below [backends.tls]");
                return None;
            }
        }
        // Named and not read: that was reported.
        let is_whole = [
            ("ca", ca.is_some()),
            ("cert", cert.is_some()),
            ("key", key.is_some()),
        ]
        .iter()
        .all(|(name, is_read)| table.entry(name).is_none() || *is_read);
        if !is_whole {
            return None;
        }
        let files = ClientFiles {
            ca: ca.as_ref().map(|ca| &ca.bytes[..]),
            identity: cert
                .as_ref()
                .zip(key.as_ref())
                .map(|(cert, key)| (&cert.bytes[..], &key.bytes[..])),
        };
        let connector = match Connector::new(&files, server_name.as_deref()) {
            Ok(connector) => connector,
            Err(error) => {
                self.bad_credential(table, &error, cert.as_ref(), key.as_ref(), ca.as_ref());
                return None;
            }
        };
        if let (Some(cert), Some(facts)) = (&cert, connector.facts()) {
            self.lifetime(table, cert, facts);
        }
        Some(BackendTls {
            ca: ca.map(|ca| ca.path),
            server_name,
            cert: cert.map(|cert| cert.path),
            key: key.map(|key| key.path),
            connector,
        })
    }

    fn credential(&mut self, table: &Table, key: &'static str) -> Option<Credential> {
        let (path, span) = (table.text(key)?, table.sound(key)?.clone());
        let path = self.path(&path);
        self.report.depends_on(path.clone());
        match transport::read_file(&path) {
            Ok(bytes) => Some(Credential {
                key,
                path,
                span,
                bytes,
            }),
            Err(error) => {
                let (name, file) = (table.full_name(key), path.display());
                self.report
                    .error(&span, format!("{name}: {file} cannot be read: {error}"))
                    .help("relative paths start at the directory of the configuration file");
                None
            }
        }
    }

    fn private_key(&mut self, table: &Table, key: &'static str) -> Option<Credential> {
        let credential = self.credential(table, key)?;
        if is_readable_by_others(&credential.path) {
            let (name, file) = (table.full_name(key), credential.path.display());
            let message = format!("{name}: {file} can be read by every user of this machine");
            self.report
                .warning(&credential.span, message)
                .help(format!("chmod 600 {file}"));
        }
        Some(credential)
    }

    /// Says which file is to blame.
    fn bad_credential(
        &mut self,
        table: &Table,
        error: &CredentialError,
        cert: Option<&Credential>,
        key: Option<&Credential>,
        ca: Option<&Credential>,
    ) {
        let file = match error {
            CredentialError::Certificate(_) => cert,
            CredentialError::Key(_) => key,
            CredentialError::Authority(_) => ca,
        };
        match file {
            Some(file) => {
                let (name, path) = (table.full_name(file.key), file.path.display());
                self.report
                    .error(&file.span, format!("{name}: {path} {error}"));
            }
            None => {
                let span = table.span.clone().unwrap_or_default();
                self.report.error(&span, format!("backends.tls: {error}"));
            }
        }
    }

    fn lifetime(&mut self, table: &Table, cert: &Credential, facts: &CertificateFacts) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let left = facts.not_after.saturating_sub(now);
        let state = if facts.not_before > now {
            format!("is not valid before {}", date(facts.not_before))
        } else if left <= 0 {
            format!("has expired on {}", date(facts.not_after))
        } else if left < SOON.as_secs() as i64 {
            format!(
                "expires on {}, in {} days",
                date(facts.not_after),
                left / 86_400
            )
        } else {
            return;
        };
        let (name, path) = (table.full_name(cert.key), cert.path.display());
        self.report
            .warning(&cert.span, format!("{name}: {path} {state}"))
            .help("a new file at the same place is taken up by itself");
    }
}

fn date(unix: i64) -> String {
    let at = UNIX_EPOCH + Duration::from_secs(u64::try_from(unix).unwrap_or(0));
    // Of a date so far away that nothing can write it, the number will do.
    let far = unix > 253_402_300_799;
    if far {
        return unix.to_string();
    }
    let text = humantime::format_rfc3339_seconds(at).to_string();
    text.split('T').next().unwrap_or_default().to_owned()
}
