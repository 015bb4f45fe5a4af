//! A model of the kernel for tests and simulation. The model takes the batches that the real kernel takes, and refuses
//! those that the real one refuses. The model returns every verdict that a packet may meet. The model never touches a
//! socket, and knows nothing of plans.
//!
//! The model shows why one batch is not atomic for a packet (docs/KERNEL.md, and
//! docs/decisions/0036-a-fake-kernel.md):
//!
//! - There are **two** copies of each chain's rules. At its base chain a packet takes the parity of the generation, and
//!   reads the copy of that parity. Each commit writes the copy of its own parity. So a chain that is new in a batch is
//!   empty to the packets before it. A packet that outlives two commits reads rules newer than those it began with.
//! - Every lookup in a set or map reads the **current** generation anew. A lookup has two moments: it samples the
//!   generation's parity, and reads an element later. With one commit in between, the lookup finds elements of the
//!   batch under way before that is committed, or refused.
//! - A set of ranges may show its content of one generation earlier. The kernel swaps the content after the flip.
//! - A packet may stay under way for as long as there is no [grace period](FakeKernel::grace).
//! - Elements with a timeout go when [time passes](FakeKernel::advance), for all packets at once.
//!
//! [`FakeKernel::verdicts`] tries every such mix. A [`Walk`] takes one packet through, a lookup at a time.

mod apply;
mod compile;
mod elements;
mod explore;
mod packet;
mod table;
mod validate;
mod walk;

use std::{
    collections::{BTreeSet, VecDeque},
    ops::RangeInclusive,
    time::Duration,
};

use nix::errno::Errno;
use sallyport_nft::{
    command::{Command, Element, SetKind, TableFamily, TableName},
    connection,
    content::Observed,
    encode,
    kernel::Kernel,
    netlink::{self, Error, Outline},
};

use table::Table;

pub use explore::{Trace, Verdicts};
pub use packet::{Arrival, Connection, Packet};
pub use walk::{Judgement, Walk};

/// The generation of the ruleset: the number of commits that changed anything in the network namespace.
pub type RulesetGeneration = u64;

/// The name of a process. Each process has a socket of its own.
pub type Process = u32;

/// The bytes that a socket takes above [`Kernel::batch_limit`]: `net.core.wmem_default` less the kernel's own part, and
/// `netlink`'s limit for it, 212,960 to 150,000.
const SLACK: usize = 62_960;

/// A failure that a test or a simulation asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The socket fails before the kernel sees the batch.
    Socket(Errno),
    /// The kernel refuses the batch's first command.
    Refused(Errno),
    /// The kernel commits (or refuses) the batch, and its answer is lost.
    AnswerLost,
    /// The batch is lost before the kernel sees it, and no answer comes.
    BatchLost,
}

/// A network namespace with at most one table, of family inet.
///
/// ```
/// use sallyport_nft::{
///     command::{Base, Command, Rule, Verdict},
///     kernel::Kernel,
/// };
/// use sallyport_nft_fake::{FakeKernel, Packet};
///
/// let chain = |name: &str, base| Command::AddChain { name: name.into(), base, comment: String::new() };
/// let rule = |chain: &str, verdict| Command::AddRule(chain.into(), Rule::always(verdict));
/// let mut kernel = FakeKernel::default();
/// kernel
///     .commit(&[
///         Command::AddTable { owned: false },
///         chain("policy", None),
///         chain("forward", Some(Base::forward(0))),
///         rule("forward", Verdict::Jump("policy".into())),
///     ])
///     .unwrap();
/// kernel.grace();
///
/// // The chain is denied in one batch. A packet under way reads the rules from before or from after it.
/// let packet = Packet::of_connection([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 6, 80);
/// kernel.commit(&[rule("policy", Verdict::Drop)]).unwrap();
/// let verdicts = kernel.verdicts_now(&packet);
/// assert!(verdicts.can_pass && verdicts.can_drop);
///
/// kernel.grace();
/// assert!(!kernel.verdicts_now(&packet).can_pass);
/// ```
#[derive(Debug)]
pub struct FakeKernel {
    /// The table's name, which errors spell.
    name: TableName,
    table: Table,
    generation: RulesetGeneration,
    /// The generation since which packets may be under way.
    horizon: RulesetGeneration,
    speaker: Process,
    batch: usize,
    faults: VecDeque<Fault>,
    /// Whether a lookup that finds nothing is tried again where the generation moved meanwhile (Linux 6.17).
    retries: bool,
}

impl Default for FakeKernel {
    fn default() -> FakeKernel {
        FakeKernel::new(16 << 20)
    }
}

impl FakeKernel {
    /// A namespace without a table. Its sockets advise batches of at most `batch` bytes.
    pub fn new(batch: usize) -> FakeKernel {
        FakeKernel {
            name: TableName::new(TableFamily::Inet, "fake"),
            table: Table::default(),
            generation: 0,
            horizon: 0,
            speaker: 0,
            batch,
            faults: VecDeque::new(),
            retries: true,
        }
    }

    /// The same kernel for a table of another name, which must be of family inet. Errors have the name in their texts.
    pub fn for_table(self, name: TableName) -> FakeKernel {
        FakeKernel { name, ..self }
    }

    /// The same kernel as it was before Linux 6.17. A lookup can miss an element that is replaced in one batch.
    pub fn without_retries(self) -> FakeKernel {
        FakeKernel {
            retries: false,
            ..self
        }
    }

    /// The number of commits.
    pub fn generation(&self) -> RulesetGeneration {
        self.generation
    }

