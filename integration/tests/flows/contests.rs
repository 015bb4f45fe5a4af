//! Addresses that two workloads claim, as packets: what each claimant's policies deny is denied, the address is a peer
//! where both are, and the end of the contest gives back what the one that stays allows.

use sallyport_integration::deployment::{delete, put};
use sallyport_testbed::{
    Family, Host, Mode,
    kernel_tests::Outcome,
    probe::{self, Probe, Prober, Protocol, Server},
};

use crate::{Bed, bed};

/// Ports that the policies tell apart, and one that none names.
const PORTS: [u16; 3] = [7000, 7001, 7002];

/// A workload that no longer runs, and claims the addresses of one that does.
fn ghost(node: &str, addresses: &str) -> String {
    format!(
        "
apiVersion: sallyport.dev/v1
kind: Workload
metadata: {{namespace: default, name: ghost, labels: {{app: ghost}}}}
spec: {{node: {node}, addresses: [{addresses}]}}
---"
    )
}

/// A policy that lets `peers` reach two ports of pods.
fn policy(name: &str, app: &str, peers: &str, ports: [u16; 2]) -> String {
    let [first, last] = ports;
    format!(
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{namespace: default, name: {name}}}
spec:
  podSelector: {{matchLabels: {{app: {app}}}}}
  ingress:
  - from: [{{podSelector: {{matchExpressions: [{{key: app, operator: In, values: [{peers}]}}]}}}}]
    ports: [{{port: {first}}}, {{port: {last}}}]
---"
    )
}

/// Sees which of the ports of a host another one reaches, in both families.
fn reaches(what: &str, from: &Host, to: &Host, open: &[u16]) -> Outcome {
    for family in [Family::V4, Family::V6] {
        for port in PORTS {
            let wanted = match open.contains(&port) {
                true => probe::Outcome::Open,
                false => probe::Outcome::Blocked,
            };
            let seen = Prober::default().probe(Probe::new(from, to, Protocol::Tcp, port, family));
            if seen != wanted {
                let (from, to) = (from.name(), to.name());
                return Err(
                    format!("{what}: {from} to {port} of {to} over {family}: {seen}").into(),
                );
            }
        }
    }
    Ok(())
}

/// The claimants are on one node, or on two.
pub(crate) fn judged_by_both(mode: Mode) -> Outcome {
    let Bed {
        deployment,
        client,
        servers: [near, far],
    } = bed(mode)?;
    let services = PORTS.map(|port| (Protocol::Tcp, port));
    let _serving = [
        Server::start(&near, &services)?,
        Server::start(&far, &services)?,
    ];
    let mut api = deployment.client()?;
    let servers = |peers: &str| policy("servers", "server", peers, [7001, 7002]);
    let near_addresses = "10.9.1.3, 'fd00:9:1::3'";
    api.enforce(vec![put(policy("ghosts", "ghost", "client", [7000, 7001]))])?;
    reaches("alone", &client, &near, &PORTS)?;
    for node in ["node-1", "node-2"] {
        // One of the claimants is isolated, then both.
        api.enforce(vec![put(ghost(node, near_addresses))])?;
        reaches("one is isolated", &client, &near, &[7000, 7001])?;
        reaches("one is isolated", &far, &near, &[])?;
        api.enforce(vec![put(servers("client, server"))])?;
        reaches("both are isolated", &client, &near, &[7001])?;
        // The address is a peer of the servers where both claimants are.
        reaches("one is a peer", &near, &far, &[])?;
        api.enforce(vec![put(servers("client, server, ghost"))])?;
        reaches("both are peers", &near, &far, &[7001, 7002])?;
        reaches("others are isolated", &client, &far, &[7001, 7002])?;
        // The contest ends.
        api.enforce(vec![delete(ghost(node, near_addresses))])?;
        reaches("one is gone", &client, &near, &[7001, 7002])?;
        reaches("one is gone", &near, &far, &[7001, 7002])?;
        api.enforce(vec![delete(servers("client"))])?;
        reaches("alone again", &client, &near, &PORTS)?;
    }
    Ok(())
}
