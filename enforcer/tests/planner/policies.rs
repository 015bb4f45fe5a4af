//! Random policies over a small universe, and the verdict of each on a packet. This module makes no plan.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use rand::{RngExt, rngs::StdRng};
use sallyport_enforcer::table::{ports::Ports, render::Options};
use sallyport_nft_fake::{Arrival, Connection, Packet};
use sallyport_policy::{
    Class, ClassId, Direction, Endpoint, GroupId, NodePolicy, Owner, PeerGroup, PortRule, Protocol,
    Ranges, Source,
};

/// The interface behind which there are only workloads, in half of the options.
pub(crate) const WORKLOADS: &str = "pod7";

/// The time that a lease lasts, in half of the options.
pub(crate) const LEASE: Duration = Duration::from_secs(60);

/// An address of the universe: IPv4, the last two IPv6.
pub(crate) fn address(n: u8) -> IpAddr {
    match n {
        0..6 => [10, 0, 0, n].into(),
        _ => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n.into()).into(),
    }
}

const ADDRESSES: u8 = 8;

fn some_addresses(rng: &mut StdRng, chance: f64) -> Vec<IpAddr> {
    let all = (0..ADDRESSES).filter(|_| rng.random_bool(chance));
    all.map(address).collect()
}

pub(crate) fn random_options(rng: &mut StdRng) -> Options {
    let range = Ranges::span(address(3), address(5)).expect("a range");
    Options {
        strict: rng.random_bool(0.7),
        workload_ranges: if rng.random_bool(0.3) {
            range
        } else {
            Ranges::EMPTY
        },
        workload_interfaces: match rng.random_bool(0.5) {
            true => vec!["pod*".into()],
            false => Vec::new(),
        },
        owned: false,
        lease: rng.random_bool(0.5).then_some(LEASE),
        ports: random_ports(rng),
        ..Options::default()
    }
}

fn random_ports(rng: &mut StdRng) -> Ports {
    let mut ports = Ports::default();
    if rng.random_bool(0.3) {
        ports.names.insert(WORKLOADS.into());
        if rng.random_bool(0.5) {
            let allowed = Ranges::span(address(2), address(2)).expect("a range");
            ports.allow(WORKLOADS, &allowed);
        }
    }
    if rng.random_bool(0.7) {
        ports.inside.insert(WORKLOADS.into());
    }
    ports
}

/// A policy whose groups and classes are those of a few recipes, so that two of them share much.
pub(crate) fn random_policy(rng: &mut StdRng) -> NodePolicy {
    let mut policy = NodePolicy::default();
    let last = rng.random_range(1..6);
    let ranges = Ranges::span(address(0), address(last)).expect("a range");
    policy.set_workload_ranges(Arc::new(ranges));
    let groups: Vec<_> = (0..4).map(|n| random_group(rng, n)).collect();
    for n in 0..ADDRESSES {
        if rng.random_bool(0.35) {
            continue;
        }
        let mut class = |direction| add_random_class(rng, direction, &groups, &mut policy);
        let endpoint = Endpoint {
            namespace: "default".into(),
            ingress: class(Direction::Ingress),
            egress: class(Direction::Egress),
            name: format!("pod-{n}"),
            uid: String::new(),
            interface: ["", "veth", "tap"][rng.random_range(0..3)].into(),
        };
        policy.set_endpoint(address(n), Arc::new(endpoint));
    }
    let (mut sources, mut claimed) = (Vec::new(), Ranges::EMPTY);
    for n in 0..rng.random_range(0..3) {
        let (first, last) = [(0, 1), (1, 4), (3, 5), (6, 7), (7, 7)][rng.random_range(0..5)];
        let all = Ranges::span(address(first), address(last)).expect("a range");
        let mut class = |direction| add_random_class(rng, direction, &groups, &mut policy);
        sources.push(Source {
            ingress: class(Direction::Ingress),
            egress: class(Direction::Egress),
            owners: vec![Owner {
                namespace: "default".into(),
                name: format!("pod-{n}"),
            }],
            others: Vec::new(),
            ranges: all.difference(&claimed),
        });
        claimed = claimed.union(&all);
    }
    policy.set_sources(Arc::new(Source::canonical(sources)));
    drop_unused(&mut policy);
    policy
}

