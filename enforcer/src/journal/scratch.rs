//! Copies of a journal, to look at and to try things on. Never writes to the journal itself.

use std::{ffi::OsStr, fs, io, path::Path};

use tempfile::TempDir;

use super::quarantine;

/// A copy in a directory of its own, without the files that are to be left out. It goes with the handle.
pub(super) fn copy_of(path: &Path, left_out: fn(&OsStr) -> bool) -> io::Result<TempDir> {
    let scratch = tempfile::tempdir()?;
    copy(path, scratch.path(), left_out)?;
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
