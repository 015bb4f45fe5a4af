//! Owns how a process comes by the right to make network namespaces; never makes one of a testbed's own.

use std::path::Path;
use std::time::Duration;
use std::{fs, io, thread};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getgid, getuid};

use crate::Netns;

/// By what right this process makes namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privilege {
    /// The process had `CAP_SYS_ADMIN` and `CAP_NET_ADMIN` already.
    Root,
    /// The process is root in a user namespace of its own, entered by [`enter`].
    UserNamespace,
}

/// Why this process cannot have a testbed, and what to do about it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PrivilegeError {
    /// No user namespace for an ordinary user.
    #[error("no testbed: not root, and a user namespace was refused ({reason}); {remedy}")]
    NoUserNamespace {
        /// The error of the kernel.
        reason: Errno,
        /// The remedy for a person.
        remedy: String,
    },
    /// The user namespace came, but its identity map was refused.
    #[error("no testbed: writing {file} was refused ({reason}); run as root")]
    NoIdentity {
        /// The file below /proc.
        file: &'static str,
        /// The error of the kernel.
        reason: String,
    },
    /// Privileged by name, but a namespace could still not be made and set up.
    #[error(
        "no testbed: {0}; in a container add --privileged (or CAP_SYS_ADMIN, CAP_NET_ADMIN and a writable /proc/sys)"
    )]
    Unusable(String),
}

const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// Makes sure that this process may make testbeds: does nothing for root, else enters a user namespace in which it is
/// root. Call it first in `main`: the kernel lets only a process of one thread enter a user namespace.
pub fn enter() -> Result<Privilege, PrivilegeError> {
    let needed = CAP_NET_ADMIN | CAP_SYS_ADMIN;
    let privilege = if effective_capabilities() & needed == needed {
        Privilege::Root
    } else {
        enter_user_namespace()?;
        Privilege::UserNamespace
    };
    Netns::new("trial").map_err(|error| PrivilegeError::Unusable(error.to_string()))?;
    Ok(privilege)
}

fn effective_capabilities() -> u64 {
    fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("CapEff:"))?;
            u64::from_str_radix(line.trim(), 16).ok()
        })
        .unwrap_or(0)
}

fn enter_user_namespace() -> Result<(), PrivilegeError> {
    let (uid, gid) = (getuid(), getgid());
    let mut tries = 0;
    loop {
        match unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET) {
            Ok(()) => break,
            // A thread that was joined a moment ago may still be counted.
            Err(Errno::EINVAL) if tries < 20 => {
                tries += 1;
                thread::sleep(Duration::from_millis(1));
            }
            Err(reason) => {
                return Err(PrivilegeError::NoUserNamespace {
                    reason,
                    remedy: remedy(reason),
                });
            }
        }
    }
    write_identity("/proc/self/setgroups", "deny")?;
    write_identity("/proc/self/uid_map", &format!("0 {uid} 1"))?;
    write_identity("/proc/self/gid_map", &format!("0 {gid} 1"))
}

fn write_identity(file: &'static str, content: &str) -> Result<(), PrivilegeError> {
    fs::write(file, content).map_err(|error: io::Error| PrivilegeError::NoIdentity {
        file,
        reason: error.to_string(),
    })
}

fn remedy(reason: Errno) -> String {
    let setting = |path: &str| {
        fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    if reason == Errno::EINVAL {
        return "call sallyport_testbed::enter() first in main, before any thread is started"
            .to_owned();
    }
    for (path, bad, good) in [
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "1"),
        (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "0",
        ),
        ("/proc/sys/user/max_user_namespaces", "0", "10000"),
    ] {
        if Path::new(path).exists() && setting(path) == bad {
            return format!("run as root, or write {good} to {path}");
        }
    }
    "run as root (in a container: --privileged)".to_owned()
}
