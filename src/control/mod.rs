//! Control plane: health, pool, supervisor, reload, admin. Never sees a client's frame.

pub mod activation;
pub mod admin;
mod connection;
mod fence;
pub mod guard;
mod health;
pub mod pool;
pub mod probe;
pub mod reload;
pub mod signal;
pub mod supervisor;
pub mod upgrade;
