//! The flows that a change of policy touches, by their source and destination addresses. The set may be too large,
//! never too small. Changes that touch no flow in common roll out side by side. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use imbl::ordmap::DiffItem;
use sallyport_policy::{Direction, Endpoint, GroupId, NodePolicy, PeerGroup};

/// More addresses than this count as all.
const MAX: usize = 4_096;

/// A superset of the flows that a change touches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FlowScope {
    /// All flows.
    all: bool,
    /// The flows from these addresses.
    from: BTreeSet<IpAddr>,
    /// The flows to these addresses.
    to: BTreeSet<IpAddr>,
    /// The last change of a group that was taken in, by direction: most nodes share it.
    taken: BTreeMap<(Direction, GroupId), [Arc<PeerGroup>; 2]>,
}

impl FlowScope {
    /// Adds every flow.
    pub(super) fn touch_all(&mut self) {
        self.all = true;
    }

    /// Adds the flows that a node's change of policy touches.
    pub(super) fn add(&mut self, old: &NodePolicy, new: &NodePolicy) {
        self.all |= old.workload_ranges() != new.workload_ranges();
        self.all |= old.sources() != new.sources();
        let endpoints = (!old.endpoints().ptr_eq(new.endpoints()))
            .then(|| old.endpoints().diff(new.endpoints()));
        for item in endpoints.into_iter().flatten() {
            let (address, before, after) = match item {
                DiffItem::Add(&address, after) => (address, None, Some(&**after)),
                DiffItem::Remove(&address, before) => (address, Some(&**before), None),
                DiffItem::Update {
                    old: (&address, before),
                    new: (_, after),
                } => (address, Some(&**before), Some(&**after)),
            };
            for direction in Direction::BOTH {
                let class = |of: Option<&Endpoint>| of.map(|endpoint| endpoint.class(direction));
                if class(before) != class(after) {
                    self.judged(direction).insert(address);
                }
            }
        }
        for item in old.groups().diff(new.groups()) {
            // Groups that come and go do so with the classes that name them.
            if let DiffItem::Update {
                old: (&id, before),
                new: (_, after),
            } = item
            {
                for direction in Direction::BOTH {
                    if !self.has_taken(direction, id, [before, after])
                        && (is_used(old, direction, id) || is_used(new, direction, id))
                    {
                        self.members(direction, id, [before, after]);
                    }
                }
            }
        }
        if self.from.len() + self.to.len() > MAX {
            self.all = true;
        }
    }

    /// Whether the change of the group was taken in last.
    fn has_taken(&self, direction: Direction, id: GroupId, change: [&Arc<PeerGroup>; 2]) -> bool {
        let same = |taken: &[Arc<PeerGroup>; 2]| {
            let mut both = taken.iter().zip(change);
            both.all(|(taken, version)| Arc::ptr_eq(taken, version))
        };
        self.taken.get(&(direction, id)).is_some_and(same)
    }

    /// Takes in the members that come and go, whose flows with those who name the group are touched.
    fn members(&mut self, direction: Direction, id: GroupId, change: [&Arc<PeerGroup>; 2]) {
        let (add, remove) = change[0].member_changes(change[1]);
        self.peers(direction).extend(add.iter().chain(&remove));
        self.taken.insert((direction, id), change.map(Arc::clone));
    }

    /// Adds the flows of another scope.
    pub(super) fn merge(&mut self, other: FlowScope) {
        self.all |= other.all;
        self.from.extend(other.from);
        self.to.extend(other.to);
    }

    /// Whether both may touch one flow.
    pub(super) fn overlaps(&self, other: &FlowScope) -> bool {
        self.all
            || other.all
            // From here to there there is a flow that both touch.
            || !self.from.is_empty() && !other.to.is_empty()
            || !self.to.is_empty() && !other.from.is_empty()
            || !self.from.is_disjoint(&other.from)
            || !self.to.is_disjoint(&other.to)
    }

    /// The end of flows at which endpoints are judged in a direction.
    fn judged(&mut self, direction: Direction) -> &mut BTreeSet<IpAddr> {
        match direction {
            Direction::Ingress => &mut self.to,
            Direction::Egress => &mut self.from,
        }
    }

    /// The end of flows at which their peers are.
    fn peers(&mut self, direction: Direction) -> &mut BTreeSet<IpAddr> {
        match direction {
            Direction::Ingress => &mut self.from,
            Direction::Egress => &mut self.to,
        }
    }
}

fn is_used(policy: &NodePolicy, direction: Direction, id: GroupId) -> bool {
    policy
        .classes()
        .values()
        .any(|class| class.direction == direction && class.groups().any(|group| group == id))
}

#[cfg(test)]
mod tests {
    use sallyport_policy::{Owner, Source};

    use super::*;

    #[test]
    fn a_change_of_sources_touches_all_flows() {
        let source = |name: &str| Source {
            owners: vec![Owner {
                namespace: "a".into(),
                name: name.into(),
            }],
            ranges: sallyport_policy::Ranges::everything(),
            ..Source::default()
        };
        let policy = |sources: Vec<Source>| {
            let mut policy = NodePolicy::default();
            policy.set_sources(Arc::new(sources));
            policy
        };
        let other = FlowScope {
            from: BTreeSet::from([[10, 0, 0, 1].into()]),
            ..FlowScope::default()
        };
        for (old, new, overlaps) in [
            (vec![], vec![], false),
            (vec![source("x")], vec![source("x")], false),
            (vec![], vec![source("x")], true),
            (vec![source("x")], vec![source("y")], true),
            (vec![source("x")], vec![], true),
        ] {
            let mut scope = FlowScope::default();
            scope.add(&policy(old), &policy(new));
            assert_eq!(scope.overlaps(&other), overlaps);
        }
    }
}
