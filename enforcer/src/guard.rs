//! The guard of the node's bridges: which ports are whose, and so what the table of family bridge holds. It asks nobody and
//! changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use sallyport_proto::policy::{Endpoint, NodePolicy};

use crate::{
    nft::{
        bridge::{Ground, Unknown},
        frame,
        render::Options,
    },
    places::{Places, Port, Route},
};

/// The operator's rules for the ports of the node's bridges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// The bridges without workloads, by name.
    pub ignored: Vec<String>,
    /// The ports that lead away from the node, whatever their kind; a name that ends in `*` is a prefix.
    pub uplinks: Vec<String>,
    /// Whether what would be dropped is only counted.
    pub counts_only: bool,
}

impl Rules {
    fn leads_away(&self, name: &str) -> bool {
        self.uplinks
            .iter()
            .any(|uplink| match uplink.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => name == uplink,
            })
    }
}

/// The addresses of the workloads whose interface is not known: where the node's routes to them lead tells their bridge.
pub fn without_interface(policy: &NodePolicy) -> BTreeSet<IpAddr> {
    let endpoints = policy.endpoints().iter();
    let unknown = endpoints.filter(|(_, endpoint)| endpoint.interface.is_empty());
    unknown.map(|(address, _)| *address).collect()
}

/// What the table of family bridge guards, for a policy on a node like this.
pub fn ground(policy: &NodePolicy, options: &Options, rules: &Rules, places: &Places) -> Ground {
    let is_guarded = |endpoint: &Endpoint| options.strict || endpoint.is_isolated();
    let mut known: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    let mut isolated = BTreeSet::new();
    let mut guarded = BTreeSet::new();
    let mut elsewhere = Vec::new();
    for (address, endpoint) in policy.endpoints() {
        if endpoint.interface.is_empty() {
            elsewhere.extend(is_guarded(endpoint).then_some((address, endpoint)));
            continue;
        }
        let interface = &endpoint.interface;
        known.entry(interface.clone()).or_default().insert(*address);
        if is_guarded(endpoint) {
            guarded.insert(interface.clone());
        }
        if endpoint.ingress.is_some() {
            isolated.insert(interface.clone());
        }
    }
    known.retain(|interface, _| guarded.contains(interface));
    Ground {
        counts_only: rules.counts_only,
        unknown: unknown(&elsewhere, policy, options, rules, places).map(|mut unknown| {
            unknown.elsewhere.retain(|port| !known.contains_key(port));
            unknown
        }),
        known,
        isolated,
    }
}

/// What is known of workloads without an interface that are on bridges; `None` where there are none.
fn unknown(
    endpoints: &[(&IpAddr, &Arc<Endpoint>)],
    policy: &NodePolicy,
    options: &Options,
    rules: &Rules,
    places: &Places,
) -> Option<Unknown> {
    let is_concerned = |bridge: &String| !rules.ignored.contains(bridge);
    // A bridge that the node has no address on leaves no route: what no route leads to may be there.
    let without_routes: BTreeSet<&String> = places
        .bridges
        .iter()
        .filter(|(name, bridge)| !bridge.has_address && is_concerned(name))
        .map(|(name, _)| name)
        .collect();
    let mut bridges = BTreeSet::new();
    let mut isolated = false;
    for (address, endpoint) in endpoints {
        let there = match places.routes.get(*address) {
            Some(Route::Bridge(bridge)) => BTreeSet::from([bridge]),
            Some(Route::Interface(_) | Route::Local) => BTreeSet::new(),
            Some(Route::Elsewhere) | None => without_routes.clone(),
        };
        let there = there.into_iter().filter(|&bridge| is_concerned(bridge));
        let there: Vec<&String> = there.collect();
        isolated |= !there.is_empty() && endpoint.ingress.is_some();
        bridges.extend(there);
    }
    if bridges.is_empty() {
        return None;
    }
    let leads_elsewhere = |(name, port): &(&String, &Port)| {
        !bridges.contains(&port.bridge) || !port.may_be_workload || rules.leads_away(name)
    };
    let elsewhere = places.ports.iter().filter(leads_elsewhere);
    Some(Unknown {
        elsewhere: elsewhere.map(|(name, _)| name.clone()).collect(),
        addresses: policy.endpoints().keys().copied().collect(),
        ranges: frame::workload_ranges(options, policy),
        isolated,
    })
}
