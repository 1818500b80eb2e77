//! Why a TLS handshake or connection failed, in words for whoever has to mend it.

#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "enums of other crates, of which a few variants say something here"
)]

use std::{fmt, io};

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

/// Whose certificate, or what else, it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Blame {
    /// The peer's certificate, or that it showed none.
    PeerCertificate,
    /// Ours, as the peer judges it.
    OwnCertificate,
    /// The peer does not speak TLS.
    NotTls,
    /// Anything else.
    Other,
}

/// A failure of TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What failed.
    pub blame: Blame,
    /// Says it, behind "its certificate …" and the like, in one line.
    text: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Fault {}

impl Fault {
    /// Of an error that a TLS connection gave; none if it is the network's.
    pub fn of(error: &io::Error) -> Option<Self> {
        let inner = error.get_ref()?;
        if let Some(fault) = inner.downcast_ref::<Self>() {
            return Some(fault.clone());
        }
        inner.downcast_ref::<Error>().map(Self::explain)
    }

    /// The peer ended the connection in the middle of the handshake.
    pub(super) fn cut() -> Self {
        let text = "it closed the connection during the TLS handshake; does it speak TLS?";
        Self::new(Blame::NotTls, text)
    }

    fn new(blame: Blame, text: impl Into<String>) -> Self {
        Self {
            blame,
            text: text.into(),
        }
    }

    fn explain(error: &Error) -> Self {
        match error {
            Error::InvalidCertificate(why) => Self::new(Blame::PeerCertificate, certificate(why)),
            Error::NoCertificatesPresented => {
                Self::new(Blame::PeerCertificate, "it showed no certificate")
            }
            Error::InvalidMessage(
                InvalidMessage::InvalidContentType
                | InvalidMessage::UnknownProtocolVersion
                | InvalidMessage::MessageTooLarge
                | InvalidMessage::InvalidEmptyPayload,
            ) => Self::new(Blame::NotTls, "what it speaks is not TLS"),
            Error::AlertReceived(alert) => alerted(*alert),
            Error::PeerIncompatible(why) => {
                Self::new(Blame::Other, format!("no common ground for TLS: {why:?}"))
            }
            other => Self::new(Blame::Other, format!("TLS failed: {other}")),
        }
    }
}

fn certificate(why: &CertificateError) -> String {
    match why {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet; are the clocks right?".to_owned()
        }
        // One made anew under the same name is another one as well.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its certificate is of another authority than the one trusted here".to_owned()
        }
        CertificateError::NotValidForName => "its certificate is for another name".to_owned(),
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => format!(
            "its certificate is for another name than {}: it is for {}",
            expected.to_str(),
            presented.join(", ")
        ),
        CertificateError::Revoked => "its certificate is revoked".to_owned(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate is not for this purpose (extended key usage)".to_owned()
        }
        other => format!("its certificate cannot be accepted: {other}"),
    }
}

fn alerted(alert: AlertDescription) -> Fault {
    use AlertDescription as A;
    let own = |text: &str| Fault::new(Blame::OwnCertificate, text);
    match alert {
        A::CertificateRequired => own("it wants a client certificate, and none was shown"),
        A::UnknownCA => own("it refuses our certificate: of an authority that it does not trust"),
        A::CertificateExpired => own("it refuses our certificate: expired"),
        // A signature that does not fit: of an authority of the same name.
        A::DecryptError => own("it refuses our certificate: of another authority"),
        A::BadCertificate | A::UnsupportedCertificate | A::CertificateUnknown => {
            own("it refuses our certificate")
        }
        A::AccessDenied => own("it refuses our certificate: access denied"),
        other => Fault::new(
            Blame::Other,
            format!("it ended TLS with the alert {other:?}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_in_words_and_by_whose_fault_they_are() {
        let wrap = |error: Error| io::Error::new(io::ErrorKind::InvalidData, error);
        for (error, blame, words) in [
            (
                Error::InvalidCertificate(CertificateError::Expired),
                Blame::PeerCertificate,
                "expired",
            ),
            (
                Error::InvalidCertificate(CertificateError::UnknownIssuer),
                Blame::PeerCertificate,
                "another authority",
            ),
            (
                Error::NoCertificatesPresented,
                Blame::PeerCertificate,
                "no certificate",
            ),
            (
                Error::InvalidMessage(InvalidMessage::InvalidContentType),
                Blame::NotTls,
                "not TLS",
            ),
            (
                Error::AlertReceived(AlertDescription::CertificateRequired),
                Blame::OwnCertificate,
                "wants a client certificate",
            ),
            (
                Error::AlertReceived(AlertDescription::HandshakeFailure),
                Blame::Other,
                "HandshakeFailure",
            ),
        ] {
            let fault = Fault::of(&wrap(error)).unwrap();
            assert_eq!(fault.blame, blame, "{fault}");
            assert!(fault.to_string().contains(words), "{fault}");
        }
        assert_eq!(Fault::of(&io::ErrorKind::ConnectionReset.into()), None);
        let again = io::Error::other(Fault::cut());
        assert_eq!(Fault::of(&again), Some(Fault::cut()));
    }
}
