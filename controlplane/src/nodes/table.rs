//! The table of nodes: the entries, the rollouts between them, and an index of the nodes that lag. Pure: it is told the
//! time, takes no lock, and wakes streams without waiting for them.

mod admission;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use sallyport_policy::{Epoch, NodePolicy, Position, Revision, Version, Ways};
use sallyport_proto::wire::turned_away::Reason;

pub use self::admission::Admission;
use super::{
    Affected, Health, Membership, RolloutStatus, SessionError, Settings, Status, StreamId,
    UnreachablePolicy, Update,
    entry::{Entry, Known},
    prepare::{Before, Prepared},
    rollout::{Leg, Rollout, Rollouts},
    turned_away::Unregistered,
};

/// Where the control plane is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) epoch: Epoch,
    pub(super) revision: Revision,
}

/// What a table starts with.
#[derive(Clone, Debug)]
pub struct Start {
    /// How often the control plane was restored from a backup.
    pub epoch: Epoch,
    /// The last transaction.
    pub revision: Revision,
    /// The last transaction up to which every node was seen to hold what it takes away; earlier ones are no matter.
    pub settled: Revision,
    /// The nodes that have joined and have not left.
    pub joined: BTreeMap<String, Membership>,
    /// The nodes that left, and how long ago.
    pub left: BTreeMap<String, Duration>,
}

/// Every node, and every edit on its way to some.
#[derive(Debug)]
pub struct Table {
    settings: Settings,
    now: Now,
    entries: BTreeMap<String, Entry>,
    rollouts: Rollouts,
    /// The nodes that lag, by the first revision that they lack.
    pending: BTreeSet<(Revision, String)>,
    last_stream: StreamId,
    /// The enforcers whose names no Node object has.
    strangers: Unregistered,
    /// How many enforcers were turned away, by reason.
    turned_away: BTreeMap<Reason, u64>,
    /// Whether every stream is to end.
    stopping: bool,
    /// When to look again which nodes need not be waited for; at once if something changed that bears on it.
    look_again: Look,
}

/// When to look again.
#[derive(Clone, Copy, Debug)]
enum Look {
    Now,
    At(Option<Instant>),
}

impl Table {
    /// The nodes as of a revision. None of them has said anything yet.
    pub fn new(
        start: Start,
        settings: Settings,
        policies: impl IntoIterator<Item = (String, Arc<NodePolicy>)>,
        at: Instant,
    ) -> Table {
        let Start {
            epoch,
            revision,
            settled,
            joined,
            left,
        } = start;
        let mut table = Table {
            settings,
            now: Now { epoch, revision },
            entries: BTreeMap::new(),
            rollouts: Rollouts::new(settings.drain),
            pending: BTreeSet::new(),
            last_stream: StreamId::default(),
            strangers: Unregistered::default(),
            turned_away: BTreeMap::new(),
            stopping: false,
            look_again: Look::Now,
        };
        // In the middle of a rollout nobody knows which versions which node holds until it says so.
        let quiet = settled >= revision || joined.is_empty();
        let mut rollout = Rollout::new(revision, settings.unreachable, at);
        rollout.first = revision.min(settled.next());
        rollout.leads_from_unknown();
        rollout.extent_mut().touch_all();
        for (name, policy) in policies {
            let position = table.position(revision, &policy);
            let version = Version { position, policy };
            let mut entry = Entry::new(quiet.then(|| version.clone()), at);
            entry.membership = joined.get(&name).copied().unwrap_or_default();
            // A lease that an earlier life granted may last.
            let leased = entry.membership.is_leased();
            entry.lease_until = leased.then(|| at + settings.lease_longest);
            entry.start_with(&version, settings.unreachable);
            if let Some(&ago) = left.get(&name) {
                entry.leave(at.checked_sub(ago).unwrap_or(at));
            }
            if !quiet {
                let both = Ways {
                    revokes: true,
                    grants: true,
                };
                let leg = Leg {
                    version,
                    ways: both,
                    since: at,
                };
                rollout.add(&name, leg, entry.membership.is_joined());
            }
            table.entries.insert(name.clone(), entry);
        }
        if !quiet {
            table.rollouts.add(rollout);
        }
        let names: Vec<String> = table.entries.keys().cloned().collect();
        for name in names {
            table.update(&name, at, |_| {});
        }
        table.advance(at);
        table
    }

