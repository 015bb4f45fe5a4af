//! Sallyport's node agent: takes its node's policy from the control plane, journals it, and carries it out in
//! nftables so that no packet ever meets a half-applied policy.

pub mod agent;
pub mod bridges;
pub mod closed;
pub mod control_plane;
pub mod guard;
pub mod health;
pub mod instance;
pub mod journal;
pub mod judged;
pub mod leave;
pub mod metrics;
pub mod places;
pub mod plan;
pub mod preflight;
pub mod session;
pub mod supervision;
pub mod surroundings;
pub mod table;
pub mod uninstall;
