//! What can go wrong with the journal, and what becomes of it. Opens and writes nothing.

use std::{io, path::PathBuf};

/// Why the journal cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// sled failed.
    #[error("journal {}: cannot {step}: {source}", .path.display())]
    Store {
        /// Where.
        path: PathBuf,
        /// Doing what.
        step: &'static str,
        /// Why.
        source: sled::Error,
    },
    /// The file system failed.
    #[error("journal {}: cannot {step}: {source}", .path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Doing what.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
    /// sled panicked on its files.
    #[error("journal {}: cannot {step}: sled panicked: {message}", .path.display())]
    Panicked {
        /// Where.
        path: PathBuf,
        /// Doing what.
        step: &'static str,
        /// What it said.
        message: String,
    },
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
            Error::Io { .. } => false,
            Error::Store { source, .. } => {
                !matches!(source, sled::Error::Io(cause) if !is_nonsense(cause))
            }
            Error::Panicked { .. } | Error::Damaged { .. } | Error::Lost { .. } => true,
        }
    }

    /// The same of a journal elsewhere.
    pub(super) fn of(mut self, elsewhere: PathBuf) -> Error {
        let (Error::Store { path, .. }
        | Error::Io { path, .. }
        | Error::Panicked { path, .. }
        | Error::Damaged { path, .. }
        | Error::Lost { path, .. }) = &mut self;
        *path = elsewhere;
        self
    }
}

/// What sled says with an error of the system when the system made none: its files make no sense.
fn is_nonsense(cause: &io::Error) -> bool {
    matches!(
        cause.kind(),
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput
    )
}
