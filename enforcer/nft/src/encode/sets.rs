//! Sets, maps and their elements as attributes.

use std::{net::IpAddr, time::Duration};

use rustables::sys;

use super::attributes::Attributes;
use crate::command::{Element, Family, SetKind, Verdict};

/// A set that belongs to one rule and never changes.
pub(super) enum Anonymous<'a> {
    /// Single numbers of one byte.
    Bytes { datatype: u32, values: &'a [u8] },
    /// EtherTypes.
    EtherTypes(&'a [u16]),
    /// Ports and verdicts.
    Ports(&'a [(u16, u16, Verdict)]),
}

impl Anonymous<'_> {
    pub(super) fn describe(&self) -> (&'static str, SetDescription, Vec<Attributes>) {
        let fixed = sys::NFT_SET_ANONYMOUS | sys::NFT_SET_CONSTANT;
        match self {
            Anonymous::Bytes { datatype, values } => (
                "__set%d",
                SetDescription {
                    flags: fixed,
                    datatype: *datatype,
                    length: 1,
                    concatenated: None,
                },
                values.iter().map(|value| key_element(&[*value])).collect(),
            ),
            Anonymous::EtherTypes(types) => (
                "__set%d",
                SetDescription {
                    flags: fixed,
                    datatype: 10, // TYPE_ETHERTYPE of nft
                    length: 2,
                    concatenated: None,
                },
                types
                    .iter()
                    .map(|value| key_element(&value.to_be_bytes()))
                    .collect(),
            ),
            Anonymous::Ports(ports) => {
                let ranges = ports.iter().any(|(first, last, _)| first != last);
                let interval = if ranges { sys::NFT_SET_INTERVAL } else { 0 };
                let description = SetDescription {
                    flags: fixed | sys::NFT_SET_MAP | interval,
                    datatype: 13, // TYPE_INET_SERVICE of nft
                    length: 2,
                    concatenated: None,
                };
                ("__map%d", description, port_elements(ports, ranges))
            }
        }
    }
}

fn port_elements(ports: &[(u16, u16, Verdict)], ranges: bool) -> Vec<Attributes> {
    let mut elements = Vec::new();
    if ranges && ports.first().is_some_and(|&(first, ..)| first > 0) {
        elements.push(end_element(&0u16.to_be_bytes()));
    }
    for (i, (first, last, verdict)) in ports.iter().enumerate() {
        let mut element = key_element(&first.to_be_bytes());
        element.nest(sys::NFTA_SET_ELEM_DATA, &verdict_data(verdict));
        elements.push(element);
        let next = ports.get(i + 1).map(|&(first, ..)| u32::from(first));
        let end = u32::from(*last) + 1;
        // The start of the next range ends this one, if it is right behind.
        if ranges && end <= u32::from(u16::MAX) && next != Some(end) {
            elements.push(end_element(&(end as u16).to_be_bytes()));
        }
    }
    elements
}

/// The properties of a set that the kernel needs, and nft when it lists the set.
pub(crate) struct SetDescription {
    pub(crate) flags: u32,
    /// The key's type, in nft's numbers (`enum datatypes` of its source). The kernel keeps the number for nft.
    pub(crate) datatype: u32,
    pub(crate) length: u32,
    /// The lengths of two concatenated fields.
    concatenated: Option<[u32; 2]>,
}

impl SetDescription {
    pub(crate) fn of(kind: SetKind) -> SetDescription {
        let address = |family| match family {
            Family::V4 => (7, 4),
            Family::V6 => (8, 16),
        };
        let (flags, (datatype, length), concatenated) = match kind {
            SetKind::Addresses(family) => (0, address(family), None),
            SetKind::Ranges(family) => (sys::NFT_SET_INTERVAL, address(family), None),
            SetKind::Verdicts(family) => (sys::NFT_SET_MAP, address(family), None),
            SetKind::Pairs(family) => {
                let (datatype, length) = address(family);
                let pair = (datatype << 6 | datatype, 2 * length);
                (NFT_SET_CONCAT, pair, Some([length; 2]))
            }
            SetKind::Interfaces => (0, IFNAME, None),
            SetKind::InterfaceVerdicts => (sys::NFT_SET_MAP, IFNAME, None),
            SetKind::InterfaceAddresses(family) => {
                let ((name, name_length), (datatype, length)) = (IFNAME, address(family));
                let pair = (name << 6 | datatype, name_length + length);
                (NFT_SET_CONCAT, pair, Some([name_length, length]))
            }
            SetKind::InterfaceRanges(family) => {
                let single = SetDescription::of(SetKind::InterfaceAddresses(family));
                return SetDescription {
                    flags: single.flags | sys::NFT_SET_INTERVAL,
                    ..single
                };
            }
            SetKind::Numbers => (0, (19, 4), None),
            SetKind::Families => (sys::NFT_SET_TIMEOUT, (2, 1), None), // TYPE_NFPROTO of nft
        };
        SetDescription {
            flags,
            datatype,
            length,
            concatenated,
        }
    }

    pub(super) fn attributes(&self, table: &str, name: &str, id: u32) -> Attributes {
        let mut body = Attributes::default();
        body.text(sys::NFTA_SET_TABLE, table)
            .text(sys::NFTA_SET_NAME, name)
            .u32(sys::NFTA_SET_FLAGS, self.flags)
            .u32(sys::NFTA_SET_KEY_TYPE, self.datatype)
            .u32(sys::NFTA_SET_KEY_LEN, self.length);
        if self.flags & sys::NFT_SET_MAP != 0 {
            body.u32(sys::NFTA_SET_DATA_TYPE, sys::NFT_DATA_VERDICT);
        }
        if let Some(lengths) = self.concatenated {
            let mut fields = Attributes::default();
            for length in lengths {
                let mut field = Attributes::default();
                field.u32(1, length); // NFTA_SET_FIELD_LEN
                fields.nest(sys::NFTA_LIST_ELEM, &field);
            }
            let mut description = Attributes::default();
            description.nest(2, &fields); // NFTA_SET_DESC_CONCAT
            body.nest(sys::NFTA_SET_DESC, &description);
        }
        body.u32(sys::NFTA_SET_ID, id);
        body
    }
}

/// The name of an interface as a key: its type in nft's numbers (TYPE_IFNAME), and its length.
const IFNAME: (u32, u32) = (41, libc::IFNAMSIZ as u32);

/// `NFT_SET_CONCAT`, Linux 5.6.
const NFT_SET_CONCAT: u32 = 0x80;

pub(super) fn element(element: &Element, whole: bool) -> Attributes {
    match element {
        Element::Verdict(address, ..) if !whole => key_element(&octets(*address)),
        Element::Number(number, _) if !whole => key_element(&number.to_be_bytes()),
        Element::Family(family, _) if !whole => key_element(&[nfproto(*family)]),
        Element::Family(family, lasts) => {
            let mut element = key_element(&[nfproto(*family)]);
            element.u64(sys::NFTA_SET_ELEM_TIMEOUT, millis(*lasts));
            element
        }
        Element::Interface(name) => key_element(&padded(name)),
        Element::InterfaceVerdict(name, _) if !whole => key_element(&padded(name)),
        Element::InterfaceVerdict(name, verdict) => {
            let mut element = key_element(&padded(name));
            element.nest(sys::NFTA_SET_ELEM_DATA, &verdict_data(verdict));
            element
        }
        Element::InterfaceAddress(name, address) => {
            key_element(&[&padded(name)[..], &octets(*address)].concat())
        }
        Element::InterfaceRange(name, first, last) => {
            let key = |address| [&padded(name)[..], &octets(address)].concat();
            let mut value = Attributes::default();
            value.bytes(sys::NFTA_DATA_VALUE, &key(*last));
            let mut element = key_element(&key(*first));
            // Each field is a range of its own here. The range of the name holds one name (`nft_pipapo_insert` of the
            // kernel).
            element.nest(sys::NFTA_SET_ELEM_KEY_END, &value);
            element
        }
        Element::Address(address) => key_element(&octets(*address)),
        Element::Pair(address) => key_element(&octets(*address).repeat(2)),
        Element::Verdict(address, verdict, comment) => {
            let mut element = key_element(&octets(*address));
            element
                .nest(sys::NFTA_SET_ELEM_DATA, &verdict_data(verdict))
                .bytes(sys::NFTA_SET_ELEM_USERDATA, &comment_userdata(0, comment));
            element
        }
        Element::Number(number, comment) => {
            let mut element = key_element(&number.to_be_bytes());
            element.bytes(sys::NFTA_SET_ELEM_USERDATA, &comment_userdata(0, comment));
            element
        }
        Element::Range(..) => unreachable!("ranges are encoded as two elements, by their set"),
    }
}

/// A range is two elements: its first address, and the address behind its last. The keys are in the byte order of the
/// family.
pub(super) fn range_elements(elements: &mut Vec<Attributes>, first: IpAddr, last: IpAddr) {
    elements.push(key_element(&octets(first)));
    let behind = match last {
        IpAddr::V4(last) => last
            .to_bits()
            .checked_add(1)
            .map(|n| n.to_be_bytes().to_vec()),
        IpAddr::V6(last) => last
            .to_bits()
            .checked_add(1)
            .map(|n| n.to_be_bytes().to_vec()),
    };
    elements.extend(behind.map(|key| end_element(&key)));
}

fn key_element(key: &[u8]) -> Attributes {
    let mut value = Attributes::default();
    value.bytes(sys::NFTA_DATA_VALUE, key);
    let mut element = Attributes::default();
    element.nest(sys::NFTA_SET_ELEM_KEY, &value);
    element
}

fn end_element(key: &[u8]) -> Attributes {
    let mut element = key_element(key);
    element.u32(sys::NFTA_SET_ELEM_FLAGS, sys::NFT_SET_ELEM_INTERVAL_END);
    element
}

/// A verdict as data of an element or an immediate.
pub(super) fn verdict_data(verdict: &Verdict) -> Attributes {
    let (code, chain) = match verdict {
        Verdict::Drop => (libc::NF_DROP, None),
        Verdict::Accept => (libc::NF_ACCEPT, None),
        Verdict::Jump(chain) => (sys::NFT_JUMP, Some(chain)),
        Verdict::Goto(chain) => (sys::NFT_GOTO, Some(chain)),
        Verdict::Return => (sys::NFT_RETURN, None),
        Verdict::Reset => unreachable!("it is an expression, of rules alone"),
    };
    let mut inner = Attributes::default();
    inner.u32(sys::NFTA_VERDICT_CODE, code.cast_unsigned());
    if let Some(chain) = chain {
        inner.text(sys::NFTA_VERDICT_CHAIN, chain);
    }
    let mut data = Attributes::default();
    data.nest(sys::NFTA_DATA_VERDICT, &inner);
    data
}

/// nft's user data with one entry: a comment. (libnftnl `udata.h`: type, length, value with its NUL.)
pub(super) fn comment_userdata(kind: u8, comment: &str) -> Vec<u8> {
    let mut end = comment.len().min(127);
    while !comment.is_char_boundary(end) {
        end -= 1;
    }
    let mut data = vec![kind, end as u8 + 1];
    data.extend_from_slice(&comment.as_bytes()[..end]);
    data.push(0);
    data
}

/// The name of an interface with all its bytes.
pub(super) fn padded(name: &str) -> [u8; libc::IFNAMSIZ] {
    let mut padded = [0; libc::IFNAMSIZ];
    padded[..name.len()].copy_from_slice(name.as_bytes());
    padded
}

/// A family as packets have it in nf_tables.
pub(super) fn nfproto(family: Family) -> u8 {
    match family {
        Family::V4 => libc::NFPROTO_IPV4 as u8,
        Family::V6 => libc::NFPROTO_IPV6 as u8,
    }
}

/// A timeout in milliseconds, as the kernel takes it. The conversion rounds down.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
