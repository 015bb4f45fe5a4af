//! Coordinates rollouts across the nodes: the progress of each node, the rollouts, and an index of the nodes that lag.
//! Pure: the caller passes the time. It takes no lock, and wakes streams without waiting for them.

mod admission;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use sallyport_policy::{Effect, Epoch, NodeName, NodePolicy, Position, Revision, Version};
use sallyport_proto::wire::turned_away::Reason;

pub use self::admission::Admission;
use super::{
    Affected, Health, Membership, RolloutStatus, SessionError, Settings, Status, StreamId,
    UnreachablePolicy, Update,
    prepare::{Before, Prepared},
    progress::{NodeProgress, VersionRef},
    rollout::{Participant, Rollout, Rollouts},
    turned_away::Unregistered,
};

/// The epoch and the last revision of the control plane.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) epoch: Epoch,
    pub(super) revision: Revision,
}

/// The durable state that a coordinator starts with.
#[derive(Clone, Debug)]
pub struct Start {
    /// The number of restores of the control plane from a backup.
    pub epoch: Epoch,
    /// The last transaction.
    pub revision: Revision,
    /// The last transaction up to which every node was seen to hold what it takes away; earlier ones are no matter.
    pub settled: Revision,
    /// The nodes that have joined and have not left.
    pub joined: BTreeMap<NodeName, Membership>,
    /// The nodes that left, and how long ago.
    pub left: BTreeMap<NodeName, Duration>,
}

/// The coordinator: the progress of every node, and the rollouts before their barrier.
#[derive(Debug)]
pub struct Coordinator {
    settings: Settings,
    head: Head,
    nodes: BTreeMap<NodeName, NodeProgress>,
    rollouts: Rollouts,
    /// The nodes that lag, by the first revision that they do not enforce.
    pending: BTreeSet<(Revision, NodeName)>,
    last_stream: StreamId,
    /// The enforcers whose names no Node object has.
    strangers: Unregistered,
    /// How many enforcers were turned away, by reason.
    turned_away: BTreeMap<Reason, u64>,
    /// Whether every stream is to end.
    stopping: bool,
    /// When to check next which nodes to bypass.
    recheck: Recheck,
}

/// The time of the next check for nodes to bypass.
#[derive(Clone, Copy, Debug)]
enum Recheck {
    /// Something changed that the check depends on.
    AtOnce,
    At(Option<Instant>),
}

impl Coordinator {
    /// A coordinator for the nodes as of a revision. No node has connected yet.
    pub fn new(
        start: Start,
        settings: Settings,
        policies: impl IntoIterator<Item = (NodeName, Arc<NodePolicy>)>,
        at: Instant,
    ) -> Coordinator {
        let Start {
            epoch,
            revision,
            settled,
            joined,
            left,
        } = start;
        let mut coordinator = Coordinator {
            settings,
            head: Head { epoch, revision },
            nodes: BTreeMap::new(),
            rollouts: Rollouts::new(settings.drain),
            pending: BTreeSet::new(),
            last_stream: StreamId::default(),
            strangers: Unregistered::default(),
            turned_away: BTreeMap::new(),
            stopping: false,
            recheck: Recheck::AtOnce,
        };
        // In the middle of a rollout nobody knows which versions which node holds until it says so.
        let quiet = settled >= revision || joined.is_empty();
        let mut rollout = Rollout::new(revision, settings.unreachable, at);
        rollout.first = revision.min(settled.next());
        rollout.leads_from_unknown();
        rollout.scope_mut().touch_all();
        for (name, policy) in policies {
            let position = coordinator.position(revision, &policy);
            let version = Version { position, policy };
            let mut progress = NodeProgress::new(quiet.then(|| version.clone()), at);
            let membership = joined.get(&name).copied().unwrap_or_default();
            progress.start_with(&version, membership, settings, at);
            if let Some(&ago) = left.get(&name) {
                progress.become_left(at.checked_sub(ago).unwrap_or(at));
            }
            if !quiet {
                let both = Effect {
                    revokes: true,
                    grants: true,
                };
                let participant = Participant {
                    version,
                    effect: both,
                    since: at,
                };
                rollout.add(&name, participant, progress.membership().is_joined());
            }
            coordinator.nodes.insert(name.clone(), progress);
        }
        if !quiet {
            coordinator.rollouts.add(rollout);
        }
        let names: Vec<NodeName> = coordinator.nodes.keys().cloned().collect();
        for name in names {
            coordinator.update(&name, at, |_| {});
        }
        coordinator.advance(at);
        coordinator
    }

