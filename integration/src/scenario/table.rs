//! The policies of nodes in each state of a scenario, and their tables made by the product's planner, encoder and
//! socket, without control plane and agent. It decides nothing.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context, Result, anyhow};
use sallyport_controlplane::{cluster::Cluster, compile, manifest};
use sallyport_enforcer::{
    plan::{self, Installed, Limits, Plan},
    table::render::Options,
};
use sallyport_nft::{
    command::Command,
    netlink::{Error, Netlink},
};
use sallyport_policy::{Epoch, NodePolicy, Position, Ranges, Revision, Window};

use super::{Scenario, state::State};

/// The policy of each node in a state.
pub fn compile(state: &State) -> Result<BTreeMap<String, Arc<NodePolicy>>> {
    let mut cluster = Cluster::default();
    for text in state.manifests() {
        let objects =
            manifest::parse(text, "a state").map_err(|problems| anyhow!("{problems:?}"))?;
        for object in objects {
            cluster.put(object, Revision(1));
        }
    }
    Ok(compile::full(&cluster))
}

/// The policies of the only node of a scenario, one for each state, in order.
pub fn compile_all(scenario: &Scenario) -> Result<Vec<Arc<NodePolicy>>> {
    let only_node = |state: State| -> Result<Arc<NodePolicy>> {
        let mut nodes = compile(&state)?;
        nodes.remove("node-1").context("node-1 has a policy")
    };
    scenario.states().map(only_node).collect()
}

/// A node's table. It has no owner, so that others may look into it and change it.
pub struct Table {
    /// The socket of its namespace.
    pub netlink: Netlink,
    /// The options of the plans.
    pub options: Options,
    /// The installed policy.
    pub installed: Installed,
}

impl Table {
    /// Makes the table in the namespace of a socket. `commit` commits a batch, as it is or changed.
    pub fn create(
        netlink: Netlink,
        policy: &NodePolicy,
        mut commit: impl FnMut(&Netlink, &[Command]) -> Result<(), Error>,
    ) -> Result<Table> {
        let options = Options {
            strict: true,
            workload_ranges: Ranges::EMPTY,
            ..Options::default()
        };
        let window = Window::alone(position(policy, 1), policy.clone());
        let installed = Installed::default().updated(window, &options.unknown());
        let table = Table {
            netlink,
            options,
            installed,
        };
        let plan = plan::create(&table.installed, &table.options, table.limits());
        for step in &plan.steps {
            commit(&table.netlink, &step.commands)?;
        }
        Ok(table)
    }

    /// The plan that leads to a policy. Nothing is carried out; who has done so sets what is installed.
    pub fn plan(&self, policy: &NodePolicy) -> Plan {
        let target = position(policy, self.installed.generation.next().0);
        let window = Window::alone(target, policy.clone());
        let new = self.installed.updated(window, &self.options.unknown());
        plan::update(&self.installed, &new, &self.options, self.limits())
    }

    fn limits(&self) -> Limits {
        Limits {
            batch: self.netlink.batch_limit(),
        }
    }
}

fn position(policy: &NodePolicy, revision: u64) -> Position {
    Position {
        epoch: Epoch(1),
        revision: Revision(revision),
        digest: policy.digest(),
    }
}
