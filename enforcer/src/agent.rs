//! The agent: the only one who changes the kernel's table and the journal. It owns what is installed, and carries out
//! one update at a time: journal, kernel, acknowledgement. It knows no time and no thread: those are `thread`'s.

mod drift;
mod lease;
mod thread;

use std::{collections::BTreeSet, net::IpAddr, time::Instant};

use nix::errno::Errno;
use sallyport_proto::{Delta, Misfit, Position, Update, policy::Direction};
use tracing::{debug, error, info, warn};

use crate::{
    journal::{self, Intent, Log, Recovered},
    kernel::Kernel,
    netlink::{self, TableState},
    nft::{
        command::Command,
        render::{self, Options},
        stamp::Stamp,
    },
    plan::{self, Garbage, Installed, Limits, Plan, Reach},
};

pub use drift::Drift;
use lease::Lease;
pub use thread::{Handle, start};

/// Why an update was not applied. What was enforced before is enforced on.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It does not fit what the node has: a snapshot would.
    #[error("the update does not fit: {0}")]
    Misfit(#[from] Misfit),
    /// The journal cannot be written: nothing that is not durable is applied.
    #[error(transparent)]
    Journal(#[from] journal::Error),
    /// The kernel refused it.
    #[error("revision {revision}, step {step} of {steps}: {source}")]
    Kernel {
        /// The update's revision.
        revision: u64,
        /// The failing step, counted from 1.
        step: usize,
        /// How many steps there are.
        steps: usize,
        /// What the kernel said.
        source: netlink::Error,
    },
}

/// Why an agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(#[from] journal::Error),
    /// The kernel refused.
    #[error("cannot set up the table inet sallyport: {0}")]
    Kernel(#[from] netlink::Error),
    /// The journal's last update fails where the kernel stands.
    #[error("cannot finish the update that was under way: {0}")]
    Resume(#[from] Refusal),
}

/// How often a step is tried while others keep changing the table, or answers are lost.
const TRIES: usize = 4;

/// The agent, on a kernel and a journal. Everything that it does it does at once: there is no time in it.
#[derive(Debug)]
pub struct Agent<K, L> {
    kernel: K,
    journal: L,
    options: Options,
    installed: Installed,
    garbage: Garbage,
    /// What changed since packets under way were last seen through.
    recent: Reach,
    /// An update that stopped half-way, and the step to go on with.
    unfinished: Option<(Plan, usize)>,
    /// Whether there may be connections of addresses that are nobody's any more, to be forgotten when nothing happens.
    forgetting: bool,
    /// Set when the kernel has a table that the journal knows nothing of: it stays until a snapshot replaces it.
    foreign: bool,
    /// Whether the kernel keeps others from changing the table.
    protected: bool,
    drift: Drift,
    lease: Lease,
}

impl<K: Kernel, L: Log> Agent<K, L> {
    /// Brings journal and kernel together without a packet noticing.
    pub fn start(
        kernel: K,
        journal: L,
        recovered: Recovered,
        options: Options,
    ) -> Result<Agent<K, L>, StartError> {
        let mut agent = Agent {
            kernel,
            journal,
            options,
            installed: Installed::default(),
            garbage: Garbage::default(),
            recent: Reach::default(),
            unfinished: None,
            forgetting: false,
            foreign: false,
            protected: false,
            drift: Drift::default(),
            lease: Lease::default(),
        };
        agent.adopt(recovered)?;
        agent.change_mode()?;
        Ok(agent)
    }

    /// The versions that the node holds; none while the kernel has a table that the journal knows nothing of.
    pub fn window(&self) -> Vec<Position> {
        match self.foreign {
            true => Vec::new(),
            false => self.installed.window.positions(),
        }
    }

    /// What the kernel has.
    pub fn installed(&self) -> &Installed {
        &self.installed
    }

    /// The kernel.
    pub fn kernel(&self) -> &K {
        &self.kernel
    }

    /// The kernel, for who plays the rest of it.
    pub fn kernel_mut(&mut self) -> &mut K {
        &mut self.kernel
    }

    /// How much there is to clean when nothing happens: objects that updates have left behind, connections of addresses
    /// that are nobody's any more, packets to see through.
    pub fn left_behind(&self) -> usize {
        self.garbage.len() + usize::from(self.forgetting || !self.recent.is_empty())
    }

    /// What several versions have in common depends on what becomes of unknown addresses, and the operator may have
    /// changed that.
    fn change_mode(&mut self) -> Result<(), Refusal> {
        let Some((newest, older)) = self.installed.window.versions().split_last() else {
            return Ok(());
        };
        if self.foreign || older.is_empty() || self.installed.unknown == self.options.unknown() {
            return Ok(());
        }
        self.apply(Update {
            base: Some(newest.position),
            target: newest.position,
            keep: older.iter().map(|version| version.position).collect(),
            delta: Delta::default(),
        })
    }

    /// Brings journal and kernel together.
    fn adopt(&mut self, recovered: Recovered) -> Result<(), StartError> {
        self.forgetting = true; // What the journal says of that may be done or not.
        let started = Instant::now();
        let Some(table) = self.kernel.read()? else {
            // After a reboot: what was intended is carried out, as it was acknowledged or would have been.
            let installed = match recovered.pending {
                Some((_, after)) => after,
                None => recovered.installed,
            };
            self.create(&installed, false)?;
            info!(took = ?started.elapsed(), "made the table from the journal");
            return Ok(());
        };
        self.take_over(&table)?;
        if self.options.lease.is_none() && table.lease.is_some() {
            self.begin_to_end_leases();
        }
        let stamp = table.reading.stamp;
        let Recovered { installed, pending } = recovered;
        if !table.chains.contains(render::FORWARD) {
            // The base chain is made last: the table was never whole, or is not any more.
            warn!("the table judges no packets");
            self.installed = pending.map_or(installed, |(_, after)| after);
            self.restore()?;
            return Ok(());
        }
        let is_at = |at: &Installed| stamp.is_some_and(|stamp| stamp.is_of(at));
        // Packets that met what an earlier life did last may still be under way.
        self.kernel.grace();
        // An update that was under way was planned for a table without leases, if it has none.
        let lease = self.options.lease.take_if(|_| table.lease.is_none());
        match pending {
            Some((intent, after)) if is_at(&after) => {
                let done = stamp.and_then(|stamp| stamp.steps_done());
                self.installed = installed;
                self.resume(
                    &intent,
                    after,
                    done.map_or(usize::MAX, |done| done as usize),
                )?;
            }
            Some((intent, after)) if is_at(&installed) => {
                self.installed = installed;
                self.resume(&intent, after, 0)?;
            }
            None if is_at(&installed) => self.installed = installed,
            pending => {
                self.installed = pending.map_or(installed, |(_, after)| after);
                self.options.lease = lease.or(self.options.lease);
                return self.keep_foreign(stamp);
            }
        }
        self.options.lease = lease.or(self.options.lease);
        self.mend(table.reading.frame.as_deref())?;
        let position = self.installed.position().unwrap_or_default();
        info!(%position, took = ?started.elapsed(), "took the table over");
        Ok(())
    }

    /// The table is not what the journal knows. It goes on enforcing until a snapshot comes.
    fn keep_foreign(&mut self, stamp: Option<Stamp>) -> Result<(), StartError> {
        let stamp = stamp.map_or_else(|| "nothing".into(), |stamp| stamp.to_string());
        warn!(%stamp, "the table in the kernel is not what the journal holds: it stays until a snapshot replaces it");
        self.foreign = true;
        Ok(())
    }

    /// Becomes the owner of a table that an earlier life left.
    fn take_over(&mut self, table: &TableState) -> Result<(), netlink::Error> {
        self.protected = self.options.owned && table.is_made_to_be_owned();
        self.kernel.commit(&[Command::AddTable {
            owned: self.protected,
        }])
    }

    /// Finishes an update that an earlier life began.
    fn resume(&mut self, intent: &Intent, after: Installed, done: usize) -> Result<(), Refusal> {
        if done < usize::MAX {
            let limits = Limits {
                batch: intent.batch,
            };
            let plan = plan::update(&self.installed, &after, &self.options, limits);
            info!(
                revision = intent.update.target.revision,
                done,
                of = plan.steps.len(),
                "finishing the update under way"
            );
            self.carry_out(&plan, done)?;
        }
        self.installed = after;
        Ok(())
    }

    /// Deletes what an earlier life left behind, and writes the frame anew if the options are others.
    fn mend(&mut self, frame: Option<&str>) -> Result<(), StartError> {
        let Some(table) = self.kernel.read()? else {
            return Ok(self.create(&self.installed.clone(), false)?);
        };
        self.lease.slot = table.lease;
        let is_same = frame
            == Some(&*render::frame_fingerprint(
                &self.options,
                &self.installed.policy,
            ));
        if !is_same {
            info!("writing the frame of the table for the options given now");
            let slot = table.lease.unwrap_or_default();
            self.lease.slot = Some(slot);
            let plan = plan::reframe(&self.installed, &self.options, slot, self.limits());
            self.carry_out(&plan, 0)?;
        }
        // Everything that should not be there was left behind by an earlier life.
        self.garbage = Garbage::default();
        if self.restore()? {
            warn!(differences = ?self.drift.last, "the table was changed while no enforcer ran: it is mended");
        }
        Ok(())
    }

    /// Makes the whole table. With `replace`, in place of the one that is there.
    fn create(&mut self, installed: &Installed, replace: bool) -> Result<(), netlink::Error> {
        let make = |options: &Options, limits| {
            let mut plan = plan::create(installed, options, limits);
            if replace {
                // In one batch, so that there is no moment without a table.
                let steps = std::mem::take(&mut plan.steps);
                let all = steps.into_iter().flat_map(|step| step.commands);
                let commands = [Command::DeleteTable].into_iter().chain(all).collect();
                plan.steps = vec![plan::Step {
                    commands,
                    ..plan::Step::default()
                }];
            }
            plan
        };
        let mut plan = make(&self.options, self.limits());
        let mut result = self.commit_steps(&plan);
        if let Err(netlink::Error::Refused {
            errno: Errno::EOPNOTSUPP | Errno::EINVAL,
            ..
        }) = result
            && self.options.owned
        {
            warn!("this kernel cannot protect the table (flags owner and persist, Linux 6.9)");
            self.options.owned = false;
            plan = make(&self.options, self.limits());
            result = self.commit_steps(&plan);
        }
        result?;
        self.protected = self.options.owned;
        self.installed = plan.after;
        self.foreign = false;
        self.garbage = Garbage::default();
        self.lease.start_anew();
        Ok(())
    }

    fn commit_steps(&mut self, plan: &Plan) -> Result<(), netlink::Error> {
        plan.steps.iter().try_for_each(|step| {
            if step.grace {
                self.kernel.grace();
            }
            self.kernel.commit(&step.commands)
        })
    }

    fn limits(&self) -> Limits {
        Limits {
            batch: self.kernel.batch_limit(),
        }
    }

    /// Applies an update: when this returns `Ok` it is in the journal and in the kernel.
    pub fn apply(&mut self, update: Update) -> Result<(), Refusal> {
        let started = Instant::now();
        self.finish()?;
        let revision = update.target.revision;
        if self.foreign && update.base.is_some() {
            return Err(Misfit::NoVersion(update.base.unwrap_or_default()).into());
        }
        let intent = Intent {
            update,
            unknown: self.options.unknown(),
            batch: self.limits().batch,
        };
        let after = intent.after(&self.installed)?;
        self.forget_returning(&after)?;
        self.journal.intend(&intent)?;
        self.enforce(after)?;
        if self.journal.wants_snapshot()
            && let Err(error) = self.journal.snapshot(&self.installed)
        {
            warn!(%error, "the journal stays long");
        }
        debug!(revision, took = ?started.elapsed(), "applied");
        Ok(())
    }

    fn enforce(&mut self, after: Installed) -> Result<(), Refusal> {
        if self.foreign {
            return self.replace_foreign(&after);
        }
        let plan = plan::update(&self.installed, &after, &self.options, self.limits());
        if plan.must_wait_for(&self.recent, &self.installed) {
            self.grace();
        }
        match self.carry_out(&plan, 0) {
            Ok(()) => {
                self.settle(plan);
                Ok(())
            }
            Err(refusal @ Refusal::Kernel { step: 1, .. }) => {
                self.take_back(&plan)?;
                Err(refusal)
            }
            Err(refusal) => {
                let done = match &refusal {
                    Refusal::Kernel { step, .. } => step - 1,
                    _ => 0,
                };
                error!(%refusal, "an update stopped half-way: what both versions allow is enforced until it goes on");
                self.unfinished = Some((plan, done));
                Err(refusal)
            }
        }
    }

    /// Nobody knows whose the addresses were: where connections are to be kept, those that are there are not.
    fn replace_foreign(&mut self, after: &Installed) -> Result<(), Refusal> {
        let keeps = |address: &IpAddr| {
            let directions = Direction::BOTH.into_iter();
            let endpoint = &after.policy.endpoints()[address];
            directions
                .filter_map(|direction| endpoint.class(direction))
                .any(|class| after.policy.classes()[&class].keep)
        };
        let kept = after.policy.endpoints().keys().copied().filter(keeps);
        self.kernel
            .forget(&kept.collect())
            .and_then(|()| self.replace(after))
            .map_err(|source| Refusal::Kernel {
                revision: after.position().unwrap_or_default().revision,
                step: 1,
                steps: 1,
                source,
            })
    }

    /// Makes the whole table in the place of one of which nobody knows what it enforces, without a packet noticing.
    fn replace(&mut self, installed: &Installed) -> Result<(), netlink::Error> {
        let plan = self.kernel.read()?.and_then(|found| {
            let found = Garbage {
                chains: found.chains,
                sets: found.sets,
            };
            plan::replace(installed, &self.options, &found, self.limits())
        });
        let Some(plan) = plan else {
            return self.create(installed, true);
        };
        match self.commit_steps(&plan) {
            Ok(()) => {}
            Err(error @ netlink::Error::Refused { .. }) => {
                warn!(%error, "the table cannot be replaced bit by bit: doing it at once, which may drop packets under way");
                return self.create(installed, true);
            }
            Err(error) => return Err(error),
        }
        self.installed = plan.after;
        self.foreign = false;
        self.garbage = plan.garbage;
        self.lease.start_anew();
        Ok(())
    }

    /// Forgets the connections of addresses that come back, if that has not been done since they went.
    fn forget_returning(&mut self, after: &Installed) -> Result<(), Refusal> {
        let returning = self.installed.returning(&after.policy);
        self.forget(&returning).map_err(|source| Refusal::Kernel {
            revision: after.position().unwrap_or_default().revision,
            step: 1,
            steps: 1,
            source,
        })?;
        for address in &returning {
            self.installed.departed.remove(address);
        }
        Ok(())
    }

    /// Has conntrack forget the connections of addresses, once packets of theirs that are under way are through.
    fn forget(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<(), netlink::Error> {
        if addresses.is_empty() {
            return Ok(());
        }
        self.kernel.grace();
        self.kernel.forget(addresses)
    }

    /// The kernel refused the first step: it has what it had. The generation's names are burnt.
    fn take_back(&mut self, plan: &Plan) -> Result<(), Refusal> {
        self.journal.abort(plan.after.generation)?;
        self.installed.generation = plan.after.generation;
        Ok(())
    }

    fn settle(&mut self, plan: Plan) {
        self.recent.merge(&plan.reach);
        self.garbage.after(&plan);
        self.installed = plan.after;
        self.forgetting = !self.installed.departed.is_empty();
    }

    /// Whether an update stopped half-way. It is in the journal: the node will hold what it leads to.
    pub fn is_half_way(&self) -> bool {
        self.unfinished.is_some()
    }

    /// Goes on with an update that stopped half-way.
    pub fn finish(&mut self) -> Result<(), Refusal> {
        if self.unfinished.is_some() && !self.protected {
            // What stops an update may be what others did.
            if let Err(error) = self.restore() {
                warn!(%error, "could not mend the table");
            }
        }
        let Some((plan, done)) = self.unfinished.take() else {
            return Ok(());
        };
        match self.carry_out(&plan, done) {
            Ok(()) => {
                self.settle(plan);
                Ok(())
            }
            Err(refusal) => {
                let done = match &refusal {
                    Refusal::Kernel { step, .. } => step - 1,
                    _ => done,
                };
                self.unfinished = Some((plan, done));
                Err(refusal)
            }
        }
    }

    /// Commits the steps of a plan from one on.
    fn carry_out(&mut self, plan: &Plan, done: usize) -> Result<(), Refusal> {
        for (index, step) in plan.steps.iter().enumerate().skip(done) {
            if step.grace && step.forget.is_empty() {
                self.kernel.grace();
            }
            let refused = |source| Refusal::Kernel {
                revision: plan.after.position().unwrap_or_default().revision,
                step: index + 1,
                steps: plan.steps.len(),
                source,
            };
            self.forget(&step.forget).map_err(refused)?;
            self.carry_out_step(plan, index).map_err(refused)?;
        }
        Ok(())
    }

    /// Commits a step. What the kernel refuses because others changed the table is tried again once that is mended.
    fn carry_out_step(&mut self, plan: &Plan, index: usize) -> Result<(), netlink::Error> {
        let mut tries = 0;
        loop {
            let error = match self.kernel.commit(&plan.steps[index].commands) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if let netlink::Error::AnswerLost(errno) = error {
                warn!(%errno, step = index + 1, "the kernel's answer was lost: reading the stamp");
                if self.is_done(plan, index)? {
                    return Ok(());
                }
            } else if !error.is_outdated() && !self.is_mended(plan, index) {
                return Err(error);
            }
            tries += 1;
            if tries == TRIES {
                return Err(error);
            }
        }
    }

    /// Whether something was wrong with the table, on the way of a plan, and is not any more.
    fn is_mended(&mut self, plan: &Plan, done: usize) -> bool {
        let mended = self.restore_on_the_way(Some((plan, done)));
        mended.unwrap_or_else(|error| {
            warn!(%error, "could not mend the table");
            false
        })
    }

    /// Whether the stamp says that a step is done.
    fn is_done(&mut self, plan: &Plan, index: usize) -> Result<bool, netlink::Error> {
        let stamp = self.kernel.read_stamp()?.stamp;
        Ok(stamp.is_some_and(|stamp| {
            stamp.is_of(&plan.after) && stamp.progress.is_none_or(|(done, _)| done as usize > index)
        }))
    }

    /// Returns when packets under way are through.
    fn grace(&mut self) {
        self.kernel.grace();
        self.recent = Reach::default();
    }

    /// Deletes what no packet can reach any more, and forgets the connections of addresses that are nobody's.
    pub fn clean(&mut self) {
        self.grace();
        self.forget_departed();
        if self.garbage.is_empty() {
            return;
        }
        match self.kernel.commit(&self.garbage.delete()) {
            Ok(()) => debug!(
                objects = self.garbage.len(),
                "deleted what updates left behind"
            ),
            Err(error) => {
                warn!(%error, "could not delete what updates left behind; it does no harm and goes with a restart");
            }
        }
        self.garbage = Garbage::default();
    }

    fn forget_departed(&mut self) {
        self.forgetting = false;
        if self.foreign {
            return;
        }
        let departed = self.installed.departed.iter().copied().collect();
        match self.kernel.forget(&departed) {
            Ok(()) => self.installed.departed.clear(),
            Err(error) => {
                warn!(%error, "could not forget the connections of workloads that are gone; nobody is given their addresses before");
            }
        }
    }
}
