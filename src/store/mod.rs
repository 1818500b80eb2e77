//! What connections share: the directory of sessions. Sees no frames.

mod memory;
mod peers;

pub use memory::{Guard, Store};
pub use peers::{Estate, Unconfirmed};
