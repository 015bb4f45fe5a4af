//! What outlives the process: committed transactions, from which the cluster is rebuilt. Says what a journal
//! promises, and holds the one kind there is, in sled; decides nothing about transactions.

mod failure;
mod fold;
mod inspect;
mod load;
pub mod record;
mod restore;
mod store;
mod values;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use sallyport_journal::Error as StoreError;
use sallyport_policy::{Epoch, NodeName, Revision};
use sallyport_proto::Membership;

pub use self::{
    failure::JournalError,
    inspect::{Report, inspect},
    restore::{RestoreError, restore},
    store::{Acknowledged, Settings, SledJournal, Trees},
};
use crate::{
    cluster::Cluster,
    history::{Committed, History},
};

/// Where a control plane has its journal, in the directory that it is given.
pub fn within(data_dir: &Path) -> PathBuf {
    data_dir.join("journal")
}

/// Where committed transactions go before anyone is told.
pub trait Journal: Send {
    /// Makes transactions durable: when this returns, they are on the disk and outlive a power cut.
    ///
    /// All of them or none: after an error none of them is in the journal, and the next `append` may be of other
    /// transactions with the same revisions. (Only if the process dies between an error and the next `append` may
    /// a transaction be found that was refused.)
    fn append(&mut self, group: &[Arc<Committed>]) -> Result<(), JournalError>;

    /// Takes note of something about the nodes. When this returns, what has to be durable is.
    fn note(&mut self, note: &Note) -> Result<(), JournalError>;
}

/// Something about the nodes that a later life has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A node enforces something: barriers wait for it from now on. Durable.
    Joined {
        /// Which node.
        node: NodeName,
        /// Its membership, which is `Joined`.
        membership: Membership,
    },
    /// A node said that it stops enforcing: no barrier waits for it from now on. Durable.
    Left {
        /// Which node.
        node: NodeName,
        /// When, in milliseconds since 1970.
        at_ms: u64,
    },
    /// A node's object is deleted. The note may be lost again.
    Forgotten {
        /// Which node.
        node: NodeName,
    },
    /// Every rollout up to a revision has passed its barrier. It may come to be forgotten again: what a node holds is
    /// asked of it then.
    Settled(Revision),
}

/// What a journal held when it was opened.
#[derive(Clone, Debug, PartialEq)]
pub struct Recovered {
    /// The cluster after the last transaction.
    pub cluster: Cluster,
    /// The last transaction's revision.
    pub revision: Revision,
    /// The number of restores of the control plane from a backup.
    pub epoch: Epoch,
    /// The recent transactions.
    pub history: History,
    /// The last revision up to which every rollout is known to have passed its barrier.
    pub settled: Revision,
    /// The nodes that have joined and have not left.
    pub joined: BTreeMap<NodeName, Membership>,
    /// The nodes that left and have not joined again, and when each did, in milliseconds since 1970.
    pub left: BTreeMap<NodeName, u64>,
}
