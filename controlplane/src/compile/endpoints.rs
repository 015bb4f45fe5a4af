//! The endpoints of the nodes, and the changes of a transaction to them. It decides nothing about who is an endpoint.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use sallyport_policy::{Endpoint, SharedGroup, Source};

use super::ids::{ClassSlot, GroupSlot, NodeId};

/// A workload as an endpoint of a node.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Placed {
    pub(super) place: NodeId,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) judges: [Option<ClassSlot>; 2],
    pub(super) endpoint: Arc<Endpoint>,
}

/// A contested address as an endpoint.
#[derive(Debug, Default)]
pub(super) struct Contest {
    /// The meets of the claimants' classes, which the contest has acquired.
    pub(super) judges: [Option<ClassSlot>; 2],
    /// The endpoint on each node that a claimant names.
    pub(super) placed: BTreeMap<NodeId, Placed>,
}

/// What a transaction changes of a node.
#[derive(Debug, Default)]
pub(super) struct PlaceWork {
    pub(super) removed: Vec<IpAddr>,
    pub(super) set: Vec<(IpAddr, Arc<Endpoint>)>,
    pub(super) sources: Option<Arc<Vec<Source>>>,
    pub(super) judges: BTreeMap<ClassSlot, i32>,
    pub(super) groups: Vec<GroupSlot>,
}

/// The changes of a transaction, by node.
pub(super) type Changes = BTreeMap<NodeId, PlaceWork>;

/// The groups whose members changed, as they were before.
pub(super) type OldGroups = BTreeMap<GroupSlot, SharedGroup>;

/// Takes note that a workload stops being one endpoint and becomes another.
pub(super) fn change(old: Option<&Placed>, new: Option<&Placed>, changes: &mut Changes) {
    if let Some(old) = old {
        let work = changes.entry(old.place).or_default();
        work.removed.extend(&old.addresses);
        for judge in old.judges.into_iter().flatten() {
            *work.judges.entry(judge).or_insert(0) -= 1;
        }
    }
    if let Some(new) = new {
        let work = changes.entry(new.place).or_default();
        let endpoints = new.addresses.iter();
        work.set
            .extend(endpoints.map(|&address| (address, new.endpoint.clone())));
        for judge in new.judges.into_iter().flatten() {
            *work.judges.entry(judge).or_insert(0) += 1;
        }
    }
}

impl PlaceWork {
    /// Takes note of the sources of the node, and of their classes before and now: one entry for each use.
    pub(super) fn change_sources(
        &mut self,
        sources: Arc<Vec<Source>>,
        old: &[ClassSlot],
        new: &[ClassSlot],
    ) {
        self.sources = Some(sources);
        for (judges, step) in [(old, -1), (new, 1)] {
            for &judge in judges {
                *self.judges.entry(judge).or_insert(0) += step;
            }
        }
    }
}
