//! What a connection has to pass before its first frame: whether its address may connect, the PROXY
//! header, the TLS handshake. All of it in the connection's own task, within one time-out.
//!
//! Reads no frame, and says nothing to a client in its own protocol.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{io::AsyncReadExt, net::TcpStream};

use super::lobby::Seat;
use crate::{
    core::{
        event::{ClosedBy, NotAdmitted},
        network::Networks,
        proxy_header::{self, HeaderError, LONGEST_V2, Parsed, Source},
    },
    transport::{Acceptor, Blame, Fault, Stream},
};

/// First byte of a TLS handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// What has to be passed. Replaced with the other rules by a reload.
#[derive(Clone, Debug, Default)]
pub struct Front {
    /// Where clients may be; none = anywhere.
    pub allow_from: Option<Networks>,
    /// Where the balancers are that write a PROXY header; none = no header is expected.
    pub proxy_from: Option<Networks>,
    /// TLS.
    pub tls: Option<Acceptor>,
    /// All of it together may take so long.
    pub patience: Duration,
}

/// Why a connection is closed: for metrics, and for people.
pub(super) type Closed = (NotAdmitted, String);

impl Front {
    /// Whether the first frame comes first.
    pub(super) fn is_plain(&self) -> bool {
        self.proxy_from.is_none() && self.tls.is_none()
    }

    /// Whether that peer may connect at all: a look at its address, no waiting.
    pub(super) fn admit(&self, peer: SocketAddr) -> Result<(), Closed> {
        match &self.proxy_from {
            Some(from) if from.contains(peer.ip()) => Ok(()),
            Some(_) => {
                let what = "only balancers in listener.proxy_protocol_from may connect";
                Err((NotAdmitted::ProxyFrom, what.to_owned()))
            }
            None => self.allow(peer),
        }
    }

