//! What is found in network namespaces that the tests make, and how soon. Without the right to make one a test does nothing
//! but say so, unless SALLYPORT_REQUIRE_KERNEL=1.

use std::{net::Ipv4Addr, thread};

use futures::{StreamExt as _, TryStreamExt as _};
use nix::sched::{CloneFlags, unshare};
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan, RouteMessageBuilder,
    packet_core::NetlinkPayload,
    packet_route::{
        address::{AddressAttribute, AddressFlags, AddressMessage},
        link::{InfoBridge, InfoData, InfoKind, LinkAttribute, LinkInfo, LinkMessage},
        route::{RouteMessage, RouteType},
        rule::RuleAction,
    },
};

use super::{
    changes::Changes,
    kernel::{Kind, Running},
    *,
};

/// Within this time a change is to be known.
const SOON: Duration = Duration::from_secs(2);

/// The network namespace of a test.
struct Net {
    handle: Handle,
    _connection: Running,
}

/// Runs a test on a thread of its own, in a network namespace that goes with the thread.
fn in_namespace(test: impl AsyncFnOnce(Net) + Send) {
    let work = || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            let required = std::env::var_os("SALLYPORT_REQUIRE_KERNEL");
            assert!(required.is_none_or(|value| value != "1"), "{error}");
            println!("skipped: no network namespace can be made ({error})");
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().unwrap();
            let net = Net {
                handle,
                _connection: Running::new(connection),
            };
            net.set(unspec(1).up().build()).await;
            test(net).await;
        });
    };
    let done = thread::scope(|scope| scope.spawn(work).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn unspec(index: u32) -> LinkMessageBuilder<LinkUnspec> {
    LinkUnspec::new_with_index(index)
}

fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
    addresses.iter().map(|address| ip(address)).collect()
}

/// A route to a prefix.
fn to(prefix: &str) -> RouteMessageBuilder<IpAddr> {
    let prefix: ipnetwork::IpNetwork = prefix.parse().unwrap();
    RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(prefix.ip(), prefix.prefix())
        .unwrap()
}

impl Net {
    /// Adds a link, and returns its index.
    async fn add(&self, link: LinkMessage, name: &str) -> u32 {
        self.handle.link().add(link).execute().await.unwrap();
        let links = self.handle.link().get().match_name(name).execute();
        Box::pin(links).next().await.unwrap().unwrap().header.index
    }

    async fn veth(&self, name: &str) -> u32 {
        let peer = format!("{name}-peer");
        let index = self
            .add(LinkVeth::new(name, &peer).up().build(), name)
            .await;
        self.up(&peer).await;
        index
    }

    async fn up(&self, name: &str) {
        let link = LinkUnspec::new_with_name(name).up().build();
        self.set(link).await;
    }

    async fn bridge(&self, name: &str) -> u32 {
        self.add(LinkBridge::new(name).up().build(), name).await
    }

    async fn set(&self, link: LinkMessage) {
        self.handle.link().set(link).execute().await.unwrap();
    }

    async fn delete(&self, index: u32) {
        self.handle.link().del(index).execute().await.unwrap();
    }

    async fn address(&self, index: u32, address: &str) {
        let network: ipnetwork::IpNetwork = address.parse().unwrap();
        let addresses = self.handle.address();
        let mut added = addresses.add(index, network.ip(), network.prefix());
        // Of IPv6 addresses it is otherwise found out first whether they are another's, which takes a second.
        let flags = AddressAttribute::Flags(AddressFlags::Nodad);
        let attributes = &mut added.message_mut().attributes;
        attributes.extend(network.is_ipv6().then_some(flags));
        added.execute().await.unwrap();
    }

    async fn drop_address(&self, index: u32) {
        let all = self.handle.address().get().set_link_index_filter(index);
        let all: Vec<AddressMessage> = all.execute().try_collect().await.unwrap();
        for address in all {
            self.handle.address().del(address).execute().await.unwrap();
        }
    }

    async fn route(&self, route: RouteMessageBuilder<IpAddr>) {
        let added = self.handle.route().add(route.build()).replace();
        added.execute().await.unwrap();
    }

    async fn drop_route(&self, route: RouteMessageBuilder<IpAddr>) {
        let mut route: RouteMessage = route.build();
        route.header.scope = rtnetlink::packet_route::route::RouteScope::NoWhere;
        self.handle.route().del(route).execute().await.unwrap();
    }
}

