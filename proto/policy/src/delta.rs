//! Differences between two versions of a node's policy: `apply(diff(old, new))` on `old` gives `new`, at the cost of
//! the difference.

use std::{net::IpAddr, sync::Arc};

use imbl::ordmap::DiffItem;

use crate::{
    Class, ClassId, Digest, Endpoint, GroupId, GroupSpec, NodePolicy, PeerGroup, Ranges, Source,
};

/// Changes in an order in which every reference holds at every step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// The changes.
    pub changes: Vec<Change>,
}

/// One change of a node's policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The node's workload ranges are these now.
    WorkloadRanges(Arc<Ranges>),
    /// A new group (with `spec`), or members that come and go (without).
    Group {
        /// Which group.
        id: GroupId,
        /// What a new group is.
        spec: Option<Arc<GroupSpec>>,
        /// Addresses that come.
        add: Vec<IpAddr>,
        /// Addresses that go.
        remove: Vec<IpAddr>,
    },
    /// A new class.
    AddClass(Arc<Class>),
    /// A new or changed endpoint.
    SetEndpoint(IpAddr, Arc<Endpoint>),
    /// An endpoint is gone.
    RemoveEndpoint(IpAddr),
    /// The sources are these now.
    Sources(Arc<Vec<Source>>),
    /// A class is gone.
    RemoveClass(ClassId),
    /// A group is gone.
    RemoveGroup(GroupId),
}

/// A difference between two versions of a policy, before it is looked at closely. Versions of a group are shared by
/// many policies: what leads from one to the other need be found only once.
#[derive(Clone, Debug)]
pub enum Difference<'a> {
    /// A group is new, or may have other members.
    Group {
        /// Which group.
        id: GroupId,
        /// What it was; `None` if it is new.
        old: Option<&'a Arc<PeerGroup>>,
        /// What it is.
        new: &'a Arc<PeerGroup>,
    },
    /// Anything else.
    Other(Change),
}

/// Why a delta does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeltaError {
    /// A change speaks of something that is not there, or adds what is.
    #[error("a change does not fit the policy: {0}")]
    Mismatch(String),
    /// Something names a group or a class that is not there.
    #[error("the policy is incomplete: {0}")]
    Dangling(String),
    /// All changes fit, and yet the result is another than the sender has.
    #[error("the digest of the changed policy is {found} and should be {expected}")]
    Digest {
        /// What the sender has.
        expected: Digest,
        /// What came out.
        found: Digest,
    },
}

impl Delta {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// What leads from `old` to `new`.
    pub fn between(old: &NodePolicy, new: &NodePolicy) -> Delta {
        let differences = Difference::all(old, new);
        Delta {
            changes: differences.into_iter().map(Change::from).collect(),
        }
    }
}

impl<'a> Difference<'a> {
    /// What is different, in the order of a delta.
    pub fn all(old: &'a NodePolicy, new: &'a NodePolicy) -> Vec<Difference<'a>> {
        let mut changes = Vec::new();
        if old.workload_ranges != new.workload_ranges {
            changes.push(Change::WorkloadRanges(new.workload_ranges.clone()).into());
        }
        let mut removed_groups = Vec::new();
        for item in old.groups.diff(&new.groups) {
            let (id, old, new) = match item {
                DiffItem::Add(&id, group) => (id, None, group),
                DiffItem::Update {
                    old: (&id, old),
                    new: (_, new),
                } => (id, Some(old), new),
                DiffItem::Remove(&id, _) => {
                    removed_groups.push(Change::RemoveGroup(id).into());
                    continue;
                }
            };
            changes.push(Difference::Group { id, old, new });
        }
        let mut removed_classes = Vec::new();
        // Most versions share what did not change, and that is seen without looking into it.
        let classes = (!old.classes.ptr_eq(&new.classes)).then(|| old.classes.diff(&new.classes));
        for item in classes.into_iter().flatten() {
            match item {
                DiffItem::Add(_, class) => changes.push(Change::AddClass(class.clone()).into()),
                DiffItem::Remove(&id, _) => removed_classes.push(Change::RemoveClass(id).into()),
                DiffItem::Update { .. } => unreachable!("a class's id is a hash of it"),
            }
        }
        let endpoints =
            (!old.endpoints.ptr_eq(&new.endpoints)).then(|| old.endpoints.diff(&new.endpoints));
        for item in endpoints.into_iter().flatten() {
            let change = match item {
                DiffItem::Add(&address, endpoint)
                | DiffItem::Update {
                    new: (&address, endpoint),
                    ..
                } => Change::SetEndpoint(address, endpoint.clone()),
                DiffItem::Remove(&address, _) => Change::RemoveEndpoint(address),
            };
            changes.push(change.into());
        }
        if old.sources != new.sources {
            changes.push(Change::Sources(new.sources.clone()).into());
        }
        changes.append(&mut removed_classes);
        changes.append(&mut removed_groups);
        changes
    }
}

