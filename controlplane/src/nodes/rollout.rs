//! Rollouts through the cluster: an edit's revokes are in force on every node before its grants are on any. Pure
//! bookkeeping: it knows which node must hold which version and which does, and sends nothing.
//!
//! A rollout is one transaction, or several that wait for the same. Its *participants* are the nodes that it changes.
//! It passes its barrier under three conditions. Every participant with a revoke holds the new version beside the old.
//! The packets that were under way by then are drained. The earlier rollouts that touch its flows have passed theirs.
//! Then its nodes are settled on the new version.
//!
//! At most one rollout waits for another one with which it shares flows. A later one is merged into it.
//! Edits of one and the same node are merged at once: the node orders them by itself.
//! So there is no queue, and a revoke never waits for a barrier.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use sallyport_policy::{Digest, Effect, NodeName, Revision, Version};

use super::{UnreachablePolicy, flow_scope::FlowScope, progress::VersionRef};

/// One or more transactions before their barrier.
#[derive(Debug)]
pub(super) struct Rollout {
    id: u64,
    /// The first transaction in it.
    pub(super) first: Revision,
    /// The last one.
    pub(super) revision: Revision,
    /// The nodes that it changes.
    participants: BTreeMap<NodeName, Participant>,
    /// The joined participants with a revoke that do not hold the version yet.
    waiting: BTreeSet<NodeName>,
    /// Whether the rollout ever waited for a participant. If not, no packet was judged by the version before.
    waited: bool,
    scope: FlowScope,
    /// Whether the versions before the rollout are unknown: the control plane started in the middle of it.
    from_unknown: bool,
    /// The rollouts that must have passed before.
    after: BTreeSet<u64>,
    pub(super) since: Instant,
    /// When the packets under way are through; set once nothing is waited for.
    drained: Option<Instant>,
    pub(super) unreachable: UnreachablePolicy,
    /// The bypassed nodes, and under which policy each was.
    pub(super) bypassed: BTreeMap<NodeName, UnreachablePolicy>,
}

/// A node that a rollout changes.
#[derive(Clone, Debug)]
pub(super) struct Participant {
    /// The version that the rollout brings to the node.
    pub(super) version: Version,
    /// The effect on the node: revokes, grants or both.
    pub(super) effect: Effect,
    /// Since when the node is asked to hold it.
    pub(super) since: Instant,
}

/// What a rollout waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nodes that have yet to take away what the new version does not allow.
    Revoking,
    /// Packets under way.
    Draining,
    /// Earlier rollouts that touch flows of its own.
    Queued,
}

/// Rollouts before their barrier, each after the ones it depends on.
#[derive(Debug)]
pub(super) struct Rollouts {
    all: Vec<Rollout>,
    ids: u64,
    drain: Duration,
}

impl Rollout {
    /// A transaction's rollout, without participants so far.
    pub(super) fn new(revision: Revision, unreachable: UnreachablePolicy, now: Instant) -> Rollout {
        Rollout {
            id: 0,
            first: revision,
            revision,
            participants: BTreeMap::new(),
            waiting: BTreeSet::new(),
            waited: false,
            scope: FlowScope::default(),
            from_unknown: false,
            after: BTreeSet::new(),
            since: now,
            drained: None,
            unreachable,
            bypassed: BTreeMap::new(),
        }
    }

    /// Adds a participant. The barrier waits for its revokes only if it `counts`.
    pub(super) fn add(&mut self, node: &NodeName, participant: Participant, counts: bool) {
        if counts && participant.effect.revokes {
            self.waiting.insert(node.clone());
            self.waited = true;
        }
        self.participants.insert(node.clone(), participant);
    }

    /// Notes that the versions before the rollout are unknown.
    pub(super) fn leads_from_unknown(&mut self) {
        self.from_unknown = true;
    }

    /// The flows that the rollout touches.
    pub(super) fn scope_mut(&mut self) -> &mut FlowScope {
        &mut self.scope
    }

    /// Whether it changes nothing anywhere.
    pub(super) fn is_empty(&self) -> bool {
        self.participants.is_empty()
    }

    /// What it waits for.
    pub(super) fn phase(&self) -> Phase {
        match (self.waiting.is_empty(), self.after.is_empty()) {
            (false, _) => Phase::Revoking,
            (true, false) => Phase::Queued,
            (true, true) => Phase::Draining,
        }
    }

    /// The nodes that it waits for.
    pub(super) fn waiting(&self) -> &BTreeSet<NodeName> {
        &self.waiting
    }

