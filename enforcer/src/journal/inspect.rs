//! Reads a journal for an operator: every record, on a copy, so that the journal itself is never written.

use std::{
    fmt,
    fs::{self, File, TryLockError},
    io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use super::{Error, Journal, Recovered, quarantine, scratch};

/// sled lets go of its lock a moment after it is closed.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_RETRY: Duration = Duration::from_millis(50);

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
    let io = |step| {
        move |source| Error::Io {
            path: path.to_owned(),
            step,
            source,
        }
    };
    refuse_open(path)?;
    let scratch = scratch::copy_of(path, |_| false).map_err(io("copy it"))?;
    let (_, recovered, entries) =
        Journal::read(scratch.path()).map_err(|error| error.of(path.to_owned()))?;
    let aside = fs::read_dir(path.join(quarantine::DIRECTORY));
    Ok(Report {
        recovered,
        entries,
        quarantined: aside.map_or(0, Iterator::count),
    })
}

/// Refuses a journal that an enforcer has open: it changes while it is read.
pub fn refuse_open(path: &Path) -> Result<(), Error> {
    let started = Instant::now();
    let lock = |file: File| loop {
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) if started.elapsed() < LOCK_PATIENCE => {
                thread::sleep(LOCK_RETRY);
            }
            result => break result,
        }
    };
    let locked = File::open(path.join("db")).and_then(|file| match lock(file) {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "an enforcer has it open: stop the enforcer first",
        )),
        Err(TryLockError::Error(error)) => Err(error),
    });
    locked.map_err(|source| Error::Io {
        path: path.to_owned(),
        step: "open it",
        source,
    })
}
