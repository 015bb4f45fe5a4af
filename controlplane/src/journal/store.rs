//! The journal in sled: opening, appending, and getting up again after an error. Knows trees and files; what is in
//! the records is `record`'s, what they add up to is `load`'s.
//!
//! Trees: `log`, transactions by revision; `snapshot`, the objects as of a revision; `meta`, format, epoch, and which
//! revision the snapshot has. All writes are plain inserts and removals, in an order in which every prefix of them
//! is a good journal: sled recovers a prefix.

use std::{
    fs::{self, File},
    io,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use prost::Message as _;
use sallyport_policy::Revision;
use tracing::{error, info, warn};

use super::{
    Journal, JournalError, Note, Recovered, fold,
    load::{self, Loaded},
    record::{self, SnapshotRecord, TransactionRecord},
    repair,
    watermark::{Acknowledged, Watermark},
};
use crate::history::{Bounds, Committed};

/// A killed process can hold the lock for a moment longer.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_RETRY: Duration = Duration::from_millis(50);

/// sled puts values, and pages of up to 17 of them, into files that it never syncs when they are over a quarter of
/// this: 17 of our parts are not.
const SEGMENT: usize = 4 << 20;
const CACHE: u64 = 64 << 20;

/// How a journal is kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The directory.
    pub path: PathBuf,
    /// How much of the past is kept for watchers.
    pub history: Bounds,
    /// After how many transactions the log is folded into the snapshot, so that it stays short.
    pub fold_after: u64,
}

impl Settings {
    /// A journal in a directory, kept as usual.
    pub fn at(path: impl Into<PathBuf>) -> Settings {
        Settings {
            path: path.into(),
            history: Bounds::default(),
            fold_after: 10_000,
        }
    }
}

/// The journal in sled.
pub struct SledJournal {
    settings: Settings,
    /// `None` after an error, until the next use.
    trees: Option<Trees>,
    /// The last transaction that was acknowledged.
    last: Revision,
    /// How many durable notes were taken.
    noted: u64,
    watermark: Watermark,
    snapshot: SnapshotRecord,
    folding: Option<JoinHandle<Result<SnapshotRecord, JournalError>>>,
}

/// The open trees. Cloning gives another handle to the same.
#[derive(Clone)]
pub(super) struct Trees {
    pub(super) path: Arc<Path>,
    db: sled::Db,
    pub(super) log: sled::Tree,
    pub(super) snapshot: sled::Tree,
    pub(super) meta: sled::Tree,
    /// sled's file. Its own flush stops at sync_file_range, which is not power-safe.
    file: Arc<File>,
}

impl SledJournal {
    /// Opens a journal, or creates an empty one, and reads what is in it.
    ///
    /// sled refuses a journal whose `snap.*` file is torn. If all is there without it, it is moved aside.
    pub fn open(settings: Settings) -> Result<(SledJournal, Recovered), JournalError> {
        match SledJournal::open_as_it_is(settings.clone()) {
            Err(error) if error.is_damage() && repair::without_snapshot(&settings, &error) => {
                SledJournal::open_as_it_is(settings)
            }
            opened => opened,
        }
    }

    /// Reads a journal, and what was acknowledged of it as far as it is known, and closes it again.
    pub(super) fn read(settings: Settings) -> Result<(Option<Revision>, Recovered), JournalError> {
        let watermark = Watermark::open(&settings.path);
        let (_, acknowledged) =
            watermark.map_err(io_error(&settings.path, "open the file acknowledged"))?;
        let (_, recovered) = SledJournal::open_as_it_is(settings)?;
        Ok((
            acknowledged.map(|acknowledged| acknowledged.revision),
            recovered,
        ))
    }

    fn open_as_it_is(settings: Settings) -> Result<(SledJournal, Recovered), JournalError> {
        let trees = Trees::open(&settings.path)?;
        let (mut watermark, acknowledged) = Watermark::open(&settings.path)
            .map_err(io_error(&settings.path, "open the file acknowledged"))?;
        let acknowledged = acknowledged.unwrap_or_default();
        let loaded = unpanicked(&settings.path, "read it", || {
            trees.reaches(acknowledged)?;
            load::load(&trees, settings.history, acknowledged.revision)
        })?;
        let Loaded {
            recovered,
            snapshot,
            unfinished,
        } = loaded;
        let noted = load::noted(&trees)?;
        watermark
            .set(Acknowledged {
                revision: recovered.revision,
                noted,
            })
            .map_err(io_error(&settings.path, "write the file acknowledged"))?;
        let mut journal = SledJournal {
            settings,
            trees: Some(trees),
            last: recovered.revision,
            noted,
            watermark,
            snapshot,
            folding: None,
        };
        if let Some(to) = unfinished {
            journal.start_folding(to);
        }
        Ok((journal, recovered))
    }

