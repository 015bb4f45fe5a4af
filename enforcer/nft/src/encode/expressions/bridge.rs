//! The conditions of a table of family bridge as nf_tables expressions.
//!
//! The kernel removes the outer VLAN tag from each frame that comes in, and keeps the tag beside the frame
//! (`__netif_receive_skb_core`). A read of the Ethernet header includes that tag (`nft_payload_copy_vlan`), so that the
//! EtherType there is the tag's. `meta protocol` and the headers of the packet are behind the tag. Where there is more
//! than one tag, `meta protocol` is the next.

use std::net::Ipv6Addr;

use rustables::sys;

use super::{BEHIND_NAME, Expressions, MakeSet, REG};
use crate::{
    bridge::{BridgeMatch, End, LINK_LOCAL},
    command::Family,
    encode::sets::Anonymous,
};

/// The offset of the EtherType in the Ethernet header (IEEE 802.3, clause 3.2).
const ETHER_TYPE: u32 = 12;

/// The offset of the sender's address in ARP over Ethernet for IPv4 (RFC 826).
const ARP_SENDER: u32 = 14;

/// The offset of the target in neighbour discovery (RFC 4861, sections 4.3 and 4.4).
const TARGET: u32 = 8;

/// The EtherType of a family's packets (IANA, IEEE 802 numbers).
pub(super) fn ether_type(family: Family) -> u16 {
    match family {
        Family::V4 => libc::ETH_P_IP as u16,
        Family::V6 => libc::ETH_P_IPV6 as u16,
    }
}

