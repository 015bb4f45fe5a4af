//! Owns why a testbed could not be made or changed; never recovers from it.

use std::io;
use std::net::IpAddr;

/// Why a bed could not be made or changed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages name the fields")]
pub enum Error {
    #[error("making or opening the network namespace of {namespace}: {source}")]
    Namespace {
        namespace: String,
        source: io::Error,
    },
    #[error(
        "writing {name} in {namespace}: {source}; is the module loaded and /proc/sys writable?"
    )]
    Sysctl {
        name: String,
        namespace: String,
        source: io::Error,
    },
    #[error("`{command}` in {namespace}: {source}")]
    Netlink {
        command: String,
        namespace: String,
        source: Box<rtnetlink::Error>,
    },
    #[error("there is no node {0} in this bed")]
    NoSuchNode(usize),
    #[error("there is no pod or external {0:?} in this bed")]
    NoSuchHost(String),
    #[error("{0:?} is an external host: it lives on no node")]
    NotAPod(String),
    #[error("the name {0:?} is taken in this bed")]
    NameTaken(String),
    #[error("the address {0} is {1:?}'s already")]
    AddressTaken(IpAddr, String),
}
