//! The nodes and their policies: the endpoints of each node, and the classes and groups that these need. No other file
//! changes a NodePolicy. It does not decide what a class allows.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use sallyport_policy::{Coverage, NodePolicy, Ranges};

use super::{
    classes::Classes,
    endpoints::{Changes, NodeChanges, OldGroups},
    ids::{ClassSlot, GroupSlot, NodeId, WorkloadId},
    rule,
    slab::Slab,
};
use crate::model::Node;

/// With fewer endpoints to set than this, threads cost more than they save (and so does asking how many there are).
const WORTH_A_THREAD: usize = 5_000;

/// A node that is an object, or that a workload names.
#[derive(Debug, Default)]
pub(super) struct NodeEntry {
    name: String,
    /// The workloads on it.
    workloads: BTreeSet<WorkloadId>,
    /// Its workload ranges, if it is an object.
    ranges: Option<Arc<Ranges>>,
    /// Its own addresses, if it is an object.
    own: Ranges,
    /// Its policy, if it is an object.
    policy: Option<Arc<NodePolicy>>,
    /// The number of endpoints and sources that have a class.
    class_slots: BTreeMap<ClassSlot, i32>,
    /// The number of these classes that name a group.
    groups: BTreeMap<GroupSlot, i32>,
}

/// All nodes.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    entries: Slab<NodeId, NodeEntry>,
    by_name: BTreeMap<String, NodeId>,
    /// The workload ranges of all that are objects.
    ranges: Coverage,
    /// The own addresses of all that are objects.
    own: Coverage,
}

impl Nodes {
    /// The policy of a node.
    pub(super) fn policy(&self, name: &str) -> Option<&Arc<NodePolicy>> {
        self.entries[*self.by_name.get(name)?].policy.as_ref()
    }

    /// The policy of every node, by name.
    pub(super) fn policies(&self) -> impl Iterator<Item = (&str, &Arc<NodePolicy>)> {
        self.by_name
            .iter()
            .filter_map(|(name, &id)| Some((name.as_str(), self.entries[id].policy.as_ref()?)))
    }

    /// Whether a node is an object, and so has a policy.
    pub(super) fn is_object(&self, id: NodeId) -> bool {
        self.entries[id].ranges.is_some()
    }

    /// The workload ranges of a node, if it is an object.
    pub(super) fn ranges(&self, id: NodeId) -> Option<&Ranges> {
        self.entries[id].ranges.as_deref()
    }

    /// The workload ranges of all nodes.
    pub(super) fn all_ranges(&self) -> Ranges {
        self.ranges.union()
    }

    /// The own addresses of all nodes.
    pub(super) fn own_addresses(&self) -> Ranges {
        self.own.union()
    }

    /// Takes note of a node's object, or that it is gone. Returns the workloads that may become endpoints, or cease,
    /// and whether the node has other workload ranges, or other addresses.
    pub(super) fn set(
        &mut self,
        name: &str,
        node: Option<&Node>,
        changes: &mut Changes,
    ) -> (Vec<WorkloadId>, bool) {
        let id = self.intern(name);
        changes.entry(id).or_default();
        let entry = &mut self.entries[id];
        let new = node.map(|node| Arc::new(workload_ranges(node)));
        let old = std::mem::replace(&mut entry.ranges, new);
        let new = &entry.ranges;
        let is_ranged =
            old.as_deref().unwrap_or(&Ranges::EMPTY) != new.as_deref().unwrap_or(&Ranges::EMPTY);
        if is_ranged {
            old.iter().for_each(|old| self.ranges.remove(old));
            new.iter().for_each(|new| self.ranges.add(new));
        }
        let own = node.map_or(Ranges::EMPTY, own_addresses);
        let is_ranged = is_ranged || own != entry.own;
        let before = std::mem::replace(&mut entry.own, own);
        self.own.remove(&before);
        self.own.add(&entry.own);
        if old.is_some() == new.is_some() {
            return (Vec::new(), is_ranged);
        }
        (entry.workloads.iter().copied().collect(), is_ranged)
    }

    /// A workload names a node, no longer another.
    pub(super) fn move_workload(
        &mut self,
        workload: WorkloadId,
        old: Option<NodeId>,
        new: Option<&str>,
        changes: &mut Changes,
    ) -> Option<NodeId> {
        let new = new.map(|name| self.intern(name));
        if old == new {
            return new;
        }
        if let Some(old) = old {
            self.entries[old].workloads.remove(&workload);
            changes.entry(old).or_default();
        }
        if let Some(new) = new {
            self.entries[new].workloads.insert(workload);
        }
        new
    }

    /// Applies the changes. Returns the nodes whose policy changed, by name; `None` for nodes that are deleted.
    pub(super) fn apply(
        &mut self,
        mut changes: Changes,
        old_groups: &OldGroups,
        classes: &mut Classes,
    ) -> Vec<(String, Option<Arc<NodePolicy>>)> {
        for &group in old_groups.keys() {
            for &node in &classes.group(group).nodes {
                changes.entry(node).or_default().groups.push(group);
            }
        }
        let jobs = changes.into_iter().map(|(id, changes)| {
            let entry = std::mem::take(&mut self.entries[id]);
            Job { id, entry, changes }
        });
        let mut changed = Vec::new();
        for (job, outcome) in run(jobs.collect(), old_groups, classes) {
            for group in outcome.came {
                classes.group_mut(group).nodes.insert(job.id);
            }
            for group in outcome.went {
                classes.group_mut(group).nodes.remove(&job.id);
            }
            if outcome.is_changed {
                changed.push((job.entry.name.clone(), job.entry.policy.clone()));
            }
            if job.entry.workloads.is_empty() && job.entry.ranges.is_none() {
                self.by_name.remove(&job.entry.name);
                self.entries.remove(job.id);
            } else {
                self.entries[job.id] = job.entry;
            }
        }
        changed.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        changed
    }

