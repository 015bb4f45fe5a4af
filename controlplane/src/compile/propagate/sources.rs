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
    pub(super) fn claim_sources(&mut self, id: WorkloadId, work: &mut Dirty) {
        let row = self.workloads.get(id);
        let sources = row.facts.workload().map(|seen| &seen.allowed_sources);
        let place = row.place.filter(|&place| self.nodes.is_object(place));
        let new = match (place, sources) {
            (Some(place), Some(sources)) if !sources.is_empty() => {
                let networks: BTreeSet<IpNetwork> = sources.iter().copied().collect();
                Some(Claims {
                    place,
                    networks: networks.into_iter().collect(),
                    judges: self.judges_of(id),
                })
            }
            _ => None,
        };
        if row.claims == new {
            return;
        }
        let old = std::mem::replace(&mut self.workloads.get_mut(id).claims, new.clone());
        for claims in old.iter() {
            self.sources.leave(id, claims);
            work.sources.insert(claims.place);
        }
        for claims in new.iter() {
            self.sources.enter(id, claims);
            work.sources.insert(claims.place);
        }
    }

    /// Derives the sources of the nodes anew of which something changed.
    pub(super) fn derive_sources(&mut self, work: &mut Dirty) {
        if self.sources.places.is_empty() {
            return;
        }
        for &address in &work.turned {
            work.sources.extend(self.sources.places_of(address));
        }
        if work.is_ranged {
            work.sources.extend(self.sources.places.keys());
        }
        let stale = std::mem::take(&mut work.sources);
        if stale.is_empty() {
            return;
        }
        let all = self.nodes.all_ranges();
        for place in stale {
            self.derive_sources_of(place, &all, work);
        }
    }

    /// Derives the sources of a node anew. `all` are the workload ranges of all nodes.
    fn derive_sources_of(&mut self, place: NodeId, all: &Ranges, work: &mut Dirty) {
        let mut claimed = self.sources.places.remove(&place).unwrap_or_default();
        let none = Ranges::EMPTY;
        let own = self.nodes.ranges(place).unwrap_or(&none);
        let others = [
            all.difference(own),
            self.nodes.own_addresses(),
            no_sources(),
        ];
        claimed.foreign = Ranges::union_all(&others);
        let held = |within: &Ranges| self.workloads.addresses_within(within);
        let pieces = pieces(&claimed.by_network, &claimed.foreign, own, held);
        let (mut sources, mut judges) = (Vec::new(), Vec::new());
        for (rows, ranges) in pieces {
            let mut class = |direction: Direction| {
                let of_rows = rows.iter().map(|&row| self.judges_of(row));
                let of_rows = of_rows.filter_map(|judges| judges[direction as usize]);
                let judge = self.classes.acquire_meet(&of_rows.collect(), false)?;
                judges.push(judge);
                Some(self.classes.get(judge).id)
            };
            let (ingress, egress) = (class(Direction::Ingress), class(Direction::Egress));
            let owners: BTreeSet<Owner> = rows.iter().map(|&row| self.owner(row)).collect();
            sources.push(Source {
                owners: owners.into_iter().collect(),
                others: Vec::new(),
                ingress,
                egress,
                ranges,
            });
        }
        let sources = Arc::new(Source::canonical(sources));
        let old = std::mem::replace(&mut claimed.judges, judges);
        let work = work.changes.entry(place).or_default();
        work.change_sources(sources, &old, &claimed.judges);
        for judge in old {
            self.classes.release(judge);
        }
        if !claimed.by_network.is_empty() {
            self.sources.places.insert(place, claimed);
        }
    }

    fn owner(&self, row: WorkloadId) -> Owner {
        let stored = self.workloads.get(row).facts.stored.as_ref();
        let key = &stored.expect("a claimant is there").object.key;
        Owner {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        }
    }

    /// The classes of a workload.
    pub(super) fn judges_of(&self, row: WorkloadId) -> [Option<ClassSlot>; 2] {
        let profiles = self.workloads.get(row).profiles;
        profiles.map(|profile| profile.and_then(|profile| self.profiles.get(profile).judge))
    }
}
