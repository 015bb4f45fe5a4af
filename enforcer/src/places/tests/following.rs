//! Tests of the time in which changes are known.

use std::net::Ipv4Addr;

use futures::TryStreamExt as _;
use rtnetlink::packet_route::{address::AddressMessage, rule::RuleAction};

use super::{
    interface,
    net::{in_namespace, ip, set, to, unspec},
    port, *,
};
use crate::places::kernel::Running;

/// Within this time a change is to be known.
const SOON: Duration = Duration::from_secs(2);

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

    /// Waits until what the kernel told so far is known, so that what follows is known for a reason of its own.
    async fn rest(&self) {
        sleep(SETTLE * 5).await;
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
        following.rest().await;
        net.delete(v1).await;
        following
            .until_route("a link deleted", four, interface("v0"))
            .await;
        following.rest().await;
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
        following
            .until_route("a link set up, with a route", four, interface("v0"))
            .await;
        net.route(to("10.1.0.1/32").gateway(ip("10.3.0.9")).unwrap())
            .await;
        following
            .until_route("a route by a gateway", four, elsewhere())
            .await;
        following.rest().await;
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
        following.rest().await;
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
        following.rest().await;
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
        following.rest().await;
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
fn a_device_that_passes_the_forward_hook_by_is_known_soon() {
    in_namespace(async |net| {
        let v0 = net.veth("v0").await;
        let mut following = Following::start(set(&[])).await;
        let link = LinkMacVlan::new("m0", v0, MacVlanMode::Bridge).up().build();
        if let Err(error) = net.handle.link().add(link).execute().await {
            println!("skipped: this kernel makes no macvlan device ({error})");
            return;
        }
        let is_there = |places: &Places| places.bypasses.contains_key("m0");
        following.until("a macvlan device", is_there).await;
        net.set(unspec(v0).down().build()).await;
        net.delete(v0).await;
        following
            .until("it gone with its lower device", |places| !is_there(places))
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
