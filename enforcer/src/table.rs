//! Sallyport's tables in nftables: the names of their objects, their chains and rules, and the meaning of a listing.
//! This module is pure; the socket is [`sallyport_nft`]'s.

use sallyport_nft::{
    command::{TableFamily, TableName},
    netlink::{Error, Netlink},
};

pub mod bridge;
pub mod counters;
pub mod families;
pub mod frame;
pub mod lease;
pub mod names;
pub mod ports;
pub mod render;
pub mod stamp;
pub mod state;

/// The name of both tables. Sallyport changes no other table.
const NAME: &str = "sallyport";

/// The table that policy is compiled to.
pub const INET: TableName = TableName::new(TableFamily::Inet, NAME);

/// The table that drops at bridges the frames that the other table cannot judge.
pub const BRIDGE: TableName = TableName::new(TableFamily::Bridge, NAME);

/// Opens a socket to the table that policy is compiled to, in the network namespace of this thread.
pub fn open() -> Result<Netlink, Error> {
    Netlink::open(INET)
}
