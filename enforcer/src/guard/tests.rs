//! Tests of the owners of interfaces, and of the ports that are known, for small policies on a small node.

use sallyport_policy::{ClassId, Owner, Ranges, Source};

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
    // An interface that the object names needs no route.
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

/// A range of IPv4 addresses, 10.0.0.0/24.
fn range(first: u8, last: u8) -> Ranges {
    let [first, last] = [first, last].map(|n| IpAddr::from([10, 0, 0, n]));
    Ranges::span(first, last).expect("a range")
}

/// The same policy, of which workloads may use ranges.
fn with_sources(mut policy: NodePolicy, sources: &[(&[&str], Ranges)]) -> NodePolicy {
    let sources = sources.iter().map(|(owners, ranges)| Source {
        owners: owners
            .iter()
            .map(|&name| Owner {
                name: name.into(),
                ..Owner::default()
            })
            .collect(),
        ranges: ranges.clone(),
        ..Source::default()
    });
    policy.set_sources(Arc::new(Source::canonical(sources)));
    policy
}

/// Adds an address of a workload that no policy restricts.
fn add(policy: &mut NodePolicy, n: u8, name: &str, interface: &str) {
    let endpoint = Endpoint {
        name: name.into(),
        interface: interface.into(),
        ..Endpoint::default()
    };
    policy.set_endpoint([10, 0, 0, n].into(), Arc::new(endpoint));
}

#[test]
fn the_ranges_of_a_workload_are_behind_its_port() {
    let mut policy = policy("veth0", true);
    add(&mut policy, 5, "b", "veth0");
    add(&mut policy, 6, "c", "veth1");
    let policy = with_sources(
        policy,
        &[
            (&["a", "c"], range(20, 29)),
            (&["b"], range(4, 9)),
            (&["d"], range(40, 49)),
        ],
    );
    let ground = |strict| ground(&policy, &options(strict), &Rules::default(), &places(None));
    // A range means no endpoint in it.
    let of_both = Ranges::union_all(&[range(20, 29), range(4, 4), range(7, 9)]);
    let restricted = ground(false);
    assert_eq!(restricted.known.len(), 1);
    assert_eq!(restricted.known["veth0"].ranges, of_both);
    let all = ground(true);
    assert_eq!(all.known["veth0"].ranges, of_both);
    assert_eq!(all.known["veth1"].ranges, range(20, 29));
}

#[test]
fn nobody_uses_an_address_that_stands_for_no_workload() {
    let policy = with_sources(policy("veth0", true), &[(&["a"], Ranges::everything())]);
    let ground = ground(&policy, &options(false), &Rules::default(), &places(None));
    let ranges = &ground.known["veth0"].ranges;
    let may_use = |text: &str| ranges.contains(text.parse().unwrap());
    for no in [
        "0.0.0.0",
        "127.0.0.1",
        "224.0.0.1",
        "239.255.255.255",
        "255.255.255.255",
        "10.0.0.1",
        "::",
        "::1",
        "fe80::1",
        "febf:ffff::1",
        "ff02::1",
        "ffff::1",
    ] {
        assert!(!may_use(no), "{no}");
    }
    for yes in [
        "1.0.0.0",
        "10.0.0.0",
        "10.0.0.2",
        "169.254.1.1",
        "223.255.255.255",
        "240.0.0.0",
        "255.255.255.254",
        "::2",
        "fe7f::1",
        "fec0::1",
        "2001:db8::1",
        "feff::1",
    ] {
        assert!(may_use(yes), "{yes}");
    }
}

#[test]
fn where_ports_are_unknown_the_ranges_of_workloads_without_one_pass() {
    let mut policy = policy("", true);
    add(&mut policy, 6, "c", "veth1");
    policy.set_workload_ranges(Arc::new(range(1, 9)));
    let sources = [(&["a"][..], range(20, 29)), (&["c"], range(30, 39))];
    let policy = with_sources(policy, &sources);
    let ground = ground(&policy, &options(true), &Rules::default(), &places(None));
    let ranges = Ranges::union_all(&[range(1, 9), range(20, 29)]);
    assert_eq!(ground.unknown.unwrap().ranges, ranges);
    assert_eq!(ground.known["veth1"].ranges, range(30, 39));
}

