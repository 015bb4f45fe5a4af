//! The changes of a commit at each node, computed before the table is told: that can take long, and holds up nobody. Pure.

use std::{collections::BTreeMap, sync::Arc};

use sallyport_policy::{NodePolicy, UnknownAddresses, Ways};

use super::{Affected, extent::Extent};

/// The policies of nodes before a commit, and what each does with unknown addresses.
pub(super) type Before = BTreeMap<String, (Arc<NodePolicy>, UnknownAddresses)>;

/// A commit, prepared.
#[derive(Debug, Default)]
pub struct Prepared {
    /// The nodes that are gone.
    pub(super) gone: Vec<String>,
    /// The nodes that are new.
    pub(super) come: Vec<String>,
    /// The nodes whose policy is another one.
    pub(super) changes: Vec<Change>,
    /// The flows that all of that touches.
    pub(super) extent: Extent,
}

/// A node's new policy.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) node: String,
    pub(super) policy: Arc<NodePolicy>,
    ways: Ways,
    /// The treatment of unknown addresses that they were computed for.
    unknown: UnknownAddresses,
}

impl Prepared {
    /// Prepares what a commit affects. A node of which nothing is known before has the empty policy.
    pub(super) fn new(affected: Affected, before: &Before) -> Prepared {
        let mut prepared = Prepared {
            gone: affected.gone,
            ..Prepared::default()
        };
        let nothing = (Arc::default(), UnknownAddresses::default());
        for (node, policy) in affected.policies {
            let (old, unknown) = before.get(&node).unwrap_or_else(|| {
                prepared.come.push(node.clone());
                &nothing
            });
            if old.digest() != policy.digest() {
                prepared.extent.add(old, &policy);
                prepared.changes.push(Change {
                    ways: old.ways_to(&policy, unknown),
                    unknown: unknown.clone(),
                    node,
                    policy,
                });
            }
        }
        prepared
    }
}

impl Change {
    /// Which ways it goes at a node that does this with unknown addresses. If that is another than was reckoned with, it may go
    /// any.
    pub(super) fn ways(&self, unknown: &UnknownAddresses) -> Ways {
        match *unknown == self.unknown {
            true => self.ways,
            false => Ways {
                revokes: true,
                grants: true,
            },
        }
    }
}
