//! The definition: every node's policy, computed from nothing by looking at everything. Simple before fast; the
//! incremental compiler must equal it, byte for byte.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use sallyport_proto::{
    Ranges,
    policy::{ClassId, Direction, Endpoint, GroupId, NodePolicy, PeerGroup},
};

use super::{
    class,
    peers::{Peers, Scope, Selection, Term},
    rule::{self, NamedTarget, Rule},
};
use crate::{
    cluster::Cluster,
    model::{Established, LabelSelector, Labels, NetworkPolicy, Node, ObjectKey, Workload},
};

/// What every node must enforce: one entry for each Node object.
///
/// This is the definition, and its time is that of one: it looks at every policy of a namespace for every workload
/// of it. [`Compiler::new`](super::Compiler::new) gives the same, fast.
pub fn full(cluster: &Cluster) -> BTreeMap<String, Arc<NodePolicy>> {
    let world = World::of(cluster);
    let mut groups = BTreeMap::new();
    cluster
        .nodes()
        .map(|(name, node)| (name.into(), Arc::new(world.node(name, node, &mut groups))))
        .collect()
}

/// A workload that policies see, with the addresses that are its own.
struct Member<'a> {
    key: &'a ObjectKey,
    workload: &'a Workload,
    addresses: Vec<IpAddr>,
}

/// A policy: whom it selects, and its rules in each direction that it isolates for.
struct Policy<'a> {
    selector: &'a LabelSelector,
    ingress: Option<BTreeSet<Rule>>,
    egress: Option<BTreeSet<Rule>>,
    keep: bool,
}

struct World<'a> {
    namespaces: BTreeMap<&'a str, &'a Labels>,
    members: BTreeMap<&'a str, Vec<Member<'a>>>,
    policies: BTreeMap<&'a str, Vec<Policy<'a>>>,
}

/// Groups that some node has already.
type Groups = BTreeMap<GroupId, Arc<PeerGroup>>;

impl<'a> World<'a> {
    fn of(cluster: &'a Cluster) -> World<'a> {
        let mut policies: BTreeMap<&str, Vec<Policy<'_>>> = BTreeMap::new();
        for (key, policy) in cluster.policies() {
            let of_namespace = policies.entry(&key.namespace).or_default();
            of_namespace.push(Policy::new(&key.namespace, policy, cluster.established()));
        }
        World {
            namespaces: cluster
                .namespaces()
                .map(|(name, namespace)| (name, &*namespace.labels))
                .collect(),
            members: members(cluster),
            policies,
        }
    }

    fn node(&self, name: &str, node: &Node, groups: &mut Groups) -> NodePolicy {
        let mut policy = NodePolicy::default();
        policy.set_workload_ranges(Arc::new(workload_ranges(node)));
        let members = self.members.values().flatten();
        for member in members.filter(|member| member.workload.node.as_deref() == Some(name)) {
            let endpoint = Arc::new(Endpoint {
                namespace: member.key.namespace.clone(),
                name: member.key.name.clone(),
                uid: member.workload.uid.clone(),
                ingress: self.class(member, Direction::Ingress, &mut policy, groups),
                egress: self.class(member, Direction::Egress, &mut policy, groups),
            });
            for &address in &member.addresses {
                policy.set_endpoint(address, endpoint.clone());
            }
        }
        policy
    }

    /// The class that judges a workload, added to the node's policy with all that it names.
    fn class(
        &self,
        member: &Member<'_>,
        direction: Direction,
        policy: &mut NodePolicy,
        groups: &mut Groups,
    ) -> Option<ClassId> {
        let policies = self.policies.get(member.key.namespace.as_str())?;
        let isolating: Vec<(&BTreeSet<Rule>, bool)> = policies
            .iter()
            .filter(|policy| policy.selector.matches(&member.workload.labels))
            .filter_map(|policy| Some((policy.rules(direction)?, policy.keep)))
            .collect();
        if isolating.is_empty() {
            return None;
        }
        let keep = isolating.iter().all(|&(_, keep)| keep);
        let rules = isolating.into_iter().flat_map(|(rules, _)| rules);
        let mut grants = Vec::new();
        for rule in rules.collect::<BTreeSet<_>>() {
            rule.grants(
                &|protocol, name| member.workload.port(name, protocol),
                &|target| self.numbers(target),
                &mut grants,
            );
        }
        let built = class::build(direction, keep, &grants);
        for group in built.groups {
            let id = group.peers.id();
            let group = groups
                .entry(id)
                .or_insert_with(|| Arc::new(self.group(&group.peers)));
            policy.set_group(id, group.clone());
        }
        let class = built.class?;
        let id = class.id();
        policy.add_class(id, Arc::new(class));
        Some(id)
    }

    /// The numbers that a destination's pods have for a name.
    fn numbers(&self, target: &NamedTarget) -> Vec<u16> {
        let (selection, within) = (&target.destination.selection, &target.destination.within);
        let numbers: BTreeSet<u16> = self
            .selected(selection)
            .filter(|member| {
                let mut addresses = member.addresses.iter();
                within
                    .as_ref()
                    .is_none_or(|within| addresses.any(|&address| within.contains(address)))
            })
            .filter_map(|member| member.workload.port(&target.name, target.protocol))
            .collect();
        numbers.into_iter().collect()
    }

    fn group(&self, peers: &Peers) -> PeerGroup {
        let mut group = PeerGroup::new(peers.description(), peers.ranges().clone());
        for named in peers.terms().iter() {
            let term = &named.term;
            for member in self
                .selected(&term.selection)
                .filter(|member| has_target(term, member))
            {
                let within = |address: &&IpAddr| {
                    term.within
                        .as_ref()
                        .is_none_or(|within| within.contains(**address))
                };
                group
                    .addresses
                    .extend(member.addresses.iter().filter(within).copied());
            }
        }
        group
    }

    fn selected<'b>(&'b self, selection: &'b Selection) -> impl Iterator<Item = &'b Member<'a>> {
        self.members
            .iter()
            .filter(|(namespace, _)| self.is_in_scope(namespace, &selection.scope))
            .flat_map(|(_, members)| members)
            .filter(|member| selection.pods.matches(&member.workload.labels))
    }

