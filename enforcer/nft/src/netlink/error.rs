//! The errors of the socket and of the kernel, in words for an operator.

use nix::errno::Errno;

/// The reason why a request to the kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused one command, and so the batch. Nothing changed.
    #[error("the kernel refused `{command}`: {errno}{}", hint(*.errno))]
    Refused {
        /// The command in nft's spelling, shortened.
        command: String,
        /// The kernel's reason.
        errno: Errno,
    },
    /// The socket failed before the kernel saw the batch. Nothing changed.
    #[error("netlink: {step}: {errno}{}", hint(*.errno))]
    Socket {
        /// The step that failed.
        step: &'static str,
        /// The kernel's reason.
        errno: Errno,
    },
    /// The kernel's answer was lost. The kernel may have committed the batch, so the table must be read.
    #[error(
        "netlink: the kernel's answer was lost ({0}): the content of the table tells whether the batch was committed"
    )]
    AnswerLost(Errno),
    /// The kernel's answer makes no sense.
    #[error("netlink: the kernel's answer cannot be decoded: {0}")]
    Malformed(&'static str),
}

impl Error {
    /// Whether another process committed in between, so that nothing was changed. The caller reads the table and
    /// decides anew.
    pub fn is_outdated(&self) -> bool {
        let (Error::Refused { errno, .. } | Error::Socket { errno, .. }) = self else {
            return false;
        };
        *errno == Errno::ERESTART
    }

    /// Whether the kernel refused for want of a right: the process lacks CAP_NET_ADMIN, or the table is another process's.
    pub fn is_not_permitted(&self) -> bool {
        matches!(
            self,
            Error::Refused {
                errno: Errno::EPERM,
                ..
            } | Error::Socket {
                errno: Errno::EPERM,
                ..
            }
        )
    }
}

/// The remedy for an error, for an operator.
fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM | Errno::EACCES => {
            " (CAP_NET_ADMIN is needed in this network namespace; another process may own the table)"
        }
        Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT => {
            " (this kernel has no nf_tables: load the module or enable CONFIG_NF_TABLES)"
        }
        Errno::EBUSY => " (another object still refers to this object)",
        Errno::EMSGSIZE => {
            " (the batch is larger than a socket may send here: net.core.wmem_default)"
        }
        Errno::ENOMEM | Errno::ENOBUFS => " (the kernel has no memory for the request)",
        Errno::ERESTART => " (another process changed the ruleset at the same time)",
        _ => "",
    }
}

/// A command short enough for a message.
pub fn shorten(command: &str) -> String {
    match command.char_indices().nth(160) {
        Some((end, _)) => format!("{} ...", &command[..end]),
        None => command.to_owned(),
    }
}
