//! The progress of one node: the versions of its policy that it holds, must hold, and is being sent. Pure bookkeeping:
//! it takes no lock, and waits on no channel.
//!
//! `pending` is the first revision that changed the node's policy and that the node does not enforce. It is exact
//! while updates are merged: for every version that the node may report, the first change after it is kept. A policy
//! that changed and changed back counts as enforced when the node has it again.
//!
//! Three independent states decide the node's part in rollouts. `recovery` says whether the node may have leases,
//! `departure` whether it may connect, `bypassed` whether edits wait for it. After startup only the transitions
//! `become_*` change them.

mod departure;
mod recovery;
mod status;

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use sallyport_policy::{Digest, NodePolicy, Position, Revision, UnknownAddresses, Version};
use sallyport_proto::wire::trouble::Kind;
use tokio::sync::Notify;

pub(super) use self::status::clones;
use self::{departure::Departure, recovery::Recovery};
use super::{
    Health, Hello, Membership, ReportedCondition, SessionError, Settings, State, StreamId,
    UnreachablePolicy, Update,
    coordinator::Head,
    pings::Pings,
    rivals::{Enforcer, First, Rivals},
    turned_away::RefusedSessions,
};

/// The progress of one node through the versions of its policy, and its connection.
#[derive(Debug)]
pub(super) struct NodeProgress {
    /// The latest policy of the node.
    policy: Arc<NodePolicy>,
    /// The version of the last rollout that passed its barrier; unknown after a restart in mid-rollout.
    settled: Option<Version>,
    /// The versions that the node acknowledged, oldest first.
    held: Vec<VersionRef>,
    /// The revisions that changed the policy: for every version that the node may report, the first one after it.
    changes: BTreeSet<Revision>,
    /// The version at the start of this process. The revisions that led to it are unknown.
    started_with: Option<Position>,
    recovery: Recovery,
    /// The digests of the versions that the node is to hold.
    desired: Vec<Digest>,
    in_flight: Option<InFlight>,
    connection: Option<Connection>,
    /// The last stream on which the node said Hello.
    greeted: StreamId,
    /// When the last message of its enforcer came.
    heard: Option<Instant>,
    /// The enforcers that claim the node's name.
    pub(super) rivals: Rivals,
    /// The last enforcer that lost the name because it was silent, the one that took the name, and when.
    replaced: Option<(Enforcer, Enforcer, Instant)>,
    /// The sessions that were refused under the node's name.
    pub(super) refused_sessions: RefusedSessions,
    /// The reason of the node's last Nack, until its next Ack.
    refusal: Option<String>,
    /// The last health report, and its time. While the node is disconnected only `NotJudged` and the workloads whose
    /// traffic is not judged are kept.
    health: (Health, Instant),
    version: String,
    unknown: UnknownAddresses,
    /// Barriers wait for joined nodes only.
    membership: Membership,
    departure: Departure,
    /// Under which policy a barrier bypassed the node. It gets no lease until it holds the settled version.
    bypassed: Option<UnreachablePolicy>,
    /// When the lease has run out for sure. None of a node that never had a lease, or has no leases.
    lease_until: Option<Instant>,
    /// The last value of [`waited_for`](NodeProgress::waited_for), under which the coordinator's index has the node.
    pub(super) first_unenforced: Option<Revision>,
    state: State,
    since: Instant,
}

/// A reference to a version of a node's policy: its position, and the policy if this process knows it.
#[derive(Clone, Debug)]
pub(super) struct VersionRef {
    pub(super) position: Position,
    pub(super) policy: Option<Arc<NodePolicy>>,
}

/// An update that is not answered yet.
#[derive(Debug)]
struct InFlight {
    target: Position,
    /// What the node holds then.
    held: Vec<VersionRef>,
    since: Instant,
}

#[derive(Debug)]
struct Connection {
    session: StreamId,
    /// Wakes the stream: there may be something to send, or it is over.
    wake: Arc<Notify>,
    lease: Duration,
    /// Which enforcer it is; none of an earlier version, which answers no Ping.
    enforcer: Option<Enforcer>,
    since: Instant,
    pings: Pings,
}

