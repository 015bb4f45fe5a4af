//! States that differ in labels, or in which policy says the same: what a node has classes and groups of workloads for.

use std::net::IpAddr;

use super::{
    blocks::pods,
    state::{State, Way, block, namespace, policy, ports, workload},
    traffic::{ALLOWED_PEERS, DENIED_PEERS, PEERS, PORT, SERVER, peer},
};

fn port() -> String {
    ports(PORT.into(), PORT.into())
}

/// The pods that packets come from: some that are always allowed, and some that never are.
fn peers(namespaces: [&str; 2], labels: [&str; 2]) -> State {
    let mut state = State::default();
    let kinds = [DENIED_PEERS, ALLOWED_PEERS].into_iter();
    for (which, (namespace, labels)) in kinds.zip(namespaces.into_iter().zip(labels)) {
        for number in 0..PEERS as u8 {
            let addresses = peer(which, number);
            let name = format!("peer-{which}-{number}");
            state = state.and(workload("node-1", namespace, &name, labels, &addresses));
        }
    }
    state
}

/// The policy's selector and two namespaces' labels change as one: the one namespace is selected before and after, the
/// other one never. Between these, only the labels of a third one change.
pub(super) fn namespace_labels(number: u32) -> State {
    let (selected, other) = match number % 4 {
        0 | 1 => ("red", "blue"),
        _ => ("blue", "red"),
    };
    let third = if matches!(number % 4, 1 | 2) {
        "red"
    } else {
        "blue"
    };
    pods()
        .and(namespace("always", &format!("team: {selected}")))
        .and(namespace("never", &format!("team: {other}")))
        .and(namespace("third", &format!("team: {third}")))
        .and(workload(
            "node-1",
            "third",
            "third",
            "",
            &[IpAddr::from([10, 9, 10, 2])],
        ))
        .and(peers(["never", "always"], ["", ""]))
        .and(policy(
            "by-team",
            "app: server",
            Way::Ingress,
            &port(),
            &format!("{{namespaceSelector: {{matchLabels: {{team: {selected}}}}}}}"),
        ))
}

/// Policies stay, pods' labels change: the server is selected by the one policy, then by the other, and its peers'
/// roles change with it, so that the one is always selected and the other never.
pub(super) fn pod_labels(number: u32) -> State {
    let (mode, selected, other) = match number % 2 {
        0 => ("one", "left", "right"),
        _ => ("two", "right", "left"),
    };
    let from = |role: &str| format!("{{podSelector: {{matchLabels: {{role: {role}}}}}}}");
    pods()
        .and(workload(
            "node-1",
            "default",
            "server",
            &format!("app: server, mode: {mode}"),
            &SERVER,
        ))
        .and(peers(
            ["default", "default"],
            [&format!("role: {other}"), &format!("role: {selected}")],
        ))
        .and(policy(
            "one",
            "mode: one",
            Way::Ingress,
            &port(),
            &from("left"),
        ))
        .and(policy(
            "two",
            "mode: two",
            Way::Ingress,
            &port(),
            &from("right"),
        ))
}

/// One policy goes, and another one comes, as one: nothing else isolates the server. Both allow the same sources, in
/// other words, and others beside.
pub(super) fn policy_swap(number: u32) -> State {
    let mut peers = match number % 3 {
        0 => vec![block("172.20.0.0/24", &[]), block("fd20::/64", &[])],
        1 => vec![
            block("172.20.0.0/26", &[]),
            block("172.20.0.64/26", &[]),
            block("fd20::/120", &[]),
        ],
        _ => vec![
            block("172.20.0.0/16", &["172.20.0.128/25".into()]),
            block("fd20::/48", &["fd20::8000/113".into()]),
        ],
    };
    for beside in 0..number % 5 {
        let (v4, v6) = (number % 4 + beside + 5, number % 4 + beside + 6);
        peers.push(block(
            &format!("172.16.{v4}.0/24"),
            &[format!("172.16.{v4}.128/25")],
        ));
        peers.push(block(
            &format!("fd16::{v6:x}:0/112"),
            &[format!("fd16::{v6:x}:8000/113")],
        ));
    }
    pods().and(policy(
        &format!("swap-{}", number % 60),
        "app: server",
        Way::Ingress,
        &port(),
        &peers.join(", "),
    ))
}
