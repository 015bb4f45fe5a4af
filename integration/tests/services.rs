//! Services as traffic: kube-proxy's rules as it writes them, in each of its modes, host ports and the node's DNS
//! cache, and real packets that take each way under each policy. Policies speak of the pods at both ends and their
//! ports.

#[path = "services/live.rs"]
mod live;
#[path = "services/policies.rs"]
mod policies;
#[path = "services/ways.rs"]
mod ways;
#[path = "services/world.rs"]
mod world;

use std::{collections::BTreeSet, process::ExitCode};

use sallyport_integration::{
    binaries::binaries,
    deployment::{Client, Deployment, delete, put},
};
use sallyport_testbed::{
    Family, Host,
    Mode::{self, Bridged, Routed},
    kernel_tests::{self, Failed, Outcome},
    probe::{self, Probe, Prober, Protocol},
    services::Proxy::{self, Iptables, Nftables, NftablesMaps},
};

use policies::{ONLY_NEAR, Policy, policies};
use ways::{Way, ways};
use world::{CLUSTER, World};

fn main() -> ExitCode {
    if let Err(error) = binaries() {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    let programs = ["nft", "iptables-restore", "ip6tables-restore"];
    kernel_tests::run_with(
        &programs,
        &[
            ("iptables_routed", || table(Iptables, Routed)),
            ("iptables_bridged", || table(Iptables, Bridged)),
            ("nftables_routed", || table(Nftables, Routed)),
            ("nftables_bridged", || table(Nftables, Bridged)),
            ("nftables_maps_routed", || table(NftablesMaps, Routed)),
            ("nftables_maps_bridged", || table(NftablesMaps, Bridged)),
            ("live_iptables_routed", || {
                live::connections(Iptables, Routed)
            }),
            ("live_iptables_bridged", || {
                live::connections(Iptables, Bridged)
            }),
            ("live_nftables_routed", || {
                live::connections(Nftables, Routed)
            }),
            ("live_nftables_bridged", || {
                live::connections(Nftables, Bridged)
            }),
            ("live_nftables_maps_routed", || {
                live::connections(NftablesMaps, Routed)
            }),
            ("live_nftables_maps_bridged", || {
                live::connections(NftablesMaps, Bridged)
            }),
        ],
    )
}

/// Every way under every policy. Without a policy, and without Sallyport, each is open; where everything is denied each
/// is blocked but for those that are always allowed.
fn table(proxy: Proxy, mode: Mode) -> Outcome {
    let world = World::build(proxy, mode)?;
    let (ways, _servers) = (ways(&world), world.serve()?);
    let mut wrong = differences("no Sallyport", &ways, |_| true);
    let World {
        bed,
        client,
        near,
        far,
        ..
    } = world;
    let deployment = Deployment::start(bed, &[])?;
    let mut api = deployment.client()?;
    api.enforce(vec![put(CLUSTER)])?;
    wrong.extend(differences("no policy", &ways, |_| true));
    let all = policies();
    let mut before: Option<&Policy> = None;
    for policy in &all {
        change(&mut api, before.map(|policy| &policy.text), &policy.text)?;
        wrong.extend(differences(policy.name, &ways, |way| policy.opens(way)));
        before = Some(policy);
    }
    api.enforce(vec![delete(&all[all.len() - 1].text)])?;
    wrong.extend(differences("no policy again", &ways, |_| true));
    // A Service of two pods, of which one may be reached: connections are judged by the pod that each is for.
    let names = [near.name(), far.name()];
    wrong.extend(balanced("no policy", &client, &near, &names));
    api.enforce(vec![put(ONLY_NEAR)])?;
    wrong.extend(balanced("one of two pods", &client, &near, &names[..1]));
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(wrong.join("\n").into()),
    }
}

fn change(api: &mut Client, before: Option<&String>, after: &str) -> Result<(), Failed> {
    let mut edits: Vec<_> = before.into_iter().map(delete).collect();
    edits.push(put(after));
    Ok(api.enforce(edits).map(drop)?)
}

/// The ways that are not as they should be.
fn differences(under: &str, ways: &[Way], open: impl Fn(&Way) -> bool) -> Vec<String> {
    let families = [Family::V4, Family::V6];
    let asked: Vec<_> = ways
        .iter()
        .flat_map(|way| families.map(|family| (way, family)))
        .collect();
    let probes = asked.iter().map(|(way, family)| way.probe(*family));
    let outcomes = Prober::default().probe_all(probes.collect());
    let mut wrong = Vec::new();
    for ((way, family), seen) in asked.iter().zip(outcomes) {
        let wanted = match open(way) {
            true => probe::Outcome::Open,
            false => probe::Outcome::Blocked,
        };
        if seen != wanted {
            let name = way.name;
            wrong.push(format!(
                "{under}: {name} over {family}: {seen} instead of {wanted}"
            ));
        }
    }
    wrong
}

/// Asks the Service of two pods many times. Exactly these answer, and nobody else.
fn balanced(under: &str, client: &Host, near: &Host, names: &[&str]) -> Vec<String> {
    let mut wrong = Vec::new();
    for family in [Family::V4, Family::V6] {
        let probe = Probe::new(client, near, Protocol::Tcp, 80, family).at(world::both(family));
        let outcomes = Prober::default().probe_all(vec![probe; 30]);
        let answered = |outcome: &probe::Outcome| match outcome {
            probe::Outcome::Open => Some(near.name().to_owned()),
            probe::Outcome::Wrong(name) => Some(name.clone()),
            _ => None,
        };
        let seen: BTreeSet<_> = outcomes.iter().filter_map(answered).collect();
        let blocked = outcomes.contains(&probe::Outcome::Blocked);
        let wanted = names.iter().map(|&name| name.to_owned()).collect();
        if seen != wanted || blocked != (names.len() < 2) {
            wrong.push(format!(
                "{under}: a Service of two pods over {family}: {outcomes:?}"
            ));
        }
    }
    wrong
}
