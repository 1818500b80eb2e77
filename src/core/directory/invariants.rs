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
        for (id, r) in self.sessions.iter() {
            assert!(r.now.is_settled(), "{id}: a moment of nothing");
            if let Some(home) = &r.home {
                *homes.entry(home.clone()).or_default() += 1;
            }
            assert!(
                r.now.owner.is_none() || r.is_open(),
                "{id}: an owner has holders, or is closing it"
            );
            assert!(
                r.now.owner.is_some() || r.now.holders.iter().all(|h| h.standing == Standing::Lost),
                "{id}: heard nowhere"
            );
            assert!(
                !r.now.moving || r.now.owner.is_some(),
                "{id}: moving from nowhere"
            );
            assert!(
                !r.now.moving || r.now.turn.is_none(),
                "{id}: moving in a turn"
            );
            assert!(
                r.now.owner.is_none() || r.now.maybe_open_at.is_none(),
                "{id}: open for sure or perhaps"
            );
            assert!(
                r.now.owner.is_some() || r.now.turn.is_none(),
                "{id}: a turn without an owner"
            );
            if let Some(owner) = &r.now.owner {
                let load = loads.entry(owner.clone()).or_default();
                load.sessions += 1;
                load.turns += u32::from(r.now.turn.is_some());
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
