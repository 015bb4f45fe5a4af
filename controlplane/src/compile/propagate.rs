//! Propagates a transaction along the chain of `compile.rs`: from the dirty entries to the policies of nodes. It owns
//! nothing; each step marks for the next step the entries that changed.

mod contests;
mod sources;

use std::{collections::BTreeSet, sync::Arc};

use sallyport_policy::{Direction, Endpoint, NodePolicy};

use super::{
    classes::Classes,
    compiler::Compiler,
    dirty::Dirty,
    endpoints::{PlacedEndpoint, change},
    holders::Memberships,
    ids::{ClassSlot, SelectorId, WorkloadId},
    named_ports::NamedPorts,
    profiles::ProfileKey,
    selections::Selections,
    workloads::{Visible, workload_of},
};
use crate::{cluster::Stored, model::Workload};

impl Compiler {
    /// Derives everything anew that depends on a dirty entry. Returns the nodes whose policy changed.
    pub(super) fn propagate(&mut self, mut dirty: Dirty) -> Vec<(String, Option<Arc<NodePolicy>>)> {
        dirty.workloads.extend(self.selections.workloads_of_fresh());
        self.leave_groups(&mut dirty);
        for workload in std::mem::take(&mut dirty.workloads) {
            self.match_workload(workload, &mut dirty);
        }
        self.join_groups(&mut dirty);
        self.change_groups(&mut dirty);
        self.resolve_names(&mut dirty);
        self.regroup(&mut dirty);
        self.rebuild(&mut dirty);
        self.note_contests(&mut dirty);
        for workload in std::mem::take(&mut dirty.placements) {
            self.place_workload(workload, &mut dirty);
            self.claim_sources(workload, &mut dirty);
        }
        for address in std::mem::take(&mut dirty.contested) {
            self.place_contest(address, &mut dirty);
        }
        self.derive_sources(&mut dirty);
        let changes = std::mem::take(&mut dirty.changes);
        let changed = self
            .nodes
            .apply(changes, &dirty.old_groups, &mut self.classes);
        self.sweep(dirty);
        changed
    }

    /// Derives a workload's facts anew: its addresses, and the selections that it is in.
    fn match_workload(&mut self, id: WorkloadId, dirty: &mut Dirty) {
        let workload = self.workloads.get(id);
        let mut new = Visible {
            stored: workload.stored.clone(),
            addresses: self.workloads.claimed(id),
            selections: Vec::new(),
        };
        let labels = new.workload().map(|workload| workload.labels.clone());
        let old_labels = workload.visible.workload().map(|workload| &workload.labels);
        if labels.as_ref() != old_labels {
            self.selections
                .show(id, workload.namespace, labels.as_ref());
        }
        if let Some(labels) = &labels {
            new.selections = self.selections.matching(workload.namespace, labels);
        }
        let old = std::mem::replace(&mut self.workloads.get_mut(id).visible, new);
        let new = &self.workloads.get(id).visible;
        for &left in old
            .selections
            .iter()
            .filter(|&&selection| !new.is_in(selection))
        {
            self.selections.get_mut(left).members.remove(&id);
        }
        for &joined in new
            .selections
            .iter()
            .filter(|&&selection| !old.is_in(selection))
        {
            self.selections.get_mut(joined).members.insert(id);
        }
        note(
            &old,
            new,
            &self.selections,
            &self.classes,
            &mut self.policy_sets.named_ports,
            dirty,
        );
        dirty.regrouped.insert(id);
        dirty.placements.insert(id);
    }

    /// Changes the members of groups, and keeps what the groups were.
    fn change_groups(&mut self, dirty: &mut Dirty) {
        for ((id, address), change) in std::mem::take(&mut dirty.members) {
            if change == 0 {
                continue;
            }
            let shared = &mut self.classes.group_mut(id).shared;
            dirty.old_groups.entry(id).or_insert_with(|| shared.clone());
            let changed = if change > 0 {
                shared.add_address(address)
            } else {
                shared.remove_address(address)
            };
            debug_assert!(changed, "an address joins and leaves a group by turns");
            self.change_meets(id, address, dirty);
        }
    }

    /// Counts the members of new named ports, and marks the policy sets whose numbers changed.
    fn resolve_names(&mut self, dirty: &mut Dirty) {
        let named_ports = &mut self.policy_sets.named_ports;
        for id in named_ports.take_fresh() {
            let named_port = named_ports.get_mut(id);
            for &workload in &self.selections.get(named_port.selection()).members {
                named_port.count_in(&self.workloads.get(workload).visible);
            }
        }
        for (id, before) in std::mem::take(&mut dirty.named_ports) {
            let named_port = named_ports.get(id);
            if named_port.numbers() != before {
                dirty.policy_sets.extend(named_port.policy_sets());
            }
        }
    }

    /// Gives workloads their profiles.
    fn regroup(&mut self, dirty: &mut Dirty) {
        for selection in std::mem::take(&mut dirty.reselected) {
            dirty
                .regrouped
                .extend(&self.selections.get(selection).members);
        }
        for id in std::mem::take(&mut dirty.regrouped) {
            for direction in Direction::BOTH {
                let workload = self.workloads.get(id);
                let old = workload.profiles[direction as usize];
                let key = ProfileKey::of(
                    &workload.visible,
                    direction,
                    &self.selections,
                    &self.policy_sets,
                );
                let (new, is_fresh) = self.profiles.assign(id, old, key, &mut self.policy_sets);
                if old != new {
                    self.workloads.get_mut(id).profiles[direction as usize] = new;
                    dirty.placements.insert(id);
                }
                if is_fresh {
                    dirty.profiles.extend(new);
                }
            }
        }
    }

