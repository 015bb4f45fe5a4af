//! Trees of records in sled: opening, reading, writing and making durable. Knows no record's content.

use std::{
    any::Any,
    fs::{File, TryLockError},
    ops::RangeBounds,
    panic::{self, AssertUnwindSafe},
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tracing::warn;

use crate::Error;

/// sled's log. The other files in its directory only describe it.
pub(crate) const LOG: &str = "db";

/// The segment size of sled's log. It is written into sled's files, and bounds the values (see [`crate::parts::PART`]).
const SEGMENT: usize = 4 << 20;

/// A killed process can hold the lock for a moment longer.
const OPEN_PATIENCE: Duration = Duration::from_secs(5);

/// sled unlocks its log a moment after it is closed.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

const RETRY: Duration = Duration::from_millis(50);

/// An open store. A clone is another handle to the same store.
#[derive(Clone, Debug)]
pub struct Store {
    path: Arc<Path>,
    database: sled::Db,
    /// The file of sled's log. sled's own flush stops at `sync_file_range`, which is not safe against a power cut.
    log: Arc<File>,
}

/// A key and its value.
pub type KeyValue = (Vec<u8>, Vec<u8>);

/// An ordered map of keys to values in a store.
#[derive(Clone, Debug)]
pub struct Tree {
    path: Arc<Path>,
    tree: sled::Tree,
}

/// The keys and values of a part of a tree, in the order of the keys.
pub struct KeyValues {
    path: Arc<Path>,
    records: sled::Iter,
}

impl Store {
    /// Opens the store in a directory that exists, or creates an empty one there. `cache` is the size of sled's cache
    /// in bytes. Waits a few seconds for the process that has the store open.
    pub fn open(path: &Path, cache: u64) -> Result<Store, Error> {
        let database = unpanicked(path, "open it", || open_patiently(path, cache))?;
        let log = File::open(path.join(LOG)).map_err(Error::io(path, "open the file db"))?;
        // The names of the files are the content of the directory.
        File::open(path)
            .and_then(|directory| directory.sync_all())
            .map_err(Error::io(path, "sync the directory"))?;
        Ok(Store {
            path: path.into(),
            database,
            log: Arc::new(log),
        })
    }

    /// The directory of the store.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a tree of the store, or creates an empty one.
    pub fn tree(&self, name: &str) -> Result<Tree, Error> {
        let tree = self.database.open_tree(name);
        Ok(Tree {
            path: self.path.clone(),
            tree: tree.map_err(|error| Error::sled(&self.path, "open it", error))?,
        })
    }

    /// Makes durable all that was written before.
    pub fn sync(&self) -> Result<(), Error> {
        let flushed = self.database.flush();
        flushed.map_err(|error| Error::sled(&self.path, "flush it", error))?;
        let synced = self.log.sync_data();
        synced.map_err(Error::io(&self.path, "sync it"))
    }
}

impl Tree {
    /// The value of a key.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Vec<u8>>, Error> {
        let value = self.tree.get(key).map_err(|error| self.unread(error))?;
        Ok(value.map(|value| value.to_vec()))
    }

    /// Writes a value over that of a key, if there is one.
    pub fn insert(&self, key: impl AsRef<[u8]>, value: &[u8]) -> Result<(), Error> {
        let before = self.tree.insert(key, value);
        before.map(drop).map_err(|error| self.unwritten(error))
    }

    /// Removes a key, if it is there.
    pub fn remove(&self, key: impl AsRef<[u8]>) -> Result<(), Error> {
        let before = self.tree.remove(key);
        before.map(drop).map_err(|error| self.unwritten(error))
    }

    /// All keys and values.
    pub fn iter(&self) -> KeyValues {
        self.records(self.tree.iter())
    }

    /// The keys in a range, and their values.
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> KeyValues {
        self.records(self.tree.range(range))
    }

    /// The keys that begin with a prefix, and their values.
    pub fn scan_prefix(&self, prefix: impl AsRef<[u8]>) -> KeyValues {
        self.records(self.tree.scan_prefix(prefix))
    }

    fn records(&self, records: sled::Iter) -> KeyValues {
        KeyValues {
            path: self.path.clone(),
            records,
        }
    }

    fn unread(&self, error: sled::Error) -> Error {
        Error::sled(&self.path, "read it", error)
    }

    fn unwritten(&self, error: sled::Error) -> Error {
        Error::sled(&self.path, "write to it", error)
    }
}

impl KeyValues {
    /// The keys alone.
    pub fn keys(self) -> impl DoubleEndedIterator<Item = Result<Vec<u8>, Error>> {
        let KeyValues { path, records } = self;
        let keys = records.keys();
        keys.map(move |key| match key {
            Ok(key) => Ok(key.to_vec()),
            Err(error) => Err(Error::sled(&path, "read it", error)),
        })
    }