    fn position(&self, revision: Revision, policy: &NodePolicy) -> Position {
        Position {
            epoch: self.now.epoch,
            revision,
            digest: policy.digest(),
        }
    }

    /// The state of the nodes that a commit affects, to prepare it with. Only commits change the policies in it; what a node
    /// does with unknown addresses it may say at any time.
    pub(super) fn before(&self, affected: &Affected) -> Before {
        let entry = |(name, _): &(String, _)| {
            let entry = self.entries.get(name)?;
            Some((
                name.clone(),
                (entry.policy().clone(), entry.unknown().clone()),
            ))
        };
        affected.policies.iter().filter_map(entry).collect()
    }

    /// Prepares a commit.
    pub fn prepare(&self, affected: Affected) -> Prepared {
        let before = self.before(&affected);
        Prepared::new(affected, &before)
    }

    /// A transaction was committed. Every one has to be told, in order.
    pub fn commit(
        &mut self,
        revision: Revision,
        prepared: Prepared,
        unreachable: Option<UnreachablePolicy>,
        at: Instant,
    ) {
        self.now.revision = revision;
        for name in prepared.gone {
            self.forget(&name, at);
        }
        let unreachable = unreachable.unwrap_or(self.settings.unreachable);
        let mut rollout = Rollout::new(revision, unreachable, at);
        *rollout.extent_mut() = prepared.extent;
        let mut woken = Vec::with_capacity(prepared.changes.len());
        for name in prepared.come {
            let nothing = Arc::<NodePolicy>::default();
            let position = self.position(revision.previous(), &nothing);
            let settled = Version {
                position,
                policy: nothing,
            };
            self.strangers.registered(&name);
            self.entries.insert(name, Entry::new(Some(settled), at));
        }
        for change in prepared.changes {
            let name = change.node.clone();
            let position = self.position(revision, &change.policy);
            let entry = self.entries.get_mut(&name).expect("it was there or came");
            let ways = change.ways(entry.unknown());
            let on_their_way = self.rollouts.versions(&name);
            let version = entry.changed(
                position,
                change.policy,
                on_their_way.map(|version| version.position.revision),
            );
            let leg = Leg {
                version,
                ways,
                since: at,
            };
            rollout.add(&name, leg, entry.membership.is_joined());
            woken.push(name);
        }
        if !rollout.is_empty() {
            self.rollouts.add(rollout);
        }
        self.look_again = Look::Now;
        // What only gives passes at once, and so brings its nodes up to date.
        self.advance(at);
        if self.settled() < revision {
            self.refresh(&woken, at);
            self.advance(at);
        }
    }

    /// Lets every rollout pass that can by now. Returns when there may be more to do, if nothing else happens.
    pub fn advance(&mut self, at: Instant) -> Option<Instant> {
        let next = match self.look_again {
            Look::At(next) if next.is_none_or(|next| next > at) => next,
            _ => self.pass_over(at),
        };
        self.look_again = Look::At(next);
        while let Some(passed) = self.rollouts.pass_one(at) {
            for (node, how) in &passed.passed_over {
                if let Some(entry) = self.entries.get_mut(node) {
                    entry.passed_over = Some(*how);
                }
            }
            let mut names = Vec::with_capacity(passed.legs().len());
            for (name, version) in passed.into_legs() {
                if let Some(entry) = self.entries.get_mut(&name) {
                    entry.settle_on(version);
                    names.push(name);
                }
            }
            // Those behind it may go further, too.
            for rollout in self.rollouts.iter() {
                names.extend(rollout.legs().keys().cloned());
            }
            self.refresh(&names, at);
        }
        let drained = self.rollouts.next_drained();
        [next, drained].into_iter().flatten().min()
    }

