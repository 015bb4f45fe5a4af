//! The membership of a node: whether barriers wait for it, and whether it has leases.

/// Whether a node has ever enforced anything. Barriers wait for joined nodes only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Membership {
    /// The node has never enforced anything, or has left.
    #[default]
    New,
    /// The node has enforced something.
    Joined {
        /// Whether it closes by itself when its lease runs out.
        leased: bool,
    },
}

impl From<bool> for Membership {
    /// The membership of a joined node, as backups and journals record it: whether it has leases.
    fn from(leased: bool) -> Membership {
        Membership::Joined { leased }
    }
}

impl Membership {
    /// Whether the node has joined.
    pub fn is_joined(self) -> bool {
        self != Membership::New
    }

    /// Whether the node has joined and has leases.
    pub fn is_leased(self) -> bool {
        self == Membership::Joined { leased: true }
    }
}