    fn is_in_scope(&self, namespace: &str, scope: &Scope) -> bool {
        match scope {
            Scope::Namespace(name) => name == namespace,
            Scope::Matching(selector) => match self.namespaces.get(namespace) {
                Some(labels) => selector.matches(labels),
                None => selector.matches(&Labels::new()),
            },
        }
    }
}

impl<'a> Policy<'a> {
    fn new(namespace: &str, policy: &'a NetworkPolicy, default: Established) -> Policy<'a> {
        let rules = |rules: &Option<Vec<_>>, direction| {
            rules.as_ref().map(|rules| {
                rules
                    .iter()
                    .map(|rule| Rule::new(namespace, rule, direction, &Selection::new))
                    .collect()
            })
        };
        Policy {
            selector: &policy.pod_selector,
            ingress: rules(&policy.ingress, Direction::Ingress),
            egress: rules(&policy.egress, Direction::Egress),
            keep: policy.keeps(default),
        }
    }

    fn rules(&self, direction: Direction) -> Option<&BTreeSet<Rule>> {
        match direction {
            Direction::Ingress => self.ingress.as_ref(),
            Direction::Egress => self.egress.as_ref(),
        }
    }
}

/// The workloads that policies see, by namespace. Of several that claim one address, the first by key has it.
fn members(cluster: &Cluster) -> BTreeMap<&str, Vec<Member<'_>>> {
    let mut taken = BTreeSet::new();
    let mut members: BTreeMap<&str, Vec<Member<'_>>> = BTreeMap::new();
    for (key, workload) in cluster
        .workloads()
        .filter(|(_, workload)| !workload.host_network)
    {
        let addresses: Vec<IpAddr> = workload
            .addresses
            .iter()
            .copied()
            .filter(|&address| taken.insert(address))
            .collect();
        if !addresses.is_empty() {
            members.entry(&key.namespace).or_default().push(Member {
                key,
                workload,
                addresses,
            });
        }
    }
    members
}

fn has_target(term: &Term, member: &Member<'_>) -> bool {
    term.target.as_ref().is_none_or(|target| {
        member.workload.port(&target.name, target.protocol) == Some(target.number)
    })
}

/// The ranges that a node's workloads take their addresses from.
pub(super) fn workload_ranges(node: &Node) -> Ranges {
    let ranges: Vec<Ranges> = node.workload_cidrs.iter().map(rule::range).collect();
    Ranges::union_all(&ranges)
}
