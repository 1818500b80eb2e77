//! What must always be true of the table; for tests and the simulation.

use std::collections::HashMap;

use ahash::RandomState;

use super::{Directory, Standing};
use crate::core::{balance::Load, id::BackendName};

impl Directory {
    /// What must always be true; for tests and the simulation.
    ///
    /// # Panics
    /// If it is not.
    pub fn check_invariants(&self) {
        let mut loads: HashMap<BackendName, Load, RandomState> = HashMap::default();
        let mut homes: HashMap<BackendName, usize, RandomState> = HashMap::default();
        for (id, r) in &self.sessions {
            if let Some(home) = &r.home {
                *homes.entry(home.clone()).or_default() += 1;
            }
            assert!(
                r.owner.is_none() || r.is_open(),
                "{id}: an owner has holders, or is closing it"
            );
            assert!(
                r.owner.is_some() || r.holders.iter().all(|h| h.standing == Standing::Lost),
                "{id}: heard nowhere"
            );
            assert!(!r.moving || r.owner.is_some(), "{id}: moving from nowhere");
            assert!(!r.moving || r.turn.is_none(), "{id}: moving in a turn");
            assert!(
                r.owner.is_none() || r.maybe_open_at.is_none(),
                "{id}: open for sure or perhaps"
            );
            assert!(
                r.owner.is_some() || r.turn.is_none(),
                "{id}: a turn without an owner"
            );
            if let Some(owner) = &r.owner {
                let load = loads.entry(owner.clone()).or_default();
                load.sessions += 1;
                load.turns += u32::from(r.turn.is_some());
            }
        }
        for (backend, count) in &self.homes {
            let counted = homes.get(backend).copied().unwrap_or(0);
            assert_eq!(*count, counted, "homes at {backend}");
        }
        for (backend, load) in &self.loads {
            let counted = loads.get(backend).copied().unwrap_or_default();
            assert_eq!(*load, counted, "load of {backend}");
        }
    }
}
