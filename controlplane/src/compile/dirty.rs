//! The dirty set: the entries that a transaction has touched and that `propagate` has yet to derive anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    endpoints::{Changes, OldGroups},
    ids::{GroupSlot, NamedPortId, NodeId, PolicySetId, ProfileId, SelectorId, WorkloadId},
};

/// The entries that are to be derived anew.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    /// Workloads that may be in other selections, or have other addresses or ports.
    pub(super) workloads: BTreeSet<WorkloadId>,
    /// Addresses that several workloads claim, or claimed before, and whose endpoints or groups may change.
    pub(super) contested: BTreeSet<IpAddr>,
    /// Selections whose members may have another profile.
    pub(super) reselected: BTreeSet<SelectorId>,
    /// Workloads that may have another profile.
    pub(super) regrouped: BTreeSet<WorkloadId>,
    /// Policy sets whose rules changed, or mean other ports.
    pub(super) policy_sets: BTreeSet<PolicySetId>,
    /// Named ports whose destinations gained or lost workloads, with their numbers before.
    pub(super) named_ports: BTreeMap<NamedPortId, Vec<u16>>,
    /// Addresses that join groups (more than zero) or leave them.
    pub(super) members: BTreeMap<(GroupSlot, IpAddr), i32>,
    /// Profiles that may have another class.
    pub(super) profiles: BTreeSet<ProfileId>,
    /// Workloads that may be another endpoint.
    pub(super) placements: BTreeSet<WorkloadId>,
    /// Addresses that got their first claimant, or lost their last.
    pub(super) claim_changes: Vec<IpAddr>,
    /// Whether the workload ranges of a node changed.
    pub(super) is_ranged: bool,
    /// Nodes whose sources may change.
    pub(super) sources: BTreeSet<NodeId>,
    /// The groups that changed, as they were.
    pub(super) old_groups: OldGroups,
    /// The changes of each node.
    pub(super) changes: Changes,
    /// Deleted workloads.
    pub(super) gone: Vec<WorkloadId>,
}
