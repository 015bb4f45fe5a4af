//! Addresses that several workloads claim: in which groups they are, and which endpoints. It decides neither what a
//! workload's policies allow nor what the meet of classes is.
//!
//! A contested address is in a group if each of its claimants is. So it leaves all groups before the facts of workloads
//! change, and joins those of the new facts. What it leaves and joins again does not change.

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
    endpoints::{Contest, Placed, change},
    holders::Memberships,
    ids::{GroupSlot, NodeId, WorkloadId},
    workloads::workload,
};

impl Compiler {
    /// Notes the contested addresses of the workloads whose facts may change, and takes them out of all groups.
    pub(super) fn leave_groups(&self, work: &mut Dirty) {
        if !self.workloads.are_distinct() {
            for &row in &work.rows {
                work.contested.extend(self.contested(row));
            }
        }
        let mut before: BTreeMap<IpAddr, BTreeSet<WorkloadId>> = BTreeMap::new();
        for &address in &work.contested {
            // Claimants that are new have no facts of the address yet.
            before.insert(
                address,
                self.workloads.claimants(address).into_iter().collect(),
            );
        }
        if !before.is_empty() {
            for &row in &work.rows {
                for address in &self.workloads.get(row).facts.addresses {
                    if let Some(rows) = before.get_mut(address) {
                        rows.insert(row);
                    }
                }
            }
        }
        for (address, mut rows) in before {
            rows.retain(|&row| self.workloads.get(row).facts.addresses.contains(&address));
            for group in self.groups_of_all(address, rows) {
                *work.members.entry((group, address)).or_insert(0) -= 1;
            }
        }
    }

    /// Puts the addresses that left their groups into those of their claimants' new facts.
    pub(super) fn join_groups(&self, work: &mut Dirty) {
        for &address in &work.contested {
            for group in self.groups_of_all(address, self.workloads.claimants(address)) {
                *work.members.entry((group, address)).or_insert(0) += 1;
            }
        }
    }

    /// The groups that an address is in for each of some workloads that claim it.
    fn groups_of_all(
        &self,
        address: IpAddr,
        rows: impl IntoIterator<Item = WorkloadId>,
    ) -> Vec<GroupSlot> {
        let facts = rows.into_iter().map(|row| &self.workloads.get(row).facts);
        let facts: Vec<_> = facts.collect();
        let Some(first) = facts.first() else {
            return Vec::new();
        };
        let selected = first.selections.iter().map(|&id| self.selections.get(id));
        let groups = self.classes.groups_of(selected);
        let all = facts
            .iter()
            .map(|facts| Memberships::of(facts, &self.selections));
        let all: Vec<_> = all.collect();
        let is_in = |id: &GroupSlot| {
            let terms = &self.classes.group(*id).terms;
            all.iter().all(|one| one.reach(terms, address))
        };
        groups.into_iter().filter(is_in).collect()
    }

    /// Changes the meets of which a group is a part that an address joined or left.
    pub(super) fn change_meets(&mut self, part: GroupSlot, address: IpAddr, work: &mut Dirty) {
        for (meet, is_in) in self.classes.meets(part, address) {
            let shared = &mut self.classes.group_mut(meet).shared;
            if shared.group().addresses.contains(&address) == is_in {
                continue;
            }
            work.old_groups
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
    pub(super) fn note_contests(&self, work: &mut Dirty) {
        for &address in &work.contested {
            work.placements.extend(self.workloads.claimants(address));
        }
        if !self.workloads.are_distinct() {
            for &row in &work.placements {
                work.contested.extend(self.contested(row));
            }
        }
    }

    /// The addresses that a workload claims beside others.
    fn contested(&self, row: WorkloadId) -> impl Iterator<Item = IpAddr> {
        let claimed = self.workloads.claimed(row).into_iter();
        claimed.filter(|&address| self.workloads.is_contested(address))
    }

    /// Makes an address that is contested, or was, the endpoints that it must be now.
    pub(super) fn place_contest(&mut self, address: IpAddr, work: &mut Dirty) {
        let old = self.contests.remove(&address).unwrap_or_default();
        let new = self.contest(address);
        let places: BTreeSet<NodeId> = old
            .placed
            .keys()
            .chain(new.placed.keys())
            .copied()
            .collect();
        for place in places {
            let (old, new) = (old.placed.get(&place), new.placed.get(&place));
            if old != new {
                change(old, new, &mut work.changes);
            }
        }
        for judge in old.judges.into_iter().flatten() {
            self.classes.release(judge);
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
        let rows = || claimants.values().map(|&row| self.workloads.get(row));
        let sides = [0, 1].map(|direction: usize| {
            let profiles = rows().filter_map(|row| row.profiles[direction]);
            let judges = profiles.filter_map(|profile| self.profiles.get(profile).judge);
            judges.collect::<BTreeSet<_>>()
        });
        let judges = sides.map(|side| self.classes.acquire_meet(&side, true));
        let mut endpoints: BTreeMap<NodeId, Endpoint> = BTreeMap::new();
        for row in rows() {
            let place = row.place.filter(|&place| self.nodes.is_object(place));
            let (Some(place), Some(stored)) = (place, &row.facts.stored) else {
                continue;
            };
            // Of several claimants on the node the endpoint names the first.
            let endpoint = endpoints
                .entry(place)
                .or_insert_with(|| endpoint(stored, judges, &self.classes));
            // The address is behind an interface if all of them say so.
            if endpoint.interface != workload(stored).interface {
                endpoint.interface.clear();
            }
        }
        let placed = endpoints.into_iter().map(|(place, endpoint)| {
            let placed = Placed {
                place,
                addresses: vec![address],
                judges,
                endpoint: Arc::new(endpoint),
            };
            (place, placed)
        });
        Contest {
            judges,
            placed: placed.collect(),
        }
    }
}
