//! B10: every variant's bed at once, rounds in which each is measured once, and the ratios within each round. Computes and
//! orders; what is between the pods is the beds'.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result};
use rand::seq::SliceRandom as _;

use crate::{
    OURS, Part, Settings,
    beds::{self, Bed, CONNTRACK, Flows, Variant},
    memory,
    report::{LeftOut, Machine, Memory, PacketCost, Report, Spread},
};

const ID: &str = "B10";

/// By flows and variant: what a packet cost in each round, in nanoseconds.
type Costs = BTreeMap<(Flows, Variant), Vec<f64>>;

/// Measures everything that was not left out.
pub(crate) fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let mut beds = set_up(settings, report)?;
    let load_before = load()?;
    let costs = measure(settings, &mut beds, report)?;
    report.machines.push(Machine {
        benchmark: ID,
        part: "machine",
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
            .trim()
            .to_owned(),
        cpu: settings.cpu,
        load_before,
        load_after: load()?,
    });
    report.costs.extend(ratios(settings, &costs));
    drop(beds);
    if settings.without.contains(&Part::Memory) {
        return Ok(());
    }
    for (name, programs) in &settings.programs {
        eprintln!("{ID}: {name} with {} peers", settings.peers);
        let (rss_mib, peak_mib) = memory::measure(programs, settings.peers)?;
        report.memories.push(Memory {
            benchmark: ID,
            part: "memory",
            variant: name.clone(),
            peers: settings.peers,
            rss_mib,
            peak_mib,
        });
    }
    Ok(())
}

/// How many threads ran or wanted to, over the last minute.
fn load() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg")?;
    let first = text.split(' ').next().unwrap_or_default();
    first.parse().context("/proc/loadavg begins with a number")
}

/// Every bed that there is to be.
fn set_up(settings: &Settings, report: &mut Report) -> Result<Vec<Bed>> {
    let mut beds = Vec::new();
    if !settings.without.contains(&Part::NoFilter) {
        beds.push(Bed::unfiltered()?);
    }
    beds.push(Bed::conntrack()?);
    let mut has_ipset = !settings.without.contains(&Part::Ipset);
    if has_ipset && let Some(reason) = beds::ipset_refusal()? {
        eprintln!("{ID}: ipset is left out, this kernel refuses it: {reason}");
        report.left_out.push(LeftOut {
            benchmark: ID,
            part: "left out",
            variant: beds::IPSET,
            reason,
        });
        has_ipset = false;
    }
    for &policies in &settings.policies {
        eprintln!("{ID}: beds with {policies} policies");
        if has_ipset {
            beds.push(Bed::ipset(policies)?);
        }
        for (name, programs) in &settings.programs {
            beds.push(Bed::sallyport(name, programs, policies)?);
        }
    }
    Ok(beds)
}

/// Measures each bed once a round, in an order that chance decides.
fn measure(settings: &Settings, beds: &mut [Bed], report: &mut Report) -> Result<Costs> {
    let mut costs = Costs::new();
    for round in 1..=settings.rounds {
        eprintln!("{ID}: round {round} of {}", settings.rounds);
        let mut order: Vec<(usize, Flows)> = (0..beds.len())
            .flat_map(|bed| Flows::ALL.map(|flows| (bed, flows)))
            .collect();
        order.shuffle(&mut rand::rng());
        for (index, flows) in order {
            let bed = &mut beds[index];
            let (cost, lost) = bed.measure(flows, settings.cpu)?;
            if lost > 0 {
                report.failures.push(format!(
                    "{ID}: {lost} of {} packets that must pass did not ({}, {flows:?} flows, round {round})",
                    cost.sent, bed.variant
                ));
            }
            let key = (flows, bed.variant.clone());
            costs.entry(key).or_default().push(cost.nanoseconds);
        }
    }
    Ok(costs)
}

/// What is told of each variant: how it compares within each round, then times.
fn ratios(settings: &Settings, costs: &Costs) -> Vec<PacketCost> {
    let fewest = settings.policies.first().copied();
    let rows = costs.iter().map(|((flows, variant), own)| {
        let to = |name: &str, policies: Option<u32>| {
            let other = Variant {
                name: name.to_owned(),
                policies,
            };
            if other == *variant {
                return None;
            }
            let other = costs.get(&(*flows, other))?;
            let pairs = own.iter().zip(other);
            Some(Spread::of(pairs.map(|(one, other)| one / other)))
        };
        let is_beside = variant.policies.is_some() && variant.name != beds::IPSET;
        PacketCost {
            benchmark: ID,
            part: "packet cost",
            flows: *flows,
            variant: variant.name.clone(),
            policies: variant.policies,
            rounds: own.len(),
            to_conntrack: to(CONNTRACK, None),
            to_fewest: variant.policies.and_then(|_| to(&variant.name, fewest)),
            to_sallyport: is_beside.then(|| to(OURS, variant.policies)).flatten(),
            nanoseconds: Spread::of(own.iter().copied()),
        }
    });
    rows.collect()
}
