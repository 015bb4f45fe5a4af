//! The contract of the control plane with enforcers and with operators: wire messages, the domain types both ends share,
//! the names that objects may have, the text of a backup, and the algebra of a node's policy (diff, apply, digest, meet,
//! window). Opens no file and no socket. No Kubernetes, no sled, no netlink.

mod assembly;
pub mod backup;
pub mod codec;
mod convert;
mod delta;
mod digest;
pub mod interface;
mod meet;
pub mod names;
pub mod object;
pub mod policy;
mod ranges;
pub mod reason;
mod window;

pub use assembly::{Assembled, Assembly};
pub use convert::{WireError, address, positions};
pub use delta::{ApplyError, Change, Delta, Difference};
pub use digest::{Digest, Hasher};
pub use meet::{Unknown, Ways};
pub use ranges::{Coverage, Ranges};
pub use window::{Misfit, Update, Version, Window};

/// The generated wire types and service stubs of `sallyport.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all, unused_qualifications)]
pub mod wire {
    tonic::include_proto!("sallyport.v1");

    /// The encoded `FileDescriptorSet`, for the reflection service.
    pub const DESCRIPTOR: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/sallyport_descriptor.bin"));
}

/// Counts committed transactions, cluster-wide and without holes. 0 is the empty cluster.
pub type Revision = u64;

/// Counts how often the control plane was restored from a backup.
pub type Epoch = u64;

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

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "epoch {} revision {} digest {}",
            self.epoch, self.revision, self.digest
        )
    }
}
