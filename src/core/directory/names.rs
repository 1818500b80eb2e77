//! Names of backends that come as text: each once, for a million sessions that live on a few.

use std::collections::HashSet;

use ahash::RandomState;

use crate::core::id::BackendName;

/// More than a pool has. Beyond it all are forgotten, which costs memory and nothing else.
const LIMIT: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Names(HashSet<BackendName, RandomState>);

impl Names {
    /// The one that stands for `name`.
    pub(super) fn one(&mut self, name: BackendName) -> BackendName {
        if let Some(known) = self.0.get(&name) {
            return known.clone();
        }
        if self.0.len() >= LIMIT {
            self.0.clear();
        }
        self.0.insert(name.clone());
        name
    }
}
