//! Tests which connections end with an update. Examples say why each ends. No update that must end a connection is
//! planned without a review.

use std::{net::IpAddr, sync::Arc};

use crate::policies::{address, random_edit, random_options, random_policy};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom as _};
use sallyport_enforcer::{
    plan::{self, Installed, Limits},
    table::render::Options,
};
use sallyport_nft::connection::{Connection, End};
use sallyport_policy::{
    Class, Direction, Endpoint, Epoch, GroupId, NodePolicy, PeerGroup, PortRule, Position,
    Protocol, Ranges, Revision, Window,
};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const GRE: u8 = 47;

/// A pod of this node, and one of another.
const POD: [u8; 4] = [10, 0, 0, 1];
const PEER: [u8; 4] = [10, 0, 1, 1];

fn options(strict: bool) -> Options {
    Options {
        strict,
        workload_ranges: Ranges::EMPTY,
        ..Options::default()
    }
}

/// The traffic that is allowed to come to the pod.
#[derive(Clone, Copy, Debug)]
enum Ingress {
    /// No policy selects the pod.
    Open,
    /// This protocol's port, from the peer. `None` allows nothing.
    Only(Option<(Protocol, u16)>),
    /// No new connection is allowed, but established ones go on.
    Keep,
}

/// A node with the pod, if it is there.
fn node(pod: Option<Ingress>) -> NodePolicy {
    let mut policy = NodePolicy::default();
    let ranges = Ranges::span(POD.into(), POD.into()).expect("a range");
    policy.set_workload_ranges(Arc::new(ranges));
    let Some(ingress) = pod else {
        return policy;
    };
    let group = GroupId::of(["peer"], &Ranges::EMPTY);
    let class = match ingress {
        Ingress::Open => None,
        Ingress::Only(port) => Some((false, port)),
        Ingress::Keep => Some((true, None)),
    };
    let class = class.map(|(keep_established, port)| {
        let rule = |(protocol, port)| PortRule {
            protocol,
            first: port,
            last: port,
            group,
        };
        let class = Class {
            direction: Direction::Ingress,
            keep_established,
            other: None,
            ports: port.map(rule).into_iter().collect(),
        };
        if port.is_some() {
            let mut peers = PeerGroup::new("peer".into(), Ranges::EMPTY);
            peers.addresses.insert(PEER.into());
            policy.set_group(group, Arc::new(peers));
        }
        let id = class.id();
        policy.add_class(id, Arc::new(class));
        id
    });
    let endpoint = Endpoint {
        namespace: "default".into(),
        name: "pod".into(),
        uid: String::new(),
        interface: String::new(),
        ingress: class,
        egress: None,
    };
    policy.set_endpoint(POD.into(), Arc::new(endpoint));
    policy
}

fn connection(protocol: u8, client: ([u8; 4], u16), server: ([u8; 4], u16)) -> Connection {
    let end = |(address, port): ([u8; 4], u16)| End {
        address: address.into(),
        port,
    };
    Connection {
        protocol,
        client: end(client),
        server: end(server),
        picked_up: false,
    }
}

fn picked_up(client: ([u8; 4], u16), server: ([u8; 4], u16)) -> Connection {
    Connection {
        picked_up: true,
        ..connection(TCP, client, server)
    }
}

fn ends(connection: Connection, before: Ingress, after: Ingress) -> bool {
    let (before, after) = (node(Some(before)), node(Some(after)));
    plan::must_end(&connection, Some(&before), &after, &options(true))
}

const NOTHING: Ingress = Ingress::Only(None);
const DNS: Ingress = Ingress::Only(Some((Protocol::Udp, 53)));

#[test]
fn tcp_that_was_picked_up_ends_when_an_end_becomes_isolated() {
    for connection in [
        picked_up((POD, 80), (PEER, 40000)),
        picked_up((PEER, 40000), (POD, 80)),
    ] {
        assert!(ends(connection, Ingress::Open, NOTHING));
        let web = Ingress::Only(Some((Protocol::Tcp, 80)));
        assert!(
            ends(connection, Ingress::Open, web),
            "nobody knows who began it: it may have been the other"
        );
        assert!(
            !ends(connection, web, NOTHING),
            "an isolated pod has none: its packets were reset"
        );
        assert!(!ends(connection, Ingress::Open, Ingress::Keep));
        assert!(ends(connection, Ingress::Keep, NOTHING));
        let begun = Connection {
            picked_up: false,
            ..connection
        };
        assert!(
            !ends(begun, Ingress::Open, NOTHING),
            "the table judges by who began it, and that is known"
        );
    }
}

