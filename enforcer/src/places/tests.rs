//! Tests of the findings in network namespaces that the tests make. Without the right to make one a test only reports
//! that, unless SALLYPORT_REQUIRE_KERNEL=1.

mod following;
mod net;

use std::net::Ipv4Addr;

use rtnetlink::{
    LinkMacVlan, LinkMacVtap, LinkVxlan,
    packet_core::NetlinkPayload,
    packet_route::{
        RouteNetlinkMessage,
        link::{
            InfoBridge, InfoData, InfoKind, LinkAttribute, LinkInfo, LinkMessage, MacVlanMode,
            MacVtapMode,
        },
        route::RouteType,
        rule::RuleAction,
    },
};

use self::net::{in_namespace, ip, set, to, unspec};
use super::{
    changes::Changes,
    kernel::{Kind, Link},
    *,
};

fn interface(name: &str) -> Option<Route> {
    Some(Route::Interface(Interface {
        name: name.to_owned(),
        may_be_workload: true,
    }))
}

fn port(bridge: &str, may_be_workload: bool) -> Port {
    Port {
        bridge: bridge.to_owned(),
        may_be_workload,
    }
}

#[test]
fn routes_lead_where_the_kernel_says() {
    in_namespace(async |net| {
        let (v0, d0, br0) = (
            net.veth("v0").await,
            net.veth("d0").await,
            net.bridge("br0").await,
        );
        net.address(br0, "10.2.0.1/16").await;
        net.address(br0, "fd00:2::1/64").await;
        net.address(d0, "10.3.0.1/24").await;
        net.address(d0, "fd00:3::1/64").await;
        net.route(to("10.1.0.1/32").output_interface(v0)).await;
        net.route(to("fd00:1::1/128").output_interface(v0)).await;
        net.route(to("10.4.0.0/16").gateway(ip("10.3.0.9")).unwrap())
            .await;
        net.route(to("fd00:4::/64").gateway(ip("fd00:3::9")).unwrap())
            .await;
        let ways = [
            RouteType::BlackHole,
            RouteType::Unreachable,
            RouteType::Prohibit,
        ];
        for (n, kind) in ways.into_iter().enumerate() {
            net.route(to(&format!("10.5.{n}.1/32")).kind(kind)).await;
            net.route(to(&format!("fd00:5:{n}::1/128")).kind(kind))
                .await;
        }
        // A rule for one address, to a table with another way.
        let mut other = to("10.1.0.3/32").output_interface(d0);
        other.get_mut().header.table = 100;
        net.route(other).await;
        net.route(to("10.1.0.3/32").output_interface(v0)).await;
        let rule = net.handle.rule().add().v4();
        let rule = rule.destination_prefix(Ipv4Addr::new(10, 1, 0, 3), 32);
        let rule = rule.table_id(100).action(RuleAction::ToTable);
        rule.execute().await.unwrap();

        let elsewhere = [
            "10.4.0.1",
            "fd00:4::1",
            "10.5.0.1",
            "10.5.1.1",
            "10.5.2.1",
            "fd00:5:0::1",
            "fd00:5:1::1",
            "fd00:5:2::1",
            "10.6.0.1",
            "fd00:6::1",
        ];
        let straight = ["10.1.0.1", "fd00:1::1", "10.1.0.3"];
        let bridged = ["10.2.0.7", "fd00:2::7"];
        let own = [
            "10.2.0.1",
            "10.3.0.1",
            "fd00:2::1",
            "fd00:3::1",
            "127.0.0.1",
            "::1",
        ];
        let all = [&elsewhere[..], &straight, &bridged, &own].concat();
        let mut found = list(&set(&all)).await.unwrap();
        assert_eq!(found.routes.len(), all.len());
        let mut of = |address: &str| found.routes.remove(&ip(address));
        assert_eq!(of("10.1.0.1"), interface("v0"));
        assert_eq!(of("fd00:1::1"), interface("v0"));
        assert_eq!(of("10.1.0.3"), interface("d0"), "the rule leads elsewhere");
        for address in bridged {
            assert_eq!(
                of(address),
                Some(Route::Bridge("br0".to_owned())),
                "{address}"
            );
        }
        for address in elsewhere {
            assert_eq!(of(address), Some(Route::Elsewhere), "{address}");
        }
        for address in own {
            assert_eq!(of(address), Some(Route::Local), "{address}");
        }
    });
}

