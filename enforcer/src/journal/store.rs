//! The journal in sled: opening, appending, trimming, and getting up again after an error. sled's types end here; what is
//! in the records is `record`'s.

use std::{
    collections::BTreeMap,
    fs::File,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tracing::{info, warn};

use super::{
    Error, Intent, Log, RecordSummary, Recovered, quarantine,
    record::{self, IntentRecord, Kind, Record},
    watermark::Watermark,
};
use crate::{plan::Installed, table::names::UpdateSeq};

/// The most bytes of a part...
const PART: usize = 48 << 10;

/// ...and of a segment of sled's file: what sled writes at once, a page of several parts, must stay under a quarter of it.
const SEGMENT: usize = 4 << 20;

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
    watermark: Watermark,
    /// What the watermark said when the journal was opened.
    acknowledged: Option<u64>,
}

/// The open trees. Cloning gives another handle to the same.
#[derive(Clone, Debug)]
struct Trees {
    path: Arc<Path>,
    database: sled::Db,
    log: sled::Tree,
    meta: sled::Tree,
    /// sled's file: its own flush does not reach the disk's platters, so it is synced besides.
    file: Arc<File>,
}

/// Frames by sequence number, each in parts.
type Frames = BTreeMap<u64, Vec<sled::IVec>>;

impl Journal {
    /// Opens the journal in a directory, which is made if it is not there, and reads what it holds.
    pub fn open(path: &Path) -> Result<(Journal, Recovered), Error> {
        let (journal, recovered, _) = Journal::read(path)?;
        Ok((journal, recovered))
    }

    /// The same, with each record in words.
    pub(super) fn read(path: &Path) -> Result<(Journal, Recovered, Vec<RecordSummary>), Error> {
        std::fs::create_dir_all(path).map_err(io(path, "create the directory"))?;
        unpanicked(path, "read it", || {
            let mut journal = Journal::start(path)?;
            let (recovered, entries) = journal.replay()?;
            Ok((journal, recovered, entries))
        })
    }

    fn start(path: &Path) -> Result<Journal, Error> {
        let trees = Trees::open(path)?;
        let (watermark, acknowledged) =
            Watermark::open(path).map_err(io(path, "open the file acknowledged"))?;
        Ok(Journal {
            path: path.to_owned(),
            trees: Some(trees),
            next: 0,
            records: 0,
            bytes: 0,
            snapshot_bytes: 0,
            watermark,
            acknowledged,
        })
    }

    /// Reads every record. Nothing is written before all that was acted upon is found to be there.
    fn replay(&mut self) -> Result<(Recovered, Vec<RecordSummary>), Error> {
        let trees = self.trees()?;
        let start = trees.start()?;
        self.next = start;
        let (frames, unborn) = trees.frames(start)?;
        let mut recovered = Recovered::default();
        let mut entries = Vec::new();
        for (sequence, parts) in frames {
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
            let frame = parts.concat();
            let record = record::unframe(&frame).map_err(damaged)?;
            entries.push(RecordSummary {
                sequence,
                text: record::describe(&record),
                bytes: frame.len(),
            });
            record::fold(&mut recovered, record).map_err(damaged)?;
            self.next = sequence + 1;
            self.records += 1;
            self.bytes += frame.len();
        }
        if let Some(acknowledged) = self.acknowledged.filter(|&last| last >= self.next) {
            return Err(Error::Lost {
                path: self.path.clone(),
                next: self.next,
                acknowledged,
            });
        }
        trees.trim_before(start)?;
        trees.remove(unborn.into_iter().map(Ok))?;
        Ok((recovered, entries))
    }

    /// The trees. After an error they are opened again, and what was refused is taken out.
    fn trees(&mut self) -> Result<Trees, Error> {
        if let Some(trees) = &self.trees {
            return Ok(trees.clone());
        }
        let (path, next) = (self.path.clone(), self.next);
        let open = || {
            unpanicked(&path, "open it again", || {
                let trees = Trees::open(&path)?;
                trees.rewind(next)?;
                Ok(trees)
            })
        };
        let trees = match open() {
            // sled was writing its own snapshot when the disk was full.
            Err(cause) if cause.is_damage() && quarantine::without_snapshot(&path, &cause)? => {
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
            let all = (trees, self.trees.take());
            // sled panics when its last sync fails.
            if panic::catch_unwind(AssertUnwindSafe(|| drop(all))).is_err() {
                warn!("sled panicked while it closed the journal");
            }
        }
        result
    }

    fn append(&mut self, kind: Kind) -> Result<(), Error> {
        let frame = record::frame(&Record { kind: Some(kind) });
        self.write("write a record", |journal, trees| {
            trees.append(journal.next, &frame)?;
            let noted = journal.watermark.set(journal.next);
            noted.map_err(io(&journal.path, "write the file acknowledged"))
        })?;
        self.next += 1;
        self.records += 1;
        self.bytes += frame.len();
        Ok(())
    }
}

impl Trees {
    fn open(path: &Path) -> Result<Trees, Error> {
        let database = open_sled(path)?;
        let tree = |name| {
            let tree = database.open_tree(name);
            tree.map_err(store(path, "open the log"))
        };
        let (log, meta) = (tree("log")?, tree("meta")?);
        let file = File::open(path.join("db")).map_err(io(path, "open sled's file"))?;
        Ok(Trees {
            path: path.into(),
            database,
            log,
            meta,
            file: Arc::new(file),
        })
    }

