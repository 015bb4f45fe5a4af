//! Sallyport's control plane: takes policies in transactions, journals them, compiles what each node must
//! enforce, and streams just what changed.

pub mod cluster;
pub mod compile;
pub mod history;
pub mod journal;
pub mod manifest;
pub mod model;
pub mod nodes;
pub mod transaction;
pub mod validate;
pub mod writer;
