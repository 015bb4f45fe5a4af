//! The classes and peer groups that are in use, each once for the whole cluster, and who is in the groups. It knows
//! what is allowed and to whom, not which node needs to know.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use imbl::OrdSet;
use sallyport_policy::{Class, ClassId, GroupId, PeerGroup, SharedGroup};

use super::{
    class::{Built, BuiltGroup},
    holders::Holders,
    ids::{ClassSlot, GroupSlot, NodeId, WorkloadId},
    meet,
    peers::Terms,
    selections::{Selections, SelectorEntry},
    slab::Slab,
    workloads::{Claimants, Workloads},
};

/// A class that some profile has.
#[derive(Debug)]
pub(super) struct ClassEntry {
    pub(super) id: ClassId,
    pub(super) class: Arc<Class>,
    /// The groups that it names, each once.
    pub(super) groups: Vec<GroupSlot>,
    /// The number of profiles, contests and sources that have the class.
    users: usize,
}

/// A peer group that some class names.
#[derive(Debug)]
pub(super) struct GroupEntry {
    /// Its identity and members.
    pub(super) shared: SharedGroup,
    /// The nodes that know it.
    pub(super) nodes: BTreeSet<NodeId>,
    /// The terms that its addresses are in; of a meet, none.
    pub(super) terms: Terms,
    /// The groups that the addresses of a meet are all in.
    parts: Vec<GroupSlot>,
    /// The meets that it is a part of.
    meets: BTreeSet<GroupSlot>,
    /// The number of classes that name the group, and of meets that it is a part of.
    users: usize,
}

/// The addresses that terms select, followed from one set of terms to the next.
#[derive(Default)]
struct Members {
    terms: Terms,
    /// How many terms each address is in; of a contested address, how many claimants are in any.
    counts: HashMap<IpAddr, usize>,
    /// How many terms each claimant of a contested address is in.
    by_claimant: HashMap<(IpAddr, WorkloadId), usize>,
    addresses: OrdSet<IpAddr>,
}

/// All classes and peer groups.
#[derive(Debug, Default)]
pub(super) struct Classes {
    entries: Slab<ClassSlot, ClassEntry>,
    by_id: HashMap<ClassId, ClassSlot>,
    groups: Slab<GroupSlot, GroupEntry>,
    group_by_id: HashMap<GroupId, GroupSlot>,
    holders: Holders,
    /// Perhaps without users.
    idle: Vec<ClassSlot>,
    idle_groups: Vec<GroupSlot>,
}

impl Members {
    /// Goes on to other terms.
    fn follow(&mut self, terms: &Terms, selections: &Selections, workloads: &Workloads) {
        let Members {
            terms: before,
            counts,
            by_claimant,
            addresses,
        } = self;
        before.compare(terms, |named, is_new| {
            let term = &named.term;
            let selected = selections.get(selections.find(&term.selection));
            for &workload in &selected.members {
                let visible = &workloads.get(workload).visible;
                if !visible.has(term.target.as_ref()) {
                    continue;
                }
                let within = |address: &&IpAddr| {
                    let within = term.within.as_ref();
                    within.is_none_or(|within| within.contains(**address))
                };
                for &address in visible.addresses.iter().filter(within) {
                    let claimants = workloads.contest(address);
                    if claimants.is_some() {
                        let count = by_claimant.entry((address, workload)).or_insert(0);
                        let before = *count;
                        *count = if is_new { before + 1 } else { before - 1 };
                        if before.min(*count) > 0 {
                            continue;
                        }
                    }
                    let all = claimants.map_or(1, Claimants::len);
                    let count = counts.entry(address).or_insert(0);
                    if is_new {
                        *count += 1;
                        if *count == all {
                            addresses.insert(address);
                        }
                    } else {
                        if *count == all {
                            addresses.remove(&address);
                        }
                        *count -= 1;
                    }
                }
            }
        });
        *before = terms.clone();
    }
}

impl Classes {
    /// A class.
    pub(super) fn get(&self, id: ClassSlot) -> &ClassEntry {
        &self.entries[id]
    }

    /// A group.
    pub(super) fn group(&self, id: GroupSlot) -> &GroupEntry {
        &self.groups[id]
    }

