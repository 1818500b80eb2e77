//! Certificates, keys and authorities out of PEM files: read, and looked at.
//!
//! Proves nothing; `tls` builds what a handshake needs.

#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "enums of other crates, of which a few variants say something here"
)]

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
};
use thiserror::Error;
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
};

/// A bundle of all public authorities is a quarter of that.
const LARGEST_FILE: u64 = 1 << 20;

/// Names of one certificate that are looked at.
const MOST_NAMES: usize = 100;

/// What is wrong with a file.
#[derive(Debug, Error)]
pub enum CredentialError {
    /// With the chain that is shown to the peer.
    #[error("{0}")]
    Certificate(String),
    /// With its key.
    #[error("{0}")]
    Key(String),
    /// With the authorities that the peer is judged by.
    #[error("{0}")]
    Authority(String),
}

/// Reads a file of certificates or keys.
///
/// # Errors
/// It cannot be read, is no file, or larger than any such file.
pub fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    // A FIFO or device could keep a reload waiting for ever.
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(LARGEST_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    Ok(bytes)
}

/// What a certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// From then on it counts, in Unix time.
    pub not_before: i64,
    /// Until then.
    pub not_after: i64,
    /// DNS names, URIs and mail addresses it is for, then the common name; each once.
    pub names: Vec<String>,
}

/// Looks at a certificate; none if it is none.
pub fn facts(certificate: &[u8]) -> Option<CertificateFacts> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let validity = certificate.validity();
    let alternative = certificate
        .extensions()
        .iter()
        .filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        })
        .flatten()
        .filter_map(|name| match name {
            GeneralName::DNSName(text) | GeneralName::URI(text) | GeneralName::RFC822Name(text) => {
                Some(*text)
            }
            _ => None,
        });
    let common = certificate
        .subject()
        .iter_common_name()
        .filter_map(|name| name.as_str().ok());
    let mut names: Vec<String> = Vec::new();
    for name in alternative.chain(common).take(MOST_NAMES) {
        if !name.is_empty() && !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    Some(CertificateFacts {
        not_before: validity.not_before.timestamp(),
        not_after: validity.not_after.timestamp(),
        names,
    })
}

/// The chain of a file, own certificate first.
pub(super) fn chain(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, CredentialError> {
    let fault = |what: String| CredentialError::Certificate(what);
    let chain = certificates(text).map_err(|what| fault(what.to_owned()))?;
    if chain.iter().any(|certificate| facts(certificate).is_none()) {
        return Err(fault(
            "holds something that is no X.509 certificate".to_owned(),
        ));
    }
    Ok(chain)
}

/// The one key of a file.
pub(super) fn key(text: &[u8]) -> Result<PrivateKeyDer<'static>, CredentialError> {
    PrivateKeyDer::from_pem_slice(text).map_err(|error| {
        let what = match error {
            pem::Error::NoItemsFound if looks_encrypted(text) => {
                "holds an encrypted key, which nobody could unlock at a restart; write it without \
                 a passphrase, readable by Taxiway's user only"
            }
            pem::Error::NoItemsFound => "holds no private key in PEM form (PKCS#8, PKCS#1, SEC1)",
            _ => "is not PEM",
        };
        CredentialError::Key(what.to_owned())
    })
}

fn looks_encrypted(text: &[u8]) -> bool {
    memchr::memmem::find(text, b"ENCRYPTED").is_some()
}

/// The authorities of a file.
pub(super) fn authorities(text: &[u8]) -> Result<RootCertStore, CredentialError> {
    let fault = |what: &str| CredentialError::Authority(what.to_owned());
    let mut roots = RootCertStore::empty();
    for certificate in certificates(text).map_err(fault)? {
        roots
            .add(certificate)
            .map_err(|_| fault("holds something that is no certificate of an authority"))?;
    }
    Ok(roots)
}

/// The authorities that this system trusts.
pub(super) fn system_authorities() -> Result<RootCertStore, CredentialError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (taken, _) = roots.add_parsable_certificates(found.certs);
    if taken == 0 {
        let what = "this system has no certificates of authorities; name a file with `ca`";
        return Err(CredentialError::Authority(what.to_owned()));
    }
    Ok(roots)
}

fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    match certificates {
        Err(_) => Err("is not PEM"),
        Ok(list) if list.is_empty() => Err("holds no certificate in PEM form"),
        Ok(list) => Ok(list),
    }
}