impl From<Change> for Difference<'_> {
    fn from(change: Change) -> Self {
        Difference::Other(change)
    }
}

impl From<Difference<'_>> for Change {
    fn from(difference: Difference<'_>) -> Change {
        match difference {
            Difference::Group { id, old, new } => match old {
                Some(old) => changed_group(id, old, new),
                None => new_group(id, new),
            },
            Difference::Other(change) => change,
        }
    }
}

fn new_group(id: GroupId, group: &PeerGroup) -> Change {
    Change::Group {
        id,
        spec: Some(group.spec.clone()),
        add: group.addresses.iter().copied().collect(),
        remove: Vec::new(),
    }
}

fn changed_group(id: GroupId, old: &PeerGroup, new: &PeerGroup) -> Change {
    debug_assert_eq!(old.spec, new.spec, "a group's id is a hash of its spec");
    let (add, remove) = old.member_changes(new);
    Change::Group {
        id,
        spec: None,
        add,
        remove,
    }
}

impl PeerGroup {
    /// The addresses that come and those that go from this version of the group to another.
    pub fn member_changes(&self, new: &PeerGroup) -> (Vec<IpAddr>, Vec<IpAddr>) {
        let (mut add, mut remove) = (Vec::new(), Vec::new());
        for item in self.addresses.diff(&new.addresses) {
            match item {
                imbl::ordset::DiffItem::Add(&address) => add.push(address),
                imbl::ordset::DiffItem::Remove(&address) => remove.push(address),
            }
        }
        (add, remove)
    }
}

impl NodePolicy {
    /// This policy with a delta applied, checked to be complete and to have the digest that the sender promised.
    ///
    /// Strict: what is already there must not come again, what goes must be there, so that a lost or repeated
    /// message cannot go unnoticed.
    pub fn applied(&self, delta: &Delta, expected: Digest) -> Result<NodePolicy, DeltaError> {
        let mut policy = self.clone();
        for change in &delta.changes {
            policy.apply(change)?;
        }
        policy.check_references(delta)?;
        let found = policy.digest();
        if found != expected {
            return Err(DeltaError::Digest { expected, found });
        }
        Ok(policy)
    }

