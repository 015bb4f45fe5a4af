//! Reads a journal for an operator: every record, on a copy, so that the journal itself is never written.

use std::{fmt, io, path::Path};

use sallyport_journal::{Error as StoreError, lock, quarantine, scratch};

use super::{Error, Journal, Recovered};

/// What a journal holds.
#[derive(Debug)]
pub struct Report {
    /// What it comes to.
    pub recovered: Recovered,
    /// Its records, in order.
    pub entries: Vec<RecordSummary>,
    /// How many damaged journals are in quarantine beside it.
    pub quarantined: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Recovered { installed, pending } = &self.recovered;
        let records = self.entries.len();
        writeln!(
            f,
            "the journal is whole: {records} records, every checksum is right"
        )?;
        let held = match pending {
            Some((_, after)) => after,
            None => installed,
        };
        for position in held.window.positions() {
            writeln!(f, "holds {position}")?;
        }
        if held.window.is_empty() {
            writeln!(f, "holds no policy yet")?;
        }
        let endpoints = held.policy.endpoints().len();
        writeln!(
            f,
            "enforces {endpoints} endpoints, {} groups",
            held.policy.groups().len()
        )?;
        if pending.is_some() {
            writeln!(
                f,
                "the last intent may be unfinished: the kernel's stamp tells, at the next start"
            )?;
        }
        match self.quarantined {
            0 => Ok(()),
            count => writeln!(f, "{count} damaged journals are in quarantine beside it"),
        }
    }
}

/// The description of one record, for an operator.
#[derive(Debug)]
pub struct RecordSummary {
    /// Its sequence number.
    pub sequence: u64,
    /// The content of the record, as text.
    pub text: String,
    /// The length of the record.
    pub bytes: usize,
}

/// Reads all of a journal that no enforcer has open, and changes nothing.
pub fn inspect(path: &Path) -> Result<Report, Error> {
    let scratch = scratch::copy_of(path, |_| false)?;
    let (_, recovered, entries) =
        Journal::read(scratch.path()).map_err(|error| error.of(path.to_owned()))?;
    Ok(Report {
        recovered,
        entries,
        quarantined: quarantine::count(path),
    })
}

/// Refuses a journal that an enforcer has open. A directory without a journal is not refused.
pub fn refuse_open(path: &Path) -> Result<(), Error> {
    match lock(path) {
        Err(StoreError::Io { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
        locked => Ok(locked.map(drop)?),
    }
}