    /// Since when the node has been asked to hold the version, if it is waited for.
    pub(super) fn waits_since(&self, node: &NodeName) -> Option<Instant> {
        self.waiting
            .contains(node)
            .then(|| self.participants[node].since)
    }

    /// Stops waiting for a node, under a policy.
    pub(super) fn bypass(&mut self, node: &NodeName, how: UnreachablePolicy) {
        if self.waiting.remove(node) {
            self.bypassed.insert(node.clone(), how);
        }
    }

    /// Whether a node may go on to its version alone before the barrier, if it holds nothing older beside it.
    fn goes_alone(&self, participant: &Participant) -> bool {
        // A revoke alone is safe at any time, and a lone node orders revokes and grants by itself. But a rollout that
        // may be merged into another must not have brought a node to a version that the other does not lead to.
        self.after.is_empty() && (!participant.effect.grants || self.lone_node().is_some())
    }

    /// Its node, if it changes but one.
    fn lone_node(&self) -> Option<&NodeName> {
        let mut nodes = self.participants.keys();
        let first = nodes.next()?;
        nodes.next().is_none().then_some(first)
    }

    fn conflicts(&self, other: &Rollout) -> bool {
        let (few, many) = match self.participants.len() < other.participants.len() {
            true => (self, other),
            false => (other, self),
        };
        few.participants
            .keys()
            .any(|node| many.participants.contains_key(node))
            || self.scope.overlaps(&other.scope)
    }

    /// Takes in an earlier rollout that waits for others as this one does.
    fn absorb(&mut self, earlier: Rollout) {
        self.first = self.first.min(earlier.first);
        self.since = self.since.min(earlier.since);
        self.waited |= earlier.waited;
        self.scope.merge(earlier.scope);
        self.after.extend(earlier.after);
        self.unreachable = self.unreachable.max(earlier.unreachable);
        for (node, old) in earlier.participants {
            let waited = earlier.waiting.contains(&node);
            match self.participants.get_mut(&node) {
                Some(participant) => {
                    participant.effect |= old.effect;
                    if waited {
                        participant.since = participant.since.min(old.since);
                        self.waiting.insert(node);
                    }
                }
                None => {
                    if waited {
                        self.waiting.insert(node.clone());
                    }
                    self.participants.insert(node, old);
                }
            }
        }
        let participants = &self.participants;
        let over = earlier.bypassed.into_iter();
        self.bypassed
            .extend(over.filter(|(node, _)| participants.contains_key(node)));
    }
}

impl Rollouts {
    /// None. Packets under way are through after `drain`.
    pub(super) fn new(drain: Duration) -> Rollouts {
        Rollouts {
            all: Vec::new(),
            ids: 0,
            drain,
        }
    }

