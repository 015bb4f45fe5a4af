//! Owns the verdict on packets from one address to another; never changes the cluster.

use std::net::IpAddr;

use crate::{
    Member, Oracle,
    api::{IntOrString, NetworkPolicySpec, Peer, PolicyPort, Rule, Transport},
};

/// A packet, as far as policies distinguish packets of one pair of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Packet {
    /// To a port of a protocol.
    To(Transport, u16),
    /// A packet of a protocol without ports, such as ICMP.
    Portless,
}

/// The end of a flow whose policies are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The destination's, about ingress.
    Ingress,
    /// The source's, about egress.
    Egress,
}

/// The verdict of policies about packets from one address to another.
#[derive(Debug)]
pub struct Flow<'a> {
    /// The pairs of every pod that the source may be and every pod that the destination may be. Nobody knows which of
    /// them speak, so a packet is allowed if all pairs allow it.
    pairs: Vec<Pair<'a>>,
    /// "Traffic to and from the node where a Pod is running is always allowed, regardless of the IP address of the Pod
    /// or the node."
    is_of_node: bool,
}

/// The verdict of policies about packets between two pods, of which either may be no pod.
#[derive(Debug)]
struct Pair<'a> {
    ingress: Isolation<'a>,
    egress: Isolation<'a>,
    /// The pod whose port names give the numbers.
    destination: Option<&'a Member>,
}

/// A pod at one end of a flow, with its namespace; `None` for an address of no pod.
type End<'a> = (IpAddr, Option<(&'a str, &'a Member)>);

/// The part of a flow that one side's policies allow.
#[derive(Debug)]
enum Isolation<'a> {
    /// "By default, a pod is non-isolated; all connections are allowed." So is "a pod's traffic with itself".
    Absent,
    /// The `ports` of every rule that has the other end among its peers.
    Allows(Vec<&'a [PolicyPort]>),
}

impl<'a> Flow<'a> {
    pub(crate) fn of(oracle: &'a Oracle, from: IpAddr, to: IpAddr) -> Flow<'a> {
        let to_places = oracle.places(to);
        let mut from_places = oracle.places(from).into_iter();
        let is_of_node = from_places.any(|(a, a_is_node)| {
            let mut to_places = to_places.iter();
            to_places.any(|&(b, b_is_node)| a == b && (a_is_node || b_is_node))
        });
        let ends = |address: IpAddr| -> Vec<End<'a>> {
            let pods = oracle.at(address);
            match pods.is_empty() {
                true => vec![(address, None)],
                false => pods.into_iter().map(|pod| (address, Some(pod))).collect(),
            }
        };
        let destinations = ends(to);
        let pairs = ends(from).into_iter().flat_map(|source| {
            let pairs = destinations.iter();
            pairs.map(move |&destination| Pair::of(oracle, source, destination))
        });
        Flow {
            pairs: pairs.collect(),
            is_of_node,
        }
    }

    /// Whether the policies of one side alone allow a packet.
    pub fn allowed_by(&self, side: Side, packet: Packet) -> bool {
        let mut pairs = self.pairs.iter();
        pairs.all(|pair| pair.allowed_by(side, packet))
    }

    /// Whether a packet passes: "both the egress policy on the source pod and the ingress policy on the destination pod
    /// need to allow the connection".
    pub fn allows(&self, packet: Packet) -> bool {
        self.is_of_node
            || self.allowed_by(Side::Ingress, packet) && self.allowed_by(Side::Egress, packet)
    }
}

