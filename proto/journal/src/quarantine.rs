//! Damaged files are moved into the directory `quarantine` of their journal, into a directory named after the time.
//! Deletes nothing and repairs nothing.

use std::{
    ffi::{OsStr, OsString},
    fmt, fs, io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use tracing::warn;

use crate::{Error, scratch, store::LOG};

/// The directory of damaged files, in the directory of the journal.
pub const DIRECTORY: &str = "quarantine";

/// Files that were moved into quarantine.
#[derive(Debug)]
pub struct Aside {
    /// Their directory.
    pub path: PathBuf,
    /// How many such directories there are by now.
    pub count: usize,
}

/// Moves sled's own snapshot, with which sled opens faster, into quarantine if the journal is whole without it. When
/// the snapshot is torn, sled refuses to open. `opens` tries a copy without the snapshot. `cause` is the refusal.
pub fn without_snapshot(
    path: &Path,
    cause: impl fmt::Display,
    opens: impl FnOnce(&Path) -> bool,
) -> Result<Option<Aside>, Error> {
    let names = names(path).map_err(Error::io(path, "list its files"))?;
    if !names.iter().any(|name| is_snapshot(name)) || !names.iter().any(|name| name == LOG) {
        return Ok(None);
    }
    let copy = scratch::copy_of(path, is_snapshot)?;
    if !opens(copy.path()) {
        return Ok(None);
    }
    let aside = move_aside(path, is_snapshot)?;
    warn!(
        %cause, moved_to = %aside.path.display(), count = aside.count,
        "sled's snapshot file was damaged and moved aside: the journal is whole without this file"
    );
    Ok(Some(aside))
}

/// Moves the files and directories that `moves` names into quarantine.
pub fn move_aside(path: &Path, moves: impl Fn(&OsStr) -> bool) -> Result<Aside, Error> {
    try_move_aside(path, moves).map_err(Error::io(path, "move the damaged files aside"))
}

/// How many directories are in the quarantine of a journal.
pub fn count(path: &Path) -> usize {
    fs::read_dir(path.join(DIRECTORY)).map_or(0, Iterator::count)
}

fn try_move_aside(path: &Path, moves: impl Fn(&OsStr) -> bool) -> io::Result<Aside> {
    let all = path.join(DIRECTORY);
    fs::create_dir_all(&all)?;
    let aside = fresh(&all)?;
    let mut names = names(path)?;
    names.retain(|name| name != DIRECTORY && moves(name));
    // The log is moved last: while it is there, the journal is not moved yet.
    names.sort_by_key(|name| name == LOG);
    for name in names {
        fs::rename(path.join(&name), aside.join(&name))?;
    }
    fs::File::open(&aside)?.sync_all()?;
    fs::File::open(path)?.sync_all()?;
    Ok(Aside {
        path: aside,
        count: count(path),
    })
}

/// Makes a new directory, named after the time.
fn fresh(all: &Path) -> io::Result<PathBuf> {
    loop {
        let path = all.join(format!("{:.6}", Timestamp::now()));
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => return result.map(|()| path),
        }
    }
}

fn names(path: &Path) -> io::Result<Vec<OsString>> {
    fs::read_dir(path)?
        .map(|entry| Ok(entry?.file_name()))
        .collect()
}

fn is_snapshot(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b"snap.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for name in [LOG, "conf", "snap.1", "kept"] {
            fs::write(directory.path().join(name), name).unwrap();
        }
        directory
    }

    #[test]
    fn a_snapshot_without_which_the_journal_opens_is_moved_alone() {
        let directory = journal();
        let path = directory.path();
        let aside = without_snapshot(path, "torn", |copy| {
            assert!(copy.join(LOG).exists() && !copy.join("snap.1").exists());
            true
        });
        let aside = aside.unwrap().expect("it is moved");
        assert_eq!(names(&aside.path).unwrap(), ["snap.1"]);
        assert!(path.join(LOG).exists() && !path.join("snap.1").exists());
        let again = without_snapshot(path, "torn", |_| panic!("there is no snapshot"));
        assert!(again.unwrap().is_none());
    }

    #[test]
    fn a_snapshot_that_is_not_to_blame_stays() {
        let directory = journal();
        let stays = without_snapshot(directory.path(), "torn", |_| false).unwrap();
        assert!(stays.is_none() && directory.path().join("snap.1").exists());
        assert_eq!(count(directory.path()), 0);
        fs::remove_file(directory.path().join(LOG)).unwrap();
        let stays = without_snapshot(directory.path(), "torn", |_| panic!("there is no log"));
        assert!(stays.unwrap().is_none());
    }

    #[test]
    fn each_move_has_a_directory_of_its_own() {
        let directory = journal();
        let path = directory.path();
        let first = move_aside(path, |name| name != "kept").unwrap();
        assert_eq!(first.count, 1);
        assert!(first.path.join(LOG).exists() && !path.join(LOG).exists());
        assert_eq!(
            names(path).unwrap().len(),
            2,
            "the quarantine, and one kept"
        );
        fs::write(path.join(LOG), "").unwrap();
        let second = move_aside(path, |name| name != "kept").unwrap();
        assert_eq!(second.count, 2);
        assert_ne!(second.path, first.path);
    }
}
