//! The nodes and their policies: who is an endpoint where, and which classes and groups a node therefore knows. The
//! only place that changes a NodePolicy; it decides nothing about what is allowed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use sallyport_policy::{Coverage, NodePolicy, Ranges};

use super::{
    classes::Classes,
    endpoints::{Changes, OldGroups, PlaceWork},
    full::{own_addresses, workload_ranges},
    ids::{ClassSlot, GroupSlot, NodeId, WorkloadId},
    slab::Slab,
};
use crate::model::Node;

/// With fewer endpoints to set than this, threads cost more than they save (and so does asking how many there are).
const WORTH_A_THREAD: usize = 5_000;

/// A node that an object or a workload speaks of.
#[derive(Debug, Default)]
pub(super) struct Place {
    name: String,
    /// The workloads that name it.
    rows: BTreeSet<WorkloadId>,
    /// What its workloads' addresses are taken from, if it is an object.
    ranges: Option<Arc<Ranges>>,
    /// Its own addresses, if it is an object.
    own: Ranges,
    /// What it must enforce, if it is an object.
    policy: Option<Arc<NodePolicy>>,
    /// How many endpoints and sources have a class.
    judges: BTreeMap<ClassSlot, i32>,
    /// How many of these classes name a group.
    groups: BTreeMap<GroupSlot, i32>,
}

/// All nodes.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    places: Slab<NodeId, Place>,
    by_name: BTreeMap<String, NodeId>,
    /// The workload ranges of all that are objects.
    ranges: Coverage,
    /// The own addresses of all that are objects.
    own: Coverage,
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
    pub(super) fn is_object(&self, id: NodeId) -> bool {
        self.places[id].ranges.is_some()
    }

    /// The workload ranges of a node, if it is an object.
    pub(super) fn ranges(&self, id: NodeId) -> Option<&Ranges> {
        self.places[id].ranges.as_deref()
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
        let id = self.place(name);
        changes.entry(id).or_default();
        let place = &mut self.places[id];
        let new = node.map(|node| Arc::new(workload_ranges(node)));
        let old = std::mem::replace(&mut place.ranges, new);
        let new = &place.ranges;
        let is_ranged =
            old.as_deref().unwrap_or(&Ranges::EMPTY) != new.as_deref().unwrap_or(&Ranges::EMPTY);
        if is_ranged {
            old.iter().for_each(|old| self.ranges.remove(old));
            new.iter().for_each(|new| self.ranges.add(new));
        }
        let own = node.map_or(Ranges::EMPTY, own_addresses);
        let is_ranged = is_ranged || own != place.own;
        let before = std::mem::replace(&mut place.own, own);
        self.own.remove(&before);
        self.own.add(&place.own);
        if old.is_some() == new.is_some() {
            return (Vec::new(), is_ranged);
        }
        (place.rows.iter().copied().collect(), is_ranged)
    }

    /// A workload names a node, no longer another.
    pub(super) fn move_row(
        &mut self,
        row: WorkloadId,
        old: Option<NodeId>,
        new: Option<&str>,
        changes: &mut Changes,
    ) -> Option<NodeId> {
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
        let jobs = changes.into_iter().map(|(id, work)| {
            let place = std::mem::take(&mut self.places[id]);
            Job { id, place, work }
        });
        let mut changed = BTreeSet::new();
        for (job, outcome) in run(jobs.collect(), old_groups, classes) {
            for group in outcome.came {
                classes.group_mut(group).places.insert(job.id);
            }
            for group in outcome.went {
                classes.group_mut(group).places.remove(&job.id);
            }
            if outcome.is_changed {
                changed.insert(job.place.name.clone());
            }
            if job.place.rows.is_empty() && job.place.ranges.is_none() {
                self.by_name.remove(&job.place.name);
                self.places.remove(job.id);
            } else {
                self.places[job.id] = job.place;
            }
        }
        changed
    }

    fn place(&mut self, name: &str) -> NodeId {
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

/// The work on one node, to be done apart from all others.
struct Job {
    id: NodeId,
    place: Place,
    work: PlaceWork,
}

/// What came of it.
#[derive(Default)]
struct Outcome {
    /// The policy is another now.
    is_changed: bool,
    /// The groups that the node knows from now on.
    came: Vec<GroupSlot>,
    /// Those that it knew.
    went: Vec<GroupSlot>,
}

/// Does the jobs, many of them in parallel.
fn run(mut jobs: Vec<Job>, old: &OldGroups, classes: &Classes) -> Vec<(Job, Outcome)> {
    let work = |mut job: Job| {
        let work = std::mem::take(&mut job.work);
        let outcome = job.place.apply(work, old, classes);
        (job, outcome)
    };
    let endpoints: usize = jobs.iter().map(|job| job.work.set.len()).sum();
    if endpoints < WORTH_A_THREAD {
        return jobs.into_iter().map(work).collect();
    }
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get());
    let size = jobs.len().div_ceil(threads);
    std::thread::scope(|scope| {
        let mut parts = Vec::new();
        while !jobs.is_empty() {
            let part = jobs.split_off(jobs.len().saturating_sub(size));
            parts.push(scope.spawn(move || part.into_iter().map(work).collect::<Vec<_>>()));
        }
        let done = parts.into_iter();
        done.flat_map(|part| part.join().expect("a job does not panic"))
            .collect()
    })
}

impl Place {
    fn apply(&mut self, work: PlaceWork, old_groups: &OldGroups, classes: &Classes) -> Outcome {
        let mut policy = self.policy.as_deref().cloned().unwrap_or_default();
        for address in work.removed {
            policy.remove_endpoint(address);
        }
        for (address, endpoint) in work.set {
            policy.set_endpoint(address, endpoint);
        }
        if let Some(sources) = work.sources
            && *policy.sources() != sources
        {
            policy.set_sources(sources);
        }
        for group in work.groups {
            policy.share_group(&classes.group(group).shared, old_groups.get(&group));
        }
        let groups = self.count_classes(work.judges, classes, &mut policy);
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
        for (judge, change) in changes {
            let turn = count(&mut self.judges, judge, change);
            if turn == Turn::Stayed {
                continue;
            }
            let judge = classes.get(judge);
            let step = if turn == Turn::Came {
                policy.add_class(judge.id, judge.class.clone());
                1
            } else {
                policy.remove_class(judge.id);
                -1
            };
            for &group in &judge.groups {
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
                Turn::Came => {
                    policy.share_group(shared, None);
                    outcome.came.push(id);
                }
                Turn::Went => {
                    policy.unshare_group(shared);
                    outcome.went.push(id);
                }
                Turn::Stayed => {}
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

/// How the need for something turned.
#[derive(PartialEq)]
enum Turn {
    Came,
    Went,
    Stayed,
}

fn count<K: Ord + Copy>(counts: &mut BTreeMap<K, i32>, id: K, change: i32) -> Turn {
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