fn interface(name: &str) -> Option<Route> {
    Some(Route::Interface(name.to_owned()))
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
    for vlan_filtering in [false, true] {
        let data = InfoData::Bridge(vec![InfoBridge::VlanFiltering(vlan_filtering)]);
        let infos = vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(data)];
        assert_eq!(kind_of(infos), Kind::Bridge { vlan_filtering });
    }
}

/// The places as they are followed.
struct Following {
    endpoints: watch::Sender<Arc<BTreeSet<IpAddr>>>,
    known: watch::Receiver<Listed>,
    _task: Running,
}

impl Following {
    async fn start(endpoints: BTreeSet<IpAddr>) -> Following {
        let (endpoints, wanted) = watch::channel(Arc::new(endpoints));
        let (known, listed) = watch::channel(Err("not yet".to_owned()));
        let mut following = Following {
            endpoints,
            known: listed,
            _task: Running::new(follow(wanted, known)),
        };
        following.until("the first listing", |_| true).await;
        following
    }

    /// Waits until the places are so, which is to be soon. Says how long it took.
    async fn until(&mut self, what: &str, is_so: impl Fn(&Places) -> bool) {
        let at = Instant::now();
        let known = self
            .known
            .wait_for(|listed| listed.as_ref().is_ok_and(&is_so));
        let is_known = timeout(SOON, known).await.is_ok();
        assert!(is_known, "{what} is not known: {:#?}", self.known.borrow());
        println!("{what}: known after {:?}", at.elapsed());
    }

    async fn until_route(&mut self, what: &str, address: &str, route: Option<Route>) {
        let address = ip(address);
        let is_so = |places: &Places| places.routes.get(&address) == route.as_ref();
        self.until(what, is_so).await;
    }
}

#[test]
fn changes_of_routes_are_known_soon() {
    in_namespace(async |net| {
        let (v0, v1, v2) = (
            net.veth("v0").await,
            net.veth("v1").await,
            net.veth("v2").await,
        );
        let (four, six) = ("10.1.0.1", "fd00:1::1");
        let mut following = Following::start(set(&[four, six])).await;
        let elsewhere = || Some(Route::Elsewhere);
        for (address, prefix) in [(four, "10.1.0.1/32"), (six, "fd00:1::1/128")] {
            following
                .until_route("no route", address, elsewhere())
                .await;
            net.route(to(prefix).output_interface(v0)).await;
            following
                .until_route("a route added", address, interface("v0"))
                .await;
            net.drop_route(to(prefix).output_interface(v0)).await;
            following
                .until_route("a route deleted", address, elsewhere())
                .await;
            net.route(to(prefix).output_interface(v0)).await;
        }
        net.route(to("10.1.0.1/32").output_interface(v1)).await;
        following
            .until_route("a route replaced", four, interface("v1"))
            .await;
        net.set(unspec(v1).name("renamed").build()).await;
        following
            .until_route("a link renamed", four, interface("renamed"))
            .await;

        net.route(to("10.1.0.0/24").output_interface(v0)).await;
        net.delete(v1).await;
        following
            .until_route("a link deleted", four, interface("v0"))
            .await;
        net.set(unspec(v0).down().build()).await;
        following
            .until_route("a link set down, IPv4", four, elsewhere())
            .await;
        following
            .until_route("a link set down, IPv6", six, elsewhere())
            .await;

        // Both ways: what leads by a gateway falls back to what leads straight.
        net.address(v2, "10.3.0.1/24").await;
        net.set(unspec(v0).up().build()).await;
        net.route(to("10.1.0.0/24").output_interface(v0)).await;
        net.route(to("10.1.0.1/32").gateway(ip("10.3.0.9")).unwrap())
            .await;
        following
            .until_route("a route by a gateway", four, elsewhere())
            .await;
        net.drop_address(v2).await;
        following
            .until_route("the last address of its link gone", four, interface("v0"))
            .await;
        net.set(unspec(v2).up().build()).await;
        net.address(v2, "10.3.0.1/24").await;
        let mut sourced = to("10.1.0.1/32").output_interface(v2);
        sourced = sourced.pref_source(ip("10.3.0.1")).unwrap();
        net.address(v2, "10.7.0.1/24").await;
        net.route(sourced).await;
        following
            .until_route("a route with a source", four, interface("v2"))
            .await;
        let address = net
            .handle
            .address()
            .get()
            .set_address_filter(ip("10.3.0.1"));
        let address: Vec<AddressMessage> = address.execute().try_collect().await.unwrap();
        net.handle
            .address()
            .del(address[0].clone())
            .execute()
            .await
            .unwrap();
        following
            .until_route("its source gone", four, interface("v0"))
            .await;

        let rule = net.handle.rule().add().v4();
        let rule = rule.destination_prefix(Ipv4Addr::new(10, 1, 0, 1), 32);
        rule.action(RuleAction::Prohibit).execute().await.unwrap();
        following.until_route("a rule", four, elsewhere()).await;

        net.route(to("10.8.0.1/32").output_interface(v2)).await;
        following
            .endpoints
            .send_replace(Arc::new(set(&[six, "10.8.0.1"])));
        following
            .until_route("an endpoint added", "10.8.0.1", interface("v2"))
            .await;
        following
            .until_route("an endpoint left out", four, None)
            .await;
        net.address(v2, "10.8.0.1/32").await;
        following
            .until_route("an address of its own", "10.8.0.1", Some(Route::Local))
            .await;
        net.set(unspec(v2).down().build()).await;
        net.delete(v2).await;
        following
            .until_route("it gone with its link", "10.8.0.1", elsewhere())
            .await;
    });
}

