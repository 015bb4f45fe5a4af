//! A rule's conditions and verdict as nf_tables expressions.

use rustables::sys;

use crate::{
    bridge::End,
    command::{Family, Match, TableFamily, Tuple, Verdict},
    encode::{
        attributes::Attributes,
        sets::{Anonymous, nfproto, octets, padded, verdict_data},
    },
};

mod bridge;

/// The first 16-byte register; the verdict register is 0.
const REG: u32 = sys::NFT_REG_1;

/// The 4-byte register right behind the first one (`NFT_REG32_01`), and the 16-byte one.
const SECOND_V4: u32 = sys::NFT_REG32_01;
const SECOND_V6: u32 = sys::NFT_REG_2;

/// The 16-byte register behind the one that holds the name of an interface.
const BEHIND_NAME: u32 = sys::NFT_REG_2;

/// The register behind the first one, where that holds an address.
fn second(family: Family) -> u32 {
    match family {
        Family::V4 => SECOND_V4,
        Family::V6 => SECOND_V6,
    }
}

/// IANA protocol numbers of TCP, UDP and SCTP, whose ports rules can match.
const WITH_PORTS: [u8; 3] = [6, 17, 132];

/// IANA protocol numbers of ICMP and of ICMPv6, whose errors belong to other connections.
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// ICMPv6 types that keep a link working: MLD (RFC 2710, RFC 3810) and neighbour discovery (RFC 4861).
const NEIGHBOUR_DISCOVERY: [u8; 9] = [130, 131, 132, 133, 134, 135, 136, 137, 143];

/// The kind of bridges (`br_link_ops` of the kernel).
const BRIDGE: &str = "bridge";

/// Flags of TCP in the byte of its header that holds them (RFC 9293, section 3.1).
const TCP_FIN: u8 = 1;
const TCP_SYN: u8 = 2;
const TCP_RST: u8 = 4;
const TCP_ACK: u8 = 16;

/// SCTP's chunk type INIT (RFC 9260, section 3.2). The first chunk follows a header of 12 bytes.
const SCTP_INIT: u8 = 1;

/// A list of expressions under way.
pub(super) struct Expressions {
    family: TableFamily,
    pub(super) list: Attributes,
}

/// Makes an anonymous set in the same batch, and returns its name and id.
type MakeSet<'a> = &'a mut dyn FnMut(Anonymous<'_>) -> (&'static str, u32);

impl Expressions {
    pub(super) fn of(family: TableFamily) -> Expressions {
        Expressions {
            family,
            list: Attributes::default(),
        }
    }

    fn add(&mut self, name: &str, data: &Attributes) {
        let mut expression = Attributes::default();
        expression
            .text(sys::NFTA_EXPR_NAME, name)
            .nest(sys::NFTA_EXPR_DATA, data);
        self.list.nest(sys::NFTA_LIST_ELEM, &expression);
    }

