//! A simulated machine: the fake kernel, the disk, and the process between them, which can die at each operation on
//! either. It records every verdict that packets under way can meet, and judges none.

use std::{cell::RefCell, collections::BTreeSet, io, rc::Rc};

use nix::errno::Errno;
use sallyport_enforcer::{
    journal::{self, Intent, Log, Recovered},
    plan::Installed,
    table::names::UpdateSeq,
};
use sallyport_nft::{
    command::{Command, Element, SetKind},
    connection::Connection,
    content::Observed,
    kernel::Kernel,
    netlink::{Error, Outline},
};
use sallyport_nft_fake::{FakeKernel, Fault, Packet, Process, Verdicts};
use sallyport_policy::Position;

use crate::mutant::Mutant;

/// After how many records the log is replaced by a snapshot.
const RECORDS: usize = 6;

/// The next fault and its time: after so many operations on kernel and disk.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mishap {
    /// The process dies before the operation has an effect.
    DiesBefore,
    /// The process dies when the operation is done, before it hears of it.
    DiesAfter,
    /// The kernel, or the disk, fails so.
    Fails(Fault),
}

/// A record of the log.
#[derive(Clone, Debug)]
enum Record {
    Intent(Intent),
    Abort(UpdateSeq),
    Snapshot(Installed),
}

/// The machine.
#[derive(Debug)]
pub(crate) struct Machine {
    kernel: FakeKernel,
    durable: Vec<Record>,
    /// Written, and lost when the power is: only a mutant has such.
    volatile: Vec<Record>,
    process: Process,
    /// Whether the process is dead: nothing that it does has an effect.
    dead: bool,
    mishap: Option<(u32, Mishap)>,
    mutant: Option<Mutant>,
    /// The batches of the update under way, where a mutant holds them back.
    held_back: Option<Vec<Vec<Command>>>,
    /// The number of commits between two by somebody else.
    strangers: u32,
    commits: u32,
    packets: Vec<Packet>,
    /// For every packet what may have become of it since this was last taken.
    seen: Vec<Verdicts>,
    /// The generation up to which that was looked at.
    looked: u64,
}

/// The agent's access to the machine.
#[derive(Clone, Debug)]
pub(crate) struct Handle(pub(super) Rc<RefCell<Machine>>);

impl Machine {
    /// A machine that judges these packets.
    pub(crate) fn new(packets: Vec<Packet>, strangers: u32, mutant: Option<Mutant>) -> Machine {
        Machine {
            kernel: FakeKernel::default(),
            durable: Vec::new(),
            volatile: Vec::new(),
            process: 0,
            dead: true,
            mishap: None,
            mutant,
            held_back: None,
            strangers,
            commits: 0,
            seen: vec![Verdicts::default(); packets.len()],
            packets,
            looked: 0,
        }
    }

    /// Whether the process is dead.
    pub(crate) fn is_dead(&self) -> bool {
        self.dead
    }

    /// Starts a new process. Records are durable once it has read them.
    pub(crate) fn boot_process(&mut self) -> Result<Recovered, String> {
        self.kernel.process_ends(self.process);
        self.process += 1;
        self.kernel.speak_as(self.process);
        self.dead = false;
        self.recover()
    }

    /// The process is killed.
    pub(crate) fn kill(&mut self) {
        self.dead = true;
        self.mishap = None;
        self.held_back = None;
        self.volatile.clear();
        self.kernel.process_ends(self.process);
    }

    /// The power is cut: the kernel forgets all.
    pub(crate) fn cut_power(&mut self) {
        self.kill();
        self.kernel = FakeKernel::default();
        self.looked = 0;
    }

    /// After so many operations something goes wrong.
    pub(crate) fn plan_mishap(&mut self, after: u32, mishap: Mishap) {
        self.mishap = Some((after, mishap));
    }

    /// Nothing goes wrong any more.
    pub(crate) fn calm(&mut self) {
        self.mishap = None;
    }

    /// Writes what a mutant did not.
    pub(crate) fn sync(&mut self) {
        self.durable.append(&mut self.volatile);
    }

