//! The names of versions of a node's policy.

use std::fmt;

use crate::Digest;

crate::counters! {
    /// Counts committed transactions, cluster-wide and without gaps. 0 is the empty cluster.
    pub struct Revision;

    /// Counts how often the control plane was restored from a backup.
    pub struct Epoch;
}

/// Names a version of a node's policy. Ordered by epoch, then revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The epoch.
    pub epoch: Epoch,
    /// The revision.
    pub revision: Revision,
    /// The digest of the node's policy.
    pub digest: Digest,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "epoch {} revision {} digest {}",
            self.epoch, self.revision, self.digest
        )
    }
}
