//! Drift: compares the kernel's table with the desired content, and repairs it. It knows no other process and no time.

use std::sync::Arc;

use sallyport_nft::{
    command::Command,
    content::{Desired, Observed},
    kernel::Kernel,
    netlink::Error,
};
use tracing::{error, warn};

use super::{Agent, lease::Lease};
use crate::{
    journal::Log,
    plan::{self, Garbage, Plan, Repair},
    table::{
        lease::{self, Slot},
        state,
    },
};

/// The most plans of a repair while others commit. After them the repair is committed whatever others do.
const TRIES: usize = 8;

/// The repairs of the table since the agent began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    /// The number of repairs.
    pub repairs: u64,
    /// The differences that the latest repair removed.
    pub last: Vec<String>,
}

impl<K: Kernel, L: Log> Agent<K, L> {
    /// Whether the kernel keeps others from changing the table.
    pub fn is_protected(&self) -> bool {
        self.protected
    }

    /// The repairs so far.
    pub fn drift(&self) -> &Drift {
        &self.drift
    }

    /// Compares the table with the desired content, and repairs the differences. Returns whether there were any.
    pub fn restore(&mut self) -> Result<bool, Error> {
        match self.unfinished.take() {
            Some((plan, done)) => {
                let result = self.restore_on_the_way(Some((&plan, done)));
                self.unfinished = Some((plan, done));
                result
            }
            None => self.restore_on_the_way(None),
        }
    }

    /// The same, where some steps of a plan are done.
    pub(super) fn restore_on_the_way(
        &mut self,
        under_way: Option<(&Plan, usize)>,
    ) -> Result<bool, Error> {
        let mut repaired: Vec<String> = Vec::new();
        let shared = Arc::clone(&self.lease);
        let mut lease = shared.lock();
        for tries_left in (0..TRIES).rev() {
            let observed = self.kernel.content()?;
            if self.unrecognised {
                if observed.flags.is_some() {
                    return Ok(false);
                }
                // The unrecognised table is gone. The journal has the policy that was accepted last.
                self.unrecognised = false;
            }
            let repair = self.plan_repair(&mut lease, under_way, &observed)?;
            if repair.differences.is_empty() {
                let garbage = &mut self.garbage;
                garbage
                    .chains
                    .retain(|name| observed.chains.contains_key(name));
                garbage.sets.retain(|name| observed.sets.contains_key(name));
                garbage.extend(repair.unrecognised);
                break;
            }
            if repair.differences == repaired {
                error!(
                    differences = ?repaired,
                    "the table inet sallyport still differs after its repair: the enforcer leaves the table as listed"
                );
                break;
            }
            let at = (tries_left > 0).then_some(observed.generation);
            match self.commit_repair(&repair, at) {
                Ok(()) => repaired = repair.differences,
                Err(error) if error.is_outdated() => {}
                Err(Error::AnswerLost(_)) => {}
                Err(error @ Error::Refused { .. }) if observed.flags.is_some() => {
                    warn!(
                        %error, differences = ?repair.differences,
                        "cannot repair the table inet sallyport in place: making the table anew"
                    );
                    self.make_anew(&mut lease, under_way)?;
                    repaired = repair.differences;
                }
                Err(error) => return Err(error),
            }
        }
        drop(lease);
        self.allow_leases();
        if repaired.is_empty() {
            return Ok(false);
        }
        self.grace();
        // Nobody knows what passed meanwhile.
        let policy = self.installed.policy.clone();
        self.review(None, &policy)?;
        self.drift.repairs += 1;
        self.drift.last = repaired;
        Ok(true)
    }

    fn plan_repair(
        &mut self,
        lease: &mut Lease,
        under_way: Option<(&Plan, usize)>,
        observed: &Observed,
    ) -> Result<Repair, Error> {
        if observed.flags.is_none() {
            lease.start_anew();
        }
        let slot = match lease.slot {
            Some(slot) => slot,
            None => state::read_lease(&mut self.kernel)?.unwrap_or_default(),
        };
        lease.slot = Some(slot);
        let desired = self.desired(slot, under_way);
        let mut known = self.garbage.clone();
        if let Some((plan, _)) = under_way {
            known.extend(plan.garbage.clone());
        }
        Ok(plan::repair(
            &desired,
            observed,
            &known,
            self.protected,
            self.limits(),
        ))
    }

    /// The desired content of the table, whose chain of leases reads the set of a slot.
    fn desired(&self, slot: Slot, under_way: Option<(&Plan, usize)>) -> Desired {
        fn commands(steps: &[plan::Step]) -> impl Iterator<Item = &Command> {
            steps.iter().flat_map(|step| &step.commands)
        }
        let table = plan::create(&self.installed, &self.options, self.limits());
        let mut desired = Desired::of(commands(&table.steps));
        if let Some((plan, done)) = under_way {
            desired.extend(commands(&plan.steps[..done]));
        }
        if let Some(chain) = desired.chains.get_mut(lease::CHAIN) {
            chain.rules = lease::rules(slot);
        }
        desired
    }

    /// Commits a repair that was planned for a generation, if nobody else commits meanwhile.
    fn commit_repair(&mut self, repair: &Repair, generation: Option<u64>) -> Result<(), Error> {
        for (step, done) in repair.steps.iter().zip(0..) {
            if step.grace {
                self.kernel.grace();
            }
            match generation {
                Some(generation) => self.kernel.commit_at(generation + done, &step.commands)?,
                None => self.kernel.commit(&step.commands)?,
            }
        }
        Ok(())
    }

    /// Makes the whole table in place of the one that is there, in one batch.
    fn make_anew(
        &mut self,
        lease: &mut Lease,
        under_way: Option<(&Plan, usize)>,
    ) -> Result<(), Error> {
        lease.start_anew();
        let desired = self.desired(Slot::default(), under_way);
        let nothing = Garbage::default();
        let limits = self.limits();
        let repair = plan::repair(
            &desired,
            &Observed::default(),
            &nothing,
            self.protected,
            limits,
        );
        let steps = repair.steps.into_iter().flat_map(|step| step.commands);
        let commands: Vec<Command> = [Command::DeleteTable].into_iter().chain(steps).collect();
        self.kernel.commit(&commands)
    }
}
