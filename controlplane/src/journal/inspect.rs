//! Looks through a journal for an operator: every record, on a copy, so that the journal itself is never written.

use std::{fmt, path::Path};

use sallyport_journal::scratch;
use sallyport_policy::Revision;
use sallyport_proto::{
    backup::{Contents, Saved},
    object::Kind,
};

use super::{Recovered, failure::JournalError, store};
use crate::history::Bounds;

/// What a journal holds.
#[derive(Debug)]
pub struct Report {
    /// What it comes to; its history is all that is in the log.
    pub recovered: Recovered,
    /// The last revision that was acknowledged, as the file beside sled's says.
    pub acknowledged: Option<Revision>,
}

/// Reads all of a journal that no control plane has open, and changes nothing.
pub fn inspect(path: &Path) -> Result<Report, JournalError> {
    let copy = scratch::copy_of(path, |_| false)?;
    let all = Bounds {
        transactions: usize::MAX,
        bytes: usize::MAX,
    };
    let (acknowledged, recovered) =
        store::read(copy.path(), all).map_err(|error| error.of(path.to_owned()))?;
    Ok(Report {
        recovered,
        acknowledged,
    })
}

impl Report {
    /// What a backup of it holds.
    pub fn contents(&self) -> Contents {
        let Recovered {
            cluster,
            revision,
            epoch,
            joined,
            ..
        } = &self.recovered;
        let saved = cluster.objects().map(|stored| Saved {
            key: stored.object.key.clone(),
            manifest: stored.object.manifest.clone(),
            revision: stored.revision,
        });
        Contents {
            epoch: *epoch,
            revision: *revision,
            nodes: joined.clone(),
            objects: saved.collect(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Recovered {
            cluster,
            revision,
            epoch,
            history,
            settled,
            joined,
            left,
        } = &self.recovered;
        writeln!(
            f,
            "the journal is whole: every record was read and every checksum is right"
        )?;
        writeln!(f, "revision {revision}, epoch {epoch}")?;
        match self.acknowledged {
            Some(acknowledged) => writeln!(
                f,
                "acknowledged up to revision {acknowledged}: nothing of it is missing"
            )?,
            None => writeln!(
                f,
                "the acknowledged revision is unknown: the file `acknowledged` is missing or damaged"
            )?,
        }
        let counts = Kind::ALL.map(|kind| (kind, cluster.of_kind(kind).count()));
        let counts = counts.iter().filter(|(_, count)| *count > 0);
        let counts: Vec<_> = counts
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect();
        let counts = if counts.is_empty() {
            "none".to_owned()
        } else {
            counts.join(", ")
        };
        writeln!(f, "{} objects: {counts}", cluster.len())?;
        writeln!(
            f,
            "{} transactions, after revision {}",
            history.latest().0 - history.oldest().0,
            history.oldest()
        )?;
        writeln!(
            f,
            "nodes that have joined: {}; settled up to revision {settled}",
            joined.len()
        )?;
        match left.is_empty() {
            true => Ok(()),
            false => writeln!(f, "nodes that left: {}", left.len()),
        }
    }
}