impl From<&Version> for VersionRef {
    fn from(version: &Version) -> VersionRef {
        VersionRef {
            position: version.position,
            policy: Some(version.policy.clone()),
        }
    }
}

impl NodeProgress {
    /// A node without a policy, never seen, that is settled on a version.
    pub(super) fn new(settled: Option<Version>, now: Instant) -> NodeProgress {
        NodeProgress {
            policy: Arc::default(),
            settled,
            held: Vec::new(),
            changes: BTreeSet::new(),
            started_with: None,
            recovery: Recovery::Proven,
            desired: Vec::new(),
            in_flight: None,
            connection: None,
            greeted: StreamId::default(),
            heard: None,
            rivals: Rivals::default(),
            replaced: None,
            refused_sessions: RefusedSessions::default(),
            refusal: None,
            health: (Health::default(), now),
            version: String::new(),
            unknown: UnknownAddresses::default(),
            membership: Membership::New,
            departure: Departure::Staying,
            bypassed: None,
            lease_until: None,
            first_unenforced: None,
            state: State::Unknown,
            since: now,
        }
    }

    /// The latest policy of the node.
    pub(super) fn policy(&self) -> &Arc<NodePolicy> {
        &self.policy
    }

    /// What it does with unknown workload addresses.
    pub(super) fn unknown(&self) -> &UnknownAddresses {
        &self.unknown
    }

    /// Whether the node holds a version for sure: it acknowledged it, and the update in flight does not drop it.
    pub(super) fn holds(&self, version: Digest) -> bool {
        let has = |held: &[VersionRef]| held.iter().any(|known| known.position.digest == version);
        has(&self.held)
            && self
                .in_flight
                .as_ref()
                .is_none_or(|update| has(&update.held))
    }

    /// The condition that not all traffic is judged, if the node's last report has it.
    pub(super) fn not_judged(&self) -> Option<&ReportedCondition> {
        let mut conditions = self.health.0.conditions.iter();
        conditions.find(|condition| condition.kind == Kind::NotJudged)
    }

    /// Whether a barrier may count on it: it holds a version for sure, and judges all traffic.
    pub(super) fn enforces(&self, version: Digest) -> bool {
        self.not_judged().is_none() && self.holds(version)
    }

    /// The first revision that changed its policy and that it does not enforce. A node that does not judge all traffic
    /// enforces none.
    pub(super) fn pending(&self, head: Head) -> Option<Revision> {
        if self.has_left() {
            return None;
        }
        if self.not_judged().is_some() {
            return Some(Revision(1));
        }
        if self.enforces_all() {
            return None;
        }
        let Some(oldest) = self.held.first() else {
            return Some(self.changes.first().copied().unwrap_or(Revision(1)));
        };
        let after = match oldest.position.epoch == head.epoch {
            true => oldest.position.revision.next(),
            false => Revision(1),
        };
        let after = match self.started_with {
            Some(start) if after <= start.revision => {
                match oldest.position.digest == start.digest {
                    true => start.revision.next(),
                    // Any revision since may have changed it.
                    false => return Some(after),
                }
            }
            _ => after,
        };
        let first = self.changes.range(after..).next().copied();
        // A version that is not known here: what came after it is pending, if not more.
        Some(first.unwrap_or(after.min(head.revision).max(Revision(1))))
    }

    /// The first revision that callers of `WaitEnforced` wait for at this node: 1 while a workload evades policy, none
    /// while the node is bypassed.
    pub(super) fn waited_for(&self, head: Head) -> Option<Revision> {
        match self.bypassed {
            None if self.health.0.unjudged.evades() => Some(Revision(1)),
            None => self.pending(head),
            Some(_) => None,
        }
    }

    /// Whether nothing is missing. A node that holds nothing has the empty policy. While something is under way nobody
    /// knows what it has.
    fn enforces_all(&self) -> bool {
        let digest = self.policy.digest();
        self.in_flight.is_none()
            && match &self.held[..] {
                [] => digest == NodePolicy::default().digest(),
                [only] => only.position.digest == digest,
                _ => false,
            }
    }

