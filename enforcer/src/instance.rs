//! Which enforcer this is, as the control plane tells enforcers of one node name apart: the id of the data directory, how
//! many enforcers were started on it, and a number of this process. It is kept in a file of its own beside the journal,
//! which may be moved into quarantine.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use tracing::warn;

use crate::journal::{self, INSTANCE};

/// What the file is called while it is written, and where a damaged one is moved.
const WRITTEN: &str = "instance.new";
const DAMAGED: &str = "instance.damaged";

/// Which enforcer this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The id of the data directory, made once.
    pub id: [u8; 16],
    /// How many enforcers were started on the data directory, this one included.
    pub start: u64,
    /// This process: made anew by each, and stored nowhere.
    pub process: u64,
}

/// Why a data directory has no new id.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An enforcer runs on it.
    #[error(transparent)]
    Running(#[from] journal::Error),
    /// The file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What the file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stored {
    id: [u8; 16],
    start: u64,
}

impl Stored {
    fn new() -> Stored {
        Stored {
            id: rand::random(),
            start: 0,
        }
    }

    fn text(self) -> String {
        let id = u128::from_be_bytes(self.id);
        format!("instance {id:032x}\nstart {}\n", self.start)
    }

    fn parse(text: &str) -> Option<Stored> {
        let (id, start) = text.strip_prefix("instance ")?.split_once("\nstart ")?;
        let stored = Stored {
            id: u128::from_str_radix(id, 16).ok()?.to_be_bytes(),
            start: start.strip_suffix('\n')?.parse().ok()?,
        };
        // What reads the same but was written otherwise is damaged, too.
        (stored.text() == text).then_some(stored)
    }
}

/// An enforcer starts on a data directory: counts it. When this returns the count is durable, unless it cannot be written:
/// then the enforcer starts all the same.
pub fn begin(data_dir: &Path) -> Instance {
    let mut stored = read(data_dir);
    stored.start += 1;
    if let Err(error) = write(data_dir, stored) {
        warn!(
            %error,
            "cannot write the instance id into {}: the control plane may take the next start for a copied enforcer",
            data_dir.join(INSTANCE).display()
        );
    }
    Instance {
        id: stored.id,
        start: stored.start,
        process: rand::random(),
    }
}

/// Gives a data directory a new id: it was copied from another one. Returns the id. Refuses while an enforcer runs.
pub fn renew(data_dir: &Path) -> Result<[u8; 16], Error> {
    journal::refuse_open(data_dir)?;
    let stored = Stored::new();
    write(data_dir, stored).map_err(|source| Error::Io {
        path: data_dir.join(INSTANCE),
        source,
    })?;
    Ok(stored.id)
}

/// What is stored, or a new id. A damaged file is moved aside.
fn read(data_dir: &Path) -> Stored {
    let path = data_dir.join(INSTANCE);
    let cause = match fs::read(&path) {
        Ok(bytes) => match str::from_utf8(&bytes).ok().and_then(Stored::parse) {
            Some(stored) => return stored,
            None => "the content of the file is malformed".to_owned(),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Stored::new(),
        Err(error) => error.to_string(),
    };
    let aside = data_dir.join(DAMAGED);
    let moved = fs::rename(&path, &aside);
    warn!(
        cause, moved_to = %aside.display(), moved = moved.is_ok(),
        "{} is damaged and was replaced: this enforcer has a new instance id", path.display()
    );
    Stored::new()
}

/// Replaces the file as a whole, durably.
fn write(data_dir: &Path, stored: Stored) -> io::Result<()> {
    let written = data_dir.join(WRITTEN);
    let mut file = File::create(&written)?;
    file.write_all(stored.text().as_bytes())?;
    file.sync_all()?;
    fs::rename(&written, data_dir.join(INSTANCE))?;
    File::open(data_dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_stays_and_the_counter_rises() {
        let directory = tempfile::tempdir().unwrap();
        let starts = [1, 2, 3].map(|_| begin(directory.path()));
        assert_eq!(starts.map(|instance| instance.start), [1, 2, 3]);
        assert!(starts.iter().all(|instance| instance.id == starts[0].id));
        assert_ne!(starts[0].process, starts[1].process);
        assert!(!directory.path().join(WRITTEN).exists());
    }

    #[test]
    fn a_damaged_file_is_moved_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(INSTANCE);
        let first = begin(directory.path());
        let whole = fs::read(&path).unwrap();
        let mut upper = whole.clone();
        upper.make_ascii_uppercase();
        for damaged in [b"".to_vec(), whole[..20].to_vec(), vec![0xff; 60], upper] {
            fs::write(&path, &damaged).unwrap();
            let next = begin(directory.path());
            assert_ne!(next.id, first.id);
            assert_eq!(next.start, 1);
            assert_eq!(fs::read(directory.path().join(DAMAGED)).unwrap(), damaged);
            assert_eq!(begin(directory.path()).id, next.id);
        }
    }

    /// A power failure in the middle of a write leaves a part of the new file, and the old one as it was.
    #[test]
    fn what_was_half_written_is_no_matter() {
        let directory = tempfile::tempdir().unwrap();
        let first = begin(directory.path());
        fs::write(directory.path().join(WRITTEN), "instance 00").unwrap();
        let next = begin(directory.path());
        assert_eq!((next.id, next.start), (first.id, 2));
    }

    /// Nothing can be written where a directory has the name: the enforcer starts, and counts in memory.
    #[test]
    fn it_starts_where_nothing_can_be_written() {
        let directory = tempfile::tempdir().unwrap();
        let first = begin(directory.path());
        fs::create_dir(directory.path().join(WRITTEN)).unwrap();
        for _ in 0..2 {
            let next = begin(directory.path());
            assert_eq!((next.id, next.start), (first.id, 2));
        }
    }

    #[test]
    fn a_copy_gets_a_new_id() {
        let directory = tempfile::tempdir().unwrap();
        let first = begin(directory.path());
        let id = renew(directory.path()).unwrap();
        assert_ne!(id, first.id);
        let next = begin(directory.path());
        assert_eq!((next.id, next.start), (id, 1));
        assert!(renew(&directory.path().join("none")).is_err());
    }

    #[test]
    fn a_new_id_is_refused_while_an_enforcer_runs() {
        let directory = tempfile::tempdir().unwrap();
        let (_journal, _, _) = journal::open(directory.path()).unwrap();
        let first = begin(directory.path());
        let refused = renew(directory.path()).unwrap_err().to_string();
        assert!(refused.contains("stop the enforcer first"), "{refused}");
        assert_eq!(begin(directory.path()).id, first.id);
    }
}