    fn position(&self, revision: Revision, policy: &NodePolicy) -> Position {
        Position {
            epoch: self.head.epoch,
            revision,
            digest: policy.digest(),
        }
    }

    /// The state of the nodes that a commit affects, to prepare it with. Only commits change the policies in it. A node
    /// may change its treatment of unknown addresses at any time.
    pub(super) fn before(&self, affected: &Affected) -> Before {
        let state = |(name, _): &(NodeName, _)| {
            let progress = self.nodes.get(name)?;
            Some((
                name.clone(),
                (progress.policy().clone(), progress.unknown().clone()),
            ))
        };
        affected.policies.iter().filter_map(state).collect()
    }

    /// Prepares a commit.
    pub fn prepare(&self, affected: Affected) -> Prepared {
        let before = self.before(&affected);
        Prepared::new(affected, &before)
    }

    /// Makes a rollout of a committed transaction. The caller notes every transaction, in order.
    pub fn commit(
        &mut self,
        revision: Revision,
        prepared: Prepared,
        unreachable: Option<UnreachablePolicy>,
        at: Instant,
    ) {
        self.head.revision = revision;
        for name in prepared.gone {
            self.remove_node(&name, at);
        }
        let unreachable = unreachable.unwrap_or(self.settings.unreachable);
        let mut rollout = Rollout::new(revision, unreachable, at);
        *rollout.scope_mut() = prepared.scope;
        let mut woken = Vec::with_capacity(prepared.changes.len());
        for name in prepared.come {
            let nothing = Arc::<NodePolicy>::default();
            let position = self.position(revision.previous(), &nothing);
            let settled = Version {
                position,
                policy: nothing,
            };
            self.strangers.registered(&name);
            self.nodes
                .insert(name, NodeProgress::new(Some(settled), at));
        }
        for change in prepared.changes {
            let name = change.node.clone();
            let position = self.position(revision, &change.policy);
            let progress = self.nodes.get_mut(&name).expect("it was there or came");
            let effect = change.effect(progress.unknown());
            let on_their_way = self.rollouts.versions(&name);
            let version = progress.changed(
                position,
                change.policy,
                on_their_way.map(|version| version.position.revision),
            );
            let participant = Participant {
                version,
                effect,
                since: at,
            };
            rollout.add(&name, participant, progress.membership().is_joined());
            woken.push(name);
        }
        if !rollout.is_empty() {
            self.rollouts.add(rollout);
        }
        self.recheck = Recheck::AtOnce;
        // A rollout that only grants passes at once, and so brings its nodes up to date.
        self.advance(at);
        if self.settled() < revision {
            self.refresh(&woken, at);
            self.advance(at);
        }
    }

    /// Lets every rollout pass that can by now. Returns when there may be more to do, if nothing else happens.
    pub fn advance(&mut self, at: Instant) -> Option<Instant> {
        let next = match self.recheck {
            Recheck::At(next) if next.is_none_or(|next| next > at) => next,
            _ => self.bypass_unreachable(at),
        };
        self.recheck = Recheck::At(next);
        while let Some(passed) = self.rollouts.pass_one(at) {
            for (node, how) in &passed.bypassed {
                if let Some(progress) = self.nodes.get_mut(node) {
                    progress.become_bypassed(*how);
                }
            }
            let mut names = Vec::with_capacity(passed.participants().len());
            for (name, version) in passed.into_participants() {
                if let Some(progress) = self.nodes.get_mut(&name) {
                    progress.settle_on(version);
                    names.push(name);
                }
            }
            // Those behind it may go further, too.
            for rollout in self.rollouts.iter() {
                names.extend(rollout.participants().keys().cloned());
            }
            self.refresh(&names, at);
        }
        let drained = self.rollouts.next_drained();
        [next, drained].into_iter().flatten().min()
    }

