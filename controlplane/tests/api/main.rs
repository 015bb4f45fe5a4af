//! The control plane over real gRPC on the loopback address, in this process; for crashes, its real binary.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of tests fails the test that calls it"
)]

mod applying;
mod contests;
mod crash;
mod doors;
mod established;
mod following;
mod full_disk;
mod identity;
mod leases;
mod leaving;
mod log;
mod node;
mod past;
mod rollouts;
mod streams;
mod unjudged;
mod world;
