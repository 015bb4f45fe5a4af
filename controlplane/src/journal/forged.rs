//! A journal of records that no control plane wrote, for fuzzing: whatever a disk may hold is read as at a start. Nothing
//! else uses it.

use std::path::Path;

use sallyport_policy::Revision;

use super::{JournalError, Recovered, load, record, store::Trees};
use crate::history::Bounds;

/// Where a record lies.
#[derive(Clone, Copy, Debug)]
pub enum Tree {
    /// Among the transactions.
    Log,
    /// Among the objects.
    Snapshot,
    /// Among format, epoch and notes.
    Meta,
}

/// A record's bytes, with the right length and checksum.
pub fn seal(key: &[u8], parts: u32, payload: &[u8]) -> Vec<u8> {
    record::seal(key, parts, payload)
}

/// Trees that hold what they are given.
pub struct Forged(Trees);

impl Forged {
    /// Empty trees.
    pub fn open(path: &Path) -> Result<Forged, JournalError> {
        Ok(Forged(Trees::open(path)?))
    }

    /// Replaces all records by others, and reads them.
    pub fn read(
        &self,
        records: impl IntoIterator<Item = (Tree, Vec<u8>, Vec<u8>)>,
        acknowledged: Revision,
    ) -> Result<Recovered, JournalError> {
        let Forged(trees) = self;
        for tree in [&trees.log, &trees.snapshot, &trees.meta] {
            tree.clear().map_err(trees.failed("empty it"))?;
        }
        for (tree, key, record) in records {
            let tree = match tree {
                Tree::Log => &trees.log,
                Tree::Snapshot => &trees.snapshot,
                Tree::Meta => &trees.meta,
            };
            tree.insert(key, record)
                .map_err(trees.failed("write to it"))?;
        }
        self.read_again(acknowledged)
    }

    /// Reads the records that are there.
    pub fn read_again(&self, acknowledged: Revision) -> Result<Recovered, JournalError> {
        let loaded = load::load(&self.0, Bounds::default(), acknowledged)?;
        Ok(loaded.recovered)
    }
}
