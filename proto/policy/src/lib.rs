//! The compiled policy of one node, as both ends of a stream hold it, and the algebra of its versions. [`Delta`] is the
//! difference of two, [`NodePolicy::meet`] what both allow, [`Digest`] names one by its content, and a [`Window`] is all that a node
//! holds. Pure: no messages, no IO, no Kubernetes, no netlink.

#![warn(missing_docs)]

mod delta;
mod digest;
pub mod interface;
mod meet;
mod name;
mod node;
mod number;
mod position;
mod ranges;
mod window;

pub use delta::{Change, Delta, DeltaError, Difference};
pub use digest::{Digest, Hasher};
pub use meet::{Effect, UnknownAddresses};
pub use name::NodeName;
pub use node::{
    Class, ClassId, Direction, Endpoint, GroupId, GroupSpec, NodePolicy, Owner, PeerGroup,
    PortRule, Protocol, SharedGroup, Source, octets,
};
pub use position::{Epoch, Position, Revision};
pub use ranges::{Coverage, Ranges};
pub use window::{Misfit, Update, Version, Window};
