//! The incremental compiler: owns every entry, and notes the objects of a transaction. `propagate` does the rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use sallyport_policy::NodePolicy;

use super::{
    classes::Classes,
    dirty::Dirty,
    endpoints::Contest,
    nodes::Nodes,
    profiles::Profiles,
    selections::Selections,
    sources::Sources,
    subjects::Subjects,
    workloads::{Workloads, workload},
};
use crate::{
    cluster::{Cluster, Stored},
    model::{Body, Kind, ObjectKey},
};

/// Every node's policy, kept up to date edit by edit.
#[derive(Debug, Default)]
pub struct Compiler {
    pub(super) selections: Selections,
    pub(super) workloads: Workloads,
    pub(super) subjects: Subjects,
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
            subjects: Subjects::new(cluster.established()),
            ..Compiler::default()
        };
        let mut work = Dirty::default();
        compiler.workloads.reserve(cluster.workloads().count());
        compiler.subjects.reserve(cluster.policies().count());
        for stored in cluster.objects() {
            compiler.stage(&stored.object.key, Some(stored), &mut work);
        }
        compiler.propagate(work);
        compiler
    }

    /// Follows a transaction: `cluster` is the state after it, `changed` are the objects that it put or deleted. The
    /// cluster's default for established connections is that of the one compiled first.
    /// Returns the nodes whose policy is another now, or that came or went.
    pub fn update(&mut self, cluster: &Cluster, changed: &[ObjectKey]) -> BTreeSet<String> {
        let mut work = Dirty::default();
        for key in changed {
            self.stage(key, cluster.get(key), &mut work);
        }
        self.propagate(work)
    }

    /// What a node must enforce; `None` if there is no such node.
    pub fn policy(&self, node: &str) -> Option<&Arc<NodePolicy>> {
        self.nodes.policy(node)
    }

    /// What every node must enforce, by name.
    pub fn policies(&self) -> impl Iterator<Item = (&str, &Arc<NodePolicy>)> {
        self.nodes.policies()
    }

    /// Takes note of one object, or that it is gone.
    fn stage(&mut self, key: &ObjectKey, stored: Option<&Arc<Stored>>, work: &mut Dirty) {
        match key.kind {
            Kind::Namespace => {
                let labels = stored.and_then(|stored| match &stored.object.body {
                    Body::Namespace(namespace) => Some(&namespace.labels),
                    _ => None,
                });
                work.rows
                    .extend(self.selections.set_space(&key.name, labels));
            }
            Kind::Node => {
                let node = stored.and_then(|stored| match &stored.object.body {
                    Body::Node(node) => Some(node),
                    _ => None,
                });
                let (rows, is_ranged) = self.nodes.set(&key.name, node, &mut work.changes);
                work.placements.extend(rows);
                work.is_ranged |= is_ranged;
            }
            Kind::NetworkPolicy => {
                let selections = &mut self.selections;
                self.subjects.set(key, stored, selections, work);
            }
            Kind::Pod | Kind::Workload => self.stage_workload(key, stored, work),
        }
    }

    fn stage_workload(&mut self, key: &ObjectKey, stored: Option<&Arc<Stored>>, work: &mut Dirty) {
        let known = self.workloads.find(key);
        let row = match (known, stored) {
            (None, None) => return,
            (Some(row), _) => row,
            (None, Some(_)) => {
                let space = self.selections.move_in(&key.namespace);
                self.workloads.insert(space)
            }
        };
        work.rows.insert(row);
        self.workloads.set(row, stored, work);
        let node = stored.and_then(|stored| workload(stored).node.as_deref());
        let place = self.workloads.get(row).place;
        let place = self.nodes.move_row(row, place, node, &mut work.changes);
        self.workloads.get_mut(row).place = place;
        if stored.is_none() {
            work.gone.push(row);
        }
    }
}
