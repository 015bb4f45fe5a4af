//! Follows a transaction up, one step of the derivation after the other: from what was touched to the nodes that must
//! hear of it. It owns nothing; each step hands the next what changed.

mod contests;
mod sources;

use std::{collections::BTreeSet, sync::Arc};

use sallyport_policy::{Direction, Endpoint};

use super::{
    classes::Classes,
    compiler::Compiler,
    dirty::Dirty,
    endpoints::{Placed, change},
    families::Families,
    holders::Memberships,
    ids::{ClassSlot, SelectorId, WorkloadId},
    profiles::ProfileKey,
    selections::Selections,
    workloads::{Facts, workload},
};
use crate::{cluster::Stored, model::Workload};

impl Compiler {
    /// Carries everything out that `work` says is to be done. Returns the nodes whose policy is another now.
    pub(super) fn propagate(&mut self, mut work: Dirty) -> BTreeSet<String> {
        work.rows.extend(self.selections.rows_of_fresh());
        self.leave_groups(&mut work);
        for row in std::mem::take(&mut work.rows) {
            self.match_row(row, &mut work);
        }
        self.join_groups(&mut work);
        self.change_groups(&mut work);
        self.resolve_names(&mut work);
        self.regroup(&mut work);
        self.rebuild(&mut work);
        self.note_contests(&mut work);
        for row in std::mem::take(&mut work.placements) {
            self.place(row, &mut work);
            self.claim_sources(row, &mut work);
        }
        for address in std::mem::take(&mut work.contested) {
            self.place_contest(address, &mut work);
        }
        self.derive_sources(&mut work);
        let changes = std::mem::take(&mut work.changes);
        let changed = self
            .nodes
            .apply(changes, &work.old_groups, &mut self.classes);
        self.sweep(work);
        changed
    }

