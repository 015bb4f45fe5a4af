//! The kernel's descriptions of sets and elements, as the values that commands have. This module is pure. It
//! understands the output of `encode`, and returns `None` for all else.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use rustables::sys;

use crate::{
    command::{Element, Family, SetKind, Verdict},
    encode::{SetDescription, attributes},
};

/// Every kind of set that [`encode`](crate::encode) makes.
const KINDS: [SetKind; 16] = [
    SetKind::Addresses(Family::V4),
    SetKind::Addresses(Family::V6),
    SetKind::Ranges(Family::V4),
    SetKind::Ranges(Family::V6),
    SetKind::Pairs(Family::V4),
    SetKind::Pairs(Family::V6),
    SetKind::Verdicts(Family::V4),
    SetKind::Verdicts(Family::V6),
    SetKind::Numbers,
    SetKind::Families,
    SetKind::Interfaces,
    SetKind::InterfaceAddresses(Family::V4),
    SetKind::InterfaceAddresses(Family::V6),
    SetKind::InterfaceVerdicts,
    SetKind::InterfaceRanges(Family::V4),
    SetKind::InterfaceRanges(Family::V6),
];

/// The kind of a set, by the kernel's description of the set; `None` when no [`SetKind`] is like it.
pub fn set_kind(set: &[u8]) -> Option<SetKind> {
    let number = |kind| {
        attributes::find(set, kind)
            .and_then(attributes::number)
            .unwrap_or(0)
    };
    let (flags, datatype, length) = (
        number(sys::NFTA_SET_FLAGS),
        number(sys::NFTA_SET_KEY_TYPE),
        number(sys::NFTA_SET_KEY_LEN),
    );
    let verdicts = number(sys::NFTA_SET_DATA_TYPE) == sys::NFT_DATA_VERDICT;
    KINDS.into_iter().find(|&kind| {
        let own = SetDescription::of(kind);
        (own.flags, own.datatype, own.length) == (flags, datatype, length)
            && verdicts == kind.is_map()
    })
}

/// The elements of a set of a kind, without comments but those of numbers; `None` when an element cannot be of that
/// kind.
pub fn elements<'a>(
    kind: SetKind,
    listed: impl IntoIterator<Item = &'a [u8]>,
) -> Option<BTreeSet<Element>> {
    if let SetKind::Ranges(family) = kind {
        return ranges(family, listed);
    }
    listed
        .into_iter()
        .map(|element| single(kind, element))
        .collect()
}

fn single(kind: SetKind, element: &[u8]) -> Option<Element> {
    let key = key(element)?;
    Some(match kind {
        SetKind::Addresses(family) => Element::Address(address(family, key)?),
        SetKind::Pairs(family) => {
            let (first, second) = key.split_at_checked(key.len() / 2)?;
            let first = address(family, first)?;
            (first == address(family, second)?).then_some(Element::Pair(first))?
        }
        SetKind::Verdicts(family) => {
            let data = attributes::find(element, sys::NFTA_SET_ELEM_DATA)?;
            Element::Verdict(address(family, key)?, verdict(data)?, String::new())
        }
        SetKind::Numbers => {
            // libnftnl: type, length, comment with its NUL.
            let comment = attributes::find(element, sys::NFTA_SET_ELEM_USERDATA)
                .and_then(|data| data.get(2..))
                .map(attributes::text);
            let number = u32::from_be_bytes(key.try_into().ok()?);
            Element::Number(number, comment.unwrap_or_default())
        }
        SetKind::Families => {
            let family = match i32::from(*key.first()?) {
                libc::NFPROTO_IPV4 => Family::V4,
                libc::NFPROTO_IPV6 => Family::V6,
                _ => return None,
            };
            let timeout = attributes::find(element, sys::NFTA_SET_ELEM_TIMEOUT);
            let timeout = timeout.and_then(|value| value.try_into().ok());
            let millis = timeout.map_or(0, u64::from_be_bytes);
            Element::Family(family, Duration::from_millis(millis))
        }
        SetKind::Interfaces => Element::Interface(name(key)?),
        SetKind::InterfaceAddresses(family) => {
            let (port, address) = port_address(family, key)?;
            Element::InterfaceAddress(port, address)
        }
        SetKind::InterfaceRanges(family) => {
            let (port, first) = port_address(family, key)?;
            // Without an end the element is one address.
            let end = match attributes::find(element, sys::NFTA_SET_ELEM_KEY_END) {
                Some(end) => attributes::find(end, sys::NFTA_DATA_VALUE)?,
                None => key,
            };
            let (last_port, last) = port_address(family, end)?;
            (last_port == port && first <= last)
                .then_some(Element::InterfaceRange(port, first, last))?
        }
        SetKind::InterfaceVerdicts => {
            let data = attributes::find(element, sys::NFTA_SET_ELEM_DATA)?;
            Element::InterfaceVerdict(name(key)?, verdict(data)?)
        }
        SetKind::Ranges(_) => return None,
    })
}