    /// The policy is another one from a revision on. Returns the version that this is.
    pub(super) fn changed(
        &mut self,
        position: Position,
        policy: Arc<NodePolicy>,
        on_their_way: impl Iterator<Item = Revision>,
    ) -> Version {
        self.policy = policy.clone();
        self.changes.insert(position.revision);
        let in_flight = self.in_flight.iter().flat_map(|update| &update.held);
        let told = self.held.iter().chain(in_flight);
        let told = told.map(|held| held.position.revision);
        let settled = self.settled.iter().map(|version| version.position.revision);
        let versions: BTreeSet<Revision> = told.chain(settled).chain(on_their_way).collect();
        let after = |revision: Revision| self.changes.range(revision.next()..).next().copied();
        let first = self.changes.first().copied();
        self.changes = versions
            .into_iter()
            .filter_map(after)
            .chain(first)
            .collect();
        Version { position, policy }
    }

    /// Sets the version that the node must enforce as this process starts. The revision that made the version was
    /// forgotten: perhaps the first. A lease that the previous process granted may last.
    pub(super) fn start_with(
        &mut self,
        version: &Version,
        membership: Membership,
        settings: Settings,
        now: Instant,
    ) {
        self.membership = membership;
        let leased = membership.is_leased();
        self.lease_until = leased.then(|| now + settings.lease_longest);
        self.recovery = Recovery::at_startup(version.position.digest, settings.unreachable);
        self.policy = version.policy.clone();
        self.changes.insert(Revision(1));
        self.started_with = Some(version.position);
    }

    /// Notes that every rollout up to this version has passed its barrier.
    pub(super) fn settle_on(&mut self, version: Version) {
        self.settled = Some(version);
    }

    /// The versions that the node keeps whatever the rollouts: the settled one, or all that it holds if none is known.
    pub(super) fn settled_versions(&self) -> Vec<VersionRef> {
        match &self.settled {
            Some(version) => vec![version.into()],
            None => self.held.clone(),
        }
    }

    /// The node is there. Returns what wakes its session. `known` are the versions that it may speak of.
    pub(super) fn connected(
        &mut self,
        session: StreamId,
        hello: Hello,
        known: &[Version],
        now: Instant,
    ) -> Arc<Notify> {
        self.wake();
        self.become_staying();
        self.rivals.admitted(hello.enforcer);
        self.rivals.wake();
        self.greeted = session;
        self.heard = Some(now);
        let wake = Arc::<Notify>::default();
        self.connection = Some(Connection {
            session,
            wake: wake.clone(),
            lease: hello.lease,
            enforcer: hello.enforcer,
            since: now,
            pings: Pings::default(),
        });
        self.version = hello.version;
        self.unknown = hello.unknown;
        self.refusal = None;
        if let Some(health) = hello.health {
            self.report_health(health, now);
        }
        self.reported(&hello.window, known);
        wake
    }

    /// The node says what it holds; what was in flight arrived or was lost.
    fn reported(&mut self, window: &[Position], known: &[Version]) {
        let in_flight = self.in_flight.take();
        let was_empty = self.held.is_empty();
        let told = in_flight.into_iter().flat_map(|update| update.held);
        let told: Vec<VersionRef> = self.held.drain(..).chain(told).collect();
        let versions = known.iter().chain(&self.settled).map(VersionRef::from);
        let latest = VersionRef {
            position: Position {
                digest: self.policy.digest(),
                ..Position::default()
            },
            policy: Some(self.policy.clone()),
        };
        let candidates: Vec<VersionRef> = [latest, VersionRef::nothing()]
            .into_iter()
            .chain(versions)
            .chain(told)
            .collect();
        self.held = window
            .iter()
            .map(|&position| VersionRef {
                position,
                policy: candidates
                    .iter()
                    .find(|held| held.position.digest == position.digest && held.policy.is_some())
                    .and_then(|held| held.policy.clone()),
            })
            .collect();
        if self.held.is_empty() && !was_empty {
            // It lost all: all is pending again, from a revision that we cannot know.
            self.changes.insert(Revision(1));
        }
    }

    /// Whether the node connected with an empty window while the settled version is unknown.
    pub(super) fn begins_with_nothing(&self) -> bool {
        self.settled.is_none()
            && self.is_connected()
            && self.held.is_empty()
            && self.in_flight.is_none()
    }

