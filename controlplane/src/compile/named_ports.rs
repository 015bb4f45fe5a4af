//! Named ports of egress rules, which their destinations resolve: the numbers that each name has there. It counts the
//! workloads that it is given, and knows neither policies nor nodes.

use std::collections::{BTreeMap, HashMap};

use super::{
    ids::{NamedPortId, PolicySetId, SelectorId},
    rule::NamedTarget,
    selections::Selections,
    slab::Slab,
    workloads::Visible,
};

/// A named port of some destinations.
#[derive(Debug)]
pub(super) struct NamedPortEntry {
    target: NamedTarget,
    selection: SelectorId,
    /// The policy sets that name it, each with the number of rules in which they do.
    policy_sets: BTreeMap<PolicySetId, usize>,
    /// Each number with the number of addresses that have it.
    numbers: BTreeMap<u16, u32>,
    /// Whether no member was counted yet.
    is_fresh: bool,
}

/// All named ports.
#[derive(Debug, Default)]
pub(super) struct NamedPorts {
    named_ports: Slab<NamedPortId, NamedPortEntry>,
    by_target: HashMap<NamedTarget, NamedPortId>,
    fresh: Vec<NamedPortId>,
    idle: Vec<NamedPortId>,
}

impl NamedPortEntry {
    /// The numbers, ascending.
    pub(super) fn numbers(&self) -> Vec<u16> {
        self.numbers.keys().copied().collect()
    }

    /// The destinations.
    pub(super) fn selection(&self) -> SelectorId {
        self.selection
    }

    /// The policy sets that depend on the numbers.
    pub(super) fn policy_sets(&self) -> impl Iterator<Item = PolicySetId> + '_ {
        self.policy_sets.keys().copied()
    }

    /// Whether all members have yet to be counted.
    pub(super) fn is_fresh(&self) -> bool {
        self.is_fresh
    }

    /// Counts a workload in.
    pub(super) fn count_in(&mut self, visible: &Visible) {
        if let Some((number, count)) = self.share(visible) {
            *self.numbers.entry(number).or_insert(0) += count;
        }
    }

    /// Counts a workload out that was counted in.
    pub(super) fn count_out(&mut self, visible: &Visible) {
        if let Some((number, count)) = self.share(visible) {
            let counted = self.numbers.get_mut(&number).expect("it was counted in");
            *counted -= count;
            if *counted == 0 {
                self.numbers.remove(&number);
            }
        }
    }

    /// The number that a workload has, and the number of its addresses that count.
    fn share(&self, visible: &Visible) -> Option<(u16, u32)> {
        if !visible.is_in(self.selection) {
            return None;
        }
        let number = visible.port(&self.target.name, self.target.protocol)?;
        let count = visible.addresses_in(self.target.destination.within.as_ref());
        (count > 0).then_some((number, count))
    }
}

impl NamedPorts {
    /// A named port.
    pub(super) fn get(&self, id: NamedPortId) -> &NamedPortEntry {
        &self.named_ports[id]
    }

    /// A named port, to count workloads.
    pub(super) fn get_mut(&mut self, id: NamedPortId) -> &mut NamedPortEntry {
        &mut self.named_ports[id]
    }

    /// The numbers that a named port has at its destinations.
    pub(super) fn numbers(&self, target: &NamedTarget) -> Vec<u16> {
        self.named_ports[self.by_target[target]].numbers()
    }

    /// Counts a rule of a policy set that names a port. The policy set has acquired the destination's selection.
    pub(super) fn acquire(
        &mut self,
        target: NamedTarget,
        policy_set: PolicySetId,
        selections: &mut Selections,
    ) {
        let id = match self.by_target.get(&target) {
            Some(&id) => id,
            None => {
                let selection = selections.find(&target.destination.selection);
                let id = self.named_ports.insert(NamedPortEntry {
                    target: target.clone(),
                    selection,
                    policy_sets: BTreeMap::new(),
                    numbers: BTreeMap::new(),
                    is_fresh: true,
                });
                self.by_target.insert(target, id);
                selections.get_mut(selection).named_ports.push(id);
                self.fresh.push(id);
                id
            }
        };
        *self.named_ports[id]
            .policy_sets
            .entry(policy_set)
            .or_insert(0) += 1;
    }

    /// Uncounts a rule of a policy set that named a port. The entry stays until `sweep`.
    pub(super) fn release(&mut self, target: &NamedTarget, policy_set: PolicySetId) {
        let id = self.by_target[target];
        let policy_sets = &mut self.named_ports[id].policy_sets;
        let rules = policy_sets.get_mut(&policy_set).expect("it was acquired");
        *rules -= 1;
        if *rules == 0 {
            policy_sets.remove(&policy_set);
            self.idle.push(id);
        }
    }

    /// The entries that are new since the last call. The caller counts their members.
    pub(super) fn take_fresh(&mut self) -> Vec<NamedPortId> {
        let fresh = std::mem::take(&mut self.fresh);
        for &id in &fresh {
            self.named_ports[id].is_fresh = false;
        }
        fresh
    }

    /// Removes the named ports that no rule names.
    pub(super) fn sweep(&mut self, selections: &mut Selections) {
        let mut idle = std::mem::take(&mut self.idle);
        idle.sort_unstable();
        idle.dedup();
        for id in idle {
            if !self.named_ports[id].policy_sets.is_empty() {
                continue;
            }
            let gone = self.named_ports.remove(id);
            self.by_target.remove(&gone.target);
            let named_ports = &mut selections.get_mut(gone.selection).named_ports;
            named_ports.retain(|&other| other != id);
        }
    }
}
