//! The compiler against the oracle, on random manifests: what the control plane makes of the text, for every packet
//! that an endpoint may send or receive, in both directions.

use std::{cell::Cell, collections::BTreeSet, fmt::Write, net::IpAddr, sync::Arc};

use libtest_mimic::{Failed, Trial};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use sallyport_controlplane::{
    cluster::Cluster,
    compile::{Compiler, full},
    manifest,
    transaction::{self, Edit, Op},
};
use sallyport_oracle::{Oracle, Packet, Side, Transport};
use sallyport_policy::{Direction, NodePolicy, Protocol, Revision};
use sallyport_proto::object::ObjectKey;
use serde_json::json;

use crate::{
    number,
    universe::{Manifests, addresses, cluster, packets},
};

/// The environment variable that raises the number of clusters.
const CASES: &str = "SALLYPORT_ORACLE_CASES";

/// Sides as the compiler calls them.
const SIDES: [(Side, Direction); 2] = [
    (Side::Ingress, Direction::Ingress),
    (Side::Egress, Direction::Egress),
];

pub(crate) fn trials() -> Vec<Trial> {
    vec![Trial::test("the_compiler_agrees_with_the_oracle", agree)]
}

fn agree() -> Result<(), Failed> {
    let cases = number(CASES, 1_000);
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let seen = Seen::default();
    let (addresses, packets) = (addresses(), packets());
    let result = TestRunner::new(config).run(&(cluster(), any::<bool>()), |(manifests, listed)| {
        let (oracle, cluster) = both(&manifests, listed)?;
        for (node, policy) in full(&cluster) {
            compare(
                &oracle,
                &cluster,
                (&node, &policy),
                (&addresses, &packets),
                &seen,
            )?;
        }
        Ok(())
    });
    result.map_err(|failure| Failed::from(failure.to_string()))?;
    let (allowed, denied) = (seen.allowed.get(), seen.denied.get());
    let contested = seen.contested.get();
    println!(
        "clusters={cases} verdicts={} allowed={allowed} denied={denied} contested={contested} differences=0",
        allowed + denied
    );
    // A comparison in which hardly anything is denied, or allowed, would say little.
    if allowed.min(denied).min(contested) < u64::from(cases) * 100 {
        let seen =
            format!("{allowed} allowed, {denied} denied, {contested} of contested addresses");
        return Err(format!("{seen}: too one-sided").into());
    }
    Ok(())
}

/// The number of verdicts that were the same.
#[derive(Default)]
struct Seen {
    allowed: Cell<u64>,
    denied: Cell<u64>,
    /// The flows of an endpoint or a peer that several workloads claim.
    contested: Cell<u64>,
}

/// The manifests as the oracle and as the control plane read them.
fn both(manifests: &Manifests, listed: bool) -> Result<(Oracle, Cluster), TestCaseError> {
    let mut oracle = Oracle::default();
    for object in &manifests.0 {
        let put = oracle.put(object);
        put.map_err(|error| TestCaseError::fail(format!("{error}: {object}")))?;
    }
    let text = if listed {
        json!({"apiVersion": "v1", "kind": "List", "items": manifests.0}).to_string()
    } else {
        let mut text = String::new();
        for object in &manifests.0 {
            writeln!(text, "{object}").expect("writing to a string succeeds");
        }
        text
    };
    let objects = manifest::parse(&text, "random").map_err(refused)?;
    let edits = objects.into_iter().map(|object| Edit {
        source: Arc::from("random"),
        op: Op::Put(object),
    });
    let outcome =
        transaction::apply(&Cluster::default(), edits.collect(), Revision(1)).map_err(refused)?;
    let cluster = outcome.cluster;
    prop_assert_eq!(cluster.len(), manifests.0.len());
    let keys: Vec<ObjectKey> = outcome
        .changes
        .into_iter()
        .map(|change| change.key)
        .collect();
    incremental(&cluster, &keys)?;
    Ok((oracle, cluster))
}

fn refused(problems: Vec<impl ToString>) -> TestCaseError {
    let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
    TestCaseError::fail(format!("refused: {}", problems.join("\n")))
}

/// The compiler that enforcement uses says what the definition says, however it came to the cluster.
fn incremental(cluster: &Cluster, keys: &[ObjectKey]) -> Result<(), TestCaseError> {
    let policies = full(cluster);
    let mut followed = Compiler::new(&Cluster::default());
    followed.update(cluster, keys);
    for compiler in [Compiler::new(cluster), followed] {
        prop_assert_eq!(compiler.policies().count(), policies.len());
        for (node, policy) in &policies {
            prop_assert_eq!(compiler.policy(node), Some(policy));
        }
    }
    Ok(())
}

/// Compares every packet that an endpoint of a node may send or receive.
fn compare(
    oracle: &Oracle,
    cluster: &Cluster,
    (node, policy): (&str, &NodePolicy),
    (addresses, packets): (&[IpAddr], &[Packet]),
    seen: &Seen,
) -> Result<(), TestCaseError> {
    let contested = cluster.contested();
    let locals: BTreeSet<IpAddr> = oracle.selectable(node).collect();
    prop_assert_eq!(&locals, &policy.endpoints().keys().copied().collect());
    for &local in &locals {
        let same_family = |peer: &&IpAddr| peer.is_ipv4() == local.is_ipv4();
        for &peer in addresses.iter().filter(same_family) {
            for (side, direction) in SIDES {
                let flow = match side {
                    Side::Ingress => oracle.flow(peer, local),
                    Side::Egress => oracle.flow(local, peer),
                };
                for &packet in packets {
                    let should = flow.allowed_by(side, packet);
                    let does = policy.allows(direction, local, peer, port(packet));
                    prop_assert_eq!(
                        does,
                        should,
                        "{} of {}, peer {}, {:?}",
                        direction,
                        local,
                        peer,
                        packet
                    );
                    let count = if does { &seen.allowed } else { &seen.denied };
                    count.set(count.get() + 1);
                    let is_contested = contested.contains(&local) || contested.contains(&peer);
                    seen.contested
                        .set(seen.contested.get() + u64::from(is_contested));
                }
            }
        }
    }
    Ok(())
}

/// A packet's port as the compiler takes it.
fn port(packet: Packet) -> Option<(Protocol, u16)> {
    let Packet::To(transport, number) = packet else {
        return None;
    };
    let protocol = match transport {
        Transport::Tcp => Protocol::Tcp,
        Transport::Udp => Protocol::Udp,
        Transport::Sctp => Protocol::Sctp,
    };
    Some((protocol, number))
}
