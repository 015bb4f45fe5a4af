//! The errors of a store, and which of them are damage.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Why a store cannot be used. The owner of the journal adds the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has the store open.
    #[error("journal {} is in use by another process", .path.display())]
    Locked {
        /// The directory of the journal.
        path: PathBuf,
    },
    /// The file system failed.
    #[error("journal {}: cannot {step}: {cause}", .path.display())]
    Io {
        /// The directory of the journal.
        path: PathBuf,
        /// The step that failed.
        step: &'static str,
        /// The error of the system.
        cause: io::Error,
    },
    /// sled cannot read its files, or panicked on them.
    #[error("journal {}: cannot {step}: the files are damaged: {cause}", .path.display())]
    Broken {
        /// The directory of the journal.
        path: PathBuf,
        /// The step that failed.
        step: &'static str,
        /// The text of sled's error or panic.
        cause: String,
    },
}

impl Error {
    /// Makes an error of the file system into one of the journal in `path`.
    pub fn io(path: &Path, step: &'static str) -> impl FnOnce(io::Error) -> Error + use<> {
        let path = path.to_owned();
        move |cause| Error::Io { path, step, cause }
    }

    pub(crate) fn sled(path: &Path, step: &'static str, error: sled::Error) -> Error {
        let path = path.to_owned();
        match error {
            sled::Error::Io(cause) if !is_nonsense(&cause) => Error::Io { path, step, cause },
            other => Error::Broken {
                path,
                step,
                cause: other.to_string(),
            },
        }
    }

    /// Whether the files are not those that were written: a retry is of no use. An error of the file system is no
    /// damage: the journal may be whole.
    pub fn is_damage(&self) -> bool {
        match self {
            Error::Broken { .. } => true,
            Error::Locked { .. } | Error::Io { .. } => false,
        }
    }

    /// The same error of a journal elsewhere, for a failure on a scratch copy.
    #[must_use]
    pub fn of(mut self, elsewhere: PathBuf) -> Error {
        let (Error::Locked { path } | Error::Io { path, .. } | Error::Broken { path, .. }) =
            &mut self;
        *path = elsewhere;
        self
    }
}

/// Whether sled reports as an error of the system that its files make no sense.
fn is_nonsense(cause: &io::Error) -> bool {
    matches!(
        cause.kind(),
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_nonsense_in_the_files_is_damage() {
        let of = |kind: io::ErrorKind| {
            let error = sled::Error::Io(kind.into());
            Error::sled(Path::new("j"), "read it", error)
        };
        assert!(!of(io::ErrorKind::StorageFull).is_damage());
        assert!(of(io::ErrorKind::UnexpectedEof).is_damage());
        let io = Error::io(Path::new("j"), "sync it")(io::ErrorKind::InvalidInput.into());
        assert!(!io.is_damage(), "{io}");
        let corruption = sled::Error::Corruption { at: None, bt: () };
        assert!(Error::sled(Path::new("j"), "read it", corruption).is_damage());
    }

    #[test]
    fn an_error_on_a_copy_names_the_journal() {
        let error = Error::Locked {
            path: "copy".into(),
        }
        .of("journal".into());
        assert_eq!(
            error.to_string(),
            "journal journal is in use by another process"
        );
    }
}
