//! The node's journal: what it enforces, durable before the kernel hears of it. sled's types end here.
//!
//! Tree `log`: sequence number and part (big-endian) -> part of a frame. A frame is length, format version, CRC-32 and
//! payload. It is cut into parts because sled keeps large values in files of their own, which it never syncs; its first
//! part is written last, so that a frame without one was never durable and never acted upon. Tree `meta`: where the log
//! starts. It starts with a snapshot; after it come intents, each followed by an abort if the kernel refused it. An intent
//! that no abort follows is carried out: at restart the kernel's stamp tells how far it had come, and it is finished.
//! So an acknowledgement needs one durable write, before the kernel's.

use std::{
    collections::BTreeMap,
    fs::File,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use prost::Message;
use sallyport_proto::{
    Delta, Misfit, Position, Ranges, Unknown, Update, Version, Window, WireError,
    policy::{GroupId, NodePolicy},
    wire,
};

use crate::{nft::names::Generation, plan::Installed};

/// The most bytes of a part...
const PART: usize = 48 << 10;

/// ...and of a segment of sled's file: what sled writes at once, a page of several parts, must stay under a quarter of it.
const SEGMENT: usize = 4 << 20;

/// The key in `meta` of the first sequence number that counts.
const START: &str = "start";

/// Raised when a record changes its meaning.
const FORMAT: u8 = 2;

/// A log of more records than this is replaced by a snapshot...
const RECORDS_MAX: usize = 1_000;

/// ...and so is one of more bytes than this that is also several times its snapshot.
const BYTES_MAX: usize = 4 << 20;

/// Why the journal cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// sled failed.
    #[error("journal {}: {step}: {source}", .path.display())]
    Store {
        /// Where.
        path: PathBuf,
        /// Doing what.
        step: &'static str,
        /// Why.
        source: sled::Error,
    },
    /// The file system failed.
    #[error("journal {}: {step}: {source}", .path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Doing what.
        step: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A record is not what was written. The kernel goes on enforcing what it has.
    #[error(
        "journal {}: record {sequence} is damaged: {problem}. Move the directory away: the enforcer then keeps what \
         the kernel enforces and asks the control plane for a snapshot", .path.display()
    )]
    Damaged {
        /// Where.
        path: PathBuf,
        /// Which record.
        sequence: u64,
        /// What is wrong with it.
        problem: String,
    },
}

/// What an agent needs of a journal.
pub trait Log {
    /// Writes an intent. When this returns, it survives a loss of power.
    fn intend(&mut self, intent: &Intent) -> Result<(), Error>;

    /// Takes the last intent back: the kernel refused it and has what it had. Its generation is not used again.
    fn abort(&mut self, generation: Generation) -> Result<(), Error>;

    /// Whether the log is long enough to be worth a snapshot.
    fn wants_snapshot(&self) -> bool;

    /// Replaces the whole log by what is installed. The kernel must have all of it.
    fn snapshot(&mut self, installed: &Installed) -> Result<(), Error>;
}

/// An update that is to be carried out. What its plan depends on is in it, so that a restart makes the same plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Intent {
    /// The update.
    pub update: Update,
    /// What becomes of unknown workload addresses.
    pub unknown: Unknown,
    /// The most bytes of a batch.
    pub batch: usize,
}

impl Intent {
    /// What is installed once it is carried out.
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
    /// The last intent, if no abort follows it, and what is installed once it is carried out.
    pub pending: Option<(Intent, Installed)>,
}

impl Recovered {
    /// Takes in an intent. That it follows another says that the other was carried out.
    pub fn intend(&mut self, intent: Intent) -> Result<(), Misfit> {
        if let Some((_, after)) = self.pending.take() {
            self.installed = after;
        }
        let after = intent.after(&self.installed)?;
        self.pending = Some((intent, after));
        Ok(())
    }

