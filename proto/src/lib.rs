//! The contract between control plane, enforcers and clients: the messages of `sallyport.v1`, and how they become a node's policy
//! (`sallyport-policy`) and come of one. No IO, no Kubernetes, no sled, no netlink.

mod assembly;
pub mod codec;
mod convert;

pub use assembly::{Assembled, Assembly};
pub use convert::{WireError, address, changes, delta, positions};

/// The generated wire types and service stubs of `sallyport.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all, unused_qualifications)]
pub mod wire {
    tonic::include_proto!("sallyport.v1");

    /// The encoded `FileDescriptorSet`, for the reflection service.
    pub const DESCRIPTOR: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/sallyport_descriptor.bin"));
}
