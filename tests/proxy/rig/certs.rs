//! Authorities, certificates, and TLS by hand on either side of the proxy.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{Arc, Mutex},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

/// An authority.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM form.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(crate) fn pair(&self, name: &str) -> Pair {
        self.pair_until(name, 4000)
    }

    /// Valid until the start of that year.
    pub(crate) fn pair_until(&self, name: &str, year: i32) -> Pair {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.0).unwrap();
        Pair {
            cert: cert.pem(),
            key: key.serialize_pem(),
        }
    }
}

/// Puts a file there at once, whole.
pub(crate) fn put(folder: &Path, name: &str, text: &str) {
    let new = folder.join(format!("{name}.new"));
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(new, folder.join(name)).unwrap();
}

/// `name.pem` and `name.key`.
pub(crate) fn put_pair(folder: &Path, name: &str, pair: &Pair) {
    put(folder, &format!("{name}.key"), &pair.key);
    put(folder, &format!("{name}.pem"), &pair.cert);
}

fn chain(pem: &str) -> Vec<CertificateDer<'static>> {
    let chain = CertificateDer::pem_slice_iter(pem.as_bytes());
    chain.collect::<Result<_, _>>().unwrap()
}

fn key(pem: &str) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap()
}

fn roots(pem: &str) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in chain(pem) {
        roots.add(certificate).unwrap();
    }
    Arc::new(roots)
}

/// A client of TLS.
#[derive(Clone)]
pub(crate) struct Secure(TlsConnector);

impl Secure {
    /// That trusts this authority, and shows this certificate.
    pub(crate) fn new(ca: &str, own: Option<&Pair>) -> Self {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots(ca));
        let config = match own {
            Some(own) => builder
                .with_client_auth_cert(chain(&own.cert), key(&own.key))
                .unwrap(),
            None => builder.with_no_client_auth(),
        };
        Self(TlsConnector::from(Arc::new(config)))
    }

    pub(crate) async fn connect(&self, address: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        self.over(stream).await
    }

    pub(crate) async fn over(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from("localhost").unwrap();
        self.0.connect(name, stream).await
    }
}

/// What stands in front of a server that speaks neither TLS nor the PROXY protocol.
pub(crate) struct Gate {
    pub(crate) address: SocketAddr,
    /// The PROXY headers that came.
    headers: Arc<Mutex<Vec<Vec<u8>>>>,
    task: JoinHandle<()>,
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Gate {
    /// Wants a PROXY header of version 2 if told so, then TLS with a certificate of `ca` if there
    /// is one to show.
    pub(crate) async fn before(
        server: SocketAddr,
        wants_header: bool,
        tls: Option<(&Pair, &str)>,
    ) -> Self {
        let acceptor = tls.map(|(own, ca)| {
            let provider = Arc::new(ring::default_provider());
            let verifier = WebPkiClientVerifier::builder_with_provider(roots(ca), provider.clone());
            let config = ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_client_cert_verifier(verifier.build().unwrap())
                .with_single_cert(chain(&own.cert), key(&own.key))
                .unwrap();
            TlsAcceptor::from(Arc::new(config))
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let headers = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let seen = headers.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, seen) = (acceptor.clone(), seen.clone());
                tokio::spawn(async move {
                    // What fails shows at the other end.
                    let _ended = pass(stream, server, wants_header, acceptor, &seen).await;
                });
            }
        });
        Self {
            address,
            headers,
            task,
        }
    }

    pub(crate) fn headers(&self) -> Vec<Vec<u8>> {
        self.headers.lock().unwrap().clone()
    }
}

async fn pass(
    mut stream: TcpStream,
    server: SocketAddr,
    wants_header: bool,
    acceptor: Option<TlsAcceptor>,
    seen: &Mutex<Vec<Vec<u8>>>,
) -> io::Result<()> {
    if wants_header {
        let mut header = vec![0; 16];
        stream.read_exact(&mut header).await?;
        let rest = usize::from(u16::from_be_bytes([header[14], header[15]]));
        header.resize(16 + rest, 0);
        stream.read_exact(&mut header[16..]).await?;
        seen.lock().unwrap().push(header);
    }
    let mut server = TcpStream::connect(server).await?;
    match acceptor {
        Some(acceptor) => {
            let mut stream = acceptor.accept(stream).await?;
            tokio::io::copy_bidirectional(&mut stream, &mut server).await?;
        }
        None => {
            tokio::io::copy_bidirectional(&mut stream, &mut server).await?;
        }
    }
    server.shutdown().await
}