    fn apply(&mut self, change: &Change) -> Result<(), DeltaError> {
        let fits = match change {
            Change::WorkloadRanges(ranges) => {
                self.set_workload_ranges(ranges.clone());
                true
            }
            Change::Group {
                id,
                spec: Some(spec),
                add,
                remove,
            } => {
                let fits = !self.groups.contains_key(id) && remove.is_empty();
                let group = PeerGroup {
                    spec: spec.clone(),
                    addresses: add.iter().copied().collect(),
                };
                self.set_group(*id, Arc::new(group));
                fits
            }
            Change::Group {
                id,
                spec: None,
                add,
                remove,
            } => {
                remove
                    .iter()
                    .all(|&address| self.remove_address(*id, address))
                    && add.iter().all(|&address| self.add_address(*id, address))
                    && self.groups.contains_key(id)
            }
            Change::AddClass(class) => {
                let id = class.id();
                let fits = !self.classes.contains_key(&id);
                self.add_class(id, class.clone());
                fits
            }
            Change::SetEndpoint(address, endpoint) => {
                self.set_endpoint(*address, endpoint.clone());
                true
            }
            Change::RemoveEndpoint(address) => self.remove_endpoint(*address).is_some(),
            Change::Sources(sources) => {
                self.set_sources(sources.clone());
                true
            }
            Change::RemoveClass(id) => self.remove_class(*id).is_some(),
            Change::RemoveGroup(id) => self.remove_group(*id).is_some(),
        };
        if fits {
            Ok(())
        } else {
            Err(DeltaError::Mismatch(describe(change)))
        }
    }

    /// Checks what a delta can have broken: what it added names only what is there, what it removed nobody names.
    fn check_references(&self, delta: &Delta) -> Result<(), DeltaError> {
        let (mut gone_classes, mut gone_groups) = (false, false);
        for change in &delta.changes {
            match change {
                Change::AddClass(class) => self.check_class(class)?,
                Change::SetEndpoint(address, endpoint) => {
                    self.check_endpoint(*address, endpoint)?
                }
                Change::Sources(_) => self.check_sources()?,
                Change::RemoveClass(_) => gone_classes = true,
                Change::RemoveGroup(_) => gone_groups = true,
                _ => {}
            }
        }
        if gone_groups {
            self.classes
                .values()
                .try_for_each(|class| self.check_class(class))?;
        }
        if gone_classes {
            self.endpoints
                .iter()
                .try_for_each(|(address, endpoint)| self.check_endpoint(*address, endpoint))?;
            self.check_sources()?;
        }
        Ok(())
    }

    fn check_class(&self, class: &Class) -> Result<(), DeltaError> {
        match class.groups().find(|id| !self.groups.contains_key(id)) {
            Some(group) => Err(DeltaError::Dangling(format!(
                "class {} names group {group}, which is not there",
                class.id()
            ))),
            None => Ok(()),
        }
    }

    fn check_endpoint(&self, address: IpAddr, endpoint: &Endpoint) -> Result<(), DeltaError> {
        let classes = [endpoint.ingress, endpoint.egress];
        self.check_classes(classes, || format!("endpoint {address}"))
    }

    fn check_sources(&self) -> Result<(), DeltaError> {
        self.sources.iter().try_for_each(|source| {
            let classes = [source.ingress, source.egress];
            self.check_classes(classes, || format!("the source {}", source.ranges))
        })
    }

    fn check_classes(
        &self,
        classes: [Option<ClassId>; 2],
        what: impl Fn() -> String,
    ) -> Result<(), DeltaError> {
        let mut classes = classes.into_iter().flatten();
        match classes.find(|id| !self.classes.contains_key(id)) {
            Some(class) => Err(DeltaError::Dangling(format!(
                "{} names class {class}, which is not there",
                what()
            ))),
            None => Ok(()),
        }
    }
}

fn describe(change: &Change) -> String {
    match change {
        Change::WorkloadRanges(_) => "workload ranges".into(),
        Change::Group { id, spec, .. } if spec.is_some() => format!("group {id} is there already"),
        Change::Group { id, .. } => {
            format!("group {id} is not there, or its members are not as the change expects")
        }
        Change::AddClass(class) => format!("class {} is there already", class.id()),
        Change::SetEndpoint(address, _) => format!("endpoint {address}"),
        Change::RemoveEndpoint(address) => format!("endpoint {address} is not there"),
        Change::Sources(_) => "sources".into(),
        Change::RemoveClass(id) => format!("class {id} is not there"),
        Change::RemoveGroup(id) => format!("group {id} is not there"),
    }
}
