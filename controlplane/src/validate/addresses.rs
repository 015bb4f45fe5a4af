//! Addresses and address ranges: how Kubernetes reads them, and which a workload or node can have. Knows nothing of
//! the objects that they are in.

use std::net::{IpAddr, Ipv6Addr};

use ipnetwork::IpNetwork;
use sallyport_policy::Ranges;

use super::{
    MAX_ALLOWED_SOURCES,
    field::{Faults, Path, quote},
};

/// A range as a manifest gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// The network that it means: host bits cleared, IPv4-mapped IPv6 as IPv4.
    pub(crate) network: IpNetwork,
    /// The prefix length as it is written, which for IPv4-mapped IPv6 is not the network's.
    pub(crate) written: u8,
}

impl Span {
    /// Whether `except` may be cut out of it, by the API server's rule.
    pub(crate) fn strictly_contains(&self, except: &Span) -> bool {
        contains(self.network, except.network.ip()) && self.written < except.written
    }
}

/// Ranges of which no address is the source of a workload's packets, each with the rule that it is.
const NO_SOURCES: [(&str, &str); 8] = [
    ("0.0.0.0/32", UNSPECIFIED),
    ("::/128", UNSPECIFIED),
    ("127.0.0.0/8", LOOPBACK),
    // With the unspecified address, so that a range of both is refused.
    ("::/127", LOOPBACK),
    ("224.0.0.0/4", MULTICAST),
    ("ff00::/8", MULTICAST),
    ("255.255.255.255/32", BROADCAST),
    (
        "fe80::/10",
        "may not be in the link-local range (fe80::/10)",
    ),
];

const UNSPECIFIED: &str = "may not be unspecified (0.0.0.0 or ::)";
const LOOPBACK: &str = "may not be in the loopback range (127.0.0.0/8, ::1/128)";
const MULTICAST: &str = "may not be in the multicast range (224.0.0.0/4, ff00::/8)";
const BROADCAST: &str = "may not be the broadcast address (255.255.255.255)";

fn contains(network: IpNetwork, address: IpAddr) -> bool {
    match (network, address) {
        (IpNetwork::V4(network), IpAddr::V4(address)) => network.contains(address),
        (IpNetwork::V6(network), IpAddr::V6(address)) => network.contains(address),
        _ => false,
    }
}

/// An address as Kubernetes reads it: leading zeros in an IPv4 address mean nothing (and never octal).
fn parse_address(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        return text.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    }
    let plain: Vec<&str> = text
        .split('.')
        .map(|octet| match octet.trim_start_matches('0') {
            "" if !octet.is_empty() => "0",
            significant => significant,
        })
        .collect();
    plain.join(".").parse().ok().map(IpAddr::V4)
}

/// A range as Kubernetes reads it: bits past the prefix are cleared, an IPv4-mapped range is the IPv4 range.
fn parse_span(text: &str) -> Option<Span> {
    let (address, prefix) = text.split_once('/')?;
    if prefix.is_empty() || !prefix.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let written: u8 = prefix
        .trim_start_matches('0')
        .parse()
        .or_else(|_| {
            if prefix.bytes().all(|b| b == b'0') {
                Ok(0)
            } else {
                Err(())
            }
        })
        .ok()?;
    let address = parse_address(address)?;
    let (address, prefix) = match address {
        IpAddr::V6(v6) if written >= 96 => match v6.to_ipv4_mapped() {
            Some(v4) => (IpAddr::V4(v4), written.checked_sub(96)?),
            None => (address, written),
        },
        _ => (address, written),
    };
    let given = IpNetwork::new(address, prefix).ok()?;
    let network = IpNetwork::new(given.network(), prefix).expect("a network's own prefix is valid");
    Some(Span { network, written })
}

/// A range, or a fault.
pub(crate) fn cidr(text: &str, at: Path<'_>, faults: &mut Faults) -> Option<Span> {
    let span = parse_span(text);
    if span.is_none() {
        faults.invalid(
            at,
            quote(text),
            "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
        );
    }
    span
}

/// An address, or a fault.
pub(crate) fn address(text: &str, at: Path<'_>, faults: &mut Faults) -> Option<IpAddr> {
    let address = parse_address(text);
    if address.is_none() {
        faults.invalid(
            at,
            quote(text),
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        );
    }
    address
}

/// An address that packets of a workload or node can carry, or a fault.
pub(crate) fn usable(text: &str, at: Path<'_>, faults: &mut Faults) -> Option<IpAddr> {
    let address = address(text, at, faults)?;
    let wrong = match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            "may not be an IPv4-mapped IPv6 address (::ffff:0:0/96)"
        }
        _ if address.is_unspecified() => UNSPECIFIED,
        _ if address.is_loopback() => LOOPBACK,
        _ if address.is_multicast() => MULTICAST,
        IpAddr::V4(v4) if v4.is_broadcast() => BROADCAST,
        _ => return Some(address),
    };
    faults.invalid(at, quote(text), wrong);
    None
}

