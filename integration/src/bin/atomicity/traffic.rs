//! What the floods are made of: who sends, from which addresses, to which ports, and whether it must pass.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sallyport_integration::probe::{Class, ClassCount};

/// The pod that floods.
pub(crate) const CLIENT: [IpAddr; 2] = both(1, 2);

/// The pod that is flooded, on the same node.
pub(crate) const SERVER: [IpAddr; 2] = both(1, 3);

/// The pod that is flooded, on the other node.
pub(crate) const FAR_SERVER: [IpAddr; 2] = both(2, 2);

/// The port that is flooded; where there are more, the first of them.
pub(crate) const PORT: u16 = 9000;

/// The port that stays open, where ports are told apart.
pub(crate) const STAYS_OPEN: u16 = 9100;

/// How many ports change ends.
pub(crate) const FLOWS: u32 = 5;

/// How many pods of a kind send, where pods are told apart.
pub(crate) const PEERS: u32 = 4;

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

/// What must never pass.
const DENIED: &str = "denied";
/// What must always pass.
pub(crate) const ALLOWED: &str = "allowed";

fn classes(name: &str, first: [IpAddr; 2], addresses: u32, port: u16) -> [Class; 2] {
    first.map(|first| Class {
        name: name.to_owned(),
        first,
        addresses,
        port,
    })
}

/// From outside the cluster: sources in an `except`, and sources that a policy allows.
pub(crate) fn sources() -> Vec<Class> {
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
pub(crate) fn told_apart_by_port() -> Vec<Class> {
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
pub(crate) fn peers() -> Vec<Class> {
    [
        classes(DENIED, both(8, 16), PEERS, PORT),
        classes(ALLOWED, both(9, 16), PEERS, PORT),
    ]
    .concat()
}

/// From the client itself: to a port that it must not reach, and to one that it may.
pub(crate) fn from_the_client() -> Vec<Class> {
    [
        classes(DENIED, CLIENT, 1, PORT),
        classes(ALLOWED, CLIENT, 1, STAYS_OPEN),
    ]
    .concat()
}

/// From the client itself to the ports that change ends, and to one that it may reach.
pub(crate) fn flows() -> Vec<Class> {
    let denied = (0..FLOWS as u16).flat_map(|flow| classes(DENIED, CLIENT, 1, PORT + flow));
    denied
        .chain(classes(ALLOWED, CLIENT, 1, STAYS_OPEN))
        .collect()
}

/// What was counted of the packets that must not pass, or of those that must.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

/// The denied and the allowed packets of a flood.
pub(crate) fn tallies(classes: &[ClassCount]) -> (Tally, Tally) {
    let of = |name: &str| {
        let named = classes.iter().filter(|class| class.name == name);
        named.fold(Tally::default(), |sum, class| Tally {
            sent: sum.sent + class.sent,
            received: sum.received + class.received,
        })
    };
    (of(DENIED), of(ALLOWED))
}