    /// Takes in that the kernel refused the last intent.
    pub fn abort(&mut self, generation: Generation) {
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
}

#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(oneof = "Kind", tags = "1, 2, 3")]
    kind: Option<Kind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Kind {
    #[prost(message, tag = "1")]
    Snapshot(SnapshotRecord),
    #[prost(message, tag = "2")]
    Intent(IntentRecord),
    /// The generation that is not to be used again.
    #[prost(uint64, tag = "3")]
    Abort(u64),
}

#[derive(Clone, PartialEq, Message)]
struct SnapshotRecord {
    /// The versions, oldest first, each as changes from the one before.
    #[prost(message, repeated, tag = "1")]
    versions: Vec<VersionRecord>,
    #[prost(uint64, tag = "2")]
    generation: u64,
    #[prost(uint64, tag = "3")]
    made: u64,
    #[prost(message, repeated, tag = "4")]
    births: Vec<Birth>,
    #[prost(message, optional, tag = "5")]
    dropped: Option<wire::WorkloadRanges>,
    #[prost(bytes = "vec", repeated, tag = "6")]
    departed: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct VersionRecord {
    #[prost(message, optional, tag = "1")]
    position: Option<wire::Position>,
    #[prost(message, repeated, tag = "2")]
    changes: Vec<wire::PolicyChange>,
}

#[derive(Clone, PartialEq, Message)]
struct Birth {
    #[prost(bytes = "vec", tag = "1")]
    group: Vec<u8>,
    #[prost(uint64, tag = "2")]
    generation: u64,
}

#[derive(Clone, PartialEq, Message)]
struct IntentRecord {
    #[prost(message, optional, tag = "1")]
    target: Option<wire::Position>,
    #[prost(message, repeated, tag = "2")]
    changes: Vec<wire::PolicyChange>,
    #[prost(message, optional, tag = "3")]
    base: Option<wire::Position>,
    /// The ranges in which unknown addresses are dropped beside the policy's; absent where they are let pass.
    #[prost(message, optional, tag = "4")]
    dropped: Option<wire::WorkloadRanges>,
    #[prost(uint64, tag = "5")]
    batch: u64,
    #[prost(message, repeated, tag = "6")]
    keep: Vec<wire::Position>,
}

impl Journal {
    /// Opens the journal in a directory, which is made if it is not there, and reads what it holds.
    pub fn open(path: &Path) -> Result<(Journal, Recovered), Error> {
        std::fs::create_dir_all(path).map_err(io(path, "create the directory"))?;
        let database = open_sled(path)?;
        let log = database
            .open_tree("log")
            .map_err(store(path, "open the log"))?;
        let meta = database
            .open_tree("meta")
            .map_err(store(path, "open the log"))?;
        let file = File::open(path.join("db")).map_err(io(path, "open sled's file"))?;
        let mut journal = Journal {
            path: path.to_owned(),
            database,
            log,
            meta,
            file,
            next: 0,
            records: 0,
            bytes: 0,
            snapshot_bytes: 0,
        };
        let recovered = journal.replay()?;
        Ok((journal, recovered))
    }

    fn replay(&mut self) -> Result<Recovered, Error> {
        let start = self
            .meta
            .get(START)
            .map_err(store(&self.path, "read the log"))?;
        self.next = start.map_or(0, |start| sequence_of(&start));
        self.forget_before(self.next)?;
        let mut recovered = Recovered::default();
        for (sequence, parts) in self.frames()? {
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
            let record = unframe(&frame).map_err(damaged)?;
            fold(&mut recovered, record).map_err(damaged)?;
            self.next = sequence + 1;
            self.records += 1;
            self.bytes += frame.len();
        }
        Ok(recovered)
    }

    /// The parts of every frame in order. What a crash left of a frame under way is removed.
    fn frames(&self) -> Result<BTreeMap<u64, Vec<sled::IVec>>, Error> {
        let mut frames: BTreeMap<u64, Vec<sled::IVec>> = BTreeMap::new();
        let mut unborn = Vec::new();
        for entry in self.log.iter() {
            let (key, part) = entry.map_err(store(&self.path, "read the log"))?;
            let sequence = sequence_of(&key);
            if key.len() == 12 && key[8..] == [0; 4] || frames.contains_key(&sequence) {
                frames.entry(sequence).or_default().push(part);
            } else {
                unborn.push(key);
            }
        }
        for key in unborn {
            self.log
                .remove(key)
                .map_err(store(&self.path, "trim the log"))?;
        }
        Ok(frames)
    }

    fn forget_before(&self, start: u64) -> Result<(), Error> {
        for key in self.log.range(..start.to_be_bytes()).keys() {
            key.and_then(|key| self.log.remove(key))
                .map_err(store(&self.path, "trim the log"))?;
        }
        Ok(())
    }

