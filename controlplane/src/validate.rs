//! The rules that an object must keep, which are the Kubernetes API server's with its wording, and the limits that
//! are ours. Turns decoded Kubernetes types into the model; reads no text and keeps no state.
//!
//! A function here takes the stranger and returns the citizen: `policy::network_policy` looks at every field of a
//! NetworkPolicy once, writes what is wrong into [`Faults`], and returns what the policy means. The
//! result is worth something only when no fault was written.

mod addresses;
mod field;
mod metadata;
mod policy;
mod selector;
mod workload;

pub(crate) use addresses::{allowed_sources, cidr, no_sources, one_per_family, usable};
pub(crate) use field::{Fault, Faults, FieldPath, Path, Segment, quote};
pub(crate) use metadata::{NameRule, metadata};
pub(crate) use policy::network_policy;
pub(crate) use workload::{PortEntry, named_ports};

/// The label that every namespace carries with its own name.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// The most rules that a NetworkPolicy may have in one direction.
pub const MAX_RULES: usize = 10_000;

/// The most peers that one rule may have.
pub const MAX_PEERS: usize = 10_000;

/// The most ports that one rule may have.
pub const MAX_PORTS: usize = 10_000;

/// The most `except` ranges that one ipBlock may have.
pub const MAX_EXCEPTS: usize = 10_000;

/// The most requirements that one label selector may have, and the most values of one requirement.
pub const MAX_REQUIREMENTS: usize = 1_000;

/// The most named ports that one pod or workload may have.
pub const MAX_NAMED_PORTS: usize = 1_000;

/// The most addresses, and the most workload ranges, that one node may have.
pub const MAX_NODE_ADDRESSES: usize = 1_000;

/// The most ranges that one workload may have as allowed sources.
pub const MAX_ALLOWED_SOURCES: usize = 64;

/// The most addresses that one NetworkPolicy may compile to, when it is put: the sum, over the port ranges that it
/// tells apart, of the addresses that may use each. A peer that begins or ends at a port counts as
/// [`PEER_ADDRESSES`] more.
pub const MAX_COMPILED_ADDRESSES: u64 = 20_000_000;

/// The most ingress rules that one NetworkPolicy may compile to, when it is put: its rules times the different sets of
/// numbers that their port names mean to the pods that it selects.
pub const MAX_COMPILED_RULES: usize = 1_000_000;

/// The addresses that a peer counts as, wherever a port range with it begins or ends.
pub const PEER_ADDRESSES: u64 = 20;
