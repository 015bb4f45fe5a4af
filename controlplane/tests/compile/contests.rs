//! Addresses that several workloads claim: as an endpoint such an address allows what all claimants allow, and as a peer it
//! is where all claimants are. First as a table, then as a law: the verdict is that of all clusters in which one claimant
//! has the address alone.

use std::{collections::BTreeSet, net::IpAddr};

use proptest::{
    collection::vec,
    prelude::*,
    sample::Index,
    test_runner::{Config, TestRunner},
};
use sallyport_controlplane::{
    cluster::Cluster,
    compile::full,
    model::{Body, Established, Object, Peer, Workload},
};
use sallyport_policy::{Direction, NodePolicy, Protocol, Revision};
use sallyport_proto::object::ObjectKey;

use crate::{
    table::{CLIENT, OTHER, WEB, compiled, compiled_under},
    universe::{self, any_cluster},
    write::*,
};

use Direction::{Egress, Ingress};
use Protocol::{Tcp, Udp};

/// Two pods that claim one address, and a client, all on node `n`.
fn world() -> Vec<Object> {
    vec![
        node("n", &[]),
        node("m", &[]),
        namespace("default", ""),
        pod("default", "a", "n", "app=a", WEB),
        pod("default", "b", "n", "app=b", WEB),
        pod("default", "client", "n", "app=client", CLIENT),
    ]
}

fn with(objects: &[Object]) -> Vec<Object> {
    world().into_iter().chain(objects.iter().cloned()).collect()
}

fn ingress(
    name: &str,
    selector: &str,
    peers: &[Peer],
    ports: &[sallyport_controlplane::model::Port],
) -> Object {
    policy(
        "default",
        name,
        selector,
        Some(vec![rule(peers, ports)]),
        None,
    )
}

/// The TCP ports of some that `local` allows with `peer`.
fn ports(policy: &NodePolicy, direction: Direction, local: &str, peer: &str) -> Vec<u16> {
    let ports = [79, 80, 81, 90, 8080].into_iter();
    let allows = |port: &u16| policy.allows(direction, ip(local), ip(peer), Some((Tcp, *port)));
    ports.filter(allows).collect()
}

#[test]
fn one_claimant_that_is_isolated_isolates_the_address() {
    let policy = compiled(with(&[ingress(
        "p",
        "app=b",
        &[pods("app=client")],
        &[tcp(80)],
    )]));
    assert_eq!(ports(&policy, Ingress, WEB, CLIENT), [80]);
    assert!(ports(&policy, Ingress, WEB, OTHER).is_empty());
    assert_eq!(ports(&policy, Egress, WEB, OTHER).len(), 5);
    let endpoint = &policy.endpoints()[&ip(WEB)];
    assert_eq!(endpoint.name, "a", "the first claimant of the node");
    assert!(endpoint.ingress.is_some() && endpoint.egress.is_none());
}

#[test]
fn two_isolated_claimants_allow_what_both_allow() {
    let peers = [pods("app=client")];
    let policy = compiled(with(&[
        ingress("p", "app=a", &peers, &[span(Tcp, 80, 90), tcp(8080)]),
        ingress("q", "app=b", &peers, &[span(Tcp, 79, 81)]),
    ]));
    assert_eq!(ports(&policy, Ingress, WEB, CLIENT), [80, 81]);
    // The peers are those of both.
    let blocks = [block("10.0.0.0/24", &[]), block("10.0.1.0/24", &[])];
    let policy = compiled(with(&[
        ingress("p", "app=a", &blocks, &[]),
        ingress(
            "q",
            "app=b",
            &[pods("app=client"), block("10.0.1.0/25", &["10.0.1.4/32"])],
            &[],
        ),
    ]));
    let allows = |peer| policy.allows(Ingress, ip(WEB), ip(peer), None);
    assert!(allows(CLIENT) && allows("10.0.1.5"));
    assert!(!allows(OTHER) && !allows("10.0.1.200") && !allows("10.0.0.77"));
    let class = policy.endpoints()[&ip(WEB)]
        .ingress
        .expect("it is isolated");
    let group = policy.classes()[&class].other.expect("somebody");
    assert_eq!(
        policy.groups()[&group].spec.description,
        "in each of (10.0.0.0/23), (pods default/app=client | 10.0.1.0/30, 10.0.1.5-10.0.1.127)"
    );
}

