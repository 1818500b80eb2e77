//! The files that the companion, and `taxiway ping`, are given on the command line.

use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::transport::{ClientFiles, Connector, CredentialError, read_file};

/// Certificates and keys for connections to a server.
#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    /// Authorities of its certificate; none = those of the system.
    pub ca: Option<PathBuf>,
    /// Own certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// What its certificate has to be for; none = the host that is connected to.
    pub server_name: Option<String>,
}

/// Which of them cannot be used.
#[derive(Debug, Error)]
pub enum BadFile {
    /// It cannot be read.
    #[error("{path} cannot be read: {reason}")]
    Unread {
        /// Which.
        path: String,
        /// Why.
        reason: std::io::Error,
    },
    /// Of no use.
    #[error("{path} {reason}")]
    Useless {
        /// Which.
        path: String,
        /// Why.
        reason: CredentialError,
    },
}

impl TlsFiles {
    /// All of them, to watch.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        let identity = self.identity.iter().flat_map(|(cert, key)| [cert, key]);
        self.ca.iter().chain(identity).cloned().collect()
    }

    /// Reads them.
    ///
    /// # Errors
    /// The first that cannot be used.
    pub fn connector(&self) -> Result<Connector, BadFile> {
        let read = |path: &Path| {
            read_file(path).map_err(|reason| BadFile::Unread {
                path: path.display().to_string(),
                reason,
            })
        };
        let ca = self.ca.as_deref().map(read).transpose()?;
        let identity = self
            .identity
            .as_ref()
            .map(|(cert, key)| (read(cert), read(key)));
        let identity = match identity {
            Some((cert, key)) => Some((cert?, key?)),
            None => None,
        };
        let files = ClientFiles {
            ca: ca.as_deref(),
            identity: identity.as_ref().map(|(cert, key)| (&cert[..], &key[..])),
        };
        Connector::new(&files, self.server_name.as_deref()).map_err(|reason| {
            let path = match &reason {
                CredentialError::Certificate(_) => self.identity.as_ref().map(|(cert, _)| cert),
                CredentialError::Key(_) => self.identity.as_ref().map(|(_, key)| key),
                CredentialError::Authority(_) => self.ca.as_ref(),
            };
            let path = path.map_or_else(|| "--ca:".to_owned(), |path| path.display().to_string());
            BadFile::Useless { path, reason }
        })
    }
}