    /// Stops waiting for nodes that cannot be reached, where that is wanted and may be. Returns when to look again.
    fn pass_over(&mut self, at: Instant) -> Option<Instant> {
        let Settings { patience, .. } = self.settings;
        let mut next: Option<Instant> = None;
        for rollout in self.rollouts.iter_mut() {
            if rollout.unreachable == UnreachablePolicy::Wait {
                continue;
            }
            for name in rollout.waiting().clone() {
                let (Some(entry), Some(since)) =
                    (self.entries.get(&name), rollout.waits_since(&name))
                else {
                    continue;
                };
                // What a fence waits for is the end of the lease: how the node is does not matter.
                let until = match rollout.unreachable {
                    UnreachablePolicy::Fence => entry.lease_until,
                    _ if entry.passed_over == Some(UnreachablePolicy::Skip) => Some(at),
                    _ => Some(since + patience),
                };
                match until {
                    // It never had a lease: nothing closes it.
                    None => {}
                    Some(until) if until > at => {
                        next = Some(next.map_or(until, |next| next.min(until)))
                    }
                    Some(_) if rollout.unreachable == UnreachablePolicy::Fence => {
                        rollout.pass_over(&name, UnreachablePolicy::Fence);
                    }
                    Some(_) if entry.is_unreachable(patience, at) => {
                        rollout.pass_over(&name, UnreachablePolicy::Skip);
                    }
                    Some(_) => next = Some(at + patience),
                }
            }
        }
        next
    }