    /// Those that have not passed, the oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Rollout> {
        self.all.iter()
    }

    /// The same, to bypass nodes.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Rollout> {
        self.all.iter_mut()
    }

    /// Adds one, and merges into it those that wait for the same.
    pub(super) fn add(&mut self, mut rollout: Rollout) {
        self.ids += 1;
        rollout.id = self.ids;
        let waited_for: BTreeSet<u64> = self
            .all
            .iter()
            .flat_map(|other| &other.after)
            .copied()
            .collect();
        // One node by itself needs no barrier between two of its edits.
        let goes_on = |other: &Rollout, rollout: &Rollout| {
            other.lone_node().is_some()
                && other.lone_node() == rollout.lone_node()
                && !waited_for.contains(&other.id)
        };
        // Unless the later one has to wait for others: the node is where the earlier one leads, and does not go back.
        let waits = self
            .all
            .iter()
            .any(|other| other.conflicts(&rollout) && !goes_on(other, &rollout));
        let mut others = Vec::with_capacity(self.all.len());
        for other in std::mem::take(&mut self.all) {
            let is_free = !other.after.is_empty() || !waits && goes_on(&other, &rollout);
            if !other.conflicts(&rollout) {
                others.push(other);
            } else if is_free {
                rollout.absorb(other);
            } else {
                rollout.after.insert(other.id);
                others.push(other);
            }
        }
        self.all = others;
        self.all.push(rollout);
    }

    /// The versions that a node is to hold: the one that it is settled on, and those on their way to it.
    pub(super) fn window(&self, node: &NodeName, settled: Vec<VersionRef>) -> Vec<VersionRef> {
        let mut window = settled;
        for rollout in &self.all {
            let Some(participant) = rollout.participants.get(node) else {
                continue;
            };
            let version = VersionRef::from(&participant.version);
            if window.len() == 1 && rollout.goes_alone(participant) {
                window = vec![version];
            } else if (participant.effect.revokes || window.is_empty())
                && !window.iter().any(|known| known.is(&version))
            {
                window.push(version);
            }
            // What only gives would not change what all of them allow.
        }
        window
    }

    /// The versions on their way to a node, the oldest first.
    pub(super) fn versions<'a>(&'a self, node: &'a NodeName) -> impl Iterator<Item = &'a Version> {
        let participants = self
            .all
            .iter()
            .filter_map(|rollout| rollout.participants.get(node));
        participants.map(|participant| &participant.version)
    }

    /// A node holds the versions of which this is said, durably.
    pub(super) fn held(&mut self, node: &NodeName, holds: impl Fn(Digest) -> bool) {
        for rollout in &mut self.all {
            if let Some(participant) = rollout.participants.get(node)
                && holds(participant.version.position.digest)
            {
                rollout.waiting.remove(node);
                if rollout.bypassed.remove(node).is_some() {
                    // What it let through before counts again.
                    rollout.drained = None;
                }
            }
        }
    }

    /// A node left: nothing waits for it.
    pub(super) fn leave(&mut self, node: &NodeName) {
        for rollout in &mut self.all {
            rollout.waiting.remove(node);
            rollout.bypassed.remove(node);
        }
    }

    /// Excludes a node that holds nothing from the barriers of rollouts whose earlier versions are unknown.
    pub(super) fn begin_without(&mut self, node: &NodeName) {
        for rollout in self.all.iter_mut().filter(|rollout| rollout.from_unknown) {
            rollout.waiting.remove(node);
        }
    }

    /// Waits again for a joined node in every rollout whose revokes it does not hold, whatever it acknowledged before.
    pub(super) fn ask(&mut self, node: &NodeName, holds: impl Fn(Digest) -> bool, now: Instant) {
        for rollout in &mut self.all {
            if let Some(participant) = rollout
                .participants
                .get_mut(node)
                .filter(|participant| participant.effect.revokes)
                && !holds(participant.version.position.digest)
                && rollout.waiting.insert(node.clone())
            {
                participant.since = now;
                rollout.waited = true;
                rollout.drained = None;
            }
        }
    }

    /// Removes a deleted node. Returns the other participants, which may go on without it.
    pub(super) fn remove_node(&mut self, node: &NodeName) -> Vec<NodeName> {
        let mut others = Vec::new();
        for rollout in &mut self.all {
            if rollout.participants.remove(node).is_some() {
                rollout.waiting.remove(node);
                rollout.bypassed.remove(node);
                others.extend(rollout.participants.keys().cloned());
            }
        }
        others
    }

    /// Takes out one that can pass its barrier now.
    pub(super) fn pass_one(&mut self, now: Instant) -> Option<Rollout> {
        let drain = self.drain;
        let at = self.all.iter_mut().position(|rollout| {
            if !rollout.waiting.is_empty() {
                rollout.drained = None;
                return false;
            }
            let drained = match rollout.waited {
                true => *rollout.drained.get_or_insert(now + drain),
                false => now,
            };
            rollout.after.is_empty() && drained <= now
        })?;
        let passed = self.all.remove(at);
        for rollout in &mut self.all {
            rollout.after.remove(&passed.id);
        }
        Some(passed)
    }

    /// When packets under way of some rollout will be through.
    pub(super) fn next_drained(&self) -> Option<Instant> {
        let waiting = self.all.iter().filter(|rollout| rollout.after.is_empty());
        waiting.filter_map(|rollout| rollout.drained).min()
    }

    /// The first revision whose revokes are not yet in force on every node, or that is queued behind one.
    pub(super) fn first_held_back(&self) -> Option<Revision> {
        let held_back = self
            .all
            .iter()
            .filter(|rollout| rollout.phase() != Phase::Draining);
        held_back.map(|rollout| rollout.first).min()
    }

    /// The last revision up to which every rollout has passed, if the last transaction was `revision`.
    pub(super) fn settled(&self, revision: Revision) -> Revision {
        let first = self.all.iter().map(|rollout| rollout.first).min();
        first.map_or(revision, |first| first.previous())
    }
}

impl Rollout {
    /// The participants, by node.
    pub(super) fn participants(&self) -> &BTreeMap<NodeName, Participant> {
        &self.participants
    }

    /// The versions that the participants are settled on after the barrier.
    pub(super) fn into_participants(self) -> impl Iterator<Item = (NodeName, Version)> {
        let participants = self.participants.into_iter();
        participants.map(|(node, participant)| (node, participant.version))
    }
}
