//! The running program in front of simulated servers, over real sockets: what clients, operators
//! and backends see of it.
//!
//! Every test starts its own servers and its own `taxiway` on free ports, awaits conditions instead
//! of times, is bounded in time, and leaves nothing behind. Nothing in here looks inside the proxy.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed, and says where"
)]

mod rig;

mod bad_input;
mod by_hand;
mod caps;
mod companion;
mod crash;
mod drain;
mod failover;
mod faults;
mod front;
mod grace;
mod identity;
mod ids;
mod killed;
mod large;
mod leaks;
mod lifecycle;
mod limits;
mod live_config;
mod load;
mod locate;
mod matrix;
mod methods;
mod open_files;
mod placement;
mod pressure;
mod relay;
mod released;
mod reload;
mod rest;
mod secrets;
mod stop;
mod store;
mod strangers;
mod tls;
mod turn_lock;
mod upgrade;
mod users;
