//! The network namespace of a test, and what is changed in it.

use std::{collections::BTreeSet, net::IpAddr, thread, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _};
use nix::sched::{CloneFlags, unshare};
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressFlags, AddressMessage},
        link::LinkMessage,
        route::{RouteMessage, RouteScope},
    },
};

use tokio::time::sleep;

use crate::places::{self, Route, kernel::Running};

/// The network namespace of a test.
pub(super) struct Net {
    pub(super) handle: Handle,
    _connection: Running,
}

/// Runs a test on a thread of its own, in a network namespace that goes with the thread.
pub(super) fn in_namespace(test: impl AsyncFnOnce(Net) + Send) {
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

pub(super) fn unspec(index: u32) -> LinkMessageBuilder<LinkUnspec> {
    LinkUnspec::new_with_index(index)
}

pub(super) fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

pub(super) fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
    addresses.iter().map(|address| ip(address)).collect()
}

/// A route to a prefix.
pub(super) fn to(prefix: &str) -> RouteMessageBuilder<IpAddr> {
    let prefix: ipnetwork::IpNetwork = prefix.parse().unwrap();
    RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(prefix.ip(), prefix.prefix())
        .unwrap()
}

impl Net {
    /// Adds a link, and returns its index.
    pub(super) async fn add(&self, link: LinkMessage, name: &str) -> u32 {
        self.handle.link().add(link).execute().await.unwrap();
        let links = self.handle.link().get().match_name(name).execute();
        Box::pin(links).next().await.unwrap().unwrap().header.index
    }

    pub(super) async fn veth(&self, name: &str) -> u32 {
        let peer = format!("{name}-peer");
        let index = self
            .add(LinkVeth::new(name, &peer).up().build(), name)
            .await;
        self.up(&peer).await;
        index
    }

    pub(super) async fn up(&self, name: &str) {
        let link = LinkUnspec::new_with_name(name).up().build();
        self.set(link).await;
    }

    pub(super) async fn bridge(&self, name: &str) -> u32 {
        self.add(LinkBridge::new(name).up().build(), name).await
    }

    pub(super) async fn set(&self, link: LinkMessage) {
        self.handle.link().set(link).execute().await.unwrap();
    }

    pub(super) async fn delete(&self, index: u32) {
        self.handle.link().del(index).execute().await.unwrap();
    }

    pub(super) async fn address(&self, index: u32, address: &str) {
        let network: ipnetwork::IpNetwork = address.parse().unwrap();
        let addresses = self.handle.address();
        let mut added = addresses.add(index, network.ip(), network.prefix());
        // Without this flag the kernel first checks for a second whether an IPv6 address is another host's.
        let flags = AddressAttribute::Flags(AddressFlags::Nodad);
        let attributes = &mut added.message_mut().attributes;
        attributes.extend(network.is_ipv6().then_some(flags));
        added.execute().await.unwrap();
        // The kernel makes the route to an own address of IPv6 in the background.
        let own = BTreeSet::from([network.ip()]);
        for _ in 0..1_000 {
            if places::routes(&own).await.unwrap()[&network.ip()] == Route::Local {
                return;
            }
            sleep(Duration::from_millis(2)).await;
        }
        panic!("{address} does not become an own address");
    }

    pub(super) async fn drop_address(&self, index: u32) {
        let all = self.handle.address().get().set_link_index_filter(index);
        let all: Vec<AddressMessage> = all.execute().try_collect().await.unwrap();
        for address in all {
            self.handle.address().del(address).execute().await.unwrap();
        }
    }

    pub(super) async fn route(&self, route: RouteMessageBuilder<IpAddr>) {
        let added = self.handle.route().add(route.build()).replace();
        added.execute().await.unwrap();
    }

    pub(super) async fn drop_route(&self, route: RouteMessageBuilder<IpAddr>) {
        let mut route: RouteMessage = route.build();
        route.header.scope = RouteScope::NoWhere;
        self.handle.route().del(route).execute().await.unwrap();
    }
}
