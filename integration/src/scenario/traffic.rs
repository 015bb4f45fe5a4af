//! The floods: the senders, addresses and ports, and whether a flood must pass.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sallyport_testbed::{
    Error, Host, Testbed,
    probe::{Class, ClassCount},
};

/// The pod that floods.
pub const CLIENT: [IpAddr; 2] = both(1, 2);

/// The pod that is flooded, on the same node.
pub const SERVER: [IpAddr; 2] = both(1, 3);

/// The pod that is flooded, on the other node.
pub const FAR_SERVER: [IpAddr; 2] = both(2, 2);

/// The port that is flooded; where there are more, the first of them.
pub(super) const PORT: u16 = 9000;

/// The port that stays open, where ports are distinguished.
pub(super) const STAYS_OPEN: u16 = 9100;

/// The number of ports that change ends.
pub(super) const FLOWS: u32 = 5;

/// The number of pods of a kind that send, where pods are distinguished.
pub(super) const PEERS: u32 = 4;

const fn both(network: u8, host: u8) -> [IpAddr; 2] {
    [
        IpAddr::V4(Ipv4Addr::new(10, 9, network, host)),
        IpAddr::V6(Ipv6Addr::new(
            0xfd00,
            9,
            network as u16,
            0,
            0,
            0,
            0,
            host as u16,
        )),
    ]
}

/// The name of floods that must never pass.
const DENIED: &str = "denied";
/// The name of floods that must always pass.
pub const ALLOWED: &str = "allowed";

/// The pods that send where pods are distinguished: pods whose packets must never arrive, and pods whose packets always
/// must.
pub(super) const DENIED_PEERS: u8 = 8;
pub(super) const ALLOWED_PEERS: u8 = 9;

/// The addresses of one of them.
pub(super) const fn peer(which: u8, number: u8) -> [IpAddr; 2] {
    both(which, 16 + number)
}

/// The networks outside the cluster from which packets come.
const OUTSIDE: [&str; 4] = ["172.16.0.0/16", "172.20.0.0/16", "fd16::/64", "fd20::/64"];

/// Makes the pods: the one that floods, and the one that is flooded. The one that floods has the addresses of all pods
/// that send, and the networks outside are behind it: the node's routes lead to it, or else the node would take its
/// packets for spoofed.
pub fn pods(bed: &Testbed) -> Result<(Host, Host), Error> {
    let numbers = (0..PEERS as u8).flat_map(|n| [DENIED_PEERS, ALLOWED_PEERS].map(|p| peer(p, n)));
    let peers = numbers.flatten();
    let addresses: Vec<IpAddr> = CLIENT.into_iter().chain(peers).collect();
    let client = bed.add_pod(0, "default/client", &addresses)?;
    let outside = OUTSIDE.map(|network| network.parse().expect("it is a network"));
    bed.route_behind("default/client", &outside)?;
    let server = match bed.nodes() {
        1 => bed.add_pod(0, "default/server", &SERVER)?,
        _ => bed.add_pod(1, "default/server", &FAR_SERVER)?,
    };
    Ok((client, server))
}

fn classes(name: &str, first: [IpAddr; 2], addresses: u32, port: u16) -> [Class; 2] {
    first.map(|first| Class {
        name: name.to_owned(),
        first,
        addresses,
        port,
    })
}

/// From outside the cluster: sources in an `except`, and sources that a policy allows.
pub(super) fn sources() -> Vec<Class> {
    let denied = [
        IpAddr::from([172, 16, 7, 128]),
        Ipv6Addr::new(0xfd16, 0, 0, 0, 0, 0, 7, 0x8000).into(),
    ];
    [
        classes(DENIED, denied, 32, PORT),
        classes(ALLOWED, always(), 32, PORT),
    ]
    .concat()
}

/// From sources that a policy allows: to a port that is for others, and to one that is open.
pub(super) fn distinguished_by_port() -> Vec<Class> {
    [
        classes(DENIED, always(), 32, PORT),
        classes(ALLOWED, always(), 32, STAYS_OPEN),
    ]
    .concat()
}

fn always() -> [IpAddr; 2] {
    [
        [172, 20, 0, 32].into(),
        Ipv6Addr::new(0xfd20, 0, 0, 0, 0, 0, 0, 0x20).into(),
    ]
}

/// From pods that are never selected, and pods that always are.
pub(super) fn peers() -> Vec<Class> {
    [
        classes(DENIED, peer(DENIED_PEERS, 0), PEERS, PORT),
        classes(ALLOWED, peer(ALLOWED_PEERS, 0), PEERS, PORT),
    ]
    .concat()
}

/// From the client itself: to a port that it must not reach, and to one that it may.
pub(super) fn from_the_client() -> Vec<Class> {
    [
        classes(DENIED, CLIENT, 1, PORT),
        classes(ALLOWED, CLIENT, 1, STAYS_OPEN),
    ]
    .concat()
}

/// From the client itself to the ports that change ends, and to one that it may reach.
pub(super) fn flows() -> Vec<Class> {
    let denied = (0..FLOWS as u16).flat_map(|flow| classes(DENIED, CLIENT, 1, PORT + flow));
    denied
        .chain(classes(ALLOWED, CLIENT, 1, STAYS_OPEN))
        .collect()
}

/// The counts of packets that must not pass, or of packets that must.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Packets that were sent.
    pub sent: u64,
    /// Packets that arrived.
    pub received: u64,
}

/// The denied and the allowed packets of a flood.
pub fn tallies(classes: &[ClassCount]) -> (Tally, Tally) {
    let of = |name: &str| {
        let named = classes.iter().filter(|class| class.name == name);
        named.fold(Tally::default(), |sum, class| Tally {
            sent: sum.sent + class.sent,
            received: sum.received + class.received,
        })
    };
    (of(DENIED), of(ALLOWED))
}