    /// The groups that have a term of one of some selections.
    pub(super) fn groups_of<'a>(
        &self,
        selected: impl Iterator<Item = &'a SelectorEntry>,
    ) -> BTreeSet<GroupSlot> {
        self.holders.groups_of(selected)
    }

    /// A group, to tell it of its nodes and members.
    pub(super) fn group_mut(&mut self, id: GroupSlot) -> &mut GroupEntry {
        &mut self.groups[id]
    }

    /// One more profile has the class that was built; `None` if there is none to have.
    pub(super) fn acquire(
        &mut self,
        built: Built,
        selections: &mut Selections,
        workloads: &Workloads,
    ) -> Option<ClassSlot> {
        let class = built.class?;
        let id = class.id();
        if let Some(&class_slot) = self.by_id.get(&id) {
            self.entries[class_slot].users += 1;
            return Some(class_slot);
        }
        let mut members = Members::default();
        let groups = built.groups.into_iter();
        let groups = groups
            .map(|group| self.acquire_group(&group, &mut members, selections, workloads))
            .collect();
        let class_slot = self.entries.insert(ClassEntry {
            id,
            class: Arc::new(class),
            groups,
            users: 1,
        });
        self.by_id.insert(id, class_slot);
        Some(class_slot)
    }

    /// One profile, contest or source less has a class. The class stays until `sweep`.
    pub(super) fn release(&mut self, id: ClassSlot) {
        self.entries[id].users -= 1;
        if self.entries[id].users == 0 {
            self.idle.push(id);
        }
    }

    /// Removes the classes that nobody has, and the groups that no class names.
    pub(super) fn sweep(&mut self, selections: &mut Selections) {
        for id in distinct(&mut self.idle) {
            if self.entries[id].users > 0 {
                continue;
            }
            let gone = self.entries.remove(id);
            self.by_id.remove(&gone.id);
            for group in gone.groups {
                self.groups[group].users -= 1;
                self.idle_groups.push(group);
            }
        }
        // A meet that goes may be the last user of its parts.
        while !self.idle_groups.is_empty() {
            for id in distinct(&mut self.idle_groups) {
                let is_idle = |group: &GroupEntry| group.users == 0;
                if self.groups.get(id).is_some_and(is_idle) {
                    self.remove_group(id, selections);
                }
            }
        }
    }

    fn remove_group(&mut self, id: GroupSlot, selections: &mut Selections) {
        let gone = self.groups.remove(id);
        debug_assert!(gone.nodes.is_empty() && gone.meets.is_empty());
        self.group_by_id.remove(&gone.shared.id());
        self.holders.leave(id, &gone.terms, selections);
        for part in gone.parts {
            self.groups[part].meets.remove(&id);
            self.groups[part].users -= 1;
            self.idle_groups.push(part);
        }
    }

    /// One more contest or source has the class of what some classes all allow; `None` for no classes. A meet has no
    /// part that is a meet. It keeps established connections if it may and if all classes do.
    pub(super) fn acquire_meet(
        &mut self,
        classes: &BTreeSet<ClassSlot>,
        may_keep: bool,
    ) -> Option<ClassSlot> {
        let classes = classes.iter().map(|&slot| &*self.entries[slot].class);
        let met = meet::of(&classes.collect::<Vec<_>>(), may_keep)?;
        let id = met.class.id();
        if let Some(&class_slot) = self.by_id.get(&id) {
            self.entries[class_slot].users += 1;
            return Some(class_slot);
        }
        let groups = met.groups.into_iter();
        let groups = groups
            .map(|(id, parts)| self.acquire_met_group(id, &parts))
            .collect();
        let class_slot = self.entries.insert(ClassEntry {
            id,
            class: Arc::new(met.class),
            groups,
            users: 1,
        });
        self.by_id.insert(id, class_slot);
        Some(class_slot)
    }

    fn acquire_met_group(&mut self, id: GroupId, parts: &BTreeSet<GroupId>) -> GroupSlot {
        if let Some(&group) = self.group_by_id.get(&id) {
            self.groups[group].users += 1;
            return group;
        }
        let parts: Vec<GroupSlot> = parts.iter().map(|part| self.group_by_id[part]).collect();
        let number = self.groups.insert(GroupEntry {
            shared: SharedGroup::new(id, meet::members(&self.contents(&parts))),
            nodes: BTreeSet::new(),
            terms: Terms::default(),
            parts: parts.clone(),
            meets: BTreeSet::new(),
            users: 1,
        });
        for part in parts {
            self.groups[part].meets.insert(number);
            self.groups[part].users += 1;
        }
        self.group_by_id.insert(id, number);
        number
    }

    /// The meets of which a group is a part, each with whether an address belongs to it now.
    pub(super) fn meets(&self, part: GroupSlot, address: IpAddr) -> Vec<(GroupSlot, bool)> {
        let meets = self.groups[part].meets.iter();
        let is_in = |&meet: &GroupSlot| {
            let parts = self.contents(&self.groups[meet].parts);
            (meet, meet::has(&parts, address))
        };
        meets.map(is_in).collect()
    }

    fn contents(&self, groups: &[GroupSlot]) -> Vec<&PeerGroup> {
        let groups = groups.iter();
        groups
            .map(|&group| &**self.groups[group].shared.group())
            .collect()
    }

    /// One more class names a group. `members` are those of a group before it, or of none.
    fn acquire_group(
        &mut self,
        built: &BuiltGroup,
        members: &mut Members,
        selections: &mut Selections,
        workloads: &Workloads,
    ) -> GroupSlot {
        let BuiltGroup { peers, terms } = built;
        if let Some(&group) = self.group_by_id.get(&peers.id()) {
            self.groups[group].users += 1;
            return group;
        }
        let mut group = PeerGroup::new(peers.description(), peers.ranges().clone());
        // Everyone has no terms: the ranges are all addresses.
        if !peers.is_everyone() {
            members.follow(terms, selections, workloads);
            group.addresses = members.addresses.clone();
        }
        let number = self.groups.insert(GroupEntry {
            shared: SharedGroup::new(peers.id(), group),
            nodes: BTreeSet::new(),
            terms: peers.terms().clone(),
            parts: Vec::new(),
            meets: BTreeSet::new(),
            users: 1,
        });
        self.holders.enter(number, peers.terms(), selections);
        self.group_by_id.insert(peers.id(), number);
        number
    }
}

/// Takes the ids out, each once.
fn distinct<K: Ord>(ids: &mut Vec<K>) -> BTreeSet<K> {
    std::mem::take(ids).into_iter().collect()
}
