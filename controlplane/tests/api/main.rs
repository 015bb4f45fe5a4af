//! The control plane over real gRPC on the loopback address, in this process; for crashes, its real binary.

mod applying;
mod crash;
mod following;
mod node;
mod streams;
mod world;
