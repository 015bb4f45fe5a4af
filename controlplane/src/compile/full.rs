//! The definition: every node's policy, computed from nothing by looking at everything. Simple before fast; the
//! incremental compiler must equal it, byte for byte. Test equipment, behind the feature `reference`: it shares the
//! private leaves of the compiler, so that no other crate can hold it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    rc::Rc,
    sync::Arc,
};

use ipnetwork::IpNetwork;
use sallyport_policy::{
    ClassId, Direction, Endpoint, GroupId, NodePolicy, Owner, PeerGroup, Ranges, Source,
};
use sallyport_proto::object::ObjectKey;

use super::{
    class::{self, Built},
    meet,
    nodes::{own_addresses, workload_ranges},
    peers::{Peers, Scope, Selection, Term},
    rule::{self, NamedTarget, Rule},
    sources::{BLOCKS, MAX_HOLES},
};
use crate::{
    cluster::Cluster,
    model::{Established, LabelSelector, Labels, NetworkPolicy, Node, Workload},
    validate::no_sources,
};

/// The policy of each node: one entry for each Node object.
///
/// This is the definition, and as slow as one: it examines every policy of a namespace for every workload of the
/// namespace. [`Compiler::new`](super::Compiler::new) computes the same result fast.
pub fn full(cluster: &Cluster) -> BTreeMap<String, Arc<NodePolicy>> {
    let world = World::of(cluster);
    let mut groups = BTreeMap::new();
    cluster
        .nodes()
        .map(|(name, node)| (name.into(), Arc::new(world.node(name, node, &mut groups))))
        .collect()
}

/// A workload that policies see, with the addresses that it claims.
struct Member<'a> {
    key: &'a ObjectKey,
    workload: &'a Workload,
}

/// A policy: whom it selects, and its rules in each direction that it isolates for.
struct Policy<'a> {
    selector: &'a LabelSelector,
    ingress: Option<BTreeSet<Rule>>,
    egress: Option<BTreeSet<Rule>>,
    keep_established: bool,
}

struct World<'a> {
    namespaces: BTreeMap<&'a str, &'a Labels>,
    members: BTreeMap<&'a str, Vec<Rc<Member<'a>>>>,
    /// The workloads that claim each address.
    claimants: BTreeMap<IpAddr, Claimants<'a>>,
    /// The addresses whose claimants name a node.
    placed: BTreeMap<&'a str, BTreeSet<IpAddr>>,
    policies: BTreeMap<&'a str, Vec<Policy<'a>>>,
    /// The workloads with allowed sources.
    claimants_of_ranges: Vec<Rc<Member<'a>>>,
    /// The workload ranges of each node.
    ranges: BTreeMap<&'a str, Ranges>,
    /// The own addresses of all nodes.
    own_addresses: Ranges,
}

/// The workloads that claim an address, by kind, namespace and name.
type Claimants<'a> = BTreeMap<&'a ObjectKey, Rc<Member<'a>>>;

/// Groups that some node has already.
type Groups = BTreeMap<GroupId, Arc<PeerGroup>>;

