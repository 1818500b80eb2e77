//! The records by their sessions' ids: a table of pointers, so that room for growth costs little, and
//! each id once.

use std::borrow::Borrow;

use ahash::RandomState;
use hashbrown::{HashTable, hash_table::Entry};

use super::Record;
use crate::core::id::SessionId;

#[derive(Debug)]
struct Row {
    id: SessionId,
    record: Record,
}

/// What is known of sessions.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    rows: HashTable<Box<Row>>,
    state: RandomState,
}

impl Sessions {
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(super) fn contains_key(&self, id: &(impl Borrow<str> + ?Sized)) -> bool {
        self.get(id).is_some()
    }

    pub(super) fn get(&self, id: &(impl Borrow<str> + ?Sized)) -> Option<&Record> {
        let id = id.borrow();
        let row = self.rows.find(self.hash(id), |row| row.id.as_str() == id)?;
        Some(&row.record)
    }

    pub(super) fn get_mut(&mut self, id: &(impl Borrow<str> + ?Sized)) -> Option<&mut Record> {
        let id = id.borrow();
        let hash = self.hash(id);
        let row = self.rows.find_mut(hash, |row| row.id.as_str() == id)?;
        Some(&mut row.record)
    }

    /// The record of `id`; what `new` makes of it if there is none.
    pub(super) fn get_or_insert_with(
        &mut self,
        id: &SessionId,
        new: impl FnOnce() -> Record,
    ) -> &mut Record {
        let hash = self.hash(id.as_str());
        let state = &self.state;
        let entry = self.rows.entry(
            hash,
            |row| row.id == *id,
            |row| state.hash_one(row.id.as_str()),
        );
        let row = match entry {
            Entry::Occupied(row) => row.into_mut(),
            Entry::Vacant(place) => {
                let (id, record) = (id.clone(), new());
                place.insert(Box::new(Row { id, record })).into_mut()
            }
        };
        &mut row.record
    }

    pub(super) fn remove(&mut self, id: &(impl Borrow<str> + ?Sized)) -> Option<Record> {
        let id = id.borrow();
        let hash = self.hash(id);
        let row = self.rows.find_entry(hash, |row| row.id.as_str() == id);
        Some(row.ok()?.remove().0.record)
    }

    pub(super) fn retain(&mut self, mut stays: impl FnMut(&SessionId, &mut Record) -> bool) {
        self.rows.retain(|row| stays(&row.id, &mut row.record));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&SessionId, &Record)> {
        self.rows.iter().map(|row| (&row.id, &row.record))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&SessionId, &mut Record)> {
        self.rows.iter_mut().map(|row| {
            let Row { id, record } = &mut **row;
            (&*id, record)
        })
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &SessionId> {
        self.iter().map(|(id, _)| id)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Record> {
        self.iter().map(|(_, record)| record)
    }

    fn hash(&self, id: &str) -> u64 {
        self.state.hash_one(id)
    }
}
