//! The incremental compiler: owns all entries, and stages the objects of a transaction as dirty. `propagate` derives
//! the rest.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use sallyport_policy::NodePolicy;
use sallyport_proto::object::{Kind, ObjectKey};

use super::{
    classes::Classes,
    dirty::Dirty,
    endpoints::Contest,
    nodes::Nodes,
    policy_sets::PolicySets,
    profiles::Profiles,
    selections::Selections,
    sources::Sources,
    workloads::{Workloads, workload_of},
};
use crate::{
    cluster::{Cluster, Stored},
    model::Body,
};

/// Every node's policy, kept up to date edit by edit.
///
/// ```
/// use sallyport_controlplane::{cluster::Cluster, compile::Compiler, manifest};
/// use sallyport_policy::{Direction, Protocol, Revision};
///
/// let objects = |text| manifest::parse(text, "example.yaml").unwrap();
/// let mut cluster = Cluster::default();
/// for object in objects(
///     r#"
/// apiVersion: v1
/// kind: Namespace
/// metadata: {name: shop}
/// ---
/// apiVersion: sallyport.dev/v1
/// kind: Node
/// metadata: {name: node-1}
/// spec: {workloadCIDRs: [10.0.0.0/24]}
/// ---
/// apiVersion: sallyport.dev/v1
/// kind: Workload
/// metadata: {namespace: shop, name: web}
/// spec: {node: node-1, addresses: [10.0.0.1]}
/// "#,
/// ) {
///     cluster.put(object, Revision(1));
/// }
/// let mut compiler = Compiler::new(&cluster);
/// let allows = |compiler: &Compiler| {
///     let policy = compiler.policy("node-1").unwrap();
///     let (web, client) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
///     policy.allows(Direction::Ingress, web, client, Some((Protocol::Tcp, 80)))
/// };
/// assert!(allows(&compiler));
///
/// let deny = objects(
///     r#"
/// apiVersion: networking.k8s.io/v1
/// kind: NetworkPolicy
/// metadata: {namespace: shop, name: deny}
/// spec: {podSelector: {}, policyTypes: [Ingress]}
/// "#,
/// );
/// let key = deny[0].key.clone();
/// cluster.put(deny[0].clone(), Revision(2));
/// assert_eq!(compiler.update(&cluster, &[key])[0].0, "node-1");
/// assert!(!allows(&compiler));
/// ```
#[derive(Debug, Default)]
pub struct Compiler {
    pub(super) selections: Selections,
    pub(super) workloads: Workloads,
    pub(super) policy_sets: PolicySets,
    pub(super) profiles: Profiles,
    pub(super) classes: Classes,
    pub(super) nodes: Nodes,
    pub(super) sources: Sources,
    /// The addresses that several workloads claim, as endpoints.
    pub(super) contests: BTreeMap<IpAddr, Contest>,
}

impl Compiler {
    /// Compiles a whole cluster.
    pub fn new(cluster: &Cluster) -> Compiler {
        let mut compiler = Compiler {
            policy_sets: PolicySets::new(cluster.established()),
            ..Compiler::default()
        };
        let mut dirty = Dirty::default();
        compiler.workloads.reserve(cluster.workloads().count());
        compiler.policy_sets.reserve(cluster.policies().count());
        for stored in cluster.objects() {
            compiler.stage(&stored.object.key, Some(stored), &mut dirty);
        }
        compiler.propagate(dirty);
        compiler
    }

    /// Applies a transaction: `cluster` is the state after it, `changed` are the objects that it put or deleted. The
    /// cluster's default for established connections is that of the one compiled first.
    /// Returns the nodes whose policy changed, by name, each with its policy; `None` for nodes that are deleted.
    pub fn update(
        &mut self,
        cluster: &Cluster,
        changed: &[ObjectKey],
    ) -> Vec<(String, Option<Arc<NodePolicy>>)> {
        let mut dirty = Dirty::default();
        for key in changed {
            self.stage(key, cluster.get(key), &mut dirty);
        }
        self.propagate(dirty)
    }

    /// The policy of a node; `None` if there is no such node.
    pub fn policy(&self, node: &str) -> Option<&Arc<NodePolicy>> {
        self.nodes.policy(node)
    }

    /// The policy of every node, by name.
    pub fn policies(&self) -> impl Iterator<Item = (&str, &Arc<NodePolicy>)> {
        self.nodes.policies()
    }

    /// Marks as dirty whatever depends on an object that was put or deleted.
    fn stage(&mut self, key: &ObjectKey, stored: Option<&Arc<Stored>>, dirty: &mut Dirty) {
        match key.kind {
            Kind::Namespace => {
                let labels = stored.and_then(|stored| match &stored.object.body {
                    Body::Namespace(namespace) => Some(&namespace.labels),
                    _ => None,
                });
                dirty
                    .workloads
                    .extend(self.selections.set_namespace(&key.name, labels));
            }
            Kind::Node => {
                let node = stored.and_then(|stored| match &stored.object.body {
                    Body::Node(node) => Some(node),
                    _ => None,
                });
                let (workloads, is_ranged) = self.nodes.set(&key.name, node, &mut dirty.changes);
                dirty.placements.extend(workloads);
                dirty.is_ranged |= is_ranged;
            }
            Kind::NetworkPolicy => {
                let selections = &mut self.selections;
                self.policy_sets.set(key, stored, selections, dirty);
            }
            Kind::Pod | Kind::Workload => self.stage_workload(key, stored, dirty),
        }
    }

    fn stage_workload(&mut self, key: &ObjectKey, stored: Option<&Arc<Stored>>, dirty: &mut Dirty) {
        let known = self.workloads.find(key);
        let workload = match (known, stored) {
            (None, None) => return,
            (Some(workload), _) => workload,
            (None, Some(_)) => {
                let namespace = self.selections.add_workload(&key.namespace);
                self.workloads.insert(namespace)
            }
        };
        dirty.workloads.insert(workload);
        self.workloads.set(workload, stored, dirty);
        let node = stored.and_then(|stored| workload_of(stored).node.as_deref());
        let node_id = self.workloads.get(workload).node;
        let node_id = self
            .nodes
            .move_workload(workload, node_id, node, &mut dirty.changes);
        self.workloads.get_mut(workload).node = node_id;
        if stored.is_none() {
            dirty.gone.push(workload);
        }
    }
}
