//! The journal against real files: reopening equals never having stopped, damage is refused, errors leave nothing.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of tests fails the test that calls it"
)]

mod corruption;
mod damage;
mod laws;
mod objects;
