//! The controls of one node: the same states on the same kind of table, brought about as others do it. They must leak.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use anyhow::{Context, Result, anyhow};
use sallyport_controlplane::{cluster::Cluster, compile, manifest};
use sallyport_enforcer::{
    netlink::Netlink,
    nft::{command::Command, render::Options},
    plan::{self, Installed, Limits, Plan},
};
use sallyport_integration::{probe::Flood, testbed::Testbed};
use sallyport_proto::{Position, Ranges, Window, policy::NodePolicy};

use crate::{
    outcome::{Bounds, Measured},
    progress::Progress,
    real::pods,
    scenario::Scenario,
    state::State,
    traffic::tallies,
};

/// A table that is edited carelessly.
struct Table {
    netlink: Netlink,
    options: Options,
    installed: Installed,
}

/// Each edit as one batch: fresh chains and sets, the swap, and the deletion of the old ones, all at once.
pub(crate) fn one_batch(
    scenario: &Scenario,
    bounds: Bounds,
    progress: &mut Progress,
) -> Result<Measured> {
    run(scenario, bounds, progress, |table, policy, _| {
        table.in_one_batch(policy)
    })
}

/// Each edit as two: the pods' rules go, then the new ones come.
pub(crate) fn remove_then_add(
    scenario: &Scenario,
    bounds: Bounds,
    progress: &mut Progress,
) -> Result<Measured> {
    run(scenario, bounds, progress, |table, policy, without| {
        table.in_one_batch(without)?;
        table.in_one_batch(policy)
    })
}

fn run(
    scenario: &Scenario,
    bounds: Bounds,
    progress: &mut Progress,
    carry_out: fn(&mut Table, &NodePolicy, &NodePolicy) -> Result<()>,
) -> Result<Measured> {
    let bed = Testbed::builder().nodes(1).build()?;
    let (client, server) = pods(&bed)?;
    let only_node = |state: State| -> Result<Arc<NodePolicy>> {
        let mut nodes = compile(&state)?;
        nodes.remove("node-1").context("node-1 has a policy")
    };
    let compiled: Vec<Arc<NodePolicy>> = scenario.states().map(only_node).collect::<Result<_>>()?;
    let without = unguarded(&compiled[0]);
    let netlink = bed.node(0).netns().run(Netlink::open)?;
    let mut table = Table::create(netlink, &compiled[0])?;
    let flood = Flood::start(&client, &server, &(scenario.classes)(), None)?;
    let started = Instant::now();
    let mut transactions = 0;
    while transactions < bounds.most {
        if transactions >= bounds.least && tallies(&flood.counts()).0.received > 0 {
            break;
        }
        transactions += 1;
        let policy = &compiled[transactions as usize % compiled.len()];
        carry_out(&mut table, policy, &without)?;
        progress.at(transactions, bounds.most);
    }
    let lasted = started.elapsed();
    Ok(Measured {
        transactions,
        lasted,
        report: flood.stop()?,
    })
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

/// What each node must enforce in a state.
pub(crate) fn compile(state: &State) -> Result<BTreeMap<String, Arc<NodePolicy>>> {
    let mut cluster = Cluster::default();
    for text in state.manifests() {
        let objects =
            manifest::parse(text, "a state").map_err(|problems| anyhow!("{problems:?}"))?;
        for object in objects {
            cluster.put(object, 1);
        }
    }
    Ok(compile::full(&cluster))
}

impl Table {
    fn create(netlink: Netlink, policy: &NodePolicy) -> Result<Table> {
        let options = Options {
            strict: true,
            workload_ranges: Ranges::EMPTY,
            workload_interfaces: Vec::new(),
            owned: false,
            lease: None,
        };
        let window = Window::alone(position(policy, 1), policy.clone());
        let installed = Installed::default().updated(window, &options.unknown());
        let plan = plan::create(&installed, &options, limits(&netlink));
        for step in &plan.steps {
            netlink.commit(&step.commands)?;
        }
        Ok(Table {
            netlink,
            options,
            installed,
        })
    }

    fn in_one_batch(&mut self, policy: &NodePolicy) -> Result<()> {
        let target = position(policy, self.installed.generation + 1);
        let window = Window::alone(target, policy.clone());
        let new = self.installed.updated(window, &self.options.unknown());
        let limits = limits(&self.netlink);
        let Plan {
            steps,
            garbage,
            after,
            ..
        } = plan::update(&self.installed, &new, &self.options, limits);
        let mut commands: Vec<Command> = steps.into_iter().flat_map(|step| step.commands).collect();
        commands.extend(garbage.delete());
        self.netlink.commit(&commands)?;
        self.installed = after;
        Ok(())
    }
}

fn position(policy: &NodePolicy, revision: u64) -> Position {
    Position {
        epoch: 1,
        revision,
        digest: policy.digest(),
    }
}

fn limits(netlink: &Netlink) -> Limits {
    Limits {
        batch: netlink.batch_limit(),
    }
}
