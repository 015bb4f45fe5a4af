//! The node's lease: made ready in the kernel before the control plane is asked, in force once it is granted. It asks
//! nobody, and knows no time: the kernel ends a lease by itself.

use std::{sync::Arc, time::Duration};

use sallyport_nft::{kernel::Kernel, netlink};
use tracing::{info, warn};

use super::Agent;
use crate::{
    journal::Log,
    plan::{self, Garbage, ObservedFrame},
    table::{
        lease::{self, Slot},
        state,
    },
};

/// The state of the node's lease. The agent shares it with the session, which renews the lease while an update is
/// applied. A thread that changes or reads the lease's part of the table holds it locked.
#[derive(Debug, Default)]
pub(super) struct Lease {
    /// The time that a lease lasts; `None` while the node is to ask for none.
    pub(super) lasts: Option<Duration>,
    /// The set that packets look into; not known after the kernel's answer was lost.
    pub(super) slot: Option<Slot>,
    /// The number of the last lease that was made ready. Numbers are used once.
    number: u64,
    /// Whether it waits to be granted.
    ready: bool,
    /// Set when the node had leases and is to have none: the next grant says that the control plane knows.
    ends: bool,
}

/// The fate of a lease that was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// The lease is in force.
    InForce,
    /// The lease is gone: another one was made ready since.
    Gone,
    /// The node is to have no leases, and the control plane knows: the agent is to [end](Agent::end_leases) them.
    Last,
}

/// The time between the requests of a node that is to have no more leases.
const ENDS: Duration = Duration::from_secs(1);

impl Lease {
    /// The table is a new one: without a lease, until one is granted.
    pub(super) fn start_anew(&mut self) {
        self.slot = Some(Slot::default());
        self.ready = false;
    }

    /// Makes a lease ready, whose time runs from now on, and returns the number to ask for it by. `None` when there is
    /// nothing to ask for.
    pub(super) fn prepare(
        &mut self,
        kernel: &mut impl Kernel,
    ) -> Result<Option<u64>, netlink::Error> {
        self.ready = false;
        let Some(lasts) = self.lasts else {
            return Ok(None);
        };
        let standby = self.current(kernel)?.other();
        kernel.commit(&lease::fill(standby, lasts))?;
        self.number += 1;
        self.ready = true;
        Ok(Some(self.number))
    }

    /// The lease of a number was granted: puts it in force.
    pub(super) fn take(
        &mut self,
        kernel: &mut impl Kernel,
        number: u64,
    ) -> Result<Taken, netlink::Error> {
        if self.number != number || !std::mem::take(&mut self.ready) {
            return Ok(Taken::Gone);
        }
        if self.ends {
            return Ok(Taken::Last);
        }
        let standby = self.current(kernel)?.other();
        // Until the kernel has answered nobody knows.
        self.slot = None;
        kernel.commit(&lease::look_into(standby))?;
        self.slot = Some(standby);
        Ok(Taken::InForce)
    }

    /// The set that packets look into.
    fn current(&mut self, kernel: &mut impl Kernel) -> Result<Slot, netlink::Error> {
        let slot = match self.slot {
            Some(slot) => slot,
            None => {
                let slot = state::read_lease(kernel)?;
                slot.ok_or(netlink::Error::Malformed("the lease's chain is empty"))?
            }
        };
        self.slot = Some(slot);
        Ok(slot)
    }
}

impl<K: Kernel, L: Log> Agent<K, L> {
    /// The length of the leases without which the node closes by itself; `None` while it does not close.
    pub fn lease(&self) -> Option<Duration> {
        self.options
            .lease
            .filter(|_| !self.unrecognised && !self.lease.lock().ends)
    }

    /// The length of the lease that the node asks for; `None` when it asks for none.
    pub fn asks_for(&self) -> Option<Duration> {
        self.options.lease
    }

    /// Makes a lease ready, whose time runs from now on, and returns the number to ask for it by. `None` when there is
    /// nothing to ask for.
    pub fn prepare_lease(&mut self) -> Result<Option<u64>, netlink::Error> {
        self.lease.lock().prepare(&mut self.kernel)
    }

    /// The lease of a number was granted: puts it in force. Returns whether it did; a number that is not the last one
    /// is of a lease that is not there any more.
    pub fn take_lease(&mut self, number: u64) -> Result<bool, netlink::Error> {
        let taken = self.lease.lock().take(&mut self.kernel, number)?;
        match taken {
            Taken::InForce => Ok(true),
            Taken::Gone => Ok(false),
            Taken::Last => self.end_leases().map(|()| true),
        }
    }

    /// Has the node ask for leases if it may. A node with an unknown table, or with an update that stopped halfway,
    /// must not outlive its last lease.
    pub(super) fn allow_leases(&self) {
        let may_ask = !self.unrecognised && !self.is_half_way();
        self.lease.lock().lasts = self.options.lease.filter(|_| may_ask);
    }

    /// The operator wants no leases any more where the table has them. Without one nothing closes the node, so the
    /// table keeps what it has until the control plane is known to know.
    pub(super) fn begin_to_end_leases(&mut self) {
        warn!(
            "the enforcer started without --lease on a node with leases: leases end once the control plane confirms"
        );
        self.options.lease = Some(ENDS);
        self.lease.lock().ends = true;
    }

    /// Takes the leases out of the table, once the control plane knows.
    pub(super) fn end_leases(&mut self) -> Result<(), netlink::Error> {
        let shared = Arc::clone(&self.lease);
        let mut lease = shared.lock();
        let (had, limits) = (self.options.lease.take(), self.limits());
        let found = ObservedFrame {
            slot: Some(Slot::default()),
            described: true,
            review: None,
        };
        let plan = plan::reframe(&self.installed, &self.options, &found, limits);
        if let Err(error) = self.commit_steps(&plan) {
            self.options.lease = had;
            return Err(error);
        }
        *lease = Lease::default();
        self.garbage.extend(Garbage {
            chains: lease::CHAINS.map(Into::into).into(),
            sets: Slot::BOTH.map(|slot| slot.name().into()).into(),
        });
        info!("the node has no leases any more: the control plane confirmed");
        Ok(())
    }
}
