//! Pure rules: no tokio, socket, clock, unseeded randomness, lock, log or global in here.

pub mod event;
pub mod id;
pub mod ring;
pub mod snapshot;
#[cfg(test)]
pub(crate) mod testing;
