//! The meet of two versions of a node's policy: what both allow. It is the state between the revokes and the grants
//! of an edit, and it is exact: a flow passes it if and only if it passes both.
//!
//! With one exception, on the side of denial: a connection that is established, where one version keeps such and the
//! other does not, or where an address passes from one workload to another, passes only if both allow it anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use imbl::{OrdSet, ordmap::DiffItem};

use crate::{
    Class, ClassId, Direction, Endpoint, GroupId, Hasher, NodePolicy, Owner, PeerGroup, PortRule,
    Protocol, Ranges, Source, node::hash_ranges, octets,
};

/// The treatment of unknown addresses: workload addresses that are no endpoint of the node (yet).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnknownAddresses {
    /// Drop its traffic, if the address lies in the policy's workload ranges or in these, which the node knows of by
    /// itself.
    Drop(Arc<Ranges>),
    /// Let it pass.
    Allow,
}

impl UnknownAddresses {
    /// Drop its traffic, if the address lies in the policy's workload ranges.
    pub fn drop() -> UnknownAddresses {
        UnknownAddresses::Drop(Arc::new(Ranges::EMPTY))
    }
}

impl Default for UnknownAddresses {
    fn default() -> UnknownAddresses {
        UnknownAddresses::drop()
    }
}

/// The effect of a change of policy: whether it revokes, grants or both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// The change denies a flow that was allowed.
    pub revokes: bool,
    /// The change allows a flow that was denied.
    pub grants: bool,
}

impl std::ops::BitOrAssign for Effect {
    fn bitor_assign(&mut self, other: Effect) {
        self.revokes |= other.revokes;
        self.grants |= other.grants;
    }
}

impl NodePolicy {
    /// What both `self` and `new` allow.
    ///
    /// Groups of both versions are kept under their ids, so that the change is a few set elements; where classes
    /// change in a way that ids cannot express, the shared part of their groups is spelt out in groups of its own.
    /// Of two versions of which one allows no more than the other the meet is that one, spelt as it is spelt there.
    /// Costs what the difference of the two costs, and the size of the groups that have to be spelt out.
    ///
    /// ```
    /// use std::{net::IpAddr, sync::Arc};
    ///
    /// use sallyport_policy::{
    ///     Class, Direction, Endpoint, GroupId, NodePolicy, PeerGroup, PortRule, Protocol, Ranges,
    ///     UnknownAddresses,
    /// };
    ///
    /// let [server, first, second] = [1, 2, 3].map(|n| IpAddr::from([10, 0, 0, n]));
    /// // The policy that lets `client` alone connect to TCP 80 of the server.
    /// let only = |client: IpAddr| {
    ///     let mut policy = NodePolicy::default();
    ///     let group = GroupId::of(["clients"], &Ranges::EMPTY);
    ///     policy.set_group(group, Arc::new(PeerGroup::new("clients".into(), Ranges::EMPTY)));
    ///     policy.add_address(group, client);
    ///     let ports = vec![PortRule { protocol: Protocol::Tcp, first: 80, last: 80, group }];
    ///     let class = Class { direction: Direction::Ingress, keep_established: false, other: None, ports };
    ///     let id = class.id();
    ///     policy.add_class(id, Arc::new(class));
    ///     let endpoint = Endpoint {
    ///         namespace: "shop".into(),
    ///         name: "server".into(),
    ///         uid: String::new(),
    ///         interface: String::new(),
    ///         ingress: Some(id),
    ///         egress: None,
    ///     };
    ///     policy.set_endpoint(server, Arc::new(endpoint));
    ///     policy
    /// };
    /// let (old, new) = (only(first), only(second));
    /// let allows = |policy: &NodePolicy, client| {
    ///     policy.allows(Direction::Ingress, server, client, Some((Protocol::Tcp, 80)))
    /// };
    /// assert!(allows(&old, first) && allows(&new, second));
    ///
    /// let meet = old.meet(&new, &UnknownAddresses::drop());
    /// assert!(!allows(&meet, first) && !allows(&meet, second));
    /// ```
    pub fn meet(&self, new: &NodePolicy, unknown: &UnknownAddresses) -> NodePolicy {
        let mut meet = Meet {
            old: self,
            new,
            out: new.clone(),
            classes: BTreeMap::new(),
            peers: BTreeMap::new(),
            passed_on: Vec::new(),
        };
        meet.workload_ranges();
        meet.groups();
        meet.endpoints(unknown);
        meet.sources(unknown);
        meet.drop_unused();
        meet.out
    }

