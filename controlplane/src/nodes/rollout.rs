//! Edits on their way through the cluster: what they take away is taken away everywhere before what they give is given
//! anywhere. Pure bookkeeping: it knows which node must hold which version and which does, and sends nothing.
//!
//! A rollout is one transaction, or several that wait for the same. Its *legs* are the nodes that it changes. It passes
//! its barrier when every leg that takes something away holds the new version beside the old, when the packets that
//! were under way by then are through, and when the rollouts before it that touch flows of its own have passed theirs.
//! Then the new version is what its nodes are settled on.
//!
//! Of rollouts that share flows at most one waits for another: what comes after that is merged into the one that waits.
//! Edits of one and the same node are merged at once: the node orders them by itself.
//! So there is no queue, and what is to be taken away never waits for a barrier.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use sallyport_policy::{Digest, Revision, Version, Ways};

use super::{UnreachablePolicy, entry::Known, extent::Extent};

/// A transaction on its way, or several.
#[derive(Debug)]
pub(super) struct Rollout {
    id: u64,
    /// The first transaction in it.
    pub(super) first: Revision,
    /// The last one.
    pub(super) revision: Revision,
    /// The nodes that it changes.
    legs: BTreeMap<String, Leg>,
    /// The legs that take something away and do not hold the version yet; those that count.
    waiting: BTreeSet<String>,
    /// Whether any leg was ever waited for: if not, no packet was judged by the version before.
    waited: bool,
    extent: Extent,
    /// Whether nobody knows what it leads from: the control plane started in the middle of it.
    from_unknown: bool,
    /// The rollouts that must have passed before.
    after: BTreeSet<u64>,
    pub(super) since: Instant,
    /// When the packets under way are through; set once nothing is waited for.
    drained: Option<Instant>,
    pub(super) unreachable: UnreachablePolicy,
    /// The nodes that were passed over, and how.
    pub(super) passed_over: BTreeMap<String, UnreachablePolicy>,
}

/// A node's part in a rollout.
#[derive(Clone, Debug)]
pub(super) struct Leg {
    /// The version that it leads to.
    pub(super) version: Version,
    /// Which ways it goes.
    pub(super) ways: Ways,
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

/// The rollouts that have not passed their barrier, those that wait behind those that they wait for.
#[derive(Debug)]
pub(super) struct Rollouts {
    all: Vec<Rollout>,
    ids: u64,
    drain: Duration,
}

impl Rollout {
    /// A transaction's rollout, without legs so far.
    pub(super) fn new(revision: Revision, unreachable: UnreachablePolicy, now: Instant) -> Rollout {
        Rollout {
            id: 0,
            first: revision,
            revision,
            legs: BTreeMap::new(),
            waiting: BTreeSet::new(),
            waited: false,
            extent: Extent::default(),
            from_unknown: false,
            after: BTreeSet::new(),
            since: now,
            drained: None,
            unreachable,
            passed_over: BTreeMap::new(),
        }
    }

    /// Adds a node. `counts` says whether the barrier waits for it, if it takes something away there.
    pub(super) fn add(&mut self, node: &str, leg: Leg, counts: bool) {
        if counts && leg.ways.revokes {
            self.waiting.insert(node.to_owned());
            self.waited = true;
        }
        self.legs.insert(node.to_owned(), leg);
    }

    /// Takes note that nobody knows what it leads from.
    pub(super) fn leads_from_unknown(&mut self) {
        self.from_unknown = true;
    }

    /// What it touches.
    pub(super) fn extent_mut(&mut self) -> &mut Extent {
        &mut self.extent
    }

