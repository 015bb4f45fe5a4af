//! Owns what pods, nodes and externals have in common, a name, a namespace and addresses; never wires them.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, RwLock};

use crate::{Error, Netns};

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of `address`.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A pod, a node, an external host or the fabric: something packets come from and go to. Clones are the same host, and
/// see it when the bed gives it other addresses.
#[derive(Debug, Clone)]
pub struct Host {
    name: Arc<str>,
    netns: Netns,
    addresses: Arc<RwLock<Vec<IpAddr>>>,
}

impl Host {
    pub(crate) fn new(name: &str, netns: Netns, addresses: &[IpAddr]) -> Self {
        Self {
            name: name.into(),
            netns,
            addresses: Arc::new(RwLock::new(addresses.to_vec())),
        }
    }

    /// Its name in the bed, e.g. `default/client`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace it lives in.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its addresses, in the order they were given.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.addresses
            .read()
            .expect("nothing panics while holding it")
            .clone()
    }

    /// Its first address of `family`.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses()
            .into_iter()
            .find(|&address| Family::of(address) == family)
    }

    /// Writes a setting of its namespace, e.g. `net.bridge.bridge-nf-call-iptables`.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<(), Error> {
        self.netns.sysctl(name, value)
    }

    pub(crate) fn set_addresses(&self, addresses: &[IpAddr]) {
        *self
            .addresses
            .write()
            .expect("nothing panics while holding it") = addresses.to_vec();
    }
}
