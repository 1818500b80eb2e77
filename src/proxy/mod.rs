//! Data plane: client connections and their upstream connections. No routing choice, no file, no
//! HTTP.

mod desk;
mod doorbook;
pub mod doorman;
pub mod driver;
mod error_lines;
mod front;
pub mod hub;
pub mod listener;
pub mod lobby;
mod locator;
pub mod mover;
mod outbuf;
mod pacer;
pub mod port;
pub mod providers;
pub mod quota;
pub mod readbuf;
mod relay;
mod services;
mod sight;

use std::sync::Arc;

use arc_swap::ArcSwap;

pub use self::{
    doorman::Doorman, front::Front, hub::Hub, mover::Moves, pacer::Pacer, port::Pool,
    providers::Providers, quota::Quota,
};
use crate::{
    core::{
        balance::Policy,
        credential::Principals,
        event::Event,
        identity::{Principal, Role},
        locate,
        mux::Settings,
        strangers::Bounds,
    },
    observe::Observer,
    store::Store,
};

/// What every connection is given.
#[derive(Clone)]
pub struct Shared {
    /// The control plane, as far as the data plane may see it.
    pub pool: Arc<dyn Pool>,
    /// The directory of sessions.
    pub store: Store,
    /// Where what happened goes.
    pub observer: Observer,
    /// News for all connections.
    pub hub: Hub,
    /// The configuration in force.
    pub rules: Arc<ArcSwap<Rules>>,
    /// Who is the process-wide provider of the pool.
    pub providers: Providers,
    /// How many sessions a backend opens again at a time.
    pub pacer: Pacer,
    /// Sessions that are being moved.
    pub moves: Moves,
    /// What each user uses.
    pub quota: Quota,
    /// Who lets clients in.
    pub doorman: Doorman,
}

impl Shared {
    /// Says so if sessions were not moved because backends have too many to close already.
    fn report_unmoved(&self) {
        if self.store.lock().take_unmoved() > 0 {
            self.observer.record(&Event::LimitHit {
                connection: None,
                limit: "moved_sessions",
            });
        }
    }
}

/// The part of the configuration that the data plane obeys. Replaced whole by a reload.
#[derive(Clone, Debug)]
pub struct Rules {
    /// What each multiplexer obeys.
    pub mux: Settings,
    /// Who is let in.
    pub principals: Arc<Principals>,
    /// How new sessions are placed.
    pub policy: Policy,
    /// Sticky placement hashes the user, where a session's id tells one.
    pub key_is_user: bool,
    /// Route each session by itself, or a whole connection by its first key.
    pub by_connection: bool,
    /// How long questions to several backends wait for a silent one.
    pub aggregate_timeout: std::time::Duration,
    /// Keep-alive probes on both legs.
    pub tcp_keepalive: Option<std::time::Duration>,
    /// A peer that reads nothing for so long with a full buffer is given up.
    pub write_stall: std::time::Duration,
    /// What connections have to pass before their first frame.
    pub front: Arc<Front>,
    /// Client connections at a time.
    pub connections: usize,
    /// How many of them may not have proved yet who they are; none = nobody has to.
    pub strangers: Option<Bounds>,
    /// How long a drained backend keeps what runs there.
    pub drain_timeout: std::time::Duration,
}

impl Rules {
    /// What sticky placement hashes for this session, or for a new one under this id: the user that
    /// opens it for himself, else the one that the id names, else the id.
    pub fn key_of<'a>(&self, session: &'a str, opener: Option<&'a Principal>) -> &'a str {
        let user = self.key_is_user.then(|| {
            let himself = opener.filter(|opener| opener.role == Role::User);
            himself
                .map(|opener| &*opener.user)
                .or_else(|| self.mux.access.user_of(session))
        });
        locate::routing_key(user.flatten(), session)
    }
}
