//! One simulated enforcer's side of NodeService: what it says, and what it makes of what it hears. It keeps the
//! versions that it holds whole, applies every delta and checks the digest, as an enforcer does; it has no kernel, no
//! journal, no socket.

use anyhow::{Context, Result, bail};
use sallyport_policy::Window;
use sallyport_proto::{
    Assembly,
    wire::{self, sync_request::Message, sync_response},
};

/// A node that takes whatever it is sent.
#[derive(Debug)]
pub(crate) struct Node {
    name: String,
    /// The versions that it holds.
    window: Window,
    /// The parts of an update that is not whole yet.
    assembly: Assembly,
}

impl Node {
    pub(crate) fn new(name: String) -> Node {
        Node {
            name,
            window: Window::default(),
            assembly: Assembly::default(),
        }
    }

    /// The newest revision that it holds; 0 while it holds nothing.
    pub(crate) fn revision(&self) -> u64 {
        let newest = self.window.newest();
        newest.map_or(0, |version| version.position.revision.0)
    }

    /// The first message on a new stream.
    pub(crate) fn hello(&mut self) -> wire::SyncRequest {
        self.assembly = Assembly::default();
        request(Message::Hello(wire::Hello {
            node_name: self.name.clone(),
            window: self.held(),
            version: env!("CARGO_PKG_VERSION").into(),
            dropped: Some(wire::WorkloadRanges::default()),
            ..wire::Hello::default()
        }))
    }

    /// Receives a message. Answers once an update is whole.
    pub(crate) fn receive(
        &mut self,
        response: wire::SyncResponse,
    ) -> Result<Option<wire::SyncRequest>> {
        let Some(sync_response::Message::Update(part)) = response.message else {
            bail!("{} received a message that is no update", self.name);
        };
        let Some(update) = self.assembly.take(part)? else {
            return Ok(None);
        };
        self.window = self
            .window
            .updated(&update)
            .with_context(|| format!("{}: an update to {}", self.name, update.target))?;
        Ok(Some(request(Message::Ack(wire::Ack {
            window: self.held(),
        }))))
    }

    fn held(&self) -> Vec<wire::Position> {
        self.window
            .positions()
            .into_iter()
            .map(Into::into)
            .collect()
    }
}

fn request(message: Message) -> wire::SyncRequest {
    wire::SyncRequest {
        message: Some(message),
    }
}