/// Ranges from their ends. Each range begins with an element, and goes up to the next element or to the last address.
fn ranges<'a>(
    family: Family,
    listed: impl IntoIterator<Item = &'a [u8]>,
) -> Option<BTreeSet<Element>> {
    let mut ends = BTreeSet::new();
    for element in listed {
        let flags = attributes::find(element, sys::NFTA_SET_ELEM_FLAGS);
        let flags = flags.and_then(attributes::number).unwrap_or(0);
        let begins = flags & sys::NFT_SET_ELEM_INTERVAL_END == 0;
        // The end of a range comes before the beginning of another range at the same address.
        ends.insert((address(family, key(element)?)?, begins));
    }
    let mut ranges = BTreeSet::new();
    let mut ends = ends.into_iter().peekable();
    while let Some((first, begins)) = ends.next() {
        if !begins {
            continue;
        }
        let last = match ends.peek() {
            Some(&(behind, _)) => before(behind)?,
            None => last_of(family),
        };
        ranges.insert(Element::Range(first, last));
    }
    Some(ranges)
}

fn key(element: &[u8]) -> Option<&[u8]> {
    attributes::find(
        attributes::find(element, sys::NFTA_SET_ELEM_KEY)?,
        sys::NFTA_DATA_VALUE,
    )
}

fn address(family: Family, octets: &[u8]) -> Option<IpAddr> {
    Some(match family {
        Family::V4 => IpAddr::from(<[u8; 4]>::try_from(octets).ok()?),
        Family::V6 => IpAddr::from(<[u8; 16]>::try_from(octets).ok()?),
    })
}

/// The name of an interface, and an address.
fn port_address(family: Family, key: &[u8]) -> Option<(String, IpAddr)> {
    let (port, octets) = key.split_at_checked(libc::IFNAMSIZ)?;
    Some((name(port)?, address(family, octets)?))
}

/// The name of an interface. Nothing but NULs follows its first NUL.
fn name(key: &[u8]) -> Option<String> {
    let end = key.iter().position(|&byte| byte == 0)?;
    let (name, rest) = key.split_at(end);
    let is_name = !name.is_empty() && rest.iter().all(|&byte| byte == 0);
    String::from_utf8(name.to_vec()).ok().filter(|_| is_name)
}

fn before(address: IpAddr) -> Option<IpAddr> {
    Some(match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits().checked_sub(1)?).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits().checked_sub(1)?).into(),
    })
}

fn last_of(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from_bits(u32::MAX).into(),
        Family::V6 => Ipv6Addr::from_bits(u128::MAX).into(),
    }
}

fn verdict(data: &[u8]) -> Option<Verdict> {
    let verdict = attributes::find(data, sys::NFTA_DATA_VERDICT)?;
    let code = attributes::find(verdict, sys::NFTA_VERDICT_CODE).and_then(attributes::number)?;
    let chain = || attributes::find(verdict, sys::NFTA_VERDICT_CHAIN).map(attributes::text);
    Some(match code.cast_signed() {
        libc::NF_DROP => Verdict::Drop,
        libc::NF_ACCEPT => Verdict::Accept,
        sys::NFT_RETURN => Verdict::Return,
        sys::NFT_JUMP => Verdict::Jump(chain()?),
        sys::NFT_GOTO => Verdict::Goto(chain()?),
        _ => return None,
    })
}
