//! Sallyport as users run it: each transaction by the API, and enforced before the next. And the controls that differ
//! from it by one thing only: no common control plane, or no common transaction.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use sallyport_integration::{
    deployment::{Client, Deployment, Streams, put},
    progress::Progress,
    scenario::{
        Scenario,
        state::State,
        traffic::{pods, tallies},
    },
};
use sallyport_proto::wire;
use sallyport_testbed::{Testbed, probe::Flood};

use crate::outcome::{Bounds, Measured};

/// By how much each byte of the first node's stream is late, where there are two: the window that one node is ahead. It
/// is more than the grace period (25-32 ms) that the other may wait for before it grants.
const LATE: Duration = Duration::from_millis(60);

/// A deployment in a scenario's first state.
fn start(scenario: &Scenario, uncoordinated: bool) -> Result<(Deployment, Flood)> {
    let bed = Testbed::builder().nodes(scenario.nodes).build()?;
    let (client, server) = pods(&bed)?;
    let delays = match scenario.nodes {
        1 => BTreeMap::new(),
        _ => BTreeMap::from([(0, LATE)]),
    };
    let streams = Streams {
        delays,
        uncoordinated,
    };
    let deployment = Deployment::start_with(bed, &[], &[], streams)?;
    let first: Vec<_> = scenario.state(0).manifests().map(put).collect();
    let mut clients = deployment.clients()?;
    let everywhere = clients.len() == 1;
    for (node, api) in clients.iter_mut().enumerate() {
        enforce(api, first.clone(), (!everywhere).then_some(node))?;
    }
    let flood = Flood::start(&client, &server, &(scenario.classes)(), None)?;
    Ok((deployment, flood))
}

/// Carries a transaction out and waits until it is enforced: by every node, or by the one that this control plane has.
fn enforce(api: &mut Client, edits: Vec<wire::Edit>, node: Option<usize>) -> Result<()> {
    let revision = api.apply(edits)?;
    match node {
        Some(node) => api.wait_enforced_by(&Deployment::node_name(node), revision)?,
        None => api.wait_enforced(revision)?,
    }
    Ok(())
}

/// The scenario itself.
pub(crate) fn run(
    scenario: &Scenario,
    transactions: u32,
    progress: &mut Progress,
) -> Result<Measured> {
    let (deployment, flood) = start(scenario, false)?;
    let warned = warnings(&deployment);
    let mut api = deployment.client()?;
    let started = Instant::now();
    let mut state = scenario.state(0);
    let mut leaked = 0;
    for number in 1..=transactions {
        let next = scenario.state(number);
        enforce(&mut api, state.edits_to(&next), None)?;
        state = next;
        progress.at(number, transactions);
        let classes = flood.counts();
        let passed = tallies(&classes).0.received;
        if passed > leaked {
            leaked = passed;
            progress.print(&format!(
                "{passed} leaked by transaction {number}: {classes:?}"
            ));
        }
    }
    let lasted = started.elapsed();
    let report = flood.stop()?;
    for warning in warnings(&deployment).difference(&warned) {
        progress.print(warning);
    }
    Ok(Measured {
        transactions,
        lasted,
        report,
    })
}

/// The warnings of the programs.
fn warnings(deployment: &Deployment) -> BTreeSet<String> {
    let nodes = (0..deployment.bed.nodes()).map(Deployment::node_name);
    let programs = ["controlplane".to_owned()].into_iter().chain(nodes);
    let is_warning = |line: &&str| line.contains(" WARN ") || line.contains("ERROR ");
    programs
        .flat_map(|program| {
            let log = deployment.log(&program);
            let lines = log.lines().filter(is_warning);
            let told: Vec<_> = lines
                .map(|line| format!("{program} warns: {line}"))
                .collect();
            told
        })
        .collect()
}

/// Each node by a control plane of its own, all told at the same moment.
pub(crate) fn uncoordinated(
    scenario: &Scenario,
    bounds: Bounds,
    progress: &mut Progress,
) -> Result<Measured> {
    let (deployment, flood) = start(scenario, true)?;
    let mut clients = deployment.clients()?;
    careless(
        scenario,
        bounds,
        progress,
        flood,
        |leaked, _| leaked > 0,
        |old, new| {
            let edits = old.edits_to(new);
            thread::scope(|scope| {
                let told: Vec<_> = clients
                    .iter_mut()
                    .enumerate()
                    .map(|(node, api)| {
                        let edits = edits.clone();
                        scope.spawn(move || enforce(api, edits, Some(node)))
                    })
                    .collect();
                told.into_iter().try_for_each(|one| {
                    one.join()
                        .map_err(|_| anyhow!("a control plane's thread panicked"))?
                })
            })
        },
    )
}

/// The removals and the additions, as two transactions.
pub(crate) fn two_transactions(
    scenario: &Scenario,
    bounds: Bounds,
    progress: &mut Progress,
) -> Result<Measured> {
    let (deployment, flood) = start(scenario, false)?;
    let mut api = deployment.client()?;
    careless(
        scenario,
        bounds,
        progress,
        flood,
        |_, lost| lost > 0,
        |old, new| {
            let (gone, come) = old.halves_to(new);
            enforce(&mut api, gone, None)?;
            enforce(&mut api, come, None)
        },
    )
}

/// A control, under a flood: goes from state to state until enough leaked or was lost, within bounds.
pub(crate) fn careless(
    scenario: &Scenario,
    bounds: Bounds,
    progress: &mut Progress,
    flood: Flood,
    mut is_enough: impl FnMut(u64, u64) -> bool,
    mut apply: impl FnMut(&State, &State) -> Result<()>,
) -> Result<Measured> {
    let started = Instant::now();
    let mut state = scenario.state(0);
    let mut transactions = 0;
    while transactions < bounds.most {
        if transactions >= bounds.least {
            let (denied, allowed) = tallies(&flood.counts());
            // Some are under way; so many are not.
            let lost = allowed.sent.saturating_sub(allowed.received + 10_000);
            if is_enough(denied.received, lost) {
                break;
            }
        }
        transactions += 1;
        let next = scenario.state(transactions);
        apply(&state, &next)?;
        state = next;
        progress.at(transactions, bounds.most);
    }
    let lasted = started.elapsed();
    Ok(Measured {
        transactions,
        lasted,
        report: flood.stop()?,
    })
}
