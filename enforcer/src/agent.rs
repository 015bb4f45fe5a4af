//! The agent: the only one who changes the kernel's table and the journal. It owns what is installed, and carries out
//! one update at a time: journal, kernel, acknowledgement.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::Path,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use nix::errno::Errno;
use sallyport_proto::{
    Delta, Position, Unknown,
    policy::{Direction, NodePolicy},
};
use tokio::sync::oneshot;
use tracing::{debug, error, info, warn};

use crate::{
    grace,
    journal::{self, Intent, Journal, Recovered},
    netlink::{self, Netlink, TableState},
    nft::{
        command::Command,
        render::{self, Options},
        stamp::Stamp,
    },
    plan::{self, Garbage, Installed, Limits, Plan},
};

/// How long nothing must happen before what is left behind is deleted.
const IDLE: Duration = Duration::from_millis(100);

/// How long to wait for the kernel to see that the enforcer before this one is dead.
const ORPHAN_PATIENCE: Duration = Duration::from_secs(5);

/// How many objects may be left behind before they are deleted though updates keep coming.
const GARBAGE_MAX: usize = 500;

/// An update as the control plane sent it.
#[derive(Clone, Debug)]
pub struct Update {
    /// What the node must have for it to fit; `None` for a snapshot, which fits always.
    pub base: Option<Position>,
    /// What the node has once it is applied.
    pub target: Position,
    /// The changes.
    pub delta: Delta,
}

/// Why an update was not applied. What was enforced before is enforced on.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It does not fit what the node has: a snapshot would.
    #[error("the update does not fit: {0}")]
    Misfit(String),
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

struct Request {
    update: Update,
    reply: oneshot::Sender<Result<Position, Refusal>>,
}

/// A way to the agent, which runs on a thread of its own until every handle is gone.
#[derive(Clone, Debug)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    position: tokio::sync::watch::Receiver<Option<Position>>,
}

impl Handle {
    /// What the node enforces.
    pub fn position(&self) -> Option<Position> {
        *self.position.borrow()
    }

    /// Applies an update: when this returns `Ok` it is in the journal and in the kernel.
    pub async fn apply(&self, update: Update) -> Result<Position, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(Request { update, reply })
            .expect("the agent runs as long as there are handles");
        answer.await.expect("the agent answers every request")
    }
}

struct Agent {
    netlink: Netlink,
    journal: Journal,
    options: Options,
    installed: Installed,
    garbage: Garbage,
    /// An update that stopped half-way, and the step to go on with.
    unfinished: Option<(Plan, usize)>,
    /// Whether there may be connections of addresses that are nobody's any more, to be forgotten when nothing happens.
    forgetting: bool,
    /// Set when the kernel has a table that the journal knows nothing of: it stays until a snapshot replaces it.
    foreign: bool,
    position: tokio::sync::watch::Sender<Option<Position>>,
}

/// Starts the agent: brings journal and kernel together without a packet noticing, then waits for updates.
pub fn start(data_dir: &Path, options: Options) -> Result<Handle, StartError> {
    let netlink = Netlink::open()?;
    netlink.await_orphan(ORPHAN_PATIENCE)?;
    let (journal, recovered) = Journal::open(data_dir)?;
    let (requests, queue) = mpsc::channel();
    let (position, watch) = tokio::sync::watch::channel(None);
    let mut agent = Agent {
        netlink,
        journal,
        options,
        installed: Installed::default(),
        garbage: Garbage::default(),
        unfinished: None,
        forgetting: false,
        foreign: false,
        position,
    };
    agent.adopt(recovered)?;
    thread::Builder::new()
        .name("agent".into())
        .spawn(move || agent.run(&queue))
        .expect("a thread can be started");
    Ok(Handle {
        requests,
        position: watch,
    })
}