    /// Joins the thread that folds the log, if it runs. Everything acknowledged is durable without it.
    pub fn join_fold(&mut self) {
        let Some(folding) = self.folding.take() else {
            return;
        };
        match folding.join() {
            Ok(Ok(snapshot)) => self.snapshot = snapshot,
            Ok(Err(error)) => {
                error!(%error, "cannot fold the journal's log into its snapshot: the log keeps growing")
            }
            Err(_) => error!("the fold of the journal's log panicked: the log keeps growing"),
        }
    }

    /// How many transactions are in the log, or were before the fold that is under way.
    pub fn logged(&self) -> u64 {
        self.last.0 - self.snapshot.trimmed
    }

    fn trees(&mut self) -> Result<Trees, JournalError> {
        if let Some(trees) = &self.trees {
            return Ok(trees.clone());
        }
        let trees = match Trees::open(&self.settings.path) {
            // sled was writing its own snapshot when the disk was full.
            Err(error) if error.is_damage() && repair::without_snapshot(&self.settings, &error) => {
                Trees::open(&self.settings.path)
            }
            opened => opened,
        }?;
        unpanicked(&self.settings.path, "read it", || {
            trees.rewind(self.acknowledged())
        })?;
        info!(
            revision = self.last.0,
            "opened the journal again after an error"
        );
        self.trees = Some(trees.clone());
        Ok(trees)
    }

    fn acknowledged(&self) -> Acknowledged {
        Acknowledged {
            revision: self.last,
            noted: self.noted,
        }
    }

    /// After an error nothing that sled holds in memory is to be trusted.
    fn close(&mut self) {
        self.join_fold();
        let trees = self.trees.take();
        // sled panics when its last sync fails.
        if panic::catch_unwind(AssertUnwindSafe(|| drop(trees))).is_err() {
            warn!("sled panicked while it closed the journal");
        }
    }

    fn fold_when_due(&mut self) {
        if self.folding.as_ref().is_some_and(JoinHandle::is_finished) {
            self.join_fold();
        }
        if self.folding.is_none()
            && self.last.0 - self.snapshot.revision >= self.settings.fold_after
        {
            self.start_folding(self.last);
        }
    }

    fn start_folding(&mut self, to: Revision) {
        let Some(trees) = self.trees.clone() else {
            return;
        };
        let (from, keep) = (self.snapshot, self.settings.history.transactions);
        let thread = thread::Builder::new().name("fold".to_owned());
        match thread.spawn(move || fold::fold(&trees, from, to, keep)) {
            Ok(folding) => self.folding = Some(folding),
            Err(error) => {
                error!(%error, "cannot start a thread to fold the journal's log: it keeps growing")
            }
        }
    }
}

impl Journal for SledJournal {
    fn append(&mut self, group: &[Arc<Committed>]) -> Result<(), JournalError> {
        let Some(last) = group.last() else {
            return Ok(());
        };
        let trees = self.trees()?;
        let path = trees.path.clone();
        if let Err(error) = unpanicked(&path, "append to it", || trees.append(group)) {
            drop(trees);
            self.close();
            return Err(error);
        }
        if let Err(cause) = self.watermark.set(Acknowledged {
            revision: last.revision,
            noted: self.noted,
        }) {
            drop(trees);
            self.close();
            return Err(io_error(&path, "write the file acknowledged")(cause));
        }
        self.last = last.revision;
        self.fold_when_due();
        Ok(())
    }

    fn note(&mut self, note: &Note) -> Result<(), JournalError> {
        let trees = self.trees()?;
        let path = trees.path.clone();
        let noted = unpanicked(&path, "take a note", || {
            load::note(&trees, note)?;
            load::noted(&trees)
        });
        let result = noted.and_then(|noted| {
            if noted == self.noted {
                return Ok(());
            }
            self.noted = noted;
            self.watermark
                .set(self.acknowledged())
                .map_err(io_error(&path, "write the file acknowledged"))
        });
        if result.is_err() {
            drop(trees);
            self.close();
        }
        result
    }
}

impl Drop for SledJournal {
    fn drop(&mut self) {
        self.close();
    }
}

