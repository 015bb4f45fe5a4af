//! The controls: the same edits on the same kind of table, carried out as others do it. They must leak.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use sallyport_controlplane::{cluster::Cluster, compile, manifest};
use sallyport_enforcer::{
    netlink::Netlink,
    nft::{command::Command, render::Options},
    plan::{self, Installed, Limits, Plan},
};
use sallyport_integration::{probe::FloodReport, testbed::Testbed};
use sallyport_proto::{Position, Ranges, Window, policy::NodePolicy};

use crate::{
    edits::{self, Edit},
    flood, pods,
};

/// A table that is edited carelessly.
struct Table {
    netlink: Netlink,
    options: Options,
    installed: Installed,
}

/// Each edit as one batch: fresh chains and sets, the swap, and the deletion of the old ones, all at once.
pub(crate) fn one_batch(bed: Testbed, count: u32) -> Result<(Duration, FloodReport)> {
    run(&bed, count, |table, policy, _| table.in_one_batch(policy))
}

/// Each edit as two: the pod's rules go, then the new ones come.
pub(crate) fn remove_then_add(bed: Testbed, count: u32) -> Result<(Duration, FloodReport)> {
    run(&bed, count, |table, policy, without| {
        table.in_one_batch(without)?;
        table.in_one_batch(policy)
    })
}

fn run(
    bed: &Testbed,
    count: u32,
    carry_out: fn(&mut Table, &NodePolicy, &NodePolicy) -> Result<()>,
) -> Result<(Duration, FloodReport)> {
    let (client, server) = pods(bed)?;
    let mut compiled: BTreeMap<Option<u32>, Arc<NodePolicy>> = BTreeMap::new();
    for edit in edits::sequence(count).chain([Edit::Put(0), Edit::Delete]) {
        let variant = match edit {
            Edit::Put(variant) => Some(variant),
            Edit::Delete => None,
        };
        if let std::collections::btree_map::Entry::Vacant(entry) = compiled.entry(variant) {
            let policies = [Some(edits::cluster()), variant.map(edits::policy)];
            entry.insert(compile(policies.into_iter().flatten())?);
        }
    }
    let mut without = (*compiled[&None]).clone();
    let unguarded: Vec<_> = without
        .endpoints()
        .iter()
        .map(|(&address, one)| (address, one.clone()))
        .collect();
    for (address, endpoint) in unguarded {
        let mut endpoint = (*endpoint).clone();
        (endpoint.ingress, endpoint.egress) = (None, None);
        without.set_endpoint(address, Arc::new(endpoint));
    }
    let netlink = bed.node(0).netns().run(Netlink::open)?;
    let mut table = Table::create(netlink, &compiled[&Some(0)])?;
    let flood = flood(&client, &server)?;
    let started = Instant::now();
    for edit in edits::sequence(count) {
        let policy = match edit {
            Edit::Put(variant) => &compiled[&Some(variant)],
            Edit::Delete => &compiled[&None],
        };
        carry_out(&mut table, policy, &without)?;
    }
    let lasted = started.elapsed();
    Ok((lasted, flood.stop()?))
}

fn compile(manifests: impl Iterator<Item = String>) -> Result<Arc<NodePolicy>> {
    let mut cluster = Cluster::default();
    for text in manifests {
        let objects =
            manifest::parse(&text, "edits").map_err(|problems| anyhow!("{problems:?}"))?;
        for object in objects {
            cluster.put(object, 1);
        }
    }
    compile::full(&cluster)
        .remove("node-1")
        .context("node-1 has a policy")
}

impl Table {
    fn create(netlink: Netlink, policy: &NodePolicy) -> Result<Table> {
        let options = Options {
            strict: true,
            workload_ranges: Ranges::EMPTY,
            workload_interfaces: Vec::new(),
            owned: false,
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
