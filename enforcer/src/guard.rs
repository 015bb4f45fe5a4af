//! The guard of the node's interfaces: which are whose, and so what the table of family bridge holds, and which interfaces that are
//! no bridge's the table of family inet knows for workloads'. It asks nobody and changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use sallyport_proto::policy::{Endpoint, NodePolicy};

use crate::{
    bridges::FORWARDS,
    nft::{
        bridge::{Ground, Unknown},
        frame,
        render::Options,
    },
    places::{Places, Port, Route},
};

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
        self.uplinks
            .iter()
            .any(|uplink| match uplink.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => name == uplink,
            })
    }
}

/// The addresses of the workloads: where the node's routes to them lead tells their interface or bridge, and whether an address is
/// the node's own.
pub fn addresses(policy: &NodePolicy) -> BTreeSet<IpAddr> {
    policy.endpoints().keys().copied().collect()
}

/// The interfaces of guarded workloads that are no port of a bridge: those that Workload objects name, and those that the node's
/// routes to the others lead to, unless the operator says that they lead away.
pub fn ports(
    policy: &NodePolicy,
    options: &Options,
    rules: &Rules,
    places: &Places,
) -> BTreeSet<String> {
    let endpoints = policy.endpoints().iter();
    let guarded = endpoints.filter(|(_, endpoint)| is_guarded(options, endpoint));
    let interfaces = guarded.filter_map(|(address, endpoint)| {
        if !endpoint.interface.is_empty() {
            return Some(&endpoint.interface);
        }
        match places.routes.get(address) {
            Some(Route::Interface(interface)) => {
                let is_workload = interface.may_be_workload && !rules.leads_away(&interface.name);
                is_workload.then_some(&interface.name)
            }
            _ => None,
        }
    });
    let is_bridged =
        |name: &String| places.ports.contains_key(name) || places.bridges.contains_key(name);
    let interfaces = interfaces.filter(|name| !is_bridged(name));
    interfaces.cloned().collect()
}

/// Whether a workload is guarded: in strict mode all are, else those that some policy restricts.
fn is_guarded(options: &Options, endpoint: &Endpoint) -> bool {
    options.strict || endpoint.is_isolated()
}