#[test]
fn a_revoked_flow_ends_where_it_is_recorded_the_other_way_round() {
    let there = connection(UDP, (PEER, 40000), (POD, 53));
    let back = connection(UDP, (POD, 53), (PEER, 40000));
    assert!(ends(back, Ingress::Open, NOTHING) && ends(back, DNS, NOTHING));
    assert!(
        !ends(there, Ingress::Open, NOTHING),
        "the table denies it in both directions"
    );
    for one in [there, back] {
        assert!(!ends(one, Ingress::Open, DNS), "it is allowed");
        assert!(!ends(one, NOTHING, Ingress::Open));
        assert!(!ends(one, NOTHING, NOTHING), "nothing is revoked");
        assert!(!ends(one, Ingress::Open, Ingress::Keep));
    }
    let both_fixed = connection(UDP, (POD, 51820), (PEER, 51820));
    assert!(ends(both_fixed, Ingress::Open, NOTHING));
    let opposite = connection(UDP, (PEER, 51820), (POD, 51820));
    assert!(!ends(opposite, Ingress::Open, NOTHING));
    let turned_round = connection(UDP, (PEER, 53), (POD, 40000));
    assert!(
        ends(turned_round, Ingress::Open, NOTHING),
        "the pod asked, and may ask again"
    );
    let tunnel = connection(GRE, (POD, 0), (PEER, 0));
    assert!(ends(tunnel, Ingress::Open, NOTHING));
}

#[test]
fn what_a_pod_began_itself_goes_on() {
    let question = connection(UDP, (POD, 40000), (PEER, 53));
    assert!(
        !ends(question, Ingress::Open, NOTHING),
        "the answer that is under way would be lost"
    );
    let echo = connection(ICMP, (POD, 0), (PEER, 0));
    assert!(!ends(echo, Ingress::Open, NOTHING));
}

#[test]
fn an_address_that_falls_silent_has_no_connections_but_those_that_are_known() {
    let gone = node(None);
    let ends = |connection| plan::must_end(&connection, None, &gone, &options(true));
    assert!(ends(picked_up((POD, 80), (PEER, 40000))));
    assert!(ends(connection(UDP, (POD, 40000), (PEER, 53))));
    let begun = connection(TCP, (PEER, 40000), (POD, 80));
    assert!(!ends(begun), "the object may come, and it may be allowed");
    let standard = |connection| plan::must_end(&connection, None, &gone, &options(false));
    assert!(!standard(picked_up((POD, 80), (PEER, 40000))));
    let there = node(Some(Ingress::Open));
    let leaves = |connection| plan::must_end(&connection, Some(&there), &gone, &options(true));
    assert!(
        !leaves(picked_up((POD, 80), (PEER, 40000))),
        "the object may be put again"
    );
}

fn installed(before: &Installed, policy: &NodePolicy, options: &Options) -> Installed {
    let position = Position {
        epoch: Epoch(1),
        revision: Revision(before.generation.next().0),
        digest: policy.digest(),
    };
    let window = Window::alone(position, policy.clone());
    before.updated(window, &options.unknown())
}

fn random_connection(rng: &mut StdRng) -> Connection {
    let mut end = || {
        let ports = [53, 80, 40000, 51820];
        End {
            address: address(rng.random_range(0..9)),
            port: *ports.choose(rng).expect("there are some"),
        }
    };
    let (client, server) = (end(), end());
    let protocol = *[TCP, UDP, 132, GRE, ICMP].choose(rng).expect("some");
    Connection {
        protocol,
        client,
        server,
        picked_up: protocol == TCP && rng.random_bool(0.7),
    }
}

/// Whether there can be no connection of an address before an update, but those that ended with it.
fn is_silent(before: &Installed, options: &Options, address: IpAddr) -> bool {
    let policy = &before.policy;
    options.silences(policy, address)
        && !policy.endpoints().contains_key(&address)
        && !before.departed.contains_key(&address)
}

#[test]
fn no_connection_that_must_end_is_passed_by() {
    let mut ended = 0;
    for seed in 0..2000 {
        let mut rng = StdRng::seed_from_u64(seed);
        let options = random_options(&mut rng);
        let mut before = installed(&Installed::default(), &random_policy(&mut rng), &options);
        for _ in 0..3 {
            let policy = random_edit(&mut rng, &before.policy);
            let after = installed(&before, &policy, &options);
            let plan = plan::update(&before, &after, &options, Limits { batch: 1 << 20 });
            let is_reviewed = plan.steps.iter().any(|step| step.review.is_some());
            for _ in 0..200 {
                let connection = random_connection(&mut rng);
                let ends = [connection.client, connection.server];
                let is_there = !ends
                    .iter()
                    .any(|end| is_silent(&before, &options, end.address));
                let (old, new) = (&before.policy, &after.policy);
                if is_there && plan::must_end(&connection, Some(old), new, &options) {
                    ended += 1;
                    assert!(is_reviewed, "seed {seed}: {connection:?}");
                }
            }
            before = after;
        }
    }
    assert!(ended > 10_000, "{ended} connections are no test");
}
