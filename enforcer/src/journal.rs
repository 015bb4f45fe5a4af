//! The node's journal: what it enforces, durable before the kernel hears of it. The store is `sallyport-journal`'s.
//!
//! Tree `log`: sequence number and part (big-endian) -> part of a record. The first part of a record is written last,
//! so that a record without one was never durable and never acted upon. Tree `meta`: where the log starts. It starts
//! with a snapshot; after it come intents, each followed by an abort if the kernel refused it. An intent that no
//! abort follows is applied: at restart the kernel's stamp tells how far it had come, and it is finished. So an
//! acknowledgement needs one durable write, before the kernel's.

mod failure;
mod inspect;
mod quarantine;
pub mod record;
mod store;

pub use sallyport_journal::Error as StoreError;
use sallyport_policy::{Misfit, UnknownAddresses, Update};

pub use self::{
    failure::Error,
    inspect::{RecordSummary, Report, inspect, refuse_open},
    quarantine::{INSTANCE, MEMBERSHIP, Quarantined, open},
    store::Journal,
};
use crate::{plan::Installed, table::names::UpdateSeq};

/// What an agent needs of a journal.
pub trait Log {
    /// Writes an intent. When this returns, it survives a loss of power.
    fn intend(&mut self, intent: &Intent) -> Result<(), Error>;

    /// Takes the last intent back: the kernel refused it and has what it had. Its generation is not used again.
    fn abort(&mut self, generation: UpdateSeq) -> Result<(), Error>;

    /// Whether the log is long enough to be worth a snapshot.
    fn wants_snapshot(&self) -> bool;

    /// Replaces the whole log by what is installed. The kernel must have all of it.
    fn snapshot(&mut self, installed: &Installed) -> Result<(), Error>;
}

/// An update that is to be applied, with all that its plan depends on, so that a restart makes the same plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Intent {
    /// The update.
    pub update: Update,
    /// What becomes of unknown workload addresses.
    pub unknown: UnknownAddresses,
    /// The most bytes of a batch.
    pub batch: usize,
}

impl Intent {
    /// The state after the update.
    pub fn after(&self, before: &Installed) -> Result<Installed, Misfit> {
        let window = before.window.updated(&self.update)?;
        Ok(before.updated(window, &self.unknown))
    }
}

/// What a journal holds.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// What was enforced before the last intent.
    pub installed: Installed,
    /// The last intent, if no abort follows it, and the state after it.
    pub pending: Option<(Intent, Installed)>,
}

impl Recovered {
    /// Takes in an intent. If it follows another, the other was applied.
    pub fn intend(&mut self, intent: Intent) -> Result<(), Misfit> {
        if let Some((_, after)) = self.pending.take() {
            self.installed = after;
        }
        let after = intent.after(&self.installed)?;
        self.pending = Some((intent, after));
        Ok(())
    }

    /// Takes in that the kernel refused the last intent.
    pub fn abort(&mut self, generation: UpdateSeq) {
        self.pending = None;
        self.installed.generation = generation;
    }

    /// Takes in a snapshot: what was before it is no matter.
    pub fn snapshot(&mut self, installed: Installed) {
        *self = Recovered {
            installed,
            pending: None,
        };
    }
}
