//! The contract between control plane and enforcers: wire messages, the domain types both ends share, and the
//! algebra of a node's policy (diff, apply, digest, intersection). No IO, no Kubernetes, no sled, no netlink.

pub mod policy;

/// The generated wire types and service stubs of `sallyport.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all, unused_qualifications)]
pub mod wire {
    tonic::include_proto!("sallyport.v1");

    /// The encoded `FileDescriptorSet`, for the reflection service.
    pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sallyport_descriptor.bin"));
}
