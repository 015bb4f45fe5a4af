//! The table of family bridge, which drops frames that the other table cannot judge. Its sets and rules are made from
//! the known ports of the node's bridges.

#![expect(
    clippy::cast_possible_truncation,
    reason = "EtherTypes: `int` in the kernel's headers, 16 bits in a frame"
)]

mod forwarded;
mod rules;
mod sets;

use sallyport_nft::bridge::BridgeMatch;

pub use rules::{COUNTING, changes, commands, holds_for_unknown, reason};
pub use sets::{Ground, KnownPort, UnknownPorts};

/// The EtherTypes that policy judges: IPv4, IPv6, and ARP, which IPv4 needs.
const JUDGED: [u16; 3] = [
    libc::ETH_P_IP as u16,
    libc::ETH_P_ARP as u16,
    libc::ETH_P_IPV6 as u16,
];

/// The EtherTypes that policy judges, and 802.1Q's.
const JUDGED_OR_TAGGED: [u16; 4] = [
    libc::ETH_P_IP as u16,
    libc::ETH_P_ARP as u16,
    libc::ETH_P_8021Q as u16,
    libc::ETH_P_IPV6 as u16,
];

/// The EtherTypes of the VLAN tags that a bridge may put on frames and take off: 802.1Q and 802.1ad
/// (`br_vlan_set_proto` of the kernel).
const TAGS: [u16; 2] = [libc::ETH_P_8021Q as u16, libc::ETH_P_8021AD as u16];

/// The EtherType in the Ethernet header is none that policy judges. The EtherType may be that of a VLAN tag.
const OTHER_TYPE: BridgeMatch = BridgeMatch::EtherType(false, &JUDGED);

/// The EtherType in the Ethernet header is none that policy judges, and not that of 802.1Q's tag.
const OTHER_TYPE_OR_TAG: BridgeMatch = BridgeMatch::EtherType(false, &JUDGED_OR_TAGGED);

/// The packet in the frame is of no protocol that policy judges. Behind its VLAN tag there is another one, or a bridge
/// took one more off. br_netfilter shows such frames to no chain.
const OTHER_TYPE_INSIDE: BridgeMatch = BridgeMatch::ProtocolNotIn(&JUDGED);

/// The frame has a VLAN tag.
const TAGGED: BridgeMatch = BridgeMatch::EtherType(true, &TAGS);
