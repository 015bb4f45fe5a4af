//! Owns how hosts are joined: which links, addresses, routes and neighbours each arrangement needs. Only decides; never
//! talks to the kernel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::change::{Change, Destination, LOOPBACK, Mac};
use crate::{Family, Netns};

/// The gateway of every pod and external host; a permanent neighbour, so it need not exist as an address.
pub(crate) const GATEWAYS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
];

/// The name of the only link in a pod, and of the bridge in a node.
const POD_LINK: &str = "eth0";
const BRIDGE_LINK: &str = "br0";

/// Changes to make; the entries of one stage at once, the stages one after the other.
pub(crate) type Plan = Vec<Vec<(Netns, Vec<Change>)>>;

/// A veth pair's place in the bed: the same index at both ends, unique in the bed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Port(pub(crate) u32);

impl Port {
    /// The hardware address of the end with the pod (or the node's, of an uplink).
    pub(crate) fn inner(self) -> Mac {
        Self::mac(0x02, self.0)
    }

    pub(crate) fn outer(self) -> Mac {
        Self::mac(0x06, self.0)
    }

    fn mac(locally_administered: u8, index: u32) -> Mac {
        let [a, b, c, d] = index.to_be_bytes();
        Mac([locally_administered, 0x5a, a, b, c, d])
    }
}

/// The owner of the far end of a pod's or an external's link: a node, or the fabric.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    pub(crate) netns: Netns,
    /// Its own addresses, preferred as source towards the pods.
    pub(crate) addresses: Vec<IpAddr>,
    /// The bridge that pods are ports of; without one they are routed.
    pub(crate) bridge: Option<Port>,
    /// Whether hosts on the bridge are told each other's hardware addresses.
    pub(crate) permanent_neighbours: bool,
    /// The fabric and the node's port there; none for the fabric itself.
    pub(crate) uplink: Option<(Netns, Port)>,
}

/// A host already on the same bridge.
#[derive(Debug, Clone)]
pub(crate) struct Neighbour {
    pub(crate) netns: Netns,
    pub(crate) port: Port,
    pub(crate) addresses: Vec<IpAddr>,
}

/// Gives the fabric its addresses.
pub(crate) fn fabric(netns: &Netns, addresses: &[IpAddr]) -> Plan {
    let add = |&address| Change::Address {
        index: LOOPBACK,
        address,
    };
    let changes = addresses
        .iter()
        .map(add)
        .chain(settled(addresses))
        .collect();
    vec![vec![(netns.clone(), changes)]]
}

/// Joins a node to the fabric.
pub(crate) fn uplink(
    fabric: &Netns,
    gateways: &[IpAddr],
    node: &Netns,
    addresses: &[IpAddr],
    port: Port,
) -> Plan {
    let index = port.0;
    let pair = Change::Veth {
        index,
        name: format!("n{index}"),
        mac: port.outer(),
        bridge: None,
        peer: node.clone(),
        peer_name: "uplink".to_owned(),
        peer_mac: port.inner(),
    };
    let mut near = vec![Change::Up { index }];
    let mut far = vec![Change::AwaitUp { index }];
    for &address in addresses {
        near.push(Change::Address { index, address });
        far.push(Change::Route {
            to: Destination::Host(address),
            via: None,
            index,
            source: same(gateways, address),
        });
        far.push(Change::Neighbour {
            index,
            address,
            mac: port.inner(),
        });
    }
    for &gateway in gateways {
        near.push(Change::Neighbour {
            index,
            address: gateway,
            mac: port.outer(),
        });
        near.push(Change::Route {
            to: Destination::Default,
            via: Some(gateway),
            index,
            source: None,
        });
    }
    near.push(Change::AwaitUp { index });
    near.extend(settled(addresses));
    vec![
        vec![(fabric.clone(), vec![pair])],
        vec![(node.clone(), near)],
        vec![(fabric.clone(), far)],
    ]
}

/// Gives a node a link with addresses whose other end has none.
pub(crate) fn nowhere(
    owner: &Owner,
    fabric: &Netns,
    port: Port,
    name: &str,
    addresses: &[IpAddr],
) -> Plan {
    let index = port.0;
    let pair = Change::Veth {
        index,
        name: name.to_owned(),
        mac: port.inner(),
        bridge: None,
        peer: fabric.clone(),
        peer_name: format!("n{index}"),
        peer_mac: port.outer(),
    };
    let mut near = vec![Change::AwaitUp { index }];
    near.extend(
        addresses
            .iter()
            .map(|&address| Change::Address { index, address }),
    );
    near.extend(settled(addresses));
    vec![
        vec![(owner.netns.clone(), vec![pair])],
        vec![(fabric.clone(), vec![Change::Up { index }])],
        vec![(owner.netns.clone(), near)],
    ]
}

/// Gives a node its bridge.
pub(crate) fn bridge(node: &Netns, port: Port) -> Plan {
    let index = port.0;
    let mut changes = vec![Change::Bridge {
        index,
        name: BRIDGE_LINK.to_owned(),
        mac: port.inner(),
    }];
    changes.extend(GATEWAYS.map(|address| Change::Address { index, address }));
    changes.extend(settled(&GATEWAYS[..1]));
    vec![vec![(node.clone(), changes)]]
}

/// The name of the owner's end of the link at a port.
pub(crate) fn interface(Port(index): Port) -> String {
    format!("p{index}")
}

