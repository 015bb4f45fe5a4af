//! Tests of the workloads that no policy judges, and of the messages about them.

use std::net::Ipv4Addr;

use sallyport_nft::netlink::Flowtables;
use sallyport_proto::wire;

use super::*;
use crate::places::{Bridge, Interface, Port};

const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

/// A policy with so many workloads, from 10.0.0.1 on, behind an interface or an unknown one.
fn policy(interface: &str, count: u8) -> NodePolicy {
    let mut policy = NodePolicy::default();
    for n in 1..=count {
        let endpoint = Endpoint {
            namespace: "a".into(),
            name: format!("w{n}"),
            interface: interface.into(),
            ..Endpoint::default()
        };
        policy.set_endpoint([10, 0, 0, n].into(), Arc::new(endpoint));
    }
    policy
}

/// A bridge with an address and one without, each with a port; an interface of each kind that passes the hook by.
fn places() -> Places {
    let mut places = Places::default();
    for (bridge, has_address) in [("addressed", true), ("bare", false)] {
        let is = Bridge {
            has_address,
            ..Bridge::default()
        };
        places.bridges.insert(bridge.into(), is);
        let port = Port {
            bridge: bridge.into(),
            may_be_workload: true,
        };
        places.ports.insert(format!("{bridge}-port"), port);
    }
    let bypasses = [
        ("m0", Bypass::Macvlan),
        ("t0", Bypass::Macvtap),
        ("i0", Bypass::Ipvlan),
        ("it0", Bypass::Ipvtap),
        ("ovs-br", Bypass::OpenVswitch),
        ("ovs-port", Bypass::OpenVswitchPort),
    ];
    places.bypasses = bypasses
        .map(|(name, bypass)| (name.to_owned(), bypass))
        .into();
    places
}

fn interface(name: &str) -> Route {
    Route::Interface(Interface {
        name: name.into(),
        may_be_workload: true,
    })
}

/// Why 10.0.0.1 is not judged, with a route and an interface in its object.
fn why(places: &Places, route: Option<Route>, named: &str, ignored: &[&str]) -> Option<Why> {
    let mut places = places.clone();
    places.routes.extend(route.map(|route| (ADDRESS, route)));
    let ignored: Vec<String> = ignored.iter().map(|&name| name.to_owned()).collect();
    let found = unjudged(&policy(named, 1), &ignored, &places, Timestamp::now());
    let counted: u64 = found.counts.values().sum();
    assert_eq!(counted, found.named.len() as u64);
    found.named.into_iter().next().map(|workload| workload.why)
}

#[test]
fn routes_tell_which_traffic_is_not_judged() {
    let places = places();
    let on = |route| why(&places, Some(route), "", &[]);
    assert_eq!(on(Route::Local), Some(Why::OwnAddress));
    for (name, bypass) in &places.bypasses {
        let device = Why::Device(name.clone(), *bypass);
        assert_eq!(on(interface(name)), Some(device));
    }
    assert_eq!(on(interface("veth0")), None);
    assert_eq!(on(interface("eth0")), None);
    assert_eq!(on(Route::Bridge("addressed".into())), None);
    assert_eq!(on(Route::Elsewhere), None, "it may be on the bridge bare");
    assert_eq!(why(&places, None, "", &[]), None, "it is not known yet");
    let ignored = why(&places, Some(Route::Elsewhere), "", &["bare"]);
    assert_eq!(ignored, Some(Why::NoRoute));
    let nowhere = why(&Places::default(), Some(Route::Elsewhere), "", &[]);
    assert_eq!(nowhere, Some(Why::NoRoute));
}

#[test]
fn an_interface_that_is_named_tells_it_too() {
    let places = places();
    let behind = |name| why(&places, None, name, &[]);
    assert_eq!(
        behind("t0"),
        Some(Why::Device("t0".into(), Bypass::Macvtap))
    );
    assert_eq!(
        behind("ovs-port"),
        Some(Why::Device("ovs-port".into(), Bypass::OpenVswitchPort))
    );
    for judged in ["addressed-port", "veth0", "not-there-yet"] {
        assert_eq!(behind(judged), None, "{judged}");
        let own = why(&places, Some(Route::Local), judged, &[]);
        assert_eq!(own, Some(Why::OwnAddress), "{judged}");
    }
}