    /// The state of every node, by name.
    pub fn status(&self, at: Instant) -> Vec<Status> {
        self.entries
            .iter()
            .map(|(name, entry)| entry.status(name, self.now, at))
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
                passed_over: rollout.passed_over.clone(),
            })
            .collect()
    }

    /// The last revision up to which every rollout has passed its barrier.
    pub fn settled(&self) -> Revision {
        self.rollouts.settled(self.now.revision)
    }

    /// The nodes that do not enforce a revision yet, or hold back a later one that it is not enforced without.
    pub fn lagging(&self, revision: Revision, at: Instant) -> Vec<Status> {
        let lagging = self.pending.range(..(revision.next(), String::new()));
        let rollouts = self.rollouts.iter();
        let held_back = rollouts
            .filter(|rollout| rollout.first <= revision)
            .flat_map(Rollout::waiting);
        let lagging = lagging.map(|(_, name)| name);
        let names: BTreeSet<_> = lagging.chain(held_back).collect();
        names
            .into_iter()
            .map(|name| self.entries[name].status(name, self.now, at))
            .collect()
    }

    /// The nodes that edits go on without, and those that left.
    pub fn passed_over(&self, at: Instant) -> Vec<Status> {
        let over = |(_, entry): &(&String, &Entry)| entry.passed_over.is_some() || entry.has_left();
        let entries = self.entries.iter().filter(over);
        entries
            .map(|(name, entry)| entry.status(name, self.now, at))
            .collect()
    }

    /// The first revision that is not enforced everywhere. That every node enforces it or a later one is not enough while a
    /// later one is on its way: of two nodes that enforce different ones, both may let pass what neither revision allows.
    pub fn lacking(&self) -> Option<Revision> {
        let lags = self.pending.first().map(|(first, _)| *first);
        let held_back = self.rollouts.first_held_back();
        [lags, held_back].into_iter().flatten().min()
    }

    /// Whether every node that must enforces a revision.
    pub fn enforces(&self, revision: Revision) -> bool {
        self.lacking().is_none_or(|first| first > revision)
    }

    /// Somebody opens a stream. Returns its number. A node says Hello only when its stream was accepted, so what it says
    /// on a stream with a lower number is older, whenever it comes.
    pub fn accept(&mut self) -> StreamId {
        self.last_stream = self.last_stream.next();
        self.last_stream
    }

    /// The membership of a node.
    pub fn membership(&self, name: &str) -> Membership {
        let entry = self.entries.get(name);
        entry.map_or(Membership::New, |entry| entry.membership)
    }

    /// Barriers wait for a node from now on. That it has joined is durable.
    pub fn join(&mut self, name: &str, leased: bool, at: Instant) {
        let Some(entry) = self.entries.get_mut(name) else {
            return;
        };
        let joined = Membership::Joined { leased };
        let before = std::mem::replace(&mut entry.membership, joined);
        // A lease that it had lasts; without leases nothing closes it.
        entry.lease_until = leased.then(|| entry.lease_until.unwrap_or(at));
        if !before.is_joined() {
            self.rollouts
                .ask(name, |version| entry.enforces(version), at);
        }
        self.look_again = Look::Now;
        self.update(name, at, |_| {});
    }

    /// A node is about to leave: it cannot connect until it did, or stays. Says whether it has left already.
    pub fn begin_to_leave(&mut self, name: &str) -> Result<bool, SessionError> {
        let owned = || name.to_owned();
        match self.entries.get_mut(name) {
            None => Err(SessionError::Unregistered { name: owned() }),
            Some(entry) if entry.is_connected() => Err(SessionError::Connected { name: owned() }),
            Some(entry) if entry.leaving => Err(SessionError::Leaving { name: owned() }),
            Some(entry) if entry.has_left() => Ok(true),
            Some(entry) => {
                entry.leaving = true;
                Ok(false)
            }
        }
    }

    /// A node leaves. That it left is durable. Its object may have been deleted meanwhile.
    pub fn leave(&mut self, name: &str, at: Instant) {
        if !self.entries.contains_key(name) {
            return;
        }
        self.rollouts.leave(name);
        self.update(name, at, |entry| entry.leave(at));
        self.look_again = Look::Now;
        self.advance(at);
    }

    /// A node that was about to leave does not.
    pub fn stay(&mut self, name: &str) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.leaving = false;
        }
    }

    /// What to send a node now, if anything.
    pub fn next_update(
        &mut self,
        name: &str,
        session: StreamId,
        snapshot: bool,
        at: Instant,
    ) -> Result<Option<Update>, SessionError> {
        self.check(name, session)?;
        let entry = self.entries.get_mut(name).expect("just checked");
        let desired = desired(&self.rollouts, name, entry);
        let update = entry.next_update(&desired, snapshot, at);
        if update.is_some() {
            self.update(name, at, |_| {});
        }
        Ok(update)
    }

    /// A node has what was sent.
    pub fn acked(
        &mut self,
        name: &str,
        session: StreamId,
        window: &[Position],
        at: Instant,
    ) -> Result<(), SessionError> {
        self.check(name, session)?;
        self.update(name, at, |entry| entry.acked(window))?;
        self.advance(at);
        Ok(())
    }

    /// A node refused what was sent.
    pub fn nacked(
        &mut self,
        name: &str,
        session: StreamId,
        (target, window): (Position, &[Position]),
        reason: String,
        at: Instant,
    ) -> Result<(), SessionError> {
        self.check(name, session)?;
        let known: Vec<Version> = self.rollouts.versions(name).cloned().collect();
        self.update(name, at, |entry| {
            entry.nacked(target, window, reason, &known)
        })?;
        let entry = &self.entries[name];
        self.rollouts
            .ask(name, |version| entry.enforces(version), at);
        self.look_again = Look::Now;
        self.advance(at);
        Ok(())
    }

    /// A node says something of itself. One that does not judge all traffic is waited for by the edits on their way, whatever it
    /// acknowledged. Of one that names workloads whose traffic no policy judges that holds for who waits for enforcement alone.
    pub fn says(
        &mut self,
        name: &str,
        session: StreamId,
        health: Health,
        at: Instant,
    ) -> Result<(), SessionError> {
        self.check(name, session)?;
        let entry = self.entries.get_mut(name).expect("just checked");
        let was_judging = entry.not_judged().is_none();
        entry.says(health, at);
        if was_judging != entry.not_judged().is_none() {
            if entry.membership.is_joined() {
                self.rollouts
                    .ask(name, |version| entry.enforces(version), at);
            }
            self.look_again = Look::Now;
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
        name: &str,
        session: StreamId,
        at: Instant,
    ) -> Result<bool, SessionError> {
        self.check(name, session)?;
        let entry = self.entries.get_mut(name).expect("just checked");
        let lease = entry.lease();
        let overdue = |rollout: &Rollout| {
            let late = |since: Instant| at.saturating_duration_since(since) > lease / 2;
            rollout.unreachable == UnreachablePolicy::Fence
                && rollout.waits_since(name).is_some_and(late)
        };
        // A rollout that went on without it may pass any moment.
        let without = |rollout: &Rollout| rollout.passed_over.contains_key(name);
        let refused = |rollout: &Rollout| overdue(rollout) || without(rollout);
        if !entry.may_have_lease() || self.rollouts.iter().any(refused) {
            return Ok(false);
        }
        // A node without leases is told that this is known. Nothing closes it.
        if entry.membership.is_leased() {
            // Its clock and ours may not run quite alike. One that was longer may be in force still.
            entry.lease_until = entry.lease_until.max(Some(at + lease + lease / 64));
        }
        self.look_again = Look::Now;
        Ok(true)
    }

    /// The nodes that nothing closes when they cannot be reached.
    pub fn without_leases(&self) -> Vec<String> {
        let open = self.entries.iter();
        let open =
            open.filter(|(_, entry)| entry.membership == Membership::Joined { leased: false });
        open.map(|(name, _)| name.clone()).collect()
    }

    /// How edits are led through the cluster.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// A node's stream is over.
    pub fn disconnected(&mut self, name: &str, session: StreamId, at: Instant) {
        // Another stream or the node's removal may have come first.
        let entry = self.entries.get(name);
        if entry.is_some_and(|entry| entry.is_session(session)) {
            self.update(name, at, Entry::disconnected);
            self.look_again = Look::Now;
        }
    }

    /// Every stream is to end.
    pub fn stop(&mut self) {
        self.stopping = true;
        self.entries.values().for_each(Entry::wake);
    }

    fn check(&self, name: &str, session: StreamId) -> Result<(), SessionError> {
        let owned = || name.to_owned();
        match self.entries.get(name) {
            None => Err(SessionError::Removed { name: owned() }),
            Some(entry) if !entry.is_session(session) => match entry.rivals.clones() {
                Some(_) => Err(admission::cloned(name, entry)),
                None => Err(SessionError::Replaced { name: owned() }),
            },
            Some(_) if self.stopping => Err(SessionError::Stopping),
            Some(_) => Ok(()),
        }
    }

    /// Brings nodes up to date whose desired versions may be others.
    fn refresh(&mut self, names: &[String], at: Instant) {
        for name in names {
            self.update(name, at, |_| {});
        }
    }

    /// Changes an entry, and brings what follows from it up to date.
    fn update<T>(&mut self, name: &str, at: Instant, change: impl FnOnce(&mut Entry) -> T) -> T {
        let now = self.now;
        let entry = self.entries.get_mut(name).expect("a node that is known");
        let result = change(entry);
        self.rollouts.held(name, |version| entry.enforces(version));
        if entry.begins_with_nothing() {
            self.rollouts.begin_without(name);
        }
        let desired = desired(&self.rollouts, name, entry);
        entry.settle(&desired, at);
        let (before, after) = (entry.lags, entry.waited_for(now));
        if before != after {
            entry.lags = after;
            let index = |revision| (revision, name.to_owned());
            before.map(|revision| self.pending.remove(&index(revision)));
            after.map(|revision| self.pending.insert(index(revision)));
        }
        result
    }

    /// Forgets a node. Its stream finds that out.
    fn forget(&mut self, name: &str, at: Instant) {
        let Some(entry) = self.entries.remove(name) else {
            return;
        };
        if let Some(pending) = entry.lags {
            self.pending.remove(&(pending, name.to_owned()));
        }
        entry.wake();
        let others = self.rollouts.forget(name);
        self.refresh(&others, at);
    }
}

/// The versions that a node is to hold. While nobody knows what the others have in common a node that begins with nothing
/// is given nothing, and not waited for: alone it might be ahead of them.
fn desired(rollouts: &Rollouts, name: &str, entry: &Entry) -> Vec<Known> {
    match entry.begins_with_nothing() {
        true => Vec::new(),
        false => rollouts.window(name, entry.settled()),
    }
}
