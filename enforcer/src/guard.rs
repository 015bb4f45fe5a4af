//! The guard of the node's interfaces: which are whose, and so what the table of family bridge holds, and which
//! interfaces that are no bridge's the table of family inet knows for workloads'. It asks nobody and changes nothing.
//!
//! A workload may use ranges of addresses beside its own (`NodePolicy::sources`). They are behind each interface behind
//! which the workload has an endpoint. Endpoints in them, and addresses that no workload uses, are taken out
//! (`sources`).

mod sources;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use sallyport_policy::{Endpoint, NodePolicy};

use crate::{
    bridges::FORWARDS,
    places::{Bridge, Places, Port, Route},
    table::{
        bridge::{Ground, KnownPort, UnknownPorts},
        frame,
        ports::Ports,
        render::Options,
    },
};

use sources::Allowed;
pub use sources::{allowed, common};

/// The operator's rules for the interfaces of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// The bridges without workloads, by name.
    pub ignored: Vec<String>,
    /// The interfaces that lead away from the node, whatever their kind; a name that ends in `*` is a prefix.
    pub uplinks: Vec<String>,
    /// Whether what would be dropped is only counted.
    pub counts_only: bool,
}

impl Rules {
    fn leads_away(&self, name: &str) -> bool {
        is_among(name, &self.uplinks)
    }
}

/// Whether an interface is one of some; a name that ends in `*` is a prefix.
fn is_among(name: &str, some: &[String]) -> bool {
    some.iter().any(|one| match one.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == one,
    })
}

/// The addresses of the workloads: where the node's routes to them lead tells their interface or bridge, and whether an
/// address is the node's own.
pub fn addresses(policy: &NodePolicy) -> BTreeSet<IpAddr> {
    policy.endpoints().keys().copied().collect()
}

/// The interfaces of guarded workloads that are no port of a bridge: those that Workload objects name, and those that
/// the node's routes to the others lead to, unless the operator says that they lead away. Of each the addresses that
/// the workloads behind it may use beside their own; of interfaces that `--interface` names, too.
pub fn ports(policy: &NodePolicy, options: &Options, rules: &Rules, places: &Places) -> Ports {
    let allowed = Allowed::of(policy);
    let mut ports = Ports::default();
    for (address, endpoint) in policy.endpoints() {
        let (name, is_workloads) = match places.routes.get(address) {
            _ if !endpoint.interface.is_empty() => (&endpoint.interface, true),
            Some(Route::Interface(interface)) => {
                let name = &interface.name;
                (name, interface.may_be_workload && !rules.leads_away(name))
            }
            _ => continue,
        };
        if places.ports.contains_key(name) || places.bridges.contains_key(name) {
            continue;
        }
        if is_workloads && is_guarded(options, endpoint) {
            ports.names.insert(name.clone());
        }
        ports.allow(name, &allowed.beside(endpoint));
    }
    let Ports { names, ranges, .. } = &mut ports;
    let is_named = |name: &str| options.strict && is_among(name, &options.workload_interfaces);
    ranges.retain(|name, _| names.contains(name) || is_named(name));
    ports.inside = inside(policy, rules, places);
    ports
}

/// The interfaces and bridges by which packets come and go of the workloads that may use addresses beside their own:
/// there policy judges these addresses. Where the way to a workload is not known, it may be behind any bridge. If the
/// node has its address on a bridge by a VLAN, packets that come in by a port of the bridge are routed from the VLAN's
/// interface. The route to the workload leads there.
pub fn inside(policy: &NodePolicy, rules: &Rules, places: &Places) -> BTreeSet<String> {
    let sources = policy.sources().iter();
    let owners = sources.flat_map(|source| source.owners.iter().chain(&source.others));
    let owners: BTreeSet<(&str, &str)> = owners
        .map(|owner| (&*owner.namespace, &*owner.name))
        .collect();
    let mut inside = BTreeSet::new();
    if owners.is_empty() {
        return inside;
    }
    for (address, endpoint) in policy.endpoints() {
        if !owners.contains(&(&*endpoint.namespace, &*endpoint.name)) {
            continue;
        }
        let route = match places.routes.get(address) {
            Some(Route::Interface(to)) if !rules.leads_away(&to.name) => Some(to),
            _ => None,
        };
        if endpoint.interface.is_empty() {
            let route = route.filter(|to| to.may_be_workload);
            inside.extend(route.map(|to| to.name.clone()));
            inside.extend(bridges_of(address, rules, places).into_iter().cloned());
            continue;
        }
        match places.ports.get(&endpoint.interface) {
            Some(port) => {
                inside.insert(port.bridge.clone());
                inside.extend(route.map(|to| to.name.clone()));
            }
            None => {
                inside.insert(endpoint.interface.clone());
                // An interface to which no route leads may become a port of any bridge.
                if route.is_none_or(|to| to.name != endpoint.interface) {
                    let bridges = places.bridges.keys();
                    inside.extend(
                        bridges
                            .filter(|&name| !rules.ignored.contains(name))
                            .cloned(),
                    );
                }
            }
        }
    }
    inside
}