/// Adds a class in two cases of three.
fn add_random_class(
    rng: &mut StdRng,
    direction: Direction,
    groups: &[(GroupId, Arc<PeerGroup>)],
    policy: &mut NodePolicy,
) -> Option<ClassId> {
    if rng.random_bool(0.35) {
        return None;
    }
    let class = random_class(rng, direction, groups);
    for id in class.groups() {
        let group = groups.iter().find(|(other, _)| *other == id);
        let (_, group) = group.expect("one of them");
        policy.set_group(id, group.clone());
    }
    let id = class.id();
    policy.add_class(id, Arc::new(class));
    Some(id)
}

fn random_group(rng: &mut StdRng, n: u8) -> (GroupId, Arc<PeerGroup>) {
    let ranges = match n {
        2 => Ranges::span(address(1), address(2)).expect("a range"),
        3 => Ranges::everything(),
        _ => Ranges::EMPTY,
    };
    let description = format!("group {n}");
    let id = GroupId::of([description.as_str()], &ranges);
    let mut group = PeerGroup::new(description, ranges);
    let mut members = some_addresses(rng, 0.4);
    // Members of IPv6 are few, and often there is none. A single member of IPv4 is left out, so that there often is
    // none of IPv4 either.
    if members.iter().filter(|address| address.is_ipv4()).count() == 1 {
        members.retain(IpAddr::is_ipv6);
    }
    group.addresses = members.into_iter().collect();
    (id, Arc::new(group))
}

fn random_class(
    rng: &mut StdRng,
    direction: Direction,
    groups: &[(GroupId, Arc<PeerGroup>)],
) -> Class {
    let mut group = || groups[rng.random_range(0..groups.len())].0;
    let (a, b) = (group(), group());
    let rule = |protocol, first, last, group| PortRule {
        protocol,
        first,
        last,
        group,
    };
    let ports = match rng.random_range(0..5) {
        0 => vec![],
        1 => vec![rule(Protocol::Tcp, 80, 80, a)],
        2 if a != b => vec![
            rule(Protocol::Tcp, 0, 79, a),
            rule(Protocol::Tcp, 80, 80, b),
            rule(Protocol::Tcp, 81, u16::MAX, a),
        ],
        3 => vec![
            rule(Protocol::Tcp, 80, 90, b),
            rule(Protocol::Udp, 53, 53, a),
        ],
        _ => Protocol::ALL
            .map(|protocol| rule(protocol, 0, u16::MAX, a))
            .to_vec(),
    };
    Class {
        direction,
        keep_established: false,
        other: rng.random_bool(0.5).then_some(a),
        ports,
    }
}

/// An edit of a policy: a new policy, or the same with a few changes.
pub(crate) fn random_edit(rng: &mut StdRng, old: &NodePolicy) -> NodePolicy {
    let other = random_policy(rng);
    if rng.random_bool(0.4) {
        return other;
    }
    let mut new = old.clone();
    for (&id, group) in other.groups() {
        if old.groups().contains_key(&id) && rng.random_bool(0.5) {
            new.set_group(id, group.clone());
        }
    }
    let take_in = |new: &mut NodePolicy, classes: [Option<ClassId>; 2]| {
        let classes = classes.into_iter().flatten();
        for (id, class) in classes.map(|id| (id, other.classes()[&id].clone())) {
            for group in class.groups() {
                if !new.groups().contains_key(&group) {
                    new.set_group(group, other.groups()[&group].clone());
                }
            }
            new.add_class(id, class);
        }
    };
    for (&at, endpoint) in other.endpoints() {
        if rng.random_bool(0.3) {
            take_in(&mut new, [endpoint.ingress, endpoint.egress]);
            new.set_endpoint(at, endpoint.clone());
        }
    }
    if rng.random_bool(0.5) {
        for source in other.sources().iter() {
            take_in(&mut new, [source.ingress, source.egress]);
        }
        new.set_sources(other.sources().clone());
    }
    drop_unused(&mut new);
    new
}