#[test]
fn claimants_with_the_same_rules_share_the_class_of_others() {
    let peers = [pods("app=client")];
    let policy = compiled(with(&[
        pod("default", "c", "n", "app=b", OTHER),
        ingress("p", "app=a", &peers, &[tcp(80)]),
        ingress("q", "app=b", &peers, &[tcp(80)]),
    ]));
    let class = |address| policy.endpoints()[&ip(address)].ingress;
    assert_eq!(class(WEB), class(OTHER));
    assert_eq!((policy.classes().len(), policy.groups().len()), (1, 1));
}

#[test]
fn every_node_that_a_claimant_names_has_the_address() {
    let objects = [
        pod("default", "c", "m", "app=c", WEB),
        pod("default", "d", "", "app=d", WEB),
        policy("default", "p", "app=b", Some(vec![]), None),
        policy("default", "q", "app=d", None, Some(vec![])),
    ];
    let all = full(&cluster(with(&objects)));
    for (name, first) in [("n", "a"), ("m", "c")] {
        let policy = &all[name];
        assert_eq!(policy.endpoints()[&ip(WEB)].name, first);
        assert!(
            ports(policy, Ingress, WEB, CLIENT).is_empty(),
            "b is isolated"
        );
        assert!(
            ports(policy, Egress, WEB, CLIENT).is_empty(),
            "d is isolated, on no node"
        );
    }
}

#[test]
fn a_peer_is_selected_where_all_claimants_are() {
    let from = |peers: &[Peer]| {
        let policy = compiled(with(&[ingress("p", "app=client", peers, &[])]));
        policy.allows(Ingress, ip(CLIENT), ip(WEB), None)
    };
    assert!(!from(&[pods("app=a")]) && !from(&[pods("app=b")]));
    assert!(
        from(&[pods("app=a"), pods("app=b")]),
        "each by a term of its own"
    );
    assert!(from(&[pods("app in a b")]) && from(&[pods("")]) && from(&[pods_of("", "")]));
    assert!(
        from(&[block("10.0.0.1/32", &[])]),
        "a block knows addresses, not pods"
    );
}

#[test]
fn a_named_port_is_each_claimants_own() {
    let named_ports = |a, b| {
        let mut objects = with(&[
            ingress("p", "app in a b", &[], &[named(Tcp, "http")]),
            policy(
                "default",
                "q",
                "app=client",
                None,
                Some(vec![rule(
                    &[pods("app=a"), pods("app=b")],
                    &[named(Tcp, "http")],
                )]),
            ),
        ]);
        for (object, number) in objects[3..5].iter_mut().zip([a, b]) {
            *object = with_ports(object.clone(), &[("http", Tcp, number), ("http", Udp, 90)]);
        }
        let policy = compiled(objects);
        (
            ports(&policy, Ingress, WEB, CLIENT),
            ports(&policy, Egress, CLIENT, WEB),
        )
    };
    assert_eq!(named_ports(80, 80), (vec![80], vec![80]));
    assert_eq!(named_ports(80, 8080), (vec![], vec![]));
}

#[test]
fn established_connections_are_kept_if_all_claimants_keep_them() {
    use Established::{Keep, Recheck};
    for (a, b, keeps) in [
        (Some(Keep), Some(Keep), true),
        (Some(Keep), Some(Recheck), false),
        (Some(Keep), None, true),
        (None, Some(Recheck), false),
    ] {
        let say = |name: &str, mode: Option<Established>| {
            let object = policy("default", name, &format!("app={name}"), Some(vec![]), None);
            mode.map(|mode| established(object, mode))
        };
        let policies: Vec<Object> = [say("a", a), say("b", b)].into_iter().flatten().collect();
        let policy = compiled_under(Recheck, with(&policies));
        assert_eq!(policy.keeps(Ingress, ip(WEB)), keeps, "{a:?} {b:?}");
    }
}

fn claims(workload: &Workload, address: IpAddr) -> bool {
    !workload.host_network && workload.addresses.contains(&address)
}

/// The cluster in which one claimant of an address has it alone, on node `n0`.
pub(crate) fn alone(cluster: &Cluster, address: IpAddr, claimant: &ObjectKey) -> Cluster {
    let mut alone = cluster.clone();
    for (key, workload) in cluster
        .workloads()
        .filter(|(_, workload)| claims(workload, address))
    {
        let mut workload = workload.clone();
        match key == claimant {
            true => workload.node = Some("n0".into()),
            false => workload.addresses.retain(|&other| other != address),
        }
        let body = Body::Workload(workload);
        alone.put(
            object(key.kind, &key.namespace, &key.name, body),
            Revision(1),
        );
    }
    alone
}

