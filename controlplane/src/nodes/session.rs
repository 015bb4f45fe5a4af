//! One node's stream, as the coordinator sees it: the right to answer for the node until it connects again. Sends and
//! receives nothing.

use std::{
    fmt::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use sallyport_policy::{Epoch, NodeName, NodePolicy, Position, Revision, UnknownAddresses};
use sallyport_process::duration;
use sallyport_proto::wire::turned_away::Reason;
use tokio::sync::Notify;

use super::{
    Health, Membership, Nodes, StreamId,
    rivals::{Contested, Enforcer},
};

/// What a node says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Its name.
    pub name: NodeName,
    /// The versions that it holds, oldest first; none when it enforces nothing yet.
    pub window: Vec<Position>,
    /// Its enforcer's version.
    pub version: String,
    /// What it does with workload addresses that are no endpoint.
    pub unknown: UnknownAddresses,
    /// The time that the node's leases last; zero when the node needs none.
    pub lease: Duration,
    /// Which enforcer it is; none of a version that does not say.
    pub enforcer: Option<Enforcer>,
    /// The health that the node reports; none from an enforcer version that reports it later.
    pub health: Option<Health>,
}

/// What to bring a node to.
#[derive(Clone, Debug)]
pub struct Update {
    /// What the changes lead from; absent when it is to be given everything.
    pub base: Option<(Position, Arc<NodePolicy>)>,
    /// The version that comes, or stays.
    pub target: Position,
    /// The policy that this is.
    pub policy: Arc<NodePolicy>,
    /// The versions that stay beside it.
    pub keep: Vec<Position>,
}

/// Why a node's stream cannot be, or cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// There is no Node object.
    #[error(
        "nodes \"{name}\" not found: apply a Node object of that name first (kind: Node, metadata.name: {name}), or \
         correct the --node-name of the enforcer"
    )]
    Unregistered {
        /// The node.
        name: NodeName,
    },
    /// The Node object was deleted.
    #[error(
        "nodes \"{name}\" not found: the Node object was deleted; the node keeps enforcing its last policy"
    )]
    Removed {
        /// The node.
        name: NodeName,
    },
    /// The node is further than the control plane.
    #[error(
        "node \"{name}\" enforces epoch {} revision {}, and this control plane is at epoch {} revision {}: this \
         control plane was restored from a backup, or is another one. The node keeps enforcing its last policy. \
         Start the control plane with its latest data, or restore its backup with `sallyport-controlplane journal \
         restore`, which raises the epoch",
        node.0, node.1, ours.0, ours.1
    )]
    Ahead {
        /// The node.
        name: NodeName,
        /// Where the node is.
        node: (Epoch, Revision),
        /// Where we are.
        ours: (Epoch, Revision),
    },
    /// A node that is connected cannot leave.
    #[error(
        "an enforcer of node \"{name}\" is connected: stop this enforcer first, then uninstall again"
    )]
    Connected {
        /// The node.
        name: NodeName,
    },
    /// The node is about to leave.
    #[error("node \"{name}\" is about to leave; connect again in a moment")]
    Leaving {
        /// The node.
        name: NodeName,
    },
    /// The node's leases are too long.
    #[error(
        "node \"{name}\" has leases of more than {longest:?}: start its enforcer with a shorter --lease"
    )]
    Lease {
        /// The node.
        name: NodeName,
        /// The longest lease that there is.
        longest: Duration,
    },
    /// Another enforcer has the name, and answers.
    #[error(
        "node \"{name}\" has an enforcer already, which answers{}, connected for {}: two enforcers were started with one \
         node name. Start this enforcer with the --node-name of its own Node object, or stop the other enforcer",
        first.map_or(String::new(), |first| format!(" ({first})")), duration::rough(*since)
    )]
    Taken {
        /// The node.
        name: NodeName,
        /// The enforcer that has the name.
        first: Option<Enforcer>,
        /// The time since the other enforcer connected.
        since: Duration,
    },
    /// Several enforcers run under one instance id.
    #[error("node \"{name}\": {message}")]
    Cloned {
        /// The node.
        name: NodeName,
        /// Which enforcers there are, and what to do.
        message: String,
    },
    /// An administrator believes another enforcer with the same instance id.
    #[error(
        "node \"{name}\": an administrator chose another enforcer with this instance id, so this data directory is \
         a copy. Stop this enforcer, run `sallyport-enforcer new-identity`, and start the enforcer with a \
         --node-name of its own"
    )]
    NotBelieved {
        /// The node.
        name: NodeName,
    },
    /// The Hello came late, and its enforcer is silent.
    #[error(
        "node \"{name}\" has another enforcer, and this enforcer did not answer within 2 seconds: connect again"
    )]
    Late {
        /// The node.
        name: NodeName,
    },
    /// The node opened another stream.
    #[error("node \"{name}\" connected again: this stream is over")]
    Replaced {
        /// The node.
        name: NodeName,
    },
    /// The control plane goes down.
    #[error("the control plane is stopping; connect again")]
    Stopping,
    /// An answer to what was not asked.
    #[error("{answer} of {}, which does not match the sent update{}", listed(.found), was_sent(.expected))]
    Unexpected {
        /// `Ack` or `Nack`.
        answer: &'static str,
        /// What it is about.
        found: Vec<Position>,
        /// What was sent.
        expected: Option<Vec<Position>>,
    },
}