#[test]
fn the_ranges_of_routed_workloads_are_behind_their_interfaces() {
    let sources = [(&["a"][..], range(20, 29)), (&["b"], range(30, 39))];
    let found = |policy: &NodePolicy, named: &[&str], strict, to: Option<(&str, bool)>| {
        let route = to.map(|(name, may_be_workload)| {
            let name = name.into();
            Route::Interface(Interface {
                name,
                may_be_workload,
            })
        });
        let options = Options {
            workload_interfaces: named.iter().map(|&name| name.to_owned()).collect(),
            ..options(strict)
        };
        let policy = with_sources(policy.clone(), &sources);
        let ports = ports(&policy, &options, &Rules::default(), &places(route));
        let names: Vec<String> = ports.names.into_iter().collect();
        let ranges: Vec<(String, Ranges)> = ports.ranges.into_iter().collect();
        (names, ranges)
    };
    let of = |name: &str, ranges| vec![(name.to_owned(), ranges)];
    let isolated = policy("", true);
    let there = found(&isolated, &[], false, Some(("veth0", true)));
    assert_eq!(there, (vec!["veth0".into()], of("veth0", range(20, 29))));
    // The interface has another workload, too, that no policy restricts.
    let mut both = policy("veth9", true);
    add(&mut both, 6, "b", "veth9");
    let there = found(&both, &[], false, None);
    assert_eq!(there.1, of("veth9", range(20, 39)));
    for (policy, named, strict, to) in [
        (&policy("", false), &[][..], false, Some(("veth0", true))),
        (&isolated, &[], true, Some(("eth0", false))),
        (&isolated, &["eth*"], false, Some(("eth0", false))),
        (&isolated, &["eth*"], true, Some(("bond0", false))),
        (&policy("plain-veth", true), &[], true, None),
    ] {
        let there = found(policy, named, strict, to);
        assert!(there.0.is_empty() && there.1.is_empty(), "{there:?}");
    }
    // An interface that the operator names is asked for its routes, though it has more than workloads behind it.
    let there = found(&isolated, &["eth*"], true, Some(("eth0", false)));
    assert_eq!(there, (vec![], of("eth0", range(20, 29))));
}

#[test]
fn the_guard_narrows_to_what_two_policies_allow_to_a_workload() {
    let start = with_sources(policy("veth0", true), &[(&["a", "b"], range(20, 29))]);
    assert!(common(&start, &start.clone()).is_none());
    let narrowed = |after: &NodePolicy| {
        let sources = common(&start, after)?;
        let mut policy = start.clone();
        policy.set_sources(Arc::new(sources));
        let of = |name: &str| {
            let endpoint = Endpoint {
                name: name.into(),
                ..Endpoint::default()
            };
            Allowed::of(&policy).beside(&endpoint)
        };
        Some((of("a"), of("b")))
    };
    // Addresses that come are none that go.
    let more = [(&["a", "b"][..], range(20, 29)), (&["a"], range(30, 39))];
    assert_eq!(narrowed(&with_sources(start.clone(), &more)), None);
    let less = with_sources(start.clone(), &[(&["a"], range(25, 35))]);
    assert_eq!(narrowed(&less), Some((range(25, 29), Ranges::EMPTY)));
    assert_eq!(
        narrowed(&with_sources(start.clone(), &[])),
        Some(Default::default())
    );
    // An address that becomes an endpoint's is nobody else's.
    let mut pod = start.clone();
    add(&mut pod, 29, "c", "veth1");
    assert_eq!(narrowed(&pod), Some((range(20, 28), range(20, 28))));
    assert!(common(&policy("veth0", true), &start).is_none());
}

