//! The times at which the node asks for a lease. The agent owns the lease; `closed` reports that there is none.

use sallyport_proto::wire::{LeaseRequest, sync_request::Message};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use crate::agent::Handle;

/// The number of requests of a node during a lease.
const TIMES: u32 = 3;

/// The leases of a node, over all its sessions.
pub(super) struct Leases {
    agent: Handle,
    /// When the last one was made ready.
    asked: Instant,
}

impl Leases {
    pub(super) fn new(agent: Handle) -> Leases {
        Leases {
            agent,
            asked: Instant::now(),
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
        self.asked = Instant::now();
        match self.agent.prepare_lease().await {
            Ok(Some(number)) => {
                debug!(number, took = ?self.asked.elapsed(), "prepared a lease in the kernel");
                Some(Message::Lease(LeaseRequest { number }))
            }
            Ok(None) => None,
            Err(error) => {
                warn!(%error, "cannot prepare a lease in the kernel: the node closes when its current lease ends");
                None
            }
        }
    }

    /// The control plane agreed.
    pub(super) async fn granted(&self, number: u64) {
        let granted = Instant::now();
        match self.agent.take_lease(number).await {
            Ok(true) => debug!(number, took = ?granted.elapsed(), "put a lease in force"),
            Ok(false) => debug!(
                number,
                "ignored the grant of a lease that was replaced meanwhile"
            ),
            Err(error) => {
                warn!(%error, "cannot put a granted lease in force: the node closes when its current lease ends")
            }
        }
    }
}
