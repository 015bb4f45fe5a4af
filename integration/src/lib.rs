//! Sallyport's real-kernel testbed and what the demo, the proofs and the tests share.

pub mod binaries;
pub mod conformance;
pub mod connections;
pub mod deployment;
pub mod frames;
pub mod kernel_tests;
pub mod ledger;
pub mod listing;
pub mod probe;
pub mod progress;
mod reactor;
pub mod relay;
pub mod scenario;
pub mod services;
pub mod testbed;
pub mod tracer;
pub mod usage;
pub mod walkthrough;
