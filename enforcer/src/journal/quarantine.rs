//! A journal that is damaged is moved aside, whole, and an empty one takes its place: the kernel goes on enforcing what it
//! has until the control plane's snapshot comes. Nothing of it is deleted, and nothing in it is mended.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use tracing::{error, warn};

use super::{Error, Journal, Recovered, scratch};

/// Where damaged journals are, in the journal's directory.
pub(super) const DIRECTORY: &str = "quarantine";

/// The file beside the journal that says which enforcer this is.
pub const INSTANCE: &str = "instance";

/// The file beside the journal that says which node this is, and of which control plane.
pub const MEMBERSHIP: &str = "session";

/// What stays where it is.
const KEPT: [&str; 3] = [DIRECTORY, INSTANCE, MEMBERSHIP];

/// sled's log, which is moved last: while it is there, the journal is not moved yet.
const LOG: &str = "db";

/// A journal that was moved aside.
#[derive(Debug)]
pub struct Quarantined {
    /// Where it is.
    pub path: PathBuf,
    /// What is wrong with it.
    pub cause: Error,
    /// How many there are by now.
    pub count: usize,
    /// Whether it was sled's own snapshot alone: then nothing of the journal is lost.
    pub whole: bool,
}

/// Opens the journal in a directory. What is damaged is moved into the directory `quarantine` in it: sled's own snapshot
/// if all can be read without it, and otherwise everything; then an empty journal is opened.
pub fn open(path: &Path) -> Result<(Journal, Recovered, Option<Quarantined>), Error> {
    let cause = match Journal::open(path) {
        Ok((journal, recovered)) => return Ok((journal, recovered, None)),
        Err(cause) if cause.is_damage() => cause,
        Err(cause) => return Err(cause),
    };
    let io = |source| Error::Io {
        path: path.to_owned(),
        step: "move the damaged journal aside",
        source,
    };
    let whole = is_whole_without_snapshot(path).map_err(io)?;
    let damaged = |name: &OsStr| !whole || is_snapshot(name);
    let (aside, count) = move_aside(path, damaged).map_err(io)?;
    match whole {
        true => warn!(
            %cause, moved_to = %aside.display(), count,
            "sled's snapshot file was damaged and moved aside: the journal is whole without this file"
        ),
        false => error!(
            %cause, moved_to = %aside.display(), count,
            "the journal was damaged and moved aside: the table in the kernel stays in force until the control plane \
             sends a snapshot"
        ),
    }
    let (journal, recovered) = Journal::open(path)?;
    let quarantined = Quarantined {
        path: aside,
        cause,
        count,
        whole,
    };
    Ok((journal, recovered, Some(quarantined)))
}

/// Moves sled's own snapshot aside, if all of the journal can be read without it. Returns whether it did.
pub(super) fn without_snapshot(path: &Path, cause: &Error) -> Result<bool, Error> {
    let io = |source| Error::Io {
        path: path.to_owned(),
        step: "move the damaged snapshot aside",
        source,
    };
    if !is_whole_without_snapshot(path).map_err(io)? {
        return Ok(false);
    }
    let (aside, count) = move_aside(path, is_snapshot).map_err(io)?;
    warn!(
        %cause, moved_to = %aside.display(), count,
        "sled's snapshot file was damaged and moved aside: the journal is whole without this file"
    );
    Ok(true)
}

/// A file with which sled opens faster. When it is torn sled refuses to open.
fn is_snapshot(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b"snap.")
}

/// Whether all of the journal can be read when sled's snapshot is not there. It is tried on a copy.
fn is_whole_without_snapshot(path: &Path) -> io::Result<bool> {
    let names = fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.file_name()));
    let names = names.collect::<io::Result<Vec<_>>>()?;
    if !names.iter().any(|name| is_snapshot(name)) {
        return Ok(false);
    }
    let copy = scratch::copy_of(path, is_snapshot)?;
    Ok(Journal::open(copy.path()).is_ok())
}

/// Moves files into a directory that is called by the time. Returns it, and how many such there are.
fn move_aside(path: &Path, moves: impl Fn(&OsStr) -> bool) -> io::Result<(PathBuf, usize)> {
    let all = path.join(DIRECTORY);
    fs::create_dir_all(&all)?;
    let aside = fresh(&all)?;
    let names = fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.file_name()));
    let mut names = names.collect::<io::Result<Vec<_>>>()?;
    names.retain(|name| KEPT.iter().all(|kept| name != kept) && moves(name));
    names.sort_by_key(|name| name == LOG);
    for name in names {
        fs::rename(path.join(&name), aside.join(&name))?;
    }
    fs::File::open(&aside)?.sync_all()?;
    fs::File::open(path)?.sync_all()?;
    Ok((aside, fs::read_dir(&all)?.count()))
}

/// A new directory, called by the time.
fn fresh(all: &Path) -> io::Result<PathBuf> {
    loop {
        let path = all.join(format!("{:.6}", Timestamp::now()));
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => return result.map(|()| path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What damages a journal leaves the enforcer's instance id alone.
    #[test]
    fn all_is_moved_but_who_this_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        drop(Journal::open(path).unwrap());
        for kept in [INSTANCE, MEMBERSHIP] {
            fs::write(path.join(kept), kept).unwrap();
        }
        let (aside, count) = move_aside(path, |_| true).unwrap();
        assert_eq!(count, 1);
        assert!(aside.join(LOG).exists() && !path.join(LOG).exists());
        for kept in [INSTANCE, MEMBERSHIP] {
            assert_eq!(fs::read_to_string(path.join(kept)).unwrap(), kept);
        }
    }
}
