//! Owns what Sallyport's own compiler says of a cluster: its verdicts in one direction, and why; never sends a packet.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use sallyport_controlplane::{cluster::Cluster, compile};
use sallyport_policy::{Direction, NodePolicy, Protocol};

use super::{case::Service, party::End};
use crate::deployment::Deployment;

/// The policy of every node.
pub(super) struct Compiled(BTreeMap<String, Arc<NodePolicy>>);

impl Compiled {
    pub(super) fn of(cluster: &Cluster) -> Compiled {
        Compiled(compile::full(cluster))
    }

    /// Whether the policies of one side alone allow a connection to the destination's `service`.
    pub(super) fn allows(&self, direction: Direction, ends: (End, End), service: Service) -> bool {
        let (local, peer) = sides(direction, ends);
        let Some((_, policy)) = self.policy(local) else {
            return true;
        };
        policy.allows(direction, local.address, peer.address, Some(port(service)))
    }

    /// Why, for people.
    pub(super) fn explain(
        &self,
        direction: Direction,
        ends: (End, End),
        service: Service,
    ) -> String {
        let (local, peer) = sides(direction, ends);
        let Some((node, policy)) = self.policy(local) else {
            return format!("{direction}: outside the cluster, nobody judges: allows");
        };
        let verdict = if self.allows(direction, ends, service) {
            "allows"
        } else {
            "denies"
        };
        let reason = reason(
            policy,
            direction,
            local.address,
            peer.address,
            port(service),
        );
        format!("{direction}, on {node}: {reason}: {verdict}")
    }

    fn policy(&self, end: End) -> Option<(String, &NodePolicy)> {
        let node = Deployment::node_name(end.node?);
        let policy = self.0.get(&node)?;
        Some((node, policy))
    }
}

/// The end that a direction's policies judge, and the peer.
fn sides(direction: Direction, (from, to): (End, End)) -> (End, End) {
    match direction {
        Direction::Ingress => (to, from),
        Direction::Egress => (from, to),
    }
}

fn port((carrier, number): Service) -> (Protocol, u16) {
    (carrier.into(), number)
}

fn reason(
    policy: &NodePolicy,
    direction: Direction,
    local: IpAddr,
    peer: IpAddr,
    (protocol, number): (Protocol, u16),
) -> String {
    let Some(endpoint) = policy.endpoints().get(&local) else {
        return format!("{local} is no endpoint");
    };
    let Some(id) = endpoint.class(direction) else {
        return format!("{}/{} is not isolated", endpoint.namespace, endpoint.name);
    };
    let Some(class) = policy.classes().get(&id) else {
        return format!("class {id}, which is missing");
    };
    let Some(group) = class.group_at(Some((protocol, number))) else {
        return format!("class {id} has no rule for {protocol} {number}");
    };
    let rule = format!("class {id} gives {protocol} {number} to group {group}");
    match policy.groups().get(&group) {
        None => format!("{rule}, which is missing"),
        Some(group) => format!(
            "{rule} ({}; {} workload addresses, {} ranges), in which {peer} is{}",
            group.spec.description,
            group.addresses.len(),
            group.spec.ranges.iter().count(),
            if group.contains(peer) { "" } else { " not" },
        ),
    }
}
