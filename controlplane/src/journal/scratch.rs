//! Copies of a journal, to look at and to try things on. Never writes to the journal itself.

use std::{
    ffi::OsStr,
    fs::{self, File, TryLockError},
    io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::failure::JournalError;

/// Where what was damaged is kept, in the journal's directory.
pub(super) const QUARANTINE: &str = "quarantine";

/// sled lets go of its lock a moment after it is closed.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_RETRY: Duration = Duration::from_millis(50);

/// A file with which sled opens faster. When it is torn sled refuses to open.
pub(super) fn is_snapshot(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b"snap.")
}

/// A copy of a journal that nobody has open, without the files that are to be left out. It goes with the handle.
pub(super) fn copy_of(path: &Path, left_out: fn(&OsStr) -> bool) -> Result<TempDir, JournalError> {
    let failed = |step| {
        move |cause| JournalError::Io {
            path: path.to_owned(),
            step,
            cause,
        }
    };
    let file = File::open(path.join("db")).map_err(failed("open the file db"))?;
    let started = Instant::now();
    loop {
        match file.try_lock_shared() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if started.elapsed() < LOCK_PATIENCE => {
                thread::sleep(LOCK_RETRY);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(JournalError::Locked {
                    path: path.to_owned(),
                });
            }
            Err(TryLockError::Error(cause)) => return Err(failed("lock it")(cause)),
        }
    }
    let scratch = tempfile::tempdir().map_err(failed("make a directory for a copy"))?;
    copy(path, scratch.path(), left_out).map_err(failed("copy it"))?;
    Ok(scratch)
}

pub(super) fn copy(from: &Path, to: &Path, left_out: fn(&OsStr) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        let target = to.join(&name);
        match entry.file_type()?.is_dir() {
            _ if name == QUARANTINE || left_out(&name) => {}
            true => {
                fs::create_dir(&target)?;
                copy(&entry.path(), &target, left_out)?;
            }
            false => drop(fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}
