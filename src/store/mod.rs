//! What connections share: the directory of sessions. Sees no frames.

mod memory;

pub use memory::{Guard, Store};
