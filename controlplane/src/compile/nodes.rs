//! The nodes and their policies: who is an endpoint where, and which classes and groups a node therefore knows. The
//! only place that changes a NodePolicy; it decides nothing about what is allowed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use sallyport_proto::{
    Ranges,
    policy::{Endpoint, NodePolicy, SharedGroup},
};

use super::{
    classes::{Classes, Group, Judge},
    full::workload_ranges,
    slab::{Id, Slab},
    workloads::{Placed, Row},
};
use crate::model::Node;

/// A node that an object or a workload speaks of.
#[derive(Debug, Default)]
pub(super) struct Place {
    name: String,
    /// The workloads that name it.
    rows: BTreeSet<Id<Row>>,
    /// What its workloads' addresses are taken from, if it is an object.
    ranges: Option<Arc<Ranges>>,
    /// What it must enforce, if it is an object.
    policy: Option<Arc<NodePolicy>>,
    /// How many endpoints have a class.
    judges: BTreeMap<Id<Judge>, i32>,
    /// How many of these classes name a group.
    groups: BTreeMap<Id<Group>, i32>,
}

/// What a transaction changes of a node.
#[derive(Debug, Default)]
pub(super) struct PlaceWork {
    removed: Vec<IpAddr>,
    set: Vec<(IpAddr, Arc<Endpoint>)>,
    judges: BTreeMap<Id<Judge>, i32>,
    groups: Vec<Id<Group>>,
}

/// The changes of a transaction, by node.
pub(super) type Changes = BTreeMap<Id<Place>, PlaceWork>;

/// The groups whose members changed, as they were before.
pub(super) type OldGroups = BTreeMap<Id<Group>, SharedGroup>;

/// All nodes.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    places: Slab<Place>,
    by_name: BTreeMap<String, Id<Place>>,
}

/// Takes note that a workload stops being one endpoint and becomes another.
pub(super) fn change(old: Option<&Placed>, new: Option<&Placed>, changes: &mut Changes) {
    if let Some(old) = old {
        let work = changes.entry(old.place).or_default();
        work.removed.extend(&old.addresses);
        for judge in old.judges.into_iter().flatten() {
            *work.judges.entry(judge).or_insert(0) -= 1;
        }
    }
    if let Some(new) = new {
        let work = changes.entry(new.place).or_default();
        let endpoints = new.addresses.iter();
        work.set
            .extend(endpoints.map(|&address| (address, new.endpoint.clone())));
        for judge in new.judges.into_iter().flatten() {
            *work.judges.entry(judge).or_insert(0) += 1;
        }
    }
}

impl Nodes {
    /// What a node must enforce.
    pub(super) fn policy(&self, name: &str) -> Option<&Arc<NodePolicy>> {
        self.places[*self.by_name.get(name)?].policy.as_ref()
    }

    /// What every node must enforce, by name.
    pub(super) fn policies(&self) -> impl Iterator<Item = (&str, &Arc<NodePolicy>)> {
        self.by_name
            .iter()
            .filter_map(|(name, &id)| Some((name.as_str(), self.places[id].policy.as_ref()?)))
    }

    /// Whether a node is an object, and so has a policy.
    pub(super) fn is_object(&self, id: Id<Place>) -> bool {
        self.places[id].ranges.is_some()
    }

    /// Takes note of a node's object, or that it is gone. Returns the workloads that may become endpoints, or cease.
    pub(super) fn set(
        &mut self,
        name: &str,
        node: Option<&Node>,
        changes: &mut Changes,
    ) -> Vec<Id<Row>> {
        let id = self.place(name);
        changes.entry(id).or_default();
        let place = &mut self.places[id];
        let came_or_went = place.ranges.is_some() != node.is_some();
        place.ranges = node.map(|node| Arc::new(workload_ranges(node)));
        if !came_or_went {
            return Vec::new();
        }
        place.rows.iter().copied().collect()
    }