    /// Bypasses unreachable nodes where the rollout's policy allows it. Returns the time of the next check.
    fn bypass_unreachable(&mut self, at: Instant) -> Option<Instant> {
        let Settings { patience, .. } = self.settings;
        let mut next: Option<Instant> = None;
        for rollout in self.rollouts.iter_mut() {
            if rollout.unreachable == UnreachablePolicy::Wait {
                continue;
            }
            for name in rollout.waiting().clone() {
                let (Some(progress), Some(since)) =
                    (self.nodes.get(&name), rollout.waits_since(&name))
                else {
                    continue;
                };
                // A fence waits for the end of the lease, whatever the state of the node.
                let until = match rollout.unreachable {
                    UnreachablePolicy::Fence => progress.lease_until(),
                    _ if progress.bypassed() == Some(UnreachablePolicy::Skip) => Some(at),
                    _ => Some(since + patience),
                };
                match until {
                    // It never had a lease: nothing closes it.
                    None => {}
                    Some(until) if until > at => {
                        next = Some(next.map_or(until, |next| next.min(until)))
                    }
                    Some(_) if rollout.unreachable == UnreachablePolicy::Fence => {
                        rollout.bypass(&name, UnreachablePolicy::Fence);
                    }
                    Some(_) if progress.is_unreachable(patience, at) => {
                        rollout.bypass(&name, UnreachablePolicy::Skip);
                    }
                    Some(_) => next = Some(at + patience),
                }
            }
        }
        next
    }

    /// The state of every node, by name.
    pub fn status(&self, at: Instant) -> Vec<Status> {
        self.nodes
            .iter()
            .map(|(name, progress)| progress.status(name, self.head, at))
            .collect()
    }

    /// The edits that have not passed their barrier, the oldest first.
    pub fn rollouts(&self, at: Instant) -> Vec<RolloutStatus> {
        self.rollouts
            .iter()
            .map(|rollout| RolloutStatus {
                first: rollout.first,
                last: rollout.revision,
                phase: rollout.phase(),
                since: at.saturating_duration_since(rollout.since),
                waits_for: rollout.waiting().iter().cloned().collect(),
                bypassed: rollout.bypassed.clone(),
            })
            .collect()
    }

    /// The last revision up to which every rollout has passed its barrier.
    pub fn settled(&self) -> Revision {
        self.rollouts.settled(self.head.revision)
    }

    /// The nodes that do not enforce a revision yet, or hold back a later one that it is not enforced without.
    pub fn lagging(&self, revision: Revision, at: Instant) -> Vec<Status> {
        let lagging = self.pending.range(..(revision.next(), NodeName::from("")));
        let rollouts = self.rollouts.iter();
        let held_back = rollouts
            .filter(|rollout| rollout.first <= revision)
            .flat_map(Rollout::waiting);
        let lagging = lagging.map(|(_, name)| name);
        let names: BTreeSet<_> = lagging.chain(held_back).collect();
        names
            .into_iter()
            .map(|name| self.nodes[name].status(name, self.head, at))
            .collect()
    }

    /// The bypassed nodes, and the nodes that left.
    pub fn bypassed(&self, at: Instant) -> Vec<Status> {
        let over = |(_, progress): &(&NodeName, &NodeProgress)| {
            progress.bypassed().is_some() || progress.has_left()
        };
        let nodes = self.nodes.iter().filter(over);
        nodes
            .map(|(name, progress)| progress.status(name, self.head, at))
            .collect()
    }

    /// The first revision that is not enforced everywhere. A later revision in rollout holds earlier ones back as well:
    /// two nodes on different versions may together let a flow pass that neither revision allows.
    pub fn first_unenforced(&self) -> Option<Revision> {
        let first_pending = self.pending.first().map(|(first, _)| *first);
        let held_back = self.rollouts.first_held_back();
        [first_pending, held_back].into_iter().flatten().min()
    }

    /// Whether a revision is enforced everywhere. Bypassed nodes do not count.
    pub fn enforces(&self, revision: Revision) -> bool {
        self.first_unenforced().is_none_or(|first| first > revision)
    }

    /// Returns the number of a new stream. A node says Hello only after its stream was accepted. So a Hello on a stream
    /// with a lower number is older, whenever it comes.
    pub fn accept(&mut self) -> StreamId {
        self.last_stream = self.last_stream.next();
        self.last_stream
    }

    /// The membership of a node.
    pub fn membership(&self, name: &NodeName) -> Membership {
        let progress = self.nodes.get(name);
        progress.map_or(Membership::New, NodeProgress::membership)
    }

