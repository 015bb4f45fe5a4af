//! The node's lease: made ready in the kernel before the control plane is asked, in force once it is granted. It asks
//! nobody, and knows no time: the kernel ends a lease by itself.

use std::time::Duration;

use tracing::{info, warn};

use super::Agent;
use crate::{
    journal::Log,
    kernel::Kernel,
    netlink,
    nft::lease::{self, Slot},
    plan::{self, FoundFrame, Garbage},
};

/// Where the node's lease stands.
#[derive(Debug, Default)]
pub(super) struct Lease {
    /// The set that packets look into; not known after the kernel's answer was lost.
    pub(super) slot: Option<Slot>,
    /// The number of the last lease that was made ready. Numbers are used once.
    number: u64,
    /// Whether it waits to be granted.
    ready: bool,
    /// Set when the node had leases and is to have none: the next grant says that the control plane knows.
    pub(super) ends: bool,
}

impl Lease {
    /// The table is a new one: without a lease, until one is granted.
    pub(super) fn start_anew(&mut self) {
        *self = Lease {
            slot: Some(Slot::default()),
            ready: false,
            ..*self
        };
    }
}

/// How often a node asks that is to have leases no more.
const ENDS: Duration = Duration::from_secs(1);

impl<K: Kernel, L: Log> Agent<K, L> {
    /// How long the leases are without which the node closes by itself; `None` while it does not.
    pub fn lease(&self) -> Option<Duration> {
        self.options
            .lease
            .filter(|_| !self.foreign && !self.lease.ends)
    }

    /// How long a lease is that the node asks for; `None` when it asks for none.
    pub fn asks_for(&self) -> Option<Duration> {
        self.options.lease
    }

    /// Makes a lease ready, whose time runs from now on, and returns the number to ask for it by. `None` when there is
    /// nothing to ask for.
    pub fn prepare_lease(&mut self) -> Result<Option<u64>, netlink::Error> {
        self.lease.ready = false;
        // What enforces something unknown must not go on for longer than it was allowed to.
        let Some(lasts) = self.options.lease.filter(|_| !self.foreign) else {
            return Ok(None);
        };
        let standby = self.lease_slot()?.other();
        self.kernel.commit(&lease::fill(standby, lasts))?;
        self.lease.number += 1;
        self.lease.ready = true;
        Ok(Some(self.lease.number))
    }

    /// The lease of a number was granted: puts it in force. Returns whether it did; a number that is not the last one is
    /// of a lease that is not there any more.
    pub fn take_lease(&mut self, number: u64) -> Result<bool, netlink::Error> {
        if self.lease.number != number || !std::mem::take(&mut self.lease.ready) {
            return Ok(false);
        }
        if self.lease.ends {
            return self.end_leases().map(|()| true);
        }
        let standby = self.lease_slot()?.other();
        // Until the kernel has answered nobody knows.
        self.lease.slot = None;
        self.kernel.commit(&lease::look_into(standby))?;
        self.lease.slot = Some(standby);
        Ok(true)
    }

    /// The set that packets look into.
    fn lease_slot(&mut self) -> Result<Slot, netlink::Error> {
        let slot = match self.lease.slot {
            Some(slot) => slot,
            None => {
                let slot = self.kernel.read_lease()?;
                slot.ok_or(netlink::Error::Malformed("the lease's chain is empty"))?
            }
        };
        self.lease.slot = Some(slot);
        Ok(slot)
    }

    /// The operator wants no leases any more where the table has them. Without one nothing closes the node, so the table
    /// keeps what it has until the control plane is known to know.
    pub(super) fn begin_to_end_leases(&mut self) {
        warn!(
            "--lease is gone: the node goes on with the lease that it has until the control plane says that it knows"
        );
        self.options.lease = Some(ENDS);
        self.lease.ends = true;
    }

    fn end_leases(&mut self) -> Result<(), netlink::Error> {
        let (had, limits) = (self.options.lease.take(), self.limits());
        let found = FoundFrame {
            slot: Some(Slot::default()),
            described: true,
            review: None,
        };
        let plan = plan::reframe(&self.installed, &self.options, &found, limits);
        if let Err(error) = self.commit_steps(&plan) {
            self.options.lease = had;
            return Err(error);
        }
        self.lease = Lease::default();
        self.garbage.extend(Garbage {
            chains: lease::CHAINS.map(Into::into).into(),
            sets: Slot::BOTH.map(|slot| slot.name().into()).into(),
        });
        info!("the node goes on without leases");
        Ok(())
    }
}