impl SessionError {
    /// As what an enforcer is counted that is turned away so; `None` of an enforcer that only has to connect again.
    pub(super) fn reason(&self) -> Option<Reason> {
        match self {
            SessionError::Unregistered { .. } => Some(Reason::NoNode),
            SessionError::Ahead { .. } => Some(Reason::Ahead),
            SessionError::Lease { .. } => Some(Reason::Lease),
            SessionError::Taken { .. } => Some(Reason::NameTaken),
            SessionError::Cloned { .. } => Some(Reason::Cloned),
            SessionError::NotBelieved { .. } => Some(Reason::NotBelieved),
            SessionError::Late { .. } => Some(Reason::Late),
            SessionError::Removed { .. }
            | SessionError::Connected { .. }
            | SessionError::Leaving { .. }
            | SessionError::Replaced { .. }
            | SessionError::Stopping
            | SessionError::Unexpected { .. } => None,
        }
    }
}

/// Why an administrator's word about clones has no effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BeliefError {
    /// There is no Node object.
    #[error("nodes \"{name}\" not found")]
    Unregistered {
        /// The node.
        name: NodeName,
    },
    /// No two enforcers of the node run under one instance id.
    #[error(
        "node \"{name}\" is not cloned: no two of its enforcers were seen with one instance id since the control plane \
         started"
    )]
    NotCloned {
        /// The node.
        name: NodeName,
    },
    /// No enforcer of that process was seen.
    #[error(
        "node \"{name}\" has no enforcer of process {process:016x}; these were seen:{}",
        one_a_line(.seen)
    )]
    Unseen {
        /// The node.
        name: NodeName,
        /// The process.
        process: u64,
        /// The enforcers that were seen.
        seen: Vec<Enforcer>,
    },
}

fn one_a_line(enforcers: &[Enforcer]) -> String {
    enforcers.iter().fold(String::new(), |mut text, enforcer| {
        let _ = write!(text, "\n{enforcer}");
        text
    })
}

fn listed(positions: &[Position]) -> String {
    let texts: Vec<String> = positions.iter().map(Position::to_string).collect();
    texts.join(" and ")
}

fn was_sent(expected: &Option<Vec<Position>>) -> String {
    match expected {
        Some(window) => format!(" ({})", listed(window)),
        None => " (no update is under way)".to_owned(),
    }
}

/// What a Hello led to.
#[derive(Debug)]
pub enum Opened {
    /// The node is connected.
    Session(Session),
    /// Another enforcer may have the name.
    Contested(Claim),
}

/// A stream whose node's name another enforcer may have. Its node is to be sent a Ping.
#[derive(Debug)]
pub struct Claim {
    nodes: Arc<Nodes>,
    hello: Hello,
    stream: StreamId,
    contested: Contested,
}

