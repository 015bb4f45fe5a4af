//! The node registry: for each node the desired policy, the acknowledged versions and the status; and the rollouts in
//! progress. The writer notifies it of commits, the streams of answers. It sends nothing itself.
//!
//! A commit costs as much as the nodes that it affects, and wakes only their streams.

mod coordinator;
mod flow_scope;
mod health;
mod latency;
mod pings;
mod prepare;
mod progress;
mod rivals;
mod rollout;
mod session;
mod turned_away;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use prometheus_client::metrics::histogram::Histogram;
use sallyport_policy::{NodeName, NodePolicy, Position, Revision};
use sallyport_proto::wire::{condition, turned_away::Reason, unjudged_workload};
use tokio::sync::watch;

pub use sallyport_proto::{Membership, UnreachablePolicy};

use self::latency::Latency;
pub use self::{
    coordinator::{Admission, Coordinator, Start},
    health::{Health, ReportedCondition, Unjudged, UnjudgedWorkload},
    prepare::Prepared,
    rivals::{Contested, Enforcer},
    rollout::Phase,
    session::{BeliefError, Claim, Hello, Opened, Session, SessionError, Update},
    turned_away::{Strangers, TurnedAway},
};

sallyport_policy::counters! {
    /// Counts the streams that the control plane accepted.
    pub struct StreamId;
}

/// How edits are led through the cluster.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// After how long a packet that one node let through has reached the other.
    pub drain: Duration,
    /// What becomes of an edit whose revokes a node does not acknowledge, if the edit does not say.
    pub unreachable: UnreachablePolicy,
    /// The time to wait for a node before it is skipped.
    pub patience: Duration,
    /// The longest lease that a node may ask for.
    pub lease_longest: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            drain: Duration::from_millis(20),
            unreachable: UnreachablePolicy::Wait,
            patience: Duration::from_secs(5),
            lease_longest: Duration::from_secs(60),
        }
    }
}

/// How a node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// All that it must enforce is in its kernel.
    Enforcing,
    /// It enforces what both versions of an edit allow, until other nodes are as far.
    Holding,
    /// Connected, and behind.
    Updating,
    /// Connected, and it refused the last update.
    Refusing,
    /// Edits go on without it, since its lease ran out: a node that enforces has closed itself by then.
    Fenced,
    /// Edits go on without it, though it goes on enforcing what it has.
    Skipped,
    /// Not connected; it goes on enforcing what it has.
    Disconnected,
    /// It has joined, and has not connected since this process started.
    NotSeen,
    /// It said that it stops enforcing; nothing waits for it.
    Left,
    /// It has never joined.
    Unknown,
    /// Not connected: several enforcers run under one instance id, and an administrator has to decide.
    Cloned,
    /// Connected, with an update under way, and its enforcer does not answer.
    Silent,
    /// Connected, with an update under way for seconds, and its enforcer answers.
    Slow,
    /// Connected, and it says that it does not judge all traffic.
    NotJudging,
}

/// The status of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The node's name.
    pub name: NodeName,
    /// The node's state.
    pub state: State,
    /// The oldest version that the node acknowledged: the one that it fully enforces. None if its last report says that
    /// it does not judge all traffic.
    pub enforced: Option<Position>,
    /// The newest version that the node acknowledged: its revokes are in force.
    pub holds: Option<Position>,
    /// The first revision that changes the node's policy and that the node does not enforce.
    pub pending: Option<Revision>,
    /// The time that the node has been in this state.
    pub since: Duration,
    /// The reason of a refusal, or of traffic that is not judged; empty otherwise.
    pub reason: String,
    /// The version of the enforcer; empty before its first connection.
    pub version: String,
    /// The number of endpoints of the node.
    pub endpoints: usize,
    /// The conditions that the node reported last. Of a disconnected node only `NotJudged` is kept.
    pub reported: Vec<ReportedCondition>,
    /// The time since its enforcer was last heard.
    pub heard: Option<Duration>,
    /// The enforcers of this name that were turned away.
    pub turned_away: Vec<TurnedAway>,
    /// The events and lasting conditions of the node that an operator should know.
    pub conditions: Vec<Condition>,
    /// The reasons for which no policy judges traffic of some workloads of the node.
    pub unjudged: BTreeSet<unjudged_workload::Reason>,
    /// The time for which a fenced node's lease has been over.
    pub lease_over: Option<Duration>,
}

