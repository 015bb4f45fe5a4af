//! The canonical class of what rules allow together: disjoint ports, each with the one union of its peers. Pure; it
//! knows neither workloads nor nodes.

use std::{collections::BTreeMap, sync::Arc};

use sallyport_proto::policy::{Class, Direction, GroupId, PortRule, Protocol};

use super::{
    peers::Peers,
    rule::{Grant, Ports},
};

/// A class and the meaning of the groups that it names.
pub(super) struct Built {
    /// The class; `None` when it restricts nothing, which is the same as no class.
    pub(super) class: Option<Class>,
    /// The groups.
    pub(super) groups: BTreeMap<GroupId, Arc<Peers>>,
}

/// Collects the unions that a class names, each once.
#[derive(Default)]
struct Unions<'a> {
    /// By the sets that they are the union of.
    known: BTreeMap<Vec<GroupId>, Option<GroupId>>,
    parts: BTreeMap<GroupId, &'a Arc<Peers>>,
    groups: BTreeMap<GroupId, Arc<Peers>>,
}

/// What `grants` allow together, to new connections only if it is to `keep` those that are established.
pub(super) fn build(direction: Direction, keep: bool, grants: &[Grant]) -> Built {
    let mut unions = Unions::default();
    for grant in grants {
        unions.parts.insert(grant.peers.id(), &grant.peers);
    }
    let mut base = BTreeMap::new();
    for grant in grants.iter().filter(|grant| grant.ports == Ports::All) {
        *base.entry(grant.peers.id()).or_insert(0) += 1;
    }
    let other = unions.union(&base);
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
        keep,
        other,
        ports,
    };
    if restricts_nothing(&class) {
        return Built {
            class: None,
            groups: BTreeMap::new(),
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

/// How many grants are open for each group.
type Open = BTreeMap<GroupId, i32>;

/// Where the open grants of a protocol change, and by what.
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
    mut open: Open,
    starts: BTreeMap<u16, Vec<(GroupId, i32)>>,
    unions: &mut Unions<'_>,
    ports: &mut Vec<PortRule>,
) {
    let mut starts = starts.into_iter().peekable();
    while let Some((first, changes)) = starts.next() {
        for (id, change) in changes {
            let count = open.entry(id).or_insert(0);
            *count += change;
            if *count == 0 {
                open.remove(&id);
            }
        }
        let last = starts.peek().map_or(u16::MAX, |(next, _)| next - 1);
        let Some(group) = unions.union(&open) else {
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

impl Unions<'_> {
    /// The group of everyone for whom a grant is open; `None` for nobody.
    fn union(&mut self, open: &Open) -> Option<GroupId> {
        let key: Vec<GroupId> = open.keys().copied().collect();
        if let Some(known) = self.known.get(&key) {
            return *known;
        }
        let parts: Vec<&Arc<Peers>> = key.iter().map(|id| self.parts[id]).collect();
        let id = (!parts.is_empty()).then(|| {
            let union = Peers::union(&parts);
            let id = union.id();
            self.groups.insert(id, union);
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
