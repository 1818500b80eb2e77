//! TLS for connections that come in and go out: built from files, the handshake done, 1.2 and 1.3.
//!
//! Reads no file and watches none: whoever has new files builds anew, and swaps.

use std::{fmt, sync::Arc};

use rustls::{
    ClientConfig, ServerConfig,
    crypto::CryptoProvider,
    pki_types::ServerName,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::CertifiedKey,
};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::{
    credentials::{self, CertificateFacts, CredentialError},
    fault::Fault,
    stream::Stream,
};

/// What is asked of a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClientAuth {
    /// No certificate.
    None,
    /// One that is good, if it has any.
    Optional,
    /// One that is good.
    Required,
}

/// What the files for incoming connections hold.
#[derive(Clone, Copy, Debug)]
pub struct ServerFiles<'a> {
    /// Own certificate, then those between it and its authority.
    pub cert: &'a [u8],
    /// Its key.
    pub key: &'a [u8],
    /// Authorities of clients' certificates.
    pub client_ca: Option<&'a [u8]>,
    /// Without `client_ca` there is nothing to judge by: no certificate is asked for.
    pub client_auth: ClientAuth,
}

/// What the files for outgoing connections hold.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClientFiles<'a> {
    /// Authorities of the server's certificate; none = those of the system.
    pub ca: Option<&'a [u8]>,
    /// Own certificate and its key.
    pub identity: Option<(&'a [u8], &'a [u8])>,
}

/// Makes a hash that tells one set of files from another.
struct Print(Sha256);

impl Print {
    fn new() -> Self {
        Self(Sha256::new())
    }

    fn add(mut self, part: Option<&[u8]>) -> Self {
        self.0
            .update((part.map_or(u64::MAX, |p| p.len() as u64)).to_be_bytes());
        self.0.update(part.unwrap_or_default());
        self
    }

    fn done(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

/// TLS for incoming connections. Equal if it was made of the same files.
#[derive(Clone)]
pub struct Acceptor {
    config: Arc<ServerConfig>,
    facts: CertificateFacts,
    print: [u8; 32],
}

impl Acceptor {
    /// Of these files.
    ///
    /// # Errors
    /// What is wrong with which.
    pub fn new(files: &ServerFiles<'_>) -> Result<Self, CredentialError> {
        let provider = provider();
        let own = own(files.cert, files.key, &provider)?;
        let facts = own_facts(&own);
        let verifier: Arc<dyn ClientCertVerifier> = match (files.client_ca, files.client_auth) {
            (None, _) | (_, ClientAuth::None) => WebPkiClientVerifier::no_client_auth(),
            (Some(ca), wanted) => {
                let roots = Arc::new(credentials::authorities(ca)?);
                let builder = WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
                let builder = match wanted {
                    ClientAuth::Optional => builder.allow_unauthenticated(),
                    ClientAuth::Required | ClientAuth::None => builder,
                };
                builder
                    .build()
                    .map_err(|error| CredentialError::Authority(error.to_string()))?
            }
        };
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for TLS 1.2 and 1.3")
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(own)));
        let auth = [files.client_auth as u8];
        Ok(Self {
            config: Arc::new(config),
            facts,
            print: Print::new()
                .add(Some(files.cert))
                .add(Some(files.key))
                .add(files.client_ca)
                .add(Some(&auth))
                .done(),
        })
    }

    /// Of the certificate that clients see; the end of the chain's shortest life.
    pub fn facts(&self) -> &CertificateFacts {
        &self.facts
    }

    /// Does the handshake. Takes as long as the client does: the caller sets the limit.
    ///
    /// # Errors
    /// Of TLS as a [`Fault`], else the network's.
    pub async fn accept(&self, tcp: TcpStream) -> std::io::Result<Stream> {
        let accepted = TlsAcceptor::from(self.config.clone()).accept(tcp).await;
        let stream = accepted.map_err(told)?;
        Ok(Stream::of_tls(TlsStream::Server(stream)))
    }
}

impl PartialEq for Acceptor {
    fn eq(&self, other: &Self) -> bool {
        self.print == other.print
    }
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Acceptor").field(&self.facts.names).finish()
    }
}

