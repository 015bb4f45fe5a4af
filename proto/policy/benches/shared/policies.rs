//! The policies of the benchmarks: endpoints that each have a class and a peer group of their own.

use std::{net::IpAddr, sync::Arc};

use sallyport_policy::{
    Class, Direction, Endpoint, GroupId, NodePolicy, PeerGroup, PortRule, Protocol, Ranges,
};

/// The members of a group.
pub(crate) const MEMBERS: u32 = 100;

/// An address of a network, by its number.
pub(crate) fn address(network: u8, number: u32) -> IpAddr {
    let [_, a, b, c] = number.to_be_bytes();
    [network, a, b, c].into()
}

/// The id and the description of a group.
pub(crate) fn group(number: u32) -> (GroupId, String) {
    let description = format!("group {number}");
    let id = GroupId::of([description.as_str()], &Ranges::EMPTY);
    (id, description)
}

/// A policy with so many endpoints. In the first `changed` groups one peer is another.
pub(crate) fn policy(endpoints: u32, changed: u32) -> NodePolicy {
    let mut policy = NodePolicy::default();
    for number in 0..endpoints {
        let (group, description) = group(number);
        policy.set_group(group, Arc::new(PeerGroup::new(description, Ranges::EMPTY)));
        let first = u32::from(number < changed);
        for member in first..MEMBERS + first {
            policy.add_address(group, address(11, number * 2 * MEMBERS + member));
        }
        let class = Class {
            direction: Direction::Ingress,
            keep_established: false,
            other: None,
            ports: vec![PortRule {
                protocol: Protocol::Tcp,
                first: 80,
                last: 80,
                group,
            }],
        };
        let id = class.id();
        policy.add_class(id, Arc::new(class));
        let endpoint = Endpoint {
            namespace: "bench".into(),
            name: format!("pod-{number}"),
            ingress: Some(id),
            ..Endpoint::default()
        };
        policy.set_endpoint(address(10, number), Arc::new(endpoint));
    }
    policy
}
