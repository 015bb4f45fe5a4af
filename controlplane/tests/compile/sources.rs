//! Allowed sources of workloads: which addresses are in which source of a node, and the classes that judge them.

use std::sync::Arc;

use sallyport_controlplane::model::{Established, Object};
use sallyport_policy::{Change, Delta, Direction, NodePolicy, Protocol};
use sallyport_proto::object::Kind;

use crate::{
    history::Checked,
    table::{compiled, compiled_under},
    universe::Edit,
    write::*,
};

use Direction::{Egress, Ingress};

/// A node with a gateway, and another node with a pod.
fn world(gateway: &str) -> Vec<Object> {
    vec![
        node("n", &["10.0.0.0/24"]),
        node("m", &["10.0.1.0/24"]),
        namespace("default", ""),
        allowing(pod("default", "gw", "n", "app=gw", "10.0.0.1"), gateway),
        pod("default", "far", "m", "app=far", "10.0.1.1"),
    ]
}

fn with(gateway: &str, others: impl IntoIterator<Item = Object>) -> Vec<Object> {
    world(gateway).into_iter().chain(others).collect()
}

/// A policy that isolates the gateway for egress: TCP to some port of anyone.
fn egress(name: &str, pods: &str, port: u16) -> Object {
    let rules = vec![rule(&[], &[tcp(port)])];
    policy("default", name, pods, None, Some(rules))
}

/// The sources: owners, and addresses.
fn sources(policy: &NodePolicy) -> Vec<(String, String)> {
    let sources = policy.sources().iter();
    let told = sources.map(|source| {
        let owners = source.owners.iter();
        let owners: Vec<_> = owners
            .map(|owner| format!("{}/{}", owner.namespace, owner.name))
            .collect();
        (owners.join(" "), source.ranges.to_string())
    });
    told.collect()
}

fn owned(text: &[(&str, &str)]) -> Vec<(String, String)> {
    let told = text.iter();
    told.map(|&(owners, ranges)| (owners.into(), ranges.into()))
        .collect()
}

/// The TCP ports of some that an address may send to.
fn ports(policy: &NodePolicy, address: &str) -> Vec<u16> {
    let allows = |port: &u16| {
        let port = Some((Protocol::Tcp, *port));
        policy.allows(Egress, ip(address), ip("192.0.2.9"), port)
    };
    [79, 80, 81].into_iter().filter(allows).collect()
}

#[test]
fn allowed_sources_are_judged_as_their_workload_in_both_directions() {
    let to = vec![rule(&[pods("app=client")], &[tcp(80)])];
    let from = vec![rule(&[block("192.0.2.0/24", &[])], &[tcp(81)])];
    let both = policy("default", "p", "app=gw", Some(to), Some(from));
    let client = pod("default", "client", "n", "app=client", "10.0.0.2");
    let policy = compiled(with("10.9.0.0/16 fd09::/64", [both, client]));
    assert_eq!(
        sources(&policy),
        owned(&[("default/gw", "10.9.0.0/16, fd09::/64")])
    );
    for (direction, peer, port, allows) in [
        (Ingress, "10.0.0.2", 80, true),
        (Ingress, "10.0.0.2", 81, false),
        (Ingress, "10.0.1.1", 80, false),
        (Egress, "192.0.2.9", 81, true),
        (Egress, "192.0.2.9", 80, false),
        (Egress, "10.0.0.2", 81, false),
    ] {
        for address in ["10.0.0.1", "10.9.3.4"] {
            let port = Some((Protocol::Tcp, port));
            let found = policy.allows(direction, ip(address), ip(peer), port);
            assert_eq!(found, allows, "{direction} {address} {peer} {port:?}");
        }
    }
    let source = &policy.sources()[0];
    let endpoint = &policy.endpoints()[&ip("10.0.0.1")];
    assert_eq!(source.ingress, endpoint.ingress);
    assert_eq!(source.egress, endpoint.egress);
}

#[test]
fn only_a_node_with_a_claimant_has_sources() {
    let all = sallyport_controlplane::compile::full(&cluster(world("10.9.0.0/16")));
    assert_eq!(sources(&all["n"]), owned(&[("default/gw", "10.9.0.0/16")]));
    assert!(all["m"].sources().is_empty());
    // Nobody isolates it: the addresses are known, and nothing judges them.
    let source = &all["n"].sources()[0];
    assert_eq!((source.ingress, source.egress), (None, None));
    assert!(all["n"].classes().is_empty());
    for hidden in [
        pod("default", "gw", "n", "app=gw", ""),
        pod("default", "gw", "", "app=gw", "10.0.0.1"),
        pod("default", "gw", "gone", "app=gw", "10.0.0.1"),
        on_host_network(pod("default", "gw", "n", "app=gw", "10.0.0.1")),
    ] {
        let policy = compiled(with("", [allowing(hidden, "10.9.0.0/16")]));
        assert!(policy.sources().is_empty());
    }
}

