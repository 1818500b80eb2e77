//! The multiplexer between a fake client and fake backends, under a virtual clock.

#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "a test picks the few outputs it is about"
)]

use std::{cell::RefCell, sync::Arc, time::Instant};

use super::{Commons, Over};
use crate::core::{
    id::{ConnectionId, SessionId},
    identity::{Person, Principal},
    turnlock::{Ask, Locks, Verdict},
};

mod admission;
mod chunks;
mod ends;
mod failover;
mod gate;
mod heirs;
mod input;
mod locks;
mod loss;
mod moves;
mod parking;
mod reopening;
mod rig;
mod routing;
mod sends;
mod sessions;
mod sight;
mod simulation;
mod survivors;
mod through;
mod told;
mod turns;
mod vouching;

impl Commons for RefCell<Locks> {
    fn enter(&self, _: Option<&Arc<Principal>>) -> Result<(), Over> {
        Ok(())
    }

    fn spend(&self, _: usize) -> Result<(), Over> {
        Ok(())
    }

    fn seat_session(&self, _: &SessionId) -> Result<(), Over> {
        Ok(())
    }

    fn may_open(&self) -> Result<(), Over> {
        Ok(())
    }

    fn seat_turn(&self, _: &SessionId) -> Result<(), Over> {
        Ok(())
    }

    fn ask_turn(&self, now: Instant, session: &SessionId, ask: &Ask) -> Verdict {
        self.borrow_mut().ask(now, session, ask)
    }

    fn may_end_turn(&self, session: &str, by: ConnectionId, user: Option<&Person>) -> bool {
        self.borrow().may_end(session, by, user)
    }

    fn has_others(&self, session: &str, _: ConnectionId) -> bool {
        !session.starts_with("alone-")
    }

    fn is_in_turn(&self, _: Instant, session: &str) -> bool {
        self.borrow().get(session).is_some()
    }

    fn may_be_new(&self, session: &str) -> bool {
        !session.starts_with("of-another-")
    }
}
