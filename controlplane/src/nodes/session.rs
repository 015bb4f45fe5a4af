//! One node's stream, as the table of nodes sees it: the right to answer for the node until it connects again. Sends
//! and receives nothing.

use std::sync::Arc;

use sallyport_proto::{Epoch, Position, Revision, policy::NodePolicy};
use tokio::sync::{oneshot, watch};

use super::Nodes;

/// What a node says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Its name.
    pub name: String,
    /// What it enforces; nothing yet when absent.
    pub position: Option<Position>,
    /// Its enforcer's version.
    pub version: String,
}

/// What to bring a node to.
#[derive(Clone, Debug)]
pub struct Update {
    /// What the node has; absent when it is to be given everything.
    pub base: Option<(Position, Arc<NodePolicy>)>,
    /// What it is to have.
    pub target: Position,
    /// The policy that this is.
    pub policy: Arc<NodePolicy>,
}

/// Why a node's stream cannot be, or cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// There is no Node object.
    #[error(
        "nodes \"{name}\" not found: put a Node object of that name first (kind: Node, metadata.name: {name}), or \
         correct the name that the enforcer was started with"
    )]
    Unregistered {
        /// The node.
        name: String,
    },
    /// The Node object was deleted.
    #[error(
        "nodes \"{name}\" not found: the Node object was deleted; the node goes on enforcing what it has"
    )]
    Removed {
        /// The node.
        name: String,
    },
    /// The node is further than the control plane.
    #[error(
        "node \"{name}\" enforces epoch {} revision {}, and this control plane is at epoch {} revision {}: it was \
         restored from a backup, or is another one. The node goes on enforcing what it has. Start the control plane \
         with its latest data, or raise its epoch",
        node.0, node.1, ours.0, ours.1
    )]
    Ahead {
        /// The node.
        name: String,
        /// Where the node is.
        node: (Epoch, Revision),
        /// Where we are.
        ours: (Epoch, Revision),
    },
    /// The node opened another stream.
    #[error("node \"{name}\" connected again: this stream is over")]
    Replaced {
        /// The node.
        name: String,
    },
    /// An answer to what was not asked.
    #[error("{answer} of {found}, which is not what was sent{}", was_sent(.expected))]
    Unexpected {
        /// `Ack` or `Nack`.
        answer: &'static str,
        /// What it is about.
        found: Position,
        /// What was sent.
        expected: Option<Position>,
    },
}

fn was_sent(expected: &Option<Position>) -> String {
    match expected {
        Some(position) => format!(" ({position})"),
        None => " (no update is under way)".to_owned(),
    }
}

/// One node's stream.
#[derive(Debug)]
pub struct Session {
    nodes: Arc<Nodes>,
    name: String,
    id: u64,
    wake: watch::Receiver<()>,
    ended: oneshot::Receiver<SessionError>,
}

impl Session {
    pub(super) fn new(
        nodes: Arc<Nodes>,
        name: String,
        id: u64,
        wake: watch::Receiver<()>,
        ended: oneshot::Receiver<SessionError>,
    ) -> Session {
        Session {
            nodes,
            name,
            id,
            wake,
            ended,
        }
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What to send the node now, if anything: the difference to what it has, or with `snapshot` everything. It is
    /// under way from then on, until it is answered.
    pub fn next_update(&self, snapshot: bool) -> Result<Option<Update>, SessionError> {
        self.nodes.with_session(&self.name, self.id, |entry, now| {
            entry.next_update(snapshot, now)
        })
    }

    /// The node has what was sent.
    pub fn acked(&self, position: Position) -> Result<(), SessionError> {
        self.nodes
            .with_session(&self.name, self.id, |entry, _| entry.acked(position))?
    }

    /// The node refused what was sent.
    pub fn nacked(
        &self,
        target: Position,
        position: Option<Position>,
        reason: String,
    ) -> Result<(), SessionError> {
        self.nodes.with_session(&self.name, self.id, |entry, now| {
            entry.nacked(target, position, reason, now)
        })?
    }

    /// What tells when the node's policy changes, and when the stream is to end and why.
    pub fn signals(
        &mut self,
    ) -> (
        &mut watch::Receiver<()>,
        &mut oneshot::Receiver<SessionError>,
    ) {
        (&mut self.wake, &mut self.ended)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Another session or the node's removal may have come first.
        let _ = self
            .nodes
            .with_session(&self.name, self.id, |entry, _| entry.disconnected());
    }
}