    pub(super) fn condition(&mut self, condition: &Match, make_set: MakeSet<'_>) {
        match condition {
            // NF_CT_STATE_INVALID_BIT, NF_CT_STATE_UNTRACKED_BIT
            Match::NoConnection => self.state(1 | 64),
            // NF_CT_STATE_BIT of IP_CT_ESTABLISHED and IP_CT_RELATED
            Match::Established => self.state(2 | 4),
            // NF_CT_STATE_BIT of IP_CT_NEW. A packet has one state: comparing it whole saves each packet a mask.
            Match::New => {
                self.ct(sys::NFT_CT_STATE, None, REG);
                self.compare(sys::NFT_CMP_EQ, &8u32.to_ne_bytes());
            }
            Match::NotUdp => {
                self.meta(sys::NFT_META_L4PROTO);
                self.compare(sys::NFT_CMP_NEQ, &[libc::IPPROTO_UDP as u8]);
            }
            Match::NoTcpBeginning => {
                self.protocol(libc::IPPROTO_TCP);
                self.payload(sys::NFT_PAYLOAD_TRANSPORT_HEADER, 13, 1, REG);
                self.mask(&[TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK]);
                self.compare(sys::NFT_CMP_NEQ, &[TCP_SYN]);
            }
            Match::NoSctpBeginning => {
                self.protocol(libc::IPPROTO_SCTP);
                self.payload(sys::NFT_PAYLOAD_TRANSPORT_HEADER, 12, 1, REG);
                self.compare(sys::NFT_CMP_NEQ, &[SCTP_INIT]);
            }
            Match::DirectionOriginal => {
                self.ct(sys::NFT_CT_DIRECTION, None, REG);
                self.compare(sys::NFT_CMP_EQ, &[0]);
            }
            Match::DirectionReply => {
                self.ct(sys::NFT_CT_DIRECTION, None, REG);
                self.compare(sys::NFT_CMP_EQ, &[1]);
            }
            Match::NeighbourDiscovery => {
                self.protocol(libc::IPPROTO_ICMPV6);
                self.payload(sys::NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1, REG);
                let (name, id) = make_set(Anonymous::Bytes {
                    datatype: 29, // TYPE_ICMP6_TYPE of nft
                    values: &NEIGHBOUR_DISCOVERY,
                });
                self.lookup(name, Some(id), None, false);
            }
            Match::TupleSource(tuple, family, set) => {
                self.tuple_source(*tuple, *family, REG);
                self.lookup(set, None, None, false);
            }
            Match::TupleRange(tuple, first, last) => {
                self.tuple_source(*tuple, Family::of(*first), REG);
                match first == last {
                    true => self.compare(sys::NFT_CMP_EQ, &octets(*first)),
                    false => self.range(&octets(*first), &octets(*last)),
                }
            }
            Match::TupleSourceMap(tuple, family, map) => {
                self.tuple_source(*tuple, *family, REG);
                self.lookup(map, None, Some(0), false);
            }
            Match::TupleSources(family, set) => {
                self.tuple_source(Tuple::Original, *family, REG);
                self.tuple_source(Tuple::Reply, *family, second(*family));
                self.lookup(set, None, None, false);
            }
            Match::TupleSourceTwice(tuple, family, set) => {
                self.tuple_source(*tuple, *family, REG);
                self.tuple_source(*tuple, *family, second(*family));
                self.lookup(set, None, None, false);
            }
            Match::SourceTwice(family, set) => {
                self.header_address(*family, true, &[REG, second(*family)]);
                self.lookup(set, None, None, false);
            }
            Match::DestinationTwice(family, set) => {
                self.header_address(*family, false, &[REG, second(*family)]);
                self.lookup(set, None, None, false);
            }
            Match::Family(set) => {
                self.meta(sys::NFT_META_NFPROTO);
                self.lookup(set, None, None, false);
            }
            Match::Source(family, set) => {
                self.header_address(*family, true, &[REG]);
                self.lookup(set, None, None, false);
            }
            Match::Destination(family, set) => {
                self.header_address(*family, false, &[REG]);
                self.lookup(set, None, None, false);
            }
            Match::SourceMap(family, map) => {
                self.header_address(*family, true, &[REG]);
                self.lookup(map, None, Some(0), false);
            }
            Match::DestinationMap(family, map) => {
                self.header_address(*family, false, &[REG]);
                self.lookup(map, None, Some(0), false);
            }
            Match::InputIn(set) => {
                self.meta(sys::NFT_META_IIFNAME);
                self.lookup(set, None, None, false);
            }
            Match::OutputIn(set) => {
                self.meta(sys::NFT_META_OIFNAME);
                self.lookup(set, None, None, false);
            }
            Match::InputSource(family, set) => {
                let (offset, length) = bridge::address(End::Source, *family);
                self.is_of(*family);
                self.meta(sys::NFT_META_IIFNAME);
                self.payload(sys::NFT_PAYLOAD_NETWORK_HEADER, offset, length, BEHIND_NAME);
                self.lookup(set, None, None, false);
            }
            Match::InputInterface(name) => self.interface(sys::NFT_META_IIFNAME, name),
            Match::OutputInterface(name) => self.interface(sys::NFT_META_OIFNAME, name),
            Match::ByBridge => {
                self.meta(sys::NFT_META_IIFKIND);
                self.compare(sys::NFT_CMP_EQ, &padded(BRIDGE));
            }
            Match::ReversePath => {
                let flags = sys::NFTA_FIB_F_SADDR | sys::NFTA_FIB_F_IIF | sys::NFTA_FIB_F_PRESENT;
                let mut data = Attributes::default();
                data.u32(sys::NFTA_FIB_DREG, REG)
                    .u32(sys::NFTA_FIB_RESULT, sys::NFT_FIB_RESULT_OIF)
                    .u32(sys::NFTA_FIB_FLAGS, flags);
                self.add("fib", &data);
                // The first byte is 1 (`nft_reg_store8`). nft lists the comparison of the whole register alone.
                self.compare(sys::NFT_CMP_EQ, &[1, 0, 0, 0]);
            }
            Match::Protocol(number) => {
                self.ct(sys::NFT_CT_PROTOCOL, Some(Tuple::Original), REG);
                self.compare(sys::NFT_CMP_EQ, &[*number]);
            }
            Match::PacketProtocol(number) => self.protocol(i32::from(*number)),
            Match::ProtocolWithoutPorts => {
                self.ct(sys::NFT_CT_PROTOCOL, Some(Tuple::Original), REG);
                let (name, id) = make_set(Anonymous::Bytes {
                    datatype: 12, // TYPE_INET_PROTOCOL of nft
                    values: &WITH_PORTS,
                });
                self.lookup(name, Some(id), None, true);
            }
            Match::ProtocolOrError(number) => {
                self.meta(sys::NFT_META_L4PROTO);
                let (name, id) = make_set(Anonymous::Bytes {
                    datatype: 12, // TYPE_INET_PROTOCOL of nft
                    values: &[ICMP, *number, ICMPV6],
                });
                self.lookup(name, Some(id), None, false);
            }
            Match::ServerPort(first, last) => {
                self.ct(sys::NFT_CT_PROTO_SRC, Some(Tuple::Reply), REG);
                match first == last {
                    true => self.compare(sys::NFT_CMP_EQ, &first.to_be_bytes()),
                    false => self.range(&first.to_be_bytes(), &last.to_be_bytes()),
                }
            }
            Match::ServerPortMap(ports) => {
                self.ct(sys::NFT_CT_PROTO_SRC, Some(Tuple::Reply), REG);
                let (name, id) = make_set(Anonymous::Ports(ports));
                self.lookup(name, Some(id), Some(0), false);
            }
            Match::Bridge(condition) => self.bridge_condition(condition, make_set),
        }
    }