    /// Whether it said Hello on a later stream than this one.
    pub(super) fn is_past(&self, stream: StreamId) -> bool {
        stream < self.greeted
    }

    /// Takes the node's health report.
    pub(super) fn report_health(&mut self, health: Health, now: Instant) {
        self.health = (health, now);
    }

    pub(super) fn disconnected(&mut self) {
        self.rivals.wake();
        self.connection = None;
        // It may be gone just because it cannot start where it does not judge all traffic.
        let (health, _) = &mut self.health;
        health
            .conditions
            .retain(|condition| condition.kind == Kind::NotJudged);
        self.refusal = None;
    }

    /// Barriers wait for the node from now on. A lease that it had lasts; without leases nothing closes the node.
    /// Returns the membership before.
    pub(super) fn become_joined(&mut self, membership: Membership, at: Instant) -> Membership {
        let leased = membership.is_leased();
        self.lease_until = leased.then(|| self.lease_until.unwrap_or(at));
        std::mem::replace(&mut self.membership, membership)
    }

    pub(super) fn membership(&self) -> Membership {
        self.membership
    }

    /// The node asked to leave, which is to become durable. No enforcer may connect from now on.
    pub(super) fn become_leaving(&mut self) {
        self.departure = Departure::Leaving;
    }

    /// The node is expected again: it connected, or its departure could not be made durable.
    pub(super) fn become_staying(&mut self) {
        self.departure = Departure::Staying;
    }

    /// The node left: nothing is enforced on it. When it comes back, its policy is older than the edits made meanwhile,
    /// even if it is the version at the start of this process.
    pub(super) fn become_left(&mut self, at: Instant) {
        self.departure = Departure::Left;
        self.recovery = Recovery::Unproven;
        (self.membership, self.bypassed, self.lease_until) = (Membership::New, None, None);
        (self.in_flight, self.refusal) = (None, None);
        self.held.clear();
        self.health.0 = Health::default();
        self.version.clear();
        (self.state, self.since) = (State::Left, at);
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.departure == Departure::Leaving
    }

    pub(super) fn has_left(&self) -> bool {
        self.departure == Departure::Left
    }

    /// A barrier passed without the node. It gets no lease until it has caught up.
    pub(super) fn become_bypassed(&mut self, how: UnreachablePolicy) {
        self.bypassed = Some(how);
    }

    /// The node has caught up with the rollouts that passed without it, and judges all traffic. Edits wait for it
    /// again.
    fn become_waited_for(&mut self) {
        self.bypassed = None;
    }

    /// The node holds a version that proves that it missed no edit.
    fn become_proven(&mut self) {
        self.recovery = Recovery::Proven;
    }

