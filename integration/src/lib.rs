//! The shared parts of the demo, the proofs and the end-to-end tests: Sallyport's programs, run as users run them, on a
//! testbed.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "test equipment: its numbers are small, and a wrong one fails the run"
)]

pub mod binaries;
pub mod conformance;
pub mod connections;
pub mod deployment;
pub mod ledger;
pub mod pods;
pub mod progress;
pub mod scenario;
pub mod walkthrough;
