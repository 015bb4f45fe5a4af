//! The verdict of every committed revision on every flow: the judge's book. It knows nothing of the versions that nodes
//! hold.

use std::{net::IpAddr, sync::Arc};

use sallyport_nft_fake::Packet;
use sallyport_policy::{Direction, NodePolicy, Position, Protocol, Revision};

use crate::universe::{PORTS, address};

/// Packets of one kind from a client to a server.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    pub(crate) client: IpAddr,
    pub(crate) server: IpAddr,
    /// The server's port.
    pub(crate) port: u16,
    /// The client's node and the server's.
    pub(crate) ends: [usize; 2],
    /// Such a packet.
    pub(crate) packet: Packet,
}

impl std::fmt::Display for Flow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [from, to] = self.ends;
        let Flow {
            client,
            server,
            port,
            ..
        } = self;
        write!(f, "{client} (n{from}) -> {server}:{port} (n{to})")
    }
}

impl Flow {
    /// The end at which a node judges it first.
    pub(crate) fn end(&self, node: usize) -> usize {
        usize::from(self.ends[0] != node)
    }

    /// Whether a node judges it.
    pub(crate) fn touches(&self, node: usize) -> bool {
        self.ends.contains(&node)
    }
}

/// A committed revision.
#[derive(Debug)]
struct Version {
    /// The policy of each node.
    policies: Vec<Arc<NodePolicy>>,
    /// Whether a node must enforce something else than before.
    affected: Vec<bool>,
    /// For every flow whether it is permitted at the client's node, and at the server's.
    permits: Vec<[bool; 2]>,
}

/// Every committed revision, and every flow.
#[derive(Debug)]
pub(crate) struct Versions {
    /// The flows.
    pub(crate) flows: Vec<Flow>,
    all: Vec<Version>,
}

impl Versions {
    /// Revision 0, in which no node enforces anything.
    pub(crate) fn new(nodes: usize, pods: usize, ports: usize) -> Versions {
        let mut flows = Vec::new();
        let places = || (0..nodes).flat_map(|node| (0..pods).map(move |pod| (node, pod)));
        for (from, to) in places().flat_map(|from| places().map(move |to| (from, to))) {
            if from == to {
                continue;
            }
            let (client, server) = (address(from.0, from.1), address(to.0, to.1));
            for &port in &PORTS[..ports] {
                flows.push(Flow {
                    client,
                    server,
                    port,
                    ends: [from.0, to.0],
                    packet: Packet::of_connection(client, server, 6, port),
                });
            }
        }
        let mut versions = Versions {
            flows,
            all: Vec::new(),
        };
        versions.push((0..nodes).map(|_| Arc::default()).collect());
        versions
    }

    /// Takes in the next revision.
    pub(crate) fn push(&mut self, policies: Vec<Arc<NodePolicy>>) {
        let before = self.all.last();
        let changed = |(node, policy): (usize, &Arc<NodePolicy>)| {
            before.is_some_and(|before| before.policies[node].digest() != policy.digest())
        };
        let permits = self.flows.iter().map(|flow| {
            flow.ends
                .map(|node| permits(&policies[node], flow.client, flow.server, flow.port))
        });
        let version = Version {
            permits: permits.collect(),
            affected: policies.iter().enumerate().map(changed).collect(),
            policies,
        };
        self.all.push(version);
    }

    /// The last revision.
    pub(crate) fn latest(&self) -> Revision {
        Revision(self.all.len() as u64 - 1)
    }

    /// The revisions of a range.
    pub(crate) fn within(
        &self,
        range: std::ops::RangeInclusive<Revision>,
    ) -> impl Iterator<Item = Revision> + use<> {
        (range.start().0..=range.end().0).map(Revision)
    }

    /// The policy of a node as of a revision.
    pub(crate) fn policy(&self, revision: Revision, node: usize) -> &Arc<NodePolicy> {
        &self.all[revision.0 as usize].policies[node]
    }

    /// The first revision of a range that changes what one of a flow's nodes must enforce.
    pub(crate) fn first_that_affects(
        &self,
        flow: &Flow,
        range: std::ops::RangeInclusive<Revision>,
    ) -> Option<Revision> {
        self.within(range).find(|&revision| {
            let affected = &self.all[revision.0 as usize].affected;
            flow.ends.iter().any(|&node| affected[node])
        })
    }

    /// The last revision whose policy a node's version is.
    pub(crate) fn reach(&self, node: usize, position: Position) -> Revision {
        let after = self.within(position.revision.next()..=self.latest());
        let same = |revision: &Revision| self.policy(*revision, node).digest() == position.digest;
        after.take_while(same).last().unwrap_or(position.revision)
    }

    /// Whether a revision permits a flow at both ends.
    pub(crate) fn allows(&self, revision: Revision, flow: usize) -> bool {
        self.all[revision.0 as usize].permits[flow] == [true; 2]
    }

    /// The verdict of a revision on a flow at its ends: `+` or `-`.
    pub(crate) fn describe(&self, revision: Revision, flow: usize) -> String {
        let sign = |permitted: bool| if permitted { '+' } else { '-' };
        let permits = self.all[revision.0 as usize].permits[flow];
        permits.map(sign).iter().collect()
    }

    /// Whether some revision from one on permits a flow at both ends.
    pub(crate) fn allow_some(&self, from: Revision, flow: usize) -> bool {
        self.within(from..=self.latest())
            .any(|revision| self.allows(revision, flow))
    }

    /// Whether a node's policy of one revision permits there no more than that of another.
    pub(crate) fn is_within(&self, node: usize, one: Revision, other: Revision) -> bool {
        let (one, other) = (&self.all[one.0 as usize], &self.all[other.0 as usize]);
        let mut flows = self.flows.iter().enumerate();
        flows.all(|(index, flow)| {
            let end = flow.end(node);
            !flow.touches(node) || !one.permits[index][end] || other.permits[index][end]
        })
    }

    /// Whether every revision from one on permits a flow at one end.
    pub(crate) fn permit_all(&self, from: Revision, flow: usize, end: usize) -> bool {
        self.all[from.0 as usize..]
            .iter()
            .all(|version| version.permits[flow][end])
    }
}

/// Whether a node's policy lets a flow's packets through that node: what the documentation says of each end.
fn permits(policy: &NodePolicy, client: IpAddr, server: IpAddr, port: u16) -> bool {
    let side = |direction, local: IpAddr, peer: IpAddr| {
        let known = policy.endpoints().contains_key(&local);
        (known || !policy.workload_ranges().contains(local))
            && policy.allows(direction, local, peer, Some((Protocol::Tcp, port)))
    };
    side(Direction::Egress, client, server) && side(Direction::Ingress, server, client)
}
