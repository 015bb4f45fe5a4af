//! The groups that hold a term, and the terms that a workload is in. Groups whose terms are nearly the same share all
//! but a few nodes of their sets, so this costs as much as the sets. It knows no addresses and no nodes of the cluster.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    ids::GroupSlot,
    peers::{Named, Terms},
    selections::{Selections, SelectorEntry},
    trie::{Key, Node},
    workloads::Visible,
};

/// The nodes of all groups' terms, by hash, each with what it is part of.
#[derive(Debug, Default)]
pub(super) struct Holders(HashMap<u128, Part>);

/// A node, and who has it.
#[derive(Debug, Default)]
struct Part {
    /// The nodes of which it is a half.
    wholes: BTreeSet<u128>,
    /// The groups of which it is all terms.
    groups: BTreeSet<GroupSlot>,
}

/// The holder of a node.
#[derive(Clone, Copy)]
enum Holder {
    Whole(u128),
    Group(GroupSlot),
}

impl Part {
    fn is_idle(&self) -> bool {
        self.wholes.is_empty() && self.groups.is_empty()
    }
}

impl Holders {
    /// A group has terms.
    pub(super) fn enter(&mut self, group: GroupSlot, terms: &Terms, selections: &mut Selections) {
        if let Some(root) = terms.root() {
            self.hold(root, Holder::Group(group), selections);
        }
    }

    /// A group that had terms is gone.
    pub(super) fn leave(&mut self, group: GroupSlot, terms: &Terms, selections: &mut Selections) {
        if let Some(root) = terms.root() {
            self.release(root, Holder::Group(group), selections);
        }
    }

    /// The groups that have a term of one of some selections.
    pub(super) fn groups_of<'a>(
        &self,
        selected: impl Iterator<Item = &'a SelectorEntry>,
    ) -> BTreeSet<GroupSlot> {
        let mut groups = BTreeSet::new();
        let mut next: Vec<u128> = selected
            .flat_map(|selected| selected.terms.keys())
            .copied()
            .collect();
        let mut seen: HashSet<u128> = next.iter().copied().collect();
        while let Some(hash) = next.pop() {
            let part = &self.0[&hash];
            groups.extend(&part.groups);
            next.extend(part.wholes.iter().filter(|&&whole| seen.insert(whole)));
        }
        groups
    }

    fn hold(&mut self, node: &Node<Arc<Named>>, by: Holder, selections: &mut Selections) {
        let part = self.0.entry(node.hash).or_default();
        let is_new = part.is_idle();
        match by {
            Holder::Whole(hash) => part.wholes.insert(hash),
            Holder::Group(group) => part.groups.insert(group),
        };
        if !is_new {
            return;
        }
        if let Some(named) = node.element() {
            let id = selections.find(&named.term.selection);
            let terms = &mut selections.get_mut(id).terms;
            terms.insert(node.hash, named.clone());
        }
        for half in node.halves() {
            self.hold(half, Holder::Whole(node.hash), selections);
        }
    }

    fn release(&mut self, node: &Node<Arc<Named>>, by: Holder, selections: &mut Selections) {
        let part = self.0.get_mut(&node.hash).expect("the node is held");
        match by {
            Holder::Whole(hash) => part.wholes.remove(&hash),
            Holder::Group(group) => part.groups.remove(&group),
        };
        if !part.is_idle() {
            return;
        }
        self.0.remove(&node.hash);
        if let Some(named) = node.element() {
            let id = selections.find(&named.term.selection);
            selections.get_mut(id).terms.remove(&node.hash);
        }
        for half in node.halves() {
            self.release(half, Holder::Whole(node.hash), selections);
        }
    }
}

/// The terms that a workload is in, of those that some group has.
pub(super) struct Memberships<'a> {
    visible: &'a Visible,
    terms: HashMap<Key, &'a Named>,
}

impl<'a> Memberships<'a> {
    /// The memberships of a workload.
    pub(super) fn of(visible: &'a Visible, selections: &'a Selections) -> Memberships<'a> {
        let selected = visible.selections.iter().map(|&id| selections.get(id));
        let terms = selected.flat_map(|selected| selected.terms.values());
        let terms = terms
            .filter(|named| visible.has(named.term.target.as_ref()))
            .map(|named| (named.key, &**named));
        Memberships {
            visible,
            terms: terms.collect(),
        }
    }

    /// Whether an address of the workload is in a group by its terms.
    pub(super) fn reach(&self, terms: &Terms, address: IpAddr) -> bool {
        let covers = |named: &Named| {
            let within = named.term.within.as_ref();
            within.is_none_or(|within| within.contains(address))
        };
        if !self.visible.addresses.contains(&address) {
            return false;
        }
        if terms.len() < self.terms.len() {
            let mut terms = terms.iter();
            return terms.any(|named| self.terms.contains_key(&named.key) && covers(named));
        }
        let mut own = self.terms.iter();
        own.any(|(&key, named)| covers(named) && terms.get(key).is_some())
    }
}
