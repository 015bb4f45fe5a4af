//! What one node must enforce, compiled: endpoints, classes, peer groups. Kept in persistent maps, so that a version
//! costs what it changes, and two versions are compared at the cost of their difference.

mod shared;

use std::{fmt, net::IpAddr, sync::Arc};

use imbl::{OrdMap, OrdSet};

use crate::{Digest, Hasher, Ranges};

pub use shared::SharedGroup;

/// The protocols that have ports in a NetworkPolicy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// IP protocol 6.
    Tcp,
    /// IP protocol 17.
    Udp,
    /// IP protocol 132.
    Sctp,
}

impl Protocol {
    /// All of them, by number.
    pub const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

    /// The IP protocol number (IANA).
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// The protocol of an IP protocol number.
    pub fn from_number(number: u32) -> Option<Protocol> {
        Protocol::ALL
            .into_iter()
            .find(|protocol| u32::from(protocol.number()) == number)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        })
    }
}

/// A direction of traffic, as seen by the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To the endpoint.
    Ingress,
    /// From the endpoint.
    Egress,
}

impl Direction {
    /// Both.
    pub const BOTH: [Direction; 2] = [Direction::Ingress, Direction::Egress];
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        })
    }
}

/// Names a peer group: a hash of the expression that it is the union of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub [u8; 16]);

/// Names a class: a hash of what it allows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassId(pub [u8; 16]);

/// A set of addresses: those of workloads, which come and go, and ranges, which are part of what the group is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerGroup {
    /// What the group is.
    pub spec: Arc<GroupSpec>,
    /// The addresses of the workloads that are in it now.
    pub addresses: OrdSet<IpAddr>,
}

/// The part of a peer group that never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSpec {
    /// What the group stands for, for people: `pods default/app=client`.
    pub description: String,
    /// The address ranges in it (of ipBlocks).
    pub ranges: Ranges,
}

/// What endpoints allow in one direction. It never changes: another content is another class.
///
/// Each protocol and port has **one** group: the union of everything that any policy allows there. So an address that
/// leaves one policy's peers and joins another's stays in the group of a port that both allow, and an edit never
/// breaks what both its versions permit. Canonical: `ports` is disjoint and ascending, and neighbours with the same
/// group are joined.
///
/// A class that *keeps* says this of new connections only: one that was established while it was allowed goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// The direction.
    pub direction: Direction,
    /// Whether connections that are established go on, whatever the rest says.
    pub keep_established: bool,
    /// The peers that may use protocols without ports: all but TCP, UDP and SCTP.
    pub other: Option<GroupId>,
    /// Who may use which ports. A port in none of them is allowed to nobody.
    pub ports: Vec<PortRule>,
}

/// Allows one group of peers a range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRule {
    /// The protocol.
    pub protocol: Protocol,
    /// The first port.
    pub first: u16,
    /// The last port, inclusive.
    pub last: u16,
    /// The peers.
    pub group: GroupId,
}

/// One address of a workload of the node, and the class that judges it in each direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// The workload's namespace.
    pub namespace: String,
    /// The workload's name.
    pub name: String,
    /// The uid of the workload's object: another one of the same name is another workload. Empty when it is unknown.
    pub uid: String,
    /// The interface of the node behind which the workload is. Empty when it is not known.
    pub interface: String,
    /// What may come to it; `None` when it is not isolated for ingress.
    pub ingress: Option<ClassId>,
    /// What it may send; `None` when it is not isolated for egress.
    pub egress: Option<ClassId>,
}

/// Addresses beside their own that workloads of the node may use (`spec.allowedSources`), and the classes that judge them.
/// Their classes keep no established connections: it is not known which of the workloads had one.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    /// The workloads that may use the addresses, ascending: more than one where several claim the same, and none where the
    /// versions that are held do not agree on one.
    pub owners: Vec<Owner>,
    /// The workloads that may use them in some of the versions that are held, ascending. No version has such by itself.
    pub others: Vec<Owner>,
    /// The class that judges what comes to the addresses; `None` when none of the workloads is isolated for ingress.
    pub ingress: Option<ClassId>,
    /// The class that judges what they send; `None` when none of the workloads is isolated for egress.
    pub egress: Option<ClassId>,
    /// The addresses.
    pub ranges: Ranges,
}

