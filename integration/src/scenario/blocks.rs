//! States that differ in a large policy of `ipBlock`s, or in ports: what a node has interval sets and port maps for.
//! Every state denies the same packets, inside a block and inside an `except` of it, and allows the same others.

use std::net::IpAddr;

use super::{
    state::{State, Way, block, namespace, node, policy, ports, workload},
    traffic::{CLIENT, PORT, SERVER, STAYS_OPEN},
};

/// The constant part: one node, its two pods.
pub(super) fn pods() -> State {
    let pod = |name: &str, addresses: &[IpAddr]| {
        workload(
            "node-1",
            "default",
            name,
            &format!("app: {name}"),
            addresses,
        )
    };
    namespace("default", "")
        .and(node("node-1", "10.9.0.0/16, \"fd00:9::/32\""))
        .and(pod("client", &CLIENT))
        .and(pod("server", &SERVER))
}

/// The policy that isolates the server, and allows what is always allowed.
fn always() -> State {
    let peers = [block("172.20.0.0/24", &[]), block("fd20::/64", &[])].join(", ");
    policy(
        "always",
        "app: server",
        Way::Ingress,
        &ports(PORT.into(), PORT.into()),
        &peers,
    )
}

/// The addresses of the blocks.
#[derive(Clone, Copy)]
enum Inside {
    /// Outside the cluster; the block of index 0 has the denied sources in an `except`.
    Sources,
    /// The pods' own; the block of index 0 has the server in an `except`.
    Pods,
}

impl Inside {
    /// Block `index` of a family, with the sixteen-address hole `hole`.
    fn block(self, index: u32, is_v6: bool, hole: u32) -> String {
        match (self, is_v6) {
            (Inside::Sources, false) => {
                let (high, low) = (16 + (7 + index) / 256, (7 + index) % 256);
                let at = |rest: &str| format!("172.{high}.{low}.{rest}");
                block(
                    &at("0/24"),
                    &[at(&format!("{}/28", 16 * hole)), at("128/25")],
                )
            }
            (Inside::Sources, true) => {
                let at = |rest: &str| format!("fd16::{:x}:{rest}", 7 + index);
                block(
                    &at("0/112"),
                    &[at(&format!("{hole:x}00/120")), at("8000/113")],
                )
            }
            (Inside::Pods, false) => {
                let at = |rest: &str| format!("10.9.{}.{rest}", 1 + index);
                block(
                    &at("0/24"),
                    &[at(&format!("{}/28", 128 + 16 * hole)), at("0/25")],
                )
            }
            (Inside::Pods, true) => {
                let at = |rest: &str| format!("fd00:9:{:x}::{rest}", 1 + index);
                block(
                    &at("0/112"),
                    &[at(&format!("8{hole:x}00/120")), at("0/113")],
                )
            }
        }
    }

    /// `count` blocks, of both families in turn; one of them differs from variant to variant.
    fn blocks(self, count: u32, variant: u32) -> String {
        let one = |number: u32| {
            let hole = if number == variant % count {
                variant / count % 4
            } else {
                4
            };
            self.block(number / 2, number % 2 == 1, hole)
        };
        (0..count).map(one).collect::<Vec<_>>().join(", ")
    }
}

/// Two changes, a deletion, a creation, and so on, of a policy of `count` blocks.
fn edited(count: u32, number: u32) -> State {
    let state = pods().and(always());
    match number % 4 {
        3 => state,
        _ => state.and(large(count, number)),
    }
}

fn large(count: u32, variant: u32) -> State {
    let peers = Inside::Sources.blocks(count, variant);
    policy(
        "large",
        "app: server",
        Way::Ingress,
        &ports(PORT.into(), PORT.into()),
        &peers,
    )
}

pub(super) fn edited_1(number: u32) -> State {
    edited(1, number)
}

pub(super) fn edited_5(number: u32) -> State {
    edited(5, number)
}

pub(super) fn edited_50(number: u32) -> State {
    edited(50, number)
}

pub(super) fn edited_500(number: u32) -> State {
    edited(500, number)
}

/// A policy of 50 blocks goes, and another of the same name comes.
pub(super) fn recreated(number: u32) -> State {
    let state = pods().and(always());
    match number % 2 {
        1 => state,
        _ => state.and(large(50, number / 2)),
    }
}

/// Blocks that overlap, whose exceptions others allow again. Each time another block allows the flow that is always
/// allowed.
pub(super) fn overlapping(number: u32) -> State {
    let (wide, narrow) = (12 + number % 2, 16 + number % 8);
    let hole = number % 8;
    let mut peers = vec![
        block(
            &format!("172.16.0.0/{wide}"),
            &[
                "172.16.7.128/25".into(),
                "172.20.0.32/27".into(),
                format!("172.16.{hole}.0/26"),
            ],
        ),
        block(
            &format!("172.20.0.0/{narrow}"),
            &[format!("172.20.0.{}/28", 16 * (hole % 2))],
        ),
        block(
            &format!("fd16::/{}", 48 + 8 * (number % 2)),
            &["fd16::7:8000/113".into(), format!("fd16::{hole:x}:0/120")],
        ),
        block(
            &format!("fd20::/{}", 64 + narrow),
            &[format!("fd20::{}00/120", hole + 1)],
        ),
    ];
    if number.is_multiple_of(3) {
        peers.push(block("172.20.0.32/27", &[]));
        peers.push(block("fd20::20/123", &[]));
    }
    pods().and(policy(
        "overlapping",
        "app: server",
        Way::Ingress,
        &ports(PORT.into(), PORT.into()),
        &peers.join(", "),
    ))
}

/// Ranges of ports move around one that stays open to the sources that are always allowed and one that is open only to
/// others.
pub(super) fn moving_ports(number: u32) -> State {
    let (open, shut) = (u32::from(STAYS_OPEN), u32::from(PORT));
    let (allowed, others) = (
        [block("172.20.0.0/24", &[]), block("fd20::/64", &[])].join(", "),
        [block("172.30.0.0/16", &[]), block("fd30::/64", &[])].join(", "),
    );
    let way = number % 16;
    let around = match number % 4 {
        3 => ports(open, open),
        _ => [
            ports(shut + 1, open + way),
            ports(8_000 + 10 * way, shut - 1),
        ]
        .join(", "),
    };
    pods()
        .and(policy(
            "around",
            "app: server",
            Way::Ingress,
            &around,
            &allowed,
        ))
        .and(policy(
            "others",
            "app: server",
            Way::Ingress,
            &ports(shut - way % 3, shut + way % 5),
            &others,
        ))
}

/// The rules for the client: 50 blocks of pods' addresses, with the server in an `except`, and a port that stays open.
pub(super) fn egress(number: u32) -> State {
    let peers = [block("10.9.1.3/32", &[]), block("fd00:9:1::3/128", &[])].join(", ");
    let open = ports(STAYS_OPEN.into(), STAYS_OPEN.into());
    let state = pods().and(policy("always", "app: client", Way::Egress, &open, &peers));
    match number % 4 {
        3 => state,
        _ => state.and(policy(
            "large",
            "app: client",
            Way::Egress,
            &ports(PORT.into(), PORT.into()),
            &Inside::Pods.blocks(50, number),
        )),
    }
}
