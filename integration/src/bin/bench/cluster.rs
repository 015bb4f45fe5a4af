//! The cluster that is enforced: so many policies that select one pod, and their peers, as manifests. Knows no server.
//!
//! Policy 0 allows the addresses that packets are sent from. Every other allows a few peers of its own, which send
//! nothing.

use std::net::Ipv4Addr;

use sallyport_integration::deployment::Deployment;
use sallyport_testbed::probe::FLOW_PORT;

/// The namespace of all of it.
pub(crate) const NAMESPACE: &str = "bench";

/// The pod that is sent to, and a pod of the same node that sends from its own address.
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
pub(crate) const LOCAL: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 4);

/// The host by which the packets of the other node's pods come in. It is no workload.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);

/// An address outside the cluster, which no policy allows.
pub(crate) const STRANGER: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);

/// The port that every policy is about.
pub(crate) const PORT: u16 = FLOW_PORT;

/// The peers of every policy but policy 0.
const FEW: u32 = 4;

/// A pod on the node that nobody runs.
const ELSEWHERE: &str = "elsewhere";

/// How many policies select the server, and how many peers policy 0 allows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) policies: u32,
    pub(crate) senders: u32,
}

impl Size {
    /// The addresses that a policy allows.
    pub(crate) fn peers(self, policy: u32) -> impl Iterator<Item = Ipv4Addr> {
        let (first, count) = match policy {
            0 => (0, self.senders),
            _ => (self.senders + (policy - 1) * FEW, FEW),
        };
        (first..first + count).map(peer)
    }

    /// Every object, a document each, in an order in which they can be put. The server is behind an interface, if one
    /// is named.
    pub(crate) fn documents(self, interface: &str) -> impl Iterator<Item = String> {
        let node = Deployment::node_name(0);
        let first = [
            format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n"),
            machine(&node, "10.0.0.0/24"),
            machine(ELSEWHERE, "10.64.0.0/10"),
            workload("server", "app: server", &node, SERVER, interface),
            workload("local", "peer: p0", &node, LOCAL, ""),
        ];
        let policies = (0..self.policies).map(policy);
        let peers = (0..self.policies).flat_map(move |number| {
            self.peers(number).map(move |address| {
                let labels = format!("peer: p{number}");
                workload(&format!("w-{address}"), &labels, ELSEWHERE, address, "")
            })
        });
        first.into_iter().chain(policies).chain(peers)
    }
}

/// The peers' addresses, one after the other.
pub(crate) fn peer(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 64, 0, 0).to_bits() + number)
}

fn policy(number: u32) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{namespace: {NAMESPACE}, name: p{number}}}
spec:
  podSelector: {{matchLabels: {{app: server}}}}
  ingress:
  - from: [{{podSelector: {{matchLabels: {{peer: p{number}}}}}}}]
    ports: [{{protocol: UDP, port: {PORT}}}]
"
    )
}

fn machine(name: &str, range: &str) -> String {
    format!(
        "apiVersion: sallyport.dev/v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{workloadCIDRs: [{range}]}}\n"
    )
}

fn workload(name: &str, labels: &str, node: &str, address: Ipv4Addr, interface: &str) -> String {
    // Programs of an earlier version know no interfaces.
    let interface = match interface {
        "" => String::new(),
        name => format!(", interface: {name}"),
    };
    format!(
        "apiVersion: sallyport.dev/v1
kind: Workload
metadata: {{namespace: {NAMESPACE}, name: {name}, labels: {{{labels}}}}}
spec: {{node: {node}, addresses: [{address}]{interface}}}
"
    )
}
