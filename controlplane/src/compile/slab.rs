//! A table of things that come and go, by small numbers that know what they are the number of. It owns the things
//! and gives their numbers out again; it knows nothing of them.

use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    marker::PhantomData,
    ops::{Index, IndexMut},
};

/// The number of a thing in its table.
pub(super) struct Id<T>(u32, PhantomData<fn() -> T>);

/// A table.
pub(super) struct Slab<T> {
    things: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    /// Adds a thing.
    pub(super) fn insert(&mut self, thing: T) -> Id<T> {
        let number = match self.free.pop() {
            Some(number) => {
                self.things[number as usize] = Some(thing);
                number
            }
            None => {
                self.things.push(Some(thing));
                u32::try_from(self.things.len() - 1).expect("fewer than 2^32 things")
            }
        };
        Id(number, PhantomData)
    }

    /// Takes a thing out.
    pub(super) fn remove(&mut self, id: Id<T>) -> T {
        self.free.push(id.0);
        self.things[id.0 as usize]
            .take()
            .expect("a thing that is there")
    }

    /// The thing, if it is there still.
    pub(super) fn get_mut(&mut self, id: Id<T>) -> Option<&mut T> {
        self.things[id.0 as usize].as_mut()
    }

    /// The thing, if it is there still.
    pub(super) fn get(&self, id: Id<T>) -> Option<&T> {
        self.things[id.0 as usize].as_ref()
    }
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab {
            things: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Index<Id<T>> for Slab<T> {
    type Output = T;

    fn index(&self, id: Id<T>) -> &T {
        self.get(id).expect("a thing that is there")
    }
}

impl<T> IndexMut<Id<T>> for Slab<T> {
    fn index_mut(&mut self, id: Id<T>) -> &mut T {
        self.get_mut(id).expect("a thing that is there")
    }
}

impl<T: fmt::Debug> fmt::Debug for Slab<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.things.iter().flatten())
            .finish()
    }
}

impl<T> Clone for Id<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Id<T> {}

impl<T> PartialEq for Id<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<T> Eq for Id<T> {}

impl<T> PartialOrd for Id<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Id<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }
}

impl<T> Hash for Id<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl<T> fmt::Debug for Id<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}
