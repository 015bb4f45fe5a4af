//! The cost of a meet by the size of the policy and by the size of the change.

use std::{hint::black_box, net::IpAddr, sync::Arc};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use sallyport_policy::{
    Class, Direction, Endpoint, GroupId, NodePolicy, PeerGroup, PortRule, Protocol, Ranges,
    UnknownAddresses,
};

const MEMBERS: u32 = 100;

fn address(network: u8, number: u32) -> IpAddr {
    let [_, a, b, c] = number.to_be_bytes();
    [network, a, b, c].into()
}

/// Endpoints that each have a class and a peer group of their own. In the first `changed` groups one peer is another.
fn policy(endpoints: u32, changed: u32) -> NodePolicy {
    let mut policy = NodePolicy::default();
    for number in 0..endpoints {
        let description = format!("group {number}");
        let group = GroupId::of([description.as_str()], &Ranges::EMPTY);
        policy.set_group(group, Arc::new(PeerGroup::new(description, Ranges::EMPTY)));
        let first = u32::from(number < changed);
        for member in first..MEMBERS + first {
            policy.add_address(group, address(11, number * 2 * MEMBERS + member));
        }
        let class = Class {
            direction: Direction::Ingress,
            keep: false,
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
            uid: String::new(),
            interface: String::new(),
            ingress: Some(id),
            egress: None,
        };
        policy.set_endpoint(address(10, number), Arc::new(endpoint));
    }
    policy
}

fn meet(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("meet");
    for (endpoints, changed) in [(10, 1), (10, 10), (1_000, 1), (1_000, 10), (1_000, 1_000)] {
        let old = policy(endpoints, 0);
        // A version shares with the one before it all that did not change.
        let mut new = old.clone();
        let made = policy(endpoints, changed);
        for (id, peers) in made.groups() {
            if old.groups().get(id) != Some(peers) {
                new.set_group(*id, peers.clone());
            }
        }
        let id = BenchmarkId::new(
            format!("{endpoints} endpoints"),
            format!("{changed} changed"),
        );
        group.bench_function(id, |bencher| {
            bencher.iter(|| black_box(&old).meet(black_box(&new), &UnknownAddresses::drop()));
        });
    }
    group.finish();
}

criterion_group!(benches, meet);
criterion_main!(benches);
