//! The ids of the compiler's entries: small numbers, each kind a type of its own. A file that remembers an entry needs
//! its id alone, and not the file that owns the entry.

use std::fmt;

/// An id that a slab gives out.
pub(super) trait Id: Copy + Ord {
    /// The id of a slot.
    fn from_slot(slot: u32) -> Self;
    /// The number of the slot.
    fn slot(self) -> u32;
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(super) struct $name(u32);

        impl Id for $name {
            fn from_slot(slot: u32) -> Self {
                $name(slot)
            }

            fn slot(self) -> u32 {
                self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "#{}", self.0)
            }
        }
    )*};
}

ids! {
    /// A namespace.
    NamespaceId
    /// A scope: the namespaces that a namespaceSelector matches.
    ScopeId
    /// An interned selector.
    SelectorId
    /// A workload.
    WorkloadId
    /// The policies with one podSelector, in one direction.
    PolicySetId
    /// A named port of some destinations.
    NamedPortId
    /// A profile.
    ProfileId
    /// A class. Its `ClassId` is a hash of its content, and longer.
    ClassSlot
    /// A peer group. Its `GroupId` is a hash of its meaning, and longer.
    GroupSlot
    /// A node.
    NodeId
}
