//! The journal against real files: reopening equals never having stopped, damage is refused, errors leave nothing.

mod corruption;
mod damage;
mod laws;
mod objects;
