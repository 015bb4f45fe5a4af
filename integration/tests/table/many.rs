//! A table of very many groups: that the kernel takes it, and how long it takes. Nothing depends on the time, which is
//! that of the machine.

use std::{net::IpAddr, sync::Arc, time::Instant};

use sallyport_enforcer::plan::{self, Installed};
use sallyport_policy::{
    Class, Direction, Endpoint, GroupId, NodePolicy, PeerGroup, PortRule, Protocol, Ranges,
};
use sallyport_testbed::kernel_tests::Outcome;

use crate::{Table, options, updated};

/// The number of endpoints, each with a class of its own.
const ENDPOINTS: u8 = 250;

/// The number of ports that a class distinguishes, each with a group of its own.
const PORTS: u16 = 40;

/// A policy of 10,000 groups with one member each.
fn policy() -> NodePolicy {
    let mut policy = NodePolicy::default();
    for n in 0..ENDPOINTS {
        let rule = |port: u16| {
            let description = format!("pods default/app={n}-{port}");
            let group = GroupId::of([description.as_str()], &Ranges::EMPTY);
            let mut peers = PeerGroup::new(description, Ranges::EMPTY);
            let [high, low] = port.to_be_bytes();
            peers.addresses = [IpAddr::from([10, 1 + high, low, n])].into_iter().collect();
            (group, port, peers)
        };
        let rules: Vec<_> = (1..=PORTS).map(rule).collect();
        let class = Class {
            direction: Direction::Ingress,
            keep_established: false,
            other: None,
            ports: rules
                .iter()
                .map(|&(group, port, _)| PortRule {
                    protocol: Protocol::Tcp,
                    first: port,
                    last: port,
                    group,
                })
                .collect(),
        };
        for (group, _, peers) in rules {
            policy.set_group(group, Arc::new(peers));
        }
        let id = class.id();
        policy.add_class(id, Arc::new(class));
        let endpoint = Endpoint {
            namespace: "default".into(),
            name: format!("pod-{n}"),
            ingress: Some(id),
            ..Endpoint::default()
        };
        policy.set_endpoint([10, 0, 0, n].into(), Arc::new(endpoint));
    }
    policy
}

pub(crate) fn takes_ten_thousand_groups() -> Outcome {
    let table = Table::of_any_batch()?;
    let installed = updated(&Installed::default(), &policy(), 1);
    let plan = plan::create(&installed, &options(), table.limits);
    let started = Instant::now();
    table.commit_plan(&plan)?;
    let took = started.elapsed();
    let state = table.netlink.outline()?.ok_or("the table is gone")?;
    let expected = plan::objects(&installed, &options());
    if (&state.chains, &state.sets) != (&expected.chains, &expected.sets) {
        return Err("the table is another".into());
    }
    println!(
        "{} groups, {} sets, {} chains: the kernel took the table in {took:.1?}",
        installed.policy.groups().len(),
        state.sets.len(),
        state.chains.len(),
    );
    Ok(())
}
