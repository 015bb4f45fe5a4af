//! Both programs as processes: the log. Knows no policy, no node, no table.

pub mod log;