impl Agent {
    fn run(&mut self, queue: &mpsc::Receiver<Request>) {
        loop {
            let request = if self.garbage.is_empty() && !self.forgetting {
                queue.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                queue.recv_timeout(IDLE)
            };
            match request {
                Ok(Request { update, reply }) => {
                    let result = self.apply(update);
                    let _ = reply.send(result);
                }
                Err(RecvTimeoutError::Timeout) => self.clean(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.garbage.len() > GARBAGE_MAX {
                self.clean();
            }
        }
    }

    /// Brings journal and kernel together.
    fn adopt(&mut self, recovered: Recovered) -> Result<(), StartError> {
        self.forgetting = true; // What the journal says of that may be done or not.
        let started = Instant::now();
        let Some(table) = self.netlink.read()? else {
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
        let stamp = table.reading.stamp;
        let Recovered { installed, pending } = recovered;
        if !table.chains.contains(render::FORWARD) {
            // The base chain is made last: the table was never whole, or is not any more.
            warn!("the table judges no packets: making it anew");
            let installed = pending.map_or(installed, |(_, after)| after);
            return Ok(self.create(&installed, true)?);
        }
        let at = stamp.map(|stamp| stamp.position);
        match pending {
            Some((intent, after)) if at == Some(intent.target) => {
                let progress = stamp.and_then(|stamp| stamp.progress);
                self.installed = installed;
                self.resume(
                    &intent,
                    after,
                    progress.map_or(usize::MAX, |(done, _)| done as usize),
                )?;
            }
            Some((intent, after)) if at == Some(installed.position.unwrap_or_default()) => {
                self.installed = installed;
                self.resume(&intent, after, 0)?;
            }
            None if at == Some(installed.position.unwrap_or_default()) => {
                self.installed = installed
            }
            pending => {
                self.installed = pending.map_or(installed, |(_, after)| after);
                return self.keep_foreign(stamp);
            }
        }
        self.mend(table.reading.frame.as_deref())?;
        self.announce();
        let position = self.installed.position.unwrap_or_default();
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
        let owned = self.options.owned && table.is_owned();
        self.netlink.commit(&[Command::AddTable { owned }])
    }

    /// Finishes an update that an earlier life began.
    fn resume(&mut self, intent: &Intent, after: Installed, done: usize) -> Result<(), Refusal> {
        if done < usize::MAX {
            let mut options = self.options.clone();
            options.unknown = if intent.strict {
                Unknown::Drop
            } else {
                Unknown::Allow
            };
            let limits = Limits {
                batch: intent.batch,
            };
            let plan = plan::update(
                &self.installed,
                &after.policy,
                intent.target,
                &options,
                limits,
                &Garbage::default(),
            );
            info!(
                revision = intent.target.revision,
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
        let Some(table) = self.netlink.read()? else {
            return Ok(self.create(&self.installed.clone(), false)?);
        };
        let expected = plan::objects(&self.installed, &self.options);
        let missing = expected
            .chains
            .difference(&table.chains)
            .chain(expected.sets.difference(&table.sets));
        // Sets of workload ranges are made with the frame that names them.
        let missing: Vec<&String> = missing
            .filter(|name| !name.starts_with("workloads"))
            .collect();
        if !missing.is_empty() {
            warn!(?missing, "the table is damaged: making it anew");
            return Ok(self.create(&self.installed.clone(), true)?);
        }
        if frame != Some(render::frame_fingerprint(&self.options, &self.installed.policy).as_str())
        {
            info!("writing the frame of the table for the options given now");
            let plan = plan::reframe(&self.installed, &self.options, self.limits());
            self.carry_out(&plan, 0)?;
        }
        self.garbage.chains = table.chains.difference(&expected.chains).cloned().collect();
        self.garbage.sets = table.sets.difference(&expected.sets).cloned().collect();
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
        self.installed = plan.after;
        self.foreign = false;
        self.garbage = Garbage::default();
        self.announce();
        Ok(())
    }

    fn commit_steps(&self, plan: &Plan) -> Result<(), netlink::Error> {
        plan.steps
            .iter()
            .try_for_each(|step| self.netlink.commit(&step.commands))
    }

    fn limits(&self) -> Limits {
        Limits {
            batch: self.netlink.batch_limit(),
        }
    }

    fn announce(&self) {
        self.position.send_replace(self.installed.position);
    }

    fn apply(&mut self, update: Update) -> Result<Position, Refusal> {
        let started = Instant::now();
        self.finish()?;
        let Update {
            base,
            target,
            delta,
        } = update;
        if base.is_some() && (base != self.installed.position || self.foreign) {
            return Err(Refusal::Misfit("it is for another base".into()));
        }
        let intent = Intent {
            target,
            delta,
            snapshot: base.is_none(),
            strict: self.options.unknown == Unknown::Drop,
            batch: self.limits().batch,
        };
        let policy = intent
            .policy(&self.installed.policy)
            .map_err(|error| Refusal::Misfit(error.to_string()))?;
        self.forget_returning(&policy, target)?;
        self.journal.intend(&intent)?;
        self.enforce(policy, target)?;
        self.announce();
        if self.journal.wants_snapshot()
            && let Err(error) = self.journal.snapshot(&self.installed)
        {
            warn!(%error, "the journal stays long");
        }
        debug!(revision = target.revision, took = ?started.elapsed(), "applied");
        Ok(target)
    }

    fn enforce(&mut self, policy: NodePolicy, target: Position) -> Result<(), Refusal> {
        if self.foreign {
            return self.replace_foreign(policy, target);
        }
        let plan = plan::update(
            &self.installed,
            &policy,
            target,
            &self.options,
            self.limits(),
            &self.garbage,
        );
        match self.carry_out(&plan, 0) {
            Ok(()) => {
                self.installed(plan);
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
    fn replace_foreign(&mut self, policy: NodePolicy, target: Position) -> Result<(), Refusal> {
        let after = self.installed.updated(policy, target);
        let keeps = |address: &IpAddr| {
            let directions = Direction::BOTH.into_iter();
            let endpoint = &after.policy.endpoints()[address];
            directions
                .filter_map(|direction| endpoint.class(direction))
                .any(|class| after.policy.classes()[&class].keep)
        };
        let kept = after.policy.endpoints().keys().copied().filter(keeps);
        self.netlink
            .forget(&kept.collect())
            .and_then(|()| self.create(&after, true))
            .map_err(|source| Refusal::Kernel {
                revision: target.revision,
                step: 1,
                steps: 1,
                source,
            })
    }

    /// Forgets the connections of addresses that come back, if that has not been done since they went.
    fn forget_returning(&mut self, policy: &NodePolicy, target: Position) -> Result<(), Refusal> {
        let returning = self.installed.returning(policy);
        self.forget(&returning).map_err(|source| Refusal::Kernel {
            revision: target.revision,
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
    fn forget(&self, addresses: &BTreeSet<IpAddr>) -> Result<(), netlink::Error> {
        if addresses.is_empty() {
            return Ok(());
        }
        grace::period();
        self.netlink.forget(addresses)
    }

    /// The kernel refused the first step: it has what it had. The generation's names are burnt.
    fn take_back(&mut self, plan: &Plan) -> Result<(), Refusal> {
        self.journal.abort(plan.after.generation)?;
        self.installed.generation = plan.after.generation;
        Ok(())
    }

    fn installed(&mut self, plan: Plan) {
        self.garbage.after(&plan);
        self.installed = plan.after;
        self.forgetting = !self.installed.departed.is_empty();
    }

    /// Goes on with an update that stopped half-way.
    fn finish(&mut self) -> Result<(), Refusal> {
        let Some((plan, done)) = self.unfinished.take() else {
            return Ok(());
        };
        match self.carry_out(&plan, done) {
            Ok(()) => {
                self.installed(plan);
                self.announce();
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
    fn carry_out(&self, plan: &Plan, done: usize) -> Result<(), Refusal> {
        for (index, step) in plan.steps.iter().enumerate().skip(done) {
            if step.grace && step.forget.is_empty() {
                grace::period();
            }
            let refused = |source| Refusal::Kernel {
                revision: plan.after.position.unwrap_or_default().revision,
                step: index + 1,
                steps: plan.steps.len(),
                source,
            };
            self.forget(&step.forget).map_err(refused)?;
            match self.netlink.commit(&step.commands) {
                Ok(()) => {}
                Err(netlink::Error::AnswerLost(errno)) => {
                    warn!(%errno, step = index + 1, "the kernel's answer was lost: reading the stamp");
                    if !self.is_done(plan, index).map_err(refused)? {
                        self.netlink.commit(&step.commands).map_err(refused)?;
                    }
                }
                Err(source) => return Err(refused(source)),
            }
        }
        Ok(())
    }

    /// Whether the stamp says that a step is done.
    fn is_done(&self, plan: &Plan, index: usize) -> Result<bool, netlink::Error> {
        let stamp = self.netlink.read_stamp()?.stamp;
        Ok(stamp.is_some_and(|stamp| {
            Some(stamp.position) == plan.after.position
                && stamp.progress.is_none_or(|(done, _)| done as usize > index)
        }))
    }

    /// Deletes what no packet can reach any more, and forgets the connections of addresses that are nobody's.
    fn clean(&mut self) {
        grace::period();
        self.forget_departed();
        if self.garbage.is_empty() {
            return;
        }
        match self.netlink.commit(&self.garbage.delete()) {
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
        match self.netlink.forget(&departed) {
            Ok(()) => self.installed.departed.clear(),
            Err(error) => {
                warn!(%error, "could not forget the connections of workloads that are gone; nobody is given their addresses before");
            }
        }
    }
}