impl Claim {
    pub(super) fn new(
        nodes: Arc<Nodes>,
        hello: Hello,
        stream: StreamId,
        contested: Contested,
    ) -> Claim {
        Claim {
            nodes,
            hello,
            stream,
            contested,
        }
    }

    /// The newcomer answered its Ping.
    pub fn answered(&self) {
        self.nodes.lock().answered(&self.hello.name, self.stream);
    }

    /// Returns when there may be a decision.
    pub async fn changed(&self) {
        let until = self.contested.until;
        tokio::select! {
            () = self.contested.wake.notified() => {}
            () = tokio::time::sleep_until(until.into()) => {}
        }
    }

    /// The session, once the name is the newcomer's.
    pub fn decide(&mut self) -> Result<Option<Session>, SessionError> {
        match self.nodes.open(self.stream, &self.hello)? {
            Ok(session) => Ok(Some(session)),
            Err(contested) => {
                self.contested = contested;
                Ok(None)
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.nodes.lock().withdraw(&self.hello.name, self.stream);
    }
}

/// One node's stream.
#[derive(Debug)]
pub struct Session {
    nodes: Arc<Nodes>,
    name: NodeName,
    id: StreamId,
    wake: Arc<Notify>,
}

impl Session {
    pub(super) fn new(
        nodes: Arc<Nodes>,
        name: NodeName,
        id: StreamId,
        wake: Arc<Notify>,
    ) -> Session {
        Session {
            nodes,
            name,
            id,
            wake,
        }
    }

    /// The node's name.
    pub fn name(&self) -> &NodeName {
        &self.name
    }

    /// The node's membership, as far as it is durable.
    pub fn membership(&self) -> Membership {
        self.nodes.lock().membership(&self.name)
    }

    /// Barriers wait for the node from now on. That it has joined must be durable.
    pub fn join(&self, membership: Membership) {
        self.nodes
            .with(|coordinator, now| coordinator.join(&self.name, membership, now));
    }

    /// What to send the node now, if anything: the difference to what it has, or with `snapshot` everything. It is
    /// under way from then on, until it is answered.
    pub fn next_update(&self, snapshot: bool) -> Result<Option<Update>, SessionError> {
        self.nodes
            .with(|coordinator, now| coordinator.next_update(&self.name, self.id, snapshot, now))
    }

    /// The node has what was sent, and holds these versions.
    pub fn acked(&self, window: &[Position]) -> Result<(), SessionError> {
        self.nodes
            .with(|coordinator, now| coordinator.acked(&self.name, self.id, window, now))
    }

    /// The node refused what was sent, and holds these versions.
    pub fn nacked(
        &self,
        target: Position,
        window: &[Position],
        reason: String,
    ) -> Result<(), SessionError> {
        self.nodes.with(|coordinator, now| {
            coordinator.nacked(&self.name, self.id, (target, window), reason, now)
        })
    }

    /// Takes the node's health report.
    pub fn report_health(&self, health: Health) -> Result<(), SessionError> {
        self.nodes
            .with(|coordinator, now| coordinator.report_health(&self.name, self.id, health, now))
    }

    /// A message of the node came.
    pub fn received(&self) -> Result<(), SessionError> {
        let now = Instant::now();
        self.nodes.lock().received(&self.name, self.id, now)
    }

    /// The Ping to send the node now, or else when to look again.
    pub fn ping(&self) -> Result<Result<u64, Option<Instant>>, SessionError> {
        let now = Instant::now();
        self.nodes.lock().ping(&self.name, self.id, now)
    }

    /// The node answered a Ping.
    pub fn ponged(&self, number: u64) -> Result<(), SessionError> {
        self.nodes.lock().ponged(&self.name, self.id, number)
    }

    /// The node asks for a lease. Says whether it may have one.
    pub fn lease(&self) -> Result<bool, SessionError> {
        self.nodes
            .with(|coordinator, now| coordinator.lease(&self.name, self.id, now))
    }

    /// Returns when there may be something to send, or the stream is over: [`next_update`](Session::next_update) says.
    pub async fn changed(&self) {
        self.wake.notified().await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.nodes
            .with(|coordinator, now| coordinator.disconnected(&self.name, self.id, now));
    }
}