/// The clusters in which an address has each of its claimants alone; the cluster itself, if nobody claims it.
fn choices(cluster: &Cluster, address: IpAddr) -> Vec<Cluster> {
    let claimants = cluster
        .workloads()
        .filter(|(_, workload)| claims(workload, address));
    let choices: Vec<Cluster> = claimants
        .map(|(key, _)| alone(cluster, address, key))
        .collect();
    match choices.is_empty() {
        true => vec![cluster.clone()],
        false => choices,
    }
}

/// What the law has seen, so that it cannot hold for want of contests.
#[derive(Default)]
struct Seen {
    contested_locals: usize,
    contested_peers: usize,
    /// Locals whose class has a group that is a meet.
    met: usize,
    verdicts: [usize; 2],
}

#[test]
fn a_contested_address_allows_what_it_allows_whoever_has_it() {
    let config = Config {
        cases: 1_500,
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = TestRunner::new(config);
    let picks = vec(any::<Index>(), 5);
    let seen = std::cell::RefCell::new(Seen::default());
    // More policies than other laws have, so that several claimants are isolated.
    let crowded =
        (any_cluster(), vec(universe::policy(), 3..9)).prop_map(|(mut cluster, policies)| {
            for policy in policies {
                cluster.put(policy, Revision(1));
            }
            cluster
        });
    let law = runner.run(&(crowded, picks), |(cluster, picks)| {
        for pick in picks {
            holds(&cluster, pick, &mut seen.borrow_mut())?;
        }
        Ok(())
    });
    law.unwrap_or_else(|failure| panic!("{failure}"));
    let seen = seen.into_inner();
    let [denied, allowed] = seen.verdicts;
    println!(
        "contested locals {}, of which {} with groups that are meets; contested peers {}, allowed {allowed}, denied {denied}",
        seen.contested_locals, seen.met, seen.contested_peers
    );
    assert!(seen.contested_locals.min(seen.contested_peers) > 700);
    assert!(seen.met > 60);
    assert!(allowed.min(denied) > 10_000);
}

fn holds(cluster: &Cluster, pick: Index, seen: &mut Seen) -> Result<(), TestCaseError> {
    let compiled = full(cluster);
    let is_contested = |address: &IpAddr| cluster.contested().contains(address);
    let has = |address: &IpAddr| {
        let mut policies = compiled.values();
        policies.any(|policy| policy.endpoints().contains_key(address))
    };
    let addresses = cluster
        .workloads()
        .flat_map(|(_, workload)| &workload.addresses);
    let addresses: BTreeSet<IpAddr> = addresses.copied().collect();
    let pairs = addresses.iter().filter(|local| has(local));
    let pairs = pairs.flat_map(|local| addresses.iter().map(move |peer| (*local, *peer)));
    let pairs: Vec<(IpAddr, IpAddr)> = pairs
        .filter(|(local, peer)| local != peer && local.is_ipv4() == peer.is_ipv4())
        .filter(|(local, peer)| is_contested(local) || is_contested(peer))
        .collect();
    if pairs.is_empty() {
        return Ok(());
    }
    let &(local, peer) = pick.get(&pairs);
    let protocols = Protocol::ALL.into_iter();
    let ports =
        protocols.flat_map(|protocol| [52, 53, 80, 81, 8080].map(|port| Some((protocol, port))));
    let ports: Vec<_> = ports.chain([None]).collect();
    let worlds = choices(cluster, local).into_iter();
    let worlds = worlds.flat_map(|world| choices(&world, peer));
    let worlds: Vec<_> = worlds.map(|world| full(&world)["n0"].clone()).collect();
    let nodes = compiled
        .values()
        .filter(|policy| policy.endpoints().contains_key(&local));
    for policy in nodes {
        seen.contested_locals += usize::from(is_contested(&local));
        seen.contested_peers += usize::from(is_contested(&peer));
        for direction in Direction::BOTH {
            let class = policy.endpoints()[&local].class(direction);
            let groups = class.map(|class| policy.classes()[&class].groups().collect());
            let mut groups = groups.into_iter().flat_map(|groups: Vec<_>| groups);
            let is_met = groups.any(|id| {
                let description = &policy.groups()[&id].spec.description;
                description.starts_with("in each of")
            });
            seen.met += usize::from(is_met);
            for &port in &ports {
                let mut of = worlds.iter();
                let should = of.all(|world| world.allows(direction, local, peer, port));
                let does = policy.allows(direction, local, peer, port);
                prop_assert_eq!(
                    does,
                    should,
                    "{} of {}, peer {}, {:?}",
                    direction,
                    local,
                    peer,
                    port
                );
                seen.verdicts[usize::from(does)] += 1;
            }
        }
    }
    Ok(())
}