/// The name of a workload of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// The workload's namespace.
    pub namespace: String,
    /// The workload's name.
    pub name: String,
}

/// What one node must enforce. Every mutation keeps the digest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePolicy {
    pub(crate) endpoints: OrdMap<IpAddr, Arc<Endpoint>>,
    pub(crate) classes: OrdMap<ClassId, Arc<Class>>,
    pub(crate) groups: OrdMap<GroupId, Arc<PeerGroup>>,
    pub(crate) workload_ranges: Arc<Ranges>,
    pub(crate) sources: Arc<Vec<Source>>,
    digest: Digest,
}

impl GroupId {
    /// The id of the group that an expression describes. `terms` are its parts in canonical form and order.
    pub fn of<'a>(terms: impl IntoIterator<Item = &'a str>, ranges: &Ranges) -> GroupId {
        let mut hasher = Hasher::new("group id");
        for term in terms {
            hasher = hasher.field(term.as_bytes());
        }
        // An empty field ends the terms: no term may be taken for the bytes of a range.
        hasher = hasher.field(&[]);
        GroupId(hash_ranges(hasher, ranges).finish().to_be_bytes())
    }
}

impl PeerGroup {
    /// A group without workloads (yet).
    pub fn new(description: String, ranges: Ranges) -> PeerGroup {
        PeerGroup {
            spec: Arc::new(GroupSpec {
                description,
                ranges,
            }),
            addresses: OrdSet::new(),
        }
    }

    /// Whether an address is in the group.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address) || self.spec.ranges.contains(address)
    }

    /// Whether nobody is in it.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.spec.ranges.is_empty()
    }
}

impl Class {
    /// The class's id.
    pub fn id(&self) -> ClassId {
        // A class that does not keep is called what it was before there were others.
        let kind = if self.keep_established {
            "keeping class id"
        } else {
            "class id"
        };
        let mut hasher = Hasher::new(kind)
            .field(self.direction.to_string().as_bytes())
            .field(self.other.as_ref().map_or(&[][..], |id| &id.0));
        for rule in &self.ports {
            hasher = hasher
                .field(&[rule.protocol.number()])
                .field(&rule.first.to_be_bytes())
                .field(&rule.last.to_be_bytes())
                .field(&rule.group.0);
        }
        ClassId(hasher.finish().to_be_bytes())
    }

    /// Every group that the class names, some perhaps more than once.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.other
            .into_iter()
            .chain(self.ports.iter().map(|rule| rule.group))
    }

    /// The group of a port; with no port, of the protocols that have none.
    pub fn group_at(&self, port: Option<(Protocol, u16)>) -> Option<GroupId> {
        let Some((protocol, port)) = port else {
            return self.other;
        };
        let after = self
            .ports
            .partition_point(|rule| (rule.protocol, rule.first) <= (protocol, port));
        let rule = self.ports[..after].last()?;
        (rule.protocol == protocol && rule.last >= port).then_some(rule.group)
    }
}

impl PortRule {
    /// Appends the rule behind those that are there, as a class wants them: joined to the last one where it goes on.
    pub fn append_to(self, rules: &mut Vec<PortRule>) {
        match rules.last_mut() {
            Some(last)
                if (last.protocol, last.group) == (self.protocol, self.group)
                    && last.last.checked_add(1) == Some(self.first) =>
            {
                last.last = self.last;
            }
            _ => rules.push(self),
        }
    }
}

impl Endpoint {
    /// The class in a direction.
    pub fn class(&self, direction: Direction) -> Option<ClassId> {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }

    /// Whether some policy isolates it, in either direction.
    pub fn is_isolated(&self) -> bool {
        self.ingress.is_some() || self.egress.is_some()
    }

    /// Whether it is the same workload's as another: the namespaces and names are equal, and the uids, if both are known.
    /// A workload may change its interface.
    pub fn has_owner_of(&self, other: &Endpoint) -> bool {
        let unknown = self.uid.is_empty() || other.uid.is_empty();
        (&self.namespace, &self.name) == (&other.namespace, &other.name)
            && (unknown || self.uid == other.uid)
    }
}

impl Source {
    /// The class in a direction.
    pub fn class(&self, direction: Direction) -> Option<ClassId> {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }

    /// Some sources in the one form that is canonical: those of the same workloads and classes are one, those without addresses
    /// none.
    pub fn canonical(sources: impl IntoIterator<Item = Source>) -> Vec<Source> {
        let mut sources: Vec<Source> = sources.into_iter().collect();
        sources.sort_unstable();
        sources.dedup_by(|next, one| {
            let is_same = (&next.owners, &next.others) == (&one.owners, &one.others)
                && (next.ingress, next.egress) == (one.ingress, one.egress);
            if is_same {
                one.ranges = one.ranges.union(&next.ranges);
            }
            is_same
        });
        sources.retain(|source| !source.ranges.is_empty());
        sources
    }
}

impl NodePolicy {
    /// The endpoints, by address.
    pub fn endpoints(&self) -> &OrdMap<IpAddr, Arc<Endpoint>> {
        &self.endpoints
    }

    /// The classes, by id.
    pub fn classes(&self) -> &OrdMap<ClassId, Arc<Class>> {
        &self.classes
    }

    /// The peer groups, by id.
    pub fn groups(&self) -> &OrdMap<GroupId, Arc<PeerGroup>> {
        &self.groups
    }

    /// The addresses that belong to workloads of the node, whether known as endpoints yet or not.
    pub fn workload_ranges(&self) -> &Arc<Ranges> {
        &self.workload_ranges
    }

    /// Addresses beside their own that workloads of the node may use: canonical, and disjoint. An address that is an endpoint is
    /// judged as that.
    pub fn sources(&self) -> &Arc<Vec<Source>> {
        &self.sources
    }

    /// The source that an address is in, if it is no endpoint.
    pub fn source_of(&self, address: IpAddr) -> Option<&Source> {
        if self.endpoints.contains_key(&address) {
            return None;
        }
        self.sources
            .iter()
            .find(|source| source.ranges.contains(address))
    }

    /// The digest of all of it.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Adds or replaces an endpoint.
    pub fn set_endpoint(&mut self, address: IpAddr, endpoint: Arc<Endpoint>) {
        self.digest.add(endpoint_entry(address, &endpoint));
        if let Some(old) = self.endpoints.insert(address, endpoint) {
            self.digest.remove(endpoint_entry(address, &old));
        }
    }

    /// Removes an endpoint and returns it.
    pub fn remove_endpoint(&mut self, address: IpAddr) -> Option<Arc<Endpoint>> {
        let old = self.endpoints.remove(&address)?;
        self.digest.remove(endpoint_entry(address, &old));
        Some(old)
    }

    /// Adds a class.
    pub fn add_class(&mut self, id: ClassId, class: Arc<Class>) {
        self.digest.add(class_entry(id, &class));
        if let Some(old) = self.classes.insert(id, class) {
            self.digest.remove(class_entry(id, &old));
        }
    }

    /// Removes a class and returns it.
    pub fn remove_class(&mut self, id: ClassId) -> Option<Arc<Class>> {
        let old = self.classes.remove(&id)?;
        self.digest.remove(class_entry(id, &old));
        Some(old)
    }

    /// Adds a group, or replaces one by another version of it.
    pub fn set_group(&mut self, id: GroupId, group: Arc<PeerGroup>) {
        self.remove_group(id);
        self.digest.add(group_entry(id, &group.spec));
        for &address in &group.addresses {
            self.digest.add(member_entry(id, address));
        }
        self.groups.insert(id, group);
    }

    /// Removes a group and returns it.
    pub fn remove_group(&mut self, id: GroupId) -> Option<Arc<PeerGroup>> {
        let old = self.groups.remove(&id)?;
        self.digest.remove(group_entry(id, &old.spec));
        for &address in &old.addresses {
            self.digest.remove(member_entry(id, address));
        }
        Some(old)
    }

    /// Adds an address to a group. Says whether the group is there and did not have it.
    pub fn add_address(&mut self, id: GroupId, address: IpAddr) -> bool {
        let Some(group) = self.groups.get_mut(&id) else {
            return false;
        };
        if Arc::make_mut(group).addresses.insert(address).is_some() {
            return false;
        }
        self.digest.add(member_entry(id, address));
        true
    }