impl Status {
    /// The first revision that the node does not enforce: the pending one, or 1 where a workload evades policy.
    /// Bypassed nodes are no exception.
    pub fn first_unenforced(&self) -> Option<Revision> {
        let mut reasons = self.unjudged.iter();
        match reasons.any(|reason| *reason != unjudged_workload::Reason::NoRoute) {
            true => Some(Revision(1)),
            false => self.pending,
        }
    }
}

/// An event of a node, or a lasting condition, that an operator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The kind of event or condition.
    pub kind: condition::Kind,
    /// In words, with what to do.
    pub message: String,
    /// The time since the event, or since the beginning of the state.
    pub since: Duration,
    /// The enforcers concerned.
    pub enforcers: Vec<Enforcer>,
}

/// The status of a rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolloutStatus {
    /// The first transaction of the rollout.
    pub first: Revision,
    /// The last transaction of the rollout.
    pub last: Revision,
    /// The phase that the rollout is in.
    pub phase: Phase,
    /// The age of the rollout.
    pub since: Duration,
    /// The nodes that the rollout waits for.
    pub waits_for: Vec<NodeName>,
    /// The nodes that the barrier no longer waits for, and under which policy.
    pub bypassed: BTreeMap<NodeName, UnreachablePolicy>,
}

/// The effects of a commit on the nodes.
#[derive(Clone, Debug, Default)]
pub struct Affected {
    /// The nodes that are new or whose policy changed, with their policy.
    pub policies: Vec<(NodeName, Arc<NodePolicy>)>,
    /// The nodes that are gone.
    pub gone: Vec<NodeName>,
}

/// The shared handle of the coordinator, for concurrent callers.
#[derive(Debug)]
pub struct Nodes {
    coordinator: Mutex<Coordinator>,
    /// The first revision that is not enforced everywhere.
    first_unenforced: watch::Sender<Option<Revision>>,
    /// The last revision up to which every rollout has passed its barrier.
    settled: watch::Sender<Revision>,
    /// The time that transactions take to be enforced.
    latency: Mutex<Latency>,
    /// When there may be something to do though nothing happens.
    due: watch::Sender<Option<Instant>>,
}

impl Nodes {
    /// Shares a coordinator.
    pub fn new(coordinator: Coordinator) -> Nodes {
        let settled = coordinator.settled();
        let nodes = Nodes {
            first_unenforced: watch::Sender::new(coordinator.first_unenforced()),
            coordinator: Mutex::new(coordinator),
            settled: watch::Sender::new(settled),
            latency: Mutex::default(),
            due: watch::Sender::new(None),
        };
        nodes.with(|_, _| {});
        nodes
    }

    /// Notes a committed transaction. The caller notes every transaction, in order.
    pub fn commit(
        &self,
        revision: Revision,
        affected: Affected,
        unreachable: Option<UnreachablePolicy>,
    ) {
        let concerns_nodes = !affected.policies.is_empty();
        let before = self.lock().before(&affected);
        let prepared = Prepared::new(affected, &before);
        self.with(|coordinator, now| {
            coordinator.commit(revision, prepared, unreachable, now);
            if concerns_nodes {
                self.latency().committed(revision, now);
            }
        });
    }

    /// The state of every node, by name.
    pub fn status(&self) -> Vec<Status> {
        self.lock().status(Instant::now())
    }

    /// The edits that have not passed their barrier, the oldest first.
    pub fn rollouts(&self) -> Vec<RolloutStatus> {
        self.lock().rollouts(Instant::now())
    }

    /// The nodes that do not enforce a revision yet.
    pub fn lagging(&self, revision: Revision) -> Vec<Status> {
        self.lock().lagging(revision, Instant::now())
    }

    /// The nodes that nothing closes when they cannot be reached: a fence around them would wait for them.
    pub fn without_leases(&self) -> Vec<NodeName> {
        self.lock().without_leases()
    }

    /// How edits are led through the cluster.
    pub fn settings(&self) -> Settings {
        self.lock().settings()
    }

    /// The bypassed nodes, and the nodes that left.
    pub fn bypassed(&self) -> Vec<Status> {
        self.lock().bypassed(Instant::now())
    }

    /// Returns once every node that must enforces a revision.
    pub async fn enforced(&self, revision: Revision) {
        let mut first_unenforced = self.first_unenforced.subscribe();
        let enforced = |first: &Option<Revision>| first.is_none_or(|first| first > revision);
        // The sender is ours, so that this ends only with what is waited for.
        let _ = first_unenforced.wait_for(enforced).await;
    }

