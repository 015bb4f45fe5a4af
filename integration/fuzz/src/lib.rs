//! The shared part of the fuzz targets: node policies out of a fuzzer's bytes, over a universe small enough that two of
//! them have much in common, with the odd value that no control plane of ours would send. Judges nothing.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use sallyport_enforcer::{
    journal::{Recovered, record},
    table::render::Options,
};
use sallyport_policy::{
    Class, Direction, Endpoint, GroupId, NodePolicy, PeerGroup, PortRule, Protocol, Ranges,
};

/// An address: mostly one of eight.
pub fn address(u: &mut Unstructured<'_>) -> Result<IpAddr> {
    Ok(match u.int_in_range(0..=15)? {
        n @ 0..6 => IpAddr::from([10, 0, 0, n]),
        n @ 6..8 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n.into()).into(),
        8 => IpAddr::from([0; 4]),
        9 => IpAddr::from([255; 4]),
        10 => IpAddr::from([0; 16]),
        11 => IpAddr::from([255; 16]),
        12 => IpAddr::from(u.arbitrary::<[u8; 4]>()?),
        13 => IpAddr::from(u.arbitrary::<[u8; 16]>()?),
        n => IpAddr::from([10, 0, 0, n - 13]),
    })
}

/// Ranges of addresses.
pub fn ranges(u: &mut Unstructured<'_>) -> Result<Ranges> {
    let mut spans = Vec::new();
    for _ in 0..u.int_in_range(0..=3)? {
        let (a, b) = (address(u)?, address(u)?);
        spans.extend(Ranges::span(a.min(b), a.max(b)));
    }
    Ok(match u.ratio(1, 8)? {
        true => Ranges::everything(),
        false => Ranges::union_all(&spans),
    })
}

/// A text that becomes a part of names and comments in the kernel.
pub fn text(u: &mut Unstructured<'_>) -> Result<String> {
    Ok(match u.int_in_range(0..=7)? {
        0 => String::new(),
        1 => "x".repeat(u.int_in_range(0..=400)?),
        2 => "\u{1f6aa}".repeat(u.int_in_range(0..=100)?),
        3 => u.arbitrary::<&str>()?.to_owned(),
        4 => "pods default/role in (\"a\", 'b')".to_owned(),
        n => format!("default/web-{n}"),
    })
}

/// A peer group. That of one number is always the same, but for its members.
fn group(u: &mut Unstructured<'_>) -> Result<(GroupId, Arc<PeerGroup>)> {
    let (description, ranges) = match u.int_in_range(0u8..=5)? {
        n @ 0..3 => (format!("pods default/app={n}"), Ranges::EMPTY),
        3 => ("everybody".to_owned(), Ranges::everything()),
        4 => {
            let (first, last) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
            (
                "a range".to_owned(),
                Ranges::span(first, last).expect("a range"),
            )
        }
        _ => (text(u)?, ranges(u)?),
    };
    let id = GroupId::of([description.as_str()], &ranges);
    let mut group = PeerGroup::new(description, ranges);
    for _ in 0..u.int_in_range(0..=4)? {
        group.addresses.insert(address(u)?);
    }
    Ok((id, Arc::new(group)))
}

fn class(u: &mut Unstructured<'_>, direction: Direction, groups: &[GroupId]) -> Result<Class> {
    let mut ports: Vec<PortRule> = Vec::new();
    for protocol in Protocol::ALL {
        let mut next = 0u16;
        while u.ratio(1, 2)? {
            let first = next.saturating_add(*u.choose(&[0, 1, 80, 8000])?);
            let last = first.saturating_add(*u.choose(&[0, 1, 10, u16::MAX])?);
            PortRule {
                protocol,
                first,
                last,
                group: *u.choose(groups)?,
            }
            .append_to(&mut ports);
            match last.checked_add(1) {
                Some(more) => next = more,
                None => break,
            }
        }
    }
    Ok(Class {
        direction,
        keep_established: u.ratio(1, 4)?,
        other: match u.arbitrary()? {
            true => Some(*u.choose(groups)?),
            false => None,
        },
        ports,
    })
}

/// A node's policy.
pub fn policy(u: &mut Unstructured<'_>) -> Result<NodePolicy> {
    let mut policy = NodePolicy::default();
    policy.set_workload_ranges(Arc::new(ranges(u)?));
    let mut groups = Vec::new();
    for _ in 0..u.int_in_range(1..=4)? {
        groups.push(group(u)?);
    }
    let ids: Vec<_> = groups.iter().map(|&(id, _)| id).collect();
    for _ in 0..u.int_in_range(0..=6)? {
        let mut judged = |direction| -> Result<_> {
            if u.ratio(1, 3)? {
                return Ok(None);
            }
            let class = class(u, direction, &ids)?;
            for id in class.groups() {
                let (_, group) = groups
                    .iter()
                    .find(|(other, _)| *other == id)
                    .expect("one of them");
                policy.set_group(id, group.clone());
            }
            let id = class.id();
            policy.add_class(id, Arc::new(class));
            Ok(Some(id))
        };
        let (ingress, egress) = (judged(Direction::Ingress)?, judged(Direction::Egress)?);
        let endpoint = Endpoint {
            namespace: text(u)?,
            name: text(u)?,
            uid: text(u)?,
            // No enforcer takes any other from a stream or a journal.
            interface: (*u.choose(&["", "veth-web", "tap0", "fifteen-bytes-x"])?).into(),
            ingress,
            egress,
        };
        policy.set_endpoint(address(u)?, Arc::new(endpoint));
    }
    tidy(&mut policy);
    Ok(policy)
}

/// Takes out classes and groups that an endpoint named which was replaced since.
fn tidy(policy: &mut NodePolicy) {
    let named = |policy: &NodePolicy| -> Vec<_> {
        let endpoints = policy.endpoints().values();
        endpoints
            .flat_map(|endpoint| [endpoint.ingress, endpoint.egress])
            .flatten()
            .collect()
    };
    let classes = named(policy);
    for id in policy.classes().keys().copied().collect::<Vec<_>>() {
        if !classes.contains(&id) {
            policy.remove_class(id);
        }
    }
    let groups: Vec<_> = policy
        .classes()
        .values()
        .flat_map(|class| class.groups())
        .collect();
    for id in policy.groups().keys().copied().collect::<Vec<_>>() {
        if !groups.contains(&id) {
            policy.remove_group(id);
        }
    }
}

/// The options that an operator may set for a node.
pub fn options(u: &mut Unstructured<'_>) -> Result<Options> {
    Ok(Options {
        strict: u.arbitrary()?,
        workload_ranges: ranges(u)?,
        workload_interfaces: match u.arbitrary()? {
            true => vec!["veth*".to_owned()],
            false => Vec::new(),
        },
        owned: u.arbitrary()?,
        ..Options::default()
    })
}

/// The state that the records of a node's journal add up to.
pub fn recovered(records: &[Vec<u8>]) -> std::result::Result<Recovered, String> {
    let mut recovered = Recovered::default();
    for record in records {
        record::fold(&mut recovered, record)?;
    }
    Ok(recovered)
}