    /// A workload names a node, no longer another.
    pub(super) fn move_row(
        &mut self,
        row: Id<Row>,
        old: Option<Id<Place>>,
        new: Option<&str>,
        changes: &mut Changes,
    ) -> Option<Id<Place>> {
        let new = new.map(|name| self.place(name));
        if old == new {
            return new;
        }
        if let Some(old) = old {
            self.places[old].rows.remove(&row);
            changes.entry(old).or_default();
        }
        if let Some(new) = new {
            self.places[new].rows.insert(row);
        }
        new
    }

    /// Carries the changes out. Returns the nodes whose policy is another now, or that came or went.
    pub(super) fn apply(
        &mut self,
        mut changes: Changes,
        old_groups: &OldGroups,
        classes: &mut Classes,
    ) -> BTreeSet<String> {
        for &group in old_groups.keys() {
            for &place in &classes.group(group).places {
                changes.entry(place).or_default().groups.push(group);
            }
        }
        let mut changed = BTreeSet::new();
        for (id, work) in changes {
            let place = &mut self.places[id];
            if place.apply(id, work, old_groups, classes) {
                changed.insert(place.name.clone());
            }
            if place.rows.is_empty() && place.ranges.is_none() {
                let gone = self.places.remove(id);
                self.by_name.remove(&gone.name);
            }
        }
        changed
    }

    fn place(&mut self, name: &str) -> Id<Place> {
        if let Some(&id) = self.by_name.get(name) {
            return id;
        }
        let id = self.places.insert(Place {
            name: name.into(),
            ..Place::default()
        });
        self.by_name.insert(name.into(), id);
        id
    }
}

impl Place {
    /// Returns whether the policy is another now.
    fn apply(
        &mut self,
        id: Id<Place>,
        work: PlaceWork,
        old_groups: &OldGroups,
        classes: &mut Classes,
    ) -> bool {
        let mut policy = self.policy.as_deref().cloned().unwrap_or_default();
        for address in work.removed {
            policy.remove_endpoint(address);
        }
        for (address, endpoint) in work.set {
            policy.set_endpoint(address, endpoint);
        }
        for group in work.groups {
            policy.share_group(&classes.group(group).shared, old_groups.get(&group));
        }
        let mut groups = BTreeMap::new();
        for (judge, change) in work.judges {
            match count(&mut self.judges, judge, change) {
                Turn::Came => {
                    let judge = classes.get(judge);
                    policy.add_class(judge.id, judge.class.clone());
                    for &group in &judge.groups {
                        *groups.entry(group).or_insert(0) += 1;
                    }
                }
                Turn::Went => {
                    let judge = classes.get(judge);
                    policy.remove_class(judge.id);
                    for &group in &judge.groups {
                        *groups.entry(group).or_insert(0) -= 1;
                    }
                }
                Turn::Stayed => {}
            }
        }
        for (group, change) in groups {
            let turn = count(&mut self.groups, group, change);
            let group = classes.group_mut(group);
            match turn {
                Turn::Came => {
                    policy.share_group(&group.shared, None);
                    group.places.insert(id);
                }
                Turn::Went => {
                    policy.unshare_group(&group.shared);
                    group.places.remove(&id);
                }
                Turn::Stayed => {}
            }
        }
        self.put(policy)
    }

    /// Puts a policy in place, if the node is to have one. Returns whether it is another.
    fn put(&mut self, mut policy: NodePolicy) -> bool {
        let Some(ranges) = &self.ranges else {
            return self.policy.take().is_some();
        };
        if policy.workload_ranges() != ranges {
            policy.set_workload_ranges(ranges.clone());
        }
        if let Some(old) = &self.policy
            && old.digest() == policy.digest()
        {
            return false;
        }
        self.policy = Some(Arc::new(policy));
        true
    }
}

/// How the need for something turned.
enum Turn {
    Came,
    Went,
    Stayed,
}

fn count<T>(counts: &mut BTreeMap<Id<T>, i32>, id: Id<T>, change: i32) -> Turn {
    let count = counts.entry(id).or_insert(0);
    let before = *count;
    *count += change;
    match (before, *count) {
        (0, 0) => {
            counts.remove(&id);
            Turn::Stayed
        }
        (_, 0) => {
            counts.remove(&id);
            Turn::Went
        }
        (0, _) => Turn::Came,
        _ => Turn::Stayed,
    }
}
