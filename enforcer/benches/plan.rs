//! The cost of the plan of an update by the size of the policy and by the size of the change.

use std::{hint::black_box, net::IpAddr, sync::Arc};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use sallyport_enforcer::{
    plan::{self, Installed, Limits},
    table::render::Options,
};
use sallyport_policy::{
    Class, Direction, Endpoint, Epoch, GroupId, NodePolicy, PeerGroup, PortRule, Position,
    Protocol, Ranges, Revision, UnknownAddresses, Window,
};

const LIMITS: Limits = Limits { batch: 1 << 20 };
const MEMBERS: u32 = 100;

fn address(network: u8, number: u32) -> IpAddr {
    let [_, a, b, c] = number.to_be_bytes();
    [network, a, b, c].into()
}

fn group(number: u32) -> (GroupId, String) {
    let description = format!("group {number}");
    (
        GroupId::of([description.as_str()], &Ranges::EMPTY),
        description,
    )
}

/// Endpoints that each have a class and a peer group of their own.
fn policy(endpoints: u32) -> NodePolicy {
    let mut policy = NodePolicy::default();
    for number in 0..endpoints {
        let (group, description) = group(number);
        policy.set_group(group, Arc::new(PeerGroup::new(description, Ranges::EMPTY)));
        for member in 0..MEMBERS {
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

fn updated(old: &Installed, policy: &NodePolicy, revision: u64) -> Installed {
    let position = Position {
        epoch: Epoch(1),
        revision: Revision(revision),
        digest: policy.digest(),
    };
    old.updated(
        Window::alone(position, policy.clone()),
        &UnknownAddresses::drop(),
    )
}

fn update(criterion: &mut Criterion) {
    let options = Options::default();
    let mut benchmarks = criterion.benchmark_group("plan::update");
    for (endpoints, changed) in [(10, 1), (10, 10), (1_000, 1), (1_000, 10), (1_000, 1_000)] {
        let mut policy = policy(endpoints);
        let old = updated(&Installed::default(), &policy, 1);
        for number in 0..changed {
            let first = number * 2 * MEMBERS;
            policy.remove_address(group(number).0, address(11, first));
            policy.add_address(group(number).0, address(11, first + MEMBERS));
        }
        let new = updated(&old, &policy, 2);
        let id = BenchmarkId::new(
            format!("{endpoints} endpoints"),
            format!("{changed} changed"),
        );
        benchmarks.bench_function(id, |bencher| {
            bencher.iter(|| plan::update(black_box(&old), black_box(&new), &options, LIMITS));
        });
    }
    benchmarks.finish();
}

criterion_group!(benches, update);
criterion_main!(benches);
