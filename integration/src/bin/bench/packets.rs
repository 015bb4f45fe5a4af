//! B10: every variant's bed at once, rounds in which each is measured, and the ratios within each round. Computes and
//! orders; what is between the pods is the beds'.

use std::{collections::BTreeMap, fs, thread, time::Duration};

use anyhow::{Context, Result};
use rand::seq::SliceRandom as _;
use sallyport_testbed::probe::Cost;

use crate::{
    OURS, Part, Settings,
    beds::{self, Bed, CONNTRACK, Flows, Variant},
    memory, programs,
    report::{LeftOut, Machine, Memory, PacketCost, Report, Spread},
};

const ID: &str = "B10";

/// The number of turns that each has in a round.
const TURNS: usize = 8;

/// The time in which the kernel frees the memory of flushed connections.
const FREED: Duration = Duration::from_millis(100);

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
    report.costs.extend(ratios(settings, &beds, &costs));
    drop(beds);
    if settings.without.contains(&Part::Memory) {
        return Ok(());
    }
    for (name, binaries) in &settings.programs {
        eprintln!("{ID}: {name} with {} peers", settings.peers);
        let (rss_mib, peak_mib) = memory::measure(binaries, settings.peers)?;
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

/// The number of threads that ran or wanted to, over the last minute.
fn load() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg")?;
    let first = text.split(' ').next().unwrap_or_default();
    first.parse().context("/proc/loadavg begins with a number")
}

/// Every bed that there is to be.
fn set_up(settings: &Settings, report: &mut Report) -> Result<Vec<Bed>> {
    let mut beds = Vec::new();
    if !settings.without.contains(&Part::NoFilter) {
        beds.push(Bed::unfiltered(settings.mode)?);
    }
    beds.push(Bed::conntrack(settings.mode)?);
    let has_ipset = !settings.without.contains(&Part::Ipset) && may_use_ipset(report)?;
    let counts = &settings.policies;
    for &policies in counts.iter().filter(|_| has_ipset) {
        eprintln!("{ID}: {} with {policies} policies", beds::IPSET);
        beds.push(Bed::ipset(settings.mode, policies)?);
    }
    for (name, binaries) in &settings.programs {
        for &policies in counts {
            eprintln!("{ID}: {name} with {policies} policies");
            beds.push(Bed::sallyport(name, binaries, settings.mode, policies)?);
        }
    }
    Ok(beds)
}

/// Whether the kernel can do what ipset needs. If not the report says why.
fn may_use_ipset(report: &mut Report) -> Result<bool> {
    let Some(reason) = programs::ipset_refusal()? else {
        return Ok(true);
    };
    eprintln!("{ID}: ipset is left out, this kernel refuses it: {reason}");
    report.left_out.push(LeftOut {
        benchmark: ID,
        part: "left out",
        variant: beds::IPSET,
        reason,
    });
    Ok(false)
}

/// Measures each bed in each round.
fn measure(settings: &Settings, beds: &mut [Bed], report: &mut Report) -> Result<Costs> {
    let mut costs = Costs::new();
    for number in 1..=settings.rounds {
        eprintln!("{ID}: round {number} of {}", settings.rounds);
        for bed in beds.iter_mut() {
            bed.prepare()?;
        }
        thread::sleep(FREED);
        let before = arrived(beds)?;
        let round = turns(settings, beds)?;
        let after = arrived(beds)?;
        for (index, bed) in beds.iter().enumerate() {
            let sent: u64 = Flows::ALL
                .map(|flows| round[&(index, flows)].sent)
                .iter()
                .sum();
            let lost = sent.saturating_sub(after[index] - before[index]);
            if lost > 0 {
                report.failures.push(format!(
                    "{ID}: {lost} of {sent} packets that must pass did not ({}, round {number})",
                    bed.variant
                ));
            }
        }
        for ((index, flows), cost) in round {
            let nanoseconds = cost.nanoseconds().context("the kernel took no packets")?;
            let key = (flows, beds[index].variant.clone());
            costs.entry(key).or_default().push(nanoseconds);
        }
    }
    Ok(costs)
}

fn arrived(beds: &[Bed]) -> Result<Vec<u64>> {
    beds.iter().map(Bed::arrived).collect()
}

/// One round: many short turns of each bed and kind of flow, in an order that chance decides.
fn turns(settings: &Settings, beds: &mut [Bed]) -> Result<BTreeMap<(usize, Flows), Cost>> {
    let mut costs = BTreeMap::<_, Cost>::new();
    for _ in 0..TURNS {
        let mut order: Vec<(usize, Flows)> = (0..beds.len())
            .flat_map(|bed| Flows::ALL.map(|flows| (bed, flows)))
            .collect();
        order.shuffle(&mut rand::rng());
        for (index, flows) in order {
            let cost = beds[index].measure(flows, settings.cpu)?;
            costs.entry((index, flows)).or_default().add(cost);
        }
    }
    Ok(costs)
}

/// The figures of each variant: its ratios within each round, then times.
fn ratios(settings: &Settings, beds: &[Bed], costs: &Costs) -> Vec<PacketCost> {
    let fewest = settings.policies.first().copied();
    let keys = Flows::ALL.into_iter().flat_map(|flows| {
        let variants = beds.iter().map(|bed| bed.variant.clone());
        variants.map(move |variant| (flows, variant))
    });
    let rows = keys.map(|(flows, variant)| {
        let own = &costs[&(flows, variant.clone())];
        let to = |name: &str, policies: Option<u32>| {
            let other = Variant {
                name: name.to_owned(),
                policies,
            };
            if other == variant {
                return None;
            }
            let other = costs.get(&(flows, other))?;
            let pairs = own.iter().zip(other);
            Some(Spread::of(pairs.map(|(one, other)| one / other)))
        };
        let is_beside = variant.policies.is_some() && variant.name != beds::IPSET;
        PacketCost {
            benchmark: ID,
            part: "packet cost",
            flows,
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