#[test]
fn bridges_and_their_ports_are_told_apart() {
    in_namespace(async |net| {
        let (br0, br1) = (net.bridge("br0").await, net.bridge("br1").await);
        let br2 = net.bridge("br2").await;
        net.address(br0, "10.2.0.1/16").await;
        net.address(br2, "fd00:2::1/64").await;
        let (v0, v1) = (net.veth("v0").await, net.veth("v1").await);
        let vxlan = LinkVxlan::new("x0", 7).port(4789).up().build();
        let x0 = net.add(vxlan, "x0").await;
        for (link, bridge) in [(v0, br0), (v1, br1), (x0, br0)] {
            net.set(unspec(link).controller(bridge).build()).await;
        }
        let found = list(&BTreeSet::new()).await.unwrap();
        let ports = [
            ("v0", "br0", true),
            ("v1", "br1", true),
            ("x0", "br0", false),
        ];
        let ports = ports.map(|(name, bridge, may_be_workload)| {
            (name.to_owned(), port(bridge, may_be_workload))
        });
        assert_eq!(found.ports, BTreeMap::from(ports));
        let bridges = [("br0", true), ("br1", false), ("br2", true)];
        let bridges = bridges.map(|(name, has_address)| {
            let bridge = Bridge {
                has_address,
                vlan_filtering: false,
            };
            (name.to_owned(), bridge)
        });
        assert_eq!(found.bridges, BTreeMap::from(bridges));
    });
}

#[test]
fn kinds_of_links_are_told_apart() {
    let kind_of = |infos: Vec<LinkInfo>| {
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::IfName("a".to_owned()),
            LinkAttribute::LinkInfo(infos),
        ];
        kernel::indexed(link).unwrap().1.kind
    };
    assert_eq!(kind_of(Vec::new()), Kind::Other);
    for kind in [
        InfoKind::Vlan,
        InfoKind::Bond,
        InfoKind::Geneve,
        InfoKind::Dummy,
    ] {
        assert_eq!(kind_of(vec![LinkInfo::Kind(kind)]), Kind::Other);
    }
    for kind in [InfoKind::Veth, InfoKind::Tun, InfoKind::Netkit] {
        assert_eq!(kind_of(vec![LinkInfo::Kind(kind)]), Kind::Workload);
    }
    let open_vswitch = || InfoKind::Other("openvswitch".to_owned());
    for (kind, bypass) in [
        (InfoKind::MacVlan, Bypass::Macvlan),
        (InfoKind::MacVtap, Bypass::Macvtap),
        (InfoKind::IpVlan, Bypass::Ipvlan),
        (InfoKind::IpVtap, Bypass::Ipvtap),
        (open_vswitch(), Bypass::OpenVswitch),
    ] {
        assert_eq!(kind_of(vec![LinkInfo::Kind(kind)]), Kind::Bypass(bypass));
    }
    for vlan_filtering in [false, true] {
        let data = InfoData::Bridge(vec![InfoBridge::VlanFiltering(vlan_filtering)]);
        let infos = vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(data)];
        assert_eq!(kind_of(infos), Kind::Bridge { vlan_filtering });
    }
}

/// An Open vSwitch datapath's device is the controller of its ports (`ovs_netdev_link` of the kernel's
/// `net/openvswitch/vport-netdev.c`).
#[test]
fn ports_of_open_vswitch_are_told_by_their_controller() {
    let link = |name: &str, kind, controller| Link {
        name: name.to_owned(),
        kind,
        controller,
        is_up: true,
        has_carrier: true,
    };
    let mut state = State::default();
    let datapath = Kind::Bypass(Bypass::OpenVswitch);
    state.insert(2, link("ovs-system", datapath, None));
    state.insert(3, link("veth0", Kind::Workload, Some(2)));
    state.insert(4, link("veth1", Kind::Workload, None));
    state.insert(5, link("m0", Kind::Bypass(Bypass::Macvlan), Some(9)));
    let expected = [
        ("m0", Bypass::Macvlan),
        ("ovs-system", Bypass::OpenVswitch),
        ("veth0", Bypass::OpenVswitchPort),
    ];
    let expected = expected.map(|(name, bypass)| (name.to_owned(), bypass));
    assert_eq!(state.places().bypasses, BTreeMap::from(expected));
}

#[test]
fn interfaces_that_pass_the_forward_hook_by_are_found() {
    in_namespace(async |net| {
        let v0 = net.veth("v0").await;
        for (name, bypass) in [("m0", Bypass::Macvlan), ("t0", Bypass::Macvtap)] {
            let mut link = LinkMacVlan::new(name, v0, MacVlanMode::Bridge).up().build();
            if bypass == Bypass::Macvtap {
                link = LinkMacVtap::new(name, v0, MacVtapMode::Bridge).up().build();
            }
            let added = net.handle.link().add(link).execute().await;
            if let Err(error) = added {
                println!("skipped: this kernel makes no {name} ({error})");
                continue;
            }
            let found = list(&BTreeSet::new()).await.unwrap();
            assert_eq!(found.bypasses.get(name), Some(&bypass));
            assert_eq!(found.bypasses.get("v0"), None);
        }
    });
}

#[test]
fn what_is_lost_or_too_much_is_a_change_of_everything() {
    let mut changes = Changes::default();
    changes.note(NetlinkPayload::Overrun(Vec::new()));
    assert!(changes.are_everything());
    let mut changes = Changes::default();
    for n in 0..5000_u32 {
        let route = to(&format!("{}/32", Ipv4Addr::from_bits(n))).build();
        let route = RouteNetlinkMessage::NewRoute(route);
        changes.note(NetlinkPayload::InnerMessage(route));
    }
    assert_eq!(changes, Changes::everything());
}
