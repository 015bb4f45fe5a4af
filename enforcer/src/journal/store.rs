//! The journal in its store: opening, appending, trimming, and getting up again after an error. What is in the
//! records is `record`'s.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use sallyport_journal::{Error as StoreError, Store, Tree, Watermark, close, parts, unpanicked};
use tracing::info;

use super::{Error, Intent, Log, RecordSummary, Recovered, quarantine, record};
use crate::{plan::Installed, table::names::UpdateSeq};

/// The size of the store's cache, in bytes.
const CACHE: u64 = 16 << 20;

/// The key in `meta` of the first sequence number that counts.
const START: &str = "start";

/// A log of more records than this is replaced by a snapshot...
const RECORDS_MAX: usize = 1_000;

/// ...and so is one of more bytes than this that is also several times its snapshot.
const BYTES_MAX: usize = 4 << 20;

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    /// `None` after an error, until the next use.
    trees: Option<Trees>,
    next: u64,
    records: usize,
    bytes: usize,
    snapshot_bytes: usize,
    watermark: Watermark<1>,
    /// What the watermark said when the journal was opened.
    acknowledged: Option<u64>,
}

/// The open trees. Cloning gives another handle to the same.
#[derive(Clone, Debug)]
struct Trees {
    store: Store,
    log: Tree,
    meta: Tree,
}

/// Records by sequence number, each in parts.
type Records = BTreeMap<u64, Vec<Vec<u8>>>;

impl Journal {
    /// Opens the journal in a directory, which is made if it is not there, and reads what it holds.
    pub fn open(path: &Path) -> Result<(Journal, Recovered), Error> {
        let (journal, recovered, _) = Journal::read(path)?;
        Ok((journal, recovered))
    }

    /// The same, with each record in words.
    pub(super) fn read(path: &Path) -> Result<(Journal, Recovered, Vec<RecordSummary>), Error> {
        fs::create_dir_all(path).map_err(StoreError::io(path, "create the directory"))?;
        unpanicked(path, "read it", || {
            let mut journal = Journal::start(path)?;
            let (recovered, entries) = journal.replay()?;
            Ok((journal, recovered, entries))
        })
    }

    fn start(path: &Path) -> Result<Journal, Error> {
        let trees = Trees::open(path)?;
        let (watermark, acknowledged) = Watermark::open(path)?;
        Ok(Journal {
            path: path.to_owned(),
            trees: Some(trees),
            next: 0,
            records: 0,
            bytes: 0,
            snapshot_bytes: 0,
            watermark,
            acknowledged: acknowledged.map(|[last]| last),
        })
    }

    /// Reads every record. Nothing is written before all that was acted upon is found to be there.
    fn replay(&mut self) -> Result<(Recovered, Vec<RecordSummary>), Error> {
        let trees = self.trees()?;
        let start = trees.start()?;
        self.next = start;
        let (records, unborn) = trees.records(start)?;
        let mut recovered = Recovered::default();
        let mut entries = Vec::new();
        for (sequence, parts) in records {
            let damaged = |problem: String| Error::Damaged {
                path: self.path.clone(),
                sequence,
                problem,
            };
            if sequence != self.next {
                return Err(damaged(format!(
                    "record {} is missing before it",
                    self.next
                )));
            }
            let record = parts.concat();
            let text = record::fold(&mut recovered, &record).map_err(damaged)?;
            entries.push(RecordSummary {
                sequence,
                text,
                bytes: record.len(),
            });
            self.next = sequence + 1;
            self.records += 1;
            self.bytes += record.len();
        }
        if let Some(acknowledged) = self.acknowledged.filter(|&last| last >= self.next) {
            return Err(Error::Lost {
                path: self.path.clone(),
                next: self.next,
                acknowledged,
            });
        }
        trees.trim_before(start)?;
        for key in unborn {
            trees.log.remove(key)?;
        }
        Ok((recovered, entries))
    }

    /// The trees. After an error they are opened again, and what was refused is taken out.
    fn trees(&mut self) -> Result<Trees, Error> {
        if let Some(trees) = &self.trees {
            return Ok(trees.clone());
        }
        let (path, next) = (self.path.clone(), self.next);
        let open = || -> Result<Trees, Error> {
            unpanicked(&path, "open it again", || {
                let trees = Trees::open(&path)?;
                trees.rewind(next)?;
                Ok(trees)
            })
        };
        let trees = match open() {
            // sled was writing its own snapshot when the disk was full.
            Err(cause)
                if cause.is_damage() && quarantine::without_snapshot(&path, &cause)?.is_some() =>
            {
                open()?
            }
            opened => opened?,
        };
        info!(records = next, "opened the journal again after an error");
        self.trees = Some(trees.clone());
        Ok(trees)
    }