#[test]
fn a_flowtable_takes_what_comes_in_by_its_devices() {
    let with = |device: &str| Places {
        flowtables: Flowtables::of([(device, "inet f fast")]),
        ..places()
    };
    let taken = |device: &str| {
        Some(Why::Flowtable {
            device: device.into(),
            flowtable: "inet f fast".into(),
        })
    };
    let on = |device, route| why(&with(device), Some(route), "", &[]);
    let behind = |device, named| why(&with(device), None, named, &[]);
    assert_eq!(on("veth0", interface("veth0")), taken("veth0"));
    assert_eq!(on("veth1", interface("veth0")), None);
    assert_eq!(behind("veth0", "veth0"), taken("veth0"));
    assert_eq!(behind("veth1", "veth0"), None);
    let bridged = || Route::Bridge("addressed".into());
    for device in ["addressed", "addressed-port"] {
        assert_eq!(on(device, bridged()), taken(device));
        assert_eq!(behind(device, "addressed-port"), taken(device));
    }
    assert_eq!(on("bare-port", bridged()), None);
    assert_eq!(on("bare-port", Route::Elsewhere), taken("bare-port"));
    let mut two = with("bare-port");
    two.bridges.insert("another".into(), Bridge::default());
    let why = why(&two, Some(Route::Elsewhere), "", &[]);
    assert_eq!(why, None, "it may be on the other bridge");
}

#[test]
fn so_many_are_named_and_the_rest_is_counted() {
    let count = u8::try_from(NAMED).unwrap() + 10;
    let (policy, mut places) = (policy("", count), Places::default());
    for address in policy.endpoints().keys() {
        places.routes.insert(*address, Route::Elsewhere);
    }
    // The last two, by address, are those that policy is evaded by.
    for n in [count - 1, count] {
        places.routes.insert([10, 0, 0, n].into(), Route::Local);
    }
    let found = unjudged(&policy, &[], &places, Timestamp::now());
    assert_eq!(found.named.len(), NAMED);
    let own: Vec<_> = found.named[..2].iter().map(|one| &*one.name).collect();
    assert_eq!(own, [format!("a/w{}", count - 1), format!("a/w{count}")]);
    assert!(found.named[2..].iter().all(|one| one.why == Why::NoRoute));
    assert_eq!((found.evading(), found.more()), (2, 10));
    let counts = [
        (Reason::OwnAddress, 2),
        (Reason::NoRoute, u64::from(count) - 2),
    ];
    assert_eq!(found.counts, BTreeMap::from(counts));
}

#[test]
fn it_is_reported_until_it_is_judged_and_since_when_stays() {
    let health = Health::default();
    let mut judging = Judging::new(Vec::new(), health.clone());
    let mut places = Places::default();
    places.routes.insert(ADDRESS, Route::Local);
    judging.update(&policy("", 1), &places);
    let report = || health.watch().borrow().report();
    let first = report().unjudged;
    assert_eq!(first.len(), 1);
    let wire::UnjudgedWorkload {
        workload, address, ..
    } = &first[0];
    assert_eq!((&**workload, &**address), ("a/w1", &[10, 0, 0, 1][..]));
    assert_eq!(first[0].reason(), Reason::OwnAddress);
    assert!(
        first[0].message.contains("Remedy: "),
        "{}",
        first[0].message
    );
    let since = || health.watch().borrow().unjudged.named[0].since;
    let before = since();
    // Another one comes.
    places.routes.insert([10, 0, 0, 2].into(), Route::Local);
    judging.update(&policy("", 2), &places);
    assert_eq!(report().unjudged.len(), 2);
    assert_eq!(since(), before);
    // The same found again is no change that the control plane would be told of.
    let mut watch = health.watch();
    watch.mark_unchanged();
    judging.update(&policy("", 2), &places);
    assert!(!watch.has_changed().unwrap());
    places.routes.insert(ADDRESS, interface("veth0"));
    places.routes.remove(&IpAddr::from([10, 0, 0, 2]));
    judging.update(&policy("", 2), &places);
    assert_eq!(report().unjudged, []);
}