impl<'a> Pair<'a> {
    fn of(oracle: &'a Oracle, from: End<'a>, to: End<'a>) -> Pair<'a> {
        Pair {
            ingress: Isolation::of(oracle, Side::Ingress, to, from),
            egress: Isolation::of(oracle, Side::Egress, from, to),
            destination: to.1.map(|(_, member)| member),
        }
    }

    fn allowed_by(&self, side: Side, packet: Packet) -> bool {
        let isolation = match side {
            Side::Ingress => &self.ingress,
            Side::Egress => &self.egress,
        };
        let Isolation::Allows(rules) = isolation else {
            return true;
        };
        // "If this field is empty or missing, this rule matches all ports (traffic not restricted by port)."
        let mut rules = rules.iter();
        rules.any(|ports| ports.is_empty() || ports.iter().any(|port| self.matches(port, packet)))
    }

    fn matches(&self, port: &PolicyPort, packet: Packet) -> bool {
        let Packet::To(transport, number) = packet else {
            return false;
        };
        transport == port.protocol.unwrap_or_default()
            && match (&port.port, port.end_port) {
                (None, _) => true,
                (Some(IntOrString::Int(first)), None) => number == *first,
                (Some(IntOrString::Int(first)), Some(last)) => (*first..=last).contains(&number),
                (Some(IntOrString::String(name)), _) => {
                    self.number(name, transport) == Some(number)
                }
            }
    }

    /// The number that the destination gives a name: its first port of that name and protocol.
    fn number(&self, name: &str, transport: Transport) -> Option<u16> {
        let mut ports = self.destination?.ports.iter();
        let named = ports.find(|port| {
            port.name.as_deref() == Some(name) && port.protocol.unwrap_or_default() == transport
        });
        named.map(|port| port.container_port)
    }
}

impl<'a> Isolation<'a> {
    fn of(oracle: &'a Oracle, side: Side, own: End<'a>, peer: End<'a>) -> Isolation<'a> {
        let (_, Some((namespace, member))) = own else {
            return Isolation::Absent;
        };
        if member.addresses.contains(&peer.0) {
            return Isolation::Absent;
        }
        let mut isolated = false;
        let mut allowed = Vec::new();
        for ((of_namespace, _), policy) in &oracle.policies {
            let selector = policy.pod_selector.as_ref();
            let selects = of_namespace == namespace
                && selector.is_none_or(|selector| selector.matches(&member.labels));
            if !selects || !policy.isolates(side) {
                continue;
            }
            isolated = true;
            for rule in policy.rules(side) {
                // "If this field is empty or missing, this rule matches all sources" or destinations.
                let peers = rule.peers(side);
                let mut any = peers.iter();
                if peers.is_empty() || any.any(|one| one.matches(oracle, namespace, peer)) {
                    allowed.push(rule.ports.as_deref().unwrap_or_default());
                }
            }
        }
        if isolated {
            Isolation::Allows(allowed)
        } else {
            Isolation::Absent
        }
    }
}

impl NetworkPolicySpec {
    /// "If no policyTypes are specified on a NetworkPolicy then by default Ingress will always be set and Egress will
    /// be set if the NetworkPolicy has any egress rules."
    fn isolates(&self, side: Side) -> bool {
        let types = self.policy_types.as_deref().unwrap_or_default();
        match side {
            _ if !types.is_empty() => {
                let name = match side {
                    Side::Ingress => "Ingress",
                    Side::Egress => "Egress",
                };
                types.iter().any(|one| one == name)
            }
            Side::Ingress => true,
            Side::Egress => !self.rules(Side::Egress).is_empty(),
        }
    }

    fn rules(&self, side: Side) -> &[Rule] {
        let rules = match side {
            Side::Ingress => &self.ingress,
            Side::Egress => &self.egress,
        };
        rules.as_deref().unwrap_or_default()
    }
}

impl Rule {
    fn peers(&self, side: Side) -> &[Peer] {
        let peers = match side {
            Side::Ingress => &self.from,
            Side::Egress => &self.to,
        };
        peers.as_deref().unwrap_or_default()
    }
}

impl Peer {
    fn matches(&self, oracle: &Oracle, own_namespace: &str, (address, pod): End<'_>) -> bool {
        if let Some(block) = &self.ip_block {
            let mut except = block.except.iter().flatten();
            return block.cidr.contains(address) && !except.any(|one| one.contains(address));
        }
        let Some((namespace, member)) = pod else {
            return false;
        };
        // A podSelector alone is of "the same namespace as the NetworkPolicy"; a namespaceSelector alone allows "all
        // Pods" of its namespaces; both are of "particular Pods within particular namespaces".
        let in_scope = match &self.namespace_selector {
            None => namespace == own_namespace,
            Some(selector) => selector.matches(oracle.namespace_labels(namespace)),
        };
        let pods = self.pod_selector.as_ref();
        in_scope && pods.is_none_or(|selector| selector.matches(&member.labels))
    }
}
