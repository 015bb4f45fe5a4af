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
    selections::Selections,
    slab::Slab,
    subjects::Subjects,
    workloads::Facts,
};

/// What the workloads of a profile have in common.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct ProfileKey {
    direction: Direction,
    /// The policies that isolate them, ascending; at least one.
    subjects: Vec<PolicySetId>,
    /// The named ports of these that the workloads have, and the numbers.
    names: BTreeMap<(Protocol, Arc<str>), u16>,
}

/// Workloads that are judged alike.
#[derive(Debug)]
pub(super) struct Profile {
    key: Arc<ProfileKey>,
    /// The workloads.
    pub(super) rows: BTreeSet<WorkloadId>,
    /// The class; `None` when it restricts nothing.
    pub(super) judge: Option<ClassSlot>,
}

/// All of them.
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
        facts: &Facts,
        direction: Direction,
        selections: &Selections,
        subjects: &Subjects,
    ) -> Option<ProfileKey> {
        let selecting = facts.selections.iter();
        let mut key = ProfileKey {
            direction,
            subjects: selecting
                .filter_map(|&id| selections.get(id).subjects[direction as usize])
                .collect(),
            names: BTreeMap::new(),
        };
        if key.subjects.is_empty() {
            return None;
        }
        key.subjects.sort_unstable();
        for &subject in &key.subjects {
            for (protocol, name) in subjects.get(subject).names() {
                if let Some(number) = facts.port(name, *protocol) {
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
        row: WorkloadId,
        old: Option<ProfileId>,
        key: Option<ProfileKey>,
        subjects: &mut Subjects,
    ) -> (Option<ProfileId>, bool) {
        if old.map(|id| &*self.profiles[id].key) == key.as_ref() {
            return (old, false);
        }
        if let Some(old) = old {
            self.profiles[old].rows.remove(&row);
            self.idle.insert(old);
        }
        let Some(key) = key else {
            return (None, false);
        };
        if let Some(&id) = self.by_key.get(&key) {
            self.profiles[id].rows.insert(row);
            return (Some(id), false);
        }
        let key = Arc::new(key);
        let id = self.profiles.insert(Profile {
            key: key.clone(),
            rows: BTreeSet::from([row]),
            judge: None,
        });
        for &subject in &key.subjects {
            subjects.get_mut(subject).profiles.insert(id);
        }
        self.by_key.insert(key, id);
        (Some(id), true)
    }

    /// What a profile allows.
    pub(super) fn build(&self, id: ProfileId, subjects: &Subjects) -> Built {
        let key = &self.profiles[id].key;
        let own = |protocol, name: &str| {
            let names = key.names.iter();
            let mut numbers =
                names.filter(|((of, called), _)| (*of, &**called) == (protocol, name));
            numbers.next().map(|(_, &number)| number)
        };
        let numbers = |target: &_| subjects.families.numbers(target);
        let mut grants = Vec::new();
        let mut keep = true;
        for &subject in &key.subjects {
            keep &= subjects.get(subject).keeps();
            for rule in subjects.get(subject).rules() {
                rule.grants(&own, &numbers, &mut grants);
            }
        }
        class::build(key.direction, keep, &grants)
    }

    /// Removes the profiles that no workload has. Returns the classes that they had.
    pub(super) fn sweep(&mut self, subjects: &mut Subjects) -> Vec<ClassSlot> {
        let mut judges = Vec::new();
        for id in std::mem::take(&mut self.idle) {
            if !self.profiles[id].rows.is_empty() {
                continue;
            }
            let gone = self.profiles.remove(id);
            self.by_key.remove(&gone.key);
            for &subject in &gone.key.subjects {
                subjects.get_mut(subject).profiles.remove(&id);
            }
            judges.extend(gone.judge);
        }
        judges
    }
}
