//! What can go wrong with the journal, and what becomes of it. Opens and writes nothing.

use std::path::PathBuf;

use sallyport_journal::Error as StoreError;

/// Why the journal cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store cannot be read or written.
    #[error("{0}{remedy}", remedy = remedy(.0))]
    Store(StoreError),
    /// A record is not what was written.
    #[error("journal {}: record {sequence} is damaged: {problem}", .path.display())]
    Damaged {
        /// Where.
        path: PathBuf,
        /// Which record.
        sequence: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// Records that were acted upon are gone.
    #[error(
        "journal {}: the journal ends before record {next}, and record {acknowledged} was acted upon: a journal \
         file was damaged or replaced, and sled cut off the unreadable end", .path.display()
    )]
    Lost {
        /// Where.
        path: PathBuf,
        /// The number after the last record.
        next: u64,
        /// The last record that there was.
        acknowledged: u64,
    },
}

impl Error {
    /// Whether the journal is not what was written: then trying again is of no use. An error of the file system is no
    /// damage: the journal may be whole.
    pub fn is_damage(&self) -> bool {
        match self {
            Error::Store(error) => error.is_damage(),
            Error::Damaged { .. } | Error::Lost { .. } => true,
        }
    }

    /// The same of a journal elsewhere.
    pub(super) fn of(self, elsewhere: PathBuf) -> Error {
        match self {
            Error::Store(error) => Error::Store(error.of(elsewhere)),
            Error::Damaged {
                sequence, problem, ..
            } => Error::Damaged {
                path: elsewhere,
                sequence,
                problem,
            },
            Error::Lost {
                next, acknowledged, ..
            } => Error::Lost {
                path: elsewhere,
                next,
                acknowledged,
            },
        }
    }
}

// `#[from]` would print the text of the store twice, as the error and as its source.
impl From<StoreError> for Error {
    fn from(error: StoreError) -> Error {
        Error::Store(error)
    }
}

/// The remedy for an error of the store; empty where there is none but to look at the cause.
fn remedy(error: &StoreError) -> &'static str {
    match error {
        StoreError::Locked { .. } => ": an enforcer has it open: stop the enforcer first",
        StoreError::Io { .. } | StoreError::Broken { .. } => "",
    }
}
