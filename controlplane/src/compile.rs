//! The compiler: turns the cluster's state into what each node must enforce, and an edit into what it changes there.
//! Deterministic and pure: it owns what it derived, and neither reads nor writes anything else.
//!
//! [`full`] is the definition. [`Compiler`] keeps the same result up to date at the cost of what an edit changes. An
//! edit runs along the chain in which everything is derived, and stops where nothing changes:
//!
//! | from | through | to | kept in |
//! |---|---|---|---|
//! | a policy | its podSelector and its rules, by meaning | subject | `subjects` |
//! | a podSelector or a peer | scope (namespaces) and labels | selection | `selections` |
//! | a workload | labels, addresses that are its own | the selections it is in | `workloads` |
//! | a selection | named ports of its members | family of numbers | `families` |
//! | a workload's selections | those that isolate it | profile | `profiles` |
//! | a profile | the union of its rules | class, peer groups | `class`, `classes` |
//! | a workload's profiles and node | endpoint | the node's policy | `nodes` |
//! | the classes of a contested address's claimants | their meet | class, peer groups | `contests`, `classes` |
//! | allowed sources, addresses, workload ranges | the most specific claim | sources of a node | `sources` |
//! | the classes of a source's claimants | their meet, which does not keep | class, peer groups | `sources`, `classes` |
//!
//! Selections are the hub: each is interned, knows its members, and knows who must hear when they change.
//!
//! A class has a union of peers for each range of ports, and neighbours have nearly the same one. So the terms of a union
//! are a persistent set (`trie`) that `union` brings from one range to the next; groups share its nodes, and `holders`
//! finds the groups of a selection through them. Peers of n overlapping ranges cost n log n, and what nodes get.
//!
//! An address that several workloads claim is *contested*. As an endpoint it allows what the policies of all claimants
//! allow (`meet`), on each node that a claimant names. As a peer it is in a group if each claimant is, by whatever term.
//! A contest costs what its claimants and their classes cost (`contests`), and nothing where there is none.
//! A namespace that is no object has no labels; a selector by its name (`kubernetes.io/metadata.name`) means it all the
//! same, since that is another spelling of the namespace itself.

mod by_key;
mod class;
mod classes;
mod contests;
mod families;
mod full;
mod holders;
mod index;
mod meet;
mod nodes;
mod peers;
mod profiles;
mod rule;
mod selections;
mod settle;
mod slab;
mod sources;
mod subjects;
mod trie;
mod union;
mod workloads;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use sallyport_policy::NodePolicy;

pub use full::full;

use self::{
    classes::{Classes, Group},
    contests::Contest,
    families::Family,
    nodes::{Changes, Nodes, OldGroups, Place},
    profiles::{Profile, Profiles},
    selections::{Selected, Selections},
    slab::Id,
    sources::Sources,
    subjects::{Subject, Subjects},
    workloads::{Row, Workloads},
};
use crate::{
    cluster::{Cluster, Stored},
    model::{Body, Kind, ObjectKey},
};

/// Every node's policy, kept up to date edit by edit.
///
/// ```
/// use sallyport_controlplane::{cluster::Cluster, compile::Compiler, manifest};
/// use sallyport_policy::{Direction, Protocol};
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
///     cluster.put(object, 1);
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
/// cluster.put(deny[0].clone(), 2);
/// assert!(compiler.update(&cluster, &[key]).contains("node-1"));
/// assert!(!allows(&compiler));
/// ```
#[derive(Debug, Default)]
pub struct Compiler {
    selections: Selections,
    workloads: Workloads,
    subjects: Subjects,
    profiles: Profiles,
    classes: Classes,
    nodes: Nodes,
    sources: Sources,
    /// The addresses that several workloads claim, as endpoints.
    contests: BTreeMap<IpAddr, Contest>,
}

/// What a transaction has touched and has yet to be followed up.
#[derive(Debug, Default)]
struct Work {
    /// Workloads that may be in other selections, or have other addresses or ports.
    rows: BTreeSet<Id<Row>>,
    /// Addresses that several workloads claim, or claimed before, of which that may change something.
    contested: BTreeSet<IpAddr>,
    /// Selections whose members may have another profile.
    reselected: BTreeSet<Id<Selected>>,
    /// Workloads that may have another profile.
    regrouped: BTreeSet<Id<Row>>,
    /// Subjects whose rules changed, or mean other ports.
    subjects: BTreeSet<Id<Subject>>,
    /// Families that members joined or left, with their numbers before.
    families: BTreeMap<Id<Family>, Vec<u16>>,
    /// Addresses that join groups (more than zero) or leave them.
    members: BTreeMap<(Id<Group>, IpAddr), i32>,
    /// Profiles that may have another class.
    profiles: BTreeSet<Id<Profile>>,
    /// Workloads that may be another endpoint.
    placements: BTreeSet<Id<Row>>,
    /// Addresses that no workload claimed before, or that none claims any more.
    turned: Vec<IpAddr>,
    /// Whether the workload ranges of a node changed.
    is_ranged: bool,
    /// Nodes whose sources may be others.
    sources: BTreeSet<Id<Place>>,
    /// The groups that changed, as they were.
    old_groups: OldGroups,
    /// What changes on each node.
    changes: Changes,
    /// Workloads that are gone.
    gone: Vec<Id<Row>>,
}

impl Compiler {
    /// Compiles a whole cluster.
    pub fn new(cluster: &Cluster) -> Compiler {
        let mut compiler = Compiler {
            subjects: Subjects::new(cluster.established()),
            ..Compiler::default()
        };
        let mut work = Work::default();
        compiler.workloads.reserve(cluster.workloads().count());
        compiler.subjects.reserve(cluster.policies().count());
        for stored in cluster.objects() {
            compiler.stage(&stored.object.key, Some(stored), &mut work);
        }
        compiler.settle(work);
        compiler
    }

    /// Follows a transaction: `cluster` is the state after it, `changed` are the objects that it put or deleted. The
    /// cluster's default for established connections is that of the one compiled first.
    /// Returns the nodes whose policy is another now, or that came or went.
    pub fn update(&mut self, cluster: &Cluster, changed: &[ObjectKey]) -> BTreeSet<String> {
        let mut work = Work::default();
        for key in changed {
            self.stage(key, cluster.get(key), &mut work);
        }
        self.settle(work)
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
    fn stage(&mut self, key: &ObjectKey, stored: Option<&Arc<Stored>>, work: &mut Work) {
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

    fn stage_workload(&mut self, key: &ObjectKey, stored: Option<&Arc<Stored>>, work: &mut Work) {
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
        let node = stored.and_then(|stored| workloads::workload(stored).node.as_deref());
        let place = self.workloads.get(row).place;
        let place = self.nodes.move_row(row, place, node, &mut work.changes);
        self.workloads.get_mut(row).place = place;
        if stored.is_none() {
            work.gone.push(row);
        }
    }
}
