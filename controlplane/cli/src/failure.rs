//! Why a command failed, how that reads on standard error, and the exit code it becomes. Never prints, never exits.

use std::{error::Error as _, io};

use sallyport_proto::reason::{REASON, REVISION_CONFLICT};
use tonic::{Code, Status};

/// The exit codes: the one place that says what each means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done as asked.
    Ok = 0,
    /// The control plane, or the command itself, said no.
    Refused = 1,
    /// The command line is wrong. (clap exits with the same code.)
    Usage = 2,
    /// No answer from the control plane.
    Unreachable = 3,
    /// The wait ended before the nodes were done.
    TimedOut = 4,
    /// The expected revision is not the current one.
    Conflict = 5,
    /// Standard output takes nothing: its disk is full.
    Output = 6,
}

impl Exit {
    const ALL: [Exit; 7] = [
        Exit::Ok,
        Exit::Refused,
        Exit::Usage,
        Exit::Unreachable,
        Exit::TimedOut,
        Exit::Conflict,
        Exit::Output,
    ];

    fn meaning(self) -> &'static str {
        match self {
            Exit::Ok => "done",
            Exit::Refused => "refused: invalid input, not found, already exists, ...",
            Exit::Usage => "usage: bad arguments, or a file that cannot be read",
            Exit::Unreachable => "the control plane cannot be reached, or does not answer",
            Exit::TimedOut => "timed out waiting for nodes (a committed change stays committed)",
            Exit::Conflict => "conflict: the expected revision is not the current one",
            Exit::Output => "the output cannot be written (a committed change stays committed)",
        }
    }

    /// The section of `--help` that lists the codes.
    pub(crate) fn help() -> String {
        let codes = Exit::ALL.map(|exit| format!("  {}  {}\n", exit as u8, exit.meaning()));
        format!("Exit codes:\n{}", codes.concat())
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The server refused, or the command refuses on its behalf.
    #[error("{0}")]
    Refused(String),
    /// The arguments or the files they name are of no use.
    #[error("{0}")]
    Usage(String),
    /// There was no connection to begin with.
    #[error(
        "cannot reach the control plane at {server}: {cause}. Is sallyport-controlplane running? \
         Use --server or SALLYPORT_SERVER"
    )]
    Unreachable {
        /// The address, as it was given.
        server: String,
        /// The error of the network.
        cause: String,
    },
    /// One end refused the other's certificate.
    #[error("no TLS connection to the control plane at {server}: {cause}")]
    Untrusted {
        /// The address, as it was given.
        server: String,
        /// The refusal, in words.
        cause: String,
    },
    /// The connection was there, and then no answer came.
    #[error("no answer from the control plane at {server}: {cause}")]
    Lost {
        /// The address, as it was given.
        server: String,
        /// The error of the network.
        cause: String,
    },
    /// Nodes lag.
    #[error("{0}")]
    TimedOut(String),
    /// The expected revision is stale.
    #[error("{0}")]
    Conflict(String),
    /// Standard output is gone or full.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

impl Failure {
    /// The exit code. A reader that has seen enough (`sallyport get all | head`) is no failure.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Ok,
            Failure::Output(_) => Exit::Output,
            Failure::Refused(_) => Exit::Refused,
            Failure::Usage(_) => Exit::Usage,
            Failure::Unreachable { .. } | Failure::Untrusted { .. } | Failure::Lost { .. } => {
                Exit::Unreachable
            }
            Failure::TimedOut(_) => Exit::TimedOut,
            Failure::Conflict(_) => Exit::Conflict,
        }
    }

    /// The failure that the status of a call to `server` stands for.
    pub(crate) fn from_status(server: &str, status: &Status) -> Failure {
        // Only an error that was made on this side of the wire has a source.
        let local = status.source().is_some();
        let message = message(status);
        match status.code() {
            Code::Unimplemented => Failure::Unreachable {
                server: server.to_owned(),
                cause: "the server at this address does not know the call".to_owned(),
            },
            Code::FailedPrecondition if is_conflict(status) => Failure::Conflict(message),
            Code::Unavailable | Code::DeadlineExceeded => lost(server, message),
            _ if local => lost(server, message),
            _ => Failure::Refused(message),
        }
    }

    /// The lines for standard error: the first after `error: `, the others below it.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.to_string()
            .lines()
            .map(|line| printable(line.trim_end()))
            .filter(|line| !line.is_empty())
            .collect()
    }
}