impl Expressions {
    pub(super) fn bridge_condition(&mut self, condition: &BridgeMatch, make_set: MakeSet<'_>) {
        match condition {
            BridgeMatch::Port(end, listed, set) => {
                self.meta(name_of(*end));
                self.lookup(set, None, None, !listed);
            }
            BridgeMatch::Protocol(kind) => self.ether_protocol(*kind),
            BridgeMatch::ProtocolNotIn(types) => {
                self.meta(sys::NFT_META_PROTOCOL);
                let (name, id) = make_set(Anonymous::EtherTypes(types));
                self.lookup(name, Some(id), None, true);
            }
            BridgeMatch::EtherType(listed, types) => {
                self.payload(sys::NFT_PAYLOAD_LL_HEADER, ETHER_TYPE, 2, REG);
                let (name, id) = make_set(Anonymous::EtherTypes(types));
                self.lookup(name, Some(id), None, !listed);
            }
            BridgeMatch::GroupAddressed => {
                self.payload(sys::NFT_PAYLOAD_LL_HEADER, 0, 6, REG);
                self.mask(&[1, 0, 0, 0, 0, 0]);
                self.compare(sys::NFT_CMP_NEQ, &[0; 6]);
            }
            BridgeMatch::PortAddress(end, family, set) => {
                let (offset, length) = address(*end, *family);
                self.is_of(*family);
                self.meta(name_of(*end));
                self.payload(sys::NFT_PAYLOAD_NETWORK_HEADER, offset, length, BEHIND_NAME);
                self.lookup(set, None, None, false);
            }
            BridgeMatch::PortArpSender(set) => {
                self.ether_protocol(libc::ETH_P_ARP as u16);
                self.meta(sys::NFT_META_IIFNAME);
                self.payload(sys::NFT_PAYLOAD_NETWORK_HEADER, ARP_SENDER, 4, BEHIND_NAME);
                self.lookup(set, None, None, false);
            }
            BridgeMatch::ArpProbe => {
                self.ether_protocol(libc::ETH_P_ARP as u16);
                self.payload(sys::NFT_PAYLOAD_NETWORK_HEADER, ARP_SENDER, 4, REG);
                self.compare(sys::NFT_CMP_EQ, &[0; 4]);
            }
            BridgeMatch::NoSource(family) => {
                let (offset, length) = address(End::Source, *family);
                self.is_of(*family);
                self.payload(sys::NFT_PAYLOAD_NETWORK_HEADER, offset, length, REG);
                self.compare(sys::NFT_CMP_EQ, &vec![0; length as usize]);
            }
            BridgeMatch::LinkLocal(end) => {
                let (offset, length) = address(*end, Family::V6);
                self.is_of(Family::V6);
                self.payload(sys::NFT_PAYLOAD_NETWORK_HEADER, offset, length, REG);
                self.is_link_local();
            }
            BridgeMatch::Icmp(kind) => {
                self.is_of(Family::V4);
                self.protocol(libc::IPPROTO_ICMP);
                self.payload(sys::NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1, REG);
                self.compare(sys::NFT_CMP_EQ, &[*kind]);
            }
            BridgeMatch::Icmpv6(kinds) => {
                self.is_of(Family::V6);
                self.protocol(libc::IPPROTO_ICMPV6);
                self.payload(sys::NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1, REG);
                if let [kind] = kinds {
                    return self.compare(sys::NFT_CMP_EQ, &[*kind]);
                }
                let (name, id) = make_set(Anonymous::Bytes {
                    datatype: 29, // TYPE_ICMP6_TYPE of nft
                    values: kinds,
                });
                self.lookup(name, Some(id), None, false);
            }
            BridgeMatch::Udp(family, from, to) => {
                self.is_of(*family);
                self.protocol(libc::IPPROTO_UDP);
                self.payload(sys::NFT_PAYLOAD_TRANSPORT_HEADER, 0, 4, REG);
                let ports = [from.to_be_bytes(), to.to_be_bytes()].concat();
                self.compare(sys::NFT_CMP_EQ, &ports);
            }
            BridgeMatch::Target(target) => {
                self.payload(sys::NFT_PAYLOAD_TRANSPORT_HEADER, TARGET, 16, REG);
                self.compare(sys::NFT_CMP_EQ, &target.octets());
            }
            BridgeMatch::TargetIn(first, last) => {
                self.payload(sys::NFT_PAYLOAD_TRANSPORT_HEADER, TARGET, 16, REG);
                self.compare(sys::NFT_CMP_GTE, &first.octets());
                self.compare(sys::NFT_CMP_LTE, &last.octets());
            }
            BridgeMatch::TargetLinkLocal => {
                self.payload(sys::NFT_PAYLOAD_TRANSPORT_HEADER, TARGET, 16, REG);
                self.is_link_local();
            }
            BridgeMatch::PortMap(map) => {
                self.meta(sys::NFT_META_IIFNAME);
                self.lookup(map, None, Some(0), false);
            }
        }
    }

    /// Whether the packet in the frame is of a protocol, by its EtherType.
    pub(super) fn ether_protocol(&mut self, kind: u16) {
        self.meta(sys::NFT_META_PROTOCOL);
        self.compare(sys::NFT_CMP_EQ, &kind.to_be_bytes());
    }

    /// Whether the address in the register is in fe80::/10 (RFC 4291, section 2.5.6).
    fn is_link_local(&mut self) {
        let prefix = |segment| Ipv6Addr::new(segment, 0, 0, 0, 0, 0, 0, 0).octets();
        self.mask(&prefix(0xffc0));
        self.compare(sys::NFT_CMP_EQ, &prefix(LINK_LOCAL));
    }
}

fn name_of(end: End) -> u32 {
    match end {
        End::Source => sys::NFT_META_IIFNAME,
        End::Destination => sys::NFT_META_OIFNAME,
    }
}

/// The offset and the length of an address in an IP header (RFC 791, RFC 8200).
pub(super) fn address(end: End, family: Family) -> (u32, u32) {
    let (source, length) = match family {
        Family::V4 => (12, 4),
        Family::V6 => (8, 16),
    };
    match end {
        End::Source => (source, length),
        End::Destination => (source + length, length),
    }
}