    /// The last revision up to which every rollout has passed its barrier, whenever it is another one.
    pub fn settled(&self) -> watch::Receiver<Revision> {
        self.settled.subscribe()
    }

    /// Looks after rollouts for which time has to pass. Runs for ever.
    pub async fn pace(&self) {
        let mut due = self.due.subscribe();
        loop {
            let at = *due.borrow_and_update();
            let wait = async {
                match at {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wait => self.with(|_, _| {}),
                // The sender is ours.
                _ = due.changed() => {}
            }
        }
    }

    /// Somebody opens a stream. Returns its number.
    pub fn accept(&self) -> StreamId {
        self.lock().accept()
    }

    /// A node says Hello on a stream. A stream that it had is ended, unless that is another enforcer's that is there.
    pub fn connect(
        self: &Arc<Self>,
        stream: StreamId,
        hello: Hello,
    ) -> Result<Opened, SessionError> {
        Ok(match self.open(stream, &hello)? {
            Ok(session) => Opened::Session(session),
            Err(contested) => Opened::Contested(Claim::new(self.clone(), hello, stream, contested)),
        })
    }

    fn open(
        self: &Arc<Self>,
        stream: StreamId,
        hello: &Hello,
    ) -> Result<Result<Session, Contested>, SessionError> {
        let admission =
            self.with(|coordinator, now| coordinator.connect(stream, hello.clone(), now))?;
        Ok(match admission {
            Admission::Connected(wake) => {
                Ok(Session::new(self.clone(), hello.name.clone(), stream, wake))
            }
            Admission::Contested(contested) => Err(contested),
        })
    }

    /// An administrator says which of several enforcers with one instance id is a node's.
    pub fn believe(&self, name: &NodeName, process: u64) -> Result<(), BeliefError> {
        self.with(|coordinator, now| coordinator.believe(name, process, now))
    }

    /// The enforcers that were turned away since no Node object has their name.
    pub fn strangers(&self) -> Strangers {
        self.lock().strangers(Instant::now())
    }

    /// How many enforcers were turned away, by reason.
    pub fn turned_away(&self) -> BTreeMap<Reason, u64> {
        self.lock().turned_away().clone()
    }

    /// Bars a node that is about to leave from connecting until [`leave`](Nodes::leave) or [`stay`](Nodes::stay).
    /// Returns whether the node has left already.
    pub fn begin_to_leave(&self, name: &NodeName) -> Result<bool, SessionError> {
        self.lock().begin_to_leave(name)
    }

    /// A node leaves: nothing is enforced on it. That must be durable.
    pub fn leave(&self, name: &NodeName) {
        self.with(|coordinator, now| coordinator.leave(name, now));
    }

    /// A node that was about to leave does not: that could not be made durable.
    pub fn stay(&self, name: &NodeName) {
        self.lock().stay(name);
    }

    /// Every stream is to end, and none begins any more.
    pub fn stop(&self) {
        self.with(|coordinator, _| coordinator.stop());
    }

    /// The time of transactions from commit to enforcement by every node that they change, in seconds.
    pub fn enforcing(&self) -> Histogram {
        self.latency().histogram()
    }

    fn latency(&self) -> MutexGuard<'_, Latency> {
        // Held for some additions, and taken only after the coordinator's lock.
        self.latency.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Coordinator> {
        // Nothing panics with the lock held. After a panic each node's progress would still be a valid earlier one.
        self.coordinator
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs an action on the coordinator, and notifies the waiting tasks of the result.
    fn with<T>(&self, action: impl FnOnce(&mut Coordinator, Instant) -> T) -> T {
        let mut coordinator = self.lock();
        let now = Instant::now();
        let result = action(&mut coordinator, now);
        let (due, settled, first_unenforced) = (
            coordinator.advance(now),
            coordinator.settled(),
            coordinator.first_unenforced(),
        );
        self.latency().enforced_before(first_unenforced, now);
        // With the lock held, so that the last value sent is the latest one.
        send_if_changed(&self.due, due);
        send_if_changed(&self.settled, settled);
        send_if_changed(&self.first_unenforced, first_unenforced);
        result
    }
}

/// Sends a value, and wakes the receivers only if it differs from the last one.
fn send_if_changed<T: PartialEq>(sender: &watch::Sender<T>, value: T) {
    sender.send_if_modified(|old| {
        let changed = *old != value;
        *old = value;
        changed
    });
}
