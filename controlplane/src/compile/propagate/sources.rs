//! Derives the sources of nodes, with their classes. `compile/sources.rs` decides whose source an address is.

use std::{collections::BTreeSet, sync::Arc};

use ipnetwork::IpNetwork;
use sallyport_policy::{Direction, Owner, Ranges, Source};

use crate::{
    compile::{
        compiler::Compiler,
        dirty::Dirty,
        ids::{ClassSlot, NodeId, WorkloadId},
        sources::{Claims, pieces},
    },
    validate::no_sources,
};

impl Compiler {
    /// Takes note of what a workload claims now.
    pub(super) fn claim_sources(&mut self, id: WorkloadId, dirty: &mut Dirty) {
        let workload = self.workloads.get(id);
        let sources = workload
            .visible
            .workload()
            .map(|seen| &seen.allowed_sources);
        let node_id = workload
            .node
            .filter(|&node_id| self.nodes.is_object(node_id));
        let new = match (node_id, sources) {
            (Some(node_id), Some(sources)) if !sources.is_empty() => {
                let networks: BTreeSet<IpNetwork> = sources.iter().copied().collect();
                Some(Claims {
                    node: node_id,
                    networks: networks.into_iter().collect(),
                    class_slots: self.classes_of(id),
                })
            }
            _ => None,
        };
        if workload.claims == new {
            return;
        }
        let old = std::mem::replace(&mut self.workloads.get_mut(id).claims, new.clone());
        for claims in old.iter() {
            self.sources.leave(id, claims);
            dirty.sources.insert(claims.node);
        }
        for claims in new.iter() {
            self.sources.enter(id, claims);
            dirty.sources.insert(claims.node);
        }
    }

    /// Derives the sources of the nodes anew of which something changed.
    pub(super) fn derive_sources(&mut self, dirty: &mut Dirty) {
        if self.sources.nodes.is_empty() {
            return;
        }
        for &address in &dirty.claim_changes {
            dirty.sources.extend(self.sources.nodes_of(address));
        }
        if dirty.is_ranged {
            dirty.sources.extend(self.sources.nodes.keys());
        }
        let stale = std::mem::take(&mut dirty.sources);
        if stale.is_empty() {
            return;
        }
        let all = self.nodes.all_ranges();
        for node_id in stale {
            self.derive_sources_of(node_id, &all, dirty);
        }
    }

    /// Derives the sources of a node anew. `all` are the workload ranges of all nodes.
    fn derive_sources_of(&mut self, node_id: NodeId, all: &Ranges, dirty: &mut Dirty) {
        let mut claimed = self.sources.nodes.remove(&node_id).unwrap_or_default();
        let none = Ranges::EMPTY;
        let own = self.nodes.ranges(node_id).unwrap_or(&none);
        let others = [
            all.difference(own),
            self.nodes.own_addresses(),
            no_sources(),
        ];
        claimed.foreign = Ranges::union_all(&others);
        let held = |within: &Ranges| self.workloads.addresses_within(within);
        let pieces = pieces(&claimed.by_network, &claimed.foreign, own, held);
        let (mut sources, mut class_slots) = (Vec::new(), Vec::new());
        for (workloads, ranges) in pieces {
            let mut class = |direction: Direction| {
                let of_rows = workloads.iter().map(|&workload| self.classes_of(workload));
                let of_rows = of_rows.filter_map(|class_slots| class_slots[direction as usize]);
                let class_slot = self.classes.acquire_meet(&of_rows.collect(), false)?;
                class_slots.push(class_slot);
                Some(self.classes.get(class_slot).id)
            };
            let (ingress, egress) = (class(Direction::Ingress), class(Direction::Egress));
            let owners: BTreeSet<Owner> = workloads
                .iter()
                .map(|&workload| self.owner(workload))
                .collect();
            sources.push(Source {
                owners: owners.into_iter().collect(),
                others: Vec::new(),
                ingress,
                egress,
                ranges,
            });
        }
        let sources = Arc::new(Source::canonical(sources));
        let old = std::mem::replace(&mut claimed.class_slots, class_slots);
        let changes = dirty.changes.entry(node_id).or_default();
        changes.change_sources(sources, &old, &claimed.class_slots);
        for class_slot in old {
            self.classes.release(class_slot);
        }
        if !claimed.by_network.is_empty() {
            self.sources.nodes.insert(node_id, claimed);
        }
    }

    fn owner(&self, workload: WorkloadId) -> Owner {
        let stored = self.workloads.get(workload).visible.stored.as_ref();
        let key = &stored.expect("a claimant is there").object.key;
        Owner {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        }
    }

    /// The classes of a workload.
    pub(super) fn classes_of(&self, workload: WorkloadId) -> [Option<ClassSlot>; 2] {
        let profiles = self.workloads.get(workload).profiles;
        profiles.map(|profile| profile.and_then(|profile| self.profiles.get(profile).class_slot))
    }
}
