//! The changes of a commit at each node, computed before the coordinator is locked, because that can take long. Pure.

use std::{collections::BTreeMap, sync::Arc};

use sallyport_policy::{Effect, NodeName, NodePolicy, UnknownAddresses};

use super::{Affected, flow_scope::FlowScope};

/// The policies of nodes before a commit, and what each does with unknown addresses.
pub(super) type Before = BTreeMap<NodeName, (Arc<NodePolicy>, UnknownAddresses)>;

/// A commit, prepared.
#[derive(Debug, Default)]
pub struct Prepared {
    /// The nodes that are gone.
    pub(super) gone: Vec<NodeName>,
    /// The nodes that are new.
    pub(super) come: Vec<NodeName>,
    /// The nodes whose policy is another one.
    pub(super) changes: Vec<Change>,
    /// The flows that the commit touches.
    pub(super) scope: FlowScope,
}

/// A node's new policy.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) node: NodeName,
    pub(super) policy: Arc<NodePolicy>,
    effect: Effect,
    /// The treatment of unknown addresses that the effect was computed for.
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
                prepared.scope.add(old, &policy);
                prepared.changes.push(Change {
                    effect: old.effect_of_change(&policy, unknown),
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
    /// The effect at a node with this treatment of unknown addresses. If it was computed for another treatment, the
    /// change may revoke and grant.
    pub(super) fn effect(&self, unknown: &UnknownAddresses) -> Effect {
        match *unknown == self.unknown {
            true => self.effect,
            false => Effect {
                revokes: true,
                grants: true,
            },
        }
    }
}
