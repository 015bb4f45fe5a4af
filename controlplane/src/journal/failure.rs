//! What can go wrong with the journal, and what an operator can do about it. Opens and writes nothing.

use std::{io, path::PathBuf};

use sallyport_policy::Revision;

use crate::manifest;

/// What an operator does about damage.
const ADVICE: &str = "`sallyport-controlplane journal verify` checks the journal without changing it. Move the \
                      directory away, and restore a backup into an empty one with `sallyport-controlplane journal \
                      restore`. Nodes keep enforcing their last policy";

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process has it.
    #[error(
        "the journal {path} is in use by another process: is a second sallyport-controlplane running with the same \
         --data-dir?"
    )]
    Locked {
        /// Where it is.
        path: PathBuf,
    },
    /// The directory or the files cannot be read or written.
    #[error("the journal {path}: cannot {step}: {cause}{}", hint(.cause))]
    Io {
        /// Where it is.
        path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// What the system said.
        cause: io::Error,
    },
    /// sled cannot make sense of its files.
    #[error(
        "the journal {path}: cannot {step}: the files are damaged: {cause}. Nothing was changed. {ADVICE}"
    )]
    Broken {
        /// Where it is.
        path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// What sled said.
        cause: String,
    },
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
    /// It is cut off or has something behind it.
    #[error("the record is {found} bytes long and should be {expected}")]
    Length {
        /// What the record's header says.
        expected: usize,
        /// What is there.
        found: usize,
    },
    /// It has a format of its own that we do not know.
    #[error("the record has format {0}, which this version of Sallyport does not know")]
    Version(u8),
    /// Bits changed.
    #[error("the checksum is {found:08x} and should be {expected:08x}")]
    Checksum {
        /// What the record's header says.
        expected: u32,
        /// What its bytes give.
        found: u32,
    },
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
            JournalError::Broken { .. }
            | JournalError::Damaged { .. }
            | JournalError::Lost { .. }
            | JournalError::Forgotten { .. } => true,
            JournalError::Io { cause, .. } => matches!(
                cause.kind(),
                io::ErrorKind::InvalidData
                    | io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::InvalidInput
            ),
            JournalError::Locked { .. } | JournalError::Format { .. } => false,
        }
    }

    /// The same of a journal elsewhere.
    pub(super) fn of(mut self, elsewhere: PathBuf) -> JournalError {
        let (JournalError::Locked { path }
        | JournalError::Io { path, .. }
        | JournalError::Broken { path, .. }
        | JournalError::Damaged { path, .. }
        | JournalError::Lost { path, .. }
        | JournalError::Forgotten { path, .. }
        | JournalError::Format { path, .. }) = &mut self;
        *path = elsewhere;
        self
    }

    /// Whether the disk is full.
    pub fn is_full(&self) -> bool {
        matches!(self, JournalError::Io { cause, .. } if is_full(cause))
    }
}

fn is_full(cause: &io::Error) -> bool {
    matches!(
        cause.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// What to do about an error of the system.
fn hint(cause: &io::Error) -> &'static str {
    match cause.kind() {
        _ if is_full(cause) => ". Make room and try again",
        io::ErrorKind::PermissionDenied => {
            ". Make the user that runs the control plane the owner of the directory"
        }
        _ => "",
    }
}
