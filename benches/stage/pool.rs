//! Backends that take placements: the one of the stage, and a hundred to place sessions on.

use std::sync::Arc;

use taxiway::core::snapshot::{AdminState, Backend, Health, Mode, Snapshot};

/// A backend that is up.
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

/// A pool of these.
pub(crate) fn snapshot(mode: Mode, backends: Vec<Backend>) -> Snapshot {
    Snapshot {
        generation: 1,
        mode,
        backends: backends.into(),
        panic: false,
    }
}

/// A pool of a hundred, weighted by their numbers.
#[allow(dead_code, reason = "the stage itself has one backend")]
pub(crate) fn hundred(weight: impl Fn(u32) -> u32) -> Snapshot {
    let each = (0..100).map(|n| backend(&format!("cli-{n}"), weight(n)));
    snapshot(Mode::Sticky, each.collect())
}