/// Plugs a namespace into its owner, without any address yet.
pub(crate) fn plug(owner: &Owner, netns: &Netns, port: Port) -> Plan {
    let index = port.0;
    let pair = Change::Veth {
        index,
        name: interface(port),
        mac: port.outer(),
        bridge: owner.bridge.map(|bridge| bridge.0),
        peer: netns.clone(),
        peer_name: POD_LINK.to_owned(),
        peer_mac: port.inner(),
    };
    let mut settled = vec![Change::AwaitUp { index }];
    settled.extend(
        owner
            .bridge
            .map(|bridge| Change::AwaitUp { index: bridge.0 }),
    );
    vec![
        vec![(owner.netns.clone(), vec![pair])],
        vec![(
            netns.clone(),
            vec![Change::Up { index }, Change::AwaitUp { index }],
        )],
        vec![(owner.netns.clone(), settled)],
    ]
}

/// Deletes a namespace's link to its owner.
pub(crate) fn unplug(owner: &Owner, port: Port) -> Plan {
    vec![vec![(
        owner.netns.clone(),
        vec![Change::DeleteLink { index: port.0 }],
    )]]
}

/// Gives the namespace at `port` its `addresses` and leads everybody's packets for them there.
pub(crate) fn assign(
    owner: &Owner,
    netns: &Netns,
    port: Port,
    addresses: &[IpAddr],
    others: &[Neighbour],
) -> Plan {
    let index = port.0;
    let (towards, gateway_mac) = match owner.bridge {
        Some(bridge) => (bridge.0, bridge.inner()),
        None => (index, port.outer()),
    };
    let mut own = Vec::new();
    let mut owners = Vec::new();
    for &address in addresses {
        own.push(Change::Address { index, address });
        let source = same(&owner.addresses, address);
        owners.push(Change::Route {
            to: Destination::Host(address),
            via: None,
            index: towards,
            source,
        });
        owners.push(Change::Neighbour {
            index: towards,
            address,
            mac: port.inner(),
        });
    }
    for gateway in GATEWAYS
        .into_iter()
        .filter(|&gateway| same(addresses, gateway).is_some())
    {
        own.push(Change::Neighbour {
            index,
            address: gateway,
            mac: gateway_mac,
        });
        own.push(Change::Route {
            to: Destination::Default,
            via: Some(gateway),
            index,
            source: None,
        });
    }
    let mut everybody = Vec::new();
    for other in others {
        own.extend(meet(owner, port, other.port, &other.addresses));
        everybody.push((
            other.netns.clone(),
            meet(owner, other.port, port, addresses),
        ));
    }
    everybody.extend(owner.uplink.as_ref().map(|(fabric, uplink)| {
        let lead = |&address| Change::Route {
            to: Destination::Host(address),
            via: same(&owner.addresses, address),
            index: uplink.0,
            source: None,
        };
        (fabric.clone(), addresses.iter().map(lead).collect())
    }));
    own.extend(settled(addresses));
    vec![
        vec![(netns.clone(), own)],
        vec![(owner.netns.clone(), owners)],
        everybody,
    ]
}

/// Leads the packets of the host at `port` for `addresses` to the other host on its bridge that has them.
fn meet(owner: &Owner, port: Port, other: Port, addresses: &[IpAddr]) -> Vec<Change> {
    let index = port.0;
    let lead = |&address: &IpAddr| Change::Route {
        to: Destination::Host(address),
        via: None,
        index,
        source: None,
    };
    let tell = |&address: &IpAddr| Change::Neighbour {
        index,
        address,
        mac: other.inner(),
    };
    let mut changes: Vec<_> = addresses.iter().map(lead).collect();
    if owner.permanent_neighbours {
        changes.extend(addresses.iter().map(tell));
    }
    changes
}

/// The reverse of [`assign`]: first nobody's packets lead there any more, then the addresses go.
pub(crate) fn withdraw(
    owner: &Owner,
    netns: &Netns,
    port: Port,
    addresses: &[IpAddr],
    others: &[Neighbour],
) -> Plan {
    let towards = owner.bridge.map_or(port.0, |bridge| bridge.0);
    let forget = |index: u32| {
        let one = move |&address: &IpAddr| {
            [
                Change::DropRoute { to: address, index },
                Change::DropNeighbour { index, address },
            ]
        };
        addresses.iter().flat_map(one).collect::<Vec<_>>()
    };
    let mut everybody: Vec<_> = others
        .iter()
        .map(|other| (other.netns.clone(), forget(other.port.0)))
        .collect();
    everybody.extend(owner.uplink.as_ref().map(|(fabric, uplink)| {
        let stop = |&address| Change::DropRoute {
            to: address,
            index: uplink.0,
        };
        (fabric.clone(), addresses.iter().map(stop).collect())
    }));
    let own = addresses
        .iter()
        .map(|&address| Change::DropAddress {
            index: port.0,
            address,
        })
        .collect();
    vec![
        everybody,
        vec![(owner.netns.clone(), forget(towards))],
        vec![(netns.clone(), own)],
    ]
}

/// Waits for addresses just given.
fn settled(addresses: &[IpAddr]) -> impl Iterator<Item = Change> {
    addresses
        .iter()
        .map(|&address| Change::AwaitAddress { address })
}

/// The one of `addresses` that is of `like`'s family.
fn same(addresses: &[IpAddr], like: IpAddr) -> Option<IpAddr> {
    addresses
        .iter()
        .copied()
        .find(|&address| Family::of(address) == Family::of(like))
}
