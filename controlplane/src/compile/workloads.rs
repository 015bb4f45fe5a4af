//! The workloads: their objects, the claimants of each address, and the entries last derived from them. It knows
//! nothing of labels and policies.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use sallyport_policy::{Protocol, Ranges};
use sallyport_proto::object::ObjectKey;

use super::{
    by_key::ByKey,
    dirty::Dirty,
    endpoints::PlacedEndpoint,
    ids::{NamespaceId, NodeId, ProfileId, SelectorId, WorkloadId},
    peers::Target,
    slab::Slab,
    sources::Claims,
};
use crate::{
    cluster::Stored,
    model::{Body, Workload},
};

/// A workload.
#[derive(Debug)]
pub(super) struct WorkloadEntry {
    /// The object; `None` once it is deleted.
    pub(super) stored: Option<Arc<Stored>>,
    /// Its namespace.
    pub(super) namespace: NamespaceId,
    /// The node it names.
    pub(super) node: Option<NodeId>,
    /// The part that peers see.
    pub(super) visible: Visible,
    /// The policies that isolate it: ingress, egress.
    pub(super) profiles: [Option<ProfileId>; 2],
    /// Its endpoint, with the addresses that it alone claims.
    pub(super) placed: Option<PlacedEndpoint>,
    /// Its allowed sources, on its node.
    pub(super) claims: Option<Claims>,
}

/// The part of a workload that peers see, as of the last derivation.
#[derive(Clone, Debug, Default)]
pub(super) struct Visible {
    /// The object.
    pub(super) stored: Option<Arc<Stored>>,
    /// The addresses that it claims. Policies see it if it claims any.
    pub(super) addresses: Vec<IpAddr>,
    /// The selections that it is in, ascending.
    pub(super) selections: Vec<SelectorId>,
}

/// The claimants of an address, by kind, namespace and name.
pub(super) type Claimants = BTreeMap<ObjectKey, WorkloadId>;

/// All workloads.
#[derive(Debug, Default)]
pub(super) struct Workloads {
    entries: Slab<WorkloadId, WorkloadEntry>,
    by_key: HashMap<ByKey, WorkloadId>,
    /// The claimant of an address; of several, any one.
    claimants: BTreeMap<IpAddr, WorkloadId>,
    /// All claimants of the addresses that several claim.
    contested: BTreeMap<IpAddr, Claimants>,
}

impl Visible {
    /// The workload, if policies see it.
    pub(super) fn workload(&self) -> Option<&Workload> {
        let stored = self
            .stored
            .as_ref()
            .filter(|_| !self.addresses.is_empty())?;
        Some(workload_of(stored))
    }

    /// Whether it is in a selection.
    pub(super) fn is_in(&self, selection: SelectorId) -> bool {
        self.selections.binary_search(&selection).is_ok()
    }

    /// The number that it has for a port's name.
    pub(super) fn port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        self.workload()?.port(name, protocol)
    }

    /// Whether it has a target's port, if there is a target.
    pub(super) fn has(&self, target: Option<&Target>) -> bool {
        target.is_none_or(|target| self.port(&target.name, target.protocol) == Some(target.number))
    }

    /// How many of its addresses are in some ranges.
    pub(super) fn addresses_in(&self, within: Option<&Ranges>) -> u32 {
        let is_in = |address: &&IpAddr| within.is_none_or(|within| within.contains(**address));
        u32::try_from(self.addresses.iter().filter(is_in).count()).expect("a few addresses")
    }
}

/// The workload that an object is.
pub(super) fn workload_of(stored: &Stored) -> &Workload {
    match &stored.object.body {
        Body::Workload(workload) => workload,
        _ => unreachable!("a key of a workload's kind names a workload"),
    }
}

/// The addresses that a workload lays claim to: a workload on its node's network has none of its own.
fn claims(stored: Option<&Arc<Stored>>) -> Vec<IpAddr> {
    match stored.map(|stored| workload_of(stored)) {
        Some(workload) if !workload.host_network => {
            let mut claims = workload.addresses.clone();
            claims.sort_unstable();
            claims.dedup();
            claims
        }
        _ => Vec::new(),
    }
}

impl Workloads {
    /// A workload.
    pub(super) fn get(&self, id: WorkloadId) -> &WorkloadEntry {
        &self.entries[id]
    }

    /// A workload, to note what was derived.
    pub(super) fn get_mut(&mut self, id: WorkloadId) -> &mut WorkloadEntry {
        &mut self.entries[id]
    }

