#![doc = include_str!("../README.md")]

pub mod bridge;
pub mod command;
pub mod connection;
pub mod content;
pub mod decode;
pub mod encode;
mod grace;
pub mod kernel;
pub mod netlink;
