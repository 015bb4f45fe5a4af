//! The endpoints of the nodes, and the changes of a transaction to them. It decides nothing about who is an endpoint.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use sallyport_policy::{Endpoint, SharedGroup, Source};

use super::ids::{ClassSlot, GroupSlot, NodeId};

/// A workload as an endpoint of a node.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PlacedEndpoint {
    pub(super) node: NodeId,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) class_slots: [Option<ClassSlot>; 2],
    pub(super) endpoint: Arc<Endpoint>,
}

/// A contested address as an endpoint.
#[derive(Debug, Default)]
pub(super) struct Contest {
    /// The meets of the claimants' classes, which the contest has acquired.
    pub(super) class_slots: [Option<ClassSlot>; 2],
    /// The endpoint on each node that a claimant names.
    pub(super) placed: BTreeMap<NodeId, PlacedEndpoint>,
}

/// The changes of a node in a transaction.
#[derive(Debug, Default)]
pub(super) struct NodeChanges {
    pub(super) removed: Vec<IpAddr>,
    pub(super) set: Vec<(IpAddr, Arc<Endpoint>)>,
    pub(super) sources: Option<Arc<Vec<Source>>>,
    pub(super) class_slots: BTreeMap<ClassSlot, i32>,
    pub(super) groups: Vec<GroupSlot>,
}

/// The changes of a transaction, by node.
pub(super) type Changes = BTreeMap<NodeId, NodeChanges>;

/// The groups whose members changed, as they were before.
pub(super) type OldGroups = BTreeMap<GroupSlot, SharedGroup>;

/// Records that a workload is another endpoint than before, or begins or ceases to be one.
pub(super) fn change(
    old: Option<&PlacedEndpoint>,
    new: Option<&PlacedEndpoint>,
    changes: &mut Changes,
) {
    if let Some(old) = old {
        let node = changes.entry(old.node).or_default();
        node.removed.extend(&old.addresses);
        for class_slot in old.class_slots.into_iter().flatten() {
            *node.class_slots.entry(class_slot).or_insert(0) -= 1;
        }
    }
    if let Some(new) = new {
        let node = changes.entry(new.node).or_default();
        let endpoints = new.addresses.iter();
        node.set
            .extend(endpoints.map(|&address| (address, new.endpoint.clone())));
        for class_slot in new.class_slots.into_iter().flatten() {
            *node.class_slots.entry(class_slot).or_insert(0) += 1;
        }
    }
}

impl NodeChanges {
    /// Records the sources of the node, and their classes before and now: one entry for each use.
    pub(super) fn change_sources(
        &mut self,
        sources: Arc<Vec<Source>>,
        old: &[ClassSlot],
        new: &[ClassSlot],
    ) {
        self.sources = Some(sources);
        for (class_slots, step) in [(old, -1), (new, 1)] {
            for &class_slot in class_slots {
                *self.class_slots.entry(class_slot).or_insert(0) += step;
            }
        }
    }
}