    /// Barriers wait for a node from now on. That it has joined is durable.
    pub fn join(&mut self, name: &NodeName, membership: Membership, at: Instant) {
        let Some(progress) = self.nodes.get_mut(name) else {
            return;
        };
        let before = progress.become_joined(membership, at);
        if !before.is_joined() {
            self.rollouts
                .ask(name, |version| progress.enforces(version), at);
        }
        self.recheck = Recheck::AtOnce;
        self.update(name, at, |_| {});
    }

    /// A node is about to leave: it cannot connect until it did, or stays. Says whether it has left already.
    pub fn begin_to_leave(&mut self, name: &NodeName) -> Result<bool, SessionError> {
        let owned = || name.clone();
        match self.nodes.get_mut(name) {
            None => Err(SessionError::Unregistered { name: owned() }),
            Some(progress) if progress.is_connected() => {
                Err(SessionError::Connected { name: owned() })
            }
            Some(progress) if progress.is_leaving() => Err(SessionError::Leaving { name: owned() }),
            Some(progress) if progress.has_left() => Ok(true),
            Some(progress) => {
                progress.become_leaving();
                Ok(false)
            }
        }
    }

    /// A node leaves. That it left is durable. Its object may have been deleted meanwhile.
    pub fn leave(&mut self, name: &NodeName, at: Instant) {
        if !self.nodes.contains_key(name) {
            return;
        }
        self.rollouts.leave(name);
        self.update(name, at, |progress| progress.become_left(at));
        self.recheck = Recheck::AtOnce;
        self.advance(at);
    }

    /// A node that was about to leave does not.
    pub fn stay(&mut self, name: &NodeName) {
        if let Some(progress) = self.nodes.get_mut(name)
            && progress.is_leaving()
        {
            progress.become_staying();
        }
    }

    /// The next update to send to a node, if there is one.
    pub fn next_update(
        &mut self,
        name: &NodeName,
        session: StreamId,
        snapshot: bool,
        at: Instant,
    ) -> Result<Option<Update>, SessionError> {
        self.check(name, session)?;
        let progress = self.nodes.get_mut(name).expect("just checked");
        let desired = desired(&self.rollouts, name, progress);
        let update = progress.next_update(&desired, snapshot, at);
        if update.is_some() {
            self.update(name, at, |_| {});
        }
        Ok(update)
    }

    /// A node has what was sent.
    pub fn acked(
        &mut self,
        name: &NodeName,
        session: StreamId,
        window: &[Position],
        at: Instant,
    ) -> Result<(), SessionError> {
        self.check(name, session)?;
        self.update(name, at, |progress| progress.acked(window))?;
        self.advance(at);
        Ok(())
    }

    /// A node refused what was sent.
    pub fn nacked(
        &mut self,
        name: &NodeName,
        session: StreamId,
        (target, window): (Position, &[Position]),
        reason: String,
        at: Instant,
    ) -> Result<(), SessionError> {
        self.check(name, session)?;
        let known: Vec<Version> = self.rollouts.versions(name).cloned().collect();
        self.update(name, at, |progress| {
            progress.nacked(target, window, reason, &known)
        })?;
        let progress = &self.nodes[name];
        self.rollouts
            .ask(name, |version| progress.enforces(version), at);
        self.recheck = Recheck::AtOnce;
        self.advance(at);
        Ok(())
    }

    /// Takes a node's health report. Rollouts wait again for a node that does not judge all traffic, whatever it
    /// acknowledged. Workloads without judged traffic delay only callers that wait for enforcement.
    pub fn report_health(
        &mut self,
        name: &NodeName,
        session: StreamId,
        health: Health,
        at: Instant,
    ) -> Result<(), SessionError> {
        self.check(name, session)?;
        let progress = self.nodes.get_mut(name).expect("just checked");
        let was_judging = progress.not_judged().is_none();
        progress.report_health(health, at);
        if was_judging != progress.not_judged().is_none() {
            if progress.membership().is_joined() {
                self.rollouts
                    .ask(name, |version| progress.enforces(version), at);
            }
            self.recheck = Recheck::AtOnce;
            self.update(name, at, |_| {});
            self.advance(at);
        } else {
            self.update(name, at, |_| {});
        }
        Ok(())
    }