    /// Derives a workload's facts anew: its addresses, and the selections that it is in.
    fn match_row(&mut self, id: WorkloadId, work: &mut Dirty) {
        let row = self.workloads.get(id);
        let mut new = Facts {
            stored: row.stored.clone(),
            addresses: self.workloads.claimed(id),
            selections: Vec::new(),
        };
        let labels = new.workload().map(|workload| workload.labels.clone());
        let old_labels = row.facts.workload().map(|workload| &workload.labels);
        if labels.as_ref() != old_labels {
            self.selections.show(id, row.space, labels.as_ref());
        }
        if let Some(labels) = &labels {
            new.selections = self.selections.matching(row.space, labels);
        }
        let old = std::mem::replace(&mut self.workloads.get_mut(id).facts, new);
        let new = &self.workloads.get(id).facts;
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
            &mut self.subjects.families,
            work,
        );
        work.regrouped.insert(id);
        work.placements.insert(id);
    }

    /// Changes the members of groups, and keeps what the groups were.
    fn change_groups(&mut self, work: &mut Dirty) {
        for ((id, address), change) in std::mem::take(&mut work.members) {
            if change == 0 {
                continue;
            }
            let shared = &mut self.classes.group_mut(id).shared;
            work.old_groups.entry(id).or_insert_with(|| shared.clone());
            let changed = if change > 0 {
                shared.add_address(address)
            } else {
                shared.remove_address(address)
            };
            debug_assert!(changed, "an address joins and leaves a group by turns");
            self.change_meets(id, address, work);
        }
    }

    /// Counts the members of new families, and tells subjects of numbers that came or went.
    fn resolve_names(&mut self, work: &mut Dirty) {
        let families = &mut self.subjects.families;
        for id in families.take_fresh() {
            let family = families.get_mut(id);
            for &row in &self.selections.get(family.selection()).members {
                family.count_in(&self.workloads.get(row).facts);
            }
        }
        for (id, before) in std::mem::take(&mut work.families) {
            let family = families.get(id);
            if family.numbers() != before {
                work.subjects.extend(family.subjects());
            }
        }
    }

    /// Gives workloads their profiles.
    fn regroup(&mut self, work: &mut Dirty) {
        for selection in std::mem::take(&mut work.reselected) {
            work.regrouped
                .extend(&self.selections.get(selection).members);
        }
        for id in std::mem::take(&mut work.regrouped) {
            for direction in Direction::BOTH {
                let row = self.workloads.get(id);
                let old = row.profiles[direction as usize];
                let key = ProfileKey::of(&row.facts, direction, &self.selections, &self.subjects);
                let (new, is_fresh) = self.profiles.assign(id, old, key, &mut self.subjects);
                if old != new {
                    self.workloads.get_mut(id).profiles[direction as usize] = new;
                    work.placements.insert(id);
                }
                if is_fresh {
                    work.profiles.extend(new);
                }
            }
        }
    }

    /// Builds the classes of profiles that are new, or whose policies say something else.
    fn rebuild(&mut self, work: &mut Dirty) {
        for subject in std::mem::take(&mut work.subjects) {
            work.profiles.extend(&self.subjects.get(subject).profiles);
        }
        for id in std::mem::take(&mut work.profiles) {
            if self.profiles.get(id).rows.is_empty() {
                continue;
            }
            let built = self.profiles.build(id, &self.subjects);
            let judge = self
                .classes
                .acquire(built, &mut self.selections, &self.workloads);
            let profile = self.profiles.get_mut(id);
            let old = std::mem::replace(&mut profile.judge, judge);
            if old != judge {
                work.placements.extend(&profile.rows);
            }
            if let Some(old) = old {
                self.classes.release(old);
            }
        }
    }

    /// Makes a workload the endpoint that it must be now.
    fn place(&mut self, id: WorkloadId, work: &mut Dirty) {
        let row = self.workloads.get(id);
        let judges = self.judges_of(id);
        let place = row.place.filter(|&place| self.nodes.is_object(place));
        let addresses = row.facts.addresses.iter().copied();
        let addresses = addresses.filter(|&address| !self.workloads.is_contested(address));
        let new = match (place, &row.facts.stored) {
            (Some(place), Some(stored)) if addresses.clone().next().is_some() => {
                let Workload { uid, interface, .. } = workload(stored);
                if row.placed.as_ref().is_some_and(|placed| {
                    (placed.place, placed.judges) == (place, judges)
                        && placed.addresses.iter().copied().eq(addresses.clone())
                        && (&placed.endpoint.uid, &placed.endpoint.interface) == (uid, interface)
                }) {
                    return;
                }
                Some(Placed {
                    place,
                    addresses: addresses.collect(),
                    judges,
                    endpoint: Arc::new(endpoint(stored, judges, &self.classes)),
                })
            }
            _ => None,
        };
        change(row.placed.as_ref(), new.as_ref(), &mut work.changes);
        self.workloads.get_mut(id).placed = new;
    }

    /// Forgets what nobody needs any more, from the end of the derivation to its beginning.
    fn sweep(&mut self, work: Dirty) {
        for judge in self.profiles.sweep(&mut self.subjects) {
            self.classes.release(judge);
        }
        self.classes.sweep(&mut self.selections);
        self.subjects.sweep(&mut self.selections);
        for row in work.gone {
            self.selections.move_out(self.workloads.get(row).space);
            self.workloads.remove(row);
        }
        let swept = self.selections.sweep();
        let rows: BTreeSet<WorkloadId> = swept.values().flatten().copied().collect();
        for row in rows {
            let selections = &mut self.workloads.get_mut(row).facts.selections;
            selections.retain(|selection| !swept.contains_key(selection));
        }
    }
}

/// An address of a workload as an endpoint that classes judge.
pub(super) fn endpoint(
    stored: &Stored,
    judges: [Option<ClassSlot>; 2],
    classes: &Classes,
) -> Endpoint {
    let class =
        |direction: Direction| judges[direction as usize].map(|judge| classes.get(judge).id);
    let (key, workload) = (&stored.object.key, workload(stored));
    Endpoint {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        uid: workload.uid.clone(),
        interface: workload.interface.clone(),
        ingress: class(Direction::Ingress),
        egress: class(Direction::Egress),
    }
}

/// Notes which groups and families a change of a workload's facts concerns: those of selections that it joined or
/// left; and those of all its selections, if its addresses or ports changed.
fn note(
    old: &Facts,
    new: &Facts,
    selections: &Selections,
    classes: &Classes,
    families: &mut Families,
    work: &mut Dirty,
) {
    let ports = |facts: &Facts| facts.workload().map(|workload| workload.ports.clone());
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
        for &id in &selection.families {
            let family = families.get_mut(id);
            if family.is_fresh() {
                continue;
            }
            work.families.entry(id).or_insert_with(|| family.numbers());
            family.count_out(old);
            family.count_in(new);
        }
    }
    // A contested address is not one workload's: it leaves its groups before, and joins them afterwards.
    let addresses: BTreeSet<_> = old
        .addresses
        .iter()
        .chain(&new.addresses)
        .copied()
        .filter(|address| !work.contested.contains(address))
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
                *work.members.entry((id, address)).or_insert(0) += if is { 1 } else { -1 };
            }
        }
    }
}