/// Whether the expected revision was not the current one. Other preconditions have the same code.
fn is_conflict(status: &Status) -> bool {
    let reason = status.metadata().get(REASON);
    reason.is_some_and(|reason| reason == REVISION_CONFLICT)
}

fn lost(server: &str, cause: String) -> Failure {
    Failure::Lost {
        server: server.to_owned(),
        cause,
    }
}

/// The server's own words; for an error of the transport, the innermost cause, which is the one that tells.
fn message(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = status.source();
    while let Some(error) = source {
        text = error.to_string();
        source = error.source();
    }
    let text = plain(&text);
    match text.is_empty() {
        true => format!("{} (no message)", status.code().description()),
        false => text,
    }
}

/// The operating system's words without its number: `connection refused`.
pub(crate) fn plain(text: &str) -> String {
    let text = text.trim();
    match text.split_once(" (os error ") {
        Some((words, _)) => words.to_lowercase(),
        None => text.to_owned(),
    }
}

/// The text with everything that could steer a terminal made visible.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_the_server_become_exit_codes() {
        let exit = |code| Failure::from_status("http://x", &Status::new(code, "m")).exit();
        for (code, expected) in [
            (Code::InvalidArgument, Exit::Refused),
            (Code::NotFound, Exit::Refused),
            (Code::AlreadyExists, Exit::Refused),
            (Code::PermissionDenied, Exit::Refused),
            (Code::OutOfRange, Exit::Refused),
            (Code::Internal, Exit::Refused),
            (Code::Unimplemented, Exit::Unreachable),
            (Code::FailedPrecondition, Exit::Refused),
            (Code::Aborted, Exit::Refused),
            (Code::Unavailable, Exit::Unreachable),
            (Code::DeadlineExceeded, Exit::Unreachable),
        ] {
            assert_eq!(exit(code), expected, "{code:?}");
        }
    }

    #[test]
    fn only_another_revision_is_a_conflict() {
        let mut status = Status::failed_precondition("the current revision is 2, not 1");
        let reason = tonic::metadata::MetadataValue::from_static(REVISION_CONFLICT);
        status.metadata_mut().insert(REASON, reason);
        let failure = Failure::from_status("http://x", &status);
        assert_eq!(failure.exit(), Exit::Conflict);
    }

    #[test]
    fn an_error_of_the_transport_is_not_a_refusal_and_names_the_innermost_cause() {
        let broken = io::Error::from_raw_os_error(104);
        let failure = Failure::from_status("http://x", &Status::from_error(Box::new(broken)));
        assert_eq!(failure.exit(), Exit::Unreachable);
        assert!(
            failure
                .to_string()
                .ends_with("at http://x: connection reset by peer")
        );
    }

    #[test]
    fn problems_are_one_a_line() {
        let status = Status::invalid_argument("2 problems:\na.yaml: x\n\nb.yaml: \u{1b}[31my\n");
        assert_eq!(
            Failure::from_status("", &status).lines(),
            ["2 problems:", "a.yaml: x", "b.yaml: \u{fffd}[31my"]
        );
    }

    #[test]
    fn an_empty_message_still_has_a_text() {
        let failure = Failure::from_status("", &Status::not_found(""));
        assert_eq!(
            failure.to_string(),
            "Some requested entity was not found (no message)"
        );
    }

    #[test]
    fn a_reader_that_left_is_no_failure() {
        let broken = io::Error::from(io::ErrorKind::BrokenPipe);
        assert_eq!(Failure::Output(broken).exit(), Exit::Ok);
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert_eq!(Failure::Output(full).exit(), Exit::Output);
    }

    #[test]
    fn help_lists_every_code() {
        let help = Exit::help();
        for exit in Exit::ALL {
            assert!(help.contains(&format!("\n  {}  ", exit as u8)), "{help}");
        }
    }
}
