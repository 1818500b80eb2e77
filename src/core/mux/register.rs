//! Where the entry of each session of a connection stands.
//!
//! Most connections have one session, and many a few: these are looked for one by one, which takes
//! less than to hash an id, and less memory than the smallest table.

use crate::core::{id::SessionId, rare::Rare};

/// Up to so many are looked for one by one.
const FEW: usize = 8;

/// Keys of entries, by session.
#[derive(Debug, Default)]
pub(super) struct Register {
    /// All of them, while there are few.
    few: Vec<(SessionId, usize)>,
    /// All of them, once there were more, until there is none.
    many: Rare<SessionId, usize>,
}

impl Register {
    #[inline]
    pub(super) fn get(&self, session: impl AsRef<str>) -> Option<&usize> {
        let session = session.as_ref();
        let among_few = self.few.iter().find(|(id, _)| id.as_str() == session);
        match among_few {
            Some((_, key)) => Some(key),
            None => self.many.get(session),
        }
    }

    /// The same, for an id that was mostly cloned from the one that stands there.
    #[inline]
    pub(super) fn find(&self, session: &SessionId) -> Option<usize> {
        let among_few = self.few.iter().find(|(id, _)| id == session);
        match among_few {
            Some((_, key)) => Some(*key),
            None => self.many.get(session.as_str()).copied(),
        }
    }

    pub(super) fn contains_key(&self, session: impl AsRef<str>) -> bool {
        self.get(session).is_some()
    }

    /// Takes in a session that is not there.
    pub(super) fn insert(&mut self, session: SessionId, key: usize) {
        if self.many.is_empty() && self.few.len() < FEW {
            self.few.reserve_exact(1);
            self.few.push((session, key));
            return;
        }
        self.many.extend(std::mem::take(&mut self.few));
        self.many.insert(session, key);
    }

    pub(super) fn remove(&mut self, session: &SessionId) {
        match self.few.iter().position(|(id, _)| id == session) {
            Some(at) => drop(self.few.swap_remove(at)),
            None => drop(self.many.remove(session)),
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn len(&self) -> usize {
        self.few.len() + self.many.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Few and many behave as one table.
        #[test]
        fn it_is_a_table(steps in proptest::collection::vec((0u8..20, any::<bool>()), 1..200)) {
            let (mut register, mut table) = (Register::default(), HashMap::new());
            for (key, (session, enters)) in steps.into_iter().enumerate() {
                let session = SessionId::from(format!("s{session}"));
                if !enters {
                    register.remove(&session);
                    table.remove(&session);
                } else if !register.contains_key(&session) {
                    register.insert(session.clone(), key);
                    table.insert(session.clone(), key);
                }
                prop_assert_eq!(register.get(&session), table.get(&session));
                prop_assert_eq!(register.len(), table.len());
                prop_assert!(register.few.is_empty() || register.many.is_empty());
            }
            for (session, key) in &table {
                prop_assert_eq!(register.get(session.as_str()), Some(key));
                prop_assert_eq!(register.find(session), Some(*key));
                prop_assert_eq!(register.find(&SessionId::from(session.as_str())), Some(*key));
            }
            register.clear();
            prop_assert_eq!(register.len(), 0);
        }
    }
}
