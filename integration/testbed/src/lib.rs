//! A testbed of network namespaces on the real kernel: nodes, pods and links between them, probes that ask with real
//! packets what reaches what, and what tests of programs on it share.
//!
//! The crate starts no program of Sallyport's and depends on no crate of Sallyport's.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "test equipment: its numbers are small, and a wrong one fails the run"
)]

mod bed;
mod change;
mod error;
pub mod frames;
mod host;
pub mod kernel_tests;
mod link;
pub mod listing;
mod netns;
mod privilege;
pub mod probe;
pub mod reactor;
pub mod relay;
pub mod services;
mod state;
pub mod tracer;
pub mod usage;
mod wiring;

pub use bed::{Builder, Mode, Testbed};
pub use change::{Change, Destination, LOOPBACK, Mac};
pub use error::Error;
pub use host::{Family, Host};
pub use netns::Netns;
pub use privilege::{Privilege, PrivilegeError, enter};
