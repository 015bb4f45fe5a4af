//! When the node asks for a lease, and what it says in its log when it has none. What a lease is, is the agent's.

use std::time::Duration;

use sallyport_proto::wire::{LeaseRequest, sync_request::Message};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use crate::agent::Handle;

/// How many times a node asks while a lease lasts.
const TIMES: u32 = 3;

/// The leases of a node, over all its sessions.
pub(super) struct Leases {
    agent: Handle,
    /// When the last one was made ready.
    asked: Instant,
    /// When the one that is in force runs out.
    until: Option<Instant>,
    /// Whether it was said that there is none.
    said: bool,
}

impl Leases {
    pub(super) fn new(agent: Handle) -> Leases {
        let asked = Instant::now();
        Leases {
            // Of one that an earlier life left nobody knows the end. It is not later than this.
            until: agent.lease().map(|lasts| asked + lasts),
            agent,
            asked,
            said: false,
        }
    }

    /// Returns when it is time to ask again, whether there was an answer or none.
    pub(super) async fn due(&self) {
        match self.agent.asks_for() {
            Some(lasts) => sleep_until(self.asked + lasts / TIMES).await,
            None => std::future::pending().await,
        }
    }

    /// Makes a lease ready. Returns the request for it, to be sent now: its time runs.
    pub(super) async fn ask(&mut self) -> Option<Message> {
        self.look();
        self.asked = Instant::now();
        match self.agent.prepare_lease().await {
            Ok(Some(number)) => Some(Message::Lease(LeaseRequest { number })),
            Ok(None) => None,
            Err(error) => {
                warn!(%error, "could not make a lease ready");
                None
            }
        }
    }

    /// The control plane agreed.
    pub(super) async fn granted(&mut self, number: u64) {
        match self.agent.take_lease(number).await {
            Ok(true) => {
                if std::mem::take(&mut self.said) {
                    info!("a lease was granted: traffic is judged by policy again");
                }
                self.until = self.agent.lease().map(|lasts| self.asked + lasts);
            }
            Ok(false) => debug!(number, "a lease was granted that is not there any more"),
            Err(error) => warn!(%error, "could not put a lease in force"),
        }
    }

    /// Says once when the lease has run out.
    pub(super) fn look(&mut self) {
        let over =
            |until: Instant| until.saturating_duration_since(Instant::now()) == Duration::ZERO;
        if !self.said && self.until.is_some_and(over) {
            self.said = true;
            warn!(
                "the lease ran out: all traffic of this node's workloads is dropped until the control plane grants another"
            );
        }
    }
}
