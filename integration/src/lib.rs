//! The shared parts of the demo, the proofs and the end-to-end tests: Sallyport's programs, run as users run them, on a testbed.

pub mod binaries;
pub mod conformance;
pub mod connections;
pub mod deployment;
pub mod ledger;
pub mod progress;
pub mod scenario;
pub mod walkthrough;