    fn owned(&self, record: sled::Result<(sled::IVec, sled::IVec)>) -> Result<KeyValue, Error> {
        match record {
            Ok((key, value)) => Ok((key.to_vec(), value.to_vec())),
            Err(error) => Err(Error::sled(&self.path, "read it", error)),
        }
    }
}

impl Iterator for KeyValues {
    type Item = Result<KeyValue, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let record = self.records.next()?;
        Some(self.owned(record))
    }
}

impl DoubleEndedIterator for KeyValues {
    fn next_back(&mut self) -> Option<Self::Item> {
        let record = self.records.next_back()?;
        Some(self.owned(record))
    }
}

fn open_patiently(path: &Path, cache: u64) -> Result<sled::Db, Error> {
    let config = sled::Config::new()
        .path(path)
        .segment_size(SEGMENT)
        .cache_capacity(cache);
    let started = Instant::now();
    loop {
        match config.open() {
            Err(error) if !is_locked(&error) => return Err(Error::sled(path, "open it", error)),
            Err(_) if started.elapsed() < OPEN_PATIENCE => thread::sleep(RETRY),
            opened => return opened.map_err(|_| locked(path)),
        }
    }
}

/// Whether another process has the log. sled has no error of its own for that.
fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(cause) if cause.to_string().contains("could not acquire lock"))
}

fn locked(path: &Path) -> Error {
    Error::Locked {
        path: path.to_owned(),
    }
}

/// Locks a store that no process has open, for reading its files. No process can open it while the returned file is.
pub fn lock(path: &Path) -> Result<File, Error> {
    let log = File::open(path.join(LOG)).map_err(Error::io(path, "open the file db"))?;
    let started = Instant::now();
    loop {
        match log.try_lock_shared() {
            Ok(()) => return Ok(log),
            Err(TryLockError::WouldBlock) if started.elapsed() < LOCK_PATIENCE => {
                thread::sleep(RETRY);
            }
            Err(TryLockError::WouldBlock) => return Err(locked(path)),
            Err(TryLockError::Error(cause)) => return Err(Error::io(path, "lock it")(cause)),
        }
    }
}

/// Runs an action on a store. sled panics on some damage that it does not expect: a panic becomes an error.
pub fn unpanicked<T, E: From<Error>>(
    path: &Path,
    step: &'static str,
    action: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    panic::catch_unwind(AssertUnwindSafe(action)).unwrap_or_else(|panic| {
        let broken = Error::Broken {
            path: path.to_owned(),
            step,
            cause: format!("sled panicked: {}", message(&*panic)),
        };
        Err(broken.into())
    })
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

/// Closes handles of a store. After an error nothing that sled holds in memory can be trusted, and the last sync of
/// sled, which panics when it fails, is no loss.
pub fn close<T>(handles: T) {
    if panic::catch_unwind(AssertUnwindSafe(|| drop(handles))).is_err() {
        warn!("sled panicked while it closed the journal");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CACHE: u64 = 16 << 20;

    #[test]
    fn what_was_written_is_found_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), CACHE).unwrap();
        let tree = store.tree("log").unwrap();
        for key in ["b", "a", "bc"] {
            tree.insert(key, key.as_bytes()).unwrap();
        }
        store.sync().unwrap();
        drop((store, tree));

        let store = Store::open(directory.path(), CACHE).unwrap();
        let tree = store.tree("log").unwrap();
        let keys = |records: KeyValues| records.keys().map(Result::unwrap).collect::<Vec<_>>();
        assert_eq!(keys(tree.iter()), [&b"a"[..], b"b", b"bc"]);
        assert_eq!(keys(tree.scan_prefix("b")), [&b"b"[..], b"bc"]);
        assert_eq!(keys(tree.range("b"..="b")), [b"b"]);
        let last = tree.iter().next_back().unwrap().unwrap();
        assert_eq!(last, (b"bc".to_vec(), b"bc".to_vec()));
        tree.remove("b").unwrap();
        assert_eq!(tree.get("b").unwrap(), None);
        assert_eq!(tree.get("a").unwrap(), Some(b"a".to_vec()));
    }

    #[test]
    fn an_open_store_is_locked_and_a_closed_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let missing = lock(path).unwrap_err();
        assert!(matches!(missing, Error::Io { .. }), "{missing}");
        let store = Store::open(path, CACHE).unwrap();
        let refused = lock(path).unwrap_err();
        assert!(matches!(refused, Error::Locked { .. }), "{refused}");
        close(store);
        lock(path).unwrap();
    }

    #[test]
    fn a_panic_is_an_error_of_broken_files() {
        let result = unpanicked(Path::new("j"), "read it", || -> Result<(), Error> {
            panic!("at {}", 7)
        });
        assert_eq!(
            result.unwrap_err().to_string(),
            "journal j: cannot read it: the files are damaged: sled panicked: at 7"
        );
    }
}
