//! What can go wrong with the journal, and what an operator can do about it. Opens and writes nothing.

use std::{io, path::PathBuf};

use sallyport_journal::{Error as StoreError, frame::FrameError};
use sallyport_policy::Revision;

use crate::manifest;

/// The remedy for damage.
const ADVICE: &str = "`sallyport-controlplane journal verify` checks the journal without changing it. Move the \
                      directory away, and restore a backup into an empty one with `sallyport-controlplane journal \
                      restore`. Nodes keep enforcing their last policy";

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The store cannot be read or written.
    #[error("the {0}{remedy}", remedy = remedy(.0))]
    Store(StoreError),
    /// A record is not what was written.
    #[error(
        "the journal {path}: {record}: {damage}. The record was not skipped and nothing was changed. {ADVICE}"
    )]
    Damaged {
        /// Where the journal is.
        path: PathBuf,
        /// Which record: `log: revision 42, part 1 of 3`.
        record: String,
        /// What is wrong with it.
        damage: Damage,
    },
    /// Acknowledged transactions are gone.
    #[error(
        "the journal {path} ends at revision {found}, and revision {acknowledged} was acknowledged: a journal file \
         was damaged or replaced, and sled cut off the unreadable end. The control plane does not use this journal. \
         {ADVICE}"
    )]
    Lost {
        /// Where it is.
        path: PathBuf,
        /// The last revision in it.
        found: Revision,
        /// The last revision that there was.
        acknowledged: Revision,
    },
    /// Notes about nodes are gone that were durable.
    #[error(
        "the journal {path} holds {found} of {noted} notes of nodes that joined or left: a journal file was damaged \
         or replaced, and sled cut off the unreadable end. The control plane does not use this journal. {ADVICE}"
    )]
    Forgotten {
        /// Where it is.
        path: PathBuf,
        /// How many notes are in it.
        found: u64,
        /// How many there were.
        noted: u64,
    },
    /// The journal was written by a later version.
    #[error(
        "the journal {path} has format {found}, and this version reads formats up to {known}: start the version that \
         wrote it, or a later one"
    )]
    Format {
        /// Where it is.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// Ours.
        known: u64,
    },
}

/// What is wrong with a record.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// It is not there.
    #[error("the record is missing")]
    Missing,
    /// Its bytes are not those that were written, or have a format that we do not know.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The checksum is right, and yet the bytes say nothing.
    #[error("the record cannot be decoded: {0}")]
    Payload(String),
    /// It stands under a key that is none.
    #[error("the key of the record is malformed")]
    Key,
    /// It is about another object or revision than its key.
    #[error("the record belongs to {0}")]
    Misplaced(String),
    /// It holds an object that this version refuses.
    #[error("the record holds an object that this version does not accept: {0}")]
    Object(Box<manifest::Problem>),
    /// The records are fewer or others than were written.
    #[error(
        "should hold {expected} objects with checksum {expected_sum:016x}, but holds {found} with {found_sum:016x}"
    )]
    Sum {
        /// How many there should be.
        expected: u64,
        /// What their checksums should add up to.
        expected_sum: u64,
        /// How many there are.
        found: u64,
        /// What theirs add up to.
        found_sum: u64,
    },
}

impl JournalError {
    /// Whether the journal is not what was written: then trying again is of no use. An error of the file system is no
    /// damage: the journal may be whole.
    pub(super) fn is_damage(&self) -> bool {
        match self {
            JournalError::Store(error) => error.is_damage(),
            JournalError::Damaged { .. }
            | JournalError::Lost { .. }
            | JournalError::Forgotten { .. } => true,
            JournalError::Format { .. } => false,
        }
    }

    /// The same of a journal elsewhere.
    pub(super) fn of(self, elsewhere: PathBuf) -> JournalError {
        let mut error = match self {
            JournalError::Store(error) => return JournalError::Store(error.of(elsewhere)),
            other => other,
        };
        if let JournalError::Damaged { path, .. }
        | JournalError::Lost { path, .. }
        | JournalError::Forgotten { path, .. }
        | JournalError::Format { path, .. } = &mut error
        {
            *path = elsewhere;
        }
        error
    }

    /// Whether the disk is full.
    pub fn is_full(&self) -> bool {
        matches!(self, JournalError::Store(StoreError::Io { cause, .. }) if is_full(cause))
    }
}

// `#[from]` would print the text of the store twice, as the error and as its source.
impl From<StoreError> for JournalError {
    fn from(error: StoreError) -> JournalError {
        JournalError::Store(error)
    }
}

fn is_full(cause: &io::Error) -> bool {
    matches!(
        cause.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// The remedy for an error of the store; empty where there is none but to look at the cause.
fn remedy(error: &StoreError) -> String {
    match error {
        StoreError::Locked { .. } => {
            ": is a second sallyport-controlplane running with the same --data-dir?".into()
        }
        StoreError::Io { cause, .. } if is_full(cause) => ". Make room and try again".into(),
        StoreError::Io { cause, .. } if cause.kind() == io::ErrorKind::PermissionDenied => {
            ". Make the user that runs the control plane the owner of the directory".into()
        }
        StoreError::Io { .. } => String::new(),
        StoreError::Broken { .. } => format!(". Nothing was changed. {ADVICE}"),
    }
}
