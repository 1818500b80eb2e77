//! A table that is mostly empty: one pointer wide, and without memory of its own, until something is
//! in it. A connection has several of them, and an idle one uses none.
//!
//! Not for what comes and goes with every frame: the first entry costs an allocation of its own.

use std::{
    borrow::Borrow,
    collections::{HashMap, hash_map},
    fmt,
    hash::Hash,
};

use ahash::RandomState;

type Table<K, V> = HashMap<K, V, RandomState>;

/// The table.
pub struct Rare<K, V>(Option<Box<Table<K, V>>>);

impl<K, V> Default for Rare<K, V> {
    fn default() -> Self {
        Self(None)
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Rare<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K, V> Rare<K, V> {
    /// How many entries there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |table| table.len())
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All entries, in no order.
    #[inline]
    pub fn iter(&self) -> Entries<'_, K, V> {
        Entries(self.0.as_ref().map(|table| table.iter()))
    }

    /// All values, in no order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// Takes everything out, in no order.
    pub fn drain(&mut self) -> impl Iterator<Item = (K, V)> + use<K, V> {
        self.0.take().into_iter().flat_map(|table| *table)
    }
}

impl<K: Eq + Hash, V> Rare<K, V> {
    /// The value of this key.
    #[inline]
    pub fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.0.as_ref()?.get(key)
    }

    /// The value of this key.
    #[inline]
    pub fn get_mut<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.0.as_mut()?.get_mut(key)
    }

    /// Whether this key has a value.
    #[inline]
    pub fn contains_key<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }

    /// Gives the key a value; returns the one that it had.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.0.get_or_insert_default().insert(key, value)
    }

    /// Takes the key and its value out.
    #[inline]
    pub fn remove<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let removed = self.0.as_mut()?.remove(key);
        self.forget_empty();
        removed
    }

    /// Keeps only the entries that `stays` is true for.
    pub fn retain(&mut self, stays: impl FnMut(&K, &mut V) -> bool) {
        if let Some(table) = &mut self.0 {
            table.retain(stays);
            self.forget_empty();
        }
    }

    fn forget_empty(&mut self) {
        self.0.take_if(|table| table.is_empty());
    }
}

impl<K: Eq + Hash, V> Extend<(K, V)> for Rare<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

/// The entries of a [`Rare`].
#[derive(Debug)]
pub struct Entries<'a, K, V>(Option<hash_map::Iter<'a, K, V>>);

impl<'a, K, V> Iterator for Entries<'a, K, V> {
    type Item = (&'a K, &'a V);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.0.as_mut()?.next()
    }
}

impl<'a, K, V> IntoIterator for &'a Rare<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Entries<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_is_one_pointer_wide_and_owns_nothing_while_it_is_empty() {
        assert_eq!(size_of::<Rare<String, [u64; 9]>>(), size_of::<usize>());
        let mut rare = Rare::default();
        rare.insert(1, "a");
        rare.insert(2, "b");
        rare.remove(&1);
        rare.retain(|_, _| false);
        assert!(rare.0.is_none());
        rare.insert(3, "c");
        assert_eq!(rare.drain().collect::<Vec<_>>(), [(3, "c")]);
        assert!(rare.0.is_none());
    }

    proptest! {
        #[test]
        fn it_is_a_table(steps in proptest::collection::vec((0u8..9, 0u8..3), 1..100)) {
            let (mut rare, mut table) = (Rare::default(), HashMap::new());
            for (at, (key, step)) in steps.into_iter().enumerate() {
                match step {
                    0 => prop_assert_eq!(rare.insert(key, at), table.insert(key, at)),
                    1 => prop_assert_eq!(rare.remove(&key), table.remove(&key)),
                    _ => rare.extend(table.iter().map(|(key, value)| (*key, *value))),
                }
                prop_assert_eq!(rare.get(&key), table.get(&key));
                prop_assert_eq!(rare.get_mut(&key), table.get_mut(&key));
                prop_assert_eq!(rare.contains_key(&key), table.contains_key(&key));
                prop_assert_eq!(rare.iter().collect::<HashMap<_, _>>(), table.iter().collect());
                prop_assert_eq!(rare.len(), table.len());
                prop_assert_eq!(rare.is_empty(), table.is_empty());
            }
            prop_assert_eq!(rare.values().count(), table.len());
        }
    }
}
