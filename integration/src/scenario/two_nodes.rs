//! States of two nodes: which end of a flow denies it, and how what both ends allow is spelt.

use std::net::IpAddr;

use super::{
    state::{State, Way, block, namespace, node, policy, ports, workload},
    traffic::{CLIENT, FAR_SERVER, FLOWS, PORT, STAYS_OPEN},
};

fn pods() -> State {
    let pod = |node: &str, name: &str, addresses: &[IpAddr]| {
        workload(node, "default", name, &format!("app: {name}"), addresses)
    };
    namespace("default", "team: red")
        .and(node("node-1", "10.9.1.0/24, \"fd00:9:1::/64\""))
        .and(node("node-2", "10.9.2.0/24, \"fd00:9:2::/64\""))
        .and(pod("node-1", "client", &CLIENT))
        .and(pod("node-2", "server", &FAR_SERVER))
}

/// Each end's policy for a flow: whom it selects, which way it looks, and the other end's label and addresses.
const ENDS: [(&str, Way, &str, &str); 2] = [
    ("out", Way::Egress, "client", "server"),
    ("in", Way::Ingress, "server", "client"),
];

fn addresses(of: &str) -> [IpAddr; 2] {
    match of {
        "client" => CLIENT,
        _ => FAR_SERVER,
    }
}

/// A port that both ends always allow, in the same words.
fn open() -> State {
    let rule = |(name, way, selected, peer): (&str, Way, &str, &str)| {
        policy(
            &format!("{name}-always"),
            &format!("app: {selected}"),
            way,
            &ports(STAYS_OPEN.into(), STAYS_OPEN.into()),
            &format!("{{podSelector: {{matchLabels: {{app: {peer}}}}}}}"),
        )
    };
    ENDS.into_iter()
        .map(rule)
        .fold(State::default(), State::and)
}

/// Some flows, each allowed by one end and denied by the other; with every state by the other one. Half of them change
/// one way, half of them the other.
pub(super) fn swapped(number: u32) -> State {
    let mut state = pods().and(open());
    for flow in 0..FLOWS {
        let (name, way, selected, peer) = ENDS[((number + flow) % 2) as usize];
        let port = u32::from(PORT) + flow;
        state = state.and(policy(
            &format!("{name}-{port}"),
            &format!("app: {selected}"),
            way,
            &ports(port, port),
            &format!("{{podSelector: {{matchLabels: {{app: {peer}}}}}}}"),
        ));
    }
    state
}

/// A port that both ends always allow, each time by policies of other names and in other words, while other rights come
/// and go.
pub(super) fn respelt(number: u32) -> State {
    // Both pods stay isolated by policies that never change, whatever else comes and goes.
    let isolated = ENDS.map(|(name, way, selected, _)| {
        let nobody = block("192.0.2.0/24", &[]);
        policy(
            &format!("{name}-isolated"),
            &format!("app: {selected}"),
            way,
            &ports(1, 1),
            &nobody,
        )
    });
    let mut state = isolated.into_iter().fold(pods(), State::and);
    for (end, (name, way, selected, peer)) in (0..).zip(ENDS) {
        let spelling = (number + end) % 4;
        let peers = match spelling {
            0 => format!("{{podSelector: {{matchLabels: {{app: {peer}}}}}}}"),
            1 => "{namespaceSelector: {matchLabels: {team: red}}}".to_owned(),
            2 => addresses(peer).map(|one| block(&host(one), &[])).join(", "),
            _ => format!(
                "{{podSelector: {{matchExpressions: [{{key: app, operator: NotIn, values: [{selected}]}}]}}}}"
            ),
        };
        let port = u32::from(STAYS_OPEN);
        state = state
            .and(policy(
                &format!("{name}-{spelling}"),
                &format!("app: {selected}"),
                way,
                &ports(port - number % 3, port + number % 2),
                &peers,
            ))
            .and(policy(
                &format!("{name}-others-{}", number % 2),
                &format!("app: {selected}"),
                way,
                &ports(7_000 + 10 * (number % 5), 7_050 + 10 * (number % 7)),
                &[block("172.16.0.0/16", &[]), block("fd16::/64", &[])].join(", "),
            ));
    }
    state
}

fn host(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("{address}/32"),
        IpAddr::V6(address) => format!("{address}/128"),
    }
}
