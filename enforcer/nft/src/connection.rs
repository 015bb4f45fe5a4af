//! A connection as conntrack knows it. This module reads no netlink and decides nothing.

use std::{collections::BTreeSet, net::IpAddr};

/// A connection, with both ends as they are behind all translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The IP protocol, by IANA's number.
    pub protocol: u8,
    /// The end whose packet conntrack saw first. The end began the connection, unless conntrack missed the beginning.
    pub client: End,
    /// The other end.
    pub server: End,
    /// Whether conntrack saw no beginning: the first packet that it saw was one from the middle of a TCP connection.
    /// The kernel's `tcp_new` marks such a connection by liberal flags for both ends, which no packet removes. Open
    /// vSwitch and `act_ct` mark every connection that they track in the same way.
    pub picked_up: bool,
}

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The address.
    pub address: IpAddr,
    /// The port; 0 where the protocol has none.
    pub port: u16,
}

impl Connection {
    /// Whether an end of the connection has one of some addresses.
    pub fn is_of(&self, addresses: &BTreeSet<IpAddr>) -> bool {
        let ends = [self.client, self.server];
        ends.iter().any(|end| addresses.contains(&end.address))
    }
}