    fn append(&mut self, kind: Kind) -> Result<(), Error> {
        let frame = frame(&Record { kind: Some(kind) });
        for (number, part) in frame.chunks(PART).enumerate().rev() {
            self.log
                .insert(key(self.next, number as u32), part)
                .map_err(store(&self.path, "write a record"))?;
        }
        self.sync()?;
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
        let Update {
            base,
            target,
            keep,
            delta,
        } = &intent.update;
        let record = IntentRecord {
            target: Some((*target).into()),
            changes: delta.into(),
            base: base.map(Into::into),
            dropped: dropped(&intent.unknown),
            batch: intent.batch as u64,
            keep: keep.iter().copied().map(Into::into).collect(),
        };
        self.append(Kind::Intent(record))
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
        self.append(Kind::Snapshot(snapshot_record(installed)))?;
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

fn snapshot_record(installed: &Installed) -> SnapshotRecord {
    let empty = NodePolicy::default();
    let mut before = &empty;
    let mut versions = Vec::new();
    for Version { position, policy } in installed.window.versions() {
        versions.push(VersionRecord {
            position: Some((*position).into()),
            changes: (&Delta::between(before, policy)).into(),
        });
        before = policy;
    }
    let births = installed.births.iter().map(|(id, &generation)| Birth {
        group: id.0.to_vec(),
        generation,
    });
    let departed = installed.departed.iter().map(|address| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    });
    SnapshotRecord {
        versions,
        generation: installed.generation,
        made: installed.made,
        births: births.collect(),
        dropped: dropped(&installed.unknown),
        departed: departed.collect(),
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

fn fold(recovered: &mut Recovered, record: Record) -> Result<(), String> {
    match record.kind.ok_or("it is empty, or of a later version")? {
        Kind::Snapshot(snapshot) => recovered.snapshot(installed(&snapshot)?),
        Kind::Intent(record) => {
            let intent = Intent {
                update: Update {
                    base: match &record.base {
                        Some(base) => Some(position(Some(base))?),
                        None => None,
                    },
                    target: position(record.target.as_ref())?,
                    keep: positions(&record.keep)?,
                    delta: delta(&record.changes)?,
                },
                unknown: unknown(record.dropped.as_ref())?,
                batch: record.batch as usize,
            };
            recovered
                .intend(intent)
                .map_err(|error| error.to_string())?;
        }
        Kind::Abort(generation) => recovered.abort(generation),
    }
    Ok(())
}

fn installed(snapshot: &SnapshotRecord) -> Result<Installed, String> {
    let mut versions: Vec<Version> = Vec::new();
    let empty = NodePolicy::default();
    for record in &snapshot.versions {
        let position = position(record.position.as_ref())?;
        let before = versions.last().map_or(&empty, |version| &version.policy);
        let policy = before
            .applied(&delta(&record.changes)?, position.digest)
            .map_err(|error| error.to_string())?;
        versions.push(Version {
            position,
            policy: Arc::new(policy),
        });
    }
    let window = Window::new(versions);
    let births = snapshot.births.iter().map(|birth| {
        let id: [u8; 16] = birth.group[..]
            .try_into()
            .map_err(|_| "a group's id is not 16 bytes")?;
        Ok((GroupId(id), birth.generation))
    });
    let unknown = unknown(snapshot.dropped.as_ref())?;
    let departed = snapshot.departed.iter().map(|bytes| address(bytes));
    Ok(Installed {
        policy: window.enforced(&unknown),
        window,
        unknown,
        generation: snapshot.generation,
        made: snapshot.made,
        births: births.collect::<Result<_, String>>()?,
        departed: departed.collect::<Result<_, String>>()?,
    })
}

fn unknown(dropped: Option<&wire::WorkloadRanges>) -> Result<Unknown, String> {
    let Some(dropped) = dropped else {
        return Ok(Unknown::Allow);
    };
    let ranges = Ranges::try_from(dropped).map_err(|error| error.to_string())?;
    Ok(Unknown::Drop(Arc::new(ranges)))
}

fn dropped(unknown: &Unknown) -> Option<wire::WorkloadRanges> {
    match unknown {
        Unknown::Drop(ranges) => Some((&**ranges).into()),
        Unknown::Allow => None,
    }
}

fn positions(found: &[wire::Position]) -> Result<Vec<Position>, String> {
    found.iter().map(|found| position(Some(found))).collect()
}

fn address(bytes: &[u8]) -> Result<IpAddr, String> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .map_err(|_| format!("an address has {} bytes", bytes.len()))
}

fn position(found: Option<&wire::Position>) -> Result<Position, String> {
    let found = found.ok_or("it has no position")?;
    Position::try_from(found).map_err(|error| error.to_string())
}

fn delta(changes: &[wire::PolicyChange]) -> Result<Delta, String> {
    Delta::try_from(changes).map_err(|error: WireError| error.to_string())
}

fn frame(record: &Record) -> Vec<u8> {
    let payload = record.encode_to_vec();
    let mut frame = Vec::with_capacity(payload.len() + 9);
    frame.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    frame.push(FORMAT);
    frame.extend_from_slice(&crc32fast::hash(&payload).to_be_bytes());
    frame.extend_from_slice(&payload);
    frame
}

fn unframe(frame: &[u8]) -> Result<Record, String> {
    let (header, payload) = frame.split_at_checked(9).ok_or("it is cut off")?;
    if header[4] != FORMAT {
        return Err(format!(
            "it has format {}, this enforcer reads {FORMAT}",
            header[4]
        ));
    }
    if payload.len() != u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize {
        return Err("its length is another".into());
    }
    if crc32fast::hash(payload).to_be_bytes() != header[5..9] {
        return Err("its checksum is another".into());
    }
    Record::decode(payload).map_err(|error| error.to_string())
}

fn store(path: &Path, step: &'static str) -> impl FnOnce(sled::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Store { path, step, source }
}

fn io(path: &Path, step: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, step, source }
}
