//! The contract of the control plane with enforcers and with operators: the messages of `sallyport.v1` and how they become a node's
//! policy (`sallyport-policy`), the names that objects may have, and the text of a backup. Opens no file and no socket. No
//! Kubernetes, no sled, no netlink.

#![warn(missing_docs)]

mod assembly;
pub mod backup;
pub mod codec;
mod convert;
mod membership;
pub mod names;
pub mod object;
pub mod reason;
mod unreachable;

pub use assembly::{Assembled, Assembly};
pub use convert::{WireError, address, changes, delta, encoded_delta, positions};
pub use membership::Membership;
pub use unreachable::UnreachablePolicy;

/// The generated wire types and service stubs of `sallyport.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all, unused_qualifications)]
pub mod wire {
    tonic::include_proto!("sallyport.v1");

    /// The encoded `FileDescriptorSet`, for the reflection service.
    pub const DESCRIPTOR: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/sallyport_descriptor.bin"));
}