impl<'a> World<'a> {
    fn of(cluster: &'a Cluster) -> World<'a> {
        let mut policies: BTreeMap<&str, Vec<Policy<'_>>> = BTreeMap::new();
        for (key, policy) in cluster.policies() {
            let of_namespace = policies.entry(&key.namespace).or_default();
            of_namespace.push(Policy::new(&key.namespace, policy, cluster.established()));
        }
        let members = members(cluster);
        World {
            namespaces: cluster
                .namespaces()
                .map(|(name, namespace)| (name, &*namespace.labels))
                .collect(),
            claimants: claimants(&members),
            placed: placed(&members),
            claimants_of_ranges: claimants_of_ranges(&members),
            members,
            policies,
            ranges: cluster
                .nodes()
                .map(|(name, node)| (name, workload_ranges(node)))
                .collect(),
            own_addresses: {
                let all = cluster.nodes().map(|(_, node)| own_addresses(node));
                Ranges::union_all(&all.collect::<Vec<_>>())
            },
        }
    }

    fn node(&self, name: &str, node: &Node, groups: &mut Groups) -> NodePolicy {
        let mut policy = NodePolicy::default();
        policy.set_workload_ranges(Arc::new(workload_ranges(node)));
        for &address in self.placed.get(name).into_iter().flatten() {
            let claimants = &self.claimants[&address];
            // Of several claimants on the node the endpoint names the first.
            let here = claimants.values();
            let mut here = here.filter(|member| member.workload.node.as_deref() == Some(name));
            let member = here.next().expect("a claimant is on the node");
            // The address is behind an interface if all of them say so.
            let interface = &member.workload.interface;
            let agree = here.all(|other| other.workload.interface == *interface);
            let endpoint = Endpoint {
                namespace: member.key.namespace.clone(),
                name: member.key.name.clone(),
                uid: member.workload.uid.clone(),
                interface: if agree {
                    interface.clone()
                } else {
                    String::new()
                },
                ingress: self.class(claimants, Direction::Ingress, true, &mut policy, groups),
                egress: self.class(claimants, Direction::Egress, true, &mut policy, groups),
            };
            policy.set_endpoint(address, Arc::new(endpoint));
        }
        let sources = self.sources(name, &mut policy, groups);
        policy.set_sources(Arc::new(sources));
        policy
    }

    /// The allowed sources of a node's workloads. An address is in the source of those that claim it by the longest
    /// prefix. It is in none if a workload or a node has it, wherever that is, if it is in the workload ranges of other
    /// nodes alone, or if no packet has such a source. A claim that is not within the node's own workload ranges means
    /// none of these. Of too many workloads' addresses the blocks around them count.
    fn sources(&self, name: &str, policy: &mut NodePolicy, groups: &mut Groups) -> Vec<Source> {
        let mut claims: BTreeMap<IpNetwork, Claimants<'_>> = BTreeMap::new();
        let members = self.claimants_of_ranges.iter();
        for member in members.filter(|member| member.workload.node.as_deref() == Some(name)) {
            for &network in &member.workload.allowed_sources {
                let claimants = claims.entry(network).or_default();
                claimants.insert(member.key, member.clone());
            }
        }
        if claims.is_empty() {
            return Vec::new();
        }
        let others = self.ranges.iter().filter(|(node, _)| **node != name);
        let others = others.map(|(_, ranges)| ranges.difference(&self.ranges[name]));
        let others = others.chain([self.own_addresses.clone(), no_sources()]);
        let foreign = Ranges::union_all(&others.collect::<Vec<_>>());
        let own = &self.ranges[name];
        let apart = |network: &IpNetwork| match rule::range(network).difference(own).is_empty() {
            true => foreign.clone(),
            false => foreign.union(own),
        };
        let claimed = claims.keys().map(|network| {
            let longer = claims
                .keys()
                .filter(|other| other.prefix() > network.prefix());
            let longer: Vec<Ranges> = longer.map(rule::range).collect();
            let ranges = rule::range(network).difference(&Ranges::union_all(&longer));
            ranges.difference(&apart(network))
        });
        let claimed = Ranges::union_all(&claimed.collect::<Vec<_>>());
        let holes = self.holes(&claimed);
        let mut sources = Vec::new();
        for (network, claimants) in &claims {
            let mut ranges = rule::range(network);
            let longer = claims.keys();
            for longer in longer.filter(|other| other.prefix() > network.prefix()) {
                // Of two networks of one family the longer prefix is within the other, or apart from it.
                ranges = ranges.difference(&rule::range(longer));
            }
            ranges = ranges.difference(&apart(network)).difference(&holes);
            if ranges.is_empty() {
                continue;
            }
            let owners = claimants.keys().map(|key| Owner {
                namespace: key.namespace.clone(),
                name: key.name.clone(),
            });
            sources.push(Source {
                owners: owners.collect::<BTreeSet<_>>().into_iter().collect(),
                others: Vec::new(),
                ingress: self.class(claimants, Direction::Ingress, false, policy, groups),
                egress: self.class(claimants, Direction::Egress, false, policy, groups),
                ranges,
            });
        }
        Source::canonical(sources)
    }

    /// The workloads' addresses in a set, as the smallest blocks of which there are not too many.
    fn holes(&self, claimed: &Ranges) -> Ranges {
        let held = self.claimants.keys();
        let held: Vec<IpAddr> = held
            .copied()
            .filter(|&address| claimed.contains(address))
            .collect();
        let mut blocks = BTreeSet::new();
        for (v4, v6) in BLOCKS {
            let block = |&address: &IpAddr| {
                let length = if address.is_ipv4() { v4 } else { v6 };
                rule::range(&IpNetwork::new(address, length).expect("a prefix length"))
            };
            blocks = held.iter().map(block).collect();
            if blocks.len() <= MAX_HOLES {
                break;
            }
        }
        Ranges::union_all(&blocks)
    }

    /// The class that judges an address, added to the node's policy with all that it names: what all claimants allow.
    /// The class keeps established connections if it may and if the classes of all claimants do.
    fn class(
        &self,
        claimants: &Claimants<'_>,
        direction: Direction,
        may_keep: bool,
        policy: &mut NodePolicy,
        groups: &mut Groups,
    ) -> Option<ClassId> {
        let built = claimants.values();
        let built = built.filter_map(|member| self.built(member, direction));
        let (mut classes, mut peers) = (Vec::new(), BTreeMap::new());
        for Built { class, groups } in built {
            classes.extend(class);
            peers.extend(
                groups
                    .into_iter()
                    .map(|group| (group.peers.id(), group.peers)),
            );
        }
        let met = meet::of(&classes.iter().collect::<Vec<_>>(), may_keep)?;
        for (id, parts) in met.groups {
            let mut part = |id: GroupId| {
                let group = groups.entry(id);
                group
                    .or_insert_with(|| Arc::new(self.group(&peers[&id])))
                    .clone()
            };
            let parts: Vec<Arc<PeerGroup>> = parts.into_iter().map(&mut part).collect();
            let group = match &parts[..] {
                [only] => only.clone(),
                _ => Arc::new(meet::members(
                    &parts.iter().map(|part| &**part).collect::<Vec<_>>(),
                )),
            };
            policy.set_group(id, group);
        }
        let id = met.class.id();
        policy.add_class(id, Arc::new(met.class));
        Some(id)
    }

    /// The class that the policies of a workload build; `None` if no policy isolates it.
    fn built(&self, member: &Member<'_>, direction: Direction) -> Option<Built> {
        let policies = self.policies.get(member.key.namespace.as_str())?;
        let isolating: Vec<(&BTreeSet<Rule>, bool)> = policies
            .iter()
            .filter(|policy| policy.selector.matches(&member.workload.labels))
            .filter_map(|policy| Some((policy.rules(direction)?, policy.keep_established)))
            .collect();
        if isolating.is_empty() {
            return None;
        }
        let keep_established = isolating
            .iter()
            .all(|&(_, keep_established)| keep_established);
        let rules = isolating.into_iter().flat_map(|(rules, _)| rules);
        let mut grants = Vec::new();
        for rule in rules.collect::<BTreeSet<_>>() {
            rule.grants(
                &|protocol, name| member.workload.port(name, protocol),
                &|target| self.numbers(target),
                &mut grants,
            );
        }
        Some(class::build(direction, keep_established, &grants))
    }

    /// The numbers that a destination's pods have for a name.
    fn numbers(&self, target: &NamedTarget) -> Vec<u16> {
        let (selection, within) = (&target.destination.selection, &target.destination.within);
        let numbers: BTreeSet<u16> = self
            .selected(selection)
            .filter(|member| {
                let mut addresses = member.workload.addresses.iter();
                within
                    .as_ref()
                    .is_none_or(|within| addresses.any(|&address| within.contains(address)))
            })
            .filter_map(|member| member.workload.port(&target.name, target.protocol))
            .collect();
        numbers.into_iter().collect()
    }

    /// The peers as a group. An address is in it if some term selects it for every claimant.
    fn group(&self, peers: &Peers) -> PeerGroup {
        let mut selected: BTreeMap<IpAddr, BTreeSet<&ObjectKey>> = BTreeMap::new();
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
                for address in member.workload.addresses.iter().filter(within) {
                    selected.entry(*address).or_default().insert(member.key);
                }
            }
        }
        let is_by_all =
            |(address, keys): &(_, BTreeSet<_>)| keys.len() == self.claimants[address].len();
        let selected = selected.into_iter().filter(is_by_all);
        group.addresses = selected.map(|(address, _)| address).collect();
        group
    }

    fn selected<'b>(
        &'b self,
        selection: &'b Selection,
    ) -> impl Iterator<Item = &'b Rc<Member<'a>>> {
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
            keep_established: policy.keeps(default),
        }
    }

    fn rules(&self, direction: Direction) -> Option<&BTreeSet<Rule>> {
        match direction {
            Direction::Ingress => self.ingress.as_ref(),
            Direction::Egress => self.egress.as_ref(),
        }
    }
}

