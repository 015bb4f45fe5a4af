//! Sallyport's control plane: takes policies in transactions, journals them, compiles what each node must
//! enforce, and streams just what changed.

pub mod cluster;
pub mod compile;
pub mod manifest;
pub mod model;
pub mod validate;
