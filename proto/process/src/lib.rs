//! The parts of a program that every program here has: the log, descriptors, accepting connections, the metrics endpoint,
//! durations, files that are written whole. Knows no policy, no node, no table.

pub mod accept;
pub mod descriptors;
pub mod duration;
pub mod files;
pub mod log;
pub mod metrics;
pub mod text;
mod throttle;

pub use throttle::Throttle;
