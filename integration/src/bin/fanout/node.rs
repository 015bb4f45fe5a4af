//! One simulated enforcer's side of NodeService: what it says, and what it makes of what it hears. It keeps a whole
//! NodePolicy, applies every delta to it and checks the digest, as an enforcer does; it has no kernel, no journal, no
//! socket.

use anyhow::{Context, Result, bail};
use sallyport_proto::{
    Delta, Position,
    policy::NodePolicy,
    wire::{self, sync_request::Message},
};

/// A node that takes whatever it is sent.
#[derive(Debug)]
pub(crate) struct Node {
    name: String,
    policy: NodePolicy,
    position: Option<Position>,
    /// The parts of an update that is not whole yet.
    changes: Vec<wire::PolicyChange>,
}

impl Node {
    pub(crate) fn new(name: String) -> Node {
        Node {
            name,
            policy: NodePolicy::default(),
            position: None,
            changes: Vec::new(),
        }
    }

    /// What it enforces: a revision; 0 while it is nothing.
    pub(crate) fn revision(&self) -> u64 {
        self.position.map_or(0, |position| position.revision)
    }

    /// What it says first on a new stream.
    pub(crate) fn hello(&mut self) -> wire::SyncRequest {
        self.changes.clear();
        request(Message::Hello(wire::Hello {
            node_name: self.name.clone(),
            position: self.position.map(Into::into),
            version: env!("CARGO_PKG_VERSION").into(),
        }))
    }

    /// Hears a message. Answers once an update is whole.
    pub(crate) fn hear(&mut self, part: wire::SyncResponse) -> Result<Option<wire::SyncRequest>> {
        let wire::SyncResponse {
            base,
            target,
            changes,
            last,
        } = part;
        self.changes.extend(changes);
        if !last {
            return Ok(None);
        }
        let base = base.as_ref().map(Position::try_from).transpose()?;
        let target = Position::try_from(&target.context("an update without a target")?)?;
        let delta = Delta::try_from(&std::mem::take(&mut self.changes)[..])?;
        let old = match base {
            None => NodePolicy::default(),
            base if base == self.position => std::mem::take(&mut self.policy),
            Some(base) => bail!("{} has {:?}, not {base}", self.name, self.position),
        };
        self.policy = old
            .applied(&delta, target.digest)
            .with_context(|| format!("{}: an update to {target}", self.name))?;
        self.position = Some(target);
        Ok(Some(request(Message::Ack(wire::Ack {
            position: Some(target.into()),
        }))))
    }
}

fn request(message: Message) -> wire::SyncRequest {
    wire::SyncRequest {
        message: Some(message),
    }
}