#[test]
fn while_routes_are_unknown_interfaces_keep_the_ranges_that_are_allowed() {
    let policy = with_sources(policy("", true), &[(&["a"], range(1, 25))]);
    let mut before = Ports::named(["veth0", "veth1"]);
    before.allow("veth0", &range(20, 29));
    before.allow("veth1", &range(1, 9));
    let mut ports = Ports::named(["veth1"]);
    ports.keep(&before, &allowed(&policy));
    assert_eq!(ports.names, before.names);
    assert_eq!(
        ports.ranges.into_iter().collect::<Vec<_>>(),
        [("veth0".to_owned(), range(20, 25))]
    );
}

#[test]
fn allowed_sources_are_judged_where_their_workloads_are() {
    let to = |name: &str, may_be_workload| {
        let name = name.into();
        Some(Route::Interface(Interface {
            name,
            may_be_workload,
        }))
    };
    let found = |interface: &str, route, rules: &Rules| -> Vec<String> {
        let policy = with_sources(policy(interface, true), &[(&["a"], range(20, 29))]);
        inside(&policy, rules, &places(route)).into_iter().collect()
    };
    let rules = Rules {
        uplinks: vec!["up*".to_owned()],
        ..Rules::default()
    };
    let bridge = |name: &str| Some(Route::Bridge(name.into()));
    for (interface, route, expected) in [
        ("", to("veth9", true), &["veth9"][..]),
        ("", to("eth0", false), &[]),
        ("", to("up0", true), &[]),
        ("", bridge("plain"), &["plain"]),
        ("", Some(Route::Elsewhere), &["plain"]),
        ("", Some(Route::Local), &[]),
        ("", None, &["addressed", "plain"]),
        ("plain-veth", bridge("plain"), &["plain"]),
        // The node has its address on the bridge by a VLAN.
        ("plain-veth", to("plain.5", false), &["plain", "plain.5"]),
        // The workload is routed.
        ("veth9", to("veth9", true), &["veth9"]),
        // The interface may become a port of any bridge.
        ("veth9", None, &["addressed", "plain", "veth9"]),
    ] {
        let found = found(interface, route.clone(), &rules);
        assert_eq!(found, expected, "{interface} {route:?}");
    }
    let ignoring = Rules {
        ignored: vec!["plain".to_owned()],
        ..Rules::default()
    };
    assert_eq!(found("", None, &ignoring), ["addressed"]);
    assert_eq!(found("veth9", None, &ignoring), ["addressed", "veth9"]);
    // If no workload may use other addresses, none is judged; if one may in a single version, it is.
    let places = places(bridge("plain"));
    assert!(inside(&policy("", true), &rules, &places).is_empty());
    let mut some = with_sources(policy("", true), &[(&["a"], range(20, 29))]);
    let mut sources = Vec::clone(some.sources());
    let source = &mut sources[0];
    source.others = std::mem::take(&mut source.owners);
    some.set_sources(Arc::new(sources));
    assert_eq!(inside(&some, &rules, &places), ["plain".to_owned()].into());
}

/// The sources of a routed workload are not let through at bridges.
#[test]
fn the_ranges_of_a_routed_workload_are_behind_no_bridge() {
    let mut policy = policy("", true);
    add(&mut policy, 2, "routed", "");
    let sources: [(&[&str], Ranges); 2] = [(&["a"], range(20, 29)), (&["routed"], range(40, 49))];
    let policy = with_sources(policy, &sources);
    let mut places = places(Some(Route::Bridge("plain".into())));
    let to = Interface {
        name: "veth9".into(),
        may_be_workload: true,
    };
    places
        .routes
        .insert([10, 0, 0, 2].into(), Route::Interface(to));
    let ground = ground(&policy, &options(true), &Rules::default(), &places);
    let unknown = ground.unknown.expect("one is on a bridge");
    assert_eq!(unknown.ranges, range(20, 29));
}
