//! Named ports that egress rules leave to their destinations to resolve, and the numbers that they have there now. It
//! counts what it is shown, and knows neither policies nor nodes.

use std::collections::{BTreeMap, HashMap};

use super::{
    ids::{NamedPortId, PolicySetId, SelectorId},
    rule::NamedTarget,
    selections::Selections,
    slab::Slab,
    workloads::Facts,
};

/// A named port of some destinations.
#[derive(Debug)]
pub(super) struct Family {
    target: NamedTarget,
    selection: SelectorId,
    /// The subjects that name it, each with the number of rules in which they do.
    subjects: BTreeMap<PolicySetId, usize>,
    /// Each number with the number of addresses that have it.
    numbers: BTreeMap<u16, u32>,
    /// Whether nobody was counted yet.
    is_fresh: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Families {
    families: Slab<NamedPortId, Family>,
    by_target: HashMap<NamedTarget, NamedPortId>,
    fresh: Vec<NamedPortId>,
    idle: Vec<NamedPortId>,
}

impl Family {
    /// The numbers, ascending.
    pub(super) fn numbers(&self) -> Vec<u16> {
        self.numbers.keys().copied().collect()
    }

    /// Whose ports they are.
    pub(super) fn selection(&self) -> SelectorId {
        self.selection
    }

    /// The subjects that must hear when the numbers change.
    pub(super) fn subjects(&self) -> impl Iterator<Item = PolicySetId> + '_ {
        self.subjects.keys().copied()
    }

    /// Whether all members have yet to be counted.
    pub(super) fn is_fresh(&self) -> bool {
        self.is_fresh
    }

    /// Counts a workload in.
    pub(super) fn count_in(&mut self, facts: &Facts) {
        if let Some((number, count)) = self.share(facts) {
            *self.numbers.entry(number).or_insert(0) += count;
        }
    }

    /// Counts a workload out that was counted in.
    pub(super) fn count_out(&mut self, facts: &Facts) {
        if let Some((number, count)) = self.share(facts) {
            let counted = self.numbers.get_mut(&number).expect("it was counted in");
            *counted -= count;
            if *counted == 0 {
                self.numbers.remove(&number);
            }
        }
    }

    /// The number that a workload has, and the number of its addresses that count.
    fn share(&self, facts: &Facts) -> Option<(u16, u32)> {
        if !facts.is_in(self.selection) {
            return None;
        }
        let number = facts.port(&self.target.name, self.target.protocol)?;
        let count = facts.addresses_in(self.target.destination.within.as_ref());
        (count > 0).then_some((number, count))
    }
}

impl Families {
    /// A family.
    pub(super) fn get(&self, id: NamedPortId) -> &Family {
        &self.families[id]
    }

    /// A family, to count workloads.
    pub(super) fn get_mut(&mut self, id: NamedPortId) -> &mut Family {
        &mut self.families[id]
    }

    /// The numbers that a named port has at its destinations.
    pub(super) fn numbers(&self, target: &NamedTarget) -> Vec<u16> {
        self.families[self.by_target[target]].numbers()
    }

    /// A rule of a subject names a port. The subject has acquired the destination's selection.
    pub(super) fn acquire(
        &mut self,
        target: NamedTarget,
        subject: PolicySetId,
        selections: &mut Selections,
    ) {
        let id = match self.by_target.get(&target) {
            Some(&id) => id,
            None => {
                let selection = selections.find(&target.destination.selection);
                let id = self.families.insert(Family {
                    target: target.clone(),
                    selection,
                    subjects: BTreeMap::new(),
                    numbers: BTreeMap::new(),
                    is_fresh: true,
                });
                self.by_target.insert(target, id);
                selections.get_mut(selection).families.push(id);
                self.fresh.push(id);
                id
            }
        };
        *self.families[id].subjects.entry(subject).or_insert(0) += 1;
    }

    /// A rule of a subject is gone that named a port. The family stays until `sweep`.
    pub(super) fn release(&mut self, target: &NamedTarget, subject: PolicySetId) {
        let id = self.by_target[target];
        let subjects = &mut self.families[id].subjects;
        let rules = subjects.get_mut(&subject).expect("it was acquired");
        *rules -= 1;
        if *rules == 0 {
            subjects.remove(&subject);
            self.idle.push(id);
        }
    }

    /// The families that are new since the last call, from now on counted.
    pub(super) fn take_fresh(&mut self) -> Vec<NamedPortId> {
        let fresh = std::mem::take(&mut self.fresh);
        for &id in &fresh {
            self.families[id].is_fresh = false;
        }
        fresh
    }

    /// Removes the families that nobody names.
    pub(super) fn sweep(&mut self, selections: &mut Selections) {
        let mut idle = std::mem::take(&mut self.idle);
        idle.sort_unstable();
        idle.dedup();
        for id in idle {
            if !self.families[id].subjects.is_empty() {
                continue;
            }
            let gone = self.families.remove(id);
            self.by_target.remove(&gone.target);
            let families = &mut selections.get_mut(gone.selection).families;
            families.retain(|&other| other != id);
        }
    }
}
