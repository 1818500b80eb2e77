//! Values for the tests of the pure rooms; compiled into tests only.

use std::sync::Arc;

use super::snapshot::{AdminState, Backend, Health, Mode, Snapshot};

/// A backend that takes placements.
pub(crate) fn backend(name: &str, weight: u32) -> Backend {
    Backend {
        name: name.into(),
        address: Arc::from("127.0.0.1:4321"),
        token: None,
        weight,
        weight_permille: 1000,
        admin: AdminState::Ready,
        health: Health::Up,
        removed: false,
        released: false,
        protocol_version: Some(3),
        version: None,
        task_kinds: Arc::from([]),
        disk_read: true,
    }
}

/// Backends `cli-1`, `cli-2` and so on with these weights.
pub(crate) fn backends(weights: &[u32]) -> Vec<Backend> {
    let named = (1..).zip(weights);
    named
        .map(|(n, &w)| backend(&format!("cli-{n}"), w))
        .collect()
}

/// A pool of these backends.
pub(crate) fn snapshot(backends: Vec<Backend>) -> Snapshot {
    Snapshot {
        generation: 1,
        mode: Mode::Sticky,
        backends: backends.into(),
        panic: false,
    }
}