    /// The oldest generation that a packet still under way may have begun in: that of the last grace period.
    pub fn horizon(&self) -> RulesetGeneration {
        self.horizon
    }

    /// Has this process make the commits from now on.
    pub fn speak_as(&mut self, process: Process) {
        self.speaker = process;
    }

    /// Ends a process, and its socket with it. A table that the process owned stays, without an owner.
    pub fn process_ends(&mut self, process: Process) {
        if self.table.owner == Some(process) {
            self.table.owner = None;
            self.table.flags = Some(encode::TABLE_PERSISTS);
        }
    }

    /// Commits to another table, by another process. The commit raises the generation of the ruleset.
    pub fn commit_elsewhere(&mut self) {
        self.generation += 1;
    }

    /// Lets time pass.
    pub fn advance(&mut self, time: Duration) {
        self.table.advance(time);
    }

    /// Has the next commits fail in these ways, in order.
    pub fn fail_next(&mut self, faults: impl IntoIterator<Item = Fault>) {
        self.faults.extend(faults);
    }

    /// The possible verdicts on a packet that is under way while these generations are the current ones: every mix that
    /// its lookups can meet. The kernel remembers nothing from before the [horizon](FakeKernel::horizon).
    pub fn verdicts(
        &self,
        packet: &Packet,
        generations: RangeInclusive<RulesetGeneration>,
    ) -> Verdicts {
        explore::verdicts(self, packet, generations)
    }

    /// The way of a packet to a judgement while these generations are the current ones, if there is one.
    pub fn explain(
        &self,
        packet: &Packet,
        generations: RangeInclusive<RulesetGeneration>,
        judgement: Judgement,
    ) -> Option<Trace> {
        explore::explain(self, packet, generations, judgement)
    }

    /// The possible verdicts on a packet that is under way now, and began after the last grace period.
    pub fn verdicts_now(&self, packet: &Packet) -> Verdicts {
        self.verdicts(packet, self.horizon..=self.generation)
    }

    fn take(&mut self, commands: &[Command]) -> Result<(), Error> {
        if let Err(errno) = self.fits(commands) {
            return Err(Error::Socket {
                step: "send",
                errno,
            });
        }
        let refused = |(index, errno): (usize, Errno)| Error::Refused {
            command: netlink::shorten(&commands[index].of(self.name).to_string()),
            errno,
        };
        let next = self.generation + 1;
        if self
            .table
            .commit(commands, next, self.speaker)
            .map_err(refused)?
        {
            self.generation = next;
        }
        Ok(())
    }

    /// Whether a socket takes a batch of this size. The estimate is cheaper than to encode the batch, and never too
    /// low.
    fn fits(&self, commands: &[Command]) -> Result<(), Errno> {
        let limit = self.batch.saturating_add(SLACK);
        let bound: usize = commands.iter().map(encode::size_bound).sum();
        if bound <= limit || encode::batch(self.name, commands, None).bytes.len() <= limit {
            return Ok(());
        }
        Err(Errno::EMSGSIZE)
    }
}

impl Kernel for FakeKernel {
    fn batch_limit(&self) -> usize {
        self.batch
    }

    fn commit(&mut self, commands: &[Command]) -> Result<(), Error> {
        match self.faults.pop_front() {
            None => self.take(commands),
            Some(Fault::Socket(errno)) => Err(Error::Socket {
                step: "send",
                errno,
            }),
            Some(Fault::Refused(errno)) => Err(Error::Refused {
                command: commands
                    .first()
                    .map(|command| command.of(self.name).to_string())
                    .unwrap_or_default(),
                errno,
            }),
            Some(Fault::AnswerLost) => {
                let _ = self.take(commands);
                Err(Error::AnswerLost(Errno::ENOBUFS))
            }
            Some(Fault::BatchLost) => Err(Error::AnswerLost(Errno::ENOBUFS)),
        }
    }

    fn commit_at(&mut self, generation: u64, commands: &[Command]) -> Result<(), Error> {
        if generation != self.generation {
            return Err(Error::Socket {
                step: "commit",
                errno: Errno::ERESTART,
            });
        }
        self.commit(commands)
    }

    fn content(&mut self) -> Result<Observed, Error> {
        Ok(Observed {
            generation: self.generation,
            ..self.table.content()
        })
    }

    fn outline(&mut self) -> Result<Option<Outline>, Error> {
        let Some(flags) = self.table.flags else {
            return Ok(None);
        };
        let named = |names: Vec<&str>| {
            let names = names.into_iter().filter(|name| !name.starts_with("__"));
            names.map(str::to_owned).collect()
        };
        Ok(Some(Outline {
            flags,
            chains: named(self.table.chain_names().collect()),
            bases: named(self.table.bases().collect()),
            sets: named(self.table.set_names().collect()),
        }))
    }

    fn elements(&mut self, set: &str, kind: SetKind) -> Result<Option<BTreeSet<Element>>, Error> {
        Ok(self.table.elements(set, kind))
    }

    fn lookups(&mut self, chain: &str) -> Result<Vec<String>, Error> {
        Ok(self.table.lookups(chain))
    }

    fn flush_conntrack(
        &mut self,
        _: &dyn Fn(&connection::Connection) -> bool,
    ) -> Result<usize, Error> {
        // Each packet of this model brings its own connection, so conntrack holds none.
        Ok(0)
    }

    fn grace(&mut self) {
        self.horizon = self.generation;
        self.table.prune_before(self.horizon);
    }
}
