//! Sallyport's control plane: takes policies in transactions, journals them, compiles what each node must
//! enforce, and streams just what changed.

mod access;
pub mod api;
pub mod cluster;
pub mod compile;
pub mod config;
pub mod contests;
pub mod history;
pub mod journal;
mod listener;
pub mod manifest;
pub mod metrics;
pub mod model;
pub mod nodes;
mod oversize;
pub mod rollback;
pub mod server;
pub mod stream;
pub mod transaction;
pub mod validate;
pub mod writer;