    /// The number of a workload.
    pub(super) fn find(&self, key: &ObjectKey) -> Option<WorkloadId> {
        self.by_key.get(key).copied()
    }

    /// Makes room for many workloads.
    pub(super) fn reserve(&mut self, workloads: usize) {
        self.by_key.reserve(workloads);
    }

    /// Adds a workload that was not there; what it is comes with `set`.
    pub(super) fn insert(&mut self, namespace: NamespaceId) -> WorkloadId {
        self.entries.insert(WorkloadEntry {
            stored: None,
            namespace,
            node: None,
            visible: Visible::default(),
            profiles: [None; 2],
            placed: None,
            claims: None,
        })
    }

    /// Takes note of what a workload is now, and of the addresses of which it is a new claimant, or no longer one:
    /// contested are those that others claim too.
    pub(super) fn set(&mut self, id: WorkloadId, stored: Option<&Arc<Stored>>, dirty: &mut Dirty) {
        let old = std::mem::replace(&mut self.entries[id].stored, stored.cloned());
        if let Some(old) = &old {
            self.by_key.remove(&old.object.key);
        }
        if let Some(stored) = stored {
            self.by_key.insert(ByKey(stored.clone()), id);
        }
        let (before, now) = (claims(old.as_ref()), claims(stored));
        for &address in before.iter().filter(|address| !now.contains(address)) {
            let key = &old.as_ref().expect("it had claims").object.key;
            if self.disclaim(address, id, key) {
                dirty.contested.insert(address);
            } else {
                dirty.claim_changes.push(address);
            }
        }
        for &address in now.iter().filter(|address| !before.contains(address)) {
            let key = &stored.expect("it has claims").object.key;
            if self.claim(address, id, key) {
                dirty.contested.insert(address);
            } else {
                dirty.claim_changes.push(address);
            }
        }
    }

    /// The addresses that a workload claims.
    pub(super) fn claimed(&self, id: WorkloadId) -> Vec<IpAddr> {
        claims(self.entries[id].stored.as_ref())
    }

    /// Whether no address has several claimants.
    pub(super) fn are_distinct(&self) -> bool {
        self.contested.is_empty()
    }

    /// The claimants of an address that several claim.
    pub(super) fn contest(&self, address: IpAddr) -> Option<&Claimants> {
        self.contested.get(&address)
    }

    /// Whether several workloads claim an address.
    pub(super) fn is_contested(&self, address: IpAddr) -> bool {
        self.contested.contains_key(&address)
    }

    /// The claimants of an address.
    pub(super) fn claimants(&self, address: IpAddr) -> Vec<WorkloadId> {
        match self.contest(address) {
            Some(claimants) => claimants.values().copied().collect(),
            None => self.claimants.get(&address).copied().into_iter().collect(),
        }
    }

    /// The addresses of workloads that are in a set, ascending, at the cost of these.
    pub(super) fn addresses_within(&self, within: &Ranges) -> Vec<IpAddr> {
        let spans = within.iter();
        let held = spans.flat_map(|(first, last)| self.claimants.range(first..=last));
        held.map(|(&address, _)| address).collect()
    }

    /// Forgets a deleted workload.
    pub(super) fn remove(&mut self, id: WorkloadId) {
        let workload = self.entries.remove(id);
        debug_assert!(
            workload.stored.is_none() && workload.placed.is_none() && workload.claims.is_none()
        );
    }

    /// Enters a claim. Returns whether others claim the address too.
    fn claim(&mut self, address: IpAddr, id: WorkloadId, key: &ObjectKey) -> bool {
        let Some(&first) = self.claimants.get(&address) else {
            self.claimants.insert(address, id);
            return false;
        };
        let claimants = self.contested.entry(address).or_default();
        if claimants.is_empty() {
            let stored = self.entries[first].stored.as_ref();
            let key = &stored.expect("a claimant is there").object.key;
            claimants.insert(key.clone(), first);
        }
        claimants.insert(key.clone(), id);
        true
    }

    /// Withdraws a claim. Returns whether others claim the address too.
    fn disclaim(&mut self, address: IpAddr, id: WorkloadId, key: &ObjectKey) -> bool {
        let Some(claimants) = self.contested.get_mut(&address) else {
            debug_assert_eq!(self.claimants.get(&address), Some(&id));
            self.claimants.remove(&address);
            return false;
        };
        claimants.remove(key);
        let first = *claimants.values().next().expect("another claimant");
        if claimants.len() == 1 {
            self.contested.remove(&address);
        }
        self.claimants.insert(address, first);
        true
    }
}
