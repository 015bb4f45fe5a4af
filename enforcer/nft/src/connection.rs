//! A connection as conntrack knows it. Reads no netlink and decides nothing.

use std::{collections::BTreeSet, net::IpAddr};

/// A connection, with both ends as they are behind all translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Its IP protocol, by IANA's number.
    pub protocol: u8,
    /// The end whose packet conntrack saw first. It began the connection, unless conntrack missed the beginning.
    pub client: End,
    /// The other one.
    pub server: End,
    /// Whether conntrack saw no beginning: its first packet was one from the middle of a TCP connection. (The kernel's
    /// `tcp_new` marks such a one by liberal flags for both ends, which no packet takes away; so do Open vSwitch and
    /// `act_ct` with every connection that they track.)
    pub picked_up: bool,
}

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Its address.
    pub address: IpAddr,
    /// Its port; 0 where the protocol has none.
    pub port: u16,
}

impl Connection {
    /// Whether an end of it has one of some addresses.
    pub fn is_of(&self, addresses: &BTreeSet<IpAddr>) -> bool {
        let ends = [self.client, self.server];
        ends.iter().any(|end| addresses.contains(&end.address))
    }
}