    pub(super) fn counter(&mut self) {
        self.add("counter", &Attributes::default());
    }

    pub(super) fn verdict(&mut self, verdict: &Verdict) {
        let mut data = Attributes::default();
        if *verdict == Verdict::Reset {
            data.u32(sys::NFTA_REJECT_TYPE, sys::NFT_REJECT_TCP_RST);
            return self.add("reject", &data);
        }
        data.u32(sys::NFTA_IMMEDIATE_DREG, sys::NFT_REG_VERDICT)
            .nest(sys::NFTA_IMMEDIATE_DATA, &verdict_data(verdict));
        self.add("immediate", &data);
    }

    /// Whether the connection's state is one of some.
    fn state(&mut self, bits: u32) {
        self.ct(sys::NFT_CT_STATE, None, REG);
        self.mask(&bits.to_ne_bytes());
        self.compare(sys::NFT_CMP_NEQ, &0u32.to_ne_bytes());
    }

    fn tuple_source(&mut self, tuple: Tuple, family: Family, register: u32) {
        // NFT_CT_SRC_IP, NFT_CT_SRC_IP6
        let key = match family {
            Family::V4 => 19,
            Family::V6 => 21,
        };
        self.ct(key, Some(tuple), register);
    }

    fn ct(&mut self, key: u32, tuple: Option<Tuple>, register: u32) {
        let mut data = Attributes::default();
        data.u32(sys::NFTA_CT_DREG, register)
            .u32(sys::NFTA_CT_KEY, key);
        if let Some(tuple) = tuple {
            let direction = match tuple {
                Tuple::Original => 0,
                Tuple::Reply => 1,
            };
            data.bytes(sys::NFTA_CT_DIRECTION, &[direction]);
        }
        self.add("ct", &data);
    }

    /// Whether the packet itself is of an IP protocol.
    fn protocol(&mut self, number: i32) {
        self.meta(sys::NFT_META_L4PROTO);
        self.compare(sys::NFT_CMP_EQ, &[number.cast_unsigned() as u8]);
    }