    /// The effect of a change to `new`. It may claim too much where spellings differ, never too little.
    pub fn effect_of_change(&self, new: &NodePolicy, unknown: &UnknownAddresses) -> Effect {
        if self.differs_in_members_only(new) {
            return self.effect_of_member_change(new);
        }
        let meet = self.meet(new, unknown);
        Effect {
            revokes: self.may_differ(&meet, unknown),
            grants: meet.may_differ(new, unknown),
        }
    }

    /// Whether it is known without looking that all but groups is the same. So it is for most nodes that an edit
    /// concerns, since the compiler shares what it does not change.
    fn differs_in_members_only(&self, new: &NodePolicy) -> bool {
        self.endpoints.ptr_eq(&new.endpoints)
            && self.classes.ptr_eq(&new.classes)
            && self.workload_ranges == new.workload_ranges
            && self.sources == new.sources
    }

    /// The effect of a change of group members alone, which needs no meet.
    fn effect_of_member_change(&self, new: &NodePolicy) -> Effect {
        let mut effect = Effect::default();
        for item in self.groups.diff(&new.groups) {
            if let DiffItem::Update { old, new } = item {
                for item in old.1.addresses.diff(&new.1.addresses) {
                    match item {
                        imbl::ordset::DiffItem::Add(_) => effect.grants = true,
                        imbl::ordset::DiffItem::Remove(_) => effect.revokes = true,
                    }
                    if effect.revokes && effect.grants {
                        return effect;
                    }
                }
            }
        }
        effect
    }

    /// Whether another version may allow something else. Groups and classes that come and go do so with endpoints.
    fn may_differ(&self, other: &NodePolicy, unknown: &UnknownAddresses) -> bool {
        let drops = matches!(unknown, UnknownAddresses::Drop(_));
        if drops && self.workload_ranges != other.workload_ranges {
            return true;
        }
        if self.sources != other.sources {
            return true;
        }
        let endpoints = self.endpoints.diff(&other.endpoints);
        endpoints.into_iter().any(|item| match item {
            DiffItem::Add(&address, endpoint) => {
                endpoint.is_isolated() || self.drops_unknown(address, unknown)
            }
            DiffItem::Remove(&address, endpoint) => {
                endpoint.is_isolated() || other.drops_unknown(address, unknown)
            }
            DiffItem::Update {
                old: (_, old),
                new: (_, new),
            } => (old.ingress, old.egress) != (new.ingress, new.egress),
        }) || self.groups.diff(&other.groups).any(|item| match item {
            DiffItem::Update { old, new } => old.1.addresses != new.1.addresses,
            DiffItem::Add(..) | DiffItem::Remove(..) => false,
        })
    }

    /// Whether traffic of an address is dropped for being a workload's, if the address is neither an endpoint nor in a source.
    pub fn drops_unknown(&self, address: IpAddr, unknown: &UnknownAddresses) -> bool {
        match unknown {
            UnknownAddresses::Drop(also) => {
                self.workload_ranges.contains(address) || also.contains(address)
            }
            UnknownAddresses::Allow => false,
        }
    }

    /// All addresses of which [`drops_unknown`](NodePolicy::drops_unknown) says so.
    fn dropped_ranges(&self, unknown: &UnknownAddresses) -> Ranges {
        match unknown {
            UnknownAddresses::Drop(also) => self.workload_ranges.union(also),
            UnknownAddresses::Allow => Ranges::EMPTY,
        }
    }

    /// The addresses and ranges of some peers.
    fn content(&self, peers: Peers) -> Content {
        match peers {
            Peers::Nobody => Content::default(),
            Peers::Everyone => Content {
                addresses: OrdSet::new(),
                ranges: Ranges::everything(),
            },
            Peers::Group(id) => Content {
                addresses: self.groups[&id].addresses.clone(),
                ranges: self.groups[&id].spec.ranges.clone(),
            },
        }
    }
}