    fn allow(&self, client: SocketAddr) -> Result<(), Closed> {
        match &self.allow_from {
            Some(from) if !from.contains(client.ip()) => {
                let what = "its address is not in listener.allow_from";
                Err((NotAdmitted::AllowFrom, what.to_owned()))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Passes everything; returns the connection, and where its client is. `seat` hears of that as
    /// soon as it is known.
    pub(super) async fn receive(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        seat: Option<&Seat>,
    ) -> Result<(Stream, SocketAddr), (SocketAddr, Closed)> {
        let mut client = peer;
        let passing = self.pass(stream, &mut client, seat);
        let passed = tokio::time::timeout(self.patience, passing).await;
        match passed {
            Ok(Ok(stream)) => Ok((stream, client)),
            Ok(Err(closed)) => Err((client, closed)),
            Err(_) => {
                let what = "no TLS handshake or PROXY header within listener.handshake_timeout";
                Err((client, (NotAdmitted::TimedOut, what.to_owned())))
            }
        }
    }

    async fn pass(
        &self,
        mut tcp: TcpStream,
        client: &mut SocketAddr,
        seat: Option<&Seat>,
    ) -> Result<Stream, Closed> {
        if self.proxy_from.is_some()
            && let Source::Client { from, .. } = read_header(&mut tcp).await?
        {
            *client = SocketAddr::new(from.ip().to_canonical(), from.port());
            self.allow(*client)?;
            if let Some(seat) = seat {
                seat.comes_from(client.ip());
            }
        }
        let Some(tls) = &self.tls else {
            return Ok(Stream::Plain(tcp));
        };
        let mut first = [0; 12];
        match tcp.peek(&mut first).await {
            Ok(0) => return Err(left("before the TLS handshake")),
            Ok(_) if first[0] == TLS_HANDSHAKE => {}
            Ok(n) => return Err(plain_on_tls(&first[..n])),
            Err(error) => return Err(left(&error.to_string())),
        }
        tls.accept(tcp)
            .await
            .map_err(|error| match Fault::of(&error) {
                Some(fault) => {
                    let reason = match fault.blame {
                        Blame::PeerCertificate => NotAdmitted::Certificate,
                        Blame::OwnCertificate | Blame::NotTls | Blame::Other => NotAdmitted::Tls,
                    };
                    (reason, fault.to_string())
                }
                None => left(&error.to_string()),
            })
    }
}

/// What it was that ended before its first frame, or before it had proved who it is.
pub(super) fn came_to_nothing(closed_by: ClosedBy, reason: &str) -> NotAdmitted {
    match closed_by {
        ClosedBy::Client | ClosedBy::Operator => NotAdmitted::Left,
        ClosedBy::Backend | ClosedBy::Proxy if reason.ends_with("listener.handshake_timeout") => {
            NotAdmitted::TimedOut
        }
        ClosedBy::Backend | ClosedBy::Proxy => NotAdmitted::Refused,
    }
}

fn left(why: &str) -> Closed {
    (NotAdmitted::Left, format!("the client left: {why}"))
}

fn plain_on_tls(first: &[u8]) -> Closed {
    let what = if proxy_header::looks_like_header(first) || first.starts_with(b"PROXY ") {
        "this looks like a PROXY header; set listener.proxy_protocol = \"required\" if a balancer \
         is to write it"
    } else {
        "this does not look like TLS, which this port wants; SDKs speak it through \
         `taxiway companion`"
    };
    (NotAdmitted::PlainOnTls, what.to_owned())
}

/// What first bytes on a port without TLS say of a peer that has come to the wrong place.
pub(super) fn stranger(first: &[u8]) -> Option<(NotAdmitted, &'static str)> {
    match first.first()? {
        &TLS_HANDSHAKE => Some((
            NotAdmitted::TlsOnPlain,
            "this looks like TLS; this port speaks plain TCP (no [listener.tls])",
        )),
        b'P' | b'\r' if proxy_header::looks_like_header(first) => Some((
            NotAdmitted::ProxyHeader,
            "this looks like a PROXY header; listener.proxy_protocol is \"off\"",
        )),
        _ => None,
    }
}

/// Takes the header, and no byte that is behind it.
async fn read_header(tcp: &mut TcpStream) -> Result<Source, Closed> {
    let mut header = Vec::new();
    let mut next = vec![0; LONGEST_V2];
    loop {
        let seen = match tcp.peek(&mut next).await {
            Ok(0) => return Err(left("in the PROXY header")),
            Ok(n) => n,
            Err(error) => return Err(left(&error.to_string())),
        };
        let before = header.len();
        header.extend_from_slice(&next[..seen]);
        let (take, source) = match proxy_header::parse(&header) {
            Ok(Parsed::Header { length, source }) => (length - before, Some(source)),
            Ok(Parsed::Incomplete) => (seen, None),
            Err(error) => return Err((NotAdmitted::ProxyHeader, told(&error, &header))),
        };
        let taken = tcp.read_exact(&mut next[..take]).await;
        taken.map_err(|error: io::Error| left(&error.to_string()))?;
        if let Some(source) = source {
            return Ok(source);
        }
    }
}

fn told(error: &HeaderError, bytes: &[u8]) -> String {
    match bytes.first() {
        Some(&TLS_HANDSHAKE) if *error == HeaderError::Missing => {
            format!("{error}: this looks like TLS without one in front")
        }
        Some(_) | None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_known_by_their_first_bytes() {
        for (first, expected) in [
            (&b"\x16\x03\x01\x02\x00"[..], Some(NotAdmitted::TlsOnPlain)),
            (b"\x16", Some(NotAdmitted::TlsOnPlain)),
            (b"PROXY TCP4 1.2.3.4", Some(NotAdmitted::ProxyHeader)),
            (
                b"\r\n\r\n\0\r\nQUIT\n\x21\x11",
                Some(NotAdmitted::ProxyHeader),
            ),
            (b"Content-Length: 2\r\n", None),
            (b"\r\n", None),
            (b"P", None),
            (b"", None),
        ] {
            assert_eq!(
                stranger(first).map(|(reason, _)| reason),
                expected,
                "{first:?}"
            );
        }
    }

    #[test]
    fn who_may_connect_depends_on_who_says_where_the_client_is() {
        let networks = |text| Some(Networks::parse([text]).unwrap());
        let peer = |text: &str| text.parse::<SocketAddr>().unwrap();
        let direct = Front {
            allow_from: networks("10.0.0.0/8"),
            ..Front::default()
        };
        assert!(direct.is_plain());
        assert!(direct.admit(peer("10.1.2.3:4")).is_ok());
        let refused = direct.admit(peer("192.0.2.1:4")).unwrap_err();
        assert_eq!(refused.0, NotAdmitted::AllowFrom);
        let behind = Front {
            proxy_from: networks("192.0.2.1"),
            ..direct
        };
        assert!(!behind.is_plain());
        assert!(behind.admit(peer("192.0.2.1:4")).is_ok());
        let refused = behind.admit(peer("10.1.2.3:4")).unwrap_err();
        assert_eq!(refused.0, NotAdmitted::ProxyFrom);
    }
}
