//! The simulated Copilot CLI server: `PROTOCOL.md` made runnable.
//!
//! Tests, benches and the start without a config use it where the real program would be too slow,
//! too large, or not there. It follows CLI 1.0.102 in what a client or a proxy can see on the
//! wire: framing and its errors, attach rules, broadcasts, queueing, order of events, texts.
//! `tests/sim_vs_cli.rs` compares the two. It shares nothing with the proxy, not even the parser:
//! a mistake in one must not hide a mistake in the other.
//!
//! A turn is scripted by its prompt: `[[len 200]]` deltas, `[[slow 20]]` ms between them,
//! `[[pad 300]]` bytes each, `[[tool NAME {json}]]`, `[[ask Question?]]`, `[[fail]]`. Without one
//! the reply is a short echo.

mod aggregates;
mod answers;
mod command;
mod connection;
mod conversation;
mod event;
mod framing;
mod home;
mod lifetime;
mod misbehaviour;
mod opening;
mod outbox;
mod script;
mod server;
mod session;
mod state;
mod stream;
mod tool;
mod turn;

#[cfg(test)]
mod tests;

pub use self::{
    command::{HomeKind, SimArgs, run_command},
    home::Home,
    misbehaviour::Misbehaviour,
    server::{Order, ROOT, SimOptions, SimServer},
    state::Seen,
};
