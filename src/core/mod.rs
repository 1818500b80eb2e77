//! Pure rules: no tokio, socket, clock, unseeded randomness, lock, log or global in here.

pub mod access;
pub mod aggregate;
pub mod balance;
pub mod connect;
pub mod credential;
pub mod directory;
pub mod event;
pub mod flood;
pub mod frame;
pub mod id;
pub mod identity;
pub mod idmap;
pub mod locate;
pub mod mux;
pub mod network;
pub mod outlier;
pub mod peer;
pub mod penalty;
pub mod provider;
pub mod proxy_header;
pub mod rare;
pub mod release;
pub mod reopen;
pub mod replay;
pub mod reply;
pub mod ring;
pub mod route;
pub mod scan;
pub mod sharing;
pub mod snapshot;
pub mod strangers;
#[cfg(test)]
pub(crate) mod testing;
pub mod turnlock;