    /// Removes an address from a group. Says whether the group is there and had it.
    pub fn remove_address(&mut self, id: GroupId, address: IpAddr) -> bool {
        let Some(group) = self.groups.get_mut(&id) else {
            return false;
        };
        if Arc::make_mut(group).addresses.remove(&address).is_none() {
            return false;
        }
        self.digest.remove(member_entry(id, address));
        true
    }

    /// Replaces the workload ranges.
    pub fn set_workload_ranges(&mut self, ranges: Arc<Ranges>) {
        self.digest.remove(ranges_entry(&self.workload_ranges));
        self.digest.add(ranges_entry(&ranges));
        self.workload_ranges = ranges;
    }

    /// Replaces the sources, which are canonical.
    pub fn set_sources(&mut self, sources: Arc<Vec<Source>>) {
        self.digest.remove(sources_entry(&self.sources));
        self.digest.add(sources_entry(&sources));
        self.sources = sources;
    }

    /// Whether the class that judges `local` in a direction allows a packet: the definition of what enforcement does.
    ///
    /// `port` is the connection's destination port, at the pod that has it; `None` for protocols without ports.
    /// An address that is neither an endpoint nor in a source, and one that is not isolated, allow everything; so does traffic
    /// of an address with itself.
    pub fn allows(
        &self,
        direction: Direction,
        local: IpAddr,
        peer: IpAddr,
        port: Option<(Protocol, u16)>,
    ) -> bool {
        let Some(class) = self.class_of(direction, local) else {
            return true;
        };
        local == peer
            || class
                .group_at(port)
                .and_then(|id| self.groups.get(&id))
                .is_some_and(|group| group.contains(peer))
    }

    /// Whether connections of `local` that are established go on in a direction, whatever is allowed to new ones.
    ///
    /// An established connection is one of which the node has seen packets both ways. An endpoint that is not isolated
    /// lets all pass, and so keeps.
    pub fn keeps(&self, direction: Direction, local: IpAddr) -> bool {
        self.class_of(direction, local)
            .is_none_or(|class| class.keep_established)
    }

    /// The classes that judge an address, endpoint or not: ingress, egress.
    pub fn classes_of(&self, address: IpAddr) -> [Option<ClassId>; 2] {
        match self.endpoints.get(&address) {
            Some(endpoint) => [endpoint.ingress, endpoint.egress],
            None => self
                .source_of(address)
                .map_or([None; 2], |source| [source.ingress, source.egress]),
        }
    }

    fn class_of(&self, direction: Direction, local: IpAddr) -> Option<&Arc<Class>> {
        let class = self.classes_of(local)[direction as usize];
        self.classes.get(&class?)
    }
}

pub(crate) fn hash_ranges(mut hasher: Hasher, ranges: &Ranges) -> Hasher {
    for (first, last) in ranges.iter() {
        hasher = hasher.field(&octets(first)).field(&octets(last));
    }
    hasher
}

/// The entry of an endpoint. One without a uid has the entry that it had before there were uids, and one without an
/// interface the entry that it had before there were interfaces: nodes and journals hold it. Where there is an interface the
/// uid is a field even if it is empty, so that neither is taken for the other.
fn endpoint_entry(address: IpAddr, endpoint: &Endpoint) -> u128 {
    let class = |id: Option<ClassId>| id.map_or(Vec::new(), |id| id.0.to_vec());
    let hasher = Hasher::new("endpoint")
        .field(&octets(address))
        .field(endpoint.namespace.as_bytes())
        .field(endpoint.name.as_bytes())
        .field(&class(endpoint.ingress))
        .field(&class(endpoint.egress));
    let (uid, interface) = (endpoint.uid.as_bytes(), endpoint.interface.as_bytes());
    match (uid, interface) {
        ([], []) => hasher.finish(),
        (_, []) => hasher.field(uid).finish(),
        _ => hasher.field(uid).field(interface).finish(),
    }
}

fn class_entry(id: ClassId, class: &Class) -> u128 {
    Hasher::new("class")
        .field(&id.0)
        .field(&class.id().0)
        .finish()
}

fn group_entry(id: GroupId, spec: &GroupSpec) -> u128 {
    let hasher = Hasher::new("group")
        .field(&id.0)
        .field(spec.description.as_bytes());
    hash_ranges(hasher, &spec.ranges).finish()
}

