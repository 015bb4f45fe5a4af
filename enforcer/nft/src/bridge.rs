//! The conditions of rules that only a table of family bridge has.

use std::{fmt, net::Ipv6Addr};

use crate::command::Family;

/// An end of a frame's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The end that the frame comes from.
    Source,
    /// The end that the frame goes to.
    Destination,
}

/// The first 16 bits of link-local addresses, fe80::/10 (RFC 4291, section 2.5.6).
pub const LINK_LOCAL: u16 = 0xfe80;

/// A condition of a rule of a table of family bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BridgeMatch {
    /// The port at an end is in a set (`true`), or is not.
    Port(End, bool, String),
    /// The packet in the frame is of a protocol, behind a VLAN tag or not.
    Protocol(u16),
    /// The packet in the frame is of no protocol of a list. Behind two VLAN tags the protocol is that of the inner tag.
    ProtocolNotIn(&'static [u16]),
    /// The EtherType in the Ethernet header, which may be that of a VLAN tag, is in a list (`true`), or is not.
    EtherType(bool, &'static [u16]),
    /// The frame is sent to all, or to a group.
    GroupAddressed,
    /// The port at an end, with the address at that end, is in a set.
    PortAddress(End, Family, String),
    /// The packet is ARP's. The port that the packet comes in by, with the address that its sender claims, is in a set.
    PortArpSender(String),
    /// The packet is ARP's, and its sender claims no address yet (RFC 5227).
    ArpProbe,
    /// The packet's source is the unspecified address.
    NoSource(Family),
    /// The address at an end is link-local: in fe80::/10.
    LinkLocal(End),
    /// The packet is ICMP of a type.
    Icmp(u8),
    /// The packet is ICMPv6 of one of some types.
    Icmpv6(&'static [u8]),
    /// The packet is UDP of a family, from a port to a port.
    Udp(Family, u16, u16),
    /// The target of neighbour discovery is this address. The condition needs others before it that let nothing else
    /// pass.
    Target(Ipv6Addr),
    /// The target of neighbour discovery is one of these addresses, both ends included. The condition needs others
    /// before it that let nothing else pass.
    TargetIn(Ipv6Addr, Ipv6Addr),
    /// The target of neighbour discovery is link-local. The condition needs others before it that let nothing else
    /// pass.
    TargetLinkLocal,
    /// The verdict is the value in a map of the port that the frame comes in by.
    PortMap(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            End::Source => "saddr",
            End::Destination => "daddr",
        })
    }
}

impl fmt::Display for BridgeMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = |end: &End| match end {
            End::Source => "iifname",
            End::Destination => "oifname",
        };
        let ip = |family: &Family| match family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        match self {
            BridgeMatch::Port(end, true, set) => write!(f, "{} @{set}", port(end)),
            BridgeMatch::Port(end, false, set) => write!(f, "{} != @{set}", port(end)),
            BridgeMatch::Protocol(kind) => write!(f, "meta protocol {kind:#06x}"),
            BridgeMatch::ProtocolNotIn(types) => {
                write!(f, "meta protocol != {{ {} }}", ether_types(types))
            }
            BridgeMatch::EtherType(listed, types) => {
                let not = if *listed { "" } else { "!= " };
                write!(f, "ether type {not}{{ {} }}", ether_types(types))
            }
            BridgeMatch::GroupAddressed => {
                f.write_str("ether daddr & 01:00:00:00:00:00 != 00:00:00:00:00:00")
            }
            BridgeMatch::PortAddress(end, family, set) => {
                let (port, ip) = (port(end), ip(family));
                write!(f, "meta protocol {ip} {port} . {ip} {end} @{set}")
            }
            BridgeMatch::PortArpSender(set) => {
                write!(f, "meta protocol arp iifname . arp saddr ip @{set}")
            }
            BridgeMatch::ArpProbe => f.write_str("arp saddr ip 0.0.0.0"),
            BridgeMatch::NoSource(Family::V4) => f.write_str("ip saddr 0.0.0.0"),
            BridgeMatch::NoSource(Family::V6) => f.write_str("ip6 saddr ::"),
            BridgeMatch::LinkLocal(end) => write!(f, "ip6 {end} fe80::/10"),
            BridgeMatch::Icmp(kind) => write!(f, "icmp type {kind}"),
            BridgeMatch::Icmpv6(kinds) => {
                let kinds: Vec<String> = kinds.iter().map(u8::to_string).collect();
                write!(f, "icmpv6 type {{ {} }}", kinds.join(", "))
            }
            BridgeMatch::Udp(family, from, to) => {
                let ip = ip(family);
                write!(f, "meta protocol {ip} udp sport {from} udp dport {to}")
            }
            BridgeMatch::Target(target) => {
                write!(f, "@th,64,128 {:#034x}", target.to_bits())
            }
            BridgeMatch::TargetIn(first, last) => {
                let (first, last) = (first.to_bits(), last.to_bits());
                write!(f, "@th,64,128 {first:#034x}-{last:#034x}")
            }
            BridgeMatch::TargetLinkLocal => {
                let bits = |segment| Ipv6Addr::new(segment, 0, 0, 0, 0, 0, 0, 0).to_bits();
                let (mask, prefix) = (bits(0xffc0), bits(LINK_LOCAL));
                write!(f, "@th,64,128 & {mask:#034x} == {prefix:#034x}")
            }
            BridgeMatch::PortMap(map) => write!(f, "iifname vmap @{map}"),
        }
    }
}

/// EtherTypes in nft's spelling.
fn ether_types(types: &[u16]) -> String {
    let name = |kind: &u16| match i32::from(*kind) {
        libc::ETH_P_IP => "ip".to_owned(),
        libc::ETH_P_ARP => "arp".to_owned(),
        libc::ETH_P_IPV6 => "ip6".to_owned(),
        libc::ETH_P_8021Q => "8021q".to_owned(),
        libc::ETH_P_8021AD => "8021ad".to_owned(),
        other => format!("{other:#06x}"),
    };
    let names: Vec<String> = types.iter().map(name).collect();
    names.join(", ")
}