    fn intern(&mut self, name: &str) -> NodeId {
        if let Some(&id) = self.by_name.get(name) {
            return id;
        }
        let id = self.entries.insert(NodeEntry {
            name: name.into(),
            ..NodeEntry::default()
        });
        self.by_name.insert(name.into(), id);
        id
    }
}

/// The changes of one node. Jobs share nothing, and can run in parallel.
struct Job {
    id: NodeId,
    entry: NodeEntry,
    changes: NodeChanges,
}

/// The result of a job.
#[derive(Default)]
struct Outcome {
    /// Whether the policy changed.
    is_changed: bool,
    /// The groups that the node references now, and did not before.
    came: Vec<GroupSlot>,
    /// The groups that the node references no more.
    went: Vec<GroupSlot>,
}

/// Runs the jobs; many of them in parallel.
fn run(mut jobs: Vec<Job>, old: &OldGroups, classes: &Classes) -> Vec<(Job, Outcome)> {
    let apply = |mut job: Job| {
        let changes = std::mem::take(&mut job.changes);
        let outcome = job.entry.apply(changes, old, classes);
        (job, outcome)
    };
    let endpoints: usize = jobs.iter().map(|job| job.changes.set.len()).sum();
    if endpoints < WORTH_A_THREAD {
        return jobs.into_iter().map(apply).collect();
    }
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get());
    let size = jobs.len().div_ceil(threads);
    std::thread::scope(|scope| {
        let mut parts = Vec::new();
        while !jobs.is_empty() {
            let part = jobs.split_off(jobs.len().saturating_sub(size));
            parts.push(scope.spawn(move || part.into_iter().map(apply).collect::<Vec<_>>()));
        }
        let done = parts.into_iter();
        done.flat_map(|part| part.join().expect("a job does not panic"))
            .collect()
    })
}

impl NodeEntry {
    fn apply(
        &mut self,
        changes: NodeChanges,
        old_groups: &OldGroups,
        classes: &Classes,
    ) -> Outcome {
        let mut policy = self.policy.as_deref().cloned().unwrap_or_default();
        for address in changes.removed {
            policy.remove_endpoint(address);
        }
        for (address, endpoint) in changes.set {
            policy.set_endpoint(address, endpoint);
        }
        if let Some(sources) = changes.sources
            && *policy.sources() != sources
        {
            policy.set_sources(sources);
        }
        for group in changes.groups {
            policy.share_group(&classes.group(group).shared, old_groups.get(&group));
        }
        let groups = self.count_classes(changes.class_slots, classes, &mut policy);
        let mut outcome = self.count_groups(groups, classes, &mut policy);
        outcome.is_changed = self.put(policy);
        outcome
    }

    /// Adds the classes that endpoints and sources have now, removes those that none has any more. Returns what that
    /// changes in the need for groups.
    fn count_classes(
        &mut self,
        changes: BTreeMap<ClassSlot, i32>,
        classes: &Classes,
        policy: &mut NodePolicy,
    ) -> BTreeMap<GroupSlot, i32> {
        let mut groups = BTreeMap::new();
        for (class_slot, change) in changes {
            let ref_change = count(&mut self.class_slots, class_slot, change);
            if ref_change == RefChange::Other {
                continue;
            }
            let class = classes.get(class_slot);
            let step = if ref_change == RefChange::First {
                policy.add_class(class.id, class.class.clone());
                1
            } else {
                policy.remove_class(class.id);
                -1
            };
            for &group in &class.groups {
                *groups.entry(group).or_insert(0) += step;
            }
        }
        groups
    }

    /// Adds the groups that classes name now, removes those that none names any more.
    fn count_groups(
        &mut self,
        changes: BTreeMap<GroupSlot, i32>,
        classes: &Classes,
        policy: &mut NodePolicy,
    ) -> Outcome {
        let mut outcome = Outcome::default();
        for (id, change) in changes {
            let shared = &classes.group(id).shared;
            match count(&mut self.groups, id, change) {
                RefChange::First => {
                    policy.share_group(shared, None);
                    outcome.came.push(id);
                }
                RefChange::Last => {
                    policy.unshare_group(shared);
                    outcome.went.push(id);
                }
                RefChange::Other => {}
            }
        }
        outcome
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

/// The change of a number of references.
#[derive(PartialEq)]
enum RefChange {
    /// From zero to more.
    First,
    /// To zero from more.
    Last,
    Other,
}

fn count<K: Ord + Copy>(counts: &mut BTreeMap<K, i32>, id: K, change: i32) -> RefChange {
    let count = counts.entry(id).or_insert(0);
    let before = *count;
    *count += change;
    match (before, *count) {
        (0, 0) => {
            counts.remove(&id);
            RefChange::Other
        }
        (_, 0) => {
            counts.remove(&id);
            RefChange::Last
        }
        (0, _) => RefChange::First,
        _ => RefChange::Other,
    }
}

/// A node's own addresses.
pub(super) fn own_addresses(node: &Node) -> Ranges {
    let one = |&address: &IpAddr| Ranges::span(address, address).expect("one address is a range");
    let ranges: Vec<Ranges> = node.addresses.iter().map(one).collect();
    Ranges::union_all(&ranges)
}

/// The ranges that a node's workloads take their addresses from.
pub(super) fn workload_ranges(node: &Node) -> Ranges {
    let ranges: Vec<Ranges> = node.workload_cidrs.iter().map(rule::range).collect();
    Ranges::union_all(&ranges)
}
