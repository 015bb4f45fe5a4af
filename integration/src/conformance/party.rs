//! Owns one of those between whom packets are sent: a pod or a host outside, with its servers; never says where it is.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use sallyport_testbed::{
    Family, Host,
    probe::{Probe, Server},
};

use super::{
    Error,
    case::{Pod, Service},
};

/// A pod or a host outside the cluster.
pub(super) struct Party {
    /// The pod; none for a host outside.
    pub(super) pod: Option<Pod>,
    /// The node that a pod is on.
    pub(super) node: Option<usize>,
    /// One, or one of each family.
    pub(super) addresses: Vec<IpAddr>,
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

    /// A probe from one of its addresses to one of another's.
    pub(super) fn probe(
        &self,
        source: IpAddr,
        to: &Party,
        target: IpAddr,
        (carrier, port): Service,
    ) -> Probe {
        let family = Family::of(target);
        Probe::new(&self.host, &to.host, carrier.into(), port, family)
            .at(SocketAddr::new(target, port))
            .from_address(source)
    }

    /// The end at one of the party's addresses.
    pub(super) fn at(&self, address: IpAddr) -> End {
        End {
            node: self.node,
            address,
        }
    }
}

/// One end of a flow.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    /// The node that it is on; none outside of the cluster.
    pub(super) node: Option<usize>,
    pub(super) address: IpAddr,
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
