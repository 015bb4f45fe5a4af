//! The journal in sled: opening, appending, trimming. sled's types end here; what is in the records is `record`'s.

use std::{
    collections::BTreeMap,
    fs::File,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::{
    Entry, Error, Intent, Log, Recovered,
    record::{self, IntentRecord, Kind, Record},
    watermark::Watermark,
};
use crate::{nft::names::Generation, plan::Installed};

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
    database: sled::Db,
    log: sled::Tree,
    meta: sled::Tree,
    /// sled's file: its own flush does not reach the disk's platters, so it is synced besides.
    file: File,
    next: u64,
    records: usize,
    bytes: usize,
    snapshot_bytes: usize,
    watermark: Watermark,
    /// What the watermark said when the journal was opened.
    acknowledged: Option<u64>,
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
    pub(super) fn read(path: &Path) -> Result<(Journal, Recovered, Vec<Entry>), Error> {
        std::fs::create_dir_all(path).map_err(io(path, "create the directory"))?;
        unpanicked(path, "read it", || {
            let mut journal = Journal::start(path)?;
            let (recovered, entries) = journal.replay()?;
            Ok((journal, recovered, entries))
        })
    }

    fn start(path: &Path) -> Result<Journal, Error> {
        let database = open_sled(path)?;
        let tree = |name| {
            let tree = database.open_tree(name);
            tree.map_err(store(path, "open the log"))
        };
        let (log, meta) = (tree("log")?, tree("meta")?);
        let file = File::open(path.join("db")).map_err(io(path, "open sled's file"))?;
        let (watermark, acknowledged) =
            Watermark::open(path).map_err(io(path, "open the file acknowledged"))?;
        Ok(Journal {
            path: path.to_owned(),
            database,
            log,
            meta,
            file,
            next: 0,
            records: 0,
            bytes: 0,
            snapshot_bytes: 0,
            watermark,
            acknowledged,
        })
    }

    /// Reads every record. Nothing is written before all that was acted upon is found to be there.
    fn replay(&mut self) -> Result<(Recovered, Vec<Entry>), Error> {
        let start = self
            .meta
            .get(START)
            .map_err(store(&self.path, "read the log"))?;
        let start = start.map_or(0, |start| sequence_of(&start));
        self.next = start;
        let (frames, unborn) = self.frames(start)?;
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
            entries.push(Entry {
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
        self.forget_before(start)?;
        for key in unborn {
            let removed = self.log.remove(key);
            removed.map_err(store(&self.path, "trim the log"))?;
        }
        Ok((recovered, entries))
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

    fn forget_before(&self, start: u64) -> Result<(), Error> {
        for key in self.log.range(..start.to_be_bytes()).keys() {
            key.and_then(|key| self.log.remove(key))
                .map_err(store(&self.path, "trim the log"))?;
        }
        Ok(())
    }

    fn append(&mut self, kind: Kind) -> Result<(), Error> {
        let frame = record::frame(&Record { kind: Some(kind) });
        for (number, part) in frame.chunks(PART).enumerate().rev() {
            self.log
                .insert(key(self.next, number as u32), part)
                .map_err(store(&self.path, "write a record"))?;
        }
        self.sync()?;
        let noted = self.watermark.set(self.next);
        noted.map_err(io(&self.path, "write the file acknowledged"))?;
        self.next += 1;
        self.records += 1;
        self.bytes += frame.len();
        Ok(())
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

    fn abort(&mut self, generation: Generation) -> Result<(), Error> {
        self.append(Kind::Abort(generation))
    }

    fn wants_snapshot(&self) -> bool {
        self.records > RECORDS_MAX
            || (self.bytes > BYTES_MAX && self.bytes > 4 * self.snapshot_bytes)
    }

    fn snapshot(&mut self, installed: &Installed) -> Result<(), Error> {
        let (start, before) = (self.next, self.bytes);
        self.append(Kind::Snapshot(record::snapshot_record(installed)))?;
        self.meta
            .insert(START, &start.to_be_bytes())
            .map_err(store(&self.path, "write a snapshot"))?;
        self.sync()?;
        self.forget_before(start)?;
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
            Err(sled::Error::Io(_)) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(50))
            }
            result => return result.map_err(store(path, "open")),
        }
    }
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