/// TLS for outgoing connections. Equal if it was made of the same files, for the same name.
#[derive(Clone)]
pub struct Connector {
    config: Arc<ClientConfig>,
    /// What the server's certificate has to be for; none = the host that is connected to.
    name: Option<ServerName<'static>>,
    facts: Option<CertificateFacts>,
    print: [u8; 32],
}

impl Connector {
    /// Of these files, for a server of that name; none = the host that is connected to.
    ///
    /// # Errors
    /// What is wrong with which. A name that is none is taken for none: see [`is_server_name`].
    pub fn new(files: &ClientFiles<'_>, name: Option<&str>) -> Result<Self, CredentialError> {
        let provider = provider();
        let roots = match files.ca {
            Some(ca) => credentials::authorities(ca)?,
            None => credentials::system_authorities()?,
        };
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for TLS 1.2 and 1.3")
            .with_root_certificates(roots);
        let (config, facts) = match files.identity {
            None => (builder.with_no_client_auth(), None),
            Some((cert, key)) => {
                let own = own(cert, key, &provider)?;
                let facts = own_facts(&own);
                let resolver = rustls::sign::SingleCertAndKey::from(own);
                let config = builder.with_client_cert_resolver(Arc::new(resolver));
                (config, Some(facts))
            }
        };
        Ok(Self {
            config: Arc::new(config),
            name: name.and_then(server_name),
            facts,
            print: Print::new()
                .add(files.ca)
                .add(files.identity.map(|(cert, _)| cert))
                .add(files.identity.map(|(_, key)| key))
                .add(name.map(str::as_bytes))
                .done(),
        })
    }

    /// Of the certificate that is shown to the server, if there is one.
    pub fn facts(&self) -> Option<&CertificateFacts> {
        self.facts.as_ref()
    }

    /// Does the handshake with what was reached at `address` (`host:port`).
    pub(super) async fn connect(&self, tcp: TcpStream, address: &str) -> std::io::Result<Stream> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => server_name(host(address)).ok_or(std::io::ErrorKind::InvalidInput)?,
        };
        let connector = TlsConnector::from(self.config.clone());
        let stream = connector.connect(name, tcp).await.map_err(told)?;
        Ok(Stream::of_tls(TlsStream::Client(stream)))
    }
}

impl PartialEq for Connector {
    fn eq(&self, other: &Self) -> bool {
        self.print == other.print
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connector").field(&self.name).finish()
    }
}

/// Whether a certificate could be for that: a DNS name or an IP address.
pub fn is_server_name(text: &str) -> bool {
    server_name(text).is_some()
}

fn server_name(text: &str) -> Option<ServerName<'static>> {
    let text = text.strip_suffix('.').unwrap_or(text);
    ServerName::try_from(text.to_owned()).ok()
}

fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_matches(['[', ']'])
}

/// Given to everything by hand: two providers in one program make a default impossible.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A certificate and the key that fits.
fn own(
    cert: &[u8],
    key: &[u8],
    provider: &CryptoProvider,
) -> Result<CertifiedKey, CredentialError> {
    let chain = credentials::chain(cert)?;
    let key = credentials::key(key)?;
    CertifiedKey::from_der(chain, key, provider).map_err(|error| {
        let what = if matches!(error, rustls::Error::InconsistentKeys(_)) {
            "is not the key of that certificate".to_owned()
        } else {
            format!("cannot be used: {error}")
        };
        CredentialError::Key(what)
    })
}

/// Of a chain: names of the first, life of the shortest.
fn own_facts(own: &CertifiedKey) -> CertificateFacts {
    let mut all = own.cert.iter().filter_map(|c| credentials::facts(c));
    let first = all
        .next()
        .expect("a chain has certificates, and each was looked at");
    all.fold(first, |first, next| CertificateFacts {
        not_before: first.not_before.max(next.not_before),
        not_after: first.not_after.min(next.not_after),
        names: first.names,
    })
}

/// An error of the handshake as a [`Fault`], if TLS made it.
fn told(error: std::io::Error) -> std::io::Error {
    if error.kind() == std::io::ErrorKind::UnexpectedEof {
        return std::io::Error::new(error.kind(), Fault::cut());
    }
    match Fault::of(&error) {
        Some(fault) => std::io::Error::new(std::io::ErrorKind::InvalidData, fault),
        None => error,
    }
}
