//! The addresses beside their own that workloads may use (`spec.allowedSources`), as far as the guard lets them pass.
//! It knows no interface.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, LazyLock},
};

use sallyport_policy::{Endpoint, NodePolicy, Owner, Ranges, Source};

/// Addresses that no workload uses for its source because ranges contain them. Rules of their own are about them: those
/// of link-local addresses and of packets without a source. IANA, special-purpose address registries; RFC 4291, section
/// 2.4.
static NEVER: LazyLock<Ranges> = LazyLock::new(|| {
    let v4 = |first: [u8; 4], last: [u8; 4]| (IpAddr::from(first), IpAddr::from(last));
    let v6 = |first: u16, last: u16| {
        let first = Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0);
        let last = Ipv6Addr::from_bits(
            Ipv6Addr::new(last, 0, 0, 0, 0, 0, 0, 0).to_bits() | u128::MAX >> 16,
        );
        (IpAddr::from(first), IpAddr::from(last))
    };
    let spans = [
        // "This network", among it no address at all.
        v4([0, 0, 0, 0], [0, 255, 255, 255]),
        // The sender's own.
        v4([127, 0, 0, 0], [127, 255, 255, 255]),
        // Groups.
        v4([224, 0, 0, 0], [239, 255, 255, 255]),
        // All hosts of the link.
        (Ipv4Addr::BROADCAST.into(), Ipv4Addr::BROADCAST.into()),
        // No address at all, and the sender's own.
        (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into()),
        // Link-local.
        v6(0xfe80, 0xfebf),
        // Groups.
        v6(0xff00, 0xffff),
    ];
    union(spans)
});

/// The addresses that each workload may use beside its own.
pub(super) struct Allowed<'a> {
    /// Without those that no workload uses.
    by_owner: BTreeMap<(&'a str, &'a str), Ranges>,
    /// The addresses that are endpoints: a source means none of them.
    endpoints: Ranges,
}

impl<'a> Allowed<'a> {
    pub(super) fn of(policy: &'a NodePolicy) -> Allowed<'a> {
        let mut allowed = Allowed {
            by_owner: BTreeMap::new(),
            endpoints: Ranges::EMPTY,
        };
        if policy.sources().is_empty() {
            return allowed;
        }
        for source in policy.sources().iter() {
            let usable = source.ranges.difference(&NEVER);
            for owner in &source.owners {
                let there = allowed.by_owner.entry((&owner.namespace, &owner.name));
                let there = there.or_default();
                *there = there.union(&usable);
            }
        }
        let endpoints = policy.endpoints().keys();
        allowed.endpoints = union(endpoints.map(|&address| (address, address)));
        allowed
    }

    /// The addresses that a workload may use and that are no endpoint.
    pub(super) fn beside(&self, endpoint: &Endpoint) -> Ranges {
        self.of_owner((&endpoint.namespace, &endpoint.name))
    }

    fn of_owner(&self, owner: (&str, &str)) -> Ranges {
        let ranges = self.by_owner.get(&owner);
        ranges.map_or(Ranges::EMPTY, |ranges| ranges.difference(&self.endpoints))
    }

    /// The addresses that one of some workloads may use, those of endpoints among them.
    pub(super) fn of_all<'e>(
        &self,
        endpoints: impl IntoIterator<Item = &'e Arc<Endpoint>>,
    ) -> Ranges {
        if self.by_owner.is_empty() {
            return Ranges::EMPTY;
        }
        let ranges = endpoints
            .into_iter()
            .filter_map(|endpoint| self.by_owner.get(&(&*endpoint.namespace, &*endpoint.name)));
        Ranges::union_all(ranges)
    }
}

/// All addresses that some workload of the node may use beside its own.
pub fn allowed(policy: &NodePolicy) -> Ranges {
    let allowed = Allowed::of(policy);
    Ranges::union_all(allowed.by_owner.values()).difference(&allowed.endpoints)
}

/// The sources by which each workload may use what it may use in both of two policies; `None` where that is all that it
/// may use in the first.
pub fn common(before: &NodePolicy, after: &NodePolicy) -> Option<Vec<Source>> {
    let are_same = Arc::ptr_eq(before.sources(), after.sources())
        && before.endpoints().ptr_eq(after.endpoints());
    if are_same || before.sources().is_empty() {
        return None;
    }
    let (old, new) = (Allowed::of(before), Allowed::of(after));
    let mut goes = false;
    let sources = old.by_owner.keys().map(|&owner| {
        let before = old.of_owner(owner);
        let ranges = before.intersection(&new.of_owner(owner));
        goes |= ranges != before;
        let (namespace, name) = owner;
        Source {
            owners: vec![Owner {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }],
            ranges,
            ..Source::default()
        }
    });
    let sources = Source::canonical(sources);
    goes.then_some(sources)
}

fn union(spans: impl IntoIterator<Item = (IpAddr, IpAddr)>) -> Ranges {
    let ranges = |(first, last)| Ranges::span(first, last).expect("of one family, and in order");
    let all: Vec<Ranges> = spans.into_iter().map(ranges).collect();
    Ranges::union_all(&all)
}