    /// Builds the classes of profiles that are new, or whose policies say something else.
    fn rebuild(&mut self, dirty: &mut Dirty) {
        for policy_set in std::mem::take(&mut dirty.policy_sets) {
            dirty
                .profiles
                .extend(&self.policy_sets.get(policy_set).profiles);
        }
        for id in std::mem::take(&mut dirty.profiles) {
            if self.profiles.get(id).workloads.is_empty() {
                continue;
            }
            let built = self.profiles.build(id, &self.policy_sets);
            let class_slot = self
                .classes
                .acquire(built, &mut self.selections, &self.workloads);
            let profile = self.profiles.get_mut(id);
            let old = std::mem::replace(&mut profile.class_slot, class_slot);
            if old != class_slot {
                dirty.placements.extend(&profile.workloads);
            }
            if let Some(old) = old {
                self.classes.release(old);
            }
        }
    }

    /// Makes a workload the endpoint that it must be now.
    fn place_workload(&mut self, id: WorkloadId, dirty: &mut Dirty) {
        let workload = self.workloads.get(id);
        let class_slots = self.classes_of(id);
        let node_id = workload
            .node
            .filter(|&node_id| self.nodes.is_object(node_id));
        let addresses = workload.visible.addresses.iter().copied();
        let addresses = addresses.filter(|&address| !self.workloads.is_contested(address));
        let new = match (node_id, &workload.visible.stored) {
            (Some(node_id), Some(stored)) if addresses.clone().next().is_some() => {
                let Workload { uid, interface, .. } = workload_of(stored);
                if workload.placed.as_ref().is_some_and(|placed| {
                    (placed.node, placed.class_slots) == (node_id, class_slots)
                        && placed.addresses.iter().copied().eq(addresses.clone())
                        && (&placed.endpoint.uid, &placed.endpoint.interface) == (uid, interface)
                }) {
                    return;
                }
                Some(PlacedEndpoint {
                    node: node_id,
                    addresses: addresses.collect(),
                    class_slots,
                    endpoint: Arc::new(endpoint(stored, class_slots, &self.classes)),
                })
            }
            _ => None,
        };
        change(workload.placed.as_ref(), new.as_ref(), &mut dirty.changes);
        self.workloads.get_mut(id).placed = new;
    }

    /// Forgets what nobody needs any more, from the end of the derivation to its beginning.
    fn sweep(&mut self, dirty: Dirty) {
        for class_slot in self.profiles.sweep(&mut self.policy_sets) {
            self.classes.release(class_slot);
        }
        self.classes.sweep(&mut self.selections);
        self.policy_sets.sweep(&mut self.selections);
        for workload in dirty.gone {
            self.selections
                .remove_workload(self.workloads.get(workload).namespace);
            self.workloads.remove(workload);
        }
        let swept = self.selections.sweep();
        let workloads: BTreeSet<WorkloadId> = swept.values().flatten().copied().collect();
        for workload in workloads {
            let selections = &mut self.workloads.get_mut(workload).visible.selections;
            selections.retain(|selection| !swept.contains_key(selection));
        }
    }
}

/// An address of a workload as an endpoint with classes.
pub(super) fn endpoint(
    stored: &Stored,
    class_slots: [Option<ClassSlot>; 2],
    classes: &Classes,
) -> Endpoint {
    let class = |direction: Direction| {
        class_slots[direction as usize].map(|class_slot| classes.get(class_slot).id)
    };
    let (key, workload) = (&stored.object.key, workload_of(stored));
    Endpoint {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        uid: workload.uid.clone(),
        interface: workload.interface.clone(),
        ingress: class(Direction::Ingress),
        egress: class(Direction::Egress),
    }
}

/// Marks the groups and named ports that a change of a workload concerns: those of selections that it joined or
/// left; and those of all its selections, if its addresses or ports changed.
fn note(
    old: &Visible,
    new: &Visible,
    selections: &Selections,
    classes: &Classes,
    named_ports: &mut NamedPorts,
    dirty: &mut Dirty,
) {
    let ports = |visible: &Visible| visible.workload().map(|workload| workload.ports.clone());
    let is_same = old.addresses == new.addresses && ports(old) == ports(new);
    let mut concerned = Vec::new();
    let all: BTreeSet<SelectorId> = old
        .selections
        .iter()
        .chain(&new.selections)
        .copied()
        .collect();
    for id in all {
        if is_same && old.is_in(id) && new.is_in(id) {
            continue;
        }
        let selection = selections.get(id);
        concerned.push(selection);
        for &id in &selection.named_ports {
            let named_port = named_ports.get_mut(id);
            if named_port.is_fresh() {
                continue;
            }
            dirty
                .named_ports
                .entry(id)
                .or_insert_with(|| named_port.numbers());
            named_port.count_out(old);
            named_port.count_in(new);
        }
    }
    // A contested address is not one workload's: it leaves its groups before, and joins them afterwards.
    let addresses: BTreeSet<_> = old
        .addresses
        .iter()
        .chain(&new.addresses)
        .copied()
        .filter(|address| !dirty.contested.contains(address))
        .collect();
    let (before, after) = (
        Memberships::of(old, selections),
        Memberships::of(new, selections),
    );
    for id in classes.groups_of(concerned.into_iter()) {
        let terms = &classes.group(id).terms;
        for &address in &addresses {
            let (was, is) = (before.reach(terms, address), after.reach(terms, address));
            if was != is {
                *dirty.members.entry((id, address)).or_insert(0) += if is { 1 } else { -1 };
            }
        }
    }
}
