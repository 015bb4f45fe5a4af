//! The classes and peer groups that are in use, each once for the whole cluster, and who is in the groups. It knows
//! what is allowed and to whom, not which node needs to know.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use sallyport_proto::{
    Ranges,
    policy::{Class, ClassId, GroupId, PeerGroup, SharedGroup},
};

use super::{
    class::Built,
    nodes::Place,
    peers::{Peers, Target},
    selections::{Selected, Selections},
    slab::{Id, Slab},
    workloads::{Facts, Workloads},
};

/// A class that some profile has.
#[derive(Debug)]
pub(super) struct Judge {
    /// What the class is called.
    pub(super) id: ClassId,
    /// The class.
    pub(super) class: Arc<Class>,
    /// The groups that it names, each once.
    pub(super) groups: Vec<Id<Group>>,
    /// How many profiles have it.
    users: usize,
}

/// A peer group that some class names.
#[derive(Debug)]
pub(super) struct Group {
    /// Who is in it now.
    pub(super) shared: SharedGroup,
    /// The nodes that know it.
    pub(super) places: BTreeSet<Id<Place>>,
    terms: Vec<GroupTerm>,
    /// How many classes name it.
    users: usize,
}

/// Some addresses of the members of a selection.
#[derive(Debug)]
struct GroupTerm {
    selection: Id<Selected>,
    target: Option<Target>,
    within: Option<Ranges>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Classes {
    judges: Slab<Judge>,
    by_id: HashMap<ClassId, Id<Judge>>,
    groups: Slab<Group>,
    group_by_id: HashMap<GroupId, Id<Group>>,
    /// Perhaps without users.
    idle: Vec<Id<Judge>>,
    idle_groups: Vec<Id<Group>>,
}

impl GroupTerm {
    fn matches(&self, facts: &Facts, address: IpAddr) -> bool {
        let has_target =
            |target: &Target| facts.port(&target.name, target.protocol) == Some(target.number);
        facts.is_in(self.selection)
            && self.target.as_ref().is_none_or(has_target)
            && self
                .within
                .as_ref()
                .is_none_or(|within| within.contains(address))
    }
}

impl Group {
    /// Whether an address of a workload is in the group by its terms.
    pub(super) fn matches(&self, facts: &Facts, address: IpAddr) -> bool {
        facts.addresses.contains(&address)
            && self.terms.iter().any(|term| term.matches(facts, address))
    }
}

impl Classes {
    /// A class.
    pub(super) fn get(&self, id: Id<Judge>) -> &Judge {
        &self.judges[id]
    }

    /// A group.
    pub(super) fn group(&self, id: Id<Group>) -> &Group {
        &self.groups[id]
    }

    /// A group, to tell it of its nodes and members.
    pub(super) fn group_mut(&mut self, id: Id<Group>) -> &mut Group {
        &mut self.groups[id]
    }

    /// One more profile has the class that was built; `None` if there is none to have.
    pub(super) fn acquire(
        &mut self,
        built: Built,
        selections: &mut Selections,
        workloads: &Workloads,
    ) -> Option<Id<Judge>> {
        let class = built.class?;
        let id = class.id();
        if let Some(&judge) = self.by_id.get(&id) {
            self.judges[judge].users += 1;
            return Some(judge);
        }
        let groups = built.groups.into_iter();
        let groups = groups
            .map(|(id, peers)| self.acquire_group(id, &peers, selections, workloads))
            .collect();
        let judge = self.judges.insert(Judge {
            id,
            class: Arc::new(class),
            groups,
            users: 1,
        });
        self.by_id.insert(id, judge);
        Some(judge)
    }

    /// One profile less has a class. The class stays until `sweep`.
    pub(super) fn release(&mut self, id: Id<Judge>) {
        self.judges[id].users -= 1;
        if self.judges[id].users == 0 {
            self.idle.push(id);
        }
    }

    /// Removes the classes that no profile has, and the groups that no class names.
    pub(super) fn sweep(&mut self, selections: &mut Selections) {
        for id in distinct(&mut self.idle) {
            if self.judges[id].users > 0 {
                continue;
            }
            let gone = self.judges.remove(id);
            self.by_id.remove(&gone.id);
            for group in gone.groups {
                self.groups[group].users -= 1;
                self.idle_groups.push(group);
            }
        }
        for id in distinct(&mut self.idle_groups) {
            if self.groups[id].users > 0 {
                continue;
            }
            let gone = self.groups.remove(id);
            debug_assert!(gone.places.is_empty());
            self.group_by_id.remove(&gone.shared.id());
            for term in gone.terms {
                selections.get_mut(term.selection).groups.remove(&id);
            }
        }
    }

    fn acquire_group(
        &mut self,
        id: GroupId,
        peers: &Peers,
        selections: &mut Selections,
        workloads: &Workloads,
    ) -> Id<Group> {
        if let Some(&group) = self.group_by_id.get(&id) {
            self.groups[group].users += 1;
            return group;
        }
        let terms: Vec<GroupTerm> = peers
            .terms()
            .iter()
            .map(|term| GroupTerm {
                selection: selections.find(&term.selection),
                target: term.target.clone(),
                within: term.within.clone(),
            })
            .collect();
        let mut group = PeerGroup::new(peers.description(), peers.ranges().clone());
        for term in &terms {
            for &row in &selections.get(term.selection).members {
                let facts = &workloads.get(row).facts;
                let addresses = facts.addresses.iter().copied();
                group
                    .addresses
                    .extend(addresses.filter(|&address| term.matches(facts, address)));
            }
        }
        let of_terms: Vec<Id<Selected>> = terms.iter().map(|term| term.selection).collect();
        let number = self.groups.insert(Group {
            shared: SharedGroup::new(id, group),
            places: BTreeSet::new(),
            terms,
            users: 1,
        });
        for selection in of_terms {
            selections.get_mut(selection).groups.insert(number);
        }
        self.group_by_id.insert(id, number);
        number
    }
}

/// Takes the numbers out, each once.
fn distinct<T>(ids: &mut Vec<Id<T>>) -> BTreeSet<Id<T>> {
    std::mem::take(ids).into_iter().collect()
}
