//! An evaluator written from the Kubernetes documentation, policy by policy and packet by packet, that shares nothing
//! with the compiler; and the compiler compared with it on random clusters.

use std::{collections::BTreeSet, net::IpAddr};

use proptest::prelude::*;
use sallyport_controlplane::{
    cluster::Cluster,
    compile::{Compiler, full},
    model::{Established, Labels, NetworkPolicy, ObjectKey, Peer, Port, PortMatch, Rule, Workload},
};
use sallyport_proto::policy::{Direction, NodePolicy, Protocol};

use crate::universe::{addresses, any_cluster, ports};

type Pod<'a> = (&'a ObjectKey, &'a Workload);
type PacketPort = Option<(Protocol, u16)>;

/// The pod at an address. Pods on the host's network are none: their address is their node's.
fn pod_at(cluster: &Cluster, address: IpAddr) -> Option<Pod<'_>> {
    cluster
        .workloads()
        .find(|(_, pod)| !pod.host_network && pod.addresses.contains(&address))
}

/// "A pod is isolated if some NetworkPolicy selects it and has the direction in its policyTypes; then the only
/// allowed connections are those allowed by some rule of such a policy. The effects of policies combine additively."
fn allows(
    cluster: &Cluster,
    direction: Direction,
    at: IpAddr,
    peer: IpAddr,
    port: PacketPort,
) -> bool {
    let Some((key, pod)) = pod_at(cluster, at) else {
        return true;
    };
    let mut isolated = false;
    for (policy_key, policy) in cluster.policies() {
        let selects =
            policy_key.namespace == key.namespace && policy.pod_selector.matches(&pod.labels);
        let Some(rules) = rules(policy, direction).filter(|_| selects) else {
            continue;
        };
        isolated = true;
        let packet = Packet {
            cluster,
            namespace: &key.namespace,
            peer,
            destination: match direction {
                Direction::Ingress => Some((key, pod)),
                Direction::Egress => pod_at(cluster, peer),
            },
            port,
        };
        if rules.iter().any(|rule| packet.is_allowed_by(rule)) {
            return true;
        }
    }
    !isolated || at == peer
}

/// Established connections go on in a direction if every policy that isolates the pod there says so, or the cluster
/// for it.
fn keeps(cluster: &Cluster, direction: Direction, at: IpAddr) -> bool {
    pod_at(cluster, at).is_none_or(|(key, pod)| {
        cluster
            .policies()
            .filter(|(policy_key, _)| policy_key.namespace == key.namespace)
            .filter(|(_, policy)| policy.pod_selector.matches(&pod.labels))
            .filter(|(_, policy)| rules(policy, direction).is_some())
            .all(|(_, policy)| match policy.established {
                Some(mode) => mode == Established::Keep,
                None => cluster.established() == Established::Keep,
            })
    })
}

fn rules(policy: &NetworkPolicy, direction: Direction) -> Option<&Vec<Rule>> {
    match direction {
        Direction::Ingress => policy.ingress.as_ref(),
        Direction::Egress => policy.egress.as_ref(),
    }
}

struct Packet<'a> {
    cluster: &'a Cluster,
    namespace: &'a str,
    peer: IpAddr,
    destination: Option<Pod<'a>>,
    port: PacketPort,
}

impl Packet<'_> {
    /// "Each rule allows traffic which matches both the from and ports sections." Empty ones match everything.
    fn is_allowed_by(&self, rule: &Rule) -> bool {
        let peers = rule.peers.is_empty() || rule.peers.iter().any(|peer| self.matches_peer(peer));
        peers && (rule.ports.is_empty() || rule.ports.iter().any(|port| self.matches_port(port)))
    }

    fn matches_peer(&self, peer: &Peer) -> bool {
        match peer {
            Peer::Block { cidr, except } => {
                cidr.contains(self.peer) && !except.iter().any(|except| except.contains(self.peer))
            }
            Peer::Pods { namespaces, pods } => {
                let Some((key, pod)) = pod_at(self.cluster, self.peer) else {
                    return false;
                };
                let labels = self.cluster.namespace(&key.namespace);
                let labels = labels.map_or_else(Labels::new, |found| Labels::clone(&found.labels));
                let in_scope = match namespaces {
                    None => key.namespace == self.namespace,
                    Some(selector) => selector.matches(&labels),
                };
                in_scope && pods.matches(&pod.labels)
            }
        }
    }

    fn matches_port(&self, port: &Port) -> bool {
        let Some((protocol, number)) = self.port else {
            return false;
        };
        protocol == port.protocol
            && match &port.ports {
                PortMatch::All => true,
                PortMatch::Range(first, last) => (*first..=*last).contains(&number),
                PortMatch::Named(name) => self
                    .destination
                    .and_then(|(_, pod)| pod.port(name, protocol))
                    .is_some_and(|resolved| resolved == number),
            }
    }
}

/// Compares every packet that an endpoint of a node may send or receive.
fn compare(cluster: &Cluster, node: &str, policy: &NodePolicy) -> Result<(), TestCaseError> {
    let expected: BTreeSet<IpAddr> = addresses()
        .into_iter()
        .filter(|&address| {
            pod_at(cluster, address).is_some_and(|(_, pod)| pod.node.as_deref() == Some(node))
        })
        .collect();
    prop_assert_eq!(&expected, &policy.endpoints().keys().copied().collect());
    for &local in &expected {
        for direction in Direction::BOTH {
            let kept = policy.keeps(direction, local);
            // A class that restricts nothing is none, whatever its policies say of what they would cut.
            let isolated = policy.endpoints()[&local].class(direction).is_some();
            let should = keeps(cluster, direction, local) || !isolated;
            prop_assert_eq!(kept, should, "{} {} keeps", direction, local);
        }
        for peer in addresses() {
            for port in ports() {
                for direction in Direction::BOTH {
                    let should = allows(cluster, direction, local, peer, port);
                    let does = policy.allows(direction, local, peer, port);
                    prop_assert_eq!(does, should, "{} {} {} {:?}", direction, local, peer, port);
                }
            }
        }
    }
    Ok(())
}

/// Nothing is there that no endpoint needs, nothing is missing, and every class is in its canonical form.
fn is_tidy(policy: &NodePolicy) -> Result<(), TestCaseError> {
    let endpoints = policy.endpoints().values();
    let used: BTreeSet<_> = endpoints
        .flat_map(|endpoint| [endpoint.ingress, endpoint.egress])
        .flatten()
        .collect();
    prop_assert_eq!(&used, &policy.classes().keys().copied().collect());
    let classes = policy.classes().values();
    let used: BTreeSet<_> = classes.flat_map(|class| class.groups()).collect();
    prop_assert_eq!(&used, &policy.groups().keys().copied().collect());
    for class in policy.classes().values() {
        for pair in class.ports.windows(2) {
            let (a, b) = (pair[0], pair[1]);
            prop_assert!((a.protocol, a.last) < (b.protocol, b.first));
            let touch = a.protocol == b.protocol && a.last.checked_add(1) == Some(b.first);
            prop_assert!(!touch || a.group != b.group, "neighbours are joined");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn the_compiler_says_what_the_documentation_says(cluster in any_cluster()) {
        let policies = full(&cluster);
        let compiler = Compiler::new(&cluster);
        prop_assert_eq!(policies.len(), cluster.nodes().count());
        for (node, policy) in &policies {
            compare(&cluster, node, policy)?;
            is_tidy(policy)?;
            prop_assert_eq!(compiler.policy(node), Some(policy));
        }
    }
}
