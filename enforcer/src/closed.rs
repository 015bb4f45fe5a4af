//! Reports when the node closes and when it opens again: in its health and in its log. The kernel closes the node by
//! itself, so it is the kernel that is asked. It decides nothing.

use std::time::Duration;

use sallyport_proto::wire::trouble::Kind;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::{agent::Handle, health::Health, table};

/// The interval between requests to the kernel.
const EVERY: Duration = Duration::from_millis(500);

/// Watches for ever; on a node that needs no leases, not at all.
pub async fn watch(agent: Handle, health: Health) {
    if agent.asks_for().is_none() {
        return;
    }
    let mut closed: Option<Instant> = None;
    let mut was_open = false;
    loop {
        // A missing answer leaves the condition as it was reported.
        let answer = table::open().and_then(|mut netlink| table::state::is_closed(&mut netlink));
        match (answer, closed) {
            (Ok(true), None) => {
                closed = Some(Instant::now());
                report_closed(&health, was_open);
            }
            (Ok(false), None) => was_open = true,
            (Ok(false), Some(since)) => {
                (closed, was_open) = (None, true);
                health.clear(Kind::Closed);
                info!(closed_for = ?since.elapsed(), "a lease was granted: the node forwards traffic by policy again");
            }
            _ => {}
        }
        sleep(EVERY).await;
    }
}

fn report_closed(health: &Health, was_open: bool) {
    if was_open {
        health.set(Kind::Closed, "the lease ran out");
        warn!(
            "the lease ran out: all traffic of this node's workloads is dropped until the control plane grants another"
        );
    } else {
        health.set(Kind::Closed, "no lease has been granted yet");
        info!(
            "no lease yet: all traffic of this node's workloads is dropped until the control plane grants one"
        );
    }
}