    /// Writes to the trees. After an error nothing that sled holds in memory is to be trusted.
    fn write<T>(
        &mut self,
        step: &'static str,
        write: impl FnOnce(&mut Journal, &Trees) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let (trees, path) = (self.trees()?, self.path.clone());
        let result = unpanicked(&path, step, || write(self, &trees));
        if result.is_err() {
            close((trees, self.trees.take()));
        }
        result
    }

    fn append(&mut self, record: &[u8]) -> Result<(), Error> {
        self.write("write a record", |journal, trees| {
            trees.append(journal.next, record)?;
            Ok(journal.watermark.set([journal.next])?)
        })?;
        self.next += 1;
        self.records += 1;
        self.bytes += record.len();
        Ok(())
    }
}

impl Trees {
    fn open(path: &Path) -> Result<Trees, Error> {
        let store = Store::open(path, CACHE)?;
        Ok(Trees {
            log: store.tree("log")?,
            meta: store.tree("meta")?,
            store,
        })
    }

    /// The first sequence number that counts.
    fn start(&self) -> Result<u64, Error> {
        let start = self.meta.get(START)?;
        Ok(start.map_or(0, |start| sequence_of(&start)))
    }

    /// The parts of every record from a sequence number on, in order; and the keys of what a crash left of a record
    /// that was under way.
    fn records(&self, start: u64) -> Result<(Records, Vec<Vec<u8>>), Error> {
        let mut records = Records::new();
        let mut unborn = Vec::new();
        for entry in self.log.range(start.to_be_bytes()..) {
            let (key, part) = entry?;
            let sequence = sequence_of(&key);
            if key == part_key(sequence, 0) || records.contains_key(&sequence) {
                records.entry(sequence).or_default().push(part);
            } else {
                unborn.push(key);
            }
        }
        Ok((records, unborn))
    }

    fn trim_before(&self, start: u64) -> Result<(), Error> {
        self.remove(self.log.range(..start.to_be_bytes()).keys())
    }

    fn remove(&self, keys: impl Iterator<Item = Result<Vec<u8>, StoreError>>) -> Result<(), Error> {
        for key in keys {
            self.log.remove(key?)?;
        }
        Ok(())
    }

    /// Takes out what was not acted upon, since writing it failed: everything from a record on. All before it must be there.
    fn rewind(&self, next: u64) -> Result<(), Error> {
        let last = self.log.range(..next.to_be_bytes()).keys().next_back();
        let found = last.transpose()?.map_or(0, |key| sequence_of(&key) + 1);
        if found < next {
            return Err(Error::Lost {
                path: self.store.path().to_path_buf(),
                next: found,
                acknowledged: next - 1,
            });
        }
        self.remove(self.log.range(next.to_be_bytes()..).keys().rev())?;
        Ok(self.store.sync()?)
    }

    fn append(&self, sequence: u64, record: &[u8]) -> Result<(), Error> {
        for (number, part) in parts::split(record).rev() {
            self.log.insert(part_key(sequence, number), part)?;
        }
        Ok(self.store.sync()?)
    }
}

impl Log for Journal {
    fn intend(&mut self, intent: &Intent) -> Result<(), Error> {
        self.append(&record::intent(intent))
    }

    fn abort(&mut self, generation: UpdateSeq) -> Result<(), Error> {
        self.append(&record::abort(generation))
    }

    fn wants_snapshot(&self) -> bool {
        self.records > RECORDS_MAX
            || (self.bytes > BYTES_MAX && self.bytes > 4 * self.snapshot_bytes)
    }

    fn snapshot(&mut self, installed: &Installed) -> Result<(), Error> {
        let (start, before) = (self.next, self.bytes);
        self.append(&record::snapshot(installed))?;
        self.write("write a snapshot", |_, trees| {
            trees.meta.insert(START, &start.to_be_bytes())?;
            trees.store.sync()?;
            trees.trim_before(start)
        })?;
        let bytes = self.bytes - before;
        (self.records, self.bytes, self.snapshot_bytes) = (1, bytes, bytes);
        Ok(())
    }
}

fn part_key(sequence: u64, part: u32) -> Vec<u8> {
    parts::key(&sequence.to_be_bytes(), part)
}

/// The sequence number that a key begins with.
fn sequence_of(key: &[u8]) -> u64 {
    let bytes = key.first_chunk::<8>().copied();
    bytes.map_or(0, u64::from_be_bytes)
}
