//! Drift: whether the kernel's table is what it should be, and making it so again. It hears of nobody, and knows no time.

use std::sync::Arc;

use tracing::{error, warn};

use super::{Agent, lease::Lease};
use crate::{
    journal::Log,
    kernel::Kernel,
    netlink::Error,
    nft::{
        command::Command,
        content::{Found, Wanted},
        lease::{self, Slot},
    },
    plan::{self, Garbage, Plan, Repair},
};

/// How often a repair is planned anew because others go on committing, before it is committed whatever they do.
const TRIES: usize = 8;

/// What was found to be wrong with the table, and mended, since the agent began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    /// How often.
    pub repairs: u64,
    /// What was wrong the last time.
    pub last: Vec<String>,
}

impl<K: Kernel, L: Log> Agent<K, L> {
    /// Whether the kernel keeps others from changing the table.
    pub fn is_protected(&self) -> bool {
        self.protected
    }

    /// What was mended.
    pub fn drift(&self) -> &Drift {
        &self.drift
    }

    /// Compares the table with what it should hold, and mends what differs. Returns whether anything did.
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
        let mut mended: Vec<String> = Vec::new();
        let shared = Arc::clone(&self.lease);
        let mut lease = shared.lock();
        for tries_left in (0..TRIES).rev() {
            let found = self.kernel.content()?;
            if self.foreign {
                if found.flags.is_some() {
                    return Ok(false);
                }
                // What nobody knew is gone: what the journal has is the last that was accepted.
                self.foreign = false;
            }
            let repair = self.plan_repair(&mut lease, under_way, &found)?;
            if repair.differences.is_empty() {
                let garbage = &mut self.garbage;
                garbage
                    .chains
                    .retain(|name| found.chains.contains_key(name));
                garbage.sets.retain(|name| found.sets.contains_key(name));
                garbage.extend(repair.strangers);
                break;
            }
            if repair.differences == mended {
                error!(
                    differences = ?mended,
                    "the table inet sallyport still differs after its repair: the enforcer leaves the table as listed"
                );
                break;
            }
            let at = (tries_left > 0).then_some(found.generation);
            match self.commit_repair(&repair, at) {
                Ok(()) => mended = repair.differences,
                Err(error) if error.is_outdated() => {}
                Err(Error::AnswerLost(_)) => {}
                Err(error @ Error::Refused { .. }) if found.flags.is_some() => {
                    warn!(
                        %error, differences = ?repair.differences,
                        "cannot repair the table inet sallyport in place: making the table anew"
                    );
                    self.make_anew(&mut lease, under_way)?;
                    mended = repair.differences;
                }
                Err(error) => return Err(error),
            }
        }
        drop(lease);
        self.allow_leases();
        if mended.is_empty() {
            return Ok(false);
        }
        self.grace();
        // Nobody knows what passed meanwhile.
        let policy = self.installed.policy.clone();
        self.review(None, &policy)?;
        self.drift.repairs += 1;
        self.drift.last = mended;
        Ok(true)
    }

    fn plan_repair(
        &mut self,
        lease: &mut Lease,
        under_way: Option<(&Plan, usize)>,
        found: &Found,
    ) -> Result<Repair, Error> {
        if found.flags.is_none() {
            lease.start_anew();
        }
        let slot = match lease.slot {
            Some(slot) => slot,
            None => self.kernel.read_lease()?.unwrap_or_default(),
        };
        lease.slot = Some(slot);
        let wanted = self.wanted(slot, under_way);
        let mut known = self.garbage.clone();
        if let Some((plan, _)) = under_way {
            known.extend(plan.garbage.clone());
        }
        Ok(plan::repair(
            &wanted,
            found,
            &known,
            self.protected,
            self.limits(),
        ))
    }

    /// What the table should hold, where packets look for a lease in a set.
    fn wanted(&self, slot: Slot, under_way: Option<(&Plan, usize)>) -> Wanted {
        fn commands(steps: &[plan::Step]) -> impl Iterator<Item = &Command> {
            steps.iter().flat_map(|step| &step.commands)
        }
        let table = plan::create(&self.installed, &self.options, self.limits());
        let mut wanted = Wanted::of(commands(&table.steps));
        if let Some((plan, done)) = under_way {
            wanted.extend(commands(&plan.steps[..done]));
        }
        if let Some(chain) = wanted.chains.get_mut(lease::CHAIN) {
            chain.rules = lease::rules(slot);
        }
        wanted
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
        let wanted = self.wanted(Slot::default(), under_way);
        let nothing = Garbage::default();
        let limits = self.limits();
        let repair = plan::repair(&wanted, &Found::default(), &nothing, self.protected, limits);
        let steps = repair.steps.into_iter().flat_map(|step| step.commands);
        let commands: Vec<Command> = [Command::DeleteTable].into_iter().chain(steps).collect();
        self.kernel.commit(&commands)
    }
}
