//! The agent: the only writer of the kernel's table and of the journal. It owns the installed state, and applies one
//! update at a time: journal, kernel, acknowledgement. It knows no time and no thread: those belong to `thread`.

mod adopt;
mod bridge;
mod drift;
mod guarding;
mod lease;
mod thread;
mod whole;

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Instant};

use parking_lot::Mutex;
use sallyport_nft::{kernel::Kernel, netlink};
use sallyport_policy::{Misfit, NodePolicy, Position, Revision, Update};
use tracing::{debug, error, info, warn};

use crate::{
    journal::{self, Intent, Log, Recovered},
    plan::{self, Garbage, Installed, Limits, Plan, Reach, Review},
    table::{
        ports::{self, Ports},
        render::Options,
        state,
    },
};

pub use bridge::BridgeTable;
pub use drift::Drift;
pub use guarding::Unguarded;
use lease::Lease;
pub use thread::{Handle, start};

/// The reason why an update was not applied. The node enforces the same versions as before.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The update does not fit the versions that the node holds. A snapshot does.
    #[error("the update does not fit the versions that the node holds: {0}")]
    Misfit(#[from] Misfit),
    /// The journal cannot be written: nothing that is not durable is applied.
    #[error(transparent)]
    Journal(#[from] journal::Error),
    /// Workloads cannot be kept from addresses that they may not use any more.
    #[error("cannot revoke the allowed sources before the update: {0}")]
    Guard(String),
    /// The kernel refused a step of the update.
    #[error("update to revision {revision}, step {step} of {steps}: {source}")]
    Kernel {
        /// The update's revision.
        revision: Revision,
        /// The failing step, counted from 1.
        step: usize,
        steps: usize,
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
    #[error("cannot set up the table inet sallyport: {0}{remedy}", remedy = remedy(.0))]
    Kernel(#[from] netlink::Error),
    /// The journal's last update fails where the kernel stands.
    #[error("cannot finish the update that an earlier enforcer process began: {0}")]
    Resume(#[from] UpdateError),
}

/// The remedy where the kernel refuses the table; empty where the error has it already.
fn remedy(error: &netlink::Error) -> &'static str {
    match error.is_not_permitted() {
        true => ". Another enforcer may hold the table: run one in each network namespace",
        false => "",
    }
}

/// The number of former workload addresses that are remembered with their last workload.
const DEPARTED: usize = 1_000;

/// The most tries of a step while others keep changing the table, or answers are lost.
const TRIES: usize = 4;

/// An update that fits the node.
#[derive(Debug)]
pub struct Prepared {
    intent: Intent,
    after: Installed,
    started: Instant,
}

impl Prepared {
    /// The policy that the node will enforce.
    pub fn policy(&self) -> &NodePolicy {
        &self.after.policy
    }
}

/// The agent, on a kernel and a journal. Everything that it does it does at once: there is no time in it.
#[derive(Debug)]
pub struct Agent<K, L> {
    kernel: K,
    journal: L,
    options: Options,
    installed: Installed,
    garbage: Garbage,
    /// Whether the kernel refused to delete garbage. That is tried again after the next update.
    clean_failed: bool,
    /// The changes since packets under way were last seen through.
    recent: Reach,
    /// An update that stopped half-way, and the step to go on with.
    unfinished: Option<(Plan, usize)>,
    /// Whether so many addresses have lost their workload that their connections are flushed at the next idle moment.
    flush_due: bool,
    /// Set while the kernel has a table that the journal does not know. The table stays until a snapshot replaces it.
    unrecognised: bool,
    /// Whether the kernel keeps others from changing the table.
    protected: bool,
    drift: Drift,
    lease: Arc<Mutex<Lease>>,
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
            clean_failed: false,
            recent: Reach::default(),
            unfinished: None,
            flush_due: false,
            unrecognised: false,
            protected: false,
            drift: Drift::default(),
            lease: Arc::default(),
        };
        agent.adopt(recovered)?;
        agent.change_mode()?;
        agent.allow_leases();
        Ok(agent)
    }

    /// The versions that the node holds; none while the kernel has an unrecognised table.
    pub fn window(&self) -> Vec<Position> {
        match self.unrecognised {
            true => Vec::new(),
            false => self.installed.window.positions(),
        }
    }

    /// The policy that the kernel has.
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

    /// The amount of work for an idle moment: objects that updates have left behind, unless the kernel has just refused
    /// to delete them; connections of former workload addresses; packets to see through.
    pub fn left_behind(&self) -> usize {
        let objects = match self.clean_failed {
            true => 0,
            false => self.garbage.len(),
        };
        objects + usize::from(self.flush_due || !self.recent.is_empty())
    }

    fn limits(&self) -> Limits {
        Limits {
            batch: self.kernel.batch_limit(),
        }
    }

    /// Applies an update: when this returns `Ok` it is in the journal and in the kernel.
    pub fn apply(&mut self, update: Update) -> Result<(), UpdateError> {
        let prepared = self.prepare(update)?;
        self.apply_prepared(prepared)
    }

    /// Computes the state after an update. It changes nothing, except that it finishes an update that stopped half-way.
    pub fn prepare(&mut self, update: Update) -> Result<Prepared, UpdateError> {
        let started = Instant::now();
        self.finish()?;
        if self.unrecognised && update.base.is_some() {
            return Err(Misfit::NoVersion(update.base.unwrap_or_default()).into());
        }
        let intent = Intent {
            update,
            unknown: self.options.unknown(),
            batch: self.limits().batch,
        };
        let after = intent.after(&self.installed)?;
        Ok(Prepared {
            intent,
            after,
            started,
        })
    }

    /// Applies an update that was prepared last: when this returns `Ok` it is in the journal and in the kernel.
    pub fn apply_prepared(&mut self, prepared: Prepared) -> Result<(), UpdateError> {
        let Prepared {
            intent,
            after,
            started,
        } = prepared;
        let revision = intent.update.target.revision;
        self.flush_inherited(&after)?;
        self.journal.intend(&intent)?;
        self.enforce(after)?;
        if self.journal.wants_snapshot()
            && let Err(error) = self.journal.snapshot(&self.installed)
        {
            warn!(%error, "cannot write a snapshot to the journal: the journal keeps growing");
        }
        debug!(revision = revision.0, took = ?started.elapsed(), "applied an update");
        Ok(())
    }

    /// The interfaces of workloads that the table knows.
    pub fn ports(&self) -> &Ports {
        &self.options.ports
    }

    /// The interfaces of workloads, and the addresses that these may use, are these: has the table know them.
    pub fn set_ports(&mut self, ports: &Ports) -> Result<(), netlink::Error> {
        // An unrecognised table stays as it is: its replacement gets the interfaces.
        let batches = match self.unrecognised {
            true => Vec::new(),
            false => ports::change(&self.options.ports, ports),
        };
        for batch in batches {
            if let Err(error) = self.kernel.commit(&batch) {
                if let Ok(Some(table)) = state::read(&mut self.kernel) {
                    self.options.ports = table.ports;
                }
                return Err(error);
            }
        }
        self.options.ports.clone_from(ports);
        Ok(())
    }

    fn enforce(&mut self, after: Installed) -> Result<(), UpdateError> {
        if self.unrecognised {
            return self.replace_unrecognised(&after);
        }
        let plan = plan::update(&self.installed, &after, &self.options, self.limits());
        if plan.must_wait_for(&self.recent, &self.installed) {
            self.grace();
        }
        match self.commit_from(&plan, 0) {
            Ok(()) => {
                self.install(plan);
                Ok(())
            }
            Err(refusal @ UpdateError::Kernel { step: 1, .. }) => {
                self.roll_back(&plan)?;
                Err(refusal)
            }
            Err(refusal) => {
                let done = match &refusal {
                    UpdateError::Kernel { step, .. } => step - 1,
                    _ => 0,
                };
                error!(
                    %refusal,
                    "an update stopped half-way: until it continues, only traffic that both versions allow passes"
                );
                self.unfinished = Some((plan, done));
                self.allow_leases();
                Err(refusal)
            }
        }
    }

    /// Flushes the connections of addresses that come back for other workloads than before.
    fn flush_inherited(&mut self, after: &Installed) -> Result<(), UpdateError> {
        let inherited = self.installed.inherited(&after.policy);
        self.flush_conntrack(&inherited)
            .map_err(|source| UpdateError::Kernel {
                revision: after.position().unwrap_or_default().revision,
                step: 1,
                steps: 1,
                source,
            })?;
        for address in &inherited {
            self.installed.departed.remove(address);
        }
        Ok(())
    }

    /// Flushes the connections of addresses from conntrack, after a grace period for their packets under way.
    fn flush_conntrack(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<(), netlink::Error> {
        if addresses.is_empty() {
            return Ok(());
        }
        self.kernel.grace();
        self.kernel
            .flush_conntrack(&|connection| connection.is_of(addresses))?;
        Ok(())
    }

    /// Ends the connections that [must end](plan::must_end) when one policy takes the place of another, once packets
    /// under way are through.
    fn review(
        &mut self,
        before: Option<&NodePolicy>,
        after: &NodePolicy,
    ) -> Result<(), netlink::Error> {
        self.kernel.grace();
        let options = &self.options;
        let ended = self
            .kernel
            .flush_conntrack(&|connection| plan::must_end(connection, before, after, options))?;
        if ended > 0 {
            info!(
                ended,
                "ended connections whose direction conntrack may have reversed"
            );
        }
        Ok(())
    }

    /// Does what must be done before a step of a way from one policy to another.
    fn make_way(
        &mut self,
        step: &plan::Step,
        before: &NodePolicy,
        after: &NodePolicy,
    ) -> Result<(), netlink::Error> {
        match step.review {
            Some(Review::Revoked) => self.review(Some(before), after)?,
            Some(Review::All) => self.review(None, after)?,
            None if step.grace && step.flush.is_empty() => self.kernel.grace(),
            None => {}
        }
        self.flush_conntrack(&step.flush)
    }

    /// Rolls back an update whose first step the kernel refused. The table is unchanged; the names of the generation
    /// are not used again.
    fn roll_back(&mut self, plan: &Plan) -> Result<(), UpdateError> {
        self.journal.abort(plan.after.generation)?;
        self.installed.generation = plan.after.generation;
        Ok(())
    }

    /// Records that all steps of a plan are committed.
    fn install(&mut self, plan: Plan) {
        self.recent.merge(&plan.reach);
        self.garbage.after(&plan);
        self.clean_failed = false;
        self.installed = plan.after;
        self.flush_due = self.installed.departed.len() > DEPARTED;
    }

    /// Whether an update stopped half-way. It is in the journal: the node will hold what it leads to.
    pub fn is_half_way(&self) -> bool {
        self.unfinished.is_some()
    }

    /// Goes on with an update that stopped half-way.
    pub fn finish(&mut self) -> Result<(), UpdateError> {
        if self.unfinished.is_some() && !self.protected {
            // The cause of the stop may be a change by another process.
            if let Err(error) = self.restore() {
                warn!(%error, "cannot repair the table inet sallyport before an update continues");
            }
        }
        let Some((plan, done)) = self.unfinished.take() else {
            return Ok(());
        };
        match self.commit_from(&plan, done) {
            Ok(()) => {
                self.install(plan);
                self.allow_leases();
                Ok(())
            }
            Err(refusal) => {
                let done = match &refusal {
                    UpdateError::Kernel { step, .. } => step - 1,
                    _ => done,
                };
                self.unfinished = Some((plan, done));
                Err(refusal)
            }
        }
    }

    /// Commits the steps of a plan after the first `done`.
    fn commit_from(&mut self, plan: &Plan, done: usize) -> Result<(), UpdateError> {
        let before = self.installed.policy.clone();
        for (index, step) in plan.steps.iter().enumerate().skip(done) {
            let refused = |source| UpdateError::Kernel {
                revision: plan.after.position().unwrap_or_default().revision,
                step: index + 1,
                steps: plan.steps.len(),
                source,
            };
            self.make_way(step, &before, &plan.after.policy)
                .map_err(refused)?;
            self.commit_step(plan, index).map_err(refused)?;
        }
        Ok(())
    }

    /// Commits a step. Where the kernel refuses it because another process changed the table, it is tried again after
    /// the repair.
    fn commit_step(&mut self, plan: &Plan, index: usize) -> Result<(), netlink::Error> {
        let mut tries = 0;
        loop {
            let error = match self.kernel.commit(&plan.steps[index].commands) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if let netlink::Error::AnswerLost(errno) = error {
                warn!(
                    %errno, step = index + 1,
                    "the kernel's answer to a step of an update was lost: reading the stamp of the table"
                );
                if self.is_done(plan, index)? {
                    return Ok(());
                }
            } else if !error.is_outdated() && !self.repair_on_the_way(plan, index) {
                return Err(error);
            }
            tries += 1;
            if tries == TRIES {
                return Err(error);
            }
        }
    }

    /// Repairs the table in the middle of a plan. Returns whether the table differed.
    fn repair_on_the_way(&mut self, plan: &Plan, done: usize) -> bool {
        let repaired = self.restore_on_the_way(Some((plan, done)));
        repaired.unwrap_or_else(|error| {
            warn!(%error, "cannot repair the table inet sallyport during an update");
            false
        })
    }

    /// Whether the stamp says that a step is done.
    fn is_done(&mut self, plan: &Plan, index: usize) -> Result<bool, netlink::Error> {
        let stamp = state::read_stamp(&mut self.kernel)?.stamp;
        Ok(stamp.is_some_and(|stamp| {
            plan.after.has_stamp(&stamp)
                && stamp.progress.is_none_or(|(done, _)| done as usize > index)
        }))
    }

    /// Returns when packets under way are through.
    fn grace(&mut self) {
        self.kernel.grace();
        self.recent = Reach::default();
    }

    /// Deletes the objects that no packet can reach any more. Flushes the connections of addresses without a workload,
    /// if these are many. Objects that the kernel refuses to delete stay garbage.
    pub fn clean(&mut self) {
        self.grace();
        if self.flush_due {
            self.flush_departed();
        }
        if self.garbage.is_empty() || self.clean_failed {
            return;
        }
        let objects = self.garbage.len();
        for batch in self.garbage.delete_in_batches(self.limits()) {
            if let Err(error) = self.kernel.commit(&batch) {
                self.clean_fails(&error);
                return;
            }
            self.garbage.without_deleted(&batch);
        }
        debug!(
            objects,
            "deleted the unused objects that updates left in the table"
        );
    }

    fn clean_fails(&mut self, error: &netlink::Error) {
        self.clean_failed = true;
        // Objects that are gone were deleted by others, or by a batch whose answer was lost.
        if let Ok(Some(table)) = state::read(&mut self.kernel) {
            self.garbage
                .retain(&table.outline.chains, &table.outline.sets);
        }
        let left = self.garbage.len();
        warn!(
            %error, left,
            "cannot delete all unused objects of the table: they do no harm, and the next update tries again"
        );
    }

    fn flush_departed(&mut self) {
        self.flush_due = false;
        if self.unrecognised {
            return;
        }
        let departed = self.installed.departed.keys().copied().collect();
        match self
            .kernel
            .flush_conntrack(&|connection| connection.is_of(&departed))
        {
            Ok(_) => self.installed.departed.clear(),
            Err(error) => {
                warn!(
                    %error,
                    "cannot flush connections of deleted workloads from conntrack: an address is reused only after \
                     its flush"
                );
            }
        }
    }
}
