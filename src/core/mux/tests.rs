//! The multiplexer between a fake client and fake backends, under a virtual clock.

#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "a test picks the few outputs it is about"
)]

use std::{cell::RefCell, sync::Arc, time::Instant};

use super::{Commons, Mux, Over, Settings, session::Entry, upstream::Upstream};
use crate::core::{
    id::{ConnectionId, SessionId},
    identity::{Person, Principal},
    turnlock::{Ask, Locks, Verdict},
};

mod aborts;
mod admission;
mod again;
mod chunks;
mod doubtful;
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
    fn enter(&self, _: &Settings, _: Option<&Arc<Principal>>) -> Result<(), Over> {
        Ok(())
    }

    fn spend(&self, _: &Settings, _: usize) -> Result<(), Over> {
        Ok(())
    }

    fn seat_session(&self, _: &Settings, _: &SessionId) -> Result<(), Over> {
        Ok(())
    }

    fn may_open(&self, _: &Settings) -> Result<(), Over> {
        Ok(())
    }

    fn seat_turn(&self, _: &Settings, _: &SessionId) -> Result<(), Over> {
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

    fn may_be_new(&self, _: &Settings, session: &str) -> bool {
        !session.starts_with("of-another-")
    }
}

/// One of each belongs to a connection with one session, of which there may be thousands that do
/// nothing. What is needed for a while only stands behind a pointer, or is lent.
#[test]
fn an_idle_machine_takes_no_more_than_it_did() {
    assert!(size_of::<Mux>() <= 688, "{}", size_of::<Mux>());
    assert!(size_of::<Entry>() <= 304, "{}", size_of::<Entry>());
    assert!(size_of::<Upstream>() <= 176, "{}", size_of::<Upstream>());
}