struct Meet<'a> {
    old: &'a NodePolicy,
    new: &'a NodePolicy,
    out: NodePolicy,
    /// The classes that were asked for: many endpoints go from one class to the same other.
    classes: BTreeMap<Pair, Option<ClassId>>,
    /// The groups that were asked for: many ports go from one group to the same other.
    peers: BTreeMap<[Peers; 2], Option<GroupId>>,
    /// Addresses that are an endpoint of one version, and in a source of the other one, which drops them elsewhere.
    passed_on: Vec<Source>,
}

/// The classes of an endpoint in both versions, and whether it is the same workload's in both.
type Pair = (Option<ClassId>, Option<ClassId>, bool);

/// Who may use a port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Peers {
    Nobody,
    Everyone,
    Group(GroupId),
}

/// Addresses spelt out.
#[derive(Default)]
struct Content {
    addresses: OrdSet<IpAddr>,
    ranges: Ranges,
}

impl Meet<'_> {
    /// An address that either version counts among the workloads' is dropped while it is no endpoint.
    fn workload_ranges(&mut self) {
        if self.old.workload_ranges != self.new.workload_ranges {
            let both = self.old.workload_ranges.union(&self.new.workload_ranges);
            self.out.set_workload_ranges(Arc::new(both));
        }
    }

    /// Groups of both versions keep the members of both; groups of one version stay as they are there.
    fn groups(&mut self) {
        for item in self.old.groups.diff(&self.new.groups) {
            match item {
                DiffItem::Add(..) => {}
                DiffItem::Remove(&id, group) => self.out.set_group(id, group.clone()),
                DiffItem::Update {
                    old: (&id, old),
                    new: (_, new),
                } => {
                    for item in old.addresses.diff(&new.addresses) {
                        if let imbl::ordset::DiffItem::Add(&address) = item {
                            self.out.remove_address(id, address);
                        }
                    }
                }
            }
        }
    }

    /// An address that is an endpoint of one version may be in a source of the other, as whose it is judged there.
    fn endpoints(&mut self, unknown: &UnknownAddresses) {
        for item in self.old.endpoints.diff(&self.new.endpoints) {
            match item {
                DiffItem::Add(&address, endpoint) => {
                    let old = self.old.source_of(address);
                    if !self.old.drops_unknown(address, unknown) {
                        let old = old.map(as_endpoint);
                        self.endpoint(address, endpoint, old.as_ref(), Some(endpoint));
                        continue;
                    }
                    self.out.remove_endpoint(address);
                    if let Some(source) = old {
                        self.pass_on(address, endpoint, source);
                    }
                }
                DiffItem::Remove(&address, endpoint) => {
                    let new = self.new.source_of(address);
                    if !self.new.drops_unknown(address, unknown) {
                        let new = new.map(as_endpoint);
                        self.endpoint(address, endpoint, Some(endpoint), new.as_ref());
                    } else if let Some(source) = new {
                        self.pass_on(address, endpoint, source);
                    }
                }
                DiffItem::Update {
                    old: (&address, old),
                    new: (_, new),
                } => self.endpoint(address, new, Some(old), Some(new)),
            }
        }
    }

    /// An address of the newest endpoint, judged as both versions judge it.
    fn endpoint(
        &mut self,
        address: IpAddr,
        named: &Endpoint,
        old: Option<&Endpoint>,
        new: Option<&Endpoint>,
    ) {
        let class = |of: Option<&Endpoint>, ingress: bool| {
            of.and_then(|endpoint| {
                if ingress {
                    endpoint.ingress
                } else {
                    endpoint.egress
                }
            })
        };
        let same_owner = old.zip(new).is_none_or(|(old, new)| old.has_owner_of(new));
        // Of one workload whose uid one version knows it is known: a third version may know another.
        let known = old
            .filter(|_| same_owner && named.uid.is_empty())
            .unwrap_or(named);
        let endpoint = Endpoint {
            namespace: named.namespace.clone(),
            name: named.name.clone(),
            uid: known.uid.clone(),
            // Unlike the uid that of the newest version alone: no interface is an interface that is not checked any more.
            interface: named.interface.clone(),
            ingress: self.class(class(old, true), class(new, true), same_owner),
            egress: self.class(class(old, false), class(new, false), same_owner),
        };
        self.out.set_endpoint(address, Arc::new(endpoint));
    }

    /// An address that is an endpoint of the one version and in a source of the other. Where that one drops the address, except
    /// where workloads are, it stays in a source.
    fn pass_on(&mut self, address: IpAddr, endpoint: &Endpoint, source: &Source) {
        let is_old = self.old.endpoints.contains_key(&address);
        let [ingress, egress] = Direction::BOTH.map(|direction| {
            let classes = (endpoint.class(direction), source.class(direction));
            match is_old {
                true => self.class(classes.0, classes.1, false),
                false => self.class(classes.1, classes.0, false),
            }
        });
        let owner = Owner {
            namespace: endpoint.namespace.clone(),
            name: endpoint.name.clone(),
        };
        let others = source.owners.iter().chain(&source.others).cloned();
        let others: BTreeSet<Owner> = others.chain([owner]).collect();
        self.passed_on.push(Source {
            owners: Vec::new(),
            others: others.into_iter().collect(),
            ingress,
            egress,
            ranges: Ranges::span(address, address).expect("one address is a range"),
        });
    }

    /// Each address that is in a source of a version, unless the other version drops it: that allows nothing, and the ranges say so.
    fn sources(&mut self, unknown: &UnknownAddresses) {
        if self.old.sources == self.new.sources && self.passed_on.is_empty() {
            return;
        }
        let (old, new) = (self.old.sources.clone(), self.new.sources.clone());
        let mut met = std::mem::take(&mut self.passed_on);
        let passed_on = Ranges::union_all(met.iter().map(|source| &source.ranges));
        for before in old.iter() {
            for after in new.iter() {
                let ranges = before.ranges.intersection(&after.ranges);
                let ranges = ranges.difference(&passed_on);
                if !ranges.is_empty() {
                    met.push(self.source(Some(before), Some(after), ranges));
                }
            }
        }
        for (of, other, is_old) in [(&old, self.new, true), (&new, self.old, false)] {
            let others = other.sources.iter().map(|source| &source.ranges);
            let others = Ranges::union_all(others);
            let dropped = other.dropped_ranges(unknown).union(&passed_on);
            for source in of.iter() {
                let ranges = source.ranges.difference(&others).difference(&dropped);
                if !ranges.is_empty() {
                    let (before, after) = match is_old {
                        true => (Some(source), None),
                        false => (None, Some(source)),
                    };
                    met.push(self.source(before, after, ranges));
                }
            }
        }
        self.out.set_sources(Arc::new(Source::canonical(met)));
    }

    /// Addresses that are in these sources of the versions. A workload may use them if it may in both.
    fn source(&mut self, old: Option<&Source>, new: Option<&Source>, ranges: Ranges) -> Source {
        let same_owner = old
            .zip(new)
            .is_none_or(|(old, new)| old.owners == new.owners);
        let owners = |of: Option<&Source>| -> BTreeSet<Owner> {
            of.into_iter()
                .flat_map(|of| of.owners.iter().cloned())
                .collect()
        };
        let owners = &owners(old) & &owners(new);
        let named = old.into_iter().chain(new);
        let named = named.flat_map(|of| of.owners.iter().chain(&of.others));
        let others: BTreeSet<Owner> = named
            .filter(|name| !owners.contains(name))
            .cloned()
            .collect();
        let mut class = |direction: Direction| {
            let class = |of: Option<&Source>| of.and_then(|source| source.class(direction));
            self.class(class(old), class(new), same_owner)
        };
        Source {
            owners: owners.into_iter().collect(),
            others: others.into_iter().collect(),
            ingress: class(Direction::Ingress),
            egress: class(Direction::Egress),
            ranges,
        }
    }

    /// The class that allows what both allow; no class allows everything, and keeps. Nothing is kept of a connection of
    /// an address that changes its owner.
    fn class(
        &mut self,
        old: Option<ClassId>,
        new: Option<ClassId>,
        same_owner: bool,
    ) -> Option<ClassId> {
        let pair = (old, new, same_owner);
        if let Some(&class) = self.classes.get(&pair) {
            return class;
        }
        let class = self.make_class(pair);
        self.classes.insert(pair, class);
        class
    }

    fn make_class(&mut self, (old, new, same_owner): Pair) -> Option<ClassId> {
        let (old_id, new_id) = (old, new);
        let old = old.map(|id| self.old.classes[&id].clone());
        let new = new.map(|id| self.new.classes[&id].clone());
        let keeps =
            |class: &Option<Arc<Class>>| class.as_ref().is_none_or(|class| class.keep_established);
        let keep_established = same_owner && keeps(&old) && keeps(&new);
        if old_id == new_id && keep_established == keeps(&new) {
            return old_id;
        }
        let direction = old.as_ref().or(new.as_ref())?.direction;
        let at = |class: &Option<Arc<Class>>, port| match class {
            None => Peers::Everyone,
            Some(class) => class.group_at(port).map_or(Peers::Nobody, Peers::Group),
        };
        let other = self.peers(at(&old, None), at(&new, None));
        let mut ports: Vec<PortRule> = Vec::new();
        for (protocol, first, last) in segments(old.as_deref(), new.as_deref()) {
            let port = Some((protocol, first));
            let Some(group) = self.peers(at(&old, port), at(&new, port)) else {
                continue;
            };
            PortRule {
                protocol,
                first,
                last,
                group,
            }
            .append_to(&mut ports);
        }
        let class = Class {
            direction,
            keep_established,
            other,
            ports,
        };
        let id = class.id();
        self.out.add_class(id, Arc::new(class));
        Some(id)
    }

    /// The group of the peers that are in both; `None` if nobody is.
    fn peers(&mut self, old: Peers, new: Peers) -> Option<GroupId> {
        if let Some(&group) = self.peers.get(&[old, new]) {
            return group;
        }
        let group = self.make_peers(old, new);
        self.peers.insert([old, new], group);
        group
    }

    fn make_peers(&mut self, old: Peers, new: Peers) -> Option<GroupId> {
        let (a, b) = match (old, new) {
            (Peers::Nobody, _) | (_, Peers::Nobody) => return None,
            (Peers::Group(a), Peers::Group(b)) if a == b => return Some(a),
            (Peers::Group(id), Peers::Everyone) | (Peers::Everyone, Peers::Group(id))
                if self.is_same_in_both(id) =>
            {
                return Some(id);
            }
            _ => (self.old.content(old), self.new.content(new)),
        };
        let both = Content {
            addresses: a
                .addresses
                .clone()
                .intersection(b.addresses.clone())
                .union(in_ranges(&a.addresses, &b.ranges))
                .union(in_ranges(&b.addresses, &a.ranges)),
            ranges: a.ranges.intersection(&b.ranges),
        };
        // Where one of them allows no more than the other nothing needs a name of its own. But a group's members change in
        // place: those of the new one must not have to go first, nor those of the old one come afterwards.
        let named = match (old, new) {
            (_, Peers::Group(id)) if self.holds(id, &both) && stays(id, self.old, &self.out) => {
                Some(id)
            }
            (Peers::Group(id), _) if self.holds(id, &both) && stays(id, self.new, &self.out) => {
                Some(id)
            }
            _ => None,
        };
        Some(named.unwrap_or_else(|| self.spell_out(both)))
    }

    /// Whether a group of the meet is exactly this.
    fn holds(&self, id: GroupId, content: &Content) -> bool {
        self.out.groups.get(&id).is_some_and(|group| {
            group.spec.ranges == content.ranges && group.addresses == content.addresses
        })
    }

    /// A group that is unchanged by the edit, or in one version only, holds the same addresses all through it.
    fn is_same_in_both(&self, id: GroupId) -> bool {
        match (self.old.groups.get(&id), self.new.groups.get(&id)) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new) || old.addresses == new.addresses,
            _ => true,
        }
    }

    /// A group of its own for what two versions share. Its id is a hash of what is in it: a meet of meets may spell out
    /// the same two groups twice, with other members.
    fn spell_out(&mut self, content: Content) -> GroupId {
        let hasher = content
            .addresses
            .iter()
            .fold(Hasher::new("meet"), |hasher, &address| {
                hasher.field(&octets(address))
            });
        // An empty field ends the addresses: none may be taken for the end of a range.
        let hasher = hash_ranges(hasher.field(&[]), &content.ranges);
        let id = GroupId(hasher.finish().to_be_bytes());
        let mut group = PeerGroup::new("in both versions of an edit".into(), content.ranges);
        group.addresses = content.addresses;
        self.out.set_group(id, Arc::new(group));
        id
    }

    /// Removes the classes and groups that the meet does not use.
    fn drop_unused(&mut self) {
        let changed: Vec<ClassId> = self
            .old
            .classes
            .diff(&self.out.classes)
            .filter_map(|item| match item {
                DiffItem::Add(&id, _) => Some(id),
                _ => None,
            })
            .collect();
        if !changed.is_empty() {
            let sources = self.out.sources.iter();
            let used: BTreeSet<ClassId> = self
                .out
                .endpoints
                .values()
                .map(|endpoint| [endpoint.ingress, endpoint.egress])
                .chain(sources.map(|source| [source.ingress, source.egress]))
                .flatten()
                .flatten()
                .collect();
            for id in changed.into_iter().filter(|id| !used.contains(id)) {
                self.out.remove_class(id);
            }
        }
        let candidates: Vec<GroupId> = self
            .old
            .groups
            .diff(&self.out.groups)
            .filter_map(|item| match item {
                DiffItem::Add(&id, _) => Some(id),
                _ => None,
            })
            .chain(
                self.old
                    .groups
                    .diff(&self.new.groups)
                    .filter_map(|item| match item {
                        DiffItem::Remove(&id, _) => Some(id),
                        _ => None,
                    }),
            )
            .collect();
        if !candidates.is_empty() {
            let used: BTreeSet<GroupId> = self
                .out
                .classes
                .values()
                .flat_map(|class| class.groups())
                .collect();
            for id in candidates.into_iter().filter(|id| !used.contains(id)) {
                self.out.remove_group(id);
            }
        }
    }
}

