//! The upstream connections of one client connection: at most one per backend.

use std::time::Instant;

use super::through::Through;
use crate::core::{
    frame::{Cutter, FrameLimits},
    id::{BackendName, SessionId},
    idmap::RequestId,
    rare::Rare,
    route::Class,
};

/// One place for an upstream connection. The generation tells a new tenant from the old one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SlotId {
    index: u32,
    generation: u32,
}

impl SlotId {
    /// Position in the shell's table of sockets.
    pub fn index(self) -> usize {
        self.index as usize
    }

    #[cfg(test)]
    pub(super) fn for_test(index: u32) -> Self {
        Self {
            index,
            generation: 0,
        }
    }
}

/// How far an upstream connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// The shell connects.
    Connecting,
    /// Our `connect` call is out.
    Handshaking,
    /// Frames pass.
    Ready,
}

/// A frame that waits for the handshake, with the call it belongs to so that it can go elsewhere
/// when the backend cannot be reached.
#[derive(Debug)]
pub(super) struct Waiting {
    /// Of the client; none for a notification, and for a call of our own.
    pub(super) call: Option<RequestId>,
    pub(super) body: Vec<u8>,
}

/// A call that its backend owes an answer which the client has got from Taxiway.
#[derive(Debug)]
pub(super) struct GivenUp {
    pub(super) class: Class,
    pub(super) session: Option<SessionId>,
}

/// One upstream connection.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) backend: BackendName,
    pub(super) phase: Phase,
    pub(super) cutter: Cutter,
    /// In order; empty once ready.
    pub(super) waiting: Vec<Waiting>,
    /// Calls of the client that this backend owes an answer.
    pub(super) calls: usize,
    /// Sessions that this connection is attached to, or about to be.
    pub(super) attached: usize,
    /// Connect and handshake end by then.
    pub(super) deadline: Option<Instant>,
    /// Since when nothing needs it.
    pub(super) idle_since: Option<Instant>,
    /// The start of a frame has come, and its end has not.
    pub(super) in_frame: bool,
    /// That frame is taken as it arrives; mostly none is.
    pub(super) through: Option<Box<Through>>,
    /// Since when it was found to be silent; until it speaks again.
    pub(super) silent: Option<Instant>,
    /// Calls that were answered by Taxiway: its own answer is swallowed.
    /// They count against `limits.calls_per_connection`.
    pub(super) given_up: Rare<RequestId, GivenUp>,
    /// Key of the session whose event came last: the next one is mostly of the same session.
    pub(super) recent: usize,
}

impl Upstream {
    pub(super) fn is_idle(&self) -> bool {
        self.phase == Phase::Ready
            && self.calls == 0
            && self.attached == 0
            && self.through.is_none()
    }

    /// Starts or stops the clock after which an unused connection is closed.
    pub(super) fn note_idle(&mut self, now: Instant) {
        if self.is_idle() {
            self.idle_since.get_or_insert(now);
        } else {
            self.idle_since = None;
        }
    }
}

/// The table of slots.
#[derive(Debug, Default)]
pub(super) struct Upstreams {
    slots: Vec<(u32, Option<Upstream>)>,
}

impl Upstreams {
    /// A new upstream connection to `backend`, not yet connected.
    pub(super) fn open(
        &mut self,
        backend: BackendName,
        limits: FrameLimits,
        deadline: Instant,
    ) -> SlotId {
        let upstream = Upstream {
            backend,
            phase: Phase::Connecting,
            cutter: Cutter::new(limits),
            waiting: Vec::new(),
            calls: 0,
            attached: 0,
            deadline: Some(deadline),
            idle_since: None,
            in_frame: false,
            through: None,
            silent: None,
            given_up: Rare::default(),
            recent: usize::MAX,
        };
        let index = match self.slots.iter().position(|(_, u)| u.is_none()) {
            Some(free) => free,
            None => {
                // Few backends: a connection has what it needs, and an idle one no more.
                self.slots.reserve_exact(1);
                self.slots.push((0, None));
                self.slots.len() - 1
            }
        };
        let slot = &mut self.slots[index];
        slot.0 = slot.0.wrapping_add(1);
        slot.1 = Some(upstream);
        SlotId {
            index: u32::try_from(index).expect("fewer slots than backends"),
            generation: slot.0,
        }
    }

    pub(super) fn get(&self, id: SlotId) -> Option<&Upstream> {
        let (generation, upstream) = self.slots.get(id.index())?;
        upstream.as_ref().filter(|_| *generation == id.generation)
    }

    pub(super) fn get_mut(&mut self, id: SlotId) -> Option<&mut Upstream> {
        let (generation, upstream) = self.slots.get_mut(id.index())?;
        upstream.as_mut().filter(|_| *generation == id.generation)
    }

    pub(super) fn remove(&mut self, id: SlotId) -> Option<Upstream> {
        let (generation, upstream) = self.slots.get_mut(id.index())?;
        if *generation == id.generation {
            upstream.take()
        } else {
            None
        }
    }

    /// The upstream connection to `backend`, if there is one.
    pub(super) fn find(&self, backend: &BackendName) -> Option<SlotId> {
        self.iter()
            .find(|(_, u)| u.backend == *backend)
            .map(|(id, _)| id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (SlotId, &Upstream)> {
        self.slots
            .iter()
            .enumerate()
            .filter_map(|(index, (generation, upstream))| {
                let index = u32::try_from(index).ok()?;
                Some((
                    SlotId {
                        index,
                        generation: *generation,
                    },
                    upstream.as_ref()?,
                ))
            })
    }

    /// Whether some backend still owes an answer to a call of this id that was given up.
    pub(super) fn owe(&self, id: &RequestId) -> bool {
        self.iter().any(|(_, u)| u.given_up.contains_key(id))
    }

    /// Calls that were given up and not answered by their backend yet.
    pub(super) fn given_up(&self) -> usize {
        self.iter().map(|(_, u)| u.given_up.len()).sum()
    }

    pub(super) fn ids(&self) -> Vec<SlotId> {
        self.iter().map(|(id, _)| id).collect()
    }
}
