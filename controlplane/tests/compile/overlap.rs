//! Policies whose port ranges overlap: as many unions as ranges, each of up to all peers. They are compiled in one
//! piece, and followed workload by workload; a compiler that built each union from nothing would not end.

use sallyport_controlplane::{
    cluster::Cluster,
    compile::Compiler,
    model::{Object, Peer},
};
use sallyport_policy::{Direction, NodePolicy, Protocol, Revision};
use sallyport_proto::object::Kind;

use crate::write::{
    block, cluster, ip, key, named, namespace, node, pod, pods, policy, rule, span, with_ports,
};

const RULES: u16 = 4_000;
const PODS: u16 = 100;

fn address(n: u16) -> String {
    format!("10.0.0.{}", n + 1)
}

fn labelled(n: u16, label: &str) -> Object {
    let pod = pod("a", &format!("p{n}"), "n", label, &address(n));
    with_ports(pod, &[("http", Protocol::Tcp, 40_000)])
}

/// Ranges each within the one before, for peers that are made by number.
fn nested(peer: impl Fn(u16) -> Peer) -> Cluster {
    let rules = (0..RULES).map(|n| {
        let mut ports = vec![span(Protocol::Tcp, 1 + n, u16::MAX - n)];
        if n == 0 {
            ports.push(named(Protocol::Udp, "http"));
        }
        rule(&[peer(n)], &ports)
    });
    let rules: Vec<_> = rules.collect();
    let policy = policy("a", "x", "", Some(rules.clone()), Some(rules));
    let pods = (0..PODS).map(|n| labelled(n, &format!("a=v{n}")));
    let fixed = [node("n", &["10.0.0.0/16"]), namespace("a", ""), policy];
    cluster(fixed.into_iter().chain(pods))
}

fn allows(policy: &NodePolicy, peer: u16, port: u16) -> bool {
    let (local, peer) = (ip(&address(PODS - 1)), ip(&address(peer)));
    Direction::BOTH
        .into_iter()
        .all(|direction| policy.allows(direction, local, peer, Some((Protocol::Tcp, port))))
}

/// Follows a pod that changes its label and one that is deleted, and then the policy's end.
fn is_followed(mut cluster: Cluster) {
    let mut compiler = Compiler::new(&cluster);
    cluster.put(labelled(0, &format!("a=v{}", RULES - 1)), Revision(2));
    let gone = key(Kind::Pod, "a", "p1");
    cluster.remove(&gone);
    compiler.update(&cluster, &[key(Kind::Pod, "a", "p0"), gone]);
    assert!(compiler.policies().eq(Compiler::new(&cluster).policies()));
    let policy = key(Kind::NetworkPolicy, "a", "x");
    cluster.remove(&policy);
    compiler.update(&cluster, &[policy]);
    let left = compiler.policy("n").expect("a node");
    assert!(left.groups().is_empty() && left.classes().is_empty());
    assert_eq!(left.endpoints().len(), usize::from(PODS - 1));
}

#[test]
fn each_range_allows_the_peers_that_are_open_there() {
    let cluster = nested(|n| pods(&format!("a=v{n}")));
    let compiler = Compiler::new(&cluster);
    let policy = compiler.policy("n").expect("a node");
    assert_eq!(policy.groups().len(), usize::from(RULES));
    for port in [1, 2, 50, 60, 99, 4_000, 32_000, u16::MAX - 50, u16::MAX] {
        for peer in [0, 1, 49, 50, 59, 98] {
            let is_open = peer < port && port <= u16::MAX - peer;
            assert_eq!(allows(policy, peer, port), is_open, "{peer} on {port}");
        }
    }
    is_followed(cluster);
}

#[test]
fn peers_that_all_select_everyone_are_unions_of_their_own() {
    let cluster = nested(|n| pods(&format!("a notin w{n}")));
    let compiler = Compiler::new(&cluster);
    let policy = compiler.policy("n").expect("a node");
    assert_eq!(policy.groups().len(), usize::from(RULES));
    assert!(allows(policy, 0, 1) && allows(policy, 0, u16::MAX) && !allows(policy, 0, 0));
    is_followed(cluster);
}

#[test]
fn blocks_are_joined_with_those_that_are_open() {
    let cluster = nested(|n| {
        let (high, low) = (n / 64, 4 * (n % 64));
        block(
            &format!("10.{high}.0.{low}/30"),
            &[&format!("10.{high}.0.{low}/32")],
        )
    });
    let compiler = Compiler::new(&cluster);
    let policy = compiler.policy("n").expect("a node");
    assert!(allows(policy, 0, 1) && !allows(policy, 3, 9));
    assert!(allows(policy, 4, 2) && !allows(policy, 4, 1));
    is_followed(cluster);
}
