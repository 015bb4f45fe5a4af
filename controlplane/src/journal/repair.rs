//! Repairs a journal that sled does not open because of a torn `snap.*` file, which sled keeps only to open faster.
//! Tries a copy without the file. If the copy is whole, the file is moved aside. Deletes nothing, changes nothing else.

use std::{fs, io, path::Path};

use jiff::Timestamp;
use tracing::warn;

use super::{
    failure::JournalError,
    scratch::{self, QUARANTINE, is_snapshot},
    store::{Settings, SledJournal},
};

/// Moves sled's snapshot aside if the journal is whole without it. Returns whether it did.
pub(super) fn without_snapshot(settings: &Settings, cause: &JournalError) -> bool {
    let path = &settings.path;
    match is_whole_without_snapshot(settings) {
        Ok(true) => {}
        Ok(false) => return false,
        Err(error) => {
            warn!(%error, "cannot check whether the journal is whole without sled's snapshot");
            return false;
        }
    }
    match set_aside(path) {
        Ok(count) => {
            warn!(
                %cause, quarantined = count,
                "sled's snapshot file was damaged and moved aside, into {}: the journal is whole without this file",
                path.join(QUARANTINE).display()
            );
            true
        }
        Err(error) => {
            warn!(%error, "cannot move sled's damaged snapshot file aside");
            false
        }
    }
}

fn is_whole_without_snapshot(settings: &Settings) -> Result<bool, JournalError> {
    let entries = fs::read_dir(&settings.path).map(|entries| entries.flatten().collect::<Vec<_>>());
    if !entries.is_ok_and(|entries| entries.iter().any(|entry| is_snapshot(&entry.file_name()))) {
        return Ok(false);
    }
    let copy = scratch::copy_of(&settings.path, is_snapshot)?;
    let copied = Settings {
        path: copy.path().to_owned(),
        ..settings.clone()
    };
    Ok(SledJournal::read(copied).is_ok())
}

/// Moves the snapshots into a directory that is called by the time. Returns how many such there are.
fn set_aside(path: &Path) -> io::Result<usize> {
    let all = path.join(QUARANTINE);
    let aside = all.join(format!("{:.6}", Timestamp::now()));
    fs::create_dir_all(&aside)?;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if is_snapshot(&entry.file_name()) {
            fs::rename(entry.path(), aside.join(entry.file_name()))?;
        }
    }
    fs::File::open(&aside)?.sync_all()?;
    fs::File::open(path)?.sync_all()?;
    Ok(fs::read_dir(&all)?.count())
}