/// Whether a workload is guarded: in strict mode all are, else those that some policy restricts.
fn is_guarded(options: &Options, endpoint: &Endpoint) -> bool {
    options.strict || endpoint.is_isolated()
}

/// The ground that the table of family bridge stands on, for a policy on a node with these places.
pub fn ground(policy: &NodePolicy, options: &Options, rules: &Rules, places: &Places) -> Ground {
    let allowed = Allowed::of(policy);
    let mut known: BTreeMap<String, KnownPort> = BTreeMap::new();
    let mut isolated = BTreeSet::new();
    let mut guarded = BTreeSet::new();
    let mut elsewhere = Vec::new();
    for (address, endpoint) in policy.endpoints() {
        if endpoint.interface.is_empty() {
            elsewhere.extend(is_guarded(options, endpoint).then_some((address, endpoint)));
            continue;
        }
        let interface = &endpoint.interface;
        let there = known.entry(interface.clone()).or_default();
        there.addresses.insert(*address);
        there.ranges = there.ranges.union(&allowed.beside(endpoint));
        if is_guarded(options, endpoint) {
            guarded.insert(interface.clone());
        }
        if endpoint.ingress.is_some() {
            isolated.insert(interface.clone());
        }
    }
    known.retain(|interface, _| guarded.contains(interface));
    let unknown = unknown(&elsewhere, policy, options, rules, places).map(|mut unknown| {
        unknown.elsewhere.retain(|port| !known.contains_key(port));
        let is_on_bridge = |(address, endpoint): &(&IpAddr, &Arc<Endpoint>)| {
            endpoint.interface.is_empty() && !bridges_of(address, rules, places).is_empty()
        };
        let on_bridges = policy.endpoints().iter().filter(is_on_bridge);
        let ranges = allowed.of_all(on_bridges.map(|(_, endpoint)| endpoint));
        unknown.ranges = unknown.ranges.union(&ranges);
        unknown
    });
    let guards_any = !known.is_empty() || unknown.is_some();
    Ground {
        counts_only: rules.counts_only,
        judges_tags: guards_any && judges_tags(rules, places),
        unknown,
        known,
        isolated,
    }
}

/// Whether policy judges frames with a VLAN tag. Where a bridge filters VLANs, `bridges` sees to it that br_netfilter
/// shows them, or says that not all traffic is judged. So this asks for just the bridges that count there. Elsewhere
/// nothing is known of it.
fn judges_tags(rules: &Rules, places: &Places) -> bool {
    let forwards = |bridge: &String| {
        let ports = places.ports.values().filter(|port| port.bridge == *bridge);
        ports.count() >= FORWARDS
    };
    places.bridges.iter().any(|(name, bridge)| {
        bridge.vlan_filtering && !rules.ignored.contains(name) && forwards(name)
    })
}

/// The bridges on which a workload may be whose interface is not named.
fn bridges_of<'a>(address: &IpAddr, rules: &Rules, places: &'a Places) -> Vec<&'a String> {
    let is_meant = |(name, bridge): &(&String, &Bridge)| match places.routes.get(address) {
        Some(Route::Bridge(there)) => *name == there,
        Some(Route::Interface(_) | Route::Local) => false,
        // A bridge that the node has no address on leaves no route: what no route leads to may be there.
        Some(Route::Elsewhere) => !bridge.has_address,
        // Nobody was asked yet.
        None => true,
    };
    let bridges = places.bridges.iter().filter(is_meant);
    let bridges = bridges.map(|(name, _)| name);
    bridges
        .filter(|&name| !rules.ignored.contains(name))
        .collect()
}

/// The workloads without an interface that are on bridges; `None` where there are none.
fn unknown(
    endpoints: &[(&IpAddr, &Arc<Endpoint>)],
    policy: &NodePolicy,
    options: &Options,
    rules: &Rules,
    places: &Places,
) -> Option<UnknownPorts> {
    let mut bridges = BTreeSet::new();
    let mut isolated = false;
    for (address, endpoint) in endpoints {
        let there = bridges_of(address, rules, places);
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
    Some(UnknownPorts {
        elsewhere: elsewhere.map(|(name, _)| name.clone()).collect(),
        addresses: policy.endpoints().keys().copied().collect(),
        ranges: frame::workload_ranges(options, policy),
        isolated,
    })
}
