//! Owns the changes that can be made to a namespace's links, addresses, routes and neighbours, as values that display
//! themselves as `ip` commands; never talks to the kernel.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::Netns;

/// The index of every namespace's loopback.
pub const LOOPBACK: u32 = 1;

/// A link's hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

/// The destination of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// One address.
    Host(IpAddr),
    /// The addresses of a network.
    Network(IpNetwork),
    /// Everything of the gateway's family.
    Default,
}

/// One change within a namespace. Displays as the `ip` command that does the same. The maker of links chooses their
/// indices, so nothing need be looked up afterwards.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the fields are what `ip` calls them")]
pub enum Change {
    /// A bridge, up, without multicast snooping.
    Bridge { index: u32, name: String, mac: Mac },
    /// A veth pair, this end up, the other in `peer` under the same index and still down.
    Veth {
        index: u32,
        name: String,
        mac: Mac,
        bridge: Option<u32>,
        peer: Netns,
        peer_name: String,
        peer_mac: Mac,
    },
    /// Has a bridge send frames back to the port that they came from.
    Hairpin { index: u32 },
    /// Sets a link up.
    Up { index: u32 },
    /// The most bytes of a packet that leaves by a link.
    Mtu { index: u32, mtu: u32 },
    /// Waits until packets can leave by a link; the kernel brings it up in the background.
    AwaitUp { index: u32 },
    /// A /32 or /128, usable at once.
    Address { index: u32, address: IpAddr },
    /// Waits until packets to an own address are taken in. Even of an address without duplicate detection the kernel
    /// adds the local route of IPv6 in the background.
    AwaitAddress { address: IpAddr },
    /// Takes an address away.
    DropAddress { index: u32, address: IpAddr },
    /// A route, by a gateway that need not be on-link, preferring `source`; replaces one to the same destination.
    Route {
        to: Destination,
        via: Option<IpAddr>,
        index: u32,
        source: Option<IpAddr>,
    },
    /// Takes the route to an address away.
    DropRoute { to: IpAddr, index: u32 },
    /// A permanent neighbour.
    Neighbour {
        index: u32,
        address: IpAddr,
        mac: Mac,
    },
    /// Forgets a neighbour, if it is known.
    DropNeighbour { index: u32, address: IpAddr },
    /// Deletes a link, and with it the other end of a pair.
    DeleteLink { index: u32 },
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(address) => write!(f, "{address}"),
            Self::Network(network) => write!(f, "{network}"),
            Self::Default => f.write_str("default"),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bridge { index, name, mac } => {
                write!(
                    f,
                    "ip link add {name} index {index} address {mac} up type bridge mcast_snooping 0"
                )
            }
            Self::Veth {
                index,
                name,
                mac,
                bridge,
                peer,
                peer_name,
                peer_mac,
            } => {
                write!(f, "ip link add {name} index {index} address {mac} up ")?;
                if let Some(bridge) = bridge {
                    write!(f, "master if{bridge} ")?;
                }
                write!(
                    f,
                    "type veth peer {peer_name} address {peer_mac} netns {:?}",
                    peer.label()
                )
            }
            Self::Hairpin { index } => {
                write!(f, "ip link set if{index} type bridge_slave hairpin on")
            }
            Self::Up { index } => write!(f, "ip link set if{index} up"),
            Self::Mtu { index, mtu } => write!(f, "ip link set if{index} mtu {mtu}"),
            Self::AwaitUp { index } => write!(f, "ip link show if{index} up"),
            Self::Address { index, address } => {
                write!(f, "ip address replace {address} dev if{index} nodad")
            }
            Self::AwaitAddress { address } => write!(f, "ip route get {address}"),
            Self::DropAddress { index, address } => {
                write!(f, "ip address del {address} dev if{index}")
            }
            Self::Route {
                to,
                via,
                index,
                source,
            } => {
                write!(f, "ip route replace {to} ")?;
                if let Some(gateway) = via {
                    write!(f, "via {gateway} onlink ")?;
                }
                write!(f, "dev if{index}")?;
                source.map_or(Ok(()), |source| write!(f, " src {source}"))
            }
            Self::DropRoute { to, index } => write!(f, "ip route del {to} dev if{index}"),
            Self::Neighbour {
                index,
                address,
                mac,
            } => {
                write!(
                    f,
                    "ip neighbour replace {address} lladdr {mac} dev if{index} nud permanent"
                )
            }
            Self::DropNeighbour { index, address } => {
                write!(f, "ip neighbour del {address} dev if{index}")
            }
            Self::DeleteLink { index } => write!(f, "ip link del if{index}"),
        }
    }
}