/// The workloads that policies see, by namespace.
fn members(cluster: &Cluster) -> BTreeMap<&str, Vec<Rc<Member<'_>>>> {
    let mut members: BTreeMap<&str, Vec<Rc<Member<'_>>>> = BTreeMap::new();
    for (key, workload) in cluster
        .workloads()
        .filter(|(_, workload)| !workload.host_network && !workload.addresses.is_empty())
    {
        let member = Rc::new(Member { key, workload });
        members.entry(&key.namespace).or_default().push(member);
    }
    members
}

/// The workloads that claim each address, by kind, namespace and name.
fn claimants<'a>(members: &BTreeMap<&str, Vec<Rc<Member<'a>>>>) -> BTreeMap<IpAddr, Claimants<'a>> {
    let mut claimants: BTreeMap<IpAddr, Claimants<'_>> = BTreeMap::new();
    for member in members.values().flatten() {
        for &address in &member.workload.addresses {
            let claimants = claimants.entry(address).or_default();
            claimants.insert(member.key, member.clone());
        }
    }
    claimants
}

/// The addresses whose claimants name a node, by node.
fn placed<'a>(
    members: &BTreeMap<&str, Vec<Rc<Member<'a>>>>,
) -> BTreeMap<&'a str, BTreeSet<IpAddr>> {
    let mut placed: BTreeMap<&str, BTreeSet<IpAddr>> = BTreeMap::new();
    for member in members.values().flatten() {
        if let Some(node) = &member.workload.node {
            let addresses = &member.workload.addresses;
            placed.entry(node).or_default().extend(addresses);
        }
    }
    placed
}

/// The workloads with allowed sources.
fn claimants_of_ranges<'a>(members: &BTreeMap<&str, Vec<Rc<Member<'a>>>>) -> Vec<Rc<Member<'a>>> {
    let members = members.values().flatten();
    let claims = |member: &&Rc<Member<'_>>| !member.workload.allowed_sources.is_empty();
    members.filter(claims).cloned().collect()
}

fn has_target(term: &Term, member: &Member<'_>) -> bool {
    term.target.as_ref().is_none_or(|target| {
        member.workload.port(&target.name, target.protocol) == Some(target.number)
    })
}