/// A source as the endpoint that each of its addresses would be. It has the owner of no endpoint: what was established of the one
/// is not the other's.
fn as_endpoint(source: &Source) -> Endpoint {
    Endpoint {
        ingress: source.ingress,
        egress: source.egress,
        ..Endpoint::default()
    }
}

/// Whether a group that is in a version at all has the same members there as in the meet.
fn stays(id: GroupId, version: &NodePolicy, meet: &NodePolicy) -> bool {
    let groups = version.groups.get(&id).zip(meet.groups.get(&id));
    groups.is_none_or(|(before, between)| before.addresses == between.addresses)
}

fn in_ranges(addresses: &OrdSet<IpAddr>, ranges: &Ranges) -> OrdSet<IpAddr> {
    if ranges.is_empty() {
        return OrdSet::new();
    }
    if ranges.is_everything() {
        return addresses.clone();
    }
    addresses
        .iter()
        .copied()
        .filter(|&address| ranges.contains(address))
        .collect()
}

/// The coarsest ranges of ports on which neither class changes its group.
fn segments(old: Option<&Class>, new: Option<&Class>) -> Vec<(Protocol, u16, u16)> {
    let mut segments = Vec::new();
    for protocol in Protocol::ALL {
        let mut starts = BTreeSet::from([0u16]);
        for rule in old.iter().chain(new.iter()).flat_map(|class| &class.ports) {
            if rule.protocol == protocol {
                starts.insert(rule.first);
                starts.extend(rule.last.checked_add(1));
            }
        }
        let starts: Vec<u16> = starts.into_iter().collect();
        for (i, &first) in starts.iter().enumerate() {
            let last = starts.get(i + 1).map_or(u16::MAX, |next| next - 1);
            segments.push((protocol, first, last));
        }
    }
    segments
}