    /// Whether it changes nothing anywhere.
    pub(super) fn is_empty(&self) -> bool {
        self.legs.is_empty()
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
    pub(super) fn waiting(&self) -> &BTreeSet<String> {
        &self.waiting
    }

    /// Since when the node has been asked to hold the version, if it is waited for.
    pub(super) fn waits_since(&self, node: &str) -> Option<Instant> {
        self.waiting.contains(node).then(|| self.legs[node].since)
    }

    /// A node that will not be waited for, and why not.
    pub(super) fn pass_over(&mut self, node: &str, how: UnreachablePolicy) {
        if self.waiting.remove(node) {
            self.passed_over.insert(node.to_owned(), how);
        }
    }

    /// Whether a node may go on to its version alone before the barrier, if it holds nothing older beside it.
    fn goes_alone(&self, leg: &Leg) -> bool {
        // What only takes away is safe at any time, and one node by itself orders its halves by itself. But what may be
        // merged into another must not have gone where that does not lead.
        self.after.is_empty() && (!leg.ways.grants || self.lone_node().is_some())
    }

    /// Its node, if it changes but one.
    fn lone_node(&self) -> Option<&str> {
        let mut nodes = self.legs.keys();
        let first = nodes.next()?;
        nodes.next().is_none().then_some(first)
    }

    fn conflicts(&self, other: &Rollout) -> bool {
        let (few, many) = match self.legs.len() < other.legs.len() {
            true => (self, other),
            false => (other, self),
        };
        few.legs.keys().any(|node| many.legs.contains_key(node)) || self.extent.meets(&other.extent)
    }

    /// Takes in an earlier rollout that waits for others as this one does.
    fn absorb(&mut self, earlier: Rollout) {
        self.first = self.first.min(earlier.first);
        self.since = self.since.min(earlier.since);
        self.waited |= earlier.waited;
        self.extent.merge(earlier.extent);
        self.after.extend(earlier.after);
        self.unreachable = self.unreachable.max(earlier.unreachable);
        for (node, old) in earlier.legs {
            let waited = earlier.waiting.contains(&node);
            match self.legs.get_mut(&node) {
                Some(leg) => {
                    leg.ways |= old.ways;
                    if waited {
                        leg.since = leg.since.min(old.since);
                        self.waiting.insert(node);
                    }
                }
                None => {
                    if waited {
                        self.waiting.insert(node.clone());
                    }
                    self.legs.insert(node, old);
                }
            }
        }
        let legs = &self.legs;
        let over = earlier.passed_over.into_iter();
        self.passed_over
            .extend(over.filter(|(node, _)| legs.contains_key(node)));
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

    /// The same, to pass nodes over.
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
    pub(super) fn window(&self, node: &str, settled: Vec<Known>) -> Vec<Known> {
        let mut window = settled;
        for rollout in &self.all {
            let Some(leg) = rollout.legs.get(node) else {
                continue;
            };
            let version = Known::from(&leg.version);
            if window.len() == 1 && rollout.goes_alone(leg) {
                window = vec![version];
            } else if (leg.ways.revokes || window.is_empty())
                && !window.iter().any(|known| known.is(&version))
            {
                window.push(version);
            }
            // What only gives would not change what all of them allow.
        }
        window
    }

    /// The versions on their way to a node, the oldest first.
    pub(super) fn versions<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Version> {
        let legs = self.all.iter().filter_map(|rollout| rollout.legs.get(node));
        legs.map(|leg| &leg.version)
    }

    /// A node holds the versions of which this is said, durably.
    pub(super) fn held(&mut self, node: &str, holds: impl Fn(Digest) -> bool) {
        for rollout in &mut self.all {
            if let Some(leg) = rollout.legs.get(node)
                && holds(leg.version.position.digest)
            {
                rollout.waiting.remove(node);
                if rollout.passed_over.remove(node).is_some() {
                    // What it let through before counts again.
                    rollout.drained = None;
                }
            }
        }
    }

    /// A node left: nothing waits for it.
    pub(super) fn leave(&mut self, node: &str) {
        for rollout in &mut self.all {
            rollout.waiting.remove(node);
            rollout.passed_over.remove(node);
        }
    }

    /// A node holds nothing: what leads from what nobody knows does not wait for it.
    pub(super) fn begin_without(&mut self, node: &str) {
        for rollout in self.all.iter_mut().filter(|rollout| rollout.from_unknown) {
            rollout.waiting.remove(node);
        }
    }

    /// A node that counts says what it holds: what it lacks is waited for, whatever it said before.
    pub(super) fn ask(&mut self, node: &str, holds: impl Fn(Digest) -> bool, now: Instant) {
        for rollout in &mut self.all {
            if let Some(leg) = rollout.legs.get_mut(node).filter(|leg| leg.ways.revokes)
                && !holds(leg.version.position.digest)
                && rollout.waiting.insert(node.to_owned())
            {
                leg.since = now;
                rollout.waited = true;
                rollout.drained = None;
            }
        }
    }

    /// A node is gone. Returns the others that may go on without it.
    pub(super) fn forget(&mut self, node: &str) -> Vec<String> {
        let mut others = Vec::new();
        for rollout in &mut self.all {
            if rollout.legs.remove(node).is_some() {
                rollout.waiting.remove(node);
                rollout.passed_over.remove(node);
                others.extend(rollout.legs.keys().cloned());
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

    /// The first revision that some node has yet to take away what it does not allow for, or that is behind such.
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
    /// Its legs, by node.
    pub(super) fn legs(&self) -> &BTreeMap<String, Leg> {
        &self.legs
    }

    /// Its legs, to settle on.
    pub(super) fn into_legs(self) -> impl Iterator<Item = (String, Version)> {
        let legs = self.legs.into_iter();
        legs.map(|(node, leg)| (node, leg.version))
    }
}
