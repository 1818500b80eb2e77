//! What backends are told of the client, and what its first bytes say.

use super::Driver;
use crate::{
    core::{event::NotAdmitted, proxy_header::Source},
    transport::Transport,
};

impl Driver {
    /// Whose connection a backend is told that it is, if it is told.
    pub(super) fn source(&self, transport: &Transport) -> Source {
        if transport.proxy_protocol.is_none() {
            return Source::Own;
        }
        match self.client.as_ref().map(|client| client.local_addr()) {
            Some(Ok(to)) => Source::Client {
                from: self.peer,
                to,
            },
            // It has left, and its sessions go on: they are Taxiway's to look after.
            Some(Err(_)) | None => Source::Own,
        }
    }

    /// The client has come to the wrong port, or has to make room.
    pub(super) fn send_away(&mut self, (reason, detail): (NotAdmitted, &'static str)) {
        self.not_admitted = Some(reason);
        self.gone_why = Some(detail);
        self.client_gone = true;
    }
}
