//! Addresses that several workloads claim: in which groups they are, and which endpoints. It decides neither what a
//! workload's policies allow nor what the meet of classes is.
//!
//! A contested address is in a group if each of its claimants is. So it leaves all groups before the facts of workloads
//! change, and joins those of the new facts. A group that it leaves and joins again does not change.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use sallyport_policy::Endpoint;

use super::endpoint;
use crate::compile::{
    compiler::Compiler,
    dirty::Dirty,
    endpoints::{Contest, PlacedEndpoint, change},
    holders::Memberships,
    ids::{GroupSlot, NodeId, WorkloadId},
    workloads::workload_of,
};

impl Compiler {
    /// Notes the contested addresses of the workloads whose facts may change, and takes them out of all groups.
    pub(super) fn leave_groups(&self, dirty: &mut Dirty) {
        if !self.workloads.are_distinct() {
            for &workload in &dirty.workloads {
                dirty.contested.extend(self.contested(workload));
            }
        }
        let mut before: BTreeMap<IpAddr, BTreeSet<WorkloadId>> = BTreeMap::new();
        for &address in &dirty.contested {
            // Claimants that are new have no facts of the address yet.
            before.insert(
                address,
                self.workloads.claimants(address).into_iter().collect(),
            );
        }
        if !before.is_empty() {
            for &workload in &dirty.workloads {
                for address in &self.workloads.get(workload).visible.addresses {
                    if let Some(workloads) = before.get_mut(address) {
                        workloads.insert(workload);
                    }
                }
            }
        }
        for (address, mut workloads) in before {
            workloads.retain(|&workload| {
                self.workloads
                    .get(workload)
                    .visible
                    .addresses
                    .contains(&address)
            });
            for group in self.groups_of_all(address, workloads) {
                *dirty.members.entry((group, address)).or_insert(0) -= 1;
            }
        }
    }

    /// Puts the addresses that left their groups into those of their claimants' new facts.
    pub(super) fn join_groups(&self, dirty: &mut Dirty) {
        for &address in &dirty.contested {
            for group in self.groups_of_all(address, self.workloads.claimants(address)) {
                *dirty.members.entry((group, address)).or_insert(0) += 1;
            }
        }
    }

    /// The groups that an address is in for each of some workloads that claim it.
    fn groups_of_all(
        &self,
        address: IpAddr,
        workloads: impl IntoIterator<Item = WorkloadId>,
    ) -> Vec<GroupSlot> {
        let visible = workloads
            .into_iter()
            .map(|workload| &self.workloads.get(workload).visible);
        let visible: Vec<_> = visible.collect();
        let Some(first) = visible.first() else {
            return Vec::new();
        };
        let selected = first.selections.iter().map(|&id| self.selections.get(id));
        let groups = self.classes.groups_of(selected);
        let all = visible
            .iter()
            .map(|visible| Memberships::of(visible, &self.selections));
        let all: Vec<_> = all.collect();
        let is_in = |id: &GroupSlot| {
            let terms = &self.classes.group(*id).terms;
            all.iter().all(|one| one.reach(terms, address))
        };
        groups.into_iter().filter(is_in).collect()
    }

    /// Changes the meets of which a group is a part that an address joined or left.
    pub(super) fn change_meets(&mut self, part: GroupSlot, address: IpAddr, dirty: &mut Dirty) {
        for (meet, is_in) in self.classes.meets(part, address) {
            let shared = &mut self.classes.group_mut(meet).shared;
            if shared.group().addresses.contains(&address) == is_in {
                continue;
            }
            dirty
                .old_groups
                .entry(meet)
                .or_insert_with(|| shared.clone());
            if is_in {
                shared.add_address(address);
            } else {
                shared.remove_address(address);
            }
        }
    }

    /// Notes the contests that changes of workloads concern, and the workloads that a contest concerns.
    pub(super) fn note_contests(&self, dirty: &mut Dirty) {
        for &address in &dirty.contested {
            dirty.placements.extend(self.workloads.claimants(address));
        }
        if !self.workloads.are_distinct() {
            for &workload in &dirty.placements {
                dirty.contested.extend(self.contested(workload));
            }
        }
    }

    /// The addresses that a workload claims beside others.
    fn contested(&self, workload: WorkloadId) -> impl Iterator<Item = IpAddr> {
        let claimed = self.workloads.claimed(workload).into_iter();
        claimed.filter(|&address| self.workloads.is_contested(address))
    }

    /// Makes an address that is contested, or was, the endpoints that it must be now.
    pub(super) fn place_contest(&mut self, address: IpAddr, dirty: &mut Dirty) {
        let old = self.contests.remove(&address).unwrap_or_default();
        let new = self.contest(address);
        let node_ids: BTreeSet<NodeId> = old
            .placed
            .keys()
            .chain(new.placed.keys())
            .copied()
            .collect();
        for node_id in node_ids {
            let (old, new) = (old.placed.get(&node_id), new.placed.get(&node_id));
            if old != new {
                change(old, new, &mut dirty.changes);
            }
        }
        for class_slot in old.class_slots.into_iter().flatten() {
            self.classes.release(class_slot);
        }
        if self.workloads.is_contested(address) {
            self.contests.insert(address, new);
        }
    }

    /// An address as its claimants make it an endpoint; nowhere if it is not contested.
    fn contest(&mut self, address: IpAddr) -> Contest {
        let Some(claimants) = self.workloads.contest(address) else {
            return Contest::default();
        };
        let workloads = || {
            claimants
                .values()
                .map(|&workload| self.workloads.get(workload))
        };
        let sides = [0, 1].map(|direction: usize| {
            let profiles = workloads().filter_map(|workload| workload.profiles[direction]);
            let class_slots = profiles.filter_map(|profile| self.profiles.get(profile).class_slot);
            class_slots.collect::<BTreeSet<_>>()
        });
        let class_slots = sides.map(|side| self.classes.acquire_meet(&side, true));
        let mut endpoints: BTreeMap<NodeId, Endpoint> = BTreeMap::new();
        for workload in workloads() {
            let node_id = workload
                .node
                .filter(|&node_id| self.nodes.is_object(node_id));
            let (Some(node_id), Some(stored)) = (node_id, &workload.visible.stored) else {
                continue;
            };
            // Of several claimants on the node the endpoint names the first.
            let endpoint = endpoints
                .entry(node_id)
                .or_insert_with(|| endpoint(stored, class_slots, &self.classes));
            // The address is behind an interface if all of them say so.
            if endpoint.interface != workload_of(stored).interface {
                endpoint.interface.clear();
            }
        }
        let placed = endpoints.into_iter().map(|(node_id, endpoint)| {
            let placed = PlacedEndpoint {
                node: node_id,
                addresses: vec![address],
                class_slots,
                endpoint: Arc::new(endpoint),
            };
            (node_id, placed)
        });
        Contest {
            class_slots,
            placed: placed.collect(),
        }
    }
}