    fn recover(&mut self) -> Result<Recovered, String> {
        let mut recovered = Recovered::default();
        for record in &self.durable {
            match record.clone() {
                Record::Intent(intent) => recovered
                    .intend(intent)
                    .map_err(|error| error.to_string())?,
                Record::Abort(generation) => recovered.abort(generation),
                Record::Snapshot(installed) => recovered.snapshot(installed),
            }
        }
        Ok(recovered)
    }

    /// The versions that a process would find that starts now, after the power was cut.
    pub(crate) fn durable_window(&self) -> Vec<Position> {
        let mut windows: Vec<Vec<Position>> = vec![Vec::new()];
        for record in &self.durable {
            match record {
                Record::Intent(intent) => {
                    let mut window = intent.update.keep.clone();
                    window.push(intent.update.target);
                    window.sort();
                    windows.push(window);
                }
                Record::Abort(_) => drop(windows.pop()),
                Record::Snapshot(installed) => windows = vec![installed.window.positions()],
            }
        }
        windows.pop().unwrap_or_default()
    }

    /// Samples the possible verdicts of packets under way.
    fn sample_verdicts(&mut self) {
        if self.looked == self.kernel.generation() {
            return;
        }
        self.looked = self.kernel.generation();
        for (packet, seen) in self.packets.iter().zip(&mut self.seen) {
            if seen.can_pass && seen.can_drop {
                continue;
            }
            let verdicts = self.kernel.verdicts_now(packet);
            seen.can_pass |= verdicts.can_pass;
            seen.can_drop |= verdicts.can_drop;
        }
    }

    /// The possible verdicts of each packet since the last call, and the verdicts from now on. `None` when nothing
    /// happened since.
    pub(crate) fn take_verdicts(&mut self) -> Option<(Vec<Verdicts>, Vec<Verdicts>)> {
        let quiet = self.looked == self.kernel.generation()
            && self.kernel.horizon() == self.kernel.generation()
            && !self.seen.iter().any(|seen| seen.can_pass || seen.can_drop);
        if quiet {
            return None;
        }
        self.sample_verdicts();
        self.kernel.grace();
        let fresh = vec![Verdicts::default(); self.packets.len()];
        let seen = std::mem::replace(&mut self.seen, fresh);
        let packets = self.packets.iter();
        let now = packets.map(|packet| self.kernel.verdicts_now(packet));
        Some((seen, now.collect()))
    }

    /// From now on a mutant holds back what is committed.
    pub(crate) fn hold_back(&mut self) {
        let holds = matches!(
            self.mutant,
            Some(Mutant::SingleBatch | Mutant::GrantBeforeRevoke)
        );
        self.held_back = holds.then(Vec::new);
    }

    /// Commits what a mutant held back.
    pub(crate) fn commit_held_back(&mut self) {
        let Some(batches) = self.held_back.take() else {
            return;
        };
        let batches = match self.mutant {
            Some(Mutant::SingleBatch) => vec![batches.concat()],
            _ => grants_first(batches),
        };
        for batch in batches {
            // A mistake that leads to a batch that the kernel refuses harms nobody.
            let _ = self.kernel.commit(&batch);
        }
    }

    /// Counts an operation. Says what goes wrong with it.
    fn operate(&mut self) -> Option<Mishap> {
        let (left, mishap) = self.mishap.as_mut()?;
        if *left > 0 {
            *left -= 1;
            return None;
        }
        let mishap = *mishap;
        self.mishap = None;
        Some(mishap)
    }

    fn commit(&mut self, commands: &[Command]) -> Result<(), Error> {
        let dies = Error::Socket {
            step: "send",
            errno: Errno::EBADF,
        };
        if self.dead {
            return Err(dies);
        }
        if let Some(batches) = &mut self.held_back {
            batches.push(commands.to_vec());
            return Ok(());
        }
        self.commits += 1;
        if self.commits.is_multiple_of(self.strangers) {
            self.kernel.commit_elsewhere();
        }
        match self.operate() {
            None => self.kernel.commit(commands),
            Some(Mishap::Fails(fault)) => {
                self.kernel.fail_next([fault]);
                self.kernel.commit(commands)
            }
            Some(Mishap::DiesBefore) => {
                self.dead = true;
                Err(dies)
            }
            Some(Mishap::DiesAfter) => {
                let _ = self.kernel.commit(commands);
                self.dead = true;
                Err(dies)
            }
        }
    }

