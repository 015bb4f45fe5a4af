//! The address families of a group's members. The families decide which sets of addresses the group has.
//!
//! The kernel finds a set by walking the list of all sets of the table. So a set in which no lookup ever finds an
//! element costs time with every set, element and rule that is added.

use sallyport_policy::PeerGroup;

use sallyport_nft::command::Family;

/// Some of the families, each once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Families {
    v4: bool,
    v6: bool,
}

impl Families {
    /// The families of the addresses that a group's rules look up. There are none where everyone is in the group.
    pub fn of(group: &PeerGroup) -> Families {
        if group.spec.ranges.is_everything() {
            return Families::default();
        }
        // Addresses of IPv4 come before those of IPv6.
        let ends = [group.addresses.get_min(), group.addresses.get_max()];
        let has = |family| {
            ends.into_iter()
                .flatten()
                .any(|end| Family::of(*end) == family)
        };
        Families {
            v4: has(Family::V4),
            v6: has(Family::V6),
        }
    }

    /// The families, IPv4 first.
    pub fn iter(self) -> impl Iterator<Item = Family> {
        let v4 = self.v4.then_some(Family::V4);
        v4.into_iter().chain(self.v6.then_some(Family::V6))
    }

    /// The families that are in either.
    pub fn union(self, other: Families) -> Families {
        Families {
            v4: self.v4 || other.v4,
            v6: self.v6 || other.v6,
        }
    }

    /// The families that are not in another.
    pub fn without(self, other: Families) -> Families {
        Families {
            v4: self.v4 && !other.v4,
            v6: self.v6 && !other.v6,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr};

    use sallyport_policy::Ranges;

    use super::*;

    #[test]
    fn families_are_those_of_the_addresses_that_are_looked_for() {
        let group = |addresses: &[IpAddr], ranges| {
            let mut group = PeerGroup::new("peers".into(), ranges);
            group.addresses = addresses.iter().copied().collect();
            Families::of(&group).iter().collect::<Vec<_>>()
        };
        let (v4, v6) = ([255, 0, 0, 1].into(), Ipv6Addr::LOCALHOST.into());
        assert_eq!(group(&[], Ranges::EMPTY), []);
        assert_eq!(group(&[v4], Ranges::EMPTY), [Family::V4]);
        assert_eq!(group(&[v6], Ranges::EMPTY), [Family::V6]);
        assert_eq!(group(&[v6, v4], Ranges::EMPTY), [Family::V4, Family::V6]);
        assert_eq!(group(&[v6, v4], Ranges::everything()), []);
    }
}