    /// Under which policy a barrier bypassed the node.
    pub(super) fn bypassed(&self) -> Option<UnreachablePolicy> {
        self.bypassed
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    pub(super) fn is_session(&self, session: StreamId) -> bool {
        self.connection
            .as_ref()
            .is_some_and(|connection| connection.session == session)
    }

    /// The enforcer that has the name and can be asked whether it is there.
    pub(super) fn first(&self) -> Option<First> {
        let connection = self.connection.as_ref()?;
        Some(First {
            session: connection.session,
            enforcer: connection.enforcer?,
            next_ping: connection.pings.next(),
            answered: connection.pings.answered(),
        })
    }

    /// When the present enforcer connected.
    pub(super) fn connected_since(&self) -> Option<Instant> {
        Some(self.connection.as_ref()?.since)
    }

    /// Another enforcer takes the name, since the one that has it is silent.
    pub(super) fn replaces(&mut self, newcomer: Option<Enforcer>, now: Instant) {
        let first = self.first().map(|first| first.enforcer);
        if let (Some(first), Some(newcomer)) = (first, newcomer)
            && first.instance != newcomer.instance
        {
            self.replaced = Some((first, newcomer, now));
        }
    }

    /// The present enforcer is to be sent the Ping of a number.
    pub(super) fn wants_ping(&mut self, number: u64) {
        if let Some(connection) = &mut self.connection
            && connection.pings.want(number)
        {
            connection.wake.notify_one();
        }
    }

    /// The Ping to send now, or else when to look again.
    pub(super) fn ping(&mut self, now: Instant) -> Result<u64, Option<Instant>> {
        let under_way = self.in_flight.as_ref().map(|update| update.since);
        match &mut self.connection {
            Some(connection) if connection.enforcer.is_some() => {
                connection.pings.take(under_way, now)
            }
            _ => Err(None),
        }
    }

    /// The enforcer answered a Ping.
    pub(super) fn ponged(&mut self, number: u64) {
        if let Some(connection) = &mut self.connection {
            connection.pings.answer(number);
        }
        self.rivals.wake();
    }

    /// A message of the enforcer came.
    pub(super) fn received(&mut self, now: Instant) {
        self.heard = Some(now);
        if let Some(connection) = &mut self.connection {
            connection.pings.received();
        }
    }

    /// Whether it may have a lease: not if edits went on without it, or may have before this process started.
    pub(super) fn may_have_lease(&self) -> bool {
        self.bypassed.is_none() && self.recovery == Recovery::Proven
    }

    /// The time that a lease of the node lasts; zero when the node has none.
    pub(super) fn lease(&self) -> Duration {
        self.connection
            .as_ref()
            .map_or(Duration::ZERO, |connection| connection.lease)
    }

    /// When its lease has run out for sure, if it ever had one.
    pub(super) fn lease_until(&self) -> Option<Instant> {
        self.lease_until
    }

    /// A lease is granted to it. A node without leases asks too, and nothing closes it.
    pub(super) fn grant_lease(&mut self, at: Instant) {
        if self.membership.is_leased() {
            let lease = self.lease();
            // Its clock and ours may not run quite alike. One that was longer may be in force still.
            self.lease_until = self.lease_until.max(Some(at + lease + lease / 64));
        }
    }

    /// Whether it cannot be waited for: not connected, or silent for long, or refusing, or not judging all traffic.
    pub(super) fn is_unreachable(&self, patience: Duration, now: Instant) -> bool {
        let silent = |update: &InFlight| now.saturating_duration_since(update.since) >= patience;
        !self.is_connected()
            || self.refusal.is_some()
            || self.not_judged().is_some()
            || self.in_flight.as_ref().is_some_and(silent)
    }

    /// Has the stream look what there is to send, and whether it is over.
    pub(super) fn wake(&self) {
        if let Some(connection) = &self.connection {
            connection.wake.notify_one();
        }
    }

    /// What to send now, which is in flight from then on, so that in the end the node holds what is desired. Nothing
    /// while something is in flight, or when it does.
    pub(super) fn next_update(
        &mut self,
        desired: &[VersionRef],
        snapshot: bool,
        now: Instant,
    ) -> Option<Update> {
        if self.in_flight.is_some() || !self.membership.is_joined() || self.holds_exactly(desired) {
            return None;
        }
        let held = |known: &VersionRef| self.held.iter().find(|held| held.is(known));
        let mut absent = desired.iter().filter(|known| held(known).is_none());
        let (missing, more_missing) = (absent.next(), absent.next().is_some());
        // Where nothing is missing some that it holds are to go: it builds on the newest of those that stay.
        let come = match missing {
            Some(known) => known.clone(),
            None => held(desired.last()?)?.clone(),
        };
        let target = come.position;
        // What it holds may be what a barrier counts on, until it holds all that it is to hold.
        let stays = |held: &VersionRef| more_missing || desired.iter().any(|known| held.is(known));
        let keep = self
            .held
            .iter()
            .filter(|held| held.position != target && stays(held));
        let keep: Vec<VersionRef> = keep.cloned().collect();
        // Of a version that stays the policy need not be known: nothing leads from it to itself.
        let policy = come.policy.clone().unwrap_or_default();
        let base = match missing {
            None => Some((target, policy.clone())),
            Some(_) if snapshot => None,
            Some(_) => {
                let mut newest_first = self.held.iter().rev();
                newest_first.find_map(|held| Some((held.position, held.policy.clone()?)))
            }
        };
        let mut after = keep.clone();
        after.insert(after.partition_point(|held| held.position < target), come);
        self.in_flight = Some(InFlight {
            target,
            held: after,
            since: now,
        });
        Some(Update {
            base,
            target,
            keep: keep.iter().map(|held| held.position).collect(),
            policy,
        })
    }

    fn holds_exactly(&self, desired: &[VersionRef]) -> bool {
        self.held.len() == desired.len()
            && self
                .held
                .iter()
                .zip(desired)
                .all(|(held, known)| held.is(known))
    }

    /// The node has what was sent.
    pub(super) fn acked(&mut self, window: &[Position]) -> Result<(), SessionError> {
        let expected = self.in_flight.as_ref().map(InFlight::window);
        if expected.as_deref() != Some(window) {
            return Err(SessionError::Unexpected {
                answer: "Ack",
                found: window.to_vec(),
                expected,
            });
        }
        if let Some(update) = self.in_flight.take() {
            self.held = update.held;
        }
        if let [only] = &self.held[..] {
            self.changes = self.changes.split_off(&(only.position.revision.next()));
        }
        self.refusal = None;
        Ok(())
    }

    /// The node refused what was sent, and holds this.
    pub(super) fn nacked(
        &mut self,
        target: Position,
        window: &[Position],
        reason: String,
        known: &[Version],
    ) -> Result<(), SessionError> {
        let expected = self.in_flight.as_ref().map(|update| update.target);
        if expected != Some(target) {
            return Err(SessionError::Unexpected {
                answer: "Nack",
                found: vec![target],
                expected: self.in_flight.as_ref().map(InFlight::window),
            });
        }
        self.reported(window, known);
        self.refusal = Some(reason);
        Ok(())
    }

    /// Makes the transitions that the last change allows, and wakes the stream if the desired versions changed.
    pub(super) fn recompute(&mut self, desired: &[VersionRef], now: Instant) {
        let digests = desired.iter().map(|known| known.position.digest);
        if !digests.clone().eq(self.desired.iter().copied()) {
            self.desired = digests.collect();
            self.wake();
        }
        if self.has_caught_up() && self.not_judged().is_none() {
            self.become_waited_for();
        }
        if self.holds_proof() {
            self.become_proven();
        }
        if self.enforces_all() {
            self.changes.clear();
        }
        let state = self.state(desired);
        if state != self.state {
            (self.state, self.since) = (state, now);
        }
    }

    /// Whether the node holds the settled version. If that is unknown: whether the update in flight drops nothing.
    fn has_caught_up(&self) -> bool {
        match &self.settled {
            Some(version) => self.holds(version.position.digest),
            None => {
                let mut held = self.held.iter();
                held.all(|held| self.holds(held.position.digest))
            }
        }
    }

    /// Whether the node holds a version which proves that it missed no edit.
    fn holds_proof(&self) -> bool {
        let settled = self.settled.as_ref();
        let settled = settled.map(|version| version.position.digest);
        let mut proofs = self.recovery.proofs(settled);
        proofs.any(|version| self.holds(version))
    }

    fn state(&self, desired: &[VersionRef]) -> State {
        if let Some(how) = self.bypassed {
            return match how {
                UnreachablePolicy::Fence => State::Fenced,
                _ => State::Skipped,
            };
        }
        match &self.connection {
            None if self.has_left() => State::Left,
            None if self.version.is_empty() && self.membership.is_joined() => State::NotSeen,
            None if self.rivals.clones().is_some() => State::Cloned,
            None if self.version.is_empty() => State::Unknown,
            None => State::Disconnected,
            Some(_) if self.not_judged().is_some() => State::NotJudging,
            Some(_) if self.refusal.is_some() => State::Refusing,
            Some(_) if self.enforces_all() && !self.held.is_empty() => State::Enforcing,
            Some(_) if self.in_flight.is_none() && self.holds_exactly(desired) => State::Holding,
            Some(_) => State::Updating,
        }
    }
}

impl VersionRef {
    /// Whether both refer to the same policy.
    pub(super) fn is(&self, other: &VersionRef) -> bool {
        self.position.digest == other.position.digest
    }

    /// The empty policy, of a node that enforces nothing.
    fn nothing() -> VersionRef {
        VersionRef {
            position: Position::default(),
            policy: Some(Arc::default()),
        }
    }
}

impl InFlight {
    fn window(&self) -> Vec<Position> {
        self.held.iter().map(|held| held.position).collect()
    }
}