#[test]
fn the_most_specific_claim_has_an_address_and_equal_claims_share_it() {
    let pods = [
        ("a", "10.9.0.0/16"),
        ("b", "10.9.1.0/24"),
        ("c", "10.9.1.0/24"),
    ];
    let pods = pods.map(|(name, claims)| {
        let number = name.as_bytes()[0] - b'a' + 10;
        let labels = format!("app={name}");
        let pod = pod("default", name, "n", &labels, &format!("10.0.0.{number}"));
        allowing(pod, claims)
    });
    let policies = [
        egress("a", "app=a", 79),
        egress("b", "app=b", 80),
        egress("c", "app=c", 81),
        egress("bc", "app in b c", 79),
    ];
    let policy = compiled(with("", pods.into_iter().chain(policies)));
    assert_eq!(
        sources(&policy),
        owned(&[
            ("default/a", "10.9.0.0/24, 10.9.2.0-10.9.255.255"),
            ("default/b default/c", "10.9.1.0/24"),
        ])
    );
    assert_eq!(ports(&policy, "10.9.0.1"), [79]);
    assert_eq!(ports(&policy, "10.0.0.11"), [79, 80]);
    // An address of equal claims may do what all claimants may.
    assert_eq!(ports(&policy, "10.9.1.1"), [79]);
}

#[test]
fn an_address_of_a_workload_is_nobodys_source() {
    let others = || {
        vec![
            pod("default", "near", "n", "", "10.9.0.1"),
            pod("default", "away", "m", "", "10.9.0.3"),
            // Without a node, and on one that is no object.
            pod("default", "pending", "", "", "10.9.0.5"),
            pod("default", "lost", "gone", "", "10.9.0.7"),
            on_host_network(pod("default", "host", "n", "", "10.9.0.9")),
        ]
    };
    let policy = compiled(with("10.9.0.0/28 10.0.0.1/32", others()));
    assert_eq!(
        sources(&policy),
        owned(&[(
            "default/gw",
            "10.9.0.0, 10.9.0.2, 10.9.0.4, 10.9.0.6, 10.9.0.8/29"
        )])
    );
}

#[test]
fn workload_ranges_of_other_nodes_are_nobodys_sources() {
    let policy = compiled(with(
        "0.0.0.0/0",
        [node("o", &["10.0.0.128/25", "172.16.0.0/12"])],
    ));
    // A claim that is wider than the ranges of the node itself means none of them; nor what no packet comes from.
    assert_eq!(
        sources(&policy),
        owned(&[(
            "default/gw",
            "0.0.0.1-9.255.255.255, 10.0.2.0-126.255.255.255, 128.0.0.0-172.15.255.255, \
             172.32.0.0-223.255.255.255, 240.0.0.0-255.255.255.254"
        )])
    );
    // One within them means them, without the addresses of its pods, even if another node has them, too.
    let policy = compiled(with("10.0.0.0/24", [node("o", &["10.0.0.128/25"])]));
    assert_eq!(
        sources(&policy),
        owned(&[("default/gw", "10.0.0.0, 10.0.0.2-10.0.0.255")])
    );
    let policy = compiled(with("10.0.1.0/24", [egress("p", "app=gw", 80)]));
    assert!(policy.sources().is_empty(), "nothing is left");
}

#[test]
fn an_address_of_a_node_is_nobodys_source() {
    let mut machine = node("o", &[]);
    if let sallyport_controlplane::model::Body::Node(node) = &mut machine.body {
        node.addresses = vec![ip("10.9.0.2"), ip("2001:db8::1")];
    }
    let policy = compiled(with("10.9.0.0/30 2001:db8::/127", [machine]));
    assert_eq!(
        sources(&policy),
        owned(&[("default/gw", "10.9.0.0/31, 10.9.0.3, 2001:db8::")])
    );
}

#[test]
fn sources_keep_no_established_connections() {
    let objects = || with("10.9.0.0/16", [egress("p", "app=gw", 80)]);
    let kept = compiled_under(Established::Keep, objects());
    let source = &kept.sources()[0];
    let endpoint = &kept.endpoints()[&ip("10.0.0.1")];
    assert!(kept.keeps(Egress, ip("10.0.0.1")) && !kept.keeps(Egress, ip("10.9.0.1")));
    assert_ne!(source.egress, endpoint.egress);
    assert_eq!(kept.groups().len(), 1, "the classes share their groups");
    let rechecked = compiled_under(Established::Recheck, objects());
    assert_eq!(rechecked.sources()[0].egress, source.egress);
    assert_eq!(rechecked.endpoints()[&ip("10.0.0.1")].egress, source.egress);
}