/// Removes unused classes and groups, because the compiler sends none.
fn drop_unused(policy: &mut NodePolicy) {
    let sources = policy.sources().iter();
    let used: Vec<_> = policy
        .endpoints()
        .values()
        .map(|of| [of.ingress, of.egress])
        .chain(sources.map(|of| [of.ingress, of.egress]))
        .flatten()
        .flatten()
        .collect();
    for id in policy.classes().keys().copied().collect::<Vec<_>>() {
        if !used.contains(&id) {
            policy.remove_class(id);
        }
    }
    let used: Vec<_> = policy
        .classes()
        .values()
        .flat_map(|class| class.groups().collect::<Vec<_>>())
        .collect();
    for id in policy.groups().keys().copied().collect::<Vec<_>>() {
        if !used.contains(&id) {
            policy.remove_group(id);
        }
    }
}

/// Every packet of the universe that can tell policies apart.
pub(crate) fn packets() -> Vec<Packet> {
    let mut packets = Vec::new();
    for (client, server) in
        (0..ADDRESSES).flat_map(|a| (0..ADDRESSES).map(move |b| (address(a), address(b))))
    {
        if client.is_ipv4() != server.is_ipv4() {
            continue;
        }
        let of = [(6, 80), (6, 85), (17, 53), (1, 0)]
            .map(|(protocol, port)| Packet::of_connection(client, server, protocol, port));
        let late = Packet::of_connection(client, server, 6, 80).in_the_middle();
        let [astray, bridged] = [Arrival::Elsewhere, Arrival::Bridge]
            .map(|entry| Packet::of_connection(client, server, 6, 80).at(entry));
        let unconnected = Packet::without_connection(client, server);
        let others = [late, astray, bridged, unconnected];
        for packet in of.into_iter().chain(others) {
            packets.push(packet.clone().by(WORKLOADS, WORKLOADS));
            packets.push(packet);
        }
        if client == server {
            let ways = [("eth0", WORKLOADS), (WORKLOADS, "eth0")];
            for (input, output) in ways {
                let packet = Packet::of_connection(client, server, 6, 80);
                packets.push(packet.clone().reply().by(input, output));
                packets.push(packet.by(input, output));
                packets.push(Packet::without_connection(client, server).by(input, output));
            }
            packets.push(Packet {
                icmpv6: Some(135),
                ..Packet::without_connection(client, server)
            });
        }
    }
    packets
}

/// Whether a packet is possible. Where interfaces of workloads are named, all workloads are behind them. A packet from
/// an address of a source to the same address is not forwarded. The guard lets no other address pass by an interface
/// than that of a source: it narrows before an update and widens after it.
pub(crate) fn can_be(policy: &NodePolicy, options: &Options, packet: &Packet) -> bool {
    let behind = |address: &IpAddr, interface: &str| {
        options.workload_interfaces.is_empty()
            || interface == WORKLOADS
            || !(policy.endpoints().contains_key(address) || policy.source_of(*address).is_some())
    };
    let [(client, input), (server, output)] = ends(packet);
    let to_itself = client == server && policy.source_of(client).is_some();
    let may_use = |ranges: &Ranges| ranges.contains(packet.source);
    let is_let_through = options.ports.ranges.get(&packet.input).is_some_and(may_use);
    let is_guarded = !is_let_through || policy.source_of(packet.source).is_some();
    behind(&client, input) && behind(&server, output) && !to_itself && is_guarded
}

/// The ends of a packet's connection, else of the packet itself, each with the interface of its side: client, server.
pub(crate) fn ends(packet: &Packet) -> [(IpAddr, &str); 2] {
    let (input, output) = (packet.input.as_str(), packet.output.as_str());
    match &packet.connection {
        Some(of) if of.original => [(of.client, input), (of.server, output)],
        Some(of) => [(of.client, output), (of.server, input)],
        None => [(packet.source, input), (packet.destination, output)],
    }
}

/// Whether an end of a packet's way is judged by its address: the end is an endpoint, or in a source and behind an
/// interface of workloads.
fn is_judged(policy: &NodePolicy, options: &Options, address: IpAddr, interface: &str) -> bool {
    let is_source = policy.source_of(address).is_some() && options.ports.inside.contains(interface);
    policy.endpoints().contains_key(&address) || is_source
}