#[test]
fn changes_of_bridges_are_known_soon() {
    in_namespace(async |net| {
        let v0 = net.veth("v0").await;
        let mut following = Following::start(set(&["10.2.0.7"])).await;
        let br0 = net.bridge("br0").await;
        let has = |places: &Places, address| {
            let bridge = places.bridges.get("br0");
            bridge.is_some_and(|bridge| bridge.has_address == address)
        };
        let is_port = |places: &Places| places.ports.get("v0") == Some(&port("br0", true));
        following
            .until("a bridge", |places| has(places, false))
            .await;
        net.set(unspec(v0).controller(br0).build()).await;
        following.until("a port that joined", is_port).await;
        net.address(br0, "10.2.0.1/16").await;
        following
            .until("the address of a bridge", |places| has(places, true))
            .await;
        let bridged = || Some(Route::Bridge("br0".to_owned()));
        following
            .until_route("a route to it", "10.2.0.7", bridged())
            .await;
        net.set(unspec(v0).nocontroller().build()).await;
        following
            .until("a port that left", |places| !is_port(places))
            .await;
        net.drop_address(br0).await;
        following
            .until("no address", |places| has(places, false))
            .await;
        following
            .until_route("no route to it", "10.2.0.7", Some(Route::Elsewhere))
            .await;
        net.delete(br0).await;
        following
            .until("no bridge", |places| places.bridges.is_empty())
            .await;
    });
}

#[test]
fn the_cost_follows_the_size_of_the_change() {
    in_namespace(async |net| {
        let (v0, v1) = (net.veth("v0").await, net.veth("v1").await);
        let endpoints: BTreeSet<IpAddr> = (0..5000_u32)
            .map(|n| Ipv4Addr::from_bits(0x0a01_0000 + n).into())
            .collect();
        for address in &endpoints {
            net.route(to(&format!("{address}/32")).output_interface(v0))
                .await;
        }
        let at = Instant::now();
        let found = list(&endpoints).await.unwrap();
        println!(
            "{} endpoints: listed within {:?}",
            endpoints.len(),
            at.elapsed()
        );
        let is_straight = |route: &Route| Some(route) == interface("v0").as_ref();
        assert_eq!(found.routes.len(), endpoints.len());
        assert!(found.routes.values().all(is_straight));
        let mut following = Following::start(endpoints).await;
        net.route(to("10.1.7.7/32").output_interface(v1)).await;
        following
            .until_route("one route of them", "10.1.7.7", interface("v1"))
            .await;
        net.delete(v0).await;
        let elsewhere = |route: &&Route| **route == Route::Elsewhere;
        let gone = |places: &Places| places.routes.values().filter(elsewhere).count() == 4999;
        following.until("all other routes of them gone", gone).await;
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
        let route = rtnetlink::packet_route::RouteNetlinkMessage::NewRoute(route);
        changes.note(NetlinkPayload::InnerMessage(route));
    }
    assert_eq!(changes, Changes::everything());
}
