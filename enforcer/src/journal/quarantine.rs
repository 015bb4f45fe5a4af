//! A journal that is damaged is moved aside, whole, and an empty one takes its place: the kernel goes on enforcing what it
//! has until the control plane's snapshot comes. Nothing of it is deleted, and nothing in it is repaired.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use sallyport_journal::quarantine;
use tracing::error;

use super::{Error, Journal, Recovered};

/// The file beside the journal that says which enforcer this is.
pub const INSTANCE: &str = "instance";

/// The file beside the journal that says which node this is, and of which control plane.
pub const MEMBERSHIP: &str = "session";

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
    let snapshot = without_snapshot(path, &cause)?;
    let whole = snapshot.is_some();
    let aside = match snapshot {
        Some(aside) => aside,
        None => {
            let aside = quarantine::move_aside(path, is_journal)?;
            error!(
                %cause, moved_to = %aside.path.display(), count = aside.count,
                "the journal was damaged and moved aside: the table in the kernel stays in force until the control \
                 plane sends a snapshot"
            );
            aside
        }
    };
    let (journal, recovered) = Journal::open(path)?;
    let quarantined = Quarantined {
        path: aside.path,
        cause,
        count: aside.count,
        whole,
    };
    Ok((journal, recovered, Some(quarantined)))
}

/// Moves sled's own snapshot aside, if all of the journal can be read without it.
pub(super) fn without_snapshot(
    path: &Path,
    cause: &Error,
) -> Result<Option<quarantine::Aside>, Error> {
    let opens = |copy: &Path| Journal::open(copy).is_ok();
    Ok(quarantine::without_snapshot(path, cause, opens)?)
}

/// Whether a file belongs to the journal. What damages a journal leaves the enforcer's identity alone.
fn is_journal(name: &OsStr) -> bool {
    name != INSTANCE && name != MEMBERSHIP
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn all_is_moved_but_who_this_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        drop(Journal::open(path).unwrap());
        for kept in [INSTANCE, MEMBERSHIP] {
            fs::write(path.join(kept), kept).unwrap();
        }
        let aside = quarantine::move_aside(path, is_journal).unwrap();
        assert!(aside.path.join("db").exists() && !path.join("db").exists());
        for kept in [INSTANCE, MEMBERSHIP] {
            assert_eq!(fs::read_to_string(path.join(kept)).unwrap(), kept);
        }
    }
}