    fn meta(&mut self, key: u32) {
        let mut data = Attributes::default();
        data.u32(sys::NFTA_META_DREG, REG)
            .u32(sys::NFTA_META_KEY, key);
        self.add("meta", &data);
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32, register: u32) {
        let mut data = Attributes::default();
        data.u32(sys::NFTA_PAYLOAD_DREG, register)
            .u32(sys::NFTA_PAYLOAD_BASE, base)
            .u32(sys::NFTA_PAYLOAD_OFFSET, offset)
            .u32(sys::NFTA_PAYLOAD_LEN, length);
        self.add("payload", &data);
    }

    /// Loads an address of the packet's own header into registers, if the packet is of the family (RFC 791, RFC 8200).
    fn header_address(&mut self, family: Family, source: bool, registers: &[u32]) {
        let (source_offset, length) = match family {
            Family::V4 => (12, 4),
            Family::V6 => (8, 16),
        };
        self.is_of(family);
        let offset = if source {
            source_offset
        } else {
            source_offset + length
        };
        for &register in registers {
            self.payload(sys::NFT_PAYLOAD_NETWORK_HEADER, offset, length, register);
        }
    }

    /// Whether the packet is of a family. In a table of family bridge all frames are of one family of nf_tables, and
    /// the EtherType gives the packet's.
    fn is_of(&mut self, family: Family) {
        match self.family {
            TableFamily::Inet => {
                self.meta(sys::NFT_META_NFPROTO);
                self.compare(sys::NFT_CMP_EQ, &[nfproto(family)]);
            }
            TableFamily::Bridge => self.ether_protocol(bridge::ether_type(family)),
        }
    }

    /// Compares the name of an interface with all its 16 bytes, or a prefix with as many as it has.
    fn interface(&mut self, key: u32, name: &str) {
        self.meta(key);
        match name.strip_suffix('*') {
            Some(prefix) => self.compare(sys::NFT_CMP_EQ, prefix.as_bytes()),
            None => {
                self.compare(sys::NFT_CMP_EQ, &padded(name));
            }
        }
    }

    fn compare(&mut self, operation: u32, value: &[u8]) {
        let mut operand = Attributes::default();
        operand.bytes(sys::NFTA_DATA_VALUE, value);
        let mut data = Attributes::default();
        data.u32(sys::NFTA_CMP_SREG, REG)
            .u32(sys::NFTA_CMP_OP, operation)
            .nest(sys::NFTA_CMP_DATA, &operand);
        self.add("cmp", &data);
    }

    /// Whether the register is between two values, or one of them.
    fn range(&mut self, first: &[u8], last: &[u8]) {
        let value = |bytes: &[u8]| {
            let mut value = Attributes::default();
            value.bytes(sys::NFTA_DATA_VALUE, bytes);
            value
        };
        let mut data = Attributes::default();
        data.u32(sys::NFTA_RANGE_SREG, REG)
            .u32(sys::NFTA_RANGE_OP, sys::NFT_RANGE_EQ)
            .nest(sys::NFTA_RANGE_FROM_DATA, &value(first))
            .nest(sys::NFTA_RANGE_TO_DATA, &value(last));
        self.add("range", &data);
    }

    fn mask(&mut self, mask: &[u8]) {
        let value = |bytes: &[u8]| {
            let mut value = Attributes::default();
            value.bytes(sys::NFTA_DATA_VALUE, bytes);
            value
        };
        let mut data = Attributes::default();
        data.u32(sys::NFTA_BITWISE_SREG, REG)
            .u32(sys::NFTA_BITWISE_DREG, REG)
            .u32(sys::NFTA_BITWISE_LEN, mask.len() as u32)
            .nest(sys::NFTA_BITWISE_MASK, &value(mask))
            .nest(sys::NFTA_BITWISE_XOR, &value(&vec![0; mask.len()]));
        self.add("bitwise", &data);
    }

    fn lookup(&mut self, set: &str, id: Option<u32>, register: Option<u32>, inverted: bool) {
        let mut data = Attributes::default();
        data.text(sys::NFTA_LOOKUP_SET, set)
            .u32(sys::NFTA_LOOKUP_SREG, REG);
        if let Some(register) = register {
            data.u32(sys::NFTA_LOOKUP_DREG, register);
        }
        if let Some(id) = id {
            data.u32(sys::NFTA_LOOKUP_SET_ID, id);
        }
        if inverted {
            data.u32(sys::NFTA_LOOKUP_FLAGS, sys::NFT_LOOKUP_F_INV);
        }
        self.add("lookup", &data);
    }
}