    /// A node asks for a lease. It gets none once a barrier was passed without it, or is to be, before it is as far.
    pub fn lease(
        &mut self,
        name: &NodeName,
        session: StreamId,
        at: Instant,
    ) -> Result<bool, SessionError> {
        self.check(name, session)?;
        let progress = self.nodes.get_mut(name).expect("just checked");
        let lease = progress.lease();
        let overdue = |rollout: &Rollout| {
            let late = |since: Instant| at.saturating_duration_since(since) > lease / 2;
            rollout.unreachable == UnreachablePolicy::Fence
                && rollout.waits_since(name).is_some_and(late)
        };
        // A rollout that went on without it may pass any moment.
        let without = |rollout: &Rollout| rollout.bypassed.contains_key(name);
        let refused = |rollout: &Rollout| overdue(rollout) || without(rollout);
        if !progress.may_have_lease() || self.rollouts.iter().any(refused) {
            return Ok(false);
        }
        progress.grant_lease(at);
        self.recheck = Recheck::AtOnce;
        Ok(true)
    }

    /// The nodes that nothing closes when they cannot be reached.
    pub fn without_leases(&self) -> Vec<NodeName> {
        let open = self.nodes.iter();
        let open = open
            .filter(|(_, progress)| progress.membership() == Membership::Joined { leased: false });
        open.map(|(name, _)| name.clone()).collect()
    }

    /// How edits are led through the cluster.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// A node's stream is over.
    pub fn disconnected(&mut self, name: &NodeName, session: StreamId, at: Instant) {
        // Another stream or the node's removal may have come first.
        let progress = self.nodes.get(name);
        if progress.is_some_and(|progress| progress.is_session(session)) {
            self.update(name, at, NodeProgress::disconnected);
            self.recheck = Recheck::AtOnce;
        }
    }

    /// Every stream is to end.
    pub fn stop(&mut self) {
        self.stopping = true;
        self.nodes.values().for_each(NodeProgress::wake);
    }

    fn check(&self, name: &NodeName, session: StreamId) -> Result<(), SessionError> {
        let owned = || name.clone();
        match self.nodes.get(name) {
            None => Err(SessionError::Removed { name: owned() }),
            Some(progress) if !progress.is_session(session) => match progress.rivals.clones() {
                Some(_) => Err(admission::cloned(name, progress)),
                None => Err(SessionError::Replaced { name: owned() }),
            },
            Some(_) if self.stopping => Err(SessionError::Stopping),
            Some(_) => Ok(()),
        }
    }

    /// Brings nodes up to date whose desired versions may be others.
    fn refresh(&mut self, names: &[NodeName], at: Instant) {
        for name in names {
            self.update(name, at, |_| {});
        }
    }

    /// Changes a node's progress, then recomputes the values derived from it.
    fn update<T>(
        &mut self,
        name: &NodeName,
        at: Instant,
        change: impl FnOnce(&mut NodeProgress) -> T,
    ) -> T {
        let head = self.head;
        let progress = self.nodes.get_mut(name).expect("a node that is known");
        let result = change(progress);
        self.rollouts
            .held(name, |version| progress.enforces(version));
        if progress.begins_with_nothing() {
            self.rollouts.begin_without(name);
        }
        let desired = desired(&self.rollouts, name, progress);
        progress.recompute(&desired, at);
        let (before, after) = (progress.first_unenforced, progress.waited_for(head));
        if before != after {
            progress.first_unenforced = after;
            let index = |revision| (revision, name.clone());
            before.map(|revision| self.pending.remove(&index(revision)));
            after.map(|revision| self.pending.insert(index(revision)));
        }
        result
    }

    /// Removes a deleted node, and wakes its stream, which then ends.
    fn remove_node(&mut self, name: &NodeName, at: Instant) {
        let Some(progress) = self.nodes.remove(name) else {
            return;
        };
        if let Some(pending) = progress.first_unenforced {
            self.pending.remove(&(pending, name.clone()));
        }
        progress.wake();
        let others = self.rollouts.remove_node(name);
        self.refresh(&others, at);
    }
}

/// The versions that a node is to hold. After a restart in mid-rollout the settled version is unknown. A node with an
/// empty window is then sent nothing: the latest version alone would put it ahead of the others.
fn desired(rollouts: &Rollouts, name: &NodeName, progress: &NodeProgress) -> Vec<VersionRef> {
    match progress.begins_with_nothing() {
        true => Vec::new(),
        false => rollouts.window(name, progress.settled_versions()),
    }
}