    /// The first sequence number that counts.
    fn start(&self) -> Result<u64, Error> {
        let start = self.meta.get(START);
        let start = start.map_err(store(&self.path, "read the log"))?;
        Ok(start.map_or(0, |start| sequence_of(&start)))
    }

    /// The parts of every frame from a sequence number on, in order; and the keys of what a crash left of a frame that was
    /// under way.
    fn frames(&self, start: u64) -> Result<(Frames, Vec<sled::IVec>), Error> {
        let mut frames = Frames::new();
        let mut unborn = Vec::new();
        for entry in self.log.range(start.to_be_bytes()..) {
            let (key, part) = entry.map_err(store(&self.path, "read the log"))?;
            let sequence = sequence_of(&key);
            if key.len() == 12 && key[8..] == [0; 4] || frames.contains_key(&sequence) {
                frames.entry(sequence).or_default().push(part);
            } else {
                unborn.push(key);
            }
        }
        Ok((frames, unborn))
    }

    fn trim_before(&self, start: u64) -> Result<(), Error> {
        self.remove(self.log.range(..start.to_be_bytes()).keys())
    }

    fn remove(
        &self,
        keys: impl Iterator<Item = Result<sled::IVec, sled::Error>>,
    ) -> Result<(), Error> {
        for key in keys {
            key.and_then(|key| self.log.remove(key))
                .map_err(store(&self.path, "trim the log"))?;
        }
        Ok(())
    }

    /// Takes out what was not acted upon, since writing it failed: everything from a record on. All before it must be there.
    fn rewind(&self, next: u64) -> Result<(), Error> {
        let last = self.log.range(..next.to_be_bytes()).keys().next_back();
        let last = last.transpose();
        let last = last.map_err(store(&self.path, "read the log"))?;
        let found = last.map_or(0, |key| sequence_of(&key) + 1);
        if found < next {
            return Err(Error::Lost {
                path: self.path.to_path_buf(),
                next: found,
                acknowledged: next - 1,
            });
        }
        self.remove(self.log.range(next.to_be_bytes()..).keys().rev())?;
        self.sync()
    }

    fn append(&self, sequence: u64, frame: &[u8]) -> Result<(), Error> {
        for (number, part) in frame.chunks(PART).enumerate().rev() {
            let number = u32::try_from(number).expect("a record has less than 4 GiB");
            self.log
                .insert(key(sequence, number), part)
                .map_err(store(&self.path, "write a record"))?;
        }
        self.sync()
    }

    fn sync(&self) -> Result<(), Error> {
        self.database.flush().map_err(store(&self.path, "flush"))?;
        self.file.sync_data().map_err(io(&self.path, "sync"))
    }
}

impl Log for Journal {
    fn intend(&mut self, intent: &Intent) -> Result<(), Error> {
        self.append(Kind::Intent(IntentRecord::from(intent)))
    }

    fn abort(&mut self, generation: UpdateSeq) -> Result<(), Error> {
        self.append(Kind::Abort(generation.0))
    }

    fn wants_snapshot(&self) -> bool {
        self.records > RECORDS_MAX
            || (self.bytes > BYTES_MAX && self.bytes > 4 * self.snapshot_bytes)
    }

    fn snapshot(&mut self, installed: &Installed) -> Result<(), Error> {
        let (start, before) = (self.next, self.bytes);
        self.append(Kind::Snapshot(record::snapshot_record(installed)))?;
        self.write("write a snapshot", |_, trees| {
            trees
                .meta
                .insert(START, &start.to_be_bytes())
                .map_err(store(&trees.path, "write a snapshot"))?;
            trees.sync()?;
            trees.trim_before(start)
        })?;
        let bytes = self.bytes - before;
        (self.records, self.bytes, self.snapshot_bytes) = (1, bytes, bytes);
        Ok(())
    }
}

fn key(sequence: u64, part: u32) -> [u8; 12] {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&sequence.to_be_bytes());
    key[8..].copy_from_slice(&part.to_be_bytes());
    key
}

/// The sequence number that a key begins with.
fn sequence_of(key: &[u8]) -> u64 {
    let bytes = key.first_chunk::<8>().copied();
    bytes.map_or(0, u64::from_be_bytes)
}

/// After a kill -9 the old process's lock can be held for a moment.
fn open_sled(path: &Path) -> Result<sled::Db, Error> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match sled::Config::new()
            .segment_size(SEGMENT)
            .path(path)
            .cache_capacity(16 << 20)
            .open()
        {
            Err(error) if is_locked(&error) && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(50))
            }
            result => return result.map_err(store(path, "open")),
        }
    }
}

/// sled has no error of its own for it.
fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(cause) if cause.to_string().contains("could not acquire lock"))
}

fn store(path: &Path, step: &'static str) -> impl FnOnce(sled::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Store { path, step, source }
}

fn io(path: &Path, step: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, step, source }
}

/// sled panics on some damage that it does not expect.
fn unpanicked<T>(
    path: &Path,
    step: &'static str,
    action: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    panic::catch_unwind(AssertUnwindSafe(action)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Error::Panicked {
            path: path.to_owned(),
            step,
            message: text.unwrap_or("no message").to_owned(),
        })
    })
}
