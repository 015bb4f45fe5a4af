//! The node's journal against real files.

mod corruption;
mod laws;
