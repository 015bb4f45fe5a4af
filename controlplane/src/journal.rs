//! What outlives the process: committed transactions, from which the cluster is rebuilt. Says what a journal
//! promises, and holds the one kind there is, in sled; decides nothing about transactions.

mod failure;
mod fold;
mod load;
mod record;
mod store;
mod values;
mod watermark;

use std::sync::Arc;

use sallyport_proto::{Epoch, Revision};

pub use self::{
    failure::JournalError,
    store::{Settings, SledJournal},
};
use crate::{
    cluster::Cluster,
    history::{Committed, History},
};

/// Where committed transactions go before anyone is told.
pub trait Journal: Send {
    /// Makes transactions durable: when this returns, they are on the disk and outlive a power cut.
    ///
    /// All of them or none: after an error none of them is in the journal, and the next `append` may be of other
    /// transactions with the same revisions. (Only if the process dies between an error and the next `append` may
    /// a transaction be found that was refused.)
    fn append(&mut self, group: &[Arc<Committed>]) -> Result<(), JournalError>;
}

/// What a journal held when it was opened.
#[derive(Clone, Debug, PartialEq)]
pub struct Recovered {
    /// The cluster after the last transaction.
    pub cluster: Cluster,
    /// The last transaction's revision.
    pub revision: Revision,
    /// How often the control plane was restored from a backup.
    pub epoch: Epoch,
    /// The recent transactions.
    pub history: History,
}
