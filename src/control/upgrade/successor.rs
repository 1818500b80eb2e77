//! The new process's side: asks for the sockets, learns what is remembered, takes over.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use thiserror::Error;
use tokio::{net::UnixStream, time::timeout};

use super::{
    PATIENCE, Primary, RENDEZVOUS, TAKING,
    primary::{Synced, is_alive, pid_of},
    wire::{Wire, WireError},
};
use crate::{
    core::peer::{Instance, Message, Role, VERSIONS, Wish},
    store::Store,
};

/// Why nothing was taken over.
#[derive(Debug, Error)]
pub enum UpgradeError {
    /// Nobody is there.
    #[error(
        "no running Taxiway waits at {path} ({error}); start without --upgrade if there is none"
    )]
    Nobody {
        /// `upgrade.socket`
        path: PathBuf,
        /// What connecting said.
        error: io::Error,
    },
    /// It does not want to.
    #[error("the running Taxiway refuses: {0}")]
    Refused(String),
    /// It broke off, and goes on by itself.
    #[error("the running Taxiway did not hand over: {0}")]
    Broken(#[from] WireError),
}

/// What the running process gives, on the way.
#[derive(Debug)]
pub struct Inheritance {
    wire: Wire,
    instance: Instance,
    sockets: Vec<(String, OwnedFd)>,
    wishes: Vec<(String, Option<Wish>, Option<u32>)>,
}

/// Asks the process that waits at `path` for its sockets.
///
/// # Errors
/// It is not there, or refuses.
pub async fn ask(path: &Path, own: &Instance) -> Result<Inheritance, UpgradeError> {
    let stream = UnixStream::connect(path)
        .await
        .map_err(|error| UpgradeError::Nobody {
            path: path.to_owned(),
            error,
        })?;
    let asking = async {
        let hello = Message::Hello {
            versions: VERSIONS.to_vec(),
            role: Role::Successor,
            instance: own.clone(),
            taxiway: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let mut wire = Wire::new(stream);
        wire.write(&[hello]).await?;
        let (answer, sockets) = wire.read_with_sockets().await?;
        Ok((wire, answer, sockets))
    };
    let answer = timeout(PATIENCE * 2, asking).await;
    let (mut wire, answer, sockets) = answer.unwrap_or(Err(WireError::Late))?;
    if let Message::Refused { reason } = answer {
        return Err(UpgradeError::Refused(reason));
    }
    let Message::Welcome {
        sockets: names,
        instance,
        ..
    } = answer
    else {
        return Err(WireError::Unexpected.into());
    };
    if names.len() != sockets.len() {
        return Err(WireError::Unexpected.into());
    }
    wire.write(&[Message::Received]).await?;
    Ok(Inheritance {
        wire,
        instance,
        sockets: names.into_iter().zip(sockets).collect(),
        wishes: Vec::new(),
    })
}

impl Inheritance {
    /// The process number of the one that is taken over from.
    pub fn pid(&self) -> Option<u32> {
        u32::try_from(pid_of(&self.instance)?).ok()
    }

    /// The sockets of this name.
    pub fn take(&mut self, name: &str) -> Vec<OwnedFd> {
        let (taken, rest) = std::mem::take(&mut self.sockets)
            .into_iter()
            .partition(|(n, _)| n == name);
        self.sockets = rest;
        let taken: Vec<(String, OwnedFd)> = taken;
        taken.into_iter().map(|(_, socket)| socket).collect()
    }

    /// The sockets for [`super::Rendezvous::adopt`].
    pub fn take_rendezvous(&mut self) -> Vec<OwnedFd> {
        self.take(RENDEZVOUS)
    }

    /// Learns what is remembered. Before anything else learns, please.
    ///
    /// # Errors
    /// The running process does not tell.
    pub async fn remember(&mut self, store: &Store) -> Result<(), UpgradeError> {
        let learning = async {
            loop {
                let message = self.wire.read().await?;
                if message == Message::Synced {
                    return Ok(());
                } else if let Message::Remembers {
                    session,
                    remembered,
                } = message
                {
                    store.learn_remembered(&session, remembered);
                } else if let Message::Operator {
                    backend,
                    state,
                    weight,
                } = message
                {
                    self.wishes.push((backend, state, weight));
                } else {
                    return Err(WireError::Unexpected);
                }
            }
        };
        Ok(timeout(TAKING, learning)
            .await
            .unwrap_or(Err(WireError::Late))?)
    }

    /// What operators wanted of backends: name, state, weight.
    pub fn wishes(&mut self) -> Vec<(String, Option<Wish>, Option<u32>)> {
        std::mem::take(&mut self.wishes)
    }

    /// Takes over: when this returns, the running process does not accept any more, everything that
    /// it holds is in the table, and it has linked up.
    ///
    /// # Errors
    /// The running process goes on by itself: this one must not. If it died meanwhile, that is no
    /// error.
    pub async fn take_over(mut self, store: &Store, primary: &Primary) -> Result<(), UpgradeError> {
        let taking = self.inherit(store, primary);
        match timeout(TAKING * 2, taking)
            .await
            .unwrap_or(Err(WireError::Late))
        {
            Ok(()) => {
                primary.serve(self.wire, self.instance, Synced::Already);
                Ok(())
            }
            // Nobody is left who could go on.
            Err(_) if pid_of(&self.instance).is_some_and(|pid| !is_alive(pid)) => Ok(()),
            Err(why) => Err(why.into()),
        }
    }

    async fn inherit(&mut self, store: &Store, primary: &Primary) -> Result<(), WireError> {
        self.wire.write(&[Message::TakeOver]).await?;
        // It may hold nothing, and is one of the processes all the same.
        let former = primary.holder_of(&self.instance);
        loop {
            let message = self.wire.read().await?;
            if message == Message::Synced {
                break;
            } else if let Message::Holds { session, of, held } = message {
                let holder = of.map_or(former, |of| primary.holder_of(&of));
                store.peer_holds(holder, &session, &held);
            } else if let Message::Remembers {
                session,
                remembered,
            } = message
            {
                store.learn_remembered(&session, remembered);
            } else if let Message::Moved { backend, sessions } = message {
                store.learn_moved(&backend, sessions);
            } else {
                return Err(WireError::Unexpected);
            }
        }
        self.wire.write(&[Message::Taken]).await?;
        super::expect(&mut self.wire, &Message::Retired).await
    }
}