/// Whether a packet comes from where its source is not. A packet of an endpoint came in elsewhere. Or any packet came
/// in by an interface that has only workloads behind it, as the operator says in strict mode or as the routes say.
pub(crate) fn is_spoofed(policy: &NodePolicy, options: &Options, packet: &Packet) -> bool {
    let behind = !options.workload_interfaces.is_empty() && packet.input == WORKLOADS;
    let ports = &options.ports;
    let may_use = |ranges: &Ranges| ranges.contains(packet.source);
    let is_allowed = ports.ranges.get(&packet.input).is_some_and(may_use);
    let from_workload = options.strict && behind || ports.names.contains(&packet.input);
    let is_elsewhere = match (ports.names.contains(&packet.input), is_allowed) {
        (true, true) => false,
        (false, true) => policy.endpoints().contains_key(&packet.source),
        (_, false) => from_workload || policy.endpoints().contains_key(&packet.source),
    };
    packet.arrival == Arrival::Elsewhere && is_elsewhere
}

/// Whether a policy lets a packet pass, by the documentation alone and without the table's way to decide.
pub(crate) fn permits(policy: &NodePolicy, options: &Options, packet: &Packet) -> bool {
    if is_spoofed(policy, options, packet) {
        return false;
    }
    match &packet.connection {
        Some(connection) => permits_connection(policy, options, packet, connection),
        None if packet.icmpv6.is_some() => true,
        None => {
            let by_header =
                |at: IpAddr, interface: &str| match is_judged(policy, options, at, interface) {
                    true => policy.classes_of(at) == [None; 2],
                    false => is_welcome(policy, options, at, Some(interface)),
                };
            by_header(packet.source, &packet.input) && by_header(packet.destination, &packet.output)
        }
    }
}

fn permits_connection(
    policy: &NodePolicy,
    options: &Options,
    packet: &Packet,
    connection: &Connection,
) -> bool {
    // The packet is in the middle of a connection that is not known, and an end is isolated.
    let ends = ends(packet);
    let [(_, by_client), (_, by_server)] = ends;
    let begins_nothing = connection.late && !connection.established;
    if begins_nothing
        && ends.into_iter().any(|(end, interface)| {
            is_judged(policy, options, end, interface) && policy.classes_of(end) != [None; 2]
        })
    {
        return false;
    }
    let protocol = Protocol::from_number(connection.protocol.into());
    let port = protocol.map(|protocol| (protocol, connection.port));
    let side = |direction, local: IpAddr, peer: IpAddr, interface: &str| match is_judged(
        policy, options, local, interface,
    ) {
        true => policy.allows(direction, local, peer, port),
        false => is_welcome(
            policy,
            options,
            local,
            connection.original.then_some(interface),
        ),
    };
    side(
        Direction::Egress,
        connection.client,
        connection.server,
        by_client,
    ) && side(
        Direction::Ingress,
        connection.server,
        connection.client,
        by_server,
    )
}

/// Whether an address is a workload's of this node: an endpoint, or in strict mode one of its ranges'.
pub(crate) fn is_known(policy: &NodePolicy, options: &Options, address: IpAddr) -> bool {
    policy.endpoints().contains_key(&address) || !is_welcome(policy, options, address, None)
}

/// Whether a packet enters or leaves by an interface of workloads with an address that a workload uses beside its own.
pub(crate) fn is_of_a_source(policy: &NodePolicy, options: &Options, packet: &Packet) -> bool {
    let ends = [
        (packet.source, &packet.input),
        (packet.destination, &packet.output),
    ];
    ends.into_iter().any(|(end, interface)| {
        policy.source_of(end).is_some() && options.ports.inside.contains(interface)
    })
}

/// Whether an address that is no endpoint may talk. In strict mode an address of this node's workloads may not.
fn is_welcome(
    policy: &NodePolicy,
    options: &Options,
    address: IpAddr,
    interface: Option<&str>,
) -> bool {
    let ours =
        policy.workload_ranges().contains(address) || options.workload_ranges.contains(address);
    let behind = !options.workload_interfaces.is_empty() && interface == Some(WORKLOADS);
    !options.strict || !(ours || behind)
}
