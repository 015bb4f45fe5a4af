//! The controls of one node: the same states, brought about as others do it, on a table that, as others' do, lets pass
//! what no rule drops. They must leak. (On the product's own table one batch loses packets and lets none pass.)

use std::{sync::Arc, time::Instant};

use anyhow::Result;
use sallyport_enforcer::{
    plan::Plan,
    table::{self, frame::NOTHING_ALLOWED},
};
use sallyport_integration::{
    progress::Progress,
    scenario::{
        Scenario,
        table::{Table, compile_all},
        traffic::{pods, tallies},
    },
};
use sallyport_nft::command::Command;
use sallyport_policy::NodePolicy;
use sallyport_testbed::{Testbed, probe::Flood};

use crate::outcome::{Bounds, Measured};

/// Each edit as one batch: fresh chains and sets, the swap, and the deletion of the old ones, all at once.
pub(crate) fn one_batch(
    scenario: &Scenario,
    bounds: Bounds,
    progress: &mut Progress,
) -> Result<Measured> {
    run(scenario, bounds, progress, |table, policy, _| {
        in_one_batch(table, policy)
    })
}

/// Each edit as two: the pods' rules go, then the new ones come.
pub(crate) fn remove_then_add(
    scenario: &Scenario,
    bounds: Bounds,
    progress: &mut Progress,
) -> Result<Measured> {
    run(scenario, bounds, progress, |table, policy, without| {
        in_one_batch(table, without)?;
        in_one_batch(table, policy)
    })
}

fn run(
    scenario: &Scenario,
    bounds: Bounds,
    progress: &mut Progress,
    apply: fn(&mut Table, &NodePolicy, &NodePolicy) -> Result<()>,
) -> Result<Measured> {
    let bed = Testbed::builder().nodes(1).build()?;
    let (client, server) = pods(&bed)?;
    let compiled = compile_all(scenario)?;
    let without = unguarded(&compiled[0]);
    let netlink = bed.node(0).netns().run(table::open)?;
    let mut table = Table::create(netlink, &compiled[0], |netlink, commands| {
        netlink.commit(&falling_open(commands))
    })?;
    let flood = Flood::start(&client, &server, &(scenario.classes)(), None)?;
    let started = Instant::now();
    let mut transactions = 0;
    while transactions < bounds.most {
        if transactions >= bounds.least && tallies(&flood.counts()).0.received > 0 {
            break;
        }
        transactions += 1;
        let policy = &compiled[transactions as usize % compiled.len()];
        apply(&mut table, policy, &without)?;
        progress.at(transactions, bounds.most);
    }
    let lasted = started.elapsed();
    Ok(Measured {
        transactions,
        lasted,
        report: flood.stop()?,
    })
}

/// The commands that make a table, but for the rules that drop what nothing allowed.
fn falling_open(commands: &[Command]) -> Vec<Command> {
    let drops = |command: &&Command| match command {
        Command::AddRule(_, rule) => rule.comment.as_deref() == Some(NOTHING_ALLOWED),
        _ => false,
    };
    let others = commands.iter().filter(|command| !drops(command));
    others.cloned().collect()
}

/// The policy of a node whose endpoints are not isolated.
fn unguarded(policy: &NodePolicy) -> NodePolicy {
    let mut without = policy.clone();
    for (&address, endpoint) in policy.endpoints() {
        let mut endpoint = (**endpoint).clone();
        (endpoint.ingress, endpoint.egress) = (None, None);
        without.set_endpoint(address, Arc::new(endpoint));
    }
    without
}

/// Commits an edit as one batch.
fn in_one_batch(table: &mut Table, policy: &NodePolicy) -> Result<()> {
    let Plan {
        steps,
        garbage,
        after,
        ..
    } = table.plan(policy);
    let mut commands: Vec<Command> = steps.into_iter().flat_map(|step| step.commands).collect();
    commands.extend(garbage.delete());
    table.netlink.commit(&commands)?;
    table.installed = after;
    Ok(())
}
