//! Owns the arithmetic of address ranges, with nothing but the standard library's addresses; knows no policy.

use std::net::IpAddr;

use serde::Deserialize;

/// A range of addresses, as Kubernetes reads one: bits past the prefix mean nothing, and a range of IPv4 addresses
/// mapped into IPv6 is the range of IPv4 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Cidr {
    base: IpAddr,
    prefix: u32,
}

impl Cidr {
    /// Whether an address is in the range.
    pub(crate) fn contains(self, address: IpAddr) -> bool {
        let differing = match (self.base, address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => base.to_bits() ^ address.to_bits(),
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                let differing = base.to_bits() ^ address.to_bits();
                return differing.leading_zeros() >= self.prefix;
            }
            _ => return false,
        };
        differing.leading_zeros() >= self.prefix
    }
}

impl TryFrom<String> for Cidr {
    type Error = String;

    fn try_from(text: String) -> Result<Cidr, String> {
        let wrong = || format!("{text:?} is no range of addresses");
        let (base, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let base: IpAddr = base.parse().map_err(|_| wrong())?;
        let prefix: u32 = prefix.parse().map_err(|_| wrong())?;
        let longest = if base.is_ipv4() { 32 } else { 128 };
        if prefix > longest {
            return Err(wrong());
        }
        let mapped = match base {
            IpAddr::V6(base) if prefix >= 96 => base.to_ipv4_mapped(),
            _ => None,
        };
        Ok(match mapped {
            Some(base) => Cidr {
                base: base.into(),
                prefix: prefix - 96,
            },
            None => Cidr { base, prefix },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_contain_what_they_say() {
        for (range, address, is_in) in [
            ("10.0.0.0/8", "10.255.255.255", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.1.2.3/8", "10.9.9.9", true),
            ("10.0.0.1/32", "10.0.0.1", true),
            ("10.0.0.1/32", "10.0.0.0", false),
            ("0.0.0.0/0", "203.0.113.1", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "203.0.113.1", false),
            ("::/0", "2001:db8::1", true),
            ("fd00::8/125", "fd00::f", true),
            ("fd00::8/125", "fd00::7", false),
            ("fd00::3/128", "fd00::3", true),
            ("fd00::3/128", "fd00::2", false),
            ("::ffff:10.0.0.0/104", "10.9.9.9", true),
            ("::ffff:10.0.0.0/104", "11.0.0.0", false),
        ] {
            let range = Cidr::try_from(range.to_owned()).expect("a range");
            let address = address.parse().expect("an address");
            assert_eq!(range.contains(address), is_in, "{range:?} {address}");
        }
    }

    #[test]
    fn other_texts_are_no_ranges() {
        for text in ["", "10.0.0.0", "10.0.0.0/33", "::/129", "10.0.0/8", "a/8"] {
            assert!(Cidr::try_from(text.to_owned()).is_err(), "{text:?}");
        }
    }
}