#[test]
fn allowed_sources_are_no_peers() {
    let rules = vec![rule(&[pods("app=gw")], &[])];
    let far = policy("default", "far", "app=far", Some(rules), None);
    let policies = ["", "10.9.0.0/16"].map(|sources| {
        let objects = with(sources, [far.clone()]);
        sallyport_controlplane::compile::full(&cluster(objects))["m"].clone()
    });
    assert_eq!(policies[0], policies[1]);
    let port = Some((Protocol::Tcp, 80));
    assert!(policies[1].allows(Ingress, ip("10.0.1.1"), ip("10.0.0.1"), port));
    assert!(!policies[1].allows(Ingress, ip("10.0.1.1"), ip("10.9.0.1"), port));
}

/// An edit that concerns no source of a node leaves its sources as they are, and one that does sends them alone.
#[test]
fn sources_change_alone_and_stay_where_nothing_changes() {
    let mut checked = Checked::new(Established::Recheck);
    let objects = with("10.0.0.0/8", [egress("p", "app=gw", 80)]);
    checked.step(&objects.into_iter().map(Edit::Put).collect::<Vec<_>>());
    let same = |before: &Arc<NodePolicy>, after: &Arc<NodePolicy>| {
        Arc::ptr_eq(before.sources(), after.sources())
    };
    let policy = |checked: &Checked| checked.policy("n").clone();
    let put = |object: Object| vec![Edit::Put(object)];
    for (edits, stays, changes) in [
        // A pod of another node within the ranges of that node, and one outside the claims.
        (put(pod("default", "p1", "m", "", "10.0.1.9")), true, 0),
        (put(pod("default", "p2", "m", "", "192.0.2.1")), true, 0),
        (put(pod("default", "p3", "m", "", "10.7.0.1")), false, 1),
        // The pod, and the hole that it makes; within the node's own ranges there is none.
        (put(pod("default", "p4", "n", "", "10.8.0.9")), false, 2),
        (put(pod("default", "p6", "n", "", "10.0.0.9")), true, 1),
        (
            vec![Edit::Delete(key(Kind::Pod, "default", "p3"))],
            false,
            1,
        ),
        (put(node("m", &["10.0.0.0/23"])), true, 0),
        // Derived anew, and the same, beside a pod outside the claims.
        (
            vec![
                Edit::Put(node("m", &["10.0.1.0/24"])),
                Edit::Put(pod("default", "p5", "n", "", "192.0.2.2")),
            ],
            true,
            1,
        ),
        (put(node("m", &["10.0.1.0/24", "10.2.0.0/16"])), false, 1),
        (vec![Edit::Delete(key(Kind::Node, "", "m"))], false, 1),
    ] {
        let before = policy(&checked);
        let what = format!("{edits:?}");
        checked.step(&edits);
        let after = policy(&checked);
        assert_eq!(same(&before, &after), stays, "{what}");
        let delta = Delta::between(&before, &after).changes;
        assert_eq!(delta.len(), changes, "{what}: {delta:?}");
        let is_told = |change: &Change| matches!(change, Change::Sources(_));
        assert_eq!(delta.iter().any(is_told), !stays, "{what}");
    }
}

/// More workloads than can be cut out of a claim one by one are cut out in blocks, and one by one again when there are
/// fewer.
#[test]
fn many_addresses_within_a_claim_are_left_out_in_blocks() {
    let mut checked = Checked::new(Established::Recheck);
    let address = |n: u32| std::net::Ipv4Addr::from_bits(0x0a14_0000 + 2 * n).to_string();
    let far = |n: u32| Edit::Put(pod("default", &format!("p{n}"), "m", "", &address(n)));
    let one_more = pod("default", "one-more", "m", "", "10.30.0.1");
    let objects = with("10.0.0.0/8 2001:db8::/64", [one_more]);
    let objects = objects.into_iter().map(Edit::Put);
    checked.step(&objects.chain((0..16_383).map(far)).collect::<Vec<_>>());
    let is_allowed = |checked: &Checked, address: &str| {
        let source = checked.policy("n").source_of(ip(address));
        source.is_some()
    };
    assert!(is_allowed(&checked, "10.20.0.1") && !is_allowed(&checked, "10.20.0.2"));
    for (edit, allowed) in [
        (far(16_383), false),
        (Edit::Delete(key(Kind::Pod, "default", "p7")), true),
    ] {
        checked.step(&[edit]);
        for near in ["10.20.0.1", "10.30.0.9", "10.20.127.255"] {
            assert_eq!(is_allowed(&checked, near), allowed, "{near}");
        }
        assert!(is_allowed(&checked, "10.20.128.1") && is_allowed(&checked, "2001:db8::1"));
    }
}
