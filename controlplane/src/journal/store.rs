//! The journal in its store: opening, appending, and getting up again after an error. What is in the records is
//! `record`'s, what they add up to is `load`'s.
//!
//! Trees: `log`, transactions by revision; `snapshot`, the objects as of a revision; `meta`, format, epoch, and which
//! revision the snapshot has. All writes are plain inserts and removals, in an order in which every prefix of them
//! is a good journal: sled recovers a prefix.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
};

use prost::Message as _;
use sallyport_journal::{
    Error as StoreError, Store, Tree, Watermark, close, quarantine, unpanicked,
};
use sallyport_policy::Revision;
use tracing::{error, info, warn};

use super::{
    Journal, JournalError, Note, Recovered, fold,
    load::{self, Loaded},
    record::{self, SnapshotRecord, TransactionRecord},
};
use crate::history::{Bounds, Committed};

/// The size of the store's cache, in bytes.
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
    watermark: Watermark<2>,
    snapshot: SnapshotRecord,
    folding: Option<JoinHandle<Result<SnapshotRecord, JournalError>>>,
}

/// The acknowledged part of a journal, which must be found in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Acknowledged {
    /// The last revision.
    pub revision: Revision,
    /// How many durable notes.
    pub noted: u64,
}

impl From<Acknowledged> for [u64; 2] {
    fn from(Acknowledged { revision, noted }: Acknowledged) -> [u64; 2] {
        [revision.0, noted]
    }
}

impl From<[u64; 2]> for Acknowledged {
    fn from([revision, noted]: [u64; 2]) -> Acknowledged {
        Acknowledged {
            revision: Revision(revision),
            noted,
        }
    }
}

/// The open trees. Cloning gives another handle to the same.
#[derive(Clone)]
pub struct Trees {
    pub(super) store: Store,
    /// Transactions by revision.
    pub log: Tree,
    /// The objects as of a revision.
    pub snapshot: Tree,
    /// Format, epoch, notes, and the revision of the snapshot.
    pub meta: Tree,
}

impl SledJournal {
    /// Opens a journal, or creates an empty one, and reads what is in it.
    ///
    /// sled refuses a journal whose `snap.*` file is torn. If all is there without it, it is moved aside.
    pub fn open(settings: Settings) -> Result<(SledJournal, Recovered), JournalError> {
        match SledJournal::open_as_it_is(settings.clone()) {
            Err(error) if error.is_damage() && without_snapshot(&settings, &error) => {
                SledJournal::open_as_it_is(settings)
            }
            opened => opened,
        }
    }

    fn open_as_it_is(settings: Settings) -> Result<(SledJournal, Recovered), JournalError> {
        let trees = Trees::open(&settings.path)?;
        let (mut watermark, acknowledged) = Watermark::open(&settings.path)?;
        let acknowledged = acknowledged.map_or_else(Acknowledged::default, Acknowledged::from);
        let loaded = trees.load(settings.history, acknowledged)?;
        let Loaded {
            recovered,
            snapshot,
            unfinished,
        } = loaded;
        let noted = load::noted(&trees)?;
        let acknowledged = Acknowledged {
            revision: recovered.revision,
            noted,
        };
        watermark.set(acknowledged.into())?;
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
            Err(error) if error.is_damage() && without_snapshot(&self.settings, &error) => {
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
        close(self.trees.take());
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
        let appended = unpanicked(trees.store.path(), "append to it", || trees.append(group));
        let acknowledged = Acknowledged {
            revision: last.revision,
            noted: self.noted,
        };
        let result = appended.and_then(|()| Ok(self.watermark.set(acknowledged.into())?));
        if result.is_err() {
            drop(trees);
            self.close();
            return result;
        }
        self.last = last.revision;
        self.fold_when_due();
        Ok(())
    }

    fn note(&mut self, note: &Note) -> Result<(), JournalError> {
        let trees = self.trees()?;
        let noted = unpanicked(trees.store.path(), "take a note", || {
            load::note(&trees, note)?;
            load::noted(&trees)
        });
        let result = noted.and_then(|noted| {
            if noted == self.noted {
                return Ok(());
            }
            self.noted = noted;
            Ok(self.watermark.set(self.acknowledged().into())?)
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

/// Reads the journal in a directory, up to its last acknowledged revision as far as that is known, and closes it again.
pub(super) fn read(
    path: &Path,
    bounds: Bounds,
) -> Result<(Option<Revision>, Recovered), JournalError> {
    let (_, acknowledged) = Watermark::open(path)?;
    let acknowledged = acknowledged.map(Acknowledged::from);
    let trees = Trees::open(path)?;
    let recovered = trees.recover(bounds, acknowledged.unwrap_or_default());
    close(trees);
    Ok((
        acknowledged.map(|acknowledged| acknowledged.revision),
        recovered?,
    ))
}

/// Moves sled's snapshot aside if the journal is whole without it. Returns whether it did.
fn without_snapshot(settings: &Settings, cause: &JournalError) -> bool {
    let opens = |copy: &Path| read(copy, settings.history).is_ok();
    quarantine::without_snapshot(&settings.path, cause, opens).map_or_else(
        |error| {
            warn!(%error, "cannot check whether the journal is whole without sled's snapshot");
            false
        },
        |aside| aside.is_some(),
    )
}

impl Trees {
    /// Opens the journal in a directory, or creates an empty one, and reads nothing yet.
    pub fn open(path: &Path) -> Result<Trees, JournalError> {
        create_private(path).map_err(StoreError::io(path, "create the directory"))?;
        let store = Store::open(path, CACHE)?;
        Ok(Trees {
            log: store.tree("log")?,
            snapshot: store.tree("snapshot")?,
            meta: store.tree("meta")?,
            store,
        })
    }

    /// Reads all that the journal holds, and refuses one that does not reach what was acknowledged.
    pub fn recover(
        &self,
        bounds: Bounds,
        acknowledged: Acknowledged,
    ) -> Result<Recovered, JournalError> {
        Ok(self.load(bounds, acknowledged)?.recovered)
    }

    fn load(&self, bounds: Bounds, acknowledged: Acknowledged) -> Result<Loaded, JournalError> {
        unpanicked(self.store.path(), "read it", || {
            self.reaches(acknowledged)?;
            load::load(self, bounds, acknowledged.revision)
        })
    }

    fn append(&self, group: &[Arc<Committed>]) -> Result<(), JournalError> {
        for committed in group {
            let value = TransactionRecord::from(&**committed).encode_to_vec();
            for (key, record) in record::split(&record::revision_key(committed.revision), &value) {
                self.log.insert(key, &record)?;
            }
        }
        Ok(self.store.sync()?)
    }

    /// Removes the transactions after a revision: those that were refused because an append failed.
    fn rewind(&self, to: Acknowledged) -> Result<(), JournalError> {
        let after = record::revision_key(to.revision.next());
        for item in self.log.range(after..).keys().rev() {
            self.log.remove(item?)?;
        }
        self.store.sync()?;
        self.reaches(to)
    }

    /// Refuses a journal that lost what was acknowledged, before anything is written to it.
    fn reaches(&self, acknowledged: Acknowledged) -> Result<(), JournalError> {
        let Acknowledged { revision, noted } = acknowledged;
        let (last, notes) = (load::last_revision(self)?, load::noted(self)?);
        let path = || self.store.path().to_path_buf();
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
}

fn create_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}