/// The ground that the table of family bridge stands on, for a policy on a node with these places.
pub fn ground(policy: &NodePolicy, options: &Options, rules: &Rules, places: &Places) -> Ground {
    let mut known: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    let mut isolated = BTreeSet::new();
    let mut guarded = BTreeSet::new();
    let mut elsewhere = Vec::new();
    for (address, endpoint) in policy.endpoints() {
        if endpoint.interface.is_empty() {
            elsewhere.extend(is_guarded(options, endpoint).then_some((address, endpoint)));
            continue;
        }
        let interface = &endpoint.interface;
        known.entry(interface.clone()).or_default().insert(*address);
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

/// Whether policy judges frames with a VLAN tag. Where a bridge filters VLANs, `bridges` sees to it that br_netfilter shows them,
/// or says that not all traffic is judged. So this asks for just the bridges that count there. Elsewhere nothing is known of
/// it.
fn judges_tags(rules: &Rules, places: &Places) -> bool {
    let forwards = |bridge: &String| {
        let ports = places.ports.values().filter(|port| port.bridge == *bridge);
        ports.count() >= FORWARDS
    };
    places.bridges.iter().any(|(name, bridge)| {
        bridge.vlan_filtering && !rules.ignored.contains(name) && forwards(name)
    })
}

/// The workloads without an interface that are on bridges; `None` where there are none.
fn unknown(
    endpoints: &[(&IpAddr, &Arc<Endpoint>)],
    policy: &NodePolicy,
    options: &Options,
    rules: &Rules,
    places: &Places,
) -> Option<Unknown> {
    let is_concerned = |bridge: &String| !rules.ignored.contains(bridge);
    // A bridge that the node has no address on leaves no route: what no route leads to may be there.
    let without_routes = places
        .bridges
        .iter()
        .filter(|(_, bridge)| !bridge.has_address);
    let without_routes: BTreeSet<&String> = without_routes.map(|(name, _)| name).collect();
    let all: BTreeSet<&String> = places.bridges.keys().collect();
    let mut bridges = BTreeSet::new();
    let mut isolated = false;
    for (address, endpoint) in endpoints {
        let there = match places.routes.get(*address) {
            Some(Route::Bridge(bridge)) => BTreeSet::from([bridge]),
            Some(Route::Interface(_) | Route::Local) => BTreeSet::new(),
            Some(Route::Elsewhere) => without_routes.clone(),
            // Nobody was asked yet.
            None => all.clone(),
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

#[cfg(test)]
mod tests {
    use sallyport_proto::policy::ClassId;

    use super::*;
    use crate::places::{Bridge, Interface};

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn options(strict: bool) -> Options {
        Options {
            strict,
            workload_ranges: Default::default(),
            owned: true,
            ..Options::default()
        }
    }

    fn policy(interface: &str, isolated: bool) -> NodePolicy {
        let mut policy = NodePolicy::default();
        let endpoint = Endpoint {
            name: "a".into(),
            interface: interface.into(),
            ingress: isolated.then_some(ClassId([1; 16])),
            ..Endpoint::default()
        };
        policy.set_endpoint(ADDRESS, Arc::new(endpoint));
        policy
    }

    /// A bridge with an address, one without, each with a veth and a port that leads away.
    fn places(route: Option<Route>) -> Places {
        let mut places = Places::default();
        for (bridge, has_address) in [("addressed", true), ("plain", false)] {
            let is = Bridge {
                has_address,
                ..Bridge::default()
            };
            places.bridges.insert(bridge.into(), is);
            for (port, may_be_workload) in [("veth", true), ("away", false)] {
                let port = format!("{bridge}-{port}");
                let bridge = bridge.into();
                places.ports.insert(
                    port,
                    Port {
                        bridge,
                        may_be_workload,
                    },
                );
            }
        }
        places.routes.extend(route.map(|route| (ADDRESS, route)));
        places
    }

    /// The ports behind which a workload may be that is not known; none where there is no such workload.
    fn suspected(
        policy: &NodePolicy,
        strict: bool,
        rules: &Rules,
        route: Option<Route>,
    ) -> Vec<String> {
        let places = places(route);
        let Some(unknown) = ground(policy, &options(strict), rules, &places).unknown else {
            return Vec::new();
        };
        let ports = places.ports.keys();
        let ports = ports.filter(|port| !unknown.elsewhere.contains(*port));
        ports.cloned().collect()
    }

    #[test]
    fn the_route_to_a_workload_tells_its_bridge() {
        let (policy, rules) = (policy("", true), Rules::default());
        let on = |route| suspected(&policy, false, &rules, route);
        assert_eq!(
            on(Some(Route::Bridge("addressed".into()))),
            ["addressed-veth"]
        );
        assert_eq!(on(Some(Route::Elsewhere)), ["plain-veth"]);
        assert_eq!(on(None), ["addressed-veth", "plain-veth"]);
        let routed = Route::Interface(Interface {
            name: "veth0".into(),
            may_be_workload: true,
        });
        assert!(on(Some(routed)).is_empty());
        assert!(on(Some(Route::Local)).is_empty());
    }

    #[test]
    fn the_operator_exempts_bridges_and_ports() {
        let policy = policy("", true);
        let under = |ignored: &[&str], uplinks: &[&str]| {
            let own = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
            let rules = Rules {
                ignored: own(ignored),
                uplinks: own(uplinks),
                counts_only: false,
            };
            suspected(&policy, true, &rules, None)
        };
        assert_eq!(under(&["plain"], &[]), ["addressed-veth"]);
        assert_eq!(under(&[], &["plain-*"]), ["addressed-veth"]);
        assert_eq!(under(&[], &["plain-vet"]), ["addressed-veth", "plain-veth"]);
        assert!(under(&["plain", "addressed"], &[]).is_empty());
    }

    #[test]
    fn the_interfaces_of_routed_workloads_are_found() {
        let found = |policy: &NodePolicy, strict, route| -> Vec<String> {
            let rules = Rules {
                uplinks: vec!["up*".to_owned()],
                ..Rules::default()
            };
            let ports = ports(policy, &options(strict), &rules, &places(route));
            ports.into_iter().collect()
        };
        let to = |name: &str, may_be_workload| {
            let name = name.into();
            Some(Route::Interface(Interface {
                name,
                may_be_workload,
            }))
        };
        let isolated = policy("", true);
        assert_eq!(found(&isolated, false, to("veth0", true)), ["veth0"]);
        let nowhere = [
            to("eth0", false),
            to("plain-veth", true),
            to("up0", true),
            Some(Route::Bridge("addressed".into())),
            Some(Route::Local),
            Some(Route::Elsewhere),
            None,
        ];
        for route in nowhere {
            assert!(
                found(&isolated, true, route.clone()).is_empty(),
                "{route:?}"
            );
        }
        let free = policy("", false);
        assert!(found(&free, false, to("veth0", true)).is_empty());
        assert_eq!(found(&free, true, to("veth0", true)), ["veth0"]);
        // What the object names needs no route.
        assert_eq!(found(&policy("veth9", true), false, None), ["veth9"]);
        assert!(found(&policy("veth9", false), false, None).is_empty());
        for bridged in ["plain-veth", "plain"] {
            assert!(found(&policy(bridged, true), true, None).is_empty());
        }
    }

    #[test]
    fn tags_are_judged_where_a_bridge_of_workloads_filters_vlans() {
        let judges = |change: &dyn Fn(&mut Places), ignored: &[&str], isolated| {
            let rules = Rules {
                ignored: ignored.iter().map(|&name| name.to_owned()).collect(),
                ..Rules::default()
            };
            let mut places = places(None);
            change(&mut places);
            let policy = policy("addressed-veth", isolated);
            ground(&policy, &options(false), &rules, &places).judges_tags
        };
        let filters = |places: &mut Places| {
            places.bridges.get_mut("plain").unwrap().vlan_filtering = true;
        };
        assert!(judges(&filters, &[], true));
        assert!(!judges(&|_| {}, &[], true));
        assert!(judges(&filters, &["addressed"], true));
        assert!(!judges(&filters, &["plain"], true));
        // Nobody is guarded, and the table may be missing.
        assert!(!judges(&filters, &[], false));
        // With one port it forwards nothing, and the sysctl is not asked for.
        let one_port = |places: &mut Places| {
            filters(places);
            places.ports.remove("plain-away");
        };
        assert!(!judges(&one_port, &[], true));
    }

    #[test]
    fn in_standard_mode_only_restricted_workloads_are_guarded() {
        let rules = Rules::default();
        let guarded = |interface: &str, isolated, strict| {
            let policy = policy(interface, isolated);
            let ground = ground(&policy, &options(strict), &rules, &places(None));
            (ground.known.len(), ground.unknown.is_some())
        };
        assert_eq!(guarded("veth0", true, false), (1, false));
        assert_eq!(guarded("veth0", false, false), (0, false));
        assert_eq!(guarded("veth0", false, true), (1, false));
        assert_eq!(guarded("", false, false), (0, false));
        assert_eq!(guarded("", false, true), (0, true));
    }
}