    fn write(&mut self, record: Record) -> Result<(), journal::Error> {
        let failed = |why: &str| {
            journal::Error::Store(journal::StoreError::Io {
                path: "simulated".into(),
                step: "write a record",
                cause: io::Error::other(why.to_owned()),
            })
        };
        if self.dead {
            return Err(failed("dead"));
        }
        let mishap = self.operate();
        match mishap {
            Some(Mishap::DiesBefore) => {
                self.dead = true;
                return Err(failed("dies"));
            }
            Some(Mishap::Fails(_)) => return Err(failed("no space left on device")),
            _ => {}
        }
        match (self.mutant, &record) {
            (Some(Mutant::AckBeforeJournal), _) => self.volatile.push(record),
            (_, Record::Snapshot(_)) => self.durable = vec![record],
            _ => self.durable.push(record),
        }
        if mishap.is_some() {
            self.dead = true;
            return Err(failed("dies"));
        }
        Ok(())
    }
}

/// Lets members in before anything else is done, and takes members out when all is done.
fn grants_first(batches: Vec<Vec<Command>>) -> Vec<Vec<Command>> {
    let all = batches.iter().flatten();
    let fresh: BTreeSet<String> = all
        .filter_map(|command| match command {
            Command::AddSet { name, .. } => Some(name.clone()),
            _ => None,
        })
        .collect();
    let (mut first, mut last, mut between) = (Vec::new(), Vec::new(), Vec::new());
    for batch in batches {
        let mut rest = Vec::new();
        for command in batch {
            match &command {
                Command::AddElements(name, SetKind::Addresses(_), _) if !fresh.contains(name) => {
                    first.push(command);
                }
                Command::DeleteElements(_, SetKind::Addresses(_), _) => last.push(command),
                _ => rest.push(command),
            }
        }
        between.push(rest);
    }
    between.insert(0, first);
    between.push(last);
    between
}

impl Kernel for Handle {
    fn batch_limit(&self) -> usize {
        self.0.borrow().kernel.batch_limit()
    }

    fn commit(&mut self, commands: &[Command]) -> Result<(), Error> {
        self.0.borrow_mut().commit(commands)
    }

    fn commit_at(&mut self, generation: u64, commands: &[Command]) -> Result<(), Error> {
        let mut machine = self.0.borrow_mut();
        if machine.kernel.generation() != generation {
            return machine.kernel.commit_at(generation, commands);
        }
        machine.commit(commands)
    }

    fn content(&mut self) -> Result<Observed, Error> {
        self.0.borrow_mut().kernel.content()
    }

    fn outline(&mut self) -> Result<Option<Outline>, Error> {
        self.0.borrow_mut().kernel.outline()
    }

    fn elements(&mut self, set: &str, kind: SetKind) -> Result<Option<BTreeSet<Element>>, Error> {
        self.0.borrow_mut().kernel.elements(set, kind)
    }

    fn lookups(&mut self, chain: &str) -> Result<Vec<String>, Error> {
        self.0.borrow_mut().kernel.lookups(chain)
    }

    fn flush_conntrack(&mut self, which: &dyn Fn(&Connection) -> bool) -> Result<usize, Error> {
        self.0.borrow_mut().kernel.flush_conntrack(which)
    }

    fn grace(&mut self) {
        let mut machine = self.0.borrow_mut();
        if !machine.dead && machine.held_back.is_none() {
            machine.sample_verdicts();
            machine.kernel.grace();
        }
    }
}

impl Log for Handle {
    fn intend(&mut self, intent: &Intent) -> Result<(), journal::Error> {
        self.0.borrow_mut().write(Record::Intent(intent.clone()))
    }

    fn abort(&mut self, generation: UpdateSeq) -> Result<(), journal::Error> {
        self.0.borrow_mut().write(Record::Abort(generation))
    }

    fn wants_snapshot(&self) -> bool {
        let machine = self.0.borrow();
        machine.durable.len() + machine.volatile.len() > RECORDS
    }

    fn snapshot(&mut self, installed: &Installed) -> Result<(), journal::Error> {
        self.0
            .borrow_mut()
            .write(Record::Snapshot(installed.clone()))
    }
}
