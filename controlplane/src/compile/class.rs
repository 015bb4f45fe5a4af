//! The canonical class of what rules allow together: disjoint ports, each with the one union of its peers. Pure; it
//! knows neither workloads nor nodes.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use sallyport_policy::{Class, Direction, GroupId, PortRule, Protocol};

use super::{
    peers::{Peers, Terms},
    rule::{Grant, Ports},
    trie::Trie,
    union::{Columns, Union},
};

/// A class and the meaning of the groups that it names.
pub(super) struct Built {
    /// The class; `None` when it restricts nothing, which is the same as no class.
    pub(super) class: Option<Class>,
    /// The groups, each once. Neighbours have most of their terms in common.
    pub(super) groups: Vec<BuiltGroup>,
}

/// A group that a class names.
pub(super) struct BuiltGroup {
    /// The meaning.
    pub(super) peers: Arc<Peers>,
    /// The terms with those that others absorb.
    pub(super) terms: Terms,
}

/// Collects the unions that a class names, each once.
#[derive(Default)]
struct Unions {
    /// By the peers that they are the union of.
    known: HashMap<u128, Option<GroupId>>,
    ids: HashSet<GroupId>,
    groups: Vec<BuiltGroup>,
}

/// The peers for whom a grant is open at a port.
#[derive(Clone)]
struct Open<'a> {
    peers: &'a HashMap<GroupId, &'a Arc<Peers>>,
    /// The number of open grants for each group.
    grants: HashMap<GroupId, i32>,
    /// The groups with an open grant.
    ids: Trie<()>,
    /// A union that was asked for earlier.
    union: Union<'a>,
    /// The groups that the union lacks (`true`), and those that it must lose (`false`).
    behind: BTreeMap<GroupId, bool>,
}

/// The class that `grants` allow together. With `keep_established` the grants judge new connections only.
pub(super) fn build(direction: Direction, keep_established: bool, grants: &[Grant]) -> Built {
    let peers: HashMap<GroupId, &Arc<Peers>> = grants
        .iter()
        .map(|grant| (grant.peers.id(), &grant.peers))
        .collect();
    let columns = Columns::of(peers.values().copied());
    let mut unions = Unions::default();
    let mut base = Open {
        peers: &peers,
        grants: HashMap::new(),
        ids: Trie::default(),
        union: Union::new(&columns),
        behind: BTreeMap::new(),
    };
    for grant in grants.iter().filter(|grant| grant.ports == Ports::All) {
        base.change(grant.peers.id(), 1);
    }
    let other = unions.group(&mut base);
    let mut ports = Vec::new();
    for protocol in Protocol::ALL {
        if speaks_of(grants, protocol) {
            let starts = starts(grants, protocol);
            sweep(protocol, base.clone(), starts, &mut unions, &mut ports);
        } else if let Some(group) = other {
            ports.push(PortRule {
                protocol,
                first: 0,
                last: u16::MAX,
                group,
            });
        }
    }
    let class = Class {
        direction,
        keep_established,
        other,
        ports,
    };
    if restricts_nothing(&class) {
        return Built {
            class: None,
            groups: Vec::new(),
        };
    }
    Built {
        class: Some(class),
        groups: unions.groups,
    }
}

/// Whether any grant is of ports of a protocol.
fn speaks_of(grants: &[Grant], protocol: Protocol) -> bool {
    let mut ports = grants.iter().map(|grant| grant.ports);
    ports.any(|ports| matches!(ports, Ports::Span(of, ..) if of == protocol))
}

/// The changes of the open grants of a protocol, by the first port of each.
fn starts(grants: &[Grant], protocol: Protocol) -> BTreeMap<u16, Vec<(GroupId, i32)>> {
    let mut starts: BTreeMap<u16, Vec<(GroupId, i32)>> = BTreeMap::from([(0, Vec::new())]);
    for grant in grants {
        match grant.ports {
            Ports::Span(of, first, last) if of == protocol => {
                let id = grant.peers.id();
                starts.entry(first).or_default().push((id, 1));
                if let Some(next) = last.checked_add(1) {
                    starts.entry(next).or_default().push((id, -1));
                }
            }
            _ => {}
        }
    }
    starts
}

/// Walks a protocol's ports from one change to the next.
fn sweep(
    protocol: Protocol,
    mut open: Open<'_>,
    starts: BTreeMap<u16, Vec<(GroupId, i32)>>,
    unions: &mut Unions,
    ports: &mut Vec<PortRule>,
) {
    let mut starts = starts.into_iter().peekable();
    while let Some((first, changes)) = starts.next() {
        for (id, change) in changes {
            open.change(id, change);
        }
        let last = starts.peek().map_or(u16::MAX, |(next, _)| next - 1);
        let Some(group) = unions.group(&mut open) else {
            continue;
        };
        PortRule {
            protocol,
            first,
            last,
            group,
        }
        .append_to(ports);
    }
}

impl Open<'_> {
    /// Opens grants for some peers, or closes them.
    fn change(&mut self, id: GroupId, change: i32) {
        let grants = self.grants.entry(id).or_insert(0);
        let before = *grants;
        *grants += change;
        let is_open = *grants > 0;
        if !is_open {
            self.grants.remove(&id);
        }
        if is_open == (before > 0) {
            return;
        }
        let key = [u128::from_be_bytes(id.0), 0];
        if is_open {
            self.ids.insert(key, ());
        } else {
            self.ids.remove(key);
        }
        // A peer that comes and goes again between two unions is in neither.
        if self.behind.remove(&id).is_none() {
            self.behind.insert(id, is_open);
        }
    }

    /// The union of them all.
    fn union(&mut self) -> BuiltGroup {
        for (id, is_open) in std::mem::take(&mut self.behind) {
            let peers = self.peers[&id];
            if is_open {
                self.union.add(peers);
            } else {
                self.union.remove(peers);
            }
        }
        let (peers, terms) = self.union.peers();
        BuiltGroup { peers, terms }
    }
}

impl Unions {
    /// The group of everyone for whom a grant is open; `None` for nobody.
    fn group(&mut self, open: &mut Open<'_>) -> Option<GroupId> {
        let key = open.ids.hash();
        if let Some(known) = self.known.get(&key) {
            return *known;
        }
        let id = (!open.ids.is_empty()).then(|| {
            let group = open.union();
            let id = group.peers.id();
            if self.ids.insert(id) {
                self.groups.push(group);
            }
            id
        });
        self.known.insert(key, id);
        id
    }
}

fn restricts_nothing(class: &Class) -> bool {
    let everyone = Peers::everyone().id();
    class.other == Some(everyone)
        && class.ports.len() == Protocol::ALL.len()
        && class
            .ports
            .iter()
            .all(|rule| (rule.first, rule.last, rule.group) == (0, u16::MAX, everyone))
}
