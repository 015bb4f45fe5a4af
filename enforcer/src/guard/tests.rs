//! Which interfaces are whose, and what is known of them, for small policies on a small node.

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
        ports.names.into_iter().collect()
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
