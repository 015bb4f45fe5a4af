//! nftables as data: the commands we use, how they read as an nft script, and how they are encoded. Pure; the socket
//! is `netlink`'s.

pub mod bridge;
pub mod command;
pub mod content;
pub mod decode;
pub mod encode;
pub mod families;
pub mod frame;
pub mod lease;
pub mod names;
pub mod ports;
pub mod render;
pub mod stamp;
