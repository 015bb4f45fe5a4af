//! Owns the record of which pods and externals there are and where they are plugged in; never wires them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::wiring::{Neighbour, Port};
use crate::{Error, Host, Mode};

/// Everything that changes while a bed lives.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) hosts: BTreeMap<String, Attached>,
    /// The number of ports that have been given out.
    ports: u32,
}

/// A pod or external and where it is plugged in: into a node, or (none) into the fabric.
#[derive(Debug, Clone)]
pub(crate) struct Attached {
    pub(crate) host: Host,
    pub(crate) node: Option<usize>,
    pub(crate) port: Port,
}

impl State {
    pub(crate) fn find(&self, name: &str) -> Result<Attached, Error> {
        self.hosts
            .get(name)
            .cloned()
            .ok_or_else(|| Error::NoSuchHost(name.to_owned()))
    }

    pub(crate) fn take_port(&mut self) -> Port {
        self.ports += 1;
        // Low indices are the namespace's own: loopback, and tunnels that the kernel may add.
        Port(100 + self.ports)
    }

    pub(crate) fn require_free(
        &self,
        addresses: &[IpAddr],
        except: Option<&str>,
    ) -> Result<(), Error> {
        for attached in self
            .hosts
            .values()
            .filter(|attached| Some(attached.host.name()) != except)
        {
            if let Some(taken) = attached
                .host
                .addresses()
                .into_iter()
                .find(|address| addresses.contains(address))
            {
                return Err(Error::AddressTaken(taken, attached.host.name().to_owned()));
            }
        }
        Ok(())
    }

    pub(crate) fn others_on_bridge(
        &self,
        mode: Mode,
        node: Option<usize>,
        name: &str,
    ) -> Vec<Neighbour> {
        if mode == Mode::Routed || node.is_none() {
            return Vec::new();
        }
        let others = self
            .hosts
            .values()
            .filter(|other| other.node == node && other.host.name() != name);
        others
            .map(|other| Neighbour {
                netns: other.host.netns().clone(),
                port: other.port,
                addresses: other.host.addresses(),
            })
            .collect()
    }
}
