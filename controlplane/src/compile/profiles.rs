//! Profiles: workloads that the same policies isolate in a direction, with the same numbers for the named ports of
//! those policies, share one, and with it a class. It groups workloads; what a profile allows is decided in `classes`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use sallyport_policy::{Direction, Protocol};

use super::{
    class::{self, Built},
    ids::{ClassSlot, PolicySetId, ProfileId, WorkloadId},
    policy_sets::PolicySets,
    selections::Selections,
    slab::Slab,
    workloads::Visible,
};

/// The identity of a profile.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct ProfileKey {
    direction: Direction,
    /// The policies that isolate them, ascending; at least one.
    policy_sets: Vec<PolicySetId>,
    /// The named ports of these that the workloads have, and the numbers.
    names: BTreeMap<(Protocol, Arc<str>), u16>,
}

/// Workloads that share a class in one direction.
#[derive(Debug)]
pub(super) struct Profile {
    key: Arc<ProfileKey>,
    /// The workloads.
    pub(super) workloads: BTreeSet<WorkloadId>,
    /// The class; `None` when it restricts nothing.
    pub(super) class_slot: Option<ClassSlot>,
}

/// All profiles.
#[derive(Debug, Default)]
pub(super) struct Profiles {
    profiles: Slab<ProfileId, Profile>,
    by_key: HashMap<Arc<ProfileKey>, ProfileId>,
    /// Perhaps without workloads.
    idle: BTreeSet<ProfileId>,
}

impl ProfileKey {
    /// The key of a workload; `None` when no policy isolates it in the direction.
    pub(super) fn of(
        visible: &Visible,
        direction: Direction,
        selections: &Selections,
        policy_sets: &PolicySets,
    ) -> Option<ProfileKey> {
        let selecting = visible.selections.iter();
        let mut key = ProfileKey {
            direction,
            policy_sets: selecting
                .filter_map(|&id| selections.get(id).policy_sets[direction as usize])
                .collect(),
            names: BTreeMap::new(),
        };
        if key.policy_sets.is_empty() {
            return None;
        }
        key.policy_sets.sort_unstable();
        for &policy_set in &key.policy_sets {
            for (protocol, name) in policy_sets.get(policy_set).names() {
                if let Some(number) = visible.port(name, *protocol) {
                    key.names.insert((*protocol, name.clone()), number);
                }
            }
        }
        Some(key)
    }
}

impl Profiles {
    /// A profile.
    pub(super) fn get(&self, id: ProfileId) -> &Profile {
        &self.profiles[id]
    }

    /// A profile, to give it a class.
    pub(super) fn get_mut(&mut self, id: ProfileId) -> &mut Profile {
        &mut self.profiles[id]
    }

    /// Moves a workload from a profile to that of a key. Returns the profile, and whether it is new.
    pub(super) fn assign(
        &mut self,
        workload: WorkloadId,
        old: Option<ProfileId>,
        key: Option<ProfileKey>,
        policy_sets: &mut PolicySets,
    ) -> (Option<ProfileId>, bool) {
        if old.map(|id| &*self.profiles[id].key) == key.as_ref() {
            return (old, false);
        }
        if let Some(old) = old {
            self.profiles[old].workloads.remove(&workload);
            self.idle.insert(old);
        }
        let Some(key) = key else {
            return (None, false);
        };
        if let Some(&id) = self.by_key.get(&key) {
            self.profiles[id].workloads.insert(workload);
            return (Some(id), false);
        }
        let key = Arc::new(key);
        let id = self.profiles.insert(Profile {
            key: key.clone(),
            workloads: BTreeSet::from([workload]),
            class_slot: None,
        });
        for &policy_set in &key.policy_sets {
            policy_sets.get_mut(policy_set).profiles.insert(id);
        }
        self.by_key.insert(key, id);
        (Some(id), true)
    }

    /// The class of a profile.
    pub(super) fn build(&self, id: ProfileId, policy_sets: &PolicySets) -> Built {
        let key = &self.profiles[id].key;
        let own = |protocol, name: &str| {
            let names = key.names.iter();
            let mut numbers =
                names.filter(|((of, called), _)| (*of, &**called) == (protocol, name));
            numbers.next().map(|(_, &number)| number)
        };
        let numbers = |target: &_| policy_sets.named_ports.numbers(target);
        let mut grants = Vec::new();
        let mut keep_established = true;
        for &policy_set in &key.policy_sets {
            keep_established &= policy_sets.get(policy_set).keeps();
            for rule in policy_sets.get(policy_set).rules() {
                rule.grants(&own, &numbers, &mut grants);
            }
        }
        class::build(key.direction, keep_established, &grants)
    }

    /// Removes the profiles that no workload has. Returns the classes that they had.
    pub(super) fn sweep(&mut self, policy_sets: &mut PolicySets) -> Vec<ClassSlot> {
        let mut class_slots = Vec::new();
        for id in std::mem::take(&mut self.idle) {
            if !self.profiles[id].workloads.is_empty() {
                continue;
            }
            let gone = self.profiles.remove(id);
            self.by_key.remove(&gone.key);
            for &policy_set in &gone.key.policy_sets {
                policy_sets.get_mut(policy_set).profiles.remove(&id);
            }
            class_slots.extend(gone.class_slot);
        }
        class_slots
    }
}