/// The ranges of addresses beside its own that a workload may use. `at` is the place of each item.
pub(crate) fn allowed_sources<'a>(
    given: &[&str],
    list: Path<'a>,
    at: impl Fn(usize) -> Path<'a>,
    faults: &mut Faults,
) -> Vec<IpNetwork> {
    let mut sources = Vec::new();
    if !faults.within(list, given.len(), MAX_ALLOWED_SOURCES) {
        return sources;
    }
    for (i, text) in given.iter().enumerate() {
        let Some(Span { network, .. }) = cidr(text, at(i), faults) else {
            continue;
        };
        if let Some(rule) = no_source(network) {
            faults.invalid(at(i), quote(text), rule);
        } else if sources.contains(&network) {
            faults.duplicate(at(i), quote(text));
        } else {
            sources.push(network);
        }
    }
    sources
}

/// The addresses that are the source of no workload's packets.
pub(crate) fn no_sources() -> Ranges {
    let range = |(range, _): &(&str, &str)| {
        let range: IpNetwork = range.parse().expect("a range");
        Ranges::span(range.network(), range.broadcast()).expect("of one family, and in order")
    };
    let ranges: Vec<Ranges> = NO_SOURCES.iter().map(range).collect();
    Ranges::union_all(&ranges)
}

/// The rule that a range breaks as an allowed source: no packet has a source in it.
fn no_source(network: IpNetwork) -> Option<&'static str> {
    let is_within = |(range, _): &&(&str, _)| {
        let range: IpNetwork = range.parse().expect("a range");
        network.prefix() >= range.prefix() && contains(range, network.ip())
    };
    Some(NO_SOURCES.iter().find(is_within)?.1)
}

/// A fault where a list has two addresses of one family.
pub(crate) fn one_per_family(addresses: &[IpAddr], at: Path<'_>, faults: &mut Faults) {
    let v4 = addresses.iter().filter(|address| address.is_ipv4()).count();
    if v4 > 1 || addresses.len() - v4 > 1 {
        let all: Vec<_> = addresses
            .iter()
            .map(|address| quote(&address.to_string()))
            .collect();
        faults.invalid(
            at,
            format!("[{}]", all.join(",")),
            "may specify no more than one IP for each IP family",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_kubernetes_reads_them() {
        for (text, network) in [
            ("10.0.0.0/8", Some("10.0.0.0/8")),
            ("10.0.0.1/24", Some("10.0.0.0/24")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("1.2.3.4/32", Some("1.2.3.4/32")),
            ("010.001.000.000/08", Some("10.1.0.0/8")),
            ("2001:db8::1/64", Some("2001:db8::/64")),
            ("::/0", Some("::/0")),
            ("::/000", Some("::/0")),
            ("::ffff:10.0.0.0/104", Some("10.0.0.0/8")),
            ("::ffff:10.1.2.3/128", Some("10.1.2.3/32")),
            ("::ffff:0:0/90", Some("::ffc0:0:0/90")),
            ("10.0.0.0", None),
            ("10.0.0.0/", None),
            ("10.0.0.0/33", None),
            ("10.0.0.0/+8", None),
            ("10.0.0.0/-1", None),
            ("10.0.0.0/8/8", None),
            ("10.0.0/8", None),
            ("10.0.0.256/32", None),
            ("10..0.0/8", None),
            ("::/129", None),
            ("fe80::1%eth0/64", None),
            ("/8", None),
            ("", None),
            (" 10.0.0.0/8", None),
        ] {
            let network = network.map(|network: &str| {
                let network: IpNetwork = network.parse().unwrap();
                IpNetwork::new(network.network(), network.prefix()).unwrap()
            });
            assert_eq!(
                parse_span(text).map(|span| span.network),
                network,
                "{text:?}"
            );
        }
    }

    #[test]
    fn what_may_be_cut_out_of_a_range() {
        for (range, except, may) in [
            ("10.0.0.0/8", "10.1.0.0/16", true),
            ("10.0.0.0/8", "10.0.0.0/9", true),
            ("10.0.0.0/8", "10.0.0.0/8", false),
            ("10.0.0.0/8", "0.0.0.0/0", false),
            ("10.0.0.0/8", "11.0.0.0/16", false),
            ("10.0.0.0/8", "2001:db8::/64", false),
            ("::/0", "10.0.0.0/8", false),
            ("::/0", "2001:db8::/32", true),
        ] {
            let [range, block] = [range, except].map(|text| parse_span(text).unwrap());
            assert_eq!(range.strictly_contains(&block), may, "{range:?} {except}");
        }
    }

    #[test]
    fn addresses_are_read_as_kubernetes_reads_them() {
        for (text, address) in [
            ("10.0.0.1", Some("10.0.0.1")),
            ("010.00.000.08", Some("10.0.0.8")),
            ("2001:DB8::1", Some("2001:db8::1")),
            ("10.0.0", None),
            ("10.0.0.1.", None),
            ("10.0.0.-1", None),
            ("1e1.0.0.1", None),
            ("", None),
            ("...", None),
            ("localhost", None),
        ] {
            assert_eq!(
                parse_address(text),
                address.map(|text: &str| text.parse().unwrap()),
                "{text:?}"
            );
        }
    }
}
