//! Owns one of those between whom packets are sent: a pod or a host outside, with its servers; never says where it is.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use super::{
    Error,
    case::{Pod, Service},
};
use crate::{
    probe::{Probe, Server},
    testbed::{Family, Host},
};

/// A pod or a host outside the cluster.
pub(super) struct Party {
    /// The pod; none for a host outside.
    pub(super) pod: Option<Pod>,
    /// The node that a pod is on.
    pub(super) node: Option<usize>,
    pub(super) address: IpAddr,
    pub(super) host: Host,
    pub(super) services: BTreeSet<Service>,
    pub(super) _server: Option<Server>,
}

impl Party {
    /// Whether packets of the two may not leave a node, and one of them is the node itself: Kubernetes lets those pass
    /// whatever policies say.
    pub(super) fn is_node_of(&self, other: &Party) -> bool {
        let shares = |party: &Party| party.pod.as_ref().is_some_and(|pod| pod.host_network);
        self.node.is_some() && self.node == other.node && (shares(self) || shares(other))
    }

    pub(super) fn probe(&self, to: &Party, (carrier, port): Service) -> Probe {
        let target = SocketAddr::new(to.address, port);
        Probe::new(
            &self.host,
            &to.host,
            carrier.into(),
            port,
            Family::of(to.address),
        )
        .at(target)
        .from_address(self.address)
    }
}

/// Starts servers, unless there is nothing to serve.
pub(super) fn serve(host: &Host, services: &BTreeSet<Service>) -> Result<Option<Server>, Error> {
    if services.is_empty() {
        return Ok(None);
    }
    let ports = services
        .iter()
        .map(|&(carrier, port)| (carrier.into(), port));
    let ports: Vec<_> = ports.collect();
    let server = Server::start(host, &ports).map_err(Error::Server)?;
    Ok(Some(server))
}
