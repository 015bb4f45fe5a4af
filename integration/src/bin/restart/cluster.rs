//! The cluster that is held: so many nodes, pods and policies, as manifests, and who floods whom in it. Knows no
//! server.
//!
//! Ten policies a namespace: each lets ten of its pods be reached by the next ten. Beside them one server on the first
//! node, which all peers of the whole cluster may reach: its node's kernel has a set of them.

use std::net::Ipv4Addr;

use sallyport_integration::deployment::Deployment;
use sallyport_testbed::probe::Class;

/// The size of the cluster.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(crate) struct Size {
    pub(crate) nodes: usize,
    pub(crate) pods: usize,
    pub(crate) policies: usize,
    pub(crate) peers: usize,
}

/// Policies of one namespace.
const POLICIES: usize = 10;

/// Pods of one node.
const PODS: usize = 250;

/// The number of peers that send.
const SENDERS: u32 = 32;

/// The networks of the addresses from which packets are sent.
pub(crate) const SENDERS_BEHIND: [&str; 2] = ["10.0.2.0/24", "172.16.7.0/24"];

/// The port of the server.
const PORT: u16 = 9000;

/// The names of the flow that must pass, and of the flow that must not.
pub(crate) const ALLOWED: &str = "allowed";
pub(crate) const DENIED: &str = "denied";

/// The pods that there really are: on the first and on the second node.
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 254);

impl Size {
    fn namespaces(self) -> usize {
        self.policies / POLICIES
    }

    /// The node that has no enforcer, and that says Hello.
    pub(crate) fn greeter(self) -> String {
        Deployment::node_name(self.nodes - 1)
    }

    /// Why it cannot be.
    pub(crate) fn problem(self) -> Option<&'static str> {
        if !(4..=1 << 16).contains(&self.nodes) {
            Some("between 4 and 65,536 nodes")
        } else if self.pods > self.nodes * PODS || self.pods < self.nodes * SENDERS as usize {
            Some("between 32 and 250 pods a node")
        } else if self.policies == 0 || !self.policies.is_multiple_of(POLICIES) {
            Some("a multiple of 10 policies")
        } else if self.peers > self.pods || self.peers < self.nodes * SENDERS as usize {
            Some("no more peers than pods, and at least 32 a node")
        } else {
            None
        }
    }

    /// Every object, a document each, in an order in which they can be put.
    pub(crate) fn documents(self) -> impl Iterator<Item = String> {
        let nodes = (0..self.nodes).map(|node| {
            format!(
                "apiVersion: sallyport.dev/v1\nkind: Node\nmetadata: {{name: {}}}\nspec: {{workloadCIDRs: [{}/24]}}\n",
                Deployment::node_name(node),
                address(node, 0)
            )
        });
        let namespaces = (0..self.namespaces())
            .map(|number| format!("ns-{number}"))
            .chain(["probe".to_owned()])
            .map(|name| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n"));
        let policies = (0..self.policies).map(|number| {
            let (namespace, app) = (number / POLICIES, number % POLICIES);
            let next = (app + 1) % POLICIES;
            format!(
                "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{namespace: ns-{namespace}, name: p{app}}}
spec:
  podSelector: {{matchLabels: {{app: a{app}}}}}
  ingress:
  - {{from: [{{podSelector: {{matchLabels: {{app: a{next}}}}}}}], ports: [{{port: 8080}}]}}
"
            )
        });
        let probed = [
            format!(
                "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{namespace: probe, name: server}}
spec:
  podSelector: {{matchLabels: {{app: server}}}}
  ingress:
  - from: [{{namespaceSelector: {{}}, podSelector: {{matchLabels: {{peer: \"yes\"}}}}}}]
    ports: [{{port: {PORT}, protocol: UDP}}]
"
            ),
            workload("probe", "server", "app: server", 0, SERVER),
            workload("probe", "client", "app: client", 1, CLIENT),
        ];
        let pods = (0..self.pods).map(move |number| self.pod(number, 0));
        nodes
            .chain(namespaces)
            .chain(policies)
            .chain(probed)
            .chain(pods)
    }

    /// A pod, with a label that means nothing to any policy.
    pub(crate) fn pod(self, number: usize, turn: usize) -> String {
        let (node, place) = (number % self.nodes, number / self.nodes);
        // Pods of one node are of different namespaces.
        let namespace = (number + 37 * place) % self.namespaces();
        let app = number / self.namespaces() % POLICIES;
        let peer = if number < self.peers { "yes" } else { "no" };
        workload(
            &format!("ns-{namespace}"),
            &format!("w-{number}"),
            &format!("app: a{app}, peer: \"{peer}\", turn: \"{turn}\""),
            node,
            address(node, place + 2),
        )
    }

    /// Packets to the server: from peers, and from nobody.
    pub(crate) fn classes(self) -> [Class; 2] {
        let class = |name: &str, first: Ipv4Addr| Class {
            name: name.to_owned(),
            first: first.into(),
            addresses: SENDERS,
            port: PORT,
        };
        [
            class(ALLOWED, address(2, 2)),
            class(DENIED, Ipv4Addr::new(172, 16, 7, 128)),
        ]
    }
}

fn workload(namespace: &str, name: &str, labels: &str, node: usize, address: Ipv4Addr) -> String {
    format!(
        "apiVersion: sallyport.dev/v1
kind: Workload
metadata: {{namespace: {namespace}, name: {name}, labels: {{{labels}}}}}
spec: {{node: {}, addresses: [{address}]}}
",
        Deployment::node_name(node)
    )
}

fn address(node: usize, place: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits((10 << 24) + (node << 8) as u32 + place as u32)
}
