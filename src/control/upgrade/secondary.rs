//! An older process's side of the link: tells what it holds, asks before it opens anything, and
//! finds the newest process again when the link breaks.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{net::UnixStream, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    PATIENCE,
    wire::{self, Wire, WireError},
};
use crate::{
    core::{
        event::{Event, UpgradePhase},
        id::SessionId,
        identity::Person,
        peer::{Instance, Message, Role, VERSIONS, Wish},
    },
    store::Store,
};

/// Between two attempts to link up, at first and at most.
const AGAIN: Duration = Duration::from_millis(50);
const AGAIN_MOST: Duration = Duration::from_secs(1);

/// What an older process does when the newest says so.
pub trait Follower: Send + Sync {
    /// What happened.
    fn record(&self, event: Event);
    /// What an operator wants of a backend.
    fn wish(&self, backend: &str, state: Option<Wish>, weight: Option<u32>);
    /// A session is this person's.
    fn owned(&self, session: &SessionId, person: Person);
    /// Everybody ends.
    fn drain(&self);
}

/// What [`follow`] needs.
pub struct Secondary {
    /// This process.
    pub instance: Instance,
    /// Where the newest process waits.
    pub path: PathBuf,
    /// The table that follows.
    pub store: Store,
    /// Who does as it is told.
    pub follower: Arc<dyn Follower>,
}

/// Follows the newest process until `stop`: first on the link on which it took over.
pub async fn follow(secondary: Secondary, first: Wire, stop: CancellationToken) {
    let mut link = Some((first, false));
    let mut pause = AGAIN;
    let mut told = false;
    while !stop.is_cancelled() {
        if let Some((wire, anew)) = link.take() {
            pause = AGAIN;
            if std::mem::take(&mut told) {
                secondary.report("linked up again");
            }
            let end = secondary.run(wire, anew, &stop).await;
            if stop.is_cancelled() {
                return;
            }
            if let Err(why) = end {
                tracing::debug!(target: "taxiway", %why, "the link to the newest process ended");
            }
        }
        match secondary.connect().await {
            Ok(wire) => link = Some((wire, true)),
            Err(error) => {
                if pause >= AGAIN_MOST && !std::mem::replace(&mut told, true) {
                    secondary.report(&format!("the newest process does not answer: {error}"));
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(AGAIN_MOST);
            }
        }
    }
}

impl Secondary {
    fn report(&self, detail: &str) {
        self.follower.record(Event::Upgrade {
            phase: UpgradePhase::Link,
            peer: None,
            detail: detail.into(),
        });
    }

    async fn connect(&self) -> Result<Wire, WireError> {
        let greet = async {
            let mut wire = Wire::new(UnixStream::connect(&self.path).await?);
            let hello = Message::Hello {
                versions: VERSIONS.to_vec(),
                role: Role::Secondary,
                instance: self.instance.clone(),
                taxiway: env!("CARGO_PKG_VERSION").to_owned(),
            };
            wire.write(&[hello]).await?;
            if let Message::Welcome { .. } = wire.read().await? {
                Ok(wire)
            } else {
                Err(WireError::Unexpected)
            }
        };
        timeout(PATIENCE, greet)
            .await
            .unwrap_or(Err(WireError::Late))
    }

    async fn run(&self, wire: Wire, anew: bool, stop: &CancellationToken) -> Result<(), WireError> {
        let Wire {
            mut read,
            mut write,
        } = wire;
        let store = &self.store;
        if anew {
            store.relink();
        }
        let writing = async {
            let mut synced = !anew;
            loop {
                let lines = store.lines();
                if !lines.is_empty() {
                    wire::write(&mut write, &lines).await?;
                    continue;
                }
                if !std::mem::replace(&mut synced, true) {
                    wire::write(&mut write, &[Message::Synced]).await?;
                }
                tokio::select! {
                    () = store.lines_wait() => {}
                    () = stop.cancelled() => {
                        let rest = store.lines();
                        wire::write(&mut write, &rest).await?;
                        return wire::write(&mut write, &[Message::Leaving]).await;
                    }
                }
            }
        };
        let reading = async {
            loop {
                let message = wire::read(&mut read).await?;
                if let Message::Answer { id, owner, whose } = message {
                    store.answered(id, &owner, whose);
                } else if let Message::Operator {
                    backend,
                    state,
                    weight,
                } = message
                {
                    self.follower.wish(&backend, state, weight);
                } else if let Message::Owned { session, whose } = message {
                    let (session, person) = (SessionId::from(session), Person::from(&whose));
                    if store.learn_owner(&session, &person) {
                        self.follower.owned(&session, person);
                    }
                } else if message == Message::Drain {
                    self.follower.drain();
                } else {
                    return Err(WireError::Unexpected);
                }
            }
        };
        tokio::select! {
            end = writing => end,
            end = reading => end,
        }
    }
}
