//! The conditions of the table of family bridge, which keeps out what the other table cannot judge. [`rules`] makes rules of
//! them.

#![expect(
    clippy::cast_possible_truncation,
    reason = "EtherTypes: `int` in the kernel's headers, 16 bits in a frame"
)]

mod forwarded;
mod rules;
mod sets;

use std::{fmt, net::Ipv6Addr};

use crate::nft::command::Family;

pub use rules::{COUNTING, changes, commands, holds_for_unknown, reason};
pub use sets::{Ground, KnownPort, UnknownPorts};

/// An end of a frame's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Where it comes from.
    Source,
    /// Where it goes to.
    Destination,
}

/// The EtherTypes that policy judges, IPv4 and IPv6, and ARP, without which there is no IPv4.
pub const JUDGED: [u16; 3] = [
    libc::ETH_P_IP as u16,
    libc::ETH_P_ARP as u16,
    libc::ETH_P_IPV6 as u16,
];

/// The same, and 802.1Q's.
pub const JUDGED_OR_TAGGED: [u16; 4] = [
    libc::ETH_P_IP as u16,
    libc::ETH_P_ARP as u16,
    libc::ETH_P_8021Q as u16,
    libc::ETH_P_IPV6 as u16,
];

/// The EtherTypes of the VLAN tags that a bridge may put on frames and take off: 802.1Q and 802.1ad (`br_vlan_set_proto` of the
/// kernel).
pub const TAGS: [u16; 2] = [libc::ETH_P_8021Q as u16, libc::ETH_P_8021AD as u16];

/// The first 16 bits of link-local addresses, fe80::/10 (RFC 4291, section 2.5.6).
pub const LINK_LOCAL: u16 = 0xfe80;

/// A condition of a rule of the table of family bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BridgeMatch {
    /// The port at an end is in a set (`true`), or is not.
    Port(End, bool, String),
    /// The packet in the frame is of a protocol, behind a VLAN tag or not.
    Protocol(u16),
    /// The frame has a VLAN tag, of [`TAGS`].
    Tagged,
    /// Its EtherType is none of [`JUDGED`]: a VLAN tag, among others.
    NeverJudged,
    /// Its EtherType is none of [`JUDGED`] and not 802.1Q's.
    NeverJudgedOrTagged,
    /// The packet in the frame is of none of [`JUDGED`]: among others, behind a VLAN tag there is another one, or there was
    /// one more, which a bridge took off. Such frames br_netfilter shows nobody.
    NeverJudgedInside,
    /// It is sent to all, or to a group.
    GroupAddressed,
    /// The port at an end, with the address at that end, is in a set.
    PortAddress(End, Family, String),
    /// It is ARP's, and the port that it comes in by, with the address that its sender claims, is in a set.
    PortArpSender(String),
    /// It is ARP's, and its sender claims no address yet (RFC 5227).
    ArpProbe,
    /// The packet's source is the unspecified address.
    NoSource(Family),
    /// The address at an end is link-local: in fe80::/10.
    LinkLocal(End),
    /// ICMP of a type.
    Icmp(u8),
    /// ICMPv6 of one of some types.
    Icmpv6(&'static [u8]),
    /// UDP of a family, from a port to a port.
    Udp(Family, u16, u16),
    /// The target of neighbour discovery is this address. Of packets that are known to be that alone.
    Target(Ipv6Addr),
    /// The target of neighbour discovery is one of these addresses, both ends included. Of packets that are known to be that
    /// alone.
    TargetIn(Ipv6Addr, Ipv6Addr),
    /// The target of neighbour discovery is link-local. Of packets that are known to be that alone.
    TargetLinkLocal,
    /// The verdict is what a map says of the port that it comes in by.
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
            BridgeMatch::Tagged => f.write_str("ether type { 8021q, 8021ad }"),
            BridgeMatch::NeverJudged => f.write_str("ether type != { ip, arp, ip6 }"),
            BridgeMatch::NeverJudgedOrTagged => {
                f.write_str("ether type != { ip, arp, 8021q, ip6 }")
            }
            BridgeMatch::NeverJudgedInside => f.write_str("meta protocol != { ip, arp, ip6 }"),
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
