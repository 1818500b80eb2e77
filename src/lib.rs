//! Taxiway: a layer-4/7 reverse proxy and load balancer for GitHub Copilot CLI servers.
//!
//! A pure core decides; a thin tokio shell moves bytes and time; a control plane publishes facts.
//! Life of a frame: socket → [`proxy::driver`] → [`core::frame`] (cut) → [`core::scan`] (kind and
//! spans) → [`core::mux`] (session → backend → id swap) → outbox → socket of the backend; back by
//! the same road. `docs/architecture.md` is the map.
//!
//! Imports point one way: `main → cli → {companion, load} → app → {proxy, control} → {store, config,
//! observe} → transport → core`.
//! `tests/architecture.rs` holds that, and the purity of `core`.

pub mod app;
pub mod cli;
pub mod companion;
pub mod config;
pub mod control;
pub mod core;
pub mod load;
pub mod observe;
pub mod proxy;
pub mod sim;
pub mod store;
pub mod transport;
