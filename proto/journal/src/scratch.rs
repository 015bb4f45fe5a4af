//! Copies of a journal, to inspect them and to try a repair on. Never writes to the journal itself.

use std::{ffi::OsStr, fs, io, path::Path};

use tempfile::TempDir;

use crate::{Error, quarantine, store};

/// Copies a journal that no process has open into a directory of its own, without its quarantine and the files that
/// `left_out` names. The copy is deleted with the returned handle.
pub fn copy_of(path: &Path, left_out: fn(&OsStr) -> bool) -> Result<TempDir, Error> {
    let _lock = store::lock(path)?;
    let scratch = tempfile::tempdir().map_err(Error::io(path, "make a directory for a copy"))?;
    copy(path, scratch.path(), left_out).map_err(Error::io(path, "copy it"))?;
    Ok(scratch)
}

fn copy(from: &Path, to: &Path, left_out: fn(&OsStr) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        let target = to.join(&name);
        match entry.file_type()?.is_dir() {
            _ if name == quarantine::DIRECTORY || left_out(&name) => {}
            true => {
                fs::create_dir(&target)?;
                copy(&entry.path(), &target, left_out)?;
            }
            false => drop(fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}