fn member_entry(id: GroupId, address: IpAddr) -> u128 {
    Hasher::new("member")
        .field(&id.0)
        .field(&octets(address))
        .finish()
}

/// The entry of the workload ranges; none when there are none, so that the empty policy's digest is zero.
fn ranges_entry(ranges: &Ranges) -> u128 {
    if ranges.is_empty() {
        return 0;
    }
    hash_ranges(Hasher::new("workload ranges"), ranges).finish()
}

/// The entry of the sources; none when there are none, as nodes that know nothing of them have it.
fn sources_entry(sources: &[Source]) -> u128 {
    if sources.is_empty() {
        return 0;
    }
    let entry = |source: &Source| {
        let class = |id: Option<ClassId>| id.map_or(Vec::new(), |id| id.0.to_vec());
        let owners = source.owners.iter().chain(&source.others);
        let owners = owners.fold(Hasher::new("owners"), |hasher, owner| {
            let hasher = hasher.field(owner.namespace.as_bytes());
            hasher.field(owner.name.as_bytes())
        });
        let hasher = Hasher::new("source")
            .field(&owners.finish().to_be_bytes())
            .field(&class(source.ingress))
            .field(&class(source.egress));
        hash_ranges(hasher, &source.ranges).finish().to_be_bytes()
    };
    let entries = sources.iter().map(entry);
    entries
        .fold(Hasher::new("sources"), |hasher, entry| hasher.field(&entry))
        .finish()
}

/// An address's bytes: 4 or 16.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

macro_rules! hex_id {
    ($($id:ty),*) => {$(
        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )*};
}

hex_id!(GroupId, ClassId);

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(namespace: &str, name: &str, uid: &str) -> Endpoint {
        Endpoint {
            namespace: namespace.into(),
            name: name.into(),
            uid: uid.into(),
            ..Endpoint::default()
        }
    }

    #[test]
    fn another_uid_is_another_workload_and_an_unknown_one_may_be_any() {
        let known = endpoint("a", "web", "1");
        for (other, same) in [
            (endpoint("a", "web", "1"), true),
            (endpoint("a", "web", "2"), false),
            (endpoint("a", "web", ""), true),
            (endpoint("b", "web", "1"), false),
            (endpoint("a", "db", "1"), false),
            (endpoint("b", "web", ""), false),
        ] {
            assert_eq!(known.has_owner_of(&other), same, "{other:?}");
            assert_eq!(other.has_owner_of(&known), same, "{other:?}");
        }
        let unknown = endpoint("a", "web", "");
        assert!(unknown.has_owner_of(&unknown));
        let elsewhere = Endpoint {
            interface: "veth-web".into(),
            ..known.clone()
        };
        assert!(known.has_owner_of(&elsewhere) && elsewhere.has_owner_of(&known));
    }

    #[test]
    fn a_uid_that_is_known_is_in_the_digest() {
        let digest = |uid| {
            let mut policy = NodePolicy::default();
            policy.set_endpoint([10, 0, 0, 1].into(), Arc::new(endpoint("a", "web", uid)));
            policy.digest()
        };
        assert_ne!(digest("1"), digest("2"));
        let before_there_were_uids = "bf47556e89ca809ff4ece90c595bce48";
        assert_eq!(digest("").to_string(), before_there_were_uids);
    }

    #[test]
    fn an_interface_that_is_known_is_in_the_digest() {
        let digest = |uid: &str, interface: &str| {
            let endpoint = Endpoint {
                interface: interface.into(),
                ..endpoint("a", "web", uid)
            };
            let mut policy = NodePolicy::default();
            policy.set_endpoint([10, 0, 0, 1].into(), Arc::new(endpoint));
            policy.digest().to_string()
        };
        // As they were before there were interfaces.
        assert_eq!(digest("", ""), "bf47556e89ca809ff4ece90c595bce48");
        assert_eq!(digest("x", ""), "225484fa13ec50db8275e9b6259234d7");
        let all = [
            ("", ""),
            ("x", ""),
            ("", "x"),
            ("x", "x"),
            ("x", "y"),
            ("", "y"),
        ];
        let digests: std::collections::BTreeSet<_> = all
            .iter()
            .map(|(uid, interface)| digest(uid, interface))
            .collect();
        assert_eq!(digests.len(), all.len(), "one is taken for another");
    }
}
