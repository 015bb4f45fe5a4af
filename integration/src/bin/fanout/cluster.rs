//! The cluster that is held: so many nodes, pods and policies, as manifests. Knows no server.
//!
//! Ten policies a namespace: each lets ten of its pods be reached by the next ten, and all pods by the gateways, which
//! are a hundred pods of two namespaces, of which one at a time has the label that counts. So every node has a group in
//! common with all others, and some of its own.

use std::net::Ipv4Addr;

/// The size of the cluster.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(crate) struct Size {
    pub(crate) nodes: usize,
    pub(crate) pods: usize,
    pub(crate) policies: usize,
}

/// Policies of one namespace.
const POLICIES: usize = 10;

/// Pods of each of the two namespaces of gateways.
const GATEWAYS: usize = 100;

/// The name of a node, counted from 0.
pub(crate) fn node_name(number: usize) -> String {
    format!("node-{number:05}")
}

impl Size {
    fn namespaces(self) -> usize {
        self.policies.div_ceil(POLICIES)
    }

    /// Why it cannot be: each node needs a pod that a policy selects, and has addresses for some 250.
    pub(crate) fn problem(self) -> Option<&'static str> {
        if !(3..=1 << 16).contains(&self.nodes) {
            Some("between 3 and 65,536 nodes")
        } else if self.pods < self.nodes || self.pods + 2 * GATEWAYS >= self.nodes * 250 {
            Some(
                "at least as many pods as nodes, and at most 250 a node, 201 of them in all being gateways",
            )
        } else if self.policies == 0 || !self.policies.is_multiple_of(POLICIES) {
            Some("a multiple of 10 policies")
        } else {
            None
        }
    }

    /// Every object, a document each, in an order in which they can be put.
    pub(crate) fn documents(self) -> impl Iterator<Item = String> {
        let nodes = (0..self.nodes).map(|node| {
            format!(
                "apiVersion: sallyport.dev/v1\nkind: Node\nmetadata: {{name: {}}}\nspec: {{workloadCIDRs: [{}/24]}}\n",
                node_name(node),
                address(node, 0)
            )
        });
        let namespaces = (0..self.namespaces()).map(|number| {
            format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: ns-{number}}}\n")
        });
        let pods = (0..self.pods).map(move |pod| {
            // Pods of one node are of different namespaces.
            let namespace = (pod + 37 * (pod / self.nodes)) % self.namespaces();
            let app = pod / self.namespaces() % POLICIES;
            self.workload(pod, &format!("ns-{namespace}"), &format!("app: a{app}"))
        });
        let gateways = (0..2 * GATEWAYS).map(move |number| {
            let namespace = format!("gateways-{}", number / GATEWAYS);
            self.workload(self.pods + number, &namespace, "")
        });
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
  - {{from: [{{namespaceSelector: {{matchLabels: {{role: gateway}}}}}}], ports: [{{port: 9090}}]}}
"
            )
        });
        nodes
            .chain(namespaces)
            .chain([gateway_namespaces(0)])
            .chain(policies)
            .chain(gateways)
            .chain(pods)
    }

    /// One more gateway, or none: a change for every node.
    pub(crate) fn one_more(self) -> String {
        self.workload(self.pods + 2 * GATEWAYS, "gateways-0", "")
    }

    fn workload(self, number: usize, namespace: &str, labels: &str) -> String {
        let (node, place) = (number % self.nodes, number / self.nodes);
        format!(
            "apiVersion: sallyport.dev/v1
kind: Workload
metadata: {{namespace: {namespace}, name: w-{number}, labels: {{{labels}}}}}
spec: {{node: {}, addresses: [{}]}}
",
            node_name(node),
            address(node, place + 2)
        )
    }
}

/// The two namespaces of gateways: `chosen` (0 or 1) has the label that the policies want, the other one has not.
pub(crate) fn gateway_namespaces(chosen: usize) -> String {
    let of = |number: usize| {
        let role = if number == chosen {
            "gateway"
        } else {
            "reserve"
        };
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: gateways-{number}, labels: {{role: {role}}}}}\n"
        )
    };
    format!("{}---\n{}", of(0), of(1))
}

fn address(node: usize, place: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits((10 << 24) + (node << 8) as u32 + place as u32)
}

#[cfg(test)]
mod tests {
    use sallyport_controlplane::{cluster::Cluster, compile, manifest};

    use super::*;
    use sallyport_policy::Revision;

    #[test]
    fn every_node_has_pods_and_knows_the_gateways() {
        let size = Size {
            nodes: 20,
            pods: 200,
            policies: 20,
        };
        assert_eq!(size.problem(), None);
        let mut cluster = Cluster::default();
        for document in size.documents() {
            for object in manifest::parse(&document, "a document").unwrap() {
                cluster.put(object, Revision(1));
            }
        }
        let old = compile::full(&cluster);
        assert_eq!(old.len(), size.nodes);
        for object in manifest::parse(&size.one_more(), "one more").unwrap() {
            cluster.put(object, Revision(2));
        }
        for (node, new) in compile::full(&cluster) {
            assert!(new.endpoints().len() >= size.pods / size.nodes, "{node}");
            assert_ne!(
                new.digest(),
                old[&node].digest(),
                "{node} is told about one more gateway"
            );
        }
    }
}
