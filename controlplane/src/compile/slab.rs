//! A slab: stores entries under small, typed, reusable ids.

use std::{
    fmt,
    marker::PhantomData,
    ops::{Index, IndexMut},
};

use super::ids::Id;

/// Entries by id.
pub(super) struct Slab<K, T> {
    slots: Vec<Option<T>>,
    free: Vec<u32>,
    key: PhantomData<fn() -> K>,
}

impl<K: Id, T> Slab<K, T> {
    /// Stores an entry. Its id may be that of an entry removed before.
    pub(super) fn insert(&mut self, entry: T) -> K {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(entry);
                slot
            }
            None => {
                self.slots.push(Some(entry));
                u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 entries")
            }
        };
        K::from_slot(slot)
    }

    /// Removes an entry.
    pub(super) fn remove(&mut self, id: K) -> T {
        let entry = self.slots[id.slot() as usize].take();
        self.free.push(id.slot());
        entry.expect("the entry is stored")
    }

    /// The entry, unless it was removed.
    pub(super) fn get_mut(&mut self, id: K) -> Option<&mut T> {
        self.slots[id.slot() as usize].as_mut()
    }

    /// The entry, unless it was removed.
    pub(super) fn get(&self, id: K) -> Option<&T> {
        self.slots[id.slot() as usize].as_ref()
    }
}

impl<K, T> Default for Slab<K, T> {
    fn default() -> Self {
        Slab {
            slots: Vec::new(),
            free: Vec::new(),
            key: PhantomData,
        }
    }
}

impl<K: Id, T> Index<K> for Slab<K, T> {
    type Output = T;

    fn index(&self, id: K) -> &T {
        self.get(id).expect("the entry is stored")
    }
}

impl<K: Id, T> IndexMut<K> for Slab<K, T> {
    fn index_mut(&mut self, id: K) -> &mut T {
        self.get_mut(id).expect("the entry is stored")
    }
}

impl<K, T: fmt::Debug> fmt::Debug for Slab<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.slots.iter().flatten()).finish()
    }
}
