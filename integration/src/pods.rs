//! The pods of a small cluster in the namespace `default`: on a testbed, and as manifests with the same names and
//! addresses.

use std::net::IpAddr;

use sallyport_testbed::{Host, Testbed};

use crate::deployment::Deployment;

/// A pod.
#[derive(Clone, Copy, Debug)]
pub struct Pod {
    /// The index of its node.
    pub node: usize,
    /// The name.
    pub name: &'static str,
    /// The value of its label `app`.
    pub app: &'static str,
    /// The addresses, as text.
    pub addresses: &'static [&'static str],
}

impl Pod {
    /// A pod whose label `app` is its name.
    pub const fn new(node: usize, name: &'static str, addresses: &'static [&'static str]) -> Pod {
        Pod {
            node,
            name,
            app: name,
            addresses,
        }
    }

    /// Adds the pod to a bed.
    fn add(&self, bed: &Testbed) -> Result<Host, sallyport_testbed::Error> {
        let addresses = self.addresses.iter().map(|text| text.parse());
        let addresses: Vec<IpAddr> = addresses
            .collect::<Result<_, _>>()
            .expect("a test's addresses are addresses");
        bed.add_pod(self.node, &format!("default/{}", self.name), &addresses)
    }
}

/// Adds pods to a bed. Returns them in this order.
pub fn add<const N: usize>(
    bed: &Testbed,
    pods: &[Pod; N],
) -> Result<[Host; N], sallyport_testbed::Error> {
    let hosts = pods.iter().map(|pod| pod.add(bed));
    let hosts: Vec<Host> = hosts.collect::<Result<_, _>>()?;
    Ok(hosts.try_into().expect("one host for each pod"))
}

/// The manifests of the namespace, of the nodes, and of the pods as Workloads. `ranges` are the `workloadCIDRs` of each
/// node, with commas; a node may have none.
pub fn manifests(ranges: &[&str], pods: &[Pod]) -> String {
    let nodes = ranges.iter().enumerate().map(|(node, ranges)| {
        format!(
            "---
apiVersion: sallyport.dev/v1
kind: Node
metadata: {{name: {}}}
spec: {{workloadCIDRs: [{ranges}]}}
",
            Deployment::node_name(node)
        )
    });
    let workloads = pods.iter().map(|pod| {
        format!(
            "---
apiVersion: sallyport.dev/v1
kind: Workload
metadata: {{namespace: default, name: {}, labels: {{app: {}}}}}
spec: {{node: {}, addresses: ['{}']}}
",
            pod.name,
            pod.app,
            Deployment::node_name(pod.node),
            pod.addresses.join("', '")
        )
    });
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n".to_owned();
    std::iter::once(namespace)
        .chain(nodes)
        .chain(workloads)
        .collect()
}