impl Trees {
    pub(super) fn open(path: &Path) -> Result<Trees, JournalError> {
        let io = |step| io_error(path, step);
        create_private(path).map_err(io("create the directory"))?;
        let db = unpanicked(path, "open it", || open_patiently(path))?;
        let tree = |name: &str| {
            db.open_tree(name)
                .map_err(|error| from_sled(path, "open it", error))
        };
        let (log, snapshot, meta) = (tree("log")?, tree("snapshot")?, tree("meta")?);
        let file = File::open(path.join("db")).map_err(io("open the file db"))?;
        // The names of the files are the directory's content.
        File::open(path)
            .and_then(|directory| directory.sync_all())
            .map_err(io("sync the directory"))?;
        Ok(Trees {
            path: path.into(),
            db,
            log,
            snapshot,
            meta,
            file: Arc::new(file),
        })
    }

    fn append(&self, group: &[Arc<Committed>]) -> Result<(), JournalError> {
        for committed in group {
            let value = TransactionRecord::from(&**committed).encode_to_vec();
            for (key, record) in record::split(&record::revision_key(committed.revision), &value) {
                self.log
                    .insert(key, record)
                    .map_err(self.failed("append to it"))?;
            }
        }
        self.flush()
    }

    /// When this returns, all that was written before is durable.
    pub(super) fn flush(&self) -> Result<(), JournalError> {
        self.db.flush().map_err(self.failed("flush it"))?;
        self.file
            .sync_data()
            .map_err(io_error(&self.path, "sync it"))
    }

    /// Removes the transactions after a revision: those that were refused because an append failed.
    fn rewind(&self, to: Acknowledged) -> Result<(), JournalError> {
        let after = record::revision_key(to.revision.next());
        for item in self.log.range(after..).keys().rev() {
            let key = item.map_err(self.failed("read it"))?;
            self.log
                .remove(key)
                .map_err(self.failed("take a refused transaction out of it"))?;
        }
        self.flush()?;
        self.reaches(to)
    }

    /// Refuses a journal that lost what was acknowledged, before anything is written to it.
    fn reaches(&self, acknowledged: Acknowledged) -> Result<(), JournalError> {
        let Acknowledged { revision, noted } = acknowledged;
        let (last, notes) = (load::last_revision(self)?, load::noted(self)?);
        let path = || self.path.to_path_buf();
        match () {
            () if last < revision => Err(JournalError::Lost {
                path: path(),
                found: last,
                acknowledged: revision,
            }),
            () if notes < noted => Err(JournalError::Forgotten {
                path: path(),
                found: notes,
                noted,
            }),
            () => Ok(()),
        }
    }

    pub(super) fn failed(&self, step: &'static str) -> impl Fn(sled::Error) -> JournalError + '_ {
        move |error| from_sled(&self.path, step, error)
    }
}

fn create_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

fn open_patiently(path: &Path) -> Result<sled::Db, JournalError> {
    let config = sled::Config::new()
        .path(path)
        .segment_size(SEGMENT)
        .cache_capacity(CACHE);
    let started = Instant::now();
    loop {
        match config.open() {
            Ok(db) => return Ok(db),
            Err(error) if !is_locked(&error) => return Err(from_sled(path, "open it", error)),
            Err(_) if started.elapsed() >= LOCK_PATIENCE => {
                return Err(JournalError::Locked {
                    path: path.to_owned(),
                });
            }
            Err(_) => thread::sleep(LOCK_RETRY),
        }
    }
}

/// sled has no error of its own for it.
fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(cause) if cause.to_string().contains("could not acquire lock"))
}

fn io_error(path: &Path, step: &'static str) -> impl FnOnce(io::Error) -> JournalError + use<> {
    let path = path.to_owned();
    move |cause| JournalError::Io { path, step, cause }
}

fn from_sled(path: &Path, step: &'static str, error: sled::Error) -> JournalError {
    let path = path.to_owned();
    match error {
        sled::Error::Io(cause) => JournalError::Io { path, step, cause },
        other => JournalError::Broken {
            path,
            step,
            cause: other.to_string(),
        },
    }
}

/// sled panics on some damage that it does not expect.
fn unpanicked<T>(
    path: &Path,
    step: &'static str,
    action: impl FnOnce() -> Result<T, JournalError>,
) -> Result<T, JournalError> {
    panic::catch_unwind(AssertUnwindSafe(action)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        let cause = format!("sled panicked: {}", text.unwrap_or("no message"));
        Err(JournalError::Broken {
            path: path.to_owned(),
            step,
            cause,
        })
    })
}
