//! How bytes get to a peer: TCP, the PROXY header in front, TLS around. Both planes and the
//! companion use it.
//!
//! Must not know frames, sessions or configuration files, and keeps nothing open by itself.

mod credentials;
mod dial;
mod fault;
pub mod files;
#[cfg_attr(not(target_os = "linux"), path = "no_pipe.rs")]
mod pipe;
pub mod scratch;
mod splice;
mod stream;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod tls;

pub use self::{
    credentials::{CertificateFacts, CredentialError, facts, read_file},
    dial::{ConnectError, Transport, prepare},
    fault::{Blame, Fault},
    splice::{Halt, Leg, splice},
    stream::{PeerIdentity, Stream},
    tls::{Acceptor, ClientAuth, ClientFiles, Connector, ServerFiles, is_server_name},
};
