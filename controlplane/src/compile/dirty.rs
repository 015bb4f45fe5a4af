//! The dirty set: the entries that a transaction has touched and that `propagate` has yet to derive anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    endpoints::{Changes, OldGroups},
    ids::{GroupSlot, NamedPortId, NodeId, PolicySetId, ProfileId, SelectorId, WorkloadId},
};

/// What a transaction has touched and has yet to be followed up.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    /// Workloads that may be in other selections, or have other addresses or ports.
    pub(super) rows: BTreeSet<WorkloadId>,
    /// Addresses that several workloads claim, or claimed before, of which that may change something.
    pub(super) contested: BTreeSet<IpAddr>,
    /// Selections whose members may have another profile.
    pub(super) reselected: BTreeSet<SelectorId>,
    /// Workloads that may have another profile.
    pub(super) regrouped: BTreeSet<WorkloadId>,
    /// Subjects whose rules changed, or mean other ports.
    pub(super) subjects: BTreeSet<PolicySetId>,
    /// Families that members joined or left, with their numbers before.
    pub(super) families: BTreeMap<NamedPortId, Vec<u16>>,
    /// Addresses that join groups (more than zero) or leave them.
    pub(super) members: BTreeMap<(GroupSlot, IpAddr), i32>,
    /// Profiles that may have another class.
    pub(super) profiles: BTreeSet<ProfileId>,
    /// Workloads that may be another endpoint.
    pub(super) placements: BTreeSet<WorkloadId>,
    /// Addresses that no workload claimed before, or that none claims any more.
    pub(super) turned: Vec<IpAddr>,
    /// Whether the workload ranges of a node changed.
    pub(super) is_ranged: bool,
    /// Nodes whose sources may be others.
    pub(super) sources: BTreeSet<NodeId>,
    /// The groups that changed, as they were.
    pub(super) old_groups: OldGroups,
    /// What changes on each node.
    pub(super) changes: Changes,
    /// Workloads that are gone.
    pub(super) gone: Vec<WorkloadId>,
}
