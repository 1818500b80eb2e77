//! The multiplexer between a fake client and fake backends, under a virtual clock.

#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "a test picks the few outputs it is about"
)]

mod admission;
mod chunks;
mod ends;
mod failover;
mod gate;
mod input;
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
mod told;
mod turns;
